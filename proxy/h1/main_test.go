package h1_test

import (
	"testing"

	"concord/test/harness"
)

func TestMain(m *testing.M) { harness.NoLeaks(m) }

package h2

import (
	"testing"

	"concord/test/harness"
)

func TestMain(m *testing.M) { harness.NoLeaks(m) }

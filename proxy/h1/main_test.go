package h1_test

import (
	"flag"
	"testing"

	"concord/test/harness"
)

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "16") // those that are parallel mostly wait
	harness.NoLeaks(m)
}

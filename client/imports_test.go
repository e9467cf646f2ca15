package client

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The library is thin: a program that uses it links nothing of the broker and
// next to nothing of others.
func TestClientImportsOnlyWireCompressAndXxhash(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").CombinedOutput()
	require.NoError(t, err, string(out))
	for _, path := range strings.Fields(string(out)) {
		switch {
		case path == "github.com/lockstepmq/lockstep/client",
			path == "github.com/lockstepmq/lockstep/wire",
			path == "github.com/lockstepmq/lockstep/internal/offsets", // a map, on wire's Offset
			path == "github.com/lockstepmq/lockstep/wire/inflate",
			path == "github.com/cespare/xxhash/v2",
			strings.HasPrefix(path, "github.com/klauspost/compress"):
		default:
			t.Errorf("client depends on %s", path)
		}
	}
}

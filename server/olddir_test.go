package server

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "embed"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// oldDirectory is the data directory of the last build that knew no other nodes, after
// a clean stop: queue "orders" with two partitions, six records in the second, and
// topic "fast" in memory. Its reserve of free space is left out.
//
//go:embed testdata/single-node.tar.gz
var oldDirectory []byte

func unpackOldDirectory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	zipped, err := gzip.NewReader(bytes.NewReader(oldDirectory))
	require.NoError(t, err)
	for files := tar.NewReader(zipped); ; {
		h, err := files.Next()
		if err == io.EOF {
			return dir
		}
		require.NoError(t, err)
		name := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			require.NoError(t, os.MkdirAll(name, 0o700))
			continue
		}
		content, err := io.ReadAll(files)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, content, 0o600))
	}
}

// A directory that a build made which knew no clusters is served as it is, and can
// become the first node of one.
func TestADirectoryFromBeforeClustersIsServed(t *testing.T) {
	for name, peers := range map[string]string{"alone": "", "as the first node of a cluster": "127.0.0.1:0"} {
		t.Run(name, func(t *testing.T) {
			dir := unpackOldDirectory(t)
			for range 2 {
				s, err := Start(t.Context(), Config{DataDir: dir, Listen: "127.0.0.1:0", PeerListen: peers, HTTP: "off", MinFreeBytes: -1})
				require.NoError(t, err)
				v := s.broker.View()
				require.Len(t, v.Destinations, 2)
				orders, _ := v.Destination("orders")
				require.Empty(t, orders.Partitions[0].Founders)
				var next []wire.Offset
				require.Eventually(t, func() bool {
					next = nil
					for _, p := range s.broker.Describe(orders).Partitions {
						next = append(next, p.NextOffset)
						if p.Leader != 1 || p.State != wire.PartitionActive {
							return false
						}
					}
					return true
				}, 10*time.Second, 10*time.Millisecond)
				require.Equal(t, []wire.Offset{0, 6}, next)
				node, _ := v.Node(1)
				require.Equal(t, uint64(cluster.FounderMetaID), node.MetaID())
				require.NoError(t, s.Close(t.Context()))
			}
		})
	}
}

package server

import (
	"flag"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
)

var (
	metaFlips = flag.Int("meta.flips", 3, "flipped bits in each file of the metadata in TestF4_NoDirectoryGoesBecauseOfRot")
	metaSeed  = flag.Uint64("meta.seed", 1, "the first of their seeds")
)

// filesOf lists the files of the metadata in a data directory, those of single
// partitions included, and the partitions' directories.
func filesOf(t *testing.T, disk *vfs.Simulated) (files, directories []string) {
	t.Helper()
	list := func(dir string) []string {
		names, err := disk.List(dir)
		require.NoError(t, err)
		return names
	}
	for _, name := range list("data") {
		if name == "node.json" || name == "hardstate" {
			files = append(files, path.Join("data", name))
		}
	}
	for _, name := range list("data/meta") {
		files = append(files, path.Join("data/meta", name))
	}
	directories = list("data/partitions")
	for _, name := range list(path.Join("data/partitions", directories[0])) {
		if !strings.HasSuffix(name, ".segment") {
			files = append(files, path.Join("data/partitions", directories[0], name))
		}
	}
	return files, directories
}

// TestF4_NoDirectoryGoesBecauseOfRot flips a bit of one file of the metadata and starts
// the broker: whether it starts or not, no partition's directory is removed (RELIABILITY
// F4). Only a committed command does that.
func TestF4_NoDirectoryGoesBecauseOfRot(t *testing.T) {
	seed, started, refused := *metaSeed, 0, 0
	for k, n := 0, 1; k < n; k++ {
		for range *metaFlips {
			random := rand.New(rand.NewPCG(seed, 4))
			disk := vfs.NewSimulated(seed)
			b, err := openTestBroker(disk)
			require.NoError(t, err)
			createOrders(t, b)
			require.NoError(t, b.close())
			files, before := filesOf(t, disk)
			n = len(files)
			require.Len(t, before, 2)
			info, err := disk.Stat(files[k])
			require.NoError(t, err)
			if info.Size() > 0 {
				require.NoError(t, disk.Corrupt(files[k], random.Int64N(info.Size()), random.IntN(8)))
			}
			if b, err = openTestBroker(disk); err == nil {
				started++
				_ = b.close()
			} else {
				refused++
			}
			after, err := disk.List("data/partitions")
			require.NoError(t, err)
			require.Subset(t, after, before, "meta.seed %d: %s", seed, files[k])
			seed++
		}
	}
	t.Logf("meta.seed %d: %d flips, %d starts, %d refused, 0 directories removed", *metaSeed, started+refused, started, refused)
}

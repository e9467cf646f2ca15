package server

import (
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
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

// rotten flips a bit of one file of the metadata after the other, in directories of their
// own, and starts the broker. It returns how many partitions' directories are gone then.
// With tidy the broker does what it must not: it takes metadata that it cannot read for
// none, and removes what they do not name.
func rotten(t *testing.T, tidy bool) (lost int) {
	seed, started, refused := *metaSeed, 0, 0
	for k, n := 0, 1; k < n && !(tidy && lost > 0); k++ {
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
			b, err = openTestBroker(disk)
			if err == nil {
				started++
				if tidy {
					sweep(t, b, disk)
				}
				_ = b.close()
			} else {
				refused++
				if tidy {
					begun := vfs.NewSimulated(seed) // a broker with nothing
					b, err = openTestBroker(begun)
					require.NoError(t, err)
					sweep(t, b, disk)
					require.NoError(t, b.close())
				}
			}
			after, err := disk.List("data/partitions")
			require.NoError(t, err)
			for _, name := range before {
				if !slices.Contains(after, name) {
					t.Logf("meta.seed %d: a bit of %s, and %s is gone", seed, files[k], name)
					lost++
				}
			}
			seed++
		}
	}
	t.Logf("meta.seed %d: %d flips, %d starts, %d refused, %d directories removed", *metaSeed, started+refused, started, refused, lost)
	return lost
}

// sweep removes the directories of partitions that a broker's metadata do not name.
func sweep(t *testing.T, b *broker, disk *vfs.Simulated) {
	names, err := disk.List("data/partitions")
	require.NoError(t, err)
	for _, name := range names {
		if !slices.ContainsFunc(b.View().Destinations, func(d *cluster.Destination) bool { return strings.HasPrefix(name, d.ID.String()) }) {
			require.NoError(t, disk.RemoveAll(path.Join("data/partitions", name)))
		}
	}
}

// TestF4_NoDirectoryGoesBecauseOfRot flips a bit of one file of the metadata and starts
// the broker: whether it starts or not, no partition's directory is removed (RELIABILITY
// F4). Only a committed command does that.
func TestF4_NoDirectoryGoesBecauseOfRot(t *testing.T) { require.Zero(t, rotten(t, false)) }

func TestF4_Catches_ABrokerThatTidies(t *testing.T) { require.Positive(t, rotten(t, true)) }

var metaNodes = flag.Int("meta.nodes", 1, "flipped bits of TestF4_NoDirectoryOfAClusterGoesBecauseOfRot, each with a restart of one node of three")

// TestF4_NoDirectoryOfAClusterGoesBecauseOfRot does the same to one node of three, with
// files that also get shorter: no node removes a directory, and the other two go on.
func TestF4_NoDirectoryOfAClusterGoesBecauseOfRot(t *testing.T) {
	t.Parallel()
	const victim = 3
	c := newCrew(t, 3)
	c.create(1, "orders", 2, 3)
	c.fill("orders", 1)
	directories := func() (names []string) {
		for node, dir := range c.dirs {
			list, err := os.ReadDir(filepath.Join(dir, "partitions"))
			require.NoError(t, err)
			for _, e := range list {
				names = append(names, fmt.Sprintf("node %d: %s", node, e.Name()))
			}
		}
		slices.Sort(names)
		return names
	}
	before := directories()
	require.Len(t, before, 6)
	random := rand.New(rand.NewPCG(*metaSeed, 4))
	started, refused := 0, 0
	for range *metaNodes {
		c.stop(victim)
		var files []string
		require.NoError(t, filepath.WalkDir(c.dirs[victim], func(name string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && (!strings.HasSuffix(name, ".segment") || strings.Contains(name, "/meta/")) {
				files = append(files, name)
			}
			return err
		}))
		file := files[random.IntN(len(files))]
		whole, err := os.ReadFile(file)
		require.NoError(t, err)
		rot := slices.Clone(whole)
		if len(rot) > 0 {
			if at := random.IntN(len(rot)); random.IntN(4) == 0 {
				rot = rot[:at]
			} else {
				rot[at] ^= 1 << random.IntN(8)
			}
		}
		require.NoError(t, os.WriteFile(file, rot, 0o600))
		c.fill("orders", 1)
		s, err := Start(t.Context(), c.config(victim))
		if err == nil {
			started++
			c.servers[victim] = s
		} else {
			refused++
			require.NoError(t, os.WriteFile(file, whole, 0o600))
			c.start(victim)
		}
		require.Equal(t, before, directories(), "meta.seed %d: %s", *metaSeed, file)
	}
	t.Logf("meta.seed %d: %d flips and cuts, %d starts, %d refused, 0 directories removed", *metaSeed, started+refused, started, refused)
}

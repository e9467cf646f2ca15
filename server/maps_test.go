package server

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var mapPoints = flag.Int("map.points", 40, "at how many random pages TestF11 takes a file away under its map")

// RELIABILITY F11 on real files: a segment loses its pages, at a random place, while it
// is mapped and the broker believes them to be in memory. Whoever touched them
// would die of SIGBUS. The broker lives, readers of that partition get what is left
// and then an error, and the other partition, on the same session, does not notice.
func TestF11_APageThatGoesUnderItsMapIsTheErrorOfItsPartition(t *testing.T) {
	dir := t.TempDir()
	s, err := Start(t.Context(), Config{DataDir: dir, Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close(t.Context())) }()
	ids := map[string][16]byte{}
	c := dialOpen(t, s.Addr())
	for i, name := range []string{"bad", "good"} {
		c.send(wire.OpCreate, uint32(10+i), &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
			Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
		}})
		var info wire.DestinationInfo
		c.ok(c.answer(uint32(10+i)), &info)
		ids[name] = info.ID
		h := c.open(name, 0)
		for n := range 60 {
			batch, _ := testBatch(t, string(bytes.Repeat([]byte{byte(n)}, 5000+100*n)))
			c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
			require.Equal(t, wire.CodeOK, c.answer(5).code())
		}
	}
	segments, err := filepath.Glob(filepath.Join(s.broker.partitionDir(wire.StorageDisk, ids["bad"], 0), "*.segment"))
	require.NoError(t, err)
	require.Len(t, segments, 1)
	content, err := os.ReadFile(segments[0])
	require.NoError(t, err)

	whole := readBoth(t, s.Addr())
	require.NoError(t, whole.err)
	require.False(t, whole.closed)
	random := rand.New(rand.NewPCG(1, 11))
	closed, cut := 0, 0
	for range *mapPoints {
		page := int64(os.Getpagesize())
		at := page * (1 + random.Int64N(int64(len(whole.bad))/page))
		require.NoError(t, os.Truncate(segments[0], at))
		got := readBoth(t, s.Addr())
		if got.err != nil {
			// The client had half a frame that nobody can complete: one session pays.
			cut++
			got = readBoth(t, s.Addr())
		}
		require.NoError(t, got.err, "page at %d", at)
		require.Equal(t, whole.good, got.good, "page at %d: the other partition", at)
		require.True(t, got.closed, "page at %d: a shorter log", at)
		require.True(t, bytes.HasPrefix(whole.bad, got.bad), "page at %d: other bytes than were stored", at)
		require.Less(t, len(got.bad), len(whole.bad))
		closed++
		f, err := os.OpenFile(segments[0], os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(content[at:], at)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	require.Equal(t, whole, readBoth(t, s.Addr()), "the disk is well again")
	t.Logf("%d points: %d readers got an error, %d sessions ended, 0 crashes", *mapPoints, closed, cut)
}

// bothStreams is what one session was sent of both topics.
type bothStreams struct {
	bad, good []byte
	closed    bool  // the link of bad ended with an error
	err       error // the session ended
}

func readBoth(t *testing.T, address string) bothStreams {
	c := dialOpen(t, address)
	defer c.conn.Close()
	bad, good := c.open("bad", 0), c.open("good", 0)
	const first, second = 100, 101
	c.send(wire.OpLinkOpen, first, &wire.LinkOpenRequest{Handle: bad, Credit: 1 << 20})
	c.send(wire.OpLinkOpen, second, &wire.LinkOpenRequest{Handle: good, Credit: 1 << 20})
	links := map[uint32]*[]byte{}
	var got bothStreams
	var badLink uint32
	for ended := map[uint32]bool{}; len(ended) < 2; {
		f, err := c.tryRead()
		if err != nil {
			got.err = err
			return got
		}
		switch f.Opcode {
		case wire.OpLinkOpen:
			var m wire.LinkOpenResponse
			c.ok(f, &m)
			if links[m.Link] = &got.good; f.ID == first {
				links[m.Link], badLink = &got.bad, m.Link
			}
		case wire.OpLinkClosed:
			require.Equal(t, badLink, f.ID)
			got.closed, ended[f.ID] = true, true
		case wire.OpDeliver:
			var m wire.Deliver
			require.NoError(t, m.Parse(f.body))
			*links[f.ID] = append(*links[f.ID], m.Stream...)
			if len(m.Stream) == 0 {
				ended[f.ID] = true
			}
		}
	}
	return got
}

// The mutant touches such a page itself. It dies, whatever it has deferred.
func TestF11_Catches_ATouchOfAMap(t *testing.T) {
	const variable = "LOCKSTEP_TOUCH_MAP"
	if name := os.Getenv(variable); name != "" {
		defer func() { _ = recover(); os.Exit(0) }()
		f, err := vfs.OS().Open(name)
		if err != nil {
			os.Exit(0)
		}
		m, err := f.Map(2 << 20)
		if err != nil || os.Truncate(name, 0) != nil {
			os.Exit(0)
		}
		runtime.KeepAlive(m.Bytes()[1<<20] + 1)
		os.Exit(0)
	}
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, make([]byte, 2<<20), 0o600))
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), variable+"="+name)
	out, err := child.CombinedOutput()
	require.Error(t, err, "the child lives")
	require.Contains(t, string(out), "SIGBUS")

	// The kernel, asked to read the same page, says so.
	f, err := vfs.OS().Open(name)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Truncate(name, 2<<20))
	m, err := f.Map(2 << 20)
	require.NoError(t, err)
	defer m.Unmap()
	require.NoError(t, os.Truncate(name, 0))
	require.Error(t, m.Populate(1<<20, 100))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	_, err = writev(int(w.Fd()), [][]byte{m.Bytes()[1<<20:][:100]})
	require.Error(t, err)
}

package server

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// wipeMiB is the -erase-mib from which on TestRuleL7_ThreeNodesEraseBehindAnOldRecord also
// loses a disk: the others take the node for dead first.
const wipeMiB = 64

// eraserEnvironment holds what an eraserProcess is started with.
const eraserEnvironment = "SERVER_TEST_ERASER"

type eraserProcess struct {
	Dir  string
	Node uint32
	Join []string
}

// startEraserProcess is startEraser in a process of its own, which kill ends with SIGKILL.
func startEraserProcess(t *testing.T, dir string, node uint32, join ...string) (kill func()) {
	t.Helper()
	encoded, err := json.Marshal(eraserProcess{dir, node, join})
	require.NoError(t, err)
	command := exec.Command(os.Args[0], "-test.run=^TestEraserProcess$")
	command.Env = append(os.Environ(), eraserEnvironment+"="+string(encoded), promptExit)
	command.Stderr = os.Stderr
	_, err = command.StdinPipe() // it ends with this process
	require.NoError(t, err)
	require.NoError(t, command.Start())
	ended := false
	kill = func() {
		if !ended {
			ended = true
			require.NoError(t, command.Process.Kill())
			require.Error(t, command.Wait())
		}
	}
	t.Cleanup(kill)
	return kill
}

// TestEraserProcess is that process. On its own it does nothing.
func TestEraserProcess(t *testing.T) {
	encoded := os.Getenv(eraserEnvironment)
	if encoded == "" {
		return
	}
	var p eraserProcess
	require.NoError(t, json.Unmarshal([]byte(encoded), &p))
	startEraser(t, p.Dir, p.Node, p.Join...)
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// A lone node that has erased something gets company: the new replicas pass over what is
// gone, while the old record stays. From then on all three erase. One is killed, misses what
// the others erase, and passes over that when it is back; with -erase-mib 64 it then loses its
// disk too, gets what is there, and passes over the rest.
func TestRuleL7_ThreeNodesEraseBehindAnOldRecord(t *testing.T) {
	t.Parallel()
	first, more, missed := 2, 6, 2
	if *eraseMiB >= wipeMiB {
		first, more, missed = 4, 16, 4
	}
	dirs := map[uint32]string{1: t.TempDir(), 2: t.TempDir(), 3: t.TempDir()}
	servers := map[uint32]*Server{1: startEraser(t, dirs[1], 1)}
	s := servers[1]
	createErasing(t, s.Addr())
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	produceLarge(t, s.Addr(), 1)
	old := k.next(1)[0]
	count := 1
	handle := func(mib int) {
		t.Helper()
		for range mib {
			produceLarge(t, s.Addr(), 32)
			for _, g := range k.next(32) {
				require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
			}
			count += 32
		}
	}
	active := func() (n int, third uint64) {
		d, _ := s.broker.View().Destination("jobs")
		for _, r := range d.Partitions[0].Replicas {
			if r.State == cluster.ReplicaActive {
				n++
			}
		}
		if on := d.Partitions[0].On(3); on != nil {
			third = on.ID
		}
		return n, third
	}
	// alike makes sure that every node has the old record, its end, and a hole in between.
	alike := func() {
		t.Helper()
		for node, member := range servers {
			r := member.jobs(t)
			eventually(t, "everybody has everything", func() bool { return r.records.Watermark().Next == wire.Offset(count) })
			require.EqualValues(t, 0, r.StartOffset())
			for _, o := range []wire.Offset{0, wire.Offset(count - 1)} {
				p, base, err := r.records.Locate(o)
				require.NoError(t, err, "node %d, offset %d", node, o)
				require.Equal(t, o, base)
				first, _, err := s.jobs(t).records.Locate(o)
				require.NoError(t, err)
				mine, theirs := make([]byte, 32<<10), make([]byte, 32<<10)
				_, _, err = r.records.ReadAt(p, mine)
				require.NoError(t, err)
				_, _, err = s.jobs(t).records.ReadAt(first, theirs)
				require.NoError(t, err)
				clear(mine[wire.FrameHeaderSize-8 : wire.FrameHeaderSize]) // what is local
				clear(theirs[wire.FrameHeaderSize-8 : wire.FrameHeaderSize])
				require.Equal(t, theirs, mine)
			}
			_, _, err := r.records.Locate(5)
			require.ErrorContains(t, err, "were acknowledged and erased")
			scrubWhole(t, r.records)
		}
	}
	handle(first)
	eventually(t, "something is erased", func() bool { return s.jobs(t).records.ErasedBytes() > 0 })
	servers[2] = startEraser(t, dirs[2], 2, s.Addr())
	kill := startEraserProcess(t, dirs[3], 3, s.Addr())
	eventually(t, "the partition gets replicas", func() bool { n, _ := active(); return n == 3 })
	alike()

	handle(more)
	// The segment that is written to, the next one, and some that are too small a part of it yet.
	rest := int64(7 << 20)
	for node, dir := range dirs {
		eventually(t, "every node erases", func() bool { return diskUse(t, dir) < rest })
		t.Logf("node %d: %d MiB handled behind one record, %d KiB on the disk", node, count/32, diskUse(t, dir)>>10)
	}
	alike()

	kill()
	lacks := wire.Offset(count + 5)
	handle(missed)
	for _, member := range servers {
		eventually(t, "the others erase what it has not got", func() bool {
			_, _, err := member.jobs(t).records.Locate(lacks)
			var gone *log.ErasedError
			return errors.As(err, &gone)
		})
	}
	servers[3] = startEraser(t, dirs[3], 3, s.Addr(), servers[2].Addr())
	eventually(t, "the node that was killed is back", func() bool {
		d, known := servers[3].broker.View().Destination("jobs")
		if !known {
			return false
		}
		r := servers[3].broker.local(d.ID, 0)
		return r != nil && r.records.Watermark().Next == wire.Offset(count)
	})
	alike()

	if *eraseMiB >= wipeMiB {
		_, before := active()
		closeMember(t, servers[3])
		delete(servers, 3)
		handle(missed)
		dirs[3] = t.TempDir()
		servers[3] = startEraser(t, dirs[3], 3, s.Addr(), servers[2].Addr())
		eventually(t, "the wiped node has a replica again", func() bool { n, third := active(); return n == 3 && third != 0 && third != before })
		alike()
	}

	require.Equal(t, wire.CodeOK, k.say(ack(old))[0].Code)
	for _, member := range servers {
		eventually(t, "the old record is done everywhere", func() bool { return member.jobs(t).StartOffset() == wire.Offset(count) })
	}
}

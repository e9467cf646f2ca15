package fuzz

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/vfs"
)

var splitRounds = flag.Int("split.rounds", 1, "how often TestF2 cuts the power of one broker and swaps who sleeps")

// splitNodes are the brokers of TestF2, each on a file system that can lose power.
const splitNodes = 5

// skipSyncsWhenTold takes syncs for done that are not, from a SIGUSR1 on.
func skipSyncsWhenTold() {
	var skip atomic.Bool
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGUSR1)
	vfs.InterceptSyncs(skip.Load)
	go func() {
		<-told
		skip.Store(true)
	}()
}

// split is a cluster whose majorities change: whoever was in the old one and in the new
// one has lost its power in between.
type split struct {
	*faultRun
}

func newSplit(t *testing.T, role string) *split {
	s := &split{}
	s.faultRun = newFaultRun(t, splitNodes, role, func(_ int, dir string) {
		image := dir + ".image"
		f, err := os.Create(image)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(powerImage))
		require.NoError(t, f.Close())
		out, err := exec.Command(ext4.maker, append(ext4.flags, image)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		if out, err := mountImage(dir); err != nil {
			t.Skipf("a loop device cannot be mounted here: %v: %s", err, out)
		}
	})
	s.create(s.conn, faultLoad, killPartitions)
	for p := range uint32(killPartitions) {
		s.logs = append(s.logs, &partitionLog{destination: faultLoad, partition: p, keyedOnly: true})
	}
	running, stop := context.WithCancel(t.Context())
	s.stop = stop
	t.Cleanup(stop)
	for k := range uint32(killProducers) {
		p := &killProducer{id: k, receipts: map[uint64]place{}}
		s.producers = append(s.producers, p)
		p.start(t, running, s.connect(), faultLoad)
	}
	return s
}

func mountImage(dir string) ([]byte, error) {
	return exec.Command("mount", "-n", "-o", "loop", dir+".image", dir).CombinedOutput()
}

// powerCut ends a broker and loses what its file system has not synced.
func (s *split) powerCut(t testing.TB, node int) {
	b := s.nodes[node-1]
	dir := filepath.Dir(b.data)
	cutPower(t, dir)
	b.kill()
	require.NoError(t, unix.Unmount(dir, 0))
	out, err := mountImage(dir)
	require.NoError(t, err, "%s", out)
}

// round lets two brokers sleep while three acknowledge records, cuts the power of one of
// the three, and lets the other two sleep instead: what was acknowledged is now on the
// one that lost its power, or nowhere in the new majority. Then all of them go on.
func (s *split) round(t testing.TB) {
	t.Helper()
	order := s.random.Perm(splitNodes)
	early, late, both := order[:2], order[2:4], order[4]+1
	for _, n := range early {
		s.signal(n+1, unix.SIGSTOP)
	}
	progress(t, s.producers)
	s.powerCut(t, both)
	for _, n := range late {
		s.signal(n+1, unix.SIGSTOP)
	}
	for _, n := range early {
		s.signal(n+1, unix.SIGCONT)
	}
	s.nodes[both-1].start()
	progress(t, s.producers)
	for _, n := range late {
		s.signal(n+1, unix.SIGCONT)
	}
	progress(t, s.producers)
	verify(t, s.conn, s.logs, s.producers)
}

var splitTools = append(chaosTools, "mount", ext4.maker)

// TestF2_OnePowerCutBetweenTwoMajoritiesLosesNothing runs five brokers on file systems of
// their own (RELIABILITY F2).
func TestF2_OnePowerCutBetweenTwoMajoritiesLosesNothing(t *testing.T) {
	inNamespaces(t, chaosNamespaces, splitTools, func(t *testing.T) {
		s := newSplit(t, "")
		for range *splitRounds {
			s.round(t)
		}
		s.stop()
		for _, p := range s.producers {
			p.finish(t)
		}
		healthy(t, s.nodes[0])
		verify(t, s.conn, s.logs, s.producers)
		var sent, read uint64
		for _, p := range s.producers {
			sent += p.sent
		}
		for _, l := range s.logs {
			read += l.next
		}
		require.Equal(t, sent, read, "records sent and records read")
		t.Logf("%d rounds, %d records", *splitRounds, sent)
	})
}

// TestF2_Catches_SyncsThatDoNothing shows that the cuts are real.
func TestF2_Catches_SyncsThatDoNothing(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds always sync")
	}
	inNamespaces(t, chaosNamespaces, splitTools, func(t *testing.T) {
		s := newSplit(t, "syncs")
		s.progress(s.producers)
		for n := range s.nodes {
			s.signal(n+1, unix.SIGUSR1)
		}
		for n := range 8 {
			if fails(t, func(t testing.TB) { s.round(t) }) {
				t.Logf("caught after %d rounds", n+1)
				return
			}
		}
		t.Fatal("not caught")
	})
}

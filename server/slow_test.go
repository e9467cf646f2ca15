package server

import (
	"context"
	"flag"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// slowConsumers is how many consumers of TestF23 never read; the row asks for 1,000.
var slowConsumers = flag.Int("slow.consumers", 100, "consumers that open a link and never read in TestF23")

// slowRig is a broker with many consumers that have stalled.
type slowRig struct {
	s       *Server
	readers int
	healthy *user
	batch   []byte
	grown   int64 // bytes of the heap, by all of them
}

// newSlowRig starts the broker and the consumers, and waits until no socket takes
// anything any more.
func newSlowRig(t *testing.T, readers int, change func(*Config)) *slowRig {
	cfg := Config{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1,
		Limits: Limits{ConnectionsPerAddress: 1 << 20, WriteTimeout: time.Hour, OutboundBytes: 1 << 40},
	}
	change(&cfg)
	s, err := Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	r := &slowRig{s: s, readers: readers}
	c := dialOpen(t, s.Addr())
	for i, name := range []string{"healthy", "big"} {
		c.send(wire.OpCreate, uint32(2+i), &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
			Partitions: 1, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
		}})
		require.Equal(t, wire.CodeOK, c.answer(uint32(2+i)).code())
	}
	big := c.open("big", 0)
	large, _ := testBatch(t, strings.Repeat("x", 256<<10))
	for range 64 { // more than any socket takes
		c.send(wire.OpProduce, 9, &wire.ProduceRequest{Handle: big, Acks: wire.AcksQuorum, Batch: large})
		require.Equal(t, wire.CodeOK, c.answer(9).code())
	}
	r.batch, _ = testBatch(t, strings.Repeat("v", 1000))
	r.healthy = &user{c: c, handle: c.open("healthy", 0)}
	r.healthy.link = c.link(r.healthy.handle, 0, 64<<20)
	for range slowRounds {
		r.healthy.once(r.batch)
	}
	before := heapBytes()
	attackers := startAttack(t, attack{Mode: "stall", Address: s.Addr(), Connections: readers, Destination: "big"})
	require.Equal(t, readers, attackers.connected())
	eventually(t, "all consumers have stalled", func() bool {
		stalled := 0
		r.each(func(s *session) {
			if s.awaiting.Load() {
				stalled++
			}
		})
		return stalled == readers
	})
	r.grown = heapBytes() - before
	return r
}

const slowRounds = 200

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

// each calls f for all sessions, on their loops, and waits.
func (r *slowRig) each(f func(*session)) {
	r.s.engine.mu.Lock()
	loops := len(r.s.engine.loops)
	done := make(chan struct{}, loops)
	for _, l := range r.s.engine.loops {
		l.post(func() {
			for s := range l.sessions {
				f(s)
			}
			done <- struct{}{}
		})
	}
	r.s.engine.mu.Unlock()
	for range loops {
		<-done
	}
}

// check requires that a frame waits in memory for each stalled consumer at most, that
// the counter knows, and that a healthy client goes on.
func (r *slowRig) check(t testing.TB) {
	for range slowRounds {
		r.healthy.once(r.batch)
	}
	waiting, most := 0, 0
	r.each(func(s *session) {
		s.out.mu.Lock()
		defer s.out.mu.Unlock()
		n := s.out.pending.size() + s.sending.size() - s.sent
		waiting, most = waiting+n, max(most, n)
	})
	counted := r.s.engine.counters.outbound.Load()
	t.Logf("%d consumers that never read: %d bytes wait in memory for each at most, %d for all, %d counted, heap +%.1f MiB; healthy produce p99 %v, before %v",
		r.readers, most, waiting, counted, float64(r.grown)/(1<<20),
		percentile(r.healthy.waits[slowRounds:], 0.99), percentile(r.healthy.waits[:slowRounds], 0.99))
	require.LessOrEqual(t, most, deliverHead+wire.MaxDeliverBytes)
	require.GreaterOrEqual(t, counted, int64(waiting))
	require.LessOrEqual(t, r.grown, int64(r.readers)*256<<10+16<<20)
}

// unmappable is a disk of which nothing can be mapped: streams are read by pread, into
// memory.
type unmappable struct{ vfs.FS }

type unmappableFile struct{ vfs.File }

func (u unmappable) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return unmappableFile{f}, nil
}
func (u unmappable) Create(name string) (vfs.File, error) { return u.file(u.FS.Create(name)) }
func (u unmappable) Open(name string) (vfs.File, error)   { return u.file(u.FS.Open(name)) }
func (u unmappable) OpenReadOnly(name string) (vfs.File, error) {
	return u.file(u.FS.OpenReadOnly(name))
}

func (unmappableFile) Map(int64) (vfs.Mapping, error) { return nil, unix.ENOMEM }

// RELIABILITY F23: consumers that grant credit and never read. Nothing waits for them
// in the broker's memory, and a healthy client goes on.
func TestF23_ConsumersThatNeverReadHoldNoMemory(t *testing.T) {
	r := newSlowRig(t, *slowConsumers/slower, func(*Config) {})
	r.check(t)
	require.Zero(t, r.s.engine.counters.outbound.Load())
}

// Where nothing can be mapped, a frame waits for each.
func TestF23_ConsumersThatNeverReadHoldAFrameEachWithoutMaps(t *testing.T) {
	newSlowRig(t, *slowConsumers/slower, func(c *Config) { c.fs = unmappable{vfs.OS()} }).check(t)
}

func TestF23_Catches_StreamsThatDoNotWaitForTheSocket(t *testing.T) {
	caught(t, newSlowRig(t, 5, func(c *Config) { c.fs, c.hoard = unmappable{vfs.OS()}, true }).check)
}

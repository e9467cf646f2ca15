package group

import (
	"encoding/binary"
	"flag"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

var leaderPublishers = flag.Int("leader.publishers", 50_000, "how many publishers TestR_BRK_11 has send two records each")

// passersBy is a feed in which each publisher sends two records, one after the other, and is
// never heard of again.
type passersBy struct{ place Place }

func (f *passersBy) At(o wire.Offset) (*Place, bool) {
	f.place = Place{Base: o, Count: 1, BatchBytes: 100, Publisher: 1 + uint64(o)/2*0x9e3779b97f4a7c15}
	return &f.place, true
}

// R-BRK-11: publishers that have nothing under way cost nothing, however many there were.
func TestR_BRK_11_IdlePublishersCostNothing(t *testing.T) {
	const consumers, each, active = 4, 250, 1000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	state, settings := NewState(), Settings{Mode: wire.ModeSerial, Scope: wire.ScopePublisher}.WithDefaults()
	applied := wire.Index(0)
	apply := func(data []byte) {
		applied++
		for len(data) > 0 {
			n := binary.LittleEndian.Uint32(data[4:])
			state.Apply(applied, Command(data[0]), data[1], data[8:8+n])
			data = data[8+n:]
		}
	}
	end := wire.Offset(2 * *leaderPublishers)
	apply(AppendPut(nil, 1, 1, "g", &settings, 0, PutQueue))
	state.Appended(end)
	l := NewLeader(state.Group(1), new(passersBy), 0, applied)
	var scratch []byte
	turn := func() {
		l.Turn(time.Second, applied, end)
		for l.Pending() {
			data, ok := l.Propose(scratch[:0], 1<<20)
			if !ok {
				break
			}
			scratch = data
			apply(data)
			l.Applied(applied)
		}
		require.Empty(t, l.Wants().Find)
	}
	sinks := make([]*sink, consumers)
	for i := range sinks {
		sinks[i] = new(sink)
		l.Attach(sinks[i], &wire.AttachRequest{Session: Session{byte(i + 1)}, Attempt: 1, Capacity: each, Refill: each / 2}, "", 0, 0)
	}
	most, warm := 0, uint64(0)
	for state.Group(1).Done.Floor() < end {
		floor := state.Group(1).Done.Floor()
		turn()
		most = max(most, len(l.scopes))
		for _, s := range sinks {
			l.Outcomes(s, s.outcomes, time.Second)
			s.outcomes = s.outcomes[:0]
		}
		if warm == 0 && floor > 20*active {
			warm = heap() - before
		}
	}
	turn()
	require.LessOrEqual(t, most, 2*active, "a publisher is known while a record of it is leased, or waits behind one that is")
	require.Empty(t, l.scopes)
	after := heap() - before
	require.LessOrEqual(t, after, warm*12/10, "bytes after %d publishers, and after %d", *leaderPublishers, 20*active/2)
	t.Logf("%d publishers: at most %d known at once, %d bytes in all, %d after the first %d", *leaderPublishers, most, after, warm, 20*active/2)
	runtime.KeepAlive(l)
}

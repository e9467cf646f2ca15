package group

import (
	"flag"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

var (
	sizeGroups   = flag.Int("size.groups", 1000, "groups of TestTheStateOfManyGroupsIsBounded")
	sizeGaps     = flag.Uint64("size.gaps", 100_000, "acknowledged records of TestTheStateOfManyGapsIsBounded, every second of so many")
	sizeReturned = flag.Bool("size.returned", false, "fill a group with all the returned records that it remembers")
)

// Limits that the tests hold the state to.
const (
	maxGroupBytes  = 1 << 10        // of one group about which there is nothing to know, in memory and in a checkpoint
	maxChunkBytes  = 8<<10 + 1<<10  // of 65,536 records of which some are done, in a checkpoint
	maxChunkMemory = 16<<10 + 2<<10 // in memory, while it is being saved
)

// inUse is how much memory is in use.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestTheStateOfManyGapsIsBounded acknowledges every second record, the worst there is for
// a set of what is done: memory and the checkpoint are bounded by the span of the
// records, and a snapshot copies no records.
func TestTheStateOfManyGapsIsBounded(t *testing.T) {
	gaps := *sizeGaps
	before := inUse()
	b := newBook(t, wire.Offset(2*gaps+2))
	g := b.group(7, PutQueue)
	began := time.Now()
	var spans []Span
	for o := uint64(1); o < 2*gaps; o += 2 {
		if spans = append(spans, Span{wire.Offset(o), wire.Offset(o + 1)}); len(spans) == 1000 || o+2 >= 2*gaps {
			b.apply(AppendOutcomes(nil, 7, spans, nil))
			spans = spans[:0]
		}
	}
	applied := time.Since(began)
	require.EqualValues(t, 0, g.Done.Floor())
	require.Equal(t, gaps, g.Done.Above())
	chunks := int64(2*gaps/65536 + 1)
	memory := inUse() - before
	require.Less(t, memory, chunks*maxChunkMemory+1<<20)

	began = time.Now()
	save := b.Snapshot()
	snapshot := time.Since(began)
	b.apply(AppendOutcomes(nil, 7, []Span{{0, 1}}, nil)) // the state goes on
	require.EqualValues(t, 2, g.Done.Floor())
	began = time.Now()
	saved := save(nil)
	saving := time.Since(began)
	require.Less(t, int64(len(saved)), chunks*maxChunkBytes+1<<10)
	began = time.Now()
	again, err := Restore(saved)
	require.NoError(t, err)
	restoring := time.Since(began)
	require.EqualValues(t, 0, again.Group(7).Done.Floor())
	require.Equal(t, gaps, again.Group(7).Done.Above())

	began = time.Now()
	for o := uint64(2); o < 2*gaps; o += 2 { // what was missing, in order: the floor moves with each
		if spans = append(spans, Span{wire.Offset(o), wire.Offset(o + 1)}); len(spans) == 1000 || o+2 >= 2*gaps {
			b.apply(AppendOutcomes(nil, 7, spans, nil))
			spans = spans[:0]
			floor, _ := b.Floor()
			require.EqualValues(t, min(o+2, 2*gaps), floor)
		}
	}
	t.Logf("%d gaps: %.1f MiB in memory, %.1f MiB in a checkpoint; applied in %v, snapshot in the turn %v, saved in %v, restored in %v, filled up in %v",
		gaps, float64(memory)/(1<<20), float64(len(saved))/(1<<20), applied.Round(time.Microsecond), snapshot.Round(time.Microsecond), saving.Round(time.Microsecond),
		restoring.Round(time.Microsecond), time.Since(began).Round(time.Microsecond))
	require.LessOrEqual(t, len(g.Done.chunks), 1)
	runtime.KeepAlive(b)
}

// TestTheStateOfManyGroupsIsBounded has many groups of one queue go on together, each in an
// entry of its own: the start of the queue follows the last one, and who is not the last
// costs no look at the others.
func TestTheStateOfManyGroupsIsBounded(t *testing.T) {
	groups := *sizeGroups
	before := inUse()
	b := newBook(t, 1000)
	settings := serial
	for id := range ID(groups) {
		b.apply(AppendPut(nil, id+1, 1, string(binaryName(uint64(id))), &settings, 0, PutQueue))
	}
	memory := inUse() - before
	require.Less(t, memory, int64(groups)*maxGroupBytes+1<<20)
	looked := 0
	began := time.Now()
	for round := range wire.Offset(3) {
		for id := range ID(groups) {
			floor, ok := b.Floor()
			require.True(t, ok)
			require.Equal(t, round, floor)
			if b.apply(AppendOutcomes(nil, id+1, []Span{{round, round + 1}}, nil)); !b.known {
				looked++
			}
		}
	}
	applied := time.Since(began)
	require.Equal(t, 3, looked, "once a round")
	began = time.Now()
	save := b.Snapshot()
	snapshot := time.Since(began)
	began = time.Now()
	saved := save(nil)
	saving := time.Since(began)
	require.Less(t, len(saved), groups*maxGroupBytes)
	began = time.Now()
	again, err := Restore(saved)
	require.NoError(t, err)
	require.Equal(t, groups, again.Len())
	t.Logf("%d groups: %.1f MiB in memory, %.1f MiB in a checkpoint; an ack and the queue's start %v, snapshot in the turn %v, saved in %v, restored in %v",
		groups, float64(memory)/(1<<20), float64(len(saved))/(1<<20), (applied / time.Duration(3*groups)).Round(100*time.Nanosecond), snapshot.Round(time.Microsecond),
		saving.Round(time.Microsecond), time.Since(began).Round(time.Microsecond))
	runtime.KeepAlive(b)
}

// binaryName is a name of its own for each number.
func binaryName(n uint64) []byte {
	name := []byte("group-")
	for ; n > 0; n /= 26 {
		name = append(name, 'a'+byte(n%26))
	}
	return name
}

// Records that were taken back are forgotten beyond the limit, those first that were taken
// first: what they were given is stale, and how often is in doubt.
func TestReturnedRecordsAreBounded(t *testing.T) {
	if !*sizeReturned {
		t.Skip("a million runs take seconds; -size.returned")
	}
	b := newBook(t, 4*MaxReturned)
	g := b.group(7, 0)
	b.apply(AppendHorizon(nil, 7, 4*MaxReturned))
	for n := range wire.Offset(MaxReturned) {
		g.returned.put(run{from: 2 * n, to: 2*n + 1, Returned: Returned{Deliveries: 1, Fence: wire.Index(n) + 1}})
	}
	b.index = MaxReturned
	b.apply(AppendOutcomes(nil, 7, nil, []Taken{{Session: session(1), Returns: []Return{{From: 3 * MaxReturned, To: 3*MaxReturned + 1, Deliveries: 1}}}}))
	require.LessOrEqual(t, g.returned.len(), MaxReturned/2)
	require.EqualValues(t, MaxReturned/2+1, g.Forgotten)
	require.Equal(t, wire.CodeStaleEpoch, g.Late(0, g.Forgotten-1))
	known, _ := g.Record(0)
	require.Equal(t, Returned{InDoubt: true}, known)
	known, ok := g.Record(3 * MaxReturned)
	require.True(t, ok)
	require.EqualValues(t, 1, known.Deliveries)
}

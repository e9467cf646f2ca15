package partition

import (
	"encoding/binary"
	"flag"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

var publishersSeen = flag.Int64("publishers.seen", 10_000, "producers of TestPublishersThatWereSeenCostNoMemory, of which 1,000 are active")

// producerBytes is what a partition may use for one producer that it remembers.
const producerBytes = 1 << 10

func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestPublishersThatWereSeenCostNoMemory has many producers send once each, and a few send
// on: what is remembered is bounded by the table, the active ones are in it, and after the
// expiry they alone are.
func TestPublishersThatWereSeenCostNoMemory(t *testing.T) {
	const active = 1000
	seen := *publishersSeen
	before := inUse()
	table := newProducers()
	offset := wire.Offset(0)
	sent := make([]int32, active)
	send := func(id int64, sequence int32, nowMs int64) {
		table.append(&wire.BatchInfo{ProducerID: id, BaseSequence: sequence, RecordCount: 1}, offset, nowMs)
		offset++
	}
	for i := range seen {
		send(active+i, 0, 1000)
		k := i % active
		send(k, sent[k], 1000)
		sent[k]++
	}
	require.Len(t, table.byID, int(min(seen+active, MaxProducers)))
	memory := inUse() - before
	require.Less(t, memory, int64(MaxProducers*producerBytes))
	for k := range int64(active) {
		require.Contains(t, table.byID, k)
		send(k, sent[k], 1000+ProducerExpiryMs/2)
	}
	send(0, sent[0]+1, 1000+ProducerExpiryMs)
	require.Len(t, table.byID, active, "nobody else was heard for as long as the expiry")
	t.Logf("%d producers seen, %d active: %.1f MiB, after the expiry %.1f MiB", seen, active, float64(memory)/(1<<20), float64(inUse()-before)/(1<<20))
	runtime.KeepAlive(table)
}

// A search for the records of publishers asks for scopes that somebody waits for, and
// keeps nothing of the others that it passes.
func TestASearchKeepsNothingOfThePublishersItPasses(t *testing.T) {
	s := newSearcher()
	var batches []log.Batch
	for o := range wire.Offset(2000) {
		index := make([]byte, wire.RecordIndexEntrySize)
		binary.LittleEndian.PutUint64(index, uint64(o))
		batches = append(batches, log.Batch{Base: o, Count: 1, Publisher: uint64(o) + 1, Index: index})
	}
	s.feed.scanned(batches)
	s.ask(group.Find{Scope: 1000, Publisher: true, After: 0, Below: 2000})
	outcome, tells := s.on(0, never, 1<<20)
	require.Equal(t, findDone, outcome)
	require.Equal(t, []string{"1000: [999] up to 1999"}, tells)
	require.Empty(t, s.finds)
	require.Empty(t, s.asked)
}

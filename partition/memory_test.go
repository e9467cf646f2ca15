package partition

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// bigBatch is a batch of one record of about n bytes.
func bigBatch(t *testing.T, n int) Append {
	t.Helper()
	var b wire.BatchBuilder
	b.Reset(false)
	require.True(t, b.Append(1000, 0, nil, bytes.Repeat([]byte("x"), n), nil, 0))
	batch, _ := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	info, err := wire.ParseBatch(batch)
	require.NoError(t, err)
	return Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: &recorder{}}
}

// sharing are partitions of one node.
func sharing(t *testing.T, memory *Memory, n int) []*harness {
	partitions := make([]*harness, n)
	for i := range partitions {
		h := &harness{t: t, log: &fakeLog{term: 3}}
		h.part = New(Config{Log: h.log, State: NewState(), Memory: memory})
		h.log.part = h.part
		h.part.Bind(h.log)
		partitions[i] = h
	}
	return partitions
}

// RULES R2: what mailboxes and tails hold is bounded for the node, whatever the
// number of partitions. Without the budget these would hold 400 MiB.
func TestWhatAllPartitionsHoldIsBounded(t *testing.T) {
	const limit = 64 << 20
	memory := NewMemory(limit)
	partitions := sharing(t, memory, 100)
	large := bigBatch(t, 1<<20)
	taken := 0
	for range 4 {
		for _, h := range partitions {
			err := h.part.Append(large)
			if err == nil {
				taken++
			} else {
				require.ErrorIs(t, err, ErrMemoryFull)
			}
			h.part.Turn(1000, 0) // into the log's tail, where it counts all the same
			require.LessOrEqual(t, memory.Used(), int64(limit))
		}
	}
	require.Greater(t, taken, 50)
	require.Less(t, taken, 64)

	proposed := 0
	for _, h := range partitions {
		for len(h.log.proposed) > 0 {
			data := h.log.proposed[0]
			h.log.commit(1)
			h.part.Recycle(data)
			proposed++
		}
	}
	require.Equal(t, taken, proposed)
	require.Zero(t, memory.Used(), "all of it came back")
	require.NoError(t, partitions[0].part.Append(large))
}

// Partitions that do not get on leave room for the others.
func TestAPartitionThatDoesNotGetOnLeavesRoom(t *testing.T) {
	const limit = 64 << 20
	memory := NewMemory(limit)
	partitions := sharing(t, memory, 4)
	large := bigBatch(t, 1<<20)
	fill := func(h *harness) (n int) {
		for h.part.Append(large) == nil {
			n++
		}
		return n
	}
	require.Equal(t, 31, fill(partitions[0]), "nearly half: it is the only one so far")
	require.Equal(t, 3, fill(partitions[1]))
	require.Equal(t, 3, fill(partitions[2]), "a sixteenth")
	require.Equal(t, 0, fill(partitions[0]))
	require.Equal(t, 3, fill(partitions[3]))
}

func TestSmallBatchesPayForTheirBookkeeping(t *testing.T) {
	memory := NewMemory(1 << 20)
	h := sharing(t, memory, 1)[0]
	small := bigBatch(t, 1)
	n := 0
	for h.part.Append(small) == nil {
		n++
	}
	require.Less(t, int64(n)*(placedBytes+int64(len(small.Batch))), int64(1<<20))
	require.Greater(t, int64(n)*placedBytes, int64(200<<10))
	h.part.Close(wire.CodeShuttingDown)
	require.Zero(t, memory.Used())
}

func TestMemoryComesBackHoweverItEnds(t *testing.T) {
	large := bigBatch(t, 1<<20)
	for name, end := range map[string]func(h *harness){
		"closed in the mailbox": func(h *harness) { h.part.Close(wire.CodeShuttingDown) },
		"rejected":              func(h *harness) { h.part.Reject(ErrClosed) },
		"refused by the log":    func(h *harness) { h.log.reserve = ErrClosed; h.part.Turn(1000, 0) },
		"not proposed":          func(h *harness) { h.log.propose = ErrClosed; h.part.Turn(1000, 0) },
		"held by a fenced log": func(h *harness) {
			h.part.Turn(1000, 0)
			h.part.Close(wire.CodePartitionFenced)
			h.part.Forget()
		},
		"deposed, then let go": func(h *harness) {
			h.part.Turn(1000, 0)
			h.log.following = true
			h.part.Turn(1000, 0)
			for _, data := range h.log.proposed {
				h.part.Recycle(data)
			}
		},
		"duplicates, dropped": func(h *harness) {
			h.part.Reject(ErrClosed)
			h.log.immediate = true
			h.send(1, 0, 0, 2)
			h.part.Turn(1000, 0)
			h.part.Recycle(h.log.data)
			h.send(1, 0, 0, 2)
			h.part.Turn(1000, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			memory := NewMemory(64 << 20)
			h := sharing(t, memory, 1)[0]
			require.NoError(t, h.part.Append(large))
			require.NoError(t, h.part.Append(large))
			require.Positive(t, memory.Used())
			end(h)
			require.Zero(t, memory.Used())
		})
	}
}

func TestBuffersOfReceivedEntriesAreOnTheAccount(t *testing.T) {
	memory := NewMemory(16 << 10)
	p := New(Config{State: NewState(), Memory: memory})
	b := p.Buffers()
	first := b.Get(100)
	require.Len(t, first, 100)
	require.Equal(t, int64(4<<10), memory.Used())
	second := b.Get(4 << 10)
	require.NotNil(t, second)
	require.Nil(t, b.Get(100), "there is no room for a third")
	b.Put(first)
	p.Recycle(second)
	require.Zero(t, memory.Used())
}

// What other replicas send is no work of clients: only what these bring slows down reads
// for followers.
func TestOnlyWhatClientsBringHasArrived(t *testing.T) {
	memory := NewMemory(64 << 20)
	part := sharing(t, memory, 1)[0].part
	require.NotNil(t, part.Buffers().Get(1<<20))
	require.Zero(t, memory.Arrived())
	batch := bigBatch(t, 1000)
	require.NoError(t, part.Append(batch))
	require.Equal(t, uint64(wire.BodyBatchSize(0, len(batch.Batch))), memory.Arrived())
}

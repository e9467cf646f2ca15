package server

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// holder writes under the name of a producer.
type holder struct {
	c        *crew
	d        *cluster.Destination
	identity wire.ProducerIdentity
	next     map[uint32]int32 // sequence by partition
}

// open takes a name on a node.
func (c *crew) open(node uint32, d *cluster.Destination, name string, as uint64) *holder {
	c.t.Helper()
	m, err := c.ask(node, &wire.InitProducerRequest{Name: name, Holder: as})
	require.NoError(c.t, err)
	r := m.(*wire.InitProducerResponse)
	return &holder{c: c, d: d, identity: wire.ProducerIdentity{ID: r.ProducerID, Epoch: r.Epoch}, next: map[uint32]int32{}}
}

// write appends one record to a partition and returns what its leader says.
func (h *holder) write(number uint32) wire.ErrorCode {
	t := h.c.t
	t.Helper()
	identity := h.identity
	identity.Sequence = h.next[number]
	var b wire.BatchBuilder
	b.Reset(true)
	require.True(t, b.Append(1_000, 0, nil, []byte("value"), nil, 0))
	batch, index := b.Finish(identity, 0, wire.CodecNone, nil)
	batch, index = append([]byte(nil), batch...), append([]byte(nil), index...)
	info, err := wire.ValidateBatch(batch, index, wire.BatchLimits{MaxRecordBytes: wire.DefaultMaxRecordBytes})
	require.NoError(t, err)
	code := wire.CodeUnavailable
	h.c.await("an answer", func() bool {
		for node := range h.c.servers {
			r, err := h.c.broker(node).Route(h.d.ID, number)
			if err != nil || r.local == nil {
				continue
			}
			done := make(chan wire.ErrorCode, 1)
			if r.local.Append(partition.Append{Batch: batch, Index: index, Info: info, Acks: wire.AcksQuorum, Receiver: codeReceiver(done)}) != nil {
				continue
			}
			r.local.Kick(false)
			if code = <-done; code != wire.CodeUnavailable && code != wire.CodeNotLeader && code != wire.CodeRetry {
				return true
			}
		}
		return false
	})
	if code == wire.CodeOK {
		h.next[number]++
	}
	return code
}

// zombies lets two holders of a name write to a destination whose partitions are led by
// different nodes, and counts what the old one still gets in where the new one has not
// written.
func zombies(t *testing.T) (accepted int) {
	c := newCrew(t, 3)
	c.create(1, "orders", 6, 3)
	c.await("all are led", func() bool { return c.leaders(1, "orders")[0] == 0 })
	d, _ := c.broker(1).View().Destination("orders")
	old := c.open(1, d, "billing", 1)
	for i := range uint32(6) {
		require.Equal(t, wire.CodeOK, old.write(i))
	}
	successor := c.open(2, d, "billing", 2)
	require.Equal(t, old.identity.ID, successor.identity.ID)
	require.Equal(t, old.identity.Epoch+1, successor.identity.Epoch)
	for i := range uint32(6) {
		switch code := old.write(i); code {
		case wire.CodeOK:
			accepted++
		default:
			require.Equal(t, wire.CodeFenced, code)
		}
	}
	require.Equal(t, wire.CodeOK, successor.write(3))
	return accepted
}

// RULES R5: when a name's new holder is answered, the old one is fenced in every
// partition on every node, also where the new one never writes.
func TestRuleR5_ANewHolderFencesTheOldOneInEveryPartition(t *testing.T) {
	t.Parallel()
	require.Zero(t, zombies(t))
}

func TestRuleR5_Catches_EpochsThatNobodyChecks(t *testing.T) {
	partition.IgnoreEpochs(true)
	defer partition.IgnoreEpochs(false)
	require.Positive(t, zombies(t))
}

// What waits for a partition is let go when that is closed.
func TestRuleR5_NobodyWaitsForAClosedPartition(t *testing.T) {
	t.Parallel()
	c := newCrew(t, 1)
	c.create(1, "orders", 1, 1)
	d, _ := c.broker(1).View().Destination("orders")
	r := c.broker(1).local(d.ID, 0)
	drained := make(chan bool, 2)
	r.drained(func() { drained <- true })
	<-drained
	r.askStop(wire.CodeShuttingDown)
	r.drained(func() { drained <- true })
	<-drained
}

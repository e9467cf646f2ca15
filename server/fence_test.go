package server

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// holder writes under the name of a producer.
type holder struct {
	c        *crew
	d        *cluster.Destination
	identity wire.ProducerIdentity
	next     map[uint32]int32 // sequence by partition
}

// open takes a name on a node, for a destination.
func (c *crew) open(node uint32, d *cluster.Destination, name string, as uint64) *holder {
	c.t.Helper()
	m, err := c.ask(node, &wire.InitProducerRequest{Name: name, Holder: as, Destination: d.Name, PatienceMs: 30_000})
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

// farLeader cuts a leader off from the node that leads the metadata, where a name is opened
// while its holder before writes to that leader without a pause. The leader keeps its
// majority, and hears nothing of the metadata. It counts what the old holder got in after
// the new one was answered.
func farLeader(t *testing.T, c *crew, k *cables, name string) (accepted int) {
	opener := c.controller()
	far := opener%3 + 1
	c.create(opener, name, 6, 3)
	c.await("all are led", func() bool { return c.leaders(opener, name)[0] == 0 })
	d, _ := c.broker(opener).View().Destination(name)
	number := uint32(len(d.Partitions))
	c.await("a partition is led there", func() bool {
		for i := range d.Partitions {
			if l, _ := c.broker(opener).hints.of(&d.Partitions[i]); l.node == far {
				number = uint32(i)
				return true
			}
		}
		return false
	})
	old := c.open(opener, d, name, 1)
	require.Equal(t, wire.CodeOK, old.write(number))

	k.set(opener, far, true)
	c.await("the leader cannot be reached", func() bool { return !c.broker(opener).reachable(far) && !c.broker(far).reachable(opener) })
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				old.write(number)
			}
		}
	})
	successor := c.open(opener, d, name, 2)
	close(stop)
	writing.Wait()
	require.Equal(t, old.identity.Epoch+1, successor.identity.Epoch)
	for range 3 {
		switch code := old.write(number); code {
		case wire.CodeOK:
			accepted++
		default:
			require.Equal(t, wire.CodeFenced, code)
		}
	}
	require.Equal(t, wire.CodeOK, successor.write(number))
	k.set(opener, far, false)
	c.await("the cut is mended", func() bool { return c.broker(opener).reachable(far) && c.broker(far).reachable(opener) })
	if accepted > 0 {
		return accepted
	}
	r := c.broker(far).local(d.ID, number)
	c.await("it has the new holder's record", func() bool {
		next := r.records.Watermark().Next
		return next > 0 && epochOf(t, r, next-1) == successor.identity.Epoch
	})
	next := r.records.Watermark().Next
	for o := range next - 1 {
		require.Equal(t, old.identity.Epoch, epochOf(t, r, o), "offset %d", o)
	}
	return 0
}

// epochOf is the epoch of the producer of a record.
func epochOf(t *testing.T, r *partitionReplica, o wire.Offset) int16 {
	var s log.Scanned
	require.NoError(t, r.records.Scan(o, 1, &s))
	var body []byte
	stored, err := r.readBatch(&s.Batches[0], &body)
	require.NoError(t, err)
	info, err := wire.ParseBatch(stored.Batch)
	require.NoError(t, err)
	return info.ProducerEpoch
}

// RULES R5 and R10 where nodes are cut from each other. They share a cluster.
func TestRulesR5AndR10_UnderCuts(t *testing.T) {
	t.Parallel()
	c, k := newCutCrew(t, 3, nil)
	// What a leader has of the old holder lies before what it has of the new one.
	t.Run("a leader that neither the opener's node nor the metadata reach is fenced", func(t *testing.T) {
		require.Zero(t, farLeader(t, c, k, "orders"))
	})
	t.Run("Catches_FencesThatAreNotCommitted", func(t *testing.T) {
		for node := range c.servers {
			c.broker(node).unfenced.Store(true)
			defer c.broker(node).unfenced.Store(false)
		}
		accepted := 0
		for i := 0; i < 5 && accepted == 0; i++ { // another may lead there meanwhile
			accepted = farLeader(t, c, k, fmt.Sprint("events", i))
		}
		require.Positive(t, accepted)
	})
	t.Run("an opening says what is not fenced", func(t *testing.T) { saysWhatIsMissing(t, c, k) })
	t.Run("whether a node is gone is the word of a majority", func(t *testing.T) { majoritysWord(t, c, k) })
	t.Run("a voter that others hear keeps its vote", func(t *testing.T) { keepsItsVote(t, c, k) })
}

// saysWhatIsMissing: where nobody can fence the holder before, the opening fails and says so;
// it fences what it can, and the next one succeeds when the partition is back.
func saysWhatIsMissing(t *testing.T, c *crew, k *cables) {
	c.create(1, "single", 6, 1)
	d, _ := c.broker(1).View().Destination("single")
	away := uint32(3)
	if c.broker(away).meta.leads.Load() {
		away = 2
	}
	var there, here []uint32
	for i, p := range d.Partitions {
		if p.On(away) != nil {
			there = append(there, uint32(i))
		} else {
			here = append(here, uint32(i))
		}
	}
	require.NotEmpty(t, there)
	require.NotEmpty(t, here)
	old := c.open(1, d, "billing", 1)
	for i := range d.Partitions {
		require.Equal(t, wire.CodeOK, old.write(uint32(i)))
	}
	for id := range c.servers {
		if id != away {
			k.set(id, away, true)
		}
	}
	c.await("nobody reaches it", func() bool { return !c.broker(1).reachable(away) })
	for _, m := range []*wire.InitProducerRequest{{Name: "billing", Holder: 9, PatienceMs: 200}, {PatienceMs: 200}} {
		_, err := c.ask(away, m)
		require.ErrorIs(t, err, wire.CodeUnavailable, "who has no majority of the metadata has no identities")
		require.ErrorContains(t, err, "metadata")
	}
	ask := func(patienceMs uint32, numbers ...uint32) error {
		_, err := c.ask(1, &wire.InitProducerRequest{Name: "billing", Holder: 2, Destination: "single", Partitions: numbers, PatienceMs: patienceMs})
		return err
	}
	c.await("it is said which are missing, and no others", func() bool {
		err := ask(300)
		require.ErrorIs(t, err, wire.CodeUnavailable)
		named := func(n uint32) bool { return strings.Contains(err.Error(), fmt.Sprintf("single/%d (", n)) }
		return !slices.ContainsFunc(here, named) && !slices.ContainsFunc(there, func(n uint32) bool { return !named(n) })
	})
	for _, n := range here {
		require.Equal(t, wire.CodeFenced, old.write(n), "what can be fenced is")
	}
	require.NoError(t, ask(30_000, here...), "who writes elsewhere does not wait")
	require.ErrorIs(t, ask(300, 6), wire.CodeUnknownPartition)
	for id := range c.servers {
		k.set(id, away, false)
	}
	c.open(1, d, "billing", 3)
	for i := range d.Partitions {
		require.Equal(t, wire.CodeFenced, old.write(uint32(i)))
	}
}

// usedUp opens a name until it has another producer ID, and says of which partitions nothing of
// the one before is taken any more, whatever their leaders know of the metadata: the opening
// named the first two, and the one after it the third.
func usedUp(t *testing.T, unfenced bool) (ended []uint32) {
	b := testBroker(t, vfs.NewSimulated(1))
	defer func() { require.NoError(t, b.close()) }()
	b.unfenced.Store(unfenced)
	require.NoError(t, administer(b, &wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 4, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}}))
	open := func(holder uint64, partitions ...uint32) wire.InitProducerResponse {
		said := make(chan wire.InitProducerResponse, 1)
		b.Admin(&wire.InitProducerRequest{Name: "billing", Holder: holder, Destination: "orders", Partitions: partitions, PatienceMs: 60_000}, func(m wire.Message, err error) {
			if r, ok := m.(*wire.InitProducerResponse); ok {
				said <- *r
				return
			}
			t.Error(err)
			close(said)
		})
		return <-said
	}
	old := open(1, 0, 1, 2, 3)
	for range 6 { // many at once: one by one they would take their time
		var all sync.WaitGroup
		for range 5_461 {
			all.Add(1)
			b.submit(cluster.Command{OpenProducer: &cluster.OpenProducer{Name: "billing", Holder: 1}}, func(r cluster.Result) {
				if r.Err != nil {
					t.Error(r.Err)
				}
				all.Done()
			})
		}
		all.Wait()
	}
	require.False(t, b.meta.metadata.Fenced(old.ProducerID, 32_766))
	next := open(2, 0, 1)
	require.Equal(t, wire.InitProducerResponse{ProducerID: old.ProducerID + 1}, next)
	require.True(t, b.meta.metadata.Fenced(old.ProducerID, 32_766), "where nobody has named a partition")
	require.Equal(t, wire.InitProducerResponse{ProducerID: next.ProducerID, Epoch: 1}, open(3, 2))
	b.unfenced.Store(false)
	d, _ := b.View().Destination("orders")
	for number := range uint32(4) {
		r := orders(t, b, number)
		var before, after wire.Index
		owned(&r.owner, func() { before = r.records.LastIndex() })
		done := make(chan wire.ErrorCode, 1)
		b.fenceAt(&wire.PeerFencing{Destination: d.ID, Partition: number, ProducerID: old.ProducerID, Epoch: cluster.EndedEpoch}, 0, func(code wire.ErrorCode, _ []byte) { done <- code })
		require.Equal(t, wire.CodeOK, <-done)
		owned(&r.owner, func() { after = r.records.LastIndex() })
		if before == after { // what is in force needs no other entry
			ended = append(ended, number)
		}
	}
	return ended
}

// RULES R5, when the epochs of a name are used up: it goes on with another producer ID, and the
// one before is ended in the partitions that are named, before the opening is answered.
func TestRuleR5_ANameThatUsedUpItsEpochsFencesItsID(t *testing.T) {
	t.Parallel()
	require.Equal(t, []uint32{0, 1, 2}, usedUp(t, false))
}

func TestRuleR5_Catches_IDsThatAreNotEnded(t *testing.T) {
	t.Parallel()
	require.Empty(t, usedUp(t, true))
}

package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// owner is group 0 on a simulated disk: its turns and its jobs.
type owner struct {
	files    *vfs.Simulated
	jobs     []log.Job
	log      *log.Log
	group    *replication.Group
	metadata *Metadata
}

func (o *owner) Submit(j log.Job) { o.jobs = append(o.jobs, j) }

func newOwner(t *testing.T) *owner {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	o := &owner{files: vfs.NewSimulated(1), metadata: NewMetadata(nil)}
	store, err := log.OpenStore(log.StoreOptions{
		FS: o.files, Dir: "data", BootID: "boot", MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet,
	})
	require.NoError(t, err)
	o.log, err = log.Open(log.Options{
		Store: store, Dir: "data/meta", PartitionID: id(1), Incarnation: 1, ReplicaID: 1, Executor: o, Logger: quiet,
	})
	require.NoError(t, err)
	o.group, err = replication.Open(replication.Config{
		ReplicaID: 1, Voters: []uint64{1}, Log: o.log, State: o.metadata, Logger: quiet,
	})
	require.NoError(t, err)
	o.metadata.Bind(o.group, 1)
	for errors.Is(o.log.Reserve(wire.FrameHeaderSize, false), log.ErrNotReady) {
		o.work()
	}
	o.group.Campaign()
	o.work()
	return o
}

// work takes turns and runs jobs until nothing is left to do.
func (o *owner) work() {
	o.turn()
	for len(o.jobs) > 0 {
		j := o.jobs[0]
		o.jobs = o.jobs[1:]
		j.Run()
		j.Done()
		o.turn()
	}
}

func (o *owner) turn() {
	o.group.Turn()
	o.metadata.Turn()
}

// create submits n commands and returns where their results will be.
func (o *owner) create(from, n int) []*Result {
	results := make([]*Result, n)
	for i := range results {
		o.metadata.Submit(Command{Create: &Create{
			Name: fmt.Sprintf("d%d", from+i), Kind: wire.Topic, Settings: settings(1),
			ID: id(byte(from + i)), PartitionIDs: ids(1), Node: 1,
		}}, func(r Result) { results[i] = &r })
	}
	return results
}

func TestCommandsWaitForRoomInTheLog(t *testing.T) {
	o := newOwner(t)
	results := o.create(0, 1000) // several times what the log has allocated at first
	o.work()
	require.NoError(t, o.group.Err())
	for i, r := range results {
		require.NotNil(t, r, "command %d is not answered", i)
		require.NoError(t, r.Err)
		require.Equal(t, fmt.Sprintf("d%d", i), r.Destination.Name)
	}
	require.Len(t, o.metadata.View().Destinations, 1000)
}

func TestCommandsOnAFullDiskSaySo(t *testing.T) {
	o := newOwner(t)
	free, total, err := o.files.Space("data")
	require.NoError(t, err)
	o.files.SetSpace(total - free)
	results := o.create(0, 1000)
	o.work()
	require.NoError(t, o.group.Err(), "a full disk is no storage error")
	refused := 0
	for i, r := range results {
		require.NotNil(t, r, "command %d is not answered", i)
		if r.Err != nil {
			require.ErrorIs(t, r.Err, wire.CodeDiskFull)
			refused++
		}
	}
	require.NotZero(t, refused)
	require.Len(t, o.metadata.View().Destinations, 1000-refused)
}

// What was proposed in an earlier term is not known to have happened, also if this node leads
// again: it is answered so, and another entry with its index is none of it.
func TestRuleR3_ACommandOfAnEarlierTermHasNoKnownOutcome(t *testing.T) {
	o := newOwner(t)
	term, leads := o.group.Leading()
	require.True(t, leads)
	var old []Result
	o.metadata.pending = []proposed{{term: term - 1, index: o.group.NextIndex(), reply: func(r Result) { old = append(old, r) }}}
	o.metadata.Apply(replication.Entry{Index: o.group.NextIndex(), Term: term, Kind: wire.KindControl, Body: []byte(`{"allocate_ids":{"node":1}}`)})
	require.Empty(t, old, "that was another command")
	o.metadata.Turn()
	require.Len(t, old, 1)
	require.ErrorIs(t, old[0].Err, wire.CodeUnavailable)
	results := o.create(0, 1)
	o.work()
	require.NotNil(t, results[0], "those that follow are answered")
}

// Which IDs were handed out is known after a restart, exactly.
func TestF16_IDsThatWereHandedOutAreRestored(t *testing.T) {
	m := NewMetadata(nil)
	require.False(t, m.HandedOut(0))
	m.Apply(replication.Entry{Index: 1, Term: 1, Kind: wire.KindControl, Body: []byte(`{"allocate_ids":{"node":1}}`)})
	again := NewMetadata(nil)
	require.NoError(t, again.Restore(m.Save(nil)))
	for _, x := range []*Metadata{m, again} {
		require.True(t, x.HandedOut(ProducerIDBlock-1))
		require.False(t, x.HandedOut(ProducerIDBlock))
	}
}

func TestWhoWaitsForAnEntryHearsWhenItIsApplied(t *testing.T) {
	o := newOwner(t)
	heard := 0
	next := o.group.NextIndex()
	o.metadata.WhenApplied(next-1, func() { heard++ })
	require.Equal(t, 1, heard, "it is applied")
	o.metadata.WhenApplied(next, func() { heard++ })
	o.metadata.WhenApplied(next+1000, func() { heard++ })
	o.work()
	require.Equal(t, 1, heard)
	results := o.create(0, 1)
	o.work()
	require.Equal(t, next, results[0].Index)
	require.Equal(t, 2, heard)
	o.metadata.Close(ErrBusy)
	require.Equal(t, 3, heard, "nobody waits for what is closed")
}

func TestF26_MetadataOfANewerLevelAreNotTakenOver(t *testing.T) {
	s := NewState()
	s.Level = MaxLevel
	m := NewMetadata(nil)
	require.NoError(t, m.Restore(s.Save(nil)))
	s.Level++
	require.ErrorIs(t, m.Restore(s.Save(nil)), log.ErrTooNew)
}

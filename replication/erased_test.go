package replication

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// anErasedFleet is three replicas of which 3 is down since it had the first of 300 records.
// The others have erased what is done: all but offsets 0, 100 and 200, and the last segment.
func anErasedFleet(t *testing.T) (*fleet, *member) {
	f := newFleet(t)
	f.founders, f.segment = []uint64{1, 2, 3}, 256<<10
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	l.propose("first")
	f.settle()
	f.members[3].crash(false)
	f.write(l, 1, 300)
	for _, id := range []uint64{1, 2} {
		f.members[id].erase(done...)
		require.Greater(t, f.members[id].log.ErasedBytes(), int64(500<<10))
	}
	return f, l
}

var done = []log.Records{{From: 1, To: 100}, {From: 101, To: 200}, {From: 201, To: 300}}

func (f *fleet) write(l *member, from, to int) {
	for i := from; i < to; i++ {
		l.propose(fmt.Sprintf("%03d %03000d", i, i))
		f.settle()
	}
	f.tick(12)
}

// erase erases what is done on one member, as far as its checkpoints allow.
func (m *member) erase(done ...log.Records) {
	for range 2 {
		m.group.Checkpoint()
		m.f.settle()
	}
	m.log.Erase(done)
	m.f.settle()
}

// there are the offsets of the records that a member can read.
func (m *member) there() (list []wire.Offset) {
	var s log.Scanned
	for o := wire.Offset(0); o < m.log.Watermark().Next; {
		require.NoError(m.f.t, m.log.Scan(o, 100, &s))
		require.NotEmpty(m.f.t, s.Batches)
		for _, b := range s.Batches {
			if !b.Erased {
				list = append(list, b.Base)
			}
			o = b.Next()
		}
	}
	return list
}

// passedOver makes sure that a member has the state of the leader, and every record that is
// not done.
func (f *fleet) passedOver(m, l *member) {
	f.t.Helper()
	require.NoError(f.t, m.group.Err())
	require.True(f.t, m.group.Ready())
	require.Equal(f.t, l.group.Applied(), m.group.Applied())
	require.Equal(f.t, l.log.NextOffset(), m.log.NextOffset())
	require.Subset(f.t, m.there(), []wire.Offset{0, 100, 200})
	last := l.log.LastIndex()
	for _, i := range []wire.Index{2, 60, 102, 202, last} {
		ours, ok := l.log.Term(i)
		require.True(f.t, ok)
		theirs, ok := m.log.Term(i)
		require.True(f.t, ok)
		require.Equal(f.t, ours, theirs, "term of entry %d", i)
	}
	for _, o := range []wire.Offset{0, 100, 200, l.log.NextOffset() - 1} {
		ours, theirs := l.frameAt(o), m.frameAt(o)
		require.Equal(f.t, ours, theirs, "offset %d", o)
	}
}

// handTo makes another member lead.
func (f *fleet) handTo(id uint64) {
	f.t.Helper()
	require.NoError(f.t, f.elect().group.Transfer(id))
	f.settle()
	require.Same(f.t, f.members[id], f.leader())
}

// frameAt is a frame that can be read, without what is local.
func (m *member) frameAt(o wire.Offset) string {
	m.f.t.Helper()
	p, _, err := m.log.Locate(o)
	require.NoError(m.f.t, err)
	b := make([]byte, 8192)
	n, _, err := m.log.ReadAt(p, b)
	require.NoError(m.f.t, err)
	h, err := wire.ParseFrameHeader(b[:n])
	require.NoError(m.f.t, err)
	h.Local = 0
	return fmt.Sprintf("%+v %x", h, b[wire.FrameHeaderSize:][:h.BodyLength])
}

func TestRuleL7_AFollowerThatLagsPassesOverWhatIsErased(t *testing.T) {
	f, l := anErasedFleet(t)
	require.Len(t, l.there(), len(f.members[2].there()))
	m := f.members[3]
	m.open()
	restored := 0
	m.group.OnRestore(func() { restored++ })
	f.tick(10)
	require.Equal(t, 1, m.fetches, "one checkpoint is enough for all runs")
	require.Equal(t, 1, restored)
	require.Zero(t, l.group.Snapshots())
	f.passedOver(m, l)
	require.Equal(t, l.there(), m.there())
	require.Equal(t, wire.Index(1), m.log.FirstIndex())

	// It takes part again: with the leader gone it is needed for the quorum.
	l.crash(true)
	next := f.elect()
	next.propose("after")
	f.settle()
	f.tick(3)
	require.Equal(t, "after", m.state.applied[len(m.state.applied)-1])
	// And its log opens like any other.
	m.crash(true)
	m.open()
	f.tick(10)
	f.passedOver(m, f.elect())
	// It leads, and teaches others what it was taught.
	l.open()
	f.tick(10)
	f.handTo(3)
	require.NoError(t, m.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	n := f.add(4)
	f.tick(20)
	f.passedOver(n, m)
	require.Equal(t, m.there(), n.there())
}

// A group that has erased as the only voter of a lone node gets members.
func TestRuleL7_ALoneReplicaThatHasErasedGrows(t *testing.T) {
	f := newFleet(t)
	f.founders, f.segment = []uint64{1}, 256<<10
	l := f.add(1)
	f.lead(1)
	l.propose("first")
	f.write(l, 1, 300)
	l.erase(done...)
	for _, id := range []uint64{2, 3} {
		require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{id}}))
		f.settle()
		f.add(id)
		f.tick(20)
		f.passedOver(f.members[id], l)
		require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{id}}))
		f.tick(20)
	}
	require.Equal(t, []uint64{1, 2, 3}, l.group.Members().Voters)
	l.crash(true)
	next := f.elect()
	next.propose("after")
	f.settle()
	require.Subset(t, next.there(), []wire.Offset{0, 100, 200, 300})
}

// Replicas erase by themselves, so a follower may need what one leader has erased and the
// other has not, and begin in the middle of a run.
func TestRuleL7_LeadersHaveErasedDifferentRuns(t *testing.T) {
	f := newFleet(t)
	f.founders, f.segment = []uint64{1, 2, 3}, 256<<10
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	l.propose("first")
	f.write(l, 1, 150)
	f.members[3].erase(log.Records{From: 1, To: 40})
	f.members[3].crash(true) // it has the first half of a run
	f.write(l, 150, 300)
	l.erase(done...)
	m := f.members[3]
	m.open()
	f.tick(1)
	f.members[2].erase(log.Records{From: 30, To: 90})
	f.tick(1)
	f.handTo(2)
	f.tick(10)
	f.passedOver(m, f.members[2])
	f.handTo(1)
	f.tick(10)
	f.passedOver(m, l)
	f.handTo(3)
	f.tick(10)
	f.passedOver(l, m)
}

// Power cuts at every call to the disk while a replica catches up leave one that catches up.
func TestF20_AReplicaThatStopsWhileItPassesOverRunsCatchesUp(t *testing.T) {
	stops := 0
	for stop := int64(1); ; stop += 3 {
		f, l := anErasedFleet(t)
		m := f.members[3]
		m.open()
		m.files.StopAt(m.files.Ops() + stop)
		f.tick(6)
		stopped := m.group.Err() != nil
		m.files.StopAt(0)
		m.crash(true)
		m.open()
		f.tick(20)
		f.passedOver(m, l)
		stops++
		if !stopped {
			break
		}
	}
	t.Logf("%d stops", stops)
	require.Greater(t, stops, 5)
}

// Who lacks something before a run would lose it by passing over the run.
func TestRuleL7_ARunIsNotPassedOverByWhoLacksWhatPrecedesIt(t *testing.T) {
	f, l := anErasedFleet(t)
	m := f.members[3]
	m.open()
	f.isolate(3)
	run, ok := l.log.ErasedRun(150) // from offset 101 on, and 100 is not done
	require.True(t, ok)
	saved := l.log.SavedCheckpoint()
	_, term := l.group.Lead()
	m.inbox.Put(&Message{
		Message: raftpb.Message{Type: raftpb.MsgSnap, To: 3, From: 1, Term: uint64(term)},
		Snapshot: &SnapshotOffer{
			From: 1, To: 3, Term: term, Start: run.After, Over: &run.Before,
			Applied: saved.Applied, Size: saved.Size, CRC: saved.CRC, ConfState: saved.ConfState,
		},
	})
	m.group.Turn()
	require.Len(t, f.wires, 1)
	require.Equal(t, raftpb.MsgSnapStatus, f.wires[0].message.Type)
	require.True(t, f.wires[0].message.Reject)
	require.Zero(t, m.fetches)
	f.heal()
	f.tick(20)
	f.passedOver(m, l)
}

// The start of the log may come to lie where a run ends that was offered before. Who has
// nothing is then offered the start, and not the run: it lacks what precedes that.
func TestRuleL7_AStartAtTheEndOfARunThatWasOfferedIsOfferedAsTheStart(t *testing.T) {
	f, l := anErasedFleet(t)
	f.members[3].open()
	f.tick(10)
	f.passedOver(f.members[3], l)
	l.log.Trim(l.log.NextOffset() - 1)
	l.log.MarkIdle()
	f.settle()
	ends := false
	for _, run := range l.group.storage.runs {
		ends = ends || run.After == l.log.Start()
	}
	require.True(t, ends, "a run that was offered ends before the first entry")
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	m := f.add(4)
	f.tick(20)
	require.Equal(t, l.log.Start(), m.log.Start())
	f.caughtUp(m, l)
}

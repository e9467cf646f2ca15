package replication

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// What a follower is offered is looked at before anything is fetched, and before raft sees it:
// an offer that contradicts itself would make a log that begins nowhere, or a state that lacks
// what lies before its log.
func TestRuleR1_AnOfferThatCannotBeIsDropped(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	require.NoError(t, f.lead(3).group.Transfer(1)) // so that there is an earlier term
	f.settle()
	l := f.leader()
	l.propose("a")
	f.settle()
	f.tick(3)
	m := f.members[2]
	term, _ := l.group.Leading()
	conf, err := l.group.confState.Marshal()
	require.NoError(t, err)
	last := m.log.LastIndex()
	for name, c := range map[string]struct {
		change func(m *Message)
		reason DropReason
	}{
		"no offer":                              {func(m *Message) { m.Snapshot = nil }, DropEntry},
		"a log that begins with nothing":        {func(m *Message) { m.Snapshot.Start.Index = 0 }, DropEntry},
		"a run that ends before it begins":      {func(m *Message) { m.Snapshot.Over = &log.Link{Index: m.Snapshot.Start.Index} }, DropEntry},
		"a start of a later term":               {func(m *Message) { m.Snapshot.Start.Term = wire.Term(m.Term) + 1 }, DropEntry},
		"a state from before the log":           {func(m *Message) { m.Snapshot.Applied = m.Snapshot.Start.Index - 1 }, DropEntry},
		"a configuration that does not decode":  {func(m *Message) { m.Snapshot.ConfState = []byte{0xFF} }, DropEntry},
		"a leader of an earlier term":           {func(m *Message) { m.Term--; m.Snapshot.Start.Term-- }, DropTerm},
		"a leader whose node is not known here": {func(m *Message) { m.From = 77 }, DropAddress},
	} {
		t.Run(name, func(t *testing.T) {
			offer := &Message{
				Message:  raftpb.Message{Type: raftpb.MsgSnap, From: 1, To: 2, Term: uint64(term)},
				Snapshot: &SnapshotOffer{From: 1, To: 2, Term: term, Start: log.Link{Index: last + 9, Term: term}, Applied: last + 9, ConfState: conf},
			}
			c.change(offer)
			before := m.group.Drops()[c.reason]
			require.True(t, m.inbox.Put(offer))
			m.group.Turn()
			require.NoError(t, m.group.Err())
			require.False(t, m.group.installing())
			require.Zero(t, m.fetches)
			require.Equal(t, before+1, m.group.Drops()[c.reason])
		})
	}
}

// A checkpoint that was fetched is held against its offer: the state must stand at the start
// of the log or above, know this replica in whatever part of the configuration, and come in
// the term in which it was offered.
func TestRuleR1_AFetchedCheckpointFitsItsOffer(t *testing.T) {
	f, l := aTrimmedFleet(t)
	content, err := l.log.ReadCheckpoint()
	require.NoError(t, err)
	m := f.members[3]
	m.open()
	m.frozen = true
	f.tick(4)
	require.True(t, m.group.installing())
	require.False(t, m.group.Ready())
	offer := m.group.install.offer
	for name, c := range map[string]struct {
		start   wire.Index
		term    wire.Term
		refused string
	}{
		"above the start": {offer.Applied - 1, offer.Term, ""},
		"at the start":    {offer.Applied, offer.Term, ""},
		"below the start": {offer.Applied + 1, offer.Term, "for a log from"},
		"another term":    {offer.Start.Index, offer.Term + 1, "offered in term"},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() { m.group.install.offer = offer }()
			m.group.install.offer.Start.Index, m.group.install.offer.Term = c.start, c.term
			_, err := m.group.judge(&Fetched{Offer: m.group.install.offer, Content: content})
			if c.refused == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.refused)
		})
	}
	for name, conf := range map[string]raftpb.ConfState{
		"a voter": {Voters: []uint64{1, 2, 3}}, "a learner": {Voters: []uint64{1, 2}, Learners: []uint64{3}},
		"a voter that is about to leave": {Voters: []uint64{1, 2, 4}, VotersOutgoing: []uint64{1, 2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			require.True(t, isMember(&conf, 3))
			require.False(t, isMember(&conf, 5))
		})
	}

	// What was fetched for another offer is not what this one waits for.
	for _, other := range []SnapshotOffer{{From: offer.From, Start: log.Link{Index: offer.Start.Index + 1}}, {From: 2, Start: offer.Start}} {
		m.inbox.PutFetched(Fetched{Offer: other, Err: errors.New("took too long")})
		m.group.Turn()
		require.True(t, m.group.installing())
	}
	// Nor is what was read of the log before part of the new one.
	m.group.storage.feed.ranges = []feedRange{{to: m.id, first: offer.Start.Index + 1, entries: make([]log.Entry, 100)}}
	m.frozen = false
	f.tick(10)
	require.Empty(t, m.group.storage.feed.ranges)
	require.Equal(t, 1, m.fetches)
	f.caughtUp(m, l)
}

// An offer says who leads, as a heartbeat does: what was fetched before the first heartbeat of
// that leader is not refused for its term.
func TestRuleR1_AnOfferTellsWhoLeads(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	m.open()
	before, _ := m.group.Lead()
	require.Zero(t, before)
	f.lose = func(e envelope) bool {
		return e.to == m.id && e.beat != nil || e.message != nil && e.message.Type == raftpb.MsgApp
	}
	conf, err := l.group.confState.Marshal()
	require.NoError(t, err)
	term := m.group.node.BasicStatus().Term + 1
	start := l.log.Start()
	require.True(t, m.inbox.Put(&Message{
		Message:  raftpb.Message{Type: raftpb.MsgSnap, From: 1, To: 3, Term: term},
		Snapshot: &SnapshotOffer{From: 1, To: 3, Term: wire.Term(term), Start: start, Applied: l.log.SavedCheckpoint().Applied, ConfState: conf},
	}))
	m.group.Turn()
	lead, at := m.group.Lead()
	require.EqualValues(t, 1, lead)
	require.EqualValues(t, term, at)
	require.True(t, m.group.installing())
}

// A leader keeps the start of its log for a follower that fetches for long and is offered the
// same again and again, and not for one that takes longer than SnapshotGrace.
func TestRuleR1_TheStartIsKeptForAsLongAsTheGrace(t *testing.T) {
	f, l := aTrimmedFleet(t)
	m := f.members[3]
	m.open()
	m.frozen = true
	f.tick(4)
	require.True(t, m.group.installing())
	start := l.log.FirstIndex()
	f.fill(l, 150)
	for range 3 * offerTicks {
		f.tick(1)
		f.lost(l.id, m.id) // the connection ends, and there is another one
		l.log.Trim(l.log.NextOffset() - 4)
		f.settle()
		require.Equal(t, start, l.log.FirstIndex())
	}
	require.Equal(t, 1, l.group.Snapshots())
	l.group.offers[m.id].ticks = SnapshotGrace
	l.group.Tick(1)
	f.settle()
	require.Greater(t, l.log.FirstIndex(), start)
	m.frozen = false
	f.tick(4 * offerTicks)
	f.caughtUp(m, l)
}

// Ready begins with the entry that the checkpoint is of, not with the one before.
func TestRuleR1_AReplicaIsReadyAtItsCheckpoint(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	f.lead(1).propose("a")
	f.settle()
	f.tick(3)
	m := f.members[2].group
	m.applied = wire.Index(m.node.BasicStatus().Commit)
	require.True(t, m.Ready())
	m.applied++
	require.False(t, m.Ready())
}

package replication

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

func TestThreeReplicasHoldTheSameBytes(t *testing.T) {
	for _, mode := range []log.SyncMode{log.SyncQuorum, log.SyncOS} {
		t.Run(mode.String(), func(t *testing.T) {
			f := newFleet(t)
			f.mode, f.founders = mode, []uint64{1, 2, 3}
			for _, id := range f.founders {
				f.add(id)
			}
			l := f.elect()
			var want []string
			for i := range 50 {
				body := fmt.Sprintf("record %d %01000d", i, i)
				want = append(want, body)
				l.propose(body)
				if i%7 == 0 {
					f.settle()
				}
			}
			f.settle()
			f.tick(3) // followers learn the last commit
			f.equal()
			for _, id := range f.ids() {
				require.Equal(t, want, f.members[id].applied())
				leader, _ := f.members[id].group.Lead()
				require.Equal(t, l.id, leader)
				require.Zero(t, f.members[id].pool.out, "replica %d keeps memory", id)
			}
			require.Equal(t, 3, l.group.Holders(l.group.Applied()))
		})
	}
}

func TestThreeReplicasGoOnWithoutOne(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	first := f.elect()
	first.propose("a")
	f.settle()
	first.crash(true)
	second := f.elect()
	require.NotEqual(t, first.id, second.id)
	second.propose("b")
	second.propose("c")
	f.settle()
	require.Equal(t, []string{"a", "b", "c"}, second.applied())
	f.equal()

	first.open()
	f.tick(5)
	f.equal()
	require.Equal(t, []string{"a", "b", "c"}, first.applied())
}

func TestThreeReplicasFollowerFarBehindIsFedFromTheLog(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	f.segment = 64 << 10
	l := f.lead(1)
	f.members[3].crash(false)
	for i := range 400 {
		l.propose(fmt.Sprintf("%03d %02000d", i, i))
		f.settle()
	}
	f.members[3].open()
	f.tick(10)
	require.Positive(t, l.reads)
	require.Empty(t, l.group.storage.feed.ranges, "what the follower has is forgotten")
	f.equal()
	require.Len(t, f.members[3].applied(), 400)
}

// What a deposed leader had written and not committed is taken back (RULES L2).
func TestThreeReplicasTakeBackWhatWasNotCommitted(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	old := f.lead(1)
	old.propose("a")
	f.settle()
	f.isolate(1)
	for i := range 5 {
		old.propose(fmt.Sprintf("lost %d", i))
	}
	f.settle()
	require.Equal(t, []string{"a"}, old.applied())
	f.members[2].group.Campaign()
	f.settle()
	f.tick(25)
	l := f.members[2]
	if _, leads := l.group.Leading(); !leads {
		l = f.members[3]
	}
	_, leads := old.group.Leading()
	require.False(t, leads, "a leader without a quorum steps down")
	l.propose("b")
	f.settle()
	f.heal()
	f.tick(10)
	f.equal()
	require.Equal(t, []string{"a", "b"}, old.applied())
	require.Zero(t, old.pool.out, "what was taken back is given back too")
	old.crash(true)
	old.open()
	f.tick(10)
	f.equal()
}

func TestThreeReplicasHandLeadershipOver(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	require.ErrorIs(t, l.group.Transfer(9), ErrNoTransferee)
	require.ErrorIs(t, f.members[2].group.Transfer(3), ErrNotLeading)
	require.NoError(t, l.group.Transfer(3))
	require.True(t, l.group.Paused())
	require.ErrorIs(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}), ErrBusy)
	f.settle()
	require.Same(t, f.members[3], f.leader(), "without a tick")
	require.False(t, l.group.Paused())
	f.members[3].propose("b")
	f.settle()
	f.tick(3)
	f.equal()
	require.NoError(t, f.members[3].group.Transfer(0))
	f.settle()
	require.NotEqual(t, uint64(3), f.leader().id)
}

// A transfer to a replica that does not answer ends, and the leader goes on.
func TestThreeReplicasAHandoverThatFailsEnds(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.tick(3)
	f.members[3].crash(false)
	require.NoError(t, l.group.Transfer(3))
	_, err := l.group.Propose(make([]byte, wire.EntryPrefixSize))
	require.ErrorIs(t, err, ErrProposalDropped)
	f.tick(11)
	require.False(t, l.group.Paused())
	l.propose("a")
	f.settle()
	require.Equal(t, []string{"a"}, l.applied())
}

// Entries that are durable but not known to be committed are not applied at a
// restart, and are committed again by whoever leads next.
func TestThreeReplicasRestartWithASuffix(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	f.isolate(1)
	l.propose("b") // durable on 1, and nobody knows
	for l.work() {
	}
	require.Equal(t, []string{"a"}, l.applied())
	for _, id := range f.ids() {
		f.members[id].crash(true)
	}
	f.wires = nil
	f.heal()
	for _, id := range f.ids() {
		f.members[id].open()
	}
	require.NotContains(t, l.applied(), "b", "not known to be committed")
	require.Equal(t, wire.Index(3), l.log.LastIndex())
	f.lead(1)
	f.tick(5)
	f.equal()
	require.Equal(t, []string{"a", "b"}, f.members[2].applied())
}

// The promise of a follower is sent when what it promises is durable.
func promisesWait(t *testing.T, lapses lapse) (committed bool) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.members[2].group.lapses, f.members[3].group.lapses = lapses, lapses
	f.members[2].frozen, f.members[3].frozen = true, true
	l.propose("a")
	f.settle()
	committed = len(l.applied()) > 0
	f.members[2].frozen, f.members[3].frozen = false, false
	f.settle()
	require.Equal(t, []string{"a"}, l.applied())
	return committed
}

func TestF1_PromisesOfAFollowerWaitForItsDisk(t *testing.T) {
	require.False(t, promisesWait(t, 0))
}

func TestF1_Catches_PromisesThatDoNotWait(t *testing.T) {
	require.True(t, promisesWait(t, hasty))
}

// Data of entries is not used again while a message to a slow follower refers to it.
func pinsHold(t *testing.T, lapses lapse) (damaged uint64) {
	f := newFleet(t, 1, 2, 3)
	for _, m := range f.members {
		m.group.lapses = lapses
	}
	l := f.lead(1)
	f.tick(1)
	var slow []envelope
	for i := range 20 {
		l.propose(fmt.Sprintf("record %d %0500d", i, i))
		kept := f.wires[:0:0]
		for _, e := range f.wires {
			if e.to == 3 && e.message != nil {
				slow = append(slow, e) // stays in the queue of a connection
			} else {
				kept = append(kept, e)
			}
		}
		f.wires = kept
		f.settle()
		if i == 10 {
			// The follower counts as not in step any more, so that the leader keeps nothing
			// for its sake.
			l.inbox.PutEvent(PeerEvent{Kind: PeerUnreachable, Node: 3})
			l.group.Turn()
		}
	}
	f.wires = append(slow, f.wires...)
	f.settle()
	f.tick(5)
	f.equal()
	return f.members[3].group.Drops()[DropEntry]
}

func TestRuleR2_DataIsKeptWhileAMessageRefersToIt(t *testing.T) {
	require.Zero(t, pinsHold(t, 0))
}

func TestRuleR2_Catches_DataThatIsUsedAgainTooEarly(t *testing.T) {
	require.Positive(t, pinsHold(t, unpinned), "the follower finds foreign bytes by their checksums")
}

func TestRuleL1_ADifferentChainFencesTheFollower(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	l.propose("b")
	for i := range f.wires {
		if m := f.wires[i].message; m != nil && m.To == 2 && m.Type == raftpb.MsgApp {
			require.True(t, m.ChainKnown)
			m.Chain++
		}
	}
	f.settle()
	require.ErrorIs(t, f.members[2].group.Err(), ErrDiverged)
	require.NoError(t, f.members[3].group.Err())
	require.Equal(t, []string{"a", "b"}, l.applied(), "two of three are enough")
}

// Raft never sees a message that could make it panic or do harm.
func TestMessagesAreCheckedBeforeRaftSeesThem(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	follower := f.members[2]
	term, _ := l.group.Leading()
	last := uint64(follower.log.LastIndex())
	good := func() *Message {
		data := make([]byte, wire.EntryPrefixSize+1)
		wire.PutEntryPrefix(data, wire.KindRecords, 1, 5000)
		return &Message{
			Message: raftpb.Message{Type: raftpb.MsgApp, From: 1, To: 2, Term: uint64(term), Index: last, LogTerm: uint64(term), Commit: last,
				Entries: []raftpb.Entry{{Index: last + 1, Term: uint64(term), Data: data}}},
			Checks: []uint32{EntryCheck(wire.KindRecords, wire.Checksum(data[wire.EntryPrefixSize:]), data)},
		}
	}
	for name, test := range map[string]struct {
		change func(m *Message)
		reason DropReason
	}{
		"a local message from outside":       {func(m *Message) { m.Type = raftpb.MsgHup }, DropAddress},
		"a proposal":                         {func(m *Message) { m.Type = raftpb.MsgProp }, DropAddress},
		"a storage message from outside":     {func(m *Message) { m.Type = raftpb.MsgStorageAppendResp }, DropAddress},
		"a message for another replica":      {func(m *Message) { m.To = 3 }, DropAddress},
		"a message from myself":              {func(m *Message) { m.From = 2 }, DropAddress},
		"an answer from a stranger":          {func(m *Message) { m.Type, m.From, m.Entries = raftpb.MsgAppResp, 77, nil }, DropAddress},
		"no term":                            {func(m *Message) { m.Term = 0 }, DropTerm},
		"a term that cannot be":              {func(m *Message) { m.Term = uint64(MaxTerm) + 1 }, DropTerm},
		"a term far ahead":                   {func(m *Message) { m.Term = uint64(term) + maxTermAhead + 1 }, DropTerm},
		"a flipped bit":                      {func(m *Message) { m.Entries[0].Data[wire.EntryPrefixSize] ^= 1 }, DropEntry},
		"a flipped bit in the prefix":        {func(m *Message) { m.Entries[0].Data[9] ^= 1 }, DropEntry},
		"no checksum":                        {func(m *Message) { m.Checks = nil }, DropEntry},
		"an entry too short for its prefix":  {func(m *Message) { m.Entries[0].Data = m.Entries[0].Data[:5] }, DropEntry},
		"an entry of an unknown kind":        {func(m *Message) { m.Entries[0].Data[0] = 99 }, DropEntry},
		"an entry of a later term":           {func(m *Message) { m.Entries[0].Term++ }, DropEntry},
		"a gap":                              {func(m *Message) { m.Entries[0].Index++ }, DropEntry},
		"an old form of a membership change": {func(m *Message) { m.Entries[0].Type = raftpb.EntryConfChange }, DropEntry},
		"an answer that knows more than us": {func(m *Message) {
			m.Type, m.Index, m.Entries = raftpb.MsgAppResp, last+1, nil
		}, DropProgress},
		"a message from nobody":         {func(m *Message) { m.From = raft.None }, DropAddress},
		"a message from a local thread": {func(m *Message) { m.From = raft.LocalApplyThread }, DropAddress},
		"an entry of an earlier term":   {func(m *Message) { m.Entries[0].Term-- }, DropEntry},
		"a command with records": {func(m *Message) {
			e := &m.Entries[0]
			wire.PutEntryPrefix(e.Data, wire.KindControl, 1, 5000)
			m.Checks[0] = EntryCheck(wire.KindControl, wire.Checksum(e.Data[wire.EntryPrefixSize:]), e.Data)
		}, DropEntry},
		"a membership change that is none": {func(m *Message) {
			e := &m.Entries[0]
			e.Type, e.Data = raftpb.EntryConfChangeV2, []byte{0xFF}
			m.Checks[0] = EntryCheck(wire.KindConfiguration, wire.Checksum(e.Data), e.Data)
		}, DropEntry},
	} {
		t.Run(name, func(t *testing.T) {
			m := good()
			test.change(m)
			before := follower.group.Drops()[test.reason]
			require.True(t, follower.inbox.Put(m))
			follower.group.Turn()
			require.NoError(t, follower.group.Err())
			require.Equal(t, before+1, follower.group.Drops()[test.reason])
			require.Equal(t, wire.Index(last), follower.log.LastIndex())
			require.Zero(t, follower.pool.out)
		})
	}
	require.True(t, follower.inbox.Put(good()), "and the one they were made of is taken")
	follower.group.Turn()
	require.Equal(t, wire.Index(last+1), follower.log.LastIndex())
}

func TestRuleL5_ALeaderThatCountsOnMoreThanThereIsFencesTheReplica(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	term, _ := l.group.Leading()
	f.members[2].inbox.PutBeat(Heartbeat{From: 1, To: 2, Term: term, Commit: f.members[2].log.LastIndex() + 1})
	f.members[2].group.Turn()
	require.ErrorIs(t, f.members[2].group.Err(), ErrAcknowledgedGone)
}

// A replica that may have forgotten what it promised neither votes nor campaigns
// before a later leader has made it whole.
func TestRuleL5_AnUncertainReplicaDoesNotVote(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	u := f.members[3]
	u.crash(false)
	u.config = func(c *Config) { c.Uncertain = true }
	u.open()
	f.members[2].crash(false)
	l.crash(false)
	f.tick(40)
	require.Nil(t, f.leader())
	l.open()
	f.tick(60)
	require.Nil(t, f.leader(), "the uncertain one is no part of a quorum")
	f.members[2].open()
	f.elect()
	f.tick(5)
	f.equal()
	require.False(t, u.group.uncertain, "it has applied an entry of a later term")
	f.leader().crash(false)
	f.elect()
}

// A follower in mode os that lost with its machine what it had acknowledged cannot be
// fed again by the leader that counts on it: another one leads, and makes it whole.
func TestRuleL5_ALeaderHandsOverWhenAFollowerHasLostWhatItAcknowledged(t *testing.T) {
	f := newFleet(t)
	f.mode, f.founders = log.SyncOS, []uint64{1, 2, 3}
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	for i := range 20 {
		l.propose(fmt.Sprintf("record %d", i))
	}
	f.settle()
	f.tick(3)
	m := f.members[3]
	had := m.log.LastIndex()
	m.files.CrashLoseAll()
	m.crash(false)
	m.config = func(c *Config) { c.Uncertain = true }
	m.open()
	require.Less(t, m.log.LastIndex(), had)
	f.tick(15)
	require.NoError(t, m.group.Err())
	require.NotEqual(t, uint64(1), f.leader().id)
	f.equal()
	require.False(t, m.group.uncertain)
}

// The founding replicas take no part before their existence is made known.
func TestRuleR10_AWaitingReplicaTakesNoPart(t *testing.T) {
	f := newFleet(t)
	f.founders = []uint64{1, 2, 3}
	for _, id := range f.founders {
		m := f.add(id)
		m.crash(false)
		m.config = func(c *Config) { c.Waiting = true }
		m.open()
	}
	said := 0
	f.lose = func(envelope) bool { said++; return false }
	f.tick(50)
	require.Nil(t, f.leader())
	require.Zero(t, said)
	f.members[2].group.Admit(false)
	f.members[3].group.Admit(false)
	f.members[3].group.Campaign()
	f.settle()
	require.NotNil(t, f.leader(), "two of three are enough")
	f.members[1].group.Admit(true)
	f.tick(5)
	require.Equal(t, uint64(3), f.leader().id, "the last one does not disturb")
	f.equal()
}

func TestRuleR9_ADeadLeaderIsReplacedAtOnce(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)
	l.crash(false)
	for _, id := range []uint64{2, 3} {
		f.members[id].inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true})
		f.members[id].group.Turn()
	}
	f.settle()
	require.Equal(t, uint64(2), f.leader().id, "without a tick")
}

func TestRuleR9_TheNextInLineWinsIfTheFirstIsDeadToo(t *testing.T) {
	f := newFleet(t, 1, 2, 3, 4, 5)
	l := f.lead(1)
	f.tick(3)
	l.crash(false)
	f.members[2].crash(false)
	for _, id := range []uint64{3, 4, 5} {
		f.members[id].inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true})
		f.members[id].group.Turn()
	}
	f.settle()
	require.Nil(t, f.leader())
	f.tick(3)
	require.Equal(t, uint64(3), f.leader().id)
}

// A group grows from one replica to three and shrinks again, and every restart
// finds the configuration that counted.
func TestMembershipGrowsAndShrinks(t *testing.T) {
	f := newFleet(t, 1)
	l := f.lead(1)
	for i := range 20 {
		l.propose(fmt.Sprintf("record %d", i))
		f.settle()
	}
	f.add(2)
	f.add(3)
	for _, id := range []uint64{2, 3} {
		require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{id}}))
		require.ErrorIs(t, l.group.Reconfigure(Membership{AddLearners: []uint64{9}}), ErrBusy)
		f.settle()
		require.ErrorIs(t, l.group.Reconfigure(Membership{AddLearners: []uint64{id}}), ErrMembership)
	}
	f.tick(10)
	f.equal()
	require.Equal(t, []uint64{2, 3}, l.group.Members().Learners)
	require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{2, 3}}))
	f.settle()
	f.tick(5)
	require.Equal(t, []uint64{1, 2, 3}, l.group.Members().Voters)
	require.Empty(t, l.group.Members().Outgoing, "the joint configuration is left by itself")
	f.equal()

	// All restart: who is a voter is in the log.
	for _, id := range f.ids() {
		f.members[id].crash(true)
	}
	f.wires = nil
	for _, id := range f.ids() {
		f.members[id].open()
		require.NotEmpty(t, f.members[id].group.Members().Voters)
	}
	l = f.elect()
	f.tick(5)
	f.equal()
	for _, id := range f.ids() {
		require.Equal(t, []uint64{1, 2, 3}, f.members[id].group.Members().Voters)
	}
	require.ErrorIs(t, l.group.Reconfigure(Membership{Remove: []uint64{l.id}}), ErrMembership, "not the leader")
	gone := uint64(1)
	if l.id == 1 {
		gone = 2
	}
	require.NoError(t, l.group.Reconfigure(Membership{Remove: []uint64{gone}}))
	f.settle()
	f.tick(3)
	f.members[gone].crash(false)
	require.Len(t, l.group.Members().Voters, 2)
	l.propose("after")
	f.settle()
	require.Contains(t, l.applied(), "after")
	f.tick(50)
	require.Same(t, l, f.leader())
}

func TestMembershipThatWouldLoseTheMajorityIsRefused(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.tick(3)
	f.members[3].crash(false)
	f.tick(9)
	require.ErrorIs(t, l.group.Reconfigure(Membership{Remove: []uint64{2}}), ErrMembership, "1 of 1 and 3 would be left")
	require.NoError(t, l.group.Reconfigure(Membership{Remove: []uint64{3}}))
}

// A sole voter that dies between its own change and its application finds the rest
// when it starts.
func TestReplayEndsWithTheConfigurationThatEndsTheSoleVoter(t *testing.T) {
	f := newFleet(t, 1)
	l := f.lead(1)
	f.add(2)
	l.propose("a")
	f.settle()
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{2}}))
	f.settle()
	f.tick(3)
	require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{2}}))
	f.settle()
	f.members[2].crash(false)
	l.propose("b") // durable here, but two voters are needed
	for l.work() {
	}
	l.crash(true)
	l.open()
	require.Equal(t, []string{"a"}, l.applied())
	require.Equal(t, []uint64{1, 2}, l.group.Members().Voters)
	f.members[2].open()
	f.elect()
	f.tick(5)
	f.equal()
	require.Equal(t, []string{"a", "b"}, l.applied())
}

package replication

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// asleep is a fleet whose group sleeps.
func asleep(t *testing.T) (*fleet, *member) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.sleep()
	return f, l
}

func (f *fleet) sleep() {
	f.t.Helper()
	f.tick(2*quietTicks + electionTicks)
	for _, id := range f.ids() {
		if m := f.members[id]; !m.down {
			require.True(f.t, m.group.Quiet(), "replica %d", id)
		}
	}
}

func TestRuleR8_AnIdleGroupSleepsAndWakes(t *testing.T) {
	f, l := asleep(t)
	for range 100 {
		for _, id := range f.ids() {
			f.members[id].group.Tick(1)
		}
		require.Empty(t, f.wires, "nobody says anything")
	}
	l.propose("b")
	f.settle()
	for _, id := range f.ids() {
		require.False(t, f.members[id].group.Quiet(), "replica %d", id)
	}
	f.tick(3)
	f.equal()
	f.sleep()
	require.NoError(t, l.group.Transfer(2))
	f.settle()
	require.Equal(t, uint64(2), f.leader().id)
	f.sleep()
	f.equal()
}

func TestRuleR8_AGroupDoesNotSleepWhileAMemberLacksSomething(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	f.members[3].crash(false)
	l.propose("a")
	f.settle()
	f.tick(100)
	require.False(t, l.group.Quiet())
	require.False(t, f.members[2].group.Quiet())
	f.members[3].open()
	f.sleep()
}

func TestRuleR8_AReplicaThatComesBackWakesItsLeader(t *testing.T) {
	f, l := asleep(t)
	m := f.members[3]
	m.crash(false)
	f.sleep2(l)
	m.open()
	f.tick(25)
	leader, _ := m.group.Lead()
	require.Equal(t, l.id, leader)
	require.Same(t, l, f.leader(), "it does not disturb")
	f.sleep()
}

// sleep2 lets time pass in which nobody learns of a member that is gone.
func (f *fleet) sleep2(l *member) {
	require.False(f.t, l.group.Quiet(), "a lost connection wakes")
	f.tick(5)
}

// A leader's heartbeat that sends others to sleep may get lost, or find a follower
// that is not as far as the leader thinks.
func TestRuleR8_AFollowerThatMissesTheNightfallWakesTheOthers(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	for range 100 {
		for _, id := range f.ids() {
			f.members[id].group.Tick(1)
		}
		kept := f.wires[:0:0]
		for _, e := range f.wires {
			if e.beat == nil || !e.beat.Quiet || e.to != 2 {
				kept = append(kept, e)
			}
		}
		f.wires = kept
		f.settle()
		if l.group.Quiet() {
			break
		}
	}
	require.True(t, l.group.Quiet())
	require.False(t, f.members[2].group.Quiet())
	f.sleep()
	require.Same(t, l, f.leader())
	f.equal()
}

func TestRuleR9_ADeadLeaderOfASleepingGroupIsReplacedAtOnce(t *testing.T) {
	f, l := asleep(t)
	l.crash(false)
	for _, id := range []uint64{2, 3} {
		f.members[id].inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true})
		f.members[id].group.Turn()
	}
	f.settle()
	require.Equal(t, uint64(2), f.leader().id)
}

// A node that only fell silent is waited for: its leader is forgotten, and time
// elects another.
func TestRuleR9_ASilentLeaderOfASleepingGroupIsReplacedByTime(t *testing.T) {
	f, l := asleep(t)
	f.isolate(1)
	f.settle()
	for _, id := range []uint64{2, 3} {
		f.members[id].inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1})
		f.members[id].group.Turn()
	}
	l.inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 2})
	l.inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 3})
	l.group.Turn()
	f.tick(21)
	require.Contains(t, []uint64{2, 3}, f.leader().id)
	_, leads := l.group.Leading()
	require.False(t, leads, "the old one has noticed")
}

// A read is told an index that covers what was committed, by a leader that a quorum
// has confirmed.
func TestReadsAreConfirmedByAQuorum(t *testing.T) {
	f, l := asleep(t)
	index := l.propose("b")
	f.settle()
	var got wire.Index
	l.group.ReadIndex(func(i wire.Index, err error) { require.NoError(t, err); got = i })
	require.Zero(t, got, "nobody has answered yet")
	f.settle()
	require.Equal(t, index, got, "without a tick")

	var errs []error
	f.members[2].group.ReadIndex(func(_ wire.Index, err error) { errs = append(errs, err) })
	require.ErrorIs(t, errs[0], ErrNotLeading)

	// A deposed leader that does not know it yet gets no confirmation.
	f.isolate(1)
	l.group.ReadIndex(func(_ wire.Index, err error) { errs = append(errs, err) })
	f.members[2].inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true})
	f.members[3].inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true})
	f.members[2].group.Turn()
	f.members[3].group.Turn()
	f.settle()
	require.Equal(t, uint64(2), f.leaderAmong(2, 3).id)
	require.Len(t, errs, 1, "not answered")
	f.tick(2 * electionTicks)
	require.Len(t, errs, 2)
	require.Error(t, errs[1])
}

// leaderAmong is the leader of some members.
func (f *fleet) leaderAmong(ids ...uint64) *member {
	for _, id := range ids {
		if _, leads := f.members[id].group.Leading(); leads {
			return f.members[id]
		}
	}
	return nil
}

func TestRuleR8_ALeaderThatStoodStillIsConfirmedFirst(t *testing.T) {
	f, l := asleep(t)
	l.inbox.PutEvent(PeerEvent{Kind: PeerResumed})
	l.group.Turn()
	require.True(t, l.group.Paused())
	f.settle()
	require.False(t, l.group.Paused())
}

// A leader with as many reads on their way as may be is confirmed before it goes on too.
func TestRuleR8_AConfirmationThatFailsIsAskedForAgain(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.isolate(1)
	for range MaxReads {
		l.group.ReadIndex(func(wire.Index, error) {})
	}
	l.inbox.PutEvent(PeerEvent{Kind: PeerResumed})
	l.group.Turn()
	require.True(t, l.group.Paused(), "nobody has said that it leads")
	l.group.Tick(1)
	require.True(t, l.group.Paused())
	f.heal()
	f.tick(2 * electionTicks)
	require.NotNil(t, f.leader())
	require.False(t, f.leader().group.Paused())
}

// oversleeps stops a leader until another is elected and has committed a record, and
// reports whether it takes itself for a leader that may answer when it wakes, before it
// has heard of anybody.
func oversleeps(t *testing.T, lapses lapse) (answers bool) {
	f := newFleet(t, 1, 2, 3)
	old := f.lead(1)
	old.group.lapses = lapses
	old.propose("a")
	f.settle()
	f.isolate(1) // what it is sent waits, or is lost; it takes no turn and gets no tick
	for range 3 * electionTicks {
		f.members[2].group.Tick(1)
		f.members[3].group.Tick(1)
		f.settle()
	}
	next := f.leaderAmong(2, 3)
	require.NotNil(t, next)
	next.propose("b")
	f.settle()
	require.Equal(t, []string{"a", "b"}, next.applied())

	old.inbox.PutEvent(PeerEvent{Kind: PeerResumed})
	old.group.Turn()
	_, leads := old.group.Leading()
	answers = leads && !old.group.Paused()
	f.heal()
	f.tick(3 * electionTicks)
	require.Equal(t, []string{"a", "b"}, old.applied())
	f.equal()
	return answers
}

func TestRuleR8_ALeaderThatOversleptAnswersNothing(t *testing.T) {
	require.False(t, oversleeps(t, 0))
}

func TestRuleR8_Catches_ALeaderThatTrustsItself(t *testing.T) {
	require.True(t, oversleeps(t, heedless))
}

// A leader that sleeps does not notice that it is deposed if no connection breaks for it.
// It is not asked anything when it wakes: nothing that it then says needs that (decision
// 22), and it notices as soon as a leader that was awake would have.
func TestRuleR8_ASleepingLeaderThatIsDeposedPromisesNothing(t *testing.T) {
	f, old := asleep(t)
	for _, id := range []uint64{2, 3} { // and no PeerUnreachable or PeerDown for 1
		f.cut[[2]uint64{1, id}], f.cut[[2]uint64{id, 1}] = true, true
		f.members[id].inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true})
		f.members[id].group.Turn()
	}
	f.settle()
	next := f.leaderAmong(2, 3)
	require.NotNil(t, next)
	next.propose("b")
	f.settle()
	require.Equal(t, []string{"a", "b"}, next.applied())
	for range 10 * electionTicks {
		require.True(t, old.group.Quiet(), "it is not ticked")
		f.tick(1)
	}

	old.propose("c")
	var errs []error
	old.group.ReadIndex(func(_ wire.Index, err error) { errs = append(errs, err) })
	f.settle()
	require.Equal(t, []string{"a"}, old.applied(), "what it takes is not committed")
	require.Empty(t, errs, "what it is asked is not answered")
	f.tick(2 * electionTicks)
	_, leads := old.group.Leading()
	require.False(t, leads)
	require.Len(t, errs, 1)
	require.Error(t, errs[0])
	f.heal()
	f.tick(3 * electionTicks)
	require.Equal(t, []string{"a", "b"}, old.applied())
	f.equal()
}

// stalledDisk freezes the disk of a leader after some ticks and returns after how many
// more another one answers, 0 if none does.
func stalledDisk(t *testing.T, lapses lapse, after int) int {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.group.lapses = lapses
	l.propose("a")
	f.settle()
	f.tick(after)
	l.frozen = true
	l.propose("b")
	f.settle()
	for ticks := 1; ticks <= 50; ticks++ {
		f.tick(1)
		if next := f.leaderAmong(2, 3); next != nil {
			next.propose("c")
			f.settle()
			require.Equal(t, []string{"a", "b", "c"}, next.applied())
			l.frozen = false
			f.settle()
			f.tick(5)
			f.equal()
			return ticks
		}
	}
	return 0
}

func TestF13_AStalledDiskCostsTheLeadershipWithinFiveSeconds(t *testing.T) {
	for after := range electionTicks { // wherever that is between two checks of the quorum
		ticks := stalledDisk(t, 0, after)
		t.Logf("another replica leads after %d ticks of 100 ms", ticks)
		require.Positive(t, ticks)
	}
}

func TestF13_Catches_ALeaderThatWaitsForItsDisk(t *testing.T) {
	require.Zero(t, stalledDisk(t, enduring, 3))
}

// slowFollower freezes the disk of a follower whose memory is limited and returns
// how many buffers it had at most.
func slowFollower(t *testing.T, limit int) (most int) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	m := f.members[3]
	m.pool.limit = limit
	m.frozen = true
	for i := range 300 {
		l.propose(fmt.Sprintf("%03d %0500d", i, i))
		f.settle()
		if i%10 == 0 {
			f.tick(1)
		}
		most = max(most, m.pool.out)
	}
	require.Len(t, l.applied(), 300, "two of three are enough")
	m.frozen = false
	f.settle()
	f.tick(20)
	f.equal()
	return most
}

func TestF22_AFollowerWhoseDiskIsSlowHoldsABudget(t *testing.T) {
	require.LessOrEqual(t, slowFollower(t, 16), 16)
}

func TestF22_Catches_AFollowerWithoutABudget(t *testing.T) {
	require.Greater(t, slowFollower(t, 0), 16)
}

// A follower without room drops what it is sent and gets it again later.
func TestRuleL10_AFollowerWithoutRoomCatchesUp(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	m := f.members[3]
	m.files.SetSpace(1)
	for i := range 400 {
		l.propose(fmt.Sprintf("%03d %03000d", i, i))
		f.settle()
	}
	f.tick(5)
	require.NoError(t, m.group.Err())
	require.Positive(t, m.group.Drops()[DropRoom])
	require.Less(t, m.log.LastIndex(), l.log.LastIndex())
	require.Len(t, l.applied(), 401)
	m.files.SetSpace(0)
	m.store.RefreshSpace()
	f.tick(20)
	f.equal()
}

// A replica that is elected and has no room for the first entry of its term makes
// way for another.
func TestRuleL10_ALeaderWithoutRoomMakesWay(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	m := f.members[1] // its log is empty: it has no segment yet
	m.files.SetSpace(1)
	m.group.Campaign()
	f.settle()
	require.Nil(t, f.leader())
	f.tick(5)
	leader, _ := f.members[2].group.Lead()
	require.Equal(t, uint64(1), leader, "elected, and in the way")
	f.tick(100)
	next := f.leader()
	require.NotNil(t, next)
	require.NotEqual(t, uint64(1), next.id)
	next.propose("a")
	f.settle()
	require.Equal(t, []string{"a"}, next.applied())
	m.files.SetSpace(0)
	m.store.RefreshSpace()
	f.tick(20)
	f.equal()
}

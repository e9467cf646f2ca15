package replication

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// takeOver has a member go on alone, as an operator wants it.
func (f *fleet) takeOver(m *member, others ...uint64) {
	f.t.Helper()
	for range 100 {
		if m.group.TookOver() {
			return
		}
		require.NoError(f.t, m.group.TakeOver(others))
		f.tick(1)
	}
	f.t.Fatal("it does not take over")
}

// outcasts disowns replicas.
func outcasts(ids ...uint64) func(uint64) bool {
	return func(id uint64) bool { return slices.Contains(ids, id) }
}

// The survivors of a lost majority: one goes on with what it has, and what the others do
// when they come back changes nothing, although their terms and logs are longer.
func TestRuleL5_AReplicaTakesOverWithoutAMajority(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.members[3].crash(false)
	f.isolate(2)
	l.propose("of 1 alone") // nobody has acknowledged it
	f.settle()
	f.heal()
	l.crash(false)
	survivor := f.members[2]
	f.tick(50)
	require.Nil(t, f.leader(), "one of three elects nobody")
	survivor.group.Disown(outcasts(1, 3))
	f.takeOver(survivor, 1, 3)
	require.Equal(t, []uint64{2}, survivor.group.Members().Voters)
	survivor.propose("b")
	f.settle()
	require.Equal(t, []string{"a", "b"}, survivor.applied())

	// A restart of what has not reported yet, then it is told again.
	survivor.crash(true)
	survivor.config = func(c *Config) {}
	survivor.open()
	survivor.group.Disown(outcasts(1, 3))
	f.takeOver(survivor, 1, 3)
	require.Equal(t, []string{"a", "b"}, survivor.applied())

	// The others come back, elect one of them and go on as if nothing had happened.
	f.members[1].open()
	f.members[3].open()
	f.tick(100)
	require.NoError(t, survivor.group.Err())
	_, leads := survivor.group.Leading()
	require.True(t, leads)
	survivor.propose("c")
	f.settle()
	require.Equal(t, []string{"a", "b", "c"}, survivor.applied())
	f.members[1].down, f.members[3].down = true, true // their nodes hear that they are lost

	// A new member reads from the first entry how the partition came to have one voter.
	f.add(4)
	require.NoError(t, survivor.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	f.tick(3)
	require.NoError(t, survivor.group.Reconfigure(Membership{Promote: []uint64{4}}))
	f.settle()
	f.tick(3)
	f.equal()
	for _, id := range []uint64{2, 4} {
		m := f.members[id].group.Members()
		require.Equal(t, []uint64{2, 4}, m.Voters)
		require.Empty(t, m.Outgoing)
		require.Empty(t, m.Learners)
	}
	// And so does a restart of either.
	for _, id := range []uint64{2, 4} {
		f.members[id].crash(true)
		f.members[id].open()
		f.members[id].group.Disown(outcasts(1, 3))
	}
	f.elect()
	require.Equal(t, []uint64{2, 4}, survivor.group.Members().Voters)
}

// A change of the configuration that was on its way does not stop it: it counts when the
// log does, and goes with the rest.
func TestRuleL5_ATakeOverEndsAChangeThatWasOnItsWay(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.add(4)
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}))
	f.settle()
	f.tick(3)
	f.members[3].crash(false)
	f.members[2].crash(false)
	require.NoError(t, l.group.Reconfigure(Membership{Promote: []uint64{4}, Remove: []uint64{3}}))
	f.settle()
	f.members[4].crash(false)
	f.tick(30)
	l.group.Disown(outcasts(2, 3, 4))
	f.takeOver(l, 2, 3, 4)
	m := l.group.Members()
	require.Equal(t, []uint64{1}, m.Voters)
	require.Empty(t, m.Outgoing)
	l.propose("b")
	f.settle()
	require.Equal(t, []string{"a", "b"}, l.applied())
	f.add(5)
	require.NoError(t, l.group.Reconfigure(Membership{AddLearners: []uint64{5}}))
	f.settle()
	f.tick(3)
	f.equal()
	require.Equal(t, []uint64{1}, f.members[5].group.Members().Voters)
}

// Without Disown the leader of those that were given up takes everything back.
func TestRuleL5_Catches_OutcastsThatAreListenedTo(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.isolate(2)
	f.tick(30)
	survivor := f.members[2]
	f.members[1].down, f.members[3].down = true, true
	f.takeOver(survivor, 1, 3)
	survivor.propose("b")
	f.settle()
	require.Equal(t, []string{"a", "b"}, survivor.applied())
	f.heal()
	f.members[1].down, f.members[3].down = false, false
	for range 3 * takeOverTerms { // as if they had elected for long
		if f.members[1].log.HardState().Term > survivor.log.HardState().Term {
			break
		}
		hard := f.members[1].log.HardState()
		f.members[1].group.Campaign()
		f.settle()
		if f.members[1].log.HardState() == hard {
			f.tick(1)
		}
	}
	_, leads := survivor.group.Leading()
	require.True(t, !leads || survivor.group.Err() != nil, "the survivor listened")
}

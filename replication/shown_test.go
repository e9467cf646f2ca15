package replication

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
)

// A change of the configuration is proposed when the one before is applied. Of several that
// a restart finds and does not know to be committed, all but the newest are in force: or two
// could be elected in one term, by majorities of configurations that lie several changes
// apart.
func TestF18_ARestartGoesByTheChangesThatItsLogShowsToBeCommitted(t *testing.T) {
	f := newFleet(t)
	f.mode, f.founders = log.SyncOS, []uint64{1, 2, 3, 4, 5}
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	f.isolate(2) // it gets both changes at once
	for _, id := range []uint64{5, 4} {
		require.NoError(t, l.group.Reconfigure(Membership{Remove: []uint64{id}}))
		f.settle()
		f.tick(2)
	}
	require.Equal(t, []uint64{1, 2, 3}, l.group.Members().Voters)
	f.heal()
	f.tick(10)
	require.Equal(t, l.log.LastIndex(), f.members[2].log.LastIndex())
	for _, id := range f.founders[:3] {
		f.members[id].crash(false)
	}
	for _, id := range f.founders[:3] {
		m := f.members[id]
		m.open()
		members := m.group.Members()
		require.NotContains(t, slices.Concat(members.Voters, members.Outgoing), uint64(5), "replica %d goes by %+v", id, members)
	}
	f.members[4].crash(false)
	f.members[5].crash(false)
	l = f.elect()
	l.propose("after")
	f.settle()
	require.Equal(t, []uint64{1, 2, 3}, l.group.Members().Voters)
}

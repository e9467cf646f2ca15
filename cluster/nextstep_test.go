package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/replication"
)

// Replicas 1 to 3 have founded the partition, 1 leads it; the others are told by the case.
func TestTheNextStepOfALeader(t *testing.T) {
	type change = replication.Membership
	three := []Replica{{1, 1, ReplicaActive}, {2, 2, ReplicaActive}, {3, 3, ReplicaActive}}
	with := func(more ...Replica) []Replica { return append(append([]Replica{}, three...), more...) }
	for name, c := range map[string]struct {
		replicas         []Replica
		voters, learners []uint64
		known            []uint64 // learners that the metadata knows
		knownIndex       uint64
		change           change
		transfer         bool
		reported         bool
	}{
		"none while the founders make their directories": {
			replicas: []Replica{{1, 1, ReplicaActive}, {2, 2, ReplicaNew}, {3, 3, ReplicaNew}}, voters: []uint64{1, 2, 3}, reported: true},
		"a founder that is new keeps nobody from joining": {
			replicas: []Replica{{1, 1, ReplicaActive}, {2, 2, ReplicaActive}, {3, 3, ReplicaNew}, {4, 4, ReplicaJoining}}, voters: []uint64{1, 2, 3}, learners: []uint64{4}, known: []uint64{4},
			change: change{Promote: []uint64{4}}, reported: true},
		"one learner after the other": {
			replicas: with(Replica{4, 4, ReplicaJoining}, Replica{5, 5, ReplicaJoining}), voters: []uint64{1, 2, 3},
			change: change{AddLearners: []uint64{4}}, reported: true},
		"who is forgotten goes": {
			replicas: three, voters: []uint64{1, 2, 3}, learners: []uint64{9}, known: []uint64{9},
			change: change{Remove: []uint64{9}}, reported: true},
		"who has left goes": {
			replicas: with(Replica{4, 4, ReplicaLeft}), voters: []uint64{1, 2, 3}, learners: []uint64{4}, known: []uint64{4},
			change: change{Remove: []uint64{4}}, reported: true},
		"none before the metadata knows the learners":          {replicas: with(Replica{4, 4, ReplicaJoining}), voters: []uint64{1, 2, 3}, learners: []uint64{4}},
		"none before the metadata knows what is as new":        {replicas: with(Replica{4, 4, ReplicaJoining}), voters: []uint64{1, 2, 3}, knownIndex: 4},
		"what the metadata has not concluded is said again":    {replicas: with(Replica{4, 4, ReplicaJoining}), voters: []uint64{1, 2, 3, 4}},
		"a leader that nobody follows stays, though it leaves": {replicas: []Replica{{1, 1, ReplicaLeft}}, voters: []uint64{1}, reported: true},
		"a lost learner is no voter that is missing": {
			replicas: []Replica{{1, 1, ReplicaActive}, {2, 2, ReplicaActive}, {3, 3, ReplicaLeaving}, {4, 4, ReplicaLost}}, voters: []uint64{1, 2, 3}, learners: []uint64{4}, known: []uint64{4},
			change: change{Remove: []uint64{3, 4}}, reported: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := &Partition{Replicas: c.replicas, Founders: []uint64{1, 2, 3}, Voters: c.voters, Learners: c.known, ConfIndex: 5}
			if c.knownIndex > 0 {
				p.ConfIndex = 4
			}
			members := membersOf(5, c.voters, c.learners...)
			got, transfer := StepTowards(p, 1, 3, members)
			require.Equal(t, c.change, replication.Membership{AddLearners: got.AddLearners, Promote: got.Promote, Remove: append([]uint64(nil), got.Remove...)})
			require.Equal(t, c.transfer, transfer)
			require.Equal(t, c.reported, Reported(p, members))
		})
	}
}

// While the voters of the metadata are exchanged there is no further step.
func TestTheMetadataTakesOneStepAtATime(t *testing.T) {
	s := clusterOf(t, 3)
	members := membersOf(5, []uint64{1})
	change, _ := StepMeta(newView(s), 1, members, always, always)
	require.NotEmpty(t, change.AddLearners)
	members.Outgoing = []uint64{1}
	change, handOver := StepMeta(newView(s), 1, members, always, always)
	require.Equal(t, replication.Membership{}, change)
	require.False(t, handOver)
}

// A cut at the end of another takes its place.
func TestACutAtTheEndOfAnotherTakesItsPlace(t *testing.T) {
	p := Partition{Incarnation: 1}
	p.cut(7)
	p.cut(7)
	require.Equal(t, []Cut{{Incarnation: 3, Offset: 7}}, p.Cuts)
}

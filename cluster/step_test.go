package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// membersOf is what a leader knows whose partition has these members since an index, all
// of them in step.
func membersOf(index uint64, voters []uint64, learners ...uint64) *replication.Members {
	m := &replication.Members{Voters: voters, Learners: learners, Index: wire.Index(index)}
	for _, id := range append(append([]uint64(nil), voters...), learners...) {
		m.Progress = append(m.Progress, replication.Progress{Replica: id, Active: true, InStep: true})
	}
	return m
}

// moving is a partition on nodes 1, 2 and 3 of four whose replica on 3 is moved to 4 and
// has been added there as a learner, which the metadata know.
func moving(t *testing.T) (s *State, d *Destination, voters []uint64, fresh uint64) {
	s = clusterOf(t, 4)
	d = placed(t, s, "orders", []uint32{1, 2, 3})
	for _, r := range d.Partitions[0].Replicas {
		voters = append(voters, r.ID)
	}
	d = apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{4}, Remove: voters[2:]}}).Destination
	fresh = d.Partitions[0].On(4).ID
	apply(t, s, Command{Activate: &Activate{Replicas: []uint64{fresh}}})
	d = apply(t, s, Command{Reconfigured: &Reconfigured{Destination: d.ID, Voters: voters, Learners: []uint64{fresh}, Index: 10}}).Destination
	return s, d, voters, fresh
}

// The leader tells the metadata of each change before it makes the next one: what they
// want may be older than that.
func TestALeaderStepsFromMembersThatTheMetadataKnow(t *testing.T) {
	s, d, voters, fresh := moving(t)
	change, _ := StepTowards(&d.Partitions[0], voters[0], 3, membersOf(10, voters, fresh))
	require.Equal(t, replication.Membership{Promote: []uint64{fresh}, Remove: voters[2:]}, change)

	after := membersOf(12, []uint64{voters[0], voters[1], fresh})
	d = apply(t, s, Command{Move: &Move{Destination: d.ID, Remove: []uint64{fresh}}}).Destination // called off, too late
	change, transfer := StepTowards(&d.Partitions[0], voters[0], 3, after)
	require.Zero(t, change, "%d leaves, and is one of three", fresh)
	require.False(t, transfer)
	require.False(t, Reported(&d.Partitions[0], after))
	d = apply(t, s, Command{Reconfigured: &Reconfigured{Destination: d.ID, Voters: after.Voters, Index: 13}}).Destination
	p := &d.Partitions[0]
	require.Equal(t, ReplicaLeft, p.Replica(voters[2]).State, "it is out, and cannot come back with what it has")
	require.Equal(t, ReplicaActive, p.Replica(fresh).State)
	change, _ = StepTowards(p, voters[0], 3, after)
	require.Zero(t, change)
	require.True(t, Reported(p, after))
}

// A leader whose view is older than what an earlier one acted on does nothing.
func TestALeaderWithAnOldViewDoesNotBringBackWhoWasTakenOut(t *testing.T) {
	_, d, voters, fresh := moving(t)
	old := &d.Partitions[0] // in which the replica joins
	gone := membersOf(20, voters)
	change, _ := StepTowards(old, voters[1], 3, gone)
	require.Zero(t, change, "%d was taken out by a leader that knew more", fresh)
	require.False(t, Reported(old, gone))
}

func TestAMoveWhoseNewReplicaIsLostIsOff(t *testing.T) {
	s, d, voters, fresh := moving(t)
	d = apply(t, s, Command{Lost: &Lost{Destination: d.ID, Replica: fresh, Reason: "its disk"}}).Destination
	p := &d.Partitions[0]
	require.Equal(t, ReplicaActive, p.Replica(voters[2]).State)
	change, _ := StepTowards(p, voters[0], 3, membersOf(10, voters, fresh))
	require.Equal(t, replication.Membership{Remove: []uint64{fresh}}, change)
}

// Who leaves goes with the one that comes; a vote that is missing stays until another
// comes for it.
func TestOneVoterGoesForEachThatComes(t *testing.T) {
	s, d, voters, fresh := moving(t)
	d = apply(t, s, Command{Lost: &Lost{Destination: d.ID, Replica: voters[1], Reason: "its disk"}}).Destination
	change, _ := StepTowards(&d.Partitions[0], voters[0], 3, membersOf(10, voters, fresh))
	require.Equal(t, replication.Membership{Promote: []uint64{fresh}, Remove: voters[2:]}, change)
}

func TestAReplicaThatIsNotMadeYetIsNotMoved(t *testing.T) {
	s := clusterOf(t, 2)
	c := settings(1)
	d := apply(t, s, Command{Create: &Create{Name: "young", Kind: wire.Queue, Settings: c, ID: id(70), PartitionIDs: ids(1), Placement: [][]uint32{{1}}}}).Destination
	r := s.Apply(99, &Command{Move: &Move{Destination: d.ID, Add: []uint32{2}, Remove: []uint64{d.Partitions[0].Replicas[0].ID}}})
	require.ErrorContains(t, r.Err, "young/0 is being made on node 1; wait until that is done")
	apply(t, s, Command{Activate: &Activate{Replicas: []uint64{d.Partitions[0].Replicas[0].ID}}})
	apply(t, s, Command{Move: &Move{Destination: d.ID, Add: []uint32{2}, Remove: []uint64{d.Partitions[0].Replicas[0].ID}}})
}

func TestAPartitionIsNotLeftWithFewerReplicas(t *testing.T) {
	s := clusterOf(t, 3)
	d := placed(t, s, "orders", []uint32{1, 2, 3})
	r := s.Apply(99, &Command{Move: &Move{Destination: d.ID, Remove: []uint64{d.Partitions[0].Replicas[2].ID}}})
	require.ErrorContains(t, r.Err, "orders/0 would have 2 replicas of 3; name a node that takes one")
}

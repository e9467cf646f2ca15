package cluster

import (
	"slices"

	"github.com/lockstepmq/lockstep/replication"
)

// StepMeta is the next step of group 0 towards the configuration that PlanMeta wants: what
// its leader, the replica self, changes about its members now. First the others learn, then
// they become voters in the place of those that go. With handOver another one has to lead
// before, since a leader does not take its own vote. No step may be taken while a change is
// on its way: then it is empty.
func StepMeta(v *View, self uint64, members *replication.Members, alive, gone func(node uint32) bool) (change replication.Membership, handOver bool) {
	if len(members.Outgoing) > 0 || len(v.Nodes) == 0 {
		return change, false
	}
	wanted, learners := PlanMeta(v, members.Voters, alive, gone)
	if len(wanted) == 0 {
		return change, false
	}
	for _, id := range slices.Concat(wanted, learners) {
		if !slices.Contains(members.Voters, id) && !slices.Contains(members.Learners, id) {
			change.AddLearners = append(change.AddLearners, id)
		}
	}
	if len(change.AddLearners) == 0 {
		for _, id := range wanted {
			if !slices.Contains(members.Voters, id) {
				change.Promote = append(change.Promote, id)
			}
		}
		for _, id := range slices.Concat(members.Voters, members.Learners) {
			votes := slices.Contains(members.Voters, id)
			if !slices.Contains(wanted, id) && (votes || !slices.Contains(learners, id)) {
				change.Remove = append(change.Remove, id)
			}
		}
	}
	if slices.Contains(change.Remove, self) {
		if len(change.Promote) == 0 || len(members.Voters) > 1 {
			return replication.Membership{}, true
		}
		change.Remove = slices.DeleteFunc(change.Remove, func(id uint64) bool { return id == self })
	}
	return change, false
}

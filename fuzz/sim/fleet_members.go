package sim

import (
	"errors"
	"slices"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// replacement is a replica that is made anew under another ID, because its disk is
// lost (RULES R10). What the metadata would say is kept here.
type replacement struct {
	old, id uint64
	// What the old one had promised still counts for what was on its way.
	promised     wire.Index
	promisedTerm wire.Term
}

// replace loses the disk of a member. There is one replacement at a time, so that a
// majority of the voters always has its disk.
func (f *fleet) replace() {
	m := f.someone().replicas[0]
	if f.replacing != nil || f.options.Mutant == WipedReplica {
		return
	}
	if m.up {
		m.powerCut()
	}
	f.lastReplica++
	f.replacing = &replacement{old: m.id, id: f.lastReplica, promised: m.promised, promisedTerm: m.promisedTerm}
	f.trace.add("%s has lost its disk; replica %d takes its place", m, f.lastReplica)
	f.counts[FleetWiped]++
	m.id = f.lastReplica
	m.wipe()
	for _, other := range f.cells[0].members {
		if other.up {
			other.group.SetPeers(other.peers())
		}
	}
}

// replaceWhileTheLeaderDies loses the disk of a member and kills the process of one that
// leads, so that the replacement begins under a new leader.
func (f *fleet) replaceWhileTheLeaderDies() {
	before := f.replacing
	f.replace()
	for _, m := range f.cells[0].members {
		if lead, _ := m.lead(); f.replacing != before && lead == m.id {
			m.crash()
		}
	}
}

// know reports whether most voters know that a change of the members is complete, also after
// their next start. As long as only its leader does, the others need a majority of the old
// voters, too: without the leader's disk there may be none.
func (f *fleet) know(voters []uint64) bool {
	knowing := 0
	for _, m := range f.cells[0].members {
		if m.up && !m.stopped() && slices.Contains(voters, m.id) {
			if has := m.group.Members(); len(has.Outgoing) == 0 && slices.Equal(has.Voters, voters) && m.log.DurableTicket() == m.log.Ticket() {
				knowing++
			}
		}
	}
	return 2*knowing > len(voters)
}

// reconfigure does what is next about a replacement: the new replica learns, becomes a
// voter in the place of the old one, and then is one.
func (f *fleet) reconfigure() {
	if f.replacing == nil {
		return
	}
	r := *f.replacing
	for _, m := range f.cells[0].members {
		if !m.up || m.paused || m.stopped() {
			continue
		}
		if _, leading := m.group.Leading(); !leading {
			continue
		}
		var err error
		switch members := m.group.Members(); {
		case slices.Contains(members.Voters, r.id) && !slices.Contains(members.Voters, r.old) && len(members.Outgoing) == 0:
			if !f.know(members.Voters) {
				continue
			}
			f.trace.add("replica %d has replaced %d", r.id, r.old)
			f.counts[FleetReplaced]++
			f.replacing = nil
			return
		case slices.Contains(members.Learners, r.id):
			err = m.group.Reconfigure(replication.Membership{Promote: []uint64{r.id}, Remove: []uint64{r.old}})
		case !slices.Contains(members.Voters, r.id):
			err = m.group.Reconfigure(replication.Membership{AddLearners: []uint64{r.id}})
		}
		if err != nil && m.group.Err() == nil && !errors.Is(err, replication.ErrBusy) && !errors.Is(err, replication.ErrMembership) && !errors.Is(err, replication.ErrProposalDropped) {
			f.fail("%s: replica %d in the place of %d: %v", m, r.id, r.old, err)
		}
		m.look()
	}
}

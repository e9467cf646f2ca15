package server

import (
	"errors"
	"slices"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// What a replica does about other replicas of its partition: the metadata says which
// there should be, the leader changes the configuration step by step and reports
// what it has become.

// intentTicks lie between two comparisons of intent and configuration.
const intentTicks = 5

// follow takes over what the metadata says about the partition. Any goroutine.
func (r *partitionReplica) follow(p *cluster.Partition) {
	if old := r.intent.Swap(p); old != p && r.inbox != nil {
		r.ask(requestIntent)
	}
}

// hasPeerOn reports whether a node holds another replica of the partition.
func (r *partitionReplica) hasPeerOn(node uint32) bool {
	p := r.intent.Load()
	return p != nil && slices.ContainsFunc(p.Replicas, func(o cluster.Replica) bool { return o.Node == node && o.ID != r.replicaID })
}

// takePart is the part of a turn that concerns other replicas. Owner only.
func (r *partitionReplica) takePart(asked uint32, ticks int) {
	p := r.intent.Load()
	if p != r.follows {
		r.follows = p
		r.group.SetPeers(peersOf(p, r.replicaID))
		disown(r.group, p)
		if mine := p.Replica(r.replicaID); r.waits && mine != nil && mine.State != cluster.ReplicaNew {
			r.waits = false
			r.group.Admit(false)
		}
		if r.alone && !r.campaigned && p.Moving() {
			r.requests.Or(requestActivate) // it has to lead to let others in
			r.schedule()
		}
		r.sinceFix, r.fixed = intentTicks, false
	}
	_, leading := r.group.Leading()
	if !leading {
		r.cramped = 0
	}
	makesWay := leading && r.lacksSpace(ticks)
	leader, term := r.group.Lead()
	if r.alone && r.campaigned && !leading {
		r.alone = votesAlone(r.group, r.replicaID) // it may have let others in since
	}
	if r.orphaned += ticks; leader != 0 || r.alone {
		r.orphaned = 0
	}
	if p.Preferred == r.node && leader == 0 && r.records.LastIndex() == 0 && r.orphaned >= firstElectionTicks && slices.Contains(founders(p), r.replicaID) && mostAreThere(p) {
		r.orphaned = 0
		r.group.Campaign() // the first leader is the one that is preferred
	}
	r.loss.waits.Store(r.orphaned > silentLeaderTicks && r.group.Uncertain())
	switch {
	case leading || r.alone:
	case leader != 0 && leader != r.replicaID:
		if other := p.Replica(leader); other != nil {
			r.part.Reject(wire.NotLeader(other.Node, uint32(term)))
		}
	case r.orphaned > silentLeaderTicks && r.group.Uncertain():
		r.part.Reject(&wire.Error{Code: wire.CodeUnavailable, Detail: waitsForAll})
	case r.orphaned > silentLeaderTicks:
		r.part.Reject(&wire.Error{Code: wire.CodeUnavailable, Detail: "the partition has no leader: most of its replicas cannot be reached"})
	}
	r.continueHandOver(leading, ticks)
	if p.Recovering() && p.Recovery.Replica == r.replicaID {
		r.takeOver(p)
		return
	}
	if !leading {
		return
	}
	switch {
	case asked&requestTransfer != 0:
		r.wanted = wantedLead{open: true, to: r.transfer.Swap(0)}
	case makesWay:
		r.logger.Warn("the disk is full; another replica is asked to lead")
		r.beginHandOver(0)
		r.continueHandOver(leading, 0)
	}
	r.pursueHandOver(ticks)
	if r.sinceFix += ticks; !r.fixed && r.sinceFix >= intentTicks && !r.group.Paused() {
		r.reconfigure(p)
	}
}

// A leader whose disk refuses records hands the leadership on after cramTicks to a replica
// whose disk takes them (RULES L10), if there is one, and again after crampedTicks if it leads
// all the same.
const (
	cramTicks    = 5
	crampedTicks = 100
)

// lacksSpace reports whether it is time for another one to lead, whose disk has space. Owner
// only, while this one does.
func (r *partitionReplica) lacksSpace(ticks int) bool {
	if r.alone || r.storage == wire.StorageMemory || !r.broker.disk.Short() {
		r.cramped = 0
		return false
	}
	if _, roomy := r.heir(); !roomy {
		r.cramped = 0
		return false
	}
	if r.cramped += ticks; r.cramped < cramTicks {
		return false
	}
	r.cramped = cramTicks - crampedTicks
	return true
}

// makeWay wakes what this node leads while its disk refuses records and another one takes
// them: a group that sleeps would find out with the next record.
func (b *broker) makeWay() {
	if b.network == nil || !b.disk.Short() || !slices.ContainsFunc(b.View().Nodes, func(n cluster.Node) bool {
		return n.ID != b.identity.NodeID && n.Broker() && b.reachable(n.ID) && !b.lacksSpace(n.ID)
	}) {
		return
	}
	b.each(func(r *partitionReplica) {
		if r.storage == wire.StorageDisk && r.leads.Load() {
			r.quiet.Store(false)
		}
	})
}

// firstElectionTicks is how long the preferred leader of a new partition gives the others
// to hear that they may vote.
const firstElectionTicks = 2

// mostAreThere reports whether a majority of a new partition may vote.
func mostAreThere(p *cluster.Partition) bool {
	active := 0
	for _, o := range p.Replicas {
		if o.State == cluster.ReplicaActive {
			active++
		}
	}
	return active > len(founders(p))/2
}

// silentLeaderTicks is how long records wait for a leader before they are refused.
const silentLeaderTicks = 10

// showLead publishes whether this replica leads. Owner only.
func (r *partitionReplica) showLead(leading bool) {
	if r.alone && (!r.campaigned || r.leads.Load()) && r.down.Load() == nil {
		leading = true // nobody else can, also while its first election is on its way
	}
	if r.leads.Swap(leading) == leading {
		return
	}
	if leading {
		r.status.CompareAndSwap(uint32(wire.PartitionStarting), uint32(wire.PartitionActive))
	} else {
		r.status.CompareAndSwap(uint32(wire.PartitionActive), uint32(wire.PartitionStarting))
	}
	r.broker.leadChanged(r)
	r.wake() // links learn that the leader is elsewhere
}

// maxTransferLag is how many entries a replica may lack when it is to lead: until it has
// them nothing is proposed, so that they take no time that anybody notices.
const maxTransferLag = 256

// lagOf is how many entries a replica lacks, and whether those are too many for it to
// lead.
func (r *partitionReplica) lagOf(id uint64) (entries wire.Index, lags bool) {
	members := r.group.Members()
	for _, p := range members.Progress {
		if p.Replica == id {
			entries = r.records.LastIndex() - min(p.Match, r.records.LastIndex())
			return entries, entries > maxTransferLag
		}
	}
	return 0, false // raft says what is wrong with it
}

// reconfigure takes one step from the configuration to the intent, and reports to the
// metadata what the configuration has become.
func (r *partitionReplica) reconfigure(p *cluster.Partition) {
	members := r.group.Members()
	if len(members.Outgoing) > 0 {
		return
	}
	r.sinceFix = 0
	r.alone = len(members.Voters) == 1 && members.Voters[0] == r.replicaID
	change, transfer := cluster.StepTowards(p, r.replicaID, int(r.settings.Load().Replicas), &members)
	switch {
	case transfer:
		r.beginHandOver(0)
		r.continueHandOver(true, 0)
	case len(change.AddLearners)+len(change.Promote)+len(change.Remove) > 0:
		switch err := r.group.Reconfigure(change); {
		case err == nil:
			r.logger.Info("the partition changes its replicas", "learners", change.AddLearners, "promote", change.Promote, "remove", change.Remove)
		case !errors.Is(err, replication.ErrBusy):
			r.logger.Debug("the partition cannot change its replicas yet", "err", err)
		}
		return
	}
	if cluster.Reported(p, &members) {
		r.fixed = !p.Moving()
		return
	}
	if r.group.Applied() <= p.ConfIndex {
		// The metadata takes this for what it was told before: who was to join, and was called
		// off before it did, would be on its way for ever.
		if r.group.NextIndex() <= p.ConfIndex+1 {
			_, _ = r.group.Propose(nil) // else it is tried again
		}
		return
	}
	if r.reports.Swap(true) {
		return
	}
	report := &cluster.Reconfigured{
		Destination: r.destination, Partition: r.number, Voters: members.Voters, Learners: members.Learners, Index: r.group.Applied(),
	}
	r.broker.submit(cluster.Command{Reconfigured: report}, func(result cluster.Result) {
		r.reports.Store(false)
		if result.Err != nil {
			r.logger.Warn("metadata does not know yet that the partition changed its replicas; it is told again", "err", result.Err)
		}
	})
}

// lost says in the metadata that a replica of several cannot go on: another takes its
// place. With one replica there is nothing to make another from. What cannot be said now is
// said by a later reconcile, see retryFailed.
func (b *broker) lost(p *cluster.Partition, destination [16]byte, replica uint64, cause error) {
	if b.network == nil || p == nil || len(p.Replicas) < 2 || errors.Is(cause, log.ErrTooNew) {
		return
	}
	if o := p.Replica(replica); o == nil || o.State == cluster.ReplicaLost || o.State == cluster.ReplicaLeft {
		return
	}
	if _, underWay := b.telling.LoadOrStore(replica, true); underWay {
		return
	}
	b.submit(cluster.Command{Lost: &cluster.Lost{Destination: destination, Partition: p.Number, Replica: replica, Reason: cause.Error()}}, func(r cluster.Result) {
		b.telling.Delete(replica)
		if r.Err != nil {
			b.unsaid.Store(true)
			b.logger.Warn("metadata does not know yet that a replica is lost; it is told again", "replica", replica, "err", r.Err)
		}
	})
}

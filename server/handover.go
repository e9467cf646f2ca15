package server

import (
	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// handOverTicks is how long a planned hand-over may take in each of its two steps: until
// the leases of consumers are committed, and from then until another replica leads. It is
// twice the time of an election.
const handOverTicks = 20

// handOver is a leadership on its way to another replica.
type handOver struct {
	stage handOverStage
	to    uint64
	ticks int // in this stage
}

type handOverStage uint8

const (
	noHandOver  handOverStage = iota
	tableOnWay                // the leases of consumers are being committed, so that the next leader waits for nobody
	tableThere                // they are, or cannot be
	transferred               // the other replica was asked to lead
)

// beginHandOver begins to hand the leadership to another replica, 0 for the best. Owner
// only, while this one leads.
func (r *partitionReplica) beginHandOver(to uint64) {
	if r.handing.stage != noHandOver {
		return
	}
	if to == 0 {
		to, _ = r.heir() // in a group that sleeps raft has not heard of anybody lately
	}
	if lag, lags := r.lagOf(to); lags {
		r.logger.Info("the leadership is not handed over to a replica that is behind", "to", to, "entries", lag)
		return
	}
	r.handing = handOver{stage: tableOnWay, to: to}
	r.part.Groups().HandOver(func(err error) {
		if err != nil {
			r.logger.Debug("the next leader has to wait for the consumers", "err", err)
		}
		if r.handing.stage == tableOnWay {
			r.handing.stage, r.handing.ticks = tableThere, 0
			r.schedule()
		}
	})
}

// heir is the replica that should lead next, 0 if nobody is there: if possible one whose disk
// takes records, and of these one that is not behind. roomy says that its disk does. Owner
// only, while this one leads.
func (r *partitionReplica) heir() (heir uint64, roomy bool) {
	best := 4
	for _, o := range r.intent.Load().Replicas {
		if o.ID == r.replicaID || o.State != cluster.ReplicaActive || !r.broker.reachable(o.Node) {
			continue
		}
		rank := 0
		if r.storage == wire.StorageDisk && r.broker.lacksSpace(o.Node) {
			rank = 2
		}
		if _, lags := r.lagOf(o.ID); lags {
			rank++
		}
		if rank < best {
			heir, best = o.ID, rank
		}
	}
	return heir, best < 2
}

// continueHandOver takes the next step. A replica that still leads when the time is over
// stays the leader, and its groups go on.
func (r *partitionReplica) continueHandOver(leading bool, ticks int) {
	h := &r.handing
	if h.stage == noHandOver {
		return
	}
	if !leading {
		*h = handOver{}
		return
	}
	h.ticks += ticks
	switch {
	case h.stage == tableThere:
		if err := r.group.Transfer(h.to); err != nil {
			r.logger.Warn("the leadership is not handed over", "to", h.to, "err", err)
			break
		}
		h.stage, h.ticks = transferred, 0
		return
	case h.ticks <= handOverTicks:
		return
	default:
		r.logger.Warn("the leadership is not handed over in time", "to", h.to)
	}
	*h = handOver{}
	r.part.Groups().Stay()
}

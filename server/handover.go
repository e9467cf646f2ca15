package server

import (
	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// handOverTicks is how long a planned hand-over may take in each of its two steps: until
// the leases of consumers are committed, and from then until another replica leads. It is
// twice the time of an election.
const handOverTicks = 20

// A hand-over that somebody has asked for is tried for wantedTicks: whom it is for may lag for
// a moment, or not take it. Attempts of which one has come to nothing lie handOverTicks apart,
// since nothing is taken or given out during one.
const wantedTicks = 100

// wantedLead is a hand-over that somebody has asked for.
type wantedLead struct {
	open  bool
	to    uint64 // 0 for the best
	ticks int    // since it was asked for
	rest  int    // ticks until the next attempt
}

// pursueHandOver makes an attempt, if it is time for one. Owner only, while this replica leads.
func (r *partitionReplica) pursueHandOver(ticks int) {
	w := &r.wanted
	if !w.open {
		return
	}
	w.ticks += ticks
	w.rest = max(w.rest-ticks, 0)
	switch {
	case w.ticks > wantedTicks:
		r.logger.Warn("the leadership was not handed over, although it was asked for: no replica that could lead was in step", "to", w.to)
		*w = wantedLead{}
	case w.rest == 0 && r.handing.stage == noHandOver:
		r.beginHandOver(w.to)
		r.continueHandOver(true, 0)
	}
}

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
		r.logger.Debug("the leadership is not handed over to a replica that is behind", "to", to, "entries", lag)
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
	if !leading {
		*h, r.wanted = handOver{}, wantedLead{}
		return
	}
	if h.stage == noHandOver {
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
	r.wanted.rest = handOverTicks
	r.part.Groups().Stay()
}

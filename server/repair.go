package server

import (
	"sync/atomic"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Damaged bodies of stored frames are repaired from another replica that has them
// whole (RULES L8): it sends the bodies, and the headers here, which the chain vouches
// for, accept the right ones only. Damage is looked for once a second in what is
// known: clients report it, and the scrubber finds it.

// stepAsideTries is how often, a second apart, a leader with damage asks another replica
// to lead before it repairs what it has while it leads.
const stepAsideTries = 3

// repairBytes is how many bytes of entry data are asked for at once, and one more.
const repairBytes = 8 << 20

// mending is what a replica remembers of its repairs.
type mending struct {
	busy atomic.Bool   // one is on its way
	away atomic.Uint32 // counts how often another replica was asked to lead
	try  atomic.Uint32 // counts attempts: the next one asks for another run, or another node
}

// repairsIgnored is a mutant, see IgnoreRepairs.
var repairsIgnored atomic.Bool

// IgnoreRepairs leaves damage where it is. It is for the test that shows the repair to be
// needed, and does nothing in release builds.
func IgnoreRepairs(ignore bool) { repairsIgnored.Store(ignore) }

// repair asks another replica for the first bodies of a damaged run, if no repair is
// on its way. Each attempt tries another run, and then another node.
func (b *broker) repair(r *partitionReplica) {
	damage, sources := r.records.Damage(), b.sources(r)
	if len(damage) == 0 {
		r.mending.away.Store(0)
		return
	}
	if len(sources) == 0 || invariants.Enabled && repairsIgnored.Load() {
		return
	}
	if r.leads.Load() && len(r.harm()) > 0 && r.mending.away.Add(1) <= stepAsideTries {
		// Whoever reads from another leader misses nothing meanwhile.
		r.transfer.Store(0)
		r.ask(requestTransfer)
		return
	}
	if !r.mending.busy.CompareAndSwap(false, true) {
		return
	}
	try := int(r.mending.try.Add(1) - 1)
	d := damage[try%len(damage)]
	source := sources[try/len(damage)%len(sources)]
	m := wire.PeerFetch{Replica: source.ID, From: uint64(d.FirstIndex), To: uint64(d.LastIndex)}
	b.network.Request(source.Node, wire.PeerFetchFrames, m.Append(nil), func(code wire.ErrorCode, body []byte) {
		var frames wire.PeerFrames
		err := error(nil)
		if code != wire.CodeOK {
			err = &wire.Error{Code: code, Detail: string(body)}
		} else {
			err = frames.Parse(body)
		}
		if err == nil && b.catchUp.begin(false) {
			b.catchUp.paced(0, len(body), func(bool) int {
				b.mend(r, source.Node, frames.Frames)
				return len(body)
			})
			return
		}
		if err != nil {
			r.logger.Debug("damaged records are not repaired yet", "node", source.Node, "err", err)
		}
		r.mending.busy.Store(false)
	})
}

// mend writes bodies that another replica has sent. It may block.
func (b *broker) mend(r *partitionReplica, node uint32, frames []wire.PeerFrame) {
	bodies := make([]log.FrameBody, len(frames))
	for i, f := range frames {
		bodies[i] = log.FrameBody{Index: f.Index, Body: f.Body}
	}
	n, err := r.records.Repair(bodies)
	b.damage.repaired.Add(uint64(n))
	if n > 0 {
		r.logger.Info("damaged records were repaired from another replica", "entries", n, "node", node)
	}
	if err != nil {
		r.distrust(err)
	}
	r.mending.busy.Store(false)
	if n > 0 && err == nil {
		b.repair(r) // there may be more
	}
}

// sources are the other replicas of a partition whose nodes can be asked.
func (b *broker) sources(r *partitionReplica) (sources []cluster.Replica) {
	if b.network == nil {
		return nil
	}
	p := r.intent.Load()
	if p == nil {
		return nil
	}
	for _, o := range p.Replicas {
		if o.ID != r.replicaID && o.Node != b.identity.NodeID && o.State == cluster.ReplicaActive && b.network.Alive(o.Node) {
			sources = append(sources, o)
		}
	}
	return sources
}

// frames answers FETCH_FRAMES with the bodies of the frames of entries from one on, up
// to the last or as many as fit. What is erased here was acknowledged, and is left out: what
// is damaged at the other replica may begin with it and go on with what is wanted.
func (c *catchUp) frames(l *log.Log, first, last wire.Index, reply func(wire.ErrorCode, []byte)) {
	if !c.begin(false) {
		reply(wire.CodeBusy, []byte("as many replicas as may be are being caught up"))
		return
	}
	c.paced(0, repairBytes, func(bool) (n int) {
		first := l.BehindErased(first)
		if first > last {
			reply(wire.CodeOK, (&wire.PeerFrames{}).Append(nil))
			return 0
		}
		entries, err := l.Entries(first, repairBytes)
		if err != nil {
			reply(wire.CodeUnavailable, []byte(err.Error()))
			return 0
		}
		var m wire.PeerFrames
		for i := range entries {
			if entries[i].Index > last {
				break
			}
			f := entries[i].FrameBody()
			m.Frames = append(m.Frames, wire.PeerFrame{Index: f.Index, Body: f.Body})
			n += len(f.Body)
		}
		reply(wire.CodeOK, m.Append(nil))
		return n
	})
}

package server

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"
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

	mu    sync.Mutex
	asked map[repairAttempt]*repairRest
	turn  int // counts attempts: the next one asks for another run, or another node
}

// repairAttempt is one damaged run and who was asked for it. A run that has changed is another.
type repairAttempt struct {
	first, last wire.Index
	replica     uint64
}

// repairRest is how long a replica that could not help is not asked again.
type repairRest struct {
	pause uint64 // ticks of 100 ms
	until uint64 // tick
	gone  bool   // it has said that it has none of the run any more
}

// A replica that could not help with a run is asked again after minRepairRest, each time after
// twice as long, and then every maxRepairRest: it may be repaired itself. One that has none of
// the run any more, erased or behind its start, is asked again after goneRepairRest only.
// All are ticks of 100 ms: 1 s, 5 min, 1 h.
const (
	minRepairRest  = 10
	maxRepairRest  = 3_000
	goneRepairRest = 36_000
)

// next is a damaged run that a replica may be asked for now, and that one.
func (m *mending) next(damage []log.Damage, sources []cluster.Replica, tick uint64) (d log.Damage, source cluster.Replica, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.asked, func(a repairAttempt, _ *repairRest) bool {
		return !slices.ContainsFunc(damage, func(d log.Damage) bool { return d.FirstIndex == a.first && d.LastIndex == a.last })
	})
	for n := range len(damage) * len(sources) {
		try := m.turn + n
		d, source = damage[try%len(damage)], sources[try/len(damage)%len(sources)]
		if rest := m.asked[repairAttempt{d.FirstIndex, d.LastIndex, source.ID}]; rest == nil || tick >= rest.until {
			m.turn = try + 1
			return d, source, true
		}
	}
	return d, source, false
}

// failed notes that a replica could not help. seldom says that it is asked seldom from now on,
// which it was not before.
func (m *mending) failed(a repairAttempt, tick uint64, gone bool) (seldom bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rest := m.asked[a]
	if rest == nil {
		rest = &repairRest{}
		if m.asked == nil {
			m.asked = map[repairAttempt]*repairRest{}
		}
		m.asked[a] = rest
	}
	before := rest.pause
	rest.gone = gone
	if rest.pause = min(max(2*rest.pause, minRepairRest), maxRepairRest); gone {
		rest.pause = goneRepairRest
	}
	rest.until = tick + rest.pause
	return rest.pause >= maxRepairRest && before < maxRepairRest
}

// left counts the damaged runs that none of the other replicas has any more.
func (m *mending) left(damage []log.Damage, others []cluster.Replica) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range damage {
		if !slices.ContainsFunc(others, func(o cluster.Replica) bool {
			rest := m.asked[repairAttempt{damage[i].FirstIndex, damage[i].LastIndex, o.ID}]
			return rest == nil || !rest.gone
		}) {
			n++
		}
	}
	return n
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
	if invariants.Enabled && repairsIgnored.Load() || r.mending.busy.Load() {
		return
	}
	d, source, ok := r.mending.next(damage, sources, b.nodes.tick.Load())
	if !ok {
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
	b.damage.asked.Add(1)
	m := wire.PeerFetch{Replica: source.ID, From: uint64(d.FirstIndex), To: uint64(d.LastIndex)}
	b.network.Request(source.Node, wire.PeerFetchFrames, m.Append(nil), func(code wire.ErrorCode, body []byte) {
		var frames wire.PeerFrames
		err := error(nil)
		if code != wire.CodeOK {
			err = &wire.Error{Code: code, Detail: string(body)}
		} else {
			err = frames.Parse(body)
		}
		if err == nil && len(frames.Frames) > 0 && b.catchUp.begin(false) {
			b.catchUp.paced(0, len(body), func(bool) int {
				r.guarded("a repair", func() { b.mend(r, &d, &source, frames.Frames) })
				return len(body)
			})
			return
		}
		if err != nil || len(frames.Frames) == 0 {
			b.notMended(r, &d, &source, err)
		}
		r.mending.busy.Store(false)
	})
}

// notMended notes that a replica could not help with a damaged run: why, or nil if it has none
// of it any more.
func (b *broker) notMended(r *partitionReplica, d *log.Damage, source *cluster.Replica, why error) {
	r.logger.Debug("damaged records are not repaired yet", "node", source.Node, "err", why)
	if errors.Is(why, wire.CodeBusy) {
		return // it is asked again in a second
	}
	seldom := r.mending.failed(repairAttempt{d.FirstIndex, d.LastIndex, source.ID}, b.nodes.tick.Load(), why == nil)
	switch {
	case !seldom:
	case why != nil:
		r.logger.Warn("damaged records cannot be repaired from another replica; it is asked every 5 minutes from now on",
			"node", source.Node, "first_offset", d.Base, "next_offset", d.Next, "err", why)
	case r.mending.left([]log.Damage{*d}, r.others()) > 0:
		r.logger.Warn("damaged records are on no other replica any more, which have erased or removed them; they stay as they are",
			"first_offset", d.Base, "next_offset", d.Next)
	}
}

// mend writes bodies that another replica has sent. It may block.
func (b *broker) mend(r *partitionReplica, d *log.Damage, source *cluster.Replica, frames []wire.PeerFrame) {
	bodies := make([]log.FrameBody, len(frames))
	for i, f := range frames {
		bodies[i] = log.FrameBody{Index: f.Index, Body: f.Body}
	}
	n, err := r.records.Repair(bodies)
	b.damage.repaired.Add(uint64(n))
	if n > 0 {
		r.logger.Info("damaged records were repaired from another replica", "entries", n, "node", source.Node)
		r.part.Groups().Repaired(d.Base, d.Next)
		r.schedule()
	}
	if err != nil {
		r.distrust(err)
	}
	if n == 0 {
		b.notMended(r, d, source, cmp.Or(err, errNotTheBodies))
	}
	r.mending.busy.Store(false)
	if n > 0 && err == nil {
		b.repair(r) // there may be more
	}
}

// errNotTheBodies is why a repair wrote nothing: what came is not what the headers here say, or
// the damage is gone.
var errNotTheBodies = errors.New("what it has sent are not the damaged records")

// others are the other replicas of a partition that may have what is damaged here.
func (r *partitionReplica) others() (others []cluster.Replica) {
	p := r.intent.Load()
	if p == nil {
		return nil
	}
	for _, o := range p.Replicas {
		if o.ID != r.replicaID && o.Node != r.node && o.State == cluster.ReplicaActive {
			others = append(others, o)
		}
	}
	return others
}

// sources are those of them whose nodes can be asked.
func (b *broker) sources(r *partitionReplica) []cluster.Replica {
	if b.network == nil {
		return nil
	}
	return slices.DeleteFunc(r.others(), func(o cluster.Replica) bool { return !b.network.Alive(o.Node) })
}

// frames answers FETCH_FRAMES with the bodies of the frames of entries from one on, up
// to the last or as many as fit. What is erased here, or lies before the start, is left out:
// what is damaged at the other replica may begin with it and go on with what is wanted. None
// at all means that nothing of it is here any more.
func (c *catchUp) frames(o *owner, l *log.Log, first, last wire.Index, reply func(wire.ErrorCode, []byte)) {
	if !c.begin(false) {
		reply(wire.CodeBusy, []byte("as many replicas as may be are being caught up"))
		return
	}
	c.paced(0, repairBytes, func(bool) (n int) {
		first := l.BehindGone(first)
		if first > last {
			reply(wire.CodeOK, (&wire.PeerFrames{}).Append(nil))
			return 0
		}
		var entries []log.Entry
		err := errReadPanicked
		o.guarded("a read for another replica", func() { entries, err = l.Entries(first, repairBytes) })
		if err == nil && len(entries) == 0 {
			err = errors.New("the entries are not committed there yet")
		}
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

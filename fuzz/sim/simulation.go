package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// DefaultSteps is how long one run is.
const DefaultSteps = 1200

// The free space below which records are refused, and the reserve for what may
// go on then, in bytes.
const (
	minFreeBytes = 1 << 20
	reserveBytes = 256 << 10
)

// startMs is the time at which every run begins.
const startMs = 1_700_000_000_000

// Options say what to run.
type Options struct {
	Seed   uint64
	Steps  int // 0 = DefaultSteps
	Mutant Mutant
	// Quiet leaves all faults out but the one that the next fields ask for.
	Quiet bool
	// CutAt cuts the power at that storage call of the disk, FailAt lets it fail;
	// 0 does not.
	CutAt, FailAt int64
	// Calls puts every storage call into the trace.
	Calls bool
	// Skip leaves out steps; nil leaves out none.
	Skip []bool
}

// Result is what came of a run.
type Result struct {
	// Err is the first thing that was wrong, or nil.
	Err   *Violation
	Step  int   // where it was noticed
	Calls int64 // of storage
	Hash  uint64
	Trace []string // the newest lines
	Counts
}

// Violation is a broken promise.
type Violation struct {
	What string
	kind string // equal for violations of the same promise
}

func (v *Violation) Error() string { return v.What }

// config is what a seed chooses for a whole run.
type config struct {
	segmentBytes    int64
	tailBytes       int64
	checkpointBytes int64
	openSegments    int
	weights         []int // of the actions
}

// Simulation is one run. It is used once.
type Simulation struct {
	options Options
	config  config
	disk    *vfs.Simulated
	fs      vfs.FS // the disk, or what a mutant makes of it
	random  *rand.Rand
	faults  faults
	trace   trace
	counts  Counts
	// violation is the first one. A panic in the broker's code may be recovered
	// there, so it is remembered here too.
	violation *Violation

	step        int
	nowMs       int64
	jumped      bool // the clock went somewhere else
	machineBoot int
	calm        bool  // no more faults
	node        *node // nil while the process is down

	// The model.
	meta                             history
	partitions                       []*partitionModel
	live                             map[uuid.UUID]bool // destinations ever committed; false: deleted
	replicas                         map[uint64]string  // every replica ID and whose it is
	handedOut                        []identities       // producer IDs
	epochs                           map[int64]int16    // the latest epoch handed out
	batches                          map[int64]*batch   // by number
	attempts                         map[uint64]*attempt
	lastBatch, lastAttempt, lastName uint64
}

// identities are producer IDs [first, next) that somebody was given: a block for
// anonymous producers, or one for a name.
type identities struct {
	first, next int64
	name        string
}

// Run carries out one simulation.
func Run(o Options) *Result {
	if o.Steps == 0 {
		o.Steps = DefaultSteps
	}
	s := &Simulation{
		options: o, disk: vfs.NewSimulated(o.Seed), trace: newTrace(), nowMs: startMs,
		live: map[uuid.UUID]bool{}, replicas: map[uint64]string{},
		epochs: map[int64]int16{}, batches: map[int64]*batch{}, attempts: map[uint64]*attempt{},
	}
	s.meta = history{sim: s, name: "metadata"}
	s.fs = o.Mutant.mutate(s.disk)
	s.draw(-1)
	s.config = s.drawConfig()
	s.disk.Inject(s.storageCall)
	s.newProcess()
	s.calm = o.Quiet
	if o.CutAt > 0 {
		s.faults.stopAt = o.CutAt
		s.disk.StopAt(o.CutAt)
	}
	s.run()
	return &Result{Err: s.violation, Step: s.step, Calls: s.disk.Ops(), Hash: s.trace.hash.Sum64(), Trace: s.trace.all(), Counts: s.counts}
}

// draw makes the randomness of one step.
func (s *Simulation) draw(step int) {
	s.random = rand.New(rand.NewPCG(s.options.Seed, uint64(step)))
}

func (s *Simulation) drawConfig() config {
	pick := func(of ...int64) int64 { return of[s.random.IntN(len(of))] }
	c := config{
		segmentBytes:    pick(64<<10, 64<<10, 128<<10, 256<<10, 1<<20),
		tailBytes:       pick(0, 0, 64<<10, 256<<10),
		checkpointBytes: pick(16<<10, 64<<10, 64<<10, 256<<10),
		openSegments:    int(pick(0, 0, 2, 4)),
	}
	s.faults.interrupt = int(pick(0, 10, 50))
	danger := int(pick(1, 3, 10, 10)) // in some runs the node lives long
	for _, a := range actions {
		w := a.weight * 10
		switch {
		case a.kind == fault && s.options.Quiet:
			w = 0
		case a.kind == fault:
			w = a.weight * danger
		}
		if a.kind != usual {
			w *= int(pick(0, 1, 1, 1, 3))
		}
		c.weights = append(c.weights, w)
	}
	return c
}

// fail ends the run with a broken promise.
func (s *Simulation) fail(format string, args ...any) { panic(s.broken(format, args...)) }

// broken is fail for places that must return: the run ends after the step.
func (s *Simulation) broken(format string, args ...any) *Violation {
	v := &Violation{What: fmt.Sprintf(format, args...), kind: format}
	if s.violation == nil {
		s.violation = v
		s.trace.add("VIOLATION: %s", v.What)
	}
	return v
}

// run goes through the steps. A panic in the broker's code is a violation too.
func (s *Simulation) run() {
	defer func() {
		switch r := recover().(type) {
		case nil, *Violation:
		default:
			if s.violation == nil {
				s.violation = &Violation{What: fmt.Sprintf("panic: %v\n%s", r, debug.Stack()), kind: "panic"}
				s.trace.add("VIOLATION: panic: %v", r)
			}
		}
	}()
	for s.step = 0; s.step < s.options.Steps && s.violation == nil; s.step++ {
		if s.step < len(s.options.Skip) && s.options.Skip[s.step] {
			continue
		}
		s.draw(s.step)
		if s.node == nil {
			s.start()
		}
		s.act()
		if s.stopped() {
			s.counts[PowerCutAtCall]++
			s.powerCut()
		}
	}
	if s.violation == nil {
		s.draw(s.options.Steps)
		s.finish()
	}
}

// finish mends everything, lets every client come to its end, and cuts the
// power once more.
func (s *Simulation) finish() {
	s.calm = true
	s.mend()
	if s.node != nil {
		s.node.settle()
		if s.hasFenced() || len(s.node.failed) > 0 || s.faults.injected {
			s.processCrash()
		}
	}
	if s.node == nil {
		s.start()
	}
	s.rest()
	for round := 0; s.unanswered() > 0; round++ {
		if round == 50 {
			s.fail("%d batches are never acknowledged", s.unanswered())
		}
		s.refreshSpace() // what failed for want of space is tried again
		for _, p := range s.partitions {
			if r := s.node.replicaOf(p); r != nil {
				for _, c := range p.clients {
					if len(c.queue) > 0 {
						c.draining = true
						c.act(r)
					}
				}
			}
		}
		s.rest()
	}
	s.takesEverything()
	s.trace.add("the end: the power is cut, and everything synced is there")
	s.disk.CrashLoseAll()
	s.lost()
	s.start()
	for _, r := range s.node.replicas {
		s.readAll(r)
	}
	s.rest()
}

// takesEverything lets every client send one more batch: a healthy node takes
// those too that nobody waits for.
func (s *Simulation) takesEverything() {
	first := s.lastBatch + 1
	for _, r := range s.node.replicas {
		for _, c := range r.model.clients {
			c.act(r)
		}
	}
	s.rest()
	for number := first; number <= s.lastBatch; number++ {
		if b := s.batches[int64(number)]; !b.landed && !b.idempotent() {
			s.fail("%s: batch %d was taken and is nowhere", b.client, number)
		}
	}
}

// unanswered is how many idempotent batches wait in partitions that exist.
func (s *Simulation) unanswered() (n int) {
	for _, p := range s.partitions {
		if s.node.replicaOf(p) != nil {
			for _, c := range p.clients {
				n += len(c.queue)
			}
		}
	}
	return n
}

// mend ends all faults.
func (s *Simulation) mend() {
	s.faults.countdown = -1
	if s.faults.limited {
		s.counts[DiskFreed]++
	}
	s.faults.limited = false
	s.disk.SetSpace(0)
	s.disk.StopAt(0)
	s.faults.stopAt = 0
	if s.node != nil {
		_ = s.node.store.RefreshSpace()
	}
}

// rest lets the node finish everything it can do without the passing of time.
// Then nobody may still wait for an answer.
func (s *Simulation) rest() {
	s.node.settle()
	if s.stopped() {
		return
	}
	for _, r := range s.node.replicas {
		for _, c := range r.model.clients {
			if c.flying > 0 {
				s.fail("%s waits for %d answers while the node rests", c, c.flying)
			}
		}
	}
}

func (s *Simulation) hasFenced() bool {
	for _, r := range s.node.replicas {
		if r.closed {
			return true
		}
	}
	return s.node.meta.closed
}

// fenced takes note of a replica that gave up.
func (s *Simulation) fenced(h *history, l *log.Log, err error) {
	s.trace.add("%s: fenced: %v", h.name, err)
	s.counts[Fenced]++
	h.fenced = true
	if l.Err() == nil {
		s.fail("%s: consensus gave up without a storage error: %v", h.name, err)
	}
	if !s.excused() {
		s.fail("%s: fenced without any fault: %v", h.name, err)
	}
}

// metadataRefused decides whether a metadata command may be refused this way.
func (s *Simulation) metadataRefused(err error) {
	s.trace.add("metadata command refused: %v", err)
	if code, ok := errorCode(err); ok && code == wire.CodeUnavailable && !s.excused() && !s.faults.full {
		s.fail("metadata: %v without any fault", err)
	}
}

// sessionOpened checks that producer identities are never handed out twice.
func (s *Simulation) sessionOpened(c *client, session cluster.ProducerSession) {
	now := identities{first: session.ID, next: session.ID + 1, name: c.name}
	if c.kind == anonymous {
		now = identities{first: session.ID, next: session.ID + cluster.ProducerIDBlock}
	}
	for _, old := range s.handedOut {
		again := old == now && c.kind == named
		if again && session.Epoch <= s.epochs[session.ID] {
			s.fail("metadata: producer %q got epoch %d after epoch %d", c.name, session.Epoch, s.epochs[session.ID])
		}
		if !again && now.first < old.next && old.first < now.next {
			s.fail("metadata: producer IDs %+v are handed out again after %+v", now, old)
		}
	}
	s.handedOut = append(s.handedOut, now)
	s.epochs[session.ID] = session.Epoch
}

// destinationsAre follows a committed change of the metadata.
func (s *Simulation) destinationsAre(v *cluster.View) {
	now := map[uuid.UUID]bool{}
	for _, d := range v.Destinations {
		now[d.ID] = true
		if alive, known := s.live[d.ID]; known && !alive {
			s.fail("metadata: destination %s is back after its deletion", d.ID)
		}
		s.live[d.ID] = true
		for _, p := range d.Partitions {
			owner := fmt.Sprintf("%s/%d", d.ID, p.Number)
			if was, known := s.replicas[p.Replicas[0].ID]; known && was != owner {
				s.fail("metadata: replica ID %d of %s is given to %s", p.Replicas[0].ID, was, owner)
			}
			s.replicas[p.Replicas[0].ID] = owner
		}
	}
	for id := range s.live {
		s.live[id] = now[id]
	}
}

// modelOf finds or makes the model of a partition.
func (s *Simulation) modelOf(d *cluster.Destination, p *cluster.Partition) *partitionModel {
	for _, m := range s.partitions {
		if m.destination == d.ID && m.identity.Number == p.Number {
			return m
		}
	}
	m := &partitionModel{
		history:     history{sim: s, name: fmt.Sprintf("%s/%d", d.Name, p.Number)},
		destination: d.ID, identity: *p, producers: map[int64]*landing{}, lost: map[int64]bool{},
	}
	s.partitions = append(s.partitions, m)
	kinds := []clientKind{anonymous, anonymous, named, named, leader, none}
	for i, kind := range kinds[:2+s.random.IntN(len(kinds)-1)] {
		name := fmt.Sprintf("%s.%d", m.name, i)
		if kind == named {
			name = fmt.Sprintf("%s.name", m.name)
		}
		m.clients = append(m.clients, &client{sim: s, name: name, kind: kind, model: m})
	}
	return m
}

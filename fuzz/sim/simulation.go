package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/vfs"
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
	Steps  int // 0 = DefaultSteps, or DefaultFleetSteps
	Mutant Mutant
	// Machines is how many there are, each with a replica of one partition. 0 means one
	// whole node.
	Machines int
	// Groups makes the partition of several machines a queue that a group consumes.
	Groups bool
	// Cluster lets several machines replicate the metadata of a cluster instead of a
	// partition.
	Cluster bool
	// Partitions is how many real partitions stand beside the metadata, with Cluster.
	Partitions int
	// Voters lets the voters of the metadata change, with Cluster and more than
	// wire.MaxMetadataVoters machines.
	Voters bool
	// Without takes rules of groups away.
	Without []group.Rule
	// Quiet leaves all faults out but the one that the next fields ask for.
	Quiet bool
	// CutAt cuts the power at that storage call of the disk, FailAt lets it fail;
	// 0 does not.
	CutAt, FailAt int64
	// Calls puts every storage call into the trace.
	Calls bool
	// Skip leaves out steps; nil leaves out none.
	Skip []bool
	// Focus names actions that are to happen often.
	Focus []string
}

// Result is what came of a run.
type Result struct {
	// Groups says what consumers have done, with Options.Groups.
	Groups GroupCounts
	// Council says what a cluster has done, with Options.Cluster.
	Council CouncilCounts
	// Names says what holders of names have done, with Options.Partitions.
	Names NameCounts
	// Err is the first thing that was wrong, or nil.
	Err   *Violation
	Step  int   // where it was noticed
	Calls int64 // of storage
	// Saving are the numbers of the storage calls from the creation of a checkpoint to
	// the sync of its name.
	Saving []int64
	Hash   uint64
	Trace  []string // the newest lines
	Counts
	Fleet FleetCounts // of several machines
	// History is what clients of several machines did and heard, in any order.
	History []Operation
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
	journalBytes    int64
	journalLogs     int   // that wait together before they share a sync
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
	saving  saving
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

// Run carries out one simulation.
func Run(o Options) *Result {
	if o.Machines > 0 {
		return runFleet(o)
	}
	if o.Steps == 0 {
		o.Steps = DefaultSteps
	}
	s := &Simulation{
		options: o, disk: vfs.NewSimulated(o.Seed), trace: newTrace(), nowMs: startMs,
		live: map[uuid.UUID]bool{}, replicas: map[uint64]string{},
		epochs: map[int64]int16{}, batches: map[int64]*batch{}, attempts: map[uint64]*attempt{},
	}
	s.meta = history{sim: s, name: "metadata"}
	s.fs = o.Mutant.MutateFS(s.disk)
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
	return &Result{Err: s.violation, Step: s.step, Calls: s.disk.Ops(), Saving: s.saving.calls, Hash: s.trace.hash.Sum64(), Trace: s.trace.all(), Counts: s.counts}
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
		journalBytes:    pick(32<<10, 64<<10),
		journalLogs:     int(pick(1, 1, 2, 1000)),
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
		if slices.Contains(s.options.Focus, a.name) {
			w = a.kind.focused(w, 150)
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

package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"

	"github.com/lockstepmq/lockstep/partition"
)

// DefaultFleetSteps is how long one run of a fleet is.
const DefaultFleetSteps = 6000

// fleet is one run with several machines, each with a disk of its own that holds a
// replica of each cell, and the network between them. Log, partition and consensus are the
// real ones and talk in the bytes of the peer protocol. There is one cell, a partition, and
// metadata is left out: who the replicas are is given. With Options.Cluster it is the
// metadata instead, see council, and with Options.Partitions so many partitions stand
// beside them.
type fleet struct {
	options Options
	config  fleetConfig
	random  *rand.Rand
	trace   trace
	counts  FleetCounts

	violation *Violation
	step      int
	settling  bool // no more faults
	hosts     []*host
	cells     []*cell
	replacing *replacement // in the first cell
	network   network
	clients   []*producer
	groups    *groups  // nil: nobody consumes
	council   *council // nil: they replicate a partition
	names     []*name
	named     *NameCounts // nil: there are no names
	erases    bool        // somebody has erased something
	attempts  map[uint64]*sending
	batches   map[int64]*batch // by number
	reads     []Operation
	moments   int64 // see moment

	lastBatch, lastAttempt, lastReplica, lastHolder uint64
}

// fleetConfig is what a seed chooses for a whole run.
type fleetConfig struct {
	segmentBytes    int64
	tailBytes       int64
	checkpointBytes int64
	retention       partition.Retention
	journalLogs     int
	loadBytes       int64 // of what is not known to be committed at a start
	feeds           int   // percent of the reads for followers that are taken on
	lazy            int   // percent of the messages that wait unencoded
	lost            int   // percent of the offers of a snapshot that are lost
	queue           int   // frames that a link holds; what is sent beyond is dropped
	weights         []int // of the actions
}

// runFleet carries out one simulation of several machines.
func runFleet(o Options) *Result {
	if o.Steps == 0 {
		o.Steps = DefaultFleetSteps
	}
	f := &fleet{options: o, trace: newTrace(), attempts: map[uint64]*sending{}, batches: map[int64]*batch{}}
	f.draw(-1)
	f.config = f.drawConfig()
	for i := range o.Machines {
		f.hosts = append(f.hosts, newHost(f, uint32(i+1)))
	}
	f.found()
	f.network = newNetwork(f)
	for i := range 1 + f.random.IntN(4) {
		if o.Cluster {
			break
		}
		f.clients = append(f.clients, &producer{fleet: f, cell: f.cells[0], id: int64(i + 1)})
	}
	if o.Groups {
		f.groups = newGroups(f)
		f.config.retention = partition.Retention{} // groups say what goes
	}
	if o.Cluster {
		f.council = newCouncil(f)
		f.config.retention = partition.Retention{}
	}
	if o.Partitions > 0 {
		f.named = &NameCounts{}
		for i := range fleetNames {
			f.names = append(f.names, &name{fleet: f, text: fmt.Sprintf("name%d", i), ended: map[*cell]int16{}})
		}
	}
	f.run()
	result := &Result{Err: f.violation, Step: f.step, Hash: f.trace.hash.Sum64(), Trace: f.trace.all(), Fleet: f.counts, History: f.history()}
	if f.groups != nil {
		result.Groups = f.groups.counts
	}
	if f.council != nil {
		result.Council = f.council.counts
	}
	if f.named != nil {
		result.Names = *f.named
	}
	return result
}

func (f *fleet) draw(step int) {
	f.random = rand.New(rand.NewPCG(f.options.Seed, uint64(step)))
}

func (f *fleet) drawConfig() fleetConfig {
	pick := func(of ...int64) int64 { return of[f.random.IntN(len(of))] }
	c := fleetConfig{
		segmentBytes:    pick(64<<10, 64<<10, 128<<10, 1<<20),
		tailBytes:       pick(0, 0, 64<<10, 256<<10),
		checkpointBytes: pick(16<<10, 64<<10, 256<<10),
		retention:       partition.Retention{Bytes: pick(0, 20<<10, 20<<10, 150<<10)},
		journalLogs:     int(pick(1, 1, 1000)),
		loadBytes:       pick(0, 1, 4<<10),
		feeds:           int(pick(50, 90, 100)),
		lazy:            int(pick(0, 50, 90)),
		lost:            int(pick(0, 20, 60)),
		queue:           int(pick(5, 40, 200)),
	}
	danger := int(pick(1, 2, 4, 8))
	for _, a := range fleetActions {
		w := a.weight * 10
		if a.kind == giving {
			if w *= f.erasing(); slices.Contains(f.options.Focus, a.name) {
				w = max(w, 100)
			}
			c.weights = append(c.weights, w)
			continue
		}
		switch {
		case a.kind == consuming && !f.options.Groups, a.kind == governing && !f.options.Cluster, a.kind == naming && f.options.Partitions == 0,
			f.options.Cluster && !a.kind.ofMetadata(a.name, f.options.Partitions > 0):
			w = 0
		case a.kind == governing && (f.options.Partitions > 0 || f.options.Voters):
			w = a.weight * 3 // it has less to do
		case a.kind == consuming && f.options.Partitions > 0:
			w = a.weight * 25 // each has several things to do
		case a.kind == fault && f.options.Quiet:
			w = 0
		case a.kind == fault:
			w = a.weight * danger
		case a.kind == mending:
			w = a.weight * int(pick(1, 3, 10))
		}
		if a.kind != usual && a.kind != mending && a.kind != consuming && a.kind != governing && a.kind != naming {
			w *= int(pick(0, 1, 1, 1, 3))
		}
		if slices.Contains(f.options.Focus, a.name) {
			w = a.kind.focused(w, 20) // some five times in a run
		}
		c.weights = append(c.weights, w)
	}
	return c
}

// fail ends the run with a broken promise.
func (f *fleet) fail(format string, args ...any) { panic(f.broken(format, args...)) }

// broken is fail for places that must return: the run ends after the step.
func (f *fleet) broken(format string, args ...any) *Violation {
	v := &Violation{What: fmt.Sprintf(format, args...), kind: format}
	if f.violation == nil {
		f.violation = v
		f.trace.add("VIOLATION: %s", v.What)
	}
	return v
}

// run goes through the steps, then ends all faults and lets everything come to its
// end.
func (f *fleet) run() {
	defer func() {
		switch r := recover().(type) {
		case nil, *Violation:
		default:
			if f.violation == nil {
				f.violation = &Violation{What: fmt.Sprintf("panic: %v\n%s", r, debug.Stack()), kind: "panic"}
				f.trace.add("VIOLATION: panic: %v", r)
			}
		}
	}()
	for _, m := range f.hosts {
		m.start()
	}
	if len(f.names) > 0 || f.options.Voters {
		f.council.prepare()
	}
	for f.step = 0; f.step < f.options.Steps && f.violation == nil; f.step++ {
		if f.step < len(f.options.Skip) && f.options.Skip[f.step] {
			continue
		}
		f.draw(f.step)
		f.act()
		for _, m := range f.hosts {
			if m.up && m.stopped() {
				f.counts[FleetPowerCutAtCall]++
				m.powerCut()
			}
		}
	}
	if f.violation == nil {
		f.draw(f.options.Steps)
		f.finish()
	}
}

func (f *fleet) act() {
	total := 0
	for _, w := range f.config.weights {
		total += w
	}
	at := f.random.IntN(total)
	for i, w := range f.config.weights {
		if at -= w; at < 0 {
			fleetActions[i].do(f)
			return
		}
	}
}

package server

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// Who opens a named producer ends the epochs of whoever had the name (RULES R5). The
// metadata says which epoch is the newest; then a fence is committed in each partition
// that the opener names, by that partition's leader, wherever that is. Only then is the
// opener answered: what the one before has ever written lies before what it will write.
//
// In partitions that nobody names a leader refuses the epochs before as soon as its node
// has heard of the newest from the metadata, or from the first batch of it.

const (
	// openPatience bounds how long an opening takes, unless the opener says something else,
	// and openPatienceLimit what it may say.
	openPatience      = 10 * time.Second
	openPatienceLimit = 10 * time.Minute
	// fenceAttempt bounds one attempt in one partition, fencePause lies between two.
	fenceAttempt = 2 * time.Second
	fencePause   = 50 * time.Millisecond
	// maxFencesNamed bounds the partitions that an error names.
	maxFencesNamed = 8
)

// openName gives a name to whoever opens it, before a time.
func (b *broker) openName(m *wire.InitProducerRequest, until time.Time, reply func(wire.Message, error)) {
	var d *cluster.Destination
	if m.Destination != "" {
		var known bool
		if d, known = b.View().Destination(m.Destination); !known {
			reply(nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", m.Destination))
			return
		}
	}
	numbers := m.Partitions
	for _, n := range numbers {
		if d == nil || n >= uint32(len(d.Partitions)) {
			reply(nil, wire.Errorf(wire.CodeUnknownPartition, "destination %q has no partition %d", m.Destination, n))
			return
		}
	}
	if d != nil && len(numbers) == 0 {
		for i := range d.Partitions {
			numbers = append(numbers, uint32(i))
		}
	}
	open := cluster.Command{
		OpenProducer: &cluster.OpenProducer{Name: m.Name, Holder: m.Holder, Renews: m.Renews},
		Late:         func() bool { return time.Now().After(until) },
	}
	inTime(until, cluster.Result{Err: errNoIdentity}, func(then func(cluster.Result)) { b.attempt(open, until, then) }, func(r cluster.Result) {
		if r.Err != nil {
			reply(nil, r.Err)
			return
		}
		answer := &wire.InitProducerResponse{ProducerID: r.Producer.ID, Epoch: r.Producer.Epoch}
		// A name that is new has nobody to fence, and who renews is nobody else. Before all
		// nodes know fences there are none.
		if m.Renews || len(endsOf(r.Producer)) == 0 || len(numbers) == 0 || b.View().Level < cluster.LevelFences {
			reply(answer, nil)
			return
		}
		b.fence(m.Name, d, numbers, r.Producer, until, func(err error) {
			if err != nil {
				reply(nil, err)
				return
			}
			reply(answer, nil)
		})
	})
}

// errNoIdentity is the answer to a producer that the metadata have no time for.
var errNoIdentity = wire.Errorf(wire.CodeUnavailable, "the metadata have given no identity in time: most of the nodes that vote on it may be out of reach; lockstep cluster status shows them")

// openUntil is when an opening has to be answered.
func openUntil(m *wire.InitProducerRequest) time.Time {
	return time.Now().Add(min(cmp.Or(time.Duration(m.PatienceMs)*time.Millisecond, openPatience), openPatienceLimit))
}

// inTime asks for something and calls then once: with the answer, or with late if there was
// none before a time. An answer that comes at once costs no timer.
func inTime[T any](until time.Time, late T, ask func(func(T)), then func(T)) {
	var answered atomic.Bool
	var timer atomic.Pointer[time.Timer]
	answer := func(v T) {
		if answered.CompareAndSwap(false, true) {
			then(v)
		}
		if t := timer.Load(); t != nil {
			t.Stop()
		}
	}
	ask(answer)
	if !answered.Load() {
		timer.Store(time.AfterFunc(time.Until(until), func() { answer(late) }))
	}
}

// fencing is one opening of a name whose fences are not all committed.
type fencing struct {
	broker      *broker
	name        string // that is opened
	destination *cluster.Destination
	ends        []end

	mu      sync.Mutex
	numbers []uint32          // of partitions, ascending
	left    map[uint32]string // why a partition is not fenced yet
	ended   map[uint32]int    // how many of ends are committed there
	then    func(err error)   // nil once it was called
}

// end is one fence: the epochs of a producer ID below one end.
type end struct {
	id    int64
	epoch int16
}

// endsOf are the fences that an opening of a name needs: one for the epochs before, and one
// for the ID that the name had when its epochs were used up, of which an opening before this
// one may not have named these partitions.
func endsOf(p cluster.ProducerSession) (ends []end) {
	if p.Wrapped {
		ends = append(ends, end{p.Before, cluster.EndedEpoch})
	}
	if p.Epoch > 0 {
		ends = append(ends, end{p.ID, p.Epoch})
	}
	return ends
}

// fence commits fences in partitions of a destination. then is called once, on any
// goroutine: with nil when all are committed, with FENCED if the name was opened again
// meanwhile, and with UNAVAILABLE and what is missing when the time is over.
func (b *broker) fence(name string, d *cluster.Destination, numbers []uint32, p cluster.ProducerSession, until time.Time, then func(error)) {
	numbers = slices.Compact(slices.Sorted(slices.Values(numbers)))
	f := &fencing{broker: b, name: name, destination: d, ends: endsOf(p), numbers: numbers, left: make(map[uint32]string, len(numbers)), ended: make(map[uint32]int, len(numbers))}
	for _, n := range numbers {
		f.left[n] = "no answer"
	}
	f.mu.Lock()
	timer := time.AfterFunc(time.Until(until), f.late)
	f.then = func(err error) { timer.Stop(); then(err) }
	f.mu.Unlock()
	for _, n := range numbers {
		f.attempt(n, 0)
	}
}

// attempt asks for the next fence of a partition, for the n-th time.
func (f *fencing) attempt(number uint32, n int) {
	f.mu.Lock()
	next := f.ends[f.ended[number]]
	f.mu.Unlock()
	var once sync.Once
	answered := func(code wire.ErrorCode) { once.Do(func() { f.answered(number, n, code) }) }
	timer := time.AfterFunc(fenceAttempt, func() { answered(wire.CodeTimeout) })
	m := &wire.PeerFencing{Destination: f.destination.ID, Partition: number, Epoch: next.epoch, ProducerID: next.id}
	f.broker.fenceAt(m, n, func(code wire.ErrorCode, _ []byte) { timer.Stop(); answered(code) })
}

// answered takes the outcome of one attempt.
func (f *fencing) answered(number uint32, n int, code wire.ErrorCode) {
	f.mu.Lock()
	then := f.then
	switch {
	case then == nil:
		f.mu.Unlock()
		return
	case code == wire.CodeOK && f.ended[number]+1 < len(f.ends):
		f.ended[number]++
		f.mu.Unlock()
		f.attempt(number, 0)
		return
	case code == wire.CodeOK:
		delete(f.left, number)
		if len(f.left) > 0 {
			then = nil
			break
		}
		f.then = nil
	case code == wire.CodeFenced || code == wire.CodeDestinationGone:
		f.then = nil
	default:
		then = nil
		f.left[number] = strings.ToLower(strings.ReplaceAll(code.Info().Name, "_", " "))
		select {
		case <-f.broker.closing:
			then, f.then = f.then, nil
			code = wire.CodeShuttingDown
		default:
			time.AfterFunc(fencePause, func() { f.attempt(number, n+1) })
		}
	}
	f.mu.Unlock()
	switch {
	case then == nil:
	case code == wire.CodeOK:
		then(nil)
	case code == wire.CodeFenced:
		then(wire.Errorf(code, "producer %q was opened by another holder meanwhile", f.name))
	default:
		then(wire.Errorf(code, "producer %q: the holder before is not fenced in all partitions of %q", f.name, f.destination.Name))
	}
}

// late ends the wait when the time is over.
func (f *fencing) late() {
	f.mu.Lock()
	then := f.then
	f.then = nil
	var missing []string
	for _, n := range f.numbers {
		if why, ok := f.left[n]; ok {
			missing = append(missing, fmt.Sprintf("%s/%d (%s)", f.destination.Name, n, why))
		}
	}
	f.mu.Unlock()
	if then == nil {
		return
	}
	rest := ""
	if n := len(missing) - maxFencesNamed; n > 0 {
		missing, rest = missing[:maxFencesNamed], fmt.Sprintf(" and %d more", n)
	}
	then(wire.Errorf(wire.CodeUnavailable, "producer %q cannot begin yet: no leader with a majority of replicas has fenced the holder before in %s%s; start the nodes of these replicas (lockstep partition ls %s) and open it again",
		f.name, strings.Join(missing, ", "), rest, f.destination.Name))
}

// fenceAt commits a fence where the partition is led, as far as this node knows. Who is the
// first to ask and does not know asks the nodes of the replicas in turns, of which one may
// reach a leader that this node does not. then is called once, on any goroutine.
func (b *broker) fenceAt(m *wire.PeerFencing, turn int, then func(code wire.ErrorCode, answer []byte)) {
	to, err := b.Route(m.Destination, m.Partition)
	node := to.node
	switch {
	case err == nil && to.local != nil:
		b.fenceHere(m, then)
		return
	case m.Hops == 0 && (err != nil || node == 0):
		node = b.replicaNode(m, turn)
	}
	if node == 0 || node == b.identity.NodeID || m.Hops >= wire.MaxForwardHops {
		if code := wire.CodeOf(err); err != nil && code != wire.CodeUnavailable {
			then(code, nil)
			return
		}
		then(wire.CodeNotLeader, nil)
		return
	}
	next := *m
	next.Hops++
	b.network.Request(node, wire.PeerFence, next.Append(nil), then)
}

// replicaNode is a node that holds a replica of a partition and can be reached, 0 if none
// can.
func (b *broker) replicaNode(m *wire.PeerFencing, turn int) uint32 {
	d, ok := b.View().DestinationByID(m.Destination)
	if !ok || b.network == nil || m.Partition >= uint32(len(d.Partitions)) {
		return 0
	}
	var nodes []uint32
	for _, r := range d.Partitions[m.Partition].Replicas {
		if r.Node != b.identity.NodeID && b.network.Alive(r.Node) {
			nodes = append(nodes, r.Node)
		}
	}
	if len(nodes) == 0 {
		return 0
	}
	return nodes[turn%len(nodes)]
}

// fenceHere commits a fence in a partition that this node leads. The answer to one that ends
// a producer of dead letters is its next sequence, u32.
func (b *broker) fenceHere(m *wire.PeerFencing, then func(code wire.ErrorCode, answer []byte)) {
	r := b.local(uuid.UUID(m.Destination), m.Partition)
	if r == nil || r.inbox != nil && !r.Leading() {
		then(wire.CodeNotLeader, nil)
		return
	}
	if b.unfenced.Load() {
		then(wire.CodeOK, nil)
		return
	}
	fenced := func(code wire.ErrorCode) {
		if code != wire.CodeOK || m.ProducerID < wire.LetterProducers || m.Epoch != letterEnd {
			then(code, nil)
			return
		}
		if next, known := r.part.ProducerNext(m.ProducerID); known {
			then(wire.CodeOK, binary.LittleEndian.AppendUint32(nil, uint32(next)))
			return
		}
		r.Blocking(func() {
			next, err := r.nextOf(m.ProducerID)
			if err != nil {
				then(errorBody(err).Code, nil)
				return
			}
			then(wire.CodeOK, binary.LittleEndian.AppendUint32(nil, next))
		})
	}
	if err := r.part.Fence(partition.Fence{ID: m.ProducerID, Epoch: m.Epoch, Then: fenced}); err != nil {
		then(errorBody(err).Code, nil)
		return
	}
	r.Kick(false)
}

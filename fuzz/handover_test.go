package fuzz

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/promise"
	verifier "github.com/lockstepmq/lockstep/verify" // verify is a function here
)

var (
	handoverCount = flag.Int("handover.count", 2, "how many handovers TestF17_Handovers causes")
	handoverMoves = flag.Int("handover.moves", 2, "how many planned moves of leaders TestF17_Handovers makes before")
	handoverKind  = flag.String("handover.only", "", "the one kind of handover that TestF17_Handovers causes; empty: all")
	handoverSeed  = flag.Uint64("handover.seed", 0, "draws kinds, victims and moments; 0 takes the clock's")
)

// Figures of the handovers.
const (
	handoverTakers     = 4
	handoverPartitions = 2
	handoverKeys       = 12
	handoverRate       = 400 // records a second
	handoverSession    = 2 * time.Second
	// handoversOfRound is after how many of them everything is drained, compared, and begun
	// anew, so that what is remembered stays small.
	handoversOfRound = 40
	handoverPatience = 60 * time.Second
	// mutantHandovers is the count from which on the mutant of real processes runs too.
	mutantHandovers = 10
)

// handovers are brokers and consumers, each a process on a host of its own, and what the
// consumers of one queue saw.
type handovers struct {
	*faultRun
	t         *testing.T
	round     int
	name      string // of the destination
	addresses string
	takers    []*taker // at work, one for each host behind the brokers'
	gone      []*taker
	sessions  int
	book      *verifier.Book
	stop      context.CancelFunc
	producing sync.WaitGroup
	producer  *client.Producer
	sent      uint64

	done      map[string]int // by kind: a record went to another consumer
	nothing   int            // the victim held nothing
	fenced    int            // outcomes that were refused
	records   int
	again     map[string]int
	stalls    int
	latecomer int // pauses and cuts after which the victim was refused
}

func newHandovers(t *testing.T, role string) *handovers {
	seed := *handoverSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("handover.seed %d; replay: go test ./fuzz -run '^%s$' -v -handover.seed %d -handover.count %d", seed, t.Name(), seed, *handoverCount)
	privateMounts(t)
	h := &handovers{
		faultRun: &faultRun{clusterProcess: &clusterProcess{t: t}, hosts: newHosts(t, clusterNodes+handoverTakers), random: rand.New(rand.NewPCG(seed, 17))},
		t:        t, done: map[string]int{}, again: map[string]int{},
	}
	var addresses []string
	for n := 1; n <= clusterNodes; n++ {
		dir := filepath.Join(os.Getenv(childVariable), hostName(n))
		require.NoError(t, os.Mkdir(dir, 0o755))
		b := h.hosts.broker(n, filepath.Join(dir, "data"))
		if role != "" {
			b.binary, b.role = os.Args[0], roleBroker+" "+role
		}
		h.nodes = append(h.nodes, b)
		addresses = append(addresses, b.address)
	}
	h.addresses = strings.Join(addresses, ",")
	for n, b := range h.nodes {
		members := b.args
		if n == 0 {
			b.args = append(members, "--bootstrap")
		} else {
			b.args = append(members, "--join", addresses[0])
		}
		b.start()
		_ = b.connect().Close()
		b.args = members
		for _, other := range addresses {
			if other != b.address {
				b.args = append(b.args, "--join", other)
			}
		}
	}
	h.conn = h.connect()
	h.healthy()
	return h
}

// begin makes a queue, its group, consumers, and who fills it.
func (h *handovers) begin(o promise.Options) {
	t := h.t
	h.round++
	h.name = fmt.Sprintf("handovers-%d", h.round)
	h.book, h.sent, h.gone = verifier.NewBook(o), 0, nil
	require.Eventually(t, func() bool {
		_, err := h.conn.CreateDestination(t.Context(), client.Destination{
			Name: h.name, Kind: client.Queue, Settings: client.Settings{Partitions: handoverPartitions, Replicas: clusterNodes, SegmentBytes: 1 << 20},
		})
		return err == nil
	}, startTimeout, 50*time.Millisecond)
	intent := client.GroupIntent{Exists: true}
	intent.Settings.Mode, intent.Settings.Scope = client.Serial, client.ByKey
	intent.Settings.SessionMs, intent.Settings.BackoffMs, intent.Settings.BackoffMaxMs = uint32(handoverSession.Milliseconds()), 1, 20
	_, err := h.conn.CreateGroup(t.Context(), h.name, takerGroup, intent)
	require.NoError(t, err)
	h.takers = make([]*taker, handoverTakers)
	for i := range h.takers {
		h.replace(i, "-")
	}
	running, stop := context.WithCancel(t.Context())
	h.stop = stop
	t.Cleanup(stop)
	h.producer, err = h.connect().Producer(t.Context(), h.name, client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	h.producing.Go(func() { h.produce(running) })
	h.worked(20)
}

// produce sends numbered records until ctx ends.
func (h *handovers) produce(ctx context.Context) {
	for every := time.NewTicker(time.Second / handoverRate * 4); ctx.Err() == nil; <-every.C {
		for range 4 {
			n := h.sent
			h.sent++
			key := fmt.Sprint("key ", n%handoverKeys)
			err := h.producer.SendFunc(h.t.Context(), &client.Record{Key: []byte(key), Value: fmt.Append(nil, n)}, func(r client.Receipt, err error) {
				if err != nil {
					h.book.Failed(n, true)
					return
				}
				h.book.Stored(n, r.Partition, r.Offset)
			})
			if err != nil {
				h.book.Failed(n, false)
			}
		}
	}
}

// replace starts another consumer in the place of one that is dead.
func (h *handovers) replace(i int, name string) {
	if h.takers[i] != nil {
		h.gone = append(h.gone, h.takers[i])
	}
	h.sessions++
	h.takers[i] = startTaker(h.t, fmt.Sprint("s", h.sessions), h.addresses, h.name, name, clusterNodes+1+i)
}

// worked waits until consumers have begun with so many records more.
func (h *handovers) worked(more int) {
	h.t.Helper()
	begun := func() (n int) {
		for _, k := range h.takers {
			b, _ := k.counts()
			n += b
		}
		return n
	}
	want := begun() + more
	require.Eventually(h.t, func() bool { return begun() >= want }, handoverPatience, 5*time.Millisecond, "the consumers do not go on")
}

// passed waits until one of the records that a consumer had has begun with another, or
// none of them is open any more, and reports whether it was the first.
func (h *handovers) passed(victim *taker, numbers []uint64, since int64) (moved bool) {
	h.t.Helper()
	looked := time.Now()
	require.Eventually(h.t, func() bool {
		for _, k := range h.takers {
			if k != victim && slices.ContainsFunc(numbers, func(n uint64) bool { return k.beganAt(n, since) > 0 }) {
				moved = true
				return true
			}
		}
		if time.Since(looked) < handoverSession+time.Second {
			return false
		}
		looked = time.Now()
		return h.drained(func(n uint64) bool { return slices.Contains(numbers, n) })
	}, handoverPatience, 10*time.Millisecond, "records that %s had go to nobody", victim.session)
	return moved
}

// drained reports whether the group is done with all stored records whose number is
// asked for.
func (h *handovers) drained(of func(uint64) bool) bool {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Second)
	defer cancel()
	info, err := h.conn.DescribeGroup(ctx, h.name, takerGroup)
	if err != nil {
		return false
	}
	floors := map[uint32]uint64{}
	for _, p := range info.Partitions {
		if p.Problem != "" {
			return false
		}
		floors[p.Number] = p.Floor
	}
	for _, p := range h.book.Unfinished() { // nothing is told to the book yet: all that are stored
		if of(p.Number) && floors[p.Partition] <= p.Offset {
			return false
		}
	}
	return true
}

// handover is one kind of how a consumer loses its records. It reports whether one went
// to another.
type handover struct {
	name  string
	cause func(h *handovers, i int) bool
}

var handoverKinds = []handover{
	{"SIGKILL", func(h *handovers, i int) bool { return h.kill(i, "-") }},
	{"SIGKILL, same name", func(h *handovers, i int) bool {
		name := fmt.Sprint("name", i)
		h.takers[i].kill()
		h.replace(i, name) // has the name
		h.awaits(h.takers[i])
		return h.kill(i, name)
	}},
	{"SIGSTOP", (*handovers).pause},
	{"cut", func(h *handovers, i int) bool { return h.cut(i, true, true) }},
	{"hears nobody", func(h *handovers, i int) bool { return h.cut(i, false, true) }},
	{"heard by nobody", func(h *handovers, i int) bool { return h.cut(i, true, false) }},
	{"leader and consumer", func(h *handovers, i int) bool {
		leader := h.leader(h.name, uint32(h.random.IntN(handoverPartitions)), 0)
		h.nodes[leader-1].kill()
		moved := h.kill(i, "-")
		h.nodes[leader-1].start()
		_ = h.nodes[leader-1].connect().Close()
		h.healthy()
		return moved
	}},
}

// awaits waits until a consumer holds something, if it gets something at all: with
// leaders that move it may have no partition for a while.
func (h *handovers) awaits(k *taker) {
	h.t.Helper()
	require.Eventually(h.t, func() bool { return len(k.holds()) > 0 }, handoverPatience, time.Millisecond, "consumer %s gets nothing", k.session)
}

// kill ends a consumer in the middle of its work, and starts another in its place.
func (h *handovers) kill(i int, name string) bool {
	victim := h.takers[i]
	since := machineTime()
	victim.kill()
	numbers := victim.holds()
	h.replace(i, name)
	return h.passed(victim, numbers, since)
}

// pause stops a consumer for longer than its session lasts. When it goes on it must be
// told that it has lost what it had.
func (h *handovers) pause(i int) bool {
	victim := h.takers[i]
	since := machineTime()
	victim.pause(h.t)
	numbers := victim.holds()
	moved := h.passed(victim, numbers, since)
	time.Sleep(time.Duration(h.random.Int64N(int64(handoverSession) / 2))) // how long it stands still is what is tried
	require.NoError(h.t, victim.command.Process.Signal(unix.SIGCONT))
	h.refused(victim)
	victim.kill()
	h.replace(i, "-")
	return moved
}

// cut takes the way between a consumer and the leaders of all partitions, so that those
// give it up and it has to notice itself.
func (h *handovers) cut(i int, sent, received bool) bool {
	victim := h.takers[i]
	since := machineTime()
	apply := func(change func(from, to int)) {
		for n := range clusterNodes {
			if sent {
				change(victim.host, n+1)
			}
			if received {
				change(n+1, victim.host)
			}
		}
	}
	apply(h.hosts.cut)
	numbers := victim.holds()
	moved := h.passed(victim, numbers, since)
	time.Sleep(time.Duration(h.random.Int64N(int64(handoverSession) / 2))) // late acks arrive late in different ways
	apply(h.hosts.heal)
	h.refused(victim)
	return moved
}

// refused waits until a consumer that lost its records knows.
func (h *handovers) refused(victim *taker) {
	h.t.Helper()
	require.Eventually(h.t, func() bool {
		_, fenced := victim.counts()
		return fenced > 0 || len(victim.holds()) == 0
	}, handoverPatience, 5*time.Millisecond, "consumer %s does not notice that its records are gone", victim.session)
	if _, fenced := victim.counts(); fenced > 0 {
		h.latecomer++
	}
}

// end drains the queue and compares what everybody saw with what was promised.
func (h *handovers) end() error {
	h.stop()
	h.producing.Wait()
	ctx, cancel := context.WithTimeout(h.t.Context(), handoverPatience)
	defer cancel()
	require.NoError(h.t, h.producer.Close(ctx))
	require.Eventually(h.t, func() bool { return h.drained(func(uint64) bool { return true }) }, handoverPatience, 50*time.Millisecond, "%s is not drained", h.name)
	var events []timed
	for _, k := range h.takers {
		k.kill()
	}
	for _, k := range append(h.gone, h.takers...) {
		_, fenced := k.counts()
		h.fenced += fenced
		events = append(events, k.events...)
	}
	slices.SortStableFunc(events, func(a, b timed) int {
		switch {
		case a.At < b.At:
			return -1
		case a.At > b.At:
			return 1
		}
		return 0
	})
	for _, e := range events {
		h.book.Observe(e.Seen)
		if e.Kind == promise.Stopped {
			h.stalls++
		}
	}
	h.records += int(h.sent)
	for why, n := range h.book.Again() {
		h.again[why] += n
	}
	counts := h.book.Counts()
	var broken []error
	list, more := h.book.Violations()
	for _, v := range list {
		broken = append(broken, errors.New(v))
	}
	if more > 0 {
		broken = append(broken, fmt.Errorf("and %d more violations", more))
	}
	if lost := h.book.Unhandled(); len(lost) > 0 {
		broken = append(broken, fmt.Errorf("%d records are lost, the first is %+v", len(lost), lost[0]))
	}
	if counts.Stored != int(h.sent) {
		broken = append(broken, fmt.Errorf("%d records were sent and %d acknowledged: %d failed", h.sent, counts.Stored, counts.Failed))
	}
	return errors.Join(broken...)
}

// hand causes one handover of a kind.
func (h *handovers) hand(kind handover) {
	h.worked(20)
	i := h.random.IntN(len(h.takers))
	h.awaits(h.takers[i])
	time.Sleep(time.Duration(h.random.Int64N(int64(30 * time.Millisecond)))) // a random moment
	began := time.Now()
	moved := kind.cause(h, i)
	if moved {
		h.done[kind.name]++
	} else {
		h.nothing++
	}
	h.t.Logf("%s: %s, moved %t after %v", h.takers[i].session, kind.name, moved, time.Since(began).Round(time.Millisecond))
}

func (h *handovers) total() (n int) {
	for _, c := range h.done {
		n += c
	}
	return n
}

// TestF17_Handovers runs three brokers and four consumers of a serial group, each a
// process in a network namespace of its own, and has the records of one consumer after the
// other go to others: it is killed, killed and started again under its name, stopped for
// longer than its session lasts, cut from the brokers in one direction or both, or
// killed together with a leader; leaders are moved before that. In each round what all of them saw is compared with
// package promise: one holder of a key and epoch, at most one that works on it, keys in
// order, late acknowledgements refused, nothing lost, and nothing repeated that nobody
// gave back or lost.
func TestF17_Handovers(t *testing.T) {
	inNamespaces(t, chaosNamespaces, chaosTools, func(t *testing.T) {
		h := newHandovers(t, "")
		h.move(*handoverMoves)
		began := time.Now()
		kinds := slices.Clone(handoverKinds)
		if *handoverKind != "" {
			kinds = slices.DeleteFunc(kinds, func(k handover) bool { return k.name != *handoverKind })
			require.NotEmpty(t, kinds, "-handover.only")
		}
		for n := 0; h.total() < *handoverCount; {
			h.begin(promise.Options{Flags: true})
			for range handoversOfRound {
				if n%len(kinds) == 0 {
					h.random.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
				}
				h.hand(kinds[n%len(kinds)])
				if n++; h.total() >= *handoverCount {
					break
				}
			}
			h.worked(100)
			require.NoError(t, h.end())
		}
		t.Logf("%d handovers in %.0f s: %v; %d more where the victim's records were settled already; %d latecomers refused, %d outcomes in all; %d records; repeated: %v; %d standstills",
			h.total(), time.Since(began).Seconds(), h.done, h.nothing, h.latecomer, h.fenced, h.records, h.again, h.stalls)
	})
}

// move moves leaders of partitions again and again while the group works: nobody loses a
// lease, and nothing comes again that was not given back.
func (h *handovers) move(times int) {
	h.begin(promise.Options{Flags: true, Steady: true})
	for n := range times {
		h.worked(50)
		h.lead(h.conn, h.name, uint32(n%handoverPartitions), uint32(1+h.random.IntN(clusterNodes)))
	}
	h.worked(100)
	require.NoError(h.t, h.end())
	delete(h.again, "given back")
	if h.stalls == 0 { // a process that stands still may lose what it has
		require.Empty(h.t, h.again)
	}
	h.t.Logf("%d planned moves, %d records, repeated: %v, %d standstills", times, h.records, h.again, h.stalls)
}

// TestF17_Catches_HandoversWithoutAWait kills leaders of brokers that wait for nobody
// afterwards, which the same checks find.
func TestF17_Catches_HandoversWithoutAWait(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds keep all rules")
	}
	if *handoverCount < mutantHandovers {
		t.Skipf("SKIPPED: it takes half a minute; -handover.count %d runs it, and the fleet of TestF17_Catches_NoWaitAfterAChangeOfTheLeader finds the same", mutantHandovers)
	}
	inNamespaces(t, chaosNamespaces, chaosTools, func(t *testing.T) {
		h := newHandovers(t, fmt.Sprintf("rule-%d", group.RuleWait))
		for n := range 5 {
			h.begin(promise.Options{Flags: true})
			for range 3 {
				h.worked(50)
				leader := h.leader(h.name, uint32(h.random.IntN(handoverPartitions)), 0)
				h.nodes[leader-1].kill()
				h.leader(h.name, 0, leader)
				h.worked(20)
				h.nodes[leader-1].start()
				_ = h.nodes[leader-1].connect().Close()
				h.healthy()
			}
			if err := h.end(); err != nil {
				t.Logf("caught in round %d: %.600s", n+1, err)
				return
			}
		}
		t.Fatal("not caught")
	})
}

package fuzz

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/vfs"
)

var (
	faultsAre  = flag.Int("faults.count", 3, "how many faults TestF15 inflicts; 11 is each kind once")
	faultsFor  = flag.Duration("faults.for", 0, "for how long TestF15 goes on at least")
	faultsOnly = flag.String("faults.only", "", "the one kind of fault that TestF15 inflicts; empty: all")
	faultsSeed = flag.Uint64("faults.seed", 0, "draws victims, links and moments; 0 takes the clock's")
)

const (
	// faultDisk is the size in bytes of the disk that gets full, of the last host, and
	// faultDiskMinute what it has more for each minute that a run goes on: all is kept.
	faultDisk       = 1 << 30
	faultDiskMinute = 128 << 20
	// refillPatience bounds the wait for a node that has lost its disk: while clients write
	// it is sent 8 MiB/s.
	refillPatience = 5 * time.Minute
)

// stallWhenTold lets the disks of this process stand still at a SIGUSR1 until the next.
func stallWhenTold() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGUSR1)
	var mu sync.RWMutex
	vfs.InterceptSyncs(func() bool {
		mu.RLock()
		defer mu.RUnlock()
		return false
	})
	go func() {
		for {
			<-told
			mu.Lock()
			<-told
			mu.Unlock()
		}
	}()
}

// faultRun is a cluster on hosts of its own, clients that use it, and what is done to it.
type faultRun struct {
	*clusterProcess
	hosts     *hosts
	random    *rand.Rand
	conn      *client.Conn
	logs      []*partitionLog
	producers []*killProducer
	history   *clientHistory
	leaders   *leaderWatch
	crews     []*crew
	calm      []func() // end what happens to the members of crews
	clients   sync.WaitGroup
	stop      context.CancelFunc
	founded   bool // by formed
}

// names of the destinations of a faultRun.
const (
	faultLoad    = "load"
	faultHistory = "history"
)

// newFaultRun starts brokers in a role on hosts that inNamespaces has made room for, each
// in a directory that prepare may mount something on.
func newFaultRun(t *testing.T, brokers int, role string, prepare func(host int, dir string)) *faultRun {
	t.Helper()
	seed := *faultsSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("faults.seed %d", seed)
	privateMounts(t)
	r := &faultRun{clusterProcess: &clusterProcess{t: t}, hosts: newHosts(t, brokers), random: rand.New(rand.NewPCG(seed, 15))}
	var addresses []string
	for n := 1; n <= brokers; n++ {
		dir := filepath.Join(os.Getenv(childVariable), hostName(n))
		require.NoError(t, os.Mkdir(dir, 0o755))
		b := r.hosts.broker(n, filepath.Join(dir, "data"))
		if role != "" {
			b.binary, b.role = os.Args[0], roleBroker+" "+role
		}
		r.nodes = append(r.nodes, b)
		addresses = append(addresses, b.address)
	}
	for n, b := range r.nodes {
		members := b.args
		if n == 0 {
			b.args = append(members, "--bootstrap")
		} else {
			b.args = append(members, "--join", addresses[0])
		}
		if prepare != nil {
			prepare(n+1, filepath.Dir(b.data))
		}
		b.start()
		_ = b.connect().Close()
		b.args = members // from now on it may join by way of any other
		for _, other := range addresses {
			if other != b.address {
				b.args = append(b.args, "--join", other)
			}
		}
	}
	r.conn = r.connect()
	return r
}

// smallDisk gives the last of three hosts a small disk.
func smallDisk(t *testing.T) func(host int, dir string) {
	return func(host int, dir string) {
		if host == clusterNodes {
			require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", faultDisk+int64(faultsFor.Minutes()*faultDiskMinute))))
		}
	}
}

// load starts producers whose receipts are held against what is read, and clients whose
// every call is noted.
func (r *faultRun) load() {
	t := r.t
	r.create(r.conn, faultLoad, killPartitions)
	r.create(r.conn, faultHistory, 1)
	for p := range uint32(killPartitions) {
		r.logs = append(r.logs, &partitionLog{destination: faultLoad, partition: p, keyedOnly: true})
	}
	running, stop := context.WithCancel(t.Context())
	r.stop = stop
	t.Cleanup(stop)
	for k := range uint32(killProducers) {
		p := &killProducer{id: k, receipts: map[uint64]place{}}
		r.producers = append(r.producers, p)
		p.start(t, running, r.connect(), faultLoad)
	}
	r.history = newClientHistory(faultHistory)
	r.leaders = &leaderWatch{leaders: map[leadership]uint32{}}
	for id := range 2 {
		conn := r.connect()
		p, err := conn.Producer(t.Context(), faultHistory, client.DeliveryTimeout(killDelivery))
		require.NoError(t, err)
		r.clients.Go(func() {
			for every := time.NewTicker(2 * time.Millisecond); running.Err() == nil; <-every.C {
				_ = r.history.write(t.Context(), id, p)
			}
		})
		reading := r.connect()
		r.clients.Go(func() {
			next := uint64(0)
			for every := time.NewTicker(10 * time.Millisecond); running.Err() == nil; <-every.C {
				ctx, cancel := context.WithTimeout(running, 2*time.Second)
				next, _ = r.history.readEnd(ctx, 2+id, reading, next)
				cancel()
			}
		})
	}
	for _, c := range []*crew{
		startCrew(t, r.connect, "publishers", killPartitions, crewPublishers, client.GroupSettings{Mode: client.Serial, Scope: client.ByPublisher, SessionMs: uint32(crewSession.Milliseconds())}),
		startCrew(t, r.connect, "sticky", 1, 1, client.GroupSettings{Mode: client.Serial, Scope: client.ByDestination, Holder: client.Sticky, SessionMs: uint32(crewSession.Milliseconds())}),
	} {
		r.crews = append(r.crews, c)
		r.calm = append(r.calm, c.storm(t, rand.New(rand.NewPCG(r.random.Uint64(), 0))))
	}
	for n := range r.nodes {
		conn := r.direct(n + 1)
		r.clients.Go(func() {
			for every := time.NewTicker(50 * time.Millisecond); running.Err() == nil; <-every.C {
				ctx, cancel := context.WithTimeout(running, time.Second)
				r.leaders.look(ctx, conn)
				cancel()
			}
		})
	}
}

// direct returns a connection that stays with one broker.
func (r *faultRun) direct(node int) *client.Conn {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), startTimeout)
	defer cancel()
	conn, err := client.Connect(ctx, r.nodes[node-1].address, client.AllowRedirect(false), client.WithReconnectBackoff(5*time.Millisecond, 50*time.Millisecond))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// leadership is a term of a partition's leader.
type leadership struct {
	destination string
	partition   uint32
	epoch       uint32
}

// leaderWatch holds all nodes to what they say about leaders.
type leaderWatch struct {
	mu      sync.Mutex
	leaders map[leadership]uint32
	two     error // two leaders of one epoch
}

func (w *leaderWatch) look(ctx context.Context, conn *client.Conn) {
	for _, name := range []string{faultLoad, faultHistory} {
		d, err := conn.Destination(ctx, name)
		if err != nil {
			continue
		}
		w.mu.Lock()
		for _, p := range d.Partitions {
			term := leadership{name, p.Number, p.Epoch}
			if before, ok := w.leaders[term]; ok && p.Leader != 0 && before != p.Leader {
				w.two = errors.Join(w.two, fmt.Errorf("%s/%d epoch %d is led by nodes %d and %d", name, p.Number, p.Epoch, before, p.Leader))
			}
			if p.Leader != 0 {
				w.leaders[term] = p.Leader
			}
		}
		w.mu.Unlock()
	}
}

// terms is how many terms had a leader that a node told of.
func (w *leaderWatch) terms() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.leaders)
}

// healthy waits until every partition has its leader and all its replicas.
func (r *faultRun) healthy() {
	r.t.Helper()
	var out bytes.Buffer
	require.NoError(r.t, r.nodes[0].run(nil, &out, "cluster", "health", "--watch", "--exit-when-healthy", "--timeout", refillPatience.String()), &out)
}

// leader is the node that leads a partition, as soon as there is one other than not.
func (r *faultRun) leader(destination string, partition, not uint32) uint32 {
	r.t.Helper()
	var leader uint32
	require.Eventually(r.t, func() bool {
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
		defer cancel()
		d, err := r.conn.Destination(ctx, destination)
		if err != nil {
			return false
		}
		leader = d.Partitions[partition].Leader
		return leader != 0 && leader != not
	}, clusterPatience, 5*time.Millisecond)
	return leader
}

// formed makes sure that the metadata has a majority without the broker that founded the
// cluster.
func (r *faultRun) formed() {
	r.t.Helper()
	if !r.founded {
		r.founded = true
		formed(r.t, r.direct(2))
	}
}

// fault is one kind of what can happen to a node. It returns what ends it.
type fault struct {
	name    string
	inflict func(r *faultRun, victim int) (end func())
	last    bool // the victim is the last node, that with the small disk
	refill  bool // the node has to be filled again before anything else may happen
}

var faults = []fault{
	{name: "cut off", inflict: func(r *faultRun, victim int) func() {
		r.hosts.isolate(victim, r.hosts.cut)
		return func() { r.hosts.isolate(victim, r.hosts.heal) }
	}},
	{name: "hears nobody", inflict: func(r *faultRun, victim int) func() { return r.change(victim, false, true) }},
	{name: "heard by nobody", inflict: func(r *faultRun, victim int) func() { return r.change(victim, true, false) }},
	{name: "cut from one", inflict: func(r *faultRun, victim int) func() {
		other := victim%len(r.nodes) + 1
		r.hosts.cut(victim, other)
		r.hosts.cut(other, victim)
		return func() { r.hosts.heal(victim, other); r.hosts.heal(other, victim) }
	}},
	{name: "lossy link", inflict: (*faultRun).lossy},
	{name: "slow link", inflict: func(r *faultRun, victim int) func() {
		r.hosts.slow(victim)
		return func() { r.hosts.fast(victim) }
	}},
	{name: "SIGKILL", inflict: func(r *faultRun, victim int) func() {
		r.nodes[victim-1].kill()
		return r.nodes[victim-1].start
	}},
	{name: "SIGSTOP", inflict: func(r *faultRun, victim int) func() {
		r.signal(victim, unix.SIGSTOP)
		return func() { r.signal(victim, unix.SIGCONT) }
	}},
	{name: "stalled disk", inflict: func(r *faultRun, victim int) func() {
		r.signal(victim, unix.SIGUSR1)
		return func() { r.signal(victim, unix.SIGUSR1) }
	}},
	{name: "full disk", last: true, inflict: func(r *faultRun, victim int) func() { return r.fill(victim) }},
	{name: "wiped disk", refill: true, inflict: func(r *faultRun, victim int) func() {
		b := r.nodes[victim-1]
		b.kill()
		require.NoError(r.t, os.RemoveAll(b.data))
		return b.start
	}},
}

func (r *faultRun) signal(victim int, s os.Signal) {
	r.t.Helper()
	require.NoError(r.t, r.nodes[victim-1].command.Process.Signal(s))
}

// change cuts what a node sends, or what others send to it.
func (r *faultRun) change(victim int, sent, received bool) func() {
	apply := func(change func(from, to int)) {
		for other := 1; other <= len(r.nodes); other++ {
			if sent {
				change(victim, other)
			}
			if received {
				change(other, victim)
			}
		}
	}
	apply(r.hosts.cut)
	return func() { apply(r.hosts.heal) }
}

// lossy loses what a node and its neighbour send each other for moments, again and
// again.
func (r *faultRun) lossy(victim int) func() {
	other := victim%len(r.nodes) + 1
	random := rand.New(rand.NewPCG(r.random.Uint64(), 0))
	enough, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			r.hosts.cut(victim, other)
			time.Sleep(time.Duration(random.Int64N(int64(30 * time.Millisecond)))) // what travels now is lost
			r.hosts.heal(victim, other)
			select {
			case <-enough:
				return
			case <-time.After(time.Duration(random.Int64N(int64(100 * time.Millisecond)))):
			}
		}
	}()
	return func() { close(enough); <-done }
}

// fill takes all the space that is left on a node's disk.
func (r *faultRun) fill(victim int) func() {
	name := filepath.Join(filepath.Dir(r.nodes[victim-1].data), "balloon")
	f, err := os.Create(name)
	require.NoError(r.t, err)
	defer f.Close()
	var st unix.Statfs_t
	for size := int64(0); ; {
		require.NoError(r.t, unix.Fstatfs(int(f.Fd()), &st))
		free := int64(st.Bavail) * st.Bsize
		if free == 0 {
			break
		}
		if err := unix.Fallocate(int(f.Fd()), 0, size, free); err == nil { // the broker takes some too
			size += free
		}
	}
	return func() { require.NoError(r.t, os.Remove(name)) }
}

// faultLasts is how long a fault lasts at the most before records must be acknowledged in
// spite of it: some are over before anybody notices, some make the others elect.
const faultLasts = 3 * time.Second

// strike inflicts a fault, waits until records are acknowledged in spite of it, ends it,
// and waits for that again. It returns how long records waited.
func (r *faultRun) strike(f fault, victim int) (without, after time.Duration) {
	r.t.Helper()
	end := f.inflict(r, victim)
	time.Sleep(time.Duration(r.random.Int64N(int64(faultLasts)))) // a random moment
	without = r.progress(r.producers)
	end()
	_ = r.nodes[victim-1].connect().Close()
	after = r.progress(r.producers)
	if f.refill {
		r.healthy()
	}
	return without, after
}

// finish stops the clients and holds everything that they were told against what is
// there, on every replica.
func (r *faultRun) finish() {
	t := r.t
	r.stop()
	for i, c := range r.crews {
		r.calm[i]()
		c.check(t)
	}
	for _, p := range r.producers {
		p.finish(t)
	}
	r.clients.Wait()
	r.healthy()
	verify(t, r.conn, r.logs, r.producers)
	var sent, read uint64
	for _, p := range r.producers {
		sent += p.sent
		require.Equal(t, p.sent, p.verified, "producer %d: every record is acknowledged in the end", p.id)
	}
	for _, l := range r.logs {
		read += l.next
	}
	require.Equal(t, sent, read, "records sent and records read")
	r.history.check(t, r.conn)
	require.NoError(t, r.leaders.two)
	for node := range r.nodes {
		for _, l := range r.logs {
			r.lead(r.conn, l.destination, l.partition, uint32(node+1))
			again := &partitionLog{destination: l.destination, partition: l.partition, keyedOnly: true}
			again.read(t, r.conn)
			require.Equal(t, l.records, again.records, "%s/%d on node %d", l.destination, l.partition, node+1)
		}
	}
	t.Logf("%d records, the same on %d nodes; %d terms", sent, len(r.nodes), r.leaders.terms())
}

// chaosNamespaces are what tests with hosts of their own need.
const chaosNamespaces = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID

var chaosTools = []string{"ip", "tc", "nsenter"}

// TestF15_NothingIsLostUnderFaultsOfEveryKind runs three brokers in network namespaces
// and lets one kind of fault after the other happen to one of them under load, in random
// order. Records are acknowledged during each fault. In the
// end every acknowledged record is where its receipt says, on every replica, once, in the
// order of its key; offsets have no gap; what clients appended and read of one partition
// has one order (RELIABILITY F14); and no term had two leaders.
func TestF15_NothingIsLostUnderFaultsOfEveryKind(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds cannot stall a disk")
	}
	inNamespaces(t, chaosNamespaces, chaosTools, func(t *testing.T) {
		r := newFaultRun(t, clusterNodes, "stalls", smallDisk(t))
		r.load()
		r.progress(r.producers)
		began, counts := time.Now(), map[string]int{}
		worst := map[string]time.Duration{}
		order := r.random.Perm(len(faults))
		for n := 0; n < *faultsAre || time.Since(began) < *faultsFor; n++ {
			if n%len(faults) == 0 {
				order = r.random.Perm(len(faults))
			}
			f := faults[order[n%len(faults)]]
			if *faultsOnly != "" && f.name != *faultsOnly {
				*faultsAre++
				continue
			}
			victim := 1 + r.random.IntN(len(r.nodes))
			switch {
			case f.last:
				victim = len(r.nodes)
			case n%2 == 0:
				victim = int(r.leader(faultLoad, 0, 0))
			}
			if f.refill {
				r.formed()
			}
			terms := r.leaders.terms()
			without, after := r.strike(f, victim)
			counts[f.name]++
			worst[f.name] = max(worst[f.name], without, after)
			t.Logf("%6.1f s: node %d: %s: %v during it, %v after it for %d receipts of everybody; %d terms began", time.Since(began).Seconds(),
				victim, f.name, without.Round(time.Millisecond), after.Round(time.Millisecond), clusterProgress, r.leaders.terms()-terms)
			verify(t, r.conn, r.logs, r.producers)
		}
		r.finish()
		t.Logf("%v in %.1f s; at worst %v", counts, time.Since(began).Seconds(), worst)
	})
}

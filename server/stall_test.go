package server

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var stallFor = flag.Duration("stall.for", 0, "how long the disk of a partition stalls at least in TestF13_AStalledPartition")

// stallRig is a broker on a simulated disk of which parts can stall.
type stallRig struct {
	t     testing.TB
	disk  *vfs.Simulated
	s     *Server
	log   *lockedBuffer
	admin *rawClient

	patience time.Duration
	held     chan struct{} // closed when the disk goes on
	release  func()
	inside   atomic.Int32 // calls that have stalled
}

// stallWorkers are the storage workers of the rig: few, so that one partition has
// enough to do for all of them.
const stallWorkers = 2

func newStallRig(t testing.TB, patience time.Duration) *stallRig {
	r := &stallRig{t: t, disk: vfs.NewSimulated(1), log: &lockedBuffer{}, patience: patience, held: make(chan struct{})}
	r.release = sync.OnceFunc(func() { close(r.held) })
	dir := t.TempDir() // a real one, for the loops' socket
	require.NoError(t, r.disk.MkdirAll(dir))
	var err error
	r.s, err = Start(context.Background(), Config{
		DataDir: dir, Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0", MinFreeBytes: -1,
		EventLoops: 2, StorageWorkers: stallWorkers, ReadWorkers: 4, PendingBytes: minPendingBytes,
		Logger: slog.New(slog.NewTextHandler(r.log, nil)),
		fs:     r.disk, memoryFS: vfs.NewMemory(func(int64) error { return nil }), bootID: "boot", stallAfter: 50 * time.Millisecond,
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.s.Close(context.Background()) })
	t.Cleanup(r.release)
	r.admin = r.dial()
	return r
}

func (r *stallRig) dial() *rawClient {
	c := dialOpen(r.t, r.s.Addr())
	c.patience = r.patience
	return c
}

// create makes a topic of one partition and returns its replica.
func (r *stallRig) create(name string, storage wire.Storage) *partitionReplica {
	r.admin.send(wire.OpCreate, 10, &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited, Storage: storage,
	}})
	var info wire.DestinationInfo
	r.admin.ok(r.admin.answer(10), &info)
	replica := r.s.broker.local(info.ID, 0)
	require.NotNil(r.t, replica)
	return replica
}

// stall makes the disk keep every call that matches until release.
func (r *stallRig) stall(match func(op vfs.Op, name string) bool) {
	r.disk.Inject(func(op vfs.Op, name string) error {
		if match(op, name) {
			r.inside.Add(1)
			<-r.held
		}
		return nil
	})
}

// loops returns a client on each event loop.
func (r *stallRig) loops() []*rawClient {
	var clients []*rawClient
	for range 4 {
		clients = append(clients, r.dial())
	}
	seen := make(chan *loop, 16)
	r.s.engine.eachSession(func(s *session) { seen <- s.loop })
	distinct := map[*loop]bool{}
	for range 5 {
		distinct[<-seen] = true
	}
	require.Len(r.t, distinct, 2, "clients are on both loops")
	return clients
}

// user is a client that produces, reads what it has produced, and pings.
type user struct {
	c      *rawClient
	handle uint32
	link   uint32
	got    streamed
	done   int
	waits  []time.Duration
}

func (r *stallRig) user(c *rawClient, name string) *user {
	u := &user{c: c, handle: c.open(name, 0)}
	u.link = c.link(u.handle, 0, 64<<20)
	return u
}

// once produces a record, sees it delivered and gets a PING answered.
func (u *user) once(batch []byte) {
	begin := time.Now()
	u.c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: u.handle, Acks: wire.AcksQuorum, Batch: batch})
	var receipt wire.Receipt
	u.c.ok(u.c.answer(7), &receipt)
	u.waits = append(u.waits, time.Since(begin))
	u.c.stream(map[uint32]*streamed{u.link: &u.got}, func() bool { return u.got.next > receipt.BaseOffset })
	u.c.send(wire.OpPing, 8, &wire.PingRequest{})
	require.Equal(u.c.t, wire.CodeOK, u.c.answer(8).code())
	u.done++
}

func percentile(d []time.Duration, p float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[int(float64(len(d)-1)*p)].Round(10 * time.Microsecond)
}

// get reads a page of the broker's HTTP side.
func (r *stallRig) get(page string) (int, string) {
	answer, err := http.Get("http://" + r.s.HTTPAddr() + page)
	require.NoError(r.t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(r.t, err)
	return answer.StatusCode, string(body)
}

const stallRounds = 100

// aStalledPartition lets the disk keep all calls for the files of one partition and
// requires that others are served meanwhile.
func aStalledPartition(t testing.TB, patience time.Duration, mutate func(stalled *partitionReplica)) {
	r := newStallRig(t, patience)
	stalled := r.create("stalled", wire.StorageDisk)
	r.create("healthy", wire.StorageDisk)
	r.create("memory", wire.StorageMemory)
	if mutate != nil {
		mutate(stalled)
	}
	small, _ := testBatch(t, strings.Repeat("x", 1000))
	large, _ := testBatch(t, strings.Repeat("x", 40_000))
	victim := r.user(r.dial(), "stalled")
	victim.once(small)
	var users []*user
	for i, c := range r.loops() {
		users = append(users, r.user(c, []string{"healthy", "memory"}[i/2]))
	}
	for range stallRounds {
		for _, u := range users {
			u.once(small)
		}
	}

	directory := path.Base(stalled.dir)
	began := time.Now()
	r.stall(func(op vfs.Op, name string) bool { return op != vfs.OpWrite && strings.Contains(name, directory) })
	const sent = 20
	for id := range uint32(sent) {
		victim.c.send(wire.OpProduce, 100+id, &wire.ProduceRequest{Handle: victim.handle, Acks: wire.AcksQuorum, Batch: large})
		eventually(t, "the stall is known", stalled.stall.stalled)
		require.EqualValues(t, 2, stalled.active.Load(), "jobs: a sync, and space to be taken ahead")
	}
	for round := 0; round < stallRounds || time.Since(began) < *stallFor; round++ {
		for _, u := range users {
			u.once(small)
		}
	}
	require.LessOrEqual(t, r.s.broker.pending.Used(), int64(minPendingBytes))

	require.Contains(t, r.s.broker.Describe(mustDestination(t, r.s.broker, "stalled")).Partitions[0].Problem, "its disk has not answered since 20")
	require.Empty(t, r.s.broker.Describe(mustDestination(t, r.s.broker, "healthy")).Partitions[0].Problem)
	_, metrics := r.get("/metrics")
	require.Contains(t, metrics, "lockstep_storage_stalls 1\n")
	require.Contains(t, metrics, `lockstep_storage_stall_seconds{partition="stalled/0"} `)
	code, health := r.get("/healthz")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, health, `"stalled/0": "its disk has not answered since`)
	require.Contains(t, r.log.String(), "the disk of a partition has stalled")
	require.Contains(t, r.log.String(), "partition=stalled/0")

	calls, lasted := r.inside.Load(), time.Since(began)
	r.release()
	for id := range uint32(sent) {
		require.Equal(t, wire.CodeOK, victim.c.answer(100+id).code())
	}
	eventually(t, "the stall is over", func() bool { return !stalled.stall.stalled() && !r.s.broker.diskStalled.Load() })
	victim.once(small)
	_, metrics = r.get("/metrics")
	require.Contains(t, metrics, "lockstep_storage_stalls 0\n")
	var before, during []time.Duration
	for _, u := range users {
		before, during = append(before, u.waits[:stallRounds]...), append(during, u.waits[stallRounds:]...)
	}
	t.Logf("%d calls stalled for %v; meanwhile %d records of others produced and consumed, produce p99 %v, before %v",
		calls, lasted.Round(time.Millisecond), len(during), percentile(during, 0.99), percentile(before, 0.99))
}

// RELIABILITY F13: the files of one partition are on a disk that has stalled. Others
// produce and consume, every event loop answers, and the broker says what has stalled.
func TestF13_AStalledPartitionHoldsUpNobodyElse(t *testing.T) {
	aStalledPartition(t, clientPatience, nil)
}

// mutantPatience is how long a client waits for an answer that a mutant does not give.
const mutantPatience = time.Second

func TestF13_Catches_APartitionThatMayTakeAllWorkers(t *testing.T) {
	caught(t, func(t testing.TB) {
		aStalledPartition(t, mutantPatience, func(stalled *partitionReplica) {
			l := stalled.owner.disk
			l.mu.Lock()
			l.limit = stallWorkers
			l.mu.Unlock()
		})
	})
}

// aStalledDevice lets the disk keep all calls, and when that is known all writes too.
func aStalledDevice(t testing.TB, patience time.Duration, mutate func(r *stallRig, disk []*partitionReplica, memory *partitionReplica)) {
	r := newStallRig(t, patience)
	var disks []*partitionReplica
	for _, name := range []string{"one", "two", "three", "idle"} {
		disks = append(disks, r.create(name, wire.StorageDisk))
	}
	idle := disks[3]
	memory := r.create("memory", wire.StorageMemory)
	if mutate != nil {
		mutate(r, disks, memory)
	}
	small, _ := testBatch(t, strings.Repeat("x", 1000))
	large, _ := testBatch(t, strings.Repeat("x", 40_000))
	clients := r.loops()
	var users []*user
	for _, c := range clients {
		users = append(users, r.user(c, "memory"))
	}
	victims := []*user{}
	for _, name := range []string{"one", "two", "three", "idle"} {
		v := r.user(r.dial(), name)
		v.once(small)
		victims = append(victims, v)
	}
	rest := func() {
		eventually(t, "nobody has anything to do", func() bool {
			return !slices.ContainsFunc(disks, func(p *partitionReplica) bool { return p.restless.Load() != 0 || p.busy() })
		})
	}
	rest()
	users[0].once(small)
	eventually(t, "a later tick: who has come to rest was asked for its mark", func() bool { return memory.restless.Load() == 0 })
	rest()

	var writes atomic.Bool
	r.stall(func(op vfs.Op, _ string) bool { return op != vfs.OpWrite || writes.Load() })
	for _, v := range victims[:3] {
		v.c.send(wire.OpProduce, 100, &wire.ProduceRequest{Handle: v.handle, Acks: wire.AcksQuorum, Batch: small})
	}
	eventually(t, "the stall is known", func() bool { return r.s.broker.diskStalled.Load() && r.inside.Load() >= stallWorkers })
	require.False(t, idle.stall.stalled())
	writes.Store(true)
	for _, c := range clients { // a turn whose write waits
		c.send(wire.OpProduce, 100, &wire.ProduceRequest{Handle: c.open("idle", 0), Acks: wire.AcksNone, Batch: small})
	}
	const rounds = stallRounds / 4
	for range rounds {
		for _, u := range users {
			u.once(large)
		}
	}
	require.Contains(t, r.log.String(), "the disk of a partition has stalled")
	require.NotContains(t, r.log.String(), "partition=memory/0")
	r.release()
	for _, v := range victims[:3] {
		require.Equal(t, wire.CodeOK, v.c.answer(100).code())
	}
	victims[3].once(small)
	eventually(t, "the stall is over", func() bool { return !r.s.broker.diskStalled.Load() })
	t.Logf("%d calls stalled; meanwhile %d records in memory produced and consumed", r.inside.Load(), rounds*len(users))
}

// RELIABILITY F13: the only disk stalls. Destinations in memory go on and every event
// loop answers, also clients that send records for the disk.
func TestF13_AStalledDeviceDoesNotHoldUpMemory(t *testing.T) {
	aStalledDevice(t, clientPatience, nil)
}

func TestF13_Catches_SharedStorageWorkers(t *testing.T) {
	caught(t, func(t testing.TB) {
		aStalledDevice(t, mutantPatience, func(r *stallRig, _ []*partitionReplica, memory *partitionReplica) {
			owned(&memory.owner, func() { memory.owner.disk = newLine(r.s.broker.jobs[wire.StorageDisk]) })
		})
	})
}

func TestF13_Catches_TurnsOnLoopsDuringAStall(t *testing.T) {
	caught(t, func(t testing.TB) {
		aStalledDevice(t, mutantPatience, func(_ *stallRig, disks []*partitionReplica, _ *partitionReplica) {
			disks[3].diskStalled = nil
		})
	})
}

// aSessionOfAStalledPartition has a client ask for more reads of a partition whose disk
// has stalled than it may have at work, and then read other partitions.
func aSessionOfAStalledPartition(t testing.TB, patience time.Duration, mutate func(*engine)) {
	r := newStallRig(t, patience)
	if mutate != nil {
		mutate(r.s.engine)
	}
	stalled := r.create("stalled", wire.StorageDisk)
	r.create("healthy", wire.StorageDisk)
	r.create("memory", wire.StorageMemory)
	small, _ := testBatch(t, strings.Repeat("x", 1000))
	for _, name := range []string{"stalled", "healthy", "memory"} {
		r.user(r.dial(), name).once(small)
	}
	directory := path.Base(stalled.dir)
	r.stall(func(op vfs.Op, name string) bool { return op == vfs.OpRead && strings.Contains(name, directory) })
	c := r.dial()
	open := func(id uint32, name string) {
		c.send(wire.OpLinkOpen, id, &wire.LinkOpenRequest{Handle: c.open(name, 0), Credit: 1})
	}
	const links = 8
	for id := range uint32(links) {
		open(100+id, "stalled")
	}
	for id, name := range []string{"healthy", "memory"} {
		open(200+uint32(id), name)
		require.Equal(t, wire.CodeOK, c.answer(200+uint32(id)).code(), name)
	}
	require.EqualValues(t, 1, r.inside.Load())
	r.release()
	for id := range uint32(links) {
		require.Equal(t, wire.CodeOK, c.answer(100+id).code())
	}
}

// RELIABILITY F13: also for the client that reads the stalled partition beside others.
func TestF13_ASessionReadsOthersBesideAStalledPartition(t *testing.T) {
	aSessionOfAStalledPartition(t, clientPatience, nil)
}

func TestF13_Catches_APartitionThatMayTakeASessionsReads(t *testing.T) {
	caught(t, func(t testing.TB) {
		aSessionOfAStalledPartition(t, mutantPatience, func(e *engine) { e.partitionReads = e.sessionReads })
	})
}

func TestALineKnowsSinceWhenItsOldestTaskRuns(t *testing.T) {
	pool := newBlockingPool(8)
	l := newLine(pool)
	s := stall{lines: [2]*line{l}, turn: new(atomic.Int64)}
	require.False(t, s.look(monotonic(), 0))
	first, second := make(chan struct{}), make(chan struct{})
	started := make(chan struct{})
	l.submit(func() { close(started); <-first })
	<-started
	oldest := l.oldest.Load()
	require.Positive(t, oldest)
	started = make(chan struct{})
	l.submit(func() { close(started); <-second })
	<-started
	require.Equal(t, oldest, l.oldest.Load())
	require.False(t, s.look(oldest+999, 1000))
	require.True(t, s.look(oldest+1000, 1000))
	require.True(t, s.stalled())
	require.Contains(t, s.problem(), "its disk has not answered since")
	close(first)
	eventually(t, "the first is done", func() bool { return l.oldest.Load() != oldest })
	require.Greater(t, l.oldest.Load(), oldest)
	require.True(t, s.look(oldest+1000, 1<<40))
	require.Empty(t, s.problem())
	close(second)
	pool.wait()
	require.Zero(t, l.oldest.Load())
}

func mustDestination(t testing.TB, b *broker, name string) *cluster.Destination {
	d, ok := b.View().Destination(name)
	require.True(t, ok)
	return d
}

// A leader whose disk has stalled hands over. What it had proposed is then the new
// leader's to answer; it must not keep those waiting who wait for it.
func TestF13_ALeaderThatIsDeposedForItsDiskAnswers(t *testing.T) {
	t.Parallel()
	disks := map[uint32]*vfs.Simulated{}
	c := &crew{t: t, servers: map[uint32]*Server{}, dirs: map[uint32]string{}}
	c.change = func(cfg *Config) {
		disk := vfs.NewSimulated(uint64(cfg.NodeID))
		disks[cfg.NodeID] = disk
		require.NoError(t, disk.MkdirAll(cfg.DataDir))
		cfg.fs, cfg.bootID, cfg.stallAfter = disk, "boot", 50*time.Millisecond
	}
	for node := range uint32(3) {
		c.start(node + 1)
	}
	t.Cleanup(func() {
		for node := range c.servers {
			c.stop(node)
		}
	})
	c.await("three nodes", func() bool { return len(c.broker(1).View().Nodes) == 3 })
	info := c.create(1, "orders", 1, 3)
	d, _ := c.broker(1).View().Destination("orders")
	c.append(d, 0)
	c.same("orders", 1)
	var leader *partitionReplica
	for node := range c.servers {
		if r := c.broker(node).local(info.ID, 0); r.leads.Load() {
			leader = r
		}
	}
	require.NotNil(t, leader)
	held := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(held) })
	t.Cleanup(goOn)
	disks[leader.node].Inject(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync || op == vfs.OpSyncDir {
			<-held
		}
		return nil
	})
	batch, index := testBatch(t, "value")
	valid, err := wire.ValidateBatch(batch, index, wire.BatchLimits{MaxRecordBytes: wire.DefaultMaxRecordBytes})
	require.NoError(t, err)
	done := make(chan wire.ErrorCode, 1)
	require.NoError(t, leader.Append(partition.Append{Batch: batch, Index: index, Info: valid, Acks: wire.AcksQuorum, Receiver: codeReceiver(done)}))
	leader.Kick(false)
	select {
	case code := <-done:
		require.Equal(t, wire.CodeUnavailable, code, "it may be appended all the same")
	case <-time.After(60 * time.Second):
		t.Fatal("nobody answers")
	}
	goOn()
}

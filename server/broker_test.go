package server

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// testBroker opens a broker without sessions on a simulated disk.
func testBroker(t *testing.T, disk *vfs.Simulated) *broker {
	t.Helper()
	b, err := openTestBroker(disk)
	require.NoError(t, err)
	return b
}

func openTestBroker(disk *vfs.Simulated, change ...func(*Config)) (*broker, error) {
	cfg, err := Config{DataDir: "data", MinFreeBytes: -1}.withDefaults()
	if err != nil {
		return nil, err
	}
	cfg.fs, cfg.memoryFS, cfg.bootID = disk, vfs.NewMemory(func(int64) error { return nil }), "boot"
	for _, f := range change {
		f(&cfg)
	}
	return openBroker(cfg)
}

// administer carries out one request and returns its error.
func administer(b *broker, request wire.Message) error {
	done := make(chan error, 1)
	b.Admin(request, func(_ wire.Message, err error) { done <- err })
	return <-done
}

func createOrders(t *testing.T, b *broker) {
	t.Helper()
	require.NoError(t, administer(b, &wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 2, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}}))
}

// Directories of a deleted destination that could not be removed, because the
// disk refused or the process died, go at the next start.
func TestF4_DirectoriesOfADeletedDestinationGoSoonerOrLater(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	disk.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpRename && strings.HasPrefix(name, "data/partitions/") && !strings.Contains(name, "manifest") {
			return syscall.EIO
		}
		return nil
	})
	orders, ok := b.View().Destination("orders")
	require.True(t, ok)
	require.NoError(t, administer(b, &wire.DeleteRequest{Name: "orders", Kind: wire.Queue, ID: orders.ID}))
	names, err := disk.List("data/partitions")
	require.NoError(t, err)
	require.Len(t, names, 2, "nothing was removed")
	require.Len(t, b.View().Deleted, 1)
	disk.Inject(nil)
	require.NoError(t, b.close())

	b = testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	require.Eventually(t, func() bool { return len(b.View().Deleted) == 0 }, 60*time.Second, 5*time.Millisecond)
	for _, dir := range []string{"data/partitions", "data/quarantine"} {
		names, err := disk.List(dir)
		require.NoError(t, err)
		require.Empty(t, names, dir)
	}
}

// A partition that does not open because the disk is full opens by itself once
// there is space; one that is damaged does not.
func TestPartitionsThatLackedSpaceAreOpenedAgain(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	var full atomic.Bool
	full.Store(true)
	disk.Inject(func(op vfs.Op, name string) error {
		if full.Load() && op == vfs.OpCreate && strings.Contains(name, "manifest") && !strings.Contains(name, "meta") {
			return errors.Join(vfs.ErrNoSpace, syscall.ENOSPC)
		}
		return nil
	})
	createOrders(t, b)
	d, ok := b.View().Destination("orders")
	require.True(t, ok)
	_, err := b.Partition(d.ID, 0)
	require.ErrorIs(t, err, wire.CodePartitionFenced)
	full.Store(false)
	require.Eventually(t, func() bool {
		_, err := b.Partition(d.ID, 0)
		return err == nil
	}, 10*time.Second, 20*time.Millisecond)
}

// Of partitions that did not open nothing is remembered once they have, or are deleted.
func TestPartitionsThatDidNotOpenAreForgotten(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	var full atomic.Bool
	disk.Inject(func(op vfs.Op, name string) error {
		if full.Load() && op == vfs.OpCreate && strings.Contains(name, "manifest") && !strings.Contains(name, "meta") {
			return errors.Join(vfs.ErrNoSpace, syscall.ENOSPC)
		}
		return nil
	})
	remembered := func() int {
		b.mu.RLock()
		defer b.mu.RUnlock()
		return len(b.failed) + len(b.failedID)
	}
	full.Store(true)
	require.NoError(t, createNamed(b, "deleted"))
	require.NoError(t, createNamed(b, "opened"))
	require.NotZero(t, remembered())
	require.NoError(t, deleteNamed(b, "deleted"))
	full.Store(false)
	eventually(t, "nothing that is remembered", func() bool { return remembered() == 0 })
}

// createNamed makes a topic of two partitions.
func createNamed(b *broker, name string) error {
	return administer(b, &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 2, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
}

// deleteNamed deletes a destination.
func deleteNamed(b *broker, name string) error {
	d, ok := b.View().Destination(name)
	if !ok {
		return wire.CodeUnknownDestination
	}
	return administer(b, &wire.DeleteRequest{Name: name, Kind: d.Kind, ID: d.ID})
}

// An event loop that releases the last view of a destination that was deleted
// meanwhile leaves it to a storage worker to close the file and free its blocks.
func TestTheLastViewOfADeletedDestinationIsClosedByAWorker(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	defer func() { require.NoError(t, b.close()) }()
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	r := orders(t, b, 0)
	at, _, err := r.Log().Locate(0)
	require.NoError(t, err)
	require.NoError(t, r.Log().Populate(at, 1))
	view, err := r.Log().View(at, 1000)
	require.NoError(t, err)
	require.Positive(t, view.Bytes)
	d, _ := b.View().Destination("orders")
	require.NoError(t, administer(b, &wire.DeleteRequest{Name: "orders", Kind: wire.Queue, ID: d.ID}))
	eventually(t, "burial", func() bool { return len(b.View().Deleted) == 0 })

	busy := make(chan struct{}) // every worker is
	for range b.cfg.StorageWorkers {
		newLine(b.jobs[wire.StorageDisk]).submit(func() { <-busy })
	}
	free := func() int64 {
		n, _, err := disk.Space("data")
		require.NoError(t, err)
		return n
	}
	before := free()
	view.Release()
	require.Equal(t, before, free(), "the blocks of a file without a name are freed with its last user")
	close(busy)
	eventually(t, "the file is closed", func() bool { return free() > before })
}

// Records of a destination with sync=os are acknowledged before they are on the
// disk. What goes with the machine is neither waited for nor mistaken for what is
// written since; destinations whose records are synced are not touched.
func TestRuleL5_ReadersLearnWhatWentWithTheMachine(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	settings := wire.Settings{Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited}
	require.NoError(t, administer(b, &wire.CreateRequest{Name: "safe", Kind: wire.Topic, Settings: settings}))
	settings.Sync = wire.SyncOS
	require.NoError(t, administer(b, &wire.CreateRequest{Name: "fast", Kind: wire.Topic, Settings: settings}))

	// session opens both partitions and returns what OPEN_PARTITION said.
	session := func(b *broker) (c *rawClient, opened map[string]wire.OpenPartitionResponse, stop func()) {
		n := startNode(t, Limits{}, func(o *engineOptions) { o.Backend = b })
		c = dialOpen(t, n.address)
		opened = map[string]wire.OpenPartitionResponse{}
		for _, name := range []string{"safe", "fast"} {
			var m wire.OpenPartitionResponse
			c.send(wire.OpOpenPartition, 5, &wire.OpenPartitionRequest{Destination: name})
			c.ok(c.answer(5), &m)
			opened[name] = m
			eventually(t, "leader", func() bool {
				r, err := b.Partition(m.DestinationID, 0)
				return err == nil && r.Leading()
			})
		}
		return c, opened, func() {
			require.NoError(t, c.conn.Close())
			eventually(t, "session gone", func() bool { return n.engine.counters.sessions.Load() == 0 })
		}
	}
	produce := func(c *rawClient, handle uint32, n int) (last wire.Receipt) {
		batch, _ := testBatch(t, "record")
		for range n {
			c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: handle, Acks: wire.AcksQuorum, Batch: batch})
			c.ok(c.answer(7), &last)
		}
		return last
	}
	link := func(c *rawClient, handle uint32, offset wire.Offset, incarnation uint32) wire.ErrorBody {
		c.send(wire.OpLinkOpen, 9, &wire.LinkOpenRequest{Handle: handle, Offset: offset, Incarnation: incarnation})
		f := c.answer(9)
		var e wire.ErrorBody
		if f.Flags&wire.FlagError != 0 {
			require.NoError(t, e.Parse(f.body))
		}
		return e
	}

	c, opened, stop := session(b)
	require.Equal(t, uint32(1), opened["fast"].Incarnation)
	require.True(t, produce(c, opened["safe"].Handle, 3).Synced)
	require.False(t, produce(c, opened["fast"].Handle, 5).Synced)
	stop()

	disk.CrashLoseAll()
	_ = b.close() // nothing of it reaches the disk
	boot := func(id string) *broker {
		b, err := openTestBroker(disk, func(c *Config) { c.bootID = id })
		require.NoError(t, err)
		return b
	}
	b = boot("boot 2")
	require.Equal(t, uint64(1), b.damage.reformed.Load())
	c, opened, stop = session(b)
	require.Equal(t, uint32(1), opened["safe"].Incarnation)
	require.Equal(t, wire.Offset(3), opened["safe"].NextOffset)
	require.Equal(t, uint32(2), opened["fast"].Incarnation)
	require.Equal(t, wire.Offset(0), opened["fast"].NextOffset)
	fast := opened["fast"].Handle
	gone := wire.ErrorBody{Code: wire.CodeDataLost, Detail: "fast/0: the machine stopped, or its disk failed, before offsets from 0 on were on its disk; reading can go on at offset 0"}
	require.Equal(t, gone, link(c, fast, 5, 1))
	require.Equal(t, wire.CodeOK, link(c, fast, 0, 1).Code, "who had read nothing has lost nothing")
	require.Equal(t, wire.CodeOutOfRange, link(c, fast, 5, 2).Code, "that offset never existed")
	require.Equal(t, wire.CodeDataLost, link(c, fast, 5, 0).Code)
	require.Equal(t, wire.CodeOK, link(c, opened["safe"].Handle, 3, 1).Code)

	// Other records stand at the same offsets by now: still it is a loss.
	require.Greater(t, produce(c, fast, 7).Epoch, uint32(0))
	require.Equal(t, gone, link(c, fast, 5, 1))
	require.Equal(t, wire.CodeOK, link(c, fast, 5, 2).Code)
	require.Equal(t, wire.CodeOK, link(c, fast, 5, 0).Code)
	stop()
	require.NoError(t, b.close())

	// A clean stop loses nothing, whatever the machine does.
	b = boot("boot 3")
	c, opened, stop = session(b)
	require.Equal(t, uint32(2), opened["fast"].Incarnation)
	require.Equal(t, wire.Offset(7), opened["fast"].NextOffset)
	require.Equal(t, wire.CodeOK, link(c, opened["fast"].Handle, 7, 2).Code)
	stop()
	require.NoError(t, b.close())
}

// A command whose body is damaged cannot be left out of the state. Above the newest
// checkpoint it stops whatever it belongs to, with the file in the reason.
func TestRuleL8_ADamagedCommandIsNotLeftOut(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	// No later entry says that this one was durable: the mark does, that goes to the
	// hard state when nothing more happens.
	eventually(t, "mark", func() bool {
		m := b.meta
		return m.marked.Load() == m.records.Watermark() && !m.idle.Load() && !m.busy()
	})
	disk.CrashLoseAll() // no checkpoint was taken
	_ = b.close()
	names, err := disk.List("data/meta")
	require.NoError(t, err)
	flipped := ""
	for _, name := range names {
		if !strings.HasSuffix(name, ".segment") {
			continue
		}
		f, err := disk.OpenReadOnly("data/meta/" + name)
		require.NoError(t, err)
		size, err := f.Size()
		require.NoError(t, err)
		content := make([]byte, size)
		_, err = f.ReadAt(content, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		if at := bytes.Index(content, []byte(`"create"`)); at > 0 {
			flipped = name
			require.NoError(t, disk.Corrupt("data/meta/"+name, int64(at), 1))
		}
	}
	require.NotEmpty(t, flipped)
	_, err = openTestBroker(disk)
	require.ErrorIs(t, err, log.ErrCorrupt)
	require.ErrorContains(t, err, "the body of a control entry above the newest checkpoint is damaged; restore the file "+flipped+" (position ")
}

// handedBack is a job that the store's journal hands back late.
type handedBack struct{ ran, told chan struct{} }

func (j handedBack) Run()  { close(j.ran) }
func (j handedBack) Done() { close(j.told) }

// What comes back to a partition while its log is being closed waits for that: two
// would change the log at once.
func TestAPartitionThatIsClosedTakesNoTurns(t *testing.T) {
	b := testBroker(t, vfs.NewSimulated(1))
	createOrders(t, b)
	require.Equal(t, wire.CodeOK, produce(t, b, 0))
	r := orders(t, b, 0)
	r.askStop(wire.CodeShuttingDown)
	<-r.stopped
	j := handedBack{make(chan struct{}), make(chan struct{})}
	r.Submit(j)
	<-j.ran
	r.ask(requestSync)
	select {
	case <-j.told:
		t.Error("a turn was taken")
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, b.close())
	<-j.told
}

// Sessions that other nodes forward are served before those of clients: from the first on they
// hear of leaders that change.
func TestSessionsHearOfNewLeadersFromTheFirstOn(t *testing.T) {
	b := testBroker(t, vfs.NewSimulated(1))
	b.cfg.DataDir = t.TempDir()
	s := &Server{broker: b}
	require.NoError(t, s.runEngine(b))
	before := s.engine.routes.Load()
	b.leadersChanged()
	require.Equal(t, before+1, s.engine.routes.Load())
	require.NoError(t, s.engine.stop(context.Background()))
	require.NoError(t, b.close())
}

package fuzz

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// The requirements for nodes that fall silent, die one after the other or all at once,
// join, and never come back.

var requirementKills = flag.Int("requirements.kills", int(anywhere), "how many leaders TestRequirements kills under one producer")

// load is work that goes on from the first loss to the end.
type load struct {
	s         *suite
	conn      *client.Conn
	stop      context.CancelFunc
	logs      []*partitionLog
	producers []*killProducer
}

func (s *suite) startLoad(t *testing.T) *load {
	running, stop := context.WithCancel(t.Context())
	l := &load{s: s, conn: dial(t, s.at(1, 2, 3)), stop: stop}
	t.Cleanup(stop)
	d := s.topic(t, l.conn, client.Settings{Partitions: killPartitions, Replicas: 3, SegmentBytes: 1 << 20})
	s.busy = append(s.busy, d.Name)
	for p := range uint32(killPartitions) {
		l.logs = append(l.logs, &partitionLog{destination: d.Name, partition: p, keyedOnly: true})
	}
	for k := range uint32(killProducers) {
		p := &killProducer{id: k, receipts: map[uint64]place{}}
		l.producers = append(l.producers, p)
		p.start(t, running, dial(t, s.at(1, 2, 3)), d.Name)
	}
	return l
}

// check ends the work and holds its receipts against what is read.
func (l *load) check(t *testing.T) {
	l.stop()
	for _, p := range l.producers {
		p.finish(t)
	}
	verify(t, l.conn, l.logs, l.producers)
	for _, p := range l.producers {
		require.Equal(t, p.sent, p.verified)
		require.NotZero(t, p.sent)
	}
}

// silent stops a node without ending it: its clients learn of that as of a loss, only
// later, and its partitions get other leaders.
func (s *suite) silent(t *testing.T) {
	heard := newEvents()
	conn := dial(t, s.at(3), client.WithEvents(heard.add))
	d := s.topic(t, conn, replicated)
	w := startPaced(t, producer(t, conn, d, client.Partition(partitionOf(t, conn, d, 3))), "")
	w.goesOn(t)
	failed, _ := s.unreconnected(3)(t)
	node := s.nodes[2].command.Process
	require.NoError(t, node.Signal(syscall.SIGSTOP))
	defer node.Signal(syscall.SIGCONT)
	failed(t)
	require.ErrorIs(t, awaitEvent[client.Disconnected](t, heard, detectTime).Err, client.ErrKeepalive)
	w.goesOn(t)
	w.all(t)
	require.NoError(t, node.Signal(syscall.SIGCONT))
	w.holds(t, content(t, conn, d.Name))
	s.await(t, 1, 2, 3, gateway)
}

// rot flips bits of records in a sealed segment of one of three replicas, under load: the
// broker finds them by itself, and what it had is there again.
func (s *suite) rot(t *testing.T) {
	const node = 3
	run := make([]byte, killRecord-12) // what the values of the load end with; no header has so many zeros
	var file string
	var sound []byte
	eventually(t, "a sealed segment of the load", func() bool {
		names, err := filepath.Glob(filepath.Join(s.nodes[node-1].data, "partitions", "*", "*.segment"))
		require.NoError(t, err)
		for i := 2; i < len(names); i++ {
			if filepath.Dir(names[i-2]) == filepath.Dir(names[i]) {
				file = names[i-2] // the one behind is in use, and the next one may be prepared
			}
		}
		return file != ""
	})
	sound, err := os.ReadFile(file)
	require.NoError(t, err)
	before := s.metric(t, node, "lockstep_damage_repaired_total")
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	for at := 1 << 14; at < 1<<19; at += 1 << 16 {
		i := bytes.Index(sound[at:], run)
		require.GreaterOrEqual(t, i, 0)
		_, err = f.WriteAt([]byte{1}, int64(at+i+len(run)/2))
		require.NoError(t, err)
	}
	eventually(t, "the file is as it was", func() bool {
		now, err := os.ReadFile(file)
		return err == nil && bytes.Equal(sound, now)
	})
	eventually(t, "the repairs are counted", func() bool {
		return s.metric(t, node, "lockstep_damage_repaired_total") >= before+8 && s.metric(t, node, "lockstep_damaged_ranges") == 0
	})
}

// step is a place on the way of a record where the leader is killed.
type step int32

const (
	disarmed      step = iota
	beforeRequest      // nothing of it has left the client
	afterRequest       // it has left, and may be anywhere
	beforeAnswer       // the answer has come as far as the client's machine
	anywhere
)

// trap kills a node when a client's traffic with it comes to a step.
type trap struct {
	step atomic.Int32
	node *brokerProcess
	shut chan struct{} // closed when it is dead
}

func (k *trap) springs(at step, address string) bool {
	if step(k.step.Load()) != at || address != k.node.address || !k.step.CompareAndSwap(int32(at), int32(disarmed)) {
		return false
	}
	k.node.kill()
	close(k.shut)
	return true
}

// trapped is a connection of a client that the trap sees.
type trapped struct {
	net.Conn
	trap    *atomic.Pointer[trap]
	address string
}

func (c *trapped) springs(at step) bool {
	k := c.trap.Load()
	return k != nil && k.springs(at, c.address)
}

func (c *trapped) Write(b []byte) (int, error) {
	h, err := wire.ParseHeader(b)
	produces := err == nil && h.Opcode == wire.OpProduce
	if produces {
		c.springs(beforeRequest)
	}
	n, err := c.Conn.Write(b)
	if produces {
		c.springs(afterRequest)
	}
	return n, err
}

func (c *trapped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.springs(beforeAnswer) {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// kills has one producer that never sees an error while the leaders of its partition are
// killed one after the other, at every step of the way of a record: each record is stored
// once, in its order.
func (s *suite) kills(t *testing.T) {
	var traps atomic.Pointer[trap]
	conn := dial(t, s.at(1, 2, 3), client.WithDialer(func(ctx context.Context, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return &trapped{c, &traps, address}, nil
	}))
	admin := dial(t, s.at(1, 2, 3))
	d := s.topic(t, admin, client.Settings{Partitions: 1, Replicas: 3})
	w := startPaced(t, producer(t, conn, d), "")
	for n := range *requirementKills {
		w.goesOn(t)
		leader := ledTopic(t, admin, d.Name).Partitions[0].Leader
		k := &trap{node: s.nodes[leader-1], shut: make(chan struct{})}
		at := beforeRequest + step(n)%anywhere
		k.step.Store(int32(at))
		traps.Store(k)
		if at == anywhere {
			time.Sleep(rand.N(2 * pace)) // a random moment
			k.springs(anywhere, k.node.address)
		}
		select {
		case <-k.shut:
		case <-time.After(startTimeout):
			require.Fail(t, "the leader is not used", "node %d, step %d", leader, at)
		}
		w.goesOn(t)
		k.node.start()
		s.await(t, 1, 2, 3)
	}
	w.all(t)
	want := make([]string, w.sent.Load())
	for i := range want {
		want[i] = fmt.Sprintf("%07d", i)
	}
	require.Equal(t, map[uint32][]string{0: want}, content(t, admin, d.Name))
	require.Less(t, w.gap, detectTime+electTime)
	t.Logf("%d kills, %d records, at worst nothing was acknowledged for %v", *requirementKills, len(want), w.gap.Round(time.Millisecond))
}

// inventory is what is permanent: destinations with their settings and placement, and what
// each of their partitions holds, aliases, and groups. What others are sending to is left out.
func inventory(t *testing.T, conn *client.Conn, except []string) (list []string) {
	all, err := conn.Destinations(patient(t))
	require.NoError(t, err)
	for _, d := range all {
		line := fmt.Sprintf("%s %x %v %+v", d.Name, d.ID, d.Kind, d.Settings)
		for _, p := range d.Partitions {
			line += fmt.Sprintf(" %d/%d/%v", p.Preferred, p.Weight, p.Policy)
		}
		if d.Settings.Storage != client.StorageMemory && !slices.Contains(except, d.Name) {
			offsets, err := conn.Offsets(patient(t), d.Name, client.Latest())
			require.NoError(t, err)
			line += fmt.Sprint(offsets)
		}
		list = append(list, line)
	}
	aliases, err := conn.Aliases(patient(t))
	require.NoError(t, err)
	groups, err := conn.Groups(patient(t), "")
	require.NoError(t, err)
	for _, g := range groups {
		list = append(list, fmt.Sprintf("%+v", g))
	}
	return append(list, fmt.Sprintf("%+v", aliases))
}

// restart kills all nodes and starts them again, and nothing else. Somebody has handled a
// part of a queue, and does not get it again.
func (s *suite) restart(t *testing.T) {
	const handled, left = 60, 40
	conn := dial(t, s.at(1))
	d, err := conn.CreateDestination(patient(t), client.Destination{Name: "kept", Kind: client.Queue, Settings: client.Settings{
		Partitions: 2, Replicas: 3, RetentionTime: time.Hour, ThresholdRecords: 1000, DeliveryLimit: 7, DeadLetter: "letters", MaxRecordBytes: 4096,
	}})
	require.NoError(t, err)
	ledTopic(t, conn, d.Name)
	require.NoError(t, conn.CreateAlias(patient(t), client.Alias{Name: "half", Destination: d.Name, Partitions: []uint32{1}}))
	require.NoError(t, conn.PlacePartition(patient(t), d.Name, 1, client.Placement{Mask: wire.MaskWeight, Weight: 3}))
	_, err = conn.CreateGroup(patient(t), d.Name, "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Shared, SessionMs: 7000}})
	require.NoError(t, err)
	sendAll(t, producer(t, conn, &d, client.LocalPreference(false)), "", handled+left)
	require.EqualValues(t, left, backlog(t, conn, d.Name, func(c *client.Consumer) { handle(t, c, handled) }))
	before := inventory(t, conn, s.busy)
	for _, b := range s.nodes {
		b.kill()
	}
	for _, b := range s.nodes {
		b.start()
	}
	s.await(t, 1, 2, 3, gateway)
	conn = dial(t, s.at(2))
	require.Equal(t, before, inventory(t, conn, s.busy))
	require.Zero(t, backlog(t, conn, d.Name, func(c *client.Consumer) { handle(t, c, left) }))
}

// grow adds a node under load: nobody sees an error, and it gets its share of leaders.
// What that does to latencies depends on the machine, and is for people to read.
func (s *suite) grow(t *testing.T) {
	if *requirementKills < 50 {
		t.Skip("takes 10 s; make nightly does it. In each run: TestR_IS_5 of package server")
	}
	conn := dial(t, s.at(1))
	all, err := conn.Destinations(patient(t))
	require.NoError(t, err)
	for _, d := range all { // they would only take time
		if !slices.Contains(s.busy, d.Name) {
			require.NoError(t, conn.DeleteDestination(patient(t), d))
		}
	}
	d := s.topic(t, conn, client.Settings{Partitions: 12, Replicas: 3})
	w := startPaced(t, producer(t, conn, d, client.LocalPreference(false)), "")
	for range 200 {
		w.goesOn(t)
	}
	before := w.latencies()
	began := time.Now()
	s.join("--rack", "d")
	node := uint32(len(s.nodes))
	share := 0.0 // of a fair one
	require.Eventually(t, func() bool {
		all, err := conn.Destinations(t.Context())
		led, mine := 0, 0
		for _, d := range all {
			for _, p := range d.Partitions {
				led++
				if p.Leader == node {
					mine++
				}
			}
		}
		share = 4 * float64(mine) / float64(led)
		return err == nil && share >= 0.8 && share <= 1.2
	}, time.Minute, 20*time.Millisecond, "the new node leads its share")
	during := w.latencies()
	w.all(t)
	t.Logf("node %d leads %.2f of its share after %v; a record before: %s; while it took its share: %s; 0 errors; %s",
		node, share, time.Since(began).Round(time.Millisecond), spread(before), spread(during), machineLoad())
	w.holds(t, content(t, conn, d.Name))
}

// destroy loses a node with its disk for ever, and the consumer that it had, which holds
// some records: the consumers of the others get everything that nobody has handled yet.
func (s *suite) destroy(t *testing.T) {
	const records, prefetch = 100_000, 100
	conn := dial(t, s.at(3))
	_, err := conn.CreateDestination(patient(t), client.Destination{Name: "marooned", Kind: client.Queue, Settings: client.Settings{Partitions: 3, Replicas: 3}})
	require.NoError(t, err)
	d := ledTopic(t, conn, "marooned")
	partitionOf(t, conn, d, 1)
	sendAll(t, producer(t, conn, d, client.LocalPreference(false), client.BatchBytes(8<<10)), "", records)
	group := []client.ConsumerOption{client.Group("g"), client.Mode(client.Shared), client.SessionTimeout(3 * time.Second), client.Prefetch(prefetch)}
	lost, err := dial(t, s.at(1), client.AllowRedirect(false)).Consumer(patient(t), d.Name, group...)
	require.NoError(t, err)
	begun := map[string]bool{}
	for len(begun) < prefetch {
		list, err := lost.Fetch(patient(t), prefetch-len(begun), startTimeout)
		require.NoError(t, err)
		for _, d := range list {
			begun[string(d.Value)] = true
		}
	}
	s.nodes[0].kill()
	require.NoError(t, os.RemoveAll(s.nodes[0].data))
	// The session timeout was for the lost one. Those that live are not to be given up because the
	// machine is busy.
	var info client.GroupInfo
	if !assert.Eventually(t, func() bool {
		info, err = conn.DescribeGroup(patient(t), d.Name, "g")
		return err == nil && len(info.Partitions) == len(d.Partitions) &&
			!slices.ContainsFunc(info.Partitions, func(p client.GroupPartition) bool { return p.Problem != "" || p.GroupID == 0 || len(p.Sessions) > 0 })
	}, startTimeout, 20*time.Millisecond, "the lost consumer is unlisted") {
		require.FailNow(t, "it is listed", "%+v, %v", info.Partitions, err)
	}
	_, err = conn.AlterGroup(patient(t), d.Name, "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Shared, SessionMs: 60_000}})
	require.NoError(t, err)
	group[2] = client.SessionTimeout(time.Minute)
	var mu sync.Mutex
	seen := make([]bool, records)
	again, left := 0, records
	running, stop := context.WithTimeout(t.Context(), startTimeout)
	defer stop()
	var members sync.WaitGroup
	for n := 2; n <= 3; n++ {
		c, err := dial(t, s.at(n)).Consumer(patient(t), d.Name, group...)
		require.NoError(t, err)
		members.Go(func() {
			err := c.Run(running, func(_ context.Context, d *client.Delivery) error {
				i, err := strconv.Atoi(string(d.Value))
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				if seen[i] {
					t.Errorf("%s was handled twice by consumers that live", d.Value)
				}
				seen[i] = true
				left--
				// Where the leader was lost too, nobody knows which records the consumer had (GROUPS rule 19).
				if begun[string(d.Value)] && (!d.Redelivered || d.Deliveries < 2 && !d.AtLeast) {
					t.Errorf("%s was begun by the lost consumer: redelivered %v, %d attempts, %d deliveries, at least %v",
						d.Value, d.Redelivered, d.Attempts, d.Deliveries, d.AtLeast)
				}
				if d.Attempts > 0 { // what the others give back untouched when they share is not handled again
					again++
				}
				if left == 0 {
					stop()
				}
				return nil
			}, client.Workers(4))
			require.ErrorIs(t, err, context.Canceled)
			require.NoError(t, c.Close(patient(t)))
		})
	}
	members.Wait()
	require.Zero(t, left)
	require.LessOrEqual(t, again, len(d.Partitions)*prefetch, "no more than the lost consumer was sent")
	t.Logf("%d records, %d of them had failed with the lost consumer", records, again)
}

package fuzz

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cli"
	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	zombieHandovers = flag.Int("zombie.handovers", 20, "how often TestF16 hands a producer's name over")
	zombiePause     = flag.Duration("zombie.pause", 100*time.Millisecond, "how long a holder is stopped at the most")
	zombieLong      = flag.Int("zombie.long", 0, "one in so many holders is stopped for longer than a session lasts; 0: none")
	zombieSeed      = flag.Uint64("zombie.seed", 0, "draws pauses, timeouts and kills; 0 takes the clock's")
)

const (
	zombieKeys     = 8  // that lie in both partitions
	zombieBurst    = 40 // acknowledged records after which a holder is established
	zombieBuffer   = 200
	zombieSession  = 7 * time.Second // longer than a client waits for a silent broker
	zombieTimeout  = 30 * time.Millisecond
	zombiePatience = 60 * time.Second
)

// A test binary is started again as one of these, by the variable roleVariable.
const (
	roleVariable = "FUZZ_ROLE"
	roleHolder   = "holder" // a producer: number, address, delivery timeout
	roleBroker   = "broker" // the program, with a check taken away or a fault put in: which
	roleTaker    = "taker"  // a consumer: session, addresses, destination, name
)

// TestMain starts the role that the environment names, or the tests.
func TestMain(m *testing.M) {
	switch role := strings.Fields(os.Getenv(roleVariable)); {
	case len(role) == 4 && role[0] == roleHolder:
		os.Exit(holdName(role[1], role[2], role[3]))
	case len(role) == 5 && role[0] == roleTaker:
		os.Exit(takeRecords(role[1], role[2], role[3], role[4]))
	case len(role) == 2 && role[0] == roleBroker:
		var rule group.Rule
		if n, _ := fmt.Sscanf(role[1], "rule-%d", &rule); n == 1 {
			partition.IgnoreRules(rule)
		}
		partition.IgnoreEpochs(role[1] == "epochs")
		partition.IgnoreSequences(role[1] == "sequences")
		partition.IgnoreMajorities(role[1] == "majorities")
		server.IgnoreConfirmations(role[1] == "confirmations")
		server.IgnoreRepairs(role[1] == "repairs")
		switch role[1] {
		case "syncs":
			skipSyncsWhenTold()
		case "stalls":
			stallWhenTold()
		}
		os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	code := m.Run()
	if builtIn != "" {
		_ = os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// written is the value of a record: whose it is, and which of its key.
type written struct {
	holder, key uint32
	number      uint64
	probe       bool // sent after a failure, to see whether the holder may still write
}

func (w *written) value() []byte {
	v := binary.LittleEndian.AppendUint32(nil, w.holder)
	v = binary.LittleEndian.AppendUint32(v, w.key)
	v = binary.LittleEndian.AppendUint64(v, w.number)
	if w.probe {
		return append(v, 1)
	}
	return append(v, 0)
}

func writtenAs(v []byte) (w written, err error) {
	if len(v) != 17 {
		return w, fmt.Errorf("a value of %d bytes", len(v))
	}
	le := binary.LittleEndian
	return written{holder: le.Uint32(v), key: le.Uint32(v[4:]), number: le.Uint64(v[8:]), probe: v[16] == 1}, nil
}

// holdName is the process of one holder: it opens the name and writes, whatever
// happens, until it is fenced or its standard input closes. It prints a line for each
// record that is acknowledged: key, number, partition, offset.
func holdName(number, address, timeout string) int {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	defer cancel()
	holder, _ := strconv.ParseUint(number, 10, 32)
	patience, _ := time.ParseDuration(timeout)
	var p *client.Producer
	for {
		conn, err := client.Connect(ctx, address, client.WithReconnectBackoff(5*time.Millisecond, 50*time.Millisecond))
		if err == nil {
			p, err = conn.Producer(ctx, "zombies", client.ProducerName("zombie"), client.DeliveryTimeout(patience), client.MaxBufferedRecords(zombieBuffer))
		}
		if err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond) // the broker may be down: try again
	}
	var fenced atomic.Bool
	sound, failed := context.WithCancel(ctx) // until a record fails: what is sent then is no part of the text
	told := func(err error) {
		failed()
		if errors.Is(err, client.ErrFenced) {
			fenced.Store(true)
		}
	}
	for n := uint64(0); !fenced.Load(); n++ {
		w := written{holder: uint32(holder), key: uint32(n % zombieKeys), number: n / zombieKeys, probe: sound.Err() != nil}
		sending := sound
		if w.probe {
			sending = ctx
		}
		err := p.SendFunc(sending, &client.Record{Key: []byte{byte(w.key)}, Value: w.value()}, func(r client.Receipt, err error) {
			if err != nil {
				told(err)
				return
			}
			fmt.Printf("%d %d %t %d %d\n", w.key, w.number, w.probe, r.Partition, r.Offset)
		})
		if err != nil {
			told(err)
		}
		if n%zombieKeys == 0 {
			time.Sleep(time.Millisecond) // its rate, so that a handover meets it at work
		}
	}
	fmt.Println("fenced")
	return 0
}

// holder is the process of one holder as the test sees it.
type holder struct {
	number  uint32
	command *exec.Cmd
	stdin   io.Closer
	ended   chan struct{}

	mu     sync.Mutex
	acks   map[written]place
	count  int
	fenced bool
}

func startHolder(t *testing.T, number uint32, address string, timeout time.Duration) *holder {
	t.Helper()
	h := &holder{number: number, ended: make(chan struct{}), acks: map[written]place{}}
	h.command = exec.Command(os.Args[0])
	h.command.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s %v", roleVariable, roleHolder, number, address, timeout),
		"GORACE=atexit_sleep_ms=0") // or the race detector makes each end take a second
	var err error
	h.stdin, err = h.command.StdinPipe()
	require.NoError(t, err)
	out, err := h.command.StdoutPipe()
	require.NoError(t, err)
	h.command.Stderr = os.Stderr
	require.NoError(t, h.command.Start())
	go func() {
		defer close(h.ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			h.note(s.Text())
		}
		_ = h.command.Wait()
	}()
	t.Cleanup(h.kill)
	return h
}

func (h *holder) note(line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if line == "fenced" {
		h.fenced = true
		return
	}
	w, at := written{holder: h.number}, place{}
	if n, _ := fmt.Sscan(line, &w.key, &w.number, &w.probe, &at.partition, &at.offset); n == 5 {
		h.acks[w] = at
		h.count++
	}
}

func (h *holder) acknowledged() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

func (h *holder) kill() {
	_ = h.command.Process.Kill()
	<-h.ended
}

// established waits until so many records more are acknowledged, or the holder ends.
func (h *holder) established(t *testing.T, more int) {
	t.Helper()
	want := h.acknowledged() + more
	require.Eventually(t, func() bool {
		select {
		case <-h.ended:
			return true
		default:
			return h.acknowledged() >= want
		}
	}, zombiePatience, time.Millisecond, "holder %d does not write", h.number)
}

// zombies hands a name over from process to process, and knows what must be read.
type zombies struct {
	t       *testing.T
	random  *rand.Rand
	broker  *brokerProcess
	conn    *client.Conn
	current *holder
	holders []*holder
	logs    [killPartitions][]written
	kills   int
}

func newZombies(t *testing.T, seed uint64, ignored string) *zombies {
	z := &zombies{t: t, random: rand.New(rand.NewPCG(seed, 16)), broker: newBroker(t)}
	if ignored != "" {
		z.broker.binary, z.broker.role = os.Args[0], roleBroker+" "+ignored
	}
	z.broker.start()
	z.conn = z.broker.connect()
	_, err := z.conn.CreateDestination(t.Context(), client.Destination{
		Name: "zombies", Kind: wire.Topic,
		Settings: client.Settings{Partitions: killPartitions, Replicas: 1, SegmentBytes: 1 << 20},
	})
	require.NoError(t, err)
	z.current = z.begin(time.Minute)
	z.current.established(t, zombieBurst)
	return z
}

// begin starts the next holder.
func (z *zombies) begin(timeout time.Duration) *holder {
	h := startHolder(z.t, uint32(len(z.holders)), z.broker.address, timeout)
	z.holders = append(z.holders, h)
	return h
}

// killBroker ends the broker's life at one of the points of a handover, at times.
func (z *zombies) killBroker() {
	if z.random.IntN(6) == 0 {
		z.broker.kill()
		z.broker.start()
		z.kills++
	}
}

// handover stops the current holder, starts a successor and lets the old one go on,
// which must end it.
func (z *zombies) handover() {
	old := z.current
	pause := time.Duration(z.random.Int64N(int64(*zombiePause) + 1))
	if *zombieLong > 0 && z.random.IntN(*zombieLong) == 0 {
		pause = zombieSession
	}
	z.killBroker()
	require.NoError(z.t, old.command.Process.Signal(syscall.SIGSTOP), "holder %d has ended; nobody has taken its name", old.number)
	z.killBroker()
	timeout := time.Minute
	if z.random.IntN(2) == 0 {
		timeout = zombieTimeout // it gives up its records when it goes on
	}
	z.current = z.begin(timeout)
	z.killBroker()
	z.current.established(z.t, zombieBurst)
	time.Sleep(pause) // how long it stands still is what is tried
	require.NoError(z.t, old.command.Process.Signal(syscall.SIGCONT))
	z.killBroker()
	resumed := old.acknowledged()
	require.Eventually(z.t, func() bool {
		select {
		case <-old.ended:
			return true
		default: // what was on its way may be answered now; more than that is for check to judge
			return old.acknowledged() > resumed+2*zombieBuffer
		}
	}, zombiePatience, time.Millisecond, "holder %d is not fenced", old.number)
	old.kill()
}

// check reads everything and says what must not be.
func (z *zombies) check() error {
	z.broker.ready(z.conn)
	// Receipts first: what is acknowledged by now must be readable afterwards.
	acknowledged := map[written]place{}
	for _, h := range z.holders {
		h.mu.Lock()
		maps.Copy(acknowledged, h.acks)
		clear(h.acks)
		h.mu.Unlock()
	}
	for n := range uint32(killPartitions) {
		if err := z.read(n); err != nil {
			return err
		}
	}
	for w, at := range acknowledged {
		if log := z.logs[at.partition]; at.offset >= uint64(len(log)) || log[at.offset] != w {
			return fmt.Errorf("%+v is acknowledged at partition %d offset %d and not there", w, at.partition, at.offset)
		}
	}
	return nil
}

// read reads a partition and checks the order of its records.
func (z *zombies) read(n uint32) error {
	ctx, cancel := context.WithTimeout(z.t.Context(), zombiePatience)
	defer cancel()
	reader, err := z.conn.Reader(ctx, "zombies", client.Partitions(n), client.StopAtEnd())
	if err != nil {
		return err
	}
	defer reader.Close()
	var last uint32
	var log []written
	next := map[uint32]uint64{} // by key, of the last holder
	for {
		r, err := reader.Next(ctx)
		if errors.Is(err, io.EOF) {
			z.logs[n] = log
			return nil
		}
		if err != nil {
			return err
		}
		w, err := writtenAs(r.Value)
		if err != nil {
			return err
		}
		switch {
		case w.holder < last:
			return fmt.Errorf("partition %d offset %d: %+v stands behind a record of holder %d: a zombie wrote", n, r.Offset, w, last)
		case w.holder > last:
			last = w.holder
			clear(next)
		}
		if !w.probe {
			if w.number != next[w.key] {
				return fmt.Errorf("partition %d offset %d: %+v stands where number %d belongs: twice, or with a gap", n, r.Offset, w, next[w.key])
			}
			next[w.key]++
		}
		log = append(log, w)
	}
}

func zombieSeeded(t *testing.T) uint64 {
	seed := *zombieSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("zombie.seed %d", seed)
	return seed
}

// TestF16_ZombieProducers stops processes that write under one name, each in the middle
// of its work, starts a successor, and lets the old one go on; the broker is killed
// meanwhile. No record of an old holder stands behind the first one of its successor,
// none stands twice, none is missing.
func TestF16_ZombieProducers(t *testing.T) {
	z := newZombies(t, zombieSeeded(t), "")
	fenced := 0
	for i := range *zombieHandovers {
		z.handover()
		if i%50 == 49 {
			require.NoError(t, z.check())
		}
	}
	z.current.kill()
	require.NoError(t, z.check())
	for _, h := range z.holders[:len(z.holders)-1] {
		require.True(t, h.fenced, "holder %d ended without a reason", h.number)
		fenced++
	}
	t.Logf("%d handovers, %d zombies fenced, %d kills of the broker, %d records", *zombieHandovers, fenced, z.kills, len(z.logs[0])+len(z.logs[1]))
}

func TestF16_Catches_EpochsThatNobodyChecks(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds cannot ignore them")
	}
	z := newZombies(t, zombieSeeded(t), "epochs")
	for n := range 20 {
		z.handover()
		if err := z.check(); err != nil {
			require.ErrorContains(t, err, "a zombie wrote")
			t.Logf("caught after %d handovers: %v", n+1, err)
			return
		}
	}
	t.Fatal("not caught")
}

func TestF16_Catches_SequencesThatNobodyChecks(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds cannot ignore them")
	}
	z := newZombies(t, zombieSeeded(t), "sequences")
	for n := range 40 {
		z.broker.kill()
		z.broker.start()
		z.current.established(t, zombieBurst)
		if err := z.check(); err != nil {
			require.ErrorContains(t, err, "twice, or with a gap")
			t.Logf("caught after %d kills: %v", n+1, err)
			return
		}
	}
	t.Fatal("not caught")
}

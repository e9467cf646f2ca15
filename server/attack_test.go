package server

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/wire"
)

// Attackers are a process of their own, so that their descriptors and memory are
// not the broker's: this test binary, started again.

// attack says what the attackers do.
type attack struct {
	Mode        string // one of attackModes
	Address     string
	Connections int
	Destination string
}

// fullAttack runs TestAttackers with the numbers and deadlines of a broker in use.
var fullAttack = flag.Bool("attack.full", false, "ten thousand attackers and the default deadlines, half a minute; with -tags release")

// attackEnvironment carries an attack, as JSON, to the attackers' process.
const attackEnvironment = "LOCKSTEP_TEST_ATTACK"

// promptExit spares a process of the race detector the second that it waits at its
// end for reports.
const promptExit = "GORACE=atexit_sleep_ms=0"

// attackers is the running process.
type attackers struct {
	t       *testing.T
	command *exec.Cmd
	stdin   io.WriteCloser
	stopped bool
	lines   chan string // what it says of its attacks; closed when it is gone
	made    chan int    // of the attack under way, once all its connections are made or refused
}

// startAttack starts the process and its first attack.
func startAttack(t *testing.T, a attack) *attackers {
	t.Helper()
	encoded, err := json.Marshal(a)
	require.NoError(t, err)
	p := &attackers{t: t, lines: make(chan string), command: exec.Command(os.Args[0], "-test.run=^TestAttackerProcess$")}
	p.command.Env = append(os.Environ(), attackEnvironment+"="+string(encoded), "GOMAXPROCS=1", promptExit)
	p.command.Stderr = os.Stderr
	p.stdin, err = p.command.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.command.Start())
	t.Cleanup(p.stop)
	go func() {
		defer close(p.lines)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	p.expect()
	return p
}

// expect awaits the outcome of an attack that has been asked for.
func (p *attackers) expect() {
	made := make(chan int, 1)
	p.made = made
	go func() {
		var n int
		if _, err := fmt.Sscanf(<-p.lines, "connected %d", &n); err != nil {
			n = -1
		}
		made <- n
	}()
}

// connected waits until all connections are made or refused, and returns how
// many were made.
func (p *attackers) connected() int {
	p.t.Helper()
	n := <-p.made
	p.made <- n
	require.GreaterOrEqual(p.t, n, 0, "the attackers' process has ended")
	return n
}

// withdraw ends the attack: all its connections are closed when it returns.
func (p *attackers) withdraw() {
	p.t.Helper()
	p.connected()
	_, err := io.WriteString(p.stdin, "withdraw\n")
	require.NoError(p.t, err)
	require.Equal(p.t, "withdrawn", <-p.lines)
}

// again begins the same attack once more, after withdraw.
func (p *attackers) again() {
	p.t.Helper()
	_, err := io.WriteString(p.stdin, "attack\n")
	require.NoError(p.t, err)
	p.expect()
}

// stop ends the process; it is gone when stop returns.
func (p *attackers) stop() {
	if p.stopped {
		return
	}
	p.stopped = true
	_ = p.stdin.Close()
	p.made <- <-p.made // the lines are ours from here on
	for range p.lines {
	}
	require.NoError(p.t, p.command.Wait())
}

// TestAttackerProcess is the attackers' process. On its own it does nothing.
func TestAttackerProcess(t *testing.T) {
	encoded := os.Getenv(attackEnvironment)
	if encoded == "" {
		return
	}
	var a attack
	require.NoError(t, json.Unmarshal([]byte(encoded), &a))
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	limit.Cur = limit.Max
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	// Idle scheduling: what is measured is the broker and not how processes share
	// the processors.
	const idle = 5 // SCHED_IDLE
	require.NoError(t, unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: idle}, 0))

	orders := make(chan string)
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			orders <- lines.Text()
		}
		os.Exit(0)
	}()
	for {
		victims := connectVictims(a)
		fmt.Printf("connected %d\n", len(victims))
		ticker := time.NewTicker(time.Second / drips)
		for part, ordered := 0, false; !ordered; part = (part + 1) % drips {
			select {
			case <-orders:
				ordered = true
			case <-ticker.C:
				for i := part; i < len(victims); i += drips {
					victims[i].drip()
				}
			}
		}
		ticker.Stop()
		for _, v := range victims {
			_ = v.conn.SetLinger(0)
			_ = v.conn.Close()
		}
		fmt.Println("withdrawn")
		<-orders
	}
}

// drips is in how many parts a second's drips are sent: attackers do not know of
// each other.
const drips = 100

// connectVictims makes the connections of an attack, and returns those that were
// not refused by the kernel.
func connectVictims(a attack) (victims []*victim) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	dials := make(chan struct{}, 32)
	for i := range a.Connections {
		dials <- struct{}{}
		wg.Go(func() {
			defer func() { <-dials }()
			conn, err := net.DialTimeout("tcp", a.Address, 5*time.Second)
			if err != nil {
				return
			}
			v := &victim{conn: conn.(*net.TCPConn)}
			v.begin(a, i)
			mu.Lock()
			defer mu.Unlock()
			victims = append(victims, v)
		})
	}
	wg.Wait()
	return victims
}

// victim is one connection of an attacker.
type victim struct {
	conn *net.TCPConn
	rest []byte // sent a byte a second
}

// dripped is what half of the victims send a byte a second of.
var dripped = frameOf(wire.OpProduce, 2, &wire.ProduceRequest{Batch: make([]byte, 1<<20)})

// begin does what the mode does at once.
func (v *victim) begin(a attack, i int) {
	hello := append([]byte(wire.Preface), frameOf(wire.OpHello, 1, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1})...)
	switch a.Mode {
	case "idle":
	case "drip": // half of them before HELLO, half of them in a frame
		if i%2 == 0 {
			v.rest = hello
			break
		}
		_, _ = v.conn.Write(hello)
		v.rest = dripped
	case "stall": // consumers that never read
		_ = v.conn.SetReadBuffer(4096)
		b := append(hello, frameOf(wire.OpOpenPartition, 2, &wire.OpenPartitionRequest{Destination: a.Destination})...)
		b = append(b, frameOf(wire.OpLinkOpen, 3, &wire.LinkOpenRequest{Handle: 1, Credit: 1 << 30})...)
		_, _ = v.conn.Write(b)
	default:
		panic("unknown mode " + a.Mode)
	}
}

func (v *victim) drip() {
	if len(v.rest) > 0 {
		_, _ = v.conn.Write(v.rest[:1])
		v.rest = v.rest[1:]
	}
}

// brokerEnvironment carries the limits of a broker, as JSON, to its process, and
// brokerDirectory the directory for its data.
const (
	brokerEnvironment = "LOCKSTEP_TEST_BROKER"
	brokerDirectory   = "LOCKSTEP_TEST_BROKER_DIRECTORY"
)

// brokerState is what a broker's process says of itself.
type brokerState struct {
	Address   string
	Resident  int64         // bytes of RAM that are not files
	Processor time.Duration // used so far, of the kernel too
	Sessions  int64
	Accepted  uint64
	Panics    uint64
	Closed    [closeReasons]uint64
}

// brokerProcess is a broker in a process of its own: neither the attackers' nor
// the healthy client's memory and processor time are its own.
type brokerProcess struct {
	t       *testing.T
	command *exec.Cmd
	stdin   io.WriteCloser
	stdout  *bufio.Reader
	address string
}

func startBrokerProcess(t *testing.T, limits Limits) *brokerProcess {
	t.Helper()
	encoded, err := json.Marshal(limits)
	require.NoError(t, err)
	p := &brokerProcess{t: t, command: exec.Command(os.Args[0], "-test.run=^TestBrokerProcess$")}
	// The directory is this process's to remove: the broker's ends without looking back.
	p.command.Env = append(os.Environ(), brokerEnvironment+"="+string(encoded), brokerDirectory+"="+t.TempDir(), promptExit)
	p.command.Stderr = os.Stderr
	p.stdin, err = p.command.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.command.StdoutPipe()
	require.NoError(t, err)
	p.stdout = bufio.NewReader(stdout)
	require.NoError(t, p.command.Start())
	t.Cleanup(func() {
		_ = p.stdin.Close()
		_, _ = io.Copy(io.Discard, p.stdout)
		require.NoError(t, p.command.Wait())
	})
	p.address = p.state(false).Address
	return p
}

// state asks for the broker's state, after a collection of garbage if settled.
func (p *brokerProcess) state(settled bool) (state brokerState) {
	p.t.Helper()
	question := "now\n"
	if settled {
		question = "settled\n"
	}
	_, err := io.WriteString(p.stdin, question)
	require.NoError(p.t, err)
	line, err := p.stdout.ReadBytes('\n')
	require.NoError(p.t, err)
	require.NoError(p.t, json.Unmarshal(line, &state))
	return state
}

// TestBrokerProcess is the broker's process. On its own it does nothing.
func TestBrokerProcess(t *testing.T) {
	encoded := os.Getenv(brokerEnvironment)
	if encoded == "" {
		return
	}
	var limits Limits
	require.NoError(t, json.Unmarshal([]byte(encoded), &limits))
	s, err := Start(t.Context(), Config{
		DataDir: filepath.Join(os.Getenv(brokerDirectory), "data"), Listen: "127.0.0.1:0", HTTP: "off", Limits: limits,
		Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	c := &s.engine.counters
	for questions := bufio.NewScanner(os.Stdin); questions.Scan(); {
		if questions.Text() == "settled" {
			runtime.GC()
			debug.FreeOSMemory()
		}
		state := brokerState{
			Address: s.Addr(), Resident: residentBytes(t), Processor: processorTime(t), Sessions: c.sessions.Load(),
			Accepted: c.accepted.Load(), Panics: c.panics.Load(),
		}
		for reason := range state.Closed {
			state.Closed[reason] = c.closed[reason].Load()
		}
		line, err := json.Marshal(&state)
		require.NoError(t, err)
		fmt.Println(string(line))
	}
	require.NoError(t, s.Close(t.Context()))
	os.Exit(0)
}

// residentBytes is the memory of this process that is in RAM and is not files.
func residentBytes(t *testing.T) int64 {
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			require.NoError(t, err)
			return kib << 10
		}
	}
	t.Fatal("no RssAnon in /proc/self/status")
	return 0
}

// processorTime is what this process has used so far, the kernel for it included.
func processorTime(t *testing.T) time.Duration {
	var usage unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// healthyClient produces one record after the other.
type healthyClient struct {
	c       *rawClient
	handle  uint32
	batch   []byte
	records wire.Offset
}

// connectHealthy makes a topic of its own for the client.
func connectHealthy(t *testing.T, address string) *healthyClient {
	t.Helper()
	h := &healthyClient{c: dialOpen(t, address)}
	h.c.createTopic("healthy")
	h.handle = h.c.open("healthy", 0)
	h.batch, _ = testBatch(t, strings.Repeat("v", 1000))
	return h
}

// createTopic makes a topic of one partition that is not synced: disks would be
// measured with it.
func (c *rawClient) createTopic(name string) {
	c.t.Helper()
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 1, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}})
	require.Equal(c.t, wire.CodeOK, c.answer(2).code())
}

// produce sends a record and returns how long it waited for its receipt.
func (h *healthyClient) produce() time.Duration {
	begin := time.Now()
	h.c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: h.handle, Acks: wire.AcksQuorum, Batch: h.batch})
	var receipt wire.Receipt
	h.c.ok(h.c.answer(7), &receipt)
	waited := time.Since(begin)
	require.Equal(h.c.t, h.records, receipt.BaseOffset)
	h.records++
	return waited
}

// A machine that does something else at the same time makes answers late, never early:
// of attackTries sieges one has to keep the bar for latencies, and all keep the others.
const attackTries = 3

var errSlow = errors.New("the healthy client waits")

// TestAttackers is the last bar of RELIABILITY §6.4: connections that send nothing,
// or a byte a second, and consumers that never read. Memory grows by 64 MiB at most,
// all of them are closed at their deadlines, and a healthy client gets its answers.
// With -attack.full there are ten thousand of them, and the healthy client's p99 is
// held against the bar; without, against nothing: the numbers are too few.
func TestAttackers(t *testing.T) {
	for _, mode := range attackModes {
		t.Run(mode, func(t *testing.T) {
			var err error
			for range attackTries {
				s := newSiege(t, mode)
				s.run(time.Minute)
				s.log()
				if err = s.check(); !errors.Is(err, errSlow) {
					break
				}
				t.Log(err)
			}
			require.NoError(t, err)
		})
	}
}

// The same check finds a broker that lacks the deadline which ends such an attack.
func TestAttackers_Catches_ABrokerWithoutDeadlines(t *testing.T) {
	for _, mode := range attackModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := newSiege(t, mode)
			for _, deadline := range []*time.Duration{&s.limits.HandshakeTimeout, &s.limits.FrameTimeout, &s.limits.WriteTimeout} {
				*deadline = time.Hour
			}
			s.run(1500 * time.Millisecond)
			require.ErrorContains(t, s.check(), "attackers are still there")
		})
	}
}

// attackModes are what TestAttackers does: connections that send nothing, that send a
// byte a second, and consumers that never read.
var attackModes = []string{"idle", "drip", "stall"}

// siege is one attack with what came of it. Attackers, the broker under attack and a
// second broker that is left alone are processes of their own. The healthy client
// produces to both brokers in turns: what the machine has to do besides, for the
// attackers among others, slows both down, and what is left between them is the
// attacked broker's own.
type siege struct {
	t      *testing.T
	mode   string
	many   int
	limits Limits

	arrival, standing waits // until all attackers are there, and from then until all are gone
	made              int   // connections
	lasted            time.Duration
	grown             int64         // bytes of memory
	used              time.Duration // of processors, more than by the other broker
	after             brokerState
}

// waits are how long requests waited at both brokers.
type waits struct{ attacked, control []time.Duration }

func newSiege(t *testing.T, mode string) *siege {
	limit, err := descriptorLimit()
	require.NoError(t, err)
	s := &siege{t: t, mode: mode, many: 500 / slower, limits: Limits{
		HandshakeTimeout: 500 * time.Millisecond, FrameTimeout: time.Second, WriteTimeout: 500 * time.Millisecond,
	}}
	if *fullAttack {
		s.many, s.limits = 10_000, Limits{WriteTimeout: 4 * time.Second}
	}
	s.limits.ConnectionsPerAddress = 1 << 20
	effective, err := s.limits.withDefaults(limit)
	require.NoError(t, err)
	s.many = min(s.many, effective.Connections-100) &^ 1
	return s
}

// run carries the attack out, and ends it when no attacker is connected any more, or
// after patience.
func (s *siege) run(patience time.Duration) {
	attacked, spared := startBrokerProcess(s.t, s.limits), startBrokerProcess(s.t, s.limits)
	fillBig(s.t, attacked.address)
	client, control := connectHealthy(s.t, attacked.address), connectHealthy(s.t, spared.address)
	for range 50 {
		client.produce()
		control.produce()
	}
	before, spareBefore := attacked.state(true), spared.state(true)
	begin := time.Now()
	attackers := startAttack(s.t, attack{Mode: s.mode, Address: attacked.address, Connections: s.many, Destination: "big"})
	for arrived := false; time.Since(begin) < patience && (len(s.standing.attacked) == 0 || s.after.Sessions > 1); {
		w := &s.standing
		if !arrived {
			w = &s.arrival
			arrived = len(attackers.made) > 0
		}
		for range 20 {
			w.attacked = append(w.attacked, client.produce())
			w.control = append(w.control, control.produce())
			time.Sleep(2 * time.Millisecond) // the pace of a light client
		}
		s.after = attacked.state(false)
		s.grown = max(s.grown, s.after.Resident-before.Resident)
	}
	s.lasted = time.Since(begin)
	s.used = (s.after.Processor - before.Processor) - (spared.state(false).Processor - spareBefore.Processor)
	s.made = attackers.connected()
	attackers.stop()
	client.produce()
}

func (s *siege) log() {
	s.t.Logf("%s: %d connections of %d wanted, gone after %.1f s; memory +%.1f MiB; processor time for each %v",
		s.mode, s.made, s.many, s.lasted.Seconds(), float64(s.grown)/(1<<20), (s.used / time.Duration(s.many)).Round(time.Microsecond))
	for name, w := range map[string]*waits{"arrival": &s.arrival, "standing": &s.standing} {
		s.t.Logf("%s: %s: %d requests, p50 %v beside %v, p90 %v beside %v, p99 %v beside %v", s.mode, name, len(w.attacked),
			percentile(w.attacked, 0.5), percentile(w.control, 0.5), percentile(w.attacked, 0.9), percentile(w.control, 0.9),
			percentile(w.attacked, 0.99), percentile(w.control, 0.99))
	}
}

// The bars of -attack.full. The p99 may be twice that of the broker left alone, or
// standingFloor: on a machine with other work a turn at its processor takes that
// long. While ten thousand connections arrive in two seconds, and each consumer among
// them takes what its socket holds, the loop is never idle and waits for its
// processor with everybody else: arrivalFloor only finds clients that starve. What one
// attacker may cost in processor time, from its SYN to its end, is some four times what
// consumers that never read, which cost most, were seen to take: 0.52 and 0.59 ms.
const (
	standingFloor = 5 * time.Millisecond
	arrivalFloor  = 250 * time.Millisecond
	attackerTime  = 2 * time.Millisecond
)

// check says which part of the bar does not hold.
func (s *siege) check() error {
	ended := map[string]map[closeReason]int{
		"idle":  {closedHandshake: s.many},
		"drip":  {closedHandshake: s.many / 2, closedFrame: s.many / 2},
		"stall": {closedWrite: s.many},
	}[s.mode]
	switch {
	case s.made != s.many:
		return fmt.Errorf("%d connections of %d were made", s.made, s.many)
	case s.after.Sessions != 1:
		return fmt.Errorf("attackers are still there: %d sessions", s.after.Sessions)
	case s.after.Panics != 0:
		return fmt.Errorf("%d panics", s.after.Panics)
	case s.grown > 64<<20:
		return fmt.Errorf("memory grew by %d bytes", s.grown)
	}
	for reason, n := range ended {
		if got := s.after.Closed[reason]; got != uint64(n) {
			return fmt.Errorf("%d sessions ended by %v, not %d", got, reason, n)
		}
	}
	if !*fullAttack {
		return nil
	}
	if each := s.used / time.Duration(s.many); each > attackerTime {
		return fmt.Errorf("an attacker cost %v of processor time", each)
	}
	for _, bar := range []struct {
		name  string
		waits *waits
		floor time.Duration
	}{{"arrive", &s.arrival, arrivalFloor}, {"stand", &s.standing, standingFloor}} {
		got, control := percentile(bar.waits.attacked, 0.99), percentile(bar.waits.control, 0.99)
		if got > max(2*control, bar.floor) {
			return fmt.Errorf("%w: while attackers %s the p99 is %v, beside %v of a broker left alone", errSlow, bar.name, got, control)
		}
	}
	return nil
}

// fillBig makes the topic that consumers who never read open: with more records
// than any socket takes.
func fillBig(t *testing.T, address string) {
	c := dialOpen(t, address)
	defer c.conn.Close()
	c.createTopic("big")
	handle := c.open("big", 0)
	batch, _ := testBatch(t, strings.Repeat("x", 256<<10))
	for range 64 {
		c.send(wire.OpProduce, 9, &wire.ProduceRequest{Handle: handle, Acks: wire.AcksQuorum, Batch: batch})
		require.Equal(t, wire.CodeOK, c.answer(9).code())
	}
}

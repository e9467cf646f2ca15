package server

import (
	"bufio"
	"encoding/json"
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
	"slices"
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
	Mode        string // see attackModes
	Address     string
	Connections int
	Destination string
}

// fullAttack runs TestAttackers with the numbers and deadlines of a broker in use.
var fullAttack = flag.Bool("attack.full", false, "ten thousand attackers and the default deadlines: half a minute")

// attackEnvironment carries an attack, as JSON, to the attackers' process.
const attackEnvironment = "LOCKSTEP_TEST_ATTACK"

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
	p.command.Env = append(os.Environ(), attackEnvironment+"="+string(encoded), "GOMAXPROCS=1")
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

// processorTime is what this process, broker and healthy client, has used so far.
func processorTime(t *testing.T) time.Duration {
	var usage unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// healthyClient produces and pings until stopped, and measures how long it waits.
type healthyClient struct {
	c         *rawClient
	handle    uint32
	latencies []time.Duration
	records   wire.Offset
}

func (h *healthyClient) run(t *testing.T, d time.Duration) {
	batch, _ := testBatch(t, strings.Repeat("v", 1000))
	for end := time.Now().Add(d); time.Now().Before(end); {
		begin := time.Now()
		h.c.send(wire.OpProduce, 7, &wire.ProduceRequest{Handle: h.handle, Acks: wire.AcksQuorum, Batch: batch})
		var receipt wire.Receipt
		h.c.ok(h.c.answer(7), &receipt)
		h.latencies = append(h.latencies, time.Since(begin))
		require.Equal(t, h.records, receipt.BaseOffset)
		h.records++
		time.Sleep(2 * time.Millisecond) // the pace of a light client
	}
}

func (h *healthyClient) percentile(p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(h.latencies))
	return sorted[int(float64(len(sorted)-1)*p)]
}

// TestAttackers is the last bar of RELIABILITY §6.4: connections that send nothing,
// or a byte a second, and consumers that never read. Memory grows by 64 MiB at most,
// all of them are closed at their deadlines, and a healthy client gets its answers.
// With -attack.full there are ten thousand of them, and the healthy client's p99 is
// held against the bar; without, against nothing: the numbers are too few.
func TestAttackers(t *testing.T) {
	limit, err := descriptorLimit()
	require.NoError(t, err)
	many, stalled, quietTime := 1000, 100, 500*time.Millisecond
	limits := Limits{
		ConnectionsPerAddress: 1 << 20,
		HandshakeTimeout:      time.Second, FrameTimeout: 2 * time.Second, WriteTimeout: time.Second,
	}
	if *fullAttack {
		many, stalled, quietTime = 10_000, 500, 2*time.Second
		limits = Limits{ConnectionsPerAddress: 1 << 20, WriteTimeout: 4 * time.Second}
	}
	effective, err := limits.withDefaults(limit)
	require.NoError(t, err)
	for _, test := range []struct {
		mode        string
		connections int
	}{
		{"idle", min(many/slower, effective.Connections-100)},
		{"drip", min(many/slower, effective.Connections-100)},
		{"stall", min(stalled/slower, effective.Connections-100)},
	} {
		t.Run(test.mode, func(t *testing.T) {
			log := &lockedBuffer{}
			s, err := Start(t.Context(), Config{
				DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", HTTP: "off", Limits: limits,
				Logger: slog.New(slog.NewTextHandler(log, nil)),
			})
			require.NoError(t, err)
			defer func() { require.NoError(t, s.Close(t.Context())) }()
			c := &s.engine.counters
			admin := dialOpen(t, s.Addr())
			for i, name := range []string{"healthy", "big"} {
				admin.send(wire.OpCreate, uint32(2+i), &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
					Partitions: 1, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
				}})
				require.Equal(t, wire.CodeOK, admin.answer(uint32(2+i)).code())
			}
			big := admin.open("big", 0)
			batch, _ := testBatch(t, strings.Repeat("x", 256<<10))
			for range 64 { // more than any socket takes
				admin.send(wire.OpProduce, 9, &wire.ProduceRequest{Handle: big, Acks: wire.AcksQuorum, Batch: batch})
				require.Equal(t, wire.CodeOK, admin.answer(9).code())
			}
			admin.conn.Close()

			healthy := &healthyClient{c: dialOpen(t, s.Addr())}
			healthy.handle = healthy.c.open("healthy", 0)
			used := processorTime(t)
			healthy.run(t, quietTime)
			idleShare := float64(processorTime(t)-used) / float64(quietTime)
			quiet := healthy.percentile(0.99)
			healthy.latencies = nil

			runtime.GC()
			debug.FreeOSMemory()
			before := residentBytes(t)
			grown := int64(0)
			used = processorTime(t)
			begin := time.Now()
			attackers := startAttack(t, attack{Mode: test.mode, Address: s.Addr(), Connections: test.connections, Destination: "big"})
			for time.Since(begin) < time.Minute && (len(attackers.made) == 0 || c.sessions.Load() > 1) {
				healthy.run(t, 200*time.Millisecond)
				grown = max(grown, residentBytes(t)-before)
			}
			connected := attackers.connected()
			loaded := healthy.percentile(0.99)
			lasted := time.Since(begin)
			cost := time.Duration(float64(processorTime(t)-used)-idleShare*float64(lasted)) / time.Duration(max(connected, 1))
			t.Logf("%s: %d connections of %d wanted (descriptor limit %d), gone after %.1f s; memory +%.1f MiB; "+
				"processor time for each %v; healthy client p50 %v, p99 %v, p99 before %v",
				test.mode, connected, test.connections, limit, lasted.Seconds(), float64(grown)/(1<<20),
				cost.Round(time.Microsecond), healthy.percentile(0.5).Round(10*time.Microsecond), loaded.Round(10*time.Microsecond), quiet.Round(10*time.Microsecond))
			require.Equal(t, test.connections, connected)
			require.EqualValues(t, 1, c.sessions.Load(), "attackers are still there")
			require.LessOrEqual(t, grown, int64(64<<20))
			if *fullAttack {
				require.Less(t, loaded, max(2*quiet, 50*time.Millisecond))
			}
			require.Zero(t, c.panics.Load())
			switch test.mode {
			case "idle":
				require.EqualValues(t, test.connections, c.closed[closedHandshake].Load())
			case "drip":
				require.EqualValues(t, test.connections/2, c.closed[closedHandshake].Load())
				require.EqualValues(t, test.connections/2, c.closed[closedFrame].Load())
			case "stall":
				require.EqualValues(t, test.connections, c.closed[closedWrite].Load())
			}
			attackers.stop()
			healthy.run(t, 100*time.Millisecond)
		})
	}
}

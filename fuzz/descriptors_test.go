package fuzz

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

var fdFloods = flag.Int("fd.floods", 3, "floods of connections that TestF24 lets a rolling broker ride out")

const (
	// fdLimit is the descriptor limit of the broker of F24, fdDials how many
	// connections flood it.
	fdLimit = 256
	fdDials = 2 * fdLimit
	// Partitions on disk and in memory, each of which rolls in every flood.
	fdDisk, fdMemory = 12, 4
	fdSegment        = 1 << 20
	fdRecord         = 300_000
	// fdReserve carries the broker's reserve to its process.
	fdReserve = "LOCKSTEP_TEST_RESERVE"
	fdData    = "LOCKSTEP_TEST_DATA"
)

// TestF24Broker is the process of the broker of F24. On its own it does nothing.
func TestF24Broker(t *testing.T) {
	reserve, err := strconv.Atoi(os.Getenv(fdReserve))
	if err != nil {
		return
	}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: fdLimit, Max: fdLimit}))
	s, err := server.Start(t.Context(), server.Config{
		DataDir: os.Getenv(fdData), Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0", MinFreeBytes: -1, RetentionPeriod: 100 * time.Millisecond,
		// An idle flood lasts as long as the test needs it.
		Limits: server.Limits{DescriptorReserve: reserve, HandshakeTimeout: time.Hour},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	require.NoError(t, err)
	fmt.Println(s.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	require.NoError(t, s.Close(context.Background()))
}

// lockedLog collects what a process says.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// fewDescriptors floods a broker that has few descriptors while the segments of all
// partitions roll, and requires that storage always gets its files, that the session
// that was there before is served, and that new ones are once the flood is over.
func fewDescriptors(t testing.TB, reserve, floods int, patience time.Duration) {
	said := &lockedLog{}
	child := exec.Command(os.Args[0], "-test.run=^TestF24Broker$")
	child.Env = append(os.Environ(), fdReserve+"="+strconv.Itoa(reserve), fdData+"="+t.TempDir())
	child.Stderr = said
	stdin, err := child.StdinPipe()
	require.NoError(t, err)
	stdout, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewReader(stdout)
	stop := sync.OnceValue(func() error {
		_ = stdin.Close()
		_, _ = io.Copy(io.Discard, lines)
		return child.Wait()
	})
	t.Cleanup(func() { _ = stop() })
	address, err := lines.ReadString('\n')
	require.NoError(t, err, said)
	address = strings.TrimSpace(address)

	conn, err := client.Connect(t.Context(), address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	sent := map[string]int{}
	producers := map[string][]*client.Producer{}
	for name, of := range map[string]struct {
		partitions uint32
		storage    wire.Storage
	}{"disk": {fdDisk, wire.StorageDisk}, "memory": {fdMemory, wire.StorageMemory}} {
		_, err := conn.CreateDestination(t.Context(), client.Destination{Name: name, Kind: wire.Topic, Settings: client.Settings{
			Partitions: of.partitions, Storage: of.storage, SegmentBytes: fdSegment, RetentionBytes: 4 * fdSegment,
		}})
		require.NoError(t, err)
		for n := range of.partitions {
			p, err := conn.Producer(t.Context(), name, client.Partition(n), client.DeliveryTimeout(patience))
			require.NoError(t, err)
			producers[name] = append(producers[name], p)
		}
	}
	roll := func() {
		for name, list := range producers {
			failed := make(chan error, len(list)*(fdSegment/fdRecord+1))
			for _, p := range list {
				for range fdSegment/fdRecord + 1 { // a segment and a little
					record := &client.Record{Value: make([]byte, fdRecord)}
					require.NoError(t, p.SendFunc(t.Context(), record, func(_ client.Receipt, err error) { failed <- err }))
					sent[name]++
				}
			}
			for range cap(failed) {
				require.NoError(t, <-failed, "%s\n%s", name, said)
			}
		}
	}
	roll() // what the partitions have open at work
	refused := 0
	for range floods {
		flood := newFlood(t, address)
		roll()
		require.NoError(t, conn.Ping(t.Context()))
		refused += flood.refused()
		flood.end()
		fresh, err := client.Connect(t.Context(), address, client.WithReconnectBackoff(time.Millisecond, 10*time.Millisecond))
		for try := 0; err != nil && try < 1000; try++ {
			time.Sleep(5 * time.Millisecond) // the broker hears of the ends one after the other, and tells nobody
			fresh, err = client.Connect(t.Context(), address)
		}
		require.NoError(t, err)
		require.NoError(t, fresh.Close())
	}
	for name := range producers {
		offsets, err := conn.Offsets(t.Context(), name, client.Latest())
		require.NoError(t, err)
		stored := 0
		for _, next := range offsets {
			stored += int(next)
		}
		require.Equal(t, sent[name], stored, name)
	}
	require.NoError(t, conn.Close())
	require.NoError(t, stop(), said)
	require.NotContains(t, said.String(), "too many open files")
	require.NotContains(t, said.String(), "level=ERROR")
	t.Logf("%d floods of %d connections on a limit of %d descriptors, %d refused; %d records in %d partitions meanwhile",
		floods, fdDials, fdLimit, refused, sent["disk"]+sent["memory"], fdDisk+fdMemory)
}

// flood is many connections that say nothing.
type flood struct {
	conns []net.Conn
}

// newFlood dials them all.
func newFlood(t testing.TB, address string) *flood {
	f := &flood{}
	var mu sync.Mutex
	var all sync.WaitGroup
	dials := make(chan struct{}, 32)
	for range fdDials {
		dials <- struct{}{}
		all.Go(func() {
			defer func() { <-dials }()
			conn, err := net.DialTimeout("tcp", address, 5*time.Second)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				f.conns = append(f.conns, conn)
			}
		})
	}
	all.Wait()
	t.Cleanup(f.end)
	require.Greater(t, len(f.conns), fdLimit, "connections of the flood")
	return f
}

// refused counts those that the broker has ended.
func (f *flood) refused() (n int) {
	for _, c := range f.conns {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		var b [1]byte
		if _, err := c.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
			n++
		}
	}
	return n
}

// end closes them.
func (f *flood) end() {
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.conns = nil
}

// RELIABILITY F24: a broker that may open 256 files, all its partitions rolling, is
// flooded with twice as many connections again and again.
func TestF24_ARollingBrokerKeepsItsDescriptors(t *testing.T) {
	fewDescriptors(t, 0, *fdFloods, time.Minute)
}

// Without a reserve the connections take what storage needs.
func TestF24_Catches_AStorageWithoutReserve(t *testing.T) {
	require.True(t, fails(t, func(t testing.TB) { fewDescriptors(t, 1, 1, time.Second) }))
}

package fuzz

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/promise"
	verifier "github.com/lockstepmq/lockstep/verify" // verify is a function here
)

// Figures of the processes that take records.
const (
	takerGroup    = "takers"
	takerWorkers  = 4
	takerPrefetch = 16
	// takerWork is the longest that most records are worked on, and takerLong that of one
	// in takerLongOne.
	takerWork    = 10 * time.Millisecond
	takerLong    = 300 * time.Millisecond
	takerLongOne = 20
	takerNackOne = 25
	// takerReleases, for a name, is a consumer whose records go on as soon as its connection
	// ends.
	takerReleases = "+release"
	// takerHolds, for a name, is a consumer that works on its first record until it goes on
	// after a SIGSTOP, whatever happens to the lease.
	takerHolds = "+holds"
	// takerBeat is how often a process looks at the clock, and takerStall after how long
	// without such a look it stood still, and says so.
	takerBeat  = 10 * time.Millisecond
	takerStall = 60 * time.Millisecond
)

// timed is what a process saw, with the time of the machine's monotonic clock, which is
// one for all processes: sorted by it, the events of several are in the order in which
// they happened.
type timed struct {
	At int64 // nanoseconds
	verifier.Seen
}

// machineTime is that clock.
func machineTime() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic("CLOCK_MONOTONIC: " + err.Error())
	}
	return now.Nano()
}

// takeRecords is the process of one consumer: it takes records of a group until its
// standard input closes, and prints what it sees, a line of JSON each, before it does
// anything that follows from it, or until SIGTERM, when it leaves in order. name is the
// consumer's, or "-" for none, takerReleases or takerHolds.
func takeRecords(session, addresses, destination, name string) int {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	sayAt := func(at int64, s verifier.Seen) {
		mu.Lock()
		defer mu.Unlock()
		if at == 0 {
			at = machineTime()
		}
		_ = out.Encode(timed{at, s})
	}
	go func() {
		last := machineTime()
		for {
			time.Sleep(takerBeat) // a pause of this process shows only in how late it wakes
			now := machineTime()
			if now-last > int64(takerStall) {
				// What it has begun with after that look, and before it stood still, is what it
				// stood still with too.
				for _, at := range []int64{last, last + int64(takerStall)} {
					sayAt(at, verifier.Seen{Event: promise.Event{Kind: promise.Stopped, Session: session}})
				}
			}
			last = now
		}
	}()
	number := func(d *client.Delivery) uint64 {
		n, err := strconv.ParseUint(string(d.Value), 10, 64)
		if err != nil {
			panic("a value that nobody has sent: " + err.Error())
		}
		return n
	}
	w := verifier.NewWatcher(session, func(s verifier.Seen) { sayAt(0, s) }, number)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var consumer *client.Consumer
	for consumer == nil {
		conn, err := client.Connect(ctx, addresses, client.WithReconnectBackoff(5*time.Millisecond, 50*time.Millisecond))
		if err == nil {
			options := []client.ConsumerOption{client.Group(takerGroup), client.Mode(client.Serial), client.Prefetch(takerPrefetch), client.OnEvent(w.Event)}
			switch name {
			case "-", takerHolds:
			case takerReleases:
				options = append(options, client.ReleaseOnDisconnect(true))
			default:
				options = append(options, client.ConsumerName(name))
			}
			joining, cancel := context.WithTimeout(ctx, 5*time.Second)
			consumer, err = conn.Consumer(joining, destination, options...)
			cancel()
		}
		if err != nil {
			time.Sleep(20 * time.Millisecond) // brokers may be down, or out of reach: try again
		}
	}
	goesOn := make(chan os.Signal, 1)
	if name == takerHolds {
		signal.Notify(goesOn, unix.SIGCONT)
	}
	var first sync.Once
	handle := func(ctx context.Context, _ *client.Delivery) error {
		if name == takerHolds {
			first.Do(func() { <-goesOn })
		}
		work := rand.N(takerWork)
		if rand.IntN(takerLongOne) == 0 {
			work = rand.N(takerLong)
		}
		select {
		case <-time.After(work):
		case <-ctx.Done():
			return ctx.Err()
		}
		if rand.IntN(takerNackOne) == 0 {
			return errors.New("not now")
		}
		return nil
	}
	err := consumer.Run(ctx, w.Handler(handle), client.Workers(takerWorkers))
	if ctx.Err() != nil {
		leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = consumer.Close(leaving)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "consumer %s has ended: %v\n", session, err)
		return 1
	}
	return 0
}

// taker is the process of one consumer as the test sees it.
type taker struct {
	session string
	name    string
	host    int
	command *exec.Cmd
	stdin   io.Closer
	ended   chan struct{}

	mu     sync.Mutex
	events []timed
	held   map[uint64]bool // numbers that it has started and not settled
	begun  int             // records
	fenced int             // outcomes that were refused, and records that were taken away
	last   int64           // time of the last event
}

// startTaker starts a consumer, on a host if that is not 0.
func startTaker(t *testing.T, session, addresses, destination, name string, host int) *taker {
	t.Helper()
	k := &taker{session: session, name: name, host: host, ended: make(chan struct{}), held: map[uint64]bool{}}
	line := []string{os.Args[0]}
	if host != 0 {
		line = append([]string{"nsenter", "--net=/run/netns/" + hostName(host)}, line...)
	}
	k.command = exec.Command(line[0], line[1:]...)
	k.command.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s %s", roleVariable, roleTaker, session, addresses, destination, name), "GORACE=atexit_sleep_ms=0")
	var err error
	k.stdin, err = k.command.StdinPipe()
	require.NoError(t, err)
	out, err := k.command.StdoutPipe()
	require.NoError(t, err)
	k.command.Stderr = os.Stderr
	require.NoError(t, k.command.Start())
	go func() {
		defer close(k.ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			k.note(s.Bytes())
		}
		_ = k.command.Wait()
	}()
	t.Cleanup(func() {
		_ = k.command.Process.Kill()
		<-k.ended
	})
	return k
}

func (k *taker) note(line []byte) {
	var e timed
	if json.Unmarshal(line, &e) != nil {
		return // cut off by SIGKILL
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events = append(k.events, e)
	k.last = max(k.last, e.At)
	switch e.Kind {
	case promise.Started:
		k.held[e.Number] = true
		k.begun++
	case promise.Nacked, promise.Answered:
		delete(k.held, e.Number)
	}
	if e.Kind == promise.Revoked {
		delete(k.held, e.Number)
		k.fenced++
	}
}

// says adds an event that the test knows of.
func (k *taker) says(at int64, kind promise.Kind) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events = append(k.events, timed{at, verifier.Seen{Event: promise.Event{Kind: kind, Session: k.session}}})
}

// pause stops the process. That it stands still lies behind the last thing that it did, or
// what it began with on the way would look as if nothing had kept it from going on.
func (k *taker) pause(t *testing.T) {
	t.Helper()
	require.NoError(t, k.command.Process.Signal(unix.SIGSTOP))
	err := error(unix.EINTR)
	for err == unix.EINTR {
		err = unix.Waitid(unix.P_PID, k.command.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil)
	}
	require.NoError(t, err)
	k.says(machineTime(), promise.Stopped)
}

// holds is what it works on, or has settled without an answer.
func (k *taker) holds() (numbers []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n := range k.held {
		numbers = append(numbers, n)
	}
	return numbers
}

func (k *taker) counts() (begun, fenced int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.begun, k.fenced
}

// beganAt is when it has begun with a record first after a time, 0 if it has not.
func (k *taker) beganAt(number uint64, after int64) (at int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := len(k.events) - 1; i >= 0 && k.events[i].At > after; i-- {
		if e := &k.events[i]; e.Kind == promise.Started && e.Number == number {
			at = e.At
		}
	}
	return at
}

// kill ends the process. Its end lies behind the last thing it said, and behind the
// order to kill it; what others saw because of it lies behind both.
func (k *taker) kill() {
	at := machineTime()
	_ = k.command.Process.Kill()
	<-k.ended
	k.mu.Lock()
	at = max(at, k.last)
	k.mu.Unlock()
	k.says(at, promise.Died)
}

package verify_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/promise"
	"github.com/lockstepmq/lockstep/verify"
	"github.com/lockstepmq/lockstep/wire"
)

func to(url string) func(context.Context) (*client.Conn, error) {
	return func(ctx context.Context) (*client.Conn, error) { return client.Connect(ctx, url) }
}

func nothingLeft(t *testing.T, url string) {
	t.Helper()
	conn, err := client.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close()
	list, err := conn.Destinations(t.Context())
	require.NoError(t, err)
	require.Empty(t, list)
}

func TestRunFindsThatEverythingIsKept(t *testing.T) {
	broker := lockstest.Start(t)
	result, err := verify.Run(t.Context(), verify.Options{
		Connect: to(broker.URL()), Records: 2000, Keys: 20, Settings: client.Settings{Partitions: 2}, Nack: 0.1, Backoff: time.Millisecond, Seed: 7,
	})
	require.NoError(t, err)
	require.Equal(t, verify.Kept, result.Verdict, "%+v", result)
	require.Equal(t, []int{2000, 2000, 2000, 0, 0}, []int{result.Sent, result.Stored, result.Handled, result.Failed, result.Stale})
	require.Equal(t, result.Deliveries, 2000+result.Again["given back"])
	require.Len(t, result.Again, 1)
	require.EqualValues(t, 7, result.Seed)
	nothingLeft(t, broker.URL())
}

func TestRunTouchesNothingThatWasThere(t *testing.T) {
	broker := lockstest.Start(t)
	conn, err := client.Connect(t.Context(), broker.URL())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	topic, err := conn.CreateDestination(t.Context(), client.Destination{Name: "events", Kind: client.Topic, Settings: client.Settings{RecordIndex: wire.RecordIndexOn}})
	require.NoError(t, err)
	p, err := conn.Producer(t.Context(), "events")
	require.NoError(t, err)
	_, err = p.Send(t.Context(), &client.Record{Key: []byte("key-1"), Value: []byte("of somebody else")})
	require.NoError(t, err)
	o := verify.Options{Connect: to(broker.URL()), Destination: "events", Records: 100, Steady: true}
	result, err := verify.Run(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, verify.Kept, result.Verdict, "%+v", result)
	list, err := conn.Groups(t.Context(), "events")
	require.NoError(t, err)
	require.Empty(t, list)
	after, err := conn.Destination(t.Context(), "events")
	require.NoError(t, err)
	require.EqualValues(t, 101, after.Partitions[0].NextOffset)
	require.Equal(t, topic.ID, after.ID)

	_, err = conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: client.Queue})
	require.NoError(t, err)
	o.Destination = "orders"
	_, err = verify.Run(t.Context(), o)
	require.ErrorIs(t, err, verify.ErrOption)
	require.ErrorContains(t, err, "name a topic, or none")
	list, err = conn.Groups(t.Context(), "orders")
	require.NoError(t, err)
	require.Empty(t, list)
}

// A run that is broken off leaves nothing either.
func TestRunLeavesNothingWhenItIsBrokenOff(t *testing.T) {
	broker := lockstest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := verify.Run(ctx, verify.Options{Connect: to(broker.URL()), For: time.Hour, Rate: 100, Progress: func(_, handled int) {
		if handled > 0 {
			cancel()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
	nothingLeft(t, broker.URL())
}

// Processes that are named are killed and paused, and go on, and others are refused.
func TestRunKillsAndPausesProcesses(t *testing.T) {
	broker := lockstest.Start(t)
	start := func() *exec.Cmd {
		c := exec.Command("sleep", "1000")
		require.NoError(t, c.Start())
		t.Cleanup(func() { _ = c.Process.Kill() })
		return c
	}
	killed, paused := start(), start()
	result, err := verify.Run(t.Context(), verify.Options{
		Connect: to(broker.URL()), Records: 500, Rate: 2000, Kill: []int{killed.Process.Pid}, Pause: []int{paused.Process.Pid, paused.Process.Pid}, PauseFor: 20 * time.Millisecond,
	})
	require.NoError(t, err)
	require.Equal(t, verify.Kept, result.Verdict, "%+v", result)
	require.Len(t, result.Deeds, 5)
	did := map[int][]string{}
	for _, d := range result.Deeds {
		did[d.PID] = append(did[d.PID], d.Did[:6])
	}
	require.Equal(t, []string{"killed"}, did[killed.Process.Pid])
	require.ElementsMatch(t, []string{"paused", "went o", "paused", "went o"}, did[paused.Process.Pid])
	require.ErrorContains(t, killed.Wait(), "killed")
	require.NoError(t, paused.Process.Kill(), "it is there")
	_ = paused.Wait()

	for pid, why := range map[int]string{1: "first process", 0: "groups", -5: "groups", os.Getpid(): "this check itself", os.Getppid(): "started this check", paused.Process.Pid: "no such process"} {
		_, err := verify.Run(t.Context(), verify.Options{Connect: to(broker.URL()), Pause: []int{pid}})
		require.ErrorIs(t, err, verify.ErrOption, pid)
		require.ErrorContains(t, err, why)
	}
}

// seen makes the events of a consumer that takes a record and acknowledges it.
func seen(session string, number, offset, epoch uint64) (list []verify.Seen) {
	for _, kind := range []promise.Kind{promise.Delivered, promise.Started, promise.Finished, promise.Acked, promise.Answered} {
		s := verify.Seen{Number: number, Key: "k", Event: promise.Event{Kind: kind, Session: session, Scope: "k", Record: offset, Epoch: epoch}}
		if kind == promise.Answered {
			s.Answer = promise.OK
		}
		list = append(list, s)
	}
	return list
}

func TestABookFindsWhatIsBroken(t *testing.T) {
	book := func(parts ...[]verify.Seen) *verify.Book {
		b := verify.NewBook(promise.Options{})
		for number := range uint64(3) {
			b.Stored(number, 0, number)
		}
		for _, list := range parts {
			for _, s := range list {
				b.Observe(s)
			}
		}
		return b
	}
	broken := func(b *verify.Book) string {
		list, _ := b.Violations()
		return fmt.Sprint(list)
	}
	whole := book(seen("a", 0, 0, 5), seen("b", 1, 1, 6), seen("a", 2, 2, 7))
	require.Equal(t, "[]", broken(whole))
	require.Empty(t, whole.Unhandled())
	require.Empty(t, whole.Unfinished())

	lost := book(seen("a", 0, 0, 5), seen("a", 2, 2, 7)[:4])
	require.Equal(t, []verify.Place{{Number: 1, Offset: 1}}, lost.Unhandled())
	require.Equal(t, []verify.Place{{Number: 1, Offset: 1}, {Number: 2, Offset: 2}}, lost.Unfinished())

	require.Contains(t, broken(book(seen("a", 1, 1, 5), seen("a", 0, 0, 6))), "number 0 of k was started for the first time after number 1")
	require.Contains(t, broken(book(seen("a", 0, 3, 5))), "stored twice: at 0@0 and at 0@3")
	twice := book(seen("a", 0, 0, 5)[:3], seen("b", 0, 0, 6))
	require.Contains(t, broken(twice), "G4 is broken")
	require.Contains(t, broken(twice), "nobody has given it back, lost it or failed")

	died := book(seen("a", 0, 0, 5)[:4])
	died.Observe(verify.Seen{Event: promise.Event{Kind: promise.Died, Session: "a"}})
	for _, s := range seen("b", 0, 0, 6) {
		died.Observe(s)
	}
	require.Equal(t, "[]", broken(died))
	require.Equal(t, map[string]int{"its consumer failed": 1}, died.Again())
}

// A broker that hands one record to two consumers is caught by what they tell.
func TestAWatcherTellsEnoughToCatchTwoHolders(t *testing.T) {
	broker := lockstest.Start(t)
	conn, err := client.Connect(t.Context(), broker.URL())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: wire.Queue})
	require.NoError(t, err)
	b := verify.NewBook(promise.Options{})
	number := func(*client.Delivery) uint64 { return 0 }
	handling := make(chan struct{}, 2)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for _, group := range []string{"one", "two"} { // as if they were one group
		w := verify.NewWatcher(group, b.Observe, number)
		c, err := conn.Consumer(t.Context(), "orders", client.Group(group), client.Mode(client.Serial), client.OnEvent(w.Event))
		require.NoError(t, err)
		running.Go(func() {
			_ = c.Run(ctx, w.Handler(func(ctx context.Context, _ *client.Delivery) error {
				handling <- struct{}{}
				<-ctx.Done()
				return errors.New("enough")
			}))
		})
	}
	p, err := conn.Producer(t.Context(), "orders")
	require.NoError(t, err)
	_, err = p.Send(t.Context(), &client.Record{Key: []byte("k")})
	require.NoError(t, err)
	<-handling
	<-handling
	cancel()
	running.Wait()
	list, _ := b.Violations()
	require.Len(t, list, 2)
	require.Contains(t, fmt.Sprint(list), "is broken")
}

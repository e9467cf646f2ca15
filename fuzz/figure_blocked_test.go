package fuzz

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/bench"
	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	figureBlocked = flag.Int("figure.blocked", 100_000, "records behind the blocked key of TestFigure_BlockedKey")
	figureKeys    = flag.Int("figure.keys", 100, "other keys in TestFigure_BlockedKey")
	figureRounds  = flag.Int("figure.rounds", 2, "rounds of TestFigure_BlockedKey with and without the blocked key")
)

// blockedMemory is by how much the broker's memory may grow for what waits behind a key.
const blockedMemory = 64 << 20

// queueFigure is a queue with a serial group by key and what its consumers have seen.
type queueFigure struct {
	t         *testing.T
	name      string
	keys      int
	producer  *client.Producer
	consumers []*client.Consumer
	held      chan *client.Delivery // of the keys "blocked" and "sparse", whoever has them
	next      []atomic.Int64        // of the other keys: the number of the next record
	handled   atomic.Int64
	poisoned  atomic.Int64          // how often the record of the key "poison" was tried
	working   atomic.Bool           // a round goes on
	rests     chan *client.Delivery // the poison, between the rounds
	cpu       func() float64        // seconds of the broker and of this process so far
	costs     []float64             // by round, in µs a record
	reached   chan struct{}         // handled is what the round wants
	want      atomic.Int64
	running   sync.WaitGroup
}

func newQueueFigure(t *testing.T, ctx context.Context, b *brokerProcess, name string, keys int) *queueFigure {
	t.Helper()
	q := &queueFigure{t: t, name: name, keys: keys, held: make(chan *client.Delivery, 64), next: make([]atomic.Int64, keys), reached: make(chan struct{}, 1), rests: make(chan *client.Delivery, 1)}
	q.cpu = func() (used float64) {
		for _, pid := range []int{b.command.Process.Pid, os.Getpid()} {
			seconds, err := bench.CPUOfProcess(pid)(t.Context())
			require.NoError(t, err)
			used += seconds
		}
		return used
	}
	conn := b.connect()
	_, err := conn.CreateDestination(t.Context(), client.Destination{Name: name, Kind: client.Queue, Settings: client.Settings{Partitions: 1, Sync: wire.SyncOS}})
	require.NoError(t, err)
	q.producer, err = b.connect().Producer(t.Context(), name)
	require.NoError(t, err)
	for range 2 {
		c, err := b.connect().Consumer(t.Context(), name, client.Group("figure"), client.Mode(client.Serial), client.Scope(client.ByKey),
			client.Binding(client.Gather), client.AckWait(time.Hour))
		require.NoError(t, err)
		q.consumers = append(q.consumers, c)
		q.running.Go(func() { q.consume(ctx, c) })
	}
	return q
}

// consume acknowledges everything but the keys that are held, and checks the order.
func (q *queueFigure) consume(ctx context.Context, c *client.Consumer) {
	for {
		d, err := c.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				q.t.Errorf("%s: %v", q.name, err)
			}
			return
		}
		key, err := strconv.Atoi(string(d.Key))
		switch {
		case string(d.Key) == "poison":
			q.poisoned.Add(1)
			if string(d.Value) != "0" {
				q.t.Errorf("%s: %s overtook the poison", q.name, d.Value)
			}
			if !q.working.Load() {
				q.rests <- d
				continue
			}
			q.fail(d)
			continue
		case err != nil:
			q.held <- d
			continue
		}
		number, _ := strconv.ParseInt(string(d.Value), 10, 64)
		if !q.next[key].CompareAndSwap(number, number+1) || d.Redelivered {
			q.t.Errorf("%s: record %d of key %d, redelivered %t, expected %d", q.name, number, key, d.Redelivered, q.next[key].Load())
		}
		if err := d.Ack(); err != nil {
			q.t.Errorf("%s: ack: %v", q.name, err)
		}
		if q.handled.Add(1) == q.want.Load() {
			q.reached <- struct{}{}
		}
	}
}

// fail gives the poison back.
func (q *queueFigure) fail(d *client.Delivery) {
	if err := d.Nack(client.Delay(5 * time.Millisecond)); err != nil {
		q.t.Errorf("%s: nack: %v", q.name, err)
	}
}

func (q *queueFigure) send(key, value string) {
	_ = q.producer.SendFunc(q.t.Context(), &client.Record{Key: []byte(key), Value: []byte(value)}, func(_ client.Receipt, err error) {
		if err != nil {
			q.t.Errorf("%s: send: %v", q.name, err)
		}
	})
}

// round sends each key so many records more and returns how many were handled in a second.
func (q *queueFigure) round(each int, sent *int64) float64 {
	q.t.Helper()
	used := q.cpu()
	began := time.Now()
	q.working.Store(true)
	defer q.working.Store(false)
	select {
	case d := <-q.rests:
		q.fail(d)
	default:
	}
	q.want.Store(q.handled.Load() + int64(each*q.keys))
	for n := range each {
		for key := range q.keys {
			q.send(strconv.Itoa(key), strconv.FormatInt(*sent+int64(n), 10))
		}
	}
	*sent += int64(each)
	select {
	case <-q.reached:
	case <-time.After(10 * time.Minute):
		require.FailNow(q.t, "a round does not end", "%s: %d of %d", q.name, q.handled.Load(), q.want.Load())
	}
	took := time.Since(began).Seconds()
	q.costs = append(q.costs, (q.cpu()-used)*1e6/float64(each*q.keys))
	return float64(each*q.keys) / took
}

// compare runs rounds on both queues in turns, and says how many records a second each
// handled, and the ratios of neighbouring rounds.
func compare(free, other *queueFigure, rounds, each int, sentFree, sentOther *int64) (without, with, ratios []float64) {
	for n := range rounds {
		var a, b float64
		if n%2 == 0 {
			a, b = free.round(each, sentFree), other.round(each, sentOther)
		} else {
			b, a = other.round(each, sentOther), free.round(each, sentFree)
		}
		without, with, ratios = append(without, a), append(with, b), append(ratios, b/a)
	}
	free.costs, other.costs = free.costs[len(free.costs)-rounds:], other.costs[len(other.costs)-rounds:]
	return without, with, ratios
}

func median(all []float64) float64 { return slices.Sorted(slices.Values(all))[len(all)/2] }

// throughputGoal is what other keys keep of their throughput beside one that stands still or
// fails (R-X-4, R-MQC-17).
const throughputGoal = 0.95

// judged says of the ratios of rounds whether the goal was met. Nothing fails: a round takes
// a second, and what else the machine does counts as much.
func judged(ratios []float64) string {
	text := make([]string, len(ratios))
	for i, r := range ratios {
		text[i] = fmt.Sprintf("%.2f", r)
	}
	verdict := "met"
	if median(ratios) < throughputGoal {
		verdict = "MISSED"
	}
	return fmt.Sprintf("median ratio %.3f of %s, goal %.2f: %s", median(ratios), strings.Join(text, " "), throughputGoal, verdict)
}

// cost says what a record cost the processors, which others that use them change little.
func cost(free, other *queueFigure) string {
	return fmt.Sprintf("CPU of broker and clients %.2f µs a record, %.2f without it", median(other.costs), median(free.costs))
}

// take waits for the next record of a key that is held.
func (q *queueFigure) take(want string) *client.Delivery {
	q.t.Helper()
	select {
	case d := <-q.held:
		require.Equal(q.t, want, string(d.Key)+" "+string(d.Value))
		return d
	case <-time.After(time.Minute):
		require.FailNow(q.t, "no record", "expected %s", want)
		return nil
	}
}

// watchMemory looks all the time how much memory a process has. most ends that and says
// what was the most: what is made anew now and then, like a key table, is not there any more
// when a round is over.
func watchMemory(t *testing.T, memory func() (int64, error)) (most func() int64) {
	var peak atomic.Int64
	end := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			if n, err := memory(); err == nil {
				peak.Store(max(peak.Load(), n))
			}
			select {
			case <-end:
				return
			case <-ticker.C:
			}
		}
	})
	stop := sync.OnceFunc(func() { close(end); watching.Wait() })
	t.Cleanup(stop)
	return func() int64 { stop(); return peak.Load() }
}

// TestFigure_BlockedKey measures what a key costs the others on which nothing goes on and
// behind which millions of records wait, and how fast its next record is found when it
// goes on: one that lies beside the last one, and one that lies behind all those
// millions.
func TestFigure_BlockedKey(t *testing.T) {
	behind := *figureBlocked
	keys := *figureKeys
	each := max(5, behind/20/keys)
	b := newBroker(t)
	b.start()
	memory := bench.AnonymousOfProcess(b.command.Process.Pid)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	free, blocked := newQueueFigure(t, ctx, b, "free", keys), newQueueFigure(t, ctx, b, "blocked", keys)
	var sentFree, sentBlocked int64
	for range 2 { // the broker and the clients get what memory they want
		free.round(each, &sentFree)
		blocked.round(each, &sentBlocked)
	}
	before, err := memory()
	require.NoError(t, err)
	most := watchMemory(t, memory)

	// The first record of both keys is held from now on.
	const early = 12 // records of the sparse key before all others; the broker remembers 8
	for n := range early {
		blocked.send("sparse", strconv.Itoa(n))
	}
	sparse := blocked.take("sparse 0")
	began := time.Now()
	for n := range behind {
		blocked.send("blocked", strconv.Itoa(n))
	}
	head := blocked.take("blocked 0")
	blocked.send("sparse", strconv.Itoa(early))
	require.NoError(t, blocked.producer.Flush(t.Context()))
	blocked.round(1, &sentBlocked) // the scan has passed it
	t.Logf("%d records behind one key: produced and passed in %v", behind, time.Since(began).Round(time.Millisecond))

	usual, slowest, ratios := compare(free, blocked, *figureRounds, each, &sentFree, &sentBlocked)

	// What comes next is found: beside the record that was acknowledged, and far away.
	next := func(d *client.Delivery, want string) (*client.Delivery, time.Duration) {
		began := time.Now()
		require.NoError(t, d.Ack())
		d = blocked.take(want)
		return d, time.Since(began)
	}
	var beside []time.Duration
	for n := 1; n <= 50; n++ {
		var took time.Duration
		head, took = next(head, fmt.Sprintf("blocked %d", n))
		beside = append(beside, took)
	}
	var far time.Duration
	for n := 1; n <= early; n++ {
		sparse, far = next(sparse, fmt.Sprintf("sparse %d", n))
	}
	grown := most() - before
	t.Logf("%d other keys, %d records a round: %.0f records/s beside the blocked key, %.0f without it; %s; %s; the broker's memory grew by %.1f MiB at the most; %s",
		keys, each*keys, median(slowest), median(usual), judged(ratios), cost(free, blocked), float64(grown)/(1<<20), machineLoad())
	t.Logf("from the ack to the next record of the key: %s where it lies beside; %v where it lies %d records away", spread(beside), far.Round(10*time.Microsecond), behind)
	require.Less(t, grown, int64(blockedMemory), "the broker's memory")
	require.NoError(t, head.Release())
	require.NoError(t, sparse.Release())

	free.whole(sentFree)
	blocked.whole(sentBlocked)
	stop()
	free.running.Wait()
	blocked.running.Wait()
}

// whole requires that everything was handled, in its order.
func (q *queueFigure) whole(sent int64) {
	q.t.Helper()
	for key := range q.next {
		require.Equal(q.t, sent, q.next[key].Load(), "%s, key %d", q.name, key)
	}
}

// TestFigure_Poison measures what a key costs the others whose first record fails for ever,
// and is tried again after 5 ms (R-MQC-17). The consumers go on, and nothing overtakes it.
func TestFigure_Poison(t *testing.T) {
	keys := *figureKeys
	each := max(5, *figureBlocked/20/keys)
	b := newBroker(t)
	b.start()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	free, poisoned := newQueueFigure(t, ctx, b, "free", keys), newQueueFigure(t, ctx, b, "poisoned", keys)
	var sentFree, sentPoisoned int64
	free.round(each, &sentFree) // the broker and the clients get what memory they want
	poisoned.round(each, &sentPoisoned)
	poisoned.send("poison", "0")
	poisoned.send("poison", "1")
	usual, beside, ratios := compare(free, poisoned, *figureRounds, each, &sentFree, &sentPoisoned)
	tries := poisoned.poisoned.Load()
	require.Positive(t, tries)
	t.Logf("%d other keys, %d records a round: %.0f records/s beside a poison that was tried %d times, %.0f without it; %s; %s; %s",
		keys, each*keys, median(beside), tries, median(usual), judged(ratios), cost(free, poisoned), machineLoad())
	free.whole(sentFree)
	poisoned.whole(sentPoisoned)
	stop()
	free.running.Wait()
	poisoned.running.Wait()
}

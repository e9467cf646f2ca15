package lockstest_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

var churnSeed = flag.Uint64("churn.seed", 0, "draws who comes, leaves and dies in R-X-1; 0: another one each time")

// churn is a queue of three partitions that is sent to all the time, and a group whose
// consumers come, leave and die. It knows how long each record waited for a consumer: no
// partition with a backlog was without one for longer than that.
type churn struct {
	t       *testing.T
	url     string
	group   []client.ConsumerOption
	random  *rand.Rand
	members []*churnMember
	sending sync.WaitGroup
	stop    chan struct{} // of the senders

	mu      sync.Mutex
	stored  [3][]time.Time // of each record
	started [3]int         // how many records of each partition were started, from the first on
	longest time.Duration
	broken  error
}

type churnMember struct {
	consumer *client.Consumer
	die      func()
	stop     context.CancelFunc
	done     chan error
}

const (
	churnPace = 5 * time.Millisecond
	churnMost = 4 // members
	// churnBacklog is how many records of a partition wait before no more are sent: on a busy machine consumers
	// may be slower than the pace, and what is asked is that they go on.
	churnBacklog = 200
)

func startChurn(t *testing.T, url string, replicas uint8, policy wire.BindingPolicy, group ...client.ConsumerOption) *churn {
	seed := *churnSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-churn.seed %d", seed)
	c := &churn{t: t, url: url, random: rand.New(rand.NewPCG(seed, 0)), stop: make(chan struct{})}
	c.group = append([]client.ConsumerOption{client.Group("g"), client.Mode(client.Serial), client.Binding(policy)}, group...)
	conn := connectTo(t, url)
	jobs(t.Context(), t, conn, replicas)
	c.join()
	for p := range uint32(3) {
		producer, err := conn.Producer(t.Context(), "jobs", client.Partition(p))
		require.NoError(t, err)
		c.sending.Go(func() { c.send(producer, p) })
	}
	t.Cleanup(func() { c.halt(); c.clear() })
	return c
}

// send sends numbers to a partition until it is told to stop.
func (c *churn) send(producer *client.Producer, p uint32) {
	ticker := time.NewTicker(churnPace)
	defer ticker.Stop()
	for {
		select {
		case <-c.stop:
			_ = producer.Close(context.Background())
			return
		case <-ticker.C:
		}
		c.mu.Lock()
		n := len(c.stored[p])
		if n-c.started[p] > churnBacklog {
			c.mu.Unlock()
			continue
		}
		c.stored[p] = append(c.stored[p], time.Time{})
		c.mu.Unlock()
		err := producer.SendFunc(c.t.Context(), &client.Record{Key: fmt.Appendf(nil, "key %d", p), Value: fmt.Append(nil, n)}, func(_ client.Receipt, err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.stored[p][n] = time.Now()
			c.note(err)
		})
		if err != nil {
			c.mu.Lock()
			c.note(err)
			c.mu.Unlock()
		}
	}
}

// note keeps what went wrong first. The lock is held.
func (c *churn) note(err error) {
	if c.broken == nil {
		c.broken = err
	}
}

// handle is a consumer that has a record.
func (c *churn) handle(_ context.Context, d *client.Delivery) error {
	n, err := strconv.Atoi(string(d.Value))
	c.mu.Lock()
	defer c.mu.Unlock()
	switch p := d.Partition; {
	case err != nil || n > c.started[p]:
		c.note(fmt.Errorf("partition %d: %q was started after %d records", p, d.Value, c.started[p]))
	case n == c.started[p]:
		c.started[p]++
		if at := c.stored[p][n]; !at.IsZero() {
			c.longest = max(c.longest, time.Since(at))
		}
	}
	return nil
}

// waited is how long a record has waited for a consumer, at most, those included that wait
// still.
func (c *churn) waited() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, n := range c.started {
		if n < len(c.stored[p]) && !c.stored[p][n].IsZero() {
			c.longest = max(c.longest, time.Since(c.stored[p][n]))
		}
	}
	return c.longest
}

func (c *churn) join() {
	c.t.Helper()
	conn, die := mortalConn(c.t, c.url)
	consumer, err := conn.Consumer(c.t.Context(), "jobs", c.group...)
	require.NoError(c.t, err)
	ctx, stop := context.WithCancel(context.Background())
	m := &churnMember{consumer: consumer, die: die, stop: stop, done: make(chan error, 1)}
	go func() { m.done <- consumer.Run(ctx, c.handle) }()
	c.members = append(c.members, m)
}

// leave ends a member in order, and kill without a word.
func (c *churn) leave(i int) {
	m := c.members[i]
	m.stop()
	<-m.done
	_ = m.consumer.Close(c.t.Context()) // it may have died by itself
	c.members = append(c.members[:i], c.members[i+1:]...)
}

func (c *churn) kill(i int) {
	m := c.members[i]
	m.die()
	<-m.done
	m.stop()
	c.members = append(c.members[:i], c.members[i+1:]...)
}

// replace has another one come for each that has died by itself: on a busy machine a client
// may hear nothing of its broker for longer than it waits.
func (c *churn) replace() {
	for i := 0; i < len(c.members); i++ {
		m := c.members[i]
		select {
		case err := <-m.done:
			c.t.Logf("a consumer has died by itself: %v", err)
			m.stop()
			c.members = append(c.members[:i], c.members[i+1:]...)
			c.join()
		default:
		}
	}
}

// step has somebody come, leave, or die if that may be; one is always left.
func (c *churn) step(deadly bool) (what string) {
	c.t.Helper()
	c.replace()
	switch n := len(c.members); {
	case n == 1 || n < churnMost && c.random.IntN(2) == 0:
		c.join()
		return "join"
	case !deadly || c.random.IntN(2) == 0:
		c.leave(c.random.IntN(n))
		return "leave"
	default:
		c.kill(c.random.IntN(n))
		return "kill"
	}
}

// halt ends the sending.
func (c *churn) halt() {
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	c.sending.Wait()
}

func (c *churn) clear() {
	for _, m := range c.members {
		m.stop()
		<-m.done
	}
	c.members = nil
}

// goesOn waits until each partition has handed out what is sent from now on.
func (c *churn) goesOn() {
	c.t.Helper()
	c.mu.Lock()
	var want [3]int
	for p := range want {
		want[p] = len(c.stored[p]) + 1
	}
	c.mu.Unlock()
	c.reach(want)
}

func (c *churn) reach(want [3]int) {
	c.t.Helper()
	goesOn := func() bool {
		c.replace()
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.broken != nil || c.started[0] >= want[0] && c.started[1] >= want[1] && c.started[2] >= want[2]
	}
	if assert.Eventually(c.t, goesOn, timeout, 2*time.Millisecond, "every partition goes on") {
		return
	}
	info, err := connectTo(c.t, c.url).DescribeGroup(c.t.Context(), "jobs", "g")
	require.FailNow(c.t, "it does not", "%v of %v started by %d members\n%+v, %v", c.started, want, len(c.members), info, err)
}

// end waits until all is handed out that was sent, and says how much.
func (c *churn) end() (records int) {
	c.t.Helper()
	c.halt()
	want := [3]int{len(c.stored[0]), len(c.stored[1]), len(c.stored[2])}
	c.reach(want)
	c.mu.Lock()
	defer c.mu.Unlock()
	require.NoError(c.t, c.broken)
	require.Equal(c.t, want, c.started)
	return want[0] + want[1] + want[2]
}

var churnFor = flag.Duration("churn.for", 0, "for how long consumers come and go at least in R-X-1")

// R-X-1: consumers come, leave and die without a word, at random. As long as one lives,
// everything that is sent is handed out, in the order of its partition.
func TestR_X_1_NoBacklogWithoutAConsumer(t *testing.T) {
	t.Parallel() // for the dead it waits
	c := startChurn(t, lockstest.Start(t).URL(), 1, wire.BindingCover, client.SessionTimeout(time.Second))
	c.goesOn()
	done := map[string]int{}
	for began := time.Now(); done["kill"] < 2 || done["leave"] < 2 || done["join"] < 2 || time.Since(began) < *churnFor; {
		done[c.step(done["kill"] < 2 || *churnFor > 0)]++
		c.goesOn()
	}
	t.Logf("%v: %d records, none waited longer than %v for a consumer", done, c.end(), c.waited().Round(time.Millisecond))
}

// Where nobody adopts partitions, the records of some wait for ever, and it is seen.
func TestR_X_1_Catches_PartitionsThatNobodyAdopts(t *testing.T) {
	t.Parallel()
	c := startChurn(t, lockstest.Start(t).URL(), 1, wire.BindingStrict)
	awaitThat(t, "records wait", func() bool { return c.waited() > 500*time.Millisecond })
	c.mu.Lock()
	defer c.mu.Unlock()
	served := 0
	for _, n := range c.started {
		if n > 0 {
			served++
		}
	}
	require.Equal(t, 1, served)
}

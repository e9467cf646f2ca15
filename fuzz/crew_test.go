package fuzz

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// Groups that are at work through all that tests do to the brokers: nodes are killed, cut
// off, fall silent, are all restarted, join, and never come back.

const (
	crewMembers    = 3
	crewPublishers = 4
	crewPace       = 20 * time.Millisecond
	crewAhead      = 500             // records of one sender that are not handled yet
	crewSession    = 2 * time.Second // session timeout of a crew whose members are silenced
)

// crew is a group of a queue, and what sends to it: numbers, in order, in each scope.
type crew struct {
	queue  string
	conn   *client.Conn
	stop   context.CancelFunc // of the senders
	done   sync.WaitGroup     // of the senders
	sent   [crewPublishers]atomic.Int64
	failed atomic.Pointer[error]
	links  [crewMembers]*gate

	mu      sync.Mutex
	scopes  map[string]*scopeLog
	refused int // acks that were not told to be accepted
	again   int // starts of records that had been started before
	broken  error
}

// scopeLog is what is known of the records of one scope.
type scopeLog struct {
	started  int // how many were, from the first on
	accepted map[int]acceptance
}

// acceptance is an ack that a member was told to be accepted.
type acceptance struct {
	member string
	epoch  uint64
}

// startCrew makes a queue with a group, and lets members and senders work on it. Every
// sender is a scope, or all are one. connect connects until the test ends.
func startCrew(t *testing.T, connect func(...client.Option) *client.Conn, queue string, partitions uint32, senders int, settings client.GroupSettings) *crew {
	t.Helper()
	conn := connect()
	_, err := conn.CreateDestination(patient(t), client.Destination{Name: queue, Kind: client.Queue, Settings: client.Settings{Partitions: partitions, Replicas: 3}})
	require.NoError(t, err)
	ledTopic(t, conn, queue)
	_, err = conn.CreateGroup(patient(t), queue, "g", client.GroupIntent{Settings: settings})
	require.NoError(t, err)
	sending, stop := context.WithCancel(t.Context())
	c := &crew{queue: queue, conn: conn, stop: stop, scopes: map[string]*scopeLog{}}
	running, end := context.WithCancel(context.Background())
	var members sync.WaitGroup
	t.Cleanup(func() { end(); members.Wait() })
	for m := range crewMembers {
		c.links[m] = &gate{conns: map[net.Conn]bool{}}
		consumer, err := connect(client.WithDialer(c.links[m].dial)).Consumer(patient(t), queue, client.Group("g"), client.Prefetch(20))
		require.NoError(t, err)
		members.Go(func() {
			err := consumer.Run(running, func(_ context.Context, d *client.Delivery) error { return c.handle(fmt.Sprint(m), d) }, client.Workers(2))
			if !errors.Is(err, context.Canceled) {
				c.fail(fmt.Errorf("member %d: %w", m, err))
			}
		})
	}
	for n := range senders {
		p := producer(t, conn, &client.Destination{Name: queue}, client.Publisher(fmt.Sprint(n)), client.DeliveryTimeout(killDelivery))
		c.done.Go(func() {
			for ticker := time.NewTicker(crewPace); ; {
				select {
				case <-sending.Done():
					ticker.Stop()
					if err := p.Flush(patient(t)); err != nil {
						c.failed.Store(&err)
					}
					return
				case <-ticker.C:
				}
				if c.sent[n].Load()-c.handled(n) >= crewAhead {
					continue
				}
				value := fmt.Appendf(nil, "%d %d", n, c.sent[n].Load())
				if err := p.SendFunc(sending, &client.Record{Value: value}, func(_ client.Receipt, err error) {
					if err != nil {
						c.failed.Store(&err)
					}
				}); err == nil {
					c.sent[n].Add(1)
				}
			}
		})
	}
	return c
}

func (c *crew) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken == nil {
		c.broken = err
	}
}

// handled is how many records of a sender were handled.
func (c *crew) handled(sender int) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.scopes[fmt.Sprint(sender)]; l != nil {
		return int64(l.started)
	}
	return 0
}

// storm silences members and breaks their connections, until the test ends or stop is
// called: their links are gone while they live and work.
func (c *crew) storm(t *testing.T, random *rand.Rand) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var over sync.WaitGroup
	over.Go(func() {
		for ctx.Err() == nil {
			link := c.links[random.IntN(len(c.links))]
			if random.IntN(3) == 0 {
				link.shut()
			} else {
				link.silence(ctx, time.Duration(random.Int64N(int64(2*crewSession))))
			}
			wait(ctx, time.Duration(random.Int64N(int64(crewSession/4))))
		}
	})
	return func() { cancel(); over.Wait() }
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// gate is what the connections of a member go through.
type gate struct {
	open  sync.RWMutex // locked: nothing goes through
	mu    sync.Mutex
	conns map[net.Conn]bool
}

func (g *gate) dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.conns[conn] = true
	g.mu.Unlock()
	return &gatedConn{conn, g}, nil
}

// silence lets nothing through for a while.
func (g *gate) silence(ctx context.Context, d time.Duration) {
	g.open.Lock()
	defer g.open.Unlock()
	wait(ctx, d)
}

// shut breaks all connections.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		_ = c.Close()
	}
	clear(g.conns)
}

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.gate.open.RLock()
	defer c.gate.open.RUnlock()
	return n, err
}

func (c *gatedConn) Write(b []byte) (int, error) {
	c.gate.open.RLock()
	defer c.gate.open.RUnlock()
	return c.Conn.Write(b)
}

// handle is a member's work on a record, and its ack.
func (c *crew) handle(member string, d *client.Delivery) error {
	scope, text, _ := strings.Cut(string(d.Value), " ")
	n, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	c.mu.Lock()
	l := c.scopes[scope]
	if l == nil {
		l = &scopeLog{accepted: map[int]acceptance{}}
		c.scopes[scope] = l
	}
	switch {
	case n > l.started && c.broken == nil:
		c.broken = fmt.Errorf("member %s: %s was started when only %d records before it had an ack on its way", member, d.Value, l.started)
	case n < l.started:
		c.again++
	}
	l.started = max(l.started, n+1)
	c.mu.Unlock()
	epoch := d.Epoch()
	told := func(err error) { c.answered(member, l, n, epoch, err) }
	if err := d.AckFunc(told); err != nil {
		told(err)
	}
	return nil
}

// answered notes what became of an ack. An answer that is lost is an error here: the ack may
// have been accepted.
func (c *crew) answered(member string, l *scopeLog, n int, epoch uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.refused++
		return
	}
	if before, twice := l.accepted[n]; twice && c.broken == nil {
		c.broken = fmt.Errorf("members %s and %s: the ack of record %d was accepted under epochs %d and %d", before.member, member, n, before.epoch, epoch)
	}
	l.accepted[n] = acceptance{member, epoch}
}

// check holds accepted acks against each other: epochs never fall from one record of the
// scope to the next, and under each there is one member. Answers may come in any order.
func (l *scopeLog) check() error {
	holders := map[uint64]string{}
	last := uint64(0)
	for n := range l.started {
		a, ok := l.accepted[n]
		if !ok {
			continue
		}
		holder, known := holders[a.epoch]
		switch {
		case a.epoch < last:
			return fmt.Errorf("member %s: the ack of record %d was accepted under epoch %d, behind one under %d", a.member, n, a.epoch, last)
		case known && holder != a.member:
			return fmt.Errorf("members %s and %s: both had acks accepted under epoch %d", holder, a.member, a.epoch)
		}
		last, holders[a.epoch] = a.epoch, a.member
	}
	return nil
}

// check ends the sending and waits until everything is handled.
func (c *crew) check(t *testing.T) {
	c.stop()
	c.done.Wait()
	if err := c.failed.Load(); err != nil {
		require.NoError(t, *err, "a sender sees no error")
	}
	failed := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.broken != nil
	}
	waits := func() bool {
		info, err := c.conn.DescribeGroup(t.Context(), c.queue, "g")
		return !failed() && (err != nil || slices.ContainsFunc(info.Partitions, func(p client.GroupPartition) bool { return p.Problem != "" || p.Backlog > 0 }))
	}
	for end := time.Now().Add(refillPatience); waits(); time.Sleep(50 * time.Millisecond) { // that a backlog is gone has no event
		if time.Now().After(end) {
			c.explain(t)
			require.FailNow(t, "not everything is handled", c.queue)
		}
	}
	for end := time.Now().Add(startTimeout); c.untold() > 0 && time.Now().Before(end); time.Sleep(time.Millisecond) { // the last answers are on their way
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	require.NoError(t, c.broken)
	accepted, unknown, epochs := 0, 0, map[uint64]bool{}
	for n := range c.sent {
		sent, scope := int(c.sent[n].Load()), fmt.Sprint(n)
		if sent == 0 {
			continue
		}
		require.NotNil(t, c.scopes[scope], "publisher %d", n)
		l := c.scopes[scope]
		require.Equal(t, sent, l.started, "publisher %d: all records are handled", n)
		require.NoError(t, l.check(), "publisher %d", n)
		accepted += len(l.accepted)
		unknown += sent - len(l.accepted)
		for _, a := range l.accepted {
			epochs[a.epoch] = true
		}
	}
	require.NotZero(t, accepted)
	require.LessOrEqual(t, unknown, c.refused, "whose ack was not accepted was told so")
	t.Logf("%s: %d acks accepted in order under %d epochs, %d not, of %d records; %d records started again", c.queue, accepted, len(epochs), c.refused, unknown, c.again)
}

// untold is how many acks of what was sent nobody has heard of.
func (c *crew) untold() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := -c.refused
	for i := range c.sent {
		n += int(c.sent[i].Load())
	}
	for _, l := range c.scopes {
		n -= len(l.accepted)
	}
	return n
}

// explain logs what holds the group up.
func (c *crew) explain(t *testing.T) {
	info, err := c.conn.DescribeGroup(t.Context(), c.queue, "g")
	t.Logf("%s: %v", c.queue, err)
	for _, p := range info.Partitions {
		var why client.ExplainResponse
		err := c.conn.GroupOrder(t.Context(), wire.OrderExplain, c.queue, p.Number, "g", client.ExplainRequest{}, &why)
		t.Logf("partition %d: %+v\n%+v %v", p.Number, p, why, err)
	}
}

// TestR_UM_6_Catches_TwoHolders shows the checks of a crew what they have to see.
func TestR_UM_6_Catches_TwoHolders(t *testing.T) {
	type ack struct {
		member string
		n      int
		epoch  uint64
	}
	judge := func(acks []ack) error {
		c := &crew{}
		l := &scopeLog{started: 3, accepted: map[int]acceptance{}}
		for _, a := range acks {
			c.answered(a.member, l, a.n, a.epoch, nil)
		}
		return errors.Join(c.broken, l.check())
	}
	require.NoError(t, judge([]ack{{"b", 2, 6}, {"a", 0, 5}, {"a", 1, 5}}))
	for name, acks := range map[string][]ack{
		"two members under one epoch": {{"a", 0, 5}, {"b", 1, 5}},
		"an epoch that falls":         {{"a", 0, 6}, {"b", 1, 5}},
		"a record twice":              {{"a", 0, 5}, {"b", 0, 6}},
	} {
		require.Error(t, judge(acks), name)
	}
}

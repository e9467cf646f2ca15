package fuzz

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// Groups that are at work through all that TestRequirements does to the brokers: nodes are
// killed, fall silent, are all restarted, join, and never come back.

const (
	crewMembers    = 3
	crewPublishers = 4
	crewPace       = 20 * time.Millisecond
)

// crew is a group of a queue, and what sends to it: numbers, in order, in each scope.
type crew struct {
	queue  string
	stop   context.CancelFunc // of the senders
	done   sync.WaitGroup     // of the senders
	sent   [crewPublishers]atomic.Int64
	failed atomic.Pointer[error]

	mu       sync.Mutex
	scopes   map[string]*scopeLog
	stale    int // acks that were refused
	accepted int
	again    int // starts of records that had been started before
	broken   error
}

// scopeLog is what is known of the records of one scope.
type scopeLog struct {
	started, acked int // how many were, from the first on
	accepted       int
	epoch          uint64            // of the newest accepted ack
	holder         map[uint64]string // who had an ack accepted under an epoch
}

// startCrew makes a queue with a group, and lets members and senders work on it. Every
// sender is a scope, or all are one.
func (s *suite) startCrew(t *testing.T, queue string, partitions uint32, senders int, settings client.GroupSettings) *crew {
	t.Helper()
	conn := dial(t, s.at(1, 2, 3))
	_, err := conn.CreateDestination(patient(t), client.Destination{Name: queue, Kind: client.Queue, Settings: client.Settings{Partitions: partitions, Replicas: 3}})
	require.NoError(t, err)
	ledTopic(t, conn, queue)
	_, err = conn.CreateGroup(patient(t), queue, "g", client.GroupIntent{Settings: settings})
	require.NoError(t, err)
	sending, stop := context.WithCancel(t.Context())
	c := &crew{queue: queue, stop: stop, scopes: map[string]*scopeLog{}}
	s.busy = append(s.busy, queue)
	running, end := context.WithCancel(context.Background())
	var members sync.WaitGroup
	t.Cleanup(func() { end(); members.Wait() })
	for m := range crewMembers {
		consumer, err := dial(t, s.at(1, 2, 3)).Consumer(patient(t), queue, client.Group("g"), client.Prefetch(20))
		require.NoError(t, err)
		members.Go(func() {
			err := consumer.Run(running, func(_ context.Context, d *client.Delivery) error { return c.handle(fmt.Sprint(m), d) }, client.Workers(2))
			if !errors.Is(err, context.Canceled) {
				c.fail(fmt.Errorf("member %d: %w", m, err))
			}
		})
	}
	for n := range senders {
		p := producer(t, conn, &client.Destination{Name: queue}, client.Publisher(fmt.Sprint(n)))
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
		l = &scopeLog{holder: map[uint64]string{}}
		c.scopes[scope] = l
	}
	switch {
	case n > l.acked && c.broken == nil:
		c.broken = fmt.Errorf("member %s: %s was started when only %d records before it had an ack", member, d.Value, l.acked)
	case n < l.started:
		c.again++
	}
	l.started = max(l.started, n+1)
	l.acked = max(l.acked, n+1) // it is on its way from here on
	c.mu.Unlock()
	epoch := d.Epoch()
	told := func(err error) { c.answered(member, l, n, epoch, err) }
	if err := d.AckFunc(told); err != nil {
		told(err)
	}
	return nil
}

// answered notes what became of an ack.
func (c *crew) answered(member string, l *scopeLog, n int, epoch uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.stale++
		return
	}
	c.accepted++
	holder, known := l.holder[epoch]
	switch {
	case c.broken != nil:
	case n != l.accepted:
		c.broken = fmt.Errorf("member %s: the ack of record %d was accepted as number %d of its scope", member, n, l.accepted)
	case epoch < l.epoch:
		c.broken = fmt.Errorf("member %s: an ack under epoch %d was accepted after one under %d", member, epoch, l.epoch)
	case known && holder != member:
		c.broken = fmt.Errorf("members %s and %s: both had acks accepted under epoch %d", holder, member, epoch)
	}
	l.accepted, l.epoch, l.holder[epoch] = max(l.accepted, n+1), epoch, member
}

// check ends the sending and waits until everything is handled.
func (c *crew) check(t *testing.T) {
	c.stop()
	c.done.Wait()
	if err := c.failed.Load(); err != nil {
		require.NoError(t, *err, "a sender sees no error")
	}
	eventually(t, "everything is handled", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.broken != nil {
			return true
		}
		for n := range c.sent {
			if sent := int(c.sent[n].Load()); sent > 0 && (c.scopes[fmt.Sprint(n)] == nil || c.scopes[fmt.Sprint(n)].accepted < sent) {
				return false
			}
		}
		return true
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	require.NoError(t, c.broken)
	require.NotZero(t, c.accepted)
	epochs := map[uint64]bool{}
	for _, l := range c.scopes {
		for e := range l.holder {
			epochs[e] = true
		}
	}
	t.Logf("%d acks accepted in order under %d epochs, %d refused, %d records started again", c.accepted, len(epochs), c.stale, c.again)
}

// TestR_UM_6_Catches_TwoHolders shows the checks of a crew what they have to see.
func TestR_UM_6_Catches_TwoHolders(t *testing.T) {
	for name, acks := range map[string][]struct {
		member string
		n      int
		epoch  uint64
	}{
		"two members under one epoch": {{"a", 0, 5}, {"b", 1, 5}},
		"an epoch that falls":         {{"a", 0, 6}, {"b", 1, 5}},
		"a record twice":              {{"a", 0, 5}, {"b", 0, 6}},
		"a record that is left out":   {{"a", 0, 5}, {"a", 2, 6}},
	} {
		c := &crew{}
		l := &scopeLog{holder: map[uint64]string{}}
		for _, ack := range acks {
			c.answered(ack.member, l, ack.n, ack.epoch, nil)
		}
		require.Error(t, c.broken, name)
	}
}

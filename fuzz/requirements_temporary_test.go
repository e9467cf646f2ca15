package fuzz

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// The requirements for temporary queues, and for requests and their replies.

var requirementTemporary = flag.Int("requirements.temporary", 2000, "how many temporary queues TestRequirements makes and leaves")

// isGone reports whether a temporary queue is said to be gone.
func isGone(ctx context.Context, conn *client.Conn, name string) bool {
	_, err := conn.Send(ctx, name, &client.Record{})
	return errors.Is(err, wire.CodeDestinationGone)
}

// temporary shows that replies arrive over any node, the gateway too, that temporary
// queues go with their connections, and that the metadata does not hear of them.
func (s *suite) temporary(t *testing.T) {
	ctx := patient(t)
	owner := dial(t, s.at(2), client.AllowRedirect(false))
	q, err := owner.TemporaryQueue(ctx)
	require.NoError(t, err)
	for _, node := range []int{1, 2, 3, gateway} {
		_, err := dial(t, s.at(node), client.AllowRedirect(false)).Send(ctx, q.Name(), &client.Record{Value: []byte{byte(node)}})
		require.NoError(t, err)
		r, err := q.Receive(ctx)
		require.NoError(t, err)
		require.Equal(t, []byte{byte(node)}, r.Value)
	}

	epoch, kept := s.metric(t, 2, "lockstep_metadata_epoch"), s.metric(t, 2, "lockstep_temporary_queues")
	require.EqualValues(t, 1, kept)
	const each = 500
	var last string
	for made := 0; made < *requirementTemporary; made += each {
		conn, err := client.Connect(ctx, s.at(2), client.AllowRedirect(false))
		require.NoError(t, err)
		for range each {
			q, err := conn.TemporaryQueue(ctx)
			require.NoError(t, err)
			last = q.Name()
		}
		if made+each < *requirementTemporary {
			require.NoError(t, conn.Close())
			continue
		}
		require.GreaterOrEqual(t, s.metric(t, 2, "lockstep_temporary_queues"), float64(each))
		all, err := conn.Destinations(ctx)
		require.NoError(t, err)
		for _, d := range all {
			require.False(t, wire.IsTemporary(d.Name))
		}
		require.NoError(t, conn.Close())
	}
	ended := time.Now()
	eventually(t, "all are gone", func() bool { return s.metric(t, 2, "lockstep_temporary_queues") == kept })
	require.True(t, isGone(ctx, dial(t, s.at(3)), last))
	require.Less(t, time.Since(ended), detectTime)
	// The controller may do something meanwhile; it has no reason to do it so often.
	require.Less(t, s.metric(t, 2, "lockstep_metadata_epoch")-epoch, float64(*requirementTemporary)/20, "nothing is committed for %d of them", *requirementTemporary)
}

// orphans is what becomes of temporary queues, and of a request, when their node is lost:
// the queues are gone at once, also when the node is back, and the request is answered.
func (s *suite) orphans(node int) func(t *testing.T) (gone, back func(t *testing.T)) {
	return func(t *testing.T) (gone, back func(t *testing.T)) {
		ctx := patient(t)
		sender := dial(t, s.at(1), client.AllowRedirect(false))
		owner := dial(t, s.at(node), client.AllowRedirect(false))
		var queues []*client.TemporaryQueue
		for i := range 10 {
			q, err := owner.TemporaryQueue(ctx, client.Grace(time.Duration(i)*time.Minute))
			require.NoError(t, err)
			_, err = sender.Send(ctx, q.Name(), &client.Record{})
			require.NoError(t, err)
			queues = append(queues, q)
		}
		d := s.topic(t, sender, client.Settings{Partitions: 1, Replicas: 3})
		_, err := sender.CreateGroup(ctx, d.Name, client.DefaultServeGroup, client.GroupIntent{Start: client.GroupStart{To: "earliest"}})
		require.NoError(t, err)
		serve, stop := context.WithCancel(t.Context())
		t.Cleanup(stop)
		asked, lost := make(chan string, 100), make(chan struct{})
		served := make(chan error, 1)
		server := dial(t, s.at(3))
		go func() {
			served <- server.Serve(serve, d.Name, func(_ context.Context, r *client.Delivery) (*client.Record, error) {
				for _, h := range r.Headers {
					if h.Key == client.ReplyToHeader {
						asked <- string(h.Value)
					}
				}
				<-lost
				return &client.Record{Value: r.Value}, nil
			})
		}()
		requester := dial(t, s.at(node, 1), client.InOrder(), client.AllowRedirect(false))
		require.EqualValues(t, node, requester.Info().Node)
		type outcome struct {
			reply *client.Record
			err   error
		}
		answered := make(chan outcome, 1)
		go func() {
			reply, err := requester.Request(ctx, d.Name, &client.Record{Value: []byte("x")})
			answered <- outcome{reply, err}
		}()
		require.True(t, strings.HasPrefix(<-asked, fmt.Sprintf("$tmp/%d/", node)))
		gone = func(t *testing.T) {
			began := time.Now()
			close(lost)
			for _, q := range queues {
				eventually(t, "it is said to be gone", func() bool { return isGone(ctx, sender, q.Name()) })
			}
			require.Less(t, time.Since(began), detectTime)
			_, err := queues[0].Receive(ctx) // it had come before
			require.NoError(t, err)
			_, err = queues[0].Receive(ctx)
			require.ErrorIs(t, err, wire.CodeDestinationGone, "the owner is told")
			got := <-answered
			require.NoError(t, got.err)
			require.Equal(t, "x", string(got.reply.Value))
			require.EqualValues(t, 1, requester.RequestStats().Resent)
			require.True(t, strings.HasPrefix(<-asked, "$tmp/1/"), "it was asked again from where the requester is now")
			stop()
			require.ErrorIs(t, <-served, context.Canceled)
			t.Logf("a request was answered %v after the node of its inbox was killed", time.Since(began).Round(time.Millisecond))
		}
		return gone, func(t *testing.T) {
			s.await(t, node)
			for _, q := range queues {
				<-q.Gone() // with a grace, the owner asks the node again
				require.True(t, isGone(ctx, sender, q.Name()))
			}
			require.Zero(t, s.metric(t, node, "lockstep_temporary_queues"), "no orphan is left")
			require.Zero(t, s.metric(t, node, "lockstep_temporary_bytes"))
		}
	}
}

// session has a consumer and a producer that are connected to the node that is lost, which
// leads what they work with. What the consumer holds stays its own, what it had it keeps,
// and what the producer sends is there once.
func (s *suite) session(node int) func(t *testing.T) (gone, back func(t *testing.T)) {
	return func(t *testing.T) (gone, back func(t *testing.T)) {
		const window = 20
		conn := dial(t, s.at(node, 1, 3), client.InOrder())
		d := s.topic(t, conn, replicated)
		n := partitionOf(t, conn, d, uint32(node))
		settings := client.GroupSettings{Mode: client.Shared, SessionMs: 30_000, AckWaitMs: 120_000} // a slow machine is none of its business
		_, err := conn.CreateGroup(patient(t), d.Name, "g", client.GroupIntent{Settings: settings, Start: client.GroupStart{To: "earliest"}})
		require.NoError(t, err)
		lost := newEvents()
		c, err := conn.Consumer(patient(t), d.Name, client.Group("g"), client.Prefetch(20*window), client.OnEvent(lost.add))
		require.NoError(t, err)
		w := startPaced(t, producer(t, conn, d, client.Partition(n)), "")
		seen := make(map[string]bool)
		take := func() *client.Delivery {
			delivery, err := c.Next(patient(t))
			require.NoError(t, err)
			require.False(t, delivery.Redelivered || seen[string(delivery.Value)], "record %s came again", delivery.Value)
			seen[string(delivery.Value)] = true
			return delivery
		}
		var held []*client.Delivery
		for range window {
			held = append(held, take())
		}
		bound := c.Partitions()
		require.EqualValues(t, node, conn.Info().Node)
		return func(t *testing.T) {
			w.goesOn(t)
			w.all(t)
			for len(seen) < w.answered() {
				require.NoError(t, take().Ack())
			}
			for _, delivery := range held {
				require.NoError(t, delivery.AckSync(patient(t)), "record %s", delivery.Value)
			}
			_, some := find[client.LeaseLost](lost)
			require.False(t, some, "a lease was lost")
			require.Equal(t, bound, c.Partitions())
			require.NotEqualValues(t, node, conn.Info().Node)
			require.NoError(t, c.Close(patient(t)))
			w.holds(t, content(t, dial(t, s.at(3)), d.Name))
		}, nil
	}
}

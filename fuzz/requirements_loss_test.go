package fuzz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// The requirements for when a node is lost. One loss serves all of them: each takes up
// its work before, and looks afterwards what has become of it.

// loss is what a part does before a node is lost, while it is gone, and when it is back;
// the last may be nil.
type loss struct {
	name    string
	prepare func(t *testing.T) (gone, back func(t *testing.T))
}

// lose kills a node under the work of all parts, and starts it again.
func (s *suite) lose(t *testing.T, node int, parts []loss) {
	var gone, back []func(*testing.T)
	for _, p := range parts {
		g, b := p.prepare(t)
		gone, back = append(gone, g), append(back, b)
	}
	s.nodes[node-1].kill()
	for i, look := range gone {
		t.Run(parts[i].name, look)
	}
	s.nodes[node-1].start()
	for i, look := range back {
		if look != nil {
			t.Run(parts[i].name+"_Afterwards", look)
		}
	}
}

// paced sends at a pace that no machine finds hard, until it is told to stop.
type paced struct {
	*ledger
	p    *client.Producer
	sent atomic.Int64
	stop context.CancelFunc
	done chan struct{}
}

const pace = 5 * time.Millisecond

func startPaced(t *testing.T, p *client.Producer, key string) *paced {
	ctx, stop := context.WithCancel(t.Context())
	w := &paced{ledger: newLedger(), p: p, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if w.send(ctx, p, key, fmt.Sprintf("%07d", w.sent.Load())) != nil {
				return
			}
			w.sent.Add(1)
		}
	}()
	t.Cleanup(func() { stop(); <-w.done })
	return w
}

// finish ends the sending and waits for the outcome of what was sent.
func (w *paced) finish(t *testing.T) {
	t.Helper()
	w.stop()
	<-w.done
	require.NoError(t, w.p.Flush(patient(t)))
}

// all requires that all was acknowledged that was sent.
func (w *paced) all(t *testing.T) {
	t.Helper()
	w.finish(t)
	require.Empty(t, w.errs)
	require.EqualValues(t, w.sent.Load(), w.answered())
}

// goesOn waits until more is acknowledged.
func (w *paced) goesOn(t *testing.T) {
	t.Helper()
	before := w.answered()
	eventually(t, "more is acknowledged", func() bool { return w.answered() > before+5 })
}

// rate is which part of what is sent in a while is acknowledged in it.
func (w *paced) rate(while time.Duration) float64 {
	sent, answered := w.sent.Load(), w.answered()
	time.Sleep(while) // this is what is measured
	return float64(w.answered()-answered) / float64(w.sent.Load()-sent)
}

// isolated has producers for what other nodes lead: those that follow the lost one's
// partitions, and those that have nothing to do with it.
func (s *suite) isolated(others ...uint32) func(t *testing.T) (gone, back func(t *testing.T)) {
	return func(t *testing.T) (gone, back func(t *testing.T)) {
		var work []*paced
		conn := dial(t, s.at(1))
		for _, d := range []*client.Destination{s.topic(t, conn, client.Settings{Partitions: 3, Replicas: 3, Sync: client.SyncOS}), s.onePerNode(t, conn)} {
			for _, node := range others {
				conn := dial(t, s.at(int(node)))
				work = append(work, startPaced(t, producer(t, conn, d, client.Partition(partitionOf(t, conn, d, node))), ""))
			}
		}
		for _, w := range work {
			w.goesOn(t)
		}
		return func(t *testing.T) {
			least := 0.0
			for range 3 { // a window in which the machine was busy with something else says nothing
				rates := make(chan float64)
				for _, w := range work {
					go func() { rates <- w.rate(1500 * time.Millisecond) }()
				}
				least = 1.0
				for range work {
					least = min(least, <-rates)
				}
				if t.Logf("at least %.2f of the pace", least); least > 0.9 {
					break
				}
			}
			for _, w := range work {
				w.stop()
			}
			require.Greater(t, least, 0.9)
			for _, w := range work {
				w.all(t)
			}
		}, nil
	}
}

// bootstrap does half of its work before the only broker dies that it was given.
func (s *suite) bootstrap(t *testing.T) (gone, back func(t *testing.T)) {
	work := script{conn: dial(t, s.at(2)), name: "script-again"}
	work.begin(t)
	return func(t *testing.T) {
		work.end(t)
		require.Equal(t, s.script, work.said)
	}, nil
}

// restricted has a client that is to go nowhere else, and one that may.
func (s *suite) restricted(t *testing.T) (gone, back func(t *testing.T)) {
	off, on := dial(t, s.at(2), client.AllowRedirect(false)), dial(t, s.at(2))
	d := s.topic(t, on, replicated)
	p := producer(t, off, d)
	sendAll(t, p, "before ", 10)
	return func(t *testing.T) {
			began := time.Now()
			require.ErrorIs(t, off.Ping(t.Context()), client.ErrDisconnected)
			_, err := p.Send(t.Context(), &client.Record{Value: []byte("x")})
			require.ErrorIs(t, err, client.ErrDisconnected)
			require.Less(t, time.Since(began), detectTime)
			require.NoError(t, on.Ping(patient(t)))
			sendAll(t, producer(t, on, d), "elsewhere ", 10)
			_, err = client.Connect(patient(t), s.at(2))
			require.Error(t, err)
			require.EqualValues(t, 3, dial(t, s.at(2), client.RetryServers(s.at(3))).Info().Node)
		}, func(t *testing.T) {
			eventually(t, "the client is served again", func() bool { return off.Ping(t.Context()) == nil })
			sendAll(t, p, "after ", 10)
		}
}

// told has clients of the lost node, and such as use it from elsewhere, and others.
func (s *suite) told(t *testing.T) (gone, back func(t *testing.T)) {
	conn := dial(t, s.at(1))
	d := s.onePerNode(t, conn)
	begin := func(node int, uses uint32) (*client.Conn, *events, *paced) {
		e := newEvents()
		conn := dial(t, s.at(node), client.WithEvents(e.add))
		w := startPaced(t, producer(t, conn, d, client.Partition(partitionOf(t, conn, d, uses))), "")
		w.goesOn(t)
		return conn, e, w
	}
	var own []*events
	var ownWork []*paced
	for range 5 {
		_, e, w := begin(2, 1)
		own, ownWork = append(own, e), append(ownWork, w)
	}
	user, elsewhere, use := begin(1, 2)
	_, bystander, other := begin(1, 3)
	return func(t *testing.T) {
			for i, e := range own {
				lost := awaitEvent[client.Disconnected](t, e, detectTime)
				require.EqualValues(t, 2, lost.Node)
				ownWork[i].all(t)
				_, other := find[client.NodeLost](e)
				require.False(t, other)
				_, other = find[client.DestinationUnavailable](e)
				require.False(t, other)
			}
			require.EqualValues(t, 2, awaitEvent[client.NodeLost](t, elsewhere, detectTime).Node)
			require.Equal(t, client.DestinationUnavailable{Destination: d.Name, Partition: partitionOf(t, conn, d, 2)},
				awaitEvent[client.DestinationUnavailable](t, elsewhere, detectTime))
			require.NoError(t, user.Ping(patient(t)))
			for _, e := range []*events{elsewhere, bystander} {
				_, lost := find[client.Disconnected](e)
				require.False(t, lost, "their own broker lives")
			}
			_, lost := find[client.DestinationUnavailable](bystander)
			require.False(t, lost)
			other.all(t)
		}, func(t *testing.T) {
			use.goesOn(t)
			use.all(t)
		}
}

// unreconnected has a reader that waits and a sender at work, which want no other
// connection than the one that they have.
func (s *suite) unreconnected(node int) func(t *testing.T) (gone, back func(t *testing.T)) {
	return func(t *testing.T) (gone, back func(t *testing.T)) {
		conn := dial(t, s.at(node), client.WithReconnect(false))
		d := s.topic(t, conn, replicated)
		n := partitionOf(t, conn, d, uint32(node))
		r, err := conn.Reader(patient(t), d.Name, client.Partitions(n))
		require.NoError(t, err)
		p := producer(t, conn, d, client.Partition(n))
		errs := make(chan error, 2)
		go func() {
			var err error
			for err == nil {
				_, err = r.Next(context.Background())
			}
			errs <- err
		}()
		go func() {
			var err error
			for err == nil {
				_, err = p.Send(context.Background(), &client.Record{Value: []byte("x")})
				time.Sleep(pace) // its rate
			}
			errs <- err
		}()
		return func(t *testing.T) {
			for range 2 {
				select {
				case err := <-errs:
					require.True(t, errors.Is(err, client.ErrDisconnected) || errors.Is(err, wire.CodeUnavailable), "%v", err)
				case <-time.After(detectTime):
					require.Fail(t, "a call waits for a broker that is gone")
				}
			}
			require.ErrorIs(t, conn.Ping(context.Background()), client.ErrDisconnected)
		}, nil
	}
}

// available has a producer for a partition that the lost node leads, with a key of its
// own: it goes on without that node, and everything else does.
func (s *suite) available(t *testing.T) (gone, back func(t *testing.T)) {
	conn := dial(t, s.at(1))
	d := s.topic(t, conn, replicated)
	p := producer(t, conn, d)
	n, unit := partitionOf(t, conn, d, 2), ""
	for i := 0; unit == ""; i++ {
		key := fmt.Sprintf("unit %d", i)
		r, err := p.Send(patient(t), &client.Record{Key: []byte(key)})
		require.NoError(t, err)
		if r.Partition == n {
			unit = key
		}
	}
	w := startPaced(t, p, unit)
	w.goesOn(t)
	return func(t *testing.T) {
		w.goesOn(t)
		require.NotEqual(t, uint32(2), ledTopic(t, conn, d.Name).Partitions[n].Leader)
		made := s.topic(t, conn, client.Settings{Partitions: 3, Replicas: 2})
		l := sendAll(t, producer(t, conn, made, client.LocalPreference(false), client.BatchBytes(1)), "", 300)
		require.Len(t, l.share(), 3)
		l.holds(t, content(t, conn, made.Name))
		require.NoError(t, conn.DeleteDestination(patient(t), *made))
		w.all(t)
		require.Less(t, w.gap, detectTime+electTime)
		t.Logf("nothing was acknowledged for %v", w.gap.Round(time.Millisecond))
		var mine []string
		for _, v := range content(t, conn, d.Name)[n] {
			if v != "" {
				mine = append(mine, v)
			}
		}
		require.True(t, slices.IsSorted(mine), "the order of the unit")
		require.Len(t, mine, int(w.sent.Load()), "once each")
	}, nil
}

// active sends to three partitions of one replica each, one of which is lost for a time.
func (s *suite) active(t *testing.T) (gone, back func(t *testing.T)) {
	conn := dial(t, s.at(gateway))
	d := s.onePerNode(t, conn)
	n := partitionOf(t, conn, d, 2)
	p := producer(t, conn, d)
	send := func(t *testing.T, count int) map[uint32]int {
		l := newLedger()
		for i := range count {
			require.NoError(t, l.send(patient(t), p, "", fmt.Sprint(i)))
			require.NoError(t, p.Flush(patient(t)))
		}
		require.Equal(t, count, l.answered())
		return l.share()
	}
	for _, counted := range send(t, 300) {
		require.InDelta(t, 100, counted, 3)
	}
	return func(t *testing.T) {
			send(t, 3) // the first one for the lost partition goes to another after a second
			counts := send(t, 300)
			require.Zero(t, counts[n])
			for _, counted := range counts {
				require.InDelta(t, 150, counted, 3)
			}
		}, func(t *testing.T) {
			ledTopic(t, conn, d.Name)
			began := time.Now()
			for send(t, 3)[n] == 0 {
				require.Less(t, time.Since(began), shareTime)
			}
			t.Logf("the share was back %v after the leader", time.Since(began).Round(time.Millisecond))
			for _, counted := range send(t, 300) {
				require.InDelta(t, 100, counted, 3)
			}
		}
}

// combined has a producer and a reader on the node that is lost.
func (s *suite) combined(t *testing.T) (gone, back func(t *testing.T)) {
	conn := dial(t, s.at(2))
	d := s.topic(t, conn, replicated)
	r, err := conn.Reader(patient(t), d.Name)
	require.NoError(t, err)
	w := startPaced(t, producer(t, conn, d), "")
	w.goesOn(t)
	return func(t *testing.T) {
		w.goesOn(t)
		w.all(t)
		w.holds(t, content(t, dial(t, s.at(3)), d.Name))
		seen := map[string]bool{}
		for range w.answered() {
			rec, err := r.Next(patient(t))
			require.NoError(t, err)
			require.False(t, seen[string(rec.Value)], "the reader had %s already", rec.Value)
			seen[string(rec.Value)] = true
		}
	}, nil
}

// volatile sends to a partition of the lost node what may be lost and what may not.
// Whatever is there without it is there when it is back, and no more.
func (s *suite) volatile(servers string, opts ...client.Option) func(t *testing.T) (gone, back func(t *testing.T)) {
	return func(t *testing.T) (gone, back func(t *testing.T)) {
		conn := dial(t, servers, opts...)
		d := s.topic(t, conn, replicated)
		n := partitionOf(t, conn, d, 2)
		durable := startPaced(t, producer(t, conn, d, client.Partition(n)), "")
		ctx, fast := patient(t), newLedger()
		p := producer(t, conn, d, client.Partition(n), client.Acks(client.AcksLeader), client.Idempotent(false), client.DeliveryTimeout(detectTime))
		sent := make(chan int, 1)
		stop := make(chan struct{})
		go func() {
			i := 0
			for ; ; i++ {
				select {
				case <-stop:
					sent <- i
					return
				case <-time.After(time.Millisecond):
				}
				_ = fast.send(ctx, p, "", fmt.Sprintf("volatile %07d", i))
			}
		}()
		durable.goesOn(t)
		m := s.topic(t, conn, client.Settings{Partitions: 3, Replicas: 1, Storage: client.StorageMemory})
		sendAll(t, producer(t, conn, m, client.Partition(partitionOf(t, conn, m, 2))), "", 50)
		m3 := s.topic(t, conn, client.Settings{Partitions: 3, Replicas: 3, Storage: client.StorageMemory})
		shared := sendAll(t, producer(t, conn, m3, client.Partition(partitionOf(t, conn, m3, 2))), "", 50)
		var left map[uint32][]string
		return func(t *testing.T) {
				close(stop)
				count := <-sent
				require.NoError(t, p.Flush(patient(t)))
				durable.goesOn(t) // behind all that the other one has sent
				durable.all(t)
				shared.holds(t, content(t, conn, m3.Name))
				left = content(t, conn, d.Name)
				durable.holds(t, left)
				kept := len(left[n]) - durable.answered()
				require.LessOrEqual(t, kept, count)
				t.Logf("%d durable; of %d volatile %d were acknowledged and %d are there", durable.answered(), count, fast.answered(), kept)
			}, func(t *testing.T) {
				require.Equal(t, left, content(t, conn, d.Name))
				require.Empty(t, content(t, conn, ledTopic(t, conn, m.Name).Name))
				shared.holds(t, content(t, conn, m3.Name))
			}
	}
}

// untargeted asks for a node that is not there.
func (s *suite) untargeted(*testing.T) (gone, back func(t *testing.T)) {
	return func(t *testing.T) {
		for _, wanted := range []func(client.TargetMode) client.Option{
			func(m client.TargetMode) client.Option { return client.TargetNode(2, m) },
			func(m client.TargetMode) client.Option { return client.TargetRack("b", m) },
		} {
			_, err := client.Connect(patient(t), s.at(1), wanted(client.Require))
			require.ErrorIs(t, err, client.ErrTarget)
			require.EqualValues(t, 1, dial(t, s.at(1), wanted(client.Prefer)).Info().Node)
		}
	}, nil
}

// fewer looks at receipts when one of three replicas is gone.
func (s *suite) fewer(t *testing.T) (gone, back func(t *testing.T)) {
	conn := dial(t, s.at(1))
	d := s.topic(t, conn, replicated)
	return func(t *testing.T) {
		for _, r := range sendAll(t, producer(t, conn, d, client.Partition(partitionOf(t, conn, d, 1))), "", 20).receipts {
			require.Equal(t, 2, r.Replicas)
			require.True(t, r.Synced)
		}
	}, nil
}

// passedOn sends by way of the gateway, whose loss takes nothing along that it has
// acknowledged; what it has not is an error, and stored once at the most.
func (s *suite) passedOn(t *testing.T) (gone, back func(t *testing.T)) {
	conn := dial(t, s.at(gateway), client.AllowRedirect(false), client.WithReconnect(false))
	d := s.topic(t, conn, replicated)
	w := startPaced(t, producer(t, conn, d), "")
	w.goesOn(t)
	return func(t *testing.T) {
		eventually(t, "the sender is told", func() bool {
			select {
			case <-w.done:
				return true
			default:
				return false
			}
		})
		for _, err := range w.errs {
			require.ErrorIs(t, err, client.ErrDisconnected)
		}
		w.holds(t, content(t, dial(t, s.at(1)), d.Name))
		require.GreaterOrEqual(t, w.sent.Load(), int64(w.answered()))
	}, nil
}

package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// requireOnce checks that the partitions hold each value once and nothing else, those
// of one partition in the order in which they were sent.
func requireOnce(t *testing.T, b *fakeBroker, destination string, partitions int, want []string) {
	t.Helper()
	place := make(map[string]int, len(want))
	for i, v := range want {
		place[v] = i
	}
	var all []string
	for n := range partitions {
		values := b.values(destination, n)
		for i := 1; i < len(values); i++ {
			require.Less(t, place[values[i-1]], place[values[i]], "partition %d: %q before %q", n, values[i-1], values[i])
		}
		all = append(all, values...)
	}
	slices.Sort(all)
	want = slices.Clone(want)
	slices.Sort(want)
	require.Equal(t, want, all)
}

// produced is how many PRODUCEs a broker got, and how many requests it refused or
// passed on.
func (b *fakeBroker) counts() (produced, refused, forwarded int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.produced, b.refused, b.forwarded
}

// R-IS-1, R-IS-2: one address is enough to find the cluster, and everything goes
// straight to who leads it.
func TestR_IS_2_TheLeadersAreAskedThemselves(t *testing.T) {
	nodes := startCluster(t, 3)
	d := nodes[0].create("d", Topic, 6)
	ctx := testContext(t)
	c := connect(t, nodes[1])
	want := numbered(300)
	for n := range 6 {
		p := newTestProducer(t, c, "d", Partition(uint32(n)))
		for _, v := range want[50*n : 50*n+50] {
			_, err := p.Send(ctx, &Record{Value: []byte(v)})
			require.NoError(t, err)
		}
	}
	requireOnce(t, nodes[0], "d", 6, want)
	got := readAll(t, newTestReader(t, c, "d", StopAtEnd()))
	require.ElementsMatch(t, want, got)
	offsets, err := c.Offsets(ctx, "d", Latest())
	require.NoError(t, err)
	require.Equal(t, map[uint32]uint64{0: 50, 1: 50, 2: 50, 3: 50, 4: 50, 5: 50}, offsets)
	for _, b := range nodes {
		produced, refused, forwarded := b.counts()
		require.GreaterOrEqual(t, produced, 100)
		require.Zero(t, refused)
		require.Zero(t, forwarded)
		require.Equal(t, 1, b.connections())
	}

	known, _, err := c.Nodes(ctx)
	require.NoError(t, err)
	require.Len(t, known, 3)
	all, err := c.Destination(ctx, "d")
	require.NoError(t, err)
	for i, p := range all.Partitions {
		require.Equal(t, d.partitions[i].leader, p.Leader)
	}
}

// R-IS-1: the broker that a client began with is no more than that.
func TestR_IS_1_TheClientOutlivesItsFirstBroker(t *testing.T) {
	for victim := range 3 {
		t.Run(fmt.Sprintf("node %d dies", victim+1), func(t *testing.T) {
			nodes := startCluster(t, 3)
			d := nodes[0].create("d", Topic, 3)
			c := connect(t, nodes[0])
			ctx := testContext(t)
			r := newTestReader(t, c, "d")
			p := newTestProducer(t, c, "d", BatchBytes(1))
			want := numbered(60)
			for i, v := range want {
				if i == 30 {
					nodes[victim].stop()
					nodes[0].elect(d, victim, uint32((victim+1)%3+1), true)
				}
				_, err := p.Send(ctx, &Record{Value: []byte(v)})
				require.NoError(t, err)
			}
			survivor := nodes[(victim+1)%3]
			requireOnce(t, survivor, "d", 3, want)
			var got []string
			for range want {
				rec, err := r.Next(ctx)
				require.NoError(t, err)
				got = append(got, string(rec.Value))
			}
			require.ElementsMatch(t, want, got)
			require.NoError(t, c.Ping(ctx))
			require.True(t, c.Info().Connected)
			require.NotEqual(t, uint32(victim+1), c.Info().Node)
		})
	}
}

// R-IS-2: without redirects a client has the brokers it was given and no others.
func TestR_IS_2_WithoutRedirectsTheBrokerPassesOn(t *testing.T) {
	nodes := startCluster(t, 3)
	nodes[0].create("d", Topic, 3)
	c := connect(t, nodes[0], AllowRedirect(false))
	ctx := testContext(t)
	p := newTestProducer(t, c, "d", BatchBytes(1))
	r := newTestReader(t, c, "d")
	want := numbered(30)
	for _, v := range want {
		_, err := p.Send(ctx, &Record{Value: []byte(v)})
		require.NoError(t, err)
	}
	for range want {
		_, err := r.Next(ctx)
		require.NoError(t, err)
	}
	requireOnce(t, nodes[0], "d", 3, want)
	produced, refused, forwarded := nodes[0].counts()
	require.Equal(t, 30, produced)
	require.Zero(t, refused)
	require.Positive(t, forwarded)
	require.Zero(t, nodes[1].connections()+nodes[2].connections())

	nodes[0].stop()
	_, err := p.Send(context.Background(), &Record{Value: []byte("x")})
	require.ErrorIs(t, err, ErrDisconnected)
	require.ErrorIs(t, c.Ping(context.Background()), ErrDisconnected)

	nodes[0].restart()
	require.Eventually(t, func() bool { return c.Ping(ctx) == nil }, 60*time.Second, time.Millisecond)
	_, err = p.Send(ctx, &Record{Value: []byte("y")})
	require.NoError(t, err)
}

// R-IS-3 from the client's side: who is told of a new leader goes there without asking
// anybody, with what was refused first.
func TestARefusalThatNamesTheLeaderIsFollowed(t *testing.T) {
	nodes := startCluster(t, 3)
	d := nodes[0].create("d", Topic, 1)
	c := connect(t, nodes[0])
	ctx := testContext(t)
	r := newTestReader(t, c, "d")
	p := newTestProducer(t, c, "d", BatchBytes(1), InFlight(4))
	asked := 0
	nodes[0].setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpMetadata {
			asked++
		}
		return false
	})
	var want []string
	for round := range 20 {
		nodes[0].elect(d, 0, uint32(round%3+1), false)
		values := make([]string, 10)
		for i := range values {
			values[i] = fmt.Sprintf("%d/%d", round, i)
		}
		_, errs := sendAll(t, p, nil, values...)
		for _, err := range errs {
			require.NoError(t, err)
		}
		want = append(want, values...)
	}
	require.Equal(t, want, nodes[0].values("d", 0))
	for _, v := range want {
		rec, err := r.Next(ctx)
		require.NoError(t, err)
		require.Equal(t, v, string(rec.Value))
	}
	requireSequences(t, nodes[0].batchInfos("d", 0))
	nodes[0].setScript(nil)
	require.Less(t, asked, 10, "what the refusals say is enough")
}

func TestNewerKnowledgeOfALeaderIsNotOverwritten(t *testing.T) {
	refusal := func(node, epoch uint32) error {
		return &wire.Error{Code: wire.CodeNotLeader, Next: wire.Offset(node)<<32 | wire.Offset(epoch)}
	}
	for _, c := range []struct {
		name    string
		refusal error
		follows bool
		want    leadership
	}{
		{"a newer leader", refusal(3, 6), true, leadership{3, 6}},
		{"the one that is known", refusal(2, 5), true, leadership{2, 5}},
		{"an older one", refusal(3, 4), false, leadership{2, 5}},
		{"no leader", refusal(0, 6), false, leadership{2, 5}},
		{"a refusal that names nobody", &wire.Error{Code: wire.CodeNotLeader}, false, leadership{2, 5}},
		{"another refusal", &wire.Error{Code: wire.CodeDataLost, Next: 3<<32 | 6}, false, leadership{2, 5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := leadership{2, 5}
			require.Equal(t, c.follows, l.follow(c.refusal))
			require.Equal(t, c.want, l)
		})
	}
	l := leadership{2, 5}
	l.learn(leadership{3, 4})
	l.learn(leadership{0, 6})
	require.Equal(t, leadership{2, 5}, l)
	l.learn(leadership{3, 6})
	require.Equal(t, leadership{3, 6}, l)
}

// A broker whose view is old sends its clients back to where they come from. They
// wait, and do not run in a circle.
func TestAnOldHintIsNotFollowed(t *testing.T) {
	nodes := startCluster(t, 2)
	d := nodes[0].create("d", Topic, 1)
	nodes[0].elect(d, 0, 2, false)
	c := connect(t, nodes[0])
	refusals := 0
	nodes[1].setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpProduce && refusals < 3 {
			refusals++
			q.redirect(wire.CodeNotLeader, 1, fakeTerm)
			return true
		}
		return false
	})
	p := newTestProducer(t, c, "d")
	_, err := p.Send(testContext(t), &Record{Value: []byte("x")})
	require.NoError(t, err)
	produced, _, _ := nodes[0].counts()
	require.Zero(t, produced)
	require.Equal(t, []string{"x"}, nodes[0].values("d", 0))
}

// What a broker tells its clients unasked is enough to move those that are idle.
func TestIdleLanesFollowAnEvent(t *testing.T) {
	nodes := startCluster(t, 2)
	d := nodes[0].create("d", Topic, 1)
	c := connect(t, nodes[0])
	ctx := testContext(t)
	p := newTestProducer(t, c, "d")
	_, err := p.Send(ctx, &Record{Value: []byte("a")})
	require.NoError(t, err)
	opened := make(chan struct{}, 1)
	nodes[1].setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpOpenPartition {
			poke(opened)
		}
		return false
	})
	nodes[0].elect(d, 0, 2, true)
	<-opened
	_, err = p.Send(ctx, &Record{Value: []byte("b")})
	require.NoError(t, err)
	_, refused, _ := nodes[0].counts()
	require.Zero(t, refused)
	require.Equal(t, []string{"a", "b"}, nodes[0].values("d", 0))
}

// R-X-6, R-WLS-10: a producer goes on through the loss of leaders; what was
// acknowledged is there, and nothing twice.
func TestR_X_6_ProducesOnceAcrossFiftyLeaderKills(t *testing.T) {
	nodes := startCluster(t, 3)
	d := nodes[0].create("d", Topic, 2)
	ctx := testContext(t)
	c := connect(t, nodes[0])
	p := newTestProducer(t, c, "d", Partition(1), BatchBytes(200), InFlight(8))
	r := newTestReader(t, c, "d", Partitions(1))
	var want []string
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			v := fmt.Sprintf("%07d", i)
			want = append(want, v)
			err := p.SendFunc(ctx, &Record{Value: []byte(v)}, func(_ Receipt, err error) {
				if err != nil {
					t.Errorf("record %s: %v", v, err)
				}
			})
			if err != nil {
				t.Errorf("record %s: %v", v, err)
				return
			}
			if i%64 == 63 && p.Flush(ctx) != nil { // a sender that never waits fills the fakes' memory
				return
			}
		}
	})
	for kill := range 50 {
		nodes[0].mu.Lock()
		leader := d.partitions[1].leader
		before := d.partitions[1].next
		nodes[0].mu.Unlock()
		next := leader%3 + 1
		nodes[leader-1].stop() // also when it is the home
		nodes[0].elect(d, 1, next, kill%2 == 0)
		require.Eventually(t, func() bool {
			nodes[0].mu.Lock()
			defer nodes[0].mu.Unlock()
			return d.partitions[1].next > before+10
		}, 10*time.Second, time.Millisecond)
		nodes[leader-1].restart()
	}
	close(stop)
	wg.Wait()
	require.NoError(t, p.Close(ctx))
	require.Equal(t, want, nodes[0].values("d", 1))
	for _, v := range want {
		rec, err := r.Next(ctx)
		require.NoError(t, err)
		require.Equal(t, v, string(rec.Value))
	}
	t.Logf("50 kills, %d records", len(want))
}

// A partition without a leader holds up nobody but itself.
func TestOthersGoOnWhileAPartitionHasNoLeader(t *testing.T) {
	nodes := startCluster(t, 2)
	d := nodes[0].create("d", Topic, 2)
	c := connect(t, nodes[0])
	ctx := testContext(t)
	stuck := newTestProducer(t, c, "d", Partition(1))
	p := newTestProducer(t, c, "d", Partition(0))
	nodes[1].stop()
	nodes[0].elect(d, 1, 0, true)
	waiting, err := stuck.SendAsync(ctx, &Record{Value: []byte("late")})
	require.NoError(t, err)
	for range 20 {
		_, err := p.Send(ctx, &Record{Value: []byte("x")})
		require.NoError(t, err)
	}
	select {
	case <-waiting.Done():
		t.Fatal("there is nobody to store it")
	default:
	}
	nodes[0].elect(d, 1, 1, true)
	_, err = waiting.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"late"}, nodes[0].values("d", 1))
}

// All brokers may be away: what waits is sent when one is back.
func TestAClusterThatWasAwayIsFoundAgain(t *testing.T) {
	nodes := startCluster(t, 2)
	nodes[0].create("d", Topic, 2)
	c := connect(t, nodes[0])
	ctx := testContext(t)
	p := newTestProducer(t, c, "d", BatchBytes(1))
	_, errs := sendAll(t, p, nil, "a", "b", "c")
	require.Equal(t, make([]error, 3), errs)
	for _, b := range nodes {
		b.stop()
	}
	var tickets []*Ticket
	for _, v := range []string{"d", "e", "f"} {
		ticket, err := p.SendAsync(ctx, &Record{Value: []byte(v)})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	for _, b := range nodes {
		b.restart()
	}
	for _, ticket := range tickets {
		_, err := ticket.Wait(ctx)
		require.NoError(t, err)
	}
	requireOnce(t, nodes[0], "d", 2, []string{"a", "b", "c", "d", "e", "f"})
}

// A home that was only the bootstrap is found under another address later.
func TestAMemberThatWasNotGivenBecomesTheHome(t *testing.T) {
	nodes := startCluster(t, 3)
	c := connect(t, nodes[0])
	ctx := testContext(t)
	_, _, err := c.Nodes(ctx)
	require.NoError(t, err)
	nodes[0].stop()
	require.NoError(t, c.Ping(ctx))
	require.Contains(t, []uint32{2, 3}, c.Info().Node)
}

func TestAnAddressThatBelongsToAnotherNodeIsNotUsed(t *testing.T) {
	nodes := startCluster(t, 2)
	nodes[0].create("d", Topic, 2)
	nodes[1].setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpHello {
			hello := q.b.hello
			hello.NodeID = 7
			q.reply(&hello)
		}
		return q.header.Opcode == wire.OpHello
	})
	c := connect(t, nodes[0])
	p := newTestProducer(t, c, "d", Partition(1), DeliveryTimeout(50*time.Millisecond))
	_, err := p.Send(testContext(t), &Record{Value: []byte("x")})
	require.ErrorIs(t, err, ErrDeliveryTimeout)
	require.Equal(t, NotSent, outcomeOf(t, err))
	produced, _, _ := nodes[1].counts()
	require.Zero(t, produced)
	require.Positive(t, nodes[1].connections())
}

func TestSessionsThatNobodyUsesAreClosed(t *testing.T) {
	nodes := startCluster(t, 2, func(b *fakeBroker) { b.hello.IdleTimeoutMs = 150 })
	nodes[0].create("d", Topic, 2)
	lines := make(chan string, 64)
	logger := slog.New(slog.NewTextHandler(lineWriter(lines), nil))
	c := connect(t, nodes[0], WithLogger(logger), func(o *connOptions) { o.unused = 20 * time.Millisecond })
	ctx := testContext(t)
	p := newTestProducer(t, c, "d", Partition(1))
	for range 20 {
		_, err := p.Send(ctx, &Record{Value: []byte("x")})
		require.NoError(t, err)
	}
	require.NoError(t, p.Close(ctx))
	for !strings.Contains(<-lines, errUnused.Error()) {
		require.NoError(t, ctx.Err())
	}
	require.NoError(t, c.Ping(ctx))
	p = newTestProducer(t, c, "d", Partition(1))
	_, err := p.Send(ctx, &Record{Value: []byte("y")})
	require.NoError(t, err)
}

// R-IS-4: many clients spread over the servers they are given.
func TestR_IS_4_ConnectionsSpreadOverTheServers(t *testing.T) {
	nodes := startCluster(t, 3)
	list := nodes[0].address() + "," + nodes[1].address() + "," + nodes[2].address()
	for range 300 {
		c, err := Connect(testContext(t), list)
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	for _, b := range nodes {
		require.InDelta(t, 100, b.connections(), 15)
	}
	for range 5 {
		c, err := Connect(testContext(t), list, InOrder())
		require.NoError(t, err)
		require.Equal(t, uint32(1), c.Info().Node)
		require.NoError(t, c.Close())
	}
}

// R-IS-2: a second list may be given before the first connect.
func TestR_IS_2_RetryServersComeAfterTheOthers(t *testing.T) {
	nodes := startCluster(t, 2)
	c, err := Connect(testContext(t), nodes[0].address(), RetryServers(nodes[1].address()))
	require.NoError(t, err)
	require.Equal(t, uint32(1), c.Info().Node)
	require.NoError(t, c.Close())
	nodes[0].stop()
	c, err = Connect(testContext(t), nodes[0].address(), RetryServers(nodes[1].address()), AllowRedirect(false))
	require.NoError(t, err)
	require.Equal(t, uint32(2), c.Info().Node)
	require.NoError(t, c.Close())
	_, err = Connect(testContext(t), nodes[0].address(), RetryServers("nowhere"))
	require.ErrorContains(t, err, "RetryServers")
}

// R-WLS-6, R-WLS-10: without reconnecting no call waits for a leader that is gone, or
// silent: it fails within the detection time, and the session with the home stays.
func TestR_WLS_6_NoCallOutlivesADeadLeader(t *testing.T) {
	for _, c := range []struct {
		name   string
		break_ func(*fakeRequest)
		want   error
	}{
		{"reset", func(q *fakeRequest) { q.conn.drop() }, ErrDisconnected},
		{"silence", func(*fakeRequest) {}, ErrKeepalive},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes := startCluster(t, 2, func(b *fakeBroker) { b.hello.IdleTimeoutMs = 150 })
			d := nodes[0].create("d", Topic, 2)
			log := newEventLog()
			conn := connect(t, nodes[0], WithReconnect(false), WithEvents(log.add))
			p := newTestProducer(t, conn, "d", Partition(1))
			r := newTestReader(t, conn, "d", Partitions(1))
			sendOneByOne(t, p, 1)
			_, err := r.Next(testContext(t))
			require.NoError(t, err)
			reading := make(chan error)
			go func() { _, err := r.Next(context.Background()); reading <- err }()
			broken := false
			nodes[1].setScript(func(q *fakeRequest) bool {
				if q.header.Opcode == wire.OpProduce {
					nodes[0].elect(d, 1, 0, true)
					broken = true
					c.break_(q)
				}
				return broken
			})
			_, err = p.Send(context.Background(), &Record{Value: []byte("x")})
			require.ErrorIs(t, err, ErrDisconnected)
			require.ErrorIs(t, err, c.want)
			require.Equal(t, Unknown, outcomeOf(t, err))
			require.ErrorIs(t, <-reading, ErrDisconnected)
			log.await(t, func(e Event) bool { lost, ok := e.(NodeLost); return ok && errors.Is(lost.Err, c.want) })

			nodes[1].stop()
			_, err = p.Send(context.Background(), &Record{Value: []byte("y")})
			require.ErrorIs(t, err, wire.CodeUnavailable)
			require.Equal(t, NotSent, outcomeOf(t, err))
			require.NoError(t, conn.Ping(testContext(t)))

			nodes[0].elect(d, 1, 1, true)
			_, err = p.Send(testContext(t), &Record{Value: []byte("z")})
			require.NoError(t, err)
		})
	}
}

// A reader whose partition has no leader says so and waits.
func TestAReaderWaitsForALeader(t *testing.T) {
	nodes := startCluster(t, 2)
	d := nodes[0].create("d", Topic, 2)
	log := newEventLog()
	c := connect(t, nodes[0], WithEvents(log.add))
	r := newTestReader(t, c, "d", Partitions(1))
	nodes[1].stop()
	nodes[0].elect(d, 1, 0, true)
	log.await(t, func(e Event) bool { return e == DestinationUnavailable{Destination: "d", Partition: 1} })
	want := nodes[0].fill(d.partitions[1], NoCompression, 1)
	nodes[0].elect(d, 1, 1, true)
	rec, err := r.Next(testContext(t))
	require.NoError(t, err)
	require.Equal(t, want[0], string(rec.Value))
}

// The answer of a leader that was asked before another one was elected comes too late,
// and changes nothing.
func TestAnAnswerFromAFormerLeaderIsIgnored(t *testing.T) {
	for _, op := range []wire.Opcode{wire.OpOpenPartition, wire.OpLinkOpen} {
		t.Run(op.String(), func(t *testing.T) {
			nodes := startCluster(t, 2)
			d := nodes[0].create("d", Topic, 1)
			c := connect(t, nodes[0])
			ctx := testContext(t)
			asked, closed := make(chan *fakeRequest, 1), make(chan struct{}, 1)
			nodes[0].setScript(func(q *fakeRequest) bool {
				switch q.header.Opcode {
				case op:
					asked <- q
					return true
				case wire.OpLinkClose:
					poke(closed)
				}
				return false
			})
			if op == wire.OpOpenPartition {
				p := newTestProducer(t, c, "d")
				ticket, err := p.SendAsync(ctx, &Record{Value: []byte("x")})
				require.NoError(t, err)
				late := <-asked
				nodes[0].elect(d, 0, 2, true)
				_, err = ticket.Wait(ctx)
				require.NoError(t, err)
				late.reply(&wire.OpenPartitionResponse{Handle: 1, DestinationID: d.info.ID})
				require.NoError(t, c.Ping(ctx)) // it has arrived
				_, err = p.Send(ctx, &Record{Value: []byte("y")})
				require.NoError(t, err)
				produced, _, _ := nodes[0].counts()
				require.Zero(t, produced)
				require.Equal(t, []string{"x", "y"}, nodes[0].values("d", 0))
				return
			}
			opened := make(chan *Reader)
			go func() {
				r, err := c.Reader(ctx, "d")
				if err != nil {
					t.Errorf("reader: %v", err)
				}
				opened <- r
			}()
			late := <-asked
			nodes[0].elect(d, 0, 2, true)
			r := <-opened
			late.reply(&wire.LinkOpenResponse{Link: 77})
			<-closed
			want := nodes[1].fill(d.partitions[0], NoCompression, 1)
			rec, err := r.Next(ctx)
			require.NoError(t, err)
			require.Equal(t, want[0], string(rec.Value))
		})
	}
}

// A home that lost its links to the other nodes but not to its clients knows no leader
// any more. Who asks it must not stay with it.
func TestAHomeThatIsCutOffFromTheOthersIsLeft(t *testing.T) {
	nodes := startCluster(t, 3)
	d := nodes[0].create("d", Topic, 3)
	c := connect(t, nodes[0])
	ctx := testContext(t)
	p := newTestProducer(t, c, "d", Partition(0))
	_, err := p.Send(ctx, &Record{Value: []byte("before")})
	require.NoError(t, err)
	nodes[0].setScript(func(q *fakeRequest) bool {
		switch q.header.Opcode {
		case wire.OpMetadata:
			response := wire.MetadataResponse{Version: q.b.version, Destinations: []wire.DestinationInfo{d.describe()}}
			for _, b := range q.b.brokers {
				response.Nodes = append(response.Nodes, wire.Node{ID: b.hello.NodeID, Address: b.address(), Alive: b == q.b})
			}
			for i := range response.Destinations[0].Partitions {
				response.Destinations[0].Partitions[i].Leader = 0
			}
			q.reply(&response)
		case wire.OpOpenPartition, wire.OpProduce:
			q.refuse(wire.CodeNotLeader)
		default:
			return false
		}
		return true
	})
	nodes[1].elect(d, 0, 2, false)
	_, err = p.Send(ctx, &Record{Value: []byte("after")})
	require.NoError(t, err)
	require.Equal(t, []string{"before", "after"}, nodes[1].values("d", 0))
	require.Contains(t, []uint32{2, 3}, c.Info().Node)

	nodes[0].stop() // nobody needs it; and the new home is watched as the first was
	nodes[c.Info().Node-1].stop()
	require.NoError(t, c.Ping(ctx))
}

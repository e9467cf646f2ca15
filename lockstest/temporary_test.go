package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// to connects to one broker and stays there.
func to(ctx context.Context, t *testing.T, b *lockstest.Broker) *client.Conn {
	t.Helper()
	conn, err := client.Connect(ctx, b.URL(), client.AllowRedirect(false))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// limited is a context for a whole test: what hangs, fails.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// serving answers requests until the test ends.
func serving(ctx context.Context, t *testing.T, conn *client.Conn, destination string, handler client.Handler, opts ...client.ConsumerOption) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- conn.Serve(ctx, destination, handler, opts...) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

// shout answers with the request in capitals.
func shout(_ context.Context, d *client.Delivery) (*client.Record, error) {
	return &client.Record{Key: d.Key, Value: []byte(strings.ToUpper(string(d.Value)))}, nil
}

func TestRequestsAreAnswered(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "words", Kind: client.Queue, Settings: client.Settings{Partitions: 2}})
	servers := to(ctx, t, b)
	serving(ctx, t, servers, "words", func(ctx context.Context, d *client.Delivery) (*client.Record, error) {
		switch string(d.Value) {
		case "fail":
			return nil, errors.New("no such word")
		case "again":
			if d.Deliveries == 1 {
				return nil, client.ErrAgain
			}
		case "large":
			return &client.Record{Value: make([]byte, wire.DefaultMaxRecordBytes)}, nil
		}
		return shout(ctx, d)
	}, client.Backoff(time.Millisecond, time.Millisecond))

	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			reply, err := conn.Request(ctx, "words", &client.Record{Key: []byte("k"), Value: fmt.Appendf(nil, "word %d", i)})
			if err != nil || string(reply.Value) != fmt.Sprintf("WORD %d", i) {
				t.Errorf("request %d: %v, %v", i, reply, err)
			}
		})
	}
	wg.Wait()

	_, err := conn.Request(ctx, "words", &client.Record{Value: []byte("fail")})
	var failed *client.RequestError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, "no such word", failed.Text)

	reply, err := conn.Request(ctx, "words", &client.Record{Value: []byte("again")})
	require.NoError(t, err)
	require.Equal(t, "AGAIN", string(reply.Value))

	_, err = conn.Request(ctx, "words", &client.Record{Value: []byte("large")})
	require.ErrorAs(t, err, &failed)
	require.ErrorContains(t, err, "the reply is larger than")
	require.Equal(t, client.RequestStats{}, conn.RequestStats(), "nothing is left of them")
}

// A request that nobody serves says where it is; one that was given up leaves nothing, and
// its reply is counted.
func TestARequestThatIsGivenUpLeavesNothing(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "words", Kind: client.Queue, Settings: client.Settings{Partitions: 1}})
	asking, cancel := context.WithCancel(ctx)
	given := make(chan error, 1)
	go func() {
		_, err := conn.Request(asking, "words", &client.Record{Value: []byte("a")})
		given <- err
	}()
	asked := make(chan struct{})
	answer := make(chan struct{})
	release := sync.OnceFunc(func() { close(answer) })
	defer release() // or the end of the test waits for the handler
	var once sync.Once
	serving(ctx, t, to(ctx, t, b), "words", func(ctx context.Context, d *client.Delivery) (*client.Record, error) {
		once.Do(func() { close(asked) })
		<-answer
		return shout(ctx, d)
	})
	<-asked
	_, err := conn.Send(ctx, "words", &client.Record{Value: []byte("b")}) // the receipt of the request came before this one
	require.NoError(t, err)
	cancel()
	err = <-given
	var none *client.NoReplyError
	require.ErrorAs(t, err, &none)
	require.ErrorIs(t, err, context.Canceled)
	require.True(t, none.Stored)
	require.EqualValues(t, 0, none.Receipt.Offset)
	require.Equal(t, client.RequestStats{}, conn.RequestStats())
	release()
	require.Eventually(t, func() bool { return conn.RequestStats().Late == 1 }, 30*time.Second, time.Millisecond)

	_, err = conn.Request(ctx, "nowhere", &client.Record{Value: []byte("a")})
	require.ErrorIs(t, err, wire.CodeUnknownDestination)
}

// R-WLS-4 on one broker: a temporary queue dies with its connection; later sends say so.
func TestR_WLS_4_ATemporaryQueueDiesWithItsConnection(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	owner := to(ctx, t, b)
	q, err := owner.TemporaryQueue(ctx)
	require.NoError(t, err)
	for i := range 3 {
		receipt, err := conn.Send(ctx, q.Name(), &client.Record{Value: []byte{byte(i)}})
		require.NoError(t, err)
		require.EqualValues(t, i, receipt.Offset)
	}
	for i := range 3 {
		r, err := q.Receive(ctx)
		require.NoError(t, err)
		require.Equal(t, []byte{byte(i)}, r.Value)
	}
	names, err := conn.Destinations(ctx)
	require.NoError(t, err)
	require.Empty(t, names, "no catalogue has it")
	_, err = conn.CreateDestination(ctx, client.Destination{Name: q.Name(), Kind: client.Queue, Settings: client.Settings{Partitions: 1}})
	require.ErrorIs(t, err, wire.CodeInvalidName)
	_, err = conn.TemporaryQueue(ctx, client.Resume(q.Name()+"#"+strings.Repeat("0", 31)+"1"))
	require.ErrorIs(t, err, wire.CodeNotOwner, "everybody may send, and only one receives")

	require.NoError(t, owner.Close())
	_, err = q.Receive(ctx)
	require.ErrorIs(t, err, client.ErrClosed)
	require.Eventually(t, func() bool {
		_, err := conn.Send(ctx, q.Name(), &client.Record{Value: []byte("late")})
		return errors.Is(err, wire.CodeDestinationGone)
	}, 30*time.Second, time.Millisecond)
	_, err = conn.Send(ctx, q.Name(), &client.Record{Value: []byte("late")})
	require.ErrorContains(t, err, "drop it, and let who wants an answer ask again")

	// One that is closed goes at once, and the others stay.
	a, err := conn.TemporaryQueue(ctx, client.Grace(time.Minute))
	require.NoError(t, err)
	other, err := conn.TemporaryQueue(ctx)
	require.NoError(t, err)
	require.NoError(t, a.Close(ctx))
	_, err = to(ctx, t, b).Send(ctx, a.Name(), &client.Record{})
	require.ErrorIs(t, err, wire.CodeDestinationGone, "the broker knew when Close returned")
	require.NoError(t, a.Close(ctx), "twice")
	_, err = conn.Send(ctx, a.Name(), &client.Record{})
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	_, err = conn.Send(ctx, other.Name(), &client.Record{})
	require.NoError(t, err)
}

// A Producer of a temporary queue keeps the order of what it is given, and ends with the queue.
func TestR_WLS_4_AProducerSendsToATemporaryQueue(t *testing.T) {
	c := lockstest.StartCluster(t, 2)
	ctx := limited(t)
	owner := to(ctx, t, c.Broker(1))
	q, err := owner.TemporaryQueue(ctx)
	require.NoError(t, err)
	conn := to(ctx, t, c.Broker(2)) // the queue is on the other node
	p, err := conn.Producer(ctx, q.Name(), client.Publisher("me"), client.MaxBufferedRecords(100))
	require.NoError(t, err)
	const records = 1000
	told := make(chan error, records)
	offsets := make(chan uint64, records)
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		for i := range records {
			err := p.SendFunc(ctx, &client.Record{Key: []byte("k"), Value: fmt.Append(nil, i)}, func(r client.Receipt, err error) {
				offsets <- r.Offset
				told <- err
			})
			if err != nil {
				told <- err
			}
		}
	}()
	for i := range records {
		r, err := q.Receive(ctx)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), string(r.Value))
		require.Equal(t, wire.PublisherHeader, r.Headers[len(r.Headers)-1].Key)
	}
	<-sending
	require.NoError(t, p.Flush(ctx))
	for i := range records {
		require.NoError(t, <-told)
		require.EqualValues(t, i, <-offsets)
	}

	_, err = p.Send(ctx, &client.Record{Value: make([]byte, wire.DefaultMaxRecordBytes)})
	require.ErrorIs(t, err, client.ErrRecordTooLarge)
	require.NoError(t, q.Close(ctx))
	_, err = p.Send(ctx, &client.Record{Value: []byte("late")})
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	var failed *client.SendError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, client.NotSent, failed.Outcome)
	_, err = p.Send(ctx, &client.Record{Value: []byte("later")})
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	require.NoError(t, p.Close(ctx))
	for _, opt := range []client.ProducerOption{client.Partition(0), client.ProducerName("n")} {
		_, err = conn.Producer(ctx, q.Name(), opt)
		require.ErrorContains(t, err, "a temporary queue has no partitions and fences nobody")
	}
	_, err = conn.Producer(ctx, "$tmp/1")
	require.ErrorIs(t, err, wire.CodeInvalidName)
}

// What a full temporary queue refuses waits for room, or fails, and takes what is behind it
// along.
func TestAProducerWaitsForRoomInATemporaryQueue(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	idle, err := conn.TemporaryQueue(ctx, client.Grace(time.Minute))
	require.NoError(t, err)
	part := make([]byte, 1<<19)
	impatient, err := to(ctx, t, b).Producer(ctx, idle.Name(), client.WaitForSpace(false), client.MaxBufferedBytes(64<<20))
	require.NoError(t, err)
	var tickets []*client.Ticket
	for range 40 { // 20 MiB, and it holds 4
		ticket, err := impatient.SendAsync(ctx, &client.Record{Value: part})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	refused := 0
	for _, ticket := range tickets {
		if _, err := ticket.Wait(ctx); err != nil {
			require.ErrorIs(t, err, wire.CodePartitionFull)
			refused++
			continue
		}
		require.Zero(t, refused, "what is stored is a beginning")
	}
	require.NotZero(t, refused)
	patient, err := to(ctx, t, b).Producer(ctx, idle.Name())
	require.NoError(t, err)
	last, err := patient.SendAsync(ctx, &client.Record{Value: part})
	require.NoError(t, err)
	for range len(tickets) - refused + 1 {
		_, err := idle.Receive(ctx)
		require.NoError(t, err)
	}
	_, err = last.Wait(ctx)
	require.NoError(t, err)
}

// R-SIB-20: the reply arrives whichever node the replier uses.
func TestR_SIB_20_AReplyArrivesOverAnyNode(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx := limited(t)
	q, err := to(ctx, t, c.Broker(2)).TemporaryQueue(ctx)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(q.Name(), "$tmp/2/"))
	for node := 1; node <= 3; node++ {
		_, err := to(ctx, t, c.Broker(node)).Send(ctx, q.Name(), &client.Record{Value: fmt.Appendf(nil, "from %d", node)})
		require.NoError(t, err)
		r, err := q.Receive(ctx)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("from %d", node), string(r.Value))
	}

	// And so for requests: requester and server on nodes of their own, the queue anywhere.
	admin := to(ctx, t, c.Broker(1))
	create(ctx, t, admin, client.Destination{Name: "words", Kind: client.Queue, Settings: client.Settings{Partitions: 3, Replicas: 3}})
	serving(ctx, t, to(ctx, t, c.Broker(3)), "words", shout)
	for node := 1; node <= 3; node++ {
		requester := to(ctx, t, c.Broker(node))
		for i := range 3 {
			reply, err := requester.Request(ctx, "words", &client.Record{Value: fmt.Appendf(nil, "w%d", i)})
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("W%d", i), string(reply.Value))
		}
	}
	// A name of a node that never was is gone as well, at once.
	_, err = admin.Send(ctx, "$tmp/77/00000000000000000000000000000000", &client.Record{})
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	_, err = admin.Send(ctx, "$tmp/77/0", &client.Record{})
	require.ErrorIs(t, err, wire.CodeInvalidName)
}

// link is a way to a broker that can be cut.
type link struct {
	net.Listener
	target string

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func newLink(t *testing.T, target string) *link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	k := &link{Listener: l, target: target}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			k.mu.Lock()
			if k.cut {
				from.Close()
			} else if to, err := net.Dial("tcp", target); err == nil {
				k.conns = append(k.conns, from, to)
				wg.Go(func() { io.Copy(to, from); to.Close() })
				wg.Go(func() { io.Copy(from, to); from.Close() })
			}
			k.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		l.Close()
		k.set(true)
		wg.Wait()
	})
	return k
}

// set cuts the way, or mends it. Connections that are cut are reset.
func (k *link) set(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = cut
	for _, c := range k.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	k.conns = nil
}

// R-SIB-21: the inbox survives a lost connection for its grace, and what was sent
// meanwhile comes then; R-WLS-4: without a grace it does not.
func TestR_SIB_21_AnInboxSurvivesALostConnection(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	k := newLink(t, b.Addr())
	owner, err := client.Connect(ctx, "lockstep://"+k.Addr().String(), client.AllowRedirect(false), client.WithReconnectBackoff(time.Millisecond, time.Millisecond))
	require.NoError(t, err)
	defer owner.Close()
	kept, err := owner.TemporaryQueue(ctx, client.Grace(time.Minute))
	require.NoError(t, err)
	lost, err := owner.TemporaryQueue(ctx)
	require.NoError(t, err)
	send := func(text string) {
		t.Helper()
		_, err := conn.Send(ctx, kept.Name(), &client.Record{Value: []byte(text)})
		require.NoError(t, err)
	}
	expect := func(text string) {
		t.Helper()
		r, err := kept.Receive(ctx)
		require.NoError(t, err)
		require.Equal(t, text, string(r.Value))
	}
	send("before")
	expect("before")
	send("on the way")
	k.set(true)
	_, err = lost.Receive(ctx)
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	require.Eventually(t, func() bool {
		_, err := conn.Send(ctx, lost.Name(), &client.Record{})
		return errors.Is(err, wire.CodeDestinationGone)
	}, 30*time.Second, time.Millisecond)
	for i := range 5 {
		send(fmt.Sprint("meanwhile ", i))
	}
	k.set(false)
	expect("on the way")
	for i := range 5 {
		expect(fmt.Sprint("meanwhile ", i))
	}
	send("after")
	expect("after")
}

// R-SIB-21: a requester that was killed, and comes back over another node, takes its inbox up
// again, and has the reply in it that came meanwhile.
func TestR_SIB_21_ARequesterThatComesBackGetsItsReply(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx := limited(t)
	first, die := mortalConn(t, c.Broker(1).URL())
	q, err := first.TemporaryQueue(ctx, client.Grace(time.Minute))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(q.Name(), "$tmp/1/"))
	key := q.Key()
	create(ctx, t, first, client.Destination{Name: "words", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 3}})
	_, err = first.Send(ctx, "words", &client.Record{Value: []byte("a"), Headers: []client.Header{
		{Key: client.ReplyToHeader, Value: []byte(q.Name())}, {Key: client.CorrelationHeader, Value: []byte("mine")},
	}})
	require.NoError(t, err)
	die()
	_, err = q.Receive(ctx)
	require.Error(t, err)

	replier, err := to(ctx, t, c.Broker(3)).Consumer(ctx, "words", client.Group("g"))
	require.NoError(t, err)
	request := take(t, replier)
	require.NoError(t, request.Reply(ctx, &client.Record{Value: []byte("A")}))
	done(t, request)
	leave(t, replier)
	q, err = to(ctx, t, c.Broker(2)).TemporaryQueue(ctx, client.Resume(key))
	require.NoError(t, err)
	reply, err := q.Receive(ctx)
	require.NoError(t, err)
	require.Equal(t, "A", string(reply.Value))
}

// R-SIB-21, docs/requests.md: an inbox ends with its node, whatever its grace, and everybody
// is told so; a queue with replicas that is named in its place does not.
func TestR_SIB_21_AnInboxEndsWithItsNodeAndAQueueDoesNot(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx := limited(t)
	second := to(ctx, t, c.Broker(2))
	for _, name := range []string{"words", "answers"} {
		create(ctx, t, second, client.Destination{Name: name, Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 3}})
	}
	owner, err := client.Connect(ctx, strings.Join([]string{c.Broker(1).Addr(), c.Broker(2).Addr()}, ","), client.InOrder(), client.AllowRedirect(false))
	require.NoError(t, err)
	defer owner.Close()
	q, err := owner.TemporaryQueue(ctx, client.Grace(time.Minute))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(q.Name(), "$tmp/1/"))
	_, err = owner.Send(ctx, "words", &client.Record{Value: []byte("a"), Headers: []client.Header{
		{Key: client.ReplyToHeader, Value: []byte("answers")}, {Key: client.CorrelationHeader, Value: []byte("mine")},
	}})
	require.NoError(t, err)
	producer, err := second.Producer(ctx, q.Name())
	require.NoError(t, err)
	c.Stop(1)

	_, err = q.Receive(ctx)
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	<-q.Gone()
	require.NoError(t, q.Close(ctx))
	_, err = second.Send(ctx, q.Name(), &client.Record{})
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	_, err = producer.Send(ctx, &client.Record{})
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	_, err = second.TemporaryQueue(ctx, client.Resume(q.Key()))
	require.ErrorIs(t, err, wire.CodeDestinationGone)

	serving(ctx, t, to(ctx, t, c.Broker(3)), "words", shout)
	answers, err := owner.Consumer(ctx, "answers", client.Group("mine"))
	require.NoError(t, err)
	reply := take(t, answers)
	require.Equal(t, "A", string(reply.Value))
	done(t, reply)
	leave(t, answers)
}

// The home node of a requester dies while its request is with a server: the request is
// asked again, with another inbox, and answered. The server that answers the first one is
// told that nobody waits.
func TestR_IS_7_ARequestSurvivesTheNodeOfItsInbox(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx := limited(t)
	admin := to(ctx, t, c.Broker(2))
	create(ctx, t, admin, client.Destination{Name: "words", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 3}})
	requester, err := client.Connect(ctx, strings.Join([]string{c.Broker(1).Addr(), c.Broker(2).Addr()}, ","), client.InOrder(), client.AllowRedirect(false))
	require.NoError(t, err)
	defer requester.Close()
	require.EqualValues(t, 1, requester.Info().Node)
	asked, dead := make(chan string, 100), make(chan struct{})
	serving(ctx, t, to(ctx, t, c.Broker(3)), "words", func(ctx context.Context, d *client.Delivery) (*client.Record, error) {
		for _, h := range d.Headers {
			if h.Key == client.ReplyToHeader {
				asked <- string(h.Value)
			}
		}
		<-dead
		return shout(ctx, d)
	})
	go func() {
		<-asked
		c.Stop(1)
		close(dead)
	}()
	reply, err := requester.Request(ctx, "words", &client.Record{Value: []byte("a")})
	require.NoError(t, err)
	require.Equal(t, "A", string(reply.Value))
	require.EqualValues(t, 1, requester.RequestStats().Resent)
	require.True(t, strings.HasPrefix(<-asked, "$tmp/2/"), "the second inbox is where the requester is now")
}

// The grace of an inbox runs out while the leader of the queue with the requests changes: its
// server is told that nobody waits, and serves the next one.
func TestR_SIB_21_AGraceRunsOutWhileALeaderChanges(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	ctx := limited(t)
	admin := to(ctx, t, c.Broker(1))
	create(ctx, t, admin, client.Destination{Name: "words", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: 3}})
	var leader int
	awaitThat(t, "somebody leads", func() bool {
		d, err := admin.Destination(ctx, "words")
		require.NoError(t, err)
		leader = int(d.Partitions[0].Leader)
		return leader != 0
	})
	first, err := client.Connect(ctx, c.Broker(1+leader%3).URL(), client.AllowRedirect(false), client.WithReconnect(false))
	require.NoError(t, err)
	q, err := first.TemporaryQueue(ctx, client.Grace(time.Millisecond))
	require.NoError(t, err)
	conn := to(ctx, t, c.Broker(1+(leader+1)%3))
	_, err = first.Send(ctx, "words", &client.Record{Value: []byte("a"), Headers: []client.Header{
		{Key: client.ReplyToHeader, Value: []byte(q.Name())}, {Key: client.CorrelationHeader, Value: []byte("mine")},
	}})
	require.NoError(t, err)
	require.NoError(t, first.Close())
	c.Stop(leader)
	require.Eventually(t, func() bool {
		_, err = conn.Send(ctx, q.Name(), &client.Record{})
		return err != nil
	}, 30*time.Second, time.Millisecond)
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	_, err = conn.TemporaryQueue(ctx, client.Resume(q.Key()))
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	serving(ctx, t, conn, "words", shout)
	reply, err := conn.Request(ctx, "words", &client.Record{Value: []byte("b")})
	require.NoError(t, err)
	require.Equal(t, "B", string(reply.Value))
}

package fuzz

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// What the requirements ask of a cluster, shown with real brokers from outside: each part
// bears the number of its requirement. The same number on a test of another package
// stands for what cannot be seen from here, or for more cases. What a requirement bounds
// by seconds is bounded here; what it says of shorter times is in the log of the test.

const (
	detectTime = 6 * time.Second // until a client knows that a broker is gone
	electTime  = 3 * time.Second // until a partition has another leader
	shareTime  = 2 * time.Second // until producers give it its share again
)

// suite is the cluster of the tests: the brokers 1, 2 and 3, in the racks a, b and c, and
// the gateway 4.
type suite struct {
	*clusterProcess
	http   []string // by node, from 0
	made   int      // topics
	stock  []string // topics with the settings replicated that nobody uses yet
	thirty []string // topics of one partition
	script []string // what the script says on any node
	busy   []string // the destinations that are sent to all the time
}

const gateway = 4

func newSuite(t *testing.T) *suite {
	t.Helper()
	s := &suite{clusterProcess: &clusterProcess{t: t}}
	for _, args := range [][]string{{"--rack", "a"}, {"--rack", "b"}, {"--rack", "c"}, {"--role", "gateway"}} {
		s.join(args...)
	}
	s.await(t, 1, 2, 3, gateway)
	s.prepare(t)
	return s
}

// prepare creates many topics at once: one after the other takes as many elections.
func (s *suite) prepare(t *testing.T) {
	t.Helper()
	conn := dial(t, s.at(1))
	for i := range 12 {
		s.stock = append(s.stock, fmt.Sprintf("replicated-%d", i))
	}
	for i := range 30 {
		s.thirty = append(s.thirty, fmt.Sprintf("one-of-thirty-%d", i))
	}
	names := make(chan string)
	var creating sync.WaitGroup
	for range 5 {
		creating.Go(func() {
			for name := range names {
				settings := replicated
				if slices.Contains(s.thirty, name) {
					settings.Partitions = 1
				}
				if _, err := conn.CreateDestination(t.Context(), client.Destination{Name: name, Kind: client.Topic, Settings: settings}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	for _, name := range slices.Concat(s.stock, s.thirty) {
		names <- name
	}
	close(names)
	creating.Wait()
}

// join adds a node. A client that hears nothing from one for its idle timeout takes
// it for dead.
func (s *suite) join(args ...string) {
	s.t.Helper()
	address := freeAddress(s.t)
	s.add(func(b *brokerProcess) {
		b.args = append(b.args, append(args, "--http", address, "--idle-timeout", "2s", "--scrub-interval", "1s")...)
	})
	s.http = append(s.http, address)
}

// at lists the addresses of nodes, as client.Connect takes them.
func (s *suite) at(nodes ...int) string {
	var list []string
	for _, n := range nodes {
		list = append(list, s.nodes[n-1].address)
	}
	return strings.Join(list, ",")
}

// dial connects until the test ends.
func dial(t *testing.T, servers string, opts ...client.Option) *client.Conn {
	t.Helper()
	opts = append([]client.Option{client.WithReconnectBackoff(5*time.Millisecond, 50*time.Millisecond)}, opts...)
	conn, err := client.Connect(patient(t), servers, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// crew starts one whose clients know all three brokers.
func (s *suite) crew(t *testing.T, queue string, partitions uint32, senders int, settings client.GroupSettings) *crew {
	t.Helper()
	s.busy = append(s.busy, queue)
	return startCrew(t, func(opts ...client.Option) *client.Conn { return dial(t, s.at(1, 2, 3), opts...) }, queue, partitions, senders, settings)
}

// patient is a context for what has no time of its own.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for what has no event.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, startTimeout, 5*time.Millisecond, what)
}

// await returns when nodes see each other and every partition has a leader.
func (s *suite) await(t *testing.T, nodes ...int) {
	t.Helper()
	for _, n := range nodes {
		_ = s.nodes[n-1].connect().Close()
		conn := dial(t, s.at(n), client.AllowRedirect(false))
		eventually(t, fmt.Sprintf("node %d sees the others and all leaders", n), func() bool {
			known, _, err := conn.Nodes(t.Context())
			if err != nil {
				return false
			}
			alive := map[uint32]bool{}
			for i := range known {
				alive[known[i].ID] = known[i].Alive
			}
			for _, other := range nodes {
				if !alive[uint32(other)] {
					return false
				}
			}
			all, err := conn.Destinations(t.Context())
			for i := range all {
				if !led(&all[i]) {
					return false
				}
			}
			return err == nil
		})
	}
}

// led reports whether all partitions of a destination have leaders.
func led(d *client.Destination) bool {
	for i := range d.Partitions {
		if d.Partitions[i].Leader == 0 || d.Partitions[i].State != wire.PartitionActive {
			return false
		}
	}
	return true
}

// partitionOf is a partition that a node leads; if there is none, the node is made the
// leader of one.
func partitionOf(t *testing.T, conn *client.Conn, d *client.Destination, node uint32) uint32 {
	t.Helper()
	for _, p := range d.Partitions {
		if p.Leader == node {
			return p.Number
		}
	}
	n := max(0, slices.IndexFunc(d.Partitions, func(p client.PartitionInfo) bool { return holds(p, node) }))
	makeLeader(t, conn, d, uint32(n), node)
	return uint32(n)
}

func holds(p client.PartitionInfo, node uint32) bool {
	return slices.ContainsFunc(p.Replicas, func(r client.Replica) bool { return r.Node == node })
}

// makeLeader has a node lead a partition. Where it has no replica it gets the leader's:
// what the cluster decides on placement depends on all other topics.
func makeLeader(t *testing.T, conn *client.Conn, d *client.Destination, n, node uint32) {
	t.Helper()
	eventually(t, fmt.Sprintf("node %d leads %s/%d", node, d.Name, n), func() bool {
		if p := d.Partitions[n]; holds(p, node) {
			_ = conn.TransferLeader(patient(t), d.Name, n, node) // it may not lead where it was asked for yet
		} else {
			_ = conn.MoveReplica(patient(t), d.Name, n, p.Leader, node) // it may have begun
		}
		*d = *ledTopic(t, conn, d.Name)
		return d.Partitions[n].Leader == node
	})
}

// topic takes a topic from the stock, or creates one, and returns it when it has leaders.
func (s *suite) topic(t *testing.T, conn *client.Conn, settings client.Settings) *client.Destination {
	t.Helper()
	if settings == replicated && len(s.stock) > 0 {
		name := s.stock[0]
		s.stock = s.stock[1:]
		return ledTopic(t, conn, name)
	}
	s.made++
	name := fmt.Sprintf("topic-%d", s.made)
	_, err := conn.CreateDestination(patient(t), client.Destination{Name: name, Kind: client.Topic, Settings: settings})
	require.NoError(t, err)
	return ledTopic(t, conn, name)
}

// ledTopic describes a topic as soon as all its partitions have leaders.
func ledTopic(t *testing.T, conn *client.Conn, name string) *client.Destination {
	t.Helper()
	var d client.Destination
	eventually(t, name+" has leaders", func() bool {
		var err error
		d, err = conn.Destination(t.Context(), name)
		return err == nil && led(&d)
	})
	return &d
}

// replicated is a topic with a replica of each partition on every broker.
var replicated = client.Settings{Partitions: 3, Replicas: 3}

// onePerNode creates a topic of three partitions with one replica each, one on every
// broker.
func (s *suite) onePerNode(t *testing.T, conn *client.Conn) *client.Destination {
	t.Helper()
	var d *client.Destination
	for range 5 { // the cluster spreads replicas, but those of all topics together; to move one takes longer
		d = s.topic(t, conn, client.Settings{Partitions: 3, Replicas: 1, Sync: client.SyncOS})
		leaders := map[uint32]bool{}
		for _, p := range d.Partitions {
			leaders[p.Leader] = true
		}
		if len(leaders) == 3 {
			return d
		}
	}
	for n := range d.Partitions {
		if node := uint32(n + 1); d.Partitions[n].Leader != node {
			makeLeader(t, conn, d, uint32(n), node)
		}
	}
	return d
}

// ledger is what became of records that were sent: the receipts by value.
type ledger struct {
	mu       sync.Mutex
	receipts map[string]client.Receipt
	errs     map[string]error
	last     time.Time       // of a receipt
	gap      time.Duration   // the longest between two receipts
	took     []time.Duration // of each receipt
}

func newLedger() *ledger {
	return &ledger{receipts: map[string]client.Receipt{}, errs: map[string]error{}}
}

// send hands a record over.
func (l *ledger) send(ctx context.Context, p *client.Producer, key, value string) error {
	r := client.Record{Value: []byte(value)}
	if key != "" {
		r.Key = []byte(key)
	}
	began := time.Now()
	return p.SendFunc(ctx, &r, func(receipt client.Receipt, err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if err != nil {
			l.errs[value] = err
		} else {
			l.receipts[value] = receipt
			now := time.Now()
			l.took = append(l.took, now.Sub(began))
			if !l.last.IsZero() {
				l.gap = max(l.gap, now.Sub(l.last))
			}
			l.last = now
		}
	})
}

// latencies are those of the receipts since the last call.
func (l *ledger) latencies() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	took := l.took
	l.took = nil
	return took
}

// answered is how many receipts there are.
func (l *ledger) answered() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.receipts)
}

// producer opens a producer until the test ends.
func producer(t *testing.T, conn *client.Conn, d *client.Destination, opts ...client.ProducerOption) *client.Producer {
	t.Helper()
	p, err := conn.Producer(patient(t), d.Name, opts...)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = p.Close(ctx) // the test has waited for all that matters
	})
	return p
}

// sendAll sends records without a key and waits for the receipts of all.
func sendAll(t *testing.T, p *client.Producer, prefix string, n int) *ledger {
	t.Helper()
	ctx, l := patient(t), newLedger()
	for i := range n {
		require.NoError(t, l.send(ctx, p, "", fmt.Sprintf("%s%07d", prefix, i)))
	}
	require.NoError(t, p.Flush(ctx))
	require.Empty(t, l.errs)
	require.Len(t, l.receipts, n)
	return l
}

// connected sends until every partition has stored something: at first a leader may not
// know the producer yet, and what it refuses goes to others.
func connected(t *testing.T, p *client.Producer, partitions int) {
	t.Helper()
	seen := map[uint32]bool{}
	for len(seen) < partitions {
		for n := range sendAll(t, p, "connects ", 2*partitions).share() {
			seen[n] = true
		}
	}
}

// share counts the receipts of each partition.
func (l *ledger) share() map[uint32]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[uint32]int{}
	for _, r := range l.receipts {
		counts[r.Partition]++
	}
	return counts
}

// content reads what a topic holds now, by partition.
func content(t *testing.T, conn *client.Conn, name string, opts ...client.ReaderOption) map[uint32][]string {
	t.Helper()
	ctx := patient(t)
	r, err := conn.Reader(ctx, name, append(opts, client.StopAtEnd())...)
	require.NoError(t, err)
	defer r.Close()
	values := map[uint32][]string{}
	for {
		rec, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return values
		}
		require.NoError(t, err)
		require.EqualValues(t, len(values[rec.Partition]), rec.Offset, "no gaps")
		values[rec.Partition] = append(values[rec.Partition], string(rec.Value))
	}
}

// holds requires that each acknowledged record is where its receipt says, and that no
// record is there twice.
func (l *ledger) holds(t *testing.T, values map[uint32][]string) {
	t.Helper()
	seen := map[string]bool{}
	for _, list := range values {
		for _, v := range list {
			require.False(t, seen[v], "%s is there twice", v)
			seen[v] = true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for v, r := range l.receipts {
		require.Greater(t, uint64(len(values[r.Partition])), r.Offset, "%s was acknowledged", v)
		require.Equal(t, v, values[r.Partition][r.Offset])
	}
}

// metric sums the values of a metric of a node.
func (s *suite) metric(t *testing.T, node int, name string) (sum float64) {
	t.Helper()
	response, err := http.Get("http://" + s.http[node-1] + "/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	found := false
	for lines.Scan() {
		series, value, _ := strings.Cut(lines.Text(), " ")
		if base, _, _ := strings.Cut(series, "{"); base != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		require.NoError(t, err)
		sum, found = sum+v, true
		_ = found
	}
	require.NoError(t, lines.Err())
	return sum
}

// metrics is a metric of all nodes together.
func (s *suite) metrics(t *testing.T, name string) (sum float64) {
	t.Helper()
	for n := range s.nodes {
		sum += s.metric(t, n+1, name)
	}
	return sum
}

// events keeps what a client is told.
type events struct {
	mu   sync.Mutex
	list []client.Event
	more chan struct{} // capacity 1
}

func newEvents() *events { return &events{more: make(chan struct{}, 1)} }

func (e *events) add(event client.Event) {
	e.mu.Lock()
	e.list = append(e.list, event)
	e.mu.Unlock()
	select {
	case e.more <- struct{}{}:
	default:
	}
}

// find is an event of a type, if there was one.
func find[E client.Event](e *events) (found E, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.list {
		if found, ok = event.(E); ok {
			return found, true
		}
	}
	return found, false
}

// awaitEvent waits for an event of a type.
func awaitEvent[E client.Event](t *testing.T, e *events, within time.Duration) E {
	t.Helper()
	late := time.After(within)
	for {
		if event, ok := find[E](e); ok {
			return event
		}
		select {
		case <-e.more:
		case <-late:
			var none E
			require.Fail(t, "no event", "%T within %v", none, within)
		}
	}
}

// rawSession speaks the protocol without package client, which knows better than to ask
// the wrong node.
type rawSession struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	id   uint32
}

func rawDial(t *testing.T, address, preface string, hello wire.Message) (*rawSession, wire.ErrorBody) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(startTimeout)))
	_, err = io.WriteString(conn, preface)
	require.NoError(t, err)
	s := &rawSession{t: t, conn: conn, r: bufio.NewReader(conn)}
	return s, s.ask(wire.OpHello, hello)
}

// ask sends a request and returns how it failed; the zero value if it did not.
func (s *rawSession) ask(op wire.Opcode, m wire.Message) (failure wire.ErrorBody) {
	s.t.Helper()
	s.id++
	_, err := s.conn.Write(wire.AppendFrame(nil, wire.Header{Opcode: op, Version: op.Version(), ID: s.id}, m))
	require.NoError(s.t, err)
	for {
		head := make([]byte, wire.HeaderSize)
		_, err = io.ReadFull(s.r, head)
		require.NoError(s.t, err)
		h, err := wire.ParseHeader(head)
		require.NoError(s.t, err)
		body := make([]byte, h.BodySize())
		_, err = io.ReadFull(s.r, body)
		require.NoError(s.t, err)
		if h.ID != s.id {
			continue // an event
		}
		if h.Flags&wire.FlagError != 0 {
			require.NoError(s.t, failure.Parse(body))
		}
		return failure
	}
}

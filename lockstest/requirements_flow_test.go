package lockstest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// Where records go, and what holds them up: R-MQC, R-WLS and R-X.

var (
	requirementBacklog = flag.Int("requirements.backlog", 20_000, "how many records lie behind the blocked key in R-X-4")
	requirementOutage  = flag.Duration("requirements.outage", time.Second, "for how long the broker is away in R-MQC-13")
)

// attended takes the consumer of one of three partitions away: what has no key goes to the
// others until somebody consumes there again, or nobody anywhere. It says how long the
// partition got records after its consumer had left.
func (s *stage) attended(t *testing.T) (quiet time.Duration) {
	queue := s.queue(t, 3)
	s.group(t, queue, client.GroupSettings{Mode: client.Shared, Binding: client.StrictlyOne})
	var members []*client.Consumer
	for range 3 {
		members = append(members, s.join(t, queue))
	}
	var of [3]*client.Consumer // by partition
	awaitThat(t, "each has a partition", func() bool {
		p, err := s.conn.Producer(t.Context(), queue, client.LocalPreference(false), client.BatchBytes(1))
		require.NoError(t, err)
		for i := range 6 {
			_, err := p.Send(t.Context(), &client.Record{Value: fmt.Append(nil, i)})
			require.NoError(t, err)
		}
		require.NoError(t, p.Close(t.Context()))
		for _, m := range members {
			list, err := m.Fetch(t.Context(), 10, idleWait)
			require.NoError(t, err)
			for _, d := range list {
				of[d.Partition] = m
			}
			done(t, list...)
		}
		return of[0] != nil && of[1] != nil && of[2] != nil
	})

	p, err := s.conn.Producer(t.Context(), queue, client.LocalPreference(false), client.BatchBytes(1))
	require.NoError(t, err)
	var last time.Time // when partition 1 has got a record
	send := func(key string) (counts [3]int) {
		for i := range 30 {
			r := client.Record{Value: fmt.Append(nil, i)}
			if key != "" {
				r.Key = []byte(key)
			}
			receipt, err := p.Send(t.Context(), &r)
			require.NoError(t, err)
			counts[receipt.Partition]++
			if receipt.Partition == 1 {
				last = time.Now()
			}
		}
		return counts
	}
	require.Equal(t, [3]int{10, 10, 10}, send(""))
	leave(t, of[1])
	began := time.Now()
	awaitThat(t, "partition 1 is left out", func() bool { return send("") == [3]int{15, 0, 15} })
	quiet = last.Sub(began)
	d, err := s.conn.Destination(t.Context(), queue)
	require.NoError(t, err)
	require.Equal(t, wire.PartitionUnattended, d.Partitions[1].Flags)
	kept := false
	for i := 0; !kept; i++ { // the key of a record decides, whoever consumes
		kept = send(fmt.Sprint(i))[1] == 30
	}
	again := s.join(t, queue)
	awaitThat(t, "partition 1 has its share", func() bool { return send("") == [3]int{10, 10, 10} })
	leave(t, again, of[0], of[2])
	awaitThat(t, "without any consumer all are alike", func() bool {
		d, err := s.conn.Destination(t.Context(), queue)
		require.NoError(t, err)
		for i := range d.Partitions {
			if d.Partitions[i].Flags != wire.PartitionUnattended {
				return false
			}
		}
		return send("") == [3]int{10, 10, 10}
	})
	require.NoError(t, p.Close(t.Context()))
	return quiet
}

// forwarding asks for what moves records to where consumers are. It is refused, for a new group
// and for one that there is.
func (s *stage) forwarding(t *testing.T) {
	queue := s.queue(t, 2)
	for _, mode := range []client.GroupMode{client.Shared, client.Serial} {
		_, err := s.conn.CreateGroup(t.Context(), queue, "g", client.GroupIntent{Settings: client.GroupSettings{Mode: mode}, ForwardDelayMs: 5000})
		require.ErrorIs(t, err, wire.CodeUnsupported)
	}
	groups, err := s.conn.Groups(t.Context(), queue)
	require.NoError(t, err)
	require.Empty(t, groups)
	for _, mode := range []client.GroupMode{client.Shared, client.Serial} {
		other := s.queue(t, 2)
		settings := client.GroupSettings{Mode: mode}
		s.group(t, other, settings)
		_, err := s.conn.AlterGroup(t.Context(), other, "g", client.GroupIntent{Settings: settings, ForwardDelayMs: 5000})
		require.ErrorIs(t, err, wire.CodeUnsupported)
	}
}

// wedged has a key in a partition that no consumer of a strict group is bound to: the group
// says so, and the key goes on when one comes. What else could wedge it, a selector, is
// refused. It says how long after the record was there the group said so.
func (s *stage) wedged(t *testing.T) (said time.Duration) {
	queue := s.queue(t, 2)
	_, err := s.conn.CreateGroup(t.Context(), queue, "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial}, Selector: "letter > 'M'"})
	require.ErrorIs(t, err, wire.CodeUnsupported)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial, Binding: client.StrictlyOne})
	c := s.join(t, queue)
	p, err := s.conn.Producer(t.Context(), queue)
	require.NoError(t, err)
	receipt, err := p.Send(t.Context(), &client.Record{Key: []byte("A"), Value: []byte("A 0")})
	require.NoError(t, err)
	require.NoError(t, p.Close(t.Context()))
	covered := 1 - receipt.Partition
	list, err := c.Fetch(t.Context(), 1, idleWait)
	require.NoError(t, err)
	if len(list) == 1 { // it was bound to the one with the record: take another key
		done(t, list...)
		covered = receipt.Partition
	}
	wedged := 1 - covered
	key := ""
	for i := 0; key == ""; i++ {
		p, err := s.conn.Producer(t.Context(), queue)
		require.NoError(t, err)
		receipt, err := p.Send(t.Context(), &client.Record{Key: fmt.Append(nil, i), Value: fmt.Append(nil, i)})
		require.NoError(t, err)
		require.NoError(t, p.Close(t.Context()))
		if receipt.Partition == wedged {
			key = fmt.Sprint(i)
		} else {
			done(t, take(t, c))
		}
	}
	began := time.Now()
	awaitThat(t, "the group says that nobody has the partition", func() bool {
		info, err := s.conn.DescribeGroup(t.Context(), queue, "g")
		require.NoError(t, err)
		return slices.Equal(append(info.Partitions[0].Uncovered, info.Partitions[1].Uncovered...), []uint32{wedged})
	})
	awaitThat(t, "and why", func() bool {
		return slices.Contains(s.codes(t, queue, wedged, client.ExplainRequest{Key: ptr([]byte(key))}), "no_consumer")
	})
	said = time.Since(began)
	other := s.join(t, queue)
	d := take(t, other)
	require.Equal(t, wedged, d.Partition)
	done(t, d)
	leave(t, c, other)
	return said
}

func ptr[T any](v T) *T { return &v }

// codes are the reasons why something of the group g stands still.
func (s *stage) codes(t *testing.T, queue string, partition uint32, ask client.ExplainRequest) (codes []string) {
	t.Helper()
	return reasons(t, s.conn, queue, partition, ask)
}

func reasons(t *testing.T, conn *client.Conn, queue string, partition uint32, ask client.ExplainRequest) (codes []string) {
	t.Helper()
	var said client.ExplainResponse
	err := conn.GroupOrder(t.Context(), wire.OrderExplain, queue, partition, "g", ask, &said)
	if errors.Is(err, wire.CodeUnknownGroup) {
		return nil // the partition has not heard of it yet
	}
	require.NoError(t, err)
	for _, r := range said.Reasons {
		require.NotEmpty(t, r.Text)
		codes = append(codes, r.Code)
	}
	return codes
}

// letters has a record that fails more often than it may: it is a dead letter, with what
// there is to know of it.
func (s *stage) letters(t *testing.T) {
	queue, dead := s.queue(t, 1), s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial, BackoffMs: 1, DeliveryLimit: 3, DeadLetter: dead})
	s.send(t, queue, "a poison", "a good")
	c := s.join(t, queue)
	for attempt := range 3 {
		d := take(t, c)
		require.Equal(t, "a poison", string(d.Value))
		require.Equal(t, attempt, d.Attempts)
		require.NoError(t, d.Nack())
	}
	good := take(t, c)
	require.Equal(t, "a good", string(good.Value))
	done(t, good)
	letters, err := s.conn.Consumer(t.Context(), dead, client.Group("g"))
	require.NoError(t, err)
	letter := take(t, letters)
	require.Equal(t, "a poison", string(letter.Value))
	require.Equal(t, "a", string(letter.Key))
	said := map[string]string{}
	for _, h := range letter.Headers {
		said[h.Key] = string(h.Value)
	}
	require.Equal(t, queue+"/0", said["lockstep-dead-letter-origin"])
	require.Equal(t, "0", said["lockstep-dead-letter-offset"])
	require.Equal(t, "g", said["lockstep-dead-letter-group"])
	require.Equal(t, "delivery limit", said["lockstep-dead-letter-reason"])
	require.Equal(t, "3", said["lockstep-dead-letter-attempts"])
	done(t, letter)
	leave(t, c, letters)
}

// poison has the first record of one key fail for ever: the others cost what they cost
// without it, a delivery each, and the consumers go on.
func (s *stage) poison(t *testing.T) {
	const keys = 100
	var took [2]time.Duration
	for round, poisoned := range []bool{false, true} {
		queue := s.queue(t, 1)
		s.group(t, queue, client.GroupSettings{Mode: client.Serial, BackoffMs: 5, BackoffMaxMs: 5})
		records := *requirementRecords
		items := []string{"poison 0", "poison 1"}
		for i := range records {
			items = append(items, fmt.Sprintf("key%d %d", i%keys, i))
		}
		var good, bad atomic.Int64
		began := time.Now()
		s.crew(t, queue, 2, 2, func(_ int, d *client.Delivery, stop func()) error {
			if string(d.Key) == "poison" && poisoned {
				bad.Add(1)
				if string(d.Value) != "poison 0" {
					t.Errorf("%s overtook the poison", d.Value)
				}
				return errors.New("poison")
			}
			if d.Redelivered {
				t.Errorf("%s was delivered again", d.Value)
			}
			if n := good.Add(1); n == int64(len(items)) || n == int64(records) && poisoned {
				stop()
			}
			return nil
		}, func() { s.send(t, queue, items...) })
		took[round] = time.Since(began)
		if poisoned {
			require.Positive(t, bad.Load())
			require.EqualValues(t, records, good.Load())
			t.Logf("%d records in %v without and %v with a poison, which was tried %d times", records, took[0].Round(time.Millisecond), took[1].Round(time.Millisecond), bad.Load())
		}
	}
}

// table is what a system behind the consumers keeps: it takes a write of a key unless it
// has seen a higher epoch of it.
type table struct {
	mu      sync.Mutex
	epochs  map[string]uint64
	all     map[string][]uint64 // offsets of all writes, by key
	taken   map[string][]uint64 // of those it has taken
	refused int
}

func (x *table) write(key string, epoch, offset uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.all[key] = append(x.all[key], offset)
	if epoch < x.epochs[key] {
		x.refused++
		return
	}
	x.epochs[key] = epoch
	x.taken[key] = append(x.taken[key], offset)
}

// stale are the writes that came behind one of a later record.
func stale(writes map[string][]uint64) (n int) {
	for _, offsets := range writes {
		for i := 1; i < len(offsets); i++ {
			if offsets[i] < offsets[i-1] {
				n++
			}
		}
	}
	return n
}

// fenced has handlers that do not stop when they are told to, and write when others have
// gone on long since. A table that looks at the epochs takes none of that; without them it
// would.
func (s *stage) fenced(t *testing.T) {
	const keys, each = 5, 12
	queue := s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial, SessionMs: 1000, AckWaitMs: 40, RevokeMs: 10, BackoffMs: 1, BackoffMaxMs: 1})
	var items []string
	for i := range keys * each {
		items = append(items, fmt.Sprintf("key%d %d", i%keys, i))
	}
	x := &table{epochs: map[string]uint64{}, all: map[string][]uint64{}, taken: map[string][]uint64{}}
	var mu sync.Mutex
	accepted := map[uint64]int{}            // acks, by offset
	overtaken := map[uint64]chan struct{}{} // closed with the first accepted ack; of the records whose first handler is late
	slow := map[uint64]bool{}
	var lost atomic.Int64
	write := func(d *client.Delivery, finish func(error)) {
		x.write(string(d.Key), d.Epoch(), d.Offset)
		told := func(err error) {
			mu.Lock()
			if err == nil {
				accepted[d.Offset]++
				if ch := overtaken[d.Offset]; ch != nil && accepted[d.Offset] == 1 {
					close(ch)
				}
			} else if errors.Is(err, client.ErrFenced) {
				lost.Add(1)
			}
			mu.Unlock()
			finish(err)
		}
		if err := d.AckFunc(told); err != nil {
			told(err)
		}
	}
	s.crew(t, queue, 3, 3, func(_ int, d *client.Delivery, stop func()) error {
		mu.Lock()
		first := !slow[d.Offset] && d.Offset%7 == 3
		slow[d.Offset] = true
		if first {
			overtaken[d.Offset] = make(chan struct{})
		}
		gone := overtaken[d.Offset]
		mu.Unlock()
		if first {
			select { // it stands still, whatever it is told, until others have gone on
			case <-gone:
			case <-time.After(timeout):
				t.Errorf("nobody else is given record %d", d.Offset)
			}
			write(d, func(error) {})
			return nil
		}
		write(d, func(error) {
			mu.Lock()
			defer mu.Unlock()
			if len(accepted) == keys*each {
				stop()
			}
		})
		return nil
	}, func() { s.send(t, queue, items...) })
	require.Len(t, accepted, keys*each)
	for o, n := range accepted {
		require.Equal(t, 1, n, "acks of record %d", o)
	}
	require.Positive(t, lost.Load(), "who came late was told")
	require.Positive(t, stale(x.all), "a table that does not look at epochs would take stale writes")
	require.Zero(t, stale(x.taken))
	require.Positive(t, x.refused)
	t.Logf("%d late writes were refused, %d acks fenced; without epochs %d stale writes", x.refused, lost.Load(), stale(x.all))
}

// isolated blocks a key with many records behind it: all other keys are handled meanwhile,
// at no cost in memory, and the key's next record is found at once.
func (s *stage) isolated(t *testing.T) {
	const keys = 200
	queue := s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial})
	s.send(t, queue, "hot 0")
	holder := s.join(t, queue, client.Prefetch(1))
	head := take(t, holder)
	items := make([]string, *requirementBacklog)
	for i := range items {
		items[i] = "hot 1"
		if i%(len(items)/keys) == 0 {
			items[i] = fmt.Sprintf("key%d %d", i%keys, i)
		}
	}
	others := 0
	for _, item := range items {
		if item != "hot 1" {
			others++
		}
	}
	s.send(t, queue, items...)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var handled atomic.Int64
	began := time.Now()
	s.crew(t, queue, 2, 4, func(_ int, d *client.Delivery, stop func()) error {
		if string(d.Key) == "hot" {
			t.Errorf("%s overtook the head of its key", d.Value)
		}
		if handled.Add(1) == int64(others) {
			stop()
		}
		return nil
	}, func() {})
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	require.Less(t, grown, int64(64<<20))
	other := s.join(t, queue, client.Prefetch(1))
	began = time.Now()
	done(t, head)
	next := make(chan *client.Delivery, 2)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for _, c := range []*client.Consumer{holder, other} {
		go func() {
			if d, err := c.Next(ctx); err == nil {
				next <- d
			}
		}()
	}
	d := <-next
	found := time.Since(began)
	cancel()
	done(t, d)
	leave(t, holder, other)
	require.Equal(t, "hot 1", string(d.Value))
	t.Logf("%d records of other keys behind %d of the blocked one in %v, %d bytes more; its next record came after %v",
		others, len(items), took.Round(time.Millisecond), grown, found.Round(100*time.Microsecond))
}

// R-MQC-13: a listener whose broker is away tries for as long as it takes, and says how
// often; when the broker is back it goes on by itself.
func TestR_MQC_13_AListenerNeverGivesUp(t *testing.T) { neverGivesUp(t) }

// neverGivesUp says how long after its broker was started the listener went on.
func neverGivesUp(t *testing.T) (resumed time.Duration) {
	broker := lockstest.Start(t)
	s := &stage{broker: broker, conn: connectTo(t, broker.URL())}
	queue := s.queue(t, 1)
	s.group(t, queue, client.GroupSettings{Mode: client.Serial})
	conn := connectTo(t, broker.URL())
	c, err := conn.Consumer(t.Context(), queue, client.Group("g"))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	got, ended := make(chan string, 10), make(chan error, 1)
	go func() {
		ended <- c.Run(ctx, func(_ context.Context, d *client.Delivery) error {
			got <- string(d.Value)
			return nil
		})
	}()
	s.send(t, queue, "k 0")
	require.Equal(t, "k 0", <-got)
	require.True(t, conn.Info().Connected)
	require.Zero(t, conn.Info().Retries)
	var back time.Time
	broker.Restart(func() {
		last := 0
		awaitThat(t, "it says that it tries", func() bool {
			info := conn.Info()
			require.GreaterOrEqual(t, info.Retries, last)
			last = info.Retries
			return !info.Connected && info.Retries >= 3 && info.Err != nil
		})
		time.Sleep(*requirementOutage) // which is what is to be survived
		require.Greater(t, conn.Info().Retries, 3)
		require.Empty(t, ended)
		t.Logf("RETRYING(%d): %v", conn.Info().Retries, conn.Info().Err)
		back = time.Now()
	})
	s.send(t, queue, "k 1")
	require.Equal(t, "k 1", <-got)
	resumed = time.Since(back)
	require.Zero(t, conn.Info().Retries)
	t.Logf("it went on %v after the broker began to start", resumed.Round(time.Millisecond))
	stop()
	require.ErrorIs(t, <-ended, context.Canceled)
	leave(t, c)
	return resumed
}

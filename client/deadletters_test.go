package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// pipes are a network without a socket: time that is faked goes on while somebody reads.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func newPipes() *pipes { return &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accepted:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (p *pipes) dial(ctx context.Context, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.accepted <- there:
		return here, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// letterBroker has a queue of dead letters, one in each partition, and answers what is asked about
// them after a while.
type letterBroker struct {
	mu      sync.Mutex
	done    map[uint32]bool // by partition: its letter is settled, or on its way back
	settles time.Duration   // what a settle takes
	silent  bool            // none is answered
	dead    *uint32         // the partition of which nobody answers
	dies    bool            // it does so only after it has answered once
	below   uint32          // nobody answers of the partitions below it
	refuses time.Time       // until then redrives are refused
	back    []time.Time     // when the letters that are on their way are there
	takes   time.Duration   // one on its way, behind the one before
}

// lettersOf starts a broker with so many partitions of dead letters, and connects to it.
func lettersOf(t *testing.T, l *letterBroker, partitions int) *Conn {
	network := newPipes()
	b := serveNode(t, newFakeStore(), network)
	b.create("orders", Queue, 1)
	d := b.create("dead", Queue, partitions)
	l.done = make(map[uint32]bool)
	for _, p := range d.partitions {
		var builder wire.BatchBuilder
		builder.Reset(true)
		require.True(t, builder.Append(1, 0, nil, []byte("x"), []wire.RecordHeader{{Key: wire.LetterOrigin, Value: []byte("orders/0")}}, 0))
		batch, index := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
		p.append(index, batch, 1)
	}
	b.setScript(l.serve)
	c, err := Connect(t.Context(), b.address(), WithDialer(network.dial))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func (l *letterBroker) serve(q *fakeRequest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var answer any = struct{}{}
	switch q.header.Opcode {
	case wire.OpGroupAdmin:
		var m wire.GroupAdminRequest
		q.parse(&m)
		if m.Op == wire.GroupList {
			answer = []wire.GroupInfo{{Name: "clerks"}}
		}
	case wire.OpGroupOrder:
		var m wire.GroupOrderRequest
		q.parse(&m)
		number := q.b.handles[m.Handle-1].number
		if number < l.below || l.dead != nil && *l.dead == number && (!l.dies || m.Op != wire.OrderLetters) {
			return true
		}
		switch m.Op {
		case wire.OrderUnfinished:
			page := wire.BrowseResponse{Next: 1, End: 1}
			if !l.done[number] {
				page.Runs = []wire.BrowseRun{{Count: 1}}
			}
			answer = page
		case wire.OrderSettle:
			if l.silent {
				return true
			}
			time.AfterFunc(l.settles, func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.done[number] = true
				l.reply(q, answer)
			})
			return true
		case wire.OrderRedrive:
			if time.Now().Before(l.refuses) {
				q.refuse(wire.CodeRefused)
				return true
			}
			l.done[number] = true
			at := time.Now()
			if n := len(l.back); n > 0 {
				at = l.back[n-1]
			}
			l.back = append(l.back, at.Add(l.takes))
		case wire.OrderLetters:
			if int(number) < len(l.back) && time.Now().Before(l.back[number]) {
				answer = wire.LettersResponse{Count: 1, Letters: []wire.LetterInfo{{Reason: wire.ReasonRedriven}}}
			}
		}
	default:
		return false
	}
	l.reply(q, answer)
	return true
}

func (l *letterBroker) reply(q *fakeRequest, answer any) {
	body, err := json.Marshal(answer)
	if err != nil {
		q.b.t.Error(err)
	}
	q.reply(&wire.GroupJSON{JSON: body})
}

// R-MQC-12: a purge takes as long as it gets on, much longer than it waits for one answer.
func TestR_MQC_12_APurgeTakesAsLongAsItGetsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions = 5
		c, began := lettersOf(t, &letterBroker{settles: redriveSilence - time.Second}, partitions), time.Now()
		n, err := c.Purge(t.Context(), "dead", LetterFilter{})
		require.NoError(t, err)
		require.Equal(t, partitions, n)
		require.GreaterOrEqual(t, time.Since(began), partitions*(redriveSilence-time.Second))
	})
}

// A purge that hears nothing ends.
func TestR_MQC_12_APurgeThatHearsNothingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, began := lettersOf(t, &letterBroker{silent: true}, 1), time.Now()
		_, err := c.Purge(t.Context(), "dead", LetterFilter{})
		require.Equal(t, wire.CodeUnavailable, codeOf(err))
		require.ErrorContains(t, err, fmt.Sprintf("nothing was heard of %q", "dead"))
		require.Equal(t, redriveSilence, time.Since(began).Truncate(time.Second))
	})
}

// A partition of which nobody answers is named within 2 s, and those behind it are dealt with.
func TestR_MQC_12_APartitionWithoutALeaderIsNamedAndHoldsUpNoOther(t *testing.T) {
	for name, deal := range map[string]func(context.Context, *Conn) (int, error){
		"purge":   func(ctx context.Context, c *Conn) (int, error) { return c.Purge(ctx, "dead", LetterFilter{}) },
		"redrive": func(ctx context.Context, c *Conn) (int, error) { return c.Redrive(ctx, "dead", LetterFilter{}, nil) },
		"redrive as dry": func(ctx context.Context, c *Conn) (int, error) {
			return c.RedriveDryRun(ctx, "dead", LetterFilter{}, nil)
		},
		"look": func(ctx context.Context, c *Conn) (n int, err error) {
			for _, err = range c.DeadLetters(ctx, "dead", LetterFilter{}) {
				if err == nil {
					n++
				}
			}
			return n, err
		},
		"browse": func(ctx context.Context, c *Conn) (n int, err error) {
			for _, err = range c.Browse(ctx, "dead", BrowseOptions{Group: "clerks"}) {
				if err == nil {
					n++
				}
			}
			return n, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, began := lettersOf(t, &letterBroker{dead: new(uint32(1))}, 3), time.Now()
				n, err := deal(t.Context(), c)
				require.Equal(t, wire.CodeUnavailable, codeOf(err))
				require.ErrorContains(t, err, "no leader of dead/1 has answered")
				require.Equal(t, 2, n, "those of the others")
				require.Equal(t, browsePatience, time.Since(began).Truncate(time.Second))
			})
		})
	}
}

// Of more partitions than are asked at once each has its own time to answer.
func TestASilentPartitionTakesNoTimeFromOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const silent, led = sideBySide + 3, 2
		c := lettersOf(t, &letterBroker{below: silent}, silent+led)
		var numbers []uint32
		for n := range uint32(silent + led) {
			numbers = append(numbers, n)
		}
		errs := c.GroupOrders(t.Context(), browsePatience, wire.OrderLetters, "dead", numbers, "clerks", wire.LettersRequest{Removed: true}, func(int) any { return nil })
		for n, err := range errs {
			require.Equal(t, n < silent, errors.Is(err, context.DeadlineExceeded), "partition %d: %v", n, err)
		}
	})
}

// A look at records ends if the leader of a partition is lost meanwhile and there is no other.
func TestBrowseThatHearsNothingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, began := lettersOf(t, &letterBroker{dead: new(uint32(1)), dies: true}, 3), time.Now()
		n := 0
		for _, err := range c.Browse(t.Context(), "dead", BrowseOptions{Group: "clerks"}) {
			if err == nil {
				n++
				time.Sleep(redriveSilence) // who takes the records may take time
				continue
			}
			require.Equal(t, wire.CodeUnavailable, codeOf(err))
			require.ErrorContains(t, err, "nothing was heard")
		}
		require.Equal(t, 1, n)
		require.Equal(t, 2*redriveSilence, time.Since(began).Truncate(time.Second))
	})
}

// R-MQC-12: a redrive waits for letters that get on one after the other, however long that takes.
func TestR_MQC_12_ARedriveTakesAsLongAsItGetsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions = 8
		c, began := lettersOf(t, &letterBroker{takes: redriveStill - time.Second}, partitions), time.Now()
		n, err := c.Redrive(t.Context(), "dead", LetterFilter{}, nil)
		require.NoError(t, err)
		require.Equal(t, partitions, n)
		require.Greater(t, time.Since(began), 2*redriveSilence)
	})
}

// A broker that knows of a group which is not in the list, or not any more, is asked again until
// both have heard of it, and not for ever.
func TestRuleQ3_ARedriveThatIsRefusedLooksForTheGroupsAgain(t *testing.T) {
	for name, c := range map[string]struct {
		lasts time.Duration
		want  wire.ErrorCode
	}{"for a while": {redriveSilence / 2, wire.CodeOK}, "for ever": {time.Hour, wire.CodeRefused}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &letterBroker{refuses: time.Now().Add(c.lasts)}
				conn := lettersOf(t, l, 1)
				n, err := conn.Redrive(t.Context(), "dead", LetterFilter{}, nil)
				require.Equal(t, c.want, codeOf(err))
				require.Equal(t, c.want == wire.CodeOK, n == 1)
			})
		})
	}
}

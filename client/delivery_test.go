package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// produceScript makes a script that sees only PRODUCE, with a count from 1.
func produceScript(f func(n int, q *fakeRequest) bool) func(*fakeRequest) bool {
	var n atomic.Int64
	return func(q *fakeRequest) bool {
		return q.header.Opcode == wire.OpProduce && f(int(n.Add(1)), q)
	}
}

// requireSequences checks that what a partition holds was appended under
// sequences without gaps.
func requireSequences(t *testing.T, infos []wire.BatchInfo) {
	t.Helper()
	next := map[int64]int32{}
	for _, i := range infos {
		require.Equal(t, next[i.ProducerID], i.BaseSequence)
		next[i.ProducerID] += int32(i.RecordCount)
	}
}

// R-X-6: produce once. The connection breaks before the broker has the batch, after
// it has stored it, and in between with a retriable refusal.
func TestR_X_6_ResendsAreStoredOnce(t *testing.T) {
	for _, c := range []struct {
		name      string
		script    func(n int, q *fakeRequest) bool
		duplicate bool
	}{
		{"lost before it was stored", func(n int, q *fakeRequest) bool {
			if n == 1 {
				q.conn.drop()
			}
			return n == 1
		}, false},
		{"lost after it was stored", func(n int, q *fakeRequest) bool {
			if n == 1 {
				q.apply()
				q.conn.drop()
			}
			return n == 1
		}, true},
		{"lost after it was stored, twice", func(n int, q *fakeRequest) bool {
			if n <= 2 {
				q.apply()
				q.conn.drop()
			}
			return n <= 2
		}, true},
		{"stored, and answered with an error that leaves it open", func(n int, q *fakeRequest) bool {
			if n == 1 {
				q.apply()
				q.refuse(wire.CodeUnavailable)
			}
			return n == 1
		}, true},
		{"refused for now", func(n int, q *fakeRequest) bool {
			if n == 1 {
				q.refuse(wire.CodeMailboxFull)
			}
			return n == 1
		}, false},
		{"the handle is forgotten", func(n int, q *fakeRequest) bool {
			if n == 1 {
				q.refuse(wire.CodeUnknownHandle)
			}
			return n == 1
		}, false},
		{"not the leader", func(n int, q *fakeRequest) bool {
			if n == 1 {
				q.refuse(wire.CodeNotLeader)
			}
			return n == 1
		}, false},
		{"the broker stops", func(n int, q *fakeRequest) bool {
			if n == 1 {
				q.apply()
				q.refuse(wire.CodeShuttingDown)
				q.conn.net.Close()
			}
			return n == 1
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := startBroker(t)
			b.create("d", Queue, 1)
			conn := connect(t, b)
			p := newTestProducer(t, conn, "d")
			b.setScript(produceScript(c.script))
			r, err := p.Send(testContext(t), &Record{Value: []byte("once")})
			require.NoError(t, err)
			require.Equal(t, c.duplicate, r.Duplicate)
			require.Zero(t, r.Offset)
			_, err = p.Send(testContext(t), &Record{Value: []byte("next")})
			require.NoError(t, err)
			require.Equal(t, []string{"once", "next"}, b.values("d", 0))
			requireSequences(t, b.batchInfos("d", 0))
		})
	}
}

// A refusal in the middle of a full pipeline: the batches behind it are refused as
// out of sequence, and all are sent again in their order.
func TestARefusalInThePipelineKeepsTheOrder(t *testing.T) {
	for _, code := range []wire.ErrorCode{wire.CodeMailboxFull, wire.CodeUnavailable, wire.CodeTimeout, wire.CodeUnknownHandle} {
		t.Run(code.String(), func(t *testing.T) {
			b := startBroker(t)
			b.create("d", Topic, 1)
			c := connect(t, b)
			p := newTestProducer(t, c, "d", BatchBytes(1), InFlight(8))
			b.setScript(produceScript(func(n int, q *fakeRequest) bool {
				if n == 5 || n == 17 {
					q.refuse(code)
					return true
				}
				return false
			}))
			_, errs := sendAll(t, p, nil, numbered(60)...)
			for _, err := range errs {
				require.NoError(t, err)
			}
			require.Equal(t, numbered(60), b.values("d", 0))
			requireSequences(t, b.batchInfos("d", 0))
		})
	}
}

// R-WLS-10: an error-free producer loop across 50 connection losses, at any point
// of the exchange: loss 0, duplicates 0.
func TestR_WLS_10_ProducerLoopSurvivesFiftyDisconnects(t *testing.T) {
	b := startBroker(t)
	b.create("d", Queue, 3)
	c := connect(t, b, WithReconnectBackoff(time.Millisecond, 5*time.Millisecond))
	p := newTestProducer(t, c, "d", BatchBytes(200), InFlight(4))
	var kills atomic.Int64
	random := rand.New(rand.NewPCG(1, 2))
	b.setScript(produceScript(func(_ int, q *fakeRequest) bool {
		switch random.IntN(20) {
		case 0:
			q.conn.drop()
		case 1:
			q.apply()
			q.conn.drop()
		case 2:
			q.apply()
			q.conn.net.Close()
		case 3:
			q.refuse(wire.CodeMailboxFull)
			return true
		default:
			return false
		}
		kills.Add(1)
		return true
	}))
	ctx := testContext(t)
	sent := 0
	for kills.Load() < 50 {
		for range 20 {
			v := fmt.Appendf(nil, "%08d", sent)
			err := p.SendFunc(ctx, &Record{Key: v[7:], Value: v}, func(_ Receipt, err error) {
				if err != nil {
					t.Error(err)
				}
			})
			require.NoError(t, err)
			sent++
		}
		require.NoError(t, p.Flush(ctx))
	}
	require.NoError(t, p.Close(ctx))
	seen := map[string]bool{}
	last := map[byte]string{}
	for n := range 3 {
		for _, v := range b.values("d", n) {
			require.False(t, seen[v], "duplicate %s", v)
			seen[v] = true
			require.Less(t, last[v[7]], v, "order of a key")
			last[v[7]] = v
		}
		requireSequences(t, b.batchInfos("d", n))
	}
	require.Len(t, seen, sent)
}

func TestAnswersMayComeInAnyOrderAcrossPartitions(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 4)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	held := b.holdProduce(4)
	ctx := testContext(t)
	var tickets []*Ticket
	var requests []*fakeRequest
	for i := range 4 {
		ticket, err := p.SendAsync(ctx, &Record{Value: fmt.Appendf(nil, "to %d", i)})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
		requests = append(requests, <-held)
	}
	for i := 3; i >= 0; i-- {
		requests[i].handle()
		r, err := tickets[i].Wait(ctx)
		require.NoError(t, err)
		require.Equal(t, uint32(i), r.Partition)
		require.Equal(t, []string{fmt.Sprintf("to %d", i)}, b.values("d", i))
	}
}

func TestWithoutWaitForSpaceAFullDiskFailsRecordsAtOnce(t *testing.T) {
	for _, code := range []wire.ErrorCode{wire.CodeDiskFull, wire.CodeMemoryFull} {
		b := startBroker(t)
		b.create("d", Topic, 1)
		c := connect(t, b)
		p := newTestProducer(t, c, "d", BatchBytes(1), WaitForSpace(false))
		var full atomic.Bool
		b.setScript(produceScript(func(_ int, q *fakeRequest) bool {
			refuse := full.Load() // once: the test goes on when it has the answer
			if refuse {
				q.refuse(code)
			}
			return refuse
		}))
		_, errs := sendAll(t, p, nil, "a", "b")
		require.Equal(t, []error{nil, nil}, errs)
		full.Store(true)
		for _, value := range []string{"c", "d", "e"} {
			_, err := p.Send(testContext(t), &Record{Value: []byte(value)})
			require.ErrorIs(t, err, code)
			require.Equal(t, NotSent, outcomeOf(t, err))
		}
		full.Store(false)
		_, errs = sendAll(t, p, nil, "h", "i")
		require.Equal(t, []error{nil, nil}, errs)
		require.Equal(t, []string{"a", "b", "h", "i"}, b.values("d", 0))
		requireSequences(t, b.batchInfos("d", 0))
	}
}

// A full disk holds records back instead of failing them, says so at the first
// refusal, and costs one batch per attempt, however many wait.
func TestAFullDiskIsToldAndWaitedFor(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	events := make(chan Event, 16)
	c := connect(t, b, WithEvents(func(e Event) {
		switch e.(type) {
		case ProducerStalled, ProducerResumed:
			events <- e
		}
	}))
	p := newTestProducer(t, c, "d", BatchBytes(1), InFlight(8))
	attempts := 0 // scripts run one at a time
	b.setScript(produceScript(func(_ int, q *fakeRequest) bool {
		if q.sequence() == 0 {
			attempts++
			if attempts < 4 {
				q.refuse(wire.CodeDiskFull)
			}
			return attempts < 4
		}
		if attempts == 2 || attempts == 3 {
			t.Errorf("batch %d was sent while another one asks for space", q.sequence())
		}
		return false
	}))
	_, errs := sendAll(t, p, nil, numbered(20)...)
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, numbered(20), b.values("d", 0))
	stalled := (<-events).(ProducerStalled)
	require.Equal(t, "d", stalled.Destination)
	require.Zero(t, stalled.Partition)
	require.ErrorIs(t, stalled.Err, wire.CodeDiskFull)
	require.Equal(t, ProducerResumed{Destination: "d"}, <-events)
}

// What is stored is a beginning of what was sent: a batch that is given up takes
// those behind it along, in flight or not, whatever would still fit.
func TestARefusalForGoodLeavesNoHole(t *testing.T) {
	for _, c := range []struct {
		name    string
		code    wire.ErrorCode
		options []ProducerOption
		behind  Outcome // of those in flight behind it
	}{
		{"too large", wire.CodeTooLarge, nil, NotSent},
		{"corrupt", wire.CodeCorrupt, nil, NotSent},
		{"a full disk that is not waited for", wire.CodeDiskFull, []ProducerOption{WaitForSpace(false)}, NotSent},
		{"a full disk until the delivery timeout", wire.CodeDiskFull, []ProducerOption{DeliveryTimeout(2 * time.Second)}, NotSent},
		{"a full mailbox until the delivery timeout", wire.CodeMailboxFull, []ProducerOption{DeliveryTimeout(2 * time.Second)}, NotSent},
		{"no leader until the delivery timeout", wire.CodeUnavailable, []ProducerOption{DeliveryTimeout(2 * time.Second)}, Unknown},
		{"a fenced partition", wire.CodePartitionFenced, nil, Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t)
			b.create("d", Topic, 1)
			conn := connect(t, b)
			p := newTestProducer(t, conn, "d", append([]ProducerOption{BatchBytes(1), InFlight(8)}, c.options...)...)
			sent := make(chan struct{})
			b.setScript(produceScript(func(_ int, q *fakeRequest) bool {
				if q.sequence() == 4 {
					<-sent
					q.refuse(c.code)
					return true
				}
				return false // those behind it come out of sequence
			}))
			ctx := testContext(t)
			var tickets []*Ticket
			for _, value := range numbered(30) {
				ticket, err := p.SendAsync(ctx, &Record{Value: []byte(value)})
				require.NoError(t, err)
				tickets = append(tickets, ticket)
			}
			close(sent)
			for i, ticket := range tickets {
				_, err := ticket.Wait(ctx)
				switch {
				case i < 4:
					require.NoError(t, err)
				case i == 4 && c.behind == Unknown:
					require.Equal(t, Unknown, outcomeOf(t, err))
					require.ErrorIs(t, err, c.code)
				default:
					require.Equal(t, NotSent, outcomeOf(t, err), "record %d: %v", i, err)
					require.ErrorIs(t, err, c.code)
				}
			}
			require.Equal(t, numbered(30)[:4], b.values("d", 0))
			b.setScript(nil)
			_, err := p.Send(ctx, &Record{Value: []byte("again")})
			require.NoError(t, err)
			requireSequences(t, b.batchInfos("d", 0))
		})
	}
}

// A sender that stops when its function hears of a failure has stored a beginning
// of its records, though it sends from another goroutine.
func TestASenderThatStopsAtTheFirstFailureLeavesNoHole(t *testing.T) {
	for range 20 {
		b := startBroker(t)
		b.create("d", Topic, 1)
		conn := connect(t, b)
		p := newTestProducer(t, conn, "d", BatchBytes(1), InFlight(4))
		b.setScript(produceScript(func(n int, q *fakeRequest) bool {
			if n == 9 {
				q.refuse(wire.CodeTooLarge)
			}
			return n == 9
		}))
		ctx, stop := context.WithCancel(testContext(t))
		for i, err := 0, error(nil); err == nil; i++ {
			err = p.SendFunc(ctx, &Record{Value: fmt.Append(nil, i)}, func(_ Receipt, err error) {
				if err != nil {
					stop()
				}
			})
		}
		require.NoError(t, p.Close(testContext(t)))
		stop()
		require.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6", "7"}, b.values("d", 0))
		require.NoError(t, conn.Close())
	}
}

// Every code that a broker may answer a batch with, once: what the caller hears.
// stored means that the batch is sent again and arrives.
func TestOutcomesOfRefusals(t *testing.T) {
	const stored Outcome = 0
	wants := map[wire.ErrorCode]Outcome{
		wire.CodeUnknown: Unknown, wire.CodeInternal: Unknown, wire.CodeDestinationGone: Unknown,
		wire.CodePartitionFenced: Unknown, wire.CodePartitionReset: Unknown,

		wire.CodeVersion: NotSent, wire.CodeMalformed: NotSent, wire.CodeTooLarge: NotSent, wire.CodeUnsupported: NotSent,
		wire.CodeCorrupt: NotSent, wire.CodeInvalidRequest: NotSent, wire.CodeInvalidName: NotSent, wire.CodeInvalidSetting: NotSent,
		wire.CodeUnknownDestination: NotSent, wire.CodeUnknownPartition: NotSent, wire.CodeUnknownLink: NotSent,
		wire.CodeAlreadyExists: NotSent, wire.CodeKindMismatch: NotSent, wire.CodeOutOfRange: NotSent, wire.CodeTooMany: NotSent,
		wire.CodeAuthRequired: NotSent, wire.CodeAuthFailed: NotSent, wire.CodeClusterMismatch: NotSent, wire.CodeDataLost: NotSent,
		wire.CodeErased: NotSent, wire.CodeRefused: NotSent, wire.CodeFenced: NotSent, wire.CodeNotMember: NotSent,

		// No answers to records that are sent, but nothing is said that is not so.
		wire.CodeStaleEpoch: NotSent, wire.CodeNotOwner: NotSent, wire.CodeAlreadyDone: NotSent, wire.CodeOutOfOrder: NotSent,
		wire.CodeSessionGone: Unknown, wire.CodeUnknownGroup: NotSent, wire.CodeGroupMismatch: NotSent, wire.CodeSerialNeedsOnePartition: NotSent,
		wire.CodeStaleBinding: NotSent, wire.CodeNotCoordinator: stored, wire.CodeDataExpired: NotSent, wire.CodeGroupGone: Unknown,

		wire.CodeDuplicate: Applied,

		wire.CodeRetry: stored, wire.CodeBusy: stored, wire.CodeTimeout: stored, wire.CodeIdle: stored, wire.CodeShuttingDown: stored,
		wire.CodeDiskFull: stored, wire.CodeMemoryFull: stored, wire.CodePartitionFull: stored, wire.CodeSendDisabled: stored, wire.CodeNotController: stored, wire.CodeMailboxFull: stored, wire.CodeUnavailable: stored,
		wire.CodeNotLeader: stored, wire.CodeWrongPartition: stored, wire.CodeUnknownHandle: stored,
		wire.CodeOutOfSequence: stored, wire.CodeUnknownProducer: stored,
	}
	for _, info := range wire.ErrorTable()[1:] {
		want, known := wants[info.Code]
		require.True(t, known, "%v: what does a caller hear?", info.Code)
		c := struct {
			code wire.ErrorCode
			want Outcome
		}{info.Code, want}
		t.Run(c.code.String(), func(t *testing.T) {
			b := startBroker(t)
			b.create("d", Topic, 1)
			conn := connect(t, b)
			p := newTestProducer(t, conn, "d")
			b.setScript(produceScript(func(n int, q *fakeRequest) bool {
				if n == 2 {
					if c.want == Applied {
						q.apply()
					}
					q.refuse(c.code)
				}
				return n == 2
			}))
			ctx := testContext(t)
			_, err := p.Send(ctx, &Record{Value: []byte("a")})
			require.NoError(t, err)
			_, err = p.Send(ctx, &Record{Value: []byte("b")})
			if c.want == stored {
				require.NoError(t, err)
				require.Equal(t, []string{"a", "b"}, b.values("d", 0))
				return
			}
			require.ErrorIs(t, err, c.code)
			require.Equal(t, c.want, outcomeOf(t, err))
			_, err = p.Send(ctx, &Record{Value: []byte("c")})
			if c.code == wire.CodeFenced {
				require.ErrorIs(t, err, ErrFenced)
				return
			}
			require.NoError(t, err)
			infos := b.batchInfos("d", 0)
			requireSequences(t, infos)
			// An unknown outcome costs the identity: nobody knows the next sequence.
			same := infos[0].ProducerID == infos[len(infos)-1].ProducerID
			require.Equal(t, c.want != Unknown, same)
		})
	}
}

func TestDeliveryTimeoutTellsNotSentFromUnknown(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(1), InFlight(2), DeliveryTimeout(50*time.Millisecond))
	b.setScript(produceScript(func(n int, q *fakeRequest) bool { return n <= 2 })) // swallows two
	_, errs := sendAll(t, p, nil, "a", "b", "c", "d")
	for i, want := range []Outcome{Unknown, Unknown, NotSent, NotSent} {
		require.ErrorIs(t, errs[i], ErrDeliveryTimeout)
		require.Equal(t, want, outcomeOf(t, errs[i]))
	}
	r, err := p.Send(testContext(t), &Record{Value: []byte("e")})
	require.NoError(t, err)
	require.Zero(t, r.Offset)
	requireSequences(t, b.batchInfos("d", 0)) // under a new identity
}

func TestDeliveryTimeoutPassesWhileDisconnected(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", DeliveryTimeout(50*time.Millisecond))
	written := make(chan struct{})
	b.setScript(produceScript(func(_ int, q *fakeRequest) bool {
		b.listener.Close()
		q.conn.drop()
		close(written)
		return true
	}))
	ctx := testContext(t)
	ticket, err := p.SendAsync(ctx, &Record{Value: []byte("a")})
	require.NoError(t, err)
	<-written
	_, err = p.Send(ctx, &Record{Value: []byte("b")})
	require.Equal(t, NotSent, outcomeOf(t, err))
	require.ErrorIs(t, err, ErrDeliveryTimeout)
	require.ErrorContains(t, err, "refused") // and why there is no connection
	_, err = ticket.Wait(ctx)
	require.Equal(t, Unknown, outcomeOf(t, err))
	require.ErrorIs(t, err, ErrDeliveryTimeout)
	require.ErrorIs(t, err, ErrDisconnected)
}

func TestWithoutIdempotenceALostBatchIsUnknownAndNotResent(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", Idempotent(false))
	b.setScript(produceScript(func(n int, q *fakeRequest) bool {
		if n == 1 {
			q.apply()
			q.conn.drop()
		}
		return n == 1
	}))
	ctx := testContext(t)
	_, err := p.Send(ctx, &Record{Value: []byte("a")})
	require.Equal(t, Unknown, outcomeOf(t, err))
	require.ErrorIs(t, err, ErrDisconnected)
	_, err = p.Send(ctx, &Record{Value: []byte("b")})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, b.values("d", 0))
}

func TestWithoutReconnectEverythingFailsAtOnce(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b, WithReconnect(false))
	p := newTestProducer(t, c, "d", BatchBytes(1), InFlight(1))
	b.setScript(produceScript(func(_ int, q *fakeRequest) bool { q.conn.drop(); return true }))
	ctx := testContext(t)
	first, err := p.SendAsync(ctx, &Record{Value: []byte("a")})
	require.NoError(t, err)
	_, err = first.Wait(ctx)
	require.Equal(t, Unknown, outcomeOf(t, err))
	require.ErrorIs(t, err, ErrDisconnected)
	_, err = p.Send(ctx, &Record{Value: []byte("b")})
	require.Equal(t, NotSent, outcomeOf(t, err))
	require.ErrorIs(t, err, ErrDisconnected)
}

// RULES R3: unknown producer with sequence ≠ 0. The client takes a new epoch only
// if nothing is outstanding.
func TestAForgottenProducerTakesANewIdentity(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(1))
	_, errs := sendAll(t, p, nil, "a", "b")
	require.Equal(t, []error{nil, nil}, errs)
	b.mu.Lock()
	clear(d.partitions[0].producers)
	b.mu.Unlock()
	_, errs = sendAll(t, p, nil, "c", "d", "e", "f")
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, []string{"a", "b", "c", "d", "e", "f"}, b.values("d", 0))
	infos := b.batchInfos("d", 0)
	requireSequences(t, infos)
	require.NotEqual(t, infos[0].ProducerID, infos[5].ProducerID)
}

func TestAForgottenProducerWithAnOpenOutcomeReportsUnknown(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(1))
	_, errs := sendAll(t, p, nil, "a")
	require.NoError(t, errs[0])
	b.setScript(produceScript(func(n int, q *fakeRequest) bool {
		if n == 1 { // stored, its answer lost, then forgotten
			q.apply()
			b.mu.Lock()
			clear(d.partitions[0].producers)
			b.mu.Unlock()
			q.conn.drop()
		}
		return n == 1
	}))
	_, errs = sendAll(t, p, nil, "b")
	require.Equal(t, Unknown, outcomeOf(t, errs[0]))
	require.ErrorIs(t, errs[0], wire.CodeUnknownProducer)
	_, errs = sendAll(t, p, nil, "c", "d")
	require.Equal(t, []error{nil, nil}, errs)
	require.Equal(t, []string{"a", "b", "c", "d"}, b.values("d", 0))
}

// The new identity waits for other partitions too: what they have under way
// keeps the old one.
func TestANewIdentityWaitsUntilNothingIsOutstandingAnywhere(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 2)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(1))
	toZero, toOne := []byte("abc"), []byte("") // slots 4399 and 15313 of 16384
	_, errs := sendAll(t, p, toZero, "0a")
	require.NoError(t, errs[0])
	_, errs = sendAll(t, p, toOne, "1a")
	require.NoError(t, errs[0])
	b.mu.Lock()
	clear(d.partitions[0].producers)
	b.mu.Unlock()
	refused, held := make(chan struct{}, 10), make(chan *fakeRequest, 10)
	inits := make(chan struct{}, 10)
	b.setScript(func(q *fakeRequest) bool {
		switch {
		case q.header.Opcode == wire.OpInitProducer:
			inits <- struct{}{}
		case q.header.Opcode == wire.OpProduce && q.produce.Handle == 2:
			held <- q
			return true
		case q.header.Opcode == wire.OpProduce:
			q.handle()
			refused <- struct{}{}
			return true
		}
		return false
	})
	ctx := testContext(t)
	one, err := p.SendAsync(ctx, &Record{Key: toOne, Value: []byte("1b")})
	require.NoError(t, err)
	q := <-held
	zero, err := p.SendAsync(ctx, &Record{Key: toZero, Value: []byte("0b")})
	require.NoError(t, err)
	<-refused
	require.NoError(t, c.Ping(ctx)) // the refusal has arrived
	require.Empty(t, inits)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpInitProducer {
			inits <- struct{}{}
		}
		return false
	})
	q.handle()
	<-inits
	for _, ticket := range []*Ticket{zero, one} {
		_, err := ticket.Wait(ctx)
		require.NoError(t, err)
	}
	require.Equal(t, []string{"0a", "0b"}, b.values("d", 0))
	require.Equal(t, []string{"1a", "1b"}, b.values("d", 1))
	require.Equal(t, b.batchInfos("d", 1)[0].ProducerID, b.batchInfos("d", 1)[1].ProducerID)
}

// RULES R5: opening a name fences who had it before.
func TestANamedProducerFencesItsPredecessor(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	old := newTestProducer(t, c, "d", ProducerName("billing"))
	_, errs := sendAll(t, old, nil, "a")
	require.NoError(t, errs[0])
	successor := newTestProducer(t, c, "d", ProducerName("billing"))
	_, errs = sendAll(t, successor, nil, "b")
	require.NoError(t, errs[0])
	_, errs = sendAll(t, old, nil, "c")
	require.ErrorIs(t, errs[0], ErrFenced)
	require.ErrorIs(t, errs[0], wire.CodeFenced)
	require.Equal(t, NotSent, outcomeOf(t, errs[0]))
	_, err := old.Send(testContext(t), &Record{})
	require.ErrorIs(t, err, ErrFenced)
	_, errs = sendAll(t, successor, nil, "d")
	require.NoError(t, errs[0])
	require.Equal(t, []string{"a", "b", "d"}, b.values("d", 0))
}

// RELIABILITY F16: a holder of a name that lost track of its records, and finds that
// another one has opened the name, ends; it does not take the name back.
func TestF16_APausedHolderDoesNotTakeTheNameBack(t *testing.T) {
	for _, succeeded := range []bool{false, true} {
		b := startBroker(t)
		b.create("d", Topic, 1)
		old := newTestProducer(t, connect(t, b), "d", ProducerName("billing"), DeliveryTimeout(20*time.Millisecond))
		renewal := make(chan *fakeRequest, 1)
		b.setScript(func(q *fakeRequest) bool {
			if q.header.Opcode == wire.OpInitProducer {
				renewal <- q
			}
			return q.header.Opcode == wire.OpProduce || q.header.Opcode == wire.OpInitProducer // no answer
		})
		_, errs := sendAll(t, old, nil, "a")
		require.Equal(t, Unknown, outcomeOf(t, errs[0]))
		q := <-renewal
		b.setScript(nil)
		if succeeded {
			heir := newTestProducer(t, connect(t, b), "d", ProducerName("billing"))
			q.handle()
			_, err := old.Send(testContext(t), &Record{Value: []byte("b")})
			require.ErrorIs(t, err, ErrFenced)
			_, errs = sendAll(t, heir, nil, "c")
			require.NoError(t, errs[0])
			require.Equal(t, []string{"c"}, b.values("d", 0))
			continue
		}
		q.handle()
		_, errs = sendAll(t, old, nil, "b")
		require.NoError(t, errs[0], "the name is still its own")
		require.Equal(t, []string{"b"}, b.values("d", 0))
	}
}

// moveSlots gives all key slots of a destination to one partition.
func (b *fakeBroker) moveSlots(d *fakeDestination, partition uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d.info.SlotVersion++
	d.info.Slots = []wire.SlotRun{{FirstSlot: 0, Partition: partition}}
}

// RULES R6, R7: a stale slot map is answered WRONG_PARTITION; batches known not to
// be sent go where their keys belong now, in order.
func TestAStaleSlotMapIsRefreshedAndRecordsMove(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Queue, 2)
	c := connect(t, b)
	p := newTestProducer(t, c, "d", BatchBytes(100), InFlight(3))
	_, errs := sendAll(t, p, []byte("abc"), "before") // slot 4399: partition 0
	require.NoError(t, errs[0])
	b.moveSlots(d, 1)
	receipts, errs := sendAll(t, p, []byte("abc"), numbered(20)...)
	for i, err := range errs {
		require.NoError(t, err)
		require.Equal(t, uint32(1), receipts[i].Partition)
		require.Equal(t, uint64(i), receipts[i].Offset)
	}
	require.Equal(t, []string{"before"}, b.values("d", 0))
	require.Equal(t, numbered(20), b.values("d", 1))
	requireSequences(t, b.batchInfos("d", 0))
	requireSequences(t, b.batchInfos("d", 1))
}

func TestATopologyEventRefreshesTheSlotMap(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Queue, 2)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	asked := make(chan struct{}, 10)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpMetadata {
			return false
		}
		var m wire.MetadataRequest
		if m.Parse(q.body) == nil && m.Scope == wire.MetadataNamed { // not for the list of nodes
			asked <- struct{}{}
		}
		return false
	})
	b.moveSlots(d, 1)
	b.sendEvent(wire.Event{Kind: wire.EventTopologyChanged, Version: 43})
	<-asked
	require.NoError(t, c.Ping(testContext(t))) // the answer to METADATA came before this one
	produced := 0
	b.setScript(produceScript(func(n int, _ *fakeRequest) bool { produced = n; return false }))
	receipts, errs := sendAll(t, p, []byte("abc"), "x")
	require.NoError(t, errs[0])
	require.Equal(t, uint32(1), receipts[0].Partition)
	b.setScript(nil)
	require.Equal(t, 1, produced)
}

func TestRuleR6_ABatchOfOpenOutcomeStaysWithItsPartition(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Queue, 2)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	b.setScript(produceScript(func(n int, q *fakeRequest) bool {
		if n == 1 {
			q.apply()
			b.moveSlots(d, 1)
			q.conn.drop()
		}
		return n == 1
	}))
	_, errs := sendAll(t, p, []byte("abc"), "x")
	require.ErrorIs(t, errs[0], wire.CodeWrongPartition)
	require.NotErrorIs(t, errs[0], ErrDeliveryTimeout, "partition 0 will not take it any more, so nothing is waited for")
	require.Equal(t, Unknown, outcomeOf(t, errs[0]), "and in partition 1 it would be a duplicate")
	require.Equal(t, []string{"x"}, b.values("d", 0))
	require.Empty(t, b.values("d", 1))
}

func TestADestinationThatIsCreatedAgainIsAnother(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	_, errs := sendAll(t, p, nil, "a")
	require.NoError(t, errs[0])
	b.mu.Lock()
	delete(b.destinations, "d")
	b.mu.Unlock()
	b.create("d", Topic, 1)
	b.dropConns()
	_, err := p.Send(testContext(t), &Record{Value: []byte("b")}) // refused at once or later
	require.ErrorIs(t, err, wire.CodeDestinationGone)
	require.Empty(t, b.values("d", 0))
}

func TestATopologyEventAboutADeletedDestinationEndsTheProducer(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	_, errs := sendAll(t, p, nil, "stored")
	require.NoError(t, errs[0])
	b.mu.Lock()
	delete(b.destinations, "d")
	b.mu.Unlock()
	arrived := make(chan struct{})
	b.setScript(produceScript(func(_ int, q *fakeRequest) bool { close(arrived); return true }))
	ctx := testContext(t)
	ticket, err := p.SendAsync(ctx, &Record{Value: []byte("x")})
	require.NoError(t, err)
	<-arrived
	b.sendEvent(wire.Event{Kind: wire.EventTopologyChanged, Version: 43})
	_, err = ticket.Wait(ctx)
	require.ErrorIs(t, err, wire.CodeUnknownDestination)
	require.Equal(t, Unknown, outcomeOf(t, err))
}

// A node that lags does not know yet what has been created: that it does not is no word
// about what has become of the destination.
func TestANodeThatLagsEndsNoProducer(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	_, errs := sendAll(t, p, nil, "a")
	require.NoError(t, errs[0])
	asked := make(chan struct{})
	times := 0
	b.setScript(func(q *fakeRequest) bool {
		var m wire.MetadataRequest
		if q.header.Opcode != wire.OpMetadata || !q.parse(&m) || len(m.Names) == 0 {
			return false
		}
		if times++; times > 1 {
			if times == 2 {
				close(asked)
			}
			return false
		}
		q.reply(&wire.MetadataResponse{Version: 41, Nodes: []wire.Node{{ID: 1, Address: b.address(), Alive: true}}})
		return true
	})
	b.sendEvent(wire.Event{Kind: wire.EventTopologyChanged, Version: 43})
	<-asked // once more: the first answer has been taken in
	_, err := p.Send(testContext(t), &Record{Value: []byte("b")})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, b.values("d", 0))
}

func TestAReceiptThatCannotBeReadEndsTheSessionNotTheRecord(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	b.setScript(produceScript(func(n int, q *fakeRequest) bool {
		if n == 1 {
			q.apply()
			q.reply(&wire.Empty{})
		}
		return n == 1
	}))
	receipts, errs := sendAll(t, p, nil, "x")
	require.NoError(t, errs[0])
	require.True(t, receipts[0].Duplicate)
	require.Equal(t, 2, b.connections())
}

func TestSequencesWrap(t *testing.T) {
	require.Equal(t, int32(5), nextSequence(2, 3))
	require.Equal(t, int32(0), nextSequence(1<<31-1, 1))
	require.Equal(t, int32(2), nextSequence(1<<31-2, 4))
}

func TestTheBatchQueueKeepsItsOrder(t *testing.T) {
	var q batchQueue
	var all []*batch
	for range 5 {
		b := new(batch)
		all = append(all, b)
		q.push(b)
	}
	q.remove(0)
	q.remove(1) // all[2]
	require.Equal(t, 3, q.len())
	require.Equal(t, -1, q.find(all[2]))
	require.Same(t, all[1], q.at(0))
	require.Same(t, all[3], q.at(1))
	require.Same(t, all[4], q.at(2))
	for range 100 {
		b := new(batch)
		q.push(b)
		q.remove(0)
		require.Same(t, b, q.at(q.len()-1))
	}
	require.LessOrEqual(t, cap(q.items), 16)
}

// mortal makes connections of which the one that writes the first batch fails under it:
// its reader learns of it first, and is held up before it tells those who wait.
type mortal struct {
	struck  atomic.Bool
	closing chan struct{} // closed when the session has failed
	told    chan struct{} // closed by tell
	tell    func()        // the session may tell them
}

type mortalConn struct {
	net.Conn
	m     *mortal
	dying atomic.Bool
}

func (m *mortal) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	return &mortalConn{Conn: conn, m: m}, err
}

func (c *mortalConn) Write(b []byte) (int, error) {
	if h, err := wire.ParseHeader(b); err != nil || h.Opcode != wire.OpProduce || !c.m.struck.CompareAndSwap(false, true) {
		return c.Conn.Write(b)
	}
	c.dying.Store(true)
	if err := c.SetReadDeadline(time.Now()); err != nil { // wakes the reader
		return 0, err
	}
	<-c.m.closing
	return len(b) / 2, errors.New("the connection was reset")
}

func (c *mortalConn) Close() error {
	if c.dying.CompareAndSwap(true, false) {
		close(c.m.closing)
		<-c.m.told
	}
	return c.Conn.Close()
}

// A batch is completed by the writer that failed while the reader, which has failed as
// well, has yet to tell it so: it must not be in another life, or in none, by then.
func TestABatchIsNotUsedAgainWhileItsFailedSessionMayTellIt(t *testing.T) {
	b := startBroker(t)
	b.create("orders", Queue, 1)
	m := &mortal{closing: make(chan struct{}), told: make(chan struct{})}
	m.tell = sync.OnceFunc(func() { close(m.told) })
	c := connect(t, b, WithDialer(m.dial))
	t.Cleanup(m.tell)
	p := newTestProducer(t, c, "orders", Idempotent(false)) // it does not send again what may have arrived
	ctx := testContext(t)
	outcome := make(chan error, 1)
	require.NoError(t, p.SendFunc(ctx, &Record{Value: []byte("x")}, func(_ Receipt, err error) { outcome <- err }))
	require.NoError(t, p.Flush(ctx)) // the batch was given up, and all it held is released
	var failed *SendError
	require.ErrorAs(t, <-outcome, &failed)
	require.Equal(t, Unknown, failed.Outcome)
	m.tell()
	require.NoError(t, p.Close(ctx))
	require.NoError(t, c.Close()) // returns when the session has told everybody
}

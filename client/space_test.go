package client

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// awaitWaiting returns when so many sends wait for space.
func awaitWaiting(t *testing.T, p *Producer, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.waiting) == n
	}, 30*time.Second, time.Millisecond)
}

// As many of those that wait for space go on as it suffices for, also while others wait
// behind them.
func TestSendsThatWaitFillTheSpaceThatIsFreed(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	const space, rounds = 3, 4
	p := newTestProducer(t, connect(t, b), "d", MaxBufferedRecords(space), BatchBytes(1))
	held := b.holdProduce(space * rounds)
	ctx := testContext(t)
	results := make(chan error, space*rounds)
	for range space * rounds {
		go func() {
			_, err := p.Send(ctx, &Record{Value: []byte("1234")})
			results <- err
		}()
	}
	awaitWaiting(t, p, space*(rounds-1))
	for range rounds {
		var full []*fakeRequest
		for range space {
			select {
			case q := <-held:
				full = append(full, q)
			case <-time.After(20 * time.Second):
				t.Fatalf("%d of %d records are on their way, and others wait for space", len(full), space)
			}
		}
		require.Empty(t, held, "the limit is kept")
		for _, q := range full {
			q.handle()
		}
	}
	for range space * rounds {
		require.NoError(t, <-results)
	}
}

// endedUnseen is a context that ends between the call and the look.
type endedUnseen struct {
	context.Context
	ended atomic.Bool
}

func (c *endedUnseen) Err() error {
	if c.ended.Load() {
		return context.Canceled
	}
	return c.Context.Err()
}

// A send that is called because there is space, and gives up all the same, leaves it to
// the next one.
func TestASendThatGivesUpLeavesItsSpaceToTheNext(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	p := newTestProducer(t, connect(t, b), "d", MaxBufferedRecords(1))
	held := make(chan *fakeRequest, 1)
	b.setScript(produceScript(func(n int, q *fakeRequest) bool {
		if n == 1 {
			held <- q
		}
		return n == 1
	}))
	ctx := testContext(t)
	first, err := p.SendAsync(ctx, &Record{Value: []byte("1")})
	require.NoError(t, err)
	short := &endedUnseen{Context: ctx}
	gaveUp, stored := make(chan error, 1), make(chan error, 1)
	send := func(ctx context.Context, result chan error) {
		_, err := p.Send(ctx, &Record{Value: []byte("2")})
		result <- err
	}
	go send(short, gaveUp)
	awaitWaiting(t, p, 1)
	go send(ctx, stored)
	awaitWaiting(t, p, 2)
	short.ended.Store(true)
	(<-held).handle()
	_, err = first.Wait(ctx)
	require.NoError(t, err)
	require.ErrorIs(t, <-gaveUp, context.Canceled)
	select {
	case err := <-stored:
		require.NoError(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("the buffer is empty, and a send waits for space")
	}
}

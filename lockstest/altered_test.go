package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// A mode that changes while the group is at work: R-UM-5.

// handling is one handler's work on a record: began and ended are places in the order of all
// that begins and ends.
type handling struct {
	epoch, offset uint64
	scope         int // of its key
	began, ended  int
}

// altering is a group at work whose settings change.
type altering struct {
	mu       sync.Mutex
	clock    int
	all      []*handling
	attached int
	values   map[string]int
}

func (a *altering) handle(_ context.Context, d *client.Delivery) error {
	var i, key int
	if _, err := fmt.Sscanf(string(d.Value), "key%d %d", &key, &i); err != nil {
		return err
	}
	a.mu.Lock()
	h := &handling{epoch: d.Epoch(), offset: d.Offset, scope: key, began: a.clock}
	a.clock++
	a.all = append(a.all, h)
	a.mu.Unlock()
	time.Sleep(300 * time.Microsecond) // work, for others to begin meanwhile
	a.mu.Lock()
	defer a.mu.Unlock()
	h.ended = a.clock
	a.clock++
	a.values[string(d.Value)]++
	return nil
}

// after waits until so many have begun from a place in the order on, and returns the place
// behind them.
func (a *altering) after(t *testing.T, place, n int) (next int) {
	t.Helper()
	awaitThat(t, fmt.Sprintf("%d records are begun behind place %d", n, place), func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		next = a.clock
		begun := 0
		for i := len(a.all) - 1; i >= 0 && a.all[i].began >= place; i-- {
			begun++
		}
		return begun >= n
	})
	return next
}

func (a *altering) joined() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.attached
}

// overlaps counts the handlings that began while an earlier one of their scope was at work, or
// that lie before one which came earlier.
func overlaps(list []*handling, scope func(*handling) int) (n int) {
	last := map[int]*handling{}
	for _, h := range list {
		if before := last[scope(h)]; before != nil && (before.ended == 0 || before.ended > h.began || before.offset > h.offset) {
			n++
		}
		last[scope(h)] = h
	}
	return n
}

// altered takes a group with a backlog, and at work, through modes: each change has an epoch from
// which on the new rules hold, and before anything begins under it all that began under an earlier
// one has ended.
func (s *stage) altered(t *testing.T) {
	const members, keys, some = 3, 5, 120
	queue := s.queue(t, 1)
	modes := []struct {
		settings client.GroupSettings
		scope    func(*handling) int // nil: no order
	}{
		{client.GroupSettings{Mode: client.Shared}, nil},
		{client.GroupSettings{Mode: client.Serial}, func(h *handling) int { return h.scope }},
		{anyOne, func(*handling) int { return 0 }},
		{client.GroupSettings{Mode: client.Shared}, nil},
	}
	s.group(t, queue, modes[0].settings)
	sent := 0
	send := func(n int) {
		var items []string
		for i := range n {
			items = append(items, fmt.Sprintf("key%d %d", (sent+i)%keys, sent+i))
		}
		s.send(t, queue, items...)
		sent += n
	}
	send(*requirementRecords)

	a := &altering{values: map[string]int{}}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range members {
		c := s.join(t, queue, client.Prefetch(20), client.OnEvent(func(e client.Event) {
			if _, ok := e.(client.Attached); ok {
				a.mu.Lock()
				a.attached++
				a.mu.Unlock()
			}
		}))
		running.Go(func() {
			if err := c.Run(ctx, a.handle, client.Workers(4)); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			leave(t, c)
		})
	}
	awaitThat(t, "all consumers are there", func() bool { return a.joined() == members })
	// before is the place at which a mode was ordered, and since the place from which on everybody
	// has heard of it.
	var before, since []int
	place := 0
	for k, mode := range modes {
		if k > 0 {
			joined := a.joined()
			before = append(before, place)
			_, err := s.conn.AlterGroup(t.Context(), queue, "g", client.GroupIntent{Settings: mode.settings})
			require.NoError(t, err)
			awaitThat(t, "all consumers have heard of it", func() bool { return a.joined() >= joined+members })
		}
		place = a.after(t, 0, 0)
		since = append(since, place)
		send(2 * some) // there is something to do for each mode, however fast the one before was
		place = a.after(t, place, some)
	}
	awaitThat(t, "all records are handled", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.values) == sent
	})
	awaitThat(t, "and all are acknowledged", func() bool { return s.state(t, queue, 0).Floor == uint64(sent) })
	stop()
	running.Wait()

	begin := uint64(0)
	for k, mode := range modes {
		until := len(a.all)
		if k < len(before) { // what had begun when the next one was ordered
			until = slices.IndexFunc(a.all, func(h *handling) bool { return h.began >= before[k] })
		}
		if k == 0 {
			require.Positive(t, overlaps(a.all[:until], modes[1].scope), "mode %d", k)
			continue
		}
		// The boundary lies above what had begun before the order, and not above what began when all
		// had heard of it.
		asked := slices.IndexFunc(a.all, func(h *handling) bool { return h.began >= before[k-1] })
		heard := slices.IndexFunc(a.all, func(h *handling) bool { return h.began >= since[k] })
		boundary, found := uint64(0), false
		for _, h := range a.all[asked : heard+1] {
			if boundary = h.epoch; boundary > begin && drained(a.all, boundary) && ordered(a.all[:until], boundary, mode.scope) {
				found = true
				break
			}
		}
		require.True(t, found, "mode %d has a boundary", k)
		begin = boundary
		if mode.scope == nil {
			require.Positive(t, overlaps(a.all[heard:until], modes[1].scope), "mode %d", k)
		}
	}
	t.Logf("%d records, of which %d began again", sent, len(a.all)-sent)
}

// drained reports whether all that began under an epoch below the boundary had ended when the first
// began that did not.
func drained(all []*handling, boundary uint64) bool {
	first := slices.IndexFunc(all, func(h *handling) bool { return h.epoch >= boundary })
	return !slices.ContainsFunc(all, func(h *handling) bool { return h.epoch < boundary && h.ended > all[first].began })
}

// ordered reports whether what began at or above the boundary keeps the order of its scopes.
func ordered(all []*handling, boundary uint64, scope func(*handling) int) bool {
	if scope == nil {
		return true
	}
	var behind []*handling
	for _, h := range all {
		if h.epoch >= boundary {
			behind = append(behind, h)
		}
	}
	return overlaps(behind, scope) == 0
}

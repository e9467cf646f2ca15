package fuzz

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// operation is one thing that a client did to a partition, and what it heard: a record
// was appended at an offset, or a reader found the end there.
type operation struct {
	client int
	append bool
	value  uint64 // of a record that was appended
	at     uint64 // its offset, or the end that was found
	known  bool   // whether at is; who appends may hear nothing
	call   int64  // ns since the history began
	ret    int64
}

// tailFrom is the model that porcupine searches an order for: a log of which only the end
// counts. Who appends at an offset must have found the end there.
func tailFrom(begin uint64) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return begin },
		Step: func(state, input, output any) (bool, any) {
			end, op := state.(uint64), input.(operation)
			if op.append {
				return op.at == end, end + 1
			}
			return op.at == end, end
		},
		DescribeOperation: func(input, _ any) string {
			op := input.(operation)
			if op.append {
				return fmt.Sprintf("append %d at %d", op.value, op.at)
			}
			return fmt.Sprintf("end at %d", op.at)
		},
	}
}

// stretch is how many offsets porcupine looks at together: what it takes grows with the square.
const stretch = 10_000

// order reports whether operations have one. In any that they have, those at lower offsets go
// first: so each stretch of offsets needs one by itself, and nothing of a later one may have ended before
// something of an earlier one began.
func order(history []operation, stretch uint64) porcupine.CheckResult {
	slices.SortStableFunc(history, func(a, b operation) int { return cmp.Compare(a.at, b.at) })
	began := int64(math.MinInt64) // the last one of earlier stretches
	for len(history) > 0 {
		begin := history[0].at - history[0].at%stretch
		n, _ := slices.BinarySearchFunc(history, begin+stretch, func(op operation, at uint64) int { return cmp.Compare(op.at, at) })
		var now []porcupine.Operation
		last := began
		for _, op := range history[:n] {
			if op.ret < began {
				return porcupine.Illegal
			}
			last = max(last, op.call)
			now = append(now, porcupine.Operation{Input: op, Call: op.call, Return: op.ret})
		}
		if result := porcupine.CheckOperationsTimeout(tailFrom(begin), now, time.Minute); result != porcupine.Ok {
			return result
		}
		history, began = history[n:], last
	}
	return porcupine.Ok
}

// clientHistory is what clients did to one partition that nobody else writes to.
type clientHistory struct {
	destination string
	began       time.Time

	mu         sync.Mutex
	operations []operation
	values     uint64
	read       map[uint64]uint64 // value by offset, of all that readers saw
	changed    error             // two readers saw different ones
}

func newClientHistory(destination string) *clientHistory {
	return &clientHistory{destination: destination, began: time.Now(), read: map[uint64]uint64{}}
}

func (h *clientHistory) now() int64 { return int64(time.Since(h.began)) }

func (h *clientHistory) add(op operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, op)
}

// write appends one record and notes what came of it.
func (h *clientHistory) write(ctx context.Context, id int, p *client.Producer) error {
	h.mu.Lock()
	h.values++
	op := operation{client: id, append: true, value: h.values, call: h.now(), ret: math.MaxInt64}
	h.mu.Unlock()
	r, err := p.Send(ctx, &client.Record{Value: binary.LittleEndian.AppendUint64(nil, op.value)})
	if err == nil {
		op.at, op.known, op.ret = r.Offset, true, h.now()
	}
	h.add(op)
	return err
}

// readEnd reads from an offset to the end and notes where that is. A read that fails
// says nothing, and is not noted.
func (h *clientHistory) readEnd(ctx context.Context, id int, conn *client.Conn, from uint64) (next uint64, err error) {
	op := operation{client: id, call: h.now(), known: true}
	reader, err := conn.Reader(ctx, h.destination, client.Partitions(0), client.FromOffset(from), client.StopAtEnd())
	if err != nil {
		return from, err
	}
	defer reader.Close()
	next = from
	for {
		r, err := reader.Next(ctx)
		if errors.Is(err, io.EOF) {
			op.at, op.ret = next, h.now()
			h.add(op)
			return next, nil
		}
		if err != nil {
			return from, err
		}
		h.saw(r.Offset, binary.LittleEndian.Uint64(r.Value))
		next = r.Offset + 1
	}
}

// saw notes a record that was read.
func (h *clientHistory) saw(offset, value uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if before, ok := h.read[offset]; ok && before != value {
		h.changed = errors.Join(h.changed, fmt.Errorf("offset %d held %d, and holds %d", offset, before, value))
	}
	h.read[offset] = value
}

// check reads everything once more and requires that all of it happened in one order
// that the times of calls and answers allow (RELIABILITY F14).
func (h *clientHistory) check(t testing.TB, conn *client.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	end, err := h.readEnd(ctx, math.MaxInt, conn, 0)
	require.NoError(t, err)
	appends, reads := h.judge(t, end, stretch)
	t.Logf("%d appends and %d reads of %s have one order", appends, reads, h.destination)
}

// judge is check, with the end of the log as it is known to be in the end, in stretches of so many offsets.
func (h *clientHistory) judge(t testing.TB, end, stretch uint64) (appends, reads int) {
	t.Helper()
	require.NoError(t, h.changed)
	require.EqualValues(t, end, len(h.read), "offsets without a gap")
	places := map[uint64]uint64{}
	for offset, value := range h.read {
		if at, twice := places[value]; twice { // NotContains looks through the whole map
			require.FailNow(t, "a record is there twice", "at %d and %d", at, offset)
		}
		places[value] = offset
	}
	var history []operation
	for _, op := range h.operations {
		at, there := places[op.value]
		switch {
		case !op.append:
		case op.known:
			require.True(t, there, "record %d is acknowledged at offset %d and not there", op.value, op.at)
			require.Equal(t, at, op.at, "record %d", op.value)
			appends++
		case !there:
			continue // nobody was told that it is
		default:
			op.at = at
			appends++
		}
		history = append(history, op)
	}
	result := order(history, stretch)
	require.NotEqual(t, porcupine.Unknown, result, "%d operations take too long to check", len(history))
	require.Equal(t, porcupine.Ok, result, "%d operations have no order that a single log would allow", len(history))
	return appends, len(history) - appends
}

// TestF14_TheCheckOfHistories shows by hand what is an order and what is not.
func TestF14_TheCheckOfHistories(t *testing.T) {
	first := operation{append: true, value: 1, at: 0, known: true, call: 10, ret: 20}
	second := operation{append: true, value: 2, at: 1, known: true, call: 30, ret: 40}
	unanswered := operation{append: true, value: 2, call: 30, ret: math.MaxInt64}
	end := func(at uint64, call, ret int64) operation {
		return operation{at: at, known: true, call: call, ret: ret}
	}
	for name, c := range map[string]struct {
		read  map[uint64]uint64
		ops   []operation
		legal bool
	}{
		"reads between appends":                {map[uint64]uint64{0: 1, 1: 2}, []operation{first, end(1, 21, 25), second, end(2, 50, 60)}, true},
		"a read beside an append sees either":  {map[uint64]uint64{0: 1, 1: 2}, []operation{first, end(1, 35, 38), second}, true},
		"a read that is stale":                 {map[uint64]uint64{0: 1, 1: 2}, []operation{first, second, end(1, 50, 60)}, false},
		"a read of what is not yet written":    {map[uint64]uint64{0: 1, 1: 2}, []operation{first, end(2, 21, 25), second}, false},
		"a read that goes back":                {map[uint64]uint64{0: 1, 1: 2}, []operation{first, unanswered, end(2, 50, 60), end(1, 70, 80)}, false},
		"an append without answer that is in":  {map[uint64]uint64{0: 1, 1: 2}, []operation{first, unanswered, end(1, 50, 60), end(2, 70, 80)}, true},
		"an append without answer that is not": {map[uint64]uint64{0: 1}, []operation{first, unanswered, end(1, 50, 60)}, true},
		"an append that is lost":               {map[uint64]uint64{0: 1}, []operation{first, second, end(1, 50, 60)}, false},
		"appends against the order of time":    {map[uint64]uint64{0: 2, 1: 1}, []operation{{append: true, value: 1, at: 1, known: true, call: 10, ret: 20}, {append: true, value: 2, at: 0, known: true, call: 30, ret: 40}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, stretch := range []uint64{1, 2, stretch} {
				h := &clientHistory{operations: c.ops, read: c.read}
				failed := fails(t, func(t testing.TB) { h.judge(t, uint64(len(c.read)), stretch) })
				require.Equal(t, c.legal, !failed, "in stretches of %d", stretch)
			}
		})
	}
}

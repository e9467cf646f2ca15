package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// BrowseState says how an unfinished record of a group stands.
type BrowseState = wire.BrowseState

// browseGap is how many finished records are read over rather than skipped.
const browseGap = 4096

// BrowseOptions say what Browse looks at. The zero value is everything.
type BrowseOptions struct {
	// Group is whose unfinished records are wanted. Empty: those of a queue's only group, or
	// everything that is there.
	Group string
	// Partitions are looked at one after the other. Empty: all.
	Partitions []uint32
	// From is the lowest offset, in each partition.
	From uint64
	// Limit is how many records are wanted. 0: no limit.
	Limit int
}

// BrowsedRecord is a record that was looked at, and how it stood then.
type BrowsedRecord struct {
	Record
	// Group is whose record it is; if it is empty, what follows is not known.
	Group      string
	State      BrowseState
	Holder     string // the consumer that has it
	Deliveries int
	Attempts   int
	Reason     string // why it is parked
}

// Browse looks at records and leaves them where they are: nobody's place moves, and nothing
// is leased. Of a group it yields the records that the group is not done with, and how they
// stand; else what is there now. While others consume it is a look at each record at some
// time, not at one and the same. A record that is yielded belongs to the caller. An error is
// yielded once and ends the loop. Two come behind all records that can be read: a *CorruptError,
// the first, if some cannot; else wire.CodeUnavailable, which names the partitions of which no
// leader has answered within 2 s. It is wire.CodeUnavailable too if nothing was heard for 30 s.
func (c *Conn) Browse(ctx context.Context, destination string, o BrowseOptions) iter.Seq2[*BrowsedRecord, error] {
	return func(yield func(*BrowsedRecord, error) bool) {
		listening, silent := context.WithCancelCause(ctx)
		defer silent(nil)
		late := time.AfterFunc(redriveSilence, func() { silent(nothingOf(destination)) })
		defer late.Stop()
		b := browsing{conn: c, destination: destination, options: o, yield: func(r *BrowsedRecord, err error) bool {
			late.Stop()
			defer late.Reset(redriveSilence)
			return yield(r, err)
		}}
		err := b.run(listening)
		if err == nil || errors.Is(err, errBrowsed) {
			return
		}
		if ctx.Err() == nil && listening.Err() != nil {
			err = context.Cause(listening)
		}
		yield(nil, fmt.Errorf("browse %q: %w", destination, err))
	}
}

// errBrowsed says that nothing more is wanted.
var errBrowsed = errors.New("browsed enough")

type browsing struct {
	conn        *Conn
	destination string
	options     BrowseOptions
	yield       func(*BrowsedRecord, error) bool
	yielded     int
	damage      error // the first that was met
}

func (b *browsing) run(ctx context.Context) error {
	d, err := b.conn.Destination(ctx, b.destination)
	if err != nil {
		return err
	}
	b.destination = d.Name // an alias may stand for something else in between
	if b.options.Group == "" && d.Kind == Queue {
		groups, err := b.conn.Groups(ctx, b.destination)
		switch {
		case err != nil:
			return err
		case len(groups) == 1:
			b.options.Group = groups[0].Name
		case len(groups) > 1:
			names := make([]string, len(groups))
			for i := range groups {
				names[i] = groups[i].Name
			}
			return wire.Errorf(wire.CodeInvalidRequest, "the queue has several groups, each with its own place: name one of %s", strings.Join(names, ", "))
		}
	}
	for _, n := range b.options.Partitions {
		if !slices.ContainsFunc(d.Partitions, func(p PartitionInfo) bool { return p.Number == n }) {
			return fmt.Errorf("%w: %d", ErrUnknownPartition, n)
		}
	}
	if len(b.options.Partitions) > 0 {
		d.Partitions = slices.DeleteFunc(d.Partitions, func(p PartitionInfo) bool { return !slices.Contains(b.options.Partitions, p.Number) })
	}
	silent := b.conn.silent(ctx, d)
	for _, p := range d.Partitions {
		if slices.Contains(silent, p.Number) {
			continue
		}
		if b.options.Group != "" {
			err = b.group(ctx, p.Number)
		} else {
			start := FromOffset(b.options.From)
			if b.options.From <= p.StartOffset {
				start = FromEarliest()
			}
			err = b.read(ctx, p.Number, start, math.MaxUint64, nil)
		}
		if err != nil {
			return err
		}
	}
	return cmp.Or(b.damage, silence(b.destination, silent))
}

// browsePatience is how long a partition without a leader is asked before the others are looked
// at without it, and maxSilent how many of those the error names.
const browsePatience, maxSilent = 2 * time.Second, 20

// silent are the partitions of d of which no leader answers within browsePatience.
func (c *Conn) silent(ctx context.Context, d Destination) (numbers []uint32) {
	all := make([]uint32, len(d.Partitions))
	for i, p := range d.Partitions {
		all[i] = p.Number
	}
	for i, err := range c.GroupOrders(ctx, browsePatience, wire.OrderLetters, d.Name, all, redriveGroup, wire.LettersRequest{Removed: true}, func(int) any { return nil }) {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			numbers = append(numbers, all[i])
		}
	}
	return numbers
}

// silence is the error that names partitions which are silent, nil if there are none.
func silence(destination string, silent []uint32) error {
	if len(silent) == 0 {
		return nil
	}
	var names []string
	for _, n := range silent[:min(len(silent), maxSilent)] {
		names = append(names, fmt.Sprintf("%s/%d", destination, n))
	}
	if more := len(silent) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return wire.Errorf(wire.CodeUnavailable, "no leader of %s has answered within %v: what is there is not known", strings.Join(names, ", "), browsePatience)
}

// group goes through what a group is not done with in a partition.
func (b *browsing) group(ctx context.Context, partition uint32) error {
	for from := b.options.From; ; {
		var page wire.BrowseResponse
		limit := uint32(wire.MaxBrowse)
		if b.options.Limit > 0 {
			limit = uint32(min(b.options.Limit-b.yielded, wire.MaxBrowse))
		}
		err := b.conn.GroupOrder(ctx, wire.OrderUnfinished, b.destination, partition, b.options.Group, wire.BrowseRequest{From: from, Limit: limit}, &page)
		if err != nil {
			return err
		}
		for runs := page.Runs; len(runs) > 0; {
			n := 1
			for n < len(runs) && runs[n].Offset-(runs[n-1].Offset+uint64(runs[n-1].Count)) <= browseGap {
				n++
			}
			last := &runs[n-1]
			if err := b.read(ctx, partition, FromOffset(runs[0].Offset), last.Offset+uint64(last.Count), runs[:n]); err != nil {
				return err
			}
			runs = runs[n:]
		}
		if from = page.Next; from >= page.End {
			return nil
		}
	}
}

// read yields the records of a partition below an offset, with runs only those in them. Those
// that went away after they were listed are finished; it goes on behind them, as behind those
// that are damaged.
func (b *browsing) read(ctx context.Context, partition uint32, start ReaderOption, to uint64, runs []wire.BrowseRun) error {
	for {
		err := b.records(ctx, partition, start, to, runs)
		var gone *OutOfRangeError
		var damage *CorruptError
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &damage) && damage.Next > damage.Offset:
			if b.damage = cmp.Or(b.damage, err); damage.Next >= to {
				return nil
			}
			start = FromOffset(damage.Next)
			continue
		case !errors.As(err, &gone):
			return err
		case gone.Next <= gone.Offset || gone.Next >= to:
			return nil
		}
		start = FromOffset(gone.Next)
	}
}

// records is read until some that lie ahead have gone away: then it returns an OutOfRangeError.
func (b *browsing) records(ctx context.Context, partition uint32, start ReaderOption, to uint64, runs []wire.BrowseRun) error {
	r, err := b.conn.Reader(ctx, b.destination, Partitions(partition), start, StopAtEnd())
	if err != nil {
		return err
	}
	defer r.Close()
	for record, err := range r.Records(ctx) {
		if err != nil {
			return err
		}
		for len(runs) > 0 && runs[0].Offset+uint64(runs[0].Count) <= record.Offset {
			runs = runs[1:]
		}
		switch {
		case record.Offset >= to:
			return nil
		case b.options.Group != "" && (len(runs) == 0 || record.Offset < runs[0].Offset):
			continue
		}
		found := &BrowsedRecord{Record: *record.Clone(), Group: b.options.Group}
		if len(runs) > 0 {
			x := &runs[0]
			found.State, found.Holder, found.Reason = x.State, x.Holder, x.Reason
			found.Deliveries, found.Attempts = int(x.Deliveries), int(x.Attempts)
			if len(x.Substitute) > 0 {
				if found.Value, err = substituted(x.Substitute); err != nil {
					return err
				}
			}
		}
		b.yielded++
		if !b.yield(found, nil) || b.options.Limit > 0 && b.yielded >= b.options.Limit {
			return errBrowsed
		}
		if record.Offset+1 >= to {
			return nil
		}
	}
	return nil
}

// substituted is the value of a repaired record, from the body batch that is delivered.
func substituted(body []byte) ([]byte, error) {
	b, _, err := wire.NextBodyBatch(body)
	if err != nil {
		return nil, err
	}
	info, err := wire.ParseBatch(b.Batch)
	if err != nil {
		return nil, err
	}
	batch := batchOf{info: info}
	if err := batch.open(b); err != nil {
		return nil, err
	}
	var view wire.Record
	if !batch.reader.Next(&view) {
		return nil, fmt.Errorf("%w: a repaired record without a record", ErrProtocol)
	}
	return slices.Clone(view.Value), nil
}

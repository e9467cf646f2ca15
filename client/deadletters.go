package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// redriveGroup is the group that remembers which dead letters of a destination are dealt
// with, where nobody consumes them otherwise.
const redriveGroup = "dlq"

// RedrivenHeader is the key of a header of records that Redrive has sent back: the dead
// letter it was, as destination/partition@offset.
const RedrivenHeader = "lockstep-redriven"

// maxRedrive bounds the letters that Redrive has on their way: as many may be sent twice if
// it ends between sending them and noting that.
const maxRedrive = 100

// redrivePatience is how long a Redrive whose ctx has ended may take to see what it has sent
// stored, and to note that.
const redrivePatience = 10 * time.Second

// Letter is a dead letter: a record that failed too often or was rejected. Record is the letter, as it
// is stored where dead letters go.
type Letter struct {
	Record
	Origin          string // destination
	OriginPartition uint32
	OriginOffset    uint64
	Group           string // that gave it up
	Reason          string // "delivery limit" or "rejected"
	Text            string // what the consumer said
	Deliveries      int
	Attempts        int

	headers int // of the original record
}

// ParseLetter reads where a record comes from out of its headers. It is false for one
// that is no dead letter. What it returns shares the memory of r.
func ParseLetter(r *Record) (*Letter, bool) {
	l := &Letter{Record: *r, headers: -1}
	for i, h := range r.Headers {
		name, is := strings.CutPrefix(h.Key, wire.LetterHeader)
		if !is {
			continue
		}
		value := string(h.Value)
		var err error
		switch name {
		case "origin": // the last one counts: a letter may have been one before
			l.headers = i
			at := strings.LastIndexByte(value, '/')
			if at < 0 {
				return nil, false
			}
			var n uint64
			n, err = strconv.ParseUint(value[at+1:], 10, 32)
			l.Origin, l.OriginPartition = value[:at], uint32(n)
		case "offset":
			l.OriginOffset, err = strconv.ParseUint(value, 10, 64)
		case "group":
			l.Group = value
		case "reason":
			l.Reason = value
		case "text":
			l.Text = value
		case "deliveries":
			l.Deliveries, err = strconv.Atoi(value)
		case "attempts":
			l.Attempts, err = strconv.Atoi(value)
		}
		if err != nil {
			return nil, false
		}
	}
	return l, l.headers >= 0
}

// Original is the record as it was before it became a letter.
func (l *Letter) Original() *Record {
	return &Record{Key: l.Key, Value: l.Value, Headers: l.Headers[:l.headers:l.headers], Timestamp: l.Timestamp, Attributes: l.Attributes}
}

// LetterFilter says which dead letters are meant. The zero value means all.
type LetterFilter struct {
	Origin    string  // destination that they come from
	Group     string  // of it, that gave them up
	Key       *[]byte // of the record
	Partition *uint32 // of the dead letter destination
	Offset    *uint64 // of the letter there
	Limit     int     // the first so many; 0: all
}

func (f *LetterFilter) wants(l *Letter) bool {
	return (f.Origin == "" || f.Origin == l.Origin) && (f.Group == "" || f.Group == l.Group) && (f.Key == nil || l.Key != nil && string(*f.Key) == string(l.Key)) && (f.Offset == nil || *f.Offset == l.Offset)
}

// DeadLetters yields the dead letters that a destination holds and that nobody has dealt
// with, by partition and offset, and leaves them there. Records that are no letters are
// passed over. An error is yielded once and ends the loop.
func (c *Conn) DeadLetters(ctx context.Context, destination string, f LetterFilter) iter.Seq2[*Letter, error] {
	return func(yield func(*Letter, error) bool) {
		groups, err := c.Groups(ctx, destination)
		if err != nil {
			yield(nil, err)
			return
		}
		var o BrowseOptions
		for _, g := range groups {
			if o.Group == "" || g.Name == redriveGroup {
				o.Group = g.Name
			}
		}
		if f.Partition != nil {
			o.Partitions = []uint32{*f.Partition}
		}
		n := 0
		for r, err := range c.Browse(ctx, destination, o) {
			if err != nil {
				yield(nil, err)
				return
			}
			l, is := ParseLetter(&r.Record)
			if !is || !f.wants(l) {
				continue
			}
			if !yield(l, nil) {
				return
			}
			if n++; n == f.Limit {
				return
			}
		}
	}
}

// LetterError says why one dead letter cannot go back to where it comes from, which is
// gone: it stays where it is.
type LetterError struct {
	Letter *Letter
	Err    error // wire.CodeUnknownDestination, wire.CodeDestinationGone or ErrUnknownPartition
}

func (e *LetterError) Error() string {
	l := e.Letter
	return fmt.Sprintf("%d@%d cannot go back to %s/%d: %v", l.Partition, l.Offset, l.Origin, l.OriginPartition, e.Err)
}

func (e *LetterError) Unwrap() error { return e.Err }

// originGone reports whether an error says that there is no such origin any more.
func originGone(err error) bool {
	switch codeOf(err) {
	case wire.CodeUnknownDestination, wire.CodeDestinationGone, wire.CodeUnknownPartition:
		return true
	}
	return errors.Is(err, ErrUnknownPartition)
}

// origin is where letters come from.
type origin struct {
	name      string
	partition uint32
}

// stranded are the letters of one call that cannot go back.
type stranded struct {
	first *LetterError
	count int
}

func (s *stranded) add(l *Letter, err error) *LetterError {
	e := &LetterError{l, err}
	if s.count++; s.first == nil {
		s.first = e
	}
	return e
}

func (s *stranded) err() error {
	if s.first == nil {
		return nil
	}
	return fmt.Errorf("letters that stay, because their origin is gone: %d; create it again, or purge them: %w", s.count, s.first)
}

// RedriveDryRun is Redrive without doing anything. It returns how many letters would go
// back.
func (c *Conn) RedriveDryRun(ctx context.Context, destination string, f LetterFilter, each func(*Letter, error)) (n int, err error) {
	var stay stranded
	missing := make(map[origin]error)
	for l, err := range c.DeadLetters(ctx, destination, f) {
		if err != nil {
			return n, err
		}
		from := origin{l.Origin, l.OriginPartition}
		cause, known := missing[from]
		if !known {
			d, err := c.Destination(ctx, l.Origin)
			switch there := func(p PartitionInfo) bool { return p.Number == l.OriginPartition }; {
			case err == nil && !slices.ContainsFunc(d.Partitions, there):
				cause = ErrUnknownPartition
			case err != nil && !originGone(err):
				return n, err
			default:
				cause = err
			}
			missing[from] = cause
		}
		if cause != nil {
			each(l, stay.add(l, cause))
			continue
		}
		n++
		each(l, nil)
	}
	return n, stay.err()
}

// Redrive sends dead letters back to where they come from, those of a partition in order,
// and then takes them off: each is produced, and when that is acknowledged all groups of the
// dead letter destination are done with it. What it sends has the key, value, headers and
// time of the original record, and a RedrivenHeader; every group of the origin gets it. When
// ctx ends, what is on its way is finished, for up to 10 s. If its process or its connection
// ends in between, up to 100 letters are sent again by the next one. A letter whose
// origin is gone stays, and the others go on. each is called for every letter, with nil
// for one that is on its way back and a *LetterError for one that stays. It returns how many
// are back. Errors: a *LetterError, the first, if letters stay.
func (c *Conn) Redrive(ctx context.Context, destination string, f LetterFilter, each func(*Letter, error)) (done int, err error) {
	groups, err := c.letterGroups(ctx, destination, false)
	if err != nil {
		return 0, err
	}
	if each == nil {
		each = func(*Letter, error) {}
	}
	var stay stranded
	producers := make(map[origin]*Producer)
	gone := make(map[origin]error)
	defer func() {
		ctx, cancel := outlasting(ctx, redrivePatience)
		defer cancel()
		for _, p := range producers {
			if closing := p.Close(ctx); !originGone(closing) {
				err = errors.Join(err, closing)
			}
		}
	}()
	var sent []*Letter
	var tickets []*Ticket
	finish := func() error {
		// Also if ctx has ended: what is sent and not noted would be sent again.
		ctx, cancel := outlasting(ctx, redrivePatience)
		defer cancel()
		var failed error
		good := sent[:0]
		for i, t := range tickets {
			_, err := t.Wait(ctx)
			switch {
			case err == nil:
				good = append(good, sent[i])
			case originGone(err): // since its producer was opened
				each(sent[i], stay.add(sent[i], err))
			default:
				failed = errors.Join(failed, err)
			}
		}
		var settled error
		if len(good) > 0 {
			if groups, settled = c.letterGroups(ctx, destination, true); settled == nil {
				settled = c.settle(ctx, destination, groups, good)
			}
		}
		if settled == nil {
			done += len(good)
		}
		sent, tickets = nil, nil
		return errors.Join(failed, settled)
	}
	for l, err := range c.DeadLetters(ctx, destination, f) {
		if err != nil {
			err = errors.Join(err, finish())
			return done, err
		}
		to := origin{l.Origin, l.OriginPartition}
		if producers[to] == nil && gone[to] == nil {
			p, err := c.Producer(ctx, l.Origin, Partition(l.OriginPartition))
			switch {
			case err == nil:
				producers[to] = p
			case originGone(err):
				gone[to] = err
			default:
				err = errors.Join(fmt.Errorf("redrive %s/%d@%d: %w", destination, l.Partition, l.Offset, err), finish())
				return done, err
			}
		}
		if err := gone[to]; err != nil {
			each(l, stay.add(l, err))
			continue
		}
		r := l.Original()
		r.Headers = append(r.Headers, Header{Key: RedrivenHeader, Value: fmt.Appendf(nil, "%s/%d@%d", destination, l.Partition, l.Offset)})
		t, err := producers[to].SendAsync(ctx, r)
		switch {
		case originGone(err):
			gone[to] = err
			each(l, stay.add(l, err))
			continue
		case err != nil:
			err = errors.Join(err, finish())
			return done, err
		}
		each(l, nil)
		sent, tickets = append(sent, l), append(tickets, t)
		if len(sent) == maxRedrive {
			if err := finish(); err != nil {
				return done, err
			}
		}
	}
	if err := finish(); err != nil {
		return done, err
	}
	return done, errors.Join(stay.err(), c.dropRedriveGroup(ctx, destination, groups))
}

// outlasting is a context that ends so long after ctx has, or when it is cancelled.
func outlasting(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		late := time.AfterFunc(patience, cancel)
		context.AfterFunc(longer, func() { late.Stop() })
	})
	return longer, func() { stop(); cancel() }
}

// Purge gives up the dead letters of a queue that are meant and there now: its groups are done
// with them. Records that are no letters stay. It returns how many letters are gone.
func (c *Conn) Purge(ctx context.Context, destination string, f LetterFilter) (done int, err error) {
	d, err := c.Destination(ctx, destination)
	if err != nil {
		return 0, err
	}
	if d.Kind != Queue {
		return 0, wire.Errorf(wire.CodeKindMismatch, "%q is a topic, which keeps records by its retention", destination)
	}
	var groups []string
	var some []*Letter
	settle := func() error {
		if len(some) == 0 {
			return nil
		}
		if groups == nil {
			if groups, err = c.letterGroups(ctx, destination, true); err != nil {
				return err
			}
		}
		if err := c.settle(ctx, destination, groups, some); err != nil {
			return err
		}
		done += len(some)
		some = some[:0]
		return nil
	}
	for l, err := range c.DeadLetters(ctx, destination, f) {
		if err != nil {
			return done, errors.Join(err, settle())
		}
		some = append(some, &Letter{Record: Record{Partition: l.Partition, Offset: l.Offset}})
		if len(some) == wire.MaxSettle {
			if err := settle(); err != nil {
				return done, err
			}
		}
	}
	if err := settle(); err != nil || groups == nil {
		return done, err
	}
	return done, c.dropRedriveGroup(ctx, destination, groups)
}

// letterGroups lists the groups of a dead letter destination. If there is none, and create
// says so, it makes one.
func (c *Conn) letterGroups(ctx context.Context, destination string, create bool) ([]string, error) {
	list, err := c.Groups(ctx, destination)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, g := range list {
		names = append(names, g.Name)
	}
	if len(names) == 0 && create {
		names = []string{redriveGroup}
		_, err = c.CreateGroup(ctx, destination, redriveGroup, GroupIntent{Exists: true, Start: GroupStart{To: "earliest"}})
	}
	return names, err
}

// dropRedriveGroup removes the group that was made if it is done with everything in a
// queue: later letters wait for whoever comes.
func (c *Conn) dropRedriveGroup(ctx context.Context, destination string, groups []string) error {
	if len(groups) != 1 || groups[0] != redriveGroup {
		return nil
	}
	d, err := c.Destination(ctx, destination)
	if err != nil || d.Kind != Queue {
		return err
	}
	info, err := c.DescribeGroup(ctx, destination, redriveGroup)
	for _, p := range info.Partitions {
		if err != nil || p.Problem != "" || p.Backlog > 0 {
			return err
		}
	}
	return c.RemoveGroup(ctx, destination, redriveGroup)
}

// settle has groups done with letters.
func (c *Conn) settle(ctx context.Context, destination string, groups []string, letters []*Letter) error {
	spans := make(map[uint32][]wire.OffsetSpan)
	for _, l := range letters {
		s := spans[l.Partition]
		if n := len(s); n > 0 && s[n-1].To == l.Offset {
			s[n-1].To++
			continue
		}
		spans[l.Partition] = append(s, wire.OffsetSpan{From: l.Offset, To: l.Offset + 1})
	}
	for partition, s := range spans {
		for _, g := range groups {
			if err := c.GroupOrder(ctx, wire.OrderSettle, destination, partition, g, wire.SettleRequest{Spans: s}, nil); err != nil {
				return fmt.Errorf("group %q could not note that letters of partition %d are dealt with; they may be there again: %w", g, partition, err)
			}
		}
	}
	return nil
}

package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

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
	Group     string  // that gave them up
	Key       *[]byte // of the record
	Partition *uint32 // of the dead letter destination
	Offset    *uint64 // of the letter there
	Limit     int     // the first so many; 0: all
}

func (f *LetterFilter) wants(l *Letter) bool {
	return (f.Group == "" || f.Group == l.Group) && (f.Key == nil || l.Key != nil && string(*f.Key) == string(l.Key)) && (f.Offset == nil || *f.Offset == l.Offset)
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

// Redrive sends dead letters back to where they come from, those of a partition in order,
// and then takes them off: each is produced, and when that is acknowledged all groups of the
// dead letter destination are done with it. What it sends has the key, value, headers and
// time of the original record, and a RedrivenHeader; every group of the origin gets it. If
// it ends in between, up to 100 letters are sent again by the next one. each is called for
// every letter that is on its way back. It returns how many are back.
func (c *Conn) Redrive(ctx context.Context, destination string, f LetterFilter, each func(*Letter)) (done int, err error) {
	groups, err := c.letterGroups(ctx, destination)
	if err != nil {
		return 0, err
	}
	type origin struct {
		name      string
		partition uint32
	}
	producers := make(map[origin]*Producer)
	defer func() {
		for _, p := range producers {
			err = errors.Join(err, p.Close(ctx))
		}
	}()
	var sent []*Letter
	var tickets []*Ticket
	finish := func() error {
		var failed error
		good := sent[:0]
		for i, t := range tickets {
			if _, err := t.Wait(ctx); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			good = append(good, sent[i])
		}
		settled := c.settle(ctx, destination, groups, good)
		if settled == nil {
			done += len(good)
		}
		sent, tickets = nil, nil
		return errors.Join(failed, settled)
	}
	for l, err := range c.DeadLetters(ctx, destination, f) {
		if err != nil {
			return done, errors.Join(err, finish())
		}
		to := origin{l.Origin, l.OriginPartition}
		if producers[to] == nil {
			if producers[to], err = c.Producer(ctx, l.Origin, Partition(l.OriginPartition)); err != nil {
				return done, errors.Join(fmt.Errorf("redrive %s/%d@%d: %w", destination, l.Partition, l.Offset, err), finish())
			}
		}
		r := l.Original()
		r.Headers = append(r.Headers, Header{Key: RedrivenHeader, Value: fmt.Appendf(nil, "%s/%d@%d", destination, l.Partition, l.Offset)})
		t, err := producers[to].SendAsync(ctx, r)
		if err != nil {
			return done, errors.Join(err, finish())
		}
		if each != nil {
			each(l)
		}
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
	return done, c.dropRedriveGroup(ctx, destination, groups)
}

// Purge gives up all dead letters of a queue that are there now: its groups are done with
// them.
func (c *Conn) Purge(ctx context.Context, destination string) error {
	d, err := c.Destination(ctx, destination)
	if err != nil {
		return err
	}
	if d.Kind != Queue {
		return wire.Errorf(wire.CodeKindMismatch, "%q is a topic, which keeps records by its retention", destination)
	}
	groups, err := c.letterGroups(ctx, destination)
	if err != nil {
		return err
	}
	for _, g := range groups {
		for _, p := range d.Partitions {
			if err := c.GroupOrder(ctx, wire.OrderSeek, destination, p.Number, g, wire.SeekRequest{To: "latest"}, nil); err != nil {
				return err
			}
		}
	}
	return c.dropRedriveGroup(ctx, destination, groups)
}

// letterGroups lists the groups of a dead letter destination, after it has made one if
// there is none.
func (c *Conn) letterGroups(ctx context.Context, destination string) ([]string, error) {
	list, err := c.Groups(ctx, destination)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, g := range list {
		names = append(names, g.Name)
	}
	if len(names) == 0 {
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
				return fmt.Errorf("they are back, and may come again, because group %q could not note it: %w", g, err)
			}
		}
	}
	return nil
}

package client

import (
	"cmp"
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
const RedrivenHeader = wire.RedrivenHeader

// maxRedrive bounds the letters that Redrive has on their way before it sends more.
const maxRedrive = 900

// redrivePatience is how long a Redrive whose ctx has ended waits for what it has sent, and
// redriveStill for letters that cannot arrive at the moment. redriveSilence bounds the wait for
// anything else.
const redrivePatience, redriveStill, redriveSilence = 10 * time.Second, 10 * time.Second, 30 * time.Second

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
// passed over. An error is yielded once and ends the loop, as those of Browse do.
func (c *Conn) DeadLetters(ctx context.Context, destination string, f LetterFilter) iter.Seq2[*Letter, error] {
	return func(yield func(*Letter, error) bool) {
		var groups []GroupInfo
		if err := within(ctx, destination, func(ctx context.Context) (err error) {
			groups, err = c.Groups(ctx, destination)
			return err
		}); err != nil {
			yield(nil, err)
			return
		}
		var o BrowseOptions
		if len(groups) > 0 {
			o.Group = letterGroup(groupNames(groups))
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
			if l, is := ParseLetter(&r.Record); is && f.wants(l) {
				if !yield(l, nil) {
					return
				}
				if n++; n == f.Limit {
					return
				}
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
	if each == nil {
		each = func(*Letter, error) {}
	}
	var stay stranded
	missing := make(map[origin]error)
	for l, err := range c.DeadLetters(ctx, destination, f) {
		if err != nil {
			return n, err
		}
		cause, err := c.originMissing(ctx, l, missing)
		if err != nil {
			return n, err
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

// originMissing is why a letter cannot go back, nil if it can. What is known of origins is kept.
func (c *Conn) originMissing(ctx context.Context, l *Letter, known map[origin]error) (cause, err error) {
	from := origin{l.Origin, l.OriginPartition}
	if cause, is := known[from]; is {
		return cause, nil
	}
	d, err := c.Destination(ctx, l.Origin)
	switch there := func(p PartitionInfo) bool { return p.Number == l.OriginPartition }; {
	case err == nil && !slices.ContainsFunc(d.Partitions, there):
		cause = ErrUnknownPartition
	case err != nil && !originGone(err):
		return nil, err
	default:
		cause = err
	}
	known[from] = cause
	return cause, nil
}

// Redrive sends dead letters back to where they come from, those of a partition in order,
// each exactly once: the partition that holds a letter commits that it goes back, and whoever
// leads it writes it, and then all groups of the dead letter destination are done with it. So
// what is on its way gets there also if the process or a node ends, and the next Redrive waits
// for it. What arrives has the key, value, headers and time of the original record, and a
// RedrivenHeader; every group of the origin gets it. When ctx ends, what is on its way is
// waited for, for up to 10 s. A letter whose origin is gone stays, and the others go on. each
// is called for every letter, with nil for one that is on its way back and a *LetterError for
// one that stays. It returns how many are back. Errors: a *LetterError, the first, if letters
// stay; ErrOnTheWay if some are on their way and cannot arrive at the moment.
func (c *Conn) Redrive(ctx context.Context, destination string, f LetterFilter, each func(*Letter, error)) (done int, err error) {
	if each == nil {
		each = func(*Letter, error) {}
	}
	r := &redrive{conn: c, destination: destination, missing: make(map[origin]error), on: make(map[uint32]map[uint64]bool)}
	again, err := r.list(ctx, f, each)
	for n := 0; again && n < maxRegroup; n++ {
		again, err = r.list(ctx, f, each)
	}
	// Also if ctx has ended: each was told that these go.
	if err = errors.Join(err, r.finish(ctx)); err != nil {
		return r.done, err
	}
	dropped := within(ctx, r.destination, func(ctx context.Context) error { return c.dropRedriveGroup(ctx, destination, &r.groups) })
	return r.done, errors.Join(r.stay.err(), dropped)
}

// ErrOnTheWay is returned by Redrive for letters that are sent back and cannot arrive at the
// moment. They do as soon as they can, whether or not somebody waits.
var ErrOnTheWay = errors.New("are on their way back, and arrive as soon as they can")

// redrive is one call of Redrive.
type redrive struct {
	conn        *Conn
	destination string
	groups      settlers
	by          string // that sends them back
	stay        stranded
	missing     map[origin]error           // nil for an origin that is there
	next        []*Letter                  // of one partition, to be sent back
	on          map[uint32]map[uint64]bool // letters on their way, by partition and offset
	count       int                        // of them
	done        int
	listed      int   // letters that were found so far
	last        place // of them
}

// list has the letters sent back that are meant, behind those that it had listed before. again
// asks for another call: the group by which it has listed them was removed.
func (r *redrive) list(ctx context.Context, f LetterFilter, each func(*Letter, error)) (again bool, err error) {
	most := f.Limit
	f.Limit = 0
	for l, err := range r.conn.DeadLetters(ctx, r.destination, f) {
		if err != nil {
			return regroup(err), err
		}
		at := place{l.Partition, l.Offset}
		if r.listed > 0 && !r.last.before(at) {
			continue
		}
		r.listed, r.last = r.listed+1, at
		if err := r.add(ctx, l, each); err != nil || r.listed == most {
			return false, err
		}
	}
	return false, nil
}

// place is where a letter lies.
type place struct {
	partition uint32
	offset    uint64
}

func (p place) before(q place) bool {
	return p.partition < q.partition || p.partition == q.partition && p.offset < q.offset
}

// nothingOf is why a call ends that hears nothing.
func nothingOf(destination string) error {
	return wire.Errorf(wire.CodeUnavailable, "nothing was heard of %q for %v: a partition of it may have no leader", destination, redriveSilence)
}

// within runs f about a destination, which has to end in time.
func within(ctx context.Context, destination string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, redriveSilence, nothingOf(destination))
	defer cancel()
	err := f(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// add has a letter sent back with those of its partition that come next.
func (r *redrive) add(ctx context.Context, l *Letter, each func(*Letter, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var cause error
	err := within(ctx, r.destination, func(ctx context.Context) (err error) {
		cause, err = r.conn.originMissing(ctx, l, r.missing)
		return err
	})
	switch {
	case err != nil:
		return err
	case cause != nil:
		each(l, r.stay.add(l, cause))
		return nil
	}
	if n := len(r.next); n > 0 && (n == wire.MaxRedrive || r.next[0].Partition != l.Partition) {
		if err := r.send(ctx); err != nil {
			return err
		}
	}
	// Its content is not needed any more.
	r.next = append(r.next, &Letter{Record: Record{Partition: l.Partition, Offset: l.Offset}, Origin: l.Origin, OriginPartition: l.OriginPartition})
	each(l, nil)
	return nil
}

// send has the next letters on their way. All groups but the one that sends them are done with
// them before: if that is where it ends, the last one still has them.
func (r *redrive) send(ctx context.Context) error {
	ctx, cancel := outlasting(ctx, redrivePatience)
	defer cancel()
	partition := r.next[0].Partition
	var ask wire.RedriveRequest
	for _, l := range r.next {
		ask.Letters = append(ask.Letters, wire.Redriven{Offset: l.Offset, To: l.Origin, Partition: l.OriginPartition})
	}
	if err := r.conn.byGroups(ctx, r.destination, &r.groups, func() error {
		if !slices.Contains(r.groups.names, r.by) { // what is on its way by one is looked for there
			r.by = letterGroup(r.groups.names)
		}
		if err := r.conn.settle(ctx, r.destination, others(r.groups.names, r.by), r.next, false); err != nil {
			return err
		}
		return within(ctx, r.destination, func(ctx context.Context) error {
			return r.conn.GroupOrder(ctx, wire.OrderRedrive, r.destination, partition, r.by, ask, nil)
		})
	}); err != nil {
		return fmt.Errorf("redrive %s/%d: %w", r.destination, partition, err)
	}
	if r.on[partition] == nil {
		r.on[partition] = make(map[uint64]bool)
	}
	for _, l := range r.next {
		r.on[partition][l.Offset] = true
	}
	r.count += len(r.next)
	r.next = r.next[:0]
	if r.count > maxRedrive {
		return r.wait(ctx, maxRedrive/2)
	}
	return nil
}

// finish sends what is to be sent and waits until it is there.
func (r *redrive) finish(ctx context.Context) error {
	var sent error
	if len(r.next) > 0 {
		sent = r.send(ctx)
	}
	ctx, cancel := outlasting(ctx, redrivePatience)
	defer cancel()
	return errors.Join(sent, r.wait(ctx, 0))
}

// wait waits until no more than so many letters are on their way. It gives up if none arrives
// for redriveStill and the broker knows why.
func (r *redrive) wait(ctx context.Context, most int) error {
	const shortest, longest = 2 * time.Millisecond, 200 * time.Millisecond
	pause, still := shortest, time.Now()
	for {
		before, problem := r.count, ""
		for partition := range r.on {
			why, err := r.look(ctx, partition)
			if err != nil {
				return fmt.Errorf("%s of %q %w: %w", letterCount(r.count), r.destination, ErrOnTheWay, err)
			}
			problem = cmp.Or(problem, why)
		}
		switch {
		case r.count <= most:
			return nil
		case r.count < before:
			pause, still = shortest, time.Now()
		case time.Since(still) > redriveStill:
			return fmt.Errorf("%s of %q %w: %s", letterCount(r.count), r.destination, ErrOnTheWay, problem)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s of %q %w: %w", letterCount(r.count), r.destination, ErrOnTheWay, ctx.Err())
		case <-time.After(pause):
			pause = min(2*pause, longest)
		}
	}
}

// look asks which letters of a partition are still on their way, and why.
func (r *redrive) look(ctx context.Context, partition uint32) (problem string, err error) {
	var open wire.LettersResponse
	if err := within(ctx, r.destination, func(ctx context.Context) error {
		err := r.conn.GroupOrder(ctx, wire.OrderLetters, r.destination, partition, r.by, nil, &open)
		if regroup(err) { // it was removed, and these remain
			err = r.conn.GroupOrder(ctx, wire.OrderLetters, r.destination, partition, r.by, wire.LettersRequest{Removed: true}, &open)
		}
		return err
	}); err != nil {
		return "", err
	}
	still := make(map[uint64]bool)
	for _, of := range append(open.Removed, wire.RemovedLetters{LettersResponse: open}) {
		if uint64(len(of.Letters)) < of.Count {
			return of.Problem, nil // not all are listed
		}
		for _, l := range of.Letters {
			if r.on[partition][l.Offset] {
				still[l.Offset] = true
				problem = cmp.Or(problem, l.Problem, of.Problem)
			}
		}
	}
	arrived := len(r.on[partition]) - len(still)
	r.count -= arrived
	r.done += arrived
	if r.on[partition] = still; len(still) == 0 {
		delete(r.on, partition)
		return "", nil
	}
	return cmp.Or(problem, open.Problem), nil
}

func letterCount(n int) string {
	if n == 1 {
		return "1 letter"
	}
	return fmt.Sprintf("%d letters", n)
}

// letterGroup is the group of a dead letter destination by which letters are looked at and
// sent back, "" if there is none.
func letterGroup(groups []string) string {
	if len(groups) == 0 || slices.Contains(groups, redriveGroup) {
		return redriveGroup
	}
	return groups[0]
}

func others(groups []string, but string) []string {
	return slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return g == but })
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
// with them. Records that are no letters stay. It takes as long as it gets on, and who is
// interrupted may call it again. It returns how many letters are gone.
func (c *Conn) Purge(ctx context.Context, destination string, f LetterFilter) (done int, err error) {
	d, err := c.Destination(ctx, destination)
	if err != nil {
		return 0, err
	}
	if d.Kind != Queue {
		return 0, wire.Errorf(wire.CodeKindMismatch, "%q is a topic, which keeps records by its retention", destination)
	}
	var groups settlers
	var some []*Letter
	settle := func() error {
		if len(some) == 0 {
			return nil
		}
		if err := c.byGroups(ctx, destination, &groups, func() error {
			return c.settle(ctx, destination, groups.names, some, true)
		}); err != nil {
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
	if err := settle(); err != nil || groups.names == nil {
		return done, err
	}
	return done, c.dropRedriveGroup(ctx, destination, &groups)
}

// maxRegroup bounds how often a call begins anew because the groups that it goes by have changed.
const maxRegroup = 10

// regroup reports whether a group was removed that a call goes by, before it asked or while it
// waited. What it asked for has happened, and remains, or has not, and does not any more.
func regroup(err error) bool {
	code := codeOf(err)
	return code == wire.CodeUnknownGroup || code == wire.CodeGroupGone
}

// byGroups runs f by the groups of a dead letter destination, which
// it looks for if there are none yet. It does so again if one was removed meanwhile, as a
// redrive that ends does with the one that it has made, or has begun, which a broker refuses
// to pass over.
func (c *Conn) byGroups(ctx context.Context, destination string, groups *settlers, f func() error) error {
	var refused time.Time // since when, by the broker
	for again := 0; ; again++ {
		var err error
		if groups.names == nil {
			err = within(ctx, destination, func(ctx context.Context) error { return groups.find(ctx, c, destination) })
		}
		if err == nil {
			err = f()
		}
		switch {
		case regroup(err):
			if again >= maxRegroup {
				return err
			}
		case codeOf(err) == wire.CodeRefused:
			// Who lists the groups may not have heard of it yet, or the partition that one is gone.
			if refused.IsZero() {
				refused = time.Now()
			}
			if time.Since(refused) > redriveSilence || c.pause(ctx, retryPause) != nil {
				return err
			}
		default:
			return err
		}
		groups.names = nil
	}
}

// settlers are the groups of a dead letter destination, which have to be done with letters.
type settlers struct {
	names []string // nil: they are not known
	made  bool     // redriveGroup is one of them, by this call
}

// find lists the groups. If there is none, it makes one.
func (g *settlers) find(ctx context.Context, c *Conn, destination string) error {
	list, err := c.Groups(ctx, destination)
	if err != nil {
		return err
	}
	if g.names = groupNames(list); len(g.names) > 0 {
		return nil
	}
	if _, err = c.CreateGroup(ctx, destination, redriveGroup, GroupIntent{Exists: true, Start: GroupStart{To: "earliest"}}); err == nil {
		g.names, g.made = []string{redriveGroup}, true
	}
	return err
}

func groupNames(list []GroupInfo) (names []string) {
	for _, g := range list {
		names = append(names, g.Name)
	}
	return names
}

// dropRedriveGroup removes the group that was made if it is done with everything in a
// queue: later letters wait for whoever comes.
func (c *Conn) dropRedriveGroup(ctx context.Context, destination string, groups *settlers) error {
	if alone := len(groups.names) == 1 && groups.names[0] == redriveGroup; !alone && !groups.made {
		return nil
	}
	d, err := c.Destination(ctx, destination)
	if err != nil || d.Kind != Queue {
		return err
	}
	info, err := c.DescribeGroup(ctx, destination, redriveGroup)
	if codeOf(err) == wire.CodeUnknownGroup {
		return nil // another redrive has removed it
	}
	for _, p := range info.Partitions {
		if err != nil || p.Problem != "" || p.Backlog > 0 {
			return err
		}
	}
	if err = c.RemoveGroup(ctx, destination, redriveGroup); codeOf(err) == wire.CodeUnknownGroup {
		return nil
	}
	return err
}

// settle has groups done with letters; with giveUp also with those that are on their way back.
func (c *Conn) settle(ctx context.Context, destination string, groups []string, letters []*Letter, giveUp bool) error {
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
		for i, g := range groups {
			if err := within(ctx, destination, func(ctx context.Context) error {
				return c.GroupOrder(ctx, wire.OrderSettle, destination, partition, g, wire.SettleRequest{Spans: s, GiveUp: giveUp, Last: giveUp && i == len(groups)-1}, nil)
			}); err != nil {
				return fmt.Errorf("group %q could not note that letters of partition %d are dealt with; they may be there again: %w", g, partition, err)
			}
		}
	}
	return nil
}

package group

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// ErrState is returned for saved groups, or for a command, that cannot be.
var ErrState = errors.New("state of groups is malformed")

// ID names a group for good: the index of the metadata entry that created it.
type ID uint64

// Session names one consumer of a partition: random bytes that it chose.
type Session [16]byte

// Scope names the records that only one session handles at a time: the hash of their
// key or publisher, or their offset.
type Scope uint64

// Settings of a group with every default filled in.
type Settings = wire.GroupSettings

// State is what all replicas of a partition agree on about its groups. It changes only
// by applied entries. Owner only.
type State struct {
	term   wire.Term   // of the last applied entry
	start  wire.Offset // of the partition
	next   wire.Offset // one past the last applied record
	byID   map[ID]*Group
	byName map[string]*Group
	// erased are the records that replicas may give back: whatever becomes of groups, they
	// are done for all. What lies below start is not asked for.
	erased Done
	// low is the lowest floor of the groups of a queue, and atLow how many have it, once
	// known is true: groups that go on together cost no look at all of them for each step.
	low   wire.Offset
	atLow int
	known bool

	erasesAll bool // mutant: what is not done is erased too
}

// NewState is the state of a partition without groups.
func NewState() *State {
	return &State{byID: make(map[ID]*Group), byName: make(map[string]*Group)}
}

// Group returns the group with an ID, or nil.
func (s *State) Group(id ID) *Group { return s.byID[id] }

// Named returns the group with a name, or nil.
func (s *State) Named(name string) *Group { return s.byName[name] }

// Len is how many groups there are.
func (s *State) Len() int { return len(s.byID) }

// Start is the first offset of the partition.
func (s *State) Start() wire.Offset { return s.start }

// Next is one past the last record of the partition.
func (s *State) Next() wire.Offset { return s.next }

// All yields the groups in no order.
func (s *State) All(yield func(*Group) bool) {
	for _, g := range s.byID {
		if !yield(g) {
			return
		}
	}
}

// Term notes the term of an applied entry, before the entry is applied. The first entry
// of a term leaves a lease table for the leader that it belongs to; that of the next
// term voids it. Not every entry without records begins a term, but every term begins
// with an entry, so it is asked of all.
func (s *State) Term(t wire.Term) {
	if t <= s.term {
		return
	}
	s.term = t
	for _, g := range s.byID {
		if g.Table != nil && g.tableUsed {
			g.Table = nil
		}
		g.tableUsed = g.Table != nil
	}
}

// Appended notes that records below next are applied.
func (s *State) Appended(next wire.Offset) { s.next = max(s.next, next) }

// Trimmed notes that the partition begins at start: what groups were not done with
// before it has expired.
func (s *State) Trimmed(start wire.Offset) (expired uint64) {
	if start <= s.start {
		return 0
	}
	s.start = start
	s.next = max(s.next, start)
	s.erased.Raise(start)
	for _, g := range s.byID {
		before := g.Expired
		g.expire(start)
		expired += g.Expired - before
	}
	s.known = false
	return expired
}

func (g *Group) expire(start wire.Offset) {
	if len(g.Letters.Open)+len(g.Parked) > 0 {
		g.own()
		maps.DeleteFunc(g.Parked, func(h Scope, p Park) bool { return p.Head < start && Scope(p.Head) == h }) // a record that is its own scope
		g.Letters.expire(start)
	}
	floor := g.Done.Floor()
	if start <= floor {
		return
	}
	if n := uint64(start-floor) - g.Done.count(floor, start); n > 0 {
		g.Expired += n
		if g.Lost.To != floor { // else the group has not gone on since
			g.Lost.From = floor
		}
		g.Lost.To = start
	}
	g.settle(floor, start)
	g.Done.Raise(start)
	g.own()
	maps.DeleteFunc(g.Substitutes, func(o wire.Offset, _ []byte) bool { return o < start })
}

// Floor is the lowest record that a group of a queue needs: where the partition begins.
// It reports false if there is no group.
func (s *State) Floor() (wire.Offset, bool) {
	if !s.known {
		s.low, s.atLow, s.known = math.MaxUint64, 0, true
		for _, g := range s.byID {
			if !g.Queue {
				continue
			}
			if floor := g.needs(); floor < s.low {
				s.low, s.atLow = floor, 1
			} else if floor == s.low {
				s.atLow++
			}
		}
	}
	return s.low, s.low != math.MaxUint64
}

// needs is the lowest record that the group needs: that which it is not done with, or one
// that a dead letter is to be written of.
func (g *Group) needs() wire.Offset { return min(g.Done.Floor(), g.Letters.low()) }

// moved notes that the lowest record that a group of a queue needs is another.
func (s *State) moved(before, after wire.Offset) {
	if before == after {
		return
	}
	if before == s.low {
		s.atLow--
	}
	if after == s.low {
		s.atLow++
	}
	s.known = after >= s.low && s.atLow > 0
}

// Held is the lowest record that a group needs for which retention waits. It reports false if
// there is none.
func (s *State) Held() (wire.Offset, bool) {
	low := wire.Offset(math.MaxUint64)
	for _, g := range s.byID {
		if g.Settings.Hold {
			low = min(low, g.needs())
		}
	}
	return low, low != math.MaxUint64
}

// Apply carries out a command of the entry at i. It never refuses one: what a group that
// is not there is told is nothing. It panics with log.ErrTooNew for a command that it
// does not know, and with ErrState for one that no leader can have proposed.
func (s *State) Apply(i wire.Index, t Command, version uint8, payload []byte) Effect {
	if t < CommandPut || t > CommandPause && t != CommandLetterSend || version != commandVersion {
		panic(fmt.Errorf("group: command %d version %d: %w; upgrade this broker", t, version, log.ErrTooNew))
	}
	r := reader{src: payload}
	id := ID(r.uint64())
	e := Effect{Kind: t}
	if t == CommandPut {
		e.Group = s.put(i, id, &r)
	} else if g := s.byID[id]; g != nil && (!g.Removed || t == CommandLetterDone || t == CommandLetterPath || t == CommandLetterSend) {
		e.Group = g
		before := g.needs()
		s.apply(i, g, &r, &e)
		if g.Removed && len(g.Letters.Open) == 0 && !e.Removed {
			s.remove(g)
			e.Removed = true
		}
		if s.known && g.Queue {
			s.moved(before, g.needs())
		}
	} else {
		return e
	}
	if err := r.done(); err != nil {
		panic(fmt.Errorf("group: command %d of group %d at index %d: %w", t, id, i, err))
	}
	return e
}

// put creates a group or alters it.
func (s *State) put(i wire.Index, id ID, r *reader) *Group {
	version := r.uint64()
	name := r.string()
	settings := r.settings()
	start := r.offset()
	flags := r.uint8()
	s.known = false
	g := s.byID[id]
	if g != nil && g.Removed {
		return g
	}
	if g == nil {
		if old := s.byName[name]; old != nil {
			s.remove(old) // the name has a new group: the old one is gone
		}
		g = newGroup(id, name)
		start = min(max(start, s.start), s.next)
		g.Done.Raise(start)
		s.settleErased(g)
		s.settleRedriven(g)
		g.Horizon = start
		s.byID[id], s.byName[name] = g, g
	}
	if version > g.Version {
		if ShapeOf(&settings) != ShapeOf(&g.Settings) {
			g.Fence = i // it has no leases, or they have ended
		}
		g.Version, g.Settings = version, settings
		g.Paused, g.Queue = flags&PutPaused != 0, flags&PutQueue != 0
	}
	return g
}

// remove takes a group away. What it has decided on and not yet written stays until it is.
func (s *State) remove(g *Group) {
	if !g.Removed {
		delete(s.byName, g.Name)
	}
	g.own()
	if g.remove() {
		delete(s.byID, g.ID)
	}
	s.known = false
}

// apply carries out the other commands.
func (s *State) apply(i wire.Index, g *Group, r *reader, e *Effect) {
	g.own()
	switch e.Kind {
	case CommandRemoveGroup:
		s.remove(g)
		e.Removed = true
	case CommandJoin:
		m := r.member()
		m.Since = i
		e.Session = m.ID
		g.doubt(r.offset())
		g.leave(m.Predecessor)
		s.returns(i, g, r, nil)
		g.Sessions[m.ID] = m
	case CommandRemove:
		e.Session = r.session()
		r.uint8() // the reason is for who reads the log
		g.doubt(r.offset())
		g.leave(e.Session)
		s.returns(i, g, r, nil)
	case CommandOutcomes:
		s.spans(r, func(from, to wire.Offset) { g.finish(from, to) })
		for n := r.uvarint(); n > 0 && r.fault == ""; n-- {
			session := r.session()
			s.returns(i, g, r, g.listed(&[]Session{session}))
			s.spans(r, func(from, to wire.Offset) { g.seen(session, from, to) })
		}
	case CommandHorizon:
		g.Horizon = max(g.Horizon, r.offset())
	case CommandPark:
		scope, p := Scope(r.uint64()), Park{Head: r.offset(), Since: i}
		on := r.bool()
		p.Reason = r.string()
		if on {
			g.Parked[scope] = p
		} else {
			delete(g.Parked, scope)
		}
	case CommandActive:
		e.Session = r.session()
		s.returns(i, g, r, g.listed(&[]Session{g.Active}))
		g.Active = e.Session
	case CommandSeek:
		floor, number := min(max(r.offset(), s.start), s.next), r.uint64()
		if number == 0 || number != g.Sought.ID {
			g.seek(i, floor, number)
			s.settleErased(g)
		}
	case CommandTable:
		g.Table, g.tableUsed = r.table(), false
	case CommandTableVoid:
		g.Table, g.tableUsed = nil, false
	case CommandLetter:
		session := r.session()
		l := r.letter()
		l.Since = i
		s.inside(r, l.Offset+1)
		if !g.Done.Has(l.Offset) {
			g.take(i, &Return{From: l.Offset, To: l.Offset + 1, Deliveries: l.Deliveries, Attempts: l.Attempts}, g.listed(&[]Session{session}))
			g.Letters.open(l)
		}
		g.Letters.Next = max(g.Letters.Next, l.Number+1)
	case CommandLetterDone:
		number := r.uint64()
		l := g.Letters.Open[number]
		g.written(number)
		s.redriven(&l)
	case CommandLetterPath:
		path, next := r.path(), r.uint32()
		for _, number := range g.Letters.Sent[:g.Letters.below(next)] {
			l := g.Letters.Open[number]
			g.written(number)
			s.redriven(&l)
		}
		g.Letters.Path, g.Letters.Sent = path, nil
	case CommandLetterSend:
		for _, number := range r.numbers() {
			if _, open := g.Letters.Open[number]; open {
				g.Letters.Sent = append(g.Letters.Sent, number)
			}
		}
	case CommandMember:
		on, c := r.bool(), r.membership()
		e.Session = c.Session
		g.members().enrol(on, c)
	case CommandBinding:
		m := g.members()
		m.Binding, m.Partitions = r.binding()
	case CommandSubstitute:
		o := r.offset()
		s.inside(r, o+1)
		record := bytes.Clone(r.take(int(r.uint32())))
		if !g.Done.Has(o) {
			g.Substitutes[o] = record
			known, _ := g.returned.at(o) // it has as many attempts again
			g.take(i, &Return{From: o, To: o + 1, Deliveries: known.Deliveries}, known.taken)
		}
	case CommandPause:
		g.Paused = r.bool()
	}
}

// inside checks that records end at or below the end of the partition.
func (s *State) inside(r *reader, to wire.Offset) {
	if to > s.next {
		r.fail(fmt.Sprintf("records up to offset %d of a partition that ends at %d", to, s.next))
	}
}

func (s *State) spans(r *reader, yield func(from, to wire.Offset)) {
	var last wire.Offset
	for n := r.uvarint(); n > 0; n-- {
		from, to := r.span(&last)
		if s.inside(r, to); r.fault != "" {
			return
		}
		yield(from, to)
	}
}

func (s *State) returns(i wire.Index, g *Group, r *reader, session *[]Session) {
	var last wire.Offset
	for n := r.uvarint(); n > 0; n-- {
		x := r.returns(&last)
		if s.inside(r, x.To); r.fault != "" {
			return
		}
		g.take(i, &x, session)
	}
}

// Effect says what an applied command changed, for the leader that proposed it and for
// the links of the group.
type Effect struct {
	Group   *Group // nil if the command meant a group that is not there
	Kind    Command
	Session Session // that the command is about, if it is about one
	Removed bool    // the group itself is gone; it belongs to no State any more
	Expired uint64  // how many records retention took that groups were not done with, each group's by itself
}

package group

import (
	"maps"
	"math"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// Group is the replicated state of one group in one partition. The Leader reads it;
// only State writes it.
type Group struct {
	ID       ID
	Name     string
	Version  uint64 // metadata index of its settings
	Settings Settings
	Queue    bool // its floor moves the start of the partition
	Paused   bool
	// Removed says that only its dead letters are left, which are still to be written: it
	// has no name any more, and nothing of it is given to anybody.
	Removed bool

	Done    Done
	Expired uint64 // records that retention took before they were done
	Lost    Span   // where the last of them were; some of it may have been done. Empty: none

	// Horizon is one past the highest offset that may have been delivered, and Doubt
	// one past the highest of which a delivery may not have been counted: unfinished
	// records below it are delivered as if again.
	Horizon, Doubt wire.Offset
	// Fence makes every lease with an epoch below it stale, whatever its record.
	Fence     wire.Index
	SeekIndex wire.Index // of the entry of the last seek
	Sought    Sought     // the last seek, if it has a number
	// Forgotten is the highest fence of a record that was dropped because there were
	// too many: a lease with a lower epoch on a record without a fence cannot be judged.
	Forgotten wire.Index

	// Sessions may hold leases here.
	Sessions map[Session]*Member
	// Active is the only session that gets records in a sticky group, zero for none.
	Active Session
	Parked map[Scope]Park
	// Substitutes are body batches of one record that are delivered in the place of another.
	Substitutes map[wire.Offset][]byte
	Letters     Letters
	// Table are the leases that the leader of the term before handed over. It is nil
	// unless this term is the first one after the hand-over.
	Table []TableLease
	// Members are those of the whole destination, where this partition coordinates.
	Members *Members

	tableUsed bool // a term has begun since the Table was written
	returned  runs // unfinished records that were taken back
	settled   runs // finished ones whose fence is still needed
	pieces    []run
	shared    bool // its maps belong to a snapshot too and must not change
}

// Sought is a seek that has a number, which it may be asked for again by: it moved the group
// from one record to another.
type Sought struct {
	ID       uint64 // 0: the last seek has none
	From, To wire.Offset
}

// Shape is what of the settings leases depend on: to change it, all have to end.
type Shape struct {
	Mode   wire.GroupMode
	Scope  wire.GroupScope
	Holder wire.GroupHolder
	Order  wire.GroupOrder
}

// ShapeOf is the shape of a group with the settings.
func ShapeOf(s *Settings) Shape { return Shape{s.Mode, s.Scope, s.Holder, s.Order} }

// Drains reports whether new settings come into force when nothing of the group is leased:
// leases depend on its shape, and with a lower session timeout consumers that have heard of
// the higher one would go on with what others already have. Without are rules that a test
// has taken away.
func (g *Group) Drains(s *Settings, without ...Rule) bool {
	return ShapeOf(s) != ShapeOf(&g.Settings) && keeps(without, RuleShape) || s.SessionMs < g.Settings.SessionMs && keeps(without, RuleLower)
}

func newGroup(id ID, name string) *Group {
	return &Group{
		ID: id, Name: name, Sessions: make(map[Session]*Member), Parked: make(map[Scope]Park),
		Substitutes: make(map[wire.Offset][]byte), Letters: Letters{Open: make(map[uint64]Letter), Path: Path{Producer: -1}},
	}
}

// own makes the maps the group's alone before they change.
func (g *Group) own() {
	if !g.shared {
		return
	}
	g.shared = false
	g.Sessions, g.Parked = maps.Clone(g.Sessions), maps.Clone(g.Parked)
	g.Substitutes, g.Letters.Open = maps.Clone(g.Substitutes), maps.Clone(g.Letters.Open)
	g.Letters.offsets = slices.Clone(g.Letters.offsets)
	if g.Members != nil {
		g.Members = g.Members.clone()
	}
}

// snapshot returns what the group is now, however it goes on.
func (g *Group) snapshot() Group {
	g.shared = true
	c := *g
	c.Done, c.returned, c.settled, c.pieces = g.Done.Clone(), g.returned.snapshot(), g.settled.snapshot(), nil
	return c
}

// finish marks records as done.
func (g *Group) finish(from, to wire.Offset) {
	g.settle(from, to)
	g.Done.Add(from, to)
	if len(g.Substitutes) > 0 {
		maps.DeleteFunc(g.Substitutes, func(o wire.Offset, _ []byte) bool { return from <= o && o < to })
	}
}

// doubt raises the doubt mark; 0 leaves it where it is.
func (g *Group) doubt(mark wire.Offset) { g.Doubt = max(g.Doubt, mark) }

// leave removes a session from the list, if it is on it.
func (g *Group) leave(s Session) {
	delete(g.Sessions, s)
	if g.Active == s {
		g.Active = Session{}
	}
}

// seek makes everything below floor done and nothing above it. All leases are stale by
// the fence of the group, so those of single records are not needed; what was counted
// stays, and keys that are parked. Records below floor are not parked by themselves any more,
// nor repaired.
func (g *Group) seek(i wire.Index, floor wire.Offset, number uint64) {
	g.Sought = Sought{}
	if number != 0 {
		g.Sought = Sought{ID: number, From: g.Done.Floor(), To: floor}
	}
	g.Done = Done{}
	g.Done.Raise(floor)
	g.pieces = g.returned.cut(g.pieces[:0], 0, floor)
	g.settled = runs{}
	maps.DeleteFunc(g.Substitutes, func(o wire.Offset, _ []byte) bool { return o < floor })
	if kindOf(&g.Settings) != single { // whose scope is 1, which is no record
		maps.DeleteFunc(g.Parked, func(h Scope, p Park) bool { return p.Head < floor && Scope(p.Head) == h })
	}
	g.Fence, g.SeekIndex = i, i
}

func (g *Group) members() *Members {
	if g.Members == nil {
		g.Members = newMembers()
	}
	return g.Members
}

// Member is a session that may hold leases. It is not changed once it is in a Group.
type Member struct {
	ID, Predecessor Session
	Name, Client    string
	Binding         Binding
	Since           wire.Index // of the entry that listed it
	Flags           wire.AttachFlags
}

// Binding says which binding of the group a consumer goes by: those of a higher
// generation are newer, and within a generation those of a higher counter.
type Binding struct{ Generation, Counter uint32 }

// Before reports whether b is older than c.
func (b Binding) Before(c Binding) bool {
	return b.Generation < c.Generation || b.Generation == c.Generation && b.Counter < c.Counter
}

// Park says why nothing of a scope is delivered from a record on.
type Park struct {
	Head   wire.Offset
	Reason string
	Since  wire.Index
}

// Letters are the dead letters of a group.
type Letters struct {
	Next uint64 // number of the next letter
	Open map[uint64]Letter
	Path Path
	// Sent are the letters that may have been written and are not known to be, in the order
	// of their sequences: the first has Path.Sequence. All others were never sent. One that is
	// not Open any more is a hole.
	Sent []uint64
	// offsets are those of the records of the open ones, ascending; nil: there are none.
	offsets []wire.Offset
}

// Path is how the letters of a group are written: by a producer of their own, which one
// partition of one destination knows and takes each sequence from once.
type Path struct {
	Producer    int64 // below 0: none yet
	Destination [16]byte
	Partition   uint32
	Sequence    uint32     // see Letters.Sent; 31 bits, then from 0 on again
	Metadata    wire.Index // of the metadata in which the destination was there
}

// low is the lowest record of an open letter, math.MaxUint64 if none is.
func (l *Letters) low() wire.Offset {
	if len(l.offsets) == 0 {
		return math.MaxUint64
	}
	return l.offsets[0]
}

// open adds a letter that is to be written.
func (l *Letters) open(x Letter) {
	if before, again := l.Open[x.Number]; again {
		l.close(before)
	}
	l.Open[x.Number] = x
	at, _ := slices.BinarySearch(l.offsets, x.Offset)
	l.offsets = slices.Insert(l.offsets, at, x.Offset)
}

// close takes an open letter away.
func (l *Letters) close(x Letter) {
	delete(l.Open, x.Number)
	switch at, found := slices.BinarySearch(l.offsets, x.Offset); {
	case !found:
	case at == 0:
		l.offsets = l.offsets[1:]
	default:
		l.offsets = slices.Delete(l.offsets, at, at+1)
	}
	l.closed()
}

// expire takes the open letters of records below start away.
func (l *Letters) expire(start wire.Offset) {
	maps.DeleteFunc(l.Open, func(_ uint64, x Letter) bool { return x.Offset < start })
	at, _ := slices.BinarySearch(l.offsets, start)
	l.offsets = l.offsets[at:]
	l.closed()
}

// closed notes that letters are no longer open.
func (l *Letters) closed() {
	for len(l.Sent) > 0 {
		if _, open := l.Open[l.Sent[0]]; open {
			break
		}
		l.Sent, l.Path.Sequence = l.Sent[1:], (l.Path.Sequence+1)&sequenceMask
	}
	if len(l.offsets) == 0 {
		l.offsets = nil
	}
}

// sequenceMask is for sequences of producers, which wrap from 2^31−1 to 0.
const sequenceMask = 1<<31 - 1

// below is how many of Sent have a sequence below next.
func (l *Letters) below(next uint32) int {
	n := (next - l.Path.Sequence) & sequenceMask
	if n > uint32(len(l.Sent)) {
		return 0 // letters that were given up before they were written
	}
	return int(n)
}

// Letter is a record that is out of its scope and not yet written where it belongs: it
// is not done, so its body stays.
type Letter struct {
	Number     uint64
	Offset     wire.Offset
	Deliveries uint16
	Attempts   uint16
	Reason     LetterReason
	Text       string // what the consumer said; where one goes that is Redriven
	// Since is the index of the entry that decided on it. A seek behind that has begun anew:
	// the letter is written all the same, and says nothing about the record any more.
	Since wire.Index
}

// LetterReason is why a record is to be written elsewhere. Numbers are kept in logs.
type LetterReason uint8

// The reasons.
const (
	DeliveryLimit LetterReason = 1
	Rejected      LetterReason = 2
	Redriven      LetterReason = 3 // a dead letter that goes back to where it comes from
)

// String is the reason as the header of a letter has it.
func (r LetterReason) String() string {
	switch r {
	case Rejected:
		return "rejected"
	case Redriven:
		return wire.ReasonRedriven
	}
	return "delivery limit"
}

// lettered reports whether a record waits for its letter: it is not given to anybody, and
// done when that is written.
func (g *Group) lettered(l *Letter) bool { return l.Since > g.SeekIndex }

// Redrives reports whether the record at o is a dead letter that the group has on its way back.
func (g *Group) Redrives(o wire.Offset) bool {
	if _, open := slices.BinarySearch(g.Letters.offsets, o); !open {
		return false
	}
	for _, l := range g.Letters.Open {
		if l.Offset == o && l.Reason == Redriven {
			return true
		}
	}
	return false
}

// written notes that a letter is where it belongs, or given up.
func (g *Group) written(number uint64) {
	l, open := g.Letters.Open[number]
	if !open {
		return
	}
	g.Letters.close(l)
	if g.lettered(&l) {
		g.finish(l.Offset, l.Offset+1)
	}
}

// remove leaves of a group what is still to be written, and reports whether that is nothing.
func (g *Group) remove() bool {
	if len(g.Letters.Open) == 0 {
		return true
	}
	g.Removed, g.Active, g.Table, g.tableUsed, g.Members = true, Session{}, nil, false, nil
	g.Done, g.returned, g.settled = Done{}, runs{}, runs{}
	g.Done.Raise(math.MaxInt64) // it needs no record
	clear(g.Sessions)
	clear(g.Parked)
	return false
}

// TableLease says that a session holds records since the epoch.
type TableLease struct {
	Session  Session
	Epoch    wire.Index
	From, To wire.Offset
}

package group

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// inlineNext is how many waiting records a scope remembers; further ones are found again
// when it has given these out, so that a scope that stands still costs the same whatever
// lies behind it.
const inlineNext = 8

// minSpare and maxSpare bound the objects of scopes that are kept for others: some, or as
// many as are in use, so that a scope that comes and goes with each record costs no
// allocation. One takes some 250 bytes.
const (
	minSpare = 1 << 10
	maxSpare = 1 << 14
)

// scope is a key or a publisher of which something is leased, waiting or parked. Others
// have no object.
type scope struct {
	hash   Scope
	holder *member       // of what is leased
	leased []wire.Offset // ascending; the first acked of them are settling
	acked  int
	ending int // of leased, how many are on their way back
	// next[:n] are the lowest records of the scope that were looked at and may go out. If
	// more is set there may be others above after and below Leader.scan.
	next    [inlineNext]wire.Offset
	n       int
	more    bool
	after   wire.Offset
	finding bool          // a Find is running
	below   wire.Offset   // that asked for records below it
	due     time.Duration // when the head has rested
	timed   bool          // a timer for that is set
	inRing  bool
	unread  bool          // its next record could not be read
	parked  wire.Offset   // from this record on nothing goes out; +1; 0: not parked
	since   time.Duration // when the first that is leased and not acked became that, or nothing was
}

func (s *scope) isHead(o wire.Offset) bool {
	return s.acked < len(s.leased) && s.leased[s.acked] == o
}

// newScope returns the object of a scope that has none.
func (l *Leader) newScope(h Scope) *scope {
	var s *scope
	if n := len(l.spare); n > 0 {
		s = l.spare[n-1]
		l.spare = l.spare[:n-1]
		*s = scope{leased: s.leased[:0]}
	} else {
		s = new(scope)
	}
	s.hash, s.since = h, l.now
	l.scopes[h] = s
	return s
}

// retire drops the object of a scope about which there is nothing to know any more.
func (l *Leader) retire(s *scope) {
	if len(s.leased) > 0 || s.n > 0 || s.more || s.finding || s.inRing || s.timed || s.parked > 0 {
		return
	}
	delete(l.scopes, s.hash)
	if len(l.spare) < min(max(minSpare, len(l.scopes)), maxSpare) {
		l.spare = append(l.spare, s)
	}
}

// hashOf is the scope of the record at o, which the batch holds; 0 for one of its own.
func (l *Leader) hashOf(p *Place, o wire.Offset) Scope {
	if l.g.Settings.Scope == wire.ScopePublisher {
		return Scope(p.Publisher)
	}
	at := int(o-p.Base) * wire.RecordIndexEntrySize
	if at+8 > len(p.Index) {
		return 0
	}
	return Scope(binary.LittleEndian.Uint64(p.Index[at:]))
}

// note takes in a record of the scope that may go out, in order.
func (s *scope) note(o wire.Offset) {
	if s.more && o > s.after {
		return // it will be found
	}
	i, found := slices.BinarySearch(s.next[:s.n], o)
	if found {
		return
	}
	if s.n == inlineNext {
		last := s.next[inlineNext-1]
		if i == inlineNext {
			last = o
		}
		if s.after = last - 1; !s.more {
			s.more = true
		}
		if i == inlineNext {
			return
		}
		s.n--
	}
	copy(s.next[i+1:s.n+1], s.next[i:s.n])
	s.next[i] = o
	s.n++
}

// pop drops the lowest waiting record.
func (s *scope) pop() {
	s.n--
	copy(s.next[:s.n], s.next[1:s.n+1])
}

// window is how many records of a scope may be leased and not acked.
func (l *Leader) window() int { return max(1, int(l.g.Settings.Window)) }

// ready puts a scope into the ring if it has a record that may go out, or has its next
// one looked for.
func (l *Leader) ready(s *scope) {
	if s.inRing || s.parked > 0 || len(l.parking) > 0 && l.parking[s.hash] > 0 || s.ending > 0 || len(s.leased)-s.acked >= l.window() || l.stays(s.hash) {
		return
	}
	if s.due > l.now {
		if !s.timed {
			s.timed = true
			l.timers.push(timer{at: s.due, scope: s})
		}
		return
	}
	switch {
	case s.n > 0:
		s.inRing = true
		l.ring.push(s)
	case s.finding:
	case s.more:
		s.finding, s.below = true, l.scan
		l.want.Find = append(l.want.Find, Find{
			Scope: s.hash, Publisher: l.g.Settings.Scope == wire.ScopePublisher, After: s.after, Below: s.below,
		})
	default:
		l.retire(s)
	}
}

// Found answers a Find: the lowest record of the scope above after that is not done, or
// that there is none.
func (l *Leader) Found(h Scope, after, at wire.Offset, ok bool) {
	if ok {
		l.FoundMore(h, after, []wire.Offset{at}, at)
	} else if s := l.scopes[h]; s != nil {
		l.FoundMore(h, after, nil, s.below-1)
	}
}

// FoundMore answers a Find with all records of the scope in (after, upTo] that are not
// done, in order. The last one may be another's, if it cannot be read.
func (l *Leader) FoundMore(h Scope, after wire.Offset, found []wire.Offset, upTo wire.Offset) {
	s := l.scopes[h]
	if s == nil || !s.finding || s.after != after {
		return
	}
	s.finding = false
	for _, o := range found {
		if s.n == inlineNext { // others have come back since; it will be found again
			upTo = o - 1
			break
		}
		if l.gives(o) {
			s.next[s.n] = o
			s.n++
		}
	}
	s.after = max(s.after, upTo)
	if s.after+1 >= s.below && s.below >= l.scan {
		s.more = false
	}
	l.ready(s)
}

// gives reports whether a record could go out as far as it is concerned itself.
func (l *Leader) gives(o wire.Offset) bool {
	return !l.g.Done.Has(o) && !l.lettered[o] && l.of.Get(o) == nil
}

// leave takes a record out of what its scope has leased, when its ack or its return is
// applied.
func (l *Leader) leave(o wire.Offset) *scope {
	s := l.of.Remove(o)
	if s == nil {
		return nil
	}
	if i := slices.Index(s.leased, o); i >= 0 {
		s.leased = slices.Delete(s.leased, i, i+1)
		switch {
		case i < s.acked:
			s.acked--
		case i == s.acked:
			s.since = l.now
		}
	}
	if len(s.leased) == 0 {
		s.holder = nil
	}
	return s
}

// fifo is a queue. The zero value is an empty one.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) push(v T) {
	if f.head > 64 && f.head > len(f.items)/2 {
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	f.items = append(f.items, v)
}

func (f *fifo[T]) pop() T {
	v := f.items[f.head]
	var zero T
	f.items[f.head] = zero
	if f.head++; f.head == len(f.items) {
		f.items, f.head = f.items[:0], 0
	}
	return v
}

func (f *fifo[T]) clear() {
	clear(f.items)
	f.items, f.head = f.items[:0], 0
}

package group

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"

	"github.com/lockstepmq/lockstep/wire"
)

// Saved groups of a partition. Integers are little-endian; lists ascend, so that equal
// states have equal bytes.
//
//	term u64 | start u64 | next u64 | count u32, each group by ascending ID, and if records are erased: done
//
//	id u64 | version u64 | name string | settings | flags u8 (1 paused, 2 of a queue, 4 has a table, 8 its term has begun, 16 has members, 32 removed, 64 has lost records, 128 the last seek has a number) |
//	from u64, to u64, if it has lost records | number u64, from u64, to u64, if the last seek has a number |
//	expired u64 | horizon u64 | doubt u64 | fence u64 | seekIndex u64 | forgotten u64 | active 16 | done |
//	count u32, each session: as in JOIN up to client, since u64 |
//	returned: runs | settled: runs |
//	count u32, each parked: scope u64, head u64, since u64, reason string |
//	count u32, each substitute: offset u64, length u32, record |
//	letters: next u64, as in LETTER_PATH up to metadata, as in LETTER_SEND, count u32, each: as in LETTER, since u64 |
//	table as in TABLE, if it has one |
//	members, if it has: as in BINDING from generation on, count u32, each as in MEMBER from session on
//
//	runs: count u32, each: gap uvarint, length uvarint, deliveries uvarint, attempts uvarint, delayMs uvarint, fence uvarint,
//	count uvarint, sessions 16 each, in the order in which records were taken from them
//	done: floor u64 | count u32, each chunk of 65,536 offsets in which a record is done: number u48, kind u8, content
//	content: kind 1: count u16, each run of done records: gap uvarint, length uvarint; kind 2: 8,192 bytes, one bit a record
const (
	flagTable     = 4
	flagTableUsed = 8
	flagMembers   = 16
	flagRemoved   = 32
	flagLost      = 64
	flagSought    = 128

	chunkRuns = 1
	chunkBits = 2
)

func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func sortedSessions[V any](m map[Session]V) []Session {
	return slices.SortedFunc(maps.Keys(m), compareSessions)
}

func compareSessions(a, b Session) int { return bytes.Compare(a[:], b[:]) }

// Save appends the state to dst. Equal states have equal bytes.
func (s *State) Save(dst []byte) []byte { return s.Snapshot()(dst) }

// Snapshot captures the state; what it returns appends it to dst as Save does, once and
// on any goroutine, however the state goes on. It takes time in proportion to the
// groups, and to the chunks of 65,536 records that are partly done, not to the records.
func (s *State) Snapshot() func(dst []byte) []byte {
	term, start, next := s.term, s.start, s.next
	erased, some := s.erased.Clone(), s.HasErased()
	groups := make([]Group, 0, len(s.byID))
	for _, g := range s.byID {
		groups = append(groups, g.snapshot())
	}
	return func(dst []byte) []byte {
		sort.Slice(groups, func(i, j int) bool { return groups[i].ID < groups[j].ID })
		dst = appendUint64s(dst, uint64(term), uint64(start), uint64(next))
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(groups)))
		for i := range groups {
			dst = groups[i].save(dst)
		}
		if some {
			dst = erased.save(dst)
		}
		return dst
	}
}

func appendUint64s(dst []byte, values ...uint64) []byte {
	for _, v := range values {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	return dst
}

func appendCount(dst []byte, n int) []byte { return binary.LittleEndian.AppendUint32(dst, uint32(n)) }

func (g *Group) save(dst []byte) []byte {
	dst = appendUint64s(dst, uint64(g.ID), g.Version)
	dst = appendString(dst, g.Name)
	dst = g.Settings.Append(dst)
	var flags uint8
	for bit, is := range map[uint8]bool{
		PutPaused: g.Paused, PutQueue: g.Queue, flagTable: g.Table != nil, flagTableUsed: g.tableUsed, flagMembers: g.Members != nil, flagRemoved: g.Removed,
		flagLost: g.Lost != Span{}, flagSought: g.Sought.ID != 0,
	} {
		if is {
			flags |= bit
		}
	}
	dst = append(dst, flags)
	if flags&flagLost != 0 {
		dst = appendUint64s(dst, uint64(g.Lost.From), uint64(g.Lost.To))
	}
	if flags&flagSought != 0 {
		dst = appendUint64s(dst, g.Sought.ID, uint64(g.Sought.From), uint64(g.Sought.To))
	}
	dst = appendUint64s(dst, g.Expired, uint64(g.Horizon), uint64(g.Doubt), uint64(g.Fence), uint64(g.SeekIndex), uint64(g.Forgotten))
	dst = append(dst, g.Active[:]...)
	dst = g.Done.save(dst)
	dst = appendCount(dst, len(g.Sessions))
	for _, id := range sortedSessions(g.Sessions) {
		dst = appendMember(dst, g.Sessions[id])
		dst = appendUint64s(dst, uint64(g.Sessions[id].Since))
	}
	dst = g.returned.save(dst)
	dst = g.settled.save(dst)
	dst = appendCount(dst, len(g.Parked))
	for _, scope := range sorted(g.Parked) {
		p := g.Parked[scope]
		dst = appendUint64s(dst, uint64(scope), uint64(p.Head), uint64(p.Since))
		dst = appendString(dst, p.Reason)
	}
	dst = appendCount(dst, len(g.Substitutes))
	for _, o := range sorted(g.Substitutes) {
		dst = appendUint64s(dst, uint64(o))
		dst = append(appendCount(dst, len(g.Substitutes[o])), g.Substitutes[o]...)
	}
	dst = appendPath(appendUint64s(dst, g.Letters.Next), &g.Letters.Path)
	dst = appendNumbers(dst, g.Letters.Sent)
	dst = appendCount(dst, len(g.Letters.Open))
	for _, number := range sorted(g.Letters.Open) {
		l := g.Letters.Open[number]
		dst = appendUint64s(appendLetter(dst, &l), uint64(l.Since))
	}
	if g.Table != nil {
		dst = appendTable(dst, g.Table)
	}
	if m := g.Members; m != nil {
		dst = appendBinding(dst, m.Binding, m.Partitions)
		dst = appendCount(dst, len(m.List))
		for _, id := range sortedSessions(m.List) {
			dst = appendMembership(dst, m.List[id])
		}
	}
	return dst
}

func (r *runs) save(dst []byte) []byte {
	dst = appendCount(dst, r.len())
	if r.tree == nil {
		return dst
	}
	var last wire.Offset
	r.tree.Ascend(func(x run) bool {
		dst = appendSpan(dst, &last, x.from, x.to)
		for _, v := range [...]uint64{uint64(x.Deliveries), uint64(x.Attempts), uint64(x.DelayMs), uint64(x.Fence)} {
			dst = binary.AppendUvarint(dst, v)
		}
		if x.taken == nil {
			dst = append(dst, 0)
			return true
		}
		dst = binary.AppendUvarint(dst, uint64(len(*x.taken)))
		for _, session := range *x.taken {
			dst = append(dst, session[:]...)
		}
		return true
	})
	return dst
}

// save appends the set.
func (d *Done) save(dst []byte) []byte {
	dst = appendUint64s(dst, uint64(d.floor))
	at, n := len(dst), uint32(0)
	dst = appendCount(dst, 0)
	c := savedChunk{number: math.MaxUint64}
	for from, to := range d.Runs() {
		number, first := split(from)
		if number != c.number {
			dst, n = c.save(dst, n)
			c.number = number
		}
		c.runs = append(c.runs, [2]uint32{first, first + uint32(to-from)})
	}
	dst, n = c.save(dst, n)
	binary.LittleEndian.PutUint32(dst[at:], n)
	return dst
}

// savedChunk is what is done in a chunk: runs [from, to) of its records, ascending, that
// do not touch.
type savedChunk struct {
	number uint64
	runs   [][2]uint32
}

// save appends the chunk if there is something in it, and counts it. It takes the
// shorter form.
func (c *savedChunk) save(dst []byte, n uint32) ([]byte, uint32) {
	if len(c.runs) == 0 {
		return dst, n
	}
	dst = binary.LittleEndian.AppendUint64(dst, c.number)[:len(dst)+6]
	at := len(dst)
	dst = append(dst, chunkRuns)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(c.runs)))
	var last uint32
	for _, run := range c.runs {
		dst = binary.AppendUvarint(dst, uint64(run[0]-last))
		dst = binary.AppendUvarint(dst, uint64(run[1]-run[0]))
		last = run[1]
	}
	if len(dst)-at > 1+chunkSize/8 {
		var bits chunk
		for _, run := range c.runs {
			bits.add(run[0], run[1])
		}
		dst = append(dst[:at], chunkBits)
		dst = appendUint64s(dst, bits.words[:]...)
	}
	c.runs = c.runs[:0]
	return dst, n + 1
}

// Restore takes a saved state apart. Errors wrap ErrState.
func Restore(src []byte) (*State, error) {
	s := NewState()
	r := reader{src: src}
	s.term, s.start, s.next = wire.Term(r.uint64()), r.offset(), r.offset()
	var last ID
	for n := r.uint32(); n > 0 && r.fault == ""; n-- {
		g := r.group()
		if r.fault == "" && (g.ID <= last || s.byName[g.Name] != nil && !g.Removed) {
			r.fail(fmt.Sprintf("group %d does not follow group %d, or a group has its name", g.ID, last))
		}
		if floor := g.Done.Floor(); r.fault == "" && (floor < s.start || floor > s.next && !g.Removed) {
			r.fail(fmt.Sprintf("the floor %d of group %d is outside of the partition", floor, g.ID))
		}
		last = g.ID
		if s.byID[g.ID] = g; !g.Removed {
			s.byName[g.Name] = g
		}
	}
	if len(r.src) > 0 && r.fault == "" {
		r.doneSet(&s.erased)
		if s.erased.Floor() > s.next || !s.HasErased() {
			r.fail(fmt.Sprintf("records are erased up to %d, of %d", s.erased.Floor(), s.next))
		}
	}
	if err := r.done(); err != nil {
		return nil, err
	}
	s.erased.Raise(s.start)
	return s, nil
}

func (r *reader) group() *Group {
	id, version := ID(r.uint64()), r.uint64()
	g := newGroup(id, r.string())
	g.Version, g.Settings = version, r.settings()
	flags := r.uint8()
	if flags&(flagTable|flagTableUsed) == flagTableUsed {
		r.fail(fmt.Sprintf("flags %#x are unknown", flags))
	}
	g.Paused, g.Queue, g.tableUsed, g.Removed = flags&PutPaused != 0, flags&PutQueue != 0, flags&flagTableUsed != 0, flags&flagRemoved != 0
	if flags&flagLost != 0 {
		if g.Lost = (Span{r.offset(), r.offset()}); g.Lost.From >= g.Lost.To {
			r.fail("no lost records")
		}
	}
	if flags&flagSought != 0 {
		if g.Sought = (Sought{r.uint64(), r.offset(), r.offset()}); g.Sought.ID == 0 {
			r.fail("a seek without a number")
		}
	}
	g.Expired, g.Horizon, g.Doubt = r.uint64(), r.offset(), r.offset()
	g.Fence, g.SeekIndex, g.Forgotten = wire.Index(r.uint64()), wire.Index(r.uint64()), wire.Index(r.uint64())
	g.Active = r.session()
	r.doneSet(&g.Done)
	var last Session
	for n := r.uint32(); n > 0 && r.fault == ""; n-- {
		m := r.member()
		m.Since = wire.Index(r.uint64())
		if len(g.Sessions) > 0 && compareSessions(last, m.ID) >= 0 {
			r.fail("sessions do not ascend")
		}
		last = m.ID
		g.Sessions[m.ID] = m
	}
	r.runs(&g.returned)
	r.runs(&g.settled)
	list(r, g.Parked, func() (Scope, Park) {
		return Scope(r.uint64()), Park{Head: r.offset(), Since: wire.Index(r.uint64()), Reason: r.string()}
	})
	list(r, g.Substitutes, func() (wire.Offset, []byte) {
		return r.offset(), bytes.Clone(r.take(int(r.uint32())))
	})
	g.Letters.Next, g.Letters.Path, g.Letters.Sent = r.uint64(), r.path(), r.numbers()
	list(r, g.Letters.Open, func() (uint64, Letter) {
		l := r.letter()
		l.Since = wire.Index(r.uint64())
		g.Letters.offsets = append(g.Letters.offsets, l.Offset)
		return l.Number, l
	})
	slices.Sort(g.Letters.offsets)
	if flags&flagTable != 0 {
		g.Table = r.table()
	}
	if flags&flagMembers != 0 {
		g.Members = newMembers()
		g.Members.Binding, g.Members.Partitions = r.binding()
		var last Session
		for n := r.uint32(); n > 0 && r.fault == ""; n-- {
			c := r.membership()
			if len(g.Members.List) > 0 && compareSessions(last, c.Session) >= 0 {
				r.fail("members do not ascend")
			}
			last = c.Session
			g.Members.List[c.Session] = c
		}
	}
	return g
}

// list reads what an ascending list holds.
func list[K cmp.Ordered, V any](r *reader, into map[K]V, next func() (K, V)) {
	var last K
	for n := r.uint32(); n > 0 && r.fault == ""; n-- {
		k, v := next()
		if len(into) > 0 && k <= last {
			r.fail("a list does not ascend")
		}
		last = k
		into[k] = v
	}
}

func (r *reader) runs(into *runs) {
	var last wire.Offset
	for n := r.uint32(); n > 0 && r.fault == ""; n-- {
		var x run
		x.from, x.to = r.span(&last)
		x.Deliveries, x.Attempts = uint16(r.below(1<<16-1)), uint16(r.below(1<<16-1))
		x.DelayMs, x.Fence = uint32(r.below(1<<32-1)), wire.Index(r.uvarint())
		if sessions := make([]Session, r.count(r.uvarint(), 16)); len(sessions) > 0 {
			for k := range sessions {
				sessions[k] = r.session()
			}
			x.taken = &sessions
		}
		before := into.len()
		if into.put(x); into.len() != before+1 {
			r.fail("neighbouring runs are equal")
		}
	}
}

func (r *reader) doneSet(d *Done) {
	d.floor = r.offset()
	last := int64(-1)
	for n := r.uint32(); n > 0 && r.fault == ""; n-- {
		var number [8]byte
		copy(number[:], r.take(6))
		c := savedChunk{number: binary.LittleEndian.Uint64(number[:])}
		if int64(c.number) <= last {
			r.fail("chunks of done records do not ascend")
		}
		last = int64(c.number)
		before := r.src
		r.chunk(&c)
		if r.fault != "" {
			return
		}
		again, _ := (&savedChunk{number: c.number, runs: slices.Clone(c.runs)}).save(nil, 0)
		if len(again) < 6 || !bytes.Equal(again[6:], before[:len(before)-len(r.src)]) {
			r.fail("a chunk of done records is empty or not in its shortest form")
			return
		}
		if join(c.number, c.runs[0][0]) <= d.floor {
			r.fail("records are done at the floor or below it")
			return
		}
		for _, run := range c.runs {
			d.Add(join(c.number, run[0]), join(c.number, run[1]-1)+1)
		}
	}
}

func (r *reader) chunk(c *savedChunk) {
	switch kind := r.uint8(); kind {
	case chunkRuns:
		var last uint64
		for n := r.uint16(); n > 0 && r.fault == ""; n-- {
			from := last + r.below(chunkSize)
			to := from + r.below(chunkSize)
			if to <= from || to > chunkSize || last > 0 && from == last {
				r.fail("a run of done records is empty, or leaves its chunk, or touches another")
			}
			last = to
			c.runs = append(c.runs, [2]uint32{uint32(from), uint32(to)})
		}
	case chunkBits:
		var bits chunk
		for i := range bits.words {
			bits.words[i] = r.uint64()
		}
		for to := uint32(0); ; {
			from := bits.next(to, true)
			if from == chunkSize {
				return
			}
			to = bits.next(from, false)
			c.runs = append(c.runs, [2]uint32{from, to})
		}
	default:
		r.fail(fmt.Sprintf("kind %d of a chunk is unknown", kind))
	}
}

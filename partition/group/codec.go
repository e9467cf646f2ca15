package group

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/lockstepmq/lockstep/wire"
)

// Command is the type of a command in a control entry of a partition. 1 and 20 are the
// partition's own.
type Command uint8

// Commands of groups. The payload of each begins with the ID of the group, u64.
const (
	CommandPut         Command = 2
	CommandRemoveGroup Command = 3
	CommandJoin        Command = 4
	CommandRemove      Command = 5
	CommandOutcomes    Command = 6
	CommandHorizon     Command = 7
	CommandPark        Command = 8
	CommandActive      Command = 9
	CommandSeek        Command = 10
	CommandTable       Command = 11
	CommandTableVoid   Command = 12
	CommandLetter      Command = 13
	CommandLetterDone  Command = 14
	CommandLetterPath  Command = 15
	CommandMember      Command = 16
	CommandBinding     Command = 17
	CommandSubstitute  Command = 18
	CommandPause       Command = 19
	CommandLetterSend  Command = 21
)

// Commands are laid out in a control entry as those of the partition are:
//
//	+------+---------+------+----------------+--------
//	| type | version | zero | payload length | payload
//	+------+---------+------+----------------+--------
//	0      1         2      4                8
const (
	commandHeader  = 8
	commandVersion = 1
)

// MaxPayload bounds a command. What is larger is several: the returns of a session that
// held much go into Outcomes before it is removed, in the same entry.
const MaxPayload = 1 << 20

// Span is a run of records [From, To).
type Span struct{ From, To wire.Offset }

// Return is a run of records that are taken back, with what is known of them from then
// on. The values are absolute: applying a return twice is the same as once.
type Return struct {
	From, To   wire.Offset
	Deliveries uint16
	Attempts   uint16
	DelayMs    uint32
}

// Taken is what is taken back from one session.
type Taken struct {
	Session Session
	Returns []Return
	// Seen are records of which the session knows that it lost them: their fences need
	// not be kept for it any longer.
	Seen []Span
}

// Flags of a Put.
const (
	PutPaused uint8 = 1
	PutQueue  uint8 = 2 // the lowest floor of the partition's groups is its start
)

// begin appends the header of a command and the ID, and returns where the header is.
func begin(dst []byte, t Command, id ID) ([]byte, int) {
	at := len(dst)
	dst = append(dst, byte(t), commandVersion, 0, 0, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint64(dst, uint64(id)), at
}

// end fills the length of the command whose header is at.
func end(dst []byte, at int) []byte {
	binary.LittleEndian.PutUint32(dst[at+4:], uint32(len(dst)-at-commandHeader))
	return dst
}

// AppendPut appends the command that creates a group, or alters it if version is higher
// than the one it has. Start is where it begins if it is created.
//
//	group u64 | version u64 | name string | settings | start u64 | flags u8
func AppendPut(dst []byte, id ID, version uint64, name string, settings *Settings, start wire.Offset, flags uint8) []byte {
	dst, at := begin(dst, CommandPut, id)
	dst = binary.LittleEndian.AppendUint64(dst, version)
	dst = appendString(dst, name)
	dst = settings.Append(dst)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(start))
	return end(append(dst, flags), at)
}

// AppendRemoveGroup appends the command that removes a group.
func AppendRemoveGroup(dst []byte, id ID) []byte {
	return end(begin(dst, CommandRemoveGroup, id))
}

// AppendJoin appends the command that lists a session and, if it names a predecessor,
// removes that one. Doubt is the new mark, 0 if it stays.
//
//	group u64 | session 16 | predecessor 16 | generation u32 | counter u32 | flags u8 | name string | client string | doubt u64 | returns
func AppendJoin(dst []byte, id ID, m *Member, doubt wire.Offset, returns []Return) []byte {
	dst, at := begin(dst, CommandJoin, id)
	dst = appendMember(dst, m)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(doubt))
	return end(appendReturns(dst, returns), at)
}

func appendMember(dst []byte, m *Member) []byte {
	dst = append(dst, m.ID[:]...)
	dst = append(dst, m.Predecessor[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, m.Binding.Generation)
	dst = binary.LittleEndian.AppendUint32(dst, m.Binding.Counter)
	dst = append(dst, byte(m.Flags))
	dst = appendString(dst, m.Name)
	return appendString(dst, m.Client)
}

// AppendRemove appends the command that removes a session. Doubt is the new mark, 0 if
// it stays.
//
//	group u64 | session 16 | reason u8 | doubt u64 | returns
func AppendRemove(dst []byte, id ID, session Session, reason uint8, doubt wire.Offset, returns []Return) []byte {
	dst, at := begin(dst, CommandRemove, id)
	dst = append(dst, session[:]...)
	dst = append(dst, reason)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(doubt))
	return end(appendReturns(dst, returns), at)
}

// AppendOutcomes appends the command that settles records and takes others back. Spans
// and returns of one list ascend and do not overlap.
//
//	group u64 | done: spans | count uvarint, each: session 16, returns, seen: spans
func AppendOutcomes(dst []byte, id ID, done []Span, taken []Taken) []byte {
	dst, at := begin(dst, CommandOutcomes, id)
	dst = appendSpans(dst, done)
	dst = binary.AppendUvarint(dst, uint64(len(taken)))
	for i := range taken {
		dst = append(dst, taken[i].Session[:]...)
		dst = appendReturns(dst, taken[i].Returns)
		dst = appendSpans(dst, taken[i].Seen)
	}
	return end(dst, at)
}

// AppendHorizon appends the command that raises the horizon.
//
//	group u64 | horizon u64
func AppendHorizon(dst []byte, id ID, horizon wire.Offset) []byte {
	dst, at := begin(dst, CommandHorizon, id)
	return end(binary.LittleEndian.AppendUint64(dst, uint64(horizon)), at)
}

// AppendPark appends the command that parks a scope from a record on.
//
//	group u64 | scope u64 | head u64 | on u8 | reason string
func AppendPark(dst []byte, id ID, scope Scope, head wire.Offset, reason string) []byte {
	return appendPark(dst, id, scope, head, true, reason)
}

// AppendUnpark appends the command that lets a parked scope go on.
func AppendUnpark(dst []byte, id ID, scope Scope) []byte {
	return appendPark(dst, id, scope, 0, false, "")
}

func appendPark(dst []byte, id ID, scope Scope, head wire.Offset, on bool, reason string) []byte {
	dst, at := begin(dst, CommandPark, id)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(scope))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(head))
	return end(appendString(appendBool(dst, on), reason), at)
}

// AppendActive appends the command that makes a session the active one, zero for none.
// The returns are those of the one before.
//
//	group u64 | session 16 | returns
func AppendActive(dst []byte, id ID, session Session, returns []Return) []byte {
	dst, at := begin(dst, CommandActive, id)
	return end(appendReturns(append(dst, session[:]...), returns), at)
}

// AppendSeek appends the command after which everything below floor is done and nothing
// from there on. One that repeats the last seek, by the same number that is not 0, changes nothing.
//
//	group u64 | floor u64 | number u64
func AppendSeek(dst []byte, id ID, floor wire.Offset, number uint64) []byte {
	dst, at := begin(dst, CommandSeek, id)
	return end(appendUint64s(dst, uint64(floor), number), at)
}

// AppendTable appends the command that hands the leases over to the next leader. They
// ascend by offset and do not overlap.
//
//	group u64 | count uvarint, each: session 16, epoch u64, gap uvarint, length uvarint
func AppendTable(dst []byte, id ID, leases []TableLease) []byte {
	dst, at := begin(dst, CommandTable, id)
	return end(appendTable(dst, leases), at)
}

func appendTable(dst []byte, leases []TableLease) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(leases)))
	var last wire.Offset
	for i := range leases {
		l := &leases[i]
		dst = append(dst, l.Session[:]...)
		dst = binary.LittleEndian.AppendUint64(dst, uint64(l.Epoch))
		dst = appendSpan(dst, &last, l.From, l.To)
	}
	return dst
}

// AppendTableVoid appends the command after which a table handed over is not used.
func AppendTableVoid(dst []byte, id ID) []byte {
	return end(begin(dst, CommandTableVoid, id))
}

// AppendLetter appends the command that takes a record from a session and out of its
// scope, to be written elsewhere.
//
//	group u64 | session 16 | number u64 | offset u64 | deliveries u16 | attempts u16 | reason u8 | text string
func AppendLetter(dst []byte, id ID, from Session, l *Letter) []byte {
	dst, at := begin(dst, CommandLetter, id)
	return end(appendLetter(append(dst, from[:]...), l), at)
}

func appendLetter(dst []byte, l *Letter) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, l.Number)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(l.Offset))
	dst = binary.LittleEndian.AppendUint16(dst, l.Deliveries)
	dst = binary.LittleEndian.AppendUint16(dst, l.Attempts)
	return appendString(append(dst, byte(l.Reason)), l.Text)
}

// AppendLetterDone appends the command that says that a letter is written.
//
//	group u64 | number u64
func AppendLetterDone(dst []byte, id ID, number uint64) []byte {
	dst, at := begin(dst, CommandLetterDone, id)
	return end(binary.LittleEndian.AppendUint64(dst, number), at)
}

// AppendLetterPath appends the command by which letters are written in another way from now
// on. Of those that were sent, those below the next sequence of the producer before are written.
//
//	group u64 | producer i64 | destination 16 | partition u32 | sequence u32 | metadata u64 | next u32
func AppendLetterPath(dst []byte, id ID, p *Path, next uint32) []byte {
	dst, at := begin(dst, CommandLetterPath, id)
	return end(binary.LittleEndian.AppendUint32(appendPath(dst, p), next), at)
}

func appendPath(dst []byte, p *Path) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(p.Producer))
	dst = append(dst, p.Destination[:]...)
	dst = binary.LittleEndian.AppendUint32(dst, p.Partition)
	dst = binary.LittleEndian.AppendUint32(dst, p.Sequence)
	return binary.LittleEndian.AppendUint64(dst, uint64(p.Metadata))
}

// AppendLetterSend appends the command after which letters may be sent, in this order.
//
//	group u64 | count uvarint, each: number u64
func AppendLetterSend(dst []byte, id ID, numbers []uint64) []byte {
	dst, at := begin(dst, CommandLetterSend, id)
	return end(appendNumbers(dst, numbers), at)
}

func appendNumbers(dst []byte, numbers []uint64) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(numbers)))
	return appendUint64s(dst, numbers...)
}

// AppendSubstitute appends the command by which a batch of one record is delivered in the
// place of the record at offset.
//
//	group u64 | offset u64 | length u32 | body batch
func AppendSubstitute(dst []byte, id ID, offset wire.Offset, record []byte) []byte {
	dst, at := begin(dst, CommandSubstitute, id)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(offset))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(record)))
	return end(append(dst, record...), at)
}

// AppendPause appends the command that pauses a group, or lets it go on.
//
//	group u64 | on u8
func AppendPause(dst []byte, id ID, on bool) []byte {
	dst, at := begin(dst, CommandPause, id)
	return end(appendBool(dst, on), at)
}

func appendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func appendString(dst []byte, s string) []byte {
	s = s[:min(len(s), 1<<16-1)]
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// appendSpan appends gap and length of a run behind the one that ended at last.
func appendSpan(dst []byte, last *wire.Offset, from, to wire.Offset) []byte {
	dst = binary.AppendUvarint(dst, uint64(from-*last))
	dst = binary.AppendUvarint(dst, uint64(to-from))
	*last = to
	return dst
}

// appendSpans appends: count uvarint, each: gap uvarint, length uvarint. A gap counts
// from the end of the run before, the first from 0.
func appendSpans(dst []byte, spans []Span) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(spans)))
	var last wire.Offset
	for _, s := range spans {
		dst = appendSpan(dst, &last, s.From, s.To)
	}
	return dst
}

// appendReturns appends: count uvarint, each: gap uvarint, length uvarint, deliveries
// uvarint, attempts uvarint, delayMs uvarint.
func appendReturns(dst []byte, returns []Return) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(returns)))
	var last wire.Offset
	for i := range returns {
		r := &returns[i]
		dst = appendSpan(dst, &last, r.From, r.To)
		dst = binary.AppendUvarint(dst, uint64(r.Deliveries))
		dst = binary.AppendUvarint(dst, uint64(r.Attempts))
		dst = binary.AppendUvarint(dst, uint64(r.DelayMs))
	}
	return dst
}

// reader takes a payload or a saved group apart and remembers the first fault.
type reader struct {
	src   []byte
	fault string // empty while all is well
}

func (r *reader) fail(fault string) {
	if r.fault == "" {
		r.fault = fault
	}
	r.src = nil
}

// done reports the first fault, or bytes that nothing read.
func (r *reader) done() error {
	if r.fault != "" {
		return fmt.Errorf("%w: %s", ErrState, r.fault)
	}
	if len(r.src) != 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrState, len(r.src))
	}
	return nil
}

// take splits n bytes off, or returns nil.
func (r *reader) take(n int) []byte {
	if n > len(r.src) {
		r.fail("it is cut short")
		return nil
	}
	b := r.src[:n:n]
	r.src = r.src[n:]
	return b
}

func (r *reader) uint8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) offset() wire.Offset { return wire.Offset(r.uint64()) }

// uvarint reads a number in its shortest form, so that equal states have equal bytes.
func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.src)
	if n <= 0 || n > 1 && r.src[n-1] == 0 {
		r.fail("a number is cut short, or longer than it must be")
		return 0
	}
	r.src = r.src[n:]
	return v
}

// below reads a number of at most limit.
func (r *reader) below(limit uint64) uint64 {
	v := r.uvarint()
	if v > limit {
		r.fail(fmt.Sprintf("number %d is above %d", v, limit))
		return 0
	}
	return v
}

func (r *reader) bool() bool {
	v := r.uint8()
	if v > 1 {
		r.fail("boolean is neither 0 nor 1")
	}
	return v == 1
}

func (r *reader) string() string { return string(r.take(int(r.uint16()))) }

func (r *reader) session() (s Session) {
	copy(s[:], r.take(len(s)))
	return s
}

// count checks the number n of things that follow, of at least size bytes each. What it
// returns is safe to allocate.
func (r *reader) count(n uint64, size int) int {
	if n > uint64(len(r.src)/size) {
		r.fail("a count is larger than the bytes that follow")
		return 0
	}
	return int(n)
}

// span reads a run of records behind the one that ended at last.
func (r *reader) span(last *wire.Offset) (from, to wire.Offset) {
	gap, length := r.uvarint(), r.uvarint()
	from = *last + wire.Offset(gap)
	to = from + wire.Offset(length)
	if r.fault == "" && (length == 0 || from < *last || to < from) {
		r.fail("a run of records is empty or wraps")
	}
	*last = to
	return from, to
}

func (r *reader) returns(last *wire.Offset) (x Return) {
	x.From, x.To = r.span(last)
	x.Deliveries, x.Attempts = uint16(r.below(math.MaxUint16)), uint16(r.below(math.MaxUint16))
	x.DelayMs = uint32(r.below(math.MaxUint32))
	return x
}

func (r *reader) settings() Settings {
	s, rest, err := wire.ParseGroupSettings(r.src)
	if err != nil {
		r.fail(err.Error())
		return Settings{}
	}
	r.src = rest
	return s
}

func (r *reader) member() *Member {
	m := &Member{ID: r.session(), Predecessor: r.session()}
	m.Binding = Binding{Generation: r.uint32(), Counter: r.uint32()}
	m.Flags = wire.AttachFlags(r.uint8())
	m.Name, m.Client = r.string(), r.string()
	return m
}

func (r *reader) table() []TableLease {
	leases := make([]TableLease, r.count(r.uvarint(), 16+8+1+1))
	var last wire.Offset
	for k := range leases {
		l := &leases[k]
		l.Session, l.Epoch = r.session(), wire.Index(r.uint64())
		l.From, l.To = r.span(&last)
	}
	return leases
}

func (r *reader) letter() (l Letter) {
	l.Number, l.Offset = r.uint64(), r.offset()
	l.Deliveries, l.Attempts = r.uint16(), r.uint16()
	l.Reason, l.Text = LetterReason(r.uint8()), r.string()
	return l
}

func (r *reader) path() (p Path) {
	p.Producer = int64(r.uint64())
	copy(p.Destination[:], r.take(16))
	p.Partition, p.Sequence, p.Metadata = r.uint32(), r.uint32(), wire.Index(r.uint64())
	return p
}

func (r *reader) numbers() []uint64 {
	var out []uint64
	for n := r.count(r.uvarint(), 8); n > 0 && r.fault == ""; n-- {
		out = append(out, r.uint64())
	}
	return out
}

package log

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// Damage is a run of frames whose headers are whole and whose bodies do not match
// their checksums. The chain of headers holds, so the log goes on behind it; what
// the bodies said is lost (RULES L8).
type Damage struct {
	File       string // name in the log's directory
	Position   int64  // of the first frame, in bytes
	End        int64  // behind the last frame
	FirstIndex wire.Index
	LastIndex  wire.Index
	Base       wire.Offset // records in [Base, Next) are lost; none if they are equal
	Next       wire.Offset
	segment    uint64 // sequence
	before     segment.Link
}

// DamagedError is what reading a damaged range returns. It matches ErrCorrupt.
type DamagedError struct{ Damage Damage }

func (e *DamagedError) Error() string {
	d := &e.Damage
	what := fmt.Sprintf("records at offsets %d to %d are", d.Base, d.Next-1)
	if d.Next-d.Base == 1 {
		what = fmt.Sprintf("the record at offset %d is", d.Base)
	}
	return fmt.Sprintf("%s damaged on the disk (%s, position %d)", what, d.File, d.Position)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *DamagedError) Is(target error) bool { return target == ErrCorrupt }

// maxDamage bounds the runs of damaged frames that a log lives with: with more,
// its disk cannot be trusted with anything, and the log is corrupt as a whole.
const maxDamage = 1024

// damages is what is known to be damaged. It is kept in a file too, so that a
// restart does not serve what is known to be rotten; a log that loses that file
// finds the damage again when it scrubs.
type damages struct {
	list atomic.Pointer[[]Damage] // by segment and position; replaced, never changed

	mu     sync.Mutex // not held across I/O
	saving bool
	unsaid bool // list is not what the file says
}

// all is the current list.
func (d *damages) all() []Damage {
	if list := d.list.Load(); list != nil {
		return *list
	}
	return nil
}

// add notes one damaged frame and reports whether it is news. It fails with
// errTooMuchDamage if there is no room.
func (d *damages) add(f Damage) (news bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.all()
	i, _ := slices.BinarySearchFunc(old, &f, compareDamage)
	if i > 0 && old[i-1].holds(f.segment, f.Position) || i < len(old) && old[i].holds(f.segment, f.Position) {
		return false, nil
	}
	list := make([]Damage, 0, len(old)+1)
	list = append(list, old[:i]...)
	list = appendDamage(list, f)
	for _, o := range old[i:] {
		list = appendDamage(list, o)
	}
	if len(list) > maxDamage {
		return false, errTooMuchDamage
	}
	d.list.Store(&list)
	d.unsaid = true
	return true, nil
}

// errEarlier is the cause of damage of which only the place is known any more.
var errEarlier = errors.New("found before")

var errTooMuchDamage = fmt.Errorf("more than %d ranges are damaged", maxDamage)

func compareDamage(d Damage, f *Damage) int {
	return cmp.Or(cmp.Compare(d.segment, f.segment), cmp.Compare(d.Position, f.Position))
}

// appendDamage adds the next run to a list, to its last one if that ends there.
func appendDamage(list []Damage, d Damage) []Damage {
	if n := len(list); n > 0 && list[n-1].segment == d.segment && list[n-1].End == d.Position {
		last := &list[n-1]
		last.End, last.LastIndex, last.Next = d.End, d.LastIndex, d.Next
		return list
	}
	return append(list, d)
}

func (d *Damage) holds(sequence uint64, pos int64) bool {
	return d.segment == sequence && d.Position <= pos && pos < d.End
}

// forget drops what lies at or below an entry that is no longer in the log.
func (d *damages) forget(last wire.Index) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.all()
	if len(old) == 0 || old[0].FirstIndex > last {
		return
	}
	kept := slices.DeleteFunc(slices.Clone(old), func(f Damage) bool { return f.LastIndex <= last })
	d.list.Store(&kept)
}

// cut drops what lies behind the end of the log, which recovery has moved back: other
// frames come to lie there.
func (d *damages) cut(last segment.Link, end Position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var kept []Damage
	for _, f := range d.all() {
		if f.LastIndex > last.Index {
			d.unsaid = true
			if f.FirstIndex > last.Index {
				continue
			}
			f.End, f.LastIndex, f.Next = end.Byte, last.Index, last.Next
		}
		kept = append(kept, f)
	}
	d.list.Store(&kept)
}

// heal drops one frame, which continues link, from the list: recovery has found it
// elsewhere. Of a run, what lies before and behind it stays.
func (d *damages) heal(sequence uint64, pos int64, link segment.Link, h *wire.FrameHeader) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var kept []Damage
	for _, f := range d.all() {
		if !f.holds(sequence, pos) {
			kept = append(kept, f)
			continue
		}
		if left := f; left.Position < pos {
			left.End, left.LastIndex, left.Next = pos, link.Index, link.Next
			kept = append(kept, left)
		}
		if right := f; pos+h.FrameSize() < right.End {
			right.Position, right.FirstIndex, right.Base, right.before = pos+h.FrameSize(), h.Index+1, h.NextOffset(), segment.After(h)
			kept = append(kept, right)
		}
		d.unsaid = true
	}
	d.list.Store(&kept)
}

// rename gives the runs the names that the files have now: recovery may have
// copied some.
func (d *damages) rename(segments []*segment.Segment) {
	list := slices.Clone(d.all())
	for i := range list {
		for _, s := range segments {
			if s.Sequence() == list[i].segment {
				list[i].File = s.Name()
			}
		}
	}
	d.list.Store(&list)
}

// at finds the run that holds a position, or nil.
func (d *damages) at(sequence uint64, pos int64) *Damage {
	list := d.all()
	i, _ := slices.BinarySearchFunc(list, &Damage{segment: sequence, Position: pos + 1}, compareDamage)
	if i > 0 && list[i-1].holds(sequence, pos) {
		return &list[i-1]
	}
	return nil
}

// clear returns how much of [from, end) of a segment may be read, or
// *DamagedError if from lies in a run that holds records.
func (d *damages) clear(sequence uint64, from, end int64) (int64, error) {
	list := d.all()
	if len(list) == 0 {
		return end, nil
	}
	i, _ := slices.BinarySearchFunc(list, &Damage{segment: sequence, Position: from + 1}, compareDamage)
	if i > 0 && list[i-1].holds(sequence, from) && list[i-1].Base < list[i-1].Next {
		return from, &DamagedError{Damage: list[i-1]}
	}
	for ; i < len(list) && list[i].segment == sequence; i++ {
		if list[i].Base < list[i].Next {
			return min(end, list[i].Position), nil
		}
	}
	return end, nil
}

// Damage lists what is known to be damaged, in order. The list does not change.
// Any goroutine.
func (l *Log) Damage() []Damage { return l.damage.all() }

// frameDamage describes one frame that continues link.
func frameDamage(sequence, fileID uint64, pos int64, link segment.Link, h *wire.FrameHeader) Damage {
	return Damage{
		File: segment.Name(sequence, fileID), segment: sequence, Position: pos, End: pos + h.FrameSize(),
		FirstIndex: h.Index, LastIndex: h.Index, Base: h.BaseOffset, Next: h.NextOffset(), before: link,
	}
}

// noteDamage remembers a damaged frame, says so in the log and in the file. It
// blocks on the disk; jobs and workers only. *CorruptionError means that there is
// too much.
func (l *Log) noteDamage(d Damage, cause error) error {
	news, err := l.damage.add(d)
	if err != nil {
		return &CorruptionError{File: path.Join(l.o.Dir, d.File), Position: d.Position, Cause: err}
	}
	if news {
		l.sayDamaged(&d, cause)
		l.saveDamage()
	}
	return nil
}

func (l *Log) sayDamaged(d *Damage, cause error) {
	l.logger.Error("stored records are damaged; reads of them answer CORRUPT, everything else goes on",
		"dir", l.o.Dir, "file", d.File, "position", d.Position, "entry", d.FirstIndex,
		"base_offset", d.Base, "next_offset", d.Next, "cause", cause)
}

// saveDamage writes the file. Who finds a writer at work leaves it to that one.
// A file that cannot be written costs only that the damage must be found again
// after a restart.
func (l *Log) saveDamage() {
	d := &l.damage
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.saving {
		return
	}
	d.saving = true
	for d.unsaid {
		d.unsaid = false
		content := encodeDamage(l.id, d.all())
		d.mu.Unlock()
		err := l.store.withReserve(func() error { return replaceFile(l.fs, l.o.Dir, damageName, content) })
		if err != nil {
			l.logger.Warn("list of damaged frames is not saved", "dir", l.o.Dir, "cause", err)
		}
		d.mu.Lock()
	}
	d.saving = false
}

// The list of damaged frames is replaced as a whole, like the manifest. All
// integers are little-endian.
//
//	+--------------------------------+--------+--------+-----------+
//	| magic "LKDAMAG\n"              | version| zero   |incarnation|   0
//	+--------------------------------+--------+--------+-----------+
//	| partition ID, 16 bytes                                       |  16
//	+----------------+---------------+-----------------------------+
//	| run count      | zero          | runs, 80 bytes each         |  32
//	+----------------+---------------+-----------------------------+
//	| CRC32C of all bytes before it, 4 bytes                       |
//	+--------------------------------------------------------------+
//
//	run:
//	+--------------------------------+-----------------------------+
//	| segment sequence               | position                    |   0
//	+--------------------------------+-----------------------------+
//	| end                            | first index                 |  16
//	+--------------------------------+-----------------------------+
//	| last index                     | base offset                 |  32
//	+--------------------------------+-----------------------------+
//	| next offset                    | term before                 |  48
//	+--------------------------------+---------------+-------------+
//	| append time before (ms)        | chain before  | zero        |  64
//	+--------------------------------+---------------+-------------+  80
//
// What stands before a run lets recovery look at its frames again: a run that is
// whole by then, because the file was repaired, is forgotten. The magic and the
// version keep their place, and the CRC is last, in every version.
const (
	damageName    = "damaged"
	damageMagic   = "LKDAMAG\n"
	damageVersion = 1
	damageFixed   = 40
	damageEntry   = 80
)

func encodeDamage(id segment.Identity, list []Damage) []byte {
	le := binary.LittleEndian
	dst := append([]byte(nil), damageMagic...)
	dst = le.AppendUint16(dst, damageVersion)
	dst = le.AppendUint16(dst, 0)
	dst = le.AppendUint32(dst, id.Incarnation)
	dst = append(dst, id.PartitionID[:]...)
	dst = le.AppendUint32(dst, uint32(len(list)))
	dst = le.AppendUint32(dst, 0)
	for i := range list {
		d := &list[i]
		for _, v := range [...]uint64{
			d.segment, uint64(d.Position), uint64(d.End), uint64(d.FirstIndex), uint64(d.LastIndex),
			uint64(d.Base), uint64(d.Next), uint64(d.before.Term), uint64(d.before.TimeMs), uint64(d.before.Chain),
		} {
			dst = le.AppendUint64(dst, v)
		}
	}
	return le.AppendUint32(dst, wire.Checksum(dst))
}

func parseDamage(src []byte) ([]Damage, segment.Identity, error) {
	var id segment.Identity
	if err := checkEnvelope(src, damageMagic, damageFixed, damageVersion); err != nil {
		return nil, id, err
	}
	le := binary.LittleEndian
	id.Incarnation = le.Uint32(src[12:])
	copy(id.PartitionID[:], src[16:])
	count := le.Uint32(src[32:])
	if count > maxDamage || len(src) != damageFixed+int(count)*damageEntry+4 {
		return nil, id, errLength
	}
	list := make([]Damage, count)
	for i := range list {
		b := src[damageFixed+i*damageEntry:]
		v := func(n int) uint64 { return le.Uint64(b[8*n:]) }
		d := Damage{
			segment: v(0), Position: int64(v(1)), End: int64(v(2)), FirstIndex: wire.Index(v(3)), LastIndex: wire.Index(v(4)),
			Base: wire.Offset(v(5)), Next: wire.Offset(v(6)),
		}
		d.before = segment.Link{Index: d.FirstIndex - 1, Term: wire.Term(v(7)), Next: d.Base, TimeMs: int64(v(8)), Chain: le.Uint32(b[72:])}
		if d.Position < segment.HeaderSize || d.End <= d.Position || d.Next < d.Base || d.FirstIndex == 0 || d.LastIndex < d.FirstIndex ||
			i > 0 && compareDamage(list[i-1], &d) >= 0 {
			return nil, id, errFields
		}
		list[i] = d
	}
	return list, id, nil
}

// readDamage loads what was found in earlier runs, as far as it lies in files of
// the log and is still damaged. A list that cannot be read is lost.
func (r *recovery) readDamage() error {
	l := r.l
	b, err := readFile(l.fs, r.path(damageName), damageFixed+maxDamage*damageEntry+4)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	var list []Damage
	var id segment.Identity
	if err == nil {
		list, id, err = parseDamage(b)
		if err == nil && id != l.id {
			err = errFields
		}
	}
	if errors.Is(err, ErrTooNew) {
		return fmt.Errorf("%s: %w", r.path(damageName), err)
	}
	if err != nil {
		l.logger.Warn("list of damaged frames cannot be read; the next scrub finds them again", "dir", l.o.Dir, "cause", err)
		l.damage.unsaid = true
		return nil
	}
	kept := list[:0]
	for _, d := range list {
		k := slices.IndexFunc(r.found, func(f foundSegment) bool { return f.sequence == d.segment })
		if k < 0 {
			continue // dropped since
		}
		f := &r.found[k]
		d.File = f.name()
		_, pos, cause, err := r.walk(f, d.Position, d.before, walkBodies, d.LastIndex, func(*wire.FrameHeader, int64) {})
		if err != nil {
			return err
		}
		if cause == nil && pos == d.End {
			l.logger.Info("damaged frames are whole again", "dir", l.o.Dir, "file", d.File, "position", d.Position)
			continue
		}
		kept = append(kept, d)
		l.sayDamaged(&d, cmp.Or(cause, errEarlier))
	}
	l.damage.unsaid = len(kept) < len(list)
	l.damage.list.Store(&kept)
	return nil
}

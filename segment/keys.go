package segment

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A key table lies beside a sealed segment and can be made again from it: for each
// hash of a key, and of a publisher, which records of the segment have it. It is read
// by pages, a few for each question, and never as a whole; so each page has a checksum
// of its own. All integers are little-endian.
//
// It is made of parts, one behind the other, each for the records behind those of the part
// before: so whoever makes it holds the runs of one part, and not of the segment. One
// table of a whole segment took 38 MiB of runs for 64 MiB of small records, and the
// collector as much again. A part is
//
//	+-----------------------------------------------+
//	| segment header, 128 bytes, magic "LKKEYTB\n"   |   0
//	+-----------------------+-----------------------+
//	| end position          | next offset           | 128
//	+-----------+-----------+-----------+-----------+
//	| keys      | their runs| publishers| their runs| 144
//	+-----------+-----------+-----------+-----------+
//	| part      | 1: last   | zero, to the end       | 160
//	+-----------+-----------+------------------------+
//
//	keys, each 16 bytes, by ascending hash, on pages of their own:
//	+-----------------------+-----------+-----------+
//	| hash                  | first run | runs      |
//	+-----------------------+-----------+-----------+
//	runs of keys, each 8 bytes, on pages of their own, those of a key by ascending offset:
//	+-----------------------+-----------------------+
//	| offset - base offset  | records               |
//	+-----------------------+-----------------------+
//	publishers and runs of publishers in the same way
//
// A page has 4,096 bytes, of which the last four are the CRC32C of file ID (8 bytes),
// page number in the file (4) and the 4,092 bytes before. The hash 0 has no entry. The next
// offset of a part is where the next part begins. Parts are numbered from 0.
const (
	keysMagic  = "LKKEYTB\n"
	keysFixed  = 168
	keySize    = 16
	keyRunSize = 8

	keyPage    = 4096
	keyPayload = keyPage - 4
	keysOnPage = keyPayload / keySize
	runsOnPage = keyPayload / keyRunSize

	// MaxKeyRuns bounds the runs of a key table, of keys and of publishers, and with them
	// the disk that it takes: 96 MiB each. A segment with more has none and is searched
	// itself.
	MaxKeyRuns = 4 << 20
	// KeyPartRuns is how many runs of keys, or of publishers, end a part of a key table,
	// with the batch that they are of. It bounds the memory that making a table takes: 16
	// bytes a run, and up to 24 for what is written of it.
	KeyPartRuns = 128 << 10
	// maxKeyParts is how many parts there can be: all but the last have so many runs.
	maxKeyParts = 2*(MaxKeyRuns/KeyPartRuns) + 1
)

// KeyRun says that records from offset Base + From on have a hash.
type KeyRun struct {
	Hash  uint64
	From  uint32
	Count uint32
}

// KeyRuns collects runs, by ascending offset.
type KeyRuns struct {
	base    wire.Offset
	runs    []KeyRun
	written int // runs of earlier parts
}

// Add notes n records from o on with a hash. It is false if there is no room for it.
func (k *KeyRuns) Add(hash uint64, o wire.Offset, n int) bool {
	if hash == 0 || n <= 0 {
		return true
	}
	from := uint64(o - k.base)
	if l := len(k.runs); l > 0 {
		if r := &k.runs[l-1]; r.Hash == hash && uint64(r.From)+uint64(r.Count) == from && uint64(r.Count)+uint64(n) <= math.MaxUint32 {
			r.Count += uint32(n)
			return true
		}
	}
	if k.written+len(k.runs) == MaxKeyRuns || from > math.MaxUint32 || n > math.MaxUint32 {
		return false
	}
	k.runs = append(k.runs, KeyRun{Hash: hash, From: uint32(from), Count: uint32(n)})
	return true
}

// sorted brings the runs into the order of the table and counts the hashes.
func (k *KeyRuns) sorted() (hashes int) {
	slices.SortFunc(k.runs, func(a, b KeyRun) int { return cmp.Or(cmp.Compare(a.Hash, b.Hash), cmp.Compare(a.From, b.From)) })
	for i, r := range k.runs {
		if i == 0 || k.runs[i-1].Hash != r.Hash {
			hashes++
		}
	}
	return hashes
}

// keyShape says where the lists of a part lie.
type keyShape struct {
	first                                    int64 // page
	keys, keyRuns, publishers, publisherRuns uint32
}

func pages(n uint32, each int64) int64 { return (int64(n) + each - 1) / each }

// list returns the first pages of the entries and of the runs of keys, or of publishers.
func (s *keyShape) list(publisher bool) (hashes, runs uint32, dirPage, runPage int64) {
	dirPage = s.first + 1
	runPage = dirPage + pages(s.keys, keysOnPage)
	if !publisher {
		return s.keys, s.keyRuns, dirPage, runPage
	}
	dirPage = runPage + pages(s.keyRuns, runsOnPage)
	return s.publishers, s.publisherRuns, dirPage, dirPage + pages(s.publishers, keysOnPage)
}

// behind is the page behind the part.
func (s *keyShape) behind() int64 {
	_, runs, _, page := s.list(true)
	return page + pages(runs, runsOnPage)
}

// appendKeys encodes a part of a key table, which begins with a page of the file. It sorts
// the runs.
func appendKeys(dst []byte, h *Header, end int64, next wire.Offset, first int64, number int, last bool, keys, publishers *KeyRuns) []byte {
	shape := keyShape{
		keys: uint32(keys.sorted()), keyRuns: uint32(len(keys.runs)),
		publishers: uint32(publishers.sorted()), publisherRuns: uint32(len(publishers.runs)),
	}
	at, size := len(dst), int(shape.behind())*keyPage
	dst = slices.Grow(dst, size)[:at+size]
	b := dst[at:]
	clear(b)
	h.Encode(b)
	copy(b, keysMagic)
	le := binary.LittleEndian
	le.PutUint64(b[128:], uint64(end))
	le.PutUint64(b[136:], uint64(next))
	le.PutUint32(b[144:], shape.keys)
	le.PutUint32(b[148:], shape.keyRuns)
	le.PutUint32(b[152:], shape.publishers)
	le.PutUint32(b[156:], shape.publisherRuns)
	le.PutUint32(b[160:], uint32(number))
	if last {
		le.PutUint32(b[164:], 1)
	}
	for _, publisher := range []bool{false, true} {
		list := keys.runs
		if publisher {
			list = publishers.runs
		}
		_, _, dirPage, runPage := shape.list(publisher)
		entry := -1
		var counted []byte
		for i, r := range list {
			if i == 0 || list[i-1].Hash != r.Hash {
				entry++
				e := b[dirPage*keyPage+int64(entry/keysOnPage)*keyPage+int64(entry%keysOnPage)*keySize:]
				le.PutUint64(e, r.Hash)
				le.PutUint32(e[8:], uint32(i))
				counted = e[12:16]
			}
			le.PutUint32(counted, le.Uint32(counted)+1)
			e := b[runPage*keyPage+int64(i/runsOnPage)*keyPage+int64(i%runsOnPage)*keyRunSize:]
			le.PutUint32(e, r.From)
			le.PutUint32(e[4:], r.Count)
		}
	}
	for n := int64(0); n*keyPage < int64(len(b)); n++ {
		page := b[n*keyPage:][:keyPage]
		le.PutUint32(page[keyPayload:], keyPageSum(h.FileID, first+n, page))
	}
	return dst
}

func keyPageSum(fileID uint64, n int64, page []byte) uint32 {
	var place [12]byte
	binary.LittleEndian.PutUint64(place[:], fileID)
	binary.LittleEndian.PutUint32(place[8:], uint32(n))
	return wire.UpdateChecksum(wire.Checksum(place[:]), page[:keyPayload])
}

// keySumsIgnored is set by IgnoreKeySums.
var keySumsIgnored atomic.Bool

// IgnoreKeySums takes the checksums of key tables away, or brings them back. It is for
// the test that shows them to be needed, and does nothing in release builds.
func IgnoreKeySums(ignore bool) { keySumsIgnored.Store(ignore) }

// KeyTable is an open key table. Not for concurrent use.
type KeyTable struct {
	r      io.ReaderAt
	header Header
	parts  []keyPart
	end    int64
	next   wire.Offset
	page   [keyPage]byte
	held   int64 // number of what is in page, -1: nothing
}

// keyPart is a part of a table: the records below next that are in no part before.
type keyPart struct {
	shape keyShape
	next  wire.Offset
}

// openKeys reads and checks the first pages of the parts of a table of size bytes. It reads
// no more than it is asked for: what is wrong with other pages is known when they are read.
func openKeys(r io.ReaderAt, size int64, fileID uint64) (*KeyTable, error) {
	t := &KeyTable{r: r, held: -1}
	t.header.FileID = fileID
	var runs, publisherRuns uint64
	for page, last := int64(0), false; !last; {
		b, err := t.read(page)
		if err != nil {
			return nil, err
		}
		if string(b[:8]) != keysMagic {
			return nil, fmt.Errorf("key table: %w", ErrFormat)
		}
		var fixed [HeaderSize]byte
		copy(fixed[:], b)
		copy(fixed[:], headerMagic)
		header, err := ParseHeader(fixed[:])
		if err != nil {
			return nil, fmt.Errorf("key table: %w", err)
		}
		le := binary.LittleEndian
		end, next := int64(le.Uint64(b[128:])), wire.Offset(le.Uint64(b[136:]))
		if page == 0 {
			t.header, t.end, t.next = header, end, header.Previous.Next
		}
		p := keyPart{next: next, shape: keyShape{
			first: page, keys: le.Uint32(b[144:]), keyRuns: le.Uint32(b[148:]), publishers: le.Uint32(b[152:]), publisherRuns: le.Uint32(b[156:]),
		}}
		s := &p.shape
		runs, publisherRuns = runs+uint64(s.keyRuns), publisherRuns+uint64(s.publisherRuns)
		number, isLast := le.Uint32(b[160:]), le.Uint32(b[164:])
		page, last = s.behind(), isLast == 1
		if runs > MaxKeyRuns || publisherRuns > MaxKeyRuns || s.keys > s.keyRuns || s.publishers > s.publisherRuns ||
			int(number) != len(t.parts) || len(t.parts) == maxKeyParts || page*keyPage > size || last != (page*keyPage == size) ||
			next < t.next || header != t.header || header.FileID != fileID || end != t.end {
			return nil, fmt.Errorf("key table: part %d: %d keys, %d publishers in %d bytes: %w", len(t.parts), s.keys, s.publishers, size, ErrFormat)
		}
		t.next = next
		t.parts = append(t.parts, p)
	}
	return t, nil
}

// read returns a page, valid until the next one is read.
func (t *KeyTable) read(n int64) ([]byte, error) {
	if t.held == n {
		return t.page[:keyPayload], nil
	}
	t.held = -1
	if got, err := t.r.ReadAt(t.page[:], n*keyPage); got < keyPage {
		if err == nil || errors.Is(err, io.EOF) {
			err = fmt.Errorf("key table: page %d: %w", n, ErrFormat)
		}
		return nil, err
	}
	if binary.LittleEndian.Uint32(t.page[keyPayload:]) != keyPageSum(t.header.FileID, n, t.page[:]) && !(invariants.Enabled && keySumsIgnored.Load()) {
		return nil, fmt.Errorf("key table: page %d: %w", n, ErrChecksum)
	}
	t.held = n
	return t.page[:keyPayload], nil
}

// entry returns a hash and its runs.
func (t *KeyTable) entry(dirPage int64, i uint32) (hash uint64, first, count uint32, err error) {
	b, err := t.read(dirPage + int64(i/keysOnPage))
	if err != nil {
		return 0, 0, 0, err
	}
	e := b[i%keysOnPage*keySize:]
	le := binary.LittleEndian
	return le.Uint64(e), le.Uint32(e[8:]), le.Uint32(e[12:]), nil
}

// run returns offsets [from, to).
func (t *KeyTable) run(runPage int64, i uint32) (from, to wire.Offset, err error) {
	b, err := t.read(runPage + int64(i/runsOnPage))
	if err != nil {
		return 0, 0, err
	}
	e := b[i%runsOnPage*keyRunSize:]
	le := binary.LittleEndian
	from = t.header.Previous.Next + wire.Offset(le.Uint32(e))
	return from, from + wire.Offset(le.Uint32(e[4:])), nil
}

// Runs yields the runs of a hash, of a key or of a publisher, that end behind from, by
// ascending offset, until yield is false. Those of two parts may follow on each other.
func (t *KeyTable) Runs(hash uint64, publisher bool, from wire.Offset, yield func(from, to wire.Offset) bool) error {
	for i := range t.parts {
		if t.parts[i].next <= from {
			continue
		}
		if more, err := t.runsOf(&t.parts[i], hash, publisher, from, yield); !more || err != nil {
			return err
		}
	}
	return nil
}

// runsOf is Runs for a part. more is what yield has said last.
func (t *KeyTable) runsOf(p *keyPart, hash uint64, publisher bool, from wire.Offset, yield func(from, to wire.Offset) bool) (more bool, err error) {
	hashes, runs, dirPage, runPage := p.shape.list(publisher)
	i := search(hashes, func(i uint32) bool {
		h, _, _, e := t.entry(dirPage, i)
		err = errors.Join(err, e)
		return e == nil && h >= hash
	})
	if err != nil || i == hashes {
		return true, err
	}
	h, first, count, err := t.entry(dirPage, i)
	if err != nil || h != hash {
		return true, err
	}
	if uint64(first)+uint64(count) > uint64(runs) {
		return false, fmt.Errorf("key table: runs [%d, %d) of %d: %w", first, uint64(first)+uint64(count), runs, ErrFormat)
	}
	i = search(count, func(i uint32) bool {
		_, to, e := t.run(runPage, first+i)
		err = errors.Join(err, e)
		return e == nil && to > from
	})
	for ; i < count && err == nil; i++ {
		var a, b wire.Offset
		if a, b, err = t.run(runPage, first+i); err == nil && (a >= b || b > p.next) {
			err = fmt.Errorf("key table: records [%d, %d), the part ends at %d: %w", a, b, p.next, ErrFormat)
		}
		if err == nil && !yield(a, b) {
			return false, nil
		}
	}
	return true, err
}

// search is sort.Search for counts of this file.
func search(n uint32, f func(uint32) bool) uint32 {
	lo, hi := uint32(0), n
	for lo < hi {
		if mid := lo + (hi-lo)/2; f(mid) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// States of a segment's key table.
const (
	KeysUnknown int32 = iota // nobody has looked
	KeysThere
	KeysNone // it cannot be made
)

// Keys says what is known of the key table. Any goroutine.
func (s *Segment) Keys() int32 { return s.keys.Load() }

// SetKeys says what is known of the key table. Any goroutine.
func (s *Segment) SetKeys(state int32) { s.keys.Store(state) }

// KeysWriter makes the key table of a sealed segment. Add to Keys and Publishers what the
// batches have, and call Cut behind each; Finish or Abort ends it. Not for concurrent use.
type KeysWriter struct {
	Keys, Publishers KeyRuns

	s     *Segment
	room  func(n int64) error
	runs  int // KeyPartRuns
	name  string
	file  vfs.File // nil before the first part
	pages int64
	parts int
	b     []byte
}

// NewKeysWriter begins a key table. room is asked before n bytes are taken from the disk.
func (s *Segment) NewKeysWriter(room func(n int64) error) *KeysWriter {
	base := s.Header().Previous.Next
	return &KeysWriter{
		Keys: KeyRuns{base: base}, Publishers: KeyRuns{base: base},
		s: s, room: room, runs: KeyPartRuns, name: path.Join(s.dir, KeysName(s.sequence, s.fileID)),
	}
}

// Cut says that everything below next was added. It may block. After an error Abort is
// what is left to do.
func (w *KeysWriter) Cut(next wire.Offset) error {
	if len(w.Keys.runs) < w.runs && len(w.Publishers.runs) < w.runs {
		return nil
	}
	return w.write(next, false)
}

func (w *KeysWriter) write(next wire.Offset, last bool) error {
	h := w.s.Header()
	w.b = appendKeys(w.b[:0], &h, w.s.End(), next, w.pages, w.parts, last, &w.Keys, &w.Publishers)
	err := w.room(int64(len(w.b)))
	if err == nil && w.file == nil {
		w.file, err = createAnew(w.s.env.FS, w.name)
	}
	if err == nil {
		err = writeAllocated(w.file, w.b, w.pages*keyPage)
	}
	if err != nil {
		return fmt.Errorf("segment %s: key table: %w", w.s.name, err)
	}
	w.pages += int64(len(w.b)) / keyPage
	w.parts++
	for _, k := range []*KeyRuns{&w.Keys, &w.Publishers} {
		k.written += len(k.runs)
		k.runs = k.runs[:0]
	}
	return nil
}

// Finish writes the rest of the table of a segment whose records end before next, and syncs
// the file. It may block. The file is not needed after a crash: its absence only costs a
// scan. After an error there is none.
func (w *KeysWriter) Finish(next wire.Offset) error {
	err := w.write(next, true)
	if err == nil {
		if err = w.file.Sync(); err != nil {
			err = fmt.Errorf("segment %s: key table: %w", w.s.name, Final(err))
		}
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	if err := w.file.Close(); err != nil {
		return errors.Join(err, w.s.env.FS.Remove(w.name))
	}
	w.s.SetKeys(KeysThere)
	return nil
}

// Abort takes back what was written.
func (w *KeysWriter) Abort() error {
	if w.file == nil {
		return nil
	}
	return errors.Join(w.file.Close(), w.s.env.FS.Remove(w.name))
}

// OpenKeys opens the key table of a sealed segment for use and checks that it is of
// this file as it is. It may block. The caller closes the file.
func (s *Segment) OpenKeys() (*KeyTable, vfs.File, error) {
	f, err := s.env.FS.OpenReadOnly(path.Join(s.dir, KeysName(s.sequence, s.fileID)))
	if err != nil {
		return nil, nil, err
	}
	size, err := f.Size()
	if err == nil {
		var t *KeyTable
		if t, err = openKeys(f, size, s.fileID); err == nil {
			if t.header == s.Header() && t.end == s.End() {
				return t, f, nil
			}
			err = fmt.Errorf("key table: of another file: %w", ErrFormat)
		}
	}
	return nil, nil, errors.Join(err, f.Close())
}

package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"sync"
	"sync/atomic"

	"crypto/sha256"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// The hard states of all partitions of a store lie in one file, so that votes of
// many partitions share one sync. Page 0 and page 1 hold the file header, in
// turns; after them come pairs of pages with 64 slots each. Copy A of slot n lies
// in the first page of pair n/64, copy B at the same place of the second: a write
// never touches the page of the copy that is valid. All integers are
// little-endian.
//
//	header, at 0 and 4096:
//	 0                                8        10                  16
//	+--------------------------------+--------+--------------------+
//	| magic "LKHARDS\n"              | version| zero               |
//	+--------------------------------+--------+--------------------+
//	| store UUID, 16 bytes                                         |  16
//	+--------------------------------+-----------------------------+
//	| open count                     | zero                        |  32
//	+--------------------------------+---------------+-------------+
//	| zero                                           | CRC32C      |  48
//	+------------------------------------------------+-------------+  64
//
//	slot n, at (2 + 2*(n/64))*4096 + (n%64)*64, and one page behind:
//	+----------------+-------+-------+-------------+---------------+
//	| CRC32C of 4..64|version| flags | zero        | sequence      |   0 (4+1+1+2+4)
//	+----------------+-------+-------+-------------+---------------+
//	| boot tag, 4 bytes                                            |  12
//	+--------------------------------------------------------------+
//	| identity, 16 bytes                                           |  16
//	+--------------------------------+-----------------------------+
//	| term                           | vote                        |  32
//	+--------------------------------+-----------------------------+
//	| commit                         | durable mark                |  48
//	+--------------------------------+-----------------------------+  64
//
// The identity is the start of the SHA-256 of partition ID, incarnation and
// replica ID: a replica that comes back under another ID has another slot. The
// copy with the higher sequence counts; a copy of zeros was never written. A
// copy lies in one sector, so one that is neither zero nor valid is rot, not a
// torn write. The open count makes file IDs unique over restarts.
const (
	hardStateName    = "hardstate"
	hardStateMagic   = "LKHARDS\n"
	hardStateVersion = 1

	statePage      = 4096
	slotSize       = 64
	slotsPerPage   = statePage / slotSize
	stateGrowth    = 16 * statePage // 8 pairs of pages, 512 slots
	maxHardState   = 256 << 20      // bytes: 2 million slots
	slotClean      = 1 << 0         // the log was closed in order, nothing was written since
	slotFenced     = 1 << 1         // a write or sync failed
	slotUncertain  = 1 << 2         // records may have been lost with the machine (RULES L5)
	slotVolatile   = 1 << 3         // a mode was set in which that can happen
	headerChecked  = 60
	firstSlotPages = 2
)

// slotState is the content of a slot.
type slotState struct {
	flags    uint8
	sequence uint32
	boot     uint32
	identity [16]byte
	term     wire.Term
	vote     uint64
	commit   wire.Index
	mark     wire.Index
}

func (s *slotState) encode(dst []byte) {
	dst = dst[:slotSize]
	clear(dst)
	le := binary.LittleEndian
	dst[4], dst[5] = hardStateVersion, s.flags
	le.PutUint32(dst[8:], s.sequence)
	le.PutUint32(dst[12:], s.boot)
	copy(dst[16:], s.identity[:])
	le.PutUint64(dst[32:], uint64(s.term))
	le.PutUint64(dst[40:], s.vote)
	le.PutUint64(dst[48:], uint64(s.commit))
	le.PutUint64(dst[56:], uint64(s.mark))
	le.PutUint32(dst, wire.Checksum(dst[4:]))
}

// says reports whether both say the same about the replica.
func (s *slotState) says(o *slotState) bool {
	return s.flags == o.flags && s.boot == o.boot && s.term == o.term && s.vote == o.vote && s.commit == o.commit && s.mark == o.mark
}

var errSlotEmpty = errors.New("slot was never written")

func parseSlot(src []byte) (slotState, error) {
	src = src[:slotSize]
	if [slotSize]byte(src) == [slotSize]byte{} {
		return slotState{}, errSlotEmpty
	}
	le := binary.LittleEndian
	if wire.Checksum(src[4:]) != le.Uint32(src) {
		return slotState{}, errChecksum
	}
	if src[4] == 0 || src[4] > hardStateVersion {
		return slotState{}, fmt.Errorf("slot version %d, this build reads up to %d: %w", src[4], hardStateVersion, ErrTooNew)
	}
	s := slotState{
		flags:    src[5],
		sequence: le.Uint32(src[8:]),
		boot:     le.Uint32(src[12:]),
		term:     wire.Term(le.Uint64(src[32:])),
		vote:     le.Uint64(src[40:]),
		commit:   wire.Index(le.Uint64(src[48:])),
		mark:     wire.Index(le.Uint64(src[56:])),
	}
	copy(s.identity[:], src[16:])
	return s, nil
}

func encodeStateHeader(dst []byte, uuid [16]byte, opens uint64) {
	dst = dst[:slotSize]
	clear(dst)
	copy(dst, hardStateMagic)
	binary.LittleEndian.PutUint16(dst[8:], hardStateVersion)
	copy(dst[16:], uuid[:])
	binary.LittleEndian.PutUint64(dst[32:], opens)
	binary.LittleEndian.PutUint32(dst[headerChecked:], wire.Checksum(dst[:headerChecked]))
}

func parseStateHeader(src []byte) (uuid [16]byte, opens uint64, err error) {
	le := binary.LittleEndian
	switch {
	case len(src) < slotSize || string(src[:8]) != hardStateMagic:
		return uuid, 0, errMagic
	case wire.Checksum(src[:headerChecked]) != le.Uint32(src[headerChecked:]):
		return uuid, 0, errChecksum
	case le.Uint16(src[8:]) == 0 || le.Uint16(src[8:]) > hardStateVersion:
		return uuid, 0, fmt.Errorf("version %d, this build reads up to %d: %w", le.Uint16(src[8:]), hardStateVersion, ErrTooNew)
	}
	copy(uuid[:], src[16:])
	return uuid, le.Uint64(src[32:]), nil
}

// slot is one partition's place in the file. It has one user at a time: the open
// log, and of that log one job.
type slot struct {
	number  int
	last    slotState // as written
	written bool
	damaged bool // a copy is rotten: what it said is unknown
}

func (s *slot) position(copyB bool) int64 {
	page := int64(firstSlotPages + 2*(s.number/slotsPerPage))
	if copyB {
		page++
	}
	return page*statePage + int64(s.number%slotsPerPage)*slotSize
}

func slotIdentity(id segment.Identity, replicaID uint64) [16]byte {
	var b [28]byte
	copy(b[:], id.PartitionID[:])
	binary.LittleEndian.PutUint32(b[16:], id.Incarnation)
	binary.LittleEndian.PutUint64(b[20:], replicaID)
	sum := sha256.Sum256(b[:])
	return [16]byte(sum[:16])
}

// hardStates is the open file. Slots are written by jobs of many logs at once;
// a sync covers every write that finished before it began, so that waiting jobs
// share it.
type hardStates struct {
	file  vfs.File
	path  string
	uuid  [16]byte
	opens uint64

	mu      sync.Mutex // not held across I/O
	cond    *sync.Cond
	slots   map[[16]byte]*slot
	free    []int // numbers, taken from the back
	count   int   // slots in the file
	rotten  int   // slots with no valid copy that are not zero
	writes  uint64
	synced  uint64 // writes ≤ synced are durable
	syncing bool
	growing bool
	err     error       // first failed write or sync: nothing is written afterwards
	failed  atomic.Bool // err is set
}

// openHardStates reads the file, or creates it with the given identity.
func openHardStates(fs vfs.FS, dir string, uuid [16]byte) (*hardStates, error) {
	h := &hardStates{path: path.Join(dir, hardStateName), uuid: uuid, slots: map[[16]byte]*slot{}}
	h.cond = sync.NewCond(&h.mu)
	f, err := fs.Open(h.path)
	if errors.Is(err, iofs.ErrNotExist) {
		if err = createHardStates(fs, dir, uuid); err == nil {
			f, err = fs.Open(h.path)
		}
	}
	if err != nil {
		return nil, err
	}
	h.file = f
	if err := h.read(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return h, nil
}

func createHardStates(fs vfs.FS, dir string, uuid [16]byte) error {
	content := make([]byte, firstSlotPages*statePage+stateGrowth)
	encodeStateHeader(content, uuid, 0)
	encodeStateHeader(content[statePage:], uuid, 0)
	return replaceFile(fs, dir, hardStateName, content)
}

// read loads header and slots and raises the open count durably.
func (h *hardStates) read() error {
	size, err := h.file.Size()
	if err != nil {
		return err
	}
	if size < firstSlotPages*statePage || size > maxHardState {
		return &CorruptionError{File: h.path, Cause: fmt.Errorf("file has %d bytes", size)}
	}
	b := make([]byte, size)
	if n, err := h.file.ReadAt(b, 0); int64(n) < size {
		return fmt.Errorf("%s: read: %w", h.path, err)
	}
	uuidA, opensA, errA := parseStateHeader(b)
	uuidB, opensB, errB := parseStateHeader(b[statePage:])
	switch {
	case errors.Is(errA, ErrTooNew) || errors.Is(errB, ErrTooNew):
		return fmt.Errorf("%s: %w", h.path, errors.Join(errA, errB))
	case errA != nil && errB != nil:
		return &CorruptionError{File: h.path, Cause: fmt.Errorf("both headers: %w", errA)}
	case errA == nil && errB == nil && uuidA != uuidB:
		return &CorruptionError{File: h.path, Cause: errors.New("headers of two stores")}
	case errA == nil:
		h.uuid = uuidA
	default:
		h.uuid = uuidB
	}
	// A damaged copy may have held a count one higher than the other.
	h.opens = max(opensA, opensB) + 1
	if errA != nil || errB != nil {
		h.opens++
	}
	var header [slotSize]byte
	encodeStateHeader(header[:], h.uuid, h.opens)
	at := int64(0)
	if errA == nil && (errB != nil || opensA > opensB) {
		at = statePage
	}
	if _, err := h.file.WriteAt(header[:], at); err != nil {
		return fmt.Errorf("%s: write header: %w", h.path, err)
	}
	// After a failed sync of an earlier run the page cache may show slots that the
	// disk does not have. Written again they are what this run relies on.
	if _, err := h.file.WriteAt(b[firstSlotPages*statePage:], firstSlotPages*statePage); err != nil {
		return fmt.Errorf("%s: write slots: %w", h.path, err)
	}
	if err := h.file.Sync(); err != nil {
		return fmt.Errorf("%s: sync: %w", h.path, err)
	}
	return h.readSlots(b)
}

func (h *hardStates) readSlots(b []byte) error {
	h.count = (len(b)/statePage - firstSlotPages) / 2 * slotsPerPage
	for n := range h.count {
		s := &slot{number: n}
		posA, posB := s.position(false), s.position(true)
		a, errA := parseSlot(b[posA:])
		c, errB := parseSlot(b[posB:])
		switch {
		case errors.Is(errA, ErrTooNew) || errors.Is(errB, ErrTooNew):
			return fmt.Errorf("%s: position %d: %w", h.path, posA, errors.Join(errA, errB))
		case errA == errSlotEmpty && errB == errSlotEmpty:
			h.free = append(h.free, n)
			continue
		case errA != nil && errB != nil:
			h.rotten++
			continue
		case errA == nil && (errB != nil || int32(a.sequence-c.sequence) > 0):
			s.last = a
		default:
			s.last = c
		}
		s.written = true
		s.damaged = errA == errChecksum || errB == errChecksum
		if old := h.slots[s.last.identity]; old != nil {
			return &CorruptionError{File: h.path, Position: posA, Cause: fmt.Errorf("slots %d and %d are of one replica", old.number, n)}
		}
		h.slots[s.last.identity] = s
	}
	// Low numbers are taken first, so that active slots share pages.
	for i, j := 0, len(h.free)-1; i < j; i, j = i+1, j-1 {
		h.free[i], h.free[j] = h.free[j], h.free[i]
	}
	return nil
}

// find returns the slot of a replica, or nil.
func (h *hardStates) find(identity [16]byte) *slot {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.slots[identity]
}

// storeUUID reads the UUID of the store in dir and changes nothing.
func storeUUID(fs vfs.FS, dir string) (uuid [16]byte, err error) {
	name := path.Join(dir, hardStateName)
	f, err := fs.OpenReadOnly(name)
	if err != nil {
		return uuid, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var b [statePage + slotSize]byte
	if n, err := f.ReadAt(b[:], 0); n < len(b) {
		return uuid, fmt.Errorf("%s: read: %w", name, err)
	}
	uuid, _, errA := parseStateHeader(b[:])
	if errA == nil {
		return uuid, nil
	}
	uuid, _, err = parseStateHeader(b[statePage:])
	if errors.Is(errA, ErrTooNew) || errors.Is(err, ErrTooNew) {
		return uuid, fmt.Errorf("%s: %w", name, errors.Join(errA, err))
	}
	if err != nil {
		return uuid, &CorruptionError{File: name, Cause: fmt.Errorf("both headers: %w", errA)}
	}
	return uuid, nil
}

// take gives a replica without a slot one. It may block, to grow the file, for
// which withSpace takes the space.
func (h *hardStates) take(identity [16]byte, withSpace func(func() error) error) (*slot, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if s := h.slots[identity]; s != nil {
			return s, nil
		}
		if h.err != nil {
			return nil, h.err
		}
		if n := len(h.free); n > 0 {
			s := &slot{number: h.free[n-1], last: slotState{identity: identity}}
			h.free = h.free[:n-1]
			h.slots[identity] = s
			return s, nil
		}
		if h.growing {
			h.cond.Wait()
			continue
		}
		h.growing = true
		size := int64(firstSlotPages*statePage) + int64(h.count/slotsPerPage)*2*statePage
		h.mu.Unlock()
		err := errStateLimit
		if size+stateGrowth <= maxHardState {
			err = withSpace(func() error { return h.file.Allocate(size, stateGrowth) })
		}
		h.mu.Lock()
		h.growing = false
		h.cond.Broadcast()
		if err != nil {
			return nil, fmt.Errorf("%s: grow: %w", h.path, err)
		}
		first := h.count
		h.count += stateGrowth / statePage / 2 * slotsPerPage
		for n := h.count - 1; n >= first; n-- {
			h.free = append(h.free, n)
		}
	}
}

var errStateLimit = fmt.Errorf("the limit of %d bytes is reached", maxHardState)

// drop clears the slot of a replica that is gone, durably.
func (h *hardStates) drop(identity [16]byte) error {
	s := h.find(identity)
	if s == nil {
		return nil
	}
	var zero [slotSize]byte
	for _, copyB := range []bool{false, true} {
		if err := h.writeAt(zero[:], s.position(copyB)); err != nil {
			return err
		}
	}
	if err := h.sync(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.slots, identity)
	h.free = append(h.free, s.number)
	return nil
}

// write puts a new state into the copy that is not the newest. It is durable
// after the next sync. The slot's one user calls it.
func (h *hardStates) write(s *slot, st slotState) error {
	st.identity = s.last.identity
	st.sequence = s.last.sequence + 1
	var b [slotSize]byte
	st.encode(b[:])
	if err := h.writeAt(b[:], s.position(st.sequence&1 == 1)); err != nil {
		return err
	}
	s.last, s.written = st, true
	return nil
}

func (h *hardStates) writeAt(b []byte, at int64) error {
	h.mu.Lock()
	err := h.err
	h.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = h.file.WriteAt(b, at)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		return h.failLocked(fmt.Errorf("%s: position %d: write: %w", h.path, at, segment.Final(err)))
	}
	h.writes++
	return h.err
}

// failLocked remembers the first error. After it no log of the store can make a
// vote durable: all of them are fenced, see Log.Err.
func (h *hardStates) failLocked(err error) error {
	if h.err == nil {
		h.err = err
		h.failed.Store(true)
	}
	return h.err
}

// sync makes all writes that returned before it durable. Callers that wait
// together share one sync; after one that failed there is never another.
func (h *hardStates) sync() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	target := h.writes
	for h.synced < target && h.err == nil {
		if h.syncing {
			h.cond.Wait()
			continue
		}
		h.syncing = true
		covered := h.writes
		h.mu.Unlock()
		err := h.file.Sync()
		h.mu.Lock()
		h.syncing = false
		if err != nil {
			_ = h.failLocked(fmt.Errorf("%s: sync: %w", h.path, segment.Final(err)))
		} else {
			h.synced = covered
		}
		h.cond.Broadcast()
	}
	if h.synced >= target {
		return nil
	}
	return h.err
}

func (h *hardStates) close() error { return h.file.Close() }

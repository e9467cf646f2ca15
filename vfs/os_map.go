package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"golang.org/x/sys/unix"
)

const (
	// maxReservedBytes and maxReservedRanges bound the address space that
	// invariants builds keep without access after Unmap. Beyond either, the oldest
	// range is really unmapped. No memory hangs on them, only page-table space.
	maxReservedBytes  = 64 << 30
	maxReservedRanges = 4096
	// populateScratch is the buffer of the fallback that reads instead of populating.
	populateScratch = 256 << 10
)

var pageSize = int64(os.Getpagesize())

// populateReadWorks asks the kernel once whether it knows MADV_POPULATE_READ
// (5.14 and later).
var populateReadWorks = sync.OnceValue(func() bool {
	page, err := unix.Mmap(-1, 0, int(pageSize), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false
	}
	defer unix.Munmap(page)
	return ignoringEINTR(func() error { return unix.Madvise(page, unix.MADV_POPULATE_READ) }) == nil
})

// mapping is a PROT_READ, MAP_SHARED mapping of a descriptor.
type mapping struct {
	name  string
	addr  unsafe.Pointer
	bytes []byte
	done  atomic.Bool
	// d is held only where it is needed: by kernels that cannot populate, and
	// by memory files, whose charge lasts as long as their pages.
	d            *descriptor
	populateRead bool
}

// newMapping maps [0, n) of d, which the caller keeps open meanwhile.
func newMapping(name string, d *descriptor, n int64, populateRead bool) (*mapping, error) {
	if n <= 0 || int64(int(n)) != n {
		return nil, unix.EINVAL
	}
	var addr unsafe.Pointer
	err := ignoringEINTR(func() (err error) {
		addr, err = unix.MmapPtr(d.fd, 0, nil, uintptr(n), unix.PROT_READ, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return nil, err
	}
	m := &mapping{name: name, addr: addr, bytes: unsafe.Slice((*byte)(addr), n), populateRead: populateRead}
	if !populateRead {
		m.keep(d)
	}
	return m, nil
}

// keep makes the mapping hold its own reference to d until Unmap.
func (m *mapping) keep(d *descriptor) {
	if m.d != nil {
		return
	}
	if !d.acquire() {
		panic("vfs: mapping of a closed descriptor")
	}
	m.d = d
}

func (m *mapping) Bytes() []byte {
	if m.done.Load() {
		return nil
	}
	return m.bytes
}

// Populate asks for the pages with MADV_POPULATE_READ, which turns what would
// be a SIGBUS into EFAULT. Kernels without it get a pread of the range, which
// loads the page cache and reports the same errors.
func (m *mapping) Populate(off, n int64) error {
	if m.done.Load() {
		return pathError("populate", m.name, fs.ErrClosed)
	}
	if n == 0 {
		return nil
	}
	if off < 0 || n < 0 || off+n > int64(len(m.bytes)) {
		return pathError("populate", m.name, fmt.Errorf("[%d, %d) of %d mapped bytes: %w", off, off+n, len(m.bytes), unix.EINVAL))
	}
	var err error
	if m.populateRead {
		start := off &^ (pageSize - 1)
		err = ignoringEINTR(func() error { return unix.Madvise(m.bytes[start:off+n], unix.MADV_POPULATE_READ) })
	} else {
		err = m.readThrough(off, n)
	}
	if err != nil {
		return pathError("populate", m.name, fmt.Errorf("[%d, %d): %w", off, off+n, err))
	}
	return nil
}

// readThrough reads the range into a scratch buffer. A range beyond the last
// page of the file is the EFAULT it would be to MADV_POPULATE_READ.
func (m *mapping) readThrough(off, n int64) error {
	size, err := sizeOf(m.d.fd)
	if err != nil {
		return err
	}
	if off+n > (size+pageSize-1)&^(pageSize-1) {
		return unix.EFAULT
	}
	buf := make([]byte, min(n, populateScratch))
	for end := min(off+n, size); off < end; {
		read, err := unix.Pread(m.d.fd, buf[:min(int64(len(buf)), end-off)], off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if read == 0 {
			return io.ErrUnexpectedEOF
		}
		off += int64(read)
	}
	return nil
}

func (m *mapping) Unmap() error {
	if m.done.Swap(true) {
		return pathError("unmap", m.name, fs.ErrClosed)
	}
	var err error
	if invariants.Enabled {
		err = reserved.take(m.addr, uintptr(len(m.bytes)))
	} else {
		err = unix.MunmapPtr(m.addr, uintptr(len(m.bytes)))
	}
	if m.d != nil {
		if closing := m.d.release(); err == nil {
			err = closing
		}
	}
	return pathError("unmap", m.name, err)
}

// reserved holds the ranges of ended mappings in invariants builds. A slice that
// outlives its mapping then faults. Plainly unmapped, it would show whatever is
// mapped at that address next: in a measurement it sent another segment's bytes.
var reserved = reservation{maxBytes: maxReservedBytes, maxRanges: maxReservedRanges}

type reservation struct {
	maxBytes  uintptr
	maxRanges int

	mu     sync.Mutex
	ranges []addressRange // oldest first
	bytes  uintptr        // sum over ranges, ≤ maxBytes between calls
}

type addressRange struct {
	addr   unsafe.Pointer
	length uintptr
}

// take replaces a mapped range by one without access, and unmaps the oldest
// ranges while a limit is exceeded.
func (r *reservation) take(addr unsafe.Pointer, length uintptr) error {
	_, err := unix.MmapPtr(-1, 0, addr, length, unix.PROT_NONE,
		unix.MAP_FIXED|unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ranges = append(r.ranges, addressRange{addr, length})
	r.bytes += length
	for len(r.ranges) > r.maxRanges || r.bytes > r.maxBytes {
		oldest := r.ranges[0]
		r.ranges = r.ranges[1:]
		r.bytes -= oldest.length
		if err := unix.MunmapPtr(oldest.addr, oldest.length); err != nil {
			return err
		}
	}
	return nil
}

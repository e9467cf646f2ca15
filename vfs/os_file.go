package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// maxVectors is the number of slices the kernel takes in one pwritev (UIO_MAXIOV).
	maxVectors = 1024
	// allocationStep bounds one fallocate call. tmpfs gives up with EINTR when a
	// signal arrives and starts over, so one huge call could repeat for ever.
	allocationStep = 8 << 20
	// zeroStep is how many zeros are written at a time where the file system
	// cannot zero a range by itself.
	zeroStep = 256 << 10
)

// zeros is the source of zeroing by writes. It is never written to.
var zeros [zeroStep]byte

// descriptor is a file descriptor that is closed when its last user lets go.
// Without the count, a Close beside a running pwrite would free the number, the
// next open would take it, and the pwrite could land in another file.
type descriptor struct {
	fd int
	// refs counts the holders: open handles, calls under way, mappings that need it.
	refs atomic.Int64
	// onClose, if set, is called after the descriptor was closed.
	onClose func()
}

// descriptors counts those that this package has open in this process.
var descriptors atomic.Int64

// Descriptors is how many file descriptors the file systems of this package hold in
// this process: files on disk that are open, and every file in memory. Any goroutine.
func Descriptors() int { return int(descriptors.Load()) }

// newDescriptor takes over fd with one reference.
func newDescriptor(fd int) *descriptor {
	descriptors.Add(1)
	d := &descriptor{fd: fd}
	d.refs.Store(1)
	return d
}

func openDescriptor(name string, flags int) (*descriptor, error) {
	fd := -1
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Open(name, flags|unix.O_CLOEXEC, fileMode)
		return err
	})
	if err != nil {
		return nil, err
	}
	return newDescriptor(fd), nil
}

// acquire takes a reference, or reports false if the last one is gone.
func (d *descriptor) acquire() bool {
	for {
		n := d.refs.Load()
		if n == 0 {
			return false
		}
		if d.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release gives one reference back and closes the descriptor with the last.
func (d *descriptor) release() error {
	n := d.refs.Add(-1)
	if n > 0 {
		return nil
	}
	if n < 0 {
		panic(fmt.Sprintf("vfs: descriptor %d released %d times too often", d.fd, -n))
	}
	descriptors.Add(-1)
	// close is not repeated on EINTR: on Linux the number is free by then.
	err := unix.Close(d.fd)
	if err == unix.EINTR {
		err = nil
	}
	if d.onClose != nil {
		d.onClose()
	}
	return err
}

// osFile is a handle on a descriptor, of a disk file or (below memoryFile) of a memfd.
type osFile struct {
	name         string
	d            *descriptor
	closed       atomic.Bool
	populateRead bool

	// sizing orders the calls that read the size and then change it.
	sizing sync.Mutex
}

// begin pins the descriptor for one call.
func (f *osFile) begin() error {
	if f.closed.Load() || !f.d.acquire() {
		return fs.ErrClosed
	}
	return nil
}

// Close gives the handle back. Calls under way on other goroutines finish first;
// the descriptor is closed by whoever ends last.
func (f *osFile) Close() error {
	if f.closed.Swap(true) {
		return pathError("close", f.name, fs.ErrClosed)
	}
	return pathError("close", f.name, f.d.release())
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.begin(); err != nil {
		return 0, pathError("read", f.name, err)
	}
	defer f.d.release()
	read := 0
	for read < len(p) {
		n, err := unix.Pread(f.d.fd, p[read:], off+int64(read))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return read, pathError("read", f.name, fmt.Errorf("position %d: %w", off+int64(read), err))
		}
		if n == 0 {
			return read, io.EOF
		}
		read += n
	}
	return read, nil
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.begin(); err != nil {
		return 0, pathError("write", f.name, err)
	}
	defer f.d.release()
	written, err := writeFull(f.d.fd, p, off)
	if err != nil {
		return written, pathError("write", f.name, fmt.Errorf("position %d: %w", off+int64(written), err))
	}
	return written, nil
}

// writeFull writes all of p. A part that was written before an error stays.
func writeFull(fd int, p []byte, off int64) (int, error) {
	written := 0
	for written < len(p) {
		n, err := unix.Pwrite(fd, p[written:], off+int64(written))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return written, err
		}
		if n == 0 {
			return written, io.ErrShortWrite
		}
		written += n
	}
	return written, nil
}

// WritevAt passes bufs to the kernel as they are, 1,024 at a time; only after
// a short write is the list copied, to cut its head without touching the caller's.
func (f *osFile) WritevAt(bufs [][]byte, off int64) error {
	if err := f.begin(); err != nil {
		return pathError("write", f.name, err)
	}
	defer f.d.release()
	if err := writevFull(bufs, off, func(batch [][]byte, off int64) (int, error) {
		return unix.Pwritev(f.d.fd, batch, off)
	}); err != nil {
		return pathError("write", f.name, err)
	}
	return nil
}

// writevFull drives pwritev until everything is written: at most maxVectors
// slices a call, again after EINTR, on from the byte where a short write ended.
func writevFull(bufs [][]byte, off int64, pwritev func([][]byte, int64) (int, error)) error {
	own := false // bufs is our copy and may be cut
	for {
		for len(bufs) > 0 && len(bufs[0]) == 0 {
			bufs = bufs[1:]
		}
		if len(bufs) == 0 {
			return nil
		}
		n, err := pwritev(bufs[:min(len(bufs), maxVectors)], off)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("position %d: %w", off, err)
		}
		off += int64(n)
		for n > 0 && n >= len(bufs[0]) {
			n -= len(bufs[0])
			bufs = bufs[1:]
		}
		if n > 0 {
			if !own {
				bufs, own = append([][]byte(nil), bufs...), true
			}
			bufs[0] = bufs[0][n:]
		}
	}
}

// Sync is fdatasync: bytes, size and allocation, without the times. A wait
// that a signal interrupted is taken up again; an I/O error is reported once
// and never asked for a second time, by us or by callers.
func (f *osFile) Sync() error {
	if err := f.begin(); err != nil {
		return pathError("sync", f.name, err)
	}
	defer f.d.release()
	if skipped() {
		return nil
	}
	return pathError("sync", f.name, ignoringEINTR(func() error { return unix.Fdatasync(f.d.fd) }))
}

// Allocate asks in steps of allocationStep. ext4 keeps what it got when the
// device fills up half-way (asked for 256 MiB with 55 MiB free, it left a file
// of 55 MiB and nothing free), so a failure cuts the file back to the size it had.
func (f *osFile) Allocate(off, n int64) error {
	if err := f.begin(); err != nil {
		return pathError("allocate", f.name, err)
	}
	defer f.d.release()
	f.sizing.Lock()
	defer f.sizing.Unlock()
	if err := allocate(f.d.fd, off, n); err != nil {
		return pathError("allocate", f.name, fmt.Errorf("[%d, %d): %w", off, off+n, err))
	}
	return nil
}

func allocate(fd int, off, n int64) error {
	if off < 0 || n < 0 {
		return unix.EINVAL
	}
	before, err := sizeOf(fd)
	if err != nil {
		return err
	}
	for end := off + n; off < end; {
		step := min(allocationStep, end-off)
		err := ignoringEINTR(func() error { return unix.Fallocate(fd, 0, off, step) })
		if err != nil {
			if back := cutBack(fd, before); back != nil {
				return fmt.Errorf("%w; cutting back to %d bytes: %w", err, before, back)
			}
			return err
		}
		off += step
	}
	return nil
}

// cutBack truncates to size even if the size never changed: space may have been
// taken beyond the end.
func cutBack(fd int, size int64) error {
	return ignoringEINTR(func() error { return unix.Ftruncate(fd, size) })
}

func (f *osFile) Truncate(size int64) error {
	if err := f.begin(); err != nil {
		return pathError("truncate", f.name, err)
	}
	defer f.d.release()
	f.sizing.Lock()
	defer f.sizing.Unlock()
	return pathError("truncate", f.name, ignoringEINTR(func() error { return unix.Ftruncate(f.d.fd, size) }))
}

// ZeroRange lets the file system zero the range (ext4, xfs: extents become
// "unwritten", no data is written); where it cannot (tmpfs), zeros are written.
func (f *osFile) ZeroRange(off, n int64) error {
	if err := f.begin(); err != nil {
		return pathError("zero", f.name, err)
	}
	defer f.d.release()
	f.sizing.Lock()
	defer f.sizing.Unlock()
	if n == 0 {
		return nil
	}
	err := ignoringEINTR(func() error {
		return unix.Fallocate(f.d.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		err = writeZeros(f.d.fd, off, n)
	}
	if err != nil {
		return pathError("zero", f.name, fmt.Errorf("[%d, %d): %w", off, off+n, err))
	}
	return nil
}

// writeZeros writes zeros over [off, off+n), as far as the file reaches.
func writeZeros(fd int, off, n int64) error {
	if off < 0 || n < 0 {
		return unix.EINVAL
	}
	size, err := sizeOf(fd)
	if err != nil {
		return err
	}
	for end := min(off+n, size); off < end; {
		written, err := writeFull(fd, zeros[:min(zeroStep, end-off)], off)
		if err != nil {
			return err
		}
		off += int64(written)
	}
	return nil
}

func (f *osFile) PunchHole(off, n int64) error {
	if err := f.begin(); err != nil {
		return pathError("punch", f.name, err)
	}
	defer f.d.release()
	if n == 0 {
		return nil
	}
	err := ignoringEINTR(func() error {
		return unix.Fallocate(f.d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if err != nil {
		return pathError("punch", f.name, fmt.Errorf("[%d, %d): %w", off, off+n, err))
	}
	return nil
}

func (f *osFile) Size() (int64, error) {
	if err := f.begin(); err != nil {
		return 0, pathError("stat", f.name, err)
	}
	defer f.d.release()
	size, err := sizeOf(f.d.fd)
	return size, pathError("stat", f.name, err)
}

func sizeOf(fd int) (int64, error) {
	var st unix.Stat_t
	err := ignoringEINTR(func() error { return unix.Fstat(fd, &st) })
	return st.Size, err
}

func (f *osFile) Map(n int64) (Mapping, error) { return f.mapWith(n, func(*mapping) {}) }

// mapWith maps the first n bytes and hands the mapping to prepare while the
// descriptor is held.
func (f *osFile) mapWith(n int64, prepare func(*mapping)) (Mapping, error) {
	if err := f.begin(); err != nil {
		return nil, pathError("map", f.name, err)
	}
	defer f.d.release()
	m, err := newMapping(f.name, f.d, n, f.populateRead)
	if err != nil {
		return nil, pathError("map", f.name, fmt.Errorf("%d bytes: %w", n, err))
	}
	prepare(m)
	return m, nil
}

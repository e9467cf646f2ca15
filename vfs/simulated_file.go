package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"unsafe"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"golang.org/x/sys/unix"
)

// simHandle is an open file of a Simulated.
type simHandle struct {
	fs       *Simulated
	name     string
	file     *simFile
	epoch    uint64
	readOnly bool
	closed   bool
}

func (s *Simulated) handleLocked(name string, f *simFile, readOnly bool) *simHandle {
	f.open++
	return &simHandle{fs: s, name: name, file: f, epoch: s.epoch, readOnly: readOnly}
}

// alive reports whether the handle can still be used. The lock is held.
func (h *simHandle) alive() error {
	switch {
	case h.epoch != h.fs.epoch:
		return ErrCrashed
	case h.closed:
		return fs.ErrClosed
	}
	return nil
}

// begin checks the handle, counts the operation, asks the hook, and returns with
// the lock held if err is nil. The handle is checked again after the hook, which
// may have crashed the machine.
func (h *simHandle) begin(op Op, writes bool) error {
	h.fs.mu.Lock()
	err := h.alive()
	h.fs.mu.Unlock()
	if err != nil {
		return pathError(op.String(), h.name, err)
	}
	if err := h.fs.begin(op, h.name); err != nil {
		return err
	}
	h.fs.mu.Lock()
	if err = h.alive(); err == nil && writes && h.readOnly {
		err = unix.EBADF
	}
	if err != nil {
		h.fs.mu.Unlock()
		return pathError(op.String(), h.name, err)
	}
	return nil
}

func (h *simHandle) Close() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.alive(); err != nil {
		return pathError("close", h.name, err)
	}
	h.closed = true
	h.fs.dropLocked(h.file)
	return nil
}

// dropLocked ends one handle or mapping.
func (s *Simulated) dropLocked(f *simFile) {
	f.open--
	if f.open == 0 && f.links == 0 {
		s.used -= f.image.count * blockSize
		s.forgetLocked(f)
	}
}

func (h *simHandle) ReadAt(p []byte, off int64) (int, error) {
	if err := h.begin(OpRead, false); err != nil {
		return 0, err
	}
	defer h.fs.mu.Unlock()
	if off < 0 {
		return 0, pathError("read", h.name, unix.EINVAL)
	}
	n := max(0, min(int64(len(p)), h.file.image.size-off))
	h.file.image.readAt(p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (h *simHandle) WriteAt(p []byte, off int64) (int, error) {
	n, err := h.write([][]byte{p}, off)
	return int(n), err
}

func (h *simHandle) WritevAt(bufs [][]byte, off int64) error {
	_, err := h.write(bufs, off)
	return err
}

func (h *simHandle) write(bufs [][]byte, off int64) (int64, error) {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	injected := h.begin(OpWrite, true)
	if injected != nil {
		var torn TornWrite
		if !errors.As(injected, &torn) {
			return 0, injected
		}
		h.fs.mu.Lock()
		if err := h.alive(); err != nil {
			h.fs.mu.Unlock()
			return 0, pathError("write", h.name, err)
		}
		n = max(0, min(n, torn.N))
	}
	defer h.fs.mu.Unlock()
	if off < 0 {
		return 0, pathError("write", h.name, unix.EINVAL)
	}
	if err := h.fs.takeLocked(h.file, off, off+n); err != nil {
		return 0, pathError("write", h.name, fmt.Errorf("position %d: %w", off, err))
	}
	if n > 0 {
		h.fs.soilLocked(h.file)
	}
	left := n
	for _, b := range bufs {
		b = b[:min(int64(len(b)), left)]
		if len(b) > 0 {
			h.file.image.writeAt(b, off)
		}
		off, left = off+int64(len(b)), left-int64(len(b))
	}
	return n, injected
}

func (h *simHandle) Sync() error {
	if err := h.begin(OpSync, false); err != nil {
		h.fs.mu.Lock()
		defer h.fs.mu.Unlock()
		if h.alive() == nil && !h.fs.stopped {
			h.file.image.loseDirty()
		}
		return err
	}
	defer h.fs.mu.Unlock()
	h.file.image.sync()
	if h.file.image.clean() {
		h.fs.cleanLocked(h.file)
	}
	return nil
}

func (h *simHandle) Allocate(off, n int64) error {
	if err := h.begin(OpAllocate, true); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	err := error(unix.EINVAL)
	if off >= 0 && n >= 0 {
		err = h.fs.takeLocked(h.file, off, off+n)
	}
	if err != nil {
		return pathError("allocate", h.name, fmt.Errorf("[%d, %d): %w", off, off+n, err))
	}
	if n > 0 && off+n > h.file.image.size {
		h.resize(off + n)
	}
	return nil
}

// resize sets the volatile size.
func (h *simHandle) resize(size int64) {
	h.fs.soilLocked(h.file)
	h.file.image.truncate(size)
}

func (h *simHandle) Truncate(size int64) error {
	if err := h.begin(OpTruncate, true); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	if size < 0 {
		return pathError("truncate", h.name, unix.EINVAL)
	}
	if size < h.file.image.size && len(h.file.mappings) > 0 {
		panic(fmt.Sprintf("vfs: %s: truncated from %d to %d bytes while it is mapped %d times",
			h.name, h.file.image.size, size, len(h.file.mappings)))
	}
	before := h.file.image.count
	h.resize(size)
	h.fs.used += (h.file.image.count - before) * blockSize
	return nil
}

func (h *simHandle) ZeroRange(off, n int64) error {
	if err := h.begin(OpZero, true); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	end := min(off+n, h.file.image.size)
	err := error(unix.EINVAL)
	if off >= 0 && n >= 0 {
		err = h.fs.takeLocked(h.file, off, end)
	}
	if err != nil {
		return pathError("zero", h.name, fmt.Errorf("[%d, %d): %w", off, off+n, err))
	}
	h.fs.soilLocked(h.file)
	h.file.image.zero(off, end)
	return nil
}

func (h *simHandle) PunchHole(off, n int64) error {
	if err := h.begin(OpPunch, true); err != nil {
		return err
	}
	defer h.fs.mu.Unlock()
	if off < 0 || n < 0 {
		return pathError("punch", h.name, fmt.Errorf("[%d, %d): %w", off, off+n, unix.EINVAL))
	}
	h.fs.soilLocked(h.file)
	before := h.file.image.count
	h.file.image.zero(off, min(off+n, h.file.image.size))
	h.file.image.free((off+blockSize-1)/blockSize, (off+n)/blockSize)
	h.fs.used += (h.file.image.count - before) * blockSize
	return nil
}

func (h *simHandle) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.alive(); err != nil {
		return 0, pathError("stat", h.name, err)
	}
	return h.file.image.size, nil
}

// simMapping is memory outside the Go heap that follows the volatile image: it
// costs address space for what is mapped and memory for what is written.
// A mapping that its owner drops without Unmap, as after a crash, is unmapped
// when the garbage collector finds it.
type simMapping struct {
	fs      *Simulated
	name    string
	file    *simFile
	epoch   uint64
	memory  addressRange
	bytes   []byte
	done    bool
	cleanup runtime.Cleanup
}

func (h *simHandle) Map(n int64) (Mapping, error) {
	if err := h.begin(OpMap, false); err != nil {
		return nil, err
	}
	defer h.fs.mu.Unlock()
	if n <= 0 || int64(int(n)) != n {
		return nil, pathError("map", h.name, fmt.Errorf("%d bytes: %w", n, unix.EINVAL))
	}
	addr, err := unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, pathError("map", h.name, fmt.Errorf("%d bytes: %w", n, err))
	}
	m := &simMapping{
		fs: h.fs, name: h.name, file: h.file, epoch: h.epoch,
		memory: addressRange{addr, uintptr(n)},
		bytes:  unsafe.Slice((*byte)(addr), n),
	}
	m.cleanup = runtime.AddCleanup(m, func(r addressRange) { _ = unix.MunmapPtr(r.addr, r.length) }, m.memory)
	for i, b := range h.file.image.blocks {
		if b != nil {
			m.update(int64(i)*blockSize, b.data[:])
		}
	}
	h.file.open++
	h.file.mappings = append(h.file.mappings, m)
	return m, nil
}

// update shows bytes of the file that changed, as far as they are mapped.
func (m *simMapping) update(off int64, p []byte) {
	if off < int64(len(m.bytes)) {
		copy(m.bytes[off:], p)
	}
}

func (f *simFile) updateMappings(off int64, p []byte) {
	for _, m := range f.mappings {
		m.update(off, p)
	}
}

// dropMappings forgets the mappings of a machine that crashed.
func (f *simFile) dropMappings() {
	clear(f.mappings)
	f.mappings = f.mappings[:0]
}

func (m *simMapping) Bytes() []byte {
	m.fs.mu.Lock()
	defer m.fs.mu.Unlock()
	if m.done {
		return nil
	}
	return m.bytes
}

// alive is as of a handle; the lock is held.
func (m *simMapping) alive() error {
	switch {
	case m.epoch != m.fs.epoch:
		return ErrCrashed
	case m.done:
		return fs.ErrClosed
	}
	return nil
}

// Populate fails beyond the last page of the file, where a touch would be a SIGBUS.
func (m *simMapping) Populate(off, n int64) error {
	m.fs.mu.Lock()
	err := m.alive()
	m.fs.mu.Unlock()
	if err != nil {
		return pathError("populate", m.name, err)
	}
	if err := m.fs.begin(OpPopulate, m.name); err != nil {
		return err
	}
	m.fs.mu.Lock()
	defer m.fs.mu.Unlock()
	switch err = m.alive(); {
	case err != nil || n == 0:
	case off < 0 || n < 0 || off+n > int64(len(m.bytes)):
		err = unix.EINVAL
	case off+n > (m.file.image.size+pageSize-1)&^(pageSize-1):
		err = unix.EFAULT
	}
	if err != nil {
		return pathError("populate", m.name, fmt.Errorf("[%d, %d): %w", off, off+n, err))
	}
	return nil
}

func (m *simMapping) Unmap() error {
	m.fs.mu.Lock()
	defer m.fs.mu.Unlock()
	if err := m.alive(); err != nil {
		return pathError("unmap", m.name, err)
	}
	m.done = true
	i := slices.Index(m.file.mappings, m)
	m.file.mappings = slices.Delete(m.file.mappings, i, i+1)
	m.fs.dropLocked(m.file)
	m.cleanup.Stop()
	if invariants.Enabled {
		return pathError("unmap", m.name, reserved.take(m.memory.addr, m.memory.length))
	}
	return pathError("unmap", m.name, unix.MunmapPtr(m.memory.addr, m.memory.length))
}

package partition

import (
	"sync"
	"unsafe"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits of the mailbox, in bytes.
const (
	// MaxEntryBytes is where an entry is cut: it holds this much or one batch,
	// whichever is larger.
	MaxEntryBytes = 1 << 20
	// DefaultMailboxBytes bounds what waits for the owner. Beyond it producers
	// get ErrMailboxFull.
	DefaultMailboxBytes = 32 << 20
)

// mailbox collects batches until the owner takes them. What waits is already
// laid out as entry data, so that each batch is copied once: from the session's
// read buffer to where the log writes it from.
type mailbox struct {
	mu      sync.Mutex
	entries []*draft
	bytes   int64
	limit   int64
	account *account
	closed  error
}

// draft is an entry in the making: room for the prefix, then the records body. The
// account pays for the memory of data until that is recycled, and for noted batches
// until the draft is freed.
type draft struct {
	data    []byte
	batches []placed
	noted   int
}

// placed is one batch inside a draft and who waits for it.
type placed struct {
	start, batch, end int // [start, end) is the body batch, batch where the record batch begins
	info              wire.BatchInfo
	acks              wire.Acks
	receiver          Receiver
	tag               uint64
}

// placedBytes is the memory of one placed batch: more than a small batch itself.
const placedBytes = int64(unsafe.Sizeof(placed{}))

// put copies one batch in. It reports whether the mailbox was empty before.
func (m *mailbox) put(a *Append) (first bool, err error) {
	size := wire.BodyBatchSize(len(a.Index), len(a.Batch))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed != nil {
		return false, m.closed
	}
	if m.bytes+int64(size) > m.limit && m.bytes > 0 {
		return false, ErrMailboxFull
	}
	first = len(m.entries) == 0
	var d *draft
	if !first {
		d = m.entries[len(m.entries)-1]
	}
	if d != nil && len(d.data)+size > wire.EntryPrefixSize+MaxEntryBytes {
		d = nil
	}
	if !m.account.take(placedBytes + growth(d, size)) {
		return false, ErrMemoryFull
	}
	if d == nil {
		d = newDraft(wire.EntryPrefixSize + size)
		m.entries = append(m.entries, d)
	}
	start := len(d.data)
	d.data = grow(d.data, size)
	d.noted++
	d.data = wire.AppendBodyBatch(d.data, a.Index, a.Batch)
	d.batches = append(d.batches, placed{
		start: start, batch: len(d.data) - len(a.Batch), end: len(d.data),
		info: a.Info, acks: a.Acks, receiver: a.Receiver, tag: a.Tag,
	})
	m.bytes += int64(size)
	m.account.took(size)
	return first, nil
}

// take hands over everything that waits. The owner gives the slice back with
// the next call.
func (m *mailbox) take(previous []*draft) []*draft {
	clear(previous)
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := m.entries
	m.entries = previous[:0]
	m.bytes = 0
	return taken
}

// waiting is how many bytes wait.
func (m *mailbox) waiting() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes
}

// close refuses further batches with err.
func (m *mailbox) close(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed == nil {
		m.closed = err
	}
}

// Buffers of entry data come in classes, so that an idle partition holds none
// and a busy one never allocates. A buffer goes back when the log releases it.
var bufferClasses = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, wire.EntryPrefixSize + MaxEntryBytes}

var (
	buffers    [len(bufferClasses)]sync.Pool // of *byte, the first of the class's capacity: a slice would be an allocation for each
	draftsPool = sync.Pool{New: func() any { return new(draft) }}
)

func newDraft(size int) *draft {
	d := draftsPool.Get().(*draft)
	d.data = newBuffer(size)[:wire.EntryPrefixSize]
	return d
}

// growth is the memory that size more bytes take in a draft; nil is one to be made.
func growth(d *draft, size int) int64 {
	if d == nil {
		return int64(bufferCapacity(wire.EntryPrefixSize + size))
	}
	if n := len(d.data) + size; n > cap(d.data) {
		return int64(bufferCapacity(n) - cap(d.data))
	}
	return 0
}

// free returns the draft without its data, which the log owns by now.
func (a *account) free(d *draft) {
	a.give(int64(d.noted) * placedBytes)
	d.data, d.noted = nil, 0
	clear(d.batches)
	d.batches = d.batches[:0]
	draftsPool.Put(d)
}

func newBuffer(size int) []byte {
	for class, capacity := range bufferClasses {
		if size <= capacity {
			if b, ok := buffers[class].Get().(*byte); ok {
				return unsafe.Slice(b, capacity)[:0]
			}
			return make([]byte, 0, capacity)
		}
	}
	return make([]byte, 0, size)
}

// bufferCapacity is the capacity of newBuffer(size).
func bufferCapacity(size int) int {
	for _, capacity := range bufferClasses {
		if size <= capacity {
			return capacity
		}
	}
	return size
}

// recycle takes entry data back into the pool and gives its memory back.
func (a *account) recycle(data []byte) {
	a.give(int64(cap(data)))
	recycle(data)
}

// Buffers are the memory of entries that another replica has sent, out of the same
// pools as those proposed here and on the same account. Any goroutine may use them.
type Buffers struct{ account *account }

// Get returns a buffer of length n that the caller owns until it is given to Put or
// to Partition.Recycle, or nil if the memory budget has no room.
func (b Buffers) Get(n int) []byte {
	if !b.account.take(int64(bufferCapacity(n))) {
		return nil
	}
	return newBuffer(n)[:n]
}

// Put takes a buffer back that nothing refers to any more.
func (b Buffers) Put(data []byte) { b.account.recycle(data) }

// recycle takes entry data back into the pool. Nothing may refer to it any more.
func recycle(data []byte) {
	for class, capacity := range bufferClasses {
		if cap(data) == capacity {
			buffers[class].Put(unsafe.SliceData(data))
			return
		}
	}
}

func grow(b []byte, n int) []byte {
	if len(b)+n <= cap(b) {
		return b
	}
	bigger := newBuffer(len(b) + n)[:len(b)]
	copy(bigger, b)
	recycle(b)
	return bigger
}

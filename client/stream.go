package client

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

const (
	// creditBytes is how much a reader has taken when it returns credit. A broker
	// whose socket was full resumes on credit, so it must not be larger than what
	// a socket holds. 16, 64 and 256 KiB differ by less than the noise.
	creditBytes = 64 << 10
	// chunkBytes is the size of the pieces of memory that streams are received
	// into. Larger frames get a multiple of it.
	chunkBytes = 256 << 10
	// freeBytes bounds what a reader keeps for reuse beyond one window.
	freeBytes = 2 << 20
	// maxFrameBody is the largest body of a stored frame that is believed: a
	// full batch with its record index.
	maxFrameBody = wire.MaxBatchBytes + 2<<20
)

// stream is one partition of a Reader: a link that comes and goes with the
// sessions, and the frames received from it.
//
// The session's reader copies every frame whole, and only whole frames, into
// chunks; DELIVERs may cut them anywhere. Publishing moves chunk.ready, and the
// application's goroutine takes [read, ready) of the oldest chunk. Bytes below
// ready never change, so the application reads them without a lock.
//
// Credit is counted in bytes of the link's stream, and returned when frames are
// taken, not when the application is done with them: so the broker sends the next
// frame while this one is read, also where frames are as large as the window.
//
//	taken ≤ received ≤ granted ≤ taken + max(window, the frame under way)
//
// A stream thus holds at most that much and the region that is being read.
// Fields are guarded by Reader.mu, except the assembly, which belongs to the
// session's reader: there is never more than one, because it is the reader of the old
// session that says, between two frames or when it ends, that the link is gone.
type stream struct {
	reader    *Reader
	partition uint32

	leader  leadership
	since   time.Time // when a link was first missed; zero: there is one
	told    bool      // that this is long ago, to the Conn's listener
	session *session  // the link's; nil: there is none
	opening *session  // one is being opened there
	link    uint32
	handle  uint32 // of the partition, in session
	located bool   // next, from and end are known
	// incarnation is that of the partition when next was learned, 0 if the application
	// brought it from elsewhere.
	incarnation uint32
	counted     bool        // Conn.Reader knows as well
	touched     bool        // a frame was received
	next        wire.Offset // one past the last complete frame received: where a new link starts
	from        wire.Offset // records below were returned, or not asked for
	end         wire.Offset // where StopAtEnd stops
	done        bool        // everything below end was returned

	granted  int64
	received int64
	taken    int64
	old      int64 // unread bytes of earlier links, which no longer count

	chunks  []*chunk // oldest first; the last one may be filling
	filling bool     // the assembly holds a place in the last chunk
	queued  bool     // in Reader.ready

	assembly struct {
		head     [wire.FrameHeaderSize]byte
		have     int         // bytes of head
		left     int         // bytes after the head that are missing
		skip     bool        // of no interest: not records
		chunk    *chunk      // where frames go; valid while it is the last of chunks
		fill     int         // bytes of chunk that are filled
		complete int         // of these, bytes of complete frames
		next     wire.Offset // one past the frame under way
		reached  wire.Offset // one past the last complete frame
		index    wire.Index
		term     wire.Term
		first    bool // no records came on this link yet: the first frame may begin below next
		broken   bool // an error was reported; what follows is discarded
	}
}

// chunk is memory that holds whole frames.
type chunk struct {
	buf   []byte
	read  int // handed to the application
	ready int // complete frames
}

// startAssembly begins with a new link at st.next. Reader.mu is held.
func (st *stream) startAssembly() {
	a := &st.assembly
	a.have, a.left, a.skip, a.broken = 0, 0, false, false
	a.chunk, a.fill, a.complete = nil, 0, 0
	a.next, a.reached, a.index, a.term, a.first = st.next, st.next, 0, 0, true
	st.filling = false
}

// receive takes n bytes of the link's stream from r. It is called by the session's
// reader; the error is the socket's.
func (st *stream) receive(s *session, r *bufio.Reader, n int) error {
	a := &st.assembly
	total := n
	var broken error
	for n > 0 && !a.broken {
		var k int
		var err error
		switch {
		case a.have < len(a.head):
			k, err = io.ReadFull(r, a.head[a.have:min(len(a.head), a.have+n)])
			a.have += k
			if a.have == len(a.head) && err == nil {
				broken = st.begin(s, int64(total-n+k))
				a.broken = broken != nil
			}
		case a.skip:
			k, err = r.Discard(min(a.left, n))
			a.left -= k
		default:
			k, err = io.ReadFull(r, a.chunk.buf[a.fill:a.fill+min(a.left, n)])
			a.fill += k
			a.left -= k
		}
		if err != nil {
			return err
		}
		n -= k
		if a.have == len(a.head) && a.left == 0 {
			a.have = 0 // the frame is complete
			a.complete, a.reached = a.fill, a.next
		}
	}
	st.publish(int64(total))
	if broken != nil {
		st.broke(s, broken) // behind the frames before it, which are the application's
	}
	_, err := r.Discard(n)
	return err
}

// begin judges the frame whose header is complete and finds a place for it.
// arrived is how much of the DELIVER at hand has been read.
func (st *stream) begin(s *session, arrived int64) error {
	a := &st.assembly
	h, err := wire.ParseFrameHeader(a.head[:])
	switch {
	case err != nil:
		return st.corrupt(a.next, err)
	case h.BodyLength > maxFrameBody:
		return st.corrupt(a.next, fmt.Errorf("frame body of %d bytes, the limit is %d", h.BodyLength, maxFrameBody))
	case h.Index <= a.index || h.Term < a.term:
		return st.corrupt(a.next, fmt.Errorf("index %d of term %d follows index %d of term %d", h.Index, h.Term, a.index, a.term))
	case h.Kind == wire.KindRecords && (h.BaseOffset > a.next || h.NextOffset() <= a.next || h.BaseOffset != a.next && !a.first):
		return st.corrupt(a.next, fmt.Errorf("frame holds offsets [%d, %d), expected %d", h.BaseOffset, h.NextOffset(), a.next))
	}
	size := h.FrameSize()
	a.left = int(size) - len(a.head)
	a.index, a.term = h.Index, h.Term
	a.skip = h.Kind != wire.KindRecords

	r := st.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.skip {
		st.taken += size
	} else {
		st.makeRoom(int(size))
		a.fill += copy(a.chunk.buf[a.fill:], a.head[:])
		a.next, a.first = h.NextOffset(), false
	}
	missing := int64(a.left) - (st.granted - st.received - arrived)
	if missing > 0 && size > r.window-r.creditStep {
		st.grant(s, missing) // credit for what was taken before may never suffice
	}
	return nil
}

// makeRoom lets the assembly write size bytes. Reader.mu is held.
func (st *stream) makeRoom(size int) {
	a := &st.assembly
	n := len(st.chunks)
	if n == 0 || st.chunks[n-1] != a.chunk || len(a.chunk.buf)-a.fill < size {
		if n > 0 && st.chunks[n-1] == a.chunk {
			a.chunk.ready = a.complete
		}
		a.chunk, a.fill, a.complete = st.reader.newChunk(size), 0, 0
		st.chunks = append(st.chunks, a.chunk)
	}
	st.filling = true
}

// publish shows the application the frames that are complete.
func (st *stream) publish(received int64) {
	a := &st.assembly
	r := st.reader
	r.mu.Lock()
	st.received += received
	if n := len(st.chunks); n > 0 && st.chunks[n-1] == a.chunk {
		a.chunk.ready = a.complete
		st.filling = a.fill > a.complete
	}
	st.returnCredit() // for frames that were skipped
	st.touched = st.touched || a.reached != st.next
	st.next = a.reached
	if !st.done && !st.queued && st.unread() {
		st.queued = true
		r.ready = append(r.ready, st)
		poke(r.signal)
	}
	r.mu.Unlock()
}

// unread reports whether there are frames for the application.
func (st *stream) unread() bool {
	for _, c := range st.chunks {
		if c.read < c.ready {
			return true
		}
	}
	return false
}

// unreadBytes counts the bytes that the application has not taken.
func (st *stream) unreadBytes() int64 {
	var n int64
	for _, c := range st.chunks {
		n += int64(c.ready - c.read)
	}
	return n
}

// grant gives the broker credit. Reader.mu is held.
func (st *stream) grant(s *session, bytes int64) {
	st.granted += bytes
	s.tell(wire.OpLinkCredit, st.link, &wire.LinkCredit{Credit: uint32(bytes)})
}

// region takes the oldest unread frames for the application. Reader.mu is held.
func (st *stream) region() []byte {
	for {
		c := st.chunks[0]
		if c.read < c.ready {
			frames := c.buf[c.read:c.ready]
			c.read = c.ready
			n := int64(len(frames))
			counted := n - min(n, st.old)
			st.old -= n - counted
			st.taken += counted
			st.returnCredit()
			return frames
		}
		st.dropChunk()
	}
}

// release frees the memory of frames that nobody looks at any more. Reader.mu is
// held.
func (st *stream) release() {
	for len(st.chunks) > 0 && st.chunks[0].read == st.chunks[0].ready && (len(st.chunks) > 1 || !st.filling) {
		st.dropChunk()
	}
}

// returnCredit grants what was taken, if it is worth a frame. Reader.mu is held.
func (st *stream) returnCredit() {
	if owed := st.taken + st.reader.window - st.granted; st.session != nil && owed >= st.reader.creditStep {
		st.grant(st.session, owed)
	}
}

func (st *stream) dropChunk() {
	st.reader.freeChunk(st.chunks[0])
	n := copy(st.chunks, st.chunks[1:])
	st.chunks[n] = nil
	st.chunks = st.chunks[:n]
}

func (st *stream) corrupt(offset wire.Offset, err error) error {
	return &CorruptError{Partition: st.partition, Offset: uint64(offset), Err: err}
}

// report tells the broker that a frame came damaged, so that it looks at its own
// copy. Reader.mu is held.
func (st *stream) report(offset wire.Offset) {
	if s := st.session; s != nil && s.speaks(wire.OpReportDamage) == nil {
		s.tell(wire.OpReportDamage, 0, &wire.ReportDamage{Handle: st.handle, Offset: offset})
	}
}

// broke ends the link, and the reader, after bytes that are no frames.
func (st *stream) broke(s *session, err error) {
	r := st.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	st.report(st.assembly.next)
	st.unlink()
	r.fail(err)
}

// unlink ends the link from this side. Reader.mu is held.
func (st *stream) unlink() {
	if st.session == nil {
		return
	}
	st.session.dropLink(st.link)
	st.session.tell(wire.OpLinkClose, st.link, &wire.LinkClose{})
	st.session = nil
}

// closed is called by the session's reader when the broker ended the link.
func (st *stream) closed(s *session, err error) {
	r := st.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	if st.session != s {
		return
	}
	st.session = nil
	if err != nil {
		st.refused(err)
	}
	poke(r.wake)
}

// lost is called by the session's reader when it ends.
func (st *stream) lost(s *session) {
	r := st.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	if st.session == s {
		st.session = nil
		if !r.conn.options.reconnect {
			s.mu.Lock()
			err := s.err
			s.mu.Unlock()
			r.fail(&lostError{err})
		}
	}
	poke(r.wake)
}

// refused decides what an error about the partition means: the reader tries again
// or fails. Reader.mu is held.
func (st *stream) refused(err error) {
	r := st.reader
	code := codeOf(err)
	switch {
	case code == wire.CodeOutOfRange && r.options.start == startEarliest && !st.touched:
		st.located = false // retention was faster: the start has moved
		r.later(err)
	case code == wire.CodeOutOfRange:
		var known *wire.Error
		errors.As(err, &known)
		r.fail(&OutOfRangeError{Partition: st.partition, Offset: uint64(st.next), Next: uint64(known.Next), Err: err})
	case code == wire.CodeDataLost || code == wire.CodePartitionReset:
		var known *wire.Error
		errors.As(err, &known)
		r.fail(&DataLostError{Partition: st.partition, Offset: uint64(st.next), Next: uint64(known.Next), Err: err})
	case code == wire.CodeCorrupt:
		var known *wire.Error
		errors.As(err, &known)
		r.fail(&CorruptError{Partition: st.partition, Offset: uint64(st.next), Next: uint64(known.Next), Err: err})
	case code == wire.CodeNotLeader && st.leader.follow(err):
		poke(r.wake)
	case code == 0 || code.Retriable() || code == wire.CodeUnknownHandle:
		r.want = r.want || code == wire.CodeNotLeader || code == wire.CodeUnavailable
		r.later(err)
	default:
		r.fail(fmt.Errorf("partition %d: %w", st.partition, err))
	}
}

package server

import (
	"encoding/binary"
	"sync"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of what waits for one node.
const (
	// peerQueueBytes bounds the frames that wait for one node. Above it everything is
	// dropped.
	peerQueueBytes = 64 << 20
	// peerReserveBytes is the part of it that entries and chunks may not use: elections and
	// heartbeats get through while a slow node is owed as much as it may.
	peerReserveBytes = 4 << 20
)

// peerClass orders what waits for a node: a frame of a lower class goes first.
type peerClass uint8

const (
	peerUrgent  peerClass = iota // handshakes, elections, heartbeats, requests and answers
	peerEntries                  // APPEND and SNAPSHOT
	peerBulk                     // CHUNK
	peerClasses
)

// peerFrame is a frame that waits. Its bytes are those of head, then the data of the
// message's entries, which stay where the log has them.
type peerFrame struct {
	head    *buffer
	message *replication.Message // nil if head is all
	size    int
}

// free gives back what the frame holds: it is written or dropped.
func (f *peerFrame) free() {
	f.head.free()
	if f.message != nil {
		f.message.Done()
	}
	*f = peerFrame{}
}

// fifo is a queue of frames.
type fifo struct {
	frames []peerFrame
	next   int // the first that is still there
}

func (q *fifo) push(f peerFrame) { q.frames = append(q.frames, f) }

func (q *fifo) pop() (f peerFrame, ok bool) {
	if q.next == len(q.frames) {
		return f, false
	}
	f = q.frames[q.next]
	q.frames[q.next] = peerFrame{}
	if q.next++; q.next == len(q.frames) {
		q.frames, q.next = q.frames[:0], 0
		if cap(q.frames) > fifoFrames {
			q.frames = nil
		}
	} else if q.next >= fifoFrames && 2*q.next >= len(q.frames) {
		n := copy(q.frames, q.frames[q.next:])
		clear(q.frames[n:])
		q.frames, q.next = q.frames[:n], 0
	}
	return f, true
}

// fifoFrames is from how many frames on an empty queue gives its memory back.
const fifoFrames = 1024

// peerQueue is what waits to be written to one node, on one connection. Owners of
// partitions put in, the connection's loop takes out. Small messages of all groups
// gather in frames that are open until the loop comes for them. Any goroutine may
// call its methods; the mutex is held for moments and taken before no other lock.
type peerQueue struct {
	mu     sync.Mutex
	queues [peerClasses]fifo
	raft   gathered // RAFT
	beats  gathered // HEARTBEATS
	bytes  int      // of all frames, those that are being written included
	queued bool     // the loop knows that there is something to write
	closed bool
}

// gathered is a frame whose list of elements still grows.
type gathered struct {
	frame *buffer // nil while there is none
	count uint32
}

// open makes room for an element of n bytes. prefix is the size of the fields in
// front of the elements, of which the last is their number.
func (g *gathered) open(prefix, n int) {
	if g.frame == nil {
		g.frame = newBuffer(wire.HeaderSize + prefix + n)
		g.frame.bytes = g.frame.bytes[:wire.HeaderSize+prefix]
	}
	g.frame = g.frame.room(n)
	g.count++
}

func (g *gathered) size() int { return g.frame.size() }

// close makes a frame of what has gathered.
func (g *gathered) close(kind wire.PeerKind, prefix int) peerFrame {
	b := g.frame.bytes
	binary.LittleEndian.PutUint32(b[wire.HeaderSize+prefix-4:], g.count)
	wire.PutPeerHeader(b, wire.PeerHeader{Length: wire.FrameLength(len(b) - wire.HeaderSize), Kind: kind, Version: 1})
	f := peerFrame{head: g.frame, size: len(b)}
	*g = gathered{}
	return f
}

// Sizes of the fields in front of the elements.
const (
	raftPrefix  = 4
	beatsPrefix = 16
)

// pulse is what HEARTBEATS say of the node beside the heartbeats of its groups.
type pulse struct {
	tick, heard uint32 // see wire.PeerBeats
	state       uint32
}

// put queues a frame. It returns whether the queue took it, and whether the loop
// must be told. A frame that is not taken is the caller's.
func (q *peerQueue) put(class peerClass, f peerFrame) (taken, notify bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	limit := peerQueueBytes
	if class != peerUrgent {
		limit -= peerReserveBytes
	}
	if q.closed || q.bytes+f.size > limit {
		return false, false
	}
	q.bytes += f.size
	q.queues[class].push(f)
	return true, q.notifyLocked()
}

// putRaft gathers a small message.
func (q *peerQueue) putRaft(m *wire.PeerRaftMessage) (taken, notify bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := m.Size()
	if q.closed || q.bytes+n > peerQueueBytes {
		return false, false
	}
	if q.raft.size()+n > wire.MaxPeerBeatsBytes {
		q.closeRaftLocked()
	}
	before := q.raft.size()
	q.raft.open(raftPrefix, n)
	q.raft.frame.bytes = m.Append(q.raft.frame.bytes)
	q.bytes += q.raft.size() - before
	return true, q.notifyLocked()
}

func (q *peerQueue) closeRaftLocked() {
	if q.raft.count > 0 {
		q.queues[peerUrgent].push(q.raft.close(wire.PeerKindRaft, raftPrefix))
	}
}

// putBeat gathers a heartbeat. It waits for flushBeats.
func (q *peerQueue) putBeat(b *wire.PeerBeat, p pulse) (taken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := b.Size()
	if q.closed || q.bytes+n > peerQueueBytes {
		return false
	}
	if q.beats.size()+n > wire.MaxPeerBeatsBytes {
		q.closeBeatsLocked(p)
	}
	before := q.beats.size()
	q.beats.open(beatsPrefix, n)
	q.beats.frame.bytes = b.Append(q.beats.frame.bytes)
	q.bytes += q.beats.size() - before
	return true
}

// flushBeats sends what heartbeats have gathered; always a frame, for its pulse.
func (q *peerQueue) flushBeats(p pulse) (notify bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	if q.beats.count == 0 {
		q.beats.open(beatsPrefix, 0)
		q.beats.count = 0
		q.bytes += q.beats.size()
	}
	q.closeBeatsLocked(p)
	return q.notifyLocked()
}

func (q *peerQueue) closeBeatsLocked(p pulse) {
	f := q.beats.close(wire.PeerKindHeartbeats, beatsPrefix)
	binary.LittleEndian.PutUint32(f.head.bytes[wire.HeaderSize:], p.tick)
	binary.LittleEndian.PutUint32(f.head.bytes[wire.HeaderSize+4:], p.heard)
	binary.LittleEndian.PutUint32(f.head.bytes[wire.HeaderSize+8:], p.state)
	q.queues[peerUrgent].push(f)
}

// notifyLocked reports whether the loop must be told.
func (q *peerQueue) notifyLocked() bool {
	notify := !q.queued
	q.queued = true
	return notify
}

// take moves frames of at most about maxBytes to a batch, the most urgent first, and
// always one if there are any, of chunks too: entries may fill a connection for as long as
// there is load. Loop only. The loop must be told of what comes after.
func (q *peerQueue) take(b *peerBatch, maxBytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queued = false
	q.closeRaftLocked()
	for class := range q.queues {
		for one := class == int(peerBulk); one || b.bytes < maxBytes; one = false {
			f, ok := q.queues[class].pop()
			if !ok {
				break
			}
			b.add(f)
		}
	}
}

// written gives back the room of frames that are on their way.
func (q *peerQueue) written(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= n
}

// close drops everything. Nothing is taken any more.
func (q *peerQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for class := range q.queues {
		for f, ok := q.queues[class].pop(); ok; f, ok = q.queues[class].pop() {
			f.free()
		}
	}
	q.raft.frame.free()
	q.beats.frame.free()
	q.raft, q.beats = gathered{}, gathered{}
	q.bytes = 0
}

// size is how many bytes wait.
func (q *peerQueue) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}

// peerBatch is the frames that a loop is writing. Loop only.
type peerBatch struct {
	frames []peerFrame
	bytes  int      // of frames, as a whole
	slices [][]byte // what is left of them, in order
}

// peerSliceLimit is how many slices one write takes at most (RULES P3).
const peerSliceLimit = turnSlices

func (b *peerBatch) add(f peerFrame) {
	b.frames = append(b.frames, f)
	b.bytes += f.size
	b.slices = append(b.slices, f.head.bytes)
	if f.message == nil {
		return
	}
	for i := range f.message.Entries {
		if data := f.message.Entries[i].Data; len(data) > 0 {
			b.slices = append(b.slices, data)
		}
	}
}

// advance notes that the first n bytes of what is left are written.
func (b *peerBatch) advance(n int) {
	done := 0
	for n > 0 && n >= len(b.slices[done]) {
		n -= len(b.slices[done])
		b.slices[done] = nil
		done++
	}
	b.slices = b.slices[done:]
	if n > 0 {
		b.slices[0] = b.slices[0][n:]
	}
}

// clear frees the frames, all of which are written or will not be.
func (b *peerBatch) clear() {
	for i := range b.frames {
		b.frames[i].free()
	}
	clear(b.slices)
	b.frames, b.slices, b.bytes = b.frames[:0], nil, 0
}

package replication

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of an inbox.
const (
	// InboxMessages bounds the messages that wait for a turn.
	InboxMessages = 1024
	// InboxBytes bounds the entry data of those messages.
	InboxBytes = 16 << 20
	// InboxBeats bounds the heartbeats that wait for a turn.
	InboxBeats = 1024
)

// contents is what an inbox holds.
type contents struct {
	messages []Message
	beats    []Heartbeat
	events   []PeerEvent
	fed      []Fed
	fetched  []Fetched
}

// Inbox is what other goroutines have for a group until its next turn. Whoever
// puts something in gives the group a turn afterwards. All Put methods may be
// called on any goroutine and do not block.
type Inbox struct {
	buffers Buffers

	mu sync.Mutex
	contents
	bytes   int64 // of the data of messages
	dropped uint64
}

// Fed is the result of a Feed's read for the follower To.
type Fed struct {
	To      uint64
	First   wire.Index
	Entries []log.Entry
	Paced   bool // at a limited rate, because producers keep this node's disk busy
	Err     error
}

// Fetched is a checkpoint that was fetched for an offer, the content of its file.
type Fetched struct {
	Offer   SnapshotOffer
	Content []byte
	Err     error
}

// NewInbox makes an inbox. The data of entries is copied into buffers, which may be
// nil: then into fresh memory.
func NewInbox(buffers Buffers) *Inbox { return &Inbox{buffers: buffers} }

// Put takes a message and copies all that it refers to. It returns false if the
// inbox or the buffers are full: the message is dropped, which its sender makes
// good by itself. If there are buffers for some of its entries, it takes those at
// the front: they are a message too, and so even a small budget gets on.
func (b *Inbox) Put(m *Message) bool {
	size := int64(0)
	for i := range m.Entries {
		size += int64(len(m.Entries[i].Data))
	}
	b.mu.Lock()
	full := len(b.messages) >= InboxMessages || b.bytes+size > InboxBytes
	if full {
		b.dropped++
	} else {
		b.bytes += size
	}
	b.mu.Unlock()
	if full {
		return false
	}
	kept, ok := b.own(m)
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(kept.Entries); i < len(m.Entries); i++ {
		b.bytes -= int64(len(m.Entries[i].Data))
	}
	if !ok {
		b.dropped++
		return false
	}
	b.messages = append(b.messages, kept)
	return true
}

// own copies a message with all it refers to, or as many of its entries as there is
// room for; false if that is none.
func (b *Inbox) own(m *Message) (kept Message, ok bool) {
	kept = *m
	kept.pins = nil
	kept.Context = clone(m.Context)
	kept.Responses = nil
	kept.Checks = append([]uint32(nil), m.Checks...)
	if m.Snapshot != nil {
		offer := *m.Snapshot
		offer.ConfState = clone(offer.ConfState)
		kept.Snapshot = &offer
	}
	if len(m.Entries) == 0 {
		kept.Entries = nil
		return kept, true
	}
	kept.Entries = append(kept.Entries[:0:0], m.Entries...)
	for i := range kept.Entries {
		e := &kept.Entries[i]
		if len(e.Data) == 0 {
			e.Data = nil
			continue
		}
		data := b.get(len(e.Data))
		if data == nil {
			kept.Entries = kept.Entries[:i]
			if len(kept.Checks) > i {
				kept.Checks = kept.Checks[:i]
			}
			kept.Commit = min(kept.Commit, m.Index+uint64(i)) // the sender waits for the answer
			return kept, i > 0
		}
		copy(data, e.Data)
		e.Data = data
	}
	return kept, true
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

func (b *Inbox) get(n int) []byte {
	if b.buffers == nil {
		return make([]byte, n)
	}
	return b.buffers.Get(n)
}

// giveBack returns the data of entries that nobody has seen.
func (b *Inbox) giveBack(entries []raftpb.Entry) {
	if b.buffers == nil {
		return
	}
	for i := range entries {
		if entries[i].Data != nil {
			b.buffers.Put(entries[i].Data)
		}
	}
}

// PutBeat takes a heartbeat. It returns false if too many wait already.
func (b *Inbox) PutBeat(h Heartbeat) bool {
	h.Context = clone(h.Context)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.beats) >= InboxBeats {
		b.dropped++
		return false
	}
	b.beats = append(b.beats, h)
	return true
}

// PutEvent takes an event of a node, which is never dropped: an older one of the
// same kind and node gives way.
func (b *Inbox) PutEvent(e PeerEvent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.events {
		if b.events[i].Kind == e.Kind && b.events[i].Node == e.Node {
			b.events = append(b.events[:i], b.events[i+1:]...)
			break
		}
	}
	b.events = append(b.events, e)
}

// PutFed takes the result of a Feed's read, whose entries it owns from here on.
func (b *Inbox) PutFed(f Fed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fed = append(b.fed, f)
}

// PutFetched takes a checkpoint that was fetched, whose content it owns.
func (b *Inbox) PutFetched(f Fetched) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fetched = append(b.fetched, f)
}

// Dropped counts what was dropped because the inbox or its buffers were full.
func (b *Inbox) Dropped() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dropped
}

// take empties the inbox.
func (b *Inbox) take() contents {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.contents
	b.contents = contents{}
	b.bytes = 0
	return c
}

package replication

import (
	"unsafe"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// EntryCheck is the checksum that travels with an entry: the CRC32C of its body,
// continued over its prefix, if it has one. So whoever has the CRC of the body, for
// the header of its frame, computes 16 bytes more.
func EntryCheck(kind wire.Kind, bodyCRC uint32, data []byte) uint32 {
	if kind == wire.KindRecords || kind == wire.KindControl {
		return wire.UpdateChecksum(bodyCRC, data[:wire.EntryPrefixSize])
	}
	return bodyCRC
}

// send hands a message of raft to the transport.
func (g *Group) send(m *raftpb.Message) {
	node, known := g.peers[m.To]
	if g.transport == nil || !known || g.mute() {
		return // a member whose node is not known yet, or not any more
	}
	switch m.Type {
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp:
		g.transport.Beat(node, Heartbeat{
			Meta: g.meta, To: m.To, From: m.From, Term: wire.Term(m.Term), Commit: wire.Index(m.Commit),
			Response: m.Type == raftpb.MsgHeartbeatResp, Context: m.Context,
		})
		return
	}
	out := &Message{Message: *m, Meta: g.meta, Uncertain: g.uncertain}
	switch m.Type {
	case raftpb.MsgApp:
		if !g.sum(out) {
			return
		}
		if len(out.Entries) > 0 {
			g.hold(out)
		}
	case raftpb.MsgSnap:
		if !g.describe(out) {
			return
		}
	}
	g.transport.Send(node, out)
}

// sum adds to a MsgApp what the follower checks it by, and keeps the data of its
// entries. It is false if an entry is no longer the one in the log: this replica
// was deposed in the meantime and the message is worth nothing.
func (g *Group) sum(m *Message) bool {
	if term, ok := g.log.Term(wire.Index(m.Index)); ok && uint64(term) == m.LogTerm {
		m.Chain, m.ChainKnown = g.log.Chain(wire.Index(m.Index))
	}
	if len(m.Entries) == 0 {
		return true
	}
	m.Checks = make([]uint32, len(m.Entries))
	for i := range m.Entries {
		e := &m.Entries[i]
		kept, ok := g.log.InTail(wire.Index(e.Index))
		if !ok || !sameEntry(kept, e) {
			if kept, ok = g.storage.feed.find(e); !ok {
				m.Done()
				return false
			}
		}
		m.Checks[i] = EntryCheck(kept.Kind, kept.BodyCRC, kept.Data)
		if kept.Pin != nil {
			kept.Pin.Hold()
			m.pins = append(m.pins, kept.Pin)
		}
	}
	return true
}

// sameEntry says that an entry of raft is one of the log, with the same memory.
func sameEntry(a *log.Entry, b *raftpb.Entry) bool {
	return uint64(a.Term) == b.Term && len(a.Data) == len(b.Data) && unsafe.SliceData(a.Data) == unsafe.SliceData(b.Data)
}

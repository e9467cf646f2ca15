package replication

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// raftTypes pairs the types of small messages with those of a RAFT frame.
var raftTypes = map[raftpb.MessageType]wire.PeerRaftType{
	raftpb.MsgVote: wire.PeerVote, raftpb.MsgVoteResp: wire.PeerVoteResp,
	raftpb.MsgPreVote: wire.PeerPreVote, raftpb.MsgPreVoteResp: wire.PeerPreVoteResp,
	raftpb.MsgAppResp: wire.PeerAppendResp, raftpb.MsgTimeoutNow: wire.PeerTimeoutNow,
	raftpb.MsgSnapStatus: wire.PeerSnapStatus,
}

var peerTypes = func() map[wire.PeerRaftType]raftpb.MessageType {
	types := make(map[wire.PeerRaftType]raftpb.MessageType, len(raftTypes))
	for t, p := range raftTypes {
		types[p] = t
	}
	return types
}()

// forcedContext is the context with which raft marks the vote request of a candidate
// that its leader has told to campaign.
var forcedContext = []byte("CampaignTransfer")

// KindOf is the kind of peer frame that carries a message of this type, 0 if none
// does: such a message never leaves the process.
func KindOf(t raftpb.MessageType) wire.PeerKind {
	switch t {
	case raftpb.MsgApp:
		return wire.PeerKindAppend
	case raftpb.MsgSnap:
		return wire.PeerKindSnapshot
	}
	if _, ok := raftTypes[t]; ok {
		return wire.PeerKindRaft
	}
	return 0
}

// RaftMessage is m as a RAFT frame carries it. Its context is m's.
func RaftMessage(m *Message) wire.PeerRaftMessage {
	p := wire.PeerRaftMessage{
		Type: raftTypes[m.Type], Meta: m.Meta, Reject: m.Reject, Uncertain: m.Uncertain,
		To: m.To, From: m.From, Term: wire.Term(m.Term), LogTerm: wire.Term(m.LogTerm),
		Index: wire.Index(m.Index), Commit: wire.Index(m.Commit), RejectHint: wire.Index(m.RejectHint), Context: m.Context,
	}
	if string(m.Context) == string(forcedContext) {
		p.Forced, p.Context = true, nil
	}
	return p
}

// AppendFrame appends a whole frame with the message, but without the data of its
// entries: that must follow the frame's head as it lies in Entries, in order. What
// KindOf does not know is an error of the program.
func AppendFrame(dst []byte, m *Message) []byte {
	switch KindOf(m.Type) {
	case wire.PeerKindAppend:
		a := wire.PeerAppend{
			Meta: m.Meta, To: m.To, From: m.From, Term: wire.Term(m.Term), PrevIndex: wire.Index(m.Index), PrevTerm: wire.Term(m.LogTerm),
			Commit: wire.Index(m.Commit), Chain: m.Chain, ChainKnown: m.ChainKnown, Entries: make([]wire.PeerEntry, len(m.Entries)),
		}
		for i := range m.Entries {
			e := &m.Entries[i]
			a.Entries[i] = wire.PeerEntry{Term: wire.Term(e.Term), Type: uint8(e.Type), Check: m.Checks[i], Data: e.Data}
		}
		return a.AppendHead(dst)
	case wire.PeerKindRaft:
		return wire.AppendPeerFrame(dst, wire.PeerKindRaft, 0, &wire.PeerRaft{Messages: []wire.PeerRaftMessage{RaftMessage(m)}})
	case wire.PeerKindSnapshot:
		o := m.Snapshot
		p := wire.PeerSnapshot{
			Meta: m.Meta, To: m.To, From: m.From, Term: wire.Term(m.Term),
			StartIndex: o.Start.Index, StartTerm: o.Start.Term, StartOffset: o.Start.Next, StartTimeMs: o.Start.TimeMs, StartChain: o.Start.Chain,
			Applied: o.Applied, CheckpointBytes: uint64(o.Size), CheckpointCRC: o.CRC, ConfState: o.ConfState,
		}
		if o.Over != nil {
			p.Erased, p.BeforeIndex, p.BeforeTerm, p.BeforeChain = true, o.Over.Index, o.Over.Term, o.Over.Chain
		}
		return wire.AppendPeerFrame(dst, wire.PeerKindSnapshot, 0, &p)
	}
	panic(fmt.Sprintf("replication: %v does not travel between nodes", m.Type))
}

// Decoder takes frames apart that carry messages. Its memory is used again for the
// next frame.
type Decoder struct {
	append   wire.PeerAppend
	raft     wire.PeerRaft
	snapshot wire.PeerSnapshot
	message  Message
}

// Decode hands over the messages in the body of an APPEND, RAFT or SNAPSHOT frame.
// They and what they refer to are valid during the call of take only. The error is
// a *wire.Error; then nothing was handed over.
func (d *Decoder) Decode(kind wire.PeerKind, body []byte, take func(*Message)) error {
	switch kind {
	case wire.PeerKindAppend:
		if err := d.append.Parse(body); err != nil {
			return err
		}
		fromAppend(&d.message, &d.append)
		take(&d.message)
	case wire.PeerKindRaft:
		if err := d.raft.Parse(body); err != nil {
			return err
		}
		for i := range d.raft.Messages {
			if fromRaft(&d.message, &d.raft.Messages[i]) {
				take(&d.message)
			}
		}
	case wire.PeerKindSnapshot:
		if err := d.snapshot.Parse(body); err != nil {
			return err
		}
		fromSnapshot(&d.message, &d.snapshot)
		take(&d.message)
	default:
		return wire.Errorf(wire.CodeUnsupported, "peer frame %v carries no message", kind)
	}
	return nil
}

// fromAppend makes a message of a decoded APPEND. The data of its entries are those
// of p. Terms, types and checks of the entries are judged by the group.
func fromAppend(m *Message, p *wire.PeerAppend) {
	entries, checks := m.Entries[:0], m.Checks[:0]
	for i := range p.Entries {
		e := &p.Entries[i]
		entries = append(entries, raftpb.Entry{Term: uint64(e.Term), Index: uint64(p.PrevIndex) + 1 + uint64(i), Type: raftpb.EntryType(e.Type), Data: e.Data})
		checks = append(checks, e.Check)
	}
	*m = Message{
		Message: raftpb.Message{
			Type: raftpb.MsgApp, To: p.To, From: p.From, Term: uint64(p.Term), Index: uint64(p.PrevIndex), LogTerm: uint64(p.PrevTerm),
			Commit: uint64(p.Commit), Entries: entries,
		},
		Meta: p.Meta, Chain: p.Chain, ChainKnown: p.ChainKnown, Checks: checks,
	}
}

// fromRaft makes a message of one in a decoded RAFT frame. It returns false for the
// types that are reserved.
func fromRaft(m *Message, p *wire.PeerRaftMessage) bool {
	t, ok := peerTypes[p.Type]
	*m = Message{
		Message: raftpb.Message{
			Type: t, To: p.To, From: p.From, Term: uint64(p.Term), LogTerm: uint64(p.LogTerm), Index: uint64(p.Index),
			Commit: uint64(p.Commit), Reject: p.Reject, RejectHint: uint64(p.RejectHint), Context: p.Context,
		},
		Meta: p.Meta, Uncertain: p.Uncertain,
	}
	if p.Forced {
		m.Context = forcedContext
	}
	return ok
}

// fromSnapshot makes a message of a decoded SNAPSHOT. The metadata of its raft
// snapshot is filled in when the checkpoint is there.
func fromSnapshot(m *Message, p *wire.PeerSnapshot) {
	*m = Message{
		Message: raftpb.Message{Type: raftpb.MsgSnap, To: p.To, From: p.From, Term: uint64(p.Term)},
		Meta:    p.Meta,
		Snapshot: &SnapshotOffer{
			From: p.From, To: p.To, Term: p.Term,
			Start:   log.Link{Index: p.StartIndex, Term: p.StartTerm, Next: p.StartOffset, TimeMs: p.StartTimeMs, Chain: p.StartChain},
			Applied: p.Applied, Size: int64(min(p.CheckpointBytes, 1<<62)), CRC: p.CheckpointCRC, ConfState: p.ConfState,
		},
	}
	if p.Erased {
		m.Snapshot.Over = &log.Link{Index: p.BeforeIndex, Term: p.BeforeTerm, Chain: p.BeforeChain}
	}
}

// PeerBeat is h as a HEARTBEATS frame carries it, and HeartbeatOf the way back.
func PeerBeat(h *Heartbeat) wire.PeerBeat {
	return wire.PeerBeat{
		Meta: h.Meta, Response: h.Response, Quiet: h.Quiet, Wake: h.Wake, To: h.To, From: h.From, Term: h.Term, Commit: h.Commit, Context: h.Context,
	}
}

// HeartbeatOf makes a heartbeat of a decoded one, whose context it shares.
func HeartbeatOf(b *wire.PeerBeat) Heartbeat {
	return Heartbeat{
		Meta: b.Meta, Response: b.Response, Quiet: b.Quiet, Wake: b.Wake, To: b.To, From: b.From, Term: b.Term, Commit: b.Commit, Context: b.Context,
	}
}

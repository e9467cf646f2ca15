package replication

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Every message survives the way over the wire, with all that its type uses.
func TestMessagesSurviveTheWire(t *testing.T) {
	for _, m := range []Message{
		{
			Message: raftpb.Message{
				Type: raftpb.MsgApp, To: 1, From: 2, Term: 3, Index: 4, LogTerm: 5, Commit: 6,
				Entries: []raftpb.Entry{{Term: 2, Index: 5, Data: []byte("abc")}, {Term: 3, Index: 6, Type: raftpb.EntryConfChangeV2, Data: []byte("d")}, {Term: 3, Index: 7}},
			},
			Meta: true, Chain: 7, ChainKnown: true, Checks: []uint32{8, 9, 10},
		},
		{Message: raftpb.Message{Type: raftpb.MsgVote, To: 1, From: 2, Term: 3, Index: 4, LogTerm: 5, Context: []byte("CampaignTransfer")}},
		{Message: raftpb.Message{Type: raftpb.MsgVoteResp, To: 1, From: 2, Term: 3, Reject: true}},
		{Message: raftpb.Message{Type: raftpb.MsgPreVote, To: 1, From: 2, Term: 3, Index: 4, LogTerm: 5}, Meta: true},
		{Message: raftpb.Message{Type: raftpb.MsgPreVoteResp, To: 1, From: 2, Term: 3}},
		{Message: raftpb.Message{Type: raftpb.MsgAppResp, To: 1, From: 2, Term: 3, Index: 4, LogTerm: 5, Reject: true, RejectHint: 6}},
		{Message: raftpb.Message{Type: raftpb.MsgTimeoutNow, To: 1, From: 2, Term: 3}},
		{Message: raftpb.Message{Type: raftpb.MsgSnapStatus, To: 1, From: 2, Reject: true}, Uncertain: true},
		{
			Message: raftpb.Message{Type: raftpb.MsgSnap, To: 1, From: 2, Term: 3},
			Snapshot: &SnapshotOffer{
				From: 2, To: 1, Term: 3, Start: log.Link{Index: 4, Term: 5, Next: 6, TimeMs: -7, Chain: 8},
				Applied: 9, Size: 10, CRC: 11, ConfState: []byte{8, 1},
			},
		},
		{
			Message: raftpb.Message{Type: raftpb.MsgSnap, To: 1, From: 2, Term: 3},
			Snapshot: &SnapshotOffer{
				From: 2, To: 1, Term: 3, Start: log.Link{Index: 4, Term: 5, Next: 6, TimeMs: -7, Chain: 8}, Over: &log.Link{Index: 2, Term: 3, Chain: 9},
				Applied: 9, Size: 10, CRC: 11, ConfState: []byte{8, 1},
			},
		},
	} {
		t.Run(m.Type.String(), func(t *testing.T) {
			frame := AppendFrame(nil, &m)
			for i := range m.Entries {
				frame = append(frame, m.Entries[i].Data...)
			}
			h, err := wire.ParsePeerHeader(frame)
			require.NoError(t, err)
			require.Equal(t, len(frame), h.TotalSize())
			require.Equal(t, KindOf(m.Type), h.Kind)
			var d Decoder
			var got []Message
			require.NoError(t, d.Decode(h.Kind, frame[wire.HeaderSize:], func(m *Message) { got = append(got, *m) }))
			require.Equal(t, []Message{m}, got)
		})
	}
	require.ErrorIs(t, new(Decoder).Decode(wire.PeerKindAck, nil, nil), wire.CodeUnsupported)
	require.ErrorIs(t, new(Decoder).Decode(wire.PeerKindAppend, nil, nil), wire.CodeMalformed)
	h := Heartbeat{Meta: true, To: 1, From: 2, Term: 3, Commit: 4, Response: true, Quiet: true, Wake: true, Context: []byte{5}}
	b := PeerBeat(&h)
	require.Equal(t, h, HeartbeatOf(&b))
}

func TestKindsThatStayInTheProcess(t *testing.T) {
	for name, n := range raftpb.MessageType_value {
		switch mt := raftpb.MessageType(n); mt {
		case raftpb.MsgApp, raftpb.MsgSnap, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
			raftpb.MsgAppResp, raftpb.MsgTimeoutNow, raftpb.MsgSnapStatus:
			require.NotZero(t, KindOf(mt), name)
		default:
			require.Zero(t, KindOf(mt), name)
		}
	}
	require.Panics(t, func() { AppendFrame(nil, &Message{Message: raftpb.Message{Type: raftpb.MsgHup}}) })
}

// raft tells a candidate that was ordered to campaign by this context alone, which
// it does not export.
func TestForcedContextIsRafts(t *testing.T) {
	storage := raft.NewMemoryStorage()
	require.NoError(t, storage.ApplySnapshot(raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{Index: 1, Term: 1, ConfState: raftpb.ConfState{Voters: []uint64{1, 2}}}}))
	node, err := raft.NewRawNode(&raft.Config{ID: 1, ElectionTick: 10, HeartbeatTick: 1, Storage: storage, MaxSizePerMsg: 1, MaxInflightMsgs: 1, PreVote: true})
	require.NoError(t, err)
	require.NoError(t, node.Step(raftpb.Message{Type: raftpb.MsgTimeoutNow, To: 1, From: 2, Term: 1}))
	messages := node.Ready().Messages
	require.NotEmpty(t, messages)
	vote := messages[len(messages)-1]
	require.Equal(t, raftpb.MsgVote, vote.Type)
	require.True(t, RaftMessage(&Message{Message: vote}).Forced)
}

package replication

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/wire"
)

func anAppend(entries int, size int) *Message {
	m := &Message{Message: raftpb.Message{Type: raftpb.MsgApp, From: 2, To: 1, Term: 1}}
	for i := range entries {
		m.Entries = append(m.Entries, raftpb.Entry{Index: uint64(i + 1), Term: 1, Data: make([]byte, size)})
		m.Checks = append(m.Checks, 0)
	}
	return m
}

func TestAnInboxIsBounded(t *testing.T) {
	b := NewInbox(nil)
	for range InboxMessages {
		require.True(t, b.Put(anAppend(0, 0)))
	}
	require.False(t, b.Put(anAppend(0, 0)))
	require.Len(t, b.take().messages, InboxMessages)
	for range InboxBytes >> 20 {
		require.True(t, b.Put(anAppend(1, 1<<20)))
	}
	require.False(t, b.Put(anAppend(1, 1)))
	require.True(t, b.Put(anAppend(0, 0)))
	require.Equal(t, uint64(2), b.Dropped())
	for range InboxBeats {
		require.True(t, b.PutBeat(Heartbeat{}))
	}
	require.False(t, b.PutBeat(Heartbeat{}))
	b.take()
	require.True(t, b.Put(anAppend(1, 1)))
}

func TestAnInboxKeepsNothingOfWhatItWasGiven(t *testing.T) {
	b := NewInbox(nil)
	m := anAppend(2, 3)
	m.Context = []byte("context")
	m.Snapshot = &SnapshotOffer{ConfState: []byte("conf")}
	require.True(t, b.Put(m))
	m.Entries[0].Data[0], m.Checks[1], m.Context[0], m.Snapshot.ConfState[0] = 9, 9, 9, 9
	got := b.take().messages[0]
	require.Equal(t, []byte{0, 0, 0}, got.Entries[0].Data)
	require.Equal(t, []uint32{0, 0}, got.Checks)
	require.Equal(t, "context", string(got.Context))
	require.Equal(t, "conf", string(got.Snapshot.ConfState))
}

func TestAnInboxTakesTheFrontOfAMessageThatDoesNotFit(t *testing.T) {
	p := &pool{limit: 3, size: poolBuffer}
	b := NewInbox(p)
	require.True(t, b.Put(anAppend(5, 10)))
	require.False(t, b.Put(anAppend(1, 10)))
	got := b.take().messages
	require.Len(t, got, 1)
	require.Len(t, got[0].Entries, 3)
	require.Len(t, got[0].Checks, 3)
	require.Equal(t, 3, p.out)
}

func TestEventsOfANodeReplaceOlderOnes(t *testing.T) {
	b := NewInbox(nil)
	b.PutEvent(PeerEvent{Kind: PeerDown, Node: 1})
	b.PutEvent(PeerEvent{Kind: PeerUp, Node: 1})
	b.PutEvent(PeerEvent{Kind: PeerDown, Node: 2})
	b.PutEvent(PeerEvent{Kind: PeerDown, Node: 1, Refused: true})
	require.Equal(t, []PeerEvent{
		{Kind: PeerUp, Node: 1}, {Kind: PeerDown, Node: 2}, {Kind: PeerDown, Node: 1, Refused: true},
	}, b.take().events)
}

func TestAnInboxIsForAnyGoroutine(t *testing.T) {
	b := NewInbox(nil)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 100 {
				b.Put(anAppend(1, 10))
				b.PutBeat(Heartbeat{Commit: wire.Index(1)})
				b.PutEvent(PeerEvent{Kind: PeerUp, Node: 1})
			}
		})
	}
	n := 0
	for range 100 {
		n += len(b.take().messages)
	}
	all.Wait()
	require.Equal(t, 400, n+len(b.take().messages))
	require.Zero(t, b.Dropped())
}

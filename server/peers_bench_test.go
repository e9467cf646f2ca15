package server

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/replication"
)

// BenchmarkPeers sends entries of 1 MiB from one node to another over loopback, with
// at most 16 of them on the way.
func BenchmarkPeers(b *testing.B) {
	x, y := startPeer(b, testSelf(1)), startPeer(b, testSelf(2))
	connect(b, x, y)
	data := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	b.ResetTimer()
	sent := 0
	for got := range b.N {
		for ; sent < b.N && sent-got < 16; sent++ {
			x.peers.Send(2, &replication.Message{
				Message: raftpb.Message{Type: raftpb.MsgApp, From: 7, To: 8, Entries: []raftpb.Entry{{Data: data}}}, Checks: []uint32{0},
			})
		}
		next(b, y.handler.messages)
	}
}

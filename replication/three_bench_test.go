package replication

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// BenchmarkThreeVoters is the cost of an entry on three replicas together, without
// sockets and syncs: the frames are encoded and decoded.
//
//	go test ./replication -tags release -run '^$' -bench ThreeVoters -benchmem
func BenchmarkThreeVoters(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("entry=%dB", size), func(b *testing.B) { benchThree(b, size) })
	}
}

// benchNode is one replica of the benchmark.
type benchNode struct {
	id      uint64
	nodes   []*benchNode
	exec    queueExecutor
	log     *log.Log
	inbox   *Inbox
	group   *Group
	decoder Decoder
	frame   []byte
	sent    int
}

func (n *benchNode) Send(node uint32, m *Message) {
	n.frame = AppendFrame(n.frame[:0], m)
	for i := range m.Entries {
		n.frame = append(n.frame, m.Entries[i].Data...)
	}
	to := n.nodes[node-1]
	_ = to.decoder.Decode(KindOf(m.Type), n.frame[wire.HeaderSize:], func(m *Message) { to.inbox.Put(m) })
	m.Done()
	to.sent++
}

func (n *benchNode) Beat(node uint32, h Heartbeat) {
	n.nodes[node-1].inbox.PutBeat(h)
	n.nodes[node-1].sent++
}

// bigPool is memory for entries of any size.
type bigPool struct{ free [][]byte }

func (p *bigPool) Get(n int) []byte {
	if k := len(p.free); k > 0 && cap(p.free[k-1]) >= n {
		b := p.free[k-1]
		p.free = p.free[:k-1]
		return b[:n]
	}
	return make([]byte, n, max(n, 4<<10))
}

func (p *bigPool) Put(b []byte) { p.free = append(p.free, b) }

func benchThree(b *testing.B, size int) {
	nodes := make([]*benchNode, 3)
	pools := make([]*bigPool, 3)
	for i := range nodes {
		dir := b.TempDir()
		store, err := log.OpenStore(log.StoreOptions{FS: vfs.OS(), Dir: dir, BootID: "bench", MinFreeBytes: -1, ReserveBytes: -1})
		require.NoError(b, err)
		n := &benchNode{id: uint64(i + 1), nodes: nodes}
		pools[i] = &bigPool{}
		n.inbox = NewInbox(pools[i])
		n.log, err = log.Open(log.Options{
			Store: store, Dir: filepath.Join(dir, "partitions", "p-0"), PartitionID: [16]byte{1}, Incarnation: 1,
			ReplicaID: n.id, Sync: log.SyncOS, Executor: &n.exec,
		})
		require.NoError(b, err)
		n.group, err = Open(Config{
			ReplicaID: n.id, Voters: []uint64{1, 2, 3}, Peers: map[uint64]uint32{1: 1, 2: 2, 3: 3}, Transport: n, Inbox: n.inbox,
			Log: n.log, State: nothing{}, CheckpointBytes: 1 << 40,
		})
		require.NoError(b, err)
		n.group.OnRelease(pools[i].Put)
		nodes[i] = n
		b.Cleanup(func() {
			require.NoError(b, n.log.Close(true))
			require.NoError(b, store.Close())
		})
	}
	work := func() {
		for busy := true; busy; {
			busy = false
			for _, n := range nodes {
				for len(n.exec.jobs) > 0 {
					j := n.exec.jobs[0]
					n.exec.jobs = n.exec.jobs[1:]
					j.Run()
					j.Done()
					busy = true
				}
				if n.sent > 0 || busy {
					n.sent = 0
					n.group.Turn()
					busy = true
				}
				busy = busy || n.sent > 0
			}
		}
	}
	leader := nodes[0]
	leader.group.Campaign()
	work()
	_, leads := leader.group.Leading()
	require.True(b, leads)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	kept := wire.Offset(0)
	waiting := 0
	for b.Loop() {
		for leader.log.Reserve(wire.FrameSize(size), true) != nil {
			work()
			waiting = 0
		}
		data := pools[0].Get(wire.EntryPrefixSize + size)
		wire.PutEntryPrefix(data, wire.KindRecords, 1, 1)
		if _, err := leader.group.Propose(data); err != nil {
			b.Fatal(err)
		}
		if waiting++; waiting == 16 {
			work()
			waiting = 0
		}
		if next := leader.log.Watermark().Next; next-kept > 1<<14 { // do not fill the disk
			kept = next
			for _, n := range nodes {
				n.log.Trim(n.log.Watermark().Next)
			}
			work()
		}
	}
	work()
	require.Equal(b, leader.group.Applied(), nodes[1].group.Applied())
}

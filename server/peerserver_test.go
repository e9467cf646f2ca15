package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// startMember runs a broker with a port for others on loopback.
func startMember(t *testing.T, dir string, node uint32, join ...string) *Server {
	t.Helper()
	s, err := Start(t.Context(), Config{
		DataDir: dir, Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, NodeID: node, Join: join,
		ScrubInterval: -1, Logger: testLogger(node),
	})
	require.NoError(t, err)
	t.Cleanup(func() { closeMember(t, s) })
	return s
}

func closeMember(t *testing.T, s *Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	require.NoError(t, s.Close(ctx))
}

// Three brokers with sockets between them: what one takes the others have, and when
// one stops the others go on.
func TestClusterOverSockets(t *testing.T) {
	a := startMember(t, t.TempDir(), 1)
	b := startMember(t, t.TempDir(), 2, a.Addr())
	c := startMember(t, t.TempDir(), 3, a.Addr(), b.Addr())
	all := []*Server{a, b, c}
	for _, s := range all {
		eventually(t, "every node sees the others", func() bool {
			v := s.broker.View()
			for _, n := range v.Nodes {
				if !s.broker.reachable(n.ID) {
					return false
				}
			}
			return len(v.Nodes) == 3 && v.Level == cluster.MaxLevel
		})
	}
	created := make(chan error, 1)
	b.broker.Admin(&wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 3, Replicas: 3, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}}, func(_ wire.Message, err error) { created <- err })
	require.NoError(t, <-created)
	leader := func(among []*Server, number uint32) *Server {
		for _, s := range among {
			d, ok := s.broker.View().Destination("orders")
			if !ok {
				continue
			}
			if r := s.broker.local(d.ID, number); r != nil && r.Leading() {
				return s
			}
		}
		return nil
	}
	led := func(among []*Server) func() bool {
		return func() bool {
			return leader(among, 0) != nil && leader(among, 1) != nil && leader(among, 2) != nil
		}
	}
	eventually(t, "leaders", led(all))
	produce := func(among []*Server, number uint32, text string) wire.Receipt {
		s := leader(among, number)
		d, _ := s.broker.View().Destination("orders")
		return produceTo(t, s.broker.local(d.ID, number), []byte(text))
	}
	for _, s := range all {
		s.broker.resumed(2 * standstill) // everybody asks, and goes on
	}
	for i := range 100 {
		receipt := produce(all, uint32(i%3), fmt.Sprint("record ", i))
		require.Equal(t, wire.Offset(i/3), receipt.BaseOffset)
	}
	for _, s := range all {
		eventually(t, "everybody has everything", func() bool {
			d, _ := s.broker.View().Destination("orders")
			n := wire.Offset(0)
			for number := range uint32(3) {
				n += s.broker.local(d.ID, number).records.Watermark().Next
			}
			return n == 100
		})
	}
	gone := leader(all, 1)
	var left []*Server
	for _, s := range all {
		if s != gone {
			left = append(left, s)
		}
	}
	began := time.Now()
	closeMember(t, gone)
	stopped := time.Now()
	eventually(t, "leaders without the one that stopped", led(left))
	t.Logf("stopping took %v, leaders were there %v later", stopped.Sub(began), time.Since(stopped))
	require.Equal(t, wire.Offset(33), produce(left, 1, "after").BaseOffset)
}

// produceTo appends one record and waits for its receipt.
func produceTo(t *testing.T, r *partitionReplica, value []byte) wire.Receipt {
	t.Helper()
	var builder wire.BatchBuilder
	require.True(t, builder.Append(1, 0, nil, value, nil, 0))
	batch, _ := builder.Finish(wire.ProducerIdentity{ID: -1, Epoch: -1, Sequence: -1}, 0, wire.CodecNone, nil)
	info, err := wire.ParseBatch(batch)
	require.NoError(t, err)
	got := receiver{make(chan wire.Receipt, 1), make(chan wire.ErrorCode, 1)}
	require.NoError(t, r.Append(partition.Append{Batch: batch, Info: info, Acks: wire.AcksQuorum, Receiver: got}))
	r.Kick(true)
	select {
	case receipt := <-got.receipts:
		return receipt
	case code := <-got.codes:
		require.Equal(t, wire.CodeOK, code)
	case <-time.After(60 * time.Second):
		require.FailNow(t, "no receipt")
	}
	return wire.Receipt{}
}

// A body that rots on one node's disk is written again from another's, and the files
// are the same again.
func TestRuleL8_DamagedBodiesAreRepairedFromAnotherNode(t *testing.T) {
	a := startMember(t, t.TempDir(), 1)
	b := startMember(t, t.TempDir(), 2, a.Addr())
	c := startMember(t, t.TempDir(), 3, a.Addr())
	all := []*Server{a, b, c}
	eventually(t, "three nodes", func() bool {
		v := a.broker.View()
		return len(v.Nodes) == 3 && v.Level == cluster.MaxLevel && a.broker.reachable(2) && a.broker.reachable(3)
	})
	created := make(chan error, 1)
	a.broker.Admin(&wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 1, Replicas: 3, SegmentBytes: 1 << 20, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited,
	}}, func(_ wire.Message, err error) { created <- err })
	require.NoError(t, <-created)
	replica := func(s *Server) *partitionReplica {
		d, ok := s.broker.View().Destination("orders")
		if !ok {
			return nil
		}
		return s.broker.local(d.ID, 0)
	}
	var leader *partitionReplica
	eventually(t, "a leader and all replicas", func() bool {
		for _, s := range all {
			r := replica(s)
			if r == nil {
				return false
			}
			if r.Leading() {
				leader = r
			}
		}
		return leader != nil
	})
	for i := range 4 {
		require.Equal(t, wire.Offset(i), produceTo(t, leader, bytes.Repeat([]byte{byte('a' + i)}, 600_000)).BaseOffset)
	}
	first := func(r *partitionReplica) string {
		names, err := filepath.Glob(filepath.Join(r.dir, "*.segment"))
		require.NoError(t, err)
		require.Greater(t, len(names), 1)
		return names[0]
	}
	for _, s := range all {
		r := replica(s)
		eventually(t, "everything", func() bool { return r.records.Watermark().Next == 4 })
		file, err := os.OpenFile(first(r), os.O_RDWR, 0)
		require.NoError(t, err)
		for at := int64(10_000); at < 20_000; at += 1000 {
			_, err = file.WriteAt([]byte("rot"), at)
			require.NoError(t, err)
		}
		require.NoError(t, file.Close())
		led := r.Leading()
		r.ReportDamage(0)
		eventually(t, "the repair", func() bool { return s.broker.damage.repaired.Load() == 1 && len(r.records.Damage()) == 0 })
		require.Equal(t, uint64(1), s.broker.damage.confirmed.Load())
		require.False(t, led && r.Leading(), "a leader with damage steps aside first")
		got, err := os.ReadFile(first(r))
		require.NoError(t, err)
		require.NotContains(t, string(got), "rot")
		require.Contains(t, string(got), strings.Repeat("a", 600_000))
	}
}

type receiver struct {
	receipts chan wire.Receipt
	codes    chan wire.ErrorCode
}

func (r receiver) Appended(_ uint64, receipt wire.Receipt, code wire.ErrorCode) {
	if code != wire.CodeOK {
		r.codes <- code
		return
	}
	r.receipts <- receipt
}

package server

import (
	"context"
	"fmt"
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
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
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
			return len(v.Nodes) == 3 && v.Level == cluster.LevelCluster
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
		r := s.broker.local(d.ID, number)
		var builder wire.BatchBuilder
		require.True(t, builder.Append(1, 0, nil, []byte(text), nil, 0))
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
		case <-time.After(10 * time.Second):
			require.FailNow(t, "no receipt")
		}
		return wire.Receipt{}
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

package server

import (
	"slices"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// statusPatience bounds the wait for what other nodes say of themselves.
const statusPatience = time.Second

// ownStatus is what this node knows of itself.
func (b *broker) ownStatus() wire.NodeStatus {
	s := wire.NodeStatus{
		Node: b.identity.NodeID, Answered: true, Version: Version(), UptimeMs: uint64((monotonic() - b.began) / int64(time.Millisecond)),
		PeerAddress: b.cfg.PeerAdvertise, HTTP: b.cfg.HTTP,
	}
	if s.HTTP == "off" {
		s.HTTP = ""
	}
	b.each(func(r *partitionReplica) { s.StoredBytes += uint64(r.records.Bytes()) })
	if free, total, err := b.cfg.fs.Space(b.cfg.DataDir); err == nil {
		s.FreeBytes, s.TotalBytes = uint64(max(free, 0)), uint64(max(total, 0))
		s.KeptBytes, s.LacksSpace = uint64(max(log.MinFree(b.cfg.MinFreeBytes, total), 0)), b.disk.Short()
	}
	return s
}

// metaVoters are the nodes that vote about the metadata; those of the smaller of two
// majorities while voters are exchanged, see countVoters.
func (b *broker) metaVoters() (nodes []uint32) {
	sets := b.meta.voting.sets.Load()
	voters := sets[0]
	if n := len(sets[1]); n > 0 && n < len(voters) {
		voters = sets[1]
	}
	for _, id := range voters {
		nodes = append(nodes, b.nodeOfMeta(id))
	}
	slices.Sort(nodes)
	return nodes
}

// clusterStatus asks all nodes that are there what they know of themselves. reply is
// called once, on any goroutine.
func (b *broker) clusterStatus(reply func(wire.Message, error)) {
	v := b.View()
	answer := &wire.ClusterStatus{Controller: b.meta.leader.Load(), Level: uint16(v.Level), Voters: b.metaVoters(), Nodes: make([]wire.NodeStatus, len(v.Nodes))}
	var asked []int // places in Nodes
	for i, n := range v.Nodes {
		answer.Nodes[i] = wire.NodeStatus{Node: n.ID, PeerAddress: n.PeerAddress, HTTP: n.HTTP}
		switch {
		case n.ID == b.identity.NodeID:
			answer.Nodes[i] = b.ownStatus()
		case b.reachable(n.ID):
			asked = append(asked, i)
		}
	}
	if len(asked) == 0 {
		reply(answer, nil)
		return
	}
	var mu sync.Mutex
	waiting := len(asked) // 0: answered
	end := func(n int) {
		if waiting -= min(n, waiting); waiting == 0 {
			reply(answer, nil)
		}
	}
	for _, i := range asked {
		node := v.Nodes[i].ID
		b.network.Request(node, wire.PeerStatus, nil, func(code wire.ErrorCode, body []byte) {
			var said wire.NodeStatus
			understood := code == wire.CodeOK && said.Parse(body) == nil && said.Node == node
			mu.Lock()
			defer mu.Unlock()
			if waiting == 0 {
				return
			}
			if understood {
				answer.Nodes[i] = said
			}
			end(1)
		})
	}
	time.AfterFunc(statusPatience, func() {
		mu.Lock()
		defer mu.Unlock()
		if waiting > 0 {
			end(waiting)
		}
	})
}

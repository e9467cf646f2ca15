package replication

import (
	"go.etcd.io/raft/v3"
)

// installing says that a snapshot is being fetched or put in place.
func (g *Group) installing() bool { return false }

// describe adds to a MsgSnap what the follower fetches.
func (g *Group) describe(m *Message) bool { return false }

// offered takes notice of a leader's offer.
func (g *Group) offered(m *Message, status *raft.BasicStatus) bool {
	g.drop(m, DropRoom)
	return false
}

// fetched takes a checkpoint that was offered.
func (g *Group) fetched(f Fetched) {}

// snapshotStatus is a follower's word about a snapshot that it was offered.
func (g *Group) snapshotStatus(m *Message, status *raft.BasicStatus) {}

// snapshotLost says that a follower may have missed an offer.
func (g *Group) snapshotLost(id uint64) {}

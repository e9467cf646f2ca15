package partition

import "sync/atomic"

// Memory bounds what the partitions of a node hold together of records on their
// way: batches in mailboxes and entries that consensus has not let go of yet. What
// cannot be taken is refused before it is copied, so that a node with many
// partitions, or with some whose disk has stalled, does not run out of memory.
//
// While less than half is used, it is first come, first served. Beyond that a
// partition that holds more than a sixteenth gets nothing, so that a few partitions
// that do not get on leave room for the others.
//
// Any goroutine may use it.
type Memory struct {
	limit   int64
	used    atomic.Int64
	arrived atomic.Uint64
}

// memoryShare is the part of the limit, 1/memoryShare, that a partition may hold
// while more than half is used.
const memoryShare = 16

// NewMemory makes a budget of limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit} }

// Used is how many bytes are taken.
func (m *Memory) Used() int64 { return m.used.Load() }

// Arrived is how many bytes clients have brought to the node's partitions so far, in
// batches and in control entries.
func (m *Memory) Arrived() uint64 { return m.arrived.Load() }

// account is what one partition has taken. The zero account is of no budget and
// never refuses.
type account struct {
	memory *Memory
	held   atomic.Int64
}

// take takes n bytes, or reports that they are not to be had.
func (a *account) take(n int64) bool {
	if a.memory == nil {
		return true
	}
	used := a.memory.used.Add(n)
	held := a.held.Load()
	if used > a.memory.limit || used > a.memory.limit/2 && held > 0 && held+n > a.memory.limit/memoryShare {
		a.memory.used.Add(-n)
		return false
	}
	a.held.Add(n)
	return true
}

// took notes that n bytes have come from a client, and not from another replica.
func (a *account) took(n int) {
	if a.memory != nil {
		a.memory.arrived.Add(uint64(n))
	}
}

// give gives n bytes back.
func (a *account) give(n int64) {
	if a.memory != nil {
		a.held.Add(-n)
		a.memory.used.Add(-n)
	}
}

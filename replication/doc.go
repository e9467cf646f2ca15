// Package replication runs one Raft group per partition over the partition's
// log: the Raft log is the message log, nothing is written twice.
//
// A Group joins three things under one owner. The consensus core is a RawNode
// of go.etcd.io/raft with asynchronous storage writes. Storage is a log.Log:
// MsgStorageAppend becomes log.Append plus a request for a sync, and the
// messages that promise durability are stepped only when the log's durable
// ticket has passed the append. Committed entries move the high watermark, then
// the state machine gets them from memory, never from a file.
//
// The main path is Propose → Ready → log.Append → (sync, elsewhere) → Turn →
// commit → log.Publish → StateMachine.Apply.
//
// A Group has no goroutine and no clock. Whoever holds the owner's right calls
// Turn after any input: a proposal, a finished job of the log, a tick. A panic
// inside raft and a storage error both end in a fence of this group alone; raft
// itself never sees a storage error.
//
// With one voter nothing travels over a network and no tick is needed: the
// voter campaigns once when it is opened and stays leader. What its log holds is
// by definition committed, so recovery replays all of it before the node
// starts.
//
// With several members there is a Transport for what raft wants to send and an
// Inbox for what other nodes have for this replica; a turn empties the inbox, and
// ticks are counted outside. Three rules make it safe. A message of another replica
// is checked before raft sees it, because raft trusts what it is told (receive.go).
// A leader writes its own frames before it sends the entries, so it sends their
// checksums and never more than it has room for; promises of a follower wait for
// its disk, as those of the leader to itself do. And the data of an entry is pinned
// while a message refers to it, so that buffers are used again only when nobody
// reads them (send.go, log.Pin).
//
// A group in which nothing happens sleeps (quiet.go), a leader whose disk stalls hands
// leadership on (lead.go), and reads that must see everything acknowledged before
// them wait until a quorum has confirmed the leader (readindex.go).
//
// A follower that lags further than memory reaches is fed by reads of a worker
// (feed.go). What is committed at a restart is told by the configuration, while
// this replica is the only voter, and by the durable marks of the log otherwise
// (replay.go).
package replication

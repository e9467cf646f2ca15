// Package server is the broker: sessions on event loops, the partitions this
// node holds, and the metadata that names them.
//
// A produced record takes this path. The event loop reads a PRODUCE frame
// (session.go), checks the batch where it lies in the read buffer and copies it
// into the partition's mailbox (requests.go → partition.Append). At the end of
// the read it takes the owner's right if the partition is idle (owner.go) and
// runs a turn (replica.go): the waiting batches become one entry, which consensus
// writes to the log. A sync, if the destination asks for one, runs on a
// goroutine that may block and then takes the next turn itself: the entry
// commits, receipts go to the sessions' outboxes (outbox.go), and each loop
// writes what its sessions have, one write per connection.
//
// A consumed record takes this one. A link (stream.go) knows its position in the
// log. When the high watermark is past it and the client has given credit, the
// loop hands mapped slices of stored frames to the socket. Whoever moves the
// watermark wakes the links that wait for it.
//
// What may wait for a disk runs on workers, to which each partition has a line with a
// share of them (line.go, pool.go, reads.go). A disk that does not answer is noticed,
// kept where it is and named (stall.go).
//
// In a cluster the same record takes this path besides. The turn that wrote the entry
// hands messages for the other replicas to the connections of their nodes (peers.go):
// each has a queue (peerqueue.go), which the connection's loop empties with writev
// (peerconn.go). On the other side the loop puts a message into the inbox of its
// replica (inbound.go, network.go) and gives its owner a turn, like that of a producer's
// batch; the answer goes back the same way when the entry is synced there, and the
// leader's next turn finds it committed. Who lives is known from heartbeats
// (liveness.go), who leads from what leaders say (hints.go), and what belongs to
// another node's partition is sent there (route.go, forward.go). Replicas that lag or
// have damage get what they lack from others (catchup.go, repair.go).
//
// broker.go keeps partitions in step with the metadata (metadata.go), timers.go
// turns time into requests to owners, server.go starts and stops it all.
package server

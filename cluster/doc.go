// Package cluster is the metadata of a cluster: the state machine of Raft
// group 0. It holds nodes, destinations with their settings, partitions with
// their identities and replicas, key slots, and hands out producer IDs.
//
// A Command changes it. Commands carry everything that is not a function of the
// state: identifiers drawn by the proposer, times, addresses; Apply reads
// neither clock nor randomness, so every node arrives at the same state.
// Commands and checkpoints are JSON: metadata is small and changes rarely, and a
// new field must not need a new format.
//
// A View is an immutable picture of the state after one entry. Everybody else
// reads views; the owner publishes a new one whenever something changed.
package cluster

// Package sim runs one node of Lockstep as a deterministic simulation and checks
// that nothing acknowledged is lost, doubled, moved or changed, whatever the
// machine does.
//
// What is real: the log with its store, consensus, partitions and metadata, wired
// as the broker wires them (node.go, replica.go). What is simulated: the disk,
// which loses power (vfs.Simulated), and everything around the node: the executor
// of storage jobs, clients, readers, the clock. There are no goroutines. A run is
// a sequence of steps; what a step does is drawn from the seed and the number of
// the step alone, so that steps can be left out of a failing run without changing
// what the others try (Shrink).
//
//	step ──▶ run a job │ deliver its Done │ client sends │ reader reads │ clock
//	         metadata command │ checkpoint │ retention │ storage error │ disk full
//	         power cut at a storage call │ process crash │ clean stop
//
// The model (history.go, partition.go) does not know how storage works. It
// sees entries when they are applied, acknowledgements when clients get them and
// bytes when readers read them, and knows what each of them promises. After every
// restart the log is read from its first byte and compared.
//
// With Options.Machines there are several machines, each with a disk of its own, and
// a network between them (fleet.go). Each holds a replica of one partition: log,
// partition and consensus are the real ones and talk in the bytes of the peer
// protocol; metadata is left out, since who the replicas are is given. Frames are
// dropped, doubled, reordered, damaged and held back, links are cut both ways or one
// way, processes stand still. The model (fleet_truth.go) is one for all replicas and
// all their lives: an entry is learned when the first replica applies it, and then
// every replica has this one. Beside it stands what each replica has promised to the
// others, its votes and the entries that it said are durable: that is looked for
// whenever it starts again, so that a promise that was made too early is noticed at
// the first power cut and not only when it takes a quorum.
//
// With Options.Cluster the machines hold the metadata of a cluster (council.go), and with
// Options.Partitions partitions beside them (council_cells.go), so that a power cut takes
// both and a cut of the network one without the other. Processes open names there again
// and again (fleet_names.go), and with Options.Groups the coordinator of a group binds its
// consumers to them (fleet_workers.go).
//
// A Mutant takes one protection away, by a wrapper around the disk or the state
// machine, never by a switch in the real code. The simulation must find each.
//
// The package needs a test binary that fixes the randomness of crypto/rand,
// which raft's elections draw from (testing/cryptotest.SetGlobalRandom).
package sim

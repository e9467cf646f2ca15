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
// A Mutant takes one protection away, by a wrapper around the disk or the state
// machine, never by a switch in the real code. The simulation must find each.
//
// The package needs a test binary that fixes the randomness of crypto/rand,
// which raft's elections draw from (testing/cryptotest.SetGlobalRandom).
package sim

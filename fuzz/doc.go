// Package fuzz holds what shows the rest to be correct: simulations from seeds,
// damage to files, kills of the real process, and the rules that the source
// itself must keep. It is nearly all tests; nothing imports it.
//
// The simulation (fuzz/sim, TestSimulation) runs one node of Lockstep, its real
// log, consensus, partitions and metadata, on a simulated disk that loses power,
// one step at a time, and compares what comes back with a model that saw every
// acknowledgement. The protocol of groups is a model that is explored whole
// (fuzz/groupmodel). FuzzRecovery damages the files of a small log. The crash test
// (TestKill) ends the real broker with SIGKILL under load. TestF1 shuts a real file
// system down under a real log. TestF16 stops producers of one name as processes and
// lets them go on after their successors. TestMetamorphic carries out the same
// operations in different ways. Each has mutants: the same run with one protection
// taken away, which it must catch.
package fuzz

// Package verify holds a cluster to what Lockstep promises consumers of a serial
// group. Run sends numbered records with keys, takes them with several consumers,
// kills or pauses processes meanwhile if it is told to, and says in a Result
// whether the order of each key held, whether anything was lost, what came again and
// why, and whether a scope ever had two holders.
//
// A Book is where all of that comes together: what was sent (Stored, Failed), and what
// consumers saw. A Watcher tells the Book what one consumer sees. Promises
// are checked by package promise; the Book adds what needs the numbers in the
// records: loss, order of the numbers of a key, and the reason why a record was started
// again.
//
// The package talks to brokers through package client only, as every user does.
package verify

package sim

import "github.com/lockstepmq/lockstep/log"

// queue is the log.Executor of one owner: jobs wait until a step of the
// simulation runs them, and are told so in a later turn.
type queue struct {
	sim       *Simulation
	name      string    // of the owner, for traces
	submitted []log.Job // not run yet
	running   int       // in Run, while a turn interrupts them
	ran       []log.Job // run, not told
}

// Submit implements log.Executor.
func (q *queue) Submit(j log.Job) { q.submitted = append(q.submitted, j) }

// run runs submitted job i. Turns of the owner may happen inside.
func (q *queue) run(i int) {
	j := q.submitted[i]
	q.submitted = append(q.submitted[:i:i], q.submitted[i+1:]...)
	q.running++
	q.sim.trace.add("%s: run %T", q.name, j)
	j.Run()
	q.running--
	q.ran = append(q.ran, j)
}

// finish tells every job that has run. It is called in a turn of the owner.
func (q *queue) finish() {
	for len(q.ran) > 0 {
		j := q.ran[0]
		q.ran = q.ran[1:]
		j.Done()
	}
}

// busy reports whether any job is on its way.
func (q *queue) busy() bool { return len(q.submitted)+len(q.ran)+q.running > 0 }

// runAll runs everything that waits and reports whether a turn must follow.
func (q *queue) runAll() bool {
	for len(q.submitted) > 0 {
		q.run(0)
	}
	return len(q.ran) > 0
}

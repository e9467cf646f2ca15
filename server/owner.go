package server

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/log"
)

// owner is the right to change one partition's state (RULES P1): whoever moves
// its state from idle or queued to running holds it for a turn. Event loops take
// it inline when a partition is idle, workers of the turn pool otherwise, and a
// goroutine that finished a job for the partition carries on with the turn
// itself, so that a synced entry needs no further hand-over.
//
// owner is the log.Executor of its partition: jobs run on the storage pool and
// come back as inputs of a turn.
//
// A panic in a turn, a job or a read ends this partition and nothing else (RULES
// R2): the right is given back, and the next turn fences.
type owner struct {
	state  atomic.Uint32
	turn   func() (again bool)
	fenced func(error) // fences what is owned; owner only, may be called again
	turns  *turnPool
	disk   *line
	logger *slog.Logger

	ended    chan struct{}         // set by a turn: it is the last, and who waits for the channel has the right then
	began    atomic.Int64          // when the turn at work began, as monotonic has it; 0: none is
	panicked atomic.Pointer[error] // the first panic
	mu       sync.Mutex
	jobs     []log.Job // finished, not yet told
	told     []log.Job // backing array of the batch before
	active   atomic.Int32
}

const (
	ownerIdle    = iota
	ownerQueued  // in the turn pool's queue
	ownerRunning // somebody holds the right
	ownerAgain   // somebody holds it and must take another turn
)

// schedule makes sure that a turn begins after this call.
func (o *owner) schedule() {
	for {
		switch s := o.state.Load(); s {
		case ownerIdle:
			if o.state.CompareAndSwap(s, ownerQueued) {
				o.turns.push(o)
				return
			}
		case ownerRunning:
			if o.state.CompareAndSwap(s, ownerAgain) {
				return
			}
		default:
			return
		}
	}
}

// runInline takes a turn on the calling goroutine if nobody holds the right,
// else it schedules one. What a single turn leaves over goes to the pool.
func (o *owner) runInline() {
	if !o.state.CompareAndSwap(ownerIdle, ownerRunning) {
		o.schedule()
		return
	}
	o.run()
}

// recovered runs f and returns a panic in it as an error: for what is done to a
// partition before or after it has an owner.
func recovered(logger *slog.Logger, what string, f func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%s panicked: %v", what, cause)
			logger.Error("a panic ends one partition; please report it with this stack", "in", what, "panic", cause, "stack", string(debug.Stack()))
		}
	}()
	return f()
}

// runQueued is a turn of a pool worker.
func (o *owner) runQueued() {
	if !o.state.CompareAndSwap(ownerQueued, ownerRunning) {
		panic("server: a queued owner was taken by somebody else")
	}
	o.run()
}

func (o *owner) run() {
	again := false
	o.began.Store(monotonic())
	if !o.guard("a turn", func() { again = o.turn() }) {
		again = true // to fence
	}
	o.began.Store(0)
	if ended := o.ended; ended != nil {
		o.ended = nil
		close(ended)
		return
	}
	o.release(again)
}

// guard runs a step for the partition. It reports false if the step panicked for
// the first time: then the caller sees to it that a turn follows.
func (o *owner) guard(what string, step func()) (ok bool) {
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		err := fmt.Errorf("%s panicked: %v", what, cause)
		ok = !o.panicked.CompareAndSwap(nil, &err)
		o.logger.Error("a panic ends one partition; please report it with this stack", "in", what, "panic", cause, "stack", string(debug.Stack()))
	}()
	step()
	return true
}

// guarded is guard for what runs beside the turns: one follows if the step panicked.
func (o *owner) guarded(what string, step func()) {
	if !o.guard(what, step) {
		o.schedule()
	}
}

// hold takes the right for the one who builds the partition: jobs that its log
// submits meanwhile finish, but no turn sees it half made. release ends it.
func (o *owner) hold() { o.state.Store(ownerRunning) }

// release gives the right back. If a turn is wanted, because again says so or
// because somebody asked meanwhile, the pool takes it.
func (o *owner) release(again bool) {
	if !again && o.state.CompareAndSwap(ownerRunning, ownerIdle) {
		return
	}
	o.state.Store(ownerQueued)
	o.turns.push(o)
}

// Submit runs a job that may block and then takes a turn with it. It implements
// log.Executor.
func (o *owner) Submit(j log.Job) {
	o.active.Add(1)
	o.disk.submit(func() {
		o.guard("a storage job", j.Run)
		o.mu.Lock()
		o.jobs = append(o.jobs, j)
		o.mu.Unlock()
		o.runInline()
	})
}

// finishJobs tells finished jobs that they are done. Owner only, first thing in
// a turn.
func (o *owner) finishJobs() {
	o.mu.Lock()
	jobs := o.jobs
	o.jobs = o.told[:0]
	o.mu.Unlock()
	o.fenceIfPanicked() // before they are told: one that panicked must not pass for done
	for i, j := range jobs {
		o.guard("the end of a storage job", j.Done)
		jobs[i] = nil
		o.active.Add(-1)
	}
	o.told = jobs
	o.fenceIfPanicked()
}

func (o *owner) fenceIfPanicked() {
	if cause := o.panicked.Load(); cause != nil {
		o.fenced(*cause)
	}
}

// busy reports whether jobs are on their way.
func (o *owner) busy() bool { return o.active.Load() > 0 }

package server

import (
	"runtime"
	"sync"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// turnPool runs owner turns that no event loop takes inline. It has as many
// workers as there are processors and one queue; an owner is in the queue at
// most once, so the queue is bounded by the number of partitions.
type turnPool struct {
	mu     sync.Mutex
	ready  sync.Cond
	queue  []*owner
	head   int
	closed bool
	done   sync.WaitGroup
}

func newTurnPool() *turnPool {
	p := &turnPool{}
	p.ready.L = &p.mu
	for range runtime.GOMAXPROCS(0) {
		p.done.Go(p.work)
	}
	return p
}

func (p *turnPool) push(o *owner) {
	p.mu.Lock()
	p.queue = append(p.queue, o)
	p.mu.Unlock()
	p.ready.Signal()
}

func (p *turnPool) work() {
	for {
		p.mu.Lock()
		for p.head == len(p.queue) && !p.closed {
			p.ready.Wait()
		}
		if p.head == len(p.queue) {
			p.mu.Unlock()
			return
		}
		o := p.queue[p.head]
		p.queue[p.head] = nil
		p.head++
		if p.head == len(p.queue) {
			p.queue, p.head = p.queue[:0], 0
		} else if p.head >= 1024 && p.head*2 >= len(p.queue) {
			n := copy(p.queue, p.queue[p.head:])
			clear(p.queue[n:])
			p.queue, p.head = p.queue[:n], 0
		}
		p.mu.Unlock()
		o.runQueued()
	}
}

// close runs what is queued and stops the workers.
func (p *turnPool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.ready.Broadcast()
	p.done.Wait()
}

// blockingPool runs work that may wait for a disk, for lines that share its workers.
// Goroutines are started as work arrives, up to a limit, and end when nothing is
// left: an idle broker has none. What waits is bounded by its users: a log has at
// most a few jobs on their way, a link one.
type blockingPool struct {
	mu      sync.Mutex
	queue   []task
	running int
	limit   int
	done    sync.WaitGroup
}

// task is work of a line.
type task struct {
	line *line
	run  func()
}

func newBlockingPool(limit int) *blockingPool { return &blockingPool{limit: limit} }

// byStorage makes a pool for destinations on disk and one for those in memory, which
// a stalled disk does not concern.
func byStorage(limit int) [2]*blockingPool {
	return [2]*blockingPool{wire.StorageDisk: newBlockingPool(limit), wire.StorageMemory: newBlockingPool(limit)}
}

func (p *blockingPool) submit(t task) {
	p.mu.Lock()
	if p.running == p.limit {
		p.queue = append(p.queue, t)
		p.mu.Unlock()
		return
	}
	p.running++
	p.mu.Unlock()
	p.done.Go(func() { p.work(t) })
}

func (p *blockingPool) work(t task) {
	for {
		t.line.perform(t.run)
		p.mu.Lock()
		if len(p.queue) == 0 {
			p.running--
			p.mu.Unlock()
			return
		}
		t = p.queue[0]
		p.queue[0] = task{}
		p.queue = p.queue[1:]
		p.mu.Unlock()
	}
}

// wait returns when all work that was submitted is done. Nothing may be
// submitted any more except by that work.
func (p *blockingPool) wait() { p.done.Wait() }

// storeExecutor is the log.Executor of a store: its jobs belong to no partition. A
// group commit does not stand in line with the syncs of single files.
type storeExecutor struct{ *line }

// Submit implements log.Executor.
func (e storeExecutor) Submit(j log.Job) {
	e.submit(func() {
		j.Run()
		j.Done()
	})
}

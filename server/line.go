package server

import (
	"sync"
	"sync/atomic"
	"time"
)

// lineShare is the part of a pool's workers, one over it, that one line may use at
// the same time.
const lineShare = 4

// line is the way of one user to workers that may wait for a disk: the storage jobs
// of a partition, its reads, the closing of files. A task on a disk that has stalled
// keeps its worker until the disk answers, so a line has at most a quarter of them at
// work; what waits for its turn waits here. Any goroutine may call its methods.
type line struct {
	pool  *blockingPool
	limit int

	// oldest is when the longest of the tasks at work began, as monotonic has it; 0
	// while none is. It is written under mu.
	oldest atomic.Int64

	mu       sync.Mutex
	admitted int      // given to the pool and not done
	waiting  []func() // bounded by the users: see blockingPool
	began    []int64  // of the tasks at work, oldest first
}

func newLine(pool *blockingPool) *line {
	return &line{pool: pool, limit: max(1, pool.limit/lineShare)}
}

// submit runs f on a worker, later if the line has its share at work. f must not
// panic.
func (l *line) submit(f func()) {
	l.mu.Lock()
	if l.admitted >= l.limit {
		l.waiting = append(l.waiting, f)
		l.mu.Unlock()
		return
	}
	l.admitted++
	l.mu.Unlock()
	l.pool.submit(task{l, f})
}

// perform runs a task of the line on a worker. The next one goes to the end of the
// pool's queue and not straight on: other lines are there too.
func (l *line) perform(f func()) {
	began := monotonic()
	l.mu.Lock()
	l.began = append(l.began, began)
	l.oldest.Store(l.began[0])
	l.mu.Unlock()
	f()
	l.mu.Lock()
	l.ended(began)
	if len(l.waiting) == 0 {
		l.admitted--
		l.mu.Unlock()
		return
	}
	next := l.waiting[0]
	l.waiting[0] = nil
	l.waiting = l.waiting[1:]
	l.mu.Unlock()
	l.pool.submit(task{l, next})
}

// ended takes a task that began then from those at work; mu is held.
func (l *line) ended(began int64) {
	for i, b := range l.began {
		if b == began {
			l.began = append(l.began[:i], l.began[i+1:]...)
			break
		}
	}
	oldest := int64(0)
	if len(l.began) > 0 {
		oldest = l.began[0]
	}
	l.oldest.Store(oldest)
}

// monotonicBase is some time before anything is measured.
var monotonicBase = time.Now().Add(-time.Second)

// monotonic is the time since monotonicBase in ns, never 0. It does not jump when
// the wall clock is set.
func monotonic() int64 { return int64(time.Since(monotonicBase)) }

package server

import (
	"errors"
	"sync"
)

// Reads that may block run on a few workers (Config.ReadWorkers), which links,
// lookups by offset and lookups by time share. A read on a disk that has stalled
// keeps its worker until the disk answers, so nobody may take them all: a partition
// has at most a quarter of them at work, a session half, and what destinations in
// memory need has workers of its own. What waits for its turn waits in the
// partition's line or, without any lock, in the session's.

// partitionReadShare and sessionReadShare are the parts of the read workers, one
// over each, that one partition and one session may use at the same time.
const (
	partitionReadShare = 4
	sessionReadShare   = 2
)

// readLine admits the reads of one partition to the workers.
type readLine struct {
	pool  *blockingPool
	limit int

	mu      sync.Mutex
	running int
	waiting []func() // bounded by what all sessions may have at work
}

func newReadLine(pool *blockingPool) *readLine {
	return &readLine{pool: pool, limit: max(1, pool.limit/partitionReadShare)}
}

// submit runs f on a worker, later if the partition has its share at work. f must
// not panic.
func (l *readLine) submit(f func()) {
	l.mu.Lock()
	if l.running == l.limit {
		l.waiting = append(l.waiting, f)
		l.mu.Unlock()
		return
	}
	l.running++
	l.mu.Unlock()
	l.start(f)
}

// start gives f to the pool. The next one of the line goes to the end of the pool's
// queue and not straight on: other partitions are there too.
func (l *readLine) start(f func()) {
	l.pool.submit(func() {
		f()
		l.mu.Lock()
		if len(l.waiting) == 0 {
			l.running--
			l.mu.Unlock()
			return
		}
		next := l.waiting[0]
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
		l.mu.Unlock()
		l.start(next)
	})
}

// errReadPanicked is the outcome of a read that panicked, which ends its partition.
var errReadPanicked = errors.New("the read panicked")

// sessionRead is a read that waits for its session's turn.
type sessionRead struct {
	replica replica
	read    func() error
	then    func(error)
}

// blocking runs read on a worker and then, with its error, then on the loop, unless
// the session has ended before its turn came. Loop only.
func (s *session) blocking(r replica, read func() error, then func(error)) {
	s.reads = append(s.reads, sessionRead{r, read, then})
	s.startReads()
}

// startReads starts what waits, as far as the session's share goes.
func (s *session) startReads() {
	for s.reading < s.engine.sessionReads && len(s.reads) > 0 {
		next := s.reads[0]
		s.reads[0] = sessionRead{}
		s.reads = s.reads[1:]
		s.reading++
		next.replica.Blocking(func() {
			err := errReadPanicked
			defer func() {
				s.loop.post(func() {
					defer s.recovered("taking what was read")
					s.reading--
					next.then(err)
					s.startReads()
				})
			}()
			err = next.read()
		})
	}
}

package server

import (
	"errors"
	"slices"
)

// Reads that may block run on a few workers (Config.ReadWorkers), which links,
// lookups by offset and lookups by time share. A read on a disk that has stalled
// keeps its worker until the disk answers, so nobody may take them all: a partition
// has its line's share of them at work, a session half, of which one partition gets
// that share, and what destinations in memory need has workers of its own. What waits
// for its turn waits in the partition's line or, without any lock, in the session's.

// sessionReadShare is the part of the read workers, one over it, that one session may
// use at the same time.
const sessionReadShare = 2

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
	for i := 0; s.reading < s.engine.sessionReads && i < len(s.reads); {
		next := s.reads[i]
		if s.readingOf[next.replica] >= s.engine.partitionReads {
			i++
			continue
		}
		s.reads = slices.Delete(s.reads, i, i+1)
		s.reading++
		if s.readingOf == nil {
			s.readingOf = make(map[replica]int)
		}
		s.readingOf[next.replica]++
		next.replica.Blocking(func() {
			err := errReadPanicked
			defer func() {
				s.loop.post(func() {
					defer s.recovered("taking what was read")
					s.reading--
					if s.readingOf[next.replica]--; s.readingOf[next.replica] == 0 {
						delete(s.readingOf, next.replica)
					}
					next.then(err)
					s.startReads()
				})
			}()
			err = next.read()
		})
	}
}

package sim

// finish mends everything, lets every client come to its end, and cuts the
// power once more.
func (s *Simulation) finish() {
	s.calm = true
	s.mend()
	if s.node != nil {
		s.node.settle()
		if s.hasFenced() || len(s.node.failed) > 0 || s.faults.injected {
			s.processCrash()
		}
	}
	if s.node == nil {
		s.start()
	}
	s.rest()
	for round := 0; s.unanswered() > 0; round++ {
		if round == 50 {
			s.fail("%d batches are never acknowledged", s.unanswered())
		}
		s.refreshSpace() // what failed for want of space is tried again
		for _, p := range s.partitions {
			if r := s.node.replicaOf(p); r != nil {
				for _, c := range p.clients {
					if len(c.queue) > 0 {
						c.draining = true
						c.act(r)
					}
				}
			}
		}
		s.rest()
	}
	s.takesEverything()
	s.trace.add("the end: the power is cut, and everything synced is there")
	s.disk.CrashLoseAll()
	s.lost()
	s.start()
	for _, r := range s.node.replicas {
		s.readAll(r)
	}
	s.rest()
}

// takesEverything lets every client send one more batch: a healthy partition takes
// those too that nobody waits for. One that the fault of this run hits only now is
// not healthy.
func (s *Simulation) takesEverything() {
	first := s.lastBatch + 1
	for _, r := range s.node.replicas {
		for _, c := range r.model.clients {
			c.act(r)
		}
	}
	s.rest()
	fenced := make(map[*partitionModel]bool)
	for _, r := range s.node.replicas {
		fenced[r.model] = r.closed
	}
	for number := first; number <= s.lastBatch; number++ {
		if b := s.batches[int64(number)]; !b.landed && !b.idempotent() && !fenced[b.client.model] {
			s.fail("%s: batch %d was taken and is nowhere", b.client, number)
		}
	}
}

// unanswered is how many idempotent batches wait in partitions that exist.
func (s *Simulation) unanswered() (n int) {
	for _, p := range s.partitions {
		if s.node.replicaOf(p) != nil {
			for _, c := range p.clients {
				n += len(c.queue)
			}
		}
	}
	return n
}

// mend ends all faults.
func (s *Simulation) mend() {
	s.faults.countdown = -1
	if s.faults.limited {
		s.counts[DiskFreed]++
	}
	s.faults.limited = false
	s.disk.SetSpace(0)
	s.disk.StopAt(0)
	s.faults.stopAt = 0
	if s.node != nil {
		_ = s.node.store.RefreshSpace()
	}
}

// rest lets the node finish everything it can do without the passing of time.
// Then nobody may still wait for an answer.
func (s *Simulation) rest() {
	s.node.settle()
	if s.stopped() {
		return
	}
	for _, r := range s.node.replicas {
		for _, c := range r.model.clients {
			if c.flying > 0 {
				s.fail("%s waits for %d answers while the node rests", c, c.flying)
			}
		}
	}
}

func (s *Simulation) hasFenced() bool {
	for _, r := range s.node.replicas {
		if r.closed {
			return true
		}
	}
	return s.node.meta.closed
}

package sim

import (
	"errors"
	"path"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// newProcess forgets what belonged to the process before.
func (s *Simulation) newProcess() {
	f := &s.faults
	if s.excused() {
		s.meta.hurt = true
		for _, p := range s.partitions {
			p.hurt, p.lossy = true, true
		}
	}
	f.countdown, f.injected, f.full, f.stopAt = -1, false, f.limited, 0
	f.broken = map[string]bool{}
	f.interrupted, f.evicted = false, false
	clear(s.attempts)
	if s.node != nil {
		for _, r := range s.node.replicas {
			r.model.written = r.log.LastIndex()
		}
	}
	for _, p := range s.partitions {
		for _, c := range p.clients {
			c.cut()
		}
	}
	s.node = nil
	clear(s.saving.renamed)
}

// powerCut is the end of the process and of everything that was not synced.
func (s *Simulation) powerCut() {
	s.trace.add("the power is cut")
	s.counts[PowerCut]++
	s.disk.Crash()
	s.lost()
}

// lost is what a power cut means for the model.
func (s *Simulation) lost() {
	s.machineBoot++
	for _, p := range s.partitions {
		p.lossy = true
	}
	s.newProcess()
}

// processCrash is the end of the process alone.
func (s *Simulation) processCrash() {
	s.trace.add("the process crashes")
	s.counts[ProcessCrash]++
	s.disk.StopAt(0)
	s.disk.CrashKeepAll()
	s.newProcess()
}

// cleanStop ends the process in order. Then even a power cut loses nothing.
func (s *Simulation) cleanStop() {
	s.trace.add("the process stops in order")
	failedBefore := s.hasFenced() || len(s.node.failed) > 0
	err := s.node.stop()
	switch {
	case s.stopped():
		return // the power is cut before it has come to its end
	case err != nil && !s.excused():
		s.fail("the node does not stop: %v", err)
	case err == nil && !failedBefore:
		s.counts[CleanStop]++
		if open := s.disk.OpenCount(); open > 0 && !s.excused() {
			s.fail("%d files or maps are still open after the node has stopped", open)
		}
		for _, p := range s.partitions {
			if s.node.replicaOf(p) != nil {
				p.lasts(p.last())
			}
		}
	}
	if s.random.IntN(2) == 0 {
		s.powerCut()
		return
	}
	s.disk.CrashKeepAll()
	s.newProcess()
}

// start brings the process up and compares everything it finds with the model.
// The power may be cut meanwhile, and calls may fail.
func (s *Simulation) start() {
	for tries := 0; s.node == nil; tries++ {
		if tries < 3 && !s.calm {
			s.endanger()
		}
		s.trace.add("start: boot %d of the machine", s.machineBoot)
		s.faults.starting = true
		n, err := openNode(s)
		if err == nil {
			s.node = n
			n.reconcile()
			s.present(n)
			n.meta.metadata.Submit(cluster.Command{Register: &cluster.Register{
				ClusterID: clusterID, Node: nodeID, Store: n.store.UUID(),
			}}, func(cluster.Result) {})
		}
		s.faults.starting = false
		switch {
		case s.stopped():
			s.counts[PowerCutInRecovery]++
			s.powerCut()
		case err != nil && s.meta.mayStayDown(err):
			s.trace.add("start: %v", err)
			if !s.excused() {
				s.freeDisk()
			}
			s.processCrash()
		case err != nil:
			s.fail("the node does not start: %v", err)
		}
	}
}

// endanger sometimes lets the coming start run into a fault.
func (s *Simulation) endanger() {
	switch s.random.IntN(8) {
	case 0:
		s.cutAfter(1 + s.random.IntN(60))
	case 1:
		s.failAfter(s.random.IntN(60))
	}
}

// cutAfter lets the power go at a storage call not far away.
func (s *Simulation) cutAfter(calls int) {
	s.faults.stopAt = s.disk.Ops() + int64(calls)
	s.disk.StopAt(s.faults.stopAt)
}

// failAfter lets a storage call fail not far away.
func (s *Simulation) failAfter(calls int) {
	s.faults.countdown = calls
	s.faults.torn = -1
	if s.random.IntN(2) == 0 {
		s.faults.torn = int64(s.random.IntN(4096))
	}
}

// present checks that every replica that metadata calls active is there.
func (s *Simulation) present(n *node) {
	for _, d := range n.meta.metadata.View().Destinations {
		for _, p := range d.Partitions {
			if s.stopped() || p.Replicas[0].State != cluster.ReplicaActive {
				continue
			}
			dir := directoryOf(d.ID, p.Number)
			if _, err := s.disk.Stat(path.Join(dir, "manifest")); err != nil && !s.excused() {
				s.fail("%s/%d: its directory is gone: %v", d.Name, p.Number, err)
			}
		}
	}
}

func errorCode(err error) (code wire.ErrorCode, ok bool) {
	ok = errors.As(err, &code)
	return code, ok
}

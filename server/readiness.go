package server

import "fmt"

// Readiness is which partitions of this node serve and which do not, for people.
type Readiness struct {
	// Ready of Total partitions take records or will elect at their first one.
	Ready, Total int
	// Down are the others, in the order of the metadata.
	Down []DownPartition
}

// DownPartition is a partition that did not open, is fenced, or lacks space to elect.
type DownPartition struct {
	Partition string // "orders/3"
	Reason    string
}

// Readiness looks at all partitions. Any goroutine.
func (s *Server) Readiness() Readiness { return s.broker.readiness() }

func (b *broker) readiness() Readiness {
	var r Readiness
	for _, d := range b.View().Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			if p.On(b.identity.NodeID) == nil {
				continue
			}
			r.Total++
			if reason := b.whyNotReady(replicaKey{d.ID, p.Number}); reason != "" {
				r.Down = append(r.Down, DownPartition{Partition: fmt.Sprintf("%s/%d", d.Name, p.Number), Reason: reason})
				continue
			}
			r.Ready++
		}
	}
	return r
}

// whyNotReady is empty for a partition that serves or is about to.
func (b *broker) whyNotReady(key replicaKey) string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.failed[key]; err != nil {
		return err.Error()
	}
	r := b.replicas[key]
	if r == nil {
		return "it is not open yet"
	}
	if err := r.Err(); err != nil {
		return err.Error()
	}
	if r.stalled.Load() && !r.Leading() {
		return "it lacks space or descriptors to elect; reads are served"
	}
	return ""
}

package server

import (
	"fmt"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// groupEffects carries out what the groups of a replica need of the world. It implements
// partition.Effects: its methods are called in the owner's turn and do not block.
type groupEffects struct{ *partitionReplica }

// Scan implements partition.Effects.
func (r groupEffects) Scan(from wire.Offset, limit int) {
	r.Blocking(func() {
		var s log.Scanned
		err := r.records.Scan(from, limit, &s)
		r.part.Scanned(s.Batches, err)
		r.schedule()
	})
}

// NextOf implements partition.Effects.
func (r groupEffects) NextOf(g group.ID, s group.Scope, publisher bool, after, below wire.Offset, done func(wire.Offset) bool) {
	r.Blocking(func() {
		at, ok, err := r.records.NextOf(uint64(s), publisher, after, below, done)
		if err != nil {
			// The same again in a while: a record that is not found would wait for ever.
			time.AfterFunc(findRetry, func() {
				select {
				case <-r.stopped:
				default:
					r.NextOf(g, s, publisher, after, below, done)
				}
			})
			return
		}
		r.part.Found(g, s, after, at, ok)
		r.schedule()
	})
}

// findRetry is after how long a search is repeated that the disk did not answer.
const findRetry = 500 * time.Millisecond

// Locate implements partition.Effects.
func (r groupEffects) Locate(timeMs int64, then func(wire.Offset, error)) {
	r.Submit(&locating{records: r.records, timeMs: timeMs, then: then})
}

// locating is the search for an offset by time. It is a log.Job: its end is told in a turn.
type locating struct {
	records *log.Log
	timeMs  int64
	then    func(wire.Offset, error)
	at      wire.Offset
	err     error
}

// Run implements log.Job.
func (j *locating) Run() { j.at, j.err = j.records.LocateTime(j.timeMs) }

// Done implements log.Job.
func (j *locating) Done() { j.then(j.at, j.err) }

// Partitions implements partition.Effects.
func (r groupEffects) Partitions() []group.PartitionLoad {
	d, ok := r.broker.View().DestinationByID(r.destination)
	if !ok {
		return nil
	}
	list := make([]group.PartitionLoad, len(d.Partitions))
	for i := range d.Partitions {
		info := r.broker.describePartition(d, &d.Partitions[i])
		list[i] = group.PartitionLoad{Number: info.Number, Leader: info.Leader}
		if d.Kind == wire.Queue {
			list[i].Backlog = uint64(info.NextOffset - info.StartOffset)
		}
	}
	return list
}

// Coordinates implements partition.Effects.
func (r groupEffects) Coordinates() (group.Term, error) {
	d, ok := r.broker.View().DestinationByID(r.destination)
	if !ok {
		return group.Term{}, wire.CodeDestinationGone
	}
	if err := coordinates(d, r.number); err != nil {
		return group.Term{}, err
	}
	c := d.Coordinates()
	return group.Term{Generation: c.Generation, Since: c.Since}, nil
}

// coordinates refuses a partition that does not keep the members of the destination's
// groups, and says which one does.
func coordinates(d *cluster.Destination, partition uint32) error {
	c := d.Coordinates()
	if c.Partition == partition {
		return nil
	}
	return &wire.Error{Code: wire.CodeNotCoordinator, Next: wire.Offset(c.Partition),
		Detail: fmt.Sprintf("partition %d of %q does not coordinate groups; partition %d does", partition, d.Name, c.Partition)}
}

// uncovered are the partitions without a consumer, by group, as far as a replica
// coordinates.
type uncovered struct {
	mu sync.Mutex
	of map[string]int
}

// Expired implements partition.Effects.
func (r groupEffects) Expired(records uint64) { r.expired.Add(records) }

// Uncovered implements partition.Effects: what it hears is a metric, and said once.
func (r groupEffects) Uncovered(name string, partitions []uint32) {
	r.uncovered.mu.Lock()
	defer r.uncovered.mu.Unlock()
	if len(partitions) == 0 {
		delete(r.uncovered.of, name)
		return
	}
	if r.uncovered.of == nil {
		r.uncovered.of = make(map[string]int)
	}
	r.uncovered.of[name] = len(partitions)
	r.broker.logger.Warn("partitions without a consumer: start more consumers, or bind with cover", "coordinator", r.name, "group", name, "partitions", partitions)
}

// withoutConsumer is how many partitions have no consumer, of all groups.
func (u *uncovered) withoutConsumer() (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, of := range u.of {
		n += of
	}
	return n
}

// Group implements replica. An attach wakes a partition that was never written, and is
// refused where another node leads.
func (r *partitionReplica) Group(in partition.Input) error {
	begins := in.Kind == partition.InputAttach || in.Kind == partition.InputBind || in.Kind == partition.InputOrder
	if begins && r.inbox != nil && !r.Leading() {
		if l, ok := r.broker.hints.of(r.intent.Load()); ok && l.node != r.node {
			return wire.NotLeader(l.node, l.Epoch)
		}
	}
	if err := r.part.Groups().Put(in); err != nil {
		return err
	}
	if begins {
		r.requests.Or(requestActivate)
	}
	return nil
}

// intend hands on what the metadata says about the groups of the destination, if it says
// something else than before.
func (r *partitionReplica) intend(at wire.Index, d *cluster.Destination) {
	if r.groupsOf.Swap(d) == d {
		return
	}
	r.part.Groups().Intend(at, intents(d))
	r.schedule()
}

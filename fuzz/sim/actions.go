package sim

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// action is one kind of step. Its weight says how often it is chosen.
type action struct {
	name   string
	weight int
	kind   actionKind
	do     func(*Simulation)
}

// actionKind says how the weight of an action differs between runs.
type actionKind int

const (
	// usual actions have their weight.
	usual actionKind = iota
	// swarming ones are left out of some runs and done more often in others, so
	// that rare combinations come up too.
	swarming
	// fault is swarming, and left out of quiet runs.
	fault
	// mending ones end a fault: in some runs soon, in others late.
	mending
	// consuming is usual where there are groups, and left out elsewhere.
	consuming
	// governing is usual where there is the metadata of a cluster, and left out elsewhere.
	governing
	// naming is usual where there are partitions beside the metadata, and left out elsewhere.
	naming
	// giving is giving records back, see fleet.erasing.
	giving
)

// focused is at least the weight of an action that is named in Options.Focus, of a fault
// often: anything else comes up some hundred times in a run.
func (k actionKind) focused(weight, often int) int {
	if k == fault {
		return max(weight, often)
	}
	return max(weight, 500)
}

// ofMetadata reports whether an action means anything in a fleet that holds the metadata,
// and with partitions beside them.
func (k actionKind) ofMetadata(name string, partitions bool) bool {
	switch name {
	case "produce", "read":
		return partitions
	case "retention", "replace":
		return false
	}
	return k != consuming || partitions
}

// actions are what a step may be. They find the node running. It is a variable
// and filled in by init because the actions refer to it.
var actions []action

func init() {
	actions = []action{
		{"run a job", 300, usual, (*Simulation).runJob},
		{"take a turn", 300, usual, (*Simulation).takeTurn},
		{"produce", 350, usual, (*Simulation).produce},
		{"repeat", 30, swarming, (*Simulation).repeat},
		{"clock", 40, swarming, func(s *Simulation) { s.nowMs += s.random.Int64N(2_000) }},
		{"clock jump", 2, fault, (*Simulation).jump},
		{"idle mark", 20, swarming, (*Simulation).idleMark},
		{"retention", 20, swarming, (*Simulation).retain},
		{"checkpoint", 15, swarming, (*Simulation).checkpoint},
		{"periodic sync", 20, swarming, (*Simulation).periodicSync},
		{"read", 40, swarming, (*Simulation).read},
		{"view", 30, swarming, (*Simulation).view},
		{"follow", 20, swarming, (*Simulation).follow},
		{"time lookup", 10, swarming, (*Simulation).lookUpTime},
		{"metadata", 20, swarming, (*Simulation).changeMetadata},
		{"reconcile", 60, usual, (*Simulation).reconcile},
		{"space", 30, usual, (*Simulation).refreshSpace},
		{"rest", 10, swarming, (*Simulation).rest},
		{"storage error", 4, fault, func(s *Simulation) { s.failAfter(s.random.IntN(30)) }},
		{"disk full", 6, fault, (*Simulation).fillDisk},
		{"disk freed", 12, usual, (*Simulation).freeDisk},
		{"evict", 3, fault, (*Simulation).evict},
		{"rot", 4, fault, (*Simulation).rot},
		{"power cut", 5, fault, (*Simulation).powerCut},
		{"power cut at a call", 5, fault, func(s *Simulation) { s.cutAfter(1 + s.random.IntN(30)) }},
		{"process crash", 5, fault, (*Simulation).processCrash},
		{"clean stop", 4, fault, (*Simulation).cleanStop},
	}
}

// act does one randomly chosen thing.
func (s *Simulation) act() {
	total := 0
	for _, w := range s.config.weights {
		total += w
	}
	at := s.random.IntN(total)
	for i, w := range s.config.weights {
		if at -= w; at < 0 {
			actions[i].do(s)
			return
		}
	}
}

// anyReplica picks a replica, or nil.
func (s *Simulation) anyReplica() *replica {
	if len(s.node.replicas) == 0 {
		return nil
	}
	return s.node.replicas[s.random.IntN(len(s.node.replicas))]
}

// runJob runs one waiting storage job of any owner.
func (s *Simulation) runJob() {
	all := len(s.node.meta.submitted) + len(s.node.shared.submitted)
	for _, r := range s.node.replicas {
		all += len(r.submitted)
	}
	if all == 0 {
		return
	}
	at := s.random.IntN(all)
	if at < len(s.node.meta.submitted) {
		s.node.meta.run(at)
		return
	}
	at -= len(s.node.meta.submitted)
	if at < len(s.node.shared.submitted) {
		s.node.shared.run(at)
		s.node.shared.finish()
		return
	}
	at -= len(s.node.shared.submitted)
	for _, r := range s.node.replicas {
		if at < len(r.submitted) {
			r.run(at)
			return
		}
		at -= len(r.submitted)
	}
}

func (s *Simulation) takeTurn() {
	at := s.random.IntN(len(s.node.replicas) + 1)
	if at == len(s.node.replicas) {
		s.node.meta.turn()
		return
	}
	r := s.node.replicas[at]
	r.turn()
	s.trace.add("%s: turn: %d entries, %d committed, readable to offset %d",
		r.model.name, r.log.LastIndex(), r.group.Applied(), r.log.Watermark().Next)
}

func (s *Simulation) produce() {
	if r := s.anyReplica(); r != nil {
		r.model.clients[s.random.IntN(len(r.model.clients))].act(r)
	}
}

func (s *Simulation) repeat() {
	if r := s.anyReplica(); r != nil {
		if c := r.model.clients[s.random.IntN(len(r.model.clients))]; c.idempotent() {
			c.repeat(r)
		}
	}
}

// maxJumpMs is ten years.
const maxJumpMs = 10 * 365 * 24 * 3600 * 1000

// jump sets the clock somewhere else, as an operator or a broken time server does:
// by years, by days or by minutes, and at times back to where it would be.
func (s *Simulation) jump() {
	reach := []int64{0, 3600_000, 3 * 24 * 3600_000, maxJumpMs}[s.random.IntN(4)]
	s.nowMs = startMs + s.random.Int64N(2*reach+1) - reach
	s.jumped = true
	s.counts[ClockJump]++
	s.trace.add("the clock says %d", s.nowMs)
}

func (s *Simulation) idleMark() {
	if r := s.anyReplica(); r != nil && !r.closed && r.part.Idle() {
		s.trace.add("%s: idle mark", r.model.name)
		r.log.MarkIdle()
	}
}

func (s *Simulation) retain() {
	if r := s.anyReplica(); r != nil && !r.closed {
		s.trace.add("%s: retention", r.model.name)
		r.part.Retain(s.nowMs)
	}
}

func (s *Simulation) checkpoint() {
	if r := s.anyReplica(); r != nil && !r.closed {
		s.trace.add("%s: checkpoint", r.model.name)
		r.group.Checkpoint()
	}
}

func (s *Simulation) periodicSync() {
	if r := s.anyReplica(); r != nil && !r.closed && r.settings.Sync == wire.SyncInterval {
		s.trace.add("%s: periodic sync", r.model.name)
		r.log.SyncNow()
	}
}

func (s *Simulation) reconcile() {
	if s.node.dirty {
		s.node.reconcile()
	}
}

func (s *Simulation) refreshSpace() {
	if err := s.node.store.RefreshSpace(); err != nil && !s.excused() {
		s.fail("free space: %v", err)
	}
	s.node.dirty = s.node.dirty || s.node.wantsSpace
	s.node.wantsSpace = false
}

// fillDisk leaves a little space, or none.
func (s *Simulation) fillDisk() {
	free, total, err := s.disk.Space(dataDir)
	if err != nil {
		return
	}
	if s.faults.limited {
		return
	}
	left := s.random.Int64N(2 * minFreeBytes)
	if s.random.IntN(3) == 0 {
		left = 0
	}
	s.trace.add("the disk has %d bytes left", left)
	s.counts[DiskFilled]++
	s.faults.full, s.faults.limited = true, true
	s.disk.SetSpace(max(1, total-free+left))
}

func (s *Simulation) freeDisk() {
	if s.faults.limited {
		s.trace.add("the disk has space again")
		s.counts[DiskFreed]++
		s.faults.limited = false
		s.disk.SetSpace(0)
	}
}

// maxDestinations is how many exist at once.
const maxDestinations = 3

// changeMetadata submits one command.
func (s *Simulation) changeMetadata() {
	view := s.node.meta.metadata.View()
	reply := func(what string) func(cluster.Result) {
		return func(r cluster.Result) {
			if r.Err != nil {
				s.metadataRefused(r.Err)
				return
			}
			s.trace.add("metadata: %s", what)
		}
	}
	if len(view.Destinations) < maxDestinations && s.random.IntN(2) == 0 || len(view.Destinations) == 0 {
		s.create(reply)
		return
	}
	d := view.Destinations[s.random.IntN(len(view.Destinations))]
	if s.random.IntN(8) > 0 {
		s.alter(d, reply)
		return
	}
	if s.options.Mutant == EarlyRemoval {
		_ = s.fs.RemoveAll(directoryOf(d.ID, 0))
	}
	s.submit(cluster.Command{Delete: &cluster.Delete{Name: d.Name, Kind: d.Kind, ID: d.ID}}, reply("deleted "+d.Name))
}

func (s *Simulation) create(reply func(string) func(cluster.Result)) {
	s.lastName++
	create := &cluster.Create{
		Name: fmt.Sprintf("d%d", s.lastName), Kind: wire.Topic, ID: s.uuid(), Node: nodeID, Settings: s.settings(),
	}
	for range create.Settings.Partitions {
		create.PartitionIDs = append(create.PartitionIDs, s.uuid())
	}
	s.submit(cluster.Command{Create: create}, reply("created "+create.Name))
}

func (s *Simulation) alter(d *cluster.Destination, reply func(string) func(cluster.Result)) {
	s.submit(cluster.Command{Alter: &cluster.Alter{
		Name: d.Name, Kind: d.Kind, Settings: s.settings(),
		Mask: wire.MaskSync | wire.MaskRetentionTime | wire.MaskRetentionBytes,
	}}, reply("altered "+d.Name))
}

func (s *Simulation) submit(c cluster.Command, reply func(cluster.Result)) {
	s.node.meta.metadata.Submit(c, reply)
}

func (s *Simulation) settings() wire.Settings {
	sync := []wire.SyncMode{wire.SyncQuorumFsync, wire.SyncQuorumFsync, wire.SyncQuorumFsync, wire.SyncInterval, wire.SyncOS}
	keep := []int64{wire.Unlimited, 100 << 10, 300 << 10}
	age := []int64{wire.Unlimited, wire.Unlimited, 20_000}
	return wire.Settings{
		Partitions: 1 + uint32(s.random.IntN(2)), Replicas: 1,
		Sync:            sync[s.random.IntN(len(sync))],
		RetentionBytes:  keep[s.random.IntN(len(keep))],
		RetentionTimeMs: age[s.random.IntN(len(age))],
	}
}

func (s *Simulation) uuid() (id uuid.UUID) {
	for i := range id {
		id[i] = byte(s.random.Uint32())
	}
	return id
}

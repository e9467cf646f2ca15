package sim

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// memberMemory bounds what a replica holds of records on their way, in bytes.
const memberMemory = 64 << 20

// member is a node with a machine of its own and one replica.
type member struct {
	fleet *fleet
	node  uint32 // from 1
	id    uint64 // of the replica: another one when the disk was lost
	disk  *vfs.Simulated
	fs    vfs.FS // the disk, or what a mutant makes of it
	nowMs int64

	machineBoot int // lives of the machine
	life        int // lives of the process
	up          bool
	paused      bool // the process stands still
	stopAt      int64

	store    *log.Store
	jobs     []log.Job
	log      *log.Log
	inbox    *replication.Inbox
	group    *replication.Group
	part     *partition.Partition
	state    *partition.State
	memory   *partition.Memory
	mark     *log.Watermark
	metadata *cluster.Metadata // nil: the group is that of the partition

	// What others were promised, over all lives: the last entry with its term, the
	// votes, the newest term. And the last entry that was applied here.
	promised     wire.Index
	promisedTerm wire.Term
	votes        map[wire.Term]uint64
	shown        wire.Term
	applied      wire.Index // and is in the log

	moving int  // ticks until a planned move has come to nothing, 0: there is none
	give   bool // the leases are committed: the leadership may go

	last     wire.Index // of the log, as of the last turn, and its term
	lastTerm wire.Term
	silent   map[*member]int // ticks for which another one was not heard
}

func newMember(f *fleet, node uint32) *member {
	id := uint64(node)
	m := &member{fleet: f, node: node, id: id, disk: vfs.NewSimulated(f.options.Seed<<4 + id), nowMs: startMs + f.random.Int64N(100_000), votes: map[wire.Term]uint64{}}
	m.fs = f.options.Mutant.MutateFS(m.disk)
	return m
}

func (m *member) String() string { return fmt.Sprintf("replica %d", m.id) }

// start brings the process up and compares what it finds with what was promised.
func (m *member) start() {
	f := m.fleet
	m.life++
	m.jobs, m.paused, m.moving, m.give = nil, false, 0, false
	f.trace.add("%s starts: life %d, boot %d of its machine", m, m.life, m.machineBoot)
	if err := m.open(); err != nil {
		if m.stopped() {
			m.powerCut()
			return
		}
		f.fail("%s does not open: %v", m, err)
	}
	m.up = true
	f.trace.add("%s is up: %d entries, %d committed, term %d, vote %d", m, m.log.LastIndex(), m.group.Applied(), m.log.HardState().Term, m.log.HardState().Vote)
}

func (m *member) open() (err error) {
	f := m.fleet
	if err := m.disk.MkdirAll(dataDir); err != nil {
		return err
	}
	m.store, err = log.OpenStore(log.StoreOptions{
		FS: m.fs, Dir: dataDir, UUID: [16]byte{0xd1, 14: byte(m.id), 15: byte(m.node)}, BootID: fmt.Sprintf("boot-%d", m.machineBoot),
		MinFreeBytes: -1, ReserveBytes: -1, Executor: m, JournalBytes: 64 << 10, JournalLogs: f.config.journalLogs, Logger: f.trace.logger(),
	})
	if err != nil {
		return err
	}
	opened, err := log.Open(log.Options{
		Store: m.store, Dir: dataDir + "/partitions/p-0", PartitionID: [16]byte{1}, Incarnation: 1, ReplicaID: m.id,
		Existing: m.applied > 0, Sync: log.SyncQuorum, SegmentBytes: f.config.segmentBytes, TailBytes: f.config.tailBytes,
		Executor: m, Logger: f.trace.logger(),
	})
	if err != nil {
		return err
	}
	m.log = opened
	m.kept()
	m.memory = partition.NewMemory(memberMemory)
	m.state = partition.NewState()
	config := partition.Config{Log: m.log, State: m.state, Synced: true, Memory: m.memory, Retention: f.config.retention}
	if f.groups != nil {
		config.Queue, config.Groups = true, fleetEffects{m}
	}
	m.part = partition.New(config)
	if f.groups != nil {
		m.part.Groups().Without(f.options.Without...)
		m.part.Groups().Intend(20, f.groups.intents())
	}
	m.inbox = replication.NewInbox(m.part.Buffers())
	var machine replication.StateMachine = &fleetMachine{State: m.state, m: m}
	if f.council != nil {
		m.metadata = cluster.NewMetadata(nil)
		machine = &councilMachine{m.metadata, m}
	}
	var founders []uint64
	for _, other := range f.members {
		founders = append(founders, uint64(other.node))
	}
	m.group, err = replication.Open(replication.Config{
		ReplicaID: m.id, Voters: founders, Peers: m.peers(), Node: m.node, Boot: uint32(m.life),
		Log: m.log, State: machine, Transport: m, Inbox: m.inbox, Feed: m, Fetch: m.fetch,
		CheckpointBytes: f.config.checkpointBytes, LoadBytes: f.config.loadBytes, Logger: f.trace.logger(),
	})
	if err != nil {
		return err
	}
	m.group.OnRelease(m.recycle)
	m.group.OnRestore(m.restored)
	m.part.Bind(m.group)
	if m.metadata != nil {
		m.metadata.Bind(m.group, m.id)
	}
	if c := m.log.Checkpoint(); c != nil && m.group.Applied() == c.Applied {
		f.truth.state(m.id, c.Applied, m.saved())
	}
	m.mark = m.log.Watermark()
	m.last, m.silent = 0, make(map[*member]int)
	return nil
}

// restored is called when a checkpoint of another replica has replaced the log and the
// state.
func (m *member) restored() {
	f := m.fleet
	f.counts[FleetInstalled]++
	m.part.Bind(m.group)
	f.truth.state(m.id, m.group.Applied(), m.saved())
	start := m.log.Start()
	m.applied, m.promised, m.promisedTerm = start.Index, start.Index, start.Term
}

// saved is the state as it is now.
func (m *member) saved() []byte {
	if m.metadata != nil {
		return m.metadata.Save(nil)
	}
	return m.state.Save(nil)
}

// peers are the nodes of the other replicas.
func (m *member) peers() map[uint64]uint32 {
	peers := map[uint64]uint32{}
	for _, other := range m.fleet.members {
		if other != m {
			peers[other.id] = other.node
		}
	}
	return peers
}

// wipe is the loss of the disk, with all that was promised.
func (m *member) wipe() {
	m.disk = vfs.NewSimulated(uint64(m.life)<<8 + m.id)
	m.fs = m.disk
	m.applied, m.promised, m.promisedTerm, m.shown = 0, 0, 0, 0
	clear(m.votes)
}

// recycle takes the memory of an entry back and makes it unreadable: whoever still
// refers to it sees foreign bytes.
func (m *member) recycle(data []byte) {
	whole := data[:cap(data)]
	for i := range whole {
		whole[i] = 0xEE
	}
	m.part.Recycle(data)
}

// fleetMachine is the state machine of a replica as its group sees it, with the
// model looking on.
type fleetMachine struct {
	*partition.State
	m      *member
	before func([]byte) []byte // EarlierState: the state before the entry applied last
}

func (s *fleetMachine) Snapshot() func(dst []byte) []byte {
	if s.m.fleet.options.Mutant == EarlierState && s.before != nil {
		return s.before
	}
	return s.State.Snapshot()
}

func (s *fleetMachine) Apply(e replication.Entry) {
	if s.m.fleet.options.Mutant == EarlierState {
		saved := s.State.Save(nil)
		s.before = func(dst []byte) []byte { return append(dst, saved...) }
	}
	s.m.fleet.truth.apply(s.m.id, e)
	if g := s.m.fleet.groups; g != nil && e.Kind == wire.KindRecords {
		g.committed(e.BaseOffset, e.Body)
	}
	s.m.part.Apply(partition.Entry(e))
	s.m.applied = max(s.m.applied, e.Index)
	s.m.fleet.truth.state(s.m.id, e.Index, s.State.Save(nil))
}

func (s *fleetMachine) Restore(state []byte) error {
	s.m.fleet.counts[FleetCheckpointRestored]++
	if s.m.fleet.options.Mutant == ForgottenProducers {
		state = withoutProducers(state)
	}
	return s.State.Restore(state)
}

// kept checks that a log that was just opened holds what its replica had promised,
// whatever happened to the process or the machine (RULES R2, R3).
func (m *member) kept() {
	f := m.fleet
	hard := m.log.HardState()
	term, ok := m.log.Term(m.promised)
	if m.promised > 0 && m.promised >= m.log.FirstIndex() && (!ok || term != m.promisedTerm) {
		f.fail("%s had promised entry %d of term %d; after its restart its log ends at entry %d, and that one is of term %d",
			m, m.promised, m.promisedTerm, m.log.LastIndex(), term)
	}
	for i := m.log.FirstIndex(); i <= m.applied; i++ {
		if term, ok := m.log.Term(i); !ok || term != f.truth.at(i).term {
			f.fail("%s had applied entry %d of term %d; after its restart its log ends at entry %d, and that one is of term %d",
				m, i, f.truth.at(i).term, m.log.LastIndex(), term)
		}
	}
	if hard.Term < m.shown {
		f.fail("%s had told others of term %d; after its restart it knows of term %d", m, m.shown, hard.Term)
	}
	if vote, voted := m.votes[hard.Term]; voted && hard.Vote != vote {
		f.fail("%s had voted for %d in term %d; after its restart its vote is %d", m, vote, hard.Term, hard.Vote)
	}
}

// promise takes notice of what a message tells others about this replica's disk.
func (m *member) promise(message *replication.Message) {
	kind := replication.KindOf(message.Type)
	term := wire.Term(message.Term)
	switch {
	case kind == wire.PeerKindAppend:
		m.fleet.truth.leads(m.id, term)
	case message.Type == raftpb.MsgVoteResp && !message.Reject:
		if other, voted := m.votes[term]; voted && other != message.To {
			m.fleet.fail("%s votes for %d in term %d, and has voted for %d", m, message.To, term, other)
		}
		m.votes[term] = message.To
		m.shown = max(m.shown, term)
	case message.Type == raftpb.MsgAppResp && !message.Reject:
		m.shown = max(m.shown, term)
		m.withdrawn()
		index := wire.Index(message.Index)
		if at, ok := m.log.Term(index); ok && index >= m.promised {
			m.promised, m.promisedTerm = index, at
		}
	}
}

// look takes notice of what a turn has left.
func (m *member) look() {
	f := m.fleet
	if err := m.group.Err(); err != nil {
		if m.stopped() {
			return
		}
		f.fail("%s is fenced: %v", m, err)
	}
	if term, leading := m.group.Leading(); leading {
		f.truth.leads(m.id, term)
	}
	m.withdrawn()
	if at, ok := m.log.Term(m.last); m.last >= m.log.FirstIndex() && (!ok || at != m.lastTerm) {
		f.counts[FleetTakenBack]++
	}
	m.last = m.log.LastIndex()
	m.lastTerm, _ = m.log.Term(m.last)
	if f.groups != nil {
		f.groups.check(m)
	}
	mark := m.log.Watermark()
	if mark.Index < m.mark.Index || mark.Next < m.mark.Next || mark.Index > f.truth.last() {
		f.fail("%s: high watermark moved from %+v to %+v; %d entries are committed", m, *m.mark, *mark, f.truth.last())
	}
	m.mark = mark
}

// withdrawn takes notice of entries that a later leader has taken back although they
// were promised to an earlier one. What was applied stays.
func (m *member) withdrawn() {
	f := m.fleet
	if at, ok := m.log.Term(m.promised); m.promised < m.log.FirstIndex() || ok && at == m.promisedTerm {
		return
	}
	if k := f.truth.at(m.promised); k != nil && k.term == m.promisedTerm {
		f.fail("%s takes back entry %d of term %d, which is committed", m, m.promised, m.promisedTerm)
	}
	m.promised = min(m.promised, m.applied)
	m.promisedTerm, _ = m.log.Term(m.promised)
}

// holds reports whether an entry is durable here as far as the replica has said.
func (m *member) holds(i wire.Index, term wire.Term) bool {
	if m.promised >= i && m.promisedTerm >= term {
		return true
	}
	if r := m.fleet.replacing; r != nil && r.id == m.id && r.promised >= i && r.promisedTerm >= term {
		return true
	}
	at, ok := m.log.Term(i)
	return m.up && m.log.DurableIndex() >= i && ok && at == term
}

// lead is who leads as far as this member knows.
func (m *member) lead() (uint64, wire.Term) {
	if !m.up {
		return 0, 0
	}
	return m.group.Lead()
}

// turn is one turn of the owner.
func (m *member) turn() (again bool) {
	if !m.up || m.paused {
		return false
	}
	m.group.Turn()
	if m.group.Err() == nil {
		if m.metadata != nil {
			m.metadata.Turn()
		}
		again = m.part.Turn(m.nowMs, time.Duration(m.nowMs)*time.Millisecond)
	}
	_, leading := m.group.Leading()
	if m.fleet.groups != nil && !leading {
		m.part.Reject(wire.CodeNotLeader) // as a node does: what came too late is answered
	}
	if m.give {
		m.give = false
		if leading && m.group.Err() == nil {
			m.fleet.groups.counts.HandedOver++
			_ = m.group.Transfer(0)
		}
	}
	m.look()
	return again
}

// handOver begins a planned move: first the leases are committed for the next leader.
func (m *member) handOver() {
	m.moving = 20
	m.part.Groups().HandOver(func(err error) { m.give = err == nil })
	m.turn()
}

// hears reports whether two members can talk to each other now.
func (m *member) hears(other *member) bool {
	n := &m.fleet.network
	return other.up && !other.paused && !n.link(m.node, other.node).cut && !n.link(other.node, m.node).cut
}

// silenceTicks is for how long a node says nothing before it is taken for dead.
const silenceTicks = 10

// tick lets time pass. It also is what the connections between nodes tell: who was
// not heard for a while, and who is back.
func (m *member) tick(n int) {
	m.nowMs += int64(n) * 100
	if m.moving > 0 {
		if m.moving = max(0, m.moving-n); m.moving == 0 {
			m.give = false
			m.part.Groups().Stay()
		}
	}
	for _, other := range m.fleet.members {
		switch was := m.silent[other]; {
		case other == m:
		case m.hears(other):
			if m.silent[other] = 0; was >= silenceTicks {
				m.inbox.PutEvent(replication.PeerEvent{Kind: replication.PeerUp, Node: other.node})
			}
		default:
			if m.silent[other] = was + n; was < silenceTicks && was+n >= silenceTicks {
				m.fleet.counts[FleetSilent]++
				m.inbox.PutEvent(replication.PeerEvent{Kind: replication.PeerDown, Node: other.node})
			}
		}
	}
	if m.group.Quiet() {
		m.fleet.counts[FleetQuiet]++
	} else {
		m.group.Tick(n)
	}
	m.look()
}

// Submit implements log.Executor.
func (m *member) Submit(j log.Job) { m.jobs = append(m.jobs, j) }

// work runs one waiting job.
func (m *member) work(i int) {
	j := m.jobs[i]
	m.jobs = append(m.jobs[:i:i], m.jobs[i+1:]...)
	m.fleet.trace.add("%s runs %T", m, j)
	j.Run()
	j.Done()
}

// Read implements replication.Feed.
func (m *member) Read(l *log.Log, to uint64, first wire.Index, maxBytes int) bool {
	if m.fleet.random.IntN(100) >= m.fleet.config.feeds {
		return false
	}
	m.fleet.counts[FleetFed]++
	if to == m.id {
		m.fleet.counts[FleetFedItself]++
	}
	m.jobs = append(m.jobs, &feedJob{m: m, log: l, to: to, first: first, max: maxBytes})
	return true
}

// fetch is replication.Config.Fetch: a job carries over what the other side's newest
// checkpoint is then.
func (m *member) fetch(node uint32, offer replication.SnapshotOffer) {
	m.jobs = append(m.jobs, &fetchJob{m: m, from: m.fleet.members[node-1], fetched: replication.Fetched{Offer: offer}})
}

type fetchJob struct {
	m, from *member
	fetched replication.Fetched
}

func (j *fetchJob) Run() {
	if f := j.m.fleet; !j.m.hears(j.from) || f.random.IntN(8) == 0 && !f.settling {
		j.fetched.Err = errors.New("the connection is lost")
		return
	}
	j.fetched.Content, j.fetched.Err = j.from.log.ReadCheckpoint()
}

func (j *fetchJob) Done() { j.m.inbox.PutFetched(j.fetched) }

type feedJob struct {
	m     *member
	log   *log.Log
	to    uint64
	first wire.Index
	max   int
	fed   replication.Fed
}

func (j *feedJob) Run() {
	j.fed = replication.Fed{To: j.to, First: j.first}
	j.fed.Entries, j.fed.Err = j.log.Stored(j.first, j.max)
}

func (j *feedJob) Done() { j.m.inbox.PutFed(j.fed) }

// stopped reports whether the power of the machine is gone.
func (m *member) stopped() bool { return m.stopAt > 0 && m.disk.Ops() >= m.stopAt }

// powerCut is the end of the process and of everything that was not synced.
func (m *member) powerCut() {
	m.fleet.trace.add("%s: the power is cut", m)
	m.fleet.counts[FleetPowerCut]++
	m.machineBoot++
	m.disk.Crash()
	if m.fleet.options.Mutant == WipedReplica && m.fleet.random.IntN(2) == 0 {
		m.wipe()
	}
	m.ended(false)
}

// crash is the end of the process alone. The port is closed at once, which the
// others may notice.
func (m *member) crash() {
	m.fleet.trace.add("%s crashes", m)
	m.fleet.counts[FleetCrash]++
	m.disk.StopAt(0)
	m.disk.CrashKeepAll()
	m.ended(true)
}

func (m *member) ended(refused bool) {
	if m.up {
		m.withdrawn()
	}
	m.up, m.paused, m.stopAt, m.jobs = false, false, 0, nil
	m.fleet.network.gone(m, refused)
	for _, c := range m.fleet.clients {
		if c.at == m {
			c.leave()
		}
	}
}

// stop ends the process in order.
func (m *member) stop() {
	f := m.fleet
	f.trace.add("%s stops in order", m)
	m.part.Close(wire.CodeShuttingDown)
	m.group.Checkpoint()
	for round := 0; len(m.jobs) > 0; round++ {
		if round == 10_000 {
			f.fail("%s does not stop", m)
		}
		m.work(0)
		m.group.Turn()
	}
	m.look()
	err := m.log.Close(m.group.Err() == nil)
	for len(m.jobs) > 0 {
		m.work(0)
	}
	if err = errors.Join(err, m.store.Close()); err != nil && !m.stopped() {
		f.fail("%s does not stop: %v", m, err)
	}
	if m.stopped() {
		m.powerCut()
		return
	}
	f.counts[FleetCleanStop]++
	m.disk.CrashKeepAll()
	m.ended(true)
}

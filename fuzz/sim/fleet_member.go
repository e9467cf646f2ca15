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
	"github.com/lockstepmq/lockstep/wire"
)

// memberMemory bounds what a replica holds of records on their way, in bytes.
const memberMemory = 64 << 20

// member is the replica of a cell on a machine.
type member struct {
	*host
	cell *cell
	id   uint64 // another one when the disk was lost

	log      *log.Log
	inbox    *replication.Inbox
	group    *replication.Group
	part     *partition.Partition
	state    *partition.State
	memory   *partition.Memory
	mark     *log.Watermark
	metadata *cluster.Metadata // nil: the group is that of a partition

	// What others were promised, over all lives: the last entry with its term, the
	// votes, the newest term. And the last entry that was applied here.
	promised     wire.Index
	promisedTerm wire.Term
	votes        map[wire.Term]uint64
	shown        wire.Term
	applied      wire.Index // and is in the log

	intended *cluster.Destination // as whose groups the partition has heard of
	heard    uint64               // or the version of the group, where there is no metadata

	moving int  // ticks until a planned move has come to nothing, 0: there is none
	give   bool // the leases are committed: the leadership may go

	erasing  erasing
	last     wire.Index // of the log, as of the last turn, and its term
	lastTerm wire.Term
}

func (m *member) String() string { return fmt.Sprintf("replica %d", m.id) }

// open opens the log and joins the group, in a new life of the process.
func (m *member) open() error {
	f := m.fleet
	m.moving, m.give, m.erasing = 0, false, erasing{}
	opened, err := log.Open(log.Options{
		Store: m.store, Dir: m.cell.dir, PartitionID: m.cell.partition, Incarnation: 1, ReplicaID: m.id,
		Existing: m.applied > 0, Sync: log.SyncQuorum, SegmentBytes: f.config.segmentBytes, TailBytes: f.config.tailBytes, EraseLeast: eraseLeast,
		Executor: m.host, Logger: f.trace.logger(),
	})
	if err != nil {
		return err
	}
	m.log = opened
	m.kept()
	m.memory = partition.NewMemory(memberMemory)
	m.state = partition.NewState()
	config := partition.Config{Log: m.log, State: m.state, Synced: true, Memory: m.memory, Retention: f.config.retention}
	if m.cell.ledger != nil {
		config.Queue, config.Groups = true, f.groups.effects(m)
	}
	if f.named != nil && f.options.Mutant != EpochsNotHeard {
		config.Fenced = m.replicas[0].metadata.Fenced
	}
	m.part = partition.New(config)
	m.intended, m.heard = nil, 0
	if m.cell.ledger != nil {
		m.part.Groups().Without(f.options.Without...)
		if f.council == nil {
			m.hear()
		}
	}
	m.inbox = replication.NewInbox(m.part.Buffers())
	var state replication.StateMachine = &fleetMachine{State: m.state, m: m}
	if m.cell.metadata {
		m.metadata = cluster.NewMetadata(nil)
		state = &councilMachine{m.metadata, m}
	}
	var founders []uint64
	for _, other := range m.cell.members {
		founders = append(founders, m.cell.base+uint64(other.node))
	}
	m.group, err = replication.Open(replication.Config{
		ReplicaID: m.id, Voters: founders, Peers: m.peers(), Node: m.node,
		Log: m.log, State: state, Transport: m, Inbox: m.inbox, Feed: m, Fetch: m.fetch,
		CheckpointBytes: f.config.checkpointBytes, LoadBytes: f.config.loadBytes, Logger: f.trace.logger(),
	})
	if err != nil {
		return err
	}
	if f.options.Mutant == StateNotFetched {
		state.(*fleetMachine).keeps = true
	}
	m.group.OnRelease(m.recycle)
	m.group.OnRestore(m.restored)
	m.part.Bind(m.group)
	if m.metadata != nil {
		m.metadata.Bind(m.group, m.id)
	}
	if c := m.log.Checkpoint(); c != nil && m.group.Applied() == c.Applied {
		m.cell.truth.state(m.id, c.Applied, m.saved())
	}
	m.mark = m.log.Watermark()
	m.last = 0
	return nil
}

// restored is called when a checkpoint of another replica has replaced the log and the
// state.
func (m *member) restored() {
	f := m.fleet
	f.counts[FleetInstalled]++
	m.passed()
	m.part.Bind(m.group)
	m.cell.truth.state(m.id, m.group.Applied(), m.saved())
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
	for _, other := range m.cell.members {
		if other != m {
			peers[other.id] = other.node
		}
	}
	return peers
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
	keeps  bool                // StateNotFetched: it has been opened
}

func (s *fleetMachine) Snapshot() func(dst []byte) []byte {
	if s.m.fleet.options.Mutant == EarlierState && s.before != nil {
		return s.before
	}
	s.m.noteErasable()
	return s.State.Snapshot()
}

func (s *fleetMachine) Apply(e replication.Entry) {
	if s.m.fleet.options.Mutant == EarlierState {
		saved := s.State.Save(nil)
		s.before = func(dst []byte) []byte { return append(dst, saved...) }
	}
	s.m.cell.truth.apply(s.m.id, e)
	if g := s.m.cell.ledger; g != nil && e.Kind == wire.KindRecords {
		g.committed(e.BaseOffset, e.Body)
	}
	if s.m.fleet.options.Mutant == FencesNotApplied && e.Kind == wire.KindControl {
		e.Body = withoutFences(e.Body)
	}
	s.m.part.Apply(partition.Entry(e))
	s.m.applied = max(s.m.applied, e.Index)
	s.m.cell.truth.state(s.m.id, e.Index, s.State.Save(nil))
}

func (s *fleetMachine) Restore(state []byte) error {
	s.m.fleet.counts[FleetCheckpointRestored]++
	if s.keeps && s.m.log.ErasedBytes() > 0 {
		return nil
	}
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
		if term, ok := m.log.Term(i); !ok || term != m.cell.truth.at(i).term {
			f.fail("%s had applied entry %d of term %d; after its restart its log ends at entry %d, and that one is of term %d",
				m, i, m.cell.truth.at(i).term, m.log.LastIndex(), term)
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
		m.cell.truth.leads(m.id, term)
		if durable := m.log.DurableIndex(); durable > m.promised {
			m.promised = durable // it counts itself among those that have an entry
			m.promisedTerm, _ = m.log.Term(durable)
		}
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
		m.cell.truth.leads(m.id, term)
	}
	m.withdrawn()
	if at, ok := m.log.Term(m.last); m.last >= m.log.FirstIndex() && (!ok || at != m.lastTerm) {
		f.counts[FleetTakenBack]++
	}
	m.last = m.log.LastIndex()
	m.lastTerm, _ = m.log.Term(m.last)
	if m.cell.ledger != nil {
		m.cell.ledger.check(m)
	}
	mark := m.log.Watermark()
	if mark.Index < m.mark.Index || mark.Next < m.mark.Next || mark.Index > m.cell.truth.last() {
		f.fail("%s: high watermark moved from %+v to %+v; %d entries are committed", m, *m.mark, *mark, m.cell.truth.last())
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
	if k := m.cell.truth.at(m.promised); k != nil && k.term == m.promisedTerm {
		f.fail("%s takes back entry %d of term %d, which is committed", m, m.promised, m.promisedTerm)
	}
	m.promised = min(m.promised, m.applied)
	m.promisedTerm, _ = m.log.Term(m.promised)
}

// holds reports whether an entry is durable here as far as the replica has said. One that
// opens says what its log has: it may be the first to apply an entry that it committed as a
// leader before its machine lost power.
func (m *member) holds(i wire.Index, term wire.Term) bool {
	if m.promised >= i && m.promisedTerm >= term {
		return true
	}
	if r := m.fleet.replacing; r != nil && r.id == m.id && r.promised >= i && r.promisedTerm >= term {
		return true
	}
	at, ok := m.log.Term(i)
	return (m.up || m.opening) && m.log.DurableIndex() >= i && ok && at == term
}

// lead is who leads as far as this member knows.
func (m *member) lead() (uint64, wire.Term) {
	if !m.up {
		return 0, 0
	}
	return m.group.Lead()
}

// handOver begins a planned move: first the leases are committed for the next leader.
func (m *member) handOver() {
	m.moving = 20
	m.part.Groups().HandOver(func(err error) { m.give = err == nil })
	m.turn()
}

// act is one turn of the owner.
func (m *member) act() (again bool) {
	m.group.Turn()
	if m.group.Err() == nil {
		if m.metadata != nil {
			m.metadata.Turn()
		}
		if m.cell.ledger != nil && m.fleet.council != nil {
			m.intend()
		}
		again = m.part.Turn(m.nowMs, time.Duration(m.nowMs)*time.Millisecond)
	}
	_, leading := m.group.Leading()
	if m.cell.ledger != nil && !leading {
		m.part.Reject(wire.CodeNotLeader) // as a node does: what came too late is answered
	}
	if m.give {
		m.give = false
		if leading && m.group.Err() == nil {
			m.fleet.groups.counts.HandedOver++
			_ = m.group.Transfer(0)
		}
	}
	if m.group.Err() == nil {
		m.eraseOlder()
	}
	m.look()
	return again
}

// pass lets time pass for the replica.
func (m *member) pass(n int) {
	if m.moving > 0 {
		if m.moving = max(0, m.moving-n); m.moving == 0 {
			m.give = false
			m.part.Groups().Stay()
		}
	}
	if m.group.Quiet() {
		m.fleet.counts[FleetQuiet]++
	} else {
		m.group.Tick(n)
	}
	m.look()
}

// silenceTicks is for how long a node says nothing before it is taken for dead.
const silenceTicks = 10

// Read implements replication.Feed.
func (m *member) Read(l *log.Log, to uint64, _ uint32, first wire.Index, maxBytes int) bool {
	if m.fleet.random.IntN(100) >= m.fleet.config.feeds {
		return false
	}
	m.fleet.counts[FleetFed]++
	if to == m.id {
		m.fleet.counts[FleetFedItself]++
	}
	m.jobs = append(m.jobs, &feedJob{m: m, log: l, to: to, first: first, max: maxBytes, paced: m.fleet.random.IntN(2) == 0})
	return true
}

// fetch is replication.Config.Fetch: a job carries over what the other side's newest
// checkpoint is then.
func (m *member) fetch(node uint32, offer replication.SnapshotOffer) {
	m.jobs = append(m.jobs, &fetchJob{m: m, from: m.cell.members[node-1], fetched: replication.Fetched{Offer: offer}})
}

type fetchJob struct {
	m, from *member
	fetched replication.Fetched
}

func (j *fetchJob) Run() {
	if f := j.m.fleet; !j.m.hears(j.from.host) || f.random.IntN(8) == 0 && !f.settling {
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
	paced bool
	fed   replication.Fed
}

func (j *feedJob) Run() {
	j.fed = replication.Fed{To: j.to, First: j.first, Paced: j.paced}
	j.fed.Entries, j.fed.Err = j.log.Stored(j.first, j.max)
}

func (j *feedJob) Done() { j.m.inbox.PutFed(j.fed) }

package replication

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/cryptotest"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// pool is memory that is overwritten as soon as it is given back, and given out
// again: whoever still reads it sees foreign bytes.
type pool struct {
	free  [][]byte
	out   int
	limit int // buffers that may be out, 0: any number
	size  int // of each
}

const poolBuffer = 4096

func (p *pool) Get(n int) []byte {
	if p.limit > 0 && p.out >= p.limit || n > p.size {
		return nil
	}
	p.out++
	if k := len(p.free); k > 0 {
		b := p.free[k-1]
		p.free = p.free[:k-1]
		return b[:n]
	}
	return make([]byte, n, p.size)
}

func (p *pool) Put(b []byte) {
	if cap(b) != p.size {
		return // raft made it
	}
	p.out--
	b = b[:cap(b)]
	for i := range b {
		b[i] = 0xEE
	}
	p.free = append(p.free, b)
}

// member is one replica on a machine of its own. Its node has the number of its
// replica.
type member struct {
	f      *fleet
	id     uint64
	files  *vfs.Simulated
	wrap   func(vfs.FS) vfs.FS // nil: files as they are
	exec   queueExecutor
	store  *log.Store
	log    *log.Log
	inbox  *Inbox
	pool   *pool
	group  *Group
	state  *journal
	down   bool
	frozen bool // its jobs do not run
	config func(*Config)
	reads  int  // of its feed
	slow   bool // its feed does not answer
	// ownReads are those for the replica itself.
	ownReads int

	fetches int            // of checkpoints
	garble  func(*Fetched) // changes what was fetched
}

// fleet is a group of several members and the network between them.
type fleet struct {
	t        *testing.T
	members  map[uint64]*member
	founders []uint64
	mode     log.SyncMode
	wires    []envelope
	cut      map[[2]uint64]bool  // from, to
	watch    func()              // called after every turn of settle, nil: nothing
	lose     func(envelope) bool // says which messages get lost, nil: none
	paced    bool                // what is read for followers, see Fed
	segment  int64
	// checkpoint is Config.CheckpointBytes, load Config.LoadBytes.
	checkpoint, load int64
	options          func(*log.Options)
	// machine makes a state machine in the place of a journal.
	machine func() StateMachine
}

type envelope struct {
	from, to uint64
	message  *Message
	beat     *Heartbeat
}

func newFleet(t *testing.T, founders ...uint64) *fleet {
	cryptotest.SetGlobalRandom(t, 1)
	f := &fleet{t: t, members: map[uint64]*member{}, founders: founders, cut: map[[2]uint64]bool{}, segment: 1 << 20}
	for _, id := range founders {
		f.add(id)
	}
	return f
}

func (f *fleet) add(id uint64) *member {
	m := &member{f: f, id: id, files: vfs.NewSimulated(id)}
	f.members[id] = m
	m.open()
	return m
}

func (f *fleet) ids() []uint64 { return slices.Sorted(maps.Keys(f.members)) }

func (f *fleet) peersOf(id uint64) map[uint64]uint32 {
	peers := map[uint64]uint32{}
	for n := uint64(1); n <= 9; n++ {
		if n != id {
			peers[n] = uint32(n)
		}
	}
	return peers
}

func (m *member) open() {
	f := m.f
	f.t.Helper()
	var err error
	require.NoError(f.t, m.files.MkdirAll("data"))
	files := vfs.FS(m.files)
	if m.wrap != nil {
		files = m.wrap(files)
	}
	m.store, err = log.OpenStore(log.StoreOptions{FS: files, Dir: "data", BootID: "boot", MinFreeBytes: -1, ReserveBytes: -1})
	require.NoError(f.t, err)
	m.exec = queueExecutor{}
	options := log.Options{
		Store: m.store, Dir: "data/partitions/p-0", PartitionID: [16]byte{1}, Incarnation: 1, ReplicaID: m.id,
		Sync: f.mode, SegmentBytes: f.segment, Executor: &m.exec,
	}
	if f.options != nil {
		f.options(&options)
	}
	m.log, err = log.Open(options)
	require.NoError(f.t, err)
	m.state = &journal{}
	var state StateMachine = m.state
	if f.machine != nil {
		state = f.machine()
	}
	m.pool = &pool{size: poolBuffer}
	m.inbox = NewInbox(m.pool)
	cfg := Config{
		ReplicaID: m.id, Voters: f.founders, Log: m.log, State: state, Node: uint32(m.id),
		Peers: f.peersOf(m.id), Transport: m, Inbox: m.inbox, Feed: m, Fetch: m.fetch, CheckpointBytes: f.checkpoint, LoadBytes: f.load,
	}
	if m.config != nil {
		m.config(&cfg)
	}
	m.group, err = Open(cfg)
	require.NoError(f.t, err)
	m.group.OnRelease(m.pool.Put)
	m.down = false
}

// Send implements Transport.
func (m *member) Send(node uint32, message *Message) {
	m.f.wires = append(m.f.wires, envelope{from: m.id, to: uint64(node), message: message})
}

// Beat implements Transport.
func (m *member) Beat(node uint32, h Heartbeat) {
	m.f.wires = append(m.f.wires, envelope{from: m.id, to: uint64(node), beat: &h})
}

// Read implements Feed: at once, in the place of a worker.
func (m *member) Read(l *log.Log, to uint64, _ uint32, first wire.Index, maxBytes int) bool {
	m.reads++
	if to == m.id {
		m.ownReads++
	}
	if m.slow {
		return true
	}
	entries, err := l.Stored(first, maxBytes)
	m.exec.jobs = append(m.exec.jobs, fedJob{m, Fed{To: to, First: first, Entries: entries, Paced: m.f.paced, Err: err}})
	return true
}

// fetch is Config.Fetch.
func (m *member) fetch(node uint32, offer SnapshotOffer) {
	m.fetches++
	m.exec.jobs = append(m.exec.jobs, &fetchJob{m: m, from: m.f.members[uint64(node)], fetched: Fetched{Offer: offer}})
}

type fetchJob struct {
	m, from *member
	fetched Fetched
}

func (j *fetchJob) Run() {
	f := j.m.f
	if j.from == nil || j.from.down || f.cut[[2]uint64{j.from.id, j.m.id}] {
		j.fetched.Err = errors.New("connection lost")
		return
	}
	j.fetched.Content, j.fetched.Err = j.from.log.ReadCheckpoint()
	if j.m.garble != nil {
		j.m.garble(&j.fetched)
	}
}

func (j *fetchJob) Done() { j.m.inbox.PutFetched(j.fetched) }

type fedJob struct {
	m *member
	f Fed
}

func (j fedJob) Run()  {}
func (j fedJob) Done() { j.m.inbox.PutFed(j.f) }

// crash stops a member's process; with power its machine too. The others notice that
// the connection is gone, not more.
func (m *member) crash(power bool) {
	if power {
		m.files.Crash()
	} else {
		m.files.CrashKeepAll()
	}
	m.down = true
	for _, id := range m.f.ids() {
		m.f.lost(id, m.id)
	}
}

// lost tells a member that its connection to another one has ended.
func (f *fleet) lost(id, other uint64) {
	if m := f.members[id]; !m.down && id != other {
		m.inbox.PutEvent(PeerEvent{Kind: PeerUnreachable, Node: uint32(other)})
		m.group.Turn()
	}
}

// work runs the jobs of a member.
func (m *member) work() (any bool) {
	for !m.down && !m.frozen && len(m.exec.jobs) > 0 {
		j := m.exec.jobs[0]
		m.exec.jobs = m.exec.jobs[1:]
		j.Run()
		j.Done()
		m.group.Turn()
		any = true
	}
	return any
}

// deliver takes the oldest message off the wire.
func (f *fleet) deliver() {
	e := f.wires[0]
	f.wires = f.wires[1:]
	to := f.members[e.to]
	if lost := to == nil || to.down || f.members[e.from].down || f.cut[[2]uint64{e.from, e.to}] || f.lose != nil && f.lose(e); !lost {
		f.hand(to, e)
	}
	if e.message != nil {
		e.message.Done()
	}
	if to != nil && !to.down {
		to.group.Turn()
	}
}

// hand puts a message into an inbox, through the bytes of its frame.
func (f *fleet) hand(to *member, e envelope) {
	if e.beat != nil {
		b := PeerBeat(e.beat)
		to.inbox.PutBeat(HeartbeatOf(&b))
		return
	}
	frame := AppendFrame(nil, e.message)
	for i := range e.message.Entries {
		frame = append(frame, e.message.Entries[i].Data...)
	}
	var d Decoder
	err := d.Decode(KindOf(e.message.Type), frame[wire.HeaderSize:], func(m *Message) { to.inbox.Put(m) })
	require.NoError(f.t, err)
}

// settle delivers and works until nothing is left to do.
func (f *fleet) settle() {
	f.t.Helper()
	for range 100_000 {
		busy := false
		for _, id := range f.ids() {
			busy = f.members[id].work() || busy
		}
		if f.watch != nil {
			f.watch()
		}
		if len(f.wires) > 0 {
			f.deliver()
			busy = true
		}
		if !busy {
			return
		}
	}
	f.t.Fatal("the fleet does not come to rest")
}

// tick lets time pass.
func (f *fleet) tick(n int) {
	f.t.Helper()
	for range n {
		for _, id := range f.ids() {
			if m := f.members[id]; !m.down {
				m.group.Tick(1)
			}
		}
		f.settle()
	}
}

// isolate cuts a member off, or all of those named from the others.
func (f *fleet) isolate(ids ...uint64) {
	for _, a := range f.ids() {
		for _, b := range f.ids() {
			if slices.Contains(ids, a) != slices.Contains(ids, b) {
				f.cut[[2]uint64{a, b}] = true
				f.lost(a, b)
			}
		}
	}
}

func (f *fleet) heal() { clear(f.cut) }

// leader is the member that leads, nil if there is none or several do.
func (f *fleet) leader() (found *member) {
	for _, id := range f.ids() {
		m := f.members[id]
		if _, leads := m.group.Leading(); !m.down && leads {
			if found != nil {
				return nil
			}
			found = m
		}
	}
	return found
}

// elect lets time pass until one member leads.
func (f *fleet) elect() *member {
	f.t.Helper()
	for range 100 {
		if m := f.leader(); m != nil {
			return m
		}
		f.tick(1)
	}
	f.t.Fatal("nobody is elected")
	return nil
}

// lead makes a certain founder lead.
func (f *fleet) lead(id uint64) *member {
	f.t.Helper()
	f.members[id].group.Campaign()
	f.settle()
	require.Same(f.t, f.members[id], f.leader())
	return f.members[id]
}

// propose appends records on a member without waiting for anything.
func (m *member) propose(body string) wire.Index {
	t := m.f.t
	t.Helper()
	for range 100 {
		if m.log.Reserve(wire.FrameSize(len(body)), true) == nil {
			break
		}
		m.work()
	}
	data := m.pool.Get(wire.EntryPrefixSize + len(body))
	wire.PutEntryPrefix(data, wire.KindRecords, 1, 5000)
	copy(data[wire.EntryPrefixSize:], body)
	index, err := m.group.Propose(data)
	require.NoError(t, err)
	return index
}

// frames is what a log holds, byte for byte, without what is local.
func (m *member) frames() []string {
	var out []string
	err := m.log.Replay(m.log.FirstIndex(), func(h wire.FrameHeader, body []byte) error {
		h.Local = 0
		out = append(out, fmt.Sprintf("%+v %x", h, body))
		return nil
	})
	require.NoError(m.f.t, err)
	return out
}

// equal makes sure that all members that are up hold and have applied the same.
func (f *fleet) equal() {
	f.t.Helper()
	var first *member
	for _, id := range f.ids() {
		m := f.members[id]
		if m.down {
			continue
		}
		require.NoError(f.t, m.group.Err(), "replica %d", id)
		if first == nil {
			first = m
			continue
		}
		require.True(f.t, slices.Equal(first.frames(), m.frames()), "replicas %d and %d hold different frames, %d and %d", first.id, id, len(first.frames()), len(m.frames()))
		require.Equal(f.t, first.group.Applied(), m.group.Applied(), "replicas %d and %d", first.id, id)
		require.Equal(f.t, first.log.Watermark().Next, m.log.Watermark().Next)
	}
}

// applied is what the state machine of a member has seen, no-ops left out.
func (m *member) applied() (out []string) {
	for _, body := range m.state.applied {
		if body != "" {
			out = append(out, body)
		}
	}
	return out
}

package sim

import (
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// host is a node with a disk and a clock of its own. It holds a replica of each cell.
type host struct {
	fleet    *fleet
	node     uint32 // from 1
	disk     *vfs.Simulated
	fs       vfs.FS // the disk, or what a mutant makes of it
	nowMs    int64
	replicas []*member // in the order of the cells

	machineBoot int // lives of the machine
	life        int // lives of the process
	up          bool
	opening     bool // on the way there
	paused      bool // the process stands still
	stopAt      int64

	store  *log.Store
	jobs   []log.Job
	silent map[*host]int // ticks for which another one was not heard
}

func newHost(f *fleet, node uint32) *host {
	m := &host{fleet: f, node: node, disk: vfs.NewSimulated(f.options.Seed<<4 + uint64(node)), nowMs: startMs + f.random.Int64N(100_000)}
	m.fs = f.options.Mutant.MutateFS(m.disk)
	return m
}

func (m *host) String() string {
	if len(m.replicas) == 1 {
		return m.replicas[0].String()
	}
	return fmt.Sprintf("machine %d", m.node)
}

// start brings the process up and compares what it finds with what was promised.
func (m *host) start() {
	f := m.fleet
	m.life++
	m.jobs, m.paused = nil, false
	f.trace.add("%s starts: life %d, boot %d of its machine", m, m.life, m.machineBoot)
	m.opening = true
	err := m.open()
	if m.opening = false; err != nil {
		if m.stopped() {
			m.powerCut()
			return
		}
		f.fail("%s does not open: %v", m, err)
	}
	m.up = true
	for _, r := range m.replicas {
		f.trace.add("%s is up: %d entries, %d committed, term %d, vote %d", r, r.log.LastIndex(), r.group.Applied(), r.log.HardState().Term, r.log.HardState().Vote)
	}
}

func (m *host) open() (err error) {
	f := m.fleet
	if err := m.disk.MkdirAll(dataDir); err != nil {
		return err
	}
	m.store, err = log.OpenStore(log.StoreOptions{
		FS: m.fs, Dir: dataDir, UUID: [16]byte{0xd1, 14: byte(m.replicas[0].id), 15: byte(m.node)}, BootID: fmt.Sprintf("boot-%d", m.machineBoot),
		MinFreeBytes: -1, ReserveBytes: -1, Executor: m, JournalBytes: 64 << 10, JournalLogs: f.config.journalLogs, Logger: f.trace.logger(),
	})
	if err != nil {
		return err
	}
	m.silent = make(map[*host]int)
	for _, r := range m.replicas {
		if err := r.open(); err != nil {
			return err
		}
	}
	return nil
}

// wipe is the loss of the disk, with all that was promised.
func (m *host) wipe() {
	m.disk = vfs.NewSimulated(uint64(m.life)<<8 + m.replicas[0].id)
	m.fs = m.disk
	for _, r := range m.replicas {
		r.applied, r.promised, r.promisedTerm, r.shown = 0, 0, 0, 0
		clear(r.votes)
	}
}

// turn is one turn of each replica's owner.
func (m *host) turn() (again bool) {
	if !m.up || m.paused {
		return false
	}
	for _, r := range m.replicas {
		again = r.act() || again
	}
	return again
}

// hears reports whether two machines can talk to each other now.
func (m *host) hears(other *host) bool {
	n := &m.fleet.network
	return other.up && !other.paused && !n.link(m.node, other.node).cut && !n.link(other.node, m.node).cut
}

// reaches reports whether a process here and one there can talk to each other now.
func (m *host) reaches(other *host) bool {
	return m == other && m.up && !m.paused || m != other && m.hears(other) && other.hears(m)
}

// tick lets time pass. It also is what the connections between nodes tell: who was
// not heard for a while, and who is back.
func (m *host) tick(n int) {
	m.nowMs += int64(n) * 100
	for _, other := range m.fleet.hosts {
		switch was := m.silent[other]; {
		case other == m:
		case m.hears(other):
			if m.silent[other] = 0; was >= silenceTicks {
				m.hear(replication.PeerEvent{Kind: replication.PeerUp, Node: other.node})
			}
		default:
			if m.silent[other] = was + n; was < silenceTicks && was+n >= silenceTicks {
				m.fleet.counts[FleetSilent]++
				m.hear(replication.PeerEvent{Kind: replication.PeerDown, Node: other.node})
			}
		}
	}
	for _, r := range m.replicas {
		r.pass(n)
	}
}

// replica is whom a message is for. Where there is one it gets them all.
func (m *host) replica(id uint64) *member {
	for _, r := range m.replicas {
		if r.id == id || len(m.replicas) == 1 {
			return r
		}
	}
	return nil
}

// hear tells all replicas what the connections do.
func (m *host) hear(e replication.PeerEvent) {
	for _, r := range m.replicas {
		r.inbox.PutEvent(e)
	}
}

// Submit implements log.Executor.
func (m *host) Submit(j log.Job) { m.jobs = append(m.jobs, j) }

// work runs one waiting job.
func (m *host) work(i int) {
	j := m.jobs[i]
	m.jobs = append(m.jobs[:i:i], m.jobs[i+1:]...)
	m.fleet.trace.add("%s runs %T", m, j)
	j.Run()
	j.Done()
}

// stopped reports whether the power of the machine is gone.
func (m *host) stopped() bool { return m.stopAt > 0 && m.disk.Ops() >= m.stopAt }

// powerCut is the end of the process and of everything that was not synced.
func (m *host) powerCut() {
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
func (m *host) crash() {
	m.fleet.trace.add("%s crashes", m)
	m.fleet.counts[FleetCrash]++
	m.disk.StopAt(0)
	m.disk.CrashKeepAll()
	m.ended(true)
}

func (m *host) ended(refused bool) {
	for _, r := range m.replicas {
		if m.up {
			r.withdrawn()
		}
	}
	m.up, m.paused, m.stopAt, m.jobs = false, false, 0, nil
	m.fleet.network.gone(m, refused)
	for _, c := range m.fleet.clients {
		if c.at != nil && c.at.host == m {
			c.leave()
		}
	}
}

// stop ends the process in order.
func (m *host) stop() {
	f := m.fleet
	f.trace.add("%s stops in order", m)
	for _, r := range m.replicas {
		r.part.Close(wire.CodeShuttingDown)
		r.group.Checkpoint()
	}
	for round := 0; len(m.jobs) > 0; round++ {
		if round == 10_000 {
			f.fail("%s does not stop", m)
		}
		m.work(0)
		for _, r := range m.replicas {
			r.group.Turn()
		}
	}
	var err error
	for _, r := range m.replicas {
		r.look()
		err = errors.Join(err, r.log.Close(r.group.Err() == nil))
	}
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

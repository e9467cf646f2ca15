package log

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var crashSeeds = flag.Int("crashseeds", 200, "seeds of the crash simulation for each sync mode")

// loose is an executor that runs jobs in any order, and hands them back later.
type loose struct {
	waiting, ran []Job
	random       *rand.Rand
}

func (q *loose) Submit(j Job) { q.waiting = append(q.waiting, j) }

func take(jobs *[]Job, i int) Job {
	j := (*jobs)[i]
	*jobs = append((*jobs)[:i], (*jobs)[i+1:]...)
	return j
}

// step runs a job or hands one back.
func (q *loose) step() bool {
	n := len(q.waiting) + len(q.ran)
	if n == 0 {
		return false
	}
	if i := q.random.IntN(n); i < len(q.waiting) {
		j := take(&q.waiting, i)
		j.Run()
		q.ran = append(q.ran, j)
	} else {
		take(&q.ran, i-len(q.waiting)).Done()
	}
	return true
}

// crashModel drives a log at random, cuts the power at random, and knows what must
// have survived.
type crashModel struct {
	t       testing.TB
	mutate  func(vfs.FS) vfs.FS // nil: the disk as it is
	seed    uint64
	random  *rand.Rand
	fs      *vfs.Simulated
	mode    SyncMode
	segment int64
	uniform bool
	journal bool // small syncs go through the journal
	shared  uint64
	boots   int

	store *Store
	jobs  *loose
	log   *Log

	first     wire.Index // physical start: FirstIndex as last seen
	entries   []Entry    // the log's content from index 1 on
	versions  [][]Entry  // earlier contents, taken back since the last crash
	durable   wire.Index // the log said so
	committed wire.Index
	hs        HardState // as set last
	hsDurable HardState // as known durable
	hsTickets []hsTicket
	saved     wire.Index // checkpoint known written
	saving    wire.Index
}

type hsTicket struct {
	ticket uint64
	hs     HardState
}

func TestF6_CrashAtAnyPointLeavesADurablePrefix(t *testing.T) {
	for _, mode := range []SyncMode{SyncQuorum, SyncOS} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			seeds := *crashSeeds
			if testing.Short() {
				seeds /= 10
			}
			shared, boots := uint64(0), 0
			for seed := range seeds {
				m := newCrashModel(t, uint64(seed), mode)
				m.crashes()
				shared += m.shared
				boots += m.boots
			}
			t.Logf("seeds 0 to %d: %d power cuts, %d syncs by the journal", seeds-1, boots, shared)
			if mode == SyncQuorum {
				require.NotZero(t, shared)
			}
		})
	}
}

func newCrashModel(t testing.TB, seed uint64, mode SyncMode) *crashModel {
	m := &crashModel{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 42)), fs: vfs.NewSimulated(seed), mode: mode, first: 1}
	m.segment = []int64{700, 2000, 10_000, 200_000}[m.random.IntN(4)]
	m.uniform = seed%2 == 1
	m.journal = seed%3 > 0
	return m
}

// crashes runs the log until the power goes, a few times.
func (m *crashModel) crashes() {
	defer func() {
		p := recover()
		if _, expected := p.(expectedFailure); expected {
			panic(p)
		}
		if p != nil {
			m.t.Fatalf("seed %d: panic: %v", m.seed, p)
		}
	}()
	for range 3 + m.random.IntN(4) {
		m.open()
		m.run()
	}
	m.open()
}

func (m *crashModel) options() Options {
	return Options{
		Store: m.store, Dir: testDir + "/partitions/p", PartitionID: testPartition, Incarnation: 1, ReplicaID: 7,
		Sync: m.mode, SegmentBytes: m.segment, Executor: m.jobs, Logger: quiet,
	}
}

func (m *crashModel) require(ok bool, format string, args ...any) {
	if !ok {
		m.t.Helper()
		m.t.Fatalf("seed %d: %s", m.seed, fmt.Sprintf(format, args...))
	}
}

func (m *crashModel) open() {
	m.jobs = &loose{random: m.random}
	fs := vfs.FS(m.fs)
	if m.mutate != nil {
		fs = m.mutate(fs)
	}
	var err error
	o := StoreOptions{
		FS: fs, Dir: testDir, UUID: [16]byte{1}, BootID: fmt.Sprint(m.boots), MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet,
	}
	if m.journal {
		o.Executor, o.JournalLogs, o.JournalBytes = m.jobs, 1, leastJournalBytes
	}
	m.store, err = OpenStore(o)
	m.require(err == nil, "store: %v", err)
	m.log, err = Open(m.options())
	if errors.Is(err, ErrFenced) {
		// A crash that came as an I/O error in the middle of something.
		o := m.options()
		o.RecoverFence = true
		m.log, err = Open(o)
	}
	m.require(err == nil, "open: %v", err)
	m.verify()
}

func same(a, b Entry) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Kind == b.Kind && string(a.Data) == string(b.Data)
}

func isPrefix(got []Entry, first wire.Index, of []Entry) bool {
	for _, e := range got {
		if int(e.Index) > len(of) || !same(e, of[e.Index-1]) {
			return false
		}
	}
	return len(got) == 0 || got[0].Index == first
}

// verify compares what was recovered with what must be there.
func (m *crashModel) verify() {
	l := m.log
	last := l.LastIndex()
	var got []Entry
	err := l.Replay(l.FirstIndex(), func(h wire.FrameHeader, body []byte) error {
		got = append(got, rebuilt(h, body))
		return nil
	})
	m.require(err == nil, "replay: %v", err)
	m.require(wire.Index(len(got)) == last+1-l.FirstIndex(), "replayed %d entries of [%d, %d]", len(got), l.FirstIndex(), last)
	m.require(l.FirstIndex() >= m.first, "first index went from %d to %d", m.first, l.FirstIndex())
	if m.mode == SyncQuorum {
		m.require(last >= m.durable, "last is %d, durable was %d", last, m.durable)
		m.require(last >= m.committed, "last is %d, committed was %d", last, m.committed)
	}
	found := isPrefix(got, l.FirstIndex(), m.entries)
	content := m.entries
	for _, v := range m.versions {
		if !found && isPrefix(got, l.FirstIndex(), v) {
			found, content = true, v
		}
	}
	m.require(found, "recovered entries [%d, %d] are none of %d versions", l.FirstIndex(), last, len(m.versions)+1)
	c := l.Checkpoint()
	applied := wire.Index(0)
	if c != nil {
		applied = c.Applied
		m.require(string(c.State) == fmt.Sprintf("state at %d", applied), "checkpoint at %d holds %q", applied, c.State)
	}
	m.require(applied >= m.saved, "checkpoint at %d, written was %d", applied, m.saved)
	m.require(applied <= last, "checkpoint at %d, last is %d", applied, last)
	hs := l.HardState()
	m.require(hs.Term >= m.hsDurable.Term, "term %d, durable was %d", hs.Term, m.hsDurable.Term)
	if hs.Term == m.hsDurable.Term {
		m.require(hs.Vote == m.hsDurable.Vote || hs.Term == m.hs.Term && hs.Vote == m.hs.Vote, "vote %d, durable was %d", hs.Vote, m.hsDurable.Vote)
	}
	m.require(hs.Commit <= last && (hs.Commit <= m.committed || m.committed == 0 && hs.Commit == 0), "commit %d, last %d, committed was %d", hs.Commit, last, m.committed)

	m.entries = append([]Entry(nil), content[:last]...)
	m.versions = nil
	m.first = l.FirstIndex()
	m.hs, m.hsDurable, m.hsTickets = hs, hs, nil
	m.saved, m.saving = applied, 0
	// What was committed stays so, whether this replica remembers it or not.
	m.durable, m.committed = last, min(m.committed, last)
	if m.mode == SyncOS && m.random.IntN(2) == 0 {
		l.SetCertain()
	}
	for i := l.FirstIndex(); i <= last; i++ {
		term, ok := l.Term(i)
		m.require(ok && term == m.entries[i-1].Term, "term of %d is %d %v", i, term, ok)
	}
	l.Publish(m.committed)
	m.readBack()
}

// readBack streams what is committed and looks up every offset in it.
func (m *crashModel) readBack() {
	l := m.log
	if m.committed < l.FirstIndex() {
		return
	}
	p, base, err := l.Locate(l.StartOffset())
	m.require(err == nil && base <= l.StartOffset(), "locate %d: %v", l.StartOffset(), err)
	buf := make([]byte, 1<<16)
	var stream []byte
	for {
		n, next, err := l.ReadAt(p, buf)
		m.require(err == nil, "read at %v: %v", p, err)
		if n == 0 {
			break
		}
		stream = append(stream, buf[:n]...)
		p = next
	}
	offset := base
	for len(stream) > 0 {
		h, err := wire.ParseFrameHeader(stream)
		m.require(err == nil, "stream: %v", err)
		m.require(h.Kind == wire.KindRecords && h.BaseOffset == offset, "stream: %v frame with offset %d, want %d", h.Kind, h.BaseOffset, offset)
		m.require(h.Index <= m.committed, "stream: entry %d, committed %d", h.Index, m.committed)
		e := rebuilt(h, stream[wire.FrameHeaderSize:][:h.BodyLength])
		m.require(same(e, m.entries[h.Index-1]), "stream: entry %d differs", h.Index)
		offset = h.NextOffset()
		stream = stream[h.FrameSize():]
	}
	m.require(offset == l.Watermark().Next, "stream ends at %d, watermark %d", offset, l.Watermark().Next)
}

// run does random things until the power goes.
func (m *crashModel) run() {
	if m.random.IntN(3) > 0 {
		m.fs.StopAt(m.fs.Ops() + 1 + int64(m.random.IntN(120)))
	}
	for range 10 + m.random.IntN(120) {
		if m.log.Err() != nil {
			break
		}
		m.act()
		m.observe()
	}
	if m.log.Err() == nil && m.random.IntN(6) == 0 {
		if m.log.Close(m.random.IntN(2) == 0) == nil {
			m.durable = wire.Index(len(m.entries))
			m.versions, m.hsDurable, m.hsTickets = nil, m.hs, nil
		}
	}
	_, shared, _ := m.store.JournalStats()
	m.shared += shared
	m.fs.StopAt(0)
	if _, err := m.fs.Stat(testDir); err == nil && m.random.IntN(5) == 0 && m.log.Err() == nil {
		// Only the process dies: the page cache lives, synced or not.
		m.require(m.store.lock.Close() == nil, "lock")
		return
	}
	m.boots++
	switch {
	case m.random.IntN(4) == 0:
		m.fs.CrashLoseAll()
	case m.random.IntN(4) == 0:
		m.fs.CrashKeepAll()
	default:
		m.fs.Crash()
	}
}

// observe notes what the log has promised.
func (m *crashModel) observe() {
	if m.mode == SyncQuorum && m.log.DurableIndex() > m.durable {
		m.durable = m.log.DurableIndex()
	}
	for len(m.hsTickets) > 0 && m.hsTickets[0].ticket <= m.log.DurableTicket() {
		m.hsDurable = m.hsTickets[0].hs
		m.hsTickets = m.hsTickets[1:]
	}
	if m.saving > 0 && !m.log.CheckpointPending() {
		if m.log.Err() == nil {
			m.saved = m.saving
		}
		m.saving = 0
	}
	m.first = max(m.first, m.log.FirstIndex())
}

func (m *crashModel) act() {
	l, random := m.log, m.random
	switch n := random.IntN(100); {
	case n < 35:
		m.append(l.LastIndex() + 1)
	case n < 42:
		if last := l.LastIndex(); last > m.committed {
			m.setTerm()
			m.append(m.committed + 1 + wire.Index(random.IntN(int(last-m.committed))))
		}
	case n < 55:
		l.Sync()
	case n < 80:
		m.jobs.step()
	case n < 88:
		stable := l.DurableIndex()
		if stable > m.committed {
			m.committed += 1 + wire.Index(random.IntN(int(stable-m.committed)))
			if random.IntN(2) == 0 {
				m.hs.Commit = m.committed
				l.SetHardState(m.hs, false)
			}
			l.Publish(m.committed)
			l.Release(m.committed, nil)
		}
	case n < 90:
		m.setTerm()
	case n < 94:
		if !l.CheckpointPending() && m.committed > m.saved {
			if p, ok := l.place(m.committed); ok {
				m.saving = m.committed
				l.WriteCheckpoint(Checkpoint{Applied: m.committed, Term: p.link.Term, NextOffset: p.link.Next, State: []byte(fmt.Sprintf("state at %d", m.committed))})
			}
		}
	case n < 96:
		if next := l.Watermark().Next; next > 0 {
			l.Trim(wire.Offset(random.Uint64N(uint64(next))))
		}
	case n < 98:
		l.MarkIdle()
	default:
		l.SyncNow()
	}
}

func (m *crashModel) setTerm() {
	m.hs.Term++
	m.hs.Vote = m.random.Uint64N(3)
	m.log.SetHardState(m.hs, true)
	m.hsTickets = append(m.hsTickets, hsTicket{m.log.Ticket(), m.hs})
}

func (m *crashModel) append(from wire.Index) {
	if m.hs.Term == 0 {
		m.setTerm()
	}
	var entries []Entry
	size := int64(0)
	for i := range 1 + m.random.IntN(4) {
		e := records(from+wire.Index(i), m.hs.Term, uint32(m.random.IntN(4)), m.random.IntN(600))
		kind := m.random.IntN(8)
		if m.uniform {
			// Frames of one size: what was taken back lies where the new ones lie.
			e, kind = records(from+wire.Index(i), m.hs.Term, 1, 200), 8
		}
		switch kind {
		case 0:
			e = noOp(e.Index, e.Term)
		case 1:
			e = control(e.Index, e.Term, m.random.IntN(100))
		case 2:
			e = configuration(e.Index, e.Term, "change")
		}
		entries = append(entries, e)
		size += frameSize(e)
	}
	for range 20 {
		err := m.log.Reserve(size, true)
		if err == nil {
			err = m.log.Append(entries)
		}
		switch {
		case err == nil:
			if int(from) <= len(m.entries) {
				m.versions = append(m.versions, append([]Entry(nil), m.entries...))
				m.durable = min(m.durable, from-1)
			}
			m.entries = append(m.entries[:from-1:from-1], entries...)
			return
		case errors.Is(err, ErrNotReady):
			if !m.jobs.step() {
				m.t.Fatalf("seed %d: not ready, and no job", m.seed)
			}
		default:
			m.require(m.log.Err() != nil, "append: %v", err)
			// What was written of it nobody knows.
			m.versions = append(m.versions, append([]Entry(nil), m.entries...))
			m.durable = min(m.durable, from-1)
			m.entries = append(m.entries[:from-1:from-1], entries...)
			return
		}
		m.observe()
	}
}

func TestCrashModelIsDeterministic(t *testing.T) {
	ops := func() int64 {
		m := &crashModel{t: t, seed: 5, random: rand.New(rand.NewPCG(5, 42)), fs: vfs.NewSimulated(5), first: 1, segment: 2000}
		m.open()
		m.run()
		m.open()
		return m.fs.Ops()
	}
	require.Equal(t, ops(), ops())
}

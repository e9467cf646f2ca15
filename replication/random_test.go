package replication

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
	"testing/cryptotest"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	randomSeeds  = flag.Int("replication.seeds", 40, "runs of TestF7_AnyScheduleKeepsTheReplicasEqual")
	randomLapses = flag.Uint("replication.lapses", 0, "what their replicas do without, see lapse")
	randomSeed   = flag.Uint64("replication.seed", 1, "the first of their seeds")
)

// witness is a state machine that compares what is applied anywhere with what was
// applied there first.
type witness struct {
	journal
	r *randomFleet
}

type history struct {
	term wire.Term
	kind wire.Kind
	body string
}

func (w *witness) Apply(e Entry) {
	h := history{e.Term, e.Kind, string(e.Body)}
	if old, known := w.r.history[e.Index]; known {
		require.Equal(w.r.f.t, old, h, "seed %d: entry %d is applied twice with different contents", w.r.seed, e.Index)
	} else {
		w.r.history[e.Index] = h
	}
	w.journal.Apply(e)
}

// randomFleet runs members under a schedule that a seed determines: messages are
// delayed, lost, doubled and swapped, machines stop and lose what they had not
// synced, members come and go.
type randomFleet struct {
	f       *fleet
	random  *rand.Rand
	seed    uint64
	history map[wire.Index]history
	counts  map[string]int
	number  int
	// power says that machines in mode os lose power too, and what they had not synced.
	power bool
}

// uncertain is Member.config of one whose machine has lost power.
func uncertain(c *Config) { c.Uncertain = true }

// mayLosePower reports whether nothing is lost when a member's machine stops: all others
// have what they had acknowledged.
func (r *randomFleet) mayLosePower(m *member) bool {
	for _, other := range r.f.members {
		if other.config != nil && !other.down && !other.group.Uncertain() {
			other.config = nil
		}
		if other != m && (other.down || other.config != nil) {
			return false
		}
	}
	return !m.down && r.random.IntN(2) == 0
}

// losePower stops a machine. Nothing, or a part of what it had not synced, is on its disk.
func (r *randomFleet) losePower(m *member) {
	if r.random.IntN(2) == 0 {
		m.files.CrashLoseAll()
	} else {
		m.files.Crash()
	}
	m.crash(false)
	m.config = uncertain
}

// blackout is the end of all machines at once. What is on no disk is lost, and known to
// be: the history ends with the longest log.
func (r *randomFleet) blackout() {
	r.count("blackout")
	for _, id := range r.f.ids() {
		m := r.f.members[id]
		r.losePower(m)
	}
	term, last := wire.Term(0), wire.Index(0)
	for _, id := range r.f.ids() {
		m := r.f.members[id]
		m.open()
		if at, _ := m.log.Term(m.log.LastIndex()); at > term || at == term && m.log.LastIndex() > last {
			term, last = at, m.log.LastIndex()
		}
	}
	for i := range r.history {
		if i > last {
			delete(r.history, i)
			r.count("lost by power")
		}
	}
}

func (r *randomFleet) count(what string) { r.counts[what]++ }

func (r *randomFleet) member() *member {
	ids := r.f.ids()
	return r.f.members[ids[r.random.IntN(len(ids))]]
}

func (r *randomFleet) step() {
	f := r.f
	m := r.member()
	switch n := r.random.IntN(1000); {
	case n < 430:
		r.deliver()
	case n < 700:
		if !m.down && len(m.exec.jobs) > 0 {
			j := m.exec.jobs[0]
			m.exec.jobs = m.exec.jobs[1:]
			j.Run()
			j.Done()
			m.group.Turn()
		}
	case n < 850:
		if !m.down {
			m.group.Tick(1 + r.random.IntN(2))
		}
	case n < 940:
		r.propose(m)
	case n < 941 && r.power:
		r.blackout()
	case n < 946:
		if r.power && r.mayLosePower(m) {
			r.losePower(m)
			r.count("power loss")
		} else if !m.down && r.downCount() == 0 {
			m.crash(r.f.mode == log.SyncQuorum && r.random.IntN(2) == 0)
			r.count("stop")
		}
	case n < 950:
		if m.down {
			m.open()
			r.count("start")
		}
	case n < 954:
		if len(f.cut) == 0 {
			f.isolate(m.id)
			r.count("cut")
		}
	case n < 962:
		f.heal()
	case n < 966:
		if !m.down && m.group.Transfer(0) == nil {
			r.count("transfer")
		}
	case n < 971:
		if !m.down {
			m.inbox.PutEvent(PeerEvent{Kind: PeerDown, Node: uint32(1 + r.random.IntN(4)), Refused: r.random.IntN(2) == 0})
			m.inbox.PutEvent(PeerEvent{Kind: PeerUp, Node: uint32(1 + r.random.IntN(4))})
			m.group.Turn()
		}
	case n < 990:
		r.trim(m)
	case !r.power:
		r.reconfigure(m)
	}
	for _, id := range f.ids() {
		if m := f.members[id]; !m.down {
			require.NoError(f.t, m.group.Err(), "seed %d: replica %d", r.seed, id)
		}
	}
}

func (r *randomFleet) downCount() (n int) {
	for _, m := range r.f.members {
		if m.down {
			n++
		}
	}
	return n
}

// deliver takes a message from near the front of the network.
func (r *randomFleet) deliver() {
	f := r.f
	if len(f.wires) == 0 {
		return
	}
	k := r.random.IntN(min(len(f.wires), 4))
	e := f.wires[k]
	f.wires = slices.Delete(f.wires, k, k+1)
	to, times := f.members[e.to], 1
	switch n := r.random.IntN(100); {
	case to == nil || to.down || f.cut[[2]uint64{e.from, e.to}] || n < 3:
		times = 0
		r.count("lost")
	case n < 6:
		times = 2
		r.count("doubled")
	case n < 9:
		f.wires = append(f.wires, e)
		r.count("delayed")
		return
	}
	for range times {
		f.hand(to, e)
		to.group.Turn()
	}
	if e.message != nil {
		e.message.Done()
	}
}

func (r *randomFleet) propose(m *member) {
	if m.down || m.group.Paused() {
		return
	}
	if _, leads := m.group.Leading(); !leads {
		return
	}
	r.number++
	body := fmt.Sprintf("%d %s", r.number, bytes.Repeat([]byte{byte(r.number)}, r.random.IntN(3000)))
	if m.log.Reserve(wire.FrameSize(len(body)), true) != nil {
		return
	}
	data := m.pool.Get(wire.EntryPrefixSize + len(body))
	wire.PutEntryPrefix(data, wire.KindRecords, 1, 5000)
	copy(data[wire.EntryPrefixSize:], body)
	if _, err := m.group.Propose(data); err != nil {
		m.pool.Put(data)
		return
	}
	r.count("proposed")
}

func (r *randomFleet) trim(m *member) {
	if m.down || !m.group.Ready() {
		return
	}
	m.group.Checkpoint()
	if next := m.log.Watermark().Next; next > 20 {
		m.log.Trim(next - 20)
		m.log.MarkIdle()
		r.count("trim")
	}
}

// reconfigure moves the group between the members 1 to 4, of which three are voters.
func (r *randomFleet) reconfigure(m *member) {
	if m.down {
		return
	}
	if _, leads := m.group.Leading(); !leads {
		return
	}
	now := m.group.Members()
	var c Membership
	switch {
	case len(now.Learners) > 0:
		c.Promote = now.Learners[:1]
		for _, id := range now.Voters {
			if id != m.id {
				c.Remove = []uint64{id}
			}
		}
	case len(now.Voters) == 3:
		for id := uint64(1); id <= 4; id++ {
			if !slices.Contains(now.Voters, id) {
				c.AddLearners = []uint64{id}
			}
		}
	}
	if m.group.Reconfigure(c) == nil {
		r.count("reconfigured")
	}
}

func runRandom(t *testing.T, seed uint64, steps int, total map[string]int) {
	cryptotest.SetGlobalRandom(t, seed)
	r := &randomFleet{
		f:      &fleet{t: t, members: map[uint64]*member{}, founders: []uint64{1, 2, 3}, cut: map[[2]uint64]bool{}, segment: 8 << 10, checkpoint: 8 << 10},
		random: rand.New(rand.NewPCG(seed, 0)), seed: seed, history: map[wire.Index]history{}, counts: total,
	}
	if seed%3 == 0 {
		r.f.mode = log.SyncOS
		r.power = seed%6 == 0 // else only processes end
	}
	r.f.machine = func() StateMachine { return &witness{r: r} }
	r.f.load = []int64{0, 1, 5000}[seed/3%3]
	for id := uint64(1); id <= 4 && !(r.power && id == 4); id++ {
		r.f.add(id)
	}
	for range steps {
		for _, m := range r.f.members {
			m.group.lapses = lapse(*randomLapses)
		}
		r.step()
	}
	// Everything heals, and all have the same.
	r.f.heal()
	for _, id := range r.f.ids() {
		if r.f.members[id].down {
			r.f.members[id].open()
		}
		for _, other := range r.f.ids() {
			r.f.lost(id, other)
		}
	}
	r.f.settle()
	r.f.tick(40)
	l := r.f.elect()
	l.propose("the last")
	r.f.settle()
	r.f.tick(60)
	members := l.group.Members()
	for _, id := range members.Voters {
		m := r.f.members[id]
		require.True(t, m.group.Ready(), "seed %d: replica %d", seed, id)
		require.Equal(t, l.group.Applied(), m.group.Applied(), "seed %d: replicas %d and %d", seed, l.id, id)
		ours, theirs := l.frames(), m.frames()
		n := min(len(ours), len(theirs))
		require.True(t, slices.Equal(ours[len(ours)-n:], theirs[len(theirs)-n:]), "seed %d: replicas %d and %d", seed, l.id, id)
		require.Zero(t, m.pool.out, "seed %d: replica %d keeps memory", seed, id)
	}
	// What was applied anywhere is in the log of the leader.
	err := l.log.Replay(l.log.FirstIndex(), func(h wire.FrameHeader, body []byte) error {
		if h.Kind == wire.KindRecords {
			require.Equal(t, r.history[h.Index], history{h.Term, h.Kind, string(body)}, "seed %d: entry %d", seed, h.Index)
		}
		return nil
	})
	require.NoError(t, err)
	for index := range r.history {
		require.LessOrEqual(t, index, l.log.LastIndex(), "seed %d: an applied entry is gone", seed)
	}
	for _, m := range r.f.members {
		total["fetched"] += m.fetches
		total["fed"] += m.reads
		total["fed itself"] += m.ownReads
		for reason, n := range m.group.Drops() {
			total["dropped: "+DropReason(reason).String()] += int(n)
		}
	}
	total["entries"] += len(r.history)
}

// TestF7_AnyScheduleKeepsTheReplicasEqual: whatever the network and the machines do,
// no two replicas apply different entries at one index, and what one has applied is
// never lost.
func TestF7_AnyScheduleKeepsTheReplicasEqual(t *testing.T) {
	total := map[string]int{}
	for seed := *randomSeed; seed < *randomSeed+uint64(*randomSeeds); seed++ {
		runRandom(t, seed, 3000, total)
		if t.Failed() {
			t.Fatalf("replication.seed %d", seed)
		}
	}
	t.Logf("replication.seed %d, %d runs: %v", *randomSeed, *randomSeeds, total)
	for _, what := range []string{"lost", "doubled", "delayed", "stop", "cut", "transfer", "trim", "reconfigured", "fetched", "fed", "fed itself", "blackout", "power loss", "lost by power"} {
		require.Positive(t, total[what], what)
	}
}

// TestF7_Catches_PromisesThatDoNotWait runs the same in a process in which promises
// are sent before the disk has what they promise.
func TestF7_Catches_PromisesThatDoNotWait(t *testing.T) {
	run := exec.Command(os.Args[0], "-test.run=^TestF7_AnySchedule", fmt.Sprintf("-replication.lapses=%d", hasty), "-replication.seeds=10")
	out, err := run.CombinedOutput()
	var failed *exec.ExitError
	require.ErrorAs(t, err, &failed, "not caught")
	require.Contains(t, string(out), "seed ")
}

package replication

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// DropReason says why a message of another replica was dropped. Raft repeats what
// matters.
type DropReason uint8

// Why a message is dropped.
const (
	DropWaiting   DropReason = iota // this replica does not take part yet
	DropAddress                     // it is for another replica, or from one that may not say that
	DropTerm                        // its term is zero, beyond MaxTerm or far ahead of ours
	DropEntry                       // an entry is malformed or damaged
	DropRoom                        // the disk has no room for records
	DropUncertain                   // a replica is asked to lead that may have forgotten something, or has to catch up
	DropProgress                    // it says that we hold what we do not
	dropReasons
)

func (r DropReason) String() string {
	return [...]string{"waiting", "address", "term", "entry", "room", "uncertain", "progress"}[r]
}

// maxTermAhead is how far the term of a message may be ahead of ours: elections do
// not take so many, so it is damaged or forged.
const maxTermAhead = 1 << 20

// maxHeld is how many messages to storage may wait for room before what arrives is dropped:
// answers wait behind them, and a leader asks with every heartbeat.
const maxHeld = 64

// Drops counts dropped messages by reason, those that the inbox dropped aside.
func (g *Group) Drops() [int(dropReasons)]uint64 { return g.drops }

func (g *Group) drop(m *Message, reason DropReason) {
	g.drops[reason]++
	g.giveBack(m.Entries)
	m.Entries = nil
}

func (g *Group) giveBack(entries []raftpb.Entry) {
	if g.inbox != nil {
		g.inbox.giveBack(entries)
	}
}

// collect takes what other goroutines have put into the inbox since the last turn.
// Messages wait in the queue until they are received.
func (g *Group) collect() {
	if g.inbox == nil {
		return
	}
	in := g.inbox.take()
	if len(in.messages) > 0 || len(in.fetched) > 0 {
		g.wake()
	}
	for _, e := range in.events {
		g.event(e)
	}
	for i := range in.beats {
		g.beat(&in.beats[i])
	}
	for _, f := range in.fed {
		g.fed(f)
	}
	for _, f := range in.fetched {
		g.fetched(f)
	}
	g.queue = append(g.queue, in.messages...)
}

// receive steps messages of other replicas, up to the first that brings entries:
// raft has to hand those over before more of them can be compared with the log. It
// reports whether there was anything.
func (g *Group) receive() (any bool) {
	for len(g.queue) > 0 && g.fenced == nil {
		m := &g.queue[0]
		if len(g.held) >= maxHeld && !errors.Is(g.noRoom, log.ErrNotReady) {
			g.drop(m, DropRoom) // the answer would wait with the rest
		} else if len(m.Entries) > 0 && len(g.held) > 0 {
			if errors.Is(g.noRoom, log.ErrNotReady) {
				return any // what is written next comes first
			}
			g.drop(m, DropRoom)
		} else if g.sound(m) {
			g.linger.allow(m)
			g.input(m.Message)
		}
		brought := len(m.Entries) > 0
		any = true
		g.queue[0] = Message{}
		g.queue = g.queue[1:]
		if brought {
			break
		}
	}
	if len(g.queue) == 0 {
		g.queue = nil
	}
	return any
}

// input steps a message of another replica. Raft refuses what it has no use for.
func (g *Group) input(m raftpb.Message) {
	_ = g.node.Step(m)
	switch m.Type {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap: // who asks to be elected leads no longer
		if m.From == g.node.BasicStatus().Lead { // that it was forgotten is over with this
			g.unheard = 0
		}
	}
	g.look()
}

// sound checks a message before raft sees it: raft trusts what it is told and
// panics if that contradicts what it knows (RULES L1, L5). A message that is not
// sound is dropped, or dealt with here.
func (g *Group) sound(m *Message) bool {
	status := g.node.BasicStatus()
	ok, reason := g.admissible(m, &status)
	if !ok {
		g.drop(m, reason)
		return false
	}
	switch m.Type {
	case raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
		return m.Reject || g.poll(m, &status)
	case raftpb.MsgTimeoutNow:
		if (g.uncertain || !g.Ready()) && g.lapses&obedient == 0 {
			g.drop(m, DropUncertain)
			return false
		}
	case raftpb.MsgAppResp:
		g.doubt(m, status.Term)
		if m.Uncertain && m.Reject {
			g.distrust(m)
		}
		if !m.Reject && wire.Index(m.Index) > g.lastIndex() && m.Term == status.Term {
			g.drop(m, DropProgress)
			return false
		}
	case raftpb.MsgApp:
		return g.soundEntries(m, &status)
	case raftpb.MsgSnap:
		return g.offered(m, &status)
	case raftpb.MsgSnapStatus:
		g.snapshotStatus(m, &status)
		return false
	}
	return true
}

func (g *Group) admissible(m *Message, status *raft.BasicStatus) (bool, DropReason) {
	if g.outcast != nil && g.outcast(m.From) {
		return false, DropAddress
	}
	switch m.Type {
	case raftpb.MsgApp, raftpb.MsgSnap, raftpb.MsgVote, raftpb.MsgPreVote, raftpb.MsgHeartbeat:
		// A replica that was added while this one was away is not known here yet.
	case raftpb.MsgAppResp, raftpb.MsgVoteResp, raftpb.MsgPreVoteResp, raftpb.MsgHeartbeatResp, raftpb.MsgTimeoutNow, raftpb.MsgSnapStatus:
		if _, known := g.peers[m.From]; !known {
			return false, DropAddress
		}
	default:
		return false, DropAddress // nothing else comes from another replica
	}
	switch {
	case g.waiting && g.lapses&early == 0:
		return false, DropWaiting
	case m.To != g.id || m.From == g.id || m.From == raft.None || raft.IsLocalMsgTarget(m.From):
		return false, DropAddress
	case m.Term == 0 || m.Term > uint64(MaxTerm) || m.Term > status.Term+maxTermAhead:
		return false, DropTerm
	case status.RaftState == raft.StateLeader && m.Term == status.Term && g.lapses&yielding == 0 &&
		(m.Type == raftpb.MsgApp || m.Type == raftpb.MsgSnap || m.Type == raftpb.MsgHeartbeat):
		return false, DropAddress // two leaders in one term: this is not from one
	}
	return true, 0
}

// doubt notes whether a follower says that it may have lost what it acknowledged.
func (g *Group) doubt(m *Message, term uint64) {
	switch {
	case m.Term != term:
	case !m.Uncertain:
		delete(g.doubtful, m.From)
	case g.doubtful == nil:
		g.doubtful = map[uint64]uint64{m.From: m.Term}
	default:
		g.doubtful[m.From] = m.Term
	}
}

// lastIndex is the last entry that raft knows of, written or not.
func (g *Group) lastIndex() wire.Index {
	last := g.log.LastIndex()
	for i := range g.held {
		if e := g.held[i].Entries; g.held[i].Type == raftpb.MsgStorageAppend && len(e) > 0 {
			last = wire.Index(e[len(e)-1].Index)
		}
	}
	return last
}

// term is that of an entry that raft knows of, written or not.
func (g *Group) term(i wire.Index) (wire.Term, bool) {
	for k := len(g.held) - 1; k >= 0; k-- {
		e := g.held[k].Entries
		if g.held[k].Type != raftpb.MsgStorageAppend || len(e) == 0 || i < wire.Index(e[0].Index) {
			continue
		}
		if n := int(i - wire.Index(e[0].Index)); n < len(e) {
			return wire.Term(e[n].Term), true
		}
		return 0, false // what the log has there is taken back
	}
	return g.log.Term(i)
}

// soundEntries checks a MsgApp and takes those entries off its front that are here
// already: what is left is exactly what raft will take, so that the data of the
// rest can be given back.
func (g *Group) soundEntries(m *Message, status *raft.BasicStatus) bool {
	here, known := g.log.Term(wire.Index(m.Index))
	follows := known && uint64(here) == m.LogTerm
	_, hungry := g.hungry()
	if m.Term < status.Term || g.installing() || len(g.held) > 0 || hungry {
		// An old leader, which raft answers; or nothing can be compared now, or it would
		// have to stay in memory until what is read is applied.
		if m.Term >= status.Term && (g.installing() || len(m.Entries) > 0) {
			g.drop(m, DropRoom)
			return false
		}
		g.giveBack(m.Entries)
		m.Entries = nil
		return true
	}
	if follows && m.ChainKnown {
		if chain, ok := g.log.Chain(wire.Index(m.Index)); ok && chain != m.Chain {
			g.Fence(fmt.Errorf("%w: entry %d of term %d has the chain value %08x here and %08x on replica %d", ErrDiverged, m.Index, m.LogTerm, chain, m.Chain, m.From))
			return false
		}
	}
	if len(m.Entries) == 0 {
		return true
	}
	if len(m.Checks) != len(m.Entries) {
		g.drop(m, DropEntry)
		return false
	}
	if !follows {
		g.giveBack(m.Entries)
		m.Entries = nil // raft answers where to go on
		return true
	}
	g.skipPresent(m)
	if len(m.Entries) == 0 {
		return true
	}
	if first := wire.Index(m.Entries[0].Index); first <= wire.Index(status.Commit) && g.lapses&unheeding == 0 {
		g.Fence(fmt.Errorf("%w: entry %d is committed here, replica %d has another of term %d", ErrDiverged, first, m.From, m.Entries[0].Term))
		return false
	}
	size, err := g.checkEntries(m)
	if err != nil {
		g.logger.Warn("message with malformed entries", "replica", g.id, "from", m.From, "err", err)
		g.sums = g.sums[:0]
		g.drop(m, DropEntry)
		return false
	}
	if size > 0 {
		if err := g.log.Reserve(size, true); errors.Is(err, log.ErrDiskFull) || errors.Is(err, log.ErrResources) {
			g.drop(m, DropRoom)
			return false
		}
	}
	return true
}

// skipPresent moves the start of a MsgApp behind the entries that are here.
func (g *Group) skipPresent(m *Message) {
	n := 0
	for n < len(m.Entries) {
		term, ok := g.log.Term(wire.Index(m.Entries[n].Index))
		if !ok || uint64(term) != m.Entries[n].Term {
			break
		}
		n++
	}
	if n == 0 {
		return
	}
	m.Index, m.LogTerm = m.Entries[n-1].Index, m.Entries[n-1].Term
	m.ChainKnown = false
	g.giveBack(m.Entries[:n])
	m.Entries, m.Checks = m.Entries[n:], m.Checks[n:]
	if len(m.Entries) == 0 {
		m.Entries = nil
	}
}

// checkEntries verifies the entries of a MsgApp. It returns the frame bytes of
// those that hold records.
func (g *Group) checkEntries(m *Message) (records int64, err error) {
	term := m.LogTerm
	g.sums = g.sums[:0]
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Index != m.Index+1+uint64(i) || e.Term < term || e.Term > m.Term {
			return 0, fmt.Errorf("entry %d of term %d where %d is expected, after term %d", e.Index, e.Term, m.Index+1+uint64(i), term)
		}
		term = e.Term
		le, err := logEntry(e)
		if err != nil {
			return 0, err
		}
		body := e.Data
		switch le.Kind {
		case wire.KindRecords, wire.KindControl:
			var count uint32
			if _, count, _, body, err = wire.ParseEntryPrefix(e.Data); err != nil {
				return 0, fmt.Errorf("entry %d: %w", e.Index, err)
			}
			if count != 0 && le.Kind != wire.KindRecords {
				return 0, fmt.Errorf("entry %d: %w: a control entry with %d records", e.Index, wire.ErrEntry, count)
			}
		case wire.KindConfiguration:
			var change raftpb.ConfChangeV2
			if err := change.Unmarshal(e.Data); err != nil {
				return 0, fmt.Errorf("entry %d: %w: %w", e.Index, wire.ErrEntry, err)
			}
		case wire.KindNoOp:
		default:
			return 0, fmt.Errorf("entry %d: %w: kind %d", e.Index, wire.ErrEntry, le.Kind)
		}
		if len(body) > wire.MaxBodyBytes {
			return 0, fmt.Errorf("entry %d: %w: body of %d bytes", e.Index, wire.ErrEntry, len(body))
		}
		sum := wire.Checksum(body)
		if check := EntryCheck(le.Kind, sum, e.Data); check != m.Checks[i] {
			return 0, fmt.Errorf("entry %d: CRC %08x, sent with %08x", e.Index, check, m.Checks[i])
		}
		g.sums = append(g.sums, bodySum{index: le.Index, term: le.Term, crc: sum})
		if le.Kind == wire.KindRecords {
			records += wire.FrameSize(len(body))
		}
	}
	return records, nil
}

// bodySum is the CRC of an entry's body, computed when the entry was received.
type bodySum struct {
	index wire.Index
	term  wire.Term
	crc   uint32
}

// summed gives an entry that was just received the CRC of its body.
func (g *Group) summed(e *log.Entry) {
	if n := len(g.sums); n > 0 && e.Index >= g.sums[0].index && e.Index <= g.sums[n-1].index {
		if s := &g.sums[e.Index-g.sums[0].index]; s.term == e.Term {
			e.BodyCRC, e.Summed = s.crc, true
		}
	}
}

// beat steps a heartbeat, or the answer to one.
func (g *Group) beat(h *Heartbeat) {
	m := Message{Meta: h.Meta, Message: raftpb.Message{
		Type: raftpb.MsgHeartbeat, To: h.To, From: h.From, Term: uint64(h.Term), Commit: uint64(h.Commit), Context: h.Context,
	}}
	if h.Response {
		m.Type = raftpb.MsgHeartbeatResp
	}
	status := g.node.BasicStatus()
	if ok, reason := g.admissible(&m, &status); !ok {
		g.drop(&m, reason)
		return
	}
	switch {
	case h.Wake:
		g.wake()
		return
	case h.Quiet:
		if g.sleepWith(h) {
			return
		}
	case !h.Response || len(h.Context) > 0:
		g.wake()
	}
	if m.Type == raftpb.MsgHeartbeat && m.Term >= status.Term && h.Commit > g.lastIndex() {
		switch {
		case g.uncertain:
			m.Commit = uint64(g.lastIndex())
		case g.installing():
			m.Commit = 0
		default:
			g.Fence(fmt.Errorf("%w: replica %d counts on entries up to %d, the last one here is %d", ErrAcknowledgedGone, h.From, h.Commit, g.lastIndex()))
			return
		}
	}
	g.input(m.Message)
}

var (
	// ErrDiverged fences a replica whose log differs from that of another where both
	// should be the same (RULES L1).
	ErrDiverged = errors.New("the logs of two replicas differ")
	// ErrAcknowledgedGone fences a replica that has lost entries it has acknowledged.
	ErrAcknowledgedGone = errors.New("acknowledged entries are gone")
)

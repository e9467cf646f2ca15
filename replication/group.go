package replication

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime/debug"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of one group. Each is in bytes or counts of its raft.Config field.
const (
	// MaxInflightMessages bounds unacknowledged MsgApp to one follower.
	MaxInflightMessages = 128
	// MaxInflightBytes bounds the bytes of those messages.
	MaxInflightBytes = 8 << 20
	// MaxMessageBytes bounds the entries of one MsgApp.
	MaxMessageBytes = 1 << 20
	// MaxUncommittedBytes bounds what a leader has proposed and not applied.
	MaxUncommittedBytes = 32 << 20
	// MaxApplyBytes bounds the entries handed to one apply.
	MaxApplyBytes = 4 << 20
	// DefaultLoadBytes is Config.LoadBytes if that is 0.
	DefaultLoadBytes = 256 << 10

	// MaxTerm is the last term: clients see it as an int32.
	MaxTerm wire.Term = 1<<31 - 1

	electionTicks  = 10 // of 100 ms (RULES R9)
	heartbeatTicks = 2
)

var (
	// ErrNotLeading is returned by Propose when this replica may not propose:
	// it is no leader, or it has not applied the first entry of its term.
	ErrNotLeading = errors.New("replica is not leading")
	// ErrProposalDropped is returned by Propose when raft refuses the entry, for
	// example because too much is uncommitted. Offsets assigned to it are free again.
	ErrProposalDropped = errors.New("proposal dropped")
	// ErrTerm is why a replica is fenced, or does not open, that would go beyond MaxTerm.
	ErrTerm = fmt.Errorf("term is above %d, the last one", MaxTerm)
)

// Entry is one committed entry on its way to the state machine.
type Entry struct {
	Index        wire.Index
	Term         wire.Term
	Kind         wire.Kind // KindRecords, KindControl or KindNoOp
	RecordCount  uint32
	BaseOffset   wire.Offset // next offset before this entry
	AppendTimeMs int64
	Body         []byte // a view, valid during Apply only
	// Damaged says that the body of a records entry is damaged on the disk: Body is
	// empty, the rest of the entry is as it was.
	Damaged bool
}

// StateMachine is what a group applies committed entries to. Its methods are
// called by the owner, in index order, once per entry; they are deterministic:
// no clock, randomness, map order or I/O.
type StateMachine interface {
	// Apply applies one entry. It cannot refuse: what is committed has happened.
	Apply(e Entry)
	// Snapshot captures the state as of the last applied entry without encoding it.
	// save, which appends it to dst, is called on another goroutine while further
	// entries are applied.
	Snapshot() (save func(dst []byte) []byte)
	// Restore replaces the state with one that save wrote.
	Restore(state []byte) error
}

// Config says what a group consists of. Log and StateMachine belong to the
// group from here on.
type Config struct {
	// ReplicaID is this replica's ID: never 0, never reused (RULES R10).
	ReplicaID uint64
	// Voters is the configuration that the group was founded with, also for a replica
	// that was added later: the log says what changed since. Ignored once a checkpoint
	// holds a configuration.
	Voters []uint64
	Log    *log.Log
	State  StateMachine

	// What follows is for groups with several members; the zero values are right for
	// a group that is alone.

	// Meta says that this is the metadata group, whose replica IDs are its own.
	Meta bool
	// Peers are the nodes of the other replicas, see SetPeers.
	Peers map[uint64]uint32
	// Node is this node's ID.
	Node uint32
	// Transport is nil for a group that is alone, and so is Inbox.
	Transport Transport
	Inbox     *Inbox
	// Feed reads for followers that lag; without one they get what is in memory only,
	// and all that is not known to be committed is kept in memory at a start.
	Feed Feed
	// LoadBytes is how much of what is not known to be committed is taken into memory
	// at a start, in bytes of entry data; more is read in pieces, by the Feed, once it
	// has to be applied. 0 means DefaultLoadBytes.
	LoadBytes int64
	// Fetch begins to fetch an offered checkpoint from a node; Inbox.PutFetched ends
	// it. nil: offers are refused.
	Fetch func(node uint32, offer SnapshotOffer)
	// Uncertain says that the replica may have lost what it acknowledged: until it has
	// caught up with a later leader its votes count only if all voters agree (RULES L5).
	// What the only voter has is what there is.
	Uncertain bool
	// Reform is called in a turn when all voters would elect this replica, and its votes
	// or others are uncertain: records from next on may be lost, which has to be made
	// known before anything is served. false means not yet: it is asked again. nil
	// agrees.
	Reform func(next wire.Offset) bool
	// Waiting says that the replica drops every message until Admit: its node has not
	// made it known yet that the directory exists (RULES R10).
	Waiting bool
	// CheckpointBytes is how much log may grow before the next checkpoint. 0 means 64 MiB.
	CheckpointBytes int64
	Logger          *slog.Logger

	lapses lapse // of tests
}

// Group is one replica of one Raft group. All methods are owner only.
//
// Invariant: checkpoint.applied ≤ applied ≤ commit ≤ log.LastIndex, but after a
// snapshot applied is above the others until they have caught up (see Ready).
type Group struct {
	id              uint64
	node            *raft.RawNode
	log             *log.Log
	storage         *storage
	state           StateMachine
	confState       raftpb.ConfState
	checkpointBytes int64
	checkpointTried int64 // bytes since the last checkpoint when the next was asked for, 0 if it was not
	logger          *slog.Logger

	applied       wire.Index
	raftApplied   wire.Index // the last that raft's entries were applied up to: below applied after a snapshot
	handed        wire.Index // the last that raft has handed over
	reconfigured  bool       // a change of the members was applied since the last sync
	unloaded      wire.Index // entries up to it were found on the disk and are not in memory, 0: none
	appliedTerm   wire.Term
	appliedOffset wire.Offset // next offset after the last applied entry
	appliedTimeMs int64
	leading       bool // applied an entry of the own term as its leader
	leadTerm      wire.Term

	// appends waits for the log to become durable, oldest first: messages that
	// promise an append are stepped when the durable ticket reaches it.
	appends []pendingAppend
	// held are messages to storage that wait for room in the log: the first is an
	// append of wanted frame bytes, nothing may overtake it.
	held    []raftpb.Message
	wanted  int64
	noRoom  error // why held is not written; log.ErrNotReady passes by itself
	scratch []log.Entry
	recycle func(data []byte)
	fenced  error

	// What follows is of groups with several members, see Config.
	meta      bool
	peers     map[uint64]uint32
	nodeID    uint32
	transport Transport
	inbox     *Inbox
	fetch     func(node uint32, offer SnapshotOffer)
	waiting   bool // Config.Waiting
	uncertain bool // Config.Uncertain
	ballot    ballot
	reform    func(next wire.Offset) bool
	bootTerm  wire.Term
	queue     []Message // taken from the inbox and not stepped yet, oldest first
	sums      []bodySum // of the entries received last
	drops     [dropReasons]uint64
	// hurry counts the ticks to a campaign because the leader's node is dead, 0: none.
	hurry int
	// proposedConf is the last configuration entry that was proposed here.
	proposedConf wire.Index
	confIndex    wire.Index    // of the last one that was applied as an entry
	install      *installation // nil: none
	restored     func()
	offers       map[uint64]*offering // by follower
	// wantCheckpoint says that a snapshot could be offered if there were a newer one.
	wantCheckpoint bool
	quiet          bool            // see Quiet
	still          int             // ticks in which nothing happened
	unheard        int             // ticks without a word of the leader, of a follower that does not tick
	down           map[uint32]bool // nodes that are known to be down
	reads          []reading
	readNumber     uint64
	// doubtful are the followers that have said in which term of this leader that they may
	// have lost what they acknowledged, see reassure.
	doubtful       map[uint64]uint64
	sinceReassured int  // ticks, from when it began to lead on
	unconfirmed    bool // leadership is asked for after this process stood still
	unasked        bool // and has to be asked for again
	stalled        stall
	linger         linger
	outcast        func(replica uint64) bool // nil: nobody, see Disown
	taking         takeOver
	lapses         lapse
}

type pendingAppend struct {
	ticket    uint64
	responses []raftpb.Message
}

// Open starts a replica on its log: it restores the newest checkpoint, replays
// what is known to be committed and creates the consensus core. It reads the
// disk and may block; it does not campaign. What it cannot replay, for example
// entries of a newer version (log.ErrTooNew), is an error of this replica alone.
func Open(cfg Config) (_ *Group, err error) {
	if cfg.ReplicaID == raft.None {
		return nil, errors.New("replication: replica ID 0 is reserved")
	}
	if cfg.CheckpointBytes == 0 {
		cfg.CheckpointBytes = 64 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Group{
		id:              cfg.ReplicaID,
		log:             cfg.Log,
		state:           cfg.State,
		confState:       raftpb.ConfState{Voters: cfg.Voters},
		checkpointBytes: cfg.CheckpointBytes,
		logger:          cfg.Logger,
		meta:            cfg.Meta,
		peers:           cfg.Peers,
		nodeID:          cfg.Node,
		transport:       cfg.Transport,
		inbox:           cfg.Inbox,
		fetch:           cfg.Fetch,
		waiting:         cfg.Waiting,
		uncertain:       cfg.Uncertain,
		reform:          cfg.Reform,
		lapses:          cfg.lapses,
	}
	if len(cfg.Voters) == 0 && cfg.Log.Checkpoint() == nil {
		return nil, errors.New("replication: the founding configuration is missing")
	}
	g.storage = &storage{log: cfg.Log}
	if cfg.Transport != nil {
		g.storage.feed = newFeeding(cfg.Feed)
	}
	defer func() {
		if r := recover(); r != nil {
			err = panicError("replay", r)
			g.logger.Error("the replica cannot be started", "err", err, "stack", string(debug.Stack()))
		}
	}()
	hard := cfg.Log.HardState()
	if cp := cfg.Log.Checkpoint(); cp != nil {
		if err := g.restore(cp); err != nil {
			return nil, err
		}
	}
	if hard.Term > MaxTerm {
		return nil, fmt.Errorf("hard state: %d: %w", hard.Term, ErrTerm)
	}
	if hard.Commit, err = g.shown(hard.Commit); err != nil {
		return nil, err
	}
	if hard.Commit, err = g.replay(hard.Commit); err != nil {
		return nil, err
	}
	most := cmp.Or(cfg.LoadBytes, DefaultLoadBytes)
	if cfg.Feed == nil {
		most = math.MaxInt64
	}
	loaded, err := cfg.Log.LoadTail(hard.Commit+1, most)
	if err != nil {
		return nil, err
	}
	if !loaded {
		g.unloaded = cfg.Log.LastIndex()
	}
	g.bootTerm = hard.Term
	// A checkpoint that was fetched may be ahead of the log.
	g.raftApplied = min(g.applied, hard.Commit)
	g.storage.hard, g.storage.confState, g.storage.offer = hard, g.confState, g.offerSnapshot
	node, err := raft.NewRawNode(&raft.Config{
		ID:                        cfg.ReplicaID,
		ElectionTick:              electionTicks,
		HeartbeatTick:             heartbeatTicks,
		Storage:                   g.storage,
		Applied:                   uint64(g.raftApplied),
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             MaxMessageBytes,
		MaxCommittedSizePerReady:  MaxApplyBytes,
		MaxUncommittedEntriesSize: MaxUncommittedBytes,
		MaxInflightMsgs:           MaxInflightMessages,
		MaxInflightBytes:          MaxInflightBytes,
		CheckQuorum:               true,
		PreVote:                   cfg.lapses&brash == 0,
		ReadOnlyOption:            raft.ReadOnlySafe,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    raftLogger{cfg.Logger},
	})
	if err != nil {
		return nil, fmt.Errorf("replication: %w", err)
	}
	g.node = node
	if cfg.Transport != nil {
		g.storage.follower = g.followerAt
	}
	if g.raftApplied > 0 {
		g.log.Publish(g.raftApplied)
	}
	return g, nil
}

func (g *Group) soleVoter() bool {
	c := &g.confState
	return len(c.Voters) == 1 && c.Voters[0] == g.id && len(c.VotersOutgoing) == 0
}

// OnRelease names the function that gets each entry's data back once nothing
// refers to it any more. Without one the buffers are left to the collector.
func (g *Group) OnRelease(f func(data []byte)) { g.recycle = f }

// Campaign starts an election. The outcome shows in later turns.
func (g *Group) Campaign() {
	if g.fenced == nil {
		g.wake()
		g.guard(func() {
			if err := g.node.Campaign(); err != nil {
				g.logger.Warn("campaign refused", "err", err)
			}
			g.advance()
		})
	}
}

// Leading reports whether Propose takes entries, and the term to stamp into
// them. A leader leads only once it has applied an entry of its own term: then
// everything from earlier terms is applied too (RULES R3). Within one term it
// becomes true once and false once: what is proposed and not applied is safe to
// forget only with the term.
func (g *Group) Leading() (wire.Term, bool) { return g.leadTerm, g.leading && g.fenced == nil }

// NextOffset is the offset the next proposed record gets: one past the last
// entry of the Raft log, committed or not.
func (g *Group) NextOffset() wire.Offset { return g.log.NextOffset() }

// NextIndex is the index the next proposed entry gets.
func (g *Group) NextIndex() wire.Index { return g.log.LastIndex() + 1 }

// Applied is the index of the last entry the state machine has seen.
func (g *Group) Applied() wire.Index { return g.applied }

// Err is why this replica no longer takes part, or nil.
func (g *Group) Err() error {
	if g.fenced != nil {
		return g.fenced
	}
	return g.log.Err()
}

// Propose appends one entry, of kind records or control, to the Raft log. data
// (prefix and body) belongs to the group until OnRelease's function gets it
// back. When Propose returns nil the entry has an index and is written, not
// durable; whether it commits shows in StateMachine.Apply. Without room asked for
// by Reserve it may be written in a later turn only; until then Propose returns
// ErrProposalDropped with log.ErrNotReady.
func (g *Group) Propose(data []byte) (wire.Index, error) {
	if err := g.Err(); err != nil {
		return 0, err
	}
	if !g.leading {
		return 0, ErrNotLeading
	}
	if len(g.held) > 0 {
		return 0, fmt.Errorf("%w: %w", ErrProposalDropped, log.ErrNotReady)
	}
	g.wake()
	index := g.NextIndex()
	err := ErrProposalDropped
	g.guard(func() {
		if err = g.node.Propose(data); err == nil {
			g.advance()
		} else {
			err = fmt.Errorf("%w: %w", ErrProposalDropped, err)
		}
	})
	if g.fenced != nil {
		return 0, g.fenced
	}
	return index, err
}

// Reserve asks the log for room for n frame bytes of control entries, see
// log.Log.Reserve.
func (g *Group) Reserve(n int64) error { return g.log.Reserve(n, false) }

// Stalled is why entries that raft has accepted cannot be written yet, or nil.
// Unless it is log.ErrNotReady, a Turn after log.Store.RefreshSpace tries again.
func (g *Group) Stalled() error { return g.noRoom }

// Turn carries on with whatever inputs have arrived: finished syncs first, then
// what the inbox holds.
func (g *Group) Turn() {
	if g.fenced == nil {
		g.guard(func() {
			g.collect()
			g.advance()
		})
	}
}

// Checkpoint writes the state as of the last applied entry beside the log. The
// work that may block happens in a job of the log. While another replica's state is
// being put in the place of this one it does nothing: the log may hold that already.
func (g *Group) Checkpoint() {
	if g.applied == 0 || g.applied > g.raftApplied || g.installing() || g.log.CheckpointPending() || g.Err() != nil {
		return
	}
	conf, err := g.confState.Marshal()
	if err != nil {
		panic(fmt.Sprintf("replication: configuration does not marshal: %v", err))
	}
	g.log.WriteCheckpoint(log.Checkpoint{
		Applied: g.applied, Term: g.appliedTerm, NextOffset: g.appliedOffset,
		AppendTimeMs: g.appliedTimeMs, ConfState: conf, Save: g.state.Snapshot(),
	})
}

// guard runs one step of raft. A panic inside fences this replica only: the
// others of the process go on.
func (g *Group) guard(step func()) {
	defer func() {
		if r := recover(); r != nil {
			g.Fence(panicError("consensus stopped", r))
			g.logger.Error("raft panicked; the replica is fenced", "panic", r, "stack", string(debug.Stack()))
		}
	}()
	step()
}

// panicError makes an error of what recover returned. An error that was panicked
// with stays visible to errors.Is.
func panicError(what string, cause any) error {
	if err, ok := cause.(error); ok {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %v", what, cause)
}

// Fence ends this replica after a panic: neither the group nor its log can be
// trusted to be in order, so nothing more is appended or promised. A fenced group
// stays fenced; the log remembers over a restart, see log.Options.RecoverFence.
func (g *Group) Fence(cause error) {
	g.fence(cause)
	g.log.Fence(cause)
}

func (g *Group) fence(err error) {
	if g.fenced == nil {
		g.rouse()
		g.fenced = err
		g.leading = false
		g.answerReads()
	}
}

// advance steps what has become durable and what other members have sent, and
// handles every Ready until raft is quiet.
func (g *Group) advance() {
	for {
		if err := g.log.Err(); err != nil {
			g.fence(err)
			return
		}
		g.stepDurable()
		received := g.receive()
		if rd, asks := g.ready(); asks {
			g.accept(rd)
		} else if len(g.held) == 0 && !received {
			break
		}
		if g.fenced != nil || !g.handle() {
			break
		}
	}
	if g.transport != nil && g.fenced == nil {
		if g.offerRuns() {
			g.advance()
			return
		}
		g.feedFollowers()
		g.feedSelf()
		g.answerReads()
		if g.wantCheckpoint && !g.log.CheckpointPending() {
			g.wantCheckpoint = false
			g.Checkpoint()
		}
	}
	g.sync()
	g.checkpointIfDue()
}

// ready is what raft asks for, if it does. What raft would hand over to be applied may have to
// be read first: votes, answers and heartbeats do not wait for that.
func (g *Group) ready() (rd raft.Ready, asks bool) {
	if len(g.held) > 0 && g.transport == nil {
		return rd, false // one with other members goes on to talk to them while the log has no room
	}
	if _, hungry := g.hungry(); !hungry {
		if asks = g.node.HasReady(); asks {
			rd = g.node.Ready()
		}
		return rd, asks
	}
	g.storage.starved = true
	rd = g.node.Ready()
	g.storage.starved = false
	return rd, len(rd.Messages)+len(rd.ReadStates) > 0
}

// accept takes over what raft asks for. What is written here goes before what is
// sent about it: then the sender knows the checksums, and one without room for an
// entry does not spread it. Everything else goes out at once; raft wants order
// between the messages to storage only.
func (g *Group) accept(rd raft.Ready) {
	g.look()
	if len(rd.ReadStates) > 0 {
		g.confirmed(rd.ReadStates)
	}
	if g.transport == nil {
		g.held = rd.Messages
		return
	}
	for i := range rd.Messages {
		switch m := &rd.Messages[i]; m.Type {
		case raftpb.MsgStorageAppend:
			g.held = append(g.held, *m)
		case raftpb.MsgApp, raftpb.MsgSnap, raftpb.MsgStorageApply:
		default:
			g.send(m)
		}
	}
	for i := range rd.Messages {
		switch m := &rd.Messages[i]; m.Type {
		case raftpb.MsgStorageApply:
			g.handed = wire.Index(m.Entries[len(m.Entries)-1].Index)
			g.held = append(g.held, *m)
		case raftpb.MsgApp, raftpb.MsgSnap:
			g.held = append(g.held, *m)
		}
	}
}

// look notices that this replica leads no longer. Leadership may be lost and won
// again between two Readys, so the term counts.
func (g *Group) look() {
	if g.leading {
		status := g.node.BasicStatus()
		g.leading = status.RaftState == raft.StateLeader && wire.Term(status.Term) == g.leadTerm
	}
}

// checkpointIfDue asks for a checkpoint when enough was written since the last
// one. One that a full disk has prevented is tried again after a quarter more,
// not in every turn.
func (g *Group) checkpointIfDue() {
	n := g.log.BytesSinceCheckpoint()
	switch {
	case n < g.checkpointBytes:
		g.checkpointTried = 0
	case g.log.CheckpointPending():
	case g.checkpointTried == 0 || n-g.checkpointTried >= g.checkpointBytes/4:
		g.checkpointTried = n
		g.Checkpoint()
	}
}

// handle carries out what raft asks for, in order. It reports false if the log
// has no room for an entry, which a later turn will change, or after a fence.
func (g *Group) handle() bool {
	for len(g.held) > 0 {
		m := &g.held[0]
		switch m.Type {
		case raftpb.MsgStorageAppend:
			switch err := g.append(m); {
			case errors.Is(err, log.ErrNotReady), errors.Is(err, log.ErrDiskFull), errors.Is(err, log.ErrResources):
				g.noRoom = err
				return false
			case err != nil:
				g.fence(err)
				return false
			}
		case raftpb.MsgStorageApply:
			g.apply(m)
		default:
			g.send(m)
		}
		g.held = g.held[1:]
	}
	g.held, g.noRoom = nil, nil
	return true
}

// stepDurable hands raft the messages whose appends are durable by now.
func (g *Group) stepDurable() {
	durable := g.log.DurableTicket()
	n := 0
	for n < len(g.appends) && g.appends[n].ticket <= durable {
		g.step(g.appends[n].responses)
		g.appends[n].responses = nil
		n++
	}
	if n > 0 {
		g.appends = append(g.appends[:0], g.appends[n:]...)
	}
}

func (g *Group) step(messages []raftpb.Message) {
	for i := range messages {
		m := messages[i]
		if m.To != g.id {
			g.send(&m)
			continue
		}
		// A replica that was removed may still hear of its own promises.
		if err := g.node.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			panic(fmt.Sprintf("replication: raft refused its own %s: %v", m.Type, err))
		}
	}
}

// append writes the hard state and entries of a MsgStorageAppend and remembers
// its responses until they are durable. When the log has no room it is called
// again with the same message.
func (g *Group) append(m *raftpb.Message) error {
	if wire.Term(m.Term) > MaxTerm {
		return fmt.Errorf("%d: %w", m.Term, ErrTerm)
	}
	if len(m.Entries) > 0 {
		g.scratch = g.scratch[:0]
		for i := range m.Entries {
			e, err := logEntry(&m.Entries[i])
			if err != nil {
				return err
			}
			g.summed(&e)
			g.scratch = append(g.scratch, e)
		}
		g.pin()
	}
	if m.Term != 0 || m.Vote != 0 || m.Commit != 0 {
		old := g.log.HardState()
		hard := log.HardState{Term: wire.Term(m.Term), Vote: m.Vote, Commit: wire.Index(m.Commit)}
		if m.Snapshot != nil {
			hard.Commit = old.Commit // the log that it is about comes with the snapshot
		}
		if len(m.Entries) > 0 {
			// The term comes before the entries, a commit that covers them after.
			hard.Commit = min(hard.Commit, wire.Index(m.Entries[0].Index-1))
		}
		if hard != old {
			g.log.SetHardState(hard, hard.Term != old.Term || hard.Vote != old.Vote)
		}
	}
	if m.Snapshot != nil {
		if err := g.replace(m); err != nil {
			return err
		}
	}
	if len(m.Entries) > 0 {
		if err := g.write(); err != nil {
			return err
		}
		if hard := g.log.HardState(); wire.Index(m.Commit) > hard.Commit {
			hard.Commit = wire.Index(m.Commit)
			g.log.SetHardState(hard, false)
		}
	}
	if g.lapses&hasty != 0 {
		g.step(m.Responses)
		return nil
	}
	if len(m.Responses) > 0 {
		g.linger.wrote(m)
		g.appends = append(g.appends, pendingAppend{ticket: g.log.Ticket(), responses: m.Responses})
	}
	return nil
}

// pin prepares the entries in scratch for being read by messages.
func (g *Group) pin() {
	if g.transport == nil || g.lapses&unpinned != 0 {
		return
	}
	pins := make([]log.Pin, len(g.scratch))
	for i := range g.scratch {
		g.scratch[i].Pin = &pins[i]
	}
}

// write appends the entries in scratch. Usually whoever proposed them has asked
// for room; the first entry of a term, for example, may find that the log has
// closed its file meanwhile.
func (g *Group) write() error {
	defer clear(g.scratch)
	if g.wanted > 0 {
		if err := g.log.Reserve(g.wanted, false); err != nil {
			return err
		}
		g.wanted = 0
	}
	first := g.scratch[0].Index
	cuts := first <= g.log.LastIndex()
	err := g.log.Append(g.scratch)
	if cuts && err == nil && g.storage.feed != nil {
		g.storage.feed.ranges = nil // some of it may be what was taken back
		g.unloaded = min(g.unloaded, first-1)
	}
	if errors.Is(err, log.ErrNotReady) {
		for i := range g.scratch {
			g.wanted += wire.FrameSize(len(g.scratch[i].Data))
		}
	}
	return err
}

func logEntry(e *raftpb.Entry) (log.Entry, error) {
	out := log.Entry{Index: wire.Index(e.Index), Term: wire.Term(e.Term), Data: e.Data}
	switch {
	case e.Type == raftpb.EntryConfChangeV2:
		out.Kind = wire.KindConfiguration
	case e.Type != raftpb.EntryNormal:
		return out, fmt.Errorf("entry %d: type %s is not written", e.Index, e.Type)
	case len(e.Data) == 0:
		out.Kind = wire.KindNoOp
	default:
		out.Kind = wire.Kind(e.Data[0])
	}
	return out, nil
}

func raftEntry(e *log.Entry) raftpb.Entry {
	out := raftpb.Entry{Index: uint64(e.Index), Term: uint64(e.Term), Data: e.Data}
	if e.Kind == wire.KindConfiguration {
		out.Type = raftpb.EntryConfChangeV2
	}
	return out
}

// apply moves the high watermark over committed entries, hands them to the state
// machine and gives their memory back. The watermark goes first: the state
// machine answers producers, and who has a receipt must be able to read.
func (g *Group) apply(m *raftpb.Message) {
	g.log.Publish(wire.Index(m.Entries[len(m.Entries)-1].Index))
	before := g.confIndex
	for i := range m.Entries {
		e := &m.Entries[i]
		g.raftApplied = wire.Index(e.Index)
		if g.raftApplied <= g.applied {
			continue // the state of a fetched checkpoint has it
		}
		entry := Entry{
			Index: wire.Index(e.Index), Term: wire.Term(e.Term), Kind: wire.KindNoOp,
			BaseOffset: g.appliedOffset, AppendTimeMs: g.appliedTimeMs,
		}
		switch {
		case e.Type == raftpb.EntryConfChangeV2:
			var change raftpb.ConfChangeV2
			if err := change.Unmarshal(e.Data); err != nil {
				panic(fmt.Sprintf("replication: committed membership change %d does not decode: %v", e.Index, err))
			}
			if !leftAlready(g.confState, change) {
				g.confState = g.applyChange(change)
			}
			g.confIndex = entry.Index
		case len(e.Data) > 0:
			var err error
			entry.Kind, entry.RecordCount, entry.AppendTimeMs, entry.Body, err = wire.ParseEntryPrefix(e.Data)
			if err != nil {
				panic(fmt.Sprintf("replication: committed entry %d: %v", e.Index, err))
			}
		}
		g.applyEntry(entry)
	}
	if g.confIndex > before {
		// After a power cut it needs no majority of the voters before, whose disks may be gone.
		g.log.SetHardState(g.log.HardState(), true)
		g.reconfigured = true
	}
	g.step(m.Responses)
	if !g.leading {
		status := g.node.BasicStatus()
		g.leading = status.RaftState == raft.StateLeader && uint64(g.appliedTerm) == status.Term
		g.leadTerm = g.appliedTerm
		g.sinceReassured = 0
	}
	if g.uncertain && g.appliedTerm > g.bootTerm {
		// Whoever leads a later term than the one in which something may have been lost
		// counts on nothing that was acknowledged before: what it has committed is here.
		g.uncertain = false
		g.log.SetCertain()
	}
	g.release()
}

// release gives up the memory of entries that nobody here needs any more.
func (g *Group) release() { g.log.Release(min(g.raftApplied, g.kept()), g.recycle) }

func (g *Group) applyEntry(e Entry) {
	if e.Index != g.applied+1 {
		panic(fmt.Sprintf("replication: entry %d applied after %d", e.Index, g.applied))
	}
	g.state.Apply(e)
	g.applied, g.appliedTerm = e.Index, e.Term
	g.appliedOffset = e.BaseOffset + wire.Offset(e.RecordCount)
	g.appliedTimeMs = e.AppendTimeMs
}

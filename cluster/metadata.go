package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// MaxWaitingCommands bounds the commands that wait for the owner of group 0.
const MaxWaitingCommands = 10_000

// Room that commands leave behind them in what is allocated, in bytes. On a full
// disk it must be possible to start, which takes an election and two commands, and
// to delete what fills it.
const (
	// GrowthRoom is left by commands that make the metadata grow.
	GrowthRoom = 64 << 10
	// StartRoom is left by the others, except those of a start.
	StartRoom = 16 << 10
)

// room is what a command must leave.
func (c *Command) room() int64 {
	switch {
	case c.Register != nil, c.ResetMemory != nil:
		return 0
	case c.Join != nil, c.Move != nil && len(c.Move.Add) > 0, c.Create != nil, c.Alter != nil, c.AllocateIDs != nil, c.OpenProducer != nil, c.SetAlias != nil:
		return GrowthRoom
	}
	return StartRoom
}

// ErrBusy is given to a command that finds MaxWaitingCommands before it.
var ErrBusy = &wire.Error{Code: wire.CodeBusy, Detail: "too many metadata changes are waiting"}

// NotController is the error of a command on a node that does not lead the metadata:
// it is for the leader. The command has had no effect.
type NotController struct {
	Replica uint64 // of group 0, that leads
}

func (e *NotController) Error() string {
	return fmt.Sprintf("replica %d leads the metadata", e.Replica)
}

// Metadata is the owner's shell around State: commands come in through Submit on
// any goroutine, the owner proposes them in Turn, and their results come back
// when the entry is applied. It implements replication.StateMachine.
type Metadata struct {
	state *State
	group *replication.Group
	self  uint64 // replica of the group
	view  atomic.Pointer[View]
	// nextProducer is State.NextProducerID for other goroutines.
	nextProducer atomic.Int64
	// epochs are those of named producers above 0 for other goroutines: int16 by ID.
	epochs sync.Map
	// changed is called in the owner's turn with every new view.
	changed func(*View)

	mu      sync.Mutex
	waiting []submitted
	closed  error
	applied wire.Index // as far as other goroutines know
	readers []reader   // that wait for applied

	pending []proposed // in the order of their index
}

// reader waits until the metadata is as new as somebody else's.
type reader struct {
	index wire.Index
	then  func()
}

type submitted struct {
	command Command
	reply   func(Result)
}

type proposed struct {
	term  wire.Term
	index wire.Index
	reply func(Result)
}

// NewMetadata is empty metadata. changed may be nil.
func NewMetadata(changed func(*View)) *Metadata {
	m := &Metadata{state: NewState(), changed: changed}
	m.view.Store(newView(m.state))
	return m
}

// Bind names the group that replicates the metadata, and which of its replicas this
// one is.
func (m *Metadata) Bind(g *replication.Group, self uint64) { m.group, m.self = g, self }

// View is the latest picture. Any goroutine.
func (m *Metadata) View() *View { return m.view.Load() }

// HandedOut reports whether a producer ID can have been handed out: one of a block
// that some node has taken, or of a named producer. Any goroutine.
func (m *Metadata) HandedOut(id int64) bool { return id < m.nextProducer.Load() }

// Fenced reports whether a named producer has been opened again since it got an epoch:
// then nothing is written under that any more (RULES R5). Any goroutine.
func (m *Metadata) Fenced(id int64, epoch int16) bool {
	newest, named := m.epochs.Load(id)
	return named && epoch < newest.(int16)
}

func (m *Metadata) noteProducer(p ProducerSession) {
	if p.Epoch > 0 {
		m.epochs.Store(p.ID, p.Epoch)
	}
	if p.Wrapped {
		m.epochs.Store(p.Before, int16(EndedEpoch))
	}
}

// Submit queues a command. reply is called once, in a turn of the owner or, if
// the command is refused at once, here; it must not block. The caller then sees
// to it that the owner takes a turn. Any goroutine.
func (m *Metadata) Submit(c Command, reply func(Result)) {
	m.mu.Lock()
	err := m.closed
	if err == nil && len(m.waiting) >= MaxWaitingCommands {
		err = ErrBusy
	}
	if err == nil {
		m.waiting = append(m.waiting, submitted{c, reply})
	}
	m.mu.Unlock()
	if err != nil {
		reply(Result{Err: err})
	}
}

// WhenApplied calls then once the entry at index is applied here: at once, or in a
// turn of the owner. It must not block. Any goroutine.
func (m *Metadata) WhenApplied(index wire.Index, then func()) {
	m.mu.Lock()
	if m.applied < index && m.closed == nil {
		m.readers = append(m.readers, reader{index, then})
		m.mu.Unlock()
		return
	}
	m.mu.Unlock()
	then()
}

// caughtUp tells readers how far the metadata is.
func (m *Metadata) caughtUp(index wire.Index) {
	m.mu.Lock()
	m.applied = max(m.applied, index)
	var now []reader
	m.readers = slices.DeleteFunc(m.readers, func(r reader) bool {
		if r.index > m.applied && m.closed == nil {
			return false
		}
		now = append(now, r)
		return true
	})
	m.mu.Unlock()
	for _, r := range now {
		r.then()
	}
}

// Turn proposes what waits. On a node that does not lead, commands fail with a
// *NotController as soon as it is known who does. Owner only.
func (m *Metadata) Turn() {
	if applied := m.group.Applied(); applied != m.applied {
		m.caughtUp(applied)
	}
	term, leading := m.group.Leading()
	if len(m.pending) > 0 && (!leading || m.pending[0].term != term) {
		m.fail(&wire.Error{Code: wire.CodeUnavailable, Detail: "metadata leadership was lost; the outcome is unknown"})
	}
	if !leading {
		if leader, _ := m.group.Lead(); leader != 0 && leader != m.self {
			m.Reject(&NotController{leader})
		}
		return
	}
	if m.group.Paused() {
		return
	}
	m.mu.Lock()
	commands := m.waiting
	m.waiting = nil
	m.mu.Unlock()
	for i, c := range commands {
		if m.propose(term, c) {
			continue
		}
		m.mu.Lock()
		m.waiting = append(commands[i:], m.waiting...)
		m.mu.Unlock()
		return
	}
}

// propose answers the command or puts it into the log. It reports false if it
// must be tried again in a later turn: a job is taking space for it.
func (m *Metadata) propose(term wire.Term, c submitted) bool {
	if c.command.Late != nil && c.command.Late() {
		c.reply(Result{Err: &wire.Error{Code: wire.CodeTimeout, Detail: "nobody waits for the change of the metadata any more; it was not made"}})
		return true
	}
	c.command.stamp()
	body, err := json.Marshal(&c.command)
	if err != nil {
		panic(fmt.Sprintf("cluster: command does not marshal: %v", err))
	}
	data := make([]byte, wire.EntryPrefixSize, wire.EntryPrefixSize+len(body))
	wire.PutEntryPrefix(data, wire.KindControl, 0, 0)
	data = append(data, body...)
	err = m.group.Reserve(wire.FrameSize(len(body)) + c.command.room())
	switch {
	case errors.Is(err, log.ErrNotReady):
		return false
	case errors.Is(err, log.ErrDiskFull):
		c.reply(Result{Err: &wire.Error{Code: wire.CodeDiskFull, Detail: fmt.Sprintf("metadata: %v", err)}})
		return true
	case err != nil:
		c.reply(Result{Err: &wire.Error{Code: wire.CodeUnavailable, Detail: fmt.Sprintf("metadata: %v", err)}})
		return true
	}
	// Applying may happen inside Propose, so the command is pending before it.
	index := m.group.NextIndex()
	m.pending = append(m.pending, proposed{term: term, index: index, reply: c.reply})
	if _, err := m.group.Propose(data); err != nil {
		n := len(m.pending)
		if n == 0 || m.pending[n-1].index != index {
			return true // it was applied, and answered, before the error came
		}
		m.pending = m.pending[:n-1]
		var code wire.ErrorCode
		if !errors.As(err, &code) {
			code = wire.CodeUnavailable
		}
		c.reply(Result{Err: &wire.Error{Code: code, Detail: fmt.Sprintf("metadata: %v", err)}})
	}
	return true
}

// knowsLevel refuses a state at a feature level that this build does not know: what newer
// builds write at that level would be missing in what this one saves.
func (m *Metadata) knowsLevel() error {
	if level := m.state.level(); level > MaxLevel {
		return fmt.Errorf("the cluster works at feature level %d, this build knows up to %d: %w; upgrade this broker", level, MaxLevel, log.ErrTooNew)
	}
	return nil
}

// Apply implements replication.StateMachine. It panics with log.ErrTooNew for what only a
// newer build can apply.
func (m *Metadata) Apply(e replication.Entry) {
	if e.Kind != wire.KindControl {
		return
	}
	var c Command
	if err := json.Unmarshal(e.Body, &c); err != nil {
		panic(fmt.Sprintf("cluster: committed metadata entry %d does not decode: %v", e.Index, err))
	}
	result := m.state.Apply(e.Index, &c)
	if err := m.knowsLevel(); err != nil {
		panic(err)
	}
	result.Index = e.Index
	m.nextProducer.Store(m.state.NextProducerID)
	m.noteProducer(result.Producer)
	if result.Changed {
		m.state.Epoch = e.Index
		m.publish()
	}
	if len(m.pending) > 0 && m.pending[0].index == e.Index && m.pending[0].term == e.Term {
		reply := m.pending[0].reply
		m.pending = m.pending[1:]
		reply(result)
	}
}

func (m *Metadata) publish() {
	v := m.view.Load().next(m.state)
	m.view.Store(v)
	if m.changed != nil {
		m.changed(v)
	}
}

// Save appends the state as of the last applied entry to dst. Owner only.
func (m *Metadata) Save(dst []byte) []byte { return m.state.Save(dst) }

// Snapshot implements replication.StateMachine.
func (m *Metadata) Snapshot() func(dst []byte) []byte { return m.state.snapshot().Save }

// Restore implements replication.StateMachine.
func (m *Metadata) Restore(state []byte) error {
	if err := m.state.Restore(state); err != nil {
		return err
	}
	if err := m.knowsLevel(); err != nil {
		return err
	}
	m.nextProducer.Store(m.state.NextProducerID)
	for _, p := range m.state.Producers {
		m.noteProducer(p)
	}
	m.publish()
	return nil
}

// Reject answers everything that waits with err. Owner only.
func (m *Metadata) Reject(err error) {
	m.mu.Lock()
	waiting := m.waiting
	m.waiting = nil
	m.mu.Unlock()
	for _, c := range waiting {
		c.reply(Result{Err: err})
	}
}

// Close answers everything that waits or is on its way with err and refuses
// further commands. Owner only.
func (m *Metadata) Close(err error) {
	m.mu.Lock()
	if m.closed == nil {
		m.closed = err
	}
	m.mu.Unlock()
	m.fail(err)
	m.Reject(err)
	m.caughtUp(0)
}

func (m *Metadata) fail(err error) {
	pending := m.pending
	m.pending = nil
	for _, p := range pending {
		p.reply(Result{Err: err})
	}
}

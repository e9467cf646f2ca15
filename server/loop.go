package server

import (
	"context"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/wire"
)

// loop is one event loop of gnet with what we keep for it. Everything that
// belongs to its sessions happens in callbacks of that loop, one at a time.
//
// Other goroutines hand it connections that have something to do (push) and
// functions to run (post). While the loop is in a callback that costs it nothing:
// it looks at both lists before it returns to gnet. While it sleeps, the first
// one wakes it, once. So the answers of a turn that the loop runs inline are
// written at the end of the same callback without any wake-up, and a worker that
// answers a thousand clients wakes their loop once.
type loop struct {
	engine *engine
	gnet   gnet.EventLoop
	epoll  int // descriptor of its epoll, -1 if unknown

	mu        sync.Mutex // guards the following, held for moments
	running   bool       // in a callback, will look at the lists
	triggered bool       // a wake-up is under way, will look at the lists
	ready     []loopConn
	tasks     []func()

	// Loop only.
	depth     int           // of nested callbacks: closing a connection is one
	woken     bool          // the callback is the loop's own wake-up
	now       time.Duration // at the start of the callback
	lastTick  time.Duration
	sessions  map[*session]struct{}
	wheel     wheel
	due       bool               // timers may be due
	waiting   []loopConn         // were ready, and have not had their turn
	streams   []*session         // sessions with links that could send, in turn
	gather    gather             // scratch of a stream's write
	outcomes  wire.GroupOutcomes // scratch of a frame
	kicks     []kicker           // partitions whose owners need a turn
	kicked    map[kicker]struct{}
	kickBytes int                    // of the batches that wait for these turns
	gathering bool                   // a wake-up is under way that gives the turns
	telling   [newsKinds]atomic.Bool // sessions are about to hear of it
}

func newLoop(e *engine, c gnet.Conn) *loop {
	l := &loop{engine: e, gnet: c.EventLoop(), epoll: -1, now: e.now(), sessions: make(map[*session]struct{})}
	if e.layoutErr == nil {
		l.epoll = e.layout.epollOf(c)
	}
	l.lastTick = l.now
	l.wheel.init(l.now)
	// We run on the loop's goroutine. Nothing here loads from mapped files; should
	// it ever, a fault becomes a panic that ends one session.
	debug.SetPanicOnFault(true)
	return l
}

// enter begins a callback.
func (l *loop) enter() {
	if l.depth++; l.depth > 1 {
		return
	}
	l.mu.Lock()
	l.running = true
	l.mu.Unlock()
	l.now = l.engine.now()
}

// drainRounds is how often one callback looks at the lists before it does its
// background work. What comes later waits until the loop has looked at its sockets.
const drainRounds = 3

// soloTurns is how many turns of background work a loop does in a row while nobody
// else wants it.
const soloTurns = 64

// leave ends a callback: it does what other goroutines, or the callback itself,
// have left to do, and then the background work: deadlines that are due, and
// streams. That comes in bounded turns, one for each time that gnet has gone through
// its sockets, which the loop's own wake-up tells, and more only while no socket is
// ready. If each callback took a turn, a client would wait for as many as there are
// sockets ready before its own.
func (l *loop) leave() {
	if l.depth > 1 {
		l.depth--
		return
	}
	defer func() { l.depth-- }()
	l.settleKicks()
	l.drain()
	for turns := 0; l.background(); turns++ {
		if (turns > 0 || !l.woken) && (turns == soloTurns || l.wanted()) {
			break
		}
		l.fire()
		l.stream()
		l.drain()
		l.now = l.engine.now()
	}
	l.woken = false
	l.mu.Lock()
	l.running = false
	again := len(l.ready) > 0 || len(l.tasks) > 0 || len(l.waiting) > 0 || len(l.streams) > 0 || l.due
	if again = again && !l.triggered; again {
		l.triggered = true
	}
	l.mu.Unlock()
	if again {
		l.engine.yield <- l // room for every loop, see engine.yield
	}
}

// background reports whether there is background work.
func (l *loop) background() bool {
	if l.now-l.lastTick >= slowTick {
		l.lastTick = l.now
		l.due = true
	}
	return l.due || len(l.streams) > 0
}

// kicker is whose owner may need a turn: see replica.Kick.
type kicker interface{ Kick(inline bool) }

// kick notes that a partition has got a batch of n bytes and needs a turn.
func (l *loop) kick(r kicker, n int) {
	l.kickBytes += n
	if _, ok := l.kicked[r]; !ok {
		if l.kicked == nil {
			l.kicked = make(map[kicker]struct{})
		}
		l.kicked[r] = struct{}{}
		l.kicks = append(l.kicks, r)
	}
}

// settleKicks gives the owners of the partitions that got batches their turn. A
// turn costs as much for one record as for a hundred: while more sockets are
// ready, turns wait until gnet has gone through them, which a wake-up of the loop
// by itself tells. If none is, the turn is taken here and now, and a worker takes
// it where there is much to do.
func (l *loop) settleKicks() {
	switch {
	case len(l.kicks) == 0:
	case l.kickBytes > inlineTurnBytes:
		l.giveTurns(false)
	case l.gathering:
	case l.wanted():
		l.gatherTurns()
	default:
		l.giveTurns(true)
	}
}

// gatherTurns makes the loop's next wake-up give the turns. It must not be called
// by a task, see engine.yield.
func (l *loop) gatherTurns() {
	l.mu.Lock()
	wake := !l.triggered
	l.triggered = true
	l.mu.Unlock()
	if wake {
		l.execute()
	}
	l.gathering = true
	l.engine.counters.gatheredKicks.Add(1)
}

func (l *loop) giveTurns(inline bool) {
	if inline {
		l.engine.counters.inlineKicks.Add(uint64(len(l.kicks)))
	} else {
		l.engine.counters.handedKicks.Add(uint64(len(l.kicks)))
	}
	for _, r := range l.kicks {
		r.Kick(inline)
	}
	clear(l.kicks)
	clear(l.kicked)
	l.kicks, l.kickBytes = l.kicks[:0], 0
}

// drain serves both lists, and turnSessions of the sessions at most.
func (l *loop) drain() {
	left := turnSessions
	for range drainRounds {
		l.mu.Lock()
		tasks := l.tasks
		l.tasks = nil
		l.waiting = append(l.waiting, l.ready...)
		clear(l.ready)
		l.ready = l.ready[:0]
		l.mu.Unlock()
		for _, task := range tasks {
			l.run(task)
		}
		turns := min(left, len(l.waiting))
		left -= turns
		for _, s := range l.waiting[:turns] {
			s.turn()
		}
		l.waiting = slices.Delete(l.waiting, 0, turns)
		if len(l.kicks) > 0 && !l.gathering { // of sessions that read on
			l.giveTurns(l.kickBytes <= inlineTurnBytes)
		}
		if turns == 0 && len(tasks) == 0 {
			return
		}
	}
}

// wanted reports whether a socket of this loop is ready. If it cannot tell, one is.
func (l *loop) wanted() bool {
	if l.epoll < 0 {
		return true
	}
	fds := [1]unix.PollFd{{Fd: int32(l.epoll), Events: unix.POLLIN}}
	n, err := unix.Poll(fds[:], 0)
	return n != 0 || err != nil
}

// stream lets sessions with links write in turn, up to the loop's budget.
func (l *loop) stream() {
	for budget := loopTurnBytes; budget > 0 && len(l.streams) > 0; {
		s := l.streams[0]
		l.streams = append(l.streams[:0], l.streams[1:]...)
		s.streaming = false
		budget -= max(s.pump(), 1)
	}
}

// push tells the loop that a connection has something to do. Any goroutine.
func (l *loop) push(c loopConn) {
	l.mu.Lock()
	l.ready = append(l.ready, c)
	l.triggerLocked()
}

// post runs f on the loop. Any goroutine.
func (l *loop) post(f func()) {
	l.mu.Lock()
	l.tasks = append(l.tasks, f)
	l.triggerLocked()
}

// trigger makes the loop tick. Any goroutine.
func (l *loop) trigger() {
	l.mu.Lock()
	l.triggerLocked()
}

// triggerLocked wakes the loop if nothing else will make it look at its lists,
// and unlocks.
func (l *loop) triggerLocked() {
	wake := !l.running && !l.triggered
	l.triggered = l.triggered || wake
	l.mu.Unlock()
	if wake {
		l.execute()
	}
}

// execute wakes the loop. It must be announced by triggered.
func (l *loop) execute() {
	e := l.engine
	e.wakeMu.RLock()
	defer e.wakeMu.RUnlock()
	if e.asleep {
		return
	}
	e.counters.triggers.Add(1)
	_ = l.gnet.Execute(context.Background(), l) // fails only when gnet has shut down
}

// Run implements gnet.Runnable: the wake-up has arrived.
func (l *loop) Run(context.Context) error {
	l.mu.Lock()
	l.triggered = false
	l.mu.Unlock()
	l.gathering = false
	l.enter()
	l.woken = true
	if len(l.kicks) > 0 {
		l.giveTurns(l.kickBytes <= inlineTurnBytes)
	}
	l.leave()
	return nil
}

// run carries out one posted function.
func (l *loop) run(task func()) {
	defer func() {
		if r := recover(); r != nil {
			l.engine.panicked("event loop task", r)
		}
	}()
	task()
}

// fire looks at deadlines that are due.
func (l *loop) fire() {
	if l.due {
		l.due = l.wheel.advance(l.now, turnTimers, func(t *timer) { t.conn.checkDeadlines() })
	}
}

// addStream gives a session its turn at writing streams.
func (l *loop) addStream(s *session) {
	if !s.streaming {
		s.streaming = true
		l.streams = append(l.streams, s)
	}
}

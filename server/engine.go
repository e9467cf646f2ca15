package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"github.com/lockstepmq/lockstep/wire"
)

// engineOptions configure the session layer.
type engineOptions struct {
	Backend backend
	// Dir is where gnet's own listener gets its socket. Nobody connects to it.
	Dir string
	// Loops is the number of event loops. Default half the processors, at least 1:
	// on two cores a second loop costs six times the latency at the 99.9th percentile.
	Loops  int
	Limits Limits
	// PeerPort says that there is a port for other nodes, whose connections are taken
	// out of Limits.
	PeerPort bool
	// ReadWorkers is how many blocking reads may run at once; a session gets its
	// share of them. Default 16.
	ReadWorkers int
	Logger      *slog.Logger
	// descriptors overrides the process's descriptor limit in tests.
	descriptors uint64
	// hoard is a mutant: streams go on although the socket takes nothing.
	hoard bool
	// temporary is what temporary queues do without, in tests.
	temporary temporaryMutant
}

// engine runs the event loops and the sessions on them.
//
// gnet accepts connections for itself and shuts down when it runs out of
// descriptors. So it gets a unix socket that nobody connects to, and our acceptor
// registers what it has admitted.
type engine struct {
	backend backend
	limits  Limits
	// peerLimits are those of the port for other nodes.
	peerLimits Limits
	logger     *slog.Logger
	counters   counters
	bad        complaints
	start      time.Time
	options    []gnet.Option

	temporaries temporaries

	topology     atomic.Uint64 // version of the metadata that was announced last
	routes       atomic.Uint64 // rises with all that may send requests elsewhere
	leadersMoved atomic.Bool   // the sessions have not heard of new leaders yet
	orphans      atomic.Bool   // partitions may be without a leader
	hoard        bool          // see engineOptions
	endless      atomic.Bool   // mutant: nobody counts how often a request was forwarded
	sessionReads int           // blocking reads that one session may have at work
	// partitionReads is how many of these may be of one partition.
	partitionReads int

	address string
	tempDir string // removed at the end; empty unless Dir is too long for a socket

	writables *writables // since run

	gnet    gnet.Engine
	dialing context.Context // of connections to other nodes, until stop
	hangUp  context.CancelFunc
	dials   sync.WaitGroup

	started chan struct{} // closed once all loops run
	stopped chan struct{} // closed once gnet.Run has returned
	err     error         // of gnet.Run, valid after stopped

	// yield carries loops that want another turn after they have looked at their
	// sockets. gnet runs everything that a task posts before it polls again, so a
	// loop cannot post to itself without starving its connections: another
	// goroutine posts for it. Each loop is in the channel at most once.
	yield chan *loop
	quit  chan struct{}
	clock sync.WaitGroup

	// After asleep is set no loop is woken any more. gnet closes its wake-up
	// descriptors before it refuses to use them: a late one would be written to
	// whatever file has got the number since.
	wakeMu sync.RWMutex
	asleep bool

	mu        sync.Mutex // guards the following
	loops     map[gnet.EventLoop]*loop
	layoutOK  sync.Once
	layout    gnetLayout
	layoutErr error
}

// maxLoops bounds the event loops.
const maxLoops = 256

// unixPathBytes is the longest path of a unix socket on Linux.
const unixPathBytes = 107

func newEngine(o engineOptions) (*engine, error) {
	if o.descriptors == 0 {
		limit, err := descriptorLimit()
		if err != nil {
			return nil, err
		}
		o.descriptors = limit
	}
	limits, err := o.Limits.withDefaults(o.descriptors)
	if err != nil {
		return nil, err
	}
	if o.Loops == 0 {
		o.Loops = max(1, runtime.GOMAXPROCS(0)/2)
	}
	if o.Loops < 0 || o.Loops > maxLoops {
		return nil, fmt.Errorf("event loops: %d is not between 1 and %d", o.Loops, maxLoops)
	}
	rest := limits
	peerLimits := rest.setAside(peerConnections)
	if o.PeerPort {
		limits = rest
	}
	e := &engine{
		backend: o.Backend, limits: limits, peerLimits: peerLimits, logger: o.Logger, start: time.Now(),
		hoard:        o.hoard,
		sessionReads: max(1, cmp.Or(o.ReadWorkers, defaultReadWorkers)/sessionReadShare),
		started:      make(chan struct{}), stopped: make(chan struct{}),
		yield: make(chan *loop, maxLoops), quit: make(chan struct{}),
		loops: make(map[gnet.EventLoop]*loop),
	}
	e.temporaries.limits, e.temporaries.mutant = &e.limits, o.temporary
	e.partitionReads = max(1, e.sessionReads/lineShare)
	e.dialing, e.hangUp = context.WithCancel(context.Background())
	e.bad = complaints{logger: o.Logger, counters: &e.counters, perSec: limits.LogLines, kinds: make(map[string]*complaintWindow)}
	path, err := filepath.Abs(filepath.Join(o.Dir, "loops.sock"))
	if err != nil {
		return nil, fmt.Errorf("event loop socket: %w", err)
	}
	if len(path) > unixPathBytes {
		if e.tempDir, err = os.MkdirTemp("", "lockstep-"); err != nil {
			return nil, fmt.Errorf("event loop socket: %w", err)
		}
		path = filepath.Join(e.tempDir, "loops.sock")
	}
	e.address = "unix://" + path
	e.options = []gnet.Option{
		gnet.WithNumEventLoop(o.Loops),
		gnet.WithLoadBalancing(gnet.LeastConnections),
		gnet.WithReadBufferCap(readBufferBytes),
		gnet.WithTicker(true),
		gnet.WithLogger(gnetLogger{o.Logger}),
	}
	return e, nil
}

// run starts the loops and returns when they run.
func (e *engine) run() (err error) {
	if e.writables, err = newWritables(); err != nil {
		e.removeTempDir()
		return fmt.Errorf("event loops: %w", err)
	}
	go func() {
		defer close(e.stopped)
		e.err = gnet.Run(e, e.address, e.options...)
	}()
	select {
	case <-e.started:
	case <-e.stopped:
		e.writables.stop()
		e.removeTempDir()
		if e.err == nil {
			e.err = errors.New("stopped before they ran")
		}
		return fmt.Errorf("event loops: %w", e.err)
	}
	e.clock.Go(e.tick)
	return nil
}

// tick drives deadlines and gives loops the turns they yielded. It is the only
// goroutine of the session layer besides the loops, the acceptor and writables.
func (e *engine) tick() {
	ticker := time.NewTicker(slowTick)
	defer ticker.Stop()
	for ticks := 0; ; {
		select {
		case <-e.quit:
			return
		case l := <-e.yield:
			l.execute()
			continue
		case <-ticker.C:
		}
		if e.leadersMoved.Swap(false) {
			e.tell(newsOfLeaders)
			e.orphans.Store(true)
		}
		if ticks++; ticks%orphanTicks == 0 {
			e.temporaries.expire(e.now())
			if e.orphans.Swap(false) {
				e.tell(newsOfOrphans)
			}
		}
		if e.counters.sessions.Load() == 0 && e.counters.peers.Load() == 0 {
			continue
		}
		e.mu.Lock()
		for _, l := range e.loops {
			l.trigger()
		}
		e.mu.Unlock()
	}
}

// now is the time since the engine was made: a monotone clock, read once for
// each callback.
func (e *engine) now() time.Duration { return time.Since(e.start) }

// stop ends all sessions and loops. The acceptor must have stopped. It first
// tells the clients and answers what is in flight, until ctx is done.
func (e *engine) stop(ctx context.Context) error {
	e.drain(ctx)
	e.hangUp()
	e.sleep()
	ended, cancel := context.WithCancel(context.Background())
	go func() {
		<-e.stopped
		cancel()
	}()
	_ = e.gnet.Stop(ended) // polls every 500 ms; ended tells it sooner
	<-e.stopped
	e.dials.Wait()
	close(e.quit)
	e.clock.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.loops {
		for s := range l.sessions { // half-closed ones that gnet does not know
			s.reason = closedShutdown
			s.release()
		}
	}
	e.writables.stop()
	e.removeTempDir()
	if e.err != nil {
		return fmt.Errorf("event loops: %w", e.err)
	}
	return nil
}

// sleep makes sure that no loop is woken any more.
func (e *engine) sleep() {
	e.wakeMu.Lock()
	e.asleep = true
	e.wakeMu.Unlock()
}

func (e *engine) removeTempDir() {
	if e.tempDir != "" {
		_ = os.RemoveAll(e.tempDir)
	}
}

// drainPoll is how often drain looks whether the sessions are gone.
const drainPoll = 5 * time.Millisecond

// drain says goodbye: an event at once, an error frame to each session when its
// requests are answered or ctx is done. When the loops are gone nobody hears it. A
// second time there is nobody left.
func (e *engine) drain(ctx context.Context) {
	goAway := wire.Event{Kind: wire.EventGoAway, Detail: "the broker is stopping"}
	e.eachSession(func(s *session) { s.tell(&goAway) })
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for e.counters.inFlight.Load() > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-e.stopped:
			return
		case <-poll.C:
		}
	}
	e.eachSession(func(s *session) {
		s.reason = closedShutdown
		s.fail(0, 0, wire.Errorf(wire.CodeShuttingDown, "the broker is stopping"))
	})
	for deadline := time.Now().Add(goodbyeTimeout); e.counters.sessions.Load() > 0 && time.Now().Before(deadline); {
		<-poll.C
	}
}

// announceTopology tells every session that the metadata has moved to a version. A
// loop that has not come to tell of one version tells of the latest only: what many
// changes in a row cost does not multiply with the number of sessions. Any goroutine.
func (e *engine) announceTopology(version uint64) {
	e.topology.Store(version)
	e.routes.Add(1)
	e.tell(newsOfMetadata)
}

// announceLeaders says that partitions have other leaders. Requests follow them at
// once, links as soon as they have something to do; the sessions that want to know are
// told with the next slow tick: a node that fails may lead thousands. Any goroutine.
func (e *engine) announceLeaders() {
	e.routes.Add(1)
	e.leadersMoved.Store(true)
}

// news is what sessions are told.
type news uint8

const (
	newsOfMetadata news = iota
	newsOfLeaders       // for sessions with FeatureTopologyEvents
	newsOfOrphans       // for those too, of partitions they have open
	newsKinds
)

func (e *engine) tell(n news) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.loops {
		if l.telling[n].Swap(true) {
			continue
		}
		l.post(func() {
			l.telling[n].Store(false)
			event := wire.Event{Kind: wire.EventTopologyChanged, Version: e.topology.Load()}
			for s := range l.sessions {
				if n == newsOfOrphans {
					s.tellOrphans()
					continue
				}
				s.topologyChanged()
				if n == newsOfMetadata || s.features&wire.FeatureTopologyEvents != 0 {
					s.tell(&event)
				}
			}
		})
	}
}

// eachSession runs f for every session, on its loop.
func (e *engine) eachSession(f func(*session)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.loops {
		l.post(func() {
			for s := range l.sessions {
				f(s)
			}
		})
	}
}

// loopOf finds what we keep for the loop that serves c. Loop only.
func (e *engine) loopOf(c gnet.Conn) *loop {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.layoutOK.Do(func() {
		if e.layout, e.layoutErr = findLayout(reflect.TypeOf(c)); e.layoutErr != nil {
			e.logger.Warn("clients cannot be slowed down, only closed: gnet is not the version this was built for", "err", e.layoutErr)
		}
	})
	l := e.loops[c.EventLoop()]
	if l == nil {
		l = newLoop(e, c)
		e.loops[c.EventLoop()] = l
	}
	return l
}

// panicked counts and logs a recovered panic.
func (e *engine) panicked(where string, r any) {
	e.counters.panics.Add(1)
	e.logger.Error("panic", "in", where, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
}

// OnBoot implements gnet.EventHandler.
func (e *engine) OnBoot(g gnet.Engine) gnet.Action {
	e.gnet = g
	return gnet.None
}

// OnTick implements gnet.EventHandler. gnet calls it on a goroutine of its own
// once all loops are registered, which is the only sign of that: before, Register
// would race with their start. We keep time ourselves.
func (e *engine) OnTick() (time.Duration, gnet.Action) {
	close(e.started)
	return 1<<63 - 1, gnet.None
}

// OnShutdown implements gnet.EventHandler. gnet calls it before it tells the loops
// to end, whether we asked for that or gnet gave up by itself.
func (e *engine) OnShutdown(gnet.Engine) { e.sleep() }

// OnOpen implements gnet.EventHandler: what was registered begins its life.
func (e *engine) OnOpen(c gnet.Conn) ([]byte, gnet.Action) {
	served, ok := c.Context().(loopConn)
	if !ok {
		return nil, gnet.Close // somebody found gnet's own socket
	}
	l := e.loopOf(c)
	l.enter()
	served.open(l, c)
	l.leave()
	return nil, gnet.None
}

// OnTraffic implements gnet.EventHandler.
func (e *engine) OnTraffic(c gnet.Conn) gnet.Action {
	served, ok := c.Context().(loopConn)
	if !ok {
		return gnet.Close
	}
	// Taking everything keeps gnet's inbound buffer empty: then Next is a view of
	// the loop's read buffer. With a buffer that is not empty, Next copies into
	// pool memory that it never returns.
	in, err := c.Next(-1)
	if err != nil {
		return gnet.Close
	}
	l := served.base().loop
	l.enter()
	served.traffic(in)
	l.leave()
	return gnet.None
}

// OnClose implements gnet.EventHandler.
func (e *engine) OnClose(c gnet.Conn, err error) gnet.Action {
	if served, ok := c.Context().(loopConn); ok && served.base().loop != nil {
		l := served.base().loop
		l.enter()
		served.disconnected(errors.Is(err, io.EOF), err)
		l.leave()
	}
	return gnet.None
}

// gnetLogger passes gnet's warnings and errors on. Its chatter is dropped.
type gnetLogger struct{ logger *slog.Logger }

func (gnetLogger) Debugf(string, ...any) {}
func (gnetLogger) Infof(string, ...any)  {}
func (g gnetLogger) Warnf(format string, args ...any) {
	g.logger.Warn("gnet", "message", fmt.Sprintf(format, args...))
}
func (g gnetLogger) Errorf(format string, args ...any) {
	g.logger.Error("gnet", "message", fmt.Sprintf(format, args...))
}
func (g gnetLogger) Fatalf(format string, args ...any) { g.Errorf(format, args...) }

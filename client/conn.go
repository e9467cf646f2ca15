package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Conn is a client's connection to a cluster. It holds one session with one of
// the brokers, the home, and replaces it when it breaks; every broker accepts every
// request. What is for the leader of a partition goes straight there, over sessions
// that come and go with the leaders (nodes.go). All methods may be called
// concurrently.
type Conn struct {
	options   connOptions
	addresses []string
	clusterID string // of the first handshake, which is that of Connect
	events    *dispatcher
	requests  requester
	topology  topology
	ctx       context.Context // done when Close is called
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu          sync.Mutex
	current     *session // the home, dead or alive; nil never
	nodes       map[uint32]*node
	version     uint64                               // of the metadata that nodes are from
	told        map[DestinationUnavailable]time.Time // when; at most maxUnavailable
	toldVersion uint64                               // of the newest TOPOLOGY_CHANGED
	fled        time.Time                            // when a home was left for another that lives
	changed     chan struct{}                        // closed and replaced when a session begins or ends, or err changes
	err         error                                // why there will be no other session
	retries     int                                  // attempts to connect that failed since the home was lost
	lastErr     error                                // of the newest attempt to connect
	closing     bool
	producers   map[*Producer]struct{}
	readers     map[*Reader]struct{}
	consumers   map[*Consumer]struct{}
}

// Connect opens a connection to a cluster. servers is a list of brokers,
// "lockstep://host:port,host:port", the scheme being optional. They are tried
// once each, in any order (see InOrder); the first that answers is used. If none
// does, the errors of all of them are returned, joined. One that answers is enough
// to find all the others.
//
// ctx bounds connecting only. Errors: ErrAddress, ErrVersion, ErrProtocol, ErrTarget, the
// dialer's errors, or what the broker answered.
func Connect(ctx context.Context, servers string, opts ...Option) (*Conn, error) {
	addresses, err := parseAddresses(servers)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	o, err := newConnOptions(opts)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c := &Conn{
		options:   o,
		addresses: addresses,
		changed:   make(chan struct{}),
		nodes:     make(map[uint32]*node),
		told:      make(map[DestinationUnavailable]time.Time),
		producers: make(map[*Producer]struct{}),
		readers:   make(map[*Reader]struct{}),
		consumers: make(map[*Consumer]struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	s, err := c.openHome(ctx, c.servers(false))
	if err != nil {
		c.cancel()
		return nil, fmt.Errorf("connect: %w", err)
	}
	c.events = newDispatcher(o.events)
	c.clusterID = s.hello.ClusterID
	c.install(s)
	c.wg.Add(1)
	go c.keepHome(s)
	return c, nil
}

// install makes a new session the home.
func (c *Conn) install(s *session) {
	c.mu.Lock()
	c.current = s
	c.lastErr, c.retries = nil, 0
	c.tellChanged()
	c.mu.Unlock()
	c.events.send(Connected{Address: s.address, Node: s.hello.NodeID})
	c.run(s)
	c.askMembers(s)
}

// keepHome replaces the home when it has died: by the session with another node, if
// there is one, because that is done at once, else by a new one.
func (c *Conn) keepHome(s *session) {
	defer c.wg.Done()
	var pause time.Duration
	for {
		opened := time.Now()
		s = c.ended(s)
		if c.ctx.Err() != nil {
			c.end(ErrClosed)
			return
		}
		if !c.options.reconnect {
			s.mu.Lock()
			err := s.err
			s.mu.Unlock()
			c.end(&lostError{err})
			return
		}
		if time.Since(opened) > c.options.backoffMax {
			pause = 0
		}
		if s = c.reconnect(&pause); s == nil {
			c.end(ErrClosed)
			return
		}
	}
}

// returnPause is how often a Conn looks whether the broker that it prefers is back.
const returnPause = 2 * time.Second

// ended returns when the home has died: the one that is given, or whatever was made the
// home meanwhile. As long as that is not the broker that is preferred, it looks for it.
func (c *Conn) ended(s *session) *session {
	var back <-chan time.Time
	if t := &c.options.target; !t.any() && t.mode == Prefer {
		tick := time.NewTicker(c.options.returnPause)
		defer tick.Stop()
		back = tick.C
	}
	for {
		c.mu.Lock()
		current, changed := c.current, c.changed
		c.mu.Unlock()
		if current != s {
			s = current
			continue
		}
		select {
		case <-s.ended:
			if c.isHome(s) {
				return s
			}
		case <-changed:
		case <-back:
			c.goBack(s)
		}
	}
}

// goBack makes the broker that is preferred the home, if from is another one and it can
// be reached. What goes on over from goes on there, until nobody uses it any more.
func (c *Conn) goBack(from *session) {
	var addresses []string
	c.mu.Lock()
	for id, n := range c.nodes {
		if c.options.target.wants(&n.Node) && n.Address != "" {
			if id == from.hello.NodeID {
				c.mu.Unlock()
				return
			}
			if n.Alive && (c.options.redirect || slices.Contains(c.addresses, n.Address)) {
				addresses = append(addresses, n.Address)
			}
		}
	}
	c.mu.Unlock()
	if len(addresses) == 0 {
		c.askMembers(from)
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	c.wg.Go(func() {
		select {
		case <-from.ended: // another home is needed at once
			cancel()
		case <-ctx.Done():
		}
	})
	s, err := open(ctx, &c.options, addresses[rand.IntN(len(addresses))], c.clusterID, c.brokerEvent)
	if err != nil {
		c.options.logger.Debug("the broker that is preferred cannot be reached", "error", err)
		c.askMembers(from) // perhaps it lives elsewhere
		return
	}
	c.mu.Lock()
	if n := c.nodes[from.hello.NodeID]; n != nil && alive(n.session) == nil {
		n.session = from
	}
	c.mu.Unlock()
	c.options.logger.Info("the broker that is preferred is back, and the home", "server", s.address, "node", s.hello.NodeID)
	c.install(s)
}

func (c *Conn) isHome(s *session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current == s
}

func levelOf(err error) slog.Level {
	if errors.Is(err, ErrClosed) {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// keepAlive returns when the session has died. It pings a broker that is silent for a third
// of the session's patience, and ends the session when nothing came for all of it, or if
// the Conn is closed. Silence is counted in ticks: a client that was stopped itself still
// gives the broker the time to answer.
func (c *Conn) keepAlive(s *session) {
	patience := s.patience()
	ticker := time.NewTicker(patience / silentTicks)
	defer ticker.Stop()
	var received, sent uint64
	silent, idle := 0, 0 // ticks in which nothing came, or was sent
	used := time.Now()   // last, by a producer or reader
	looked := time.Now() // for that
	for {
		select {
		case <-s.done:
			return
		case <-c.ctx.Done():
			s.sendControl()
			s.fail(ErrClosed)
			<-s.done
			return
		case <-s.hurried:
			patience, silent = s.patience(), 0
			ticker.Reset(patience / silentTicks)
			continue
		case <-ticker.C:
		}
		s.tellTaken()
		if now := time.Now(); now.Sub(looked) > c.options.unused/4 {
			if looked = now; !c.unused(s) {
				used = now
			} else if now.Sub(used) > c.options.unused {
				s.fail(errUnused)
				return
			}
		}
		r, w := s.received.Load(), s.sent.Load()
		silent, idle = silent+1, idle+1
		if r != received {
			silent = 0
		}
		if w != sent {
			idle = 0
		}
		received, sent = r, w
		switch {
		case silent == silentTicks:
			s.fail(fmt.Errorf("%w for %v", ErrKeepalive, patience))
		case silent == pingTicks || idle == pingTicks:
			s.request(wire.OpPing, &wire.PingRequest{}, ignored{})
		}
	}
}

// ignored waits for an answer that only has to come.
type ignored struct{}

func (ignored) answered(*session, []byte, error) {}
func (ignored) lost(*session, error)             {}

// reconnect tries all servers, round after round, until one answers, and makes it
// the home. It returns nil when the Conn is closed. pause is the one before the next
// round: none at first, so that a short break stays short, and none again after a
// session that lasted. A broker that ends every session at once is not asked without
// pause.
func (c *Conn) reconnect(pause *time.Duration) *session {
	for {
		if s := c.adopt(); s != nil {
			c.options.logger.Info("the home is another node now", "server", s.address, "node", s.hello.NodeID)
			c.events.send(Connected{Address: s.address, Node: s.hello.NodeID})
			return s
		}
		if *pause > 0 {
			p := jittered(*pause)
			c.options.logger.Info("reconnecting after a pause", "pause", p)
			if c.pause(c.ctx, p) != nil {
				return nil
			}
		}
		*pause = c.options.longer(*pause)
		s, err := c.openHome(c.ctx, c.servers(true))
		if err == nil {
			c.install(s)
			return s
		}
		c.options.logger.Warn("reconnect failed", "error", err)
		c.mu.Lock()
		c.lastErr = err
		c.retries++
		c.mu.Unlock()
	}
}

// end says that there will be no other session.
func (c *Conn) end(err error) {
	c.mu.Lock()
	c.err = err
	c.tellChanged()
	c.mu.Unlock()
}

// session returns a live session, and waits for one as long as ctx allows.
func (c *Conn) session(ctx context.Context) (*session, error) {
	for {
		c.mu.Lock()
		s, err, lastErr, changed := c.current, c.err, c.lastErr, c.changed
		c.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if alive(s) != nil {
			return s, nil
		}
		if lastErr != nil && !c.options.redirect {
			return nil, &lostError{lastErr}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if lastErr != nil {
				return nil, fmt.Errorf("%w: not connected: %w", ctx.Err(), lastErr)
			}
			return nil, fmt.Errorf("%w: not connected", ctx.Err())
		}
	}
}

// sessionWith returns a live session with a node, or with the home, and waits for it
// as long as ctx allows, but not for a node that cannot be reached: that is
// wire.CodeUnavailable.
func (c *Conn) sessionWith(ctx context.Context, node uint32) (*session, error) {
	late := time.NewTimer(c.options.dialTimeout)
	defer late.Stop()
	for {
		home, changed, err := c.peek()
		if err != nil {
			return nil, err
		}
		if home == nil {
			if _, err := c.session(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if s := c.sessionTo(node); s != nil {
			return s, nil
		}
		c.mu.Lock()
		n := c.nodes[node]
		dialing := n != nil && n.dialing
		c.mu.Unlock()
		if !dialing {
			return nil, wire.Errorf(wire.CodeUnavailable, "node %d, which leads the partition, cannot be reached", node)
		}
		select {
		case <-changed:
		case <-late.C:
			return nil, wire.Errorf(wire.CodeUnavailable, "node %d, which leads the partition, does not answer", node)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// peek is session without waiting: s is nil while there is none, changed is
// closed when that, or what sessionTo returns, may be different.
func (c *Conn) peek() (s *session, changed <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return alive(c.current), c.changed, c.err
}

// connectError is why the newest attempt to connect failed, nil while connected.
func (c *Conn) connectError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastErr
}

// brokerEvent is called by a session's reader.
func (c *Conn) brokerEvent(s *session, e wire.Event) {
	switch e.Kind {
	case wire.EventTopologyChanged:
		// Every broker tells of every change; of other leaders, which have no version, the
		// home does.
		c.mu.Lock()
		if s != c.current && e.Version <= c.toldVersion {
			c.mu.Unlock()
			return
		}
		c.toldVersion = max(c.toldVersion, e.Version)
		c.mu.Unlock()
		c.topology.forget()
		c.mu.Lock()
		for p := range c.producers {
			poke(p.wake)
		}
		for r := range c.readers {
			poke(r.wake)
		}
		for x := range c.consumers {
			poke(x.wake)
		}
		home := c.current
		c.mu.Unlock()
		c.askMembers(home)
		c.events.send(TopologyChanged{Epoch: e.Version})
	case wire.EventDestinationUnavailable:
		c.unavailable(DestinationUnavailable{Destination: e.Destination, Detail: e.Detail})
	default:
		c.options.logger.Info("event from the broker", "kind", e.Kind.String(), "destination", e.Destination, "detail", e.Detail)
	}
}

// unavailableAgain is how long the listener does not hear again of a partition that
// cannot be served, from another broker, producer or reader.
const unavailableAgain = 5 * time.Second

// maxUnavailable bounds the partitions that are remembered for that.
const maxUnavailable = 1024

// unavailable tells the listener of a partition that cannot be served.
func (c *Conn) unavailable(e DestinationUnavailable) {
	now := time.Now()
	c.mu.Lock()
	before, told := c.told[e]
	if told = told && now.Sub(before) < unavailableAgain; !told {
		if len(c.told) >= maxUnavailable {
			clear(c.told)
		}
		c.told[e] = now
	}
	c.mu.Unlock()
	if !told {
		c.events.send(e)
	}
}

// Close ends the Conn with its Producers and Readers. Records that were handed
// to Send are waited for, for at most 5 s; then they fail. When Close returns
// no goroutine of the Conn is left. A second Close does nothing.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		<-c.ctx.Done()
		c.wg.Wait()
		return nil
	}
	c.closing = true
	var producers []*Producer
	for p := range c.producers {
		producers = append(producers, p)
	}
	var readers []*Reader
	for r := range c.readers {
		readers = append(readers, r)
	}
	consumers := slices.Collect(maps.Keys(c.consumers))
	c.mu.Unlock()

	for _, r := range readers {
		r.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	var errs []error
	for _, x := range consumers {
		errs = append(errs, x.Close(ctx))
	}
	for _, p := range producers {
		errs = append(errs, p.Close(ctx))
	}
	c.mu.Lock()
	c.cancel() // sessionTo starts no goroutine from here on
	c.mu.Unlock()
	c.wg.Wait()
	c.events.close()
	return errors.Join(errs...)
}

// Info describes the session in use.
type Info struct {
	ClusterID      string
	Node           uint32 // the broker's node ID
	Address        string // the broker's address, as given to Connect or learned
	ServerVersion  string
	Connected      bool  // false: this is the session that was lost last
	Retries        int   // attempts to connect that have failed since then; more will follow, for as long as it takes
	Err            error // why the newest of them has
	MaxRecordBytes int   // largest encoded record the broker takes
}

// Info describes the session in use, or the last one while there is none.
func (c *Conn) Info() Info {
	c.mu.Lock()
	s, retries, err := c.current, c.retries, c.lastErr
	c.mu.Unlock()
	connected := true
	select {
	case <-s.done:
		connected = false
	default:
	}
	return Info{
		ClusterID:      s.hello.ClusterID,
		Node:           s.hello.NodeID,
		Address:        s.address,
		ServerVersion:  s.hello.ServerVersion,
		Connected:      connected,
		Retries:        retries,
		Err:            err,
		MaxRecordBytes: int(s.hello.MaxRecordBytes),
	}
}

// Ping asks the broker for a sign of life.
func (c *Conn) Ping(ctx context.Context) error {
	if err := c.do(ctx, wire.OpPing, &wire.PingRequest{}, &wire.PingResponse{}, true); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return nil
}

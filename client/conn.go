package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Conn is a client's connection to a cluster. It holds one session with one of
// the brokers and replaces it when it breaks; every broker accepts every
// request. All methods may be called concurrently.
type Conn struct {
	options   connOptions
	addresses []string
	events    *dispatcher
	topology  topology
	ctx       context.Context // done when Close is called
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu        sync.Mutex
	current   *session      // the newest session, dead or alive; nil never
	changed   chan struct{} // closed and replaced when current or err changes
	err       error         // why there will be no other session
	lastErr   error         // of the newest attempt to connect
	clusterID string        // of the first handshake
	closing   bool
	producers map[*Producer]struct{}
	readers   map[*Reader]struct{}
}

// Connect opens a connection to a cluster. servers is a list of brokers,
// "lockstep://host:port,host:port", the scheme being optional. They are tried
// once each, in this order; the first that answers is used. If none does, the
// errors of all of them are returned, joined.
//
// ctx bounds connecting only. Errors: ErrAddress, ErrVersion, ErrProtocol, the
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
		producers: make(map[*Producer]struct{}),
		readers:   make(map[*Reader]struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	s, err := c.openAny(ctx)
	if err != nil {
		c.cancel()
		return nil, fmt.Errorf("connect: %w", err)
	}
	c.events = newDispatcher(o.events)
	c.install(s)
	c.wg.Add(1)
	go c.keepConnected(s)
	return c, nil
}

// openAny tries every address once.
func (c *Conn) openAny(ctx context.Context) (*session, error) {
	var errs []error
	for _, address := range c.addresses {
		s, err := open(ctx, &c.options, address, c.clusterID, c.brokerEvent)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// install makes a session the current one and starts it: the listener hears of
// the connection before it hears of anything that came over it.
func (c *Conn) install(s *session) {
	c.mu.Lock()
	c.current = s
	c.lastErr = nil
	c.clusterID = s.hello.ClusterID
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	c.options.logger.Info("connected", "server", s.address, "node", s.hello.NodeID, "cluster", s.hello.ClusterID)
	c.events.send(Connected{Address: s.address, Node: s.hello.NodeID})
	s.start()
}

// keepConnected watches over the current session and replaces it when it dies.
func (c *Conn) keepConnected(s *session) {
	defer c.wg.Done()
	var pause time.Duration
	for {
		opened := time.Now()
		c.keepAlive(s)
		s.wg.Wait()
		s.mu.Lock()
		err := s.err
		s.mu.Unlock()
		c.options.logger.Log(context.Background(), levelOf(err), "disconnected", "server", s.address, "node", s.hello.NodeID, "error", err)
		c.events.send(Disconnected{Address: s.address, Node: s.hello.NodeID, Err: err})
		if c.ctx.Err() != nil {
			c.end(ErrClosed)
			return
		}
		if !c.options.reconnect {
			c.end(&lostError{err})
			return
		}
		c.topology.forget() // leaders and slots may have moved unseen
		if time.Since(opened) > c.options.backoffMax {
			pause = 0
		}
		if s = c.reconnect(&pause); s == nil {
			c.end(ErrClosed)
			return
		}
		c.install(s)
	}
}

func levelOf(err error) slog.Level {
	if errors.Is(err, ErrClosed) {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// keepAlive returns when the session has died. It pings a silent broker, and
// ends the session if that does not help, or if the Conn is closed.
func (c *Conn) keepAlive(s *session) {
	interval := keepaliveInterval
	if idle := time.Duration(s.hello.IdleTimeoutMs) * time.Millisecond; idle > 0 {
		interval = min(interval, idle/3)
	}
	ticker := time.NewTicker(max(interval, time.Millisecond))
	defer ticker.Stop()
	var received, sent uint64
	silent := 0 // intervals since a ping was sent in which nothing came
	for {
		select {
		case <-s.done:
			return
		case <-c.ctx.Done():
			s.sendControl()
			s.fail(ErrClosed)
			<-s.done
			return
		case <-ticker.C:
		}
		r, w := s.received.Load(), s.sent.Load()
		quiet, idle := r == received, w == sent
		received, sent = r, w
		switch {
		case !quiet && !idle:
			silent = 0
		case quiet && silent == 2:
			s.fail(fmt.Errorf("%w for %v", ErrKeepalive, 3*interval))
		default:
			if !quiet {
				silent = 0
			}
			if silent == 0 {
				s.request(wire.OpPing, &wire.PingRequest{}, ignored{})
			}
			if quiet {
				silent++
			}
		}
	}
}

// ignored waits for an answer that only has to come.
type ignored struct{}

func (ignored) answered(*session, []byte, error) {}
func (ignored) lost(*session, error)             {}

// reconnect tries all servers, round after round, until one answers. It returns
// nil when the Conn is closed. pause is the one before the next round: none at
// first, so that a short break stays short, and none again after a session that
// lasted. A broker that ends every session at once is not asked without pause.
func (c *Conn) reconnect(pause *time.Duration) *session {
	for {
		if *pause > 0 {
			jittered := *pause - time.Duration(rand.Int64N(int64(*pause)/2+1))
			c.options.logger.Info("reconnecting after a pause", "pause", jittered)
			if c.pause(c.ctx, jittered) != nil {
				return nil
			}
		}
		*pause = min(max(2**pause, c.options.backoffMin), c.options.backoffMax)
		s, err := c.openAny(c.ctx)
		if err == nil {
			return s
		}
		c.options.logger.Warn("reconnect failed", "error", err)
		c.mu.Lock()
		c.lastErr = err
		c.mu.Unlock()
	}
}

// end says that there will be no other session.
func (c *Conn) end(err error) {
	c.mu.Lock()
	c.err = err
	close(c.changed)
	c.changed = make(chan struct{})
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
		select {
		case <-s.done:
		default:
			return s, nil
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

// peek is session without waiting: s is nil while there is none, changed is
// closed when that may be different.
func (c *Conn) peek() (s *session, changed <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.current.done:
		return nil, c.changed, c.err
	default:
		return c.current, c.changed, c.err
	}
}

// connectError is why the newest attempt to connect failed, nil while connected.
func (c *Conn) connectError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastErr
}

// brokerEvent is called by a session's reader.
func (c *Conn) brokerEvent(e wire.Event) {
	switch e.Kind {
	case wire.EventTopologyChanged:
		c.topology.forget()
		c.mu.Lock()
		for p := range c.producers {
			poke(p.wake)
		}
		c.mu.Unlock()
		c.events.send(TopologyChanged{Epoch: e.Version})
	default:
		c.options.logger.Info("event from the broker", "kind", e.Kind.String(), "destination", e.Destination, "detail", e.Detail)
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
	c.mu.Unlock()

	for _, r := range readers {
		r.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	var errs []error
	for _, p := range producers {
		errs = append(errs, p.Close(ctx))
	}
	c.cancel()
	c.wg.Wait()
	c.events.close()
	return errors.Join(errs...)
}

// Info describes the session in use.
type Info struct {
	ClusterID      string
	Node           uint32 // the broker's node ID
	Address        string // the broker's address, as given to Connect
	ServerVersion  string
	Connected      bool // false: this is the session that was lost last
	MaxRecordBytes int  // largest encoded record the broker takes
}

// Info describes the session in use, or the last one while there is none.
func (c *Conn) Info() Info {
	c.mu.Lock()
	s := c.current
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

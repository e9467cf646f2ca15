package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// Server is a running broker.
type Server struct {
	broker   *broker
	engine   *engine
	acceptor *acceptor
	peers    *peerSet  // connections to other nodes; nil if the broker runs alone
	peerPort *acceptor // of theirs; likewise
	admin    *adminServer
	addr     net.Addr

	done  chan struct{}
	close sync.Once
	err   error // of the shutdown, valid after done
}

// Start runs a broker. It returns when every partition is open and clients are
// served; ctx bounds nothing after that. Close stops it. A start that fails before the
// node has an identity leaves no data directory where there was none.
func Start(ctx context.Context, cfg Config) (_ *Server, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.fs == nil {
		made := lookBefore(cfg.DataDir)
		defer func() {
			if err != nil {
				made.undo(err)
			}
		}()
		if err := prepareDataDir(cfg.DataDir); err != nil {
			return nil, err
		}
		if err := checkFileSystem(cfg); err != nil {
			return nil, err
		}
		cfg.fs = vfs.OS()
	}
	cfg.givenUp = ctx.Done()
	if cfg.bootID == "" {
		if cfg.bootID, err = vfs.BootID(); err != nil {
			return nil, err
		}
	}
	if cfg.memoryFS == nil {
		cfg.memoryFS = vfs.NewMemory(newBudget(cfg.MemoryBytes).charge)
	}
	// Listening first: a port in use is said before anything is opened.
	listener, err := (&net.ListenConfig{}).Listen(ctx, tcpOf(cfg.Listen), cfg.Listen)
	if err != nil {
		return nil, listenError(cfg.Listen, "--listen", err)
	}
	if err := checkBootstrap(cfg, listener.Addr()); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	s := &Server{addr: listener.Addr(), done: make(chan struct{})}
	cfg.Listen = listener.Addr().String()
	cfg.Advertise = cmp.Or(cfg.Advertise, cfg.Listen)
	var peers net.Listener
	if cfg.PeerListen != "" && cfg.connect == nil {
		peers, err = (&net.ListenConfig{}).Listen(ctx, tcpOf(cfg.PeerListen), cfg.PeerListen)
		if err != nil {
			return nil, errors.Join(listenError(cfg.PeerListen, "--peer-listen", err), listener.Close())
		}
		cfg.PeerListen = peers.Addr().String()
		cfg.connect = func(b *broker) (network, error) { return s.connect(b, peers) }
	}
	cfg.PeerAdvertise = cmp.Or(cfg.PeerAdvertise, cfg.PeerListen)
	if err := s.start(cfg, listener); err != nil {
		if peers != nil {
			_ = peers.Close()
		}
		return nil, errors.Join(err, listener.Close())
	}
	return s, nil
}

// connect begins to talk to other nodes, as soon as this one knows who it is. That
// takes event loops.
func (s *Server) connect(b *broker, listener net.Listener) (network, error) {
	if err := s.runEngine(b); err != nil {
		return nil, err
	}
	// Others wait in the kernel's queue until the metadata says who they are.
	known := func() { s.peerPort.run() }
	s.peers = newPeerSet(peerOptions{Engine: s.engine, Handler: b, Logger: b.logger, Known: known, Self: peerSelf{
		Cluster: b.identity.ClusterID, Store: b.identity.StoreID, Node: b.identity.NodeID, Boot: uint64(b.clock().UnixNano()),
		MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel, ClientAddress: b.cfg.Advertise, PeerAddress: b.cfg.PeerAdvertise,
	}, Removed: func(word peerWord) {
		b.outcast = word
		close(b.removed)
	}, LacksSpace: b.disk.Short})
	s.peerPort = newPeerAcceptor(s.peers, listener)
	return s.peers, nil
}

// disconnect ends the connections to other nodes. The event loops still run. The port
// is closed first: who has lost its connection and finds it closed knows that this
// process is gone, and does not wait for a word from it.
func (s *Server) disconnect() {
	switch {
	case s.peers != nil:
		s.peerPort.stop()
		s.peers.stop()
	case s.broker != nil && s.broker.network != nil:
		s.broker.network.stop()
	}
}

// runEngine starts the event loops. Nobody has a session before clients, or those that
// other nodes forward, are accepted.
func (s *Server) runEngine(b *broker) (err error) {
	cfg := &b.cfg
	s.engine, err = newEngine(engineOptions{
		Backend: b, PeerPort: cfg.PeerListen != "", Dir: cfg.DataDir, Loops: cfg.EventLoops, Limits: cfg.Limits, ReadWorkers: cfg.ReadWorkers, Logger: cfg.Logger,
		hoard: cfg.hoard,
	})
	if err == nil {
		err = s.engine.run()
	}
	if err != nil {
		s.engine = nil
		return err
	}
	e := s.engine
	b.onView(func(v *cluster.View) { e.announceTopology(uint64(v.Epoch)) }, e.announceLeaders)
	return nil
}

func (s *Server) start(cfg Config, listener net.Listener) (err error) {
	descriptors, err := descriptorLimit()
	if err != nil {
		return err
	}
	if cfg.Limits, err = cfg.Limits.withDefaults(descriptors); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		s.disconnect()
		if s.broker != nil {
			err = errors.Join(err, s.broker.close())
		}
		if s.engine != nil {
			err = errors.Join(err, s.engine.stop(context.Background()))
		}
	}()
	if s.broker, err = openBroker(cfg); err != nil {
		return explainOpen(cfg.DataDir, err)
	}
	if s.engine == nil {
		if err = s.runEngine(s.broker); err != nil {
			return err
		}
	}
	if err = s.awaitWelcome(); err != nil {
		return err
	}
	if cfg.HTTP != "off" {
		more := []prometheus.Collector{&sessionCollector{&s.engine.counters, &s.engine.temporaries}}
		if s.peers != nil {
			more = append(more, &peerCollector{s.peers})
		}
		if s.admin, err = startAdmin(cfg.HTTP, s.broker, more...); err != nil {
			return err
		}
	}
	s.acceptor = newAcceptor(s.engine, listener)
	s.acceptor.run()
	go s.watch()
	return nil
}

// awaitWelcome waits until the other nodes, those that answer, take this one for a member:
// what a node that was removed or replaced knows of the cluster is old, and must not be served.
func (s *Server) awaitWelcome() error {
	b := s.broker
	if s.peers != nil {
		s.peers.awaitWelcome(b.cfg.givenUp, b.removed)
	}
	select {
	case <-b.removed:
		return b.errRemoved()
	case <-b.cfg.givenUp:
		return errGivenUp
	default:
		return nil
	}
}

// errLoopsEnded is how a broker ends whose event loops ended by themselves.
var errLoopsEnded = errors.New("the event loops ended by themselves: no client is served; start the broker again, and report what its log says before this")

// lostLoopsTimeout bounds the shutdown of a broker that has lost its event loops.
const lostLoopsTimeout = 10 * time.Second

// watch stops the broker if the event loops end while nobody has asked for it:
// half of a broker, which holds its data directory and serves nobody, is worse than
// none. So is one that was removed from its cluster, that the cluster does not take, or that
// has lost its metadata. It ends when the loops do.
func (s *Server) watch() {
	cause := errLoopsEnded
	select {
	case <-s.engine.stopped:
	case <-s.broker.removed:
		cause = s.broker.errRemoved()
	case cause = <-s.broker.fatal:
	}
	ctx, cancel := context.WithTimeout(context.Background(), lostLoopsTimeout)
	defer cancel()
	_ = s.shutDown(ctx, cause)
}

// Addr is the address clients connect to.
func (s *Server) Addr() string { return s.addr.String() }

// PeerAddr is the address other nodes connect to, empty if the broker runs alone.
func (s *Server) PeerAddr() string {
	if s.peerPort == nil {
		return ""
	}
	return s.peerPort.listener.Addr().String()
}

// HTTPAddr is the address of health and metrics, empty if they are off.
func (s *Server) HTTPAddr() string {
	if s.admin == nil {
		return ""
	}
	return s.admin.listener.Addr().String()
}

// MetadataVoters is how many nodes vote about the cluster's metadata, as far as this one
// knows. A cluster that has just been formed has one for some seconds: without that one
// the others can change nothing.
func (s *Server) MetadataVoters() int { return int(s.broker.meta.voters.Load()) }

// Down lists the partitions that did not open or were fenced, as "orders/3".
func (s *Server) Down() []string {
	var names []string
	for _, d := range s.broker.View().Destinations {
		for _, p := range s.broker.Describe(d).Partitions {
			if p.State == wire.PartitionFenced {
				names = append(names, fmt.Sprintf("%s/%d", d.Name, p.Number))
			}
		}
	}
	return names
}

// Close stops the broker: no new connections, requests in flight are answered
// until ctx is done, partitions write a checkpoint and are marked clean. It
// blocks until everything has stopped and may be called more than once.
func (s *Server) Close(ctx context.Context) error { return s.shutDown(ctx, nil) }

// shutDown is Close; cause is why, if that is an error. The first call counts.
func (s *Server) shutDown(ctx context.Context, cause error) error {
	s.close.Do(func() {
		if cause != nil {
			s.broker.logger.Error("the broker stops", "err", cause)
		}
		s.acceptor.stop()
		s.broker.onView(nil, nil)
		s.broker.handOver()
		s.engine.drain(ctx) // while the other replicas still answer: records on their way need them
		s.disconnect()
		s.err = errors.Join(cause, s.engine.stop(ctx), s.broker.close())
		if s.admin != nil {
			s.err = errors.Join(s.err, s.admin.stop(ctx))
		}
		close(s.done)
	})
	<-s.done
	return s.err
}

// Done is closed when the broker has stopped.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is how the shutdown ended; nil before Done.
func (s *Server) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// prepareDataDir makes the data directory and checks that it can be written.
func prepareDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data directory %s: %w; choose another with --data", dir, withoutPath(err))
	}
	probe, err := os.CreateTemp(dir, ".probe-")
	if errors.Is(err, syscall.ENOSPC) {
		return nil // what is there is still served
	}
	if err != nil {
		return fmt.Errorf("data directory %s cannot be written: %w; mend its permissions or mount, or choose another with --data", dir, withoutPath(err))
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// checkFileSystem refuses a data directory whose bytes are on another machine or in
// the hands of a user process. Segments are mapped: there a page fault can hang or
// fail, and a sync promises what somebody else has promised.
func checkFileSystem(cfg Config) error {
	kind, err := cfg.kindOf(cfg.DataDir)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", cfg.DataDir, err)
	}
	what := ""
	switch {
	case kind.Network:
		what = "a network file system"
	case kind.FUSE:
		what = "a file system that a user process serves"
	default:
		return nil
	}
	if !cfg.AllowNetworkFS {
		return fmt.Errorf("data directory %s is on %s, %s: reads there can hang or fail, and syncs may promise nothing; choose a local disk with --data, or insist with --allow-network-fs",
			cfg.DataDir, kind.Name, what)
	}
	cfg.Logger.Warn("the data directory is on "+what+": reads there can hang or fail, and syncs may promise nothing", "data", cfg.DataDir, "filesystem", kind.Name)
	return nil
}

func explainOpen(dir string, err error) error {
	switch {
	case errors.Is(err, log.ErrLocked):
		return fmt.Errorf("data directory %s is in use: %w; stop that broker, or choose another directory with --data", dir, withoutPath(err))
	case errors.Is(err, log.ErrCorrupt):
		return fmt.Errorf("%w; restore it from a copy of the directory, or set the directory aside and start with an empty one; what is intact shows: lockstep log verify %s", err, dir)
	case errors.Is(err, log.ErrTooNew):
		return fmt.Errorf("data directory %s: %w; start the newer version, or choose another --data", dir, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("data directory %s: %w; mend its permissions, or choose another with --data", dir, err)
	}
	return fmt.Errorf("data directory %s: %w", dir, err)
}

// checkBootstrap refuses to found a cluster by accident.
func checkBootstrap(cfg Config, addr net.Addr) error {
	name := path.Join(cfg.DataDir, "node.json")
	_, err := cfg.fs.Stat(name)
	tcp, _ := addr.(*net.TCPAddr)
	switch {
	case err == nil && cfg.Bootstrap:
		cfg.Logger.Warn("the data directory is not empty: --bootstrap has no effect; leave it out, so that a lost disk is noticed", "data", cfg.DataDir)
		return nil
	case !errors.Is(err, fs.ErrNotExist) || cfg.Bootstrap || len(cfg.Join) > 0 || tcp != nil && tcp.IP.IsLoopback():
		return nil // what else may be wrong is found when the file is read
	}
	return fmt.Errorf("data directory %s is empty, and on %s, which other machines reach, a new cluster is founded only with --bootstrap, and another one is joined with --join; "+
		"if this node had data before, mount or restore its directory instead", cfg.DataDir, addr)
}

func listenError(addr, flag string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address %s is in use; stop what listens there, or choose another with %s", addr, flag)
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // it names the address again
	}
	return fmt.Errorf("address %s: %w; choose another with %s", addr, err, flag)
}

// withoutPath is the reason of a file error, for messages that name the file anyway.
func withoutPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// budget bounds the bytes of memory destinations.
type budget struct {
	mu          sync.Mutex
	used, limit int64
}

func newBudget(limit int64) *budget { return &budget{limit: limit} }

// charge takes delta bytes, or gives them back if it is negative.
func (b *budget) charge(delta int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if delta > 0 && b.used+delta > b.limit {
		return fmt.Errorf("memory budget of %d bytes: %w", b.limit, vfs.ErrNoSpace)
	}
	b.used += delta
	return nil
}

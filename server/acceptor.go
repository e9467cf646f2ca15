package server

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// registeringDescriptors is what one connection holds while gnet takes it over:
// the accepted socket, its duplicate, and one in reserve for what the kernel and
// the runtime open meanwhile.
const registeringDescriptors = 3

// Accept errors, EMFILE among them, are waited out for this long, doubling.
const (
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// acceptor accepts the connections of a port and hands those it admits to the loops.
// It survives what kills gnet's own: running out of descriptors.
type acceptor struct {
	engine    *engine
	listener  net.Listener
	serve     func(conn net.Conn, released func()) loopConn
	peers     bool // it is the port for peers: one beyond a cap gets no error frame
	admission admission
	tokens    chan struct{} // one for each connection that may be registering
	goodbyes  chan struct{} // one for each refused connection that may linger
	quit      chan struct{}
	done      sync.WaitGroup
}

// newAcceptor makes the acceptor of the port for clients. It takes ownership of the
// listener.
func newAcceptor(e *engine, listener net.Listener) *acceptor {
	return &acceptor{
		engine: e, listener: listener,
		serve: func(conn net.Conn, released func()) loopConn {
			return newSession(e, conn.RemoteAddr().String(), released)
		},
		admission: admission{limits: &e.limits, storage: vfs.Descriptors, addresses: make(map[netip.Addr]int)},
		tokens:    make(chan struct{}, e.limits.Registering),
		goodbyes:  make(chan struct{}, goodbyes),
		quit:      make(chan struct{}),
	}
}

// newPeerAcceptor makes the acceptor of the port for other nodes. What it may hold is
// set aside from what clients may (engineOptions.PeerPort): they cannot keep nodes
// apart by their number. It takes ownership of the listener.
func newPeerAcceptor(p *peerSet, listener net.Listener) *acceptor {
	limits := p.engine.peerLimits
	return &acceptor{
		engine: p.engine, listener: listener, peers: true,
		serve:     func(conn net.Conn, released func()) loopConn { return newPeerConn(p, conn, nil, released) },
		admission: admission{limits: &limits, storage: func() int { return 0 }, addresses: make(map[netip.Addr]int)},
		tokens:    make(chan struct{}, limits.Registering),
		quit:      make(chan struct{}),
	}
}

// run starts accepting.
func (a *acceptor) run() { a.done.Go(a.accept) }

// stop accepts nothing more, and returns when everything that was accepted is
// registered or closed.
func (a *acceptor) stop() {
	close(a.quit)
	_ = a.listener.Close()
	a.done.Wait()
}

func (a *acceptor) accept() {
	pause := minAcceptPause
	var pace pace
	for {
		pace.wait()
		conn, err := a.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			a.engine.counters.acceptErrors.Add(1)
			a.engine.bad.log("accepting a connection failed; trying again", slog.Any("err", err), slog.Duration("pause", pause))
			select {
			case <-a.quit:
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, maxAcceptPause)
			continue
		}
		pause = minAcceptPause
		select {
		case a.tokens <- struct{}{}:
		case <-a.quit:
			_ = conn.Close()
			return
		}
		address := addressOf(conn)
		if err := a.admission.admit(address); err != nil {
			<-a.tokens
			a.refuse(conn, address, err)
			continue
		}
		a.engine.counters.accepted.Add(1)
		a.done.Go(func() {
			a.register(conn, address)
			<-a.tokens
		})
	}
}

// pace bounds how fast connections are accepted. The kernel keeps those that wait.
type pace struct {
	began time.Time
	count int // since then
}

func (p *pace) wait() {
	if p.count++; p.count <= acceptBatch {
		return
	}
	if early := acceptPeriod - time.Since(p.began); early > 0 {
		time.Sleep(early)
	}
	p.began, p.count = time.Now(), 1
}

// register hands an admitted connection to a loop and waits until it is there.
func (a *acceptor) register(conn net.Conn, address netip.Addr) {
	c := a.serve(conn, func() { a.admission.release(address) })
	err := a.engine.register(conn, c)
	a.admission.registered()
	if err != nil {
		a.engine.counters.registerErrors.Add(1)
		a.engine.bad.log("registering a connection failed", slog.Any("err", err))
		if !c.base().opened.Load() {
			a.admission.release(address)
		}
	}
}

// refuse closes a connection beyond a cap. If few others are being refused, the
// client gets an error frame first, and a moment to read it: closing a socket
// with unread input would reset it and destroy the frame on its way.
func (a *acceptor) refuse(conn net.Conn, address netip.Addr, reason error) {
	if errors.Is(reason, errTooManyFromAddress) {
		a.engine.counters.refusedAddress.Add(1)
	} else {
		a.engine.counters.refusedTotal.Add(1)
	}
	a.engine.bad.log("connection refused", slog.String("address", address.String()), slog.Any("reason", reason))
	if a.peers {
		_ = conn.Close()
		return
	}
	select {
	case a.goodbyes <- struct{}{}:
	default:
		_ = conn.Close()
		return
	}
	a.done.Go(func() {
		defer func() { <-a.goodbyes }()
		defer conn.Close()
		body := errorBody(wire.Errorf(wire.CodeBusy, "%v", reason))
		_ = conn.SetDeadline(time.Now().Add(goodbyeTimeout))
		if _, err := conn.Write(connectionError(nil, 0, 0, &body)); err != nil {
			return
		}
		if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, int64(a.engine.limits.LingerBytes)))
		}
	})
}

// addressOf is the client's IP address. It also removes the zone from both ends'
// addresses: gnet returns the memory of a zone's string to a byte pool when it
// closes a connection, although the net package still uses it.
func addressOf(conn net.Conn) netip.Addr {
	if local, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		local.Zone = ""
	}
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	remote.Zone = ""
	address, _ := netip.AddrFromSlice(remote.IP)
	return address.Unmap()
}

var (
	errTooManyConnections = errors.New("the broker serves as many connections as it may")
	errTooManyFromAddress = errors.New("this address has as many connections as it may")
)

// admission counts connections against their caps.
type admission struct {
	limits  *Limits
	storage func() int // descriptors that storage has open

	mu          sync.Mutex
	total       int // admitted and not released, those registering included
	registering int
	addresses   map[netip.Addr]int
}

// admit reserves a place, with the descriptors that registering takes.
func (a *admission) admit(address netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.total >= a.limits.Connections {
		return fmt.Errorf("%w (%d)", errTooManyConnections, a.limits.Connections)
	}
	room := a.room()
	if descriptors := a.total + 1 + (a.registering+1)*(registeringDescriptors-1); descriptors > room {
		return fmt.Errorf("%w (%d descriptors, beside %d of storage)", errTooManyConnections, room, a.storage())
	}
	if a.addresses[address] >= a.limits.ConnectionsPerAddress {
		return fmt.Errorf("%w (%d)", errTooManyFromAddress, a.limits.ConnectionsPerAddress)
	}
	a.total++
	a.registering++
	a.addresses[address]++
	return nil
}

// leastRoom is the part of the descriptors for connections, one over it, that storage
// leaves them however many it has open: people need one to find out.
const leastRoom = 4

// room is how many descriptors connections may use together now: the reserve stays
// free beside what storage has open already.
func (a *admission) room() int {
	return max(a.limits.descriptors/leastRoom, a.limits.descriptors-a.storage())
}

// registered gives back what only registering needs.
func (a *admission) registered() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.registering--
}

// release gives a place back.
func (a *admission) release(address netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total--
	if a.addresses[address]--; a.addresses[address] == 0 {
		delete(a.addresses, address)
	}
}

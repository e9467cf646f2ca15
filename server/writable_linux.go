package server

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// unsentBytes is how much a socket takes beyond what the client's window lets it
// send. Without that bound one client that never reads makes the kernel hold 4 MiB
// for it, and a few hundred of them use up all its memory for TCP: then everybody's
// connections suffer. What is on the network does not count, so that a client that
// reads gets its bandwidth whatever the distance.
const unsentBytes = 128 << 10

// boundUnsent sets that bound. A socket without it (not TCP) is no error.
func boundUnsent(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
}

// writables waits for sockets that did not take all that was there for them, and
// tells their loops when they take more. gnet has no callback for that, so it has
// an epoll of its own, and a socket that nobody reads from costs nothing while it
// waits, however many there are.
//
//	loop: write, EAGAIN ──▶ await ──▶ (epoll, once) ──▶ push ──▶ loop: turn, write
type writables struct {
	epoll int
	end   int // an eventfd

	mu      sync.Mutex
	waiting map[int]loopConn // by descriptor; also after they were told, until forget

	done sync.WaitGroup
}

// newWritables starts it. stop ends it.
func newWritables() (*writables, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("eventfd: %w", err), unix.Close(epoll))
	}
	w := &writables{epoll: epoll, end: end, waiting: make(map[int]loopConn)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, end, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(end)}); err != nil {
		return nil, errors.Join(fmt.Errorf("epoll_ctl: %w", err), unix.Close(end), unix.Close(epoll))
	}
	w.done.Go(w.run)
	return w, nil
}

// stop ends it. No connection awaits anything any more.
func (w *writables) stop() {
	_, _ = unix.Write(w.end, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	w.done.Wait()
	_ = unix.Close(w.end)
	_ = unix.Close(w.epoll)
}

func (w *writables) run() {
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(w.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("epoll_wait for sockets to be written: %v", err)) // a descriptor that is not ours
		}
		for _, event := range events[:max(n, 0)] {
			if int(event.Fd) == w.end {
				return
			}
			w.mu.Lock()
			c := w.waiting[int(event.Fd)] // or one that has got the number since: its turn does nothing
			w.mu.Unlock()
			if c != nil {
				c.base().awaiting.Store(false)
				c.base().loop.push(c)
			}
		}
	}
}

// await makes the connection get a turn when its socket takes bytes, once. Until then
// its awaiting is set. Loop only.
func (w *writables) await(c loopConn) error {
	b := c.base()
	if b.awaiting.Swap(true) {
		return nil
	}
	event := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLONESHOT, Fd: int32(b.fd)}
	w.mu.Lock()
	known := w.waiting[b.fd] == c
	w.waiting[b.fd] = c
	w.mu.Unlock()
	op := unix.EPOLL_CTL_ADD
	if known {
		op = unix.EPOLL_CTL_MOD
	}
	if err := unix.EpollCtl(w.epoll, op, b.fd, &event); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// forget is called before the connection's descriptor is closed. Loop only.
func (w *writables) forget(c loopConn) {
	b := c.base()
	w.mu.Lock()
	known := w.waiting[b.fd] == c
	if known {
		delete(w.waiting, b.fd)
	}
	w.mu.Unlock()
	b.awaiting.Store(false)
	if known {
		_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, b.fd, nil)
	}
}

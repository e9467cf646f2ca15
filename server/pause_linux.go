package server

import (
	"fmt"
	"reflect"
	"unsafe"

	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/netpoll"
	"golang.org/x/sys/unix"
)

// gnet reads a connection whenever it is readable and cannot be told not to. To
// push back on a client we take its socket out of the loop's epoll interest set
// ourselves: EPOLL_CTL_MOD without EPOLLIN, and later with it. Hang-ups and
// errors are still reported; bytes and the end of stream wait in the kernel.
//
// That needs the loop's epoll descriptor, a field that gnet does not export. Its
// place is found once by reflection on gnet's own connection type and pinned by
// a test against the version in go.mod. If a field is missing or has another
// type, pausing is off, and a session closes a client that sends more than it may
// have in flight instead.
//
// gnet switches reading on again by itself when it has bytes to write (ModReadWrite,
// ModRead). We write our sockets ourselves, so it never has any.
type gnetLayout struct {
	loop   uintptr // conn.loop, *eventloop
	poller uintptr // eventloop.poller, *netpoll.Poller
	epoll  uintptr // netpoll.Poller.fd, int
}

// The events that gnet v2.10.0 asks for, level-triggered.
const readEvents = unix.EPOLLIN | unix.EPOLLPRI

// findLayout looks up the fields in the type of a connection.
func findLayout(conn reflect.Type) (l gnetLayout, err error) {
	if conn.Kind() != reflect.Pointer || conn.Elem().Kind() != reflect.Struct {
		return l, fmt.Errorf("gnet connection is a %v, not a pointer to a struct", conn)
	}
	loop, err := findField(conn.Elem(), "loop", reflect.Pointer)
	if err != nil {
		return l, err
	}
	if loop.Type.Elem().Kind() != reflect.Struct {
		return l, fmt.Errorf("gnet field loop is a %v", loop.Type)
	}
	poller, err := findField(loop.Type.Elem(), "poller", reflect.Pointer)
	if err != nil {
		return l, err
	}
	if poller.Type != reflect.TypeFor[*netpoll.Poller]() {
		return l, fmt.Errorf("gnet field poller is a %v", poller.Type)
	}
	epoll, err := findField(poller.Type.Elem(), "fd", reflect.Int)
	if err != nil {
		return l, err
	}
	return gnetLayout{loop.Offset, poller.Offset, epoll.Offset}, nil
}

func findField(t reflect.Type, name string, kind reflect.Kind) (reflect.StructField, error) {
	f, ok := t.FieldByName(name)
	if !ok || f.Type.Kind() != kind {
		return f, fmt.Errorf("gnet type %v has no field %s of kind %v", t, name, kind)
	}
	return f, nil
}

// epollOf is the epoll descriptor of the loop that serves conn.
func (l gnetLayout) epollOf(conn gnet.Conn) int {
	c := reflect.ValueOf(conn).UnsafePointer()
	loop := *(*unsafe.Pointer)(unsafe.Add(c, l.loop))
	poller := *(*unsafe.Pointer)(unsafe.Add(loop, l.poller))
	return *(*int)(unsafe.Add(poller, l.epoll))
}

// watch sets whether the loop is told that a socket can be read.
func watch(epoll, fd int, reading bool) error {
	event := unix.EpollEvent{Fd: int32(fd)}
	if reading {
		event.Events |= readEvents
	}
	return unix.EpollCtl(epoll, unix.EPOLL_CTL_MOD, fd, &event)
}

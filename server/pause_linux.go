package server

import (
	"fmt"
	"reflect"
	"unsafe"

	"github.com/panjf2000/gnet/v2"
	"github.com/panjf2000/gnet/v2/pkg/buffer/elastic"
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
// gnet switches reading on again by itself when its outbound buffer becomes
// non-empty or empty (ModReadWrite, ModRead). A paused session therefore writes
// its socket directly and never through gnet, and pauses again when it is called
// with bytes all the same.
type gnetLayout struct {
	loop     uintptr // conn.loop, *eventloop
	poller   uintptr // eventloop.poller, *netpoll.Poller
	epoll    uintptr // netpoll.Poller.fd, int
	outbound uintptr // conn.outboundBuffer, elastic.Buffer
}

// The events that gnet v2.10.0 asks for, level-triggered.
const (
	readEvents  = unix.EPOLLIN | unix.EPOLLPRI
	writeEvents = unix.EPOLLOUT
)

// findLayout looks up the fields in the type of a connection.
func findLayout(conn reflect.Type) (l gnetLayout, err error) {
	if conn.Kind() != reflect.Pointer || conn.Elem().Kind() != reflect.Struct {
		return l, fmt.Errorf("gnet connection is a %v, not a pointer to a struct", conn)
	}
	loop, err := findField(conn.Elem(), "loop", reflect.Pointer)
	if err != nil {
		return l, err
	}
	outbound, err := findField(conn.Elem(), "outboundBuffer", reflect.Struct)
	if err != nil {
		return l, err
	}
	if outbound.Type != reflect.TypeFor[elastic.Buffer]() {
		return l, fmt.Errorf("gnet field outboundBuffer is a %v", outbound.Type)
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
	return gnetLayout{loop.Offset, poller.Offset, epoll.Offset, outbound.Offset}, nil
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

// takeOutbound moves what gnet still has to write to conn into a buffer of ours,
// appended to b. Used when gnet is about to drop it.
func (l gnetLayout) takeOutbound(conn gnet.Conn, b []byte) []byte {
	outbound := (*elastic.Buffer)(unsafe.Add(reflect.ValueOf(conn).UnsafePointer(), l.outbound))
	pieces, err := outbound.Peek(-1)
	if err != nil {
		return b
	}
	for _, piece := range pieces {
		b = append(b, piece...)
	}
	outbound.Release()
	return b
}

// watch sets what the loop is told about a socket. reading is whether it is read;
// that gnet has bytes to write is never forgotten.
func watch(epoll, fd int, reading, writing bool) error {
	event := unix.EpollEvent{Fd: int32(fd)}
	if reading {
		event.Events |= readEvents
	}
	if writing {
		event.Events |= writeEvents
	}
	return unix.EpollCtl(epoll, unix.EPOLL_CTL_MOD, fd, &event)
}

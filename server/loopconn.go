package server

import (
	"context"
	"errors"
	"net"
	"sync/atomic"

	"github.com/panjf2000/gnet/v2"
)

// loopConn is a connection that a loop serves: a client's session, or a connection
// to another node. Everything is called by its loop, except base.
type loopConn interface {
	// base is the part that the loop keeps in it.
	base() *connBase
	// open is called on the loop that serves the connection from now on.
	open(l *loop, c gnet.Conn)
	// traffic takes bytes that have arrived. They are valid until it returns.
	traffic(in []byte)
	// disconnected is called when gnet closes the connection, for whatever reason.
	disconnected(endOfStream bool, err error)
	// turn does what others have left to do, after loop.push.
	turn()
	// checkDeadlines is called when the connection's timer fires.
	checkDeadlines()
}

// connBase is what a loop keeps in a connection of its own.
type connBase struct {
	loop     *loop // nil until the connection is open
	fd       int   // its socket, -1 while there is none; of a half-closed session a duplicate
	opened   atomic.Bool
	awaiting atomic.Bool // the socket takes nothing: see writables
	timer    timer
}

func (b *connBase) base() *connBase { return b }

// register hands a connection to a loop and waits until it is there. On an error the
// socket is closed; open may have been called all the same.
func (e *engine) register(conn net.Conn, c loopConn) error {
	return e.enroll(nil, conn, c)
}

// enroll is register for a loop of the caller's choice; nil is any.
func (e *engine) enroll(l *loop, conn net.Conn, c loopConn) error {
	var result <-chan gnet.RegisteredResult
	var err error
	ctx := gnet.NewContext(context.Background(), c)
	if l != nil {
		result, err = l.gnet.Enroll(ctx, conn)
	} else {
		result, err = e.gnet.Register(gnet.NewNetConnContext(ctx, conn))
	}
	if err == nil {
		select {
		case r := <-result:
			err = r.Err
		case <-e.stopped:
			err = errors.New("event loops have stopped")
		}
	}
	// gnet reports no error when the loop's epoll refuses the socket.
	if err == nil && !c.base().opened.Load() {
		err = errors.New("event loop did not take the connection")
	}
	if err != nil {
		_ = conn.Close()
	}
	return err
}

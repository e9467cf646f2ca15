package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// retryPause is the pause before a request is repeated that a broker answered
// with a retriable error.
const retryPause = 50 * time.Millisecond

// call waits for the answer to one request that somebody blocks on.
type call struct {
	done chan struct{}
	body []byte // a copy: the caller parses it in its own goroutine
	err  error
}

func (c *call) answered(_ *session, body []byte, err error) {
	c.body, c.err = bytes.Clone(body), err
	close(c.done)
}

func (c *call) lost(_ *session, err error) {
	c.err = err
	close(c.done)
}

// pending is a request on its way, for callers that send several before they
// wait for the first.
type pending struct {
	s    *session
	op   wire.Opcode
	id   uint32
	call *call
	err  error // it was never handed to the writer
}

// send hands a request to the writer; wait gets the answer.
func (s *session) send(op wire.Opcode, request wire.Message) pending {
	c := &call{done: make(chan struct{})}
	id, err := s.request(op, request, c)
	return pending{s: s, op: op, id: id, call: c, err: err}
}

// wait blocks until the answer is there, the session has died or ctx is done,
// and parses the answer. Byte slices in it stay valid.
func (p pending) wait(ctx context.Context, response wire.Message) error {
	if p.err != nil {
		return p.err
	}
	select {
	case <-p.call.done:
	case <-ctx.Done():
		p.s.forget(p.id)
		return ctx.Err()
	}
	if p.call.err != nil {
		return p.call.err
	}
	if err := response.Parse(p.call.body); err != nil {
		err = fmt.Errorf("%w: answer to %v: %w", ErrProtocol, p.op, err)
		p.s.fail(err)
		return err
	}
	return nil
}

// do sends a request on whatever session is there, and again on the next one
// if repeating it can do no harm: the broker says that it rejected it and may
// accept it later, or the request changes nothing (readOnly). It ends with the
// answer, with ctx, or with the Conn. What was answered last goes with ctx's error.
func (c *Conn) do(ctx context.Context, op wire.Opcode, request, response wire.Message, readOnly bool) error {
	var last error
	open := false // an attempt may have had its effect
	for {
		s, err := c.session(ctx)
		if err != nil {
			return overdue(ctx, err, last)
		}
		p := s.send(op, request)
		err = p.wait(ctx, response)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return overdue(ctx, err, last)
		case !c.options.reconnect && errors.Is(err, ErrDisconnected):
			return err
		}
		sessionDied := errors.Is(err, ErrDisconnected)
		code := codeOf(err)
		again := p.err != nil && sessionDied || // it never left
			readOnly && sessionDied ||
			transient(code) && (readOnly || code.Rejected())
		switch {
		case !again && open:
			return &openError{err}
		case !again:
			return err
		}
		open = open || p.err == nil && !code.Rejected()
		if !sessionDied {
			last = err
			if err := c.pause(ctx, retryPause); err != nil {
				return overdue(ctx, err, last)
			}
		}
	}
}

// pause waits, at most until ctx is done or the Conn closed.
func (c *Conn) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ctx.Done():
		return ErrClosed
	}
}

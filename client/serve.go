package client

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// DefaultServeGroup is the group of Serve if no option names another one.
const DefaultServeGroup = "servers"

// ErrAgain, returned or wrapped by the handler of a request, says that it was not handled
// and nobody is to be told: the request goes back to the group, with its backoff, for this
// or another server.
var ErrAgain = errors.New("the request is to be handled again")

// Handler answers a request. What it returns is the reply; nil is an empty one. An error,
// unless it is ErrAgain, goes to the requester as a RequestError: the request is done.
type Handler func(ctx context.Context, request *Delivery) (*Record, error)

// Serve answers the requests of a destination until ctx is done. It is a Consumer of the
// group DefaultServeGroup, in shared mode, unless options say otherwise: any number of
// processes may serve. See Consumer.Serve, which serves with several workers. An alias that
// comes to stand for something else is followed: what is being answered is answered, and then
// the requests there. ErrAliasMoved ends it only if the alias is removed.
func (c *Conn) Serve(ctx context.Context, destination string, handler Handler, opts ...ConsumerOption) error {
	if handler == nil {
		return fmt.Errorf("Serve: %w", ErrNoFunction)
	}
	var moved error
	for {
		x, err := c.Consumer(ctx, destination, append([]ConsumerOption{Group(DefaultServeGroup)}, opts...)...)
		if err != nil {
			return errors.Join(moved, err)
		}
		moved = x.Serve(ctx, handler)
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		err = x.Close(closing)
		cancel()
		if !errors.Is(moved, ErrAliasMoved) {
			return errors.Join(moved, err)
		}
	}
}

// Serve calls the handler for each record and sends what it returns to where the record
// wants its reply; a record that wants none is handled all the same. It returns as Run does.
//
// The reply is sent first, and the request acknowledged when the broker of the requester
// has it. So each request is answered at least once, and handled at least once: a server
// that dies between reply and acknowledgement, or loses its lease, leaves the request to
// another one, which handles and answers it again. The requester takes the first reply. If
// the requester is gone, the reply is dropped and the request acknowledged; if the reply
// is too large, the requester gets an error instead; if it cannot be sent for another
// reason, the request goes back.
func (c *Consumer) Serve(ctx context.Context, handler Handler, opts ...RunOption) error {
	if handler == nil {
		return fmt.Errorf("Serve: %w", ErrNoFunction)
	}
	return c.Run(ctx, func(ctx context.Context, d *Delivery) error {
		reply, err := handler(ctx, d)
		switch {
		case errors.Is(err, ErrAgain) || ctx.Err() != nil:
			return errors.Join(err, ctx.Err())
		case err != nil:
			return d.ReplyError(ctx, err)
		}
		return d.Reply(ctx, reply)
	}, opts...)
}

// Reply sends a reply, nil being an empty one, to where the record wants it; if it wants
// none, nothing is sent. It is no outcome: acknowledge the record when it returns nil, which
// it does too if the requester is gone, or if the reply is too large and an error went in
// its place.
func (d *Delivery) Reply(ctx context.Context, reply *Record) error {
	if reply == nil {
		reply = &Record{}
	}
	err := d.answer(ctx, *reply)
	if errors.Is(err, ErrRecordTooLarge) || errors.Is(err, wire.CodeTooLarge) {
		return d.ReplyError(ctx, fmt.Errorf("the reply is larger than the requester takes: %w", err))
	}
	return err
}

// ReplyError tells the requester that the request has failed, as Reply does: there it is a
// *RequestError.
func (d *Delivery) ReplyError(ctx context.Context, failed error) error {
	text := failed.Error()
	return d.answer(ctx, Record{Headers: []Header{{Key: ErrorHeader, Value: []byte(text[:min(len(text), maxErrorText)])}}})
}

// WantsReply reports whether somebody asked for a reply to the record.
func (d *Delivery) WantsReply() bool {
	_, wanted := headerOf(&d.Record, ReplyToHeader)
	return wanted
}

// answer sends a reply to the requester.
func (d *Delivery) answer(ctx context.Context, answer Record) error {
	to, wanted := headerOf(&d.Record, ReplyToHeader)
	if !wanted {
		return nil
	}
	if id, ok := headerOf(&d.Record, CorrelationHeader); ok {
		answer.Headers = append(slices.Clip(answer.Headers), Header{Key: CorrelationHeader, Value: id})
	}
	c := d.at.consumer
	_, err := c.conn.Send(ctx, string(to), &answer)
	switch {
	case errors.Is(err, wire.CodeDestinationGone), errors.Is(err, wire.CodeUnknownDestination), errors.Is(err, wire.CodeInvalidName):
		c.conn.options.logger.Info("a requester is gone before its reply", "destination", c.destination, "partition", d.Partition, "offset", d.Offset, "reply-to", string(to), "error", err)
		return nil
	case err != nil:
		return fmt.Errorf("reply to %.80q: %w", to, err)
	}
	return nil
}

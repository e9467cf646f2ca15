package client

import (
	"context"
	"errors"
	"fmt"

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
// processes may serve. See Consumer.Serve, which serves with several workers.
func (c *Conn) Serve(ctx context.Context, destination string, handler Handler, opts ...ConsumerOption) error {
	x, err := c.Consumer(ctx, destination, append([]ConsumerOption{Group(DefaultServeGroup)}, opts...)...)
	if err != nil {
		return err
	}
	err = x.Serve(ctx, handler)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	return errors.Join(err, x.Close(closing))
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
	return c.Run(ctx, func(ctx context.Context, d *Delivery) error {
		reply, err := handler(ctx, d)
		if errors.Is(err, ErrAgain) || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		return c.answer(ctx, d, reply, err)
	}, opts...)
}

// answer sends a reply, or an error, to the requester.
func (c *Consumer) answer(ctx context.Context, d *Delivery, reply *Record, failed error) error {
	to, wanted := headerOf(&d.Record, ReplyToHeader)
	if !wanted {
		if failed != nil {
			c.conn.options.logger.Warn("a request that wants no reply has failed", "destination", c.destination, "partition", d.Partition, "offset", d.Offset, "error", failed)
		}
		return nil
	}
	answer := Record{}
	if reply != nil {
		answer = *reply
	}
	if failed != nil {
		answer = errorReply(failed)
	}
	send := func() error {
		if id, ok := headerOf(&d.Record, CorrelationHeader); ok {
			answer.Headers = append(answer.Headers[:len(answer.Headers):len(answer.Headers)], Header{Key: CorrelationHeader, Value: id})
		}
		_, err := c.conn.Send(ctx, string(to), &answer)
		return err
	}
	err := send()
	if errors.Is(err, ErrRecordTooLarge) || errors.Is(err, wire.CodeTooLarge) {
		answer = errorReply(fmt.Errorf("the reply is larger than %q takes: %w", to, err))
		err = send()
	}
	switch {
	case errors.Is(err, wire.CodeDestinationGone), errors.Is(err, wire.CodeUnknownDestination), errors.Is(err, wire.CodeInvalidName):
		c.conn.options.logger.Info("a requester is gone before its reply", "destination", c.destination, "partition", d.Partition, "offset", d.Offset, "reply-to", string(to), "error", err)
		return nil
	case err != nil:
		return fmt.Errorf("reply to %q: %w", to, err)
	}
	return nil
}

// errorReply is a reply that says that the request has failed.
func errorReply(err error) Record {
	text := err.Error()
	return Record{Headers: []Header{{Key: ErrorHeader, Value: []byte(text[:min(len(text), maxErrorText)])}}}
}

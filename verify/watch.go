package verify

import (
	"context"
	"errors"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/promise"
)

// Watch returns a handler for client.Consumer.Run that does what handle does, and tells
// everything that package promise has to know about it, at the moments that it
// demands. session names the consumer's life; say is called by several goroutines.
// handle returns nil to acknowledge the record, which Watch does, and an error to give it
// back.
func Watch(session string, say func(Seen), number func(*client.Delivery) uint64, handle func(context.Context, *client.Delivery) error) func(context.Context, *client.Delivery) error {
	return func(ctx context.Context, d *client.Delivery) error {
		s := Seen{Partition: d.Partition, Number: number(d), Key: string(d.Key), Event: promise.Event{
			Session: session, Scope: string(d.Key), Record: d.Offset, Epoch: d.Epoch(), Redelivered: d.Redelivered,
		}}
		tell := func(kind promise.Kind) {
			s.Kind = kind
			say(s)
		}
		tell(promise.Delivered)
		tell(promise.Started)
		err := handle(ctx, d)
		tell(promise.Finished)
		if err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, client.ErrFenced) {
				s.Reason = lossReason(cause)
				tell(promise.Revoked)
			} else {
				tell(promise.Nacked)
			}
			return err
		}
		tell(promise.Acked)
		answered := func(err error) {
			answer := s
			answer.Kind = promise.Answered
			switch {
			case err == nil:
				answer.Answer = promise.OK
			case errors.Is(err, client.ErrFenced):
				lost := s
				lost.Kind, lost.Reason = promise.Revoked, lossReason(err)
				say(lost)
				answer.Answer, answer.Reason = promise.Stale, lost.Reason
			default:
				answer.Answer = promise.Other
			}
			say(answer)
		}
		if err := d.AckFunc(answered); err != nil {
			answered(err)
		}
		return nil
	}
}

// lossReason is why a lease was lost, without the record that it was lost for.
func lossReason(err error) string {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		if list := several.Unwrap(); len(list) > 0 {
			return list[len(list)-1].Error()
		}
	}
	return err.Error()
}

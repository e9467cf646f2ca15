package verify

import (
	"context"
	"errors"
	"sync"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/promise"
)

// Watcher tells everything that package promise has to know about one consumer, at the
// moments that it demands. Give its Event to client.OnEvent, and run its Handler.
type Watcher struct {
	session string
	say     func(Seen)
	number  func(*client.Delivery) uint64

	mu   sync.Mutex
	open map[place]Seen // records that were started and are neither settled nor lost
}

// place is where a record is.
type place struct {
	partition uint32
	offset    uint64
}

// NewWatcher returns a watcher of a consumer whose life has the name session. say is
// called by several goroutines; number is that of a record.
func NewWatcher(session string, say func(Seen), number func(*client.Delivery) uint64) *Watcher {
	return &Watcher{session: session, say: say, number: number, open: map[place]Seen{}}
}

// Event takes in what the consumer tells of itself: where nobody has confirmed it in time,
// everything that it holds may be with others.
func (w *Watcher) Event(e client.Event) {
	lapsed, ok := e.(client.Unconfirmed)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for at, s := range w.open {
		if at.partition == lapsed.Partition {
			s.Kind, s.Reason = promise.Revoked, "no broker has confirmed the consumer in time"
			w.say(s)
		}
	}
}

// tell says something of a record, and keeps in mind whether it is open.
func (w *Watcher) tell(s *Seen, kind promise.Kind) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.Kind = kind
	at := place{s.Partition, s.Record}
	switch kind {
	case promise.Started:
		w.open[at] = *s
	case promise.Nacked, promise.Revoked, promise.Answered:
		if w.open[at].Epoch == s.Epoch { // else it came again meanwhile
			delete(w.open, at)
		}
	}
	w.say(*s)
}

// Handler returns a handler for client.Consumer.Run that does what handle does. handle
// returns nil to acknowledge the record, which the handler does, and an error to give it
// back.
func (w *Watcher) Handler(handle func(context.Context, *client.Delivery) error) func(context.Context, *client.Delivery) error {
	return func(ctx context.Context, d *client.Delivery) error {
		s := Seen{Partition: d.Partition, Number: w.number(d), Key: string(d.Key), Event: promise.Event{
			Session: w.session, Scope: string(d.Key), Record: d.Offset, Epoch: d.Epoch(), Redelivered: d.Redelivered,
		}}
		w.tell(&s, promise.Delivered)
		w.tell(&s, promise.Started)
		err := handle(ctx, d)
		w.tell(&s, promise.Finished)
		if err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, client.ErrFenced) {
				s.Reason = lossReason(cause)
				w.tell(&s, promise.Revoked)
			} else {
				w.tell(&s, promise.Nacked)
			}
			return err
		}
		w.tell(&s, promise.Acked)
		answered := func(err error) {
			answer := s
			switch {
			case err == nil:
				answer.Answer = promise.OK
			case errors.Is(err, client.ErrFenced):
				answer.Reason = lossReason(err)
				w.tell(&answer, promise.Revoked)
				answer.Answer = promise.Stale
			default:
				answer.Answer = promise.Other
			}
			w.tell(&answer, promise.Answered)
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

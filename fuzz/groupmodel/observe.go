package groupmodel

import "github.com/lockstepmq/lockstep/promise"

// While a trace is replayed, what its consumers see is told to an observer as it would
// be by real ones, so that the model and package promise can be held against each
// other.

func (t *step) tell(e promise.Event) { t.told = append(t.told, e) }

func (t *step) observe(kind promise.Kind, ci, record int, epoch uint8) {
	if !t.watched {
		return
	}
	t.tell(promise.Event{
		Kind: kind, Session: sessionName(t.s.consumers[ci].session),
		Scope: string(rune('a' + t.scope[record])), Record: uint64(record), Epoch: uint64(epoch),
	})
}

func (t *step) observeDelivery(ci int, n note) {
	if t.watched {
		t.observe(promise.Delivered, ci, int(n.record), n.epoch)
		t.told[len(t.told)-1].Redelivered = n.again != 0
	}
}

func (t *step) observeStart(ci, record int) {
	t.observe(promise.Started, ci, record, t.s.consumers[ci].held[record].epoch)
}

func (t *step) observeFinish(ci, record int, ok bool) {
	epoch := t.s.consumers[ci].held[record].epoch
	t.observe(promise.Finished, ci, record, epoch)
	if ok {
		t.observe(promise.Acked, ci, record, epoch)
	} else {
		t.observe(promise.Nacked, ci, record, epoch)
	}
}

// observeDrop tells that a consumer lets go of a record: the handler is at its end and
// the lease is lost.
func (t *step) observeDrop(ci, record int) {
	h := t.s.consumers[ci].held[record]
	if h.progress == running {
		t.observe(promise.Finished, ci, record, h.epoch)
	}
	t.observe(promise.Revoked, ci, record, h.epoch)
}

func (t *step) observeAnswer(ci int, n note) {
	if !t.watched || n.kind == nackedNote {
		return
	}
	answer := promise.OK
	if n.kind == staleNote {
		answer = promise.Stale
	}
	t.tell(promise.Event{
		Kind: promise.Answered, Session: sessionName(t.s.consumers[ci].session), Answer: answer,
		Scope: string(rune('a' + t.scope[n.record])), Record: uint64(n.record), Epoch: uint64(n.epoch),
	})
}

// observeEnd tells that a session is Removed, has Died or is Stopped.
func (t *step) observeEnd(ci int, how promise.Kind) {
	if t.watched {
		t.tell(promise.Event{Kind: how, Session: sessionName(t.s.consumers[ci].session)})
	}
}

func (t *step) observeSettled(record int) {
	if t.watched {
		t.tell(promise.Event{
			Kind: promise.Settled, Scope: string(rune('a' + t.scope[record])), Record: uint64(record),
			Epoch: uint64(t.current().state.index),
		})
	}
}

func (t *step) observeSought(index uint8) {
	if t.watched {
		t.tell(promise.Event{Kind: promise.Sought, Epoch: uint64(index)})
	}
}

func (t *step) observeLeaderLost() {
	if t.watched {
		t.tell(promise.Event{Kind: promise.LeaderLost})
	}
}

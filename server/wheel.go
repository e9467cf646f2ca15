package server

import "time"

// wheelSlots is the size of a timing wheel: at one slot per slowTick it turns
// once in 25.6 s. A longer timer stays in its slot and is looked at again when
// the wheel has come round.
const wheelSlots = 256

// wheel fires the timers of one event loop. Scheduling, moving and removing are
// O(1), and a timer costs no allocation: it is a field of what it belongs to.
// A session moves its timer only to an earlier time; that its deadlines move
// later with every frame it sends is found out when the timer fires. So a busy
// session touches the wheel about once per deadline, not once per frame.
//
// Owned by one loop.
type wheel struct {
	slots [wheelSlots]timer // heads of circular lists
	tick  int64             // next tick to be fired
	count int
}

// timer is one entry of a wheel. The zero timer is not scheduled.
type timer struct {
	next, previous *timer
	at             int64 // tick
	conn           loopConn
}

func (w *wheel) init(now time.Duration) {
	for i := range w.slots {
		head := &w.slots[i]
		head.next, head.previous = head, head
	}
	w.tick = int64(now / slowTick)
}

func (t *timer) scheduled() bool { return t.next != nil }

// schedule makes the timer fire at the first tick at or after at. A timer that
// is already scheduled for no later stays.
func (w *wheel) schedule(t *timer, at time.Duration) {
	tick := max(int64((at+slowTick-1)/slowTick), w.tick)
	if t.scheduled() {
		if t.at <= tick {
			return
		}
		w.remove(t)
	}
	t.at = tick
	head := &w.slots[tick%wheelSlots]
	t.next, t.previous = head, head.previous
	t.previous.next, head.previous = t, t
	w.count++
}

// remove takes the timer out. Removing one that is not scheduled does nothing.
func (w *wheel) remove(t *timer) {
	if !t.scheduled() {
		return
	}
	t.previous.next, t.next.previous = t.next, t.previous
	t.next, t.previous = nil, nil
	w.count--
}

// advance fires the timers due at or before now, each at most once and at most limit
// of them. It reports whether others are due: they are the first of the next call.
// fire may schedule and remove any timer.
func (w *wheel) advance(now time.Duration, limit int, fire func(*timer)) (more bool) {
	last := int64(now / slowTick)
	if last-w.tick >= wheelSlots {
		w.tick = last - wheelSlots + 1 // every slot is looked at once below
	}
	for w.tick <= last {
		// Timers move to a list of their own first, so that fire may change the slot.
		head := &w.slots[w.tick%wheelSlots]
		w.tick++
		var due timer
		due.next, due.previous = &due, &due
		for t := head.next; t != head; {
			next := t.next
			if t.at <= last {
				t.previous.next, t.next.previous = t.next, t.previous
				t.next, t.previous = &due, due.previous
				t.previous.next, due.previous = t, t
			}
			t = next
		}
		for ; due.next != &due && limit > 0; limit-- {
			t := due.next
			w.remove(t)
			fire(t)
		}
		if due.next != &due {
			w.tick--
			first, last := due.next, due.previous
			last.next, head.next.previous = head.next, last
			head.next, first.previous = first, head
			return true
		}
	}
	return false
}

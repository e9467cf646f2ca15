package server

import (
	"sync/atomic"
	"time"
)

const (
	// alarmAhead is how far away a deadline of groups may be to get an alarm. Later ones are
	// kept with the ticks, at most tickPeriod too late.
	alarmAhead = 500 * time.Millisecond
	// alarmGrain is the least time between two alarms.
	alarmGrain = 5 * time.Millisecond
)

// alarm wakes keepTime for deadlines of groups that do not wait for the next tick: a record
// that is to rest for 10 ms rests for some 15, and not for 100.
type alarm struct {
	at     atomic.Int64  // the earliest, monotonic; 0: there is none
	closer chan struct{} // capacity 1: it is earlier than before
}

func newAlarm() *alarm { return &alarm{closer: make(chan struct{}, 1)} }

// set asks for an alarm at a deadline that lies ahead of now. Any goroutine.
func (a *alarm) set(due, now int64) {
	if due <= now || due-now > int64(alarmAhead) { // what is overdue has had its turn
		return
	}
	for {
		was := a.at.Load()
		if was != 0 && was <= due {
			return
		}
		if a.at.CompareAndSwap(was, due) {
			break
		}
	}
	select {
	case a.closer <- struct{}{}:
	default:
	}
}

// pause is how long to wait for the alarm, 0 if there is none.
func (a *alarm) pause(now int64) time.Duration {
	at := a.at.Load()
	if at == 0 {
		return 0
	}
	return max(time.Duration(at-now), alarmGrain)
}

// ring gives turns to partitions whose groups have something due, and asks for the next
// alarm.
func (b *broker) ring(now int64) {
	b.alarm.at.Store(0)
	b.each(func(r *partitionReplica) {
		switch due := int64(r.part.Groups().Deadline()); {
		case due == 0:
		case due <= now:
			r.schedule()
		default:
			b.alarm.set(due, now)
		}
	})
}

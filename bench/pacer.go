package bench

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pacer says when records of an open loop are due: the i-th at start + i/rate,
// computed from i and not by adding intervals, so that nothing drifts.
type pacer struct {
	rate float64 // records per second
}

// due is when record i is due, in nanoseconds from the start of the schedule.
func (p pacer) due(i int64) int64 { return int64(float64(i) * 1e9 / p.rate) }

// count is how many records are due within d.
func (p pacer) count(d time.Duration) int64 { return int64(d.Seconds()*p.rate + 0.5) }

// lockPacingThread ties the calling goroutine to its thread and asks the kernel
// to wake that thread without slack: the runtime's own timers are a millisecond
// coarse in a process that is otherwise idle. The goroutine must end without
// unlocking, which ends the thread and with it the setting.
func lockPacingThread() {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // without it sleeps are 50 µs late
}

// sleepUntil sleeps on the calling thread until the clock shows ns.
func (c clock) sleepUntil(ns int64) {
	for {
		left := ns - c.now()
		if left <= 0 {
			return
		}
		t := unix.NsecToTimespec(min(left, int64(100*time.Millisecond)))
		_ = unix.Nanosleep(&t, nil) // interrupted: the loop sleeps on
	}
}

package log

import "sync/atomic"

// Pin counts who reads the data of an entry besides the log, for example a message
// to a follower that waits to be written. The zero Pin is of nobody. Any goroutine.
type Pin struct{ n atomic.Int32 }

// Hold adds a reader. It is called before the entry is released.
func (p *Pin) Hold() { p.n.Add(1) }

// Free takes a reader away.
func (p *Pin) Free() {
	if p.n.Add(-1) < 0 {
		panic("log: pin of an entry is freed twice")
	}
}

// Held reports whether anybody reads. Nobody reads without a pin.
func (p *Pin) Held() bool { return p != nil && p.n.Load() > 0 }

package sim

import "github.com/lockstepmq/lockstep/wire"

// Operation is one thing that a client did to the partition and what it heard: it
// appended Count records at an offset, or it was told by a leader that the end is there.
type Operation struct {
	Append bool
	At     wire.Offset
	Count  uint32
	// Call and Return are moments that only order operations; Return is 0 for an append
	// that was never answered.
	Call, Return int64
}

// moment is later than every earlier one.
func (f *fleet) moment() int64 {
	f.moments++
	return f.moments
}

// history is what clients did, those appends left out that left nothing behind.
func (f *fleet) history() []Operation {
	out := f.reads
	for number := int64(1); number <= int64(f.lastBatch); number++ {
		if b := f.batches[number]; b.landed {
			out = append(out, Operation{Append: true, At: b.offset, Count: b.count, Call: b.sent, Return: b.answered})
		}
	}
	return out
}

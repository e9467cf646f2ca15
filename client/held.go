package client

import (
	"maps"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

const (
	// heldBits is the binary logarithm of the records of a block.
	heldBits = 5
	// maxHeldSpare bounds the empty blocks that are kept for others.
	maxHeldSpare = 64
)

// heldRecords are the records that an attachment holds, by offset. Records come in runs
// and go in runs: neighbours share a block, and the block that was used last is found
// without the map, so that a record costs no map operation. A record that lies far from
// all others takes a block of some 300 bytes.
type heldRecords struct {
	blocks map[wire.Offset]*heldBlock // by number, none empty
	last   *heldBlock                 // one of blocks, or nil
	spare  []*heldBlock               // empty ones
	n      int
}

// heldBlock has the records of which number is offset >> heldBits.
type heldBlock struct {
	number  wire.Offset
	n       int
	records [1 << heldBits]*Delivery
}

func (h *heldRecords) len() int { return h.n }

func (h *heldRecords) block(o wire.Offset) *heldBlock {
	number := o >> heldBits
	if b := h.last; b != nil && b.number == number {
		return b
	}
	b := h.blocks[number]
	if b != nil {
		h.last = b
	}
	return b
}

// get returns the record at o, nil if it is not held.
func (h *heldRecords) get(o wire.Offset) *Delivery {
	b := h.block(o)
	if b == nil {
		return nil
	}
	return b.records[o&(1<<heldBits-1)]
}

// put takes in a record in whose place there is none.
func (h *heldRecords) put(d *Delivery) {
	o := wire.Offset(d.Offset)
	b := h.block(o)
	if b == nil {
		if last := len(h.spare) - 1; last >= 0 {
			b = h.spare[last]
			h.spare = h.spare[:last]
		} else {
			b = new(heldBlock)
		}
		if h.blocks == nil {
			h.blocks = make(map[wire.Offset]*heldBlock)
		}
		b.number = o >> heldBits
		h.blocks[b.number], h.last = b, b
	}
	b.records[o&(1<<heldBits-1)] = d
	b.n++
	h.n++
}

// remove drops the record at o, if it is held.
func (h *heldRecords) remove(o wire.Offset) {
	b := h.block(o)
	at := o & (1<<heldBits - 1)
	if b == nil || b.records[at] == nil {
		return
	}
	b.records[at] = nil
	b.n--
	h.n--
	if b.n == 0 {
		delete(h.blocks, b.number)
		h.last = nil
		if len(h.spare) < maxHeldSpare {
			h.spare = append(h.spare, b)
		}
	}
}

// list returns all records, ascending, in a slice of the caller's.
func (h *heldRecords) list() []*Delivery {
	list := make([]*Delivery, 0, h.n)
	for _, number := range slices.Sorted(maps.Keys(h.blocks)) {
		for _, d := range h.blocks[number].records {
			if d != nil {
				list = append(list, d)
			}
		}
	}
	return list
}

// clear drops all records.
func (h *heldRecords) clear() { *h = heldRecords{} }

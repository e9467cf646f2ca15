package group

import (
	"math"
	"slices"

	"github.com/RoaringBitmap/roaring/v2"

	"github.com/lockstepmq/lockstep/wire"
)

// Done is a set of finished records: all below its floor, and some above. It costs
// nothing for records that finish in order, at most a bit each for others. Owner only.
type Done struct {
	floor wire.Offset // the lowest record that is not done
	pages []page      // ascending by number; none is empty; nothing at or below floor
}

// page holds the records of 2^32 offsets, for a bitmap counts no further.
type page struct {
	number uint64
	bits   *roaring.Bitmap
}

const pageSize = 1 << 32

// Floor is the lowest record that is not done.
func (d *Done) Floor() wire.Offset { return d.floor }

// find returns where the page of a number is, or belongs.
func (d *Done) find(number uint64) (int, bool) {
	return slices.BinarySearchFunc(d.pages, number, func(p page, n uint64) int {
		switch {
		case p.number < n:
			return -1
		case p.number > n:
			return 1
		}
		return 0
	})
}

// Has reports whether the record at o is done.
func (d *Done) Has(o wire.Offset) bool {
	if o < d.floor {
		return true
	}
	i, found := d.find(uint64(o) / pageSize)
	return found && d.pages[i].bits.Contains(uint32(o))
}

// Next is the first record at or above o that is not done.
func (d *Done) Next(o wire.Offset) wire.Offset {
	if o < d.floor {
		return d.floor // it is not done, as the name says
	}
	for {
		i, found := d.find(uint64(o) / pageSize)
		if !found {
			return o
		}
		next := d.pages[i].bits.NextAbsentValue(uint32(o))
		if next >= 0 && next < pageSize {
			return wire.Offset(d.pages[i].number*pageSize + uint64(next))
		}
		o = wire.Offset((d.pages[i].number + 1) * pageSize)
	}
}

// Add marks the records [from, to) as done.
func (d *Done) Add(from, to wire.Offset) {
	if from = max(from, d.floor); from >= to {
		return
	}
	if from == d.floor {
		d.Raise(to)
		return
	}
	for from < to {
		number := uint64(from) / pageSize
		end := min(uint64(to), (number+1)*pageSize)
		i, found := d.find(number)
		if !found {
			bits := roaring.New()
			bits.SetCopyOnWrite(true)
			d.pages = slices.Insert(d.pages, i, page{number: number, bits: bits})
		}
		d.pages[i].bits.AddRange(uint64(uint32(from)), end-number*pageSize)
		from = wire.Offset(end)
	}
}

// Raise marks everything below floor as done.
func (d *Done) Raise(floor wire.Offset) {
	if floor <= d.floor {
		return
	}
	d.floor = floor
	if len(d.pages) == 0 {
		return
	}
	d.floor = d.Next(floor)
	keep := 0
	for keep < len(d.pages) && d.pages[keep].number < uint64(d.floor)/pageSize {
		keep++
	}
	d.pages = slices.Delete(d.pages, 0, keep)
	if len(d.pages) == 0 || d.pages[0].number > uint64(d.floor)/pageSize {
		return
	}
	first := d.pages[0].bits
	if first.RemoveRange(0, uint64(uint32(d.floor))); first.IsEmpty() {
		d.pages = slices.Delete(d.pages, 0, 1)
	}
}

// Above is how many records above the floor are done.
func (d *Done) Above() uint64 {
	var n uint64
	for _, p := range d.pages {
		n += p.bits.GetCardinality()
	}
	return n
}

// Clone returns a set that shares its memory with d until one of them changes.
func (d *Done) Clone() Done {
	c := Done{floor: d.floor, pages: slices.Clone(d.pages)}
	for i := range c.pages {
		c.pages[i].bits = c.pages[i].bits.Clone()
	}
	return c
}

// count is how many of the records [from, to) are done.
func (d *Done) count(from, to wire.Offset) uint64 {
	var n uint64
	if from < d.floor {
		n = uint64(min(to, d.floor) - from)
		from = d.floor
	}
	for _, p := range d.pages {
		low, high := p.number*pageSize, p.number*pageSize+math.MaxUint32
		if from >= to || uint64(to) <= low || uint64(from) > high {
			continue
		}
		n += p.bits.Rank(uint32(min(uint64(to-1), high) - low))
		if uint64(from) > low {
			n -= p.bits.Rank(uint32(uint64(from-1) - low))
		}
	}
	return n
}

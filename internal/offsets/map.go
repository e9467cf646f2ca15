// Package offsets has a map by offset for what comes and goes in runs, as the records
// do that consumers hold.
package offsets

import (
	"iter"
	"maps"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

const (
	// blockBits is the binary logarithm of the entries of a block.
	blockBits = 5
	mask      = 1<<blockBits - 1
	// maxSpare bounds the empty blocks that are kept for others.
	maxSpare = 64
)

// Map is a map from offsets to pointers. Neighbours share a block of 32, and the block
// that was used last is found at once: so what comes in runs costs no map operation for
// each entry. An entry far from all others takes some 300 bytes. The zero value is
// empty. It is not safe for concurrent use.
type Map[T any] struct {
	blocks map[wire.Offset]*block[T] // by number, none empty
	last   *block[T]                 // one of blocks, or nil
	spare  []*block[T]               // empty ones
	n      int
}

// block has the entries whose offset >> blockBits is number.
type block[T any] struct {
	number  wire.Offset
	n       int
	entries [1 << blockBits]*T
}

// Len is the number of entries.
func (m *Map[T]) Len() int { return m.n }

func (m *Map[T]) block(o wire.Offset) *block[T] {
	number := o >> blockBits
	if b := m.last; b != nil && b.number == number {
		return b
	}
	b := m.blocks[number]
	if b != nil {
		m.last = b
	}
	return b
}

// Get returns the entry at o, nil if there is none.
func (m *Map[T]) Get(o wire.Offset) *T {
	if m.n == 0 {
		return nil
	}
	b := m.block(o)
	if b == nil {
		return nil
	}
	return b.entries[o&mask]
}

// Put sets the entry at o, which is not nil.
func (m *Map[T]) Put(o wire.Offset, v *T) {
	b := m.block(o)
	if b == nil {
		b = m.add(o >> blockBits)
	}
	if b.entries[o&mask] == nil {
		b.n++
		m.n++
	}
	b.entries[o&mask] = v
}

func (m *Map[T]) add(number wire.Offset) *block[T] {
	var b *block[T]
	if last := len(m.spare) - 1; last >= 0 {
		b = m.spare[last]
		m.spare = m.spare[:last]
	} else {
		b = new(block[T])
	}
	if m.blocks == nil {
		m.blocks = make(map[wire.Offset]*block[T])
	}
	b.number = number
	m.blocks[number], m.last = b, b
	return b
}

// Remove drops the entry at o and returns it, nil if there is none.
func (m *Map[T]) Remove(o wire.Offset) *T {
	if m.n == 0 {
		return nil
	}
	b := m.block(o)
	if b == nil || b.entries[o&mask] == nil {
		return nil
	}
	v := b.entries[o&mask]
	b.entries[o&mask] = nil
	b.n--
	m.n--
	if b.n == 0 {
		delete(m.blocks, b.number)
		m.last = nil
		if len(m.spare) < maxSpare {
			m.spare = append(m.spare, b)
		}
	}
	return v
}

// Clear drops all entries.
func (m *Map[T]) Clear() { *m = Map[T]{} }

// List returns all entries, by ascending offset, in a slice of the caller's.
func (m *Map[T]) List() []*T {
	list := make([]*T, 0, m.n)
	for _, v := range m.All() {
		list = append(list, v)
	}
	return list
}

// All yields all entries, by ascending offset. The map must not change meanwhile.
func (m *Map[T]) All() iter.Seq2[wire.Offset, *T] {
	return func(yield func(wire.Offset, *T) bool) {
		for _, number := range slices.Sorted(maps.Keys(m.blocks)) {
			for i, v := range m.blocks[number].entries {
				if v != nil && !yield(number<<blockBits+wire.Offset(i), v) {
					return
				}
			}
		}
	}
}

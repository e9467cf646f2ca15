package vfs

import (
	"bytes"
	"math/bits"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

const (
	// sectorSize is the unit that a power cut keeps or loses whole.
	sectorSize = 512
	// blockSize is the unit of memory and of allocated space.
	blockSize       = 4096
	sectorsPerBlock = blockSize / sectorSize
)

// image is the content of one simulated file, twice: as the process sees it
// (volatile) and as a power cut would leave it (durable). Only the volatile
// image is kept whole; of the durable one only the sectors that differ, so that
// writing costs memory for what is written, and a crash costs time for what
// was not synced. It has no lock; Simulated guards it.
//
//	                      block
//	data   |  s0  |  s1  |  s2  |  ...  |  s7  |   what reads and maps show
//	dirty     .      x      .              .       written since the last Sync
//	lost      .      .      x              .       a Sync failed: clean, but never written
//	old       -    bytes  bytes            -       durable bytes of dirty and lost sectors
//
// A sector is never both dirty and lost. The durable bytes of a sector are
// data if it is neither, else old; a nil old stands for zeros. A nil block is
// zeros in both images.
type image struct {
	size        int64 // volatile
	durableSize int64

	blocks []*block
	// dirty lists the blocks with a dirty sector, each once, in the order in
	// which they became dirty; lost those with a lost sector, perhaps repeatedly.
	dirty, lost []int64

	// allocated has a bit for each block that owns space; count is their number.
	allocated []uint64
	count     int64

	// onChange is told of every change of the volatile bytes, for mappings. May be nil.
	onChange func(off int64, p []byte)
}

type block struct {
	data        [blockSize]byte
	old         *[blockSize]byte
	dirty, lost uint8 // a bit for each sector
}

// clean reports whether the volatile and the durable image are equal.
func (m *image) clean() bool {
	return len(m.dirty) == 0 && len(m.lost) == 0 && m.size == m.durableSize
}

func (m *image) block(n int64) *block {
	if n < int64(len(m.blocks)) {
		return m.blocks[n]
	}
	return nil
}

func (m *image) makeBlock(n int64) *block {
	if n >= int64(len(m.blocks)) {
		grown := make([]*block, max(n+1, int64(len(m.blocks))*2))
		copy(grown, m.blocks)
		m.blocks = grown
	}
	if m.blocks[n] == nil {
		m.blocks[n] = new(block)
	}
	return m.blocks[n]
}

// soil makes a sector dirty before it is written, keeping its durable bytes.
func (m *image) soil(n int64, b *block, sector int64) {
	bit := uint8(1) << sector
	if b.dirty&bit != 0 {
		return
	}
	if b.dirty == 0 {
		m.dirty = append(m.dirty, n)
	}
	b.dirty |= bit
	if b.lost&bit != 0 {
		b.lost &^= bit // old holds the durable bytes already
		return
	}
	now := b.data[sector*sectorSize:][:sectorSize]
	if b.old == nil {
		if isZero(now) {
			return
		}
		b.old = new([blockSize]byte)
	}
	copy(b.old[sector*sectorSize:], now)
}

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// readAt copies volatile bytes; the caller has cut p at the size.
func (m *image) readAt(p []byte, off int64) {
	for len(p) > 0 {
		at := off % blockSize
		n := min(int64(len(p)), blockSize-at)
		if b := m.block(off / blockSize); b != nil {
			copy(p[:n], b.data[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// writeAt writes into the volatile image and grows it. Space was allocated before.
func (m *image) writeAt(p []byte, off int64) {
	m.size = max(m.size, off+int64(len(p)))
	for len(p) > 0 {
		at := off % blockSize
		n := min(int64(len(p)), blockSize-at)
		b := m.makeBlock(off / blockSize)
		for s := at / sectorSize; s <= (at+n-1)/sectorSize; s++ {
			m.soil(off/blockSize, b, s)
		}
		copy(b.data[at:], p[:n])
		m.changed(off, p[:n])
		p, off = p[n:], off+n
	}
}

// zero writes zeros over [off, end). Sectors that are zero in both images stay clean.
func (m *image) zero(off, end int64) {
	for off < end {
		at := off % blockSize
		n := min(end-off, blockSize-at)
		if b := m.block(off / blockSize); b != nil {
			m.zeroInBlock(off/blockSize, b, at, at+n)
		} else if n == blockSize && off/blockSize >= int64(len(m.blocks)) {
			return // nothing was ever written from here on
		}
		off += n
	}
}

func (m *image) zeroInBlock(n int64, b *block, from, to int64) {
	for from < to {
		s := from / sectorSize
		end := min(to, (s+1)*sectorSize)
		if part := b.data[from:end]; !isZero(part) || b.lost&(1<<s) != 0 {
			m.soil(n, b, s)
			clear(part)
			m.changed(n*blockSize+from, part)
		}
		from = end
	}
}

// truncate sets the volatile size. What is cut off becomes zeros, which are
// durable as little as the new size is.
func (m *image) truncate(size int64) {
	if size < m.size {
		m.zero(size, m.size)
		m.free((size+blockSize-1)/blockSize, int64(len(m.allocated))*64)
	}
	m.size = size
}

func (m *image) changed(off int64, p []byte) {
	if m.onChange != nil {
		m.onChange(off, p)
	}
}

// missing counts the blocks of [off, end) without space.
func (m *image) missing(off, end int64) int64 {
	missing := int64(0)
	m.eachWord(off/blockSize, (end+blockSize-1)/blockSize, func(word *uint64, mask uint64) {
		missing += int64(bits.OnesCount64(mask &^ *word))
	})
	return missing
}

// take marks the blocks of [off, end) as owning space.
func (m *image) take(off, end int64) {
	m.eachWord(off/blockSize, (end+blockSize-1)/blockSize, func(word *uint64, mask uint64) {
		m.count += int64(bits.OnesCount64(mask &^ *word))
		*word |= mask
	})
}

// free takes the space from blocks [first, next).
func (m *image) free(first, next int64) {
	m.eachWord(first, min(next, int64(len(m.allocated))*64), func(word *uint64, mask uint64) {
		m.count -= int64(bits.OnesCount64(mask & *word))
		*word &^= mask
	})
}

// eachWord visits the words of the allocation bitmap that cover blocks [first, next).
func (m *image) eachWord(first, next int64, visit func(word *uint64, mask uint64)) {
	if next <= first {
		return
	}
	if words := (next + 63) / 64; words > int64(len(m.allocated)) {
		grown := make([]uint64, max(words, int64(len(m.allocated))*2))
		copy(grown, m.allocated)
		m.allocated = grown
	}
	for first < next {
		bit := first % 64
		n := min(64-bit, next-first)
		visit(&m.allocated[first/64], (^uint64(0)>>(64-n))<<bit)
		first += n
	}
}

// sync makes the size and all dirty sectors durable. Lost sectors stay lost.
func (m *image) sync() {
	for _, n := range m.dirty {
		b := m.blocks[n]
		b.dirty = 0
		if b.lost == 0 {
			b.old = nil
		}
	}
	m.dirty = m.dirty[:0]
	m.durableSize = m.size
}

// loseDirty is what a failed sync does: the dirty sectors count as clean from
// now on, so no later sync writes them, while reads still show them. The size,
// which is metadata, stays as unsynced as it was.
func (m *image) loseDirty() {
	for _, n := range m.dirty {
		b := m.blocks[n]
		if b.lost == 0 {
			m.lost = append(m.lost, n)
		}
		b.lost |= b.dirty
		b.dirty = 0
	}
	m.dirty = m.dirty[:0]
}

// evictLost drops lost sectors from the volatile image, as a page cache under
// pressure does with clean pages: reads then show what the disk has, up to the
// size. A sector that the disk has bytes in beyond the size stays lost.
func (m *image) evictLost() {
	left := m.lost[:0]
	for _, n := range m.lost {
		b := m.blocks[n]
		m.restore(n, b, b.lost)
		b.lost &= m.hideBeyondSize(n, b)
		if b.lost != 0 {
			left = append(left, n)
		} else if b.dirty == 0 {
			b.old = nil
		}
	}
	m.lost = left
}

// hideBeyondSize clears the volatile bytes of a block beyond the size and returns
// the sectors in which there were any.
func (m *image) hideBeyondSize(n int64, b *block) (sectors uint8) {
	for from := max(0, m.size-n*blockSize); from < blockSize; {
		end := (from/sectorSize + 1) * sectorSize
		if part := b.data[from:end]; !isZero(part) {
			clear(part)
			m.changed(n*blockSize+from, part)
			sectors |= 1 << (from / sectorSize)
		}
		from = end
	}
	return sectors
}

// restore puts the durable bytes back into the volatile image.
func (m *image) restore(n int64, b *block, sectors uint8) {
	for ; sectors != 0; sectors &= sectors - 1 {
		from := int64(bits.TrailingZeros8(sectors)) * sectorSize
		data := b.data[from:][:sectorSize]
		if b.old == nil {
			clear(data)
		} else {
			copy(data, b.old[from:])
		}
		m.changed(n*blockSize+from, data)
	}
}

// crash makes the durable image the only one, after survival has decided which
// of the unsynced sectors reached the disk in time.
func (m *image) crash(s survival) {
	for i, n := range m.dirty {
		b := m.blocks[n]
		kept := b.dirty & s.sectors(i, len(m.dirty))
		m.revive(n, b, b.dirty&^kept)
		b.dirty = 0
	}
	for _, n := range m.lost {
		b := m.blocks[n]
		m.revive(n, b, b.lost)
		b.lost, b.old = 0, nil
	}
	for _, n := range m.dirty {
		m.blocks[n].old = nil
	}
	m.dirty, m.lost = m.dirty[:0], m.lost[:0]
	m.size = s.size(m.durableSize, m.size)
	m.durableSize = m.size
	m.cut()
}

// revive restores sectors and, where bytes came back into a hole that was
// punched or truncated, the space below them.
func (m *image) revive(n int64, b *block, sectors uint8) {
	if sectors == 0 {
		return
	}
	m.restore(n, b, sectors)
	if b.old != nil {
		m.take(n*blockSize, (n+1)*blockSize)
	}
}

// cut forgets all bytes and space beyond the size, without a trace of them as unsynced.
func (m *image) cut() {
	first := (m.size + blockSize - 1) / blockSize
	if first < int64(len(m.blocks)) {
		clear(m.blocks[first:])
		m.blocks = m.blocks[:first]
	}
	if at := m.size % blockSize; at != 0 {
		if b := m.block(m.size / blockSize); b != nil {
			clear(b.data[at:])
		}
	}
	m.free(first, int64(len(m.allocated))*64)
}

// flip inverts one bit of both images.
func (m *image) flip(off int64, bit uint) {
	n, at := off/blockSize, off%blockSize
	b := m.makeBlock(n)
	b.data[at] ^= 1 << bit
	if (b.dirty|b.lost)&(1<<(at/sectorSize)) != 0 {
		if b.old == nil {
			b.old = new([blockSize]byte)
		}
		b.old[at] ^= 1 << bit
	}
	m.changed(off, b.data[at:at+1])
}

// noSpace is what operations that need more blocks than there are return.
var noSpace = spaceError{unix.ENOSPC}

// survival decides for one file what a crash keeps. Besides independent coins
// there are the extremes and prefixes: with coins alone, a crash that keeps
// everything of one file and nothing of another would practically never come up.
type survival struct {
	kind   survivalKind
	random *rand.Rand // nil for keepAll and loseAll
	prefix float64    // of keepPrefix: the part of the dirty blocks that survives
}

type survivalKind uint8

const (
	loseAll     survivalKind = iota
	keepAll                  // sectors and size
	keepFew                  // each sector with probability 1/4
	keepHalf                 // 1/2
	keepMost                 // 3/4
	keepPrefix               // the blocks that were dirtied first
	survivalEnd              // number of kinds
)

func randomSurvival(random *rand.Rand) survival {
	return survival{kind: survivalKind(random.IntN(int(survivalEnd))), random: random, prefix: random.Float64()}
}

// sectors returns a bit for each sector of the i-th of n dirty blocks.
func (s survival) sectors(i, n int) uint8 {
	switch s.kind {
	case keepAll:
		return 0xff
	case keepFew:
		r := s.random.Uint32()
		return uint8(r) & uint8(r>>8)
	case keepHalf:
		return uint8(s.random.Uint32())
	case keepMost:
		r := s.random.Uint32()
		return uint8(r) | uint8(r>>8)
	case keepPrefix:
		switch last := int(s.prefix * float64(n)); {
		case i < last:
			return 0xff
		case i == last:
			return uint8(1)<<s.random.IntN(sectorsPerBlock) - 1
		}
	}
	return 0
}

// size chooses between the durable and the volatile size, and for a file that
// grew, the sizes between.
func (s survival) size(durable, volatile int64) int64 {
	switch {
	case durable == volatile || s.kind == keepAll:
		return volatile
	case s.random == nil:
		return durable
	}
	switch s.random.IntN(3) {
	case 0:
		return durable
	case 1:
		if volatile > durable {
			return durable + s.random.Int64N(volatile-durable+1)/sectorSize*sectorSize
		}
	}
	return volatile
}

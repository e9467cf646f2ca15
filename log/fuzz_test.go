package log

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// resealed makes the CRC of the last four bytes match, so that fuzzing gets behind it.
func resealed(src []byte) []byte {
	if len(src) < 4 {
		return src
	}
	n := len(src) - 4
	return withChecksum(append([]byte(nil), src[:n]...))
}

// asTooNew is a copy of src that says version 2.
func asTooNew(src []byte) []byte {
	b := append([]byte(nil), src...)
	b[8] = 2
	return resealed(b)
}

// requireOneCause holds a decoder's error to one cause: a newer build, or damage.
func requireOneCause(t *testing.T, err error) {
	causes := 0
	for _, cause := range []error{ErrTooNew, errMagic, errChecksum, errLength, errFields, errSlotEmpty} {
		if errors.Is(err, cause) {
			causes++
		}
	}
	require.Equal(t, 1, causes, "%v", err)
}

// FuzzManifest: what parses encodes to the same bytes, but for reserved ones.
func FuzzManifest(f *testing.F) {
	m := &manifest{
		Identity: goldenIdentity, replicaID: 7, nextSequence: 0x12,
		start:    segment.Link{Index: 0x20, Term: 2, Next: 0x30, TimeMs: 0x40, Chain: 0x01020304},
		segments: []manifestSegment{{sequence: 0x10, fileID: 0x100000001, baseIndex: 0x21}, {sequence: 0x11, fileID: 0x100000002}},
	}
	f.Add(m.append(nil))
	f.Add((&manifest{nextSequence: 1}).append(nil))
	f.Add(asTooNew(m.append(nil)))
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, src := range [][]byte{src, resealed(src)} {
			m, err := parseManifest(src[:len(src):len(src)])
			if err != nil {
				requireOneCause(t, err)
				continue
			}
			again := m.append(nil)
			require.Len(t, again, len(src))
			require.Equal(t, src[12:len(src)-4], again[12:len(again)-4])
			back, err := parseManifest(again)
			require.NoError(t, err)
			require.Equal(t, m, back)
		}
	})
}

// FuzzCheckpoint: the views lie inside the bytes they were taken from, and what
// parses encodes to the same bytes, but for reserved ones.
func FuzzCheckpoint(f *testing.F) {
	c := &savedCheckpoint{
		Checkpoint: Checkpoint{Applied: 0x20, Term: 2, NextOffset: 0x30, AppendTimeMs: 0x40, ConfState: []byte("conf"), State: []byte("the state")},
		position:   Position{Segment: 0x10, Byte: 0x1000}, chain: 0x01020304, timeMs: 0x41,
	}
	f.Add(c.append(nil, goldenIdentity))
	f.Add((&savedCheckpoint{}).append(nil, segment.Identity{}))
	f.Add(asTooNew(c.append(nil, goldenIdentity)))
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, src := range [][]byte{src, resealed(src)} {
			c, id, err := parseCheckpoint(src[:len(src):len(src)])
			if err != nil {
				requireOneCause(t, err)
				continue
			}
			require.Equal(t, len(src), checkpointFixed+len(c.ConfState)+len(c.State)+4)
			require.Equal(t, len(c.ConfState), cap(c.ConfState))
			require.Equal(t, len(c.State), cap(c.State))
			again := c.append(nil, id)
			require.Equal(t, src[12:len(src)-4], again[12:len(again)-4])
		}
	})
}

// FuzzDamage: what parses is bounded, in order, and encodes to the same fields.
func FuzzDamage(f *testing.F) {
	run := Damage{segment: 1, Position: 200, End: 300, FirstIndex: 5, LastIndex: 6, Base: 7, Next: 9, before: segment.Link{Index: 4, Term: 2, Next: 7, Chain: 1}}
	later := run
	later.Position, later.End = 400, 500
	f.Add(encodeDamage(goldenIdentity, nil))
	f.Add(encodeDamage(goldenIdentity, []Damage{run, later}))
	f.Add(asTooNew(encodeDamage(goldenIdentity, []Damage{run})))
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, src := range [][]byte{src, resealed(src)} {
			list, id, err := parseDamage(src[:len(src):len(src)])
			if err != nil {
				requireOneCause(t, err)
				continue
			}
			require.LessOrEqual(t, len(list), maxDamage)
			again, sameID, err := parseDamage(encodeDamage(id, list))
			require.NoError(t, err)
			require.Equal(t, id, sameID)
			require.Equal(t, list, again)
		}
	})
}

// FuzzHardState reads any bytes as a slot and as a header of the hard-state file.
func FuzzHardState(f *testing.F) {
	s := slotState{
		flags: slotClean | slotUncertain, sequence: 0x11, boot: 0x22, identity: goldenIdentity.PartitionID,
		term: 0x33, vote: 0x44, commit: 0x55, mark: 0x66,
	}
	var b [slotSize]byte
	f.Add(b[:])
	s.encode(b[:])
	f.Add(append([]byte(nil), b[:]...))
	b[4]++
	f.Add(append([]byte(nil), b[:]...))
	encodeStateHeader(b[:], goldenIdentity.PartitionID, 9)
	f.Add(append([]byte(nil), b[:]...))
	f.Fuzz(func(t *testing.T, src []byte) {
		if _, _, err := parseStateHeader(src); len(src) < slotSize {
			require.ErrorIs(t, err, errMagic)
			return
		}
		src = src[:slotSize:slotSize]
		asSlot := append([]byte(nil), src...)
		binary.LittleEndian.PutUint32(asSlot, wire.Checksum(asSlot[4:]))
		for _, src := range [][]byte{src, asSlot} {
			s, err := parseSlot(src)
			if err != nil {
				requireOneCause(t, err)
				continue
			}
			var again [slotSize]byte
			s.encode(again[:])
			back, err := parseSlot(again[:])
			require.NoError(t, err)
			require.Equal(t, s, back)
			require.Equal(t, src[8:], again[8:])
		}
		asHeader := append([]byte(hardStateMagic), src[8:headerChecked]...)
		for _, src := range [][]byte{src, withChecksum(asHeader)} {
			uuid, opens, err := parseStateHeader(src)
			if err != nil {
				requireOneCause(t, err)
				continue
			}
			var again [slotSize]byte
			encodeStateHeader(again[:], uuid, opens)
			uuidBack, opensBack, err := parseStateHeader(again[:])
			require.NoError(t, err)
			require.Equal(t, uuid, uuidBack)
			require.Equal(t, opens, opensBack)
		}
	})
}

// FuzzJournal reads any bytes as a journal file: no panic, no record that does not
// verify or does not lie in the file, and what a writer makes is read back.
func FuzzJournal(f *testing.F) {
	const seed, sequence = 7, 9
	block := func(previous uint32, payload string) ([]byte, uint32) {
		r := journalRecord{identity: [16]byte{1}, fileID: 2, length: uint32(len(payload))}
		b := make([]byte, blockHeaderSize+recordHeaderSize)
		r.encode(b[blockHeaderSize:])
		h := blockHeader{sequence: sequence, records: 1, previous: previous}
		b = sealBlock(append(b, payload...), &h, seed)
		return b, h.crc
	}
	first, crc := block(0, "frames")
	second, _ := block(crc, "more frames")
	f.Add(append(first, second...))
	f.Add(first[:100])
	f.Add(second)
	f.Fuzz(func(t *testing.T, src []byte) {
		disk := vfs.NewSimulated(1)
		file, err := disk.Create("journal")
		require.NoError(t, err)
		_, err = file.WriteAt(src, 0)
		require.NoError(t, err)
		_, err = scanJournal(file, sequence, seed, int64(len(src)), func(r journalRecord, pos int64, frames []byte) {
			require.Equal(t, src[pos:pos+int64(r.length)], frames)
			again := make([]byte, recordHeaderSize)
			r.encode(again)
			require.Equal(t, again[:28], src[pos-recordHeaderSize:][:28])
		})
		if err != nil {
			require.ErrorIs(t, err, ErrTooNew)
		}
	})
}

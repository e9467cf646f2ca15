package log

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func golden(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	require.NoError(t, err)
	return b
}

func withChecksum(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, wire.Checksum(b)) }

var goldenIdentity = segment.Identity{
	PartitionID: [16]byte{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf},
	Incarnation: 3,
}

// flipped calls check with every single-bit error of b.
func flipped(b []byte, check func(bit int, b []byte)) {
	for bit := range len(b) * 8 {
		c := append([]byte(nil), b...)
		c[bit/8] ^= 1 << (bit % 8)
		check(bit, c)
	}
}

func TestManifestGoldenBytes(t *testing.T) {
	m := &manifest{
		Identity: goldenIdentity, replicaID: 7, nextSequence: 0x12,
		start:    segment.Link{Index: 0x20, Term: 2, Next: 0x30, TimeMs: 0x40, Chain: 0x01020304},
		segments: []manifestSegment{{sequence: 0x10, fileID: 0x100000001, baseIndex: 0x21}, {sequence: 0x11, fileID: 0x100000002}},
	}
	want := withChecksum(golden(t, `
		4c4b4d414e49460a 0100 0000 03000000
		a0a1a2a3a4a5a6a7a8a9aaabacadaeaf
		0700000000000000 1200000000000000
		2000000000000000 0200000000000000
		3000000000000000 4000000000000000
		04030201 02000000
		1000000000000000 0100000001000000 2100000000000000
		1100000000000000 0200000001000000 0000000000000000`))
	require.Equal(t, want, m.append(nil))
	got, err := parseManifest(want)
	require.NoError(t, err)
	require.Equal(t, m, got)
	flipped(want, func(bit int, b []byte) {
		_, err := parseManifest(b)
		require.Error(t, err, "bit %d", bit)
		require.NotErrorIs(t, err, ErrTooNew, "bit %d", bit)
	})
	for n := range want {
		_, err := parseManifest(want[:n])
		require.Error(t, err)
	}
	newer := append([]byte(nil), want[:len(want)-4]...)
	newer[8] = manifestVersion + 1
	_, err = parseManifest(withChecksum(append(newer, "more fields"...)))
	require.ErrorIs(t, err, ErrTooNew)
}

func TestCheckpointGoldenBytes(t *testing.T) {
	c := &savedCheckpoint{
		Checkpoint: Checkpoint{Applied: 0x20, Term: 2, NextOffset: 0x30, AppendTimeMs: 0x40, ConfState: []byte("conf"), State: []byte("the state")},
		position:   Position{Segment: 0x10, Byte: 0x1000}, chain: 0x01020304, timeMs: 0x41,
	}
	want := withChecksum(golden(t, `
		4c4b434845434b0a 0100 0000 03000000
		a0a1a2a3a4a5a6a7a8a9aaabacadaeaf
		2000000000000000 0200000000000000
		3000000000000000 4000000000000000
		1000000000000000 0010000000000000
		04030201 04000000 0900000000000000
		4100000000000000
		636f6e66 746865207374617465`))
	require.Equal(t, want, c.append(nil, goldenIdentity))
	got, id, err := parseCheckpoint(want)
	require.NoError(t, err)
	require.Equal(t, c, got)
	require.Equal(t, goldenIdentity, id)
	flipped(want, func(bit int, b []byte) {
		_, _, err := parseCheckpoint(b)
		require.Error(t, err, "bit %d", bit)
	})
	for n := range want {
		_, _, err := parseCheckpoint(want[:n])
		require.Error(t, err)
	}
	newer := append([]byte(nil), want[:len(want)-4]...)
	newer[8] = checkpointVersion + 1
	_, _, err = parseCheckpoint(withChecksum(newer))
	require.ErrorIs(t, err, ErrTooNew)
	huge := append([]byte(nil), want[:len(want)-4]...)
	binary.LittleEndian.PutUint64(huge[88:], 1<<63)
	_, _, err = parseCheckpoint(withChecksum(huge))
	require.ErrorIs(t, err, errLength)
}

func TestHardStateGoldenBytes(t *testing.T) {
	s := slotState{
		flags: slotClean | slotUncertain, sequence: 0x11, boot: 0x22, identity: goldenIdentity.PartitionID,
		term: 0x33, vote: 0x44, commit: 0x55, mark: 0x66,
	}
	rest := golden(t, `
		01 05 0000 11000000 22000000
		a0a1a2a3a4a5a6a7a8a9aaabacadaeaf
		3300000000000000 4400000000000000
		5500000000000000 6600000000000000`)
	want := append(binary.LittleEndian.AppendUint32(nil, wire.Checksum(rest)), rest...)
	got := make([]byte, slotSize)
	s.encode(got)
	require.Equal(t, want, got)
	parsed, err := parseSlot(want)
	require.NoError(t, err)
	require.Equal(t, s, parsed)
	flipped(want, func(bit int, b []byte) {
		_, err := parseSlot(b)
		require.ErrorIs(t, err, errChecksum, "bit %d", bit)
	})
	_, err = parseSlot(make([]byte, slotSize))
	require.ErrorIs(t, err, errSlotEmpty)
	rest[0] = hardStateVersion + 1
	_, err = parseSlot(append(binary.LittleEndian.AppendUint32(nil, wire.Checksum(rest)), rest...))
	require.ErrorIs(t, err, ErrTooNew)

	header := withChecksum(golden(t, `
		4c4b48415244530a 0100 000000000000
		a0a1a2a3a4a5a6a7a8a9aaabacadaeaf
		0900000000000000 0000000000000000
		000000000000000000000000`))
	encodeStateHeader(got, goldenIdentity.PartitionID, 9)
	require.Equal(t, header, got)
	uuid, opens, err := parseStateHeader(header)
	require.NoError(t, err)
	require.Equal(t, goldenIdentity.PartitionID, uuid)
	require.Equal(t, uint64(9), opens)
	flipped(header, func(bit int, b []byte) {
		_, _, err := parseStateHeader(b)
		require.Error(t, err, "bit %d", bit)
	})
	header[8] = hardStateVersion + 1
	_, _, err = parseStateHeader(withChecksum(header[:headerChecked]))
	require.ErrorIs(t, err, ErrTooNew)
}

func TestSlotCopiesNeverShareAPage(t *testing.T) {
	seen := map[int64]bool{}
	for n := range 3 * slotsPerPage {
		s := &slot{number: n}
		a, b := s.position(false), s.position(true)
		require.NotEqual(t, a/statePage, b/statePage)
		require.GreaterOrEqual(t, a, int64(firstSlotPages*statePage))
		require.Equal(t, a/512, (a+slotSize-1)/512, "a copy lies in one sector")
		require.False(t, seen[a] || seen[b])
		seen[a], seen[b] = true, true
	}
}

// setVersion makes a file look as if a newer build wrote it. The CRC of the first
// size bytes, or of the whole file, is corrected.
func setVersion(t *testing.T, fs vfs.FS, name string, size int) {
	f, err := fs.Open(name)
	require.NoError(t, err)
	defer f.Close()
	n, err := f.Size()
	require.NoError(t, err)
	b := make([]byte, n)
	_, err = f.ReadAt(b, 0)
	require.NoError(t, err)
	if size > 0 {
		b = b[:size]
	}
	b[8] = 2
	binary.LittleEndian.PutUint32(b[len(b)-4:], wire.Checksum(b[:len(b)-4]))
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
}

func TestFilesOfANewerVersionAreNotCorrupt(t *testing.T) {
	for _, name := range []string{"manifest", "checkpoint.0", "checkpoint.1", "0000000000000001-0000000100000001.segment"} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewSimulated(1)
			r := newRig(t, fs, nil).open()
			r.term(1)
			for i := wire.Index(1); i <= 3; i++ {
				r.append(records(i, 1, 1, 10))
				r.commit()
				r.checkpoint()
			}
			r.close(true)
			size := 0
			if strings.HasSuffix(name, "segment") {
				size = segment.HeaderSize
			}
			setVersion(t, fs, r.options.Dir+"/"+name, size)
			err := r.tryOpen()
			require.ErrorIs(t, err, ErrTooNew)
			require.NotErrorIs(t, err, ErrCorrupt)
			if !strings.HasPrefix(name, "checkpoint") {
				require.ErrorIs(t, Inspect(fs, r.options.Dir, func(InspectedFrame) error { return nil }), ErrTooNew)
			}
		})
	}
	fs := vfs.NewSimulated(1)
	newRig(t, fs, nil).open().close(true)
	setVersion(t, fs, testDir+"/hardstate", slotSize)
	r := newRig(t, fs, nil)
	require.ErrorIs(t, r.tryOpen(), ErrTooNew)
}

func TestAFrameOfANewerVersionIsNotCorrupt(t *testing.T) {
	for name, change := range map[string]func(header []byte){
		"version": func(header []byte) { header[2] = wire.FrameVersion + 1 },
		"kind":    func(header []byte) { header[3] = byte(wire.KindNoOp) + 1 },
	} {
		t.Run(name, func(t *testing.T) { aNewerFrameIsNotCorrupt(t, change) })
	}
}

func aNewerFrameIsNotCorrupt(t *testing.T, change func(header []byte)) {
	fs := vfs.NewSimulated(1)
	r := newRig(t, fs, nil).open()
	r.term(1)
	r.append(records(1, 1, 1, 10))
	r.append(records(2, 1, 1, 10))
	p, _ := r.log.place(1)
	name, pos := r.options.Dir+"/"+p.seg.Name(), p.end
	r.sync()
	r.close(false)
	f, err := fs.Open(name)
	require.NoError(t, err)
	b := make([]byte, wire.FrameHeaderSize)
	_, err = f.ReadAt(b, pos)
	require.NoError(t, err)
	change(b)
	binary.LittleEndian.PutUint32(b[52:], wire.Checksum(b[:52]))
	_, err = f.WriteAt(b, pos)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	err = r.tryOpen()
	require.ErrorIs(t, err, ErrTooNew)
	require.NotErrorIs(t, err, ErrCorrupt)
}

func TestJournalGoldenBytes(t *testing.T) {
	const seed = 0x11223344
	frames := golden(t, `f0f1f2f3f4f5f6f7`)
	r := journalRecord{
		identity: [16]byte{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf},
		fileID:   0x100000002, length: 8, fresh: true,
	}
	b := make([]byte, blockHeaderSize+recordHeaderSize)
	r.encode(b[blockHeaderSize:])
	b = append(b, frames...)
	h := blockHeader{sequence: 0x300000004, records: 1, previous: 0x01020304}
	b = sealBlock(b, &h, seed)

	record := withChecksum(golden(t, `
		a0a1a2a3a4a5a6a7a8a9aaabacadaeaf
		0200000001000000 08000000 0100 0000
		00000000`))
	payload := append(record, frames...)
	header := golden(t, `
		4c4b4a4e 0100 0000 0400000003000000
		58000000 01000000 04030201`)
	header = binary.LittleEndian.AppendUint32(header, wire.Checksum(payload))
	header = append(header, 0, 0, 0, 0)
	header = binary.LittleEndian.AppendUint32(header, wire.UpdateChecksum(seed, header))
	want := append(append(header, payload...), make([]byte, 4096-88)...)
	require.Equal(t, want, b)

	got, err := parseBlock(want, seed)
	require.NoError(t, err)
	require.Equal(t, h, got)
	gotRecord, err := parseRecord(want[blockHeaderSize:])
	require.NoError(t, err)
	require.Equal(t, r, gotRecord)
	_, err = parseBlock(want, seed+1)
	require.ErrorIs(t, err, errChecksum, "a block of another store")
	flipped(want[:blockHeaderSize], func(bit int, b []byte) {
		_, err := parseBlock(b, seed)
		require.Error(t, err, "bit %d", bit)
		require.NotErrorIs(t, err, ErrTooNew, "bit %d", bit)
	})
	flipped(want[blockHeaderSize:][:recordHeaderSize], func(bit int, b []byte) {
		_, err := parseRecord(append(b, frames...))
		require.Error(t, err, "bit %d", bit)
	})
	_, err = parseRecord(payload[:len(payload)-1])
	require.ErrorIs(t, err, errLength)
	newer := append([]byte(nil), want[:blockHeaderChecked]...)
	newer[4] = journalVersion + 1
	_, err = parseBlock(binary.LittleEndian.AppendUint32(newer, wire.UpdateChecksum(seed, newer)), seed)
	require.ErrorIs(t, err, ErrTooNew)
	require.Equal(t, "0000000300000004.journal", journalFileName(0x300000004))
	sequence, ok := parseJournalName("0000000300000004.journal")
	require.True(t, ok)
	require.Equal(t, uint64(0x300000004), sequence)
	for _, name := range []string{"300000004.journal", "0000000300000004.segment", "000000030000000G.journal", "journal"} {
		_, ok := parseJournalName(name)
		require.False(t, ok, name)
	}
}

package segment

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// erasedRuns are two runs, the second without records.
func erasedRuns() []Erased {
	return []Erased{
		{
			From: 4096, To: 4096 + 65536,
			Before: Link{Index: 16, Term: 1, Next: 17, TimeMs: 18, Chain: 0xa1a2a3a4},
			After:  Link{Index: 26, Term: 2, Next: 27, TimeMs: 28, Chain: 0xb1b2b3b4},
		},
		{
			From: 4096 + 65536, To: 1 << 18,
			Before: Link{Index: 26, Term: 2, Next: 27, TimeMs: 28, Chain: 0xb1b2b3b4},
			After:  Link{Index: 36, Term: 3, Next: 27, TimeMs: 38, Chain: 0xc1c2c3c4},
		},
	}
}

// The list of erased runs byte by byte, as docs/formats-storage.md draws it.
func TestErasedRunsAreStoredAsDrawn(t *testing.T) {
	h := Header{Identity: Identity{PartitionID: [16]byte{0xee}, Incarnation: 3}, Sequence: 4, FileID: 5, Previous: Link{Index: 6, Term: 1, Next: 7, TimeMs: 8, Chain: 9}, Capacity: 1 << 20}
	got := appendErased(nil, &h, erasedRuns())
	require.Len(t, got, 128+8+2*96+4)
	require.Equal(t, "LKERASE\n", string(got[:8]))
	u64 := binary.LittleEndian.Uint64
	var fields []uint64
	for at := 136; at < 136+96; at += 8 {
		fields = append(fields, u64(got[at:]))
	}
	require.Equal(t, []uint64{4096, 69632, 16, 1, 17, 18, 0xb1b2b3b4_a1a2a3a4, 26, 2, 27, 28, 0}, fields)
	require.EqualValues(t, 2, u64(got[128:]))
	require.Equal(t, wire.Checksum(got[:len(got)-4]), binary.LittleEndian.Uint32(got[len(got)-4:]))

	runs, err := parseErased(got, &h)
	require.NoError(t, err)
	require.Equal(t, erasedRuns(), runs)
	other := h
	other.FileID++
	_, err = parseErased(got, &other)
	require.ErrorIs(t, err, ErrFormat, "that of another file")
	newer := bytes.Clone(got)
	copy(newer, headerMagic)
	newer[8] = Version + 1
	binary.LittleEndian.PutUint32(newer[124:], wire.Checksum(newer[:124]))
	copy(newer, erasedMagic)
	_, err = parseErased(resealed(newer, len(newer)), &h)
	require.ErrorIs(t, err, ErrTooNew)
	for i := range got {
		bad := bytes.Clone(got)
		bad[i] ^= 4
		_, err := parseErased(bad, &h)
		require.Error(t, err, "byte %d", i)
	}
}

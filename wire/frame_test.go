package wire

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldenFrame is the header of a stored frame of version 1 with the body "hello".
const goldenFrame = `
	4c 53                   // magic "LS"
	01                      // version 1
	01                      // kind records
	02 00 00 00             // 2 records
	03 00 00 00 00 00 00 00 // term 3
	04 00 00 00 00 00 00 00 // index 4
	05 00 00 00 00 00 00 00 // base offset 5
	00 68 e5 cf 8b 01 00 00 // append time 1,700,000,000,000 ms
	05 00 00 00             // body of 5 bytes
	4c bb 71 9a             // CRC32C of "hello"
	ef be ad de             // previous header's CRC32C
	c8 f4 9b 59             // CRC32C of the 52 bytes above
	08 07 06 05 04 03 02 01 // replica-local word
`

func goldenFrameHeader() FrameHeader {
	return FrameHeader{
		Kind: KindRecords, RecordCount: 2, Term: 3, Index: 4, BaseOffset: 5, AppendTimeMs: 1_700_000_000_000,
		BodyLength: 5, BodyCRC: Checksum([]byte("hello")), PrevCRC: 0xdeadbeef, Local: 0x0102030405060708,
	}
}

func TestStoredFrameGolden(t *testing.T) {
	want := unhex(t, goldenFrame)
	require.Len(t, want, FrameHeaderSize)
	h := goldenFrameHeader()
	got := make([]byte, FrameHeaderSize)
	h.Encode(got)
	require.Equal(t, want, got)
	require.Equal(t, uint32(0x599bf4c8), h.HeaderCRC)

	parsed, err := ParseFrameHeader(want)
	require.NoError(t, err)
	require.Equal(t, h, parsed)
	require.Equal(t, Offset(7), parsed.NextOffset())
	require.Equal(t, int64(72), parsed.FrameSize())
}

func TestFrameSizesAreMultiplesOfEight(t *testing.T) {
	for bodyLength, want := range map[int]int64{0: 64, 1: 72, 7: 72, 8: 72, 9: 80, 1 << 20: 64 + 1<<20} {
		require.Equal(t, want, FrameSize(bodyLength), "body of %d bytes", bodyLength)
	}
}

func TestParseFrameHeaderRefuses(t *testing.T) {
	good := unhex(t, goldenFrame)
	t.Run("a header that is cut short", func(t *testing.T) {
		for n := range FrameHeaderSize {
			_, err := ParseFrameHeader(good[:n])
			require.ErrorIs(t, err, ErrFrameShort)
		}
	})
	t.Run("zeros behind the tail", func(t *testing.T) {
		_, err := ParseFrameHeader(make([]byte, FrameHeaderSize))
		require.ErrorIs(t, err, ErrFrameMagic)
	})
	t.Run("every flipped bit but those of the local word", func(t *testing.T) {
		for bit := range FrameHeaderSize * 8 {
			b := append([]byte(nil), good...)
			b[bit/8] ^= 1 << (bit % 8)
			_, err := ParseFrameHeader(b)
			switch {
			case bit < 16:
				require.ErrorIs(t, err, ErrFrameMagic, "bit %d", bit)
			case bit < 56*8:
				require.ErrorIs(t, err, ErrFrameChecksum, "bit %d", bit)
			default:
				require.NoError(t, err, "bit %d", bit)
			}
		}
	})
	t.Run("a newer version, which is not corruption", func(t *testing.T) {
		for _, version := range []byte{FrameVersion + 1, 255} {
			b := append([]byte(nil), good...)
			b[2] = version
			binary.LittleEndian.PutUint32(b[52:], Checksum(b[:52]))
			_, err := ParseFrameHeader(b)
			require.ErrorIs(t, err, ErrFrameVersion)
			require.NotErrorIs(t, err, ErrFrameChecksum)
		}
	})
}

func TestTheHeaderIsAPureFunctionOfPredecessorAndEntry(t *testing.T) {
	a, b := goldenFrameHeader(), goldenFrameHeader()
	a.Local, b.Local = 1, 2 // two replicas
	encodedA, encodedB := make([]byte, FrameHeaderSize), make([]byte, FrameHeaderSize)
	a.Encode(encodedA)
	b.Encode(encodedB)
	require.Equal(t, encodedA[:56], encodedB[:56])
	require.Equal(t, a.HeaderCRC, b.HeaderCRC)
	b.PrevCRC++ // another history
	b.Encode(encodedB)
	require.NotEqual(t, a.HeaderCRC, b.HeaderCRC)
}

func TestChecksumIsCastagnoli(t *testing.T) {
	// The check value of CRC-32C in the catalogues of CRCs.
	require.Equal(t, uint32(0xe3069283), Checksum([]byte("123456789")))
	require.Equal(t, uint32(0xe3069283), UpdateChecksum(Checksum([]byte("1234")), []byte("56789")))
	require.Zero(t, Checksum(nil))
}

func FuzzParseFrameHeader(f *testing.F) {
	f.Add(unhex(f, goldenFrame))
	f.Add(make([]byte, FrameHeaderSize))
	f.Fuzz(func(t *testing.T, src []byte) {
		signed := append([]byte(nil), src...)
		if len(signed) >= FrameHeaderSize {
			binary.LittleEndian.PutUint32(signed[52:], Checksum(signed[:52]))
		}
		for _, src := range [][]byte{src, signed} {
			h, err := ParseFrameHeader(src)
			if err != nil {
				continue
			}
			encoded := make([]byte, FrameHeaderSize)
			again := h
			again.Encode(encoded)
			require.Equal(t, src[:FrameHeaderSize], encoded)
			require.Equal(t, h, again)
			require.GreaterOrEqual(t, h.FrameSize(), int64(FrameHeaderSize))
			require.Zero(t, h.FrameSize()%FrameAlignment)
		}
	})
}

// There never was a version 0: what says so is of no build that is known.
func TestAFrameOfVersion0IsRefused(t *testing.T) {
	h := FrameHeader{Kind: KindNoOp, Index: 1}
	b := make([]byte, FrameHeaderSize)
	h.Encode(b)
	b[2] = 0
	binary.LittleEndian.PutUint32(b[52:], Checksum(b[:52]))
	_, err := ParseFrameHeader(b)
	require.ErrorIs(t, err, ErrFrameVersion)
}

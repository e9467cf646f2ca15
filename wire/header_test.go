package wire

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldenHeader is a PRODUCE request of version 1 with correlation ID 7 and a body
// of 20 bytes.
const goldenHeader = `
	20 00 00 00 // length 32 = 12 + 20
	09          // opcode PRODUCE
	00          // flags
	01 00       // version 1
	07 00 00 00 // correlation ID 7
	55 af 04 e4 // CRC32C of the above
`

func TestHeaderGolden(t *testing.T) {
	want := unhex(t, goldenHeader)
	h := Header{Length: FrameLength(20), Opcode: OpProduce, Version: 1, ID: 7}
	require.Equal(t, want, AppendHeader(nil, h))

	got, err := ParseHeader(append(want, "the body is not looked at"...))
	require.NoError(t, err)
	require.Equal(t, h, got)
	require.Equal(t, 20, got.BodySize())
	require.Equal(t, 36, got.TotalSize())
}

func TestHeaderOfAnErrorAnswerGolden(t *testing.T) {
	want := unhex(t, `
		18 00 00 00 // length 24 = 12 + 12
		09          // opcode PRODUCE
		03          // flags response, error
		01 00       // version 1
		04 03 02 01 // correlation ID 0x01020304
		ee 9f 3b a4 // CRC32C of the above
		21 00       // code 33 NOT_LEADER
		00 00       // no detail
		00 00 00 00 00 00 00 00 // nowhere to go on
	`)
	h := Header{Opcode: OpProduce, Flags: FlagResponse | FlagError, Version: 1, ID: 0x01020304}
	require.Equal(t, want, AppendFrame(nil, h, &ErrorBody{Code: CodeNotLeader}))
}

// The rows of the bad-input catalogue (RELIABILITY §6.4) that concern a header.
func TestParseHeaderRefuses(t *testing.T) {
	ping := make([]byte, HeaderSize)
	PutHeader(ping, Header{Length: FrameLength(0), Opcode: OpPing, Version: 1})
	h, err := ParseHeader(ping)
	require.NoError(t, err, "a frame without a body")
	require.Zero(t, h.BodySize())
	good := Header{Length: FrameLength(0), Opcode: OpPing, Version: 1, ID: 1}
	with := func(change func(*Header)) []byte {
		h := good
		change(&h)
		return AppendHeader(nil, h)
	}
	for _, test := range []struct {
		name string
		src  []byte
		want error
	}{
		{"nothing", nil, ErrHeaderShort},
		{"a header that is cut short", AppendHeader(nil, good)[:HeaderSize-1], ErrHeaderShort},
		{"row 3: length 0", with(func(h *Header) { h.Length = 0 }), CodeMalformed},
		{"row 3: length below the header", with(func(h *Header) { h.Length = 11 }), CodeMalformed},
		{"row 4: length 0xFFFFFFFF", with(func(h *Header) { h.Length = 0xFFFFFFFF }), CodeTooLarge},
		{"row 5: length one above the limit", with(func(h *Header) { h.Length = MaxFrameBytes + 1 }), CodeTooLarge},
		{"row 10: reserved flag", with(func(h *Header) { h.Flags = 1 << 2 }), CodeMalformed},
		{"row 10: all flags", with(func(h *Header) { h.Flags = 0xff }), CodeMalformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseHeader(test.src)
			require.ErrorIs(t, err, test.want)
		})
	}
	t.Run("row 11: any flipped bit", func(t *testing.T) {
		for bit := range HeaderSize * 8 {
			src := AppendHeader(nil, good)
			src[bit/8] ^= 1 << (bit % 8)
			_, err := ParseHeader(src)
			require.ErrorIs(t, err, ErrHeaderChecksum, "bit %d", bit)
		}
	})
	t.Run("row 1: other protocols", func(t *testing.T) {
		for _, src := range []string{"GET / HTTP/1.1\r\nHost: x\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdef", "AMQP\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"} {
			require.NotEqual(t, Preface, src[:len(Preface)])
			_, err := ParseHeader([]byte(src))
			require.ErrorIs(t, err, ErrHeaderChecksum)
		}
	})
	t.Run("but takes the largest frame and opcodes it does not know", func(t *testing.T) {
		h, err := ParseHeader(with(func(h *Header) { h.Length, h.Opcode, h.Version = MaxFrameBytes, 200, 9 }))
		require.NoError(t, err)
		require.Equal(t, MaxFrameBytes+4, h.TotalSize())
		require.False(t, h.Opcode.Known())
	})
}

func TestOpcodes(t *testing.T) {
	ranges := SupportedOpcodes()
	require.Len(t, ranges, 40)
	names := map[string]bool{}
	for i, r := range ranges {
		want := Opcode(i + 1)
		require.Equal(t, want, r.Opcode)
		version := uint16(1)
		switch r.Opcode {
		case OpMetadata:
			version = 5
		case OpCreate, OpAlter:
			version = 4
		case OpInitProducer, OpClusterStatus:
			version = 3
		case OpDelete, OpPartAdmin, OpJoin:
			version = 2
		}
		require.Equal(t, r.Opcode.Oldest(), r.Min)
		require.Equal(t, version, r.Max)
		require.Equal(t, version, r.Opcode.Version())
		require.True(t, r.Opcode.Known())
		require.NotEmpty(t, r.Opcode.String())
		names[r.Opcode.String()] = true
	}
	require.Len(t, names, 40)
	require.False(t, Opcode(0).Known())
	require.False(t, Opcode(41).Known())
	require.Equal(t, "UNKNOWN", Opcode(255).String())
}

func FuzzParseHeader(f *testing.F) {
	f.Add(unhex(f, goldenHeader))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add(AppendHeader(nil, Header{Length: 0xFFFFFFFF}))
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, src := range [][]byte{src, signHeader(src)} {
			h, err := ParseHeader(src)
			if err != nil {
				continue
			}
			require.Equal(t, src[:HeaderSize], AppendHeader(nil, h))
			require.GreaterOrEqual(t, h.BodySize(), 0)
			require.LessOrEqual(t, h.TotalSize(), MaxFrameBytes+4)
		}
	})
}

// signHeader gives a header a CRC that matches, so that fuzzing gets behind it.
func signHeader(src []byte) []byte {
	signed := append([]byte(nil), src...)
	if len(signed) >= HeaderSize {
		binary.LittleEndian.PutUint32(signed[headerChecksum:], Checksum(signed[:headerChecksum]))
	}
	return signed
}

package wire

import (
	"testing"

	"github.com/stretchr/testify/require"
)

const goldenPrefix = `
	01                      // kind records
	00 00 00                // reserved
	03 00 00 00             // 3 records
	00 68 e5 cf 8b 01 00 00 // append time 1,700,000,000,000 ms
`

func TestEntryPrefixGolden(t *testing.T) {
	want := unhex(t, goldenPrefix)
	got := make([]byte, EntryPrefixSize)
	PutEntryPrefix(got, KindRecords, 3, 1_700_000_000_000)
	require.Equal(t, want, got)

	kind, count, appendTimeMs, body, err := ParseEntryPrefix(append(want, "body"...))
	require.NoError(t, err)
	require.Equal(t, KindRecords, kind)
	require.Equal(t, uint32(3), count)
	require.Equal(t, int64(1_700_000_000_000), appendTimeMs)
	require.Equal(t, "body", string(body))
}

func TestPutEntryPrefixOverwritesWhatTheBufferHeld(t *testing.T) {
	want := unhex(t, goldenPrefix)
	dirty := []byte("................")
	PutEntryPrefix(dirty, KindRecords, 3, 1_700_000_000_000)
	require.Equal(t, want, dirty)
}

func TestParseEntryPrefixRefuses(t *testing.T) {
	good := unhex(t, goldenPrefix)
	bare := make([]byte, EntryPrefixSize)
	PutEntryPrefix(bare, KindControl, 0, 7)
	kind, _, _, body, err := ParseEntryPrefix(bare)
	require.NoError(t, err, "a control entry of nothing else")
	require.Equal(t, KindControl, kind)
	require.Empty(t, body)
	check, sum := EntryCheck(bare)
	require.Equal(t, UpdateChecksum(sum, bare), check, "the shortest data that has a prefix")
	require.Zero(t, sum)
	with := func(at int, value byte) []byte {
		b := append([]byte(nil), good...)
		b[at] = value
		return b
	}
	for _, test := range []struct {
		name string
		data []byte
	}{
		{"nothing", nil},
		{"15 bytes", good[:15]},
		{"kind 0", with(0, 0)},
		{"a configuration entry", with(0, byte(KindConfiguration))},
		{"a no-op", with(0, byte(KindNoOp))},
		{"a kind it does not know", with(0, 5)},
		{"reserved byte 1", with(1, 1)},
		{"reserved byte 2", with(2, 1)},
		{"reserved byte 3", with(3, 0x80)},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, _, _, err := ParseEntryPrefix(test.data)
			require.ErrorIs(t, err, ErrEntry)
		})
	}
}

const goldenBody = `
	02 00 00 00 // index of 2 bytes
	03 00 00 00 // batch of 3 bytes
	61 62       // index
	63 64 65    // batch
	00 00 00 00 // no index
	01 00 00 00 // batch of 1 byte
	66          // batch
`

func TestBodyGolden(t *testing.T) {
	want := unhex(t, goldenBody)
	body := AppendBodyBatch(nil, []byte("ab"), []byte("cde"))
	require.Len(t, body, BodyBatchSize(2, 3))
	body = AppendBodyBatch(body, nil, []byte("f"))
	require.Equal(t, want, body)

	b, rest, err := NextBodyBatch(body)
	require.NoError(t, err)
	require.Equal(t, "ab", string(b.Index))
	require.Equal(t, "cde", string(b.Batch))
	require.Equal(t, 2, cap(b.Index), "the view cannot grow into the batch")
	require.Equal(t, 3, cap(b.Batch))
	b, rest, err = NextBodyBatch(rest)
	require.NoError(t, err)
	require.Empty(t, b.Index)
	require.Equal(t, "f", string(b.Batch))
	require.Empty(t, rest)
}

func TestNextBodyBatchRefuses(t *testing.T) {
	body := AppendBodyBatch(nil, []byte("ab"), []byte("cde"))
	for n := range len(body) {
		_, _, err := NextBodyBatch(body[:n])
		require.ErrorIs(t, err, ErrEntry, "cut to %d bytes", n)
	}
	overflow := unhex(t, `ff ff ff ff 09 00 00 00 00 00 00 00`) // the sum is 8 in 32 bits
	_, _, err := NextBodyBatch(overflow)
	require.ErrorIs(t, err, ErrEntry)
}

func FuzzParseEntryPrefix(f *testing.F) {
	f.Add(unhex(f, goldenPrefix))
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, count, appendTimeMs, body, err := ParseEntryPrefix(data)
		if err != nil {
			return
		}
		encoded := make([]byte, EntryPrefixSize)
		PutEntryPrefix(encoded, kind, count, appendTimeMs)
		require.Equal(t, string(data), string(encoded)+string(body))
	})
}

func FuzzNextBodyBatch(f *testing.F) {
	f.Add(unhex(f, goldenBody))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x09, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		var encoded []byte
		rest := body
		for len(rest) > 0 {
			b, next, err := NextBodyBatch(rest)
			if err != nil {
				break
			}
			require.Less(t, len(next), len(rest))
			encoded = AppendBodyBatch(encoded, b.Index, b.Batch)
			rest = next
		}
		require.Equal(t, string(body[:len(body)-len(rest)]), string(encoded))
	})
}

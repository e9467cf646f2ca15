package segment

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/wire"
)

// goldenKeys is a table of the keys 5 (records 0x66 and 0x68 to 0x69) and 0x1122334455667788
// (record 0x67) and of the publisher 9, of all four.
func goldenKeys() []byte {
	keys, publishers := NewKeyRuns(0x66), NewKeyRuns(0x66)
	for i, hash := range []uint64{5, 0x1122334455667788, 5, 5, 0} {
		keys.Add(hash, 0x66+wire.Offset(i), 1)
	}
	publishers.Add(9, 0x66, 3)
	publishers.Add(9, 0x69, 1)
	return appendKeys(nil, &testHeader, 0x1234, 0x6b, keys, publishers)
}

func TestKeysGoldenBytes(t *testing.T) {
	page := func(content string) []byte {
		b := make([]byte, keyPayload)
		copy(b, golden(t, content))
		return b
	}
	header := withChecksum(golden(t, goldenHeader))
	copy(header, "LKKEYTB\n")
	first := page("")
	copy(first, append(header, golden(t, `
		3412000000000000 6b00000000000000
		02000000 03000000 01000000 01000000`)...))
	want := [][]byte{
		first,
		page("0500000000000000 00000000 02000000  8877665544332211 02000000 01000000"),
		page("00000000 01000000  02000000 02000000  01000000 01000000"),
		page("0900000000000000 00000000 01000000"),
		page("00000000 04000000"),
	}
	var all []byte
	for n, p := range want {
		place := golden(t, "3300000022000000")
		place = append(place, byte(n), 0, 0, 0)
		all = append(all, p...)
		sum := withChecksum(append(place, p...))
		all = append(all, sum[len(sum)-4:]...)
	}
	require.Equal(t, all, goldenKeys())
}

// runsOf asks a table for everything of a hash.
func runsOf(b []byte, hash uint64, publisher bool, from wire.Offset) (runs [][2]wire.Offset, err error) {
	k, err := openKeys(bytes.NewReader(b), int64(len(b)), testHeader.FileID)
	if err != nil {
		return nil, err
	}
	err = k.Runs(hash, publisher, from, func(a, b wire.Offset) bool {
		runs = append(runs, [2]wire.Offset{a, b})
		return true
	})
	return runs, err
}

func TestKeysAnswerFromOneOffsetOn(t *testing.T) {
	type runs = [][2]wire.Offset
	for _, c := range []struct {
		hash      uint64
		publisher bool
		from      wire.Offset
		want      runs
	}{
		{5, false, 0, runs{{0x66, 0x67}, {0x68, 0x6a}}},
		{5, false, 0x67, runs{{0x68, 0x6a}}},
		{5, false, 0x69, runs{{0x68, 0x6a}}},
		{5, false, 0x6a, nil},
		{0x1122334455667788, false, 0, runs{{0x67, 0x68}}},
		{6, false, 0, nil},
		{1 << 63, false, 0, nil},
		{9, false, 0, nil},
		{9, true, 0x68, runs{{0x66, 0x6a}}},
		{5, true, 0, nil},
	} {
		got, err := runsOf(goldenKeys(), c.hash, c.publisher, c.from)
		require.NoError(t, err)
		require.Equal(t, c.want, got, "%+v", c)
	}
}

func TestKeysOfManyPagesFindEveryHash(t *testing.T) {
	const records, hashes = 5000, 1234
	keys := NewKeyRuns(testHeader.Previous.Next)
	want := map[uint64][][2]wire.Offset{}
	for i := range wire.Offset(records) {
		o := testHeader.Previous.Next + i
		hash := (uint64(i)%hashes + 1) * 0x9e3779b97f4a7c15
		keys.Add(hash, o, 1)
		want[hash] = append(want[hash], [2]wire.Offset{o, o + 1})
	}
	b := appendKeys(nil, &testHeader, 0x1234, testHeader.Previous.Next+records, keys, NewKeyRuns(0))
	require.Zero(t, len(b)%keyPage)
	for hash, runs := range want {
		got, err := runsOf(b, hash, false, 0)
		require.NoError(t, err)
		require.Equal(t, runs, got)
	}
}

func TestKeysAreBounded(t *testing.T) {
	keys := NewKeyRuns(10)
	require.False(t, keys.Add(1, 10+1<<32, 1), "too far from the base")
	require.True(t, keys.Add(0, 10+1<<32, 1), "no key is no entry")
	keys.runs = make([]KeyRun, MaxKeyRuns)
	require.False(t, keys.Add(1, 11, 1))
}

// keysAnswerRightly reports whether all answers of a table are those of the golden one, or
// errors.
func keysAnswerRightly(b []byte) bool {
	for _, publisher := range []bool{false, true} {
		for _, hash := range []uint64{5, 9, 0x1122334455667788, 6} {
			want, _ := runsOf(goldenKeys(), hash, publisher, 0)
			if got, err := runsOf(b, hash, publisher, 0); err == nil && !equalRuns(got, want) {
				return false
			}
		}
	}
	return true
}

func equalRuns(a, b [][2]wire.Offset) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// rottenKeys reports whether a bit of the table can rot, or a page be one of another place,
// with a wrong answer.
func rottenKeys(good []byte) (wrong bool) {
	for page := 0; page < len(good); page += keyPage {
		for at := range 200 { // what is used of a page
			b := append([]byte(nil), good...)
			b[page+at] ^= 1 << (at % 8)
			wrong = wrong || !keysAnswerRightly(b)
		}
	}
	for page := keyPage; page+keyPage <= len(good); page += keyPage {
		b := append([]byte(nil), good...)
		copy(b[page:page+keyPage], good[keyPage:])
		wrong = wrong || !keysAnswerRightly(b)
	}
	for n := 0; n < len(good); n += 512 {
		torn := append([]byte(nil), good...)
		clear(torn[n:])
		wrong = wrong || !keysAnswerRightly(torn) || !keysAnswerRightly(good[:n])
	}
	return wrong
}

func TestF3_ARottenOrTornKeyTableSaysNothingWrong(t *testing.T) {
	require.False(t, rottenKeys(goldenKeys()))
	_, err := runsOf(goldenKeys(), 6, false, 0)
	require.NoError(t, err)
}

func TestF3_Catches_KeyTablesWithoutChecksums(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds cannot ignore the checksums of key tables")
	}
	IgnoreKeySums(true)
	defer IgnoreKeySums(false)
	require.True(t, rottenKeys(goldenKeys()))
}

// FuzzKeys: answers lie inside of the segment, whatever the bytes say, and a table is as
// long as its counts say. The pages come as what is at their beginning, or the engine
// would spend its time on zeros.
func FuzzKeys(f *testing.F) {
	good := goldenKeys()
	f.Add(good[:keysFixed], good[keyPage:][:32], good[2*keyPage:][:24], good[3*keyPage:][:16], good[4*keyPage:][:8], uint64(5), false)
	f.Add(good[:keysFixed], good[keyPage:][:32], good[2*keyPage:][:24], good[3*keyPage:][:16], good[4*keyPage:][:8], uint64(9), true)
	f.Add([]byte{}, []byte{}, []byte{}, []byte{}, []byte{}, uint64(1), false)
	f.Fuzz(func(t *testing.T, first, keys, keyRuns, publishers, publisherRuns []byte, hash uint64, publisher bool) {
		src := make([]byte, 5*keyPage)
		for n, p := range [][]byte{first, keys, keyRuns, publishers, publisherRuns} {
			copy(src[n*keyPage:][:keyPayload], p)
		}
		for _, src := range [][]byte{src, first, resealedKeys(src)} {
			k, err := openKeys(bytes.NewReader(src), int64(len(src)), testHeader.FileID)
			if err != nil {
				requireOneClass(t, err)
				continue
			}
			require.Equal(t, int64(len(src)), k.shape.size())
			runs := 0
			err = k.Runs(hash, publisher, 0, func(from, to wire.Offset) bool {
				require.Less(t, from, to)
				require.GreaterOrEqual(t, from, k.header.Previous.Next)
				require.LessOrEqual(t, to, k.next)
				runs++
				return runs < 1000
			})
			if err != nil {
				requireOneClass(t, err)
			}
		}
	})
}

// resealedKeys corrects the checksums of the header and of the pages.
func resealedKeys(src []byte) []byte {
	b := append([]byte(nil), src...)
	header := append([]byte(headerMagic), b[8:HeaderSize]...)
	copy(b[8:HeaderSize], resealed(header, HeaderSize)[8:])
	for n := 0; (n+1)*keyPage <= len(b); n++ {
		page := b[n*keyPage:][:keyPage]
		binary.LittleEndian.PutUint32(page[keyPayload:], keyPageSum(testHeader.FileID, int64(n), page))
	}
	return b
}

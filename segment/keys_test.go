package segment

import (
	"bytes"
	"encoding/binary"
	"path"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// goldenKeys is a table of the keys 5 (records 0x66 and 0x68 to 0x69) and 0x1122334455667788
// (record 0x67) and of the publisher 9, of all four.
func goldenKeys() []byte {
	keys, publishers := &KeyRuns{base: 0x66}, &KeyRuns{base: 0x66}
	for i, hash := range []uint64{5, 0x1122334455667788, 5, 5, 0} {
		keys.Add(hash, 0x66+wire.Offset(i), 1)
	}
	publishers.Add(9, 0x66, 3)
	publishers.Add(9, 0x69, 1)
	return appendKeys(nil, &testHeader, 0x1234, 0x6b, 0, 0, true, keys, publishers)
}

// partedKeys is the same in parts of so many records.
func partedKeys(each wire.Offset) (b []byte) {
	all := []uint64{5, 0x1122334455667788, 5, 5, 0}
	for n, from := 0, wire.Offset(0); from < 5; n, from = n+1, from+each {
		keys, publishers := &KeyRuns{base: 0x66}, &KeyRuns{base: 0x66}
		next := min(from+each, 5)
		for o := from; o < next; o++ {
			keys.Add(all[o], 0x66+o, 1)
			if o < 4 {
				publishers.Add(9, 0x66+o, 1)
			}
		}
		b = appendKeys(b, &testHeader, 0x1234, 0x66+next, int64(len(b)/keyPage), n, next == 5, keys, publishers)
	}
	return b
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
		02000000 03000000 01000000 01000000
		00000000 01000000`)...))
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

// runsOf asks a table for everything of a hash; what follows on each other is one run.
func runsOf(b []byte, hash uint64, publisher bool, from wire.Offset) (runs [][2]wire.Offset, err error) {
	k, err := openKeys(bytes.NewReader(b), int64(len(b)), testHeader.FileID)
	if err != nil {
		return nil, err
	}
	err = k.Runs(hash, publisher, from, func(a, b wire.Offset) bool {
		if l := len(runs); l > 0 && runs[l-1][1] == a {
			runs[l-1][1] = b
			return true
		}
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
		for each := wire.Offset(1); each < 5; each++ {
			got, err := runsOf(partedKeys(each), c.hash, c.publisher, c.from)
			require.NoError(t, err)
			want := c.want
			if len(got) > 0 { // parts that end before are not asked
				require.LessOrEqual(t, got[0][0], max(c.from, want[0][0]))
				got[0][0] = want[0][0]
			}
			require.Equal(t, want, got, "%+v in parts of %d", c, each)
		}
	}
}

// Whoever has enough does not look at the parts behind.
func TestKeysStopAtTheFirstNo(t *testing.T) {
	b := partedKeys(1)
	k, err := openKeys(bytes.NewReader(b), int64(len(b)), testHeader.FileID)
	require.NoError(t, err)
	asked := 0
	require.NoError(t, k.Runs(5, false, 0, func(_, _ wire.Offset) bool { asked++; return false }))
	require.Equal(t, 1, asked)
}

// sealedKeys is what a writer makes of a segment with so many records, parts ending with so
// many runs. The most that it held is in bytes.
func sealedKeys(t *testing.T, records, hashes, runs int) (b []byte, held int) {
	fs := vfs.NewSimulated(1)
	s, err := Create(newEnv(t, fs, 1, 1), "/d", testIdentity, 1, 0x33, 64<<20, FirstStep)
	require.NoError(t, err)
	w := s.NewKeysWriter(func(int64) error { return nil })
	w.runs = runs
	for i := range wire.Offset(records) {
		require.True(t, w.Keys.Add(manyHash(int(i)%hashes), i, 1))
		require.True(t, w.Publishers.Add(7, i, 1))
		if i%10 == 9 {
			require.NoError(t, w.Cut(i+1))
			held = max(held, cap(w.Keys.runs)*16+cap(w.Publishers.runs)*16+cap(w.b))
		}
	}
	require.NoError(t, w.Finish(wire.Offset(records)))
	require.Equal(t, KeysThere, s.Keys())
	b, err = ReadFile(fs, path.Join("/d", KeysName(1, 0x33)), 1<<30)
	require.NoError(t, err)
	return b, held
}

func manyHash(i int) uint64 { return (uint64(i) + 1) * 0x9e3779b97f4a7c15 }

func TestKeysOfManyPagesAndPartsFindEveryHash(t *testing.T) {
	const records, hashes = 5000, 1234
	for runs, parts := range map[int]int{KeyPartRuns: 1, 2000: 3, 100: 51} {
		b, _ := sealedKeys(t, records, hashes, runs)
		require.Zero(t, len(b)%keyPage)
		k, err := openKeys(bytes.NewReader(b), int64(len(b)), 0x33)
		require.NoError(t, err)
		require.Len(t, k.parts, parts)
		for hash := range hashes {
			for _, from := range []wire.Offset{0, 2500, records} {
				var want, got []wire.Offset
				for o := wire.Offset(hash); o < records; o += hashes {
					if o >= from {
						want = append(want, o)
					}
				}
				require.NoError(t, k.Runs(manyHash(hash), false, from, func(a, b wire.Offset) bool {
					require.Equal(t, a+1, b)
					got = append(got, a)
					return true
				}))
				require.Equal(t, want, got)
			}
		}
	}
}

// What making a table takes does not grow with the segment.
func TestMakingAKeyTableTakesTheMemoryOfAPart(t *testing.T) {
	_, held := sealedKeys(t, 60_000, 10_000, 5_000)
	require.Less(t, held, 5_010*2*(16+16+8))
	_, whole := sealedKeys(t, 60_000, 10_000, KeyPartRuns)
	require.Greater(t, whole, 60_000*16)
}

// A table that was cut between two parts is not taken for a whole one, nor are parts in
// another order, or of another table.
func TestKeysNeedAllTheirParts(t *testing.T) {
	whole := partedKeys(1)
	const part = 5 * keyPage
	require.Len(t, whole, 4*part+keyPage, "the last record has no key and no publisher")
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"the last is missing", whole[:4*part], ErrFormat},
		{"there is one more", append(append([]byte(nil), whole...), whole[:part]...), ErrFormat},
		{"half of one is missing", whole[:part+keyPage], ErrFormat},
		{"the first is missing", whole[part:], ErrChecksum},
		{"two have changed places", slices.Concat(whole[:part], whole[2*part:3*part], whole[part:2*part], whole[3*part:]), ErrChecksum},
	} {
		_, err := runsOf(c.b, 5, false, 0)
		require.ErrorIs(t, err, c.want, c.name)
	}
}

func TestKeysAreBounded(t *testing.T) {
	keys := &KeyRuns{base: 10}
	require.False(t, keys.Add(1, 10+1<<32, 1), "too far from the base")
	require.True(t, keys.Add(0, 10+1<<32, 1), "no key is no entry")
	keys.runs, keys.written = make([]KeyRun, KeyPartRuns), MaxKeyRuns-KeyPartRuns
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
	require.False(t, rottenKeys(partedKeys(3)))
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
			require.Equal(t, int64(len(src)), k.parts[len(k.parts)-1].shape.behind()*keyPage)
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

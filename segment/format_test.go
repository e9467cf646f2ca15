package segment

import (
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

var testIdentity = Identity{
	PartitionID: [16]byte{0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf},
	Incarnation: 3,
}

func golden(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(removeSpace(s))
	require.NoError(t, err)
	return b
}

func removeSpace(s string) string {
	var out []byte
	for i := range len(s) {
		if s[i] > ' ' {
			out = append(out, s[i])
		}
	}
	return string(out)
}

// withChecksum appends the CRC32C, which has golden bytes of its own in wire.
func withChecksum(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, wire.Checksum(b)) }

var testHeader = Header{
	Identity: testIdentity, Sequence: 0x11, FileID: 0x2200000033,
	Previous: Link{Index: 0x43, Term: 5, Next: 0x66, TimeMs: 0x0188, Chain: 0xdeadbeef},
	Capacity: 64 << 20,
}

const goldenHeader = `
	4c4b5345474d540a 0100 0000 03000000
	a0a1a2a3a4a5a6a7a8a9aaabacadaeaf
	1100000000000000 3300000022000000
	4400000000000000 6600000000000000
	0500000000000000 8801000000000000
	efbeadde 00000000 0000000400000000
	0000000000000000 0000000000000000
	0000000000000000 00000000`

func TestHeaderGoldenBytes(t *testing.T) {
	want := withChecksum(golden(t, goldenHeader))
	require.Len(t, want, HeaderSize)
	got := make([]byte, HeaderSize)
	testHeader.Encode(got)
	require.Equal(t, want, got)
	h, err := ParseHeader(want)
	require.NoError(t, err)
	require.Equal(t, testHeader, h)
	require.Equal(t, uint64(0x2200000033), HeaderFileID(want))
}

func TestHeaderOfANewerVersionIsNotCorrupt(t *testing.T) {
	b := golden(t, goldenHeader)
	b[8] = Version + 1
	_, err := ParseHeader(withChecksum(b))
	require.ErrorIs(t, err, ErrTooNew)
	require.NotErrorIs(t, err, ErrChecksum)
}

func TestHeaderRefusesWhatIsNotOne(t *testing.T) {
	good := withChecksum(golden(t, goldenHeader))
	for bit := range len(good) * 8 {
		b := append([]byte(nil), good...)
		b[bit/8] ^= 1 << (bit % 8)
		_, err := ParseHeader(b)
		if bit < 64 {
			require.ErrorIs(t, err, ErrBlank, "bit %d", bit)
		} else {
			require.ErrorIs(t, err, ErrChecksum, "bit %d", bit)
		}
	}
	for n := range good {
		_, err := ParseHeader(good[:n])
		require.ErrorIs(t, err, ErrBlank)
	}
	_, err := ParseHeader(make([]byte, HeaderSize))
	require.ErrorIs(t, err, ErrBlank)
}

func TestNames(t *testing.T) {
	require.Equal(t, "000000000000002a-00000001000000ff.segment", Name(42, 1<<32|255))
	require.Equal(t, "000000000000002a-00000001000000ff.sparse", SparseName(42, 1<<32|255))
	sequence, fileID, ok := ParseName("000000000000002a-00000001000000ff.segment")
	require.True(t, ok)
	require.Equal(t, uint64(42), sequence)
	require.Equal(t, uint64(1<<32|255), fileID)
	for _, name := range []string{
		"", "manifest", "000000000000002a-00000001000000ff.sparse", "2a-ff.segment",
		"000000000000002A-00000001000000ff.segment", "+00000000000002a-00000001000000ff.segment",
		"000000000000002a_00000001000000ff.segment", "000000000000002a-00000001000000ff.segment.tmp",
	} {
		_, _, ok := ParseName(name)
		require.False(t, ok, name)
	}
}

func TestRuleL2_AMarkCountsOnlyForItsFileAndFrame(t *testing.T) {
	word := EncodeMark(7, 0xcafe, 1000)
	require.Equal(t, uint64(1000), word&(1<<48-1))
	mark, ok := DecodeMark(7, 0xcafe, word)
	require.True(t, ok)
	require.Equal(t, wire.Index(1000), mark)
	_, ok = DecodeMark(8, 0xcafe, word)
	require.False(t, ok, "another file")
	_, ok = DecodeMark(7, 0xcaff, word)
	require.False(t, ok, "another frame")
	for bit := range 64 {
		_, ok = DecodeMark(7, 0xcafe, word^1<<bit)
		require.False(t, ok, "bit %d", bit)
	}
	mark, ok = DecodeMark(7, 1, EncodeMark(7, 1, MaxMark+5))
	require.True(t, ok)
	require.Equal(t, MaxMark, mark)
}

func TestSeedDiffersByPartitionAndIncarnation(t *testing.T) {
	a := Seed(testIdentity)
	other := testIdentity
	other.Incarnation++
	require.NotEqual(t, a.Chain, Seed(other).Chain)
	other = testIdentity
	other.PartitionID[15]++
	require.NotEqual(t, a.Chain, Seed(other).Chain)
	require.Equal(t, Link{Chain: a.Chain}, a)
	require.Equal(t, wire.Checksum(golden(t, "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 03000000")), a.Chain)
}

func TestLinkRefusesWhatDoesNotContinue(t *testing.T) {
	link := Link{Index: 4, Term: 2, Next: 10, TimeMs: 5, Chain: 99}
	good := wire.FrameHeader{Kind: wire.KindRecords, RecordCount: 3, Term: 2, Index: 5, BaseOffset: 10, PrevCRC: 99, HeaderCRC: 77, AppendTimeMs: 6}
	require.NoError(t, link.Check(&good))
	require.Equal(t, Link{Index: 5, Term: 2, Next: 13, TimeMs: 6, Chain: 77}, After(&good))
	for name, change := range map[string]func(*wire.FrameHeader){
		"another chain":                  func(h *wire.FrameHeader) { h.PrevCRC++ },
		"an index again":                 func(h *wire.FrameHeader) { h.Index-- },
		"a gap of indexes":               func(h *wire.FrameHeader) { h.Index++ },
		"a term that decreases":          func(h *wire.FrameHeader) { h.Term-- },
		"a gap of offsets":               func(h *wire.FrameHeader) { h.BaseOffset++ },
		"no kind":                        func(h *wire.FrameHeader) { h.Kind, h.BodyLength = 0, 1 },
		"an erased run that ends before": func(h *wire.FrameHeader) { h.Kind, h.Index = 0, 4 },
		"records in a control entry":     func(h *wire.FrameHeader) { h.Kind = wire.KindControl },
	} {
		h := good
		change(&h)
		require.ErrorIs(t, link.Check(&h), ErrChain, name)
	}
	good.Kind = 5
	require.ErrorIs(t, link.Check(&good), wire.ErrFrameVersion, "a kind that a newer build writes")
}

func TestSparseGoldenBytes(t *testing.T) {
	sum := &Summary{
		Header: testHeader, End: 0x1234, Last: Link{Index: 0x50, Term: 6, Next: 0x77, TimeMs: 0x99, Chain: 0x01020304},
		MaxTimeMs: 0xaa, RollTimeMs: 0xbb, Terms: []TermRun{{From: 0x44, Term: 5}, {From: 0x48, Term: 6}},
	}
	d := newDetails()
	d.addSparse(SparseEntry{Position: 128, Index: 0x44, Offset: 0x66, MaxTimeMs: NoTime})
	d.addSparse(SparseEntry{Position: 0x1000, Index: 0x4a, Offset: 0x70, MaxTimeMs: 0x98})
	d.addRun(200, 264)
	d.addRun(264, 328)
	d.addRun(400, 464)
	header := withChecksum(golden(t, goldenHeader))
	copy(header, "LKSPARS\n")
	want := append(header, golden(t, `
		3412000000000000 5000000000000000
		0600000000000000 7700000000000000
		9900000000000000 aa00000000000000
		bb00000000000000 04030201 02000000
		02000000 02000000
		8000000000000000 4400000000000000 6600000000000000 0000000000000080
		0010000000000000 4a00000000000000 7000000000000000 9800000000000000
		c800000000000000 4801000000000000
		9001000000000000 d001000000000000
		4400000000000000 0500000000000000
		4800000000000000 0600000000000000`)...)
	want = withChecksum(want)
	require.Equal(t, want, appendSparse(nil, sum, d))

	gotSum, gotDetails, err := parseSparse(want)
	require.NoError(t, err)
	require.Equal(t, sum, gotSum)
	require.Equal(t, want, appendSparse(nil, gotSum, gotDetails))

	for bit := range len(want) * 8 {
		b := append([]byte(nil), want...)
		b[bit/8] ^= 1 << (bit % 8)
		_, _, err := parseSparse(b)
		require.Error(t, err, "bit %d", bit)
	}
	for n := range want {
		_, _, err := parseSparse(want[:n])
		require.Error(t, err)
	}
}

func TestSparseOfANewerVersionIsNotCorrupt(t *testing.T) {
	sum := &Summary{Header: testHeader, End: HeaderSize, Last: testHeader.Previous}
	b := appendSparse(nil, sum, newDetails())
	b[8] = Version + 1
	header := append([]byte(headerMagic), b[8:headerChecked]...)
	binary.LittleEndian.PutUint32(b[headerChecked:], wire.Checksum(header))
	b = withChecksum(b[:len(b)-4])
	_, _, err := parseSparse(b)
	require.ErrorIs(t, err, ErrTooNew)
}

func TestSparseCountsAreBounded(t *testing.T) {
	sum := &Summary{Header: testHeader, End: HeaderSize, Last: testHeader.Previous}
	b := appendSparse(nil, sum, newDetails())
	for _, at := range []int{188, 192, 196} {
		c := append([]byte(nil), b[:len(b)-4]...)
		binary.LittleEndian.PutUint32(c[at:], 0xffffffff)
		_, _, err := parseSparse(withChecksum(c))
		require.ErrorIs(t, err, ErrFormat)
	}
}

func TestMarkingAFrameAllocatesNothing(t *testing.T) {
	require.Zero(t, testing.AllocsPerRun(100, func() { EncodeMark(7, 9, 11) }))
}

package segment

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// Files with a checksum that matches and fields that contradict each other: what no build of
// ours writes is refused by each decoder by itself, and not by luck of a later read.

func TestAHeaderThatContradictsItselfIsRefused(t *testing.T) {
	for name, change := range map[string]func(h *Header){
		"a capacity without room for the header": func(h *Header) { h.Capacity = HeaderSize - 1 },
		"a negative capacity":                    func(h *Header) { h.Capacity = -1 },
		"a first index behind the last there is": func(h *Header) { h.Previous.Index = math.MaxUint64 },
	} {
		h, b := testHeader, make([]byte, HeaderSize)
		change(&h)
		h.Encode(b)
		_, err := ParseHeader(b)
		require.ErrorIs(t, err, ErrFormat, name)
	}
	h, b := testHeader, make([]byte, HeaderSize)
	h.Capacity = HeaderSize
	h.Encode(b)
	_, err := ParseHeader(b)
	require.NoError(t, err, "the least capacity")
	b[8], b[9] = 0, 0
	_, err = ParseHeader(resealed(b, HeaderSize))
	require.ErrorIs(t, err, ErrTooNew, "version 0, which there never was")
}

func TestErasedRunsThatContradictEachOtherAreRefused(t *testing.T) {
	h := Header{Identity: testIdentity, Sequence: 4, FileID: 5, Previous: Link{Index: 6, Term: 1, Next: 7}, Capacity: 1 << 31}
	for name, change := range map[string]func(r []Erased){
		"a run that begins in the header":          func(r []Erased) { r[0].From = HeaderSize - wire.FrameAlignment },
		"a run that begins in the one before":      func(r []Erased) { r[1].From -= wire.FrameAlignment },
		"a run without room for a frame":           func(r []Erased) { r[0].To = r[0].From + wire.FrameHeaderSize - wire.FrameAlignment },
		"a run that ends before it begins":         func(r []Erased) { r[1].To = r[1].From - wire.FrameHeaderSize },
		"a run that is too long":                   func(r []Erased) { r[1].To = r[1].From + MaxErasedBytes + wire.FrameAlignment },
		"a run that is not aligned":                func(r []Erased) { r[1].To += 4 },
		"a run that begins between two frames":     func(r []Erased) { r[0].From += 4 },
		"an entry before the segment":              func(r []Erased) { r[0].Before.Index = 5 },
		"an entry of the run before":               func(r []Erased) { r[1].Before.Index = 25 },
		"a run of no entry":                        func(r []Erased) { r[0].After.Index = 16; r[1].Before.Index = 16 },
		"a run that ends below its first entry":    func(r []Erased) { r[1].After.Index = 25 },
		"records before the segment":               func(r []Erased) { r[0].Before.Next = 6 },
		"records of the run before":                func(r []Erased) { r[1].Before.Next, r[1].After.Next = 26, 26 },
		"offsets that go back":                     func(r []Erased) { r[1].After.Next = 26 },
		"more records than a header can stand for": func(r []Erased) { r[1].After.Next = 27 + 1<<32 },
		"a term that goes back in a run":           func(r []Erased) { r[1].After.Term = 1 },
		"a term that goes back between two":        func(r []Erased) { r[1].Before.Term = 1 },
	} {
		runs := erasedRuns()
		change(runs)
		_, err := parseErased(appendErased(nil, &h, runs), &h)
		require.ErrorIs(t, err, ErrFormat, name)
	}
	for name, change := range map[string]func(r []Erased){
		"as they are":             func([]Erased) {},
		"a run of one frame":      func(r []Erased) { r[0].To = r[0].From + wire.FrameHeaderSize },
		"the longest run":         func(r []Erased) { r[1].To = r[1].From + MaxErasedBytes },
		"a run of one entry":      func(r []Erased) { r[0].After.Index, r[1].Before.Index = 17, 17 },
		"as many records":         func(r []Erased) { r[1].After.Next = 27 + math.MaxUint32 },
		"one term":                func(r []Erased) { r[1].After.Term = 2 },
		"all from the first one":  func(r []Erased) { r[0].From, r[0].Before = HeaderSize, h.Previous },
		"a run behind some frame": func(r []Erased) { r[1].From += wire.FrameHeaderSize; r[1].Before.Index++ },
	} {
		runs := erasedRuns()
		change(runs)
		got, err := parseErased(appendErased(nil, &h, runs), &h)
		require.NoError(t, err, name)
		require.Equal(t, runs, got)
	}
	b := appendErased(nil, &h, erasedRuns())
	for _, count := range []uint32{0, 1, 3, MaxListed + 1, math.MaxUint32} {
		c := bytes.Clone(b)
		binary.LittleEndian.PutUint32(c[HeaderSize:], count)
		_, err := parseErased(resealed(c, len(c)), &h)
		require.ErrorIs(t, err, ErrFormat, "%d runs", count)
	}
	for n := range b {
		_, err := parseErased(b[:n], &h)
		require.Error(t, err, "cut to %d bytes", n)
		_, err = parseErased(resealed(b[:n], n), &h)
		require.Error(t, err, "cut to %d bytes, with a checksum", n)
	}
	none, err := parseErased(appendErased(nil, &h, nil), &h)
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestASparseIndexThatContradictsItselfIsRefused(t *testing.T) {
	good := Summary{Header: testHeader, End: 0x1234, Last: Link{Index: 0x50, Term: 6, Next: 0x77}}
	for name, change := range map[string]func(s *Summary){
		"an end in the header":               func(s *Summary) { s.End = HeaderSize - 1 },
		"a last entry before the segment":    func(s *Summary) { s.Last.Index = testHeader.Previous.Index - 1 },
		"a next offset below the first":      func(s *Summary) { s.Last.Next = testHeader.Previous.Next - 1 },
		"a header that contradicts itself":   func(s *Summary) { s.Header.Capacity = 0 },
		"an end that is above what there is": func(s *Summary) { s.End = -1 },
	} {
		s := good
		change(&s)
		_, _, err := parseSparse(appendSparse(nil, &s, newDetails()))
		require.ErrorIs(t, err, ErrFormat, name)
	}
	blank := Summary{Header: testHeader, End: HeaderSize, Last: testHeader.Previous}
	b := appendSparse(nil, &blank, newDetails())
	_, _, err := parseSparse(b)
	require.NoError(t, err, "of no frame")
	for at, count := range map[int]uint32{188: 1, 192: 1, 196: 1} {
		c := bytes.Clone(b)
		binary.LittleEndian.PutUint32(c[at:], count)
		_, _, err := parseSparse(resealed(c, len(c)))
		require.ErrorIs(t, err, ErrFormat, "one more than there is, at %d", at)
	}
	// Counts whose sizes add up, with more runs than a segment has, or whose sum overflows.
	d := newDetails()
	for range MaxRuns + 1 {
		r := d.runs.next()
		r.from = 1
		d.runs.commit()
	}
	_, _, err = parseSparse(appendSparse(nil, &blank, d))
	require.ErrorIs(t, err, ErrFormat)
	c := bytes.Clone(b)
	binary.LittleEndian.PutUint32(c[192:], 1<<31)
	binary.LittleEndian.PutUint32(c[196:], 1<<31)
	_, _, err = parseSparse(resealed(c, len(c)))
	require.ErrorIs(t, err, ErrFormat)
	for n := range b {
		_, _, err := parseSparse(resealed(b[:n], n))
		require.Error(t, err, "cut to %d bytes, with a checksum", n)
	}
}

func TestAKeyTableThatContradictsItselfIsRefused(t *testing.T) {
	set := func(at int, value uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[at:], value) }
	}
	const part = 5 * keyPage // of partedKeys(1)
	for _, c := range []struct {
		name   string
		table  []byte
		change func(b []byte)
	}{
		{"more keys than runs", goldenKeys(), set(144, 4)},
		{"more publishers than runs", goldenKeys(), set(152, 2)},
		{"more pages than the file has", goldenKeys(), set(148, runsOnPage+1)},
		{"fewer pages than the file has", goldenKeys(), func(b []byte) { set(152, 0)(b); set(156, 0)(b) }},
		{"runs beyond the limit", goldenKeys(), set(148, MaxKeyRuns+1)},
		{"runs of publishers beyond the limit", goldenKeys(), set(156, MaxKeyRuns+1)},
		{"a part that says it is another", goldenKeys(), set(160, 1)},
		{"an end that is not the last", goldenKeys(), set(164, 0)},
		{"no magic", goldenKeys(), func(b []byte) { b[0] = 'X' }},
		{"another segment in the second part", partedKeys(1), set(part+32, 0x12)},
		{"another end in the second part", partedKeys(1), set(part+128, 0x1235)},
		{"records that go back in the second part", partedKeys(1), set(part+136, 0x66)},
		{"records before the segment", goldenKeys(), set(136, 0x65)},
	} {
		b := bytes.Clone(c.table)
		c.change(b)
		for at := 0; at+HeaderSize <= len(b); at += keyPage {
			if string(b[at:at+8]) == keysMagic {
				header := append([]byte(headerMagic), b[at+8:at+HeaderSize]...)
				copy(b[at+8:at+HeaderSize], resealed(header, HeaderSize)[8:])
			}
		}
		for n := 0; (n+1)*keyPage <= len(b); n++ {
			page := b[n*keyPage:][:keyPage]
			binary.LittleEndian.PutUint32(page[keyPayload:], keyPageSum(testHeader.FileID, int64(n), page))
		}
		_, err := openKeys(bytes.NewReader(b), int64(len(b)), testHeader.FileID)
		require.ErrorIs(t, err, ErrFormat, c.name)
	}
	for name, change := range map[string]func(b []byte){
		"runs behind the last":     set(keyPage+8, 2),                // of the hash 5: two from the third of three
		"a run of no records":      set(2*keyPage+4, 0),              // the first of the hash 5
		"records behind the part":  set(2*keyPage+4, 0x6b-0x66+1),    // the same
		"records of a wrapped run": set(2*keyPage+4, math.MaxUint32), // the same
	} {
		b := goldenKeys()
		change(b)
		_, err := runsOf(resealedKeys(b), 5, false, 0)
		require.ErrorIs(t, err, ErrFormat, name)
	}
	_, err := openKeys(bytes.NewReader(goldenKeys()), 5*keyPage, testHeader.FileID+1)
	require.Error(t, err, "of another file")
}

// A frame of KindErased that was stored has no body; one that says so is no frame.
func TestAStoredErasedFrameHasNoBody(t *testing.T) {
	h := wire.FrameHeader{Kind: KindErased, Term: 5, Index: 0x50, BaseOffset: 0x66, PrevCRC: testHeader.Previous.Chain}
	b := make([]byte, wire.FrameHeaderSize+8)
	h.Encode(b)
	sc := NewScanner(bytes.NewReader(b), 0, wire.FrameHeaderSize, nil)
	got, err := sc.Header()
	require.NoError(t, err, "it ends where the file ends")
	body, err := sc.Body(&got)
	require.NoError(t, err)
	require.Empty(t, body)
	h.BodyLength = 8
	h.Encode(b)
	_, err = NewScanner(bytes.NewReader(b), 0, int64(len(b)), nil).Header()
	require.ErrorIs(t, err, ErrChain)
	require.True(t, IsDamage(err))
}

// What lies at the end of what may be read is read, and nothing behind it.
func TestAScannerReadsUpToItsEnd(t *testing.T) {
	b := []byte("0123456789")
	sc := NewScanner(bytes.NewReader(b), 0, 8, nil)
	got, err := sc.At(3, 5)
	require.NoError(t, err)
	require.Equal(t, "34567", string(got))
	_, err = sc.At(3, 6)
	require.ErrorIs(t, err, wire.ErrFrameShort)
	got, err = sc.At(0, 8)
	require.NoError(t, err)
	require.Equal(t, "01234567", string(got))

	h := wire.FrameHeader{Kind: wire.KindControl, Index: 1, BodyLength: 5}
	f := make([]byte, h.FrameSize())
	copy(f[wire.FrameHeaderSize:], "hello")
	h.BodyCRC = wire.Checksum([]byte("hello"))
	h.Encode(f)
	sc = NewScanner(bytes.NewReader(f), 0, int64(len(f)), nil)
	parsed, err := sc.Header()
	require.NoError(t, err)
	body, err := sc.Body(&parsed)
	require.NoError(t, err)
	require.Equal(t, "hello", string(body))
	f[wire.FrameHeaderSize] ^= 1
	sc = NewScanner(bytes.NewReader(f), 0, int64(len(f)), nil)
	body, err = sc.Body(&parsed)
	require.ErrorIs(t, err, wire.ErrFrameChecksum)
	require.Len(t, body, 5)
	// A file that is shorter than it should be.
	sc = NewScanner(bytes.NewReader(f[:len(f)-4]), 0, int64(len(f)), nil)
	_, err = sc.Body(&parsed)
	require.ErrorIs(t, err, wire.ErrFrameShort)
}

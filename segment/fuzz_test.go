package segment

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// resealed makes the CRC at the end of the first size bytes match, so that fuzzing
// gets behind it.
func resealed(b []byte, size int) []byte {
	b = append([]byte(nil), b...)
	if size <= len(b) && size >= 4 {
		binary.LittleEndian.PutUint32(b[size-4:], wire.Checksum(b[:size-4]))
	}
	return b
}

// requireOneClass holds an error to one of the classes that callers tell apart.
func requireOneClass(t *testing.T, err error) {
	classes := 0
	for _, class := range []error{ErrBlank, ErrTooNew, ErrChecksum, ErrFormat} {
		if errors.Is(err, class) {
			classes++
		}
	}
	require.Equal(t, 1, classes, "%v", err)
}

// FuzzParseHeader: what parses says the same when it is written again, and only
// another version is too new.
func FuzzParseHeader(f *testing.F) {
	good := withChecksum(golden(f, goldenHeader))
	f.Add(good)
	newer := append([]byte(nil), good...)
	newer[8] = Version + 1
	f.Add(newer)
	f.Add(make([]byte, HeaderSize))
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, src := range [][]byte{src, resealed(src, HeaderSize)} {
			h, err := ParseHeader(src[:len(src):len(src)])
			if err != nil {
				requireOneClass(t, err)
				require.Equal(t, errors.Is(err, ErrTooNew), len(src) >= HeaderSize && wholeHeader(src) && otherVersion(src), "%v", err)
				continue
			}
			again := make([]byte, HeaderSize)
			h.Encode(again)
			back, err := ParseHeader(again)
			require.NoError(t, err)
			require.Equal(t, h, back)
		}
	})
}

// FuzzParseErased: what parses says the same when it is written again, and is in order.
func FuzzParseErased(f *testing.F) {
	h := Header{Identity: Identity{Incarnation: 3}, Sequence: 4, FileID: 5, Previous: Link{Index: 6, Term: 1, Next: 7, TimeMs: 8, Chain: 9}, Capacity: 1 << 20}
	runs := erasedRuns()
	good := appendErased(nil, &h, runs)
	f.Add(good)
	f.Add(good[:HeaderSize])
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, src := range [][]byte{src, resealed(src, len(src))} {
			runs, err := parseErased(src[:len(src):len(src)], &h)
			if err != nil {
				requireOneClass(t, err)
				continue
			}
			back, err := parseErased(appendErased(nil, &h, runs), &h)
			require.NoError(t, err)
			require.Equal(t, runs, back)
			end := int64(HeaderSize)
			for i := range runs {
				require.LessOrEqual(t, end, runs[i].From)
				end = runs[i].To
				h := runs[i].header()
				require.Equal(t, end-runs[i].From, h.FrameSize())
				require.Equal(t, runs[i].After, After(&h))
			}
		}
	})
}

func wholeHeader(src []byte) bool {
	return string(src[:8]) == headerMagic &&
		wire.Checksum(src[:headerChecked]) == binary.LittleEndian.Uint32(src[headerChecked:])
}

func otherVersion(src []byte) bool { return binary.LittleEndian.Uint16(src[8:]) != Version }

// FuzzParseSparse: counts are bounded by the bytes that are there, and what parses
// encodes to what parses to the same.
func FuzzParseSparse(f *testing.F) {
	sum := &Summary{
		Header: testHeader, End: 0x1234, Last: Link{Index: 0x50, Term: 6, Next: 0x77, TimeMs: 0x99, Chain: 0x01020304},
		MaxTimeMs: 0xaa, RollTimeMs: 0xbb, Terms: []TermRun{{From: 0x44, Term: 5}, {From: 0x48, Term: 6}},
	}
	d := newDetails()
	d.addSparse(SparseEntry{Position: 128, Index: 0x44, Offset: 0x66, MaxTimeMs: NoTime})
	d.addRun(200, 264)
	d.addRun(400, 464)
	f.Add(appendSparse(nil, sum, d))
	f.Add(appendSparse(nil, &Summary{Header: testHeader, End: HeaderSize, Last: testHeader.Previous}, newDetails()))
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, src := range [][]byte{src, resealedSparse(src)} {
			sum, d, err := parseSparse(src[:len(src):len(src)])
			if err != nil {
				requireOneClass(t, err)
				continue
			}
			entries, runs := d.sparse.len(), d.runs.len()
			require.Equal(t, len(src), sparseFixed+entries*sparseEntrySize+(runs+len(sum.Terms))*sparseRunSize+4)
			again := appendSparse(nil, sum, d)
			back, details, err := parseSparse(again)
			require.NoError(t, err)
			require.Equal(t, sum, back)
			require.Equal(t, again, appendSparse(nil, back, details))
			require.Equal(t, src[HeaderSize:len(src)-4], again[HeaderSize:len(again)-4])
		}
	})
}

// resealedSparse corrects both checksums of a sparse index: that of the header,
// which is taken over the magic of segments, and that of the whole.
func resealedSparse(src []byte) []byte {
	if len(src) < sparseFixed+4 {
		return src
	}
	b := append([]byte(nil), src...)
	header := append([]byte(headerMagic), b[8:HeaderSize]...)
	copy(b[8:HeaderSize], resealed(header, HeaderSize)[8:])
	return resealed(b, len(b))
}

// FuzzParseName: a name that parses is the only one for its numbers.
func FuzzParseName(f *testing.F) {
	f.Add(Name(42, 1<<32|255))
	f.Add("+00000000000002a-00000001000000ff.segment")
	f.Fuzz(func(t *testing.T, name string) {
		if sequence, fileID, ok := ParseName(name); ok {
			require.Equal(t, name, Name(sequence, fileID))
		}
	})
}

package wire

import (
	"encoding/hex"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// unhex turns written-out bytes into bytes. Spaces, line ends and everything from
// // to the end of a line are ignored.
func unhex(tb testing.TB, text string) []byte {
	tb.Helper()
	var digits strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "//")
		for field := range strings.FieldsSeq(line) {
			digits.WriteString(field)
		}
	}
	b, err := hex.DecodeString(digits.String())
	require.NoError(tb, err)
	return b
}

// DESIGN §1: wire is a leaf.
func TestImportsOnlyTheStandardLibrary(t *testing.T) {
	files, err := os.ReadDir(".")
	require.NoError(t, err)
	forbidden := map[string]bool{"os": true, "net": true, "io": true, "time": true, "sync": true, "unsafe": true, "log": true}
	checked := 0
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file.Name(), nil, parser.ImportsOnly)
		require.NoError(t, err)
		for _, imported := range f.Imports {
			path := strings.Trim(imported.Path.Value, `"`)
			require.NotContains(t, path, ".", "%s imports %s", file.Name(), path)
			require.False(t, forbidden[path], "%s imports %s", file.Name(), path)
		}
		checked++
	}
	require.Greater(t, checked, 20)
}

// The limits must fit into each other and into the fields that carry them.
func TestLimitsAgree(t *testing.T) {
	require.Equal(t, 8<<20+64<<10, MaxFrameBytes)
	require.Equal(t, 65_535, MaxBatchRecords, "the record index counts in 16 bits")
	require.LessOrEqual(t, MaxBatchBytes+minFrameLength+ProducePrefixSize, MaxFrameBytes,
		"a full batch without index fits into a PRODUCE frame")
	require.LessOrEqual(t, DefaultMaxRecordBytes, MaxRecordBytes)
	require.LessOrEqual(t, MaxRecordBytes+BatchHeaderSize+RecordIndexSize(1)+minFrameLength+ProducePrefixSize, MaxFrameBytes,
		"the largest record with its index fits into a PRODUCE frame")
	require.GreaterOrEqual(t, MaxBodyBytes, BodyBatchSize(0, maxProducePayload),
		"whatever a PRODUCE frame can carry fits into a stored frame")
	require.Equal(t, 16_384, SlotCount)
}

func TestValidateName(t *testing.T) {
	for _, test := range []struct{ why, name string }{
		{"one letter", "a"},
		{"levels", "orders/eu/returns"},
		{"UTF-8", "заказы/ürün/注文"},
		{"dots inside a level", "a..b/.hidden/v1.2"},
		{"spaces and punctuation", "my queue: #1"},
		{"255 bytes", strings.Repeat("x", 255)},
	} {
		t.Run("accepts "+test.why, func(t *testing.T) { require.NoError(t, ValidateName(test.name)) })
	}
	for _, test := range []struct{ why, name string }{
		{"nothing", ""},
		{"256 bytes", strings.Repeat("x", 256)},
		{"64 KiB", strings.Repeat("x", 64<<10)},
		{"256 bytes in 128 runes", strings.Repeat("ü", 128)},
		{"NUL", "a\x00b"},
		{"line end", "a\n"},
		{"delete character", "a\x7f"},
		{"C1 control character", "a\u0085b"},
		{"invalid UTF-8", "a\xff"},
		{"cut UTF-8", "a\xc3"},
		{"leading slash", "/a"},
		{"trailing slash", "a/"},
		{"empty level", "a//b"},
		{"slash alone", "/"},
		{"parent", ".."},
		{"itself", "."},
		{"parent above", "../a"},
		{"parent inside", "a/../b"},
		{"parent below", "a/.."},
	} {
		t.Run("refuses "+test.why, func(t *testing.T) {
			err := ValidateName(test.name)
			require.ErrorIs(t, err, CodeInvalidName)
			require.Less(t, len(err.Error()), 2*MaxDetailBytes)
		})
	}
}

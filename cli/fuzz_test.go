package cli

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// FuzzQuantities reads any text as a size, a duration and a time. What is accepted
// is not negative, and is read back from what is printed of it.
func FuzzQuantities(f *testing.F) {
	for _, s := range []string{
		"0", "512", "64 KiB", "1.5GiB", "9223372036854775807", "10G", "1d12h", "1.5s", "250ms", "15250w", "15m ago", "now",
		"2026-02-28T23:30:00.125+01:00", "2026-02-28 09:15",
	} {
		f.Add(s)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil {
			require.GreaterOrEqual(t, n, int64(0))
			again, err := parseSize(exactSize(n))
			require.NoError(t, err)
			require.Equal(t, n, again)
		}
		if d, err := parseDuration(s); err == nil {
			require.GreaterOrEqual(t, d, time.Duration(0))
			again, err := parseDuration(formatDuration(d))
			require.NoError(t, err, "printed as %s", formatDuration(d))
			require.Equal(t, d, again)
		}
		_, _ = parseTime(s, now)
	})
}

// FuzzFormat compiles any text as a format and prints a record with it: the length
// is that of the parts.
func FuzzFormat(f *testing.F) {
	f.Add(`%p %o %k %v\n`)
	f.Add(`%e %t %T %h %% \x41\t\r\0\\`)
	f.Add(`\x4`)
	f.Add(`%`)
	record := &client.Record{
		Partition: 1, Offset: 22, Key: []byte("key"), Value: []byte("value"), Epoch: 333,
		Timestamp: time.UnixMilli(1000).UTC(), Headers: []client.Header{{Key: "name", Value: []byte("x")}},
	}
	sizes := map[byte]int{'p': 1, 'o': 2, 'k': 3, 'v': 5, 'e': 3, 't': 24, 'T': 4, 'h': 6}
	f.Fuzz(func(t *testing.T, s string) {
		parsed, err := parseFormat(s)
		if err != nil {
			return
		}
		size := 0
		for _, part := range parsed {
			size += len(part.literal) + sizes[part.verb]
			require.True(t, part.verb == 0 || part.literal == nil)
			require.True(t, part.verb != 0 || len(part.literal) > 0)
		}
		require.Len(t, parsed.append(nil, record), size)
	})
}

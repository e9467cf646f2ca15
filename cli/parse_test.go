package cli

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64
		err  string
	}{
		{"0", 0, ""},
		{"512", 512, ""},
		{"512B", 512, ""},
		{"64KiB", 65536, ""},
		{"64 KiB", 65536, ""},
		{"64kB", 64000, ""},
		{"64KB", 64000, ""},
		{"10GiB", 10737418240, ""},
		{"10GB", 10000000000, ""},
		{"1.5MiB", 1572864, ""},
		{"0.5KiB", 512, ""},
		{"1.50kB", 1500, ""},
		{"2TiB", 2199023255552, ""},
		{"9223372036854775807", math.MaxInt64, ""},
		{"9223372036854775808", 0, `"9223372036854775808" is too large for a size; the most is 8 EiB`},
		{"99999999999999999999", 0, `"99999999999999999999" is too large for a size; the most is 8 EiB`},
		{"9000000TiB", 0, `"9000000TiB" is too large for a size; the most is 8 EiB`},
		{"0.3B", 0, `"0.3B" is not a whole number of bytes`},
		{"0.1KiB", 0, `"0.1KiB" is not a whole number of bytes`},
		{"", 0, `"" is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB`},
		{"GiB", 0, `"GiB" is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB`},
		{"-1", 0, `"-1" is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB`},
		{"+1", 0, `"+1" is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB`},
		{"1e6", 0, `"1e6" is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB`},
		{"1,000", 0, `"1,000" is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB`},
		{"1.", 0, `"1." is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB`},
		{".5KiB", 0, `".5KiB" is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB`},
		{"10G", 0, `"10G" has an unknown unit "G"; write 10GiB (powers of 1024) or 10GB (powers of 1000)`},
		{"10k", 0, `"10k" has an unknown unit "k"; write 10KiB (powers of 1024) or 10KB (powers of 1000)`},
		{"10gib", 0, `"10gib" has an unknown unit "gib"; write 10GiB`},
		{"10parsecs", 0, `"10parsecs" has an unknown unit "parsecs"; units are B, KiB, MiB, GiB, TiB, kB, MB, GB, TB`},
	} {
		t.Run(c.in, func(t *testing.T) {
			got, err := parseSize(c.in)
			if c.err != "" {
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			again, err := parseSize(exactSize(got))
			require.NoError(t, err)
			require.Equal(t, got, again, "exactSize is read back")
		})
	}
}

func TestSizesForPeople(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB", 1<<20 - 1: "1 MiB",
		10 << 30: "10 GiB", 123456789: "117.7 MiB",
	} {
		require.Equal(t, want, formatSize(in))
	}
	require.Equal(t, "0B", exactSize(0))
	require.Equal(t, "10GiB", exactSize(10<<30))
	require.Equal(t, "1000B", exactSize(1000))
}

func TestDurations(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		in   string
		want time.Duration
		err  string
	}{
		{"0", 0, ""},
		{"0s", 0, ""},
		{"24h", day, ""},
		{"7d", 7 * day, ""},
		{"2w", 14 * day, ""},
		{"1d12h", 36 * time.Hour, ""},
		{"1h30m15s", time.Hour + 30*time.Minute + 15*time.Second, ""},
		{"1.5s", 1500 * time.Millisecond, ""},
		{"0.25h", 15 * time.Minute, ""},
		{"250ms", 250 * time.Millisecond, ""},
		{"10us", 10 * time.Microsecond, ""},
		{"10µs", 10 * time.Microsecond, ""},
		{"24", 0, `"24" has no unit; write 24s, 24m, 24h or 24d`},
		{"", 0, `"" is not a duration; write a number with a unit, as in 250ms, 24h, 7d`},
		{"h", 0, `"h" is not a duration; write a number with a unit, as in 250ms, 24h, 7d`},
		{"-5s", 0, `"-5s" is not a duration; write a number with a unit, as in 250ms, 24h, 7d`},
		{"5s5s", 0, `"5s5s" is not a duration; write a number with a unit, as in 250ms, 24h, 7d`},
		{"5s1h", 0, `"5s1h" is not a duration; write a number with a unit, as in 250ms, 24h, 7d`},
		{"1h5", 0, `"1h5" is not a duration; write a number with a unit, as in 250ms, 24h, 7d`},
		{"1..5s", 0, `"1..5s" is not a duration; write a number with a unit, as in 250ms, 24h, 7d`},
		{"3M", 0, `"3M" has an unknown unit "M"; units are us, ms, s, m, h, d, w`},
		{"1 h", 0, `"1 h" has an unknown unit " h"; units are us, ms, s, m, h, d, w`},
		{"0.0000001ms", 0, `"0.0000001ms" is finer than a nanosecond`},
		{"99999w", 0, `"99999w" is too long; the most is about 292 years`},
		{"15250w99999999h", 0, `"15250w99999999h" is too long; the most is about 292 years`},
	} {
		t.Run(c.in, func(t *testing.T) {
			got, err := parseDuration(c.in)
			if c.err != "" {
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			again, err := parseDuration(formatDuration(got))
			require.NoError(t, err)
			require.Equal(t, got, again, "formatDuration is read back")
		})
	}
	require.Equal(t, "1d12h", formatDuration(36*time.Hour))
	require.Equal(t, "7d", formatDuration(7*day))
	require.Equal(t, "1s500ms", formatDuration(1500*time.Millisecond))
}

func TestTimes(t *testing.T) {
	zone := time.FixedZone("two hours east", 2*3600)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, zone)
	for _, c := range []struct {
		in   string
		want time.Time
		err  string
	}{
		{"now", now, ""},
		{"15m ago", now.Add(-15 * time.Minute), ""},
		{"1d12h ago", now.Add(-36 * time.Hour), ""},
		{"15mago", now.Add(-15 * time.Minute), ""},
		{"2026-02-28T23:30:00Z", time.Date(2026, 2, 28, 23, 30, 0, 0, time.UTC), ""},
		{"2026-02-28T23:30:00.125+01:00", time.Date(2026, 2, 28, 22, 30, 0, 125e6, time.UTC), ""},
		{"2026-02-28", time.Date(2026, 2, 28, 0, 0, 0, 0, zone), ""},
		{"2026-02-28 09:15", time.Date(2026, 2, 28, 9, 15, 0, 0, zone), ""},
		{"2026-02-28 09:15:30", time.Date(2026, 2, 28, 9, 15, 30, 0, zone), ""},
		{"15 ago", time.Time{}, `"15" has no unit; write 15s, 15m, 15h or 15d`},
		{"2026-02-30", time.Time{}, `"2026-02-30" is not a time; write it like 2026-03-01T15:04:05Z, 2026-03-01 or '15m ago'`},
		{"", time.Time{}, `"" is not a time; write it like 2026-03-01T15:04:05Z, 2026-03-01 or '15m ago'`},
	} {
		t.Run(c.in, func(t *testing.T) {
			got, err := parseTime(c.in, now)
			if c.err != "" {
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.True(t, c.want.Equal(got), "%v", got)
		})
	}
}

func TestUnlimitedIsAWordOnlyWhereItMeansSomething(t *testing.T) {
	size, plain := sizeFlag{unlimited: true}, sizeFlag{}
	require.NoError(t, size.Set("unlimited"))
	require.Equal(t, "unlimited", size.String())
	require.Error(t, plain.Set("unlimited"))
	duration := durationFlag{unlimited: true}
	require.NoError(t, duration.Set("unlimited"))
	require.Equal(t, "unlimited", duration.String())
	require.NoError(t, duration.Set("36h"))
	require.Equal(t, "1d12h", duration.String())
}

func TestNearest(t *testing.T) {
	words := []string{"create", "describe", "ls", "alter", "rm"}
	for in, want := range map[string]string{
		"crate": "create", "creat": "create", "CREATE": "create", "cretae": "create", "descr": "describe",
		"foo": "", "x": "", "lss": "ls", "": "",
	} {
		require.Equal(t, want, nearest(in, words), in)
	}
}

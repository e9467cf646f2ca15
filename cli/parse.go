package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Sizes and durations are read strictly: a number needs a unit where two
// readings are possible, and nothing is rounded silently.

var sizeUnits = []struct {
	name  string
	bytes uint64
}{
	{"B", 1},
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
}

// parseSize reads a number of bytes: "512", "64KiB", "1.5GiB", "10GB". Powers
// of 1024 have an i, powers of 1000 have none; a bare K, M, G or T is refused
// because it is read both ways.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit := s[len(digits):]
	digits = strings.TrimSuffix(digits, " ")
	whole, fraction, err := splitNumber(digits)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size; write bytes or a unit, as in 512, 64KiB, 10GiB", s)
	}
	factor := uint64(1)
	if unit != "" {
		factor = 0
		for _, u := range sizeUnits {
			if u.name == unit {
				factor = u.bytes
			}
		}
	}
	if factor == 0 {
		return 0, fmt.Errorf("%q has an unknown unit %q; %s", s, unit, suggestSizeUnit(digits, unit))
	}
	bytes, err := scale(whole, fraction, factor)
	if errors.Is(err, errNotWhole) {
		return 0, fmt.Errorf("%q is not a whole number of bytes", s)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is too large for a size; the most is %s", s, formatSize(math.MaxInt64))
	}
	return bytes, nil
}

func suggestSizeUnit(digits, unit string) string {
	for _, prefix := range []string{"K", "M", "G", "T"} {
		if strings.EqualFold(unit, prefix) {
			return fmt.Sprintf("write %s%siB (powers of 1024) or %s%sB (powers of 1000)", digits, prefix, digits, prefix)
		}
	}
	for _, u := range sizeUnits {
		if strings.EqualFold(unit, u.name) {
			return fmt.Sprintf("write %s%s", digits, u.name)
		}
	}
	return "units are B, KiB, MiB, GiB, TiB, kB, MB, GB, TB"
}

var (
	errNumber   = errors.New("not a number")
	errNotWhole = errors.New("not a whole number")
	errRange    = errors.New("out of range")
)

// splitNumber reads "12" or "12.5" into its whole part and the digits after the point.
func splitNumber(s string) (whole uint64, fraction string, err error) {
	before, fraction, point := strings.Cut(s, ".")
	if before == "" || !onlyDigits(before) || !onlyDigits(fraction) || (point && fraction == "") || len(fraction) > 15 {
		return 0, "", errNumber
	}
	whole, err = strconv.ParseUint(before, 10, 64)
	if err != nil {
		return math.MaxUint64, "", nil // scale reports it as out of range
	}
	return whole, fraction, nil
}

func onlyDigits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// scale multiplies whole.fraction by factor exactly.
func scale(whole uint64, fraction string, factor uint64) (int64, error) {
	if whole > math.MaxInt64/factor {
		return 0, errRange
	}
	total := whole * factor
	if fraction != "" {
		numerator, err := strconv.ParseUint(fraction, 10, 64)
		if err != nil {
			return 0, errRange
		}
		denominator := uint64(math.Pow10(len(fraction)))
		for numerator%10 == 0 && denominator > 1 {
			numerator, denominator = numerator/10, denominator/10
		}
		if numerator != 0 {
			if factor > math.MaxUint64/numerator {
				return 0, errRange
			}
			if (numerator*factor)%denominator != 0 {
				return 0, errNotWhole
			}
			total += numerator * factor / denominator
		}
	}
	if total > math.MaxInt64 {
		return 0, errRange
	}
	return int64(total), nil
}

// formatSize writes bytes for people: exact below 1 KiB, else with one decimal.
func formatSize(n int64) string {
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	value, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		value /= 1 << 10
		if value < 1023.95 {
			break
		}
	}
	return strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0") + " " + unit
}

// exactSize writes bytes in a form that parseSize reads back to the same number.
func exactSize(n int64) string {
	for i := len(sizeUnits) - 1; i > 0; i-- {
		u := sizeUnits[i]
		if strings.Contains(u.name, "i") && n != 0 && n%int64(u.bytes) == 0 {
			return strconv.FormatInt(n/int64(u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

var durationUnits = []struct {
	name string
	unit time.Duration
}{
	{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute},
	{"s", time.Second}, {"ms", time.Millisecond}, {"us", time.Microsecond}, {"µs", time.Microsecond},
}

// parseDuration reads one or more numbers with units, largest first: "24h",
// "7d", "1d12h", "1.5s", "250ms". Zero needs no unit.
func parseDuration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	if s != "" && onlyDigits(s) {
		return 0, fmt.Errorf("%q has no unit; write %ss, %sm, %sh or %sd", s, s, s, s, s)
	}
	bad := func() error {
		return fmt.Errorf("%q is not a duration; write a number with a unit, as in 250ms, 24h, 7d", s)
	}
	rest, total, last := s, int64(0), time.Duration(math.MaxInt64)
	for first := true; rest != "" || first; first = false {
		end := strings.IndexFunc(rest, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
		if end <= 0 {
			return 0, bad()
		}
		number := rest[:end]
		rest = rest[end:]
		end = strings.IndexAny(rest, "0123456789.")
		if end < 0 {
			end = len(rest)
		}
		unit := time.Duration(0)
		for _, u := range durationUnits {
			if u.name == rest[:end] {
				unit = u.unit
			}
		}
		if unit == 0 {
			return 0, fmt.Errorf("%q has an unknown unit %q; units are us, ms, s, m, h, d, w", s, rest[:end])
		}
		rest = rest[end:]
		if unit >= last {
			return 0, bad()
		}
		last = unit
		whole, fraction, err := splitNumber(number)
		if err != nil {
			return 0, bad()
		}
		part, err := scale(whole, fraction, uint64(unit))
		if errors.Is(err, errNotWhole) {
			return 0, fmt.Errorf("%q is finer than a nanosecond", s)
		}
		if err != nil || part > math.MaxInt64-total {
			return 0, fmt.Errorf("%q is too long; the most is about 292 years", s)
		}
		total += part
	}
	return time.Duration(total), nil
}

// formatDuration writes a duration in the largest units that stay exact, in a
// form that parseDuration reads back: "7d", "1d12h", "250ms".
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	if d < time.Microsecond || d%time.Microsecond != 0 {
		return d.String()
	}
	var b strings.Builder
	for _, u := range durationUnits[1:7] {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d %= u.unit
		}
	}
	return b.String()
}

// parseTime reads a point in time: RFC 3339 ("2026-03-01T15:04:05Z"), a local
// date with or without a time ("2026-03-01", "2026-03-01 15:04"), "now", or a
// distance into the past ("15m ago").
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "now" {
		return now, nil
	}
	if before, found := strings.CutSuffix(s, "ago"); found {
		d, err := parseDuration(strings.TrimSpace(before))
		if err != nil {
			return time.Time{}, err
		}
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time; write it like 2026-03-01T15:04:05Z, 2026-03-01 or '15m ago'", s)
}

// sizeFlag is a flag that holds bytes. The value -1 stands for unlimited and is
// accepted only where unlimited is set.
type sizeFlag struct {
	bytes     int64
	unlimited bool
}

func (f *sizeFlag) Type() string { return "size" }

func (f *sizeFlag) String() string {
	switch {
	case f.bytes < 0:
		return "unlimited"
	case f.bytes == 0:
		return "0"
	}
	return exactSize(f.bytes)
}

func (f *sizeFlag) Set(s string) error {
	if f.unlimited && s == "unlimited" {
		f.bytes = -1
		return nil
	}
	n, err := parseSize(s)
	if err == nil {
		f.bytes = n
	}
	return err
}

// durationFlag is a flag that holds a time span. A negative value stands for
// unlimited and is accepted only where unlimited is set.
type durationFlag struct {
	value     time.Duration
	unlimited bool
}

func (f *durationFlag) Type() string { return "duration" }

func (f *durationFlag) String() string {
	switch {
	case f.value < 0:
		return "unlimited"
	case f.value == 0:
		return "0"
	}
	return formatDuration(f.value)
}

func (f *durationFlag) Set(s string) error {
	if f.unlimited && s == "unlimited" {
		f.value = -1
		return nil
	}
	d, err := parseDuration(s)
	if err == nil {
		f.value = d
	}
	return err
}

// countFlag is a flag that holds a number of things; 0 is unlimited.
type countFlag struct{ value uint64 }

func (f *countFlag) Type() string { return "number" }

func (f *countFlag) String() string {
	if f.value == 0 {
		return "unlimited"
	}
	return strconv.FormatUint(f.value, 10)
}

func (f *countFlag) Set(s string) error {
	if s == "unlimited" {
		f.value = 0
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not a number above 0; write digits, or unlimited", s)
	}
	f.value = n
	return nil
}

// choiceFlag is a flag that takes one of a few words.
type choiceFlag struct {
	value   string
	choices []string
}

func newChoice(value string, choices ...string) *choiceFlag {
	return &choiceFlag{value: value, choices: choices}
}

func (f *choiceFlag) Type() string   { return strings.Join(f.choices, "|") }
func (f *choiceFlag) String() string { return f.value }

func (f *choiceFlag) Set(s string) error {
	for _, c := range f.choices {
		if c == s {
			f.value = s
			return nil
		}
	}
	text := fmt.Sprintf("%q is not one of %s", s, strings.Join(f.choices, ", "))
	if near := nearest(s, f.choices); near != "" {
		text += fmt.Sprintf("; did you mean %s?", near)
	}
	return errors.New(text)
}

// nearest returns the candidate closest to s in edit distance, or "" if none is
// close enough to be a slip of the fingers. A candidate that starts with
// something close counts too.
func nearest(s string, candidates []string) string {
	if s == "" {
		return ""
	}
	best, bestDistance := "", max(1, len(s)/3)+1
	for _, c := range candidates {
		word := strings.ToLower(s)
		d := min(editDistance(word, c), editDistance(word, c[:min(len(c), len(word))])+1)
		if d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// editDistance is how many bytes of a short word must be added, left out, changed or
// swapped with their neighbour to make another one of it: the Damerau-Levenshtein
// distance, in which no byte is touched twice.
func editDistance(a, b string) int {
	var before []int // the row of two bytes ago
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = min(change, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

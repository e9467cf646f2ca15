package cli

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestLines(t *testing.T) {
	long := strings.Repeat("x", 3*lineReadBytes+17)
	exact := strings.Repeat("y", lineReadBytes)
	for _, c := range []struct {
		name  string
		in    string
		lines []string // a trailing $ marks a line that no newline ended
	}{
		{"nothing", "", nil},
		{"one empty line", "\n", []string{""}},
		{"newline at the end", "a\nb\n", []string{"a", "b"}},
		{"no newline at the end", "a\nb", []string{"a", "b$"}},
		{"empty lines are records", "\n\na\n\n", []string{"", "", "a", ""}},
		{"carriage returns and zero bytes stay", "a\r\n\x00\n", []string{"a\r", "\x00"}},
		{"a line longer than the buffer", "a\n" + long + "\nb\n", []string{"a", long, "b"}},
		{"a line as long as the buffer", exact + "\nb\n", []string{exact, "b"}},
		{"a long line at the end", long, []string{long + "$"}},
	} {
		for how, reader := range map[string]io.Reader{
			"": strings.NewReader(c.in), ", in small reads": iotest.HalfReader(strings.NewReader(c.in)),
			", error with the last bytes": iotest.DataErrReader(strings.NewReader(c.in)),
		} {
			t.Run(c.name+how, func(t *testing.T) {
				l := newLineReader(reader)
				var got []string
				for {
					line, newline, err := l.next()
					if errors.Is(err, io.EOF) {
						break
					}
					require.NoError(t, err)
					text := string(line)
					if !newline {
						text += "$"
					}
					got = append(got, text)
				}
				require.Equal(t, c.lines, got)
				require.Equal(t, int64(len(c.lines)), l.count)
				require.Equal(t, int64(len(c.in)), l.bytes)
			})
		}
	}
}

func TestLinesAreBounded(t *testing.T) {
	most := strings.Repeat("x", maxLineBytes)
	l := newLineReader(strings.NewReader(most + "\n"))
	line, newline, err := l.next()
	require.NoError(t, err)
	require.True(t, newline)
	require.Len(t, line, maxLineBytes)

	_, _, err = newLineReader(strings.NewReader(most + "x\n")).next()
	require.ErrorIs(t, err, errLineTooLong)

	endless := &countingReader{}
	_, _, err = newLineReader(endless).next()
	require.ErrorIs(t, err, errLineTooLong)
	require.LessOrEqual(t, endless.n, int64(maxLineBytes+2*lineReadBytes))
}

// countingReader is a stream without end and without newlines.
type countingReader struct{ n int64 }

func (r *countingReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	r.n += int64(len(p))
	return len(p), nil
}

func TestReadErrorsOfTheInputAreReported(t *testing.T) {
	broken := errors.New("broken pipe of the input")
	l := newLineReader(io.MultiReader(strings.NewReader("a\n"), iotest.ErrReader(broken)))
	_, _, err := l.next()
	require.NoError(t, err)
	_, _, err = l.next()
	require.ErrorIs(t, err, broken)
}

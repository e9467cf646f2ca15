package fuzz

import (
	"bufio"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var fileBytes = flag.Int64("file.bytes", 64<<20, "size of the text file that TestFile sends through the broker")

// maxLine is the longest line of the file, in bytes without its end.
const maxLine = 200 << 10

// TestFile sends a text file through the broker with the commands that a user has:
// what is consumed is the file, byte for byte. Then the file is sent again, and in
// the middle of it the broker is killed: what is consumed is the file twice.
func TestFile(t *testing.T) {
	broker := newBroker(t)
	broker.start()
	conn := broker.connect()
	dir := t.TempDir()
	file, once, twice := filepath.Join(dir, "file"), filepath.Join(dir, "once"), filepath.Join(dir, "twice")
	lines := writeLines(t, file, *fileBytes)
	require.NoError(t, broker.run(nil, io.Discard, "topic", "create", "file", "--partitions", "1"))

	produce := func() error {
		f, err := os.Open(file)
		require.NoError(t, err)
		defer f.Close()
		return broker.run(f, io.Discard, "produce", "file")
	}
	consume := func(name string) {
		f, err := os.Create(name)
		require.NoError(t, err)
		require.NoError(t, broker.run(nil, f, "consume", "file", "--from", "earliest", "-e"))
		require.NoError(t, f.Close())
	}
	began := time.Now()
	require.NoError(t, produce())
	took := time.Since(began)
	consume(once)
	requireSame(t, []string{file}, once)

	second := make(chan error, 1)
	go func() { second <- produce() }()
	time.Sleep(took / 3) // somewhere in the middle of it
	broker.kill()
	broker.start()
	broker.ready(conn)
	require.NoError(t, <-second)
	consume(twice)
	requireSame(t, []string{file, file}, twice)
	t.Logf("%d bytes in %d lines, produced in %.1f s without and %.1f s with a kill", *fileBytes, lines, took.Seconds(), time.Since(began).Seconds()-took.Seconds())
}

// writeLines writes a text of about size bytes: empty lines, ordinary ones, a few
// very long ones.
func writeLines(t *testing.T, name string, size int64) (lines int) {
	t.Helper()
	f, err := os.Create(name)
	require.NoError(t, err)
	w := bufio.NewWriterSize(f, 1<<20)
	random := rand.New(rand.NewPCG(3, 3))
	text := make([]byte, maxLine)
	for i := range text {
		text[i] = ' ' + byte(random.IntN('~'-' '+1))
	}
	for left := size; left > 0; lines++ {
		n := random.IntN(300)
		switch random.IntN(200) {
		case 0:
			n = random.IntN(maxLine + 1)
		case 1:
			n = maxLine
		case 2, 3, 4, 5:
			n = 0
		}
		from := random.IntN(maxLine - n + 1)
		_, err := w.Write(append(text[from:from+n:from+n], '\n'))
		require.NoError(t, err)
		left -= int64(n) + 1
	}
	require.NoError(t, w.Flush())
	require.NoError(t, f.Close())
	return lines
}

// requireSame compares a file with others laid end to end.
func requireSame(t *testing.T, want []string, got string) {
	t.Helper()
	g, err := os.Open(got)
	require.NoError(t, err)
	defer g.Close()
	position := int64(0)
	b := bufio.NewReaderSize(g, 1<<20)
	for _, name := range want {
		f, err := os.Open(name)
		require.NoError(t, err)
		n, err := io.Copy(&comparer{t: t, against: b, position: position}, f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		position += n
	}
	_, err = b.ReadByte()
	require.ErrorIs(t, err, io.EOF, "%s is longer than %d bytes", got, position)
}

// comparer is a writer that expects what it gets.
type comparer struct {
	t        *testing.T
	against  io.Reader
	position int64
	buffer   []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	if len(c.buffer) < len(p) {
		c.buffer = make([]byte, len(p))
	}
	n, err := io.ReadFull(c.against, c.buffer[:len(p)])
	require.NoError(c.t, err, "%d of %d bytes at position %d", n, len(p), c.position)
	for i := range p {
		if p[i] != c.buffer[i] {
			require.FailNow(c.t, "the file has changed", "position %d: %q, want %q", c.position+int64(i), c.buffer[i], p[i])
		}
	}
	c.position += int64(len(p))
	return len(p), nil
}

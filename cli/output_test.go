package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// blockingWriter tells when a write begins and waits for a permission to end it.
type blockingWriter struct {
	begun  chan []byte
	permit chan error
}

func (w *blockingWriter) Write(p []byte) (int, error) {
	w.begun <- bytes.Clone(p)
	if err := <-w.permit; err != nil {
		return 0, err
	}
	return len(p), nil
}

func add(q *outputQueue, s string) error {
	return q.append(func(dst []byte) []byte { return append(dst, s...) })
}

func TestOutputIsWrittenAtOnceAndGathersMeanwhile(t *testing.T) {
	w := &blockingWriter{make(chan []byte), make(chan error)}
	q := newOutputQueue(w)
	require.NoError(t, add(q, "first"))
	require.Equal(t, "first", string(<-w.begun), "an idle stream waits for no timer")
	require.NoError(t, add(q, "second "))
	require.NoError(t, add(q, "third"))
	w.permit <- nil
	require.Equal(t, "second third", string(<-w.begun), "what came meanwhile goes out in one piece")
	w.permit <- nil
	require.NoError(t, q.close())
}

func TestOutputIsBounded(t *testing.T) {
	w := &blockingWriter{make(chan []byte), make(chan error)}
	q := newOutputQueue(w)
	require.NoError(t, add(q, "x"))
	<-w.begun
	require.NoError(t, q.append(func(dst []byte) []byte { return append(dst, make([]byte, outputQueueBytes)...) }))
	full := make(chan error)
	go func() { full <- add(q, "y") }()
	select {
	case <-full:
		t.Fatal("append did not wait for room")
	default:
	}
	w.permit <- nil
	require.Len(t, <-w.begun, outputQueueBytes)
	require.NoError(t, <-full)
	w.permit <- nil
	require.Equal(t, "y", string(<-w.begun))
	w.permit <- nil
	require.NoError(t, q.close())
}

func TestAClosedOutputEndsQuietly(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	defer w.Close()
	q := newOutputQueue(w)
	require.NoError(t, add(q, "nobody reads this"))
	<-q.failed()
	require.ErrorIs(t, add(q, "more"), errOutputClosed)
	require.ErrorIs(t, q.close(), errOutputClosed)

	a := shell{}.app(w, discard{})
	require.Equal(t, 0, a.run(context.Background(), []string{"version"}))
}

func TestAFailingOutputIsAnError(t *testing.T) {
	w := &blockingWriter{make(chan []byte), make(chan error)}
	q := newOutputQueue(w)
	require.NoError(t, add(q, "x"))
	<-w.begun
	w.permit <- syscall.ENOSPC
	<-q.failed()
	err := q.close()
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.False(t, errors.Is(err, errOutputClosed))
}

func TestTables(t *testing.T) {
	var out bytes.Buffer
	a := shell{}.app(&out, discard{})
	require.NoError(t, a.printTable([]string{"name", "records"}, [][]string{{"orders", "1,000"}, {"a", "7"}}, "records"))
	require.Equal(t, "NAME    RECORDS\norders    1,000\na             7\n", out.String())
}

func TestCounts(t *testing.T) {
	for in, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1000: "-1,000", -100: "-100"} {
		require.Equal(t, want, formatCount(in))
	}
	require.Equal(t, "1 record", plural(1, "record"))
	require.Equal(t, "2,000 records", plural(2000, "record"))
}

package floor

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// start runs a floor for one test.
func start(t *testing.T, o Options) (address string) {
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	o.Listen = "127.0.0.1:0"
	go func() { ended <- Serve(ctx, o, func(a string) { ready <- a }) }()
	address = <-ready
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
	})
	return address
}

func dial(t *testing.T, address string, first byte) net.Conn {
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = c.Write([]byte{first})
	require.NoError(t, err)
	return c
}

func TestRecordsAreCountedStoredAndFannedOut(t *testing.T) {
	for _, sync := range []bool{false, true} {
		file := filepath.Join(t.TempDir(), "log")
		address := start(t, Options{Log: file, Sync: sync})
		subscriber := dial(t, address, Subscribe)
		_, err := io.ReadFull(subscriber, make([]byte, 1))
		require.NoError(t, err)

		producer := dial(t, address, Produce)
		sent := []byte("\x02\x00\x00\x00hi\x00\x00\x00\x00\x05\x00\x00\x00there")
		_, err = producer.Write(sent)
		require.NoError(t, err)
		records := uint32(0)
		for records < 3 { // one answer may be for one record or for several
			var answer [4]byte
			_, err := io.ReadFull(producer, answer[:])
			require.NoError(t, err)
			records += binary.LittleEndian.Uint32(answer[:])
		}
		require.Equal(t, uint32(3), records)
		received := make([]byte, len(sent))
		_, err = io.ReadFull(subscriber, received)
		require.NoError(t, err)
		require.Equal(t, sent, received)
		stored, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, sent, stored)
	}
}

func TestWhatIsNoRecordEndsTheConnection(t *testing.T) {
	address := start(t, Options{})
	for name, bytes := range map[string]string{
		"another kind of connection": "GET / HTTP/1.1\r\n",
		"a record of 4 GiB":          "P\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, address, bytes[0])
			_, _ = c.Write([]byte(bytes[1:])) // may find the connection closed already
			_, err := io.ReadFull(c, make([]byte, 1))
			require.Error(t, err)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		})
	}
}

func TestReplaySendsWhatWasAskedFor(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	dir := t.TempDir()
	go func() { ended <- ServeReplay(ctx, "127.0.0.1:0", dir, func(a string) { ready <- a }) }()
	c, err := net.Dial("tcp", <-ready)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write(binary.LittleEndian.AppendUint64(nil, 3_000_000))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	_, err = c.Write([]byte{'g'})
	require.NoError(t, err)
	n, err := io.CopyN(io.Discard, c, 3_000_000)
	require.NoError(t, err)
	require.Equal(t, int64(3_000_000), n)
	stop()
	require.NoError(t, <-ended)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

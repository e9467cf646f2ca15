package bench

import (
	"io"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What the machine does without a broker: the figures that docs/performance.md
// puts beside ours. LOCKSTEP_BENCH_DIR names a directory on the disk to measure.
//
//	go test ./bench -run '^$' -bench Raw -benchtime 2s

// BenchmarkRawLoopback sends 64 KiB writes over one loopback TCP connection.
func BenchmarkRawLoopback(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer listener.Close()
	received := make(chan int64, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			received <- -1
			return
		}
		defer conn.Close()
		n, _ := drain(conn)
		received <- n
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(b, err)
	chunk := make([]byte, 64<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		_, err := conn.Write(chunk)
		require.NoError(b, err)
	}
	require.NoError(b, conn.Close())
	require.Positive(b, <-received)
}

// BenchmarkRawPwrite appends to a file through the page cache.
func BenchmarkRawPwrite(b *testing.B) {
	b.Run("64KiB", func(b *testing.B) { rawPwrite(b, 64<<10, false) })
}

// BenchmarkRawPwriteFdatasync appends and makes each write durable.
func BenchmarkRawPwriteFdatasync(b *testing.B) {
	b.Run("1KiB", func(b *testing.B) { rawPwrite(b, 1<<10, true) })
	b.Run("64KiB", func(b *testing.B) { rawPwrite(b, 64<<10, true) })
	b.Run("1MiB", func(b *testing.B) { rawPwrite(b, 1<<20, true) })
}

// rawFileBytes is where the file is written from its start again.
const rawFileBytes = 256 << 20

func rawPwrite(b *testing.B, size int, sync bool) {
	dir := os.Getenv("LOCKSTEP_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	f, err := os.CreateTemp(dir, "raw-")
	require.NoError(b, err)
	defer func() { _ = os.Remove(f.Name()) }()
	defer f.Close()
	chunk := make([]byte, size)
	b.SetBytes(int64(size))
	var position int64
	for b.Loop() {
		if position+int64(size) > rawFileBytes {
			position = 0
		}
		_, err := f.WriteAt(chunk, position)
		require.NoError(b, err)
		position += int64(size)
		if sync {
			require.NoError(b, unix.Fdatasync(int(f.Fd())))
		}
	}
}

// drain reads to the end with large reads into one buffer.
func drain(r io.Reader) (total int64, err error) {
	buffer := make([]byte, 256<<10)
	for {
		n, err := r.Read(buffer)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

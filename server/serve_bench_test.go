package server

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// BenchmarkServe shows what mapped slices bring over pread into a pooled buffer:
// the same stored frames to the same loopback socket, 64 KiB a write. Both sides
// of the socket are in the figure.
//
//	go test ./server -tags release -run '^$' -bench Serve -count 5
func BenchmarkServe(b *testing.B) {
	l := servedLog(b, 256<<20)
	b.Run("mapped", func(b *testing.B) {
		benchServe(b, l, func(fd int, p log.Position) (int, log.Position) {
			view, err := l.View(p, pieceBytes)
			if err == log.ErrCold {
				require.NoError(b, l.Populate(p, populateBytes))
				view, err = l.View(p, pieceBytes)
			}
			require.NoError(b, err)
			defer view.Release()
			n, slices := view.Bytes, view.Slices
			for sent := 0; sent < n; {
				m, err := unix.Writev(fd, slices)
				require.NoError(b, err)
				sent += m
				for len(slices) > 0 && m >= len(slices[0]) {
					m -= len(slices[0])
					slices = slices[1:]
				}
				if m > 0 {
					slices[0] = slices[0][m:]
				}
			}
			return n, view.Next
		})
	})
	buffer := make([]byte, pieceBytes)
	b.Run("pread", func(b *testing.B) {
		benchServe(b, l, func(fd int, p log.Position) (int, log.Position) {
			n, next, err := l.ReadAt(p, buffer)
			require.NoError(b, err)
			for sent := 0; sent < n; {
				m, err := unix.Write(fd, buffer[sent:n])
				require.NoError(b, err)
				sent += m
			}
			return n, next
		})
	})
}

// servedLog is a log of about size bytes in entries of 64 KiB.
func servedLog(b *testing.B, size int64) *log.Log {
	dir := benchDir(b, os.Getenv("LOCKSTEP_BENCH_DIR"))
	store, err := log.OpenStore(log.StoreOptions{FS: vfs.OS(), Dir: dir, BootID: "bench", MinFreeBytes: -1, ReserveBytes: -1})
	require.NoError(b, err)
	var jobs benchExecutor
	l, err := log.Open(log.Options{
		Store: store, Dir: filepath.Join(dir, "partitions", "p-0"), PartitionID: [16]byte{1}, Incarnation: 1,
		ReplicaID: 1, Sync: log.SyncOS, Executor: &jobs,
	})
	require.NoError(b, err)
	data := make([]byte, wire.EntryPrefixSize+64<<10)
	wire.PutEntryPrefix(data, wire.KindRecords, 64, 1)
	for l.Bytes() < size {
		for l.Reserve(wire.FrameSize(64<<10), true) != nil {
			jobs.run()
		}
		require.NoError(b, l.Append([]log.Entry{{Index: l.LastIndex() + 1, Term: 1, Kind: wire.KindRecords, Data: data}}))
		l.Publish(l.LastIndex())
		l.Release(l.LastIndex(), nil)
	}
	b.Cleanup(func() {
		jobs.run()
		require.NoError(b, l.Close(true))
		require.NoError(b, store.Close())
	})
	return l
}

type benchExecutor struct{ jobs []log.Job }

func (e *benchExecutor) Submit(j log.Job) { e.jobs = append(e.jobs, j) }

func (e *benchExecutor) run() {
	for len(e.jobs) > 0 {
		j := e.jobs[0]
		e.jobs = e.jobs[1:]
		j.Run()
		j.Done()
	}
}

// benchServe sends the whole log over and over; piece writes one piece to the
// blocking socket fd.
func benchServe(b *testing.B, l *log.Log, piece func(fd int, p log.Position) (int, log.Position)) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer listener.Close()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buffer := make([]byte, 256<<10)
		for err = nil; err == nil; {
			_, err = conn.Read(buffer)
		}
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(b, err)
	file, err := conn.(*net.TCPConn).File()
	require.NoError(b, err)
	fd := int(file.Fd())
	require.NoError(b, unix.SetNonblock(fd, false))
	start, _, err := l.Locate(0)
	require.NoError(b, err)
	p, end := start, l.Watermark().Position
	b.SetBytes(pieceBytes)
	for b.Loop() {
		n, next := piece(fd, p)
		if p = next; n == 0 || p == end {
			p = start
		}
	}
	b.StopTimer()
	require.NoError(b, file.Close())
	require.NoError(b, conn.Close())
	<-drained
}

package server

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	fullRuns = flag.Int("full.runs", 3, "how often TestF12 fills a disk under a producer")
	fullSeed = flag.Uint64("full.seed", 0, "draws what TestF12 does; 0 takes the clock's")
)

const (
	fillDisk   = 128 << 20 // bytes of the file system, half of which is the reserve
	fillRecord = 20_000    // bytes of a value
)

// filling is a broker on a file system that is filled to its last block.
type filling struct {
	t      testing.TB
	mount  string
	data   string
	wrap   func(vfs.FS) vfs.FS // a mutant; nil for none
	random *rand.Rand

	s            *Server
	log          *lockedBuffer
	c            *rawClient
	handle       uint32
	sent         uint64            // numbers below were sent
	acknowledged map[uint64]uint64 // number by offset

	refused []time.Duration // how long answers of DISK_FULL took
	resumed []time.Duration // from the end of the shortage to the first record taken
	noticed []time.Duration // from the last free block to the first DISK_FULL
}

func (f *filling) start() {
	cfg := Config{
		DataDir: f.data, Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: 1 << 20,
		Logger: slog.New(slog.NewTextHandler(f.log, nil)),
	}
	if f.wrap != nil {
		require.NoError(f.t, os.MkdirAll(f.data, 0o700))
		cfg.fs = f.wrap(vfs.OS())
	}
	var err error
	f.s, err = Start(context.Background(), cfg)
	require.NoError(f.t, err)
	f.c = dialOpen(f.t, f.s.Addr())
}

func (f *filling) stop() {
	_ = f.c.conn.Close()
	require.NoError(f.t, f.s.Close(context.Background()))
	f.s = nil
}

func (f *filling) create(name string) {
	f.c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: name, Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited, SegmentBytes: 4 << 20,
	}})
	require.Equal(f.t, wire.CodeOK, f.c.answer(2).code())
}

// produce sends the next record and returns what was answered, and after how long.
func (f *filling) produce() (wire.ErrorCode, time.Duration) {
	value := make([]byte, fillRecord)
	binary.LittleEndian.PutUint64(value, f.sent)
	number := f.sent
	f.sent++
	batch, _ := testBatch(f.t, string(value))
	begin := time.Now()
	f.c.send(wire.OpProduce, 3, &wire.ProduceRequest{Handle: f.handle, Acks: wire.AcksQuorum, Batch: batch})
	answer := f.c.answer(3)
	took := time.Since(begin)
	if answer.code() == wire.CodeOK {
		var receipt wire.Receipt
		f.c.ok(answer, &receipt)
		f.acknowledged[uint64(receipt.BaseOffset)] = number
		return wire.CodeOK, took
	}
	require.Equal(f.t, wire.CodeDiskFull, answer.code(), "%s\n%s", answer.failure().Detail, f.log)
	f.refused = append(f.refused, took)
	return wire.CodeDiskFull, took
}

// verify reads everything and holds it against what was acknowledged.
func (f *filling) verify() {
	c := dialOpen(f.t, f.s.Addr())
	defer c.conn.Close()
	got := &streamed{}
	links := map[uint32]*streamed{c.link(c.open("log", 0), 0, 1<<20): got}
	c.stream(links, func() bool { return got.ends > 0 })
	var numbers []uint64
	for rest := got.bytes; len(rest) > 0; {
		h, err := wire.ParseFrameHeader(rest)
		require.NoError(f.t, err)
		if h.Kind == wire.KindRecords {
			body := rest[wire.FrameHeaderSize:][:h.BodyLength]
			require.Equal(f.t, h.BodyCRC, wire.Checksum(body), "offset %d", h.BaseOffset)
			require.EqualValues(f.t, len(numbers), h.BaseOffset)
			numbers = append(numbers, f.numbersOf(body)...)
		}
		rest = rest[h.FrameSize():]
	}
	require.True(f.t, slices.IsSorted(numbers), "out of order")
	require.Equal(f.t, len(numbers), len(slices.Compact(slices.Clone(numbers))), "twice")
	require.EqualValues(f.t, len(numbers), got.next)
	for offset, number := range f.acknowledged {
		require.Less(f.t, offset, uint64(len(numbers)), "lost")
		require.Equal(f.t, number, numbers[offset], "offset %d", offset)
	}
}

// numbersOf finds the numbers of the records in the body of a frame.
func (f *filling) numbersOf(body []byte) (numbers []uint64) {
	for len(body) > 0 {
		b, rest, err := wire.NextBodyBatch(body)
		require.NoError(f.t, err)
		body = rest
		info, err := wire.VerifyBatch(b.Batch)
		require.NoError(f.t, err)
		var r wire.RecordReader
		r.Reset(&info, wire.Records(b.Batch))
		for record := (wire.Record{}); r.Next(&record); {
			require.Len(f.t, record.Value, fillRecord)
			numbers = append(numbers, binary.LittleEndian.Uint64(record.Value))
		}
		require.NoError(f.t, r.Err())
	}
	return numbers
}

// run fills the disk while records are produced, uses it full, and empties it.
func (f *filling) run() {
	f.data = filepath.Join(f.mount, "data")
	f.log, f.acknowledged, f.sent = &lockedBuffer{}, map[uint64]uint64{}, 0
	f.start()
	defer func() {
		if f.s != nil { // the run has failed
			_ = f.c.conn.Close()
			_ = f.s.Close(context.Background())
		}
	}()
	f.create("log")
	f.create("doomed")
	f.handle = f.c.open("log", 0)
	for range f.random.IntN(100) {
		code, _ := f.produce()
		require.Equal(f.t, wire.CodeOK, code)
	}
	first, second := filepath.Join(f.mount, "ballast.1"), filepath.Join(f.mount, "ballast.2")
	done := make(chan error, 1)
	go func() { done <- ballast(first) }()
	for filling := true; filling; {
		select {
		case err := <-done:
			require.NoError(f.t, err)
			filling = false
		default:
			_, _ = f.produce()
		}
	}
	full := time.Now()
	for code, _ := f.produce(); code == wire.CodeOK; code, _ = f.produce() {
	}
	f.noticed = append(f.noticed, time.Since(full))
	if f.random.IntN(2) == 0 { // another process takes what is set aside as well
		require.NoError(f.t, os.Truncate(filepath.Join(f.data, "reserve"), 0))
		require.NoError(f.t, ballast(second))
		for code, _ := f.produce(); code == wire.CodeOK; code, _ = f.produce() {
		}
	}
	for range 20 {
		code, _ := f.produce()
		require.Equal(f.t, wire.CodeDiskFull, code)
	}
	f.verify()
	if f.random.IntN(2) == 0 {
		f.stop()
		f.start()
		f.handle = f.c.open("log", 0)
		eventually(f.t, "the partition leads", f.s.broker.local(mustDestination(f.t, f.s.broker, "log").ID, 0).Leading)
		f.verify()
		for code, _ := f.produce(); code == wire.CodeOK; code, _ = f.produce() {
		}
	}
	d := mustDestination(f.t, f.s.broker, "doomed")
	f.c.send(wire.OpDelete, 4, &wire.DeleteRequest{Name: d.Name, Kind: d.Kind, ID: d.ID})
	require.Equal(f.t, wire.CodeOK, f.c.answer(4).code(), "deletes are served")

	require.NoError(f.t, os.Remove(first))
	if err := os.Remove(second); err != nil {
		require.ErrorIs(f.t, err, os.ErrNotExist)
	}
	freed := time.Now()
	eventually(f.t, "writes resume", func() bool {
		code, _ := f.produce()
		return code == wire.CodeOK
	})
	f.resumed = append(f.resumed, time.Since(freed))
	for range 10 {
		code, _ := f.produce()
		require.Equal(f.t, wire.CodeOK, code)
	}
	f.verify()
	f.stop()
	require.NoError(f.t, os.RemoveAll(f.data))
}

// fill runs on a file system that is mounted at mount.
func fill(t testing.TB, mount string, runs int, seed uint64, wrap func(vfs.FS) vfs.FS) {
	f := &filling{t: t, mount: mount, wrap: wrap, random: rand.New(rand.NewPCG(seed, 12))}
	for range runs {
		f.run()
	}
	t.Logf("%d runs, %d answers of DISK_FULL, the slowest after %v, p99 %v; first one after the last block was taken: at most %v; writes resumed after at most %v",
		runs, len(f.refused), percentile(f.refused, 1), percentile(f.refused, 0.99), percentile(f.noticed, 1), percentile(f.resumed, 1))
}

func seedOfTheDay(t *testing.T) uint64 {
	seed := *fullSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("full.seed %d", seed)
	return seed
}

// RELIABILITY F12: a file system is filled to its last block while records are
// produced. Nothing acknowledged is lost, reads, deletes and restarts are served,
// DISK_FULL is the answer and not a hang, and writes resume by themselves.
func TestF12_AFilledFileSystem(t *testing.T) {
	fill(t, smallDisk(t, fillDisk), *fullRuns, seedOfTheDay(t), nil)
}

// brokenAllocation takes the protection away that space is taken before a write
// needs it, or that a want of space is told from a fault of the disk.
type brokenAllocation struct {
	vfs.FS
	allocate func(f vfs.File, off, n int64) error
}

type brokenFile struct {
	vfs.File
	allocate func(f vfs.File, off, n int64) error
}

func (b *brokenAllocation) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &brokenFile{f, b.allocate}, nil
}
func (b *brokenAllocation) Create(name string) (vfs.File, error) { return b.file(b.FS.Create(name)) }
func (b *brokenAllocation) Open(name string) (vfs.File, error)   { return b.file(b.FS.Open(name)) }

func (f *brokenFile) Allocate(off, n int64) error { return f.allocate(f.File, off, n) }

// mutantRuns is in how many runs a mutant has to be caught. Usually it is in the first; on a
// busy machine a run may end before a write meets the last block.
const mutantRuns = 30

func TestF12_Catches_AllocationsThatTakeNoSpace(t *testing.T) {
	mount := smallDisk(t, fillDisk)
	caught(t, func(t testing.TB) {
		fill(t, mount, mutantRuns, 1, func(fs vfs.FS) vfs.FS {
			return &brokenAllocation{fs, func(f vfs.File, off, n int64) error {
				if size, err := f.Size(); err != nil || size >= off+n {
					return err
				}
				return f.Truncate(off + n)
			}}
		})
	})
}

func TestF12_Catches_AFullDiskTakenForABrokenOne(t *testing.T) {
	mount := smallDisk(t, fillDisk)
	caught(t, func(t testing.TB) {
		fill(t, mount, mutantRuns, 1, func(fs vfs.FS) vfs.FS {
			return &brokenAllocation{fs, func(f vfs.File, off, n int64) error {
				if err := f.Allocate(off, n); err != nil {
					return errors.New(err.Error())
				}
				return nil
			}}
		})
	})
}

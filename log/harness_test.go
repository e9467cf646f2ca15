package log

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// queue is an executor that runs jobs when the test says so.
type queue struct{ jobs []Job }

func (q *queue) Submit(j Job) { q.jobs = append(q.jobs, j) }

// step runs the oldest job with its Done.
func (q *queue) step() bool {
	if len(q.jobs) == 0 {
		return false
	}
	j := q.jobs[0]
	q.jobs = q.jobs[1:]
	j.Run()
	j.Done()
	return true
}

func (q *queue) drain() {
	for q.step() {
	}
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

var testPartition = [16]byte{0xa1, 0xb2, 0xc3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// rig is a store with one log on a file system.
type rig struct {
	t       testing.TB
	fs      vfs.FS
	boot    string
	store   *Store
	jobs    *queue
	log     *Log
	options Options
}

const testDir = "/data"

func newRig(t testing.TB, fs vfs.FS, change func(*Options)) *rig {
	r := &rig{t: t, fs: fs, boot: "boot-1"}
	r.options = Options{
		Dir: testDir + "/partitions/orders-0", PartitionID: testPartition, Incarnation: 1, ReplicaID: 7, Logger: quiet,
	}
	if change != nil {
		change(&r.options)
	}
	return r
}

// open opens store and log and fails the test if that fails.
func (r *rig) open() *rig {
	r.t.Helper()
	require.NoError(r.t, r.tryOpen())
	return r
}

func (r *rig) tryOpen() error {
	r.jobs = &queue{}
	var err error
	r.store, err = OpenStore(StoreOptions{
		FS: r.fs, Dir: testDir, UUID: [16]byte{1}, BootID: r.boot, MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet,
	})
	if err != nil {
		return err
	}
	o := r.options
	o.Store, o.Executor = r.store, r.jobs
	if r.log, err = Open(o); err != nil {
		return errors.Join(err, r.store.Close())
	}
	return nil
}

// close ends log and store in order.
func (r *rig) close(clean bool) {
	r.t.Helper()
	require.NoError(r.t, r.log.Close(clean))
	r.jobs.drain()
	require.NoError(r.t, r.store.Close())
}

// reserve asks for space until it is there.
func (r *rig) reserve(n int64, records bool) error {
	for {
		err := r.log.Reserve(n, records)
		if !errors.Is(err, ErrNotReady) || errors.Is(err, ErrTailFull) || !r.jobs.step() {
			return err
		}
	}
}

// tryAppend appends entries, reserving space as an owner does.
func (r *rig) tryAppend(entries ...Entry) error {
	n, records := int64(0), false
	for _, e := range entries {
		n += frameSize(e)
		records = records || e.Kind == wire.KindRecords
	}
	for {
		if err := r.reserve(n, records); err != nil {
			return err
		}
		if err := r.log.Append(entries); !errors.Is(err, ErrNotReady) || !r.jobs.step() {
			return err
		}
	}
}

func (r *rig) append(entries ...Entry) {
	r.t.Helper()
	require.NoError(r.t, r.tryAppend(entries...))
}

// sync makes everything durable.
func (r *rig) sync() {
	r.t.Helper()
	r.log.Sync()
	r.jobs.drain()
	require.NoError(r.t, r.log.Err())
}

// commit syncs and publishes everything.
func (r *rig) commit() {
	r.t.Helper()
	r.sync()
	hs := r.log.HardState()
	hs.Commit = r.log.LastIndex()
	r.log.SetHardState(hs, false)
	r.log.Publish(r.log.LastIndex())
	r.log.Release(r.log.LastIndex(), nil)
	r.jobs.drain()
}

func (r *rig) term(term wire.Term) {
	hs := r.log.HardState()
	hs.Term, hs.Vote = term, r.options.ReplicaID
	r.log.SetHardState(hs, true)
}

// checkpoint writes one at the watermark.
func (r *rig) checkpoint() {
	r.t.Helper()
	r.log.WriteCheckpoint(r.checkpointAt(r.log.Watermark().Index))
	r.jobs.drain()
	require.False(r.t, r.log.CheckpointPending())
}

func (r *rig) checkpointAt(i wire.Index) Checkpoint {
	term, ok := r.log.Term(i)
	require.True(r.t, ok)
	p, ok := r.log.place(i)
	require.True(r.t, ok)
	return Checkpoint{Applied: i, Term: term, NextOffset: p.link.Next, ConfState: []byte("conf"), State: []byte(fmt.Sprintf("state at %d", i))}
}

func frameSize(e Entry) int64 {
	if e.Kind == wire.KindRecords || e.Kind == wire.KindControl {
		return wire.FrameSize(len(e.Data) - wire.EntryPrefixSize)
	}
	return wire.FrameSize(len(e.Data))
}

// records makes an entry with count records whose body is determined by index and
// term.
func records(i wire.Index, term wire.Term, count uint32, size int) Entry {
	return prefixed(wire.KindRecords, i, term, count, int64(1000*uint64(i)), size)
}

func control(i wire.Index, term wire.Term, size int) Entry {
	return prefixed(wire.KindControl, i, term, 0, int64(1000*uint64(i)), size)
}

func prefixed(kind wire.Kind, i wire.Index, term wire.Term, count uint32, timeMs int64, size int) Entry {
	data := make([]byte, wire.EntryPrefixSize+size)
	wire.PutEntryPrefix(data, kind, count, timeMs)
	fill(data[wire.EntryPrefixSize:], i, term)
	return Entry{Index: i, Term: term, Kind: kind, Data: data}
}

func noOp(i wire.Index, term wire.Term) Entry {
	return Entry{Index: i, Term: term, Kind: wire.KindNoOp}
}

func configuration(i wire.Index, term wire.Term, data string) Entry {
	return Entry{Index: i, Term: term, Kind: wire.KindConfiguration, Data: []byte(data)}
}

func fill(b []byte, i wire.Index, term wire.Term) {
	var seed [16]byte
	binary.LittleEndian.PutUint64(seed[0:], uint64(i)*0x9e3779b97f4a7c15)
	binary.LittleEndian.PutUint64(seed[8:], uint64(term)*0xbf58476d1ce4e5b9+1)
	for n := range b {
		b[n] = seed[n%16] ^ byte(n>>4)
	}
}

// replayed returns the entries in the log, rebuilt from their frames.
func (r *rig) replayed(from wire.Index) []Entry {
	r.t.Helper()
	var out []Entry
	require.NoError(r.t, r.log.Replay(from, func(h wire.FrameHeader, body []byte) error {
		out = append(out, rebuilt(h, body))
		return nil
	}))
	return out
}

func rebuilt(h wire.FrameHeader, body []byte) Entry {
	e := Entry{Index: h.Index, Term: h.Term, Kind: h.Kind}
	switch h.Kind {
	case wire.KindRecords, wire.KindControl:
		e.Data = make([]byte, wire.EntryPrefixSize, wire.EntryPrefixSize+len(body))
		wire.PutEntryPrefix(e.Data, h.Kind, h.RecordCount, h.AppendTimeMs)
		e.Data = append(e.Data, body...)
	case wire.KindConfiguration:
		e.Data = bytes.Clone(body)
	}
	return e
}

// stream reads all committed bytes from p by View and by ReadAt, checks that both
// agree, and returns the frames in them.
func (r *rig) stream(p Position, maxBytes int) []Entry {
	r.t.Helper()
	var viewed, read []byte
	for at := p; ; {
		v, err := r.log.View(at, maxBytes)
		if errors.Is(err, ErrCold) {
			require.NoError(r.t, r.log.Populate(at, maxBytes))
			v, err = r.log.View(at, maxBytes)
		}
		require.NoError(r.t, err)
		n := 0
		for _, s := range v.Slices {
			viewed = append(viewed, s...)
			n += len(s)
		}
		require.Equal(r.t, v.Bytes, n)
		at = v.Next
		v.Release()
		if n == 0 {
			require.Equal(r.t, r.log.Watermark().Position, at)
			break
		}
	}
	for at, buf := p, make([]byte, maxBytes); ; {
		n, next, err := r.log.ReadAt(at, buf)
		require.NoError(r.t, err)
		if n == 0 {
			break
		}
		read = append(read, buf[:n]...)
		at = next
	}
	require.Equal(r.t, read, viewed)
	var out []Entry
	for len(viewed) > 0 {
		h, err := wire.ParseFrameHeader(viewed)
		require.NoError(r.t, err)
		b := viewed[wire.FrameHeaderSize:][:h.BodyLength]
		require.Equal(r.t, h.BodyCRC, wire.Checksum(b))
		out = append(out, rebuilt(h, b))
		viewed = viewed[h.FrameSize():]
	}
	return out
}

package fuzz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var recoveryDamages = flag.Int("recovery.damages", 1000, "how many random damages TestRecoveryOfRandomDamage tries")

const (
	recoveryDir  = "data"
	recoveryLog  = recoveryDir + "/partitions/one"
	recoveryLast = 60 // entries of the log
)

// original is a small log as it was before it was damaged: all of its files, and
// what is in it.
type original struct {
	names   []string // of the files, in order
	files   map[string][]byte
	entries map[wire.Index]originalEntry
	first   wire.Index
	last    wire.Index
	// marked is the last entry that the hard state calls durable.
	marked wire.Index
}

// originalEntry is one entry and where its frame lies.
type originalEntry struct {
	header wire.FrameHeader
	body   []byte
	file   string
	at     int64
	mark   wire.Index
}

// atOnce is an executor for a test with one owner: jobs run when drain is called.
type atOnce struct{ jobs []log.Job }

func (e *atOnce) Submit(j log.Job) { e.jobs = append(e.jobs, j) }

func (e *atOnce) drain() {
	for len(e.jobs) > 0 {
		j := e.jobs[0]
		e.jobs = e.jobs[1:]
		j.Run()
		j.Done()
	}
}

func openRecovery(fs vfs.FS, e *atOnce) (*log.Store, *log.Log, error) {
	quiet := slog.New(slog.DiscardHandler)
	store, err := log.OpenStore(log.StoreOptions{
		FS: fs, Dir: recoveryDir, UUID: [16]byte{1}, BootID: "a", MinFreeBytes: -1, ReserveBytes: -1, Logger: quiet,
	})
	if err != nil {
		return nil, nil, err
	}
	l, err := log.Open(log.Options{
		Store: store, Dir: recoveryLog, PartitionID: [16]byte{2}, Incarnation: 1, ReplicaID: 3,
		SegmentBytes: 16 << 10, Executor: e, Logger: quiet,
	})
	return store, l, err
}

// build writes the log: several segments, two checkpoints, a trim, and with idle
// a hard state that says that all of it is durable. Without it the last entries
// are written and no later frame says that they were synced.
func build(t testing.TB, idle bool) *original {
	t.Helper()
	fs := vfs.NewSimulated(1)
	e := &atOnce{}
	_, l, err := openRecovery(fs, e)
	require.NoError(t, err)
	random := rand.New(rand.NewPCG(1, 1))
	l.SetHardState(log.HardState{Term: 1, Vote: 3}, true)
	for i := wire.Index(1); i <= recoveryLast; i++ {
		appendRandom(t, l, e, i, random)
		switch i {
		case 25, 40:
			l.WriteCheckpoint(log.Checkpoint{
				Applied: i, Term: 1, NextOffset: l.NextOffset(), ConfState: []byte("conf"), State: bytes.Repeat([]byte("state"), 20),
			})
			e.drain()
		case 45:
			start, ok := l.RetentionPoint(0, -1, 40<<10)
			require.True(t, ok)
			l.Trim(start)
			e.drain()
		}
	}
	if idle {
		l.MarkIdle()
		e.drain()
	}
	require.NoError(t, l.Err())
	require.Greater(t, l.FirstIndex(), wire.Index(1), "the trim has removed a segment")
	o := &original{files: map[string][]byte{}, entries: map[wire.Index]originalEntry{}, first: l.FirstIndex(), last: l.LastIndex()}
	if idle {
		o.marked = o.last
	}
	o.collect(t, fs, recoveryDir)
	require.NoError(t, log.Inspect(fs, recoveryLog, func(f log.InspectedFrame) error {
		require.NoError(t, f.Problem)
		o.entries[f.Header.Index] = originalEntry{
			header: f.Header, body: append([]byte(nil), f.Body...), file: path.Join(recoveryLog, f.File), at: f.Position, mark: f.Mark,
		}
		return nil
	}))
	require.Len(t, o.entries, int(o.last-o.first)+1)
	return o
}

// appendRandom appends, syncs and publishes one entry.
func appendRandom(t testing.TB, l *log.Log, e *atOnce, i wire.Index, random *rand.Rand) {
	t.Helper()
	data := make([]byte, wire.EntryPrefixSize+random.IntN(3000))
	for k := range data {
		data[k] = byte(random.Uint32())
	}
	kind, count := wire.KindRecords, uint32(1+random.IntN(9))
	if i%10 == 0 {
		kind, count = wire.KindControl, 0
	}
	wire.PutEntryPrefix(data, kind, count, 1000*int64(i))
	for errors.Is(l.Reserve(wire.FrameSize(len(data)), kind == wire.KindRecords), log.ErrNotReady) {
		e.drain()
	}
	require.NoError(t, l.Append([]log.Entry{{Index: i, Term: 1, Kind: kind, Data: data}}))
	l.Sync()
	e.drain()
	require.Equal(t, i, l.DurableIndex())
	l.SetHardState(log.HardState{Term: 1, Vote: 3, Commit: i}, false)
	l.Publish(i)
	l.Release(i, nil)
	e.drain()
}

// collect copies the files below dir.
func (o *original) collect(t testing.TB, fs *vfs.Simulated, dir string) {
	t.Helper()
	names, err := fs.List(dir)
	require.NoError(t, err)
	for _, name := range names {
		name = path.Join(dir, name)
		info, err := fs.Stat(name)
		require.NoError(t, err)
		if info.IsDir() {
			o.collect(t, fs, name)
			continue
		}
		f, err := fs.OpenReadOnly(name)
		require.NoError(t, err)
		content := make([]byte, info.Size())
		if len(content) > 0 {
			_, err = f.ReadAt(content, 0)
			require.NoError(t, err)
		}
		require.NoError(t, f.Close())
		if !strings.HasSuffix(name, "/lock") {
			o.names = append(o.names, name)
			o.files[name] = content
		}
	}
}

// restore writes the files, some of them damaged, to a new disk.
func (o *original) restore(t testing.TB, damaged map[string][]byte) *vfs.Simulated {
	t.Helper()
	fs := vfs.NewSimulated(2)
	for _, dir := range []string{recoveryLog, recoveryDir + "/recycled", recoveryDir + "/quarantine"} {
		require.NoError(t, fs.MkdirAll(dir))
	}
	for _, name := range o.names {
		content, ok := damaged[name]
		if !ok {
			content = o.files[name]
		}
		f, err := fs.Create(name)
		require.NoError(t, err)
		_, err = f.WriteAt(content, 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	for _, dir := range []string{".", recoveryDir, recoveryDir + "/partitions", recoveryLog, recoveryDir + "/recycled"} {
		require.NoError(t, fs.SyncDir(dir))
	}
	return fs
}

// damage is what happened to one file.
type damage struct {
	what     string
	file     string
	from, to int64 // bytes that differ lie in here
	content  []byte
}

func (d *damage) String() string {
	return fmt.Sprintf("%s %s [%d, %d)", d.what, d.file, d.from, d.to)
}

// damageOf turns fuzz input into damage: which file, what, where, how much, and
// for copies from where. Input that is too short damages nothing.
func (o *original) damageOf(input []byte) *damage {
	if len(input) < 12 {
		return nil
	}
	name := o.names[int(input[0])%len(o.names)]
	content := append([]byte(nil), o.files[name]...)
	if len(content) == 0 {
		return nil
	}
	at := int(binary.LittleEndian.Uint32(input[2:]) % uint32(len(content)))
	n := min(1+int(binary.LittleEndian.Uint16(input[6:])), len(content)-at)
	from := int(binary.LittleEndian.Uint32(input[8:]) % uint32(len(content)))
	d := &damage{file: name, from: int64(at), to: int64(at + n)}
	switch input[1] % 5 {
	case 0:
		d.what = "flip"
		d.to = d.from + 1
		content[at] ^= 1 << (input[6] % 8)
	case 1:
		d.what = "cut"
		d.to = int64(len(content))
		content = content[:at]
	case 2:
		d.what = "zero"
		clear(content[at : at+n])
	case 3:
		d.what = "copy"
		copy(content[at:at+n], o.files[name][from:])
	case 4:
		d.what = "copy aligned" // so that whole frames land where frames may begin
		at, from = at&^7, from&^7
		d.from = int64(at)
		copy(content[at:at+n], o.files[name][from:])
	}
	d.content = content
	return d
}

// hits reports whether the damage changed a byte of [from, to). A file that was
// cut lost its end.
func (d *damage) hits(o *original, from, to int64) bool {
	before := o.files[d.file]
	for i := from; i < to; i++ {
		if i >= int64(len(d.content)) || d.content[i] != before[i] {
			return true
		}
	}
	return false
}

// check opens the damaged log and holds it to what recovery promises.
func (o *original) check(t testing.TB, d *damage) (recovered bool) {
	t.Helper()
	fs := o.restore(t, map[string][]byte{d.file: d.content})
	e := &atOnce{}
	_, l, err := openRecovery(fs, e)
	if err != nil {
		require.True(t, errors.Is(err, log.ErrCorrupt) || errors.Is(err, log.ErrTooNew), "%s: %v", d, err)
		return false
	}
	durable, undamaged := o.promised(d)
	require.GreaterOrEqual(t, l.LastIndex(), durable, "%s: entries up to %d were known to be durable", d, durable)
	require.GreaterOrEqual(t, l.LastIndex(), undamaged, "%s: entries up to %d lie before the damage", d, undamaged)
	require.LessOrEqual(t, l.LastIndex(), o.last, "%s", d)
	require.Equal(t, o.first, l.FirstIndex(), "%s", d)
	next := l.FirstIndex()
	err = l.Replay(next, func(h wire.FrameHeader, body []byte) error {
		if body == nil && h.BodyLength > 0 {
			// Known to be damaged, and said so: the header still is the original's.
			entry := o.entries[next]
			require.True(t, entry.file == d.file && d.hits(o, entry.at+wire.FrameHeaderSize, entry.at+wire.FrameHeaderSize+int64(len(entry.body))), "%s: entry %d is whole", d, next)
			body = entry.body
		}
		o.same(t, d, next, &h, body)
		next++
		return nil
	})
	if err != nil {
		require.ErrorIs(t, err, log.ErrCorrupt, "%s", d)
	} else {
		require.Equal(t, l.LastIndex()+1, next, "%s: reading ends early without an error", d)
	}
	o.readBack(t, d, l)
	require.NoError(t, l.Close(true), "%s", d)
	return true
}

// same compares an entry that was read with the original.
func (o *original) same(t testing.TB, d *damage, i wire.Index, h *wire.FrameHeader, body []byte) {
	t.Helper()
	want, ok := o.entries[i]
	require.True(t, ok, "%s: entry %d was never written", d, i)
	got := *h
	got.Local = want.header.Local // under no checksum
	require.Equal(t, want.header, got, "%s: entry %d", d, i)
	require.True(t, bytes.Equal(want.body, body), "%s: entry %d has another body", d, i)
}

// promised returns up to where the log must reach: the last entry that is known to
// have been durable from what the damage left, and the last before the damage.
func (o *original) promised(d *damage) (durable, undamaged wire.Index) {
	if !strings.HasSuffix(d.file, "/hardstate") {
		durable = o.marked
	}
	undamaged = o.last
	for i := o.first; i <= o.last; i++ {
		entry := o.entries[i]
		end := entry.at + entry.header.FrameSize()
		if entry.file == d.file && d.hits(o, entry.at, end) {
			undamaged = min(undamaged, i-1)
		} else {
			durable = max(durable, entry.mark)
		}
	}
	for i := o.first; i <= o.last; i++ {
		// Without its header a segment's entries are damaged all.
		if entry := o.entries[i]; entry.file == d.file && d.hits(o, 0, entry.at) && o.isFirst(i) {
			undamaged = min(undamaged, i-1)
		}
	}
	return durable, undamaged
}

// isFirst reports whether entry i is the first of its segment.
func (o *original) isFirst(i wire.Index) bool {
	before, ok := o.entries[i-1]
	return !ok || before.file != o.entries[i].file
}

// readBack reads as consumers do, who check what they get: a frame that passes
// their checks is the original.
func (o *original) readBack(t testing.TB, d *damage, l *log.Log) {
	t.Helper()
	l.Publish(l.LastIndex())
	at, _, err := l.Locate(l.StartOffset())
	if err != nil {
		return
	}
	var stream []byte
	buffer := make([]byte, 8<<10)
	for {
		n, next, err := l.ReadAt(at, buffer)
		if err != nil || n == 0 && next == at {
			break
		}
		stream, at = append(stream, buffer[:n]...), next
	}
	for len(stream) >= wire.FrameHeaderSize {
		h, err := wire.ParseFrameHeader(stream)
		if err != nil || h.FrameSize() > int64(len(stream)) {
			return
		}
		body := stream[wire.FrameHeaderSize : wire.FrameHeaderSize+int(h.BodyLength)]
		if wire.Checksum(body) != h.BodyCRC {
			return
		}
		o.same(t, d, h.Index, &h, body)
		stream = stream[h.FrameSize():]
	}
}

// FuzzRecovery damages one file of a small log and opens it. Recovery never
// panics, never gives out a record that was not written, never loses one before
// the damage, and never takes damage to something durable for the end of the log
// (RULES L2).
func FuzzRecovery(f *testing.F) {
	originals := []*original{build(f, true), build(f, false)}
	for what := range byte(5) {
		for file := range byte(8) {
			f.Add(true, []byte{file, what, 0, 3, 0, 0, 40, 0, 0, 1, 0, 0})
			f.Add(false, []byte{file, what, 200, 31, 0, 0, 255, 255, 0, 2, 0, 0})
		}
	}
	f.Fuzz(func(t *testing.T, idle bool, input []byte) {
		o := originals[0]
		if !idle {
			o = originals[1]
		}
		if d := o.damageOf(input); d != nil {
			o.check(t, d)
		}
	})
}

// TestRecoveryOfRandomDamage is FuzzRecovery on random input, for runs without
// the fuzzer.
func TestRecoveryOfRandomDamage(t *testing.T) {
	originals := []*original{build(t, true), build(t, false)}
	random := rand.New(rand.NewPCG(7, 7))
	recovered := 0
	for range *recoveryDamages {
		input := make([]byte, 12)
		for i := range input {
			input[i] = byte(random.Uint32())
		}
		o := originals[random.IntN(2)]
		if d := o.damageOf(input); d != nil && o.check(t, d) {
			recovered++
		}
	}
	t.Logf("%d of %d damaged logs opened, the others said why not", recovered, *recoveryDamages)
}

// TestRecoveryOfUndamagedLog shows that the checks themselves hold.
func TestRecoveryOfUndamagedLog(t *testing.T) {
	for _, idle := range []bool{true, false} {
		o := build(t, idle)
		name := o.names[0]
		require.True(t, o.check(t, &damage{what: "nothing", file: name, content: o.files[name]}))
	}
}

// TestRecoveryCatches_ForgottenMarks takes the durable marks out of the frames.
// Then damage to synced entries looks like an end that was never confirmed, and
// the checks above must say that recovery has lost something.
func TestRecoveryCatches_ForgottenMarks(t *testing.T) {
	o := build(t, false)
	for _, entry := range o.entries {
		const localWord = 56
		clear(o.files[entry.file][entry.at+localWord : entry.at+wire.FrameHeaderSize])
	}
	random := rand.New(rand.NewPCG(8, 8))
	for try := range 1000 {
		input := make([]byte, 12)
		for i := range input {
			input[i] = byte(random.Uint32())
		}
		input[1] = 0 // flip
		if d := o.damageOf(input); d != nil && fails(t, func(t testing.TB) { o.check(t, d) }) {
			t.Logf("caught after %d damages: %s", try+1, d)
			return
		}
	}
	t.Fatal("not caught")
}

// fails reports whether f fails its test.
func fails(t *testing.T, f func(testing.TB)) (failed bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(expectedFailure); !ok {
				panic(r)
			}
			failed = true
		}
	}()
	f(&failing{TB: t})
	return false
}

type expectedFailure struct{}

// failing is a test that is meant to fail.
type failing struct{ testing.TB }

func (f *failing) Errorf(string, ...any) { panic(expectedFailure{}) }
func (f *failing) FailNow()              { panic(expectedFailure{}) }

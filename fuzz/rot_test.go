package fuzz

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	rotFlips = flag.Int("rot.flips", 600, "how many bits TestF3 flips, one directory each; at least as many as there are fields")
	rotSeed  = flag.Uint64("rot.seed", 1, "draws the bits of TestF3; 0 takes the clock's")
)

// rotBit is one bit that rots.
type rotBit struct {
	class string
	rotPlace
	at  int64
	bit int
}

func (f *rotBit) String() string {
	return fmt.Sprintf("%s: bit %d of byte %d of %s", f.class, f.bit, f.at, f.file)
}

// rotRun is one directory with one bit that rots, and what must come of it.
type rotRun struct {
	*rotStore
	t       testing.TB
	random  *rand.Rand
	bit     rotBit
	running bool // the bit rots while the logs are open
	// Mutants.
	trusting bool // the consumer believes what it gets
	resigned bool // the reader takes damage for the end

	outcome rotOutcome // the gravest thing that happened
}

// rotOutcome is what a flip costs.
type rotOutcome int

const (
	rotUnseen  rotOutcome = iota // nothing that anybody reads is hit, or it is there twice
	rotRange                     // records answer CORRUPT
	rotRefused                   // the partition is down and says where
	rotOutcomes
)

// TestF3_ARottenBitIsFoundAndNeverServed flips single bits in every field of every
// file of a data directory, before a start and under open logs. One replica cannot
// repair; its promise is "detected, never served" (RELIABILITY F3, RULES L8): what a
// consumer accepts is what was sent, what it does not get is reported with its
// place, nothing below the durable mark is cut, and the other partition does not
// notice.
func TestF3_ARottenBitIsFoundAndNeverServed(t *testing.T) {
	seed := *rotSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("rot.seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0xf3))
	var fields []rotField
	for _, shape := range []rotShape{rotStopped, rotIdle, rotBusy, rotCut} {
		fields = append(fields, newRotStore(t, shape).all(t)...)
	}
	require.LessOrEqual(t, len(fields), *rotFlips, "each field once")
	counts := map[string]*[rotOutcomes]int{}
	for n := range *rotFlips {
		f := &fields[n%len(fields)]
		r := f.flip(t, random)
		r.run()
		if counts[f.name] == nil {
			counts[f.name] = &[rotOutcomes]int{}
		}
		counts[f.name][r.outcome]++
	}
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.Sort(names)
	var table strings.Builder
	var total [rotOutcomes]int
	for _, name := range names {
		k := counts[name]
		fmt.Fprintf(&table, "\n%-45s %5d unseen %5d range %5d refused", name, k[rotUnseen], k[rotRange], k[rotRefused])
		for outcome, n := range k {
			total[outcome] += n
		}
	}
	t.Logf("%d flips in %d fields: %d harmless, %d cost a range of records, %d a partition; 0 served%s",
		*rotFlips, len(names), total[rotUnseen], total[rotRange], total[rotRefused], table.String())
	for _, f := range fields {
		require.Contains(t, counts, f.name)
	}
	require.NotZero(t, total[rotRange])
	require.NotZero(t, total[rotRefused])
}

// TestF3_Catches_AConsumerThatChecksNothing takes the check of the batch's CRC away.
func TestF3_Catches_AConsumerThatChecksNothing(t *testing.T) {
	rotCaught(t, newRotStore(t, rotIdle), func(r *rotRun) { r.trusting = true })
}

// TestF3_Catches_AReaderThatTakesDamageForTheEnd makes a reader stop quietly where
// something is wrong.
func TestF3_Catches_AReaderThatTakesDamageForTheEnd(t *testing.T) {
	rotCaught(t, newRotStore(t, rotIdle), func(r *rotRun) { r.resigned = true })
}

// TestF3_Catches_ForgottenMarks takes the durable marks out of the frames: recovery
// then cuts what was acknowledged.
func TestF3_Catches_ForgottenMarks(t *testing.T) {
	s := newRotStore(t, rotBusy)
	for _, f := range s.all(t) {
		for _, p := range f.places {
			if f.name == "frame header: local word" {
				clear(s.files[p.file][p.from:p.to])
			}
		}
	}
	rotCaught(t, s, func(*rotRun) {})
}

// rotCaught flips bits under a mutant until the checks notice it.
func rotCaught(t *testing.T, s *rotStore, mutate func(*rotRun)) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 0xf3))
	fields := s.all(t)
	for try := range 5 * len(fields) {
		f := &fields[try%len(fields)]
		var r *rotRun
		if fails(t, func(t testing.TB) { r = f.flip(t, random); mutate(r); r.run() }) {
			t.Logf("caught with flip %d: %s", try+1, r)
			return
		}
	}
	t.Fatal("not caught")
}

// rotField is a field of a directory's formats and all places where it stands.
type rotField struct {
	name   string
	store  *rotStore
	places []rotPlace
}

func (s *rotStore) all(t testing.TB) (fields []rotField) {
	m := s.fields(t)
	for _, name := range m.names {
		fields = append(fields, rotField{name, s, m.places[name]})
	}
	return fields
}

// flip draws a bit of the field and when it rots.
func (f *rotField) flip(t testing.TB, random *rand.Rand) *rotRun {
	p := f.places[random.IntN(len(f.places))]
	own := *f.store // a run appends
	return &rotRun{
		rotStore: &own, t: t, random: random,
		bit: rotBit{class: f.name, rotPlace: p, at: p.from + random.Int64N(p.to-p.from), bit: random.IntN(8)},
		// A start writes what the journal holds behind the segments and ends the journal.
		running: random.IntN(2) == 0 && !strings.HasPrefix(f.name, "journal") && (f.store.shape != rotCut || f.name != "segment: allocated tail"),
	}
}

// run is the life of one directory.
func (r *rotRun) run() {
	r.outcome = rotUnseen
	fs := r.restore(r.t)
	if !r.running {
		require.NoError(r.t, fs.Corrupt(r.bit.file, r.bit.at, r.bit.bit), "%s", r)
	}
	life := r.start(fs, !r.running)
	if r.running {
		for i := range life.logs {
			require.NoError(r.t, life.errs[i], "%s", r)
			r.publish(life, i)
		}
		if r.random.IntN(2) == 0 { // files are open and maps are warm
			r.read(life, 0)
			r.read(life, 1)
			require.Equal(r.t, rotUnseen, r.outcome, "%s", r)
		}
		err := fs.Corrupt(r.bit.file, r.bit.at, r.bit.bit)
		if !strings.HasPrefix(r.bit.class, "damaged ranges") { // the journal may have healed those, and the list is shorter
			require.NoError(r.t, err, "%s", r)
		}
	}
	r.use(life)
	// And again: what was found is known to the next start, and what was appended
	// behind the damage is there.
	life = r.start(fs, false)
	r.use(life)
}

func (r *rotRun) String() string {
	when := "at rest"
	if r.running {
		when = "while open"
	}
	return fmt.Sprintf("%s, %s: %s", r.shape, when, &r.bit)
}

// start opens the store, which one bit cannot prevent, and the logs, of which only
// the one that is hit may refuse. One that refuses has changed nothing; untouched
// says that the files are known.
func (r *rotRun) start(fs *vfs.Simulated, untouched bool) *rotLife {
	life, err := r.open(fs)
	require.NoError(r.t, err, "%s", r)
	for i, err := range life.errs {
		if err == nil {
			r.opened(life, i)
			continue
		}
		r.mayRefuse(i, err)
		r.outcome = rotRefused
		for _, name := range r.names {
			if !untouched || path.Dir(name) != r.logs[i].dir {
				continue
			}
			want := bytes.Clone(r.files[name])
			if name == r.bit.file {
				want[r.bit.at] ^= 1 << r.bit.bit
			}
			require.True(r.t, bytes.Equal(want, readWhole(r.t, fs, name)), "%s: %s was changed, and the log refused", r, name)
		}
	}
	return life
}

// mayRefuse checks that the right log refuses, for the right reason.
func (r *rotRun) mayRefuse(i int, err error) {
	r.t.Helper()
	f := &r.bit
	require.Equal(r.t, f.log, i, "%s: another partition is down: %v", r, err)
	var corrupt *log.CorruptionError
	if !errors.As(err, &corrupt) {
		require.ErrorIs(r.t, err, log.ErrTooNew, "%s", r)
		require.Contains(r.t, err.Error(), path.Base(f.file), "%s", r)
		return
	}
	switch {
	case f.entry > 0 && f.file == r.logs[i].entries[f.entry].file:
		require.Equal(r.t, f.file, corrupt.File, "%s", r)
		require.Equal(r.t, f.frameAt, corrupt.Position, "%s", r)
	case strings.HasPrefix(f.class, "segment header"), strings.HasPrefix(f.class, "journal"):
		// What is missing then is missing behind the segment before.
		require.Equal(r.t, r.logs[i].dir, path.Dir(corrupt.File), "%s", r)
	default:
		require.Equal(r.t, f.file, corrupt.File, "%s", r)
	}
}

// opened checks that recovery has cut nothing that was known to be durable.
func (r *rotRun) opened(life *rotLife, i int) {
	l, want := life.logs[i], &r.logs[i]
	least := want.last
	if r.hitsUnmarked(i) {
		least--
	}
	require.GreaterOrEqual(r.t, l.LastIndex(), least, "%s: entries up to %d were durable", r, want.last)
	require.Equal(r.t, want.first, l.FirstIndex(), "%s", r)
	next := l.FirstIndex()
	err := l.Replay(next, func(h wire.FrameHeader, body []byte) error {
		e := want.entries[next]
		require.NotNil(r.t, e, "%s: entry %d was never written", r, next)
		require.Equal(r.t,
			[]any{e.header.Index, e.header.Term, e.header.Kind, e.header.BaseOffset, e.header.RecordCount, e.header.AppendTimeMs},
			[]any{h.Index, h.Term, h.Kind, h.BaseOffset, h.RecordCount, h.AppendTimeMs}, "%s: entry %d", r, next)
		if body == nil && len(e.body) > 0 {
			r.mayDamage(i, next, next)
		} else {
			require.True(r.t, bytes.Equal(e.body, body), "%s: entry %d has another body", r, next)
		}
		next++
		return nil
	})
	if err != nil {
		require.Equal(r.t, next, r.bit.entry, "%s: %v", r, err)
		r.mayRefuse(i, err)
		return
	}
	require.Equal(r.t, l.LastIndex()+1, next, "%s: replay ends early", r)
}

// hitsUnmarked reports whether the bit lies in the newest entry of a log that was
// busy when it ended: no frame behind it says that it was durable, so that it
// may be a write that never was confirmed (RULES L2).
func (r *rotRun) hitsUnmarked(i int) bool {
	f, newest := &r.bit, r.logs[i].last
	if r.shape != rotCut && r.shape != rotBusy || f.log != i {
		return false
	}
	first := newest
	for _, e := range r.logs[i].entries {
		if e.file == f.file {
			first = min(first, e.header.Index)
		}
	}
	return f.entry == newest || strings.HasPrefix(f.class, "segment header") && first == newest
}

// mayDamage checks that a damaged run holds nothing but what is damaged.
func (r *rotRun) mayDamage(i int, first, last wire.Index) {
	r.t.Helper()
	for n := first; n <= last; n++ {
		known := i == 0 && n == rotKnown
		require.True(r.t, known || i == r.bit.log && n == r.bit.entry && r.bit.body, "%s: entry %d of log %d is called damaged", r, n, i)
		if !known {
			r.outcome = max(r.outcome, rotRange)
		}
	}
}

// publish makes everything readable, as a leader does that knows the commit.
func (r *rotRun) publish(life *rotLife, i int) {
	life.logs[i].Publish(life.logs[i].LastIndex())
}

// use reads both logs as consumers do, lets the scrubber look, writes, and stops.
func (r *rotRun) use(life *rotLife) {
	for i, l := range life.logs {
		if l == nil {
			continue
		}
		r.publish(life, i)
		condemned := false
		if r.random.IntN(2) == 0 {
			condemned = r.scrub(life, i)
		}
		if !condemned {
			condemned = r.read(life, i)
		}
		for _, d := range l.Damage() {
			r.mayDamage(i, d.FirstIndex, d.LastIndex)
		}
		if condemned {
			r.outcome = rotRefused
			_ = l.Close(false)
			continue
		}
		if l.LastIndex() == r.logs[i].last {
			r.append(r.t, life, i, r.random)
			r.logs[i].last, r.logs[i].next = l.LastIndex(), l.NextOffset()
		}
		require.NoError(r.t, l.Err(), "%s", r)
		require.NoError(r.t, l.Close(true), "%s", r)
	}
	life.jobs.drain()
	require.NoError(r.t, life.store.Close(), "%s", r)
}

// scrub reads what is sealed. It reports whether the log must not be used any more.
func (r *rotRun) scrub(life *rotLife, i int) (condemned bool) {
	for pass := life.logs[i].NewScrub(); ; {
		_, err := pass.Next(1 << 20)
		if errors.Is(err, io.EOF) {
			return condemned
		}
		if err != nil {
			r.mayRefuse(i, err)
			condemned = true
		}
	}
}

// read reads a log from its start as a consumer does: it checks what it gets, tells
// the broker when that is damaged, and goes on where the broker says. It reports
// whether the log must not be used any more.
func (r *rotRun) read(life *rotLife, i int) (condemned bool) {
	r.t.Helper()
	l := life.logs[i]
	end := l.Watermark().Next
	for next := l.StartOffset(); next < end; {
		read, err := r.stream(l, i, next)
		require.GreaterOrEqual(r.t, read, next, "%s", r)
		next = read
		if err == nil {
			require.Equal(r.t, end, next, "%s: reading ends early without an error", r)
			return false
		}
		if r.resigned {
			require.Equal(r.t, end, next, "%s: a shorter log", r)
			return false
		}
		var known *log.DamagedError
		if errors.As(err, &known) {
			require.Equal(r.t, known.Damage.Base, next, "%s", r)
			r.mayDamage(i, known.Damage.FirstIndex, known.Damage.LastIndex)
			next = known.Damage.Next
			continue
		}
		if !errors.Is(err, log.ErrCorrupt) {
			// The consumer has found it, the broker looks at the frame.
			d, verifyErr := l.Verify(next)
			if verifyErr == nil {
				require.NotNil(r.t, d, "%s: offset %d: %v, and the broker calls it whole", r, next, err)
				continue // now it is known
			}
			err = verifyErr
		}
		r.mayRefuse(i, err)
		return true
	}
	return false
}

// stream reads from an offset on until damage and returns where it stands: every
// record before that was accepted by the checks of a client and is what was sent.
func (r *rotRun) stream(l *log.Log, i int, from wire.Offset) (wire.Offset, error) {
	at, next, err := l.Locate(from)
	if err != nil {
		return from, err
	}
	var stream []byte
	buffer := make([]byte, 1+r.random.IntN(6000))
	views := r.random.IntN(2) == 0
	for {
		var n int
		if views {
			n, at, err = viewInto(l, at, &stream, len(buffer))
		} else {
			n, at, err = l.ReadAt(at, buffer)
			stream = append(stream, buffer[:n]...)
		}
		for len(stream) >= wire.FrameHeaderSize {
			h, frameErr := wire.ParseFrameHeader(stream)
			if frameErr != nil {
				return next, frameErr
			}
			if h.BaseOffset != next || h.NextOffset() <= next {
				return next, fmt.Errorf("frame holds offsets [%d, %d), expected %d", h.BaseOffset, h.NextOffset(), next)
			}
			if int64(len(stream)) < h.FrameSize() {
				break
			}
			if err := r.accept(i, &h, stream[wire.FrameHeaderSize:][:h.BodyLength]); err != nil {
				return next, err
			}
			next = h.NextOffset()
			stream = stream[h.FrameSize():]
		}
		if err != nil || n == 0 && at == l.Watermark().Position {
			return next, err
		}
	}
}

// viewInto appends what a view shows.
func viewInto(l *log.Log, at log.Position, stream *[]byte, n int) (int, log.Position, error) {
	v, err := l.View(at, n)
	if errors.Is(err, log.ErrCold) {
		if err = l.Populate(at, n); err == nil {
			v, err = l.View(at, n)
		}
	}
	if err != nil {
		return 0, at, err
	}
	defer v.Release()
	for _, s := range v.Slices {
		*stream = append(*stream, s...)
	}
	return v.Bytes, v.Next, nil
}

// accept checks a frame as package client does. What passes goes to the application,
// and must be what was sent.
func (r *rotRun) accept(i int, h *wire.FrameHeader, body []byte) error {
	e := r.logs[i].entries[h.Index]
	require.NotNil(r.t, e, "%s: entry %d was never written", r, h.Index)
	next := h.BaseOffset
	sent := e.body
	for len(body) > 0 {
		b, rest, err := wire.NextBodyBatch(body)
		if err != nil {
			return err
		}
		verify := wire.VerifyBatch
		if r.trusting {
			verify = wire.ParseBatch
		}
		info, err := verify(b.Batch)
		if err != nil {
			return err
		}
		if info.BaseOffset != next || info.LeaderEpoch != int32(h.Term) || info.NextOffset() > h.NextOffset() ||
			len(rest) == 0 && info.NextOffset() != h.NextOffset() {
			return fmt.Errorf("batch holds offsets [%d, %d) of epoch %d", info.BaseOffset, info.NextOffset(), info.LeaderEpoch)
		}
		original, sentRest, err := wire.NextBodyBatch(sent)
		require.NoError(r.t, err, "%s: entry %d: a batch that was never sent", r, h.Index)
		require.True(r.t, bytes.Equal(original.Batch, b.Batch), "%s: a corrupt batch at offset %d is handed out", r, next)
		require.Equal(r.t, e.header.AppendTimeMs, h.AppendTimeMs, "%s", r)
		next, body, sent = info.NextOffset(), rest, sentRest
	}
	require.Empty(r.t, sent, "%s: entry %d: a batch is missing", r, h.Index)
	return nil
}

package server

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

var eraseMiB = flag.Int("erase-mib", 8, "MiB that are acknowledged behind one old record")

// startErasing starts a broker that looks often at what can be given back.
func startErasing(t *testing.T, dir string) *Server { return startEraser(t, dir, 1) }

func startEraser(t *testing.T, dir string, node uint32, join ...string) *Server {
	t.Helper()
	s, err := Start(t.Context(), Config{
		DataDir: dir, Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, NodeID: node, Join: join,
		ScrubInterval: -1, RetentionPeriod: 20 * time.Millisecond, Logger: testLogger(node),
	})
	require.NoError(t, err)
	t.Cleanup(func() { closeMember(t, s) })
	return s
}

// createErasing makes a queue with segments of 1 MiB and a group of it.
func createErasing(t *testing.T, address string) {
	t.Helper()
	c := dialOpen(t, address)
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "jobs", Kind: wire.Queue, Settings: wire.Settings{
		Partitions: 1, Sync: wire.SyncOS, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited, SegmentBytes: 1 << 20,
	}})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
	createAnother(t, address, "workers")
}

func createAnother(t *testing.T, address, name string) {
	t.Helper()
	c := dialOpen(t, address)
	intent, err := json.Marshal(wire.GroupIntent{Settings: wire.GroupSettings{Mode: wire.ModeShared, AckWaitMs: 600_000}, Exists: true})
	require.NoError(t, err)
	c.send(wire.OpGroupAdmin, 3, &wire.GroupAdminRequest{Op: wire.GroupCreate, Destination: "jobs", Group: name, JSON: intent})
	var m wire.GroupJSON
	c.ok(c.answer(3), &m)
}

// produceLarge appends n records of 32 KiB, each as a batch of its own.
func produceLarge(t *testing.T, address string, n int) {
	t.Helper()
	c := dialOpen(t, address)
	h := c.open("jobs", 0)
	for range n {
		var b wire.BatchBuilder
		b.Reset(true)
		require.True(t, b.Append(1_000, 0, nil, make([]byte, 32<<10), nil, 0))
		batch, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
		c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch, Index: index})
		require.Equal(t, wire.CodeOK, c.answer(5).code())
	}
}

// diskUse is the space that the files of the partition take.
func diskUse(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(filepath.Join(dir, "partitions"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	}))
	return bytes
}

func (s *Server) jobs(t *testing.T) *partitionReplica {
	d, ok := s.broker.View().Destination("jobs")
	require.True(t, ok)
	return s.broker.local(d.ID, 0)
}

// linkAt asks for a stream of the queue from an offset on.
func linkAt(t *testing.T, address string, o wire.Offset) rawFrame {
	t.Helper()
	c := dialOpen(t, address)
	c.send(wire.OpLinkOpen, 9, &wire.LinkOpenRequest{Handle: c.open("jobs", 0), Offset: o, Credit: 1 << 20})
	return c.answer(9)
}

// RULES L7: one record that nobody acknowledges does not keep the disk of what was
// acknowledged behind it. The rest is served as before, also after a restart, and a group
// that is made later is given what is there.
func TestRuleL7_OneOldRecordDoesNotKeepTheDisk(t *testing.T) {
	dir := t.TempDir()
	s := startErasing(t, dir)
	createErasing(t, s.Addr())
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	produceLarge(t, s.Addr(), 1)
	require.EqualValues(t, 0, k.next(1)[0].Offset) // and is never acknowledged
	count := *eraseMiB * 32
	for have := 0; have < count; have += 32 {
		produceLarge(t, s.Addr(), 32)
		for _, g := range k.next(32) {
			require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
		}
	}
	r := s.jobs(t)
	// The segment that is written to, the next one, what is too little, and some blocks for each segment.
	rest := int64(4<<20 + *eraseMiB*(32<<10))
	eventually(t, "what is acknowledged is off the disk", func() bool { return diskUse(t, dir) <= rest })
	t.Logf("%d MiB acknowledged behind one record: %d KiB on the disk, %d KiB erased", *eraseMiB, diskUse(t, dir)>>10, r.records.ErasedBytes()>>10)
	require.EqualValues(t, 0, r.StartOffset())
	scrubWhole(t, r.records)

	answer := linkAt(t, s.Addr(), 5)
	require.Equal(t, wire.CodeErased, answer.code())
	known := answer.failure()
	require.Greater(t, known.Next, wire.Offset(5))
	require.Contains(t, known.Detail, "were acknowledged and erased; reading can go on at offset")
	require.Equal(t, wire.CodeOK, linkAt(t, s.Addr(), 0).code())

	closeMember(t, s)
	s = startErasing(t, dir)
	r = s.jobs(t)
	require.Positive(t, r.records.ErasedBytes())
	scrubWhole(t, r.records)
	require.Equal(t, wire.CodeErased, linkAt(t, s.Addr(), 5).code())

	// A new group finds the old record and what was not erased.
	createAnother(t, s.Addr(), "others")
	o := &consumer{t: t, c: dialOpen(t, s.Addr()), id: 2}
	o.handle = o.c.open("jobs", 0)
	o.c.send(wire.OpGroupAttach, 7, &wire.AttachRequest{Handle: o.handle, Group: "others", Session: [16]byte{2}, Attempt: 1, Capacity: 100, Refill: 50})
	var m wire.AttachResponse
	o.c.ok(o.c.answer(7), &m)
	o.link = m.Link
	first := o.next(2)
	require.EqualValues(t, 0, first[0].Offset)
	second := first[0].Offset + 1
	if first[0].Count == 1 {
		second = first[1].Offset
	}
	require.Greater(t, second, wire.Offset(5), "what was erased is passed")
	k = attachTo(t, s.Addr(), 1)
	k.keepAlive()
	o.keepAlive()
	produceLarge(t, s.Addr(), 1)
	mine := k.next(2)
	require.Equal(t, []wire.Offset{0, wire.Offset(count + 1)}, []wire.Offset{mine[0].Offset, mine[1].Offset})
	k.say(ack(mine[0]), ack(mine[1]))
	for grants := first; ; grants = o.next(1) {
		for _, g := range grants {
			require.Equal(t, wire.CodeOK, o.say(ack(g))[0].Code)
		}
		if last := grants[len(grants)-1]; last.Offset+wire.Offset(last.Count) == wire.Offset(count+2) {
			break
		}
	}
	// What was erased is settled for the new group too: nothing is left.
	eventually(t, "the queue is empty", func() bool { return s.jobs(t).StartOffset() == wire.Offset(count+2) })
	eventually(t, "the segments are gone", func() bool { return s.jobs(t).records.ErasedBytes() == 0 })
}

func scrubWhole(t *testing.T, l *log.Log) {
	t.Helper()
	for pass := l.NewScrub(); ; {
		_, err := pass.Next(1 << 20)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
	require.Empty(t, l.Damage())
}

// What is damaged here and acknowledged by all groups, so that nobody is given it any more and
// other replicas may have given its disk back, is no harm: nobody could mend it. Until then it is
// reported.
func TestRuleL7_DamageInWhatIsErasedIsNotReported(t *testing.T) {
	dir := t.TempDir()
	s, err := Start(t.Context(), Config{
		DataDir: dir, Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, NodeID: 1,
		ScrubInterval: -1, RetentionPeriod: time.Hour, Logger: testLogger(1),
	})
	require.NoError(t, err)
	t.Cleanup(func() { closeMember(t, s) })
	createErasing(t, s.Addr())
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	produceLarge(t, s.Addr(), 1)
	require.EqualValues(t, 0, k.next(1)[0].Offset) // and is never acknowledged
	for range 3 {
		produceLarge(t, s.Addr(), 32)
		for _, g := range k.next(32) {
			require.Equal(t, wire.CodeOK, k.say(ack(g))[0].Code)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "partitions", "*", "*.segment"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	file, err := os.OpenFile(files[0], os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = file.WriteAt([]byte{0xff}, 300<<10) // in the value of some record
	require.NoError(t, err)
	require.NoError(t, file.Close())
	damaged := func() int { return int(s.jobs(t).info().Damaged) }
	for pass := s.jobs(t).records.NewScrub(); ; {
		if _, err := pass.Next(1 << 20); errors.Is(err, io.EOF) {
			break
		}
	}
	require.Len(t, s.jobs(t).records.Damage(), 1)
	d := s.jobs(t).records.Damage()[0]
	require.Equal(t, d.Base+1, d.Next)
	r := s.jobs(t)
	r.ask(requestDamage)
	eventually(t, "it was looked at", func() bool { return r.settled.Load() != nil })
	require.Equal(t, 1, damaged(), "the group might still be moved back to it")

	closeMember(t, s)
	s = startErasing(t, dir)
	eventually(t, "what was acknowledged is erased", func() bool { return s.jobs(t).records.ErasedBytes() > 0 })
	eventually(t, "it is reported no longer", func() bool { return damaged() == 0 })
	require.Len(t, s.jobs(t).records.Damage(), 1, "the bytes are what they are")
}

package server

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// RULES Q4, RELIABILITY F19: retention under a group, on a clock that jumps. Back, it takes
// nothing before its time; forth, it takes what is old then, the consumer hears which records
// its group has lost, and what it held of them it cannot acknowledge; what is left it gets.
func TestF19_RetentionUnderAGroupOnAClockThatJumps(t *testing.T) {
	clock := &setClock{}
	clock.ms.Store(1_700_000_000_000)
	s, err := Start(t.Context(), Config{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, ScrubInterval: -1, Logger: testLogger(1),
		RetentionPeriod: 10 * time.Millisecond, clock: clock.now,
	})
	require.NoError(t, err)
	t.Cleanup(func() { closeMember(t, s) })
	c := dialOpen(t, s.Addr())
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "jobs", Kind: wire.Topic, Settings: wire.Settings{
		Partitions: 1, Sync: wire.SyncOS, RetentionTimeMs: time.Hour.Milliseconds(), RetentionBytes: wire.Unlimited, SegmentBytes: 1 << 20,
	}})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
	intent, err := json.Marshal(wire.GroupIntent{Settings: wire.GroupSettings{Mode: wire.ModeShared}, Exists: true})
	require.NoError(t, err)
	c.send(wire.OpGroupAdmin, 3, &wire.GroupAdminRequest{Op: wire.GroupCreate, Destination: "jobs", Group: "workers", JSON: intent})
	var m wire.GroupJSON
	c.ok(c.answer(3), &m)
	handle := c.open("jobs", 0)
	produce := func(bytes int) {
		t.Helper()
		var b wire.BatchBuilder
		b.Reset(false)
		require.True(t, b.Append(1_000, 0, nil, make([]byte, bytes), nil, 0))
		batch, _ := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
		c.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: handle, Acks: wire.AcksQuorum, Batch: batch})
		require.Equal(t, wire.CodeOK, c.answer(5).code())
	}
	start := func() wire.Offset {
		c.send(wire.OpListOffsets, 6, &wire.ListOffsetsRequest{Handle: handle, Kind: wire.OffsetEarliest})
		var m wire.ListOffsetsResponse
		c.ok(c.answer(6), &m)
		return m.Offset
	}
	for range 4 { // three to a segment, so the last one is in another
		produce(300_000)
	}
	k := attachTo(t, s.Addr(), 1)
	k.keepAlive()
	grants := k.next(4)
	require.EqualValues(t, 0, grants[0].Offset)

	for _, jump := range []time.Duration{-5 * time.Minute, -tenYears, tenYears, 10 * time.Minute} { // five minutes on, in all
		clock.advance(jump)
		if jump != tenYears {
			produce(10) // a turn, and time for retention, which looks each 10 ms
		}
		require.Zero(t, start(), "after a jump by %v", jump)
	}
	clock.advance(56 * time.Minute)
	lost := map[bool]wire.Lost{}
	for len(lost) < 2 {
		f := k.read()
		if f.Opcode != wire.OpGroupLost {
			continue // what came meanwhile
		}
		var m wire.GroupLost
		require.NoError(t, m.Parse(f.body))
		for _, x := range m.Lost {
			lost[x.Epoch > 0] = x
			require.Equal(t, wire.ReasonExpired, x.Reason)
		}
	}
	require.Equal(t, wire.Lost{Offset: 0, Count: 3, Reason: wire.ReasonExpired}, lost[false], "the group")
	require.Equal(t, []uint64{0, 3}, []uint64{uint64(lost[true].Offset), uint64(lost[true].Count)}, "the consumer")
	eventually(t, "the start moves", func() bool { return start() == 3 }) // it is published behind the turn

	clock.advance(-tenYears)
	late := outcome(grants[0], wire.OutcomeAck)
	late.Offset, late.Count = 3, 1
	require.Equal(t, wire.CodeOK, k.say(late)[0].Code, "what is left is the consumer's")
}

package server

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// streamed is what a client has received on a link.
type streamed struct {
	bytes []byte
	next  wire.Offset // high watermark as of the last DELIVER
	ends  int         // empty DELIVERs
}

// stream reads DELIVER frames into the links until done holds, returning credit
// for what came.
func (c *rawClient) stream(links map[uint32]*streamed, done func() bool) {
	c.t.Helper()
	for !done() {
		f := c.read()
		if f.Opcode == wire.OpEvent {
			continue // of what was created just before
		}
		require.Equal(c.t, wire.OpDeliver, f.Opcode, "%v %v", f.Header, f.failure())
		require.Zero(c.t, f.Flags)
		l := links[f.ID]
		require.NotNil(c.t, l, "link %d", f.ID)
		var m wire.Deliver
		require.NoError(c.t, m.Parse(f.body))
		require.LessOrEqual(c.t, len(m.Stream), wire.MaxDeliverBytes)
		l.bytes = append(l.bytes, m.Stream...)
		l.next = m.NextOffset
		if len(m.Stream) == 0 {
			l.ends++
		} else {
			c.send(wire.OpLinkCredit, f.ID, &wire.LinkCredit{Credit: uint32(len(m.Stream))})
		}
	}
}

func numbered(r *fakeReplica, frames, size int) {
	for i := range frames {
		r.mu.Lock()
		r.appendFrame(bytes.Repeat([]byte{byte(i)}, size), 1)
		r.mu.Unlock()
	}
	r.fill(0, 0)
}

func TestALinkStreamsExactlyTheStoredBytes(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 5000, 3001)
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	got := &streamed{}
	id := c.link(h, 1000, 300_000)
	c.stream(map[uint32]*streamed{id: got}, func() bool { return got.ends == 1 })
	require.True(t, bytes.Equal(r.stored()[1000*wire.FrameSize(3001):], got.bytes), "%d bytes instead of %d", len(got.bytes), 4000*wire.FrameSize(3001))
	require.EqualValues(t, 5000, got.next)

	// What comes later is pushed, and the end is told once more.
	before := len(got.bytes)
	numbered(r, 1, 100)
	c.stream(map[uint32]*streamed{id: got}, func() bool { return got.ends == 2 })
	require.Equal(t, r.stored()[len(r.stored())-(len(got.bytes)-before):], got.bytes[before:])
	require.EqualValues(t, 5001, got.next)
}

func TestCreditIsNeverExceededAndResumesTheLink(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 100, 1000)
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	id := c.link(h, 0, 0)
	got := 0
	for credit := uint32(1); got < len(r.stored()); credit *= 2 {
		c.send(wire.OpLinkCredit, id, &wire.LinkCredit{Credit: credit})
		c.send(wire.OpPing, 5, &wire.PingRequest{})
		for granted := min(int(credit), len(r.stored())-got); granted > 0; {
			f := c.read()
			if f.Opcode == wire.OpPing {
				continue
			}
			require.Equal(t, wire.OpDeliver, f.Opcode)
			k := len(f.body) - wire.DeliverPrefixSize
			require.LessOrEqual(t, k, granted)
			require.Equal(t, r.stored()[got:got+k], f.body[wire.DeliverPrefixSize:])
			got += k
			granted -= k
		}
	}
}

func TestLinksOfOneConnectionTakeTurns(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 4)
	c := dialOpen(t, n.address)
	links := make(map[uint32]*streamed)
	for p := range uint32(4) {
		numbered(n.backend.replica("events", p), 2000, 1000)
	}
	for p := range uint32(4) {
		links[c.link(c.open("events", p), 0, 0)] = &streamed{}
	}
	var grants []byte
	for id := range links {
		grants = append(grants, frameOf(wire.OpLinkCredit, id, &wire.LinkCredit{Credit: 4 << 20})...)
	}
	c.write(grants)
	longest := func() (most, least int) {
		least = 1 << 60
		for _, l := range links {
			most, least = max(most, len(l.bytes)), min(least, len(l.bytes))
		}
		return most, least
	}
	unfair := 0
	c.stream(links, func() bool {
		most, least := longest()
		if most-least > 256<<10 {
			unfair++
		}
		ended := 0
		for _, l := range links {
			ended += l.ends
		}
		return ended == 4
	})
	require.Zero(t, unfair, "one link ran ahead of another by more than a turn")
	for id, l := range links {
		require.True(t, bytes.Equal(n.backend.replica("events", id-1).stored(), l.bytes))
	}
}

func TestASlowReaderLosesNothingAndHoldsNoMemory(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 16_000, 1000)
	c := dialOpen(t, n.address)
	id := c.link(c.open("events", 0), 0, 64<<20)
	eventually(t, "a full socket", func() bool { return n.engine.counters.stalls.Load() > 0 })
	buffered := make(chan int, 1)
	n.engine.eachSession(func(s *session) {
		buffered <- s.conn.OutboundBuffered() + s.sending.capacity() + s.out.pending.capacity()
	})
	require.Zero(t, <-buffered)
	got := &streamed{}
	for len(got.bytes) < len(r.stored()) {
		f := c.read()
		require.Equal(t, id, f.ID)
		got.bytes = append(got.bytes, f.body[wire.DeliverPrefixSize:]...)
		if len(got.bytes)%(1<<20) < 64<<10 {
			time.Sleep(time.Millisecond) // a reader slower than the writer
		}
	}
	require.True(t, bytes.Equal(r.stored(), got.bytes))
	require.Zero(t, n.engine.counters.preads.Load())
}

func TestAStreamAndRepliesShareAConnection(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 20_000, 1000)
	c := dialOpen(t, n.address)
	c.link(c.open("events", 0), 0, 64<<20)
	const pings = 500
	go func() {
		for i := range uint32(pings) {
			if _, err := c.conn.Write(frameOf(wire.OpPing, 100+i, &wire.PingRequest{})); err != nil {
				return
			}
		}
	}()
	var got []byte
	for next := uint32(100); len(got) < len(r.stored()) || next < 100+pings; {
		f := c.read()
		if f.Opcode == wire.OpPing {
			require.Equal(t, next, f.ID)
			next++
			continue
		}
		got = append(got, f.body[wire.DeliverPrefixSize:]...)
	}
	require.True(t, bytes.Equal(r.stored(), got))
}

func TestColdRangesAreMadeResidentFirst(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 1000, 1000)
	size := len(r.stored())
	r.set(func() {
		for at := 0; at < size; at += pieceBytes {
			r.cold[at] = true
		}
	})
	c := dialOpen(t, n.address)
	got := &streamed{}
	id := c.link(c.open("events", 0), 0, 4<<20)
	c.stream(map[uint32]*streamed{id: got}, func() bool { return got.ends == 1 })
	require.True(t, bytes.Equal(r.stored(), got.bytes))
	require.NotZero(t, n.engine.counters.cold.Load())
}

func TestWithoutMapsFramesAreRead(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 1000, 1000)
	r.set(func() { r.unmap = true })
	c := dialOpen(t, n.address)
	got := &streamed{}
	id := c.link(c.open("events", 0), 0, 100_000)
	c.stream(map[uint32]*streamed{id: got}, func() bool { return got.ends == 1 })
	require.True(t, bytes.Equal(r.stored(), got.bytes))
	require.NotZero(t, n.engine.counters.preads.Load())
}

func TestADamagedRangeEndsALinkWithThePlaceBehindIt(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 10, 1000)
	r.set(func() { r.damage = &log.DamagedError{Damage: log.Damage{File: "f", Position: 192, Base: 4, Next: 6}} })
	c := dialOpen(t, n.address)
	handle := c.open("events", 0)
	id := c.link(handle, 0, 100_000)
	f := c.read()
	require.Equal(t, wire.OpLinkClosed, f.Opcode)
	require.Equal(t, id, f.ID)
	var m wire.LinkClosed
	require.NoError(t, m.Parse(f.body))
	require.Equal(t, wire.LinkClosed{Code: wire.CodeCorrupt, Next: 6,
		Detail: "events/0: records at offsets 4 to 5 are damaged on the disk (f, position 192); reading can go on at offset 6"}, m)

	// Reports are handed on, and not answered.
	c.send(wire.OpReportDamage, 0, &wire.ReportDamage{Handle: handle, Offset: 3})
	c.send(wire.OpReportDamage, 0, &wire.ReportDamage{Handle: 99, Offset: 3})
	c.send(wire.OpPing, 70, &wire.PingRequest{})
	require.Equal(t, uint32(70), c.read().ID)
	r.set(func() { require.Equal(t, []wire.Offset{3}, r.reports) })
}

// A block that the disk does not read costs the records in it: what lies before it
// arrives, the client and the log say why no more, and the partition goes on.
func TestF11_ABlockThatCannotBeReadEndsALinkBehindWhatPrecedesIt(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 100, 1000)
	block := r.bases[50] + 500
	r.set(func() { r.block = block })
	c := dialOpen(t, n.address)
	handle := c.open("events", 0)
	id := c.link(handle, 0, 4<<20)
	var got []byte
	for {
		f := c.read()
		if f.Opcode == wire.OpDeliver {
			got = append(got, f.body[wire.DeliverPrefixSize:]...)
			continue
		}
		require.Equal(t, wire.OpLinkClosed, f.Opcode)
		require.Equal(t, id, f.ID)
		var m wire.LinkClosed
		require.NoError(t, m.Parse(f.body))
		require.Equal(t, wire.LinkClosed{Code: wire.CodeInternal, Detail: "events/0: cannot be read there: input/output error"}, m)
		break
	}
	require.True(t, bytes.Equal(r.stored()[:block], got))
	require.Contains(t, n.log.String(), `level=WARN msg="a partition cannot be read" partition=events/0 err="input/output error"`)

	behind := &streamed{}
	second := c.link(handle, 60, 4<<20)
	c.stream(map[uint32]*streamed{second: behind}, func() bool { return behind.ends == 1 })
	require.True(t, bytes.Equal(r.stored()[r.bases[60]:], behind.bytes))
}

// A reader takes itself to be at the end when it has everything below nextOffset:
// what is appended while a piece is being read must not make that a lie.
func TestNextOffsetIsNeverBelowARecordOfItsPiece(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		t.Run(fmt.Sprintf("mapped=%v", mapped), func(t *testing.T) {
			n := startNode(t, Limits{})
			n.backend.create(wire.Topic, "events", 1)
			r := n.backend.replica("events", 0)
			r.fill(3, 100)
			r.set(func() {
				r.unmap = !mapped
				r.reading = func() { r.fill(4, 100) } // after the watermark was looked at
				if !mapped {
					r.reading = func() { r.set(func() { r.reading = func() { r.fill(4, 100) } }) } // View fails first
				}
			})
			c := dialOpen(t, n.address)
			id := c.link(c.open("events", 0), 0, 1<<20)
			var got []byte
			for len(got) < len(r.stored()) {
				f := c.read()
				require.Equal(t, id, f.ID)
				var m wire.Deliver
				require.NoError(t, m.Parse(f.body))
				got = append(got, m.Stream...)
				records := wire.Offset(0)
				for rest := got; len(rest) >= wire.FrameHeaderSize; {
					h, err := wire.ParseFrameHeader(rest)
					require.NoError(t, err)
					records = h.NextOffset()
					rest = rest[min(len(rest), int(h.FrameSize())):]
				}
				require.GreaterOrEqual(t, m.NextOffset, records)
			}
		})
	}
}

func TestClosingALink(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	c := dialOpen(t, n.address)
	id := c.link(c.open("events", 0), 0, 1000)
	require.Equal(t, wire.OpDeliver, c.read().Opcode, "the empty partition is at its end")
	eventually(t, "park", func() bool {
		r := n.backend.replica("events", 0)
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.parked) == 1
	})
	c.send(wire.OpLinkClose, id, &wire.LinkClose{})
	f := c.read()
	require.Equal(t, wire.OpLinkClosed, f.Opcode)
	require.Equal(t, id, f.ID)
	var m wire.LinkClosed
	require.NoError(t, m.Parse(f.body))
	require.Equal(t, wire.CodeOK, m.Code)
	r := n.backend.replica("events", 0)
	r.mu.Lock()
	parked := len(r.parked)
	r.mu.Unlock()
	require.Zero(t, parked)
	c.send(wire.OpLinkClose, id, &wire.LinkClose{})
	require.NoError(t, m.Parse(c.read().body))
	require.Equal(t, wire.CodeUnknownLink, m.Code)
	c.send(wire.OpLinkCredit, id, &wire.LinkCredit{Credit: 1}) // crossed with the end: ignored
	c.send(wire.OpPing, 3, &wire.PingRequest{})
	require.Equal(t, wire.OpPing, c.read().Opcode)
}

func TestLinksEndWithTheirPartition(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "fenced", 1)
	n.backend.create(wire.Topic, "deleted", 1)
	c := dialOpen(t, n.address)
	fenced := c.link(c.open("fenced", 0), 0, 1000)
	require.Equal(t, fenced, c.read().ID)
	deleted := c.link(c.open("deleted", 0), 0, 1000)
	require.Equal(t, deleted, c.read().ID)

	r := n.backend.replica("fenced", 0)
	r.set(func() { r.state = wire.PartitionFenced })
	r.wake()
	var m wire.LinkClosed
	f := c.read()
	require.Equal(t, fenced, f.ID)
	require.NoError(t, m.Parse(f.body))
	require.Equal(t, wire.CodePartitionFenced, m.Code)

	n.backend.admin(&wire.DeleteRequest{Name: "deleted", Kind: wire.Topic}, func(wire.Message, error) {})
	f = c.read()
	require.Equal(t, deleted, f.ID)
	require.NoError(t, m.Parse(f.body))
	require.Equal(t, wire.CodeDestinationGone, m.Code)
}

func TestLinksOfADeletedDestinationEndWithTheNews(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "deleted", 1)
	numbered(n.backend.replica("deleted", 0), 10, 100)
	c := dialOpen(t, n.address)
	id := c.link(c.open("deleted", 0), 0, 0) // without credit it waits for nothing that could wake it
	n.backend.admin(&wire.DeleteRequest{Name: "deleted", Kind: wire.Topic}, func(wire.Message, error) {})
	n.engine.announceTopology(1)
	f := c.read()
	require.Equal(t, wire.OpLinkClosed, f.Opcode)
	require.Equal(t, id, f.ID)
}

func TestManyReadersOnOneLoopAllGetEverything(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	numbered(r, 500, 1000)
	const readers = 20
	done := make(chan error, readers)
	for i := range readers {
		c := dialOpen(t, n.address)
		id := c.link(c.open("events", 0), 0, 64<<20)
		go func() {
			var got []byte
			for len(got) < 1000*int(wire.FrameSize(1000)) {
				f, err := c.tryRead()
				if err != nil || f.ID != id {
					done <- fmt.Errorf("reader %d: %v %w", i, f.Header, err)
					return
				}
				got = append(got, f.body[wire.DeliverPrefixSize:]...)
			}
			if !bytes.Equal(r.stored()[:len(got)], got) {
				done <- fmt.Errorf("reader %d: other bytes", i)
				return
			}
			done <- nil
		}()
	}
	for range 500 {
		numbered(r, 1, 1000)
	}
	for range readers {
		require.NoError(t, <-done)
	}
}

func TestStreamsLeaveTimeForOthers(t *testing.T) {
	for _, loops := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d loops", loops), func(t *testing.T) {
			n := startNode(t, Limits{}, func(o *engineOptions) { o.Loops = loops })
			n.backend.create(wire.Topic, "events", 1)
			r := n.backend.replica("events", 0)
			r.fill(1000, 64<<10) // 64 MB
			const readers = 4
			done := make(chan struct{}, readers)
			for range readers {
				c := dialOpen(t, n.address)
				c.link(c.open("events", 0), 0, 64<<20)
				go func() {
					defer func() { done <- struct{}{} }()
					for got := 0; got < len(r.stored()); {
						f, err := c.tryRead()
						if err != nil {
							return
						}
						got += len(f.body) - wire.DeliverPrefixSize
					}
				}()
			}
			c := dialOpen(t, n.address)
			answered := 0
			for running, id := readers, uint32(10); running > 0; id++ {
				c.send(wire.OpPing, id, &wire.PingRequest{})
				require.Equal(t, wire.CodeOK, c.answer(id).code())
				answered++
				select {
				case <-done:
					running--
				default:
				}
			}
			t.Logf("%d pings answered beside the streams", answered)
			require.Greater(t, answered, 2*readers, "streams hold the loop for as long as they have something to send")
			require.Zero(t, n.engine.counters.panics.Load())
		})
	}
}

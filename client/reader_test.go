package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
	"github.com/lockstepmq/lockstep/wire/inflate"
)

// fill appends batches of the given sizes with numbered values to a partition, as
// a broker would, and returns the values.
func (b *fakeBroker) fill(p *fakePartition, codec Codec, batches ...int) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var values []string
	var builder wire.BatchBuilder
	for _, n := range batches {
		builder.Reset(true)
		for range n {
			v := fmt.Sprintf("p%d value %06d", p.number, int(p.next)+builder.Count())
			values = append(values, v)
			builder.Append(1000, 0, []byte("key"), []byte(v), nil, 1)
		}
		batch, index := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, codec, compressor(codec))
		p.append(index, batch, uint32(n))
	}
	for l := range p.links {
		l.pump()
	}
	return values
}

func TestFramesMayBeCutAnywhere(t *testing.T) {
	for piece := 1; piece <= 200; piece++ {
		b := startBroker(t, func(b *fakeBroker) { b.piece = piece })
		d := b.create("d", Topic, 1)
		want := b.fill(d.partitions[0], NoCompression, 1, 3, 1)
		c := connect(t, b)
		require.Equal(t, want, readAll(t, newTestReader(t, c, "d", StopAtEnd())))
		require.NoError(t, c.Close())
		b.stop()
	}
}

func TestReadingStartsWhereItShould(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	p := d.partitions[0]
	all := b.fill(p, NoCompression, 2, 3, 4) // appended at 1000000, ..10, ..20 ms
	c := connect(t, b)
	for _, tc := range []struct {
		name string
		opt  ReaderOption
		want []string
	}{
		{"earliest", FromEarliest(), all},
		{"latest", FromLatest(), nil},
		{"offset at a frame", FromOffset(2), all[2:]},
		{"offset inside a frame", FromOffset(3), all[3:]},
		{"last offset", FromOffset(8), all[8:]},
		{"next offset", FromOffset(9), nil},
		{"time of the second batch", FromTime(time.UnixMilli(1_000_010)), all[2:]},
		{"time between batches", FromTime(time.UnixMilli(1_000_011)), all[5:]},
		{"time before everything", FromTime(time.UnixMilli(0)), all},
		{"time after everything", FromTime(time.UnixMilli(2_000_000)), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.Equal(t, tc.want, readAll(t, newTestReader(t, c, "d", tc.opt, StopAtEnd())))
		})
	}
	_, err := c.Reader(testContext(t), "d", FromOffset(10))
	var outOfRange *OutOfRangeError
	require.ErrorAs(t, err, &outOfRange)
	require.Equal(t, uint64(10), outOfRange.Offset)
	require.ErrorIs(t, err, wire.CodeOutOfRange)
}

func TestOtherKindsOfFramesAreSkipped(t *testing.T) {
	b := startBroker(t, func(b *fakeBroker) { b.piece = 7 })
	d := b.create("d", Topic, 1)
	p := d.partitions[0]
	p.appendFrame(wire.KindNoOp, nil, 0)
	want := b.fill(p, NoCompression, 2)
	p.appendFrame(wire.KindControl, make([]byte, 3000), 0)
	p.appendFrame(wire.Kind(99), make([]byte, 13), 0)
	want = append(want, b.fill(p, NoCompression, 1)...)
	p.appendFrame(wire.KindConfiguration, make([]byte, 50), 0)
	c := connect(t, b)
	require.Equal(t, want, readAll(t, newTestReader(t, c, "d", StopAtEnd(), ReadAhead(1024))))
}

func TestSeveralBatchesShareAFrame(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	p := d.partitions[0]
	var body []byte
	var builder wire.BatchBuilder
	for i, codec := range []Codec{NoCompression, Zstd, Snappy} {
		builder.Reset(false)
		for j := range 2 {
			builder.Append(0, 0, nil, fmt.Appendf(nil, "%s %d", bytes.Repeat([]byte("z"), 200), 2*i+j), nil, 0)
		}
		batch, _ := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, codec, compressor(codec))
		wire.PatchBatch(batch, wire.Offset(2*i), fakeTerm)
		body = wire.AppendBodyBatch(body, nil, batch)
	}
	p.frames = append(p.frames, fakeFrame{base: 0, next: 6})
	p.appendFrame(wire.KindRecords, body, 6)
	p.next = 6
	c := connect(t, b)
	for from := range 6 {
		r := newTestReader(t, c, "d", StopAtEnd(), FromOffset(uint64(from)))
		for i := from; i < 6; i++ {
			rec, err := r.Next(testContext(t))
			require.NoError(t, err)
			require.Equal(t, uint64(i), rec.Offset)
			require.Equal(t, byte('0'+i), rec.Value[len(rec.Value)-1])
		}
		_, err := r.Next(testContext(t))
		require.ErrorIs(t, err, io.EOF)
	}
}

func TestXerialSnappyIsRead(t *testing.T) {
	raw := []byte("hello, hello, hello, hello")
	block := compressSnappy(nil, raw)
	section := append([]byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"), 0, 0, 0, byte(len(block)))
	section = append(section, block...)
	section = append(section, 0, 0, 0, byte(len(block)))
	section = append(section, block...)
	out, err := inflate.Records(nil, Snappy, section)
	require.NoError(t, err)
	require.Equal(t, string(raw)+string(raw), string(out))
}

func TestInflatingIsBounded(t *testing.T) {
	bomb := compressZstd(nil, make([]byte, wire.MaxUncompressedBytes+1))
	_, err := inflate.Records(nil, Zstd, bomb)
	require.ErrorIs(t, err, wire.CodeTooLarge)
	bomb = compressSnappy(nil, make([]byte, wire.MaxUncompressedBytes+1))
	_, err = inflate.Records(nil, Snappy, bomb)
	require.ErrorIs(t, err, wire.CodeTooLarge)
	for _, codec := range []Codec{Snappy, Zstd} {
		section := compressor(codec)(nil, bytes.Repeat([]byte("abcd"), 1000))
		for i := range section {
			broken := bytes.Clone(section)
			broken[i] ^= 0x55
			out, err := inflate.Records(nil, codec, broken) // any result, no panic, no flood
			if err == nil {
				require.LessOrEqual(t, len(out), wire.MaxUncompressedBytes)
			} else {
				require.NotEqual(t, wire.CodeUnknown, wire.CodeOf(err))
			}
			_, err = inflate.Records(nil, codec, section[:i])
			require.Error(t, err)
		}
	}
}

// Any damaged byte of what is received gives the records before it, and an error
// or nothing instead of the damaged one.
func TestDamageNeverBecomesARecord(t *testing.T) {
	for _, codec := range []Codec{NoCompression, Snappy} {
		t.Run(codec.String(), func(t *testing.T) {
			model := &fakeBroker{fakeStore: newFakeStore()}
			d := &fakeDestination{}
			p := &fakePartition{destination: d, links: map[*fakeLink]struct{}{}}
			want := model.fill(p, codec, 2, 3)
			second := p.frames[1].position
			for i := range p.log {
				log := bytes.Clone(p.log)
				log[i] ^= 0x10
				values, err := readLog(log, 5)
				require.Equal(t, want[:len(values)], values, "byte %d", i)
				if i >= second {
					require.GreaterOrEqual(t, len(values), 2, "byte %d", i)
				}
				if len(values) < 5 {
					require.ErrorIs(t, err, ErrCorrupt, "byte %d", i)
				}
			}
		})
	}
}

// readLog reads stored frames without a connection, as one DELIVER after another.
func readLog(log []byte, end wire.Offset) (values []string, err error) {
	r, st, s := offlineReader(end)
	in := bufio.NewReader(bytes.NewReader(log))
	for left := len(log); left > 0; {
		n := min(left, wire.MaxDeliverBytes)
		if err := st.receive(s, in, n); err != nil {
			return nil, err
		}
		left -= n
	}
	values = []string{}
	for {
		rec, err := r.Next(context.Background())
		if err != nil {
			return values, err
		}
		values = append(values, string(rec.Value))
		if rec.Offset+1 == uint64(end) {
			return values, nil
		}
	}
}

// offlineReader is a reader with one stream whose link is open in a session
// without goroutines.
func offlineReader(end wire.Offset) (*Reader, *stream, *session) {
	s := newSession(nil, nil, "offline", wire.HelloResponse{Opcodes: wire.SupportedOpcodes()}, nil)
	r := &Reader{
		options:    readerOptions{stopAtEnd: true},
		window:     1 << 30,
		creditStep: creditBytes,
		wake:       make(chan struct{}, 1),
		signal:     make(chan struct{}, 1),
		located:    make(chan struct{}),
		keys:       make(map[string]string),
		active:     1,
	}
	st := &stream{reader: r, session: s, located: true, counted: true, end: end, granted: r.window}
	st.startAssembly()
	r.streams = []*stream{st}
	return r, st, s
}

func TestDamageIsReportedWithItsPlaceAndEndsTheReader(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	p := d.partitions[0]
	want := b.fill(p, NoCompression, 2, 3)
	p.log[len(p.log)-20] ^= 1 // in the last record
	c := connect(t, b)
	r := newTestReader(t, c, "d")
	for i := range 2 {
		rec, err := r.Next(testContext(t))
		require.NoError(t, err)
		require.Equal(t, want[i], string(rec.Value))
	}
	for range 2 {
		_, err := r.Next(testContext(t))
		var corrupt *CorruptError
		require.ErrorAs(t, err, &corrupt)
		require.Equal(t, uint64(2), corrupt.Offset)
		require.Equal(t, uint64(5), corrupt.Next)
		require.ErrorIs(t, err, wire.CodeCorrupt)
	}
	require.NoError(t, c.Ping(testContext(t))) // the connection is not to blame
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Equal(t, []wire.ReportDamage{{Handle: 1, Offset: 2}}, b.reports)
}

// Who gives up over damaged bytes still tells the broker of them.
func TestDamageIsReportedByAConnectionThatIsClosedAtOnce(t *testing.T) {
	for range 20 {
		b := startBroker(t)
		p := b.create("d", Topic, 1).partitions[0]
		b.fill(p, NoCompression, 1)
		p.log[len(p.log)-20] ^= 1
		c := connect(t, b)
		_, err := newTestReader(t, c, "d").Next(testContext(t))
		var corrupt *CorruptError
		require.ErrorAs(t, err, &corrupt)
		require.NoError(t, c.Close())
		require.Eventually(t, func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.reports) == 1
		}, 5*time.Second, time.Millisecond)
	}
}

func TestDamageThatTheBrokerKnowsTellsWhereToGoOn(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	b.fill(d.partitions[0], NoCompression, 1)
	r := newTestReader(t, connect(t, b), "d")
	_, err := r.Next(testContext(t))
	require.NoError(t, err)
	b.mu.Lock()
	for l := range d.partitions[0].links {
		delete(d.partitions[0].links, l)
		l.conn.send(wire.Header{Opcode: wire.OpLinkClosed, Version: 1, ID: l.id}, &wire.LinkClosed{Code: wire.CodeCorrupt, Detail: "d/0: rotten", Next: 7})
	}
	b.mu.Unlock()
	_, err = r.Next(testContext(t))
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	require.Equal(t, []uint64{1, 7}, []uint64{corrupt.Offset, corrupt.Next})
	require.EqualError(t, err, "partition 0: offset 1: corrupt data: CORRUPT: d/0: rotten")
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.reports, "it is no news to the broker")
}

// Where the length of the damage is not known, no place behind it is named.
func TestADamagedHeaderNamesNoPlaceToGoOn(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	p := d.partitions[0]
	b.fill(p, NoCompression, 2, 3)
	p.log[p.frames[1].position+20] ^= 1
	r := newTestReader(t, connect(t, b), "d", Partitions(0))
	var err error
	for err == nil {
		_, err = r.Next(testContext(t))
	}
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	require.Equal(t, uint64(2), corrupt.Offset)
	require.Zero(t, corrupt.Next)
}

// What was received whole before a damaged header is returned, although the rest of
// the delivery that holds both is still on its way when the damage is found.
func TestRecordsBeforeADamagedHeaderAreReturned(t *testing.T) {
	model := &fakeBroker{fakeStore: newFakeStore()}
	p := &fakePartition{destination: &fakeDestination{}, links: map[*fakeLink]struct{}{}}
	want := model.fill(p, NoCompression, 1, 1, 1, 1)[:2]
	damaged := p.frames[2].position
	p.log[damaged+20] ^= 1
	reader, st, s := offlineReader(4)
	in, out := io.Pipe()
	received := make(chan error, 1)
	go func() { received <- st.receive(s, bufio.NewReader(in), len(p.log)) }()
	_, err := out.Write(p.log[:damaged+wire.FrameHeaderSize])
	require.NoError(t, err)
	var values []string
	for {
		record, err := reader.Next(testContext(t))
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			break
		}
		values = append(values, string(record.Value))
	}
	require.Equal(t, want, values)
	_, err = out.Write(p.log[damaged+wire.FrameHeaderSize:])
	require.NoError(t, err)
	require.NoError(t, <-received)
}

// A reader says under which incarnation it learned its position, so that the broker
// can tell that what it read is gone although the offset exists again.
func TestRuleL5_AReaderLearnsThatWhatItReadIsLost(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	b.fill(d.partitions[0], NoCompression, 1)
	var asked []uint32
	lost := false
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpLinkOpen {
			return false
		}
		var m wire.LinkOpenRequest
		q.parse(&m)
		b.mu.Lock()
		defer b.mu.Unlock()
		asked = append(asked, m.Incarnation)
		if lost {
			q.refuse(wire.CodeDataLost)
		}
		return lost
	})
	c := connect(t, b)
	fresh := newTestReader(t, c, "d", FromOffset(0))
	_, err := fresh.Next(testContext(t))
	require.NoError(t, err)
	r := newTestReader(t, c, "d")
	_, err = r.Next(testContext(t))
	require.NoError(t, err)
	b.mu.Lock()
	first := slices.Clone(asked)
	b.mu.Unlock()
	require.Equal(t, []uint32{0, 1}, first, "an offset that the application brought is of no incarnation")
	b.mu.Lock()
	b.incarnation, lost = 1, true
	for l := range d.partitions[0].links {
		delete(d.partitions[0].links, l)
		l.conn.send(wire.Header{Opcode: wire.OpLinkClosed, Version: 1, ID: l.id}, &wire.LinkClosed{Code: wire.CodeNotLeader})
	}
	b.mu.Unlock()
	for _, r := range []*Reader{fresh, r} {
		_, err = r.Next(testContext(t))
		var gone *DataLostError
		require.ErrorAs(t, err, &gone)
		require.Equal(t, []uint64{1, 0}, []uint64{gone.Offset, gone.Next})
		require.ErrorIs(t, err, wire.CodeDataLost)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Equal(t, []uint32{0, 1, 1, 1}, asked)
}

func TestGapsAndRepetitionsInTheStreamAreCorruption(t *testing.T) {
	model := &fakeBroker{fakeStore: newFakeStore()}
	p := &fakePartition{destination: &fakeDestination{}, links: map[*fakeLink]struct{}{}}
	model.fill(p, NoCompression, 1, 1, 1)
	frame := func(i int) []byte {
		end := len(p.log)
		if i+1 < len(p.frames) {
			end = p.frames[i+1].position
		}
		return p.log[p.frames[i].position:end]
	}
	for _, c := range []struct {
		name   string
		frames []int
		want   int
	}{
		{"whole", []int{0, 1, 2}, 3},
		{"a frame is missing", []int{0, 2}, 1},
		{"a frame comes twice", []int{0, 0, 1}, 1},
		{"two frames are swapped", []int{0, 2, 1}, 1},
		{"the first is missing", []int{1, 2}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log []byte
			for _, i := range c.frames {
				log = append(log, frame(i)...)
			}
			values, err := readLog(log, 3)
			require.Len(t, values, c.want)
			if c.want < 3 {
				require.ErrorIs(t, err, ErrCorrupt)
			}
		})
	}
}

// The broker never has more credit out than the window, and always enough.
func TestCreditAccounting(t *testing.T) {
	for _, c := range []struct {
		name           string
		window         int
		records, bytes int
	}{
		{"many small frames", 100_000, 3000, 100},
		{"frames larger than the window", 4096, 10, 50_000},
		{"frames almost as large as the window", 64 << 10, 50, 60_000},
		{"the smallest window", 1024, 500, 10},
		{"frames larger than a chunk", 1 << 20, 6, 700_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := startBroker(t)
			d := b.create("d", Topic, 1)
			p := d.partitions[0]
			b.mu.Lock()
			var builder wire.BatchBuilder
			for i := range c.records {
				builder.Reset(false)
				builder.Append(0, 0, fmt.Appendf(nil, "%d", i), make([]byte, c.bytes), nil, 0)
				batch, _ := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, NoCompression, nil)
				p.append(nil, batch, 1)
			}
			b.mu.Unlock()
			conn := connect(t, b)
			var consumed atomic.Int64
			frame := int(wire.FrameSize(8 + 61 + c.bytes + 40))
			b.setScript(func(q *fakeRequest) bool {
				q.handle()
				b.mu.Lock()
				defer b.mu.Unlock()
				for l := range p.links {
					// The region that is being read counts as taken: a chunk of frames.
					most := int(consumed.Load()) + max(c.window, frame) + max(frame, min(chunkBytes, c.window)) + frame
					if l.granted > most {
						t.Errorf("granted %d, consumed %d", l.granted, consumed.Load())
					}
				}
				return true
			})
			r := newTestReader(t, conn, "d", ReadAhead(c.window), StopAtEnd())
			n := 0
			for rec, err := range r.Records(testContext(t)) {
				require.NoError(t, err)
				require.Equal(t, fmt.Sprint(n), string(rec.Key))
				n++
				consumed.Add(int64(frame))
			}
			require.Equal(t, c.records, n)
		})
	}
}

func TestAReaderThatDoesNotReadHoldsBackOnlyItself(t *testing.T) {
	b := startBroker(t)
	slow, fast := b.create("slow", Topic, 1), b.create("fast", Topic, 1)
	for range 40 {
		b.fill(slow.partitions[0], NoCompression, 500)
	}
	want := b.fill(fast.partitions[0], NoCompression, 10, 10)
	c := connect(t, b)
	idle := newTestReader(t, c, "slow", ReadAhead(10_000))
	require.Equal(t, want, readAll(t, newTestReader(t, c, "fast", StopAtEnd())))
	b.mu.Lock()
	var sent []int
	for l := range slow.partitions[0].links {
		sent = append(sent, l.sent)
	}
	b.mu.Unlock()
	for _, n := range sent {
		require.LessOrEqual(t, n, 10_000+30_000) // and the rest of a frame
	}
	rec, err := idle.Next(testContext(t))
	require.NoError(t, err)
	require.Zero(t, rec.Offset)
}

func TestPartitionsTakeTurns(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 3)
	for _, p := range d.partitions {
		for range 100 {
			b.fill(p, NoCompression, 100)
		}
	}
	c := connect(t, b)
	r := newTestReader(t, c, "d", ReadAhead(20_000), StopAtEnd())
	counts := map[uint32]int{}
	total := 0
	for rec, err := range r.Records(testContext(t)) {
		require.NoError(t, err)
		require.Equal(t, uint64(counts[rec.Partition]), rec.Offset)
		counts[rec.Partition]++
		if total++; total == 15_000 {
			for n := range uint32(3) { // no partition starves
				require.Greater(t, counts[n], 2_000, "partition %d of %v", n, counts)
			}
		}
	}
	require.Equal(t, map[uint32]int{0: 10_000, 1: 10_000, 2: 10_000}, counts)
}

func TestOnlyTheChosenPartitionsAreRead(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 3)
	var want [3][]string
	for i, p := range d.partitions {
		want[i] = b.fill(p, NoCompression, 5)
	}
	c := connect(t, b)
	require.Equal(t, want[1], readAll(t, newTestReader(t, c, "d", StopAtEnd(), Partitions(1, 1))))
	require.ElementsMatch(t, append(want[0], want[2]...), readAll(t, newTestReader(t, c, "d", StopAtEnd(), Partitions(0, 2))))
}

func TestNewRecordsArriveAsTheyAreAppended(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 2)
	c := connect(t, b)
	r := newTestReader(t, c, "d", FromLatest())
	p := newTestProducer(t, c, "d")
	ctx := testContext(t)
	for i := range 100 {
		sent, err := p.Send(ctx, &Record{Value: fmt.Appendf(nil, "%d", i)})
		require.NoError(t, err)
		rec, err := r.Next(ctx)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), string(rec.Value))
		require.Equal(t, sent.Offset, rec.Offset)
		require.Equal(t, sent.Partition, rec.Partition)
	}
}

func TestNextEndsWithItsContextAndMayBeCalledAgain(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	c := connect(t, b)
	r := newTestReader(t, c, "d")
	ctx, cancel := context.WithTimeout(testContext(t), 5*time.Millisecond)
	defer cancel()
	_, err := r.Next(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	want := b.fill(d.partitions[0], NoCompression, 1)
	rec, err := r.Next(testContext(t))
	require.NoError(t, err)
	require.Equal(t, want[0], string(rec.Value))
}

// R-WLS-10: the client reconnects and resumes by itself: no record is missing or
// comes twice, wherever the stream is cut.
func TestR_WLS_10_ReadersResumeAfterDisconnects(t *testing.T) {
	b := startBroker(t, func(b *fakeBroker) { b.piece = 777 })
	d := b.create("d", Topic, 2)
	var want [2][]string
	for i, p := range d.partitions {
		for range 60 {
			want[i] = append(want[i], b.fill(p, NoCompression, 20)...)
		}
	}
	c := connect(t, b)
	var credits atomic.Int64
	random := rand.New(rand.NewPCG(3, 4))
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpLinkCredit && credits.Add(1)%3 == 0 {
			q.conn.drop()
			return true
		}
		if q.header.Opcode == wire.OpLinkOpen && random.IntN(4) == 0 {
			q.refuse(wire.CodeUnavailable)
			return true
		}
		return false
	})
	r := newTestReader(t, c, "d", ReadAhead(3000), StopAtEnd())
	var got [2][]string
	for rec, err := range r.Records(testContext(t)) {
		require.NoError(t, err)
		got[rec.Partition] = append(got[rec.Partition], string(rec.Value))
	}
	require.Equal(t, want, got)
	require.Greater(t, credits.Load(), int64(20))
}

func TestALinkThatTheBrokerClosesIsOpenedAgainOrEndsTheReader(t *testing.T) {
	for _, c := range []struct {
		code wire.ErrorCode
		ends bool
	}{
		{wire.CodeNotLeader, false},
		{wire.CodeShuttingDown, false},
		{wire.CodeRetry, false},
		{wire.CodeOutOfRange, true},
		{wire.CodeDataLost, true},
		{wire.CodePartitionReset, true},
		{wire.CodeDestinationGone, true},
		{wire.CodeCorrupt, true},
	} {
		t.Run(c.code.String(), func(t *testing.T) {
			b := startBroker(t)
			d := b.create("d", Topic, 1)
			b.fill(d.partitions[0], NoCompression, 1)
			conn := connect(t, b)
			r := newTestReader(t, conn, "d")
			ctx := testContext(t)
			_, err := r.Next(ctx)
			require.NoError(t, err)
			b.mu.Lock()
			for l := range d.partitions[0].links {
				delete(d.partitions[0].links, l)
				l.conn.send(wire.Header{Opcode: wire.OpLinkClosed, Version: 1, ID: l.id}, &wire.LinkClosed{Code: c.code, Detail: "by the test"})
			}
			b.mu.Unlock()
			b.fill(d.partitions[0], NoCompression, 1)
			rec, err := r.Next(ctx)
			if c.code == wire.CodeCorrupt {
				var corrupt *CorruptError
				require.ErrorAs(t, err, &corrupt)
				require.Equal(t, uint64(1), corrupt.Offset)
			}
			if c.ends {
				require.ErrorIs(t, err, c.code)
				return
			}
			require.NoError(t, err)
			require.Equal(t, uint64(1), rec.Offset)
		})
	}
}

func TestRetentionThatIsFasterThanTheFirstReadMovesTheStart(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	p := d.partitions[0]
	want := b.fill(p, NoCompression, 2, 3)
	c := connect(t, b)
	opened := false
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpLinkOpen && !opened {
			opened = true
			b.mu.Lock()
			p.start = 2
			b.mu.Unlock()
		}
		return false
	})
	require.Equal(t, want[2:], readAll(t, newTestReader(t, c, "d", StopAtEnd())))
}

func TestReadersOfARecreatedDestinationEnd(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	r := newTestReader(t, c, "d")
	b.mu.Lock()
	delete(b.destinations, "d")
	b.mu.Unlock()
	b.create("d", Topic, 1)
	b.dropConns()
	_, err := r.Next(testContext(t))
	require.ErrorIs(t, err, wire.CodeDestinationGone)
}

func TestCloneOutlivesTheNextCall(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	p := newTestProducer(t, c, "d")
	ctx := testContext(t)
	for i := range 3 {
		_, err := p.Send(ctx, &Record{Key: []byte{byte(i)}, Value: bytes.Repeat([]byte{byte(i)}, 10), Headers: []Header{{Key: "k", Value: []byte{byte(i)}}}})
		require.NoError(t, err)
	}
	r := newTestReader(t, c, "d", StopAtEnd())
	var clones []*Record
	for rec, err := range r.Records(ctx) {
		require.NoError(t, err)
		clones = append(clones, rec.Clone())
	}
	for i, rec := range clones {
		require.Equal(t, bytes.Repeat([]byte{byte(i)}, 10), rec.Value)
		require.Equal(t, []byte{byte(i)}, rec.Key)
		require.Equal(t, []Header{{Key: "k", Value: []byte{byte(i)}}}, rec.Headers)
	}
}

func TestBreakingOutOfRecordsLeavesTheReaderUsable(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	b.fill(d.partitions[0], NoCompression, 5)
	c := connect(t, b)
	r := newTestReader(t, c, "d", StopAtEnd())
	for range r.Records(testContext(t)) {
		break
	}
	rec, err := r.Next(testContext(t))
	require.NoError(t, err)
	require.Equal(t, uint64(1), rec.Offset)
	require.NoError(t, r.Close())
	_, err = r.Next(testContext(t))
	for err == nil { // what was received may still be returned
		_, err = r.Next(testContext(t))
	}
	require.True(t, errors.Is(err, ErrClosed) || errors.Is(err, io.EOF))
}

// STYLE, memory: zero allocations per record.
func TestNextAllocatesNothing(t *testing.T) {
	for _, codec := range []Codec{NoCompression, Snappy, Zstd} {
		t.Run(codec.String(), func(t *testing.T) {
			log, records := benchmarkLog(codec, 100, 1000)
			r, st, s := offlineReader(wire.Offset(records))
			in := bufio.NewReader(bytes.NewReader(log))
			feed(t, st, s, in, len(log))
			ctx := context.Background()
			for range 1000 { // the buffer for inflated records comes to be
				_, err := r.Next(ctx)
				require.NoError(t, err)
			}
			perRecord := testing.AllocsPerRun(5000, func() {
				if _, err := r.Next(ctx); err != nil {
					panic(err)
				}
			})
			require.Zero(t, perRecord)
		})
	}
}

// feed gives a stream the bytes of a link.
func feed(t testing.TB, st *stream, s *session, in *bufio.Reader, left int) {
	for left > 0 {
		n := min(left, wire.MaxDeliverBytes)
		if err := st.receive(s, in, n); err != nil {
			t.Fatal(err)
		}
		left -= n
	}
}

// benchmarkLog is frames of 64 records of some size.
func benchmarkLog(codec Codec, frames, size int) (log []byte, records int) {
	p := &fakePartition{destination: &fakeDestination{}}
	var builder wire.BatchBuilder
	for range frames {
		builder.Reset(false)
		for i := range 64 {
			builder.Append(int64(i), 0, fmt.Appendf(nil, "key %d", i), bytes.Repeat([]byte{byte(i)}, size), []wire.RecordHeader{{Key: "k"}}, 0)
		}
		batch, _ := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, codec, compressor(codec))
		p.append(nil, batch, 64)
	}
	return p.log, 64 * frames
}

// What a partition answers to a Reader that has ended concerns nobody, also if the partition
// has nothing to read.
func TestAReaderThatHasEndedTakesNoAnswer(t *testing.T) {
	b := startBroker(t)
	b.create("d", Topic, 1)
	c := connect(t, b)
	asked := make(chan *fakeRequest, 1)
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode == wire.OpListOffsets {
			held := *q
			asked <- &held
			return true
		}
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.Reader(ctx, "d", StopAtEnd())
		ended <- err
	}()
	q := <-asked
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	q.reply(&wire.ListOffsetsResponse{})
	require.NoError(t, c.Ping(t.Context()), "the answer has been taken in")
}

// RULES L5: where a reader that stops at the end goes on under another incarnation, its end
// is one that a quorum has confirmed, not that of a leader that was deposed and answers.
func TestRuleL5_AnEndIsNotLoweredByALeaderThatWasDeposed(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 1)
	b.fill(d.partitions[0], NoCompression, 1, 1, 1)
	opened := 0
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpOpenPartition {
			return false
		}
		if opened++; opened == 1 {
			return false
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		q.reply(&wire.OpenPartitionResponse{Handle: d.partitions[0].handle, DestinationID: d.info.ID, Epoch: 1, NextOffset: 2, SlotVersion: 1, Incarnation: 9})
		return true
	})
	r := newTestReader(t, connect(t, b), "d", StopAtEnd())
	b.dropConns()
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.streams[0].incarnation == 9
	}, 30*time.Second, time.Millisecond)
	require.Len(t, readAll(t, r), 3)
}

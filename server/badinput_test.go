package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// badNode is a whole broker that bad clients talk to.
type badNode struct {
	*Server
	t   *testing.T
	dir string
	log *lockedBuffer
}

// startBad runs a broker with the topic "events" of four partitions and the queue
// "orders" of one.
func startBad(t *testing.T, limits Limits) *badNode {
	t.Helper()
	limits.LogLines = 1000
	n := &badNode{t: t, dir: t.TempDir(), log: &lockedBuffer{}}
	var err error
	n.Server, err = Start(t.Context(), Config{
		DataDir: filepath.Join(n.dir, "data"), Listen: "127.0.0.1:0", HTTP: "off", Limits: limits,
		Logger: slog.New(slog.NewTextHandler(n.log, nil)),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close(t.Context())) })
	c := dialOpen(t, n.Addr())
	settings := wire.Settings{Partitions: 4, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited}
	c.send(wire.OpCreate, 2, &wire.CreateRequest{Name: "events", Kind: wire.Topic, Settings: settings})
	require.Equal(t, wire.CodeOK, c.answer(2).code())
	settings.Partitions = 1
	c.send(wire.OpCreate, 3, &wire.CreateRequest{Name: "orders", Kind: wire.Queue, Settings: settings})
	require.Equal(t, wire.CodeOK, c.answer(3).code())
	c.conn.Close()
	eventually(t, "no session", func() bool { return n.engine.counters.sessions.Load() == 0 })
	return n
}

// latest is the next offset of a partition, as another client sees it.
func (n *badNode) latest(name string) wire.Offset {
	c := dialOpen(n.t, n.Addr())
	defer c.conn.Close()
	c.send(wire.OpListOffsets, 2, &wire.ListOffsetsRequest{Handle: c.open(name, 0), Kind: wire.OffsetLatest})
	var m wire.ListOffsetsResponse
	c.ok(c.answer(2), &m)
	return m.Offset
}

// healthy checks that another client is served.
func (n *badNode) healthy() {
	n.t.Helper()
	c := dialOpen(n.t, n.Addr())
	defer c.conn.Close()
	c.send(wire.OpPing, 2, &wire.PingRequest{})
	require.Equal(n.t, wire.CodeOK, c.answer(2).code())
	require.Zero(n.t, n.engine.counters.panics.Load(), n.log.String())
}

// The three reactions of the catalogue.

// cut expects the end of the connection without a frame (C).
func cut(c *rawClient) {
	c.t.Helper()
	c.closed()
}

// fails expects an error frame and then the end (E).
func fails(c *rawClient, code wire.ErrorCode) wire.ErrorBody {
	c.t.Helper()
	f := c.read()
	require.Equal(c.t, wire.FlagResponse|wire.FlagError, f.Flags)
	require.Equal(c.t, code, f.code(), "%v", f.failure())
	c.closed()
	return f.failure()
}

// keeps expects an error answer to one request, after which the session goes on (K).
func keeps(c *rawClient, id uint32, code wire.ErrorCode) {
	c.t.Helper()
	f := c.answer(id)
	require.Equal(c.t, code, f.code(), "%v", f.failure())
	c.send(wire.OpPing, 1<<31, &wire.PingRequest{})
	require.Equal(c.t, wire.CodeOK, c.answer(1<<31).code())
}

// header is a frame header with a good checksum.
func header(length uint32, op wire.Opcode, flags wire.Flags, version uint16, id uint32) []byte {
	return wire.AppendHeader(nil, wire.Header{Length: length, Opcode: op, Flags: flags, Version: version, ID: id})
}

// reseal computes the CRC of a batch again after its bytes were changed.
func reseal(batch []byte) []byte {
	binary.BigEndian.PutUint32(batch[17:], wire.Checksum(batch[21:]))
	return batch
}

// section makes a batch with a codec, a record count and any records section.
func section(t *testing.T, codec wire.Codec, count int32, records []byte) []byte {
	good, _ := testBatch(t, "x")
	b := append(good[:wire.BatchHeaderSize:wire.BatchHeaderSize], records...)
	be := binary.BigEndian
	be.PutUint32(b[8:], uint32(len(b)-12))
	be.PutUint16(b[21:], uint16(codec))
	be.PutUint32(b[23:], uint32(count-1))
	be.PutUint32(b[57:], uint32(count))
	return reseal(b)
}

// allocatedBytes is what this process has allocated in its life.
func allocatedBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// badBatch is a case of rows 12 to 20: the batch is refused, not appended, and costs
// no memory for what it only promises.
type badBatch struct {
	name  string
	batch []byte
	want  wire.ErrorCode
}

func (n *badNode) refuses(t *testing.T, batches ...badBatch) {
	t.Helper()
	before := n.latest("events")
	c := dialOpen(t, n.Addr())
	h := c.open("events", 0)
	for i, b := range batches {
		id := uint32(100 + i)
		counted := n.engine.counters.errors[b.want].Load()
		allocated := allocatedBytes()
		c.send(wire.OpProduce, id, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: b.batch})
		f := c.answer(id)
		require.Equal(t, b.want, f.code(), "%s: %v", b.name, f.failure())
		require.Less(t, allocatedBytes()-allocated, uint64(1<<20+8*len(b.batch)), "%s: the frame a few times, as client and broker grow buffers for it", b.name)
		require.Equal(t, counted+1, n.engine.counters.errors[b.want].Load())
	}
	keepsGoing := uint32(99)
	c.send(wire.OpPing, keepsGoing, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, c.answer(keepsGoing).code())
	require.Equal(t, before, n.latest("events"), "something was appended")
}

// TestBadInputCatalogue walks the catalogue of RELIABILITY §6.4. Every row is
// here: with its exact reaction, or with why it cannot happen to a node without
// authentication, peers and groups.
func TestBadInputCatalogue(t *testing.T) {
	n := startBad(t, Limits{FrameTimeout: 400 * time.Millisecond, LinkCredit: 1 << 20, Links: 8})
	c := &n.engine.counters

	rows := []struct {
		row  int
		name string
		test func(t *testing.T) // nil if the row does not apply
		why  string             // it does not
	}{
		{row: 1, name: "wrong magic", test: func(t *testing.T) {
			for hint, preamble := range map[string][]byte{
				"HTTP":                   []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
				"TLS":                    append([]byte{0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc}, make([]byte, 100)...),
				"Kafka":                  {0, 0, 0, 20, 0, 18, 0, 3, 0, 0, 0, 1, 0, 4, 't', 'e', 's', 't', 0, 0, 0, 0, 0, 0},
				"AMQP":                   []byte("AMQP\x00\x01\x00\x00"),
				`it begins with \"LKSTX`: []byte("LKSTX"),
			} {
				closed := c.closed[closedBadPreface].Load()
				fastest := time.Hour
				const attempts = 10
				for range attempts {
					bad := dialRaw(t, n.Addr())
					begin := time.Now()
					bad.write(preamble)
					cut(bad)
					fastest = min(fastest, time.Since(begin))
				}
				eventually(t, "count", func() bool { return c.closed[closedBadPreface].Load() == closed+attempts })
				require.Contains(t, n.log.String(), hint)
				require.Less(t, fastest, time.Millisecond, hint)
			}
		}},
		{row: 2, name: "unknown protocol version", test: func(t *testing.T) {
			for _, m := range []wire.HelloRequest{{MinVersion: 2, MaxVersion: 9}, {MinVersion: 0, MaxVersion: 0}, {MinVersion: 1, MaxVersion: 0}} {
				bad := dialRaw(t, n.Addr())
				bad.write([]byte(wire.Preface))
				bad.send(wire.OpHello, 1, &m)
				require.Contains(t, fails(bad, wire.CodeVersion).Detail, "this broker 1 to 1")
			}
			bad := dialRaw(t, n.Addr())
			bad.write([]byte(wire.Preface))
			bad.write(header(12, wire.OpHello, 0, 7, 1))
			fails(bad, wire.CodeVersion)
		}},
		{row: 3, name: "frame length below the header", test: func(t *testing.T) {
			for _, length := range []uint32{0, 1, 11} {
				bad := dialOpen(t, n.Addr())
				bad.write(header(length, wire.OpPing, 0, 1, 9))
				fails(bad, wire.CodeMalformed)
			}
		}},
		{row: 4, name: "length 0xFFFFFFFF", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			allocated := allocatedBytes()
			bad.write(header(0xffffffff, wire.OpProduce, 0, 1, 9))
			fails(bad, wire.CodeTooLarge)
			require.Less(t, allocatedBytes()-allocated, uint64(1<<20))
		}},
		{row: 5, name: "length one above the maximum", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			bad.write(header(wire.MaxFrameBytes+1, wire.OpProduce, 0, 1, 9))
			fails(bad, wire.CodeTooLarge)
			bad = dialRaw(t, n.Addr()) // less is allowed to strangers
			bad.write([]byte(wire.Preface))
			bad.write(header(wire.MaxHandshakeFrameBytes+1, wire.OpHello, 0, 1, 9))
			fails(bad, wire.CodeTooLarge)
		}},
		{row: 6, name: "length above the body, then silence", test: func(t *testing.T) {
			closed := c.closed[closedFrame].Load()
			bad := dialOpen(t, n.Addr())
			begin := time.Now()
			bad.write(append(header(1000, wire.OpProduce, 0, 1, 9), make([]byte, 500)...))
			cut(bad)
			require.InDelta(t, 0.4, time.Since(begin).Seconds(), 0.35)
			eventually(t, "count", func() bool { return c.closed[closedFrame].Load() == closed+1 })
		}},
		{row: 7, name: "a byte at a time", test: func(t *testing.T) {
			closed := c.closed[closedFrame].Load()
			bad := dialOpen(t, n.Addr())
			begin := time.Now()
			go func() {
				frame := frameOf(wire.OpPing, 9, &wire.PingRequest{})
				for _, b := range frame {
					if _, err := bad.conn.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond) // sixteen of these are longer than the deadline
				}
			}()
			cut(bad)
			require.InDelta(t, 0.4, time.Since(begin).Seconds(), 0.35)
			eventually(t, "count", func() bool { return c.closed[closedFrame].Load() == closed+1 })
		}},
		{row: 8, name: "bytes behind the last field", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			ping := frameOf(wire.OpPing, 10, &wire.PingRequest{})
			bad.write(append(append(header(13, wire.OpPing, 0, 1, 9), 'x'), ping...))
			fails(bad, wire.CodeMalformed) // the good PING behind it is not answered
			for op := wire.OpMetadata; op <= wire.OpLinkClose; op++ {
				bad := dialOpen(t, n.Addr())
				bad.write(append(header(12+200, op, 0, op.Version(), 9), bytes.Repeat([]byte{0}, 200)...))
				fails(bad, wire.CodeMalformed)
			}
		}},
		{row: 9, name: "unknown opcode", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			for id, op := range []wire.Opcode{0, 41, 200, 255, wire.OpDeliver, wire.OpLinkClosed, wire.OpEvent} {
				bad.write(append(header(15, op, 0, 1, uint32(100+id)), "abc"...))
				keeps(bad, uint32(100+id), wire.CodeUnsupported)
			}
			bad.write(header(12, wire.OpPing, 0, 2, 9))
			keeps(bad, 9, wire.CodeUnsupported)
		}},
		{row: 10, name: "reserved flags", test: func(t *testing.T) {
			for _, flags := range []wire.Flags{0x80, 0x04, wire.FlagResponse, wire.FlagError, 0xff} {
				bad := dialOpen(t, n.Addr())
				bad.write(header(12, wire.OpPing, flags, 1, 9))
				fails(bad, wire.CodeMalformed)
			}
		}},
		{row: 11, name: "wrong header checksum", test: func(t *testing.T) {
			closed := c.closed[closedBadChecksum].Load()
			for i := range wire.HeaderSize {
				bad := dialOpen(t, n.Addr())
				h := header(12, wire.OpPing, 0, 1, 9)
				h[i] ^= 0x40
				bad.write(h)
				cut(bad)
			}
			eventually(t, "count", func() bool { return c.closed[closedBadChecksum].Load() == closed+wire.HeaderSize })
		}},
		{row: 12, name: "wrong batch CRC", test: func(t *testing.T) {
			flipped, _ := testBatch(t, "value")
			flipped[len(flipped)-2] ^= 1
			crc, _ := testBatch(t, "value")
			crc[17] ^= 0x80
			n.refuses(t, badBatch{"a bit of a record", flipped, wire.CodeCorrupt}, badBatch{"a bit of the CRC", crc, wire.CodeCorrupt})
		}},
		{row: 13, name: "count 2^31-1 in ten bytes", test: func(t *testing.T) {
			n.refuses(t,
				badBatch{"uncompressed", section(t, wire.CodecNone, math.MaxInt32, make([]byte, 10)), wire.CodeMalformed},
				badBatch{"zero", section(t, wire.CodecNone, 0, make([]byte, 10)), wire.CodeMalformed},
				badBatch{"compressed", section(t, wire.CodecZstd, math.MaxInt32, make([]byte, 10)), wire.CodeMalformed},
				badBatch{"nothing at all", nil, wire.CodeMalformed})
		}},
		{row: 14, name: "record lengths do not add up", test: func(t *testing.T) {
			good, _ := testBatch(t, "one", "two")
			records := wire.Records(good)
			n.refuses(t,
				badBatch{"a byte too many", section(t, wire.CodecNone, 2, append(bytes.Clone(records), 0)), wire.CodeMalformed},
				badBatch{"a byte too few", section(t, wire.CodecNone, 2, records[:len(records)-1]), wire.CodeMalformed},
				badBatch{"a record too many", section(t, wire.CodecNone, 1, records), wire.CodeMalformed},
				badBatch{"two batches", append(bytes.Clone(good), good...), wire.CodeMalformed})
		}},
		{row: 15, name: "record length negative or beyond the end", test: func(t *testing.T) {
			n.refuses(t,
				badBatch{"-1", section(t, wire.CodecNone, 1, []byte{0x01, 0, 0, 0, 0, 0, 0}), wire.CodeMalformed},
				badBatch{"-2^31", section(t, wire.CodecNone, 1, []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0}), wire.CodeMalformed},
				badBatch{"2^31-1", section(t, wire.CodecNone, 1, []byte{0xfe, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0}), wire.CodeMalformed})
		}},
		{row: 16, name: "varints overlong or of eleven bytes", test: func(t *testing.T) {
			n.refuses(t,
				badBatch{"overlong record length", section(t, wire.CodecNone, 1, []byte{0x8c, 0x00, 0, 0, 0, 0, 0, 0}), wire.CodeMalformed},
				badBatch{"overlong key length", section(t, wire.CodecNone, 1, []byte{14, 0, 0, 0, 0x80, 0x00, 0, 0}), wire.CodeMalformed},
				badBatch{"timestamp of eleven bytes", section(t, wire.CodecNone, 1,
					[]byte{32, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0, 0, 0, 0}), wire.CodeMalformed})
		}},
		{row: 17, name: "unknown codec, nested compression", test: func(t *testing.T) {
			nested, _ := testBatch(t, "x")
			nested[16] = 1 // the magic whose messages nest
			n.refuses(t,
				badBatch{"gzip", section(t, 1, 1, make([]byte, 20)), wire.CodeUnsupported},
				badBatch{"lz4", section(t, 3, 1, make([]byte, 20)), wire.CodeUnsupported},
				badBatch{"codec 7", section(t, 7, 1, make([]byte, 20)), wire.CodeUnsupported},
				badBatch{"magic 1", nested, wire.CodeUnsupported})
		}},
		{row: 18, name: "compression bombs", test: func(t *testing.T) {
			zeros := make([]byte, 64<<20)
			writer, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
			require.NoError(t, err)
			sized := writer.EncodeAll(zeros, nil)
			var unsized bytes.Buffer
			writer.Reset(&unsized)
			for range 4 { // 256 MiB
				_, err = writer.Write(zeros)
				require.NoError(t, err)
			}
			require.NoError(t, writer.Close())
			require.Less(t, unsized.Len(), 29<<10)
			require.Less(t, len(sized), 10<<10)
			n.refuses(t,
				badBatch{"zstd that says its size", section(t, wire.CodecZstd, 1, sized), wire.CodeTooLarge},
				badBatch{"zstd that does not", section(t, wire.CodecZstd, 1, unsized.Bytes()), wire.CodeTooLarge},
				badBatch{"snappy", section(t, wire.CodecSnappy, 1, s2.EncodeSnappy(nil, zeros)), wire.CodeTooLarge})
		}},
		{row: 19, name: "a lie about the uncompressed size", test: func(t *testing.T) {
			// The broker never inflates, so it finds what the framing alone gives away;
			// readers, which inflate, find the rest.
			good, _ := testBatch(t, strings.Repeat("x", 1000))
			writer, err := zstd.NewWriter(nil)
			require.NoError(t, err)
			short := writer.EncodeAll(wire.Records(good), nil)
			require.NoError(t, writer.Close())
			n.refuses(t,
				badBatch{"a frame without its end", section(t, wire.CodecZstd, 1, short[:len(short)-3]), wire.CodeCorrupt},
				badBatch{"snappy without a size", section(t, wire.CodecSnappy, 1, []byte{0xff, 0xff, 0xff}), wire.CodeCorrupt},
				badBatch{"a size that cannot hold the records", section(t, wire.CodecSnappy, 1000, s2.EncodeSnappy(nil, make([]byte, 10))), wire.CodeMalformed})
		}},
		{row: 20, name: "a zstd window of 2 GiB", test: func(t *testing.T) {
			// Magic, descriptor without a size, window 2^(10+21), an empty last block.
			n.refuses(t, badBatch{"2 GiB", section(t, wire.CodecZstd, 1, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00}), wire.CodeTooLarge})
		}},
		{row: 21, name: "names", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			before := listTree(t, n.dir)
			id := uint32(100)
			for _, name := range []string{
				"", strings.Repeat("n", 65535), "a\x00b", "../../etc", "..", "a/../b", "/a", "a//b", "\xff\xfe", "a\nb", "\x1b[2J", strings.Repeat("é", 128),
			} {
				for _, m := range []struct {
					op wire.Opcode
					m  wire.Message
				}{
					{wire.OpCreate, &wire.CreateRequest{Name: name, Kind: wire.Queue, Settings: wire.Settings{Partitions: 1}}},
					{wire.OpAlter, &wire.AlterRequest{Name: name, Kind: wire.Queue}},
					{wire.OpDelete, &wire.DeleteRequest{Name: name, Kind: wire.Queue}},
					{wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: name}},
					{wire.OpInitProducer, &wire.InitProducerRequest{Name: name}},
				} {
					if name == "" && m.op == wire.OpInitProducer {
						continue // an anonymous producer
					}
					id++
					bad.send(m.op, id, m.m)
					keeps(bad, id, wire.CodeInvalidName)
				}
			}
			require.Equal(t, before, listTree(t, n.dir))
		}},
		{row: 22, name: "partition numbers", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			for i, number := range []uint32{4, 5, 1 << 31, math.MaxUint32} {
				bad.send(wire.OpOpenPartition, uint32(10+i), &wire.OpenPartitionRequest{Destination: "events", Partition: number})
				keeps(bad, uint32(10+i), wire.CodeUnknownPartition)
			}
			for i, handle := range []uint32{0, 1, math.MaxUint32} {
				batch, _ := testBatch(t, "x")
				bad.send(wire.OpProduce, uint32(20+i), &wire.ProduceRequest{Handle: handle, Acks: wire.AcksQuorum, Batch: batch})
				keeps(bad, uint32(20+i), wire.CodeUnknownHandle)
			}
		}},
		{row: 23, name: "offsets", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			h := bad.open("events", 0)
			next := n.latest("events")
			for i, offset := range []wire.Offset{next + 1, 1 << 63, math.MaxUint64} {
				bad.send(wire.OpLinkOpen, uint32(10+i), &wire.LinkOpenRequest{Handle: h, Offset: offset, Credit: 1000})
				keeps(bad, uint32(10+i), wire.CodeOutOfRange)
			}
			require.Empty(t, bad.hold, "nothing is streamed")
		}},
		{row: 24, name: "credit and counts", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			h := bad.open("events", 1)
			id := bad.link(h, 0, math.MaxUint32)
			bad.send(wire.OpLinkCredit, id, &wire.LinkCredit{Credit: math.MaxUint32})
			bad.send(wire.OpPing, 5, &wire.PingRequest{})
			bad.answer(5)
			credit := make(chan int64, 10)
			n.engine.eachSession(func(s *session) {
				for _, k := range s.links {
					credit <- k.credit
				}
			})
			require.EqualValues(t, 1<<20, <-credit)
			bad.link(h, 0, 0)
			for range 6 {
				bad.link(h, 0, 1)
			}
			bad.send(wire.OpLinkOpen, 6, &wire.LinkOpenRequest{Handle: h, Credit: 1})
			keeps(bad, 6, wire.CodeTooMany)
			bad.send(wire.OpMetadata, 7, &wire.MetadataRequest{Scope: wire.MetadataNamed, Names: make([]string, 1_000_000)})
			keeps(bad, 7, wire.CodeTooMany)
			bad.write(append(header(19, wire.OpMetadata, 0, wire.OpMetadata.Version(), 8), byte(wire.MetadataNamed), 0, 0, 0xff, 0xff, 0xff, 0xff))
			f := bad.answer(8)
			require.Contains(t, []wire.ErrorCode{wire.CodeTooMany, wire.CodeMalformed}, f.code())
		}},
		{row: 25, name: "request before authentication", test: func(t *testing.T) {
			// There is none yet; what must come first is HELLO.
			for _, op := range []wire.Opcode{wire.OpMetadata, wire.OpProduce, 99} {
				bad := dialRaw(t, n.Addr())
				bad.write([]byte(wire.Preface))
				bad.write(header(12, op, 0, 1, 1))
				fails(bad, wire.CodeMalformed)
			}
		}},
		{row: 26, name: "second authentication", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr()) // as above: a second HELLO
			bad.send(wire.OpHello, 2, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1})
			fails(bad, wire.CodeMalformed)
			bad = dialRaw(t, n.Addr())
			bad.write([]byte(wire.Preface))
			bad.send(wire.OpHello, 2, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1, ClusterID: "another"})
			fails(bad, wire.CodeClusterMismatch)
		}},
		{row: 27, name: "SCRAM", why: "no authentication mechanism exists yet"},
		{row: 28, name: "wrong passwords", why: "no authentication mechanism exists yet"},
		{row: 29, name: "correlation ID in flight", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			h := bad.open("events", 2)
			batch, _ := testBatch(t, "x")
			produce := frameOf(wire.OpProduce, 9, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
			ping := frameOf(wire.OpPing, 9, &wire.PingRequest{})
			// In one read: the owner has its turn after all three.
			bad.write(append(append(bytes.Clone(produce), produce...), ping...))
			require.Equal(t, wire.CodeDuplicate, bad.read().code())
			require.Equal(t, wire.CodeDuplicate, bad.read().code())
			require.Equal(t, wire.CodeOK, bad.read().code())
			bad.write(ping)
			require.Equal(t, wire.CodeOK, bad.read().code(), "answered, the ID is free")
		}},
		{row: 30, name: "100,000 requests without reading", test: func(t *testing.T) {
			// Of its own: a client that reads a hundred thousand answers may well be late with
			// its next frame by the deadline of the other rows.
			n := startBad(t, Limits{})
			c := &n.engine.counters
			pauses := c.pauses.Load()
			bad := dialOpen(t, n.Addr())
			const requests = 100_000
			request := frameOf(wire.OpMetadata, 1, &wire.MetadataRequest{Scope: wire.MetadataNamed, Names: []string{"events"}})
			go func() {
				var b []byte
				for i := range uint32(requests) {
					wire.PutHeader(request, wire.Header{Length: uint32(len(request) - 4), Opcode: wire.OpMetadata, Version: wire.OpMetadata.Version(), ID: i})
					b = append(b, request...)
				}
				_, _ = bad.conn.Write(b)
			}()
			eventually(t, "pause", func() bool { return c.pauses.Load() > pauses && c.paused.Load() == 1 })
			held := make(chan int, 1)
			n.engine.eachSession(func(s *session) {
				held <- s.rest.size() + s.sending.size() + s.out.pending.size()
			})
			require.Less(t, <-held, 3<<20)
			n.healthy()
			for i := range uint32(requests) {
				require.Equal(t, wire.CodeOK, bad.answer(i).code())
			}
		}},
		{row: 31, name: "never reads replies", test: func(t *testing.T) {
			n := startBad(t, Limits{WriteTimeout: time.Second, OutboxBytes: 64 << 10})
			bad := dialOpen(t, n.Addr())
			go func() {
				request := frameOf(wire.OpMetadata, 3, &wire.MetadataRequest{Scope: wire.MetadataAll})
				for {
					if _, err := bad.conn.Write(request); err != nil {
						return
					}
				}
			}()
			eventually(t, "pause", func() bool { return n.engine.counters.paused.Load() == 1 })
			n.healthy()
			eventually(t, "close", func() bool { return n.engine.counters.closed[closedWrite].Load() == 1 })
			require.Contains(t, n.log.String(), "reason=write-timeout")
		}},
		{row: 32, name: "half-close after a request", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			h := bad.open("events", 2)
			batch, _ := testBatch(t, "x")
			bad.send(wire.OpProduce, 9, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
			require.NoError(t, bad.conn.CloseWrite())
			require.Equal(t, wire.CodeOK, bad.answer(9).code())
			require.ErrorContains(t, bad.closed(), "EOF")
		}},
		{row: 33, name: "reset in the middle of a batch", test: func(t *testing.T) {
			before := n.latest("events")
			eventually(t, "no session", func() bool { return c.sessions.Load() == 0 })
			bad := dialOpen(t, n.Addr())
			batch, _ := testBatch(t, strings.Repeat("x", 100_000))
			frame := frameOf(wire.OpProduce, 9, &wire.ProduceRequest{Handle: bad.open("events", 0), Acks: wire.AcksQuorum, Batch: batch})
			bad.write(frame[:len(frame)-1])
			kept := make(chan int, 1)
			eventually(t, "the batch but for its last byte", func() bool {
				n.engine.eachSession(func(s *session) { kept <- s.rest.size() })
				return <-kept == len(frame)-1
			})
			require.NoError(t, bad.conn.SetLinger(0))
			require.NoError(t, bad.conn.Close())
			eventually(t, "no session", func() bool { return c.sessions.Load() == 0 })
			require.Equal(t, before, n.latest("events"))
			require.Zero(t, c.inFlight.Load())
		}},
		{row: 34, name: "idle connections", test: func(t *testing.T) {
			// Ten thousand of them are in TestAttackers.
			n := startBad(t, Limits{HandshakeTimeout: 300 * time.Millisecond})
			begin := time.Now()
			for range 50 {
				dialRaw(t, n.Addr())
			}
			half := dialRaw(t, n.Addr())
			half.write([]byte(wire.Preface))
			eventually(t, "close", func() bool { return n.engine.counters.closed[closedHandshake].Load() == 51 })
			require.InDelta(t, 0.3, time.Since(begin).Seconds(), 0.35)
			cut(half)
			n.healthy()
		}},
		{row: 35, name: "connections beyond the cap", test: func(t *testing.T) {
			n := startBad(t, Limits{Connections: 3})
			first := dialOpen(t, n.Addr())
			dialOpen(t, n.Addr())
			dialOpen(t, n.Addr())
			refused := dialRaw(t, n.Addr())
			refused.write([]byte(wire.Preface))
			refused.send(wire.OpHello, 1, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1})
			require.Contains(t, fails(refused, wire.CodeBusy).Detail, "(3)")
			require.EqualValues(t, 1, n.engine.counters.refusedTotal.Load())
			first.conn.Close()
			eventually(t, "room", func() bool { return n.engine.counters.sessions.Load() == 2 })
			dialOpen(t, n.Addr())

			n = startBad(t, Limits{ConnectionsPerAddress: 2})
			dialOpen(t, n.Addr())
			dialOpen(t, n.Addr())
			fails(dialRaw(t, n.Addr()), wire.CodeBusy)
			require.EqualValues(t, 1, n.engine.counters.refusedAddress.Load())
		}},
		{row: 36, name: "producers", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			h := bad.open("events", 3)
			identity := func(id uint32) wire.InitProducerResponse {
				bad.send(wire.OpInitProducer, id, &wire.InitProducerRequest{Name: "p"})
				var m wire.InitProducerResponse
				bad.ok(bad.answer(id), &m)
				return m
			}
			produce := func(id uint32, p wire.InitProducerResponse, sequence int32) rawFrame {
				batch, _ := testBatch(t, "x", "y")
				wire.SetProducer(batch, wire.ProducerIdentity{ID: p.ProducerID, Epoch: p.Epoch, Sequence: sequence})
				reseal(batch)
				bad.send(wire.OpProduce, id, &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
				return bad.answer(id)
			}
			old := identity(2)
			var first, again wire.Receipt
			bad.ok(produce(3, old, 0), &first)
			require.Equal(t, wire.CodeOutOfSequence, produce(4, old, 7).code())
			bad.ok(produce(5, old, 0), &again)
			require.True(t, again.Duplicate)
			require.Equal(t, first.BaseOffset, again.BaseOffset)
			bad.ok(produce(6, old, 2), &again)
			require.False(t, again.Duplicate)
			heir := identity(7)
			require.Equal(t, old.ProducerID, heir.ProducerID)
			require.Greater(t, heir.Epoch, old.Epoch)
			bad.ok(produce(8, heir, 0), &first)
			require.Equal(t, wire.CodeFenced, produce(9, old, 4).code())
			stranger := wire.InitProducerResponse{ProducerID: old.ProducerID + 1_000_000}
			require.Equal(t, wire.CodeUnknownProducer, produce(10, stranger, 5).code())
		}},
		{row: 37, name: "acks of others", why: "there are no groups yet, and with them no consumer acks"},
		{row: 38, name: "oversized groups", why: "there are no groups yet"},
		{row: 39, name: "timestamps", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			h := bad.open("events", 3)
			for i, ms := range []int64{253370764800000, math.MaxInt64, -1, math.MinInt64} {
				var b wire.BatchBuilder
				b.Reset(false)
				require.True(t, b.Append(ms, 0, nil, []byte("x"), nil, 0))
				batch, _ := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
				bad.send(wire.OpProduce, uint32(10+i), &wire.ProduceRequest{Handle: h, Acks: wire.AcksQuorum, Batch: batch})
				var receipt wire.Receipt
				bad.ok(bad.answer(uint32(10+i)), &receipt)
				require.InDelta(t, time.Now().UnixMilli(), receipt.AppendTimeMs, 60_000, "retention goes by the broker's time")
			}
		}},
		{row: 40, name: "client frames on the peer port", why: "a node without peers has no such port: TestRow40_OtherProtocolsOnThePeerPort"},
		{row: 41, name: "peer messages", why: "this node has no peers: TestRow41_NodesThatDoNotBelongHere"},
		{row: 42, name: "snapshot chunks", why: "this node has no peers: TestRow42_ChunksThatDoNotFit"},
		{row: 43, name: "delete without the committed UUID", test: func(t *testing.T) {
			bad := dialOpen(t, n.Addr())
			settings := wire.Settings{Partitions: 1, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited}
			create := func(id uint32) (info wire.DestinationInfo) {
				bad.send(wire.OpCreate, id, &wire.CreateRequest{Name: "precious", Kind: wire.Topic, Settings: settings})
				bad.ok(bad.answer(id), &info)
				return info
			}
			old := create(2)
			bad.send(wire.OpDelete, 3, &wire.DeleteRequest{Name: "precious", Kind: wire.Topic, ID: old.ID})
			require.Equal(t, wire.CodeOK, bad.answer(3).code())
			now := create(4)
			require.NotEqual(t, old.ID, now.ID)
			bad.send(wire.OpProduce, 5, &wire.ProduceRequest{Handle: bad.open("precious", 0), Acks: wire.AcksQuorum, Batch: section(t, wire.CodecNone, 1, []byte{0x0e, 0, 0, 0, 1, 2, 'x', 0})})
			require.Equal(t, wire.CodeOK, bad.answer(5).code())
			for i, id := range [][16]byte{{}, old.ID, {0xff}} {
				bad.send(wire.OpDelete, uint32(10+i), &wire.DeleteRequest{Name: "precious", Kind: wire.Topic, ID: id})
				keeps(bad, uint32(10+i), wire.CodeRefused)
			}
			require.EqualValues(t, 1, n.latest("precious"), "nothing was removed")
			bad.send(wire.OpDelete, 20, &wire.DeleteRequest{Name: "precious", Kind: wire.Topic, ID: now.ID})
			require.Equal(t, wire.CodeOK, bad.answer(20).code())
		}},
		{row: 44, name: "TLS", why: "there is no TLS listener yet"},
		{row: 45, name: "configuration file", why: "package cli reads it: TestMistakesInTheConfigFileNameLineAndKey"},
	}
	for i, row := range rows {
		require.Equal(t, i+1, row.row, "every row once, in order")
		require.NotEqual(t, row.test == nil, row.why == "", "row %d: a test or a reason", row.row)
		if row.test == nil {
			t.Logf("row %d (%s) does not apply: %s", row.row, row.name, row.why)
			continue
		}
		t.Run(fmt.Sprintf("%02d %s", row.row, row.name), func(t *testing.T) {
			row.test(t)
			n.healthy()
		})
	}
	require.Zero(t, n.engine.counters.panics.Load(), n.log.String())
}

// listTree lists a directory with everything below.
func listTree(t *testing.T, dir string) (names []string) {
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	}))
	return names
}

// Row 23, the other half: a leader that does not know its commit yet.
func TestAnEarlyPositionIsNotOutOfRange(t *testing.T) {
	n := startNode(t, Limits{})
	n.backend.create(wire.Topic, "events", 1)
	r := n.backend.replica("events", 0)
	r.fill(5, 10)
	r.set(func() { r.leading = false })
	c := dialOpen(t, n.address)
	h := c.open("events", 0)
	c.send(wire.OpLinkOpen, 5, &wire.LinkOpenRequest{Handle: h, Offset: 9, Credit: 10})
	keeps(c, 5, wire.CodeRetry)
	r.set(func() { r.leading = true })
	c.send(wire.OpLinkOpen, 6, &wire.LinkOpenRequest{Handle: h, Offset: 9, Credit: 10})
	keeps(c, 6, wire.CodeOutOfRange)
}

// The catalogue's log lines are limited for each kind: bad peers do not fill the disk
// with our own log. What was left out is counted, and said by the next line.
func TestLogLinesOfBadInputAreLimited(t *testing.T) {
	n := startNode(t, Limits{LogLines: 2})
	const attempts = 50
	for range attempts {
		bad := dialRaw(t, n.address)
		bad.write([]byte("GET / HTTP/1.1\r\n\r\n"))
		cut(bad)
	}
	eventually(t, "all of them", func() bool { return n.engine.counters.closed[closedBadPreface].Load() == attempts })
	lines := strings.Count(n.log.String(), "it looks like HTTP")
	require.EqualValues(t, attempts, uint64(lines)+n.engine.counters.logSuppressed.Load())
	require.Positive(t, n.engine.counters.logSuppressed.Load())
}

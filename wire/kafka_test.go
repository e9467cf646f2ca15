package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"go.uber.org/goleak"
)

// DESIGN §2: a batch is Kafka's record batch of magic 2, byte for byte. franz-go is
// the oracle, in both directions.

// sample is a record in the words of neither side.
type sample struct {
	timestampMs int64
	key, value  []byte
	headers     []RecordHeader
}

// samples are records with everything that the layout can hold.
func samples() []sample {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 70_000)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	list := []sample{
		{1_700_000_000_000, []byte("key"), []byte("value"), nil},
		{1_700_000_000_001, nil, []byte("no key"), nil},
		{1_699_999_999_000, []byte("earlier than the first, and no value"), nil, nil},
		{1_700_000_000_000, []byte{}, []byte{}, []RecordHeader{{"", nil}, {"empty", []byte{}}, {"trace", []byte("abc")}}},
		{math.MaxInt32 * 1_000, noise[:300], noise, []RecordHeader{{"large", noise[:20_000]}}},
		{0, []byte("1970"), noise[:127], nil},
	}
	for i := range 200 {
		list = append(list, sample{1_700_000_000_000 + int64(i), fmt.Appendf(nil, "key-%d", i), fmt.Appendf(nil, "a value that compresses, number %d", i), nil})
	}
	return list
}

func compressors(tb testing.TB) map[Codec]func(dst, src []byte) []byte {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, encoder.Close()) })
	return map[Codec]func(dst, src []byte) []byte{
		CodecNone: nil,
		CodecSnappy: func(dst, src []byte) []byte {
			return append(dst, s2.EncodeSnappy(nil, src)...)
		},
		CodecZstd: func(dst, src []byte) []byte { return encoder.EncodeAll(src, dst) },
	}
}

func decompress(tb testing.TB, codec Codec, section []byte) []byte {
	tb.Helper()
	switch codec {
	case CodecSnappy:
		if !IsXerial(section) {
			inflated, err := s2.Decode(nil, section)
			require.NoError(tb, err)
			return inflated
		}
		var inflated []byte
		for chunk, err := range XerialChunks(section) {
			require.NoError(tb, err)
			part, err := s2.Decode(nil, chunk)
			require.NoError(tb, err)
			inflated = append(inflated, part...)
		}
		return inflated
	case CodecZstd:
		decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(MaxUncompressedBytes), zstd.WithDecoderMaxWindow(MaxZstdWindowBytes))
		require.NoError(tb, err)
		defer decoder.Close()
		inflated, err := decoder.DecodeAll(section, nil)
		require.NoError(tb, err)
		return inflated
	}
	return section
}

// build encodes samples as one batch with its index.
func build(tb testing.TB, codec Codec, list []sample) (batch, index []byte) {
	tb.Helper()
	var b BatchBuilder
	b.Reset(true)
	for _, s := range list {
		require.True(tb, b.Append(s.timestampMs, 0, s.key, s.value, s.headers, 42))
	}
	return b.Finish(ProducerIdentity{ID: 77, Epoch: 3, Sequence: 1000}, 5, codec, compressors(tb)[codec])
}

// requireSamples reads a batch with our reader.
func requireSamples(tb testing.TB, want []sample, base Offset, batch []byte) {
	tb.Helper()
	info, err := VerifyBatch(batch)
	require.NoError(tb, err)
	require.Equal(tb, len(want), int(info.RecordCount))
	var r RecordReader
	r.Reset(&info, decompress(tb, info.Codec, Records(batch)))
	var rec Record
	for i, s := range want {
		require.True(tb, r.Next(&rec), "record %d: %v", i, r.Err())
		require.Equal(tb, base+Offset(i), rec.Offset)
		require.Equal(tb, s.timestampMs, rec.TimestampMs)
		require.Equal(tb, s.key, rec.Key)
		require.Equal(tb, s.value, rec.Value)
		require.Equal(tb, s.headers, rec.AppendHeaders(nil))
		require.Equal(tb, len(s.headers), rec.HeaderCount)
	}
	require.False(tb, r.Next(&rec))
	require.NoError(tb, r.Err())
}

func TestFranzReadsOurBatches(t *testing.T) {
	for _, codec := range []Codec{CodecNone, CodecSnappy, CodecZstd} {
		t.Run(codec.String(), func(t *testing.T) {
			list := samples()
			batch, index := build(t, codec, list)
			info, err := ValidateBatch(batch, index, BatchLimits{VerifyIndexChecksums: true, RequireIndex: true})
			require.NoError(t, err)
			require.Equal(t, codec, info.Codec)
			PatchBatch(batch, 5000, 12)

			t.Run("header, with kmsg", func(t *testing.T) {
				var kafka kmsg.RecordBatch
				require.NoError(t, kafka.ReadFrom(batch))
				require.Equal(t, int64(5000), kafka.FirstOffset)
				require.Equal(t, int32(len(batch)-12), kafka.Length)
				require.Equal(t, int32(12), kafka.PartitionLeaderEpoch)
				require.Equal(t, int8(2), kafka.Magic)
				require.Equal(t, int16(codec), kafka.Attributes)
				require.Equal(t, int32(len(list)-1), kafka.LastOffsetDelta)
				require.Equal(t, int64(1_700_000_000_000), kafka.FirstTimestamp)
				require.Equal(t, int64(math.MaxInt32*1_000), kafka.MaxTimestamp)
				require.Equal(t, int64(77), kafka.ProducerID)
				require.Equal(t, int16(3), kafka.ProducerEpoch)
				require.Equal(t, int32(1000), kafka.FirstSequence)
				require.Equal(t, int32(len(list)), kafka.NumRecords)
				require.Equal(t, kafka.AppendTo(nil), batch)
			})

			t.Run("records, with kgo", func(t *testing.T) {
				fetched, next := kgo.ProcessFetchPartition(
					kgo.ProcessFetchPartitionOpts{Topic: "t"},
					&kmsg.FetchResponseTopicPartition{HighWatermark: 9000, RecordBatches: batch},
					kgo.DefaultDecompressor(), nil)
				require.NoError(t, fetched.Err)
				require.Equal(t, int64(5000+len(list)), next)
				require.Len(t, fetched.Records, len(list))
				for i, r := range fetched.Records {
					require.Equal(t, int64(5000+i), r.Offset)
					require.Equal(t, int32(12), r.LeaderEpoch)
					require.Equal(t, int64(77), r.ProducerID)
					require.Equal(t, list[i].timestampMs, r.Timestamp.UnixMilli())
					require.Equal(t, list[i].key, r.Key)
					require.Equal(t, list[i].value, r.Value)
					require.Len(t, r.Headers, len(list[i].headers))
					for n, h := range r.Headers {
						require.Equal(t, list[i].headers[n], RecordHeader(h))
					}
				}
			})

			t.Run("record by record, with kmsg and the index", func(t *testing.T) {
				x, err := ParseRecordIndex(index)
				require.NoError(t, err)
				section := decompress(t, codec, Records(batch))
				for i := range x.Len() {
					e := x.Entry(i)
					encoding := section[:e.Length]
					section = section[e.Length:]
					require.Equal(t, e.CRC, Checksum(encoding))
					var kafka kmsg.Record
					require.NoError(t, kafka.ReadFrom(encoding))
					require.Equal(t, list[i].key, kafka.Key)
					require.Equal(t, list[i].value, kafka.Value)
					require.Equal(t, encoding, kafka.AppendTo(nil))
				}
				require.Empty(t, section)
			})

			requireSamples(t, list, 5000, batch)
		})
	}
}

func TestWeReadWhatKmsgWrites(t *testing.T) {
	list := samples()
	var section []byte
	for i, s := range list {
		delta := s.timestampMs - list[0].timestampMs
		r := kmsg.Record{TimestampDelta64: delta, TimestampDelta: int32(delta), OffsetDelta: int32(i), Key: s.key, Value: s.value}
		for _, h := range s.headers {
			r.Headers = append(r.Headers, kmsg.Header(h))
		}
		r.Length = int32(len(r.AppendTo(nil)) - 1) // the length 0 takes one byte
		section = r.AppendTo(section)
	}
	for codec, compress := range compressors(t) {
		t.Run(codec.String(), func(t *testing.T) {
			records := section
			if compress != nil {
				records = compress(nil, section)
			}
			kafka := kmsg.RecordBatch{
				FirstOffset: 31, PartitionLeaderEpoch: 2, Magic: 2, Attributes: int16(codec), LastOffsetDelta: int32(len(list) - 1),
				FirstTimestamp: list[0].timestampMs, MaxTimestamp: math.MaxInt32 * 1_000,
				ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(len(list)), Records: records,
			}
			kafka.Length = int32(len(kafka.AppendTo(nil)) - 12)
			kafka.CRC = int32(Checksum(kafka.AppendTo(nil)[21:]))
			batch := kafka.AppendTo(nil)
			info, err := ValidateBatch(batch, nil, BatchLimits{})
			require.NoError(t, err)
			require.Equal(t, BatchInfo{
				BaseOffset: 31, LeaderEpoch: 2, LastOffsetDelta: int32(len(list) - 1), RecordCount: uint32(len(list)),
				ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, Codec: codec,
				BaseTimestamp: list[0].timestampMs, MaxTimestamp: math.MaxInt32 * 1_000, Length: len(batch),
			}, info)
			requireSamples(t, list, 31, batch)

			// The same records give the same bytes.
			var b BatchBuilder
			for _, s := range list {
				require.True(t, b.Append(s.timestampMs, 0, s.key, s.value, s.headers, 0))
			}
			ours, index := b.Finish(ProducerIdentity{ID: NoProducerID}, 0, codec, compress)
			require.Empty(t, index)
			PatchBatch(ours, 31, 2)
			require.Equal(t, batch, ours)
		})
	}
}

// A kgo client produces to a broker of a few lines: the batches are what real
// Kafka clients put on the wire, compression included.
func TestWeReadWhatAKafkaClientProduces(t *testing.T) {
	for name, codec := range map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "snappy": kgo.SnappyCompression(), "zstd": kgo.ZstdCompression(),
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			broker := &kafkaBroker{}
			client, err := kgo.NewClient(
				kgo.SeedBrokers("broker:9092"), kgo.Dialer(broker.dial), kgo.MaxVersions(kversion.V2_3_0()),
				kgo.ProducerBatchCompression(codec), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.DefaultProduceTopic("t"),
				kgo.ProducerLinger(50*time.Millisecond), kgo.MaxProduceRequestsInflightPerBroker(1),
			)
			require.NoError(t, err)
			defer client.Close()

			list := samples()
			var records []*kgo.Record
			for _, s := range list {
				r := &kgo.Record{Timestamp: time.UnixMilli(s.timestampMs), Key: s.key, Value: s.value}
				for _, h := range s.headers {
					r.Headers = append(r.Headers, kgo.RecordHeader(h))
				}
				records = append(records, r)
			}
			require.NoError(t, client.ProduceSync(context.Background(), records...).FirstErr())

			require.NotEmpty(t, broker.batches)
			compressed := false
			sequence, offset := int32(0), 0
			for _, batch := range broker.batches {
				info, err := ValidateBatch(batch, nil, BatchLimits{})
				require.NoError(t, err)
				require.Equal(t, int64(kafkaProducerID), info.ProducerID)
				require.Equal(t, int16(0), info.ProducerEpoch)
				require.Equal(t, sequence, info.BaseSequence)
				compressed = compressed || info.Codec.String() == name
				PatchBatch(batch, Offset(offset), 1)
				next := offset + int(info.RecordCount)
				requireSamples(t, list[offset:next], Offset(offset), batch)
				sequence += int32(info.RecordCount)
				offset = next
			}
			require.Len(t, list, offset)
			require.True(t, compressed)
		})
	}
}

const kafkaProducerID = 4711

// kafkaBroker answers just enough of Kafka's protocol to be produced to. The
// client waits for each answer, so batches need no lock once it has returned.
type kafkaBroker struct {
	batches [][]byte
}

func (b *kafkaBroker) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		for b.serve(server) == nil {
		}
	}()
	return client, nil
}

func (b *kafkaBroker) serve(conn net.Conn) error {
	var length [4]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return err
	}
	frame := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(conn, frame); err != nil {
		return err
	}
	request := kmsg.RequestForKey(int16(binary.BigEndian.Uint16(frame)))
	request.SetVersion(int16(binary.BigEndian.Uint16(frame[2:])))
	clientIDLength := int(binary.BigEndian.Uint16(frame[8:]))
	if err := request.ReadFrom(frame[10+clientIDLength:]); err != nil {
		return err
	}
	response := request.ResponseKind()
	switch r := response.(type) {
	case *kmsg.ApiVersionsResponse:
		kversion.V2_3_0().EachMaxKeyVersion(func(key, version int16) {
			r.ApiKeys = append(r.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: key, MaxVersion: version})
		})
	case *kmsg.MetadataResponse:
		topic := "t"
		r.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 1, Host: "broker", Port: 9092}}
		r.ControllerID = 1
		r.Topics = []kmsg.MetadataResponseTopic{{Topic: &topic, Partitions: []kmsg.MetadataResponseTopicPartition{{Leader: 1, Replicas: []int32{1}, ISR: []int32{1}}}}}
	case *kmsg.InitProducerIDResponse:
		r.ProducerID = kafkaProducerID
	case *kmsg.ProduceResponse:
		topic := request.(*kmsg.ProduceRequest).Topics[0]
		b.batches = append(b.batches, append([]byte(nil), topic.Partitions[0].Records...))
		r.Topics = []kmsg.ProduceResponseTopic{{Topic: topic.Topic, Partitions: []kmsg.ProduceResponseTopicPartition{{Partition: 0}}}}
	default:
		return errors.New("unexpected request")
	}
	body := response.AppendTo(append([]byte(nil), frame[4:8]...))
	answer := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	_, err := conn.Write(answer)
	return err
}

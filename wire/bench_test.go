package wire

import (
	"bytes"
	"testing"
)

// batchOf builds an uncompressed batch of about size bytes from records of the
// given value size, and its record index.
func batchOf(tb testing.TB, size, valueSize int) (batch, index []byte) {
	tb.Helper()
	var b BatchBuilder
	b.Reset(true)
	value := bytes.Repeat([]byte("v"), valueSize)
	key := []byte("key-0001")
	for b.Count() == 0 || b.Size()+valueSize < size {
		if !b.Append(1_700_000_000_000+int64(b.Count()), 0, key, value, nil, 7) {
			tb.Fatal("record does not fit")
		}
	}
	return b.Finish(ProducerIdentity{ID: 1, Epoch: 2, Sequence: 3}, 0, CodecNone, nil)
}

var batchShapes = []struct {
	name      string
	valueSize int
}{
	{"records of 1 KiB", 1 << 10},
	{"records of 100 B", 100},
	{"records of 10 B", 10},
}

func BenchmarkValidateBatch(b *testing.B) {
	for _, shape := range batchShapes {
		batch, index := batchOf(b, 64<<10, shape.valueSize)
		run := func(name string, index []byte, limits BatchLimits) {
			b.Run(shape.name+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(batch)))
				b.ReportAllocs()
				var records int
				for b.Loop() {
					info, err := ValidateBatch(batch, index, limits)
					if err != nil {
						b.Fatal(err)
					}
					records += int(info.RecordCount)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(records), "ns/record")
			})
		}
		run("no index", nil, BatchLimits{})
		run("no index, lengths only", nil, BatchLimits{LengthsOnly: true})
		run("index", index, BatchLimits{})
		run("index and its checksums", index, BatchLimits{VerifyIndexChecksums: true})
		b.Run(shape.name+"/checksum alone", func(b *testing.B) {
			b.SetBytes(int64(len(batch)))
			for b.Loop() {
				if _, err := VerifyBatch(batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRecordReader(b *testing.B) {
	for _, shape := range batchShapes {
		batch, _ := batchOf(b, 64<<10, shape.valueSize)
		b.Run(shape.name, func(b *testing.B) {
			info, err := VerifyBatch(batch)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			var r RecordReader
			var rec Record
			records := 0
			for b.Loop() {
				r.Reset(&info, Records(batch))
				for r.Next(&rec) {
					records++
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(records), "ns/record")
		})
	}
}

func BenchmarkBatchBuilderAppend(b *testing.B) {
	for _, shape := range batchShapes {
		for _, indexed := range []bool{false, true} {
			name := shape.name
			if indexed {
				name += "/index"
			}
			b.Run(name, func(b *testing.B) {
				var builder BatchBuilder
				builder.Reset(indexed)
				key, value := []byte("key-0001"), bytes.Repeat([]byte("v"), shape.valueSize)
				b.SetBytes(int64(shape.valueSize))
				b.ReportAllocs()
				for b.Loop() {
					if builder.Size() > 64<<10 {
						builder.Finish(ProducerIdentity{ID: 1}, 0, CodecNone, nil)
						builder.Reset(indexed)
					}
					if !builder.Append(1_700_000_000_000, 0, key, value, nil, 7) {
						b.Fatal("record does not fit")
					}
				}
			})
		}
	}
}

func BenchmarkProduceRequest(b *testing.B) {
	batch, index := batchOf(b, 64<<10, 1<<10)
	m := ProduceRequest{Handle: 1, Acks: AcksQuorum, Index: index, Batch: batch}
	frame := AppendFrame(nil, Header{Opcode: OpProduce, Version: 1, ID: 1}, &m)
	b.ReportAllocs()
	for b.Loop() {
		h, err := ParseHeader(frame)
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Parse(frame[HeaderSize:h.TotalSize()]); err != nil {
			b.Fatal(err)
		}
	}
}

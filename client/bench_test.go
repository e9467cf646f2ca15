package client

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// BenchmarkNext decodes stored frames from memory: what is left of a reader when
// the network costs nothing. One operation is one record of 1 KiB.
func BenchmarkNext(b *testing.B) {
	for _, codec := range []Codec{NoCompression, Snappy, Zstd} {
		b.Run(codec.String(), func(b *testing.B) {
			log, records := benchmarkLog(codec, 160, 1000) // 10 MiB
			ctx := context.Background()
			b.SetBytes(1000)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; {
				b.StopTimer()
				r, st, s := offlineReader(wire.Offset(records))
				feed(b, st, s, bufio.NewReader(bytes.NewReader(log)), len(log))
				b.StartTimer()
				for range records {
					if _, err := r.Next(ctx); err != nil {
						b.Fatal(err)
					}
					if n++; n == b.N {
						break
					}
				}
			}
		})
	}
}

// BenchmarkReceive is the same with the copies from a read buffer into chunks, in
// the pieces that a socket gives.
func BenchmarkReceive(b *testing.B) {
	log, records := benchmarkLog(NoCompression, 160, 1000)
	ctx := context.Background()
	b.SetBytes(1000)
	b.ReportAllocs()
	for n := 0; n < b.N; {
		r, st, s := offlineReader(wire.Offset(records))
		in := bufio.NewReaderSize(bytes.NewReader(log), readBufferBytes)
		left := len(log)
		for range records {
			for !st.unread() && r.current == nil && left > 0 || len(r.region) == 0 && left > 0 && !st.unread() {
				piece := min(left, wire.MaxDeliverBytes)
				if err := st.receive(s, in, piece); err != nil {
					b.Fatal(err)
				}
				left -= piece
			}
			if _, err := r.Next(ctx); err != nil {
				b.Fatal(err)
			}
			if n++; n == b.N {
				break
			}
		}
	}
}

// BenchmarkStream reads records of 1 KiB over loopback TCP from a fake broker that
// copies every piece once more than a real one. It is for comparing values of
// creditBytes and ReadAhead.
func BenchmarkStream(b *testing.B) {
	broker := startBroker(b)
	d := broker.create("d", Topic, 1)
	p := d.partitions[0]
	p.log, p.next = nil, 0
	log, records := benchmarkLog(NoCompression, 1000, 1000)
	p.log, p.next = log, wire.Offset(records)
	p.frames = []fakeFrame{{base: 0, next: 64}}
	c := connect(b, broker)
	b.SetBytes(1000)
	b.ReportAllocs()
	before := cpuTime()
	for n := 0; n < b.N; {
		r := newTestReader(b, c, "d", StopAtEnd())
		for _, err := range r.Records(context.Background()) {
			if err != nil {
				b.Fatal(err)
			}
			if n++; n == b.N {
				break
			}
		}
		r.Close()
	}
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}

// BenchmarkSendFunc sends to a peer in the same process that only counts. The
// figure to look at is cpu-ns/op less what the peer takes: reading 64 KiB from the
// loopback costs it about 15 µs, 0.24 µs a record of 1 KiB, and the kernel's share
// of writing is as much again on this side.
func BenchmarkSendFunc(b *testing.B) {
	for _, size := range []int{100, 1000} {
		for _, codec := range []Codec{NoCompression, Snappy} {
			b.Run(fmt.Sprintf("%dB-%v", size, codec), func(b *testing.B) {
				broker := startBroker(b)
				broker.create("d", Topic, 1)
				c := connect(b, broker)
				newSink(broker)
				p := newTestProducer(b, c, "d", Compression(codec))
				ctx := context.Background()
				r := &Record{Value: bytes.Repeat([]byte("0123456789"), size/10)}
				done := func(_ Receipt, err error) {
					if err != nil {
						panic(err)
					}
				}
				require.NoError(b, p.SendFunc(ctx, r, done))
				require.NoError(b, p.Flush(ctx))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				before := cpuTime()
				for range b.N {
					if err := p.SendFunc(ctx, r, done); err != nil {
						b.Fatal(err)
					}
				}
				require.NoError(b, p.Flush(ctx))
				b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkSend is the round trip of one record at a time.
func BenchmarkSend(b *testing.B) {
	broker := startBroker(b)
	broker.create("d", Topic, 1)
	c := connect(b, broker)
	newSink(broker)
	p := newTestProducer(b, c, "d")
	ctx := context.Background()
	r := &Record{Value: make([]byte, 100)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Send(ctx, r); err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

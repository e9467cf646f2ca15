package client

import (
	"bufio"
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// BenchmarkConsumer is what a record of 1 KiB costs a Consumer from the frame that brings
// it to the answer to its ack, without the network: batches of 64, four of them at once.
func BenchmarkConsumer(b *testing.B) {
	const batch, batches = 64, 4
	for _, k := range []struct {
		name   string
		serial bool
	}{{"shared", false}, {"serial", true}} {
		b.Run(k.name, func(b *testing.B) {
			s := &session{wake: make(chan struct{}, 1), links: map[uint32]link{}, waiters: map[uint32]waiter{}}
			c := &Consumer{wake: make(chan struct{}, 1), signal: make(chan struct{}, 1), began: time.Now(), look: time.Now().Add(time.Hour)}
			at := newAttachment(c, 0, leadership{})
			at.session, at.attached, at.serial, at.scope = s, true, k.serial, wire.ScopeKey
			at.valid, at.ackWait = time.Now().Add(time.Hour), 2*time.Hour
			s.links[1] = at
			c.attachments = []*attachment{at}

			deliver := wire.GroupDeliver{Kind: wire.DeliverBatches}
			var builder wire.BatchBuilder
			for i := range uint64(batches) {
				builder.Reset(k.serial)
				for r := range uint64(batch) {
					builder.Append(0, 0, []byte("key"), make([]byte, 1000), nil, i*batch+r+1)
				}
				stored, index := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
				deliver.Bytes = wire.AppendBodyBatch(deliver.Bytes, index, stored)
				deliver.Grants = append(deliver.Grants, wire.Grant{Count: batch, Epoch: 1, Deliveries: 1})
			}
			frame := wire.AppendFrame(nil, wire.Header{Opcode: wire.OpGroupDeliver, ID: 1}, &deliver)
			var places [batches][]byte // of the batches in the frame
			rest := frame[len(frame)-len(deliver.Bytes):]
			for i := range places {
				body, after, err := wire.NextBodyBatch(rest)
				if err != nil {
					b.Fatal(err)
				}
				places[i], rest = body.Batch, after
			}
			ctx := context.Background()
			var out []byte
			source := bytes.NewReader(nil)
			in := bufio.NewReaderSize(source, readBufferBytes)

			b.ReportAllocs()
			b.ResetTimer()
			for base := wire.Offset(0); base < wire.Offset(b.N); base += batch * batches {
				for i := range places {
					deliver.Grants[i].Offset = base + wire.Offset(i*batch)
					wire.PatchBatch(places[i], deliver.Grants[i].Offset, 1)
				}
				deliver.AppendPrefix(frame[:wire.HeaderSize])
				source.Reset(frame)
				if err := s.readFrame(in); err != nil {
					b.Fatal(err)
				}
				for range batch * batches {
					d, err := c.Next(ctx)
					if err != nil {
						b.Fatal(err)
					}
					d.Ack()
				}
				out = at.appendOutcomes(out[:0], s)
				at.answered([]wire.OutcomeAnswer{{Offset: base, Count: batch * batches, Epoch: 1}})
				if at.held.Len() > 0 {
					b.Fatalf("%d records are still held", at.held.Len())
				}
			}
		})
	}
}

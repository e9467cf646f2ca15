package client

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/wire"
)

// sink answers PRODUCE without looking at the batch and without allocating, so
// that measurements of a producer measure the producer.
type sink struct {
	b       *fakeBroker
	records atomic.Int64
	batches atomic.Int64
}

// newSink takes over the broker's sessions from their first PRODUCE on.
func newSink(b *fakeBroker) *sink {
	s := &sink{b: b}
	b.setScript(func(q *fakeRequest) bool {
		if q.header.Opcode != wire.OpProduce {
			return false
		}
		s.count(q.produce.Batch)
		q.answerProduce(wire.Receipt{Handle: q.produce.Handle, Epoch: fakeTerm, Replicas: 1, Synced: true}, wire.CodeOK)
		q.conn.takeover = func() { s.serve(q.conn.net, q.conn.reader) }
		return true
	})
	return s
}

func (s *sink) count(batch []byte) {
	s.batches.Add(1)
	s.records.Add(int64(binary.BigEndian.Uint32(batch[57:])))
}

func (s *sink) serve(conn net.Conn, r *bufio.Reader) {
	out := make([]byte, 0, 64<<10)
	head := make([]byte, 128)
	receipt := wire.Receipt{Epoch: fakeTerm, Replicas: 1, Synced: true}
	offset := wire.Offset(1)
	for {
		if r.Buffered() < wire.HeaderSize && len(out) > 0 {
			if _, err := conn.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
		if _, err := io.ReadFull(r, head[:wire.HeaderSize]); err != nil {
			return
		}
		h, err := wire.ParseHeader(head)
		if err != nil {
			s.b.t.Errorf("client sent a bad header: %v", err)
			return
		}
		n := h.BodySize()
		answer := wire.Header{Opcode: h.Opcode, Flags: wire.FlagResponse, Version: 1, ID: h.ID}
		if h.Opcode == wire.OpProduce {
			// The prefix and the batch header; topics have no index between them.
			k := min(n, wire.ProducePrefixSize+wire.BatchHeaderSize)
			if _, err := io.ReadFull(r, head[:k]); err != nil {
				return
			}
			n -= k
			s.count(head[wire.ProducePrefixSize:])
			receipt.BaseOffset = offset
			offset += wire.Offset(binary.BigEndian.Uint32(head[wire.ProducePrefixSize+57:]))
			answer.Length = wire.FrameLength(wire.ReceiptSize)
			out = receipt.Append(wire.AppendHeader(out, answer))
		} else {
			answer.Length = wire.FrameLength(0)
			out = wire.AppendHeader(out, answer)
		}
		if _, err := r.Discard(n); err != nil {
			return
		}
	}
}

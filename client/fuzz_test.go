package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// FuzzStream gives a reader any bytes as the stream of a link, in DELIVERs that cut
// them anywhere. Where the cuts are makes no difference; offsets follow each other;
// memory is bounded by one frame, whatever the bytes announce.
func FuzzStream(f *testing.F) {
	for _, codec := range []Codec{NoCompression, Snappy, Zstd} {
		p := &fakePartition{destination: &fakeDestination{}, links: map[*fakeLink]struct{}{}}
		(&fakeBroker{fakeStore: newFakeStore()}).fill(p, codec, 2, 3)
		p.appendFrame(wire.KindControl, []byte("control"), 0)
		(&fakeBroker{fakeStore: newFakeStore()}).fill(p, codec, 1)
		f.Add([]byte{0}, p.log)
		f.Add([]byte{63, 0, 6, 200}, p.log)
	}
	f.Fuzz(func(t *testing.T, cuts, stream []byte) {
		for _, stream := range [][]byte{stream, resealedFrames(stream)} {
			whole, wholeErr := streamed(t, nil, stream)
			cut, cutErr := streamed(t, cuts, stream)
			require.Equal(t, whole, cut)
			require.Equal(t, wholeErr, cutErr)
		}
	})
}

// streamed receives a stream cut as cuts say, in bytes and in turns, and returns the
// values it gives and whether it ended in damage.
func streamed(t *testing.T, cuts, stream []byte) (values []string, damaged bool) {
	const end = wire.Offset(1) << 40 // never reached
	r, st, s := offlineReader(end)
	r.options.stopAtEnd = false
	in := bufio.NewReader(bytes.NewReader(stream))
	for turn, left := 0, len(stream); left > 0; turn++ {
		n := left
		if len(cuts) > 0 {
			n = min(left, 1+int(cuts[turn%len(cuts)]))
		}
		require.NoError(t, st.receive(s, in, n))
		left -= n
	}
	held := 0
	for _, c := range st.chunks {
		held += len(c.buf)
	}
	require.LessOrEqual(t, held, 2*len(stream)+chunkBytes+maxFrameBody+wire.FrameHeaderSize+8)

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	next, started := uint64(0), false
	for {
		rec, err := r.Next(ended)
		if err != nil {
			damaged = errors.Is(err, ErrCorrupt)
			require.True(t, damaged || errors.Is(err, context.Canceled), "%v", err)
			return values, damaged
		}
		require.True(t, !started || rec.Offset == next, "offset %d follows %d", rec.Offset, next)
		next, started = rec.Offset+1, true
		values = append(values, string(rec.Value))
	}
}

// resealedFrames corrects the checksums of the frames and batches that the bytes
// hold, as far as their lengths agree, so that fuzzing gets behind them.
func resealedFrames(stream []byte) []byte {
	b := bytes.Clone(stream)
	for rest := b; len(rest) >= wire.FrameHeaderSize; {
		length := int64(binary.LittleEndian.Uint32(rest[40:]))
		size := (wire.FrameHeaderSize + length + wire.FrameAlignment - 1) &^ (wire.FrameAlignment - 1)
		if size > int64(len(rest)) {
			return b
		}
		body := rest[wire.FrameHeaderSize:][:length]
		for left := body; len(left) > 0; {
			batch, next, err := wire.NextBodyBatch(left)
			if err != nil {
				break
			}
			const atCRC, checked = 17, 21
			if len(batch.Batch) > checked {
				binary.BigEndian.PutUint32(batch.Batch[atCRC:], wire.Checksum(batch.Batch[checked:]))
			}
			left = next
		}
		binary.LittleEndian.PutUint32(rest[44:], wire.Checksum(body))
		binary.LittleEndian.PutUint32(rest[52:], wire.Checksum(rest[:52]))
		rest = rest[size:]
	}
	return b
}

// FuzzAddresses: a list that is accepted names at least one broker, and the same
// ones when it is written again.
func FuzzAddresses(f *testing.F) {
	f.Add("lockstep://a:7400, [::1]:7401")
	f.Add("a")
	f.Fuzz(func(t *testing.T, list string) {
		addresses, err := parseAddresses(list)
		if err != nil {
			require.ErrorIs(t, err, ErrAddress)
			return
		}
		require.NotEmpty(t, addresses)
	})
}

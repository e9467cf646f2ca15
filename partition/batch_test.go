package partition

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// testBatch encodes a batch of count small records.
func testBatch(t testing.TB, producer int64, epoch int16, sequence int32, count int) []byte {
	t.Helper()
	var b wire.BatchBuilder
	b.Reset(false)
	for range count {
		require.True(t, b.Append(1000, 0, nil, []byte("value"), nil, 0))
	}
	batch, _ := b.Finish(wire.ProducerIdentity{ID: producer, Epoch: epoch, Sequence: sequence}, 0, wire.CodecNone, nil)
	return batch
}

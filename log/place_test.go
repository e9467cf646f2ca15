package log

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// The place of an entry's body is where Scan finds its first batch.
func TestThePlaceOfAnEntry(t *testing.T) {
	for _, segmentBytes := range []int64{1 << 20, 600} {
		r := scannedLog(t, vfs.NewSimulated(1), segmentBytes)
		for _, e := range []Entry{stored(2, 0, 2, 1, 3), stored(4, 6, 4), stored(5, 10, 100)} {
			var s Scanned
			base := map[wire.Index]wire.Offset{2: 0, 4: 6, 5: 10}[e.Index]
			require.NoError(t, r.log.Scan(base, 1, &s))
			at, ok := r.log.Place(e.Index, len(e.Data)-wire.EntryPrefixSize)
			require.True(t, ok)
			require.Equal(t, s.Batches[0].At, at, "entry %d", e.Index)
		}
		_, ok := r.log.Place(6, 10)
		require.False(t, ok)
		r.close(true)
	}
}

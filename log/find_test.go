package log

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func TestNextOfFindsTheRecordsOfAHash(t *testing.T) {
	r := scannedLog(t, vfs.NewSimulated(1), 600)
	all := func(hash uint64, publisher bool, after, below wire.Offset, skip ...wire.Offset) (found []wire.Offset) {
		for {
			o, ok, err := r.log.NextOf(hash, publisher, after, below, func(o wire.Offset) bool {
				for _, s := range skip {
					if s == o {
						return true
					}
				}
				return false
			})
			require.NoError(t, err)
			if !ok {
				return found
			}
			found = append(found, o)
			after = o
		}
	}
	// Batches at 0 (2 records), 2 (1, without an index), 3 (3), 6 (4), 10 (100), with the
	// keys 1, 2, ... each.
	none := ^wire.Offset(0)
	require.Equal(t, []wire.Offset{0, 3, 6, 10}, all(1, false, none, 110))
	require.Equal(t, []wire.Offset{4, 7, 11}, all(2, false, 1, 1000))
	require.Equal(t, []wire.Offset{7, 11}, all(2, false, 1, 1000, 4))
	require.Equal(t, []wire.Offset{4}, all(2, false, 1, 7))
	require.Equal(t, []wire.Offset{109}, all(100, false, 0, 1000))
	require.Empty(t, all(101, false, 0, 1000))
	require.Equal(t, []wire.Offset{3, 4, 5}, all(102, true, 0, 1000))
	require.Equal(t, []wire.Offset{5}, all(102, true, 4, 1000))
}

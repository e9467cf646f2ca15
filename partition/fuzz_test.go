package partition

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// FuzzState: a state that restores saves to the same bytes and is bounded; one that
// does not changes nothing, and only another version is too new.
func FuzzState(f *testing.F) {
	f.Add(NewState().Save(nil))
	s := NewState()
	s.start, s.next = 3, 20
	for i := range int32(4) {
		info := wire.BatchInfo{ProducerID: int64(i % 2), ProducerEpoch: 1, BaseSequence: 10 * i, RecordCount: 5}
		s.producers.append(&info, wire.Offset(5*i), int64(1000+i))
	}
	saved := s.Save(nil)
	f.Add(saved)
	f.Add(withGroups().Save(nil))
	f.Add(append([]byte{stateVersion + 1}, saved[1:]...))
	f.Fuzz(func(t *testing.T, src []byte) {
		s := NewState()
		if err := s.Restore(src[:len(src):len(src)]); err != nil {
			require.NotEqual(t, errors.Is(err, ErrState), errors.Is(err, log.ErrTooNew), "%v", err)
			require.Equal(t, len(src) > 0 && src[0] > stateVersion, errors.Is(err, log.ErrTooNew), "%v", err)
			require.Equal(t, NewState().Save(nil), s.Save(nil))
			return
		}
		require.LessOrEqual(t, s.producers.lru.Len(), MaxProducers)
		require.LessOrEqual(t, s.producers.letters.Len()+s.producers.ended.Len(), MaxLetterProducers)
		require.Len(t, s.producers.byID, s.producers.lru.Len()+s.producers.letters.Len()+s.producers.ended.Len())
		require.LessOrEqual(t, len(s.producers.retired), MaxRetired)
		saved := s.Save(nil)
		if src[0] >= versionGroupless {
			require.Len(t, saved, len(src))
		}
		again := NewState()
		require.NoError(t, again.Restore(saved))
		require.Equal(t, saved, again.Save(nil))
		// It goes on being a dedupe table.
		info := wire.BatchInfo{ProducerID: 1, BaseSequence: 7, RecordCount: 3}
		s.producers.append(&info, s.next, 0)
		offset, found := s.producers.byID[1].find(7, 3)
		require.True(t, found)
		require.Equal(t, s.next, offset)
	})
}

package replication

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// A leader whose log has no room yet for an entry does not apply those before it either. A
// quorum confirms meanwhile that it leads, which is not enough: what the read is about lies
// in the state only once it is applied.
func TestF14_AReadWaitsForWhatIsCommittedAndNotApplied(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.tick(3)

	l.frozen = true
	want := l.propose("b")
	for len(l.group.held) == 0 {
		data := make([]byte, wire.EntryPrefixSize+2000)
		wire.PutEntryPrefix(data, wire.KindControl, 0, 5000)
		_, err := l.group.Propose(data)
		require.NoError(t, err)
	}
	require.ErrorIs(t, l.group.Reconfigure(Membership{AddLearners: []uint64{4}}), ErrBusy, "nobody knows which index that would get")
	before := l.group.Applied()
	f.settle()
	require.GreaterOrEqual(t, l.group.node.BasicStatus().Commit, uint64(want))
	require.Equal(t, before, l.group.Applied())
	answered := wire.Index(0)
	l.group.ReadIndex(func(i wire.Index, err error) {
		require.NoError(t, err)
		require.LessOrEqual(t, i, l.group.Applied())
		answered = i
	})
	f.settle()
	require.Equal(t, before, l.group.Applied())
	require.NotZero(t, l.group.reads[0].index, "it is confirmed")
	require.Zero(t, answered)

	l.frozen = false
	f.settle()
	require.GreaterOrEqual(t, answered, want)
}

// A leader that is never given room does not answer at all: when it is deposed, the read ends
// with an error although a quorum had confirmed it.
func TestF14_AReadOfALeaderThatIsDeposedBeforeItAppliesFails(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.frozen = true
	l.propose("b")
	for len(l.group.held) == 0 {
		data := make([]byte, wire.EntryPrefixSize+2000)
		wire.PutEntryPrefix(data, wire.KindControl, 0, 5000)
		_, err := l.group.Propose(data)
		require.NoError(t, err)
	}
	f.settle()
	var failed error
	l.group.ReadIndex(func(i wire.Index, err error) {
		require.Zero(t, i)
		failed = err
	})
	f.settle()
	require.NotZero(t, l.group.reads[0].index, "it is confirmed")
	f.tick(2 * readTicks)
	require.Error(t, failed)
}

// A read of which nobody hears ends in time, though the others answer everything else and the
// leader stays one. Those that wait are bounded: one more is told at once.
func TestF14_AReadThatNobodyConfirmsEndsInTime(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.lose = func(e envelope) bool { return e.beat != nil && len(e.beat.Context) > 0 }
	ended := 0
	unconfirmed := func(_ wire.Index, err error) { require.ErrorIs(t, err, ErrUnconfirmed); ended++ }
	for range MaxReads {
		l.group.ReadIndex(unconfirmed)
	}
	f.settle()
	require.Zero(t, ended)
	l.group.ReadIndex(unconfirmed)
	require.Equal(t, 1, ended)
	for range readTicks + 1 {
		l.propose("b") // whose acknowledgements are heard
		f.settle()
		f.tick(1)
	}
	require.Equal(t, MaxReads+1, ended)
	require.Same(t, l, f.leader())
}

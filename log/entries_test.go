package log

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func TestEntriesAreReadAsTheyWereAppended(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 4096 }).open()
	r.term(1)
	var want []Entry
	for i := wire.Index(1); i <= 30; i++ {
		e := records(i, 1, 1, 300)
		if i%5 == 0 {
			e = noOp(i, 1)
		}
		r.append(e)
		want = append(want, summed(e))
	}
	r.sync()
	got, err := r.log.Entries(1, 1<<20)
	require.NoError(t, err)
	require.Empty(t, got, "nothing is readable yet")
	r.log.Publish(25)
	for _, test := range []struct {
		from  wire.Index
		bytes int
		n     int
	}{{1, 1 << 20, 25}, {1, 1, 1}, {3, 700, 3}, {25, 1 << 20, 1}, {24, 1 << 20, 2}, {26, 1 << 20, 0}} {
		got, err := r.log.Entries(test.from, test.bytes)
		require.NoError(t, err)
		if test.n == 0 {
			require.Empty(t, got)
			continue
		}
		require.Equal(t, want[test.from-1:test.from-1+wire.Index(test.n)], got, "from %d", test.from)
	}
}

func TestTheTailIsLoadedAgain(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), nil).open()
	r.term(1)
	r.append(records(1, 1, 1, 300), noOp(2, 1), records(3, 1, 2, 100))
	r.sync()
	r.log.Publish(1)
	r.close(true)
	r.open()
	loaded, err := r.log.LoadTail(2, 100)
	require.NoError(t, err)
	require.False(t, loaded, "they have more")
	require.Zero(t, r.log.TailBytes())
	loaded, err = r.log.LoadTail(2, 1<<20)
	require.NoError(t, err)
	require.True(t, loaded)
	got, ok := r.log.Tail(2, 4, 1<<20)
	require.True(t, ok)
	want := []Entry{summed(noOp(2, 1)), summed(records(3, 1, 2, 100))}
	want[0].Loaded, want[1].Loaded = true, true
	require.Equal(t, want, got)
	require.Equal(t, int64(wire.EntryPrefixSize+100), r.log.TailBytes())
	loaded, err = r.log.LoadTail(4, 1)
	require.NoError(t, err)
	require.True(t, loaded, "there is nothing behind the last")
	r.log.Release(3, func([]byte) { t.Fatal("nobody has lent this memory") })
}

func TestPinnedDataIsGivenBackWhenNobodyReadsIt(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), nil).open()
	r.term(1)
	entries := []Entry{records(1, 1, 1, 10), records(2, 1, 1, 20), records(3, 1, 1, 30)}
	var pin Pin
	entries[0].Pin = &pin
	r.append(entries...)
	r.sync()
	pin.Hold()
	var back []int
	recycle := func(b []byte) { back = append(back, len(b)-wire.EntryPrefixSize) }
	r.log.Release(2, recycle)
	require.Empty(t, back)
	pin.Free()
	r.log.Release(2, recycle)
	require.Equal(t, []int{10, 20}, back)
	r.append(records(3, 1, 1, 40)) // takes the third back
	r.log.Release(2, recycle)
	require.Equal(t, []int{10, 20, 30}, back)
}

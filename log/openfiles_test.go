package log

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// openWithOneFile opens a rig's log on a store that keeps one idle file and map.
func openWithOneFile(r *rig, store *Store) *rig {
	r.t.Helper()
	if store == nil {
		var err error
		store, err = OpenStore(StoreOptions{
			FS: r.fs, Dir: testDir, UUID: [16]byte{1}, BootID: r.boot, MinFreeBytes: -1, ReserveBytes: -1,
			OpenSegments: 1, MappedSegments: 1, Logger: quiet,
		})
		require.NoError(r.t, err)
	}
	r.store, r.jobs = store, &queue{}
	o := r.options
	o.Store, o.Executor = r.store, r.jobs
	var err error
	r.log, err = Open(o)
	require.NoError(r.t, err)
	return r
}

func TestLogsThatPrepareAtOnceDoNotCloseEachOthersFiles(t *testing.T) {
	fs := vfs.NewSimulated(1)
	a := newRig(t, fs, nil)
	b := newRig(t, fs, func(o *Options) { o.Dir += "-other"; o.PartitionID[0]++ })
	openWithOneFile(b, openWithOneFile(a, nil).store)
	for _, r := range []*rig{a, b} {
		r.term(1)
		r.append(records(1, 1, 1, 100))
		r.commit()
		require.NoError(t, r.log.Close(true))
	}
	require.NoError(t, a.store.Close())

	openWithOneFile(b, openWithOneFile(a, nil).store)
	for _, r := range []*rig{a, b} {
		require.ErrorIs(t, r.log.Reserve(100, true), ErrNotReady)
	}
	a.jobs.jobs[0].Run()
	b.jobs.jobs[0].Run()
	a.jobs.jobs[0].Done()
	b.jobs.jobs[0].Done()
	require.NoError(t, a.log.Reserve(100, true))
	require.NoError(t, b.log.Reserve(100, true))
}

func TestAViewThatPassesASegmentWarmsUp(t *testing.T) {
	r := newRig(t, vfs.NewSimulated(1), func(o *Options) { o.SegmentBytes = 4096 })
	openWithOneFile(r, nil)
	r.term(1)
	r.append(records(1, 1, 1, 1000))
	for i := wire.Index(2); i <= 5; i++ {
		r.append(control(i, 1, 600)) // to the end of the first segment
	}
	r.append(records(6, 1, 1, 1000))
	r.append(records(7, 1, 1, 1000))
	r.commit()
	r.checkpoint()
	require.Len(t, *r.log.segments.Load(), 2)
	r.close(true)

	openWithOneFile(r, nil)
	r.log.Publish(7)
	controls := Position{Segment: 1, Byte: segment.HeaderSize + wire.FrameSize(1000)}
	_, err := r.log.View(controls, 1000)
	require.ErrorIs(t, err, ErrCold)
	require.NoError(t, r.log.Populate(controls, 1000))
	v, err := r.log.View(controls, 1000)
	require.NoError(t, err)
	require.Equal(t, 1000, v.Bytes)
	v.Release()
}

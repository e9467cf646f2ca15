package log

import (
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// damagedLog is a log of eight entries, each in a segment of its own, of which 3 and 4
// are damaged, and the bodies of its frames before that.
func damagedLog(t *testing.T) (*rig, *vfs.Simulated, []FrameBody) {
	fs := vfs.NewSimulated(1)
	r := durableLog(t, fs, 400)
	entries, err := r.log.Entries(1, 1<<20)
	require.NoError(t, err)
	require.Len(t, entries, 8)
	var bodies []FrameBody
	for i := range entries {
		bodies = append(bodies, entries[i].FrameBody())
	}
	var at []int64
	var names []string
	for i := wire.Index(3); i <= 4; i++ {
		name, from, _ := r.frame(i)
		names, at = append(names, name), append(at, from)
	}
	r.kill()
	for i := range names {
		require.NoError(t, fs.Corrupt(names[i], at[i]+wire.FrameHeaderSize+7, 2))
	}
	r.open()
	r.log.Publish(8)
	_, err = r.readable(0)
	require.ErrorIs(t, err, ErrCorrupt)
	return r, fs, bodies
}

func TestRuleL8_DamagedBodiesAreRepaired(t *testing.T) {
	r, _, bodies := damagedLog(t)
	n, err := r.log.Repair([]FrameBody{{Index: 3, Body: bodies[3].Body}, {Index: 4, Body: bodies[3].Body[1:]}, {Index: 1, Body: []byte("x")}})
	require.NoError(t, err)
	require.Zero(t, n, "none of them is the body of a damaged frame")
	require.NotEmpty(t, r.log.Damage())

	n, err = r.log.Repair(bodies[2:3])
	require.NoError(t, err)
	require.Equal(t, 1, n)
	entries, err := r.readable(0)
	require.Equal(t, []wire.Index{1, 2, 3}, entries)
	require.ErrorIs(t, err, ErrCorrupt, "4 is damaged still")
	n, err = r.log.Repair(bodies)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Empty(t, r.log.Damage())
	entries, err = r.readable(0)
	require.NoError(t, err)
	require.Equal(t, []wire.Index{1, 2, 3, 4, 5, 6, 7, 8}, entries)

	// It stays so.
	r.kill()
	r.open()
	r.log.Publish(8)
	require.Empty(t, r.log.Damage())
	entries, err = r.readable(0)
	require.NoError(t, err)
	require.Len(t, entries, 8)
}

// foreignBody repairs a frame with a body that is as long as its own and another one. It
// reports whether the repair takes no notice of it.
func foreignBody(t *testing.T, mutant bool) (left bool) {
	r, _, bodies := damagedLog(t)
	r.log.anyBody = mutant
	foreign := bodies[2]
	foreign.Body = append([]byte(nil), foreign.Body...)
	foreign.Body[len(foreign.Body)-1] ^= 1
	n, err := r.log.Repair([]FrameBody{foreign})
	require.Zero(t, n)
	require.NotEmpty(t, r.log.Damage())
	return err == nil
}

func TestRuleL8_ARepairTakesTheFramesOwnBodyOnly(t *testing.T) {
	require.True(t, foreignBody(t, false))
}

// What is written is read once more: the mutant costs the replica, and no reader.
func TestRuleL8_Catches_ARepairThatChecksNothing(t *testing.T) {
	require.False(t, foreignBody(t, true))
}

// The segment that is appended to is found and repaired as the others, and the log goes
// on to be written.
func TestRuleL8_DamageInTheActiveSegmentIsFoundAndRepaired(t *testing.T) {
	fs := vfs.NewSimulated(1)
	r := durableLog(t, fs, 1<<20)
	require.Len(t, *r.log.segments.Load(), 1)
	entries, err := r.log.Entries(1, 1<<20)
	require.NoError(t, err)
	name, from, _ := r.frame(5)
	require.NoError(t, fs.Corrupt(name, from+wire.FrameHeaderSize+7, 2))
	for pass := r.log.NewScrub(); err == nil; {
		_, err = pass.Next(1 << 20)
	}
	require.ErrorIs(t, err, io.EOF)
	require.Len(t, r.log.Damage(), 1)
	r.append(records(9, 1, 1, 300))

	fail := errors.New("no")
	fs.Inject(func(o vfs.Op, _ string) error {
		if o == vfs.OpWrite {
			return fail
		}
		return nil
	})
	_, err = r.log.Repair([]FrameBody{entries[4].FrameBody()})
	require.ErrorIs(t, err, fail)
	require.ErrorIs(t, err, ErrRepair, "the owner's syncs may miss it")
	fs.Inject(nil)

	n, err := r.log.Repair([]FrameBody{entries[4].FrameBody()})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Empty(t, r.log.Damage())
	r.commit()
	r.append(records(10, 1, 1, 300))
	r.commit()
	r.kill()
	r.open()
	require.Len(t, r.replayed(1), 10)
	r.log.Publish(10)
	all, err := r.readable(0)
	require.NoError(t, err)
	require.Len(t, all, 10)
}

// A repair that is not on the disk is none: the frame stays on the list.
func TestRuleL8_ARepairThatFailsChangesNothing(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpWrite, vfs.OpSync} {
		r, fs, bodies := damagedLog(t)
		before := r.log.Damage()
		fail := errors.New("no")
		fs.Inject(func(o vfs.Op, name string) error {
			if o == op {
				return fail
			}
			return nil
		})
		n, err := r.log.Repair(bodies)
		require.ErrorIs(t, err, fail)
		require.Zero(t, n)
		require.Equal(t, before, r.log.Damage())
		fs.Inject(nil)
		_, err = r.readable(0)
		require.ErrorIs(t, err, ErrCorrupt)
	}
}

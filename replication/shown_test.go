package replication

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// A change of the configuration is proposed when the one before is applied. Of several that
// a restart finds and does not know to be committed, all but the newest are in force: or two
// could be elected in one term, by majorities of configurations that lie several changes
// apart.
func TestF18_ARestartGoesByTheChangesThatItsLogShowsToBeCommitted(t *testing.T) {
	f := newFleet(t)
	f.mode, f.founders = log.SyncOS, []uint64{1, 2, 3, 4, 5}
	for _, id := range f.founders {
		f.add(id)
	}
	l := f.lead(1)
	f.isolate(2) // it gets both changes at once
	for _, id := range []uint64{5, 4} {
		require.NoError(t, l.group.Reconfigure(Membership{Remove: []uint64{id}}))
		f.settle()
		f.tick(2)
	}
	require.Equal(t, []uint64{1, 2, 3}, l.group.Members().Voters)
	before := f.members[2].group.Applied()
	f.lose = func(e envelope) bool { // and does not hear that either is committed
		if e.to == 2 && e.message != nil {
			e.message.Commit = min(e.message.Commit, uint64(before))
		} else if e.to == 2 {
			e.beat.Commit = min(e.beat.Commit, before)
		}
		return false
	}
	f.heal()
	f.tick(10)
	require.Equal(t, before, f.members[2].group.Applied())
	f.lose = nil
	require.Equal(t, l.log.LastIndex(), f.members[2].log.LastIndex())
	for _, id := range f.founders[:3] {
		f.members[id].crash(false)
	}
	for _, id := range f.founders[:3] {
		m := f.members[id]
		m.open()
		members := m.group.Members()
		require.NotContains(t, slices.Concat(members.Voters, members.Outgoing), uint64(5), "replica %d goes by %+v", id, members)
	}
	f.members[4].crash(false)
	f.members[5].crash(false)
	l = f.elect()
	l.propose("after")
	f.settle()
	require.Equal(t, []uint64{1, 2, 3}, l.group.Members().Voters)
}

// readMeter counts the bytes that are read of the files of a machine.
type readMeter struct {
	vfs.FS
	bytes *int
}

type meteredFile struct {
	vfs.File
	bytes *int
}

func (m readMeter) Open(name string) (vfs.File, error) {
	file, err := m.FS.Open(name)
	return meteredFile{file, m.bytes}, err
}

func (m readMeter) OpenReadOnly(name string) (vfs.File, error) {
	file, err := m.FS.OpenReadOnly(name)
	return meteredFile{file, m.bytes}, err
}

func (f meteredFile) ReadAt(p []byte, off int64) (int, error) {
	*f.bytes += len(p)
	return f.File.ReadAt(p, off)
}

// In the modes os and interval a restart may find any amount that it does not know to be
// committed; the changes of the configuration in it are found by its headers.
func TestF18_LookingForChangesReadsNoLargeBodies(t *testing.T) {
	f := newFleet(t)
	f.mode, f.founders, f.segment = log.SyncOS, []uint64{1, 2, 3}, 8<<20
	m := f.add(1)
	m.config = func(c *Config) { c.Voters = []uint64{1} } // to write alone
	m.crash(false)
	m.open()
	m.group.Campaign()
	f.settle()
	const count, size = 50, 100_000
	for range count {
		for m.log.Reserve(wire.FrameSize(size), true) != nil {
			require.True(t, m.work(), "nothing makes room")
		}
		data := make([]byte, wire.EntryPrefixSize+size)
		wire.PutEntryPrefix(data, wire.KindRecords, 1, 5000)
		_, err := m.group.Propose(data)
		require.NoError(t, err)
		f.settle()
	}
	m.crash(false)
	var read int
	m.config, m.wrap = nil, func(files vfs.FS) vfs.FS { return readMeter{files, &read} }
	m.open()
	require.Equal(t, wire.Index(1+count), m.log.LastIndex())
	read = 0
	known, err := m.group.shown(0)
	require.NoError(t, err)
	require.Equal(t, m.group.Applied(), known, "nothing shows that any of the rest is committed")
	require.Less(t, read, count*size/10)
	require.Positive(t, read)
}

package log

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
)

// The process dies after a deleted log's directory is in quarantine and before its
// hard-state slot is free: the slot, and the journal files that hold frames of it,
// stay for ever, because the next start finds no directory any more.
func TestF4_ARemovalThatIsCutShortLetsGoOfSlotAndJournal(t *testing.T) {
	f := newFleet(t, vfs.NewSimulated(1), 3).open()
	f.round(1000)
	require.NoError(t, f.logs[2].Close(false))
	l := f.logs[2]
	f.logs = f.logs[:2]
	// Close has synced it; its frames are in the journal file all the same.
	f.round(1000)
	f.fs.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpWrite && name == testDir+"/hardstate" {
			return vfs.ErrCrashed
		}
		return nil
	})
	require.Error(t, f.store.Quarantine(testDir+"/partitions/p-2"))
	f.fs.Inject(nil)
	f.fs.CrashLoseAll()
	for range 3 {
		f.open()
		require.NoError(t, f.store.Quarantine(testDir+"/partitions/p-2")) // what the broker does about it
		require.NoError(t, f.store.PurgeQuarantine())
		f.fs.CrashLoseAll()
	}
	f.open()
	require.Nil(t, f.store.states.find(l.identity), "slot")
	require.Empty(t, f.journalFiles())
}

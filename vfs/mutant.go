package vfs

import (
	"sync/atomic"

	"github.com/lockstepmq/lockstep/internal/invariants"
)

// syncHook is what InterceptSyncs was given.
var syncHook atomic.Pointer[func() (skip bool)]

// InterceptSyncs has hook called before every sync of files and directories on the
// machine's disks, by whoever syncs. While it does not return the disk stalls; a sync
// that it skips counts as done and is not. It is for the tests that show syncs to be
// needed and stalls to be survived, and does nothing in release builds.
func InterceptSyncs(hook func() (skip bool)) { syncHook.Store(&hook) }

// skipped asks the hook about a sync.
func skipped() bool {
	if !invariants.Enabled {
		return false
	}
	hook := syncHook.Load()
	return hook != nil && (*hook)()
}

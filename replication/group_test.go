package replication

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// queueExecutor keeps jobs until the test runs them.
type queueExecutor struct{ jobs []log.Job }

func (q *queueExecutor) Submit(j log.Job) { q.jobs = append(q.jobs, j) }

// journal is a state machine that writes down what it is given.
type journal struct {
	entries []Entry
	applied []string
}

func (j *journal) Apply(e Entry) {
	e.Body = append([]byte(nil), e.Body...)
	j.entries = append(j.entries, e)
	j.applied = append(j.applied, string(e.Body))
}

func (j *journal) Snapshot() func(dst []byte) []byte {
	applied := slices.Clone(j.applied)
	return func(dst []byte) []byte { return fmt.Appendf(dst, "%q", applied) }
}

func (j *journal) Restore(state []byte) error {
	_, err := fmt.Sscanf(string(state), "%q", &j.applied)
	j.applied = []string{"restored " + string(state)}
	if len(state) == 0 {
		return err
	}
	return nil
}

type node struct {
	t     *testing.T
	files *vfs.Simulated
	exec  queueExecutor
	store *log.Store
	log   *log.Log
	group *Group
	state *journal
	mode  log.SyncMode
}

func newNode(t *testing.T, mode log.SyncMode) *node {
	n := &node{t: t, files: vfs.NewSimulated(1), mode: mode}
	n.open()
	return n
}

func (n *node) open() {
	n.t.Helper()
	var err error
	require.NoError(n.t, n.files.MkdirAll("data"))
	n.store, err = log.OpenStore(log.StoreOptions{FS: n.files, Dir: "data", BootID: "boot", MinFreeBytes: -1, ReserveBytes: -1})
	require.NoError(n.t, err)
	n.exec = queueExecutor{}
	n.log, err = log.Open(log.Options{
		Store: n.store, Dir: "data/partitions/p-0", PartitionID: [16]byte{1}, Incarnation: 1, ReplicaID: 7,
		Sync: n.mode, SegmentBytes: 1 << 20, Executor: &n.exec,
	})
	require.NoError(n.t, err)
	n.state = &journal{}
	n.group, err = Open(Config{ReplicaID: 7, Voters: []uint64{7}, Log: n.log, State: n.state})
	require.NoError(n.t, err)
}

// work runs jobs and turns until nothing is left to do.
func (n *node) work() {
	for len(n.exec.jobs) > 0 {
		j := n.exec.jobs[0]
		n.exec.jobs = n.exec.jobs[1:]
		j.Run()
		j.Done()
		n.group.Turn()
	}
}

func (n *node) lead() wire.Term {
	n.t.Helper()
	for n.reserve(wire.FrameHeaderSize) != nil {
		n.work()
	}
	n.group.Campaign()
	n.work()
	term, leading := n.group.Leading()
	require.True(n.t, leading)
	return term
}

func (n *node) reserve(bytes int64) error {
	err := n.log.Reserve(bytes, true)
	if err != nil {
		require.ErrorIs(n.t, err, log.ErrNotReady)
	}
	return err
}

func (n *node) propose(records uint32, body string) wire.Index {
	n.t.Helper()
	for n.reserve(wire.FrameSize(len(body))) != nil {
		n.work()
	}
	data := make([]byte, wire.EntryPrefixSize)
	wire.PutEntryPrefix(data, wire.KindRecords, records, 5000)
	index, err := n.group.Propose(append(data, body...))
	require.NoError(n.t, err)
	return index
}

func TestOneVoterCommitsOnlyWhatIsDurable(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	term := n.lead()
	require.Equal(t, wire.Term(1), term)
	index := n.propose(3, "abc")
	require.Equal(t, wire.Index(2), index, "the no-op of the term is entry 1")
	require.Equal(t, wire.Index(1), n.group.Applied(), "written is not durable")
	require.Equal(t, wire.Offset(0), n.log.Watermark().Next)
	n.work()
	require.Equal(t, index, n.group.Applied())
	require.Equal(t, wire.Offset(3), n.log.Watermark().Next)
	require.Equal(t, Entry{Index: 2, Term: 1, Kind: wire.KindRecords, RecordCount: 3, AppendTimeMs: 5000, Body: []byte("abc")},
		n.state.entries[len(n.state.entries)-1])
}

func TestEntriesWrittenDuringASyncShareTheNextOne(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	n.lead()
	n.propose(1, "a")
	require.Len(t, n.exec.jobs, 1)
	n.propose(1, "b")
	n.propose(1, "c")
	require.Len(t, n.exec.jobs, 1, "a sync is on its way")
	syncs := 0
	n.files.Inject(func(op vfs.Op, _ string) error {
		if op == vfs.OpSync {
			syncs++
		}
		return nil
	})
	n.work()
	require.Equal(t, []string{"", "a", "b", "c"}, n.state.applied)
	require.LessOrEqual(t, syncs, 2, "one for a, one for b and c")
}

func TestSyncModeOSCommitsAtOnce(t *testing.T) {
	n := newNode(t, log.SyncOS)
	n.lead()
	index := n.propose(2, "ab")
	require.Equal(t, index, n.group.Applied())
	require.Equal(t, wire.Offset(2), n.log.Watermark().Next)
}

func TestReleasedEntriesAreGivenBackOnce(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	n.lead()
	var released []string
	n.group.OnRelease(func(data []byte) { released = append(released, string(data[wire.EntryPrefixSize:])) })
	n.propose(1, "a")
	n.propose(1, "b")
	require.Empty(t, released)
	n.work()
	require.Equal(t, []string{"a", "b"}, released)
}

func TestARestartReplaysWhatTheOnlyVoterHolds(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	n.lead()
	n.propose(1, "a")
	n.propose(2, "bc")
	n.work()
	n.files.Crash()
	n.open()
	require.Equal(t, []string{"", "a", "bc"}, n.state.applied, "before any election")
	require.Equal(t, wire.Offset(3), n.log.Watermark().Next)
	require.Equal(t, wire.Term(2), n.lead())
	n.propose(1, "d")
	n.work()
	last := n.state.entries[len(n.state.entries)-1]
	require.Equal(t, wire.Offset(3), last.BaseOffset)
	require.Equal(t, wire.Term(2), last.Term)
}

func TestACheckpointShortensTheReplay(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	n.lead()
	n.propose(1, "a")
	n.propose(1, "b")
	n.work()
	n.group.Checkpoint()
	n.work()
	n.propose(1, "c")
	n.work()
	n.files.Crash()
	n.open()
	require.Equal(t, []string{`restored ["" "a" "b"]`, "c"}, n.state.applied)
	require.Equal(t, wire.Index(4), n.group.Applied())
}

func TestProposalsBeforeLeadershipAreRefused(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	_, err := n.group.Propose(make([]byte, wire.EntryPrefixSize))
	require.ErrorIs(t, err, ErrNotLeading)
}

func TestRuleL9_AStorageErrorFencesTheReplicaAndNothingIsAcknowledged(t *testing.T) {
	for _, op := range []vfs.Op{vfs.OpWrite, vfs.OpSync} {
		t.Run(fmt.Sprint(op), func(t *testing.T) {
			n := newNode(t, log.SyncQuorum)
			n.lead()
			n.propose(1, "a")
			n.work()
			applied := n.group.Applied()
			broken := errors.New("input/output error")
			n.files.Inject(func(o vfs.Op, _ string) error {
				if o == op {
					return broken
				}
				return nil
			})
			data := make([]byte, wire.EntryPrefixSize)
			wire.PutEntryPrefix(data, wire.KindRecords, 1, 5000)
			_, _ = n.group.Propose(append(data, 'b'))
			n.work()
			require.ErrorIs(t, n.group.Err(), broken)
			require.Equal(t, applied, n.group.Applied())
			n.files.Inject(nil)
			_, err := n.group.Propose(append(data, 'c'))
			require.Error(t, err, "the fence stays when the disk recovers")
			n.group.Turn()
			require.Equal(t, applied, n.group.Applied())
		})
	}
}

func TestAnElectionWaitsWhenTheLogHasClosedItsFileMeanwhile(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	n.lead()
	n.propose(1, "a")
	n.work()
	n.files.Crash()
	n.open()
	for n.reserve(wire.FrameHeaderSize) != nil {
		n.work()
	}
	n.group.Campaign() // the vote is being synced
	n.log.MarkIdle()   // and then the log closes its file
	n.work()
	require.NoError(t, n.group.Err())
	term, leading := n.group.Leading()
	require.True(t, leading)
	require.Equal(t, wire.Term(2), term)
	n.propose(1, "b")
	n.work()
	require.Equal(t, []string{"", "a", "", "b"}, n.state.applied)
}

func TestAProposalWithoutRoomIsWrittenWhenThereIsSome(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	n.lead()
	n.work()
	large := make([]byte, wire.EntryPrefixSize+200_000) // more than was allocated ahead
	wire.PutEntryPrefix(large, wire.KindControl, 0, 5000)
	index, err := n.group.Propose(large)
	require.NoError(t, err)
	require.Less(t, n.log.LastIndex(), index)
	_, err = n.group.Propose(large)
	require.ErrorIs(t, err, ErrProposalDropped, "nothing may overtake it")
	n.work()
	require.NoError(t, n.group.Err())
	require.Equal(t, index, n.group.Applied())
}

func TestACheckpointThatFailsForWantOfSpaceIsNotTriedInEveryTurn(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	n.group.checkpointBytes = 100
	n.lead()
	tries := 0
	n.files.Inject(func(op vfs.Op, name string) error {
		if op == vfs.OpCreate && strings.Contains(name, "checkpoint") {
			tries++
			return vfs.ErrNoSpace
		}
		return nil
	})
	n.propose(1, "a")
	n.work()
	before := tries
	require.NotZero(t, before)
	for range 10 {
		n.group.Turn()
		n.work()
	}
	require.Equal(t, before, tries)
	n.files.Inject(nil)
	n.propose(1, "b")
	n.work()
	require.False(t, n.log.CheckpointPending())
	require.Less(t, n.log.BytesSinceCheckpoint(), int64(100), "the next entry brings the next try")
}

func TestTheTermAfterTheLastIsRefused(t *testing.T) {
	n := newNode(t, log.SyncQuorum)
	n.log.SetHardState(log.HardState{Term: MaxTerm - 1}, true)
	n.group.Turn()
	require.NoError(t, n.log.Close(false))
	require.NoError(t, n.store.Close())

	n.open()
	require.Equal(t, MaxTerm, n.lead())
	n.propose(1, "last")
	n.work()
	require.NoError(t, n.log.Close(false))
	require.NoError(t, n.store.Close())

	n.open()
	require.Len(t, n.state.applied, 2, "what is there is still readable")
	for n.reserve(wire.FrameHeaderSize) != nil {
		n.work()
	}
	n.group.Campaign()
	n.work()
	require.ErrorIs(t, n.group.Err(), ErrTerm)
}

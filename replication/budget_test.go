package replication

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/wire"
)

// A follower that says nothing is sent no more than the budget of one follower, however
// much the others commit (RELIABILITY F22 and §5.2: a limit of messages alone is none of
// bytes).
func TestF22_AFollowerThatIsSilentIsSentNoMoreThanItsBudget(t *testing.T) {
	body := strings.Repeat("x", 256<<10)
	f := newFleet(t, 1, 2, 3)
	for _, m := range f.members {
		m.pool.size = wire.EntryPrefixSize + len(body)
	}
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.cut[[2]uint64{3, 1}] = true // it hears, and is not heard
	sent := 0
	f.lose = func(e envelope) bool {
		if e.to == 3 && e.message != nil && e.message.Type == raftpb.MsgApp {
			for _, entry := range e.message.Entries {
				sent += len(entry.Data)
			}
		}
		return false
	}
	const entries = MaxInflightBytes/(256<<10) + 16
	for range entries {
		l.propose(body)
		f.settle()
	}
	require.Len(t, l.applied(), 1+entries, "two of three are enough")
	require.GreaterOrEqual(t, sent, MaxInflightBytes)
	require.LessOrEqual(t, sent, MaxInflightBytes+MaxMessageBytes)
	f.lose = nil
	f.heal()
	f.tick(5)
	f.equal()
}

// Small entries come to the limit of messages before that of bytes.
func TestF22_AFollowerThatIsSilentIsSentSoManyMessagesAndNotMore(t *testing.T) {
	f := newFleet(t, 1, 2, 3)
	l := f.lead(1)
	l.propose("a")
	f.settle()
	f.cut[[2]uint64{3, 1}] = true
	sent := 0
	f.lose = func(e envelope) bool {
		if e.to == 3 && e.message != nil && len(e.message.Entries) > 0 {
			sent++
		}
		return false
	}
	for range 2 * MaxInflightMessages {
		l.propose("b")
		f.settle()
	}
	require.Equal(t, MaxInflightMessages, sent)
	f.heal()
	f.tick(5)
	f.equal()
}

// A leader that has lost its quorum takes no more than the budget of what is not committed,
// until it notices (RELIABILITY F22: etcd#10167). The budget is there again when the others are.
func TestF22_ALeaderWithoutAQuorumTakesNoMoreThanItsBudget(t *testing.T) {
	const size = 768 << 10
	f := newFleet(t, 1, 2, 3)
	for _, m := range f.members {
		m.pool.size = wire.EntryPrefixSize + size
	}
	l := f.lead(1)
	f.isolate(1)
	taken := 0
	for range 2 * MaxUncommittedBytes / size {
		for range 100 {
			if l.log.Reserve(wire.FrameSize(size), true) == nil {
				break
			}
			l.work()
		}
		data := l.pool.Get(wire.EntryPrefixSize + size)
		wire.PutEntryPrefix(data, wire.KindRecords, 1, 5000)
		if _, err := l.group.Propose(data); err != nil {
			require.ErrorIs(t, err, ErrProposalDropped)
			l.pool.Put(data)
			break
		}
		taken++
	}
	require.Positive(t, taken)
	require.LessOrEqual(t, taken, MaxUncommittedBytes/size)
	_, leads := l.group.Leading()
	require.True(t, leads)
	f.heal()
	f.tick(3)
	require.Len(t, l.applied(), taken)
	l.propose("after")
	f.settle()
	f.tick(3)
	f.equal()
}

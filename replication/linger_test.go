package replication

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/lockstepmq/lockstep/vfs"
)

// aLaggingFleet is three replicas of which 3 is down and lacks so many records of 3,500 bytes. What is read for
// it is paced or not, and its syncs are counted.
func aLaggingFleet(t *testing.T, records int, paced bool) (f *fleet, l, m *member, syncs *int) {
	f = newFleet(t)
	f.founders, f.segment, f.paced, syncs = []uint64{1, 2, 3}, 64<<20, paced, new(int)
	for _, id := range f.founders {
		m = &member{f: f, id: id, files: vfs.NewSimulated(id)}
		if id == 3 {
			m.wrap = func(fs vfs.FS) vfs.FS { return &liar{fs, func() bool { *syncs++; return false }} }
		}
		f.members[id] = m
		m.open()
	}
	l = f.lead(1)
	m.crash(false)
	for i := range records {
		l.propose(fmt.Sprintf("%04d %03500d", i, i))
		if i%50 == 0 {
			f.settle()
		}
	}
	f.settle()
	*syncs = 0
	return f, l, m, syncs
}

// until goes on, one message after the other, until something is so.
func (f *fleet) until(l *member, so func() bool) {
	f.t.Helper()
	for range 10_000 {
		if so() {
			return
		}
		if len(f.wires) == 0 {
			l.group.Tick(1)
		} else {
			f.deliver()
		}
		for _, id := range f.ids() {
			f.members[id].work()
		}
	}
	f.t.Fatal("it does not come to this")
}

// lagged lets the follower of aLaggingFleet catch up and counts its syncs.
func lagged(t *testing.T, paced bool) (syncs int) {
	f, l, m, n := aLaggingFleet(t, 2000, paced)
	m.open()
	for range 60 {
		f.tick(1)
		if m.group.Applied() == l.group.Applied() {
			break
		}
	}
	syncs = *n
	require.Equal(t, l.applied(), m.applied())
	t.Logf("%d syncs for 7 MB, paced %v", syncs, paced)
	return syncs
}

// Nobody waits for the promises of a follower that lags: while producers keep the disk of
// its leader busy it syncs 4 MiB at a time, and is sent more without having answered.
func TestF21_AFollowerThatLagsSyncsSeldom(t *testing.T) {
	at, seldom := lagged(t, false), lagged(t, true)
	require.GreaterOrEqual(t, at, 13, "a message of 512 KiB at a time")
	require.LessOrEqual(t, seldom, 6, "4 MiB at a time, what is opened, and the last piece")
}

// What was received and not synced yet is promised to nobody: a power cut may take it.
func TestF21_WhatLingersIsNotPromised(t *testing.T) {
	f, l, m, _ := aLaggingFleet(t, 600, true)
	m.open()
	before := m.log.LastIndex()
	f.until(l, func() bool { return m.group.linger.on() && m.group.linger.bytes > 1<<19 })
	written := m.log.LastIndex()
	require.Greater(t, written, before)
	m.crash(true)
	m.open()
	require.Less(t, m.log.LastIndex(), written, "or nothing was at stake")
	f.tick(30)
	require.NoError(t, m.group.Err())
	require.Equal(t, l.applied(), m.applied())
}

// If nothing follows what lingers, it is synced within a few ticks.
func TestF21_WhatLingersIsSyncedInTime(t *testing.T) {
	f, l, m, _ := aLaggingFleet(t, 600, true)
	m.open()
	f.until(l, m.group.linger.on)
	written := m.log.LastIndex()
	require.Less(t, m.log.DurableIndex(), written)
	f.isolate(3)
	for range lingerTicks {
		m.group.Tick(1)
		m.work()
	}
	require.GreaterOrEqual(t, m.log.DurableIndex(), written)
}

// A leader reads what comes next when it has sent what was read, not when it is answered.
func TestF21_ALeaderReadsAheadForAFollowerThatLags(t *testing.T) {
	f, l, m, _ := aLaggingFleet(t, 600, true)
	m.open()
	f.until(l, func() (streams bool) {
		l.group.node.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
			streams = streams || id == 3 && pr.State == tracker.StateReplicate
		})
		return streams
	})
	f.lose = func(e envelope) bool { return e.from == 3 }
	first := m.log.LastIndex()
	f.settle()
	require.Greater(t, m.log.LastIndex(), first+3*FeedBytes/3600, "more reads without an answer")
	require.Equal(t, 2, l.group.Holders(m.log.LastIndex()))
}

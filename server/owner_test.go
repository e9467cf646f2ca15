package server

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

type countedJob struct {
	run  func()
	done func()
}

func (j *countedJob) Run()  { j.run() }
func (j *countedJob) Done() { j.done() }

// Rule P1: whoever takes turns, one holds the right at a time, and no request for
// a turn is lost.
func TestRuleP1_TurnsNeverOverlapAndNoneIsLost(t *testing.T) {
	turns := newTurnPool()
	jobs := newBlockingPool(4)
	var inside atomic.Int32
	var taken, finished int // owner only
	var wanted atomic.Int64
	o := &owner{turns: turns, disk: newLine(jobs)}
	seen := make(chan struct{}, 1)
	o.turn = func() bool {
		if inside.Add(1) != 1 {
			panic("two turns at once")
		}
		o.finishJobs()
		taken++
		if wanted.Load() == 0 && finished == 400 {
			select {
			case seen <- struct{}{}:
			default:
			}
		}
		inside.Add(-1)
		return false
	}
	wanted.Store(1)
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for i := range 1000 {
				switch i % 10 {
				case 0:
					o.Submit(&countedJob{run: func() {}, done: func() { finished++ }})
				case 5:
					o.runInline()
				default:
					o.schedule()
				}
			}
		})
	}
	callers.Wait()
	wanted.Store(0)
	o.schedule()
	<-seen
	require.False(t, o.busy())
	jobs.wait()
	turns.close()
	require.Equal(t, uint32(ownerIdle), o.state.Load())
	require.Greater(t, taken, 1)
}

// A log submits jobs while it is being opened; the turn must wait for the rest of
// the partition.
func TestNoTurnSeesAPartitionThatIsBeingBuilt(t *testing.T) {
	turns := newTurnPool()
	jobs := newBlockingPool(1)
	built := false
	done := make(chan bool, 1)
	o := &owner{turns: turns, disk: newLine(jobs)}
	o.turn = func() bool {
		o.finishJobs()
		done <- built
		return false
	}
	o.hold()
	o.Submit(&countedJob{run: func() {}, done: func() {}})
	jobs.wait() // the job has run and has asked for its turn
	require.Empty(t, done)
	built = true
	o.release(false)
	require.True(t, <-done)
	turns.close()
	require.False(t, o.busy())
}

func TestATurnThatAsksForMoreIsQueuedBehindOthers(t *testing.T) {
	turns := newTurnPool()
	left := 100
	done := make(chan struct{})
	o := &owner{turns: turns}
	o.turn = func() bool {
		left--
		if left == 0 {
			close(done)
		}
		return left > 0
	}
	o.runInline()
	<-done
	turns.close()
	require.Zero(t, left)
}

func TestBlockingPoolKeepsItsLimitAndEndsIdle(t *testing.T) {
	p := newBlockingPool(3)
	var running, most atomic.Int32
	release := make(chan struct{})
	var started sync.WaitGroup
	started.Add(3)
	var once [10]sync.Once
	var n atomic.Int32
	for range 10 {
		newLine(p).submit(func() {
			now := running.Add(1)
			for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
			}
			if i := n.Add(1); i <= 3 {
				once[i].Do(started.Done)
			}
			<-release
			running.Add(-1)
		})
	}
	started.Wait()
	require.Equal(t, int32(3), running.Load())
	close(release)
	p.wait()
	require.Equal(t, int32(3), most.Load())
	require.Equal(t, int32(10), n.Load())
}

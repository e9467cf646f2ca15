package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Deed is what was done to a process, and when.
type Deed struct {
	Seconds float64 `json:"seconds"` // since the run began
	PID     int     `json:"pid"`
	Did     string  `json:"did"`
}

// maxVictims bounds the processes of one run.
const maxVictims = 64

// victim is a process that something will be done to at a moment of the run, between
// its beginning (0) and its end (1). started tells it from another process that has
// got its number since.
type victim struct {
	pid     int
	kill    bool
	at      float64
	lasts   time.Duration // of a pause
	started uint64
}

// victims draws the moments, and refuses processes that are not to be touched.
func victims(random *rand.Rand, kill, pause []int, longest time.Duration) ([]victim, error) {
	if len(kill)+len(pause) > maxVictims {
		return nil, optionError("%d processes are named; at most %d", len(kill)+len(pause), maxVictims)
	}
	var list []victim
	for i, pid := range slices.Concat(kill, pause) {
		v := victim{pid: pid, kill: i < len(kill), at: 0.1 + 0.7*random.Float64()}
		switch {
		case pid <= 1:
			return nil, optionError("process %d: 1 is the system's first process, and what is below are groups; name single processes", pid)
		case pid == os.Getpid():
			return nil, optionError("process %d is this check itself; name others", pid)
		case pid == os.Getppid():
			return nil, optionError("process %d has started this check, which would end with it; name others", pid)
		case v.kill && slices.Contains(kill[:i], pid), v.kill && slices.Contains(pause, pid):
			return nil, optionError("process %d is named twice, and can be killed once; name it once", pid)
		}
		if err := syscall.Kill(pid, 0); err != nil {
			return nil, optionError("process %d: %v; name processes of this machine that you may signal", pid, err)
		}
		var err error
		if v.started, err = startOf(pid); err != nil {
			return nil, optionError("process %d: %v", pid, err)
		}
		if !v.kill {
			v.lasts = time.Duration(random.Int64N(int64(longest)) + 1)
		}
		list = append(list, v)
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].at < list[j].at })
	return list, nil
}

// startOf is when a process was started, in clock ticks since the machine was
// (proc_pid_stat(5), field 22).
func startOf(pid int) (uint64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	text := string(content)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // the name may hold anything
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// deedInterval is how exactly moments are met.
const deedInterval = 5 * time.Millisecond

// deeds does to processes what was drawn, and remembers it.
type deeds struct {
	began time.Time
	say   func(string)

	mu     sync.Mutex
	list   []Deed
	paused sync.WaitGroup
}

// run waits for each moment, until ctx ends. progress says how far the run is.
func (d *deeds) run(ctx context.Context, list []victim, progress func() float64) {
	defer d.paused.Wait()
	ticks := time.NewTicker(deedInterval)
	defer ticks.Stop()
	for _, v := range list {
		for progress() < v.at {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
			}
		}
		if v.kill {
			d.do(v, syscall.SIGKILL, "killed (SIGKILL)")
			continue
		}
		if d.do(v, syscall.SIGSTOP, "paused (SIGSTOP)") {
			d.paused.Go(func() {
				select { // it goes on in any case
				case <-ctx.Done():
				case <-time.After(v.lasts):
				}
				d.do(v, syscall.SIGCONT, fmt.Sprintf("went on (SIGCONT) after %v", v.lasts.Round(time.Millisecond)))
			})
		}
	}
}

// do signals a process if it is still the one that was named.
func (d *deeds) do(v victim, signal syscall.Signal, did string) bool {
	started, err := startOf(v.pid)
	if err == nil && started != v.started {
		err = errors.New("the process that was named has ended, and this is another")
	}
	if err == nil {
		err = syscall.Kill(v.pid, signal)
	}
	if err != nil {
		did = fmt.Sprintf("not touched (%v): %v", signal, err)
	}
	done := Deed{Seconds: time.Since(d.began).Seconds(), PID: v.pid, Did: did}
	d.mu.Lock()
	d.list = append(d.list, done)
	d.mu.Unlock()
	d.say(fmt.Sprintf("%.1f s: process %d %s", done.Seconds, done.PID, did))
	return err == nil
}

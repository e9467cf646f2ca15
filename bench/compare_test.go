package bench

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/bench/floor"
	"github.com/lockstepmq/lockstep/lockstest"
)

// startInProcess starts subjects inside the test; bench itself starts processes.
func startInProcess(t *testing.T) Starter {
	return func(ctx context.Context, l Launch) (*Running, error) {
		if l.Subject == Lockstep {
			broker := lockstest.Start(t)
			return &Running{Target: Target{Servers: broker.Addr()}, Stop: func() error { return nil }}, nil
		}
		serving, stop := context.WithCancel(context.WithoutCancel(ctx))
		ready, ended := make(chan string, 1), make(chan error, 1)
		go func() {
			if l.Replay {
				ended <- floor.ServeReplay(serving, "127.0.0.1:0", l.Dir, func(a string) { ready <- a })
				return
			}
			o := floor.Options{Listen: "127.0.0.1:0", Sync: l.Sync && l.Subject == FloorLog}
			if l.Subject == FloorLog {
				o.Log = l.Dir + "/log"
			}
			ended <- floor.Serve(serving, o, func(a string) { ready <- a })
		}()
		select {
		case address := <-ready:
			return &Running{Target: Target{Servers: address}, Stop: func() error { stop(); return <-ended }}, nil
		case err := <-ended:
			stop()
			return nil, err
		}
	}
}

func TestEveryWorkloadRunsBesideItsReference(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: runs every workload")
	}
	for _, w := range Workloads {
		t.Run(w.Name, func(t *testing.T) {
			c, err := Compare(t.Context(), w, CompareOptions{
				Subjects: []string{"lockstep", w.Reference}, Rounds: 1, Scale: 0.001, Dir: t.TempDir(), Start: startInProcess(t),
			})
			require.NoError(t, err)
			require.Equal(t, w.Name, c.Workload)
			require.Equal(t, w.Goal, c.Goal)
			require.Len(t, c.Subjects, 2)
			for _, s := range c.Subjects {
				require.Positive(t, s.RecordsPerS, "%+v", s)
			}
			require.Positive(t, *c.Ratio)
		})
	}
}

func TestAFloorCountsEveryRecord(t *testing.T) {
	w, err := FindWorkload("w2")
	require.NoError(t, err)
	w.records, w.size = 10_001, 100
	dir := t.TempDir()
	start := startInProcess(t)
	running, err := start(t.Context(), w.launch(FloorLog, dir))
	require.NoError(t, err)
	r, err := w.run(t.Context(), w.launch(FloorLog, dir), running.Target, nil)
	require.NoError(t, err)
	require.NoError(t, running.Stop())
	require.Equal(t, int64(10_001), r.Records)
	info, err := os.Stat(dir + "/log")
	require.NoError(t, err)
	require.Equal(t, int64(10_001*104), info.Size(), "every record is in the log")
}

func TestWhatCannotBeComparedIsRefused(t *testing.T) {
	w1, err := FindWorkload("W1")
	require.NoError(t, err)
	w3, err := FindWorkload("W3")
	require.NoError(t, err)
	o := CompareOptions{Rounds: 1, Scale: 1}
	for _, test := range []struct {
		name     string
		workload Workload
		change   func(*CompareOptions)
		message  string
	}{
		{"no rounds", w1, func(o *CompareOptions) { o.Rounds = 0 }, "rounds 0"},
		{"a scale of nothing", w1, func(o *CompareOptions) { o.Scale = 0 }, "scale 0"},
		{"an unknown reference", w1, func(o *CompareOptions) { o.Subjects = []string{"kafka"} }, `"kafka"`},
		{"a latency beside a rate", w1, func(o *CompareOptions) { o.Subjects = []string{"W4"} }, "different things"},
		{"a replay beside a log", w3, func(o *CompareOptions) { o.Subjects = []string{"floor-log"} }, "compare it with floor"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := o
			test.change(&o)
			_, err := Compare(t.Context(), test.workload, o)
			require.ErrorIs(t, err, ErrOption)
			require.ErrorContains(t, err, test.message)
		})
	}
	_, err = FindWorkload("W99")
	require.ErrorContains(t, err, "W1s, W2")
}

func TestTheMedianOfAnEvenNumberLiesBetween(t *testing.T) {
	require.Equal(t, 2.0, median([]float64{3, 1, 2}))
	require.Equal(t, 2.5, median([]float64{4, 1, 3, 2}))
	one, three := 1.0, 3.0
	s := summary("lockstep", []*Result{
		{RecordsPerS: 10, ServerCPUPerRecordUs: &one}, {RecordsPerS: 30, ServerCPUPerRecordUs: &three}, {RecordsPerS: 20},
	})
	require.Equal(t, 20.0, s.RecordsPerS)
	require.Equal(t, 2.0, *s.ServerCPUPerRecordUs)
	require.Nil(t, s.ServerMallocs)
}

package bench

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/bench/floor"
	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
)

// startInProcess starts subjects inside the test; bench itself starts processes.
func startInProcess(t *testing.T) Starter {
	return func(ctx context.Context, l Launch) (*Running, error) {
		if l.Subject == Lockstep && l.Nodes > 1 {
			var targets []Target
			cluster := lockstest.StartCluster(t, l.Nodes)
			for i := range l.Nodes {
				broker := cluster.Broker(i + 1)
				pid := os.Getpid()
				nothing := func(context.Context) (float64, error) { return 0, nil }
				targets = append(targets, Target{Servers: broker.Addr(), ServerCPU: CPUOfProcess(pid), ServerMallocs: nothing,
					ServerAnonymous: AnonymousOfProcess(pid), ServerResident: ResidentOfProcess(pid)})
			}
			return &Running{Target: Together(targets), Stop: func() error { return nil }}, nil
		}
		if l.Subject == Lockstep {
			broker := lockstest.Start(t)
			pid := os.Getpid()
			return &Running{
				Target: Target{Servers: broker.Addr(), ServerCPU: CPUOfProcess(pid), ServerResident: ResidentOfProcess(pid)},
				Stop:   func() error { return nil },
				Restart: func(_ context.Context, kill bool) (time.Time, error) { // no process to kill: both are clean
					started := time.Now()
					broker.Restart()
					return started, nil
				},
			}, nil
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
		if w.Reference == "" {
			continue
		}
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

func TestAWorkloadWithoutAReferenceFindsItsFigures(t *testing.T) {
	for name, want := range map[string][]Figure{
		"restart":         {{Name: "clean_start", Unit: "s"}, {Name: "killed_start", Unit: "s"}},
		"idle-partitions": {{Name: "resident", Unit: "bytes"}, {Name: "cpu_at_rest", Unit: "ms/s"}},
		"idle-clients":    {{Name: "resident_growth", Unit: "bytes"}, {Name: "cpu_at_rest", Unit: "ms/s"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := FindWorkload(name)
			require.NoError(t, err)
			c, err := Compare(t.Context(), w, CompareOptions{
				Subjects: []string{"lockstep"}, Rounds: 1, Scale: 0.0001, Dir: t.TempDir(), Start: startInProcess(t),
			})
			require.NoError(t, err)
			require.Equal(t, name, c.Workload)
			require.Empty(t, c.Subjects)
			for i := range c.Figures {
				if name != "idle-clients" { // what two clients need is lost in what else moves
					require.Positive(t, c.Figures[i].Value, "%+v", c.Figures[i])
				}
				c.Figures[i].Value = 0
			}
			require.Equal(t, want, c.Figures, "goals are for scale 1")
		})
	}
}

// withMeters starts a broker whose CPU time and memory read as given.
func withMeters(t *testing.T, cpu, resident []float64) Starter {
	next := func(values *[]float64) float64 {
		v := (*values)[0]
		*values = (*values)[1:]
		return v
	}
	return func(ctx context.Context, l Launch) (*Running, error) {
		running, err := startInProcess(t)(ctx, l)
		if err == nil {
			running.ServerCPU = func(context.Context) (float64, error) { return next(&cpu), nil }
			running.ServerResident = func() (int64, error) { return int64(next(&resident)), nil }
		}
		return running, err
	}
}

func TestFiguresAreMediansBesideTheirGoals(t *testing.T) {
	w := Workload{Name: "idle-clients", kind: idleClientsWorkload, clients: 1}
	c, err := Compare(t.Context(), w, CompareOptions{
		Subjects: []string{"lockstep"}, Rounds: 3, Scale: 1,
		Start: withMeters(t, make([]float64, 12), []float64{10, 40, 20, 30, 0, 20}), // before and after, three times
	})
	require.NoError(t, err)
	require.Equal(t, []Figure{
		{Name: "resident_growth", Unit: "bytes", Value: 20, Goal: 50 << 20}, // of 30, 10 and 20
		{Name: "cpu_at_rest", Unit: "ms/s"},
	}, c.Figures)
}

func TestScaleMultipliesWhatAFigureIsTakenOf(t *testing.T) {
	scaled := func(name string) Workload {
		w, err := FindWorkload(name)
		require.NoError(t, err)
		return w.scaled(0.01)
	}
	restart := scaled("restart")
	require.Equal(t, int64(104_857), restart.records) // 10 GiB / 100 of 1 KiB
	require.Equal(t, uint32(100), restart.partitions)
	require.Equal(t, uint32(10), scaled("idle-partitions").partitions)
	require.Equal(t, 10, scaled("idle-clients").clients)
}

func TestARestartThatLosesRecordsIsAnError(t *testing.T) {
	running, err := startInProcess(t)(t.Context(), Launch{Subject: Lockstep})
	require.NoError(t, err)
	err = running.with(t.Context(), func(conn *client.Conn) error {
		_, err := conn.CreateDestination(t.Context(), client.Destination{Name: "held", Kind: client.Topic})
		return err
	})
	require.NoError(t, err)
	require.NoError(t, running.awaitPartitions(t.Context(), "held", 0))
	require.EqualError(t, running.awaitPartitions(t.Context(), "held", 1), "held has 0 records after the restart, of 1 that were acknowledged")
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
	restart, err := FindWorkload("restart")
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
		{"a rate beside a restart", w1, func(o *CompareOptions) { o.Subjects = []string{"restart"} }, "different things"},
		{"a restart beside a floor", restart, func(o *CompareOptions) { o.Subjects = []string{"lockstep", "floor"} }, "compare it with nothing"},
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

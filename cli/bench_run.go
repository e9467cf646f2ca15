package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/bench"
	"github.com/lockstepmq/lockstep/bench/floor"
)

// compareFlags are those of bench run and bench floor.
type compareFlags struct {
	app    *app
	output *choiceFlag
	rounds int
	scale  float64
	dir    string
}

func (a *app) newCompareFlags(c *cobra.Command, rounds int) *compareFlags {
	f := &compareFlags{app: a}
	flags := c.Flags()
	f.output = outputFlag(c)
	flags.IntVar(&f.rounds, "rounds", rounds, "`number` of times everything is measured, in turns; medians are printed")
	flags.Float64Var(&f.scale, "scale", 1, "multiply counts and durations by a `factor`")
	flags.StringVar(&f.dir, "dir", "", "`directory` on the disk to measure; without it the system's temporary directory")
	return f
}

func (a *app) benchRunCommand() *cobra.Command {
	var about strings.Builder
	for _, w := range bench.Workloads {
		beside := w.Reference
		if beside == "" {
			beside = "goals"
		}
		fmt.Fprintf(&about, "\n  %-15s %s; beside %s", w.Name, w.About, beside)
	}
	c := &cobra.Command{
		Use:   "run WORKLOAD...|all",
		Short: "Measure named workloads beside what the machine allows",
		Long: `Measure named workloads beside what the machine allows. Broker and reference are
measured in turns, each started anew on a directory of its own, and medians are
printed. The floor answers from memory; the floor-log also checks and stores, and
syncs where the workload does: see bench floor. The workloads without a reference
find figures that have goals, which are shown at --scale 1. At that scale restart
fills 10 GiB of disk in every round.

Workloads:` + about.String(),
		Example: `  lockstep bench run W7 --scale 0.01 --rounds 1
  lockstep bench run W1 W2 --vs floor-log --scale 0.01 --rounds 1 -o json`,
		ValidArgs: workloadNames(),
	}
	f := a.newCompareFlags(c, 5)
	vs := c.Flags().String("vs", "", "`reference`: floor, floor-log, another workload, or none; without it the workload's own")
	c.RunE = func(c *cobra.Command, args []string) error {
		return f.run(c, args, func(w bench.Workload) []string {
			reference := *vs
			if reference == "" {
				reference = w.Reference
			}
			if reference == "" || reference == "none" {
				return []string{string(bench.Lockstep)}
			}
			return []string{string(bench.Lockstep), reference}
		})
	}
	return c
}

func (a *app) benchFloorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "floor [WORKLOAD...]",
		Short: "Measure what no broker can go below on this machine",
		Long: `Measure what no broker can go below on this machine, with the load of the named
workloads, or of all that have a floor. The floor is an event loop that
acknowledges and fans out from memory; the floor-log also computes the checksum of
every record and writes what arrived together with one write, with one fdatasync
for all that waits where the workload is synced. A replay is a mapped file written
to TCP.`,
		Example: `  lockstep bench floor W7 --scale 0.01 --rounds 1
  lockstep bench floor W1 W3 --scale 0.01 --rounds 1 -o json`,
		ValidArgs: workloadNames(),
	}
	f := a.newCompareFlags(c, 3)
	var serve floorFlags
	serve.add(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if serve.kind != "" {
			return a.serveFloor(c.Context(), serve)
		}
		if len(args) == 0 {
			for _, w := range bench.Workloads {
				if strings.HasPrefix(w.Reference, string(bench.Floor)) {
					args = append(args, w.Name)
				}
			}
		}
		return f.run(c, args, func(w bench.Workload) []string {
			if w.Name == "W3" {
				return []string{string(bench.Floor)}
			}
			return []string{string(bench.FloorLog), string(bench.Floor)}
		})
	}
	return c
}

func workloadNames() []string {
	var names []string
	for _, w := range bench.Workloads {
		names = append(names, w.Name)
	}
	return names
}

// run measures the named workloads one after another and prints them together.
func (f *compareFlags) run(c *cobra.Command, names []string, subjects func(bench.Workload) []string) error {
	if c.Flags().Changed("server") {
		return usagef(c, "%s measures brokers of its own: --server has no place beside it", c.CommandPath())
	}
	if len(names) == 0 {
		return usagef(c, "name a workload, or all: %s", strings.Join(workloadNames(), ", "))
	}
	a := f.app
	var workloads []bench.Workload
	if len(names) == 1 && names[0] == "all" {
		names = workloadNames()
	}
	for _, name := range names {
		w, err := bench.FindWorkload(name)
		if err != nil {
			return usagef(c, "%v", err)
		}
		if err := w.Check(f.options(subjects(w))); err != nil {
			return usagef(c, "%v", err)
		}
		workloads = append(workloads, w)
	}
	if f.dir != "" {
		if info, err := os.Stat(f.dir); err != nil || !info.IsDir() {
			return usagef(c, "--dir %s is no directory; make it first", f.dir)
		}
	}
	found := make([]*bench.Comparison, 0, len(workloads))
	for _, w := range workloads {
		fmt.Fprintf(a.stderr, "%s: %s\n", w.Name, w.About)
		r, err := bench.Compare(c.Context(), w, f.options(subjects(w)))
		if err != nil {
			return interruptedOr(c.Context(), &failure{doing: "bench", err: err})
		}
		found = append(found, r)
	}
	if f.output.value == "json" {
		return a.printJSON(found)
	}
	return a.printComparisons(found)
}

// options are those of the flags for what stands beside each other.
func (f *compareFlags) options(subjects []string) bench.CompareOptions {
	return bench.CompareOptions{Subjects: subjects, Rounds: f.rounds, Scale: f.scale, Dir: f.dir, Start: f.app.startSubject}
}

// startSubject starts what a workload is run against, as a child process.
func (a *app) startSubject(ctx context.Context, l bench.Launch) (*bench.Running, error) {
	var child *embedded
	var err error
	switch l.Subject {
	case bench.Lockstep:
		if l.Nodes > 1 {
			return a.startCluster(ctx, l)
		}
		child, err = a.startEmbedded(ctx, l.Dir)
	default:
		child, err = a.startChild(ctx, string(l.Subject), l.Dir, func(data string) []string {
			args := []string{"bench", "floor", "--serve", "loop"}
			switch {
			case l.Replay:
				args = []string{"bench", "floor", "--serve", "replay", "--serve-dir", data}
			case l.Subject == bench.FloorLog:
				args = append(args, "--serve-dir", data)
				if l.Sync {
					args = append(args, "--serve-sync")
				}
			}
			return args
		})
	}
	if err != nil {
		return nil, err
	}
	running := &bench.Running{Target: child.target(), Stop: child.stop}
	running.Restart = func(ctx context.Context, kill bool) (time.Time, error) {
		started, err := a.restart(ctx, child, kill)
		running.Target = child.target()
		return started, err
	}
	return running, nil
}

// floorFlags make this process a floor. They are hidden: bench starts it so.
type floorFlags struct {
	kind string // loop or replay
	dir  string // empty: a loop without a log
	sync bool
}

func (f *floorFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.kind, "serve", "", "be a floor: loop or replay")
	flags.StringVar(&f.dir, "serve-dir", "", "where the floor stores")
	flags.BoolVar(&f.sync, "serve-sync", false, "sync before answering")
	for _, name := range []string{"serve", "serve-dir", "serve-sync"} {
		flags.Lookup(name).Hidden = true
	}
}

// serveFloor runs a floor until stdin ends.
func (a *app) serveFloor(ctx context.Context, f floorFlags) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, a.stdin)
		cancel()
	}()
	ready := func(address string) { fmt.Fprintf(a.stderr, "lockstep: ready on %s, a floor for bench\n", address) }
	if f.kind == "replay" {
		return floor.ServeReplay(ctx, "127.0.0.1:0", f.dir, ready)
	}
	o := floor.Options{Listen: "127.0.0.1:0", Sync: f.sync}
	if f.dir != "" {
		o.Log = filepath.Join(f.dir, "log")
	}
	return floor.Serve(ctx, o, ready)
}

// printComparisons writes comparisons for people.
func (a *app) printComparisons(all []*bench.Comparison) error {
	var rows, figures [][]string
	for _, c := range all {
		for i, f := range c.Figures {
			name, goal := c.Workload, ""
			if i > 0 {
				name = ""
			}
			if f.Goal > 0 {
				goal = "at most " + figureText(f.Unit, f.Goal)
			}
			figures = append(figures, []string{name, f.Name, figureText(f.Unit, f.Value), goal})
		}
		for i, s := range c.Subjects {
			name := c.Workload
			if i > 0 {
				name = ""
			}
			ratio := ""
			if i == 0 && c.Ratio != nil {
				ratio = fmt.Sprintf("%.2f", *c.Ratio)
				if c.Goal > 0 {
					bound := "≥"
					if w, err := bench.FindWorkload(c.Workload); err == nil && w.OpenLoop() {
						bound = "≤"
					}
					ratio += fmt.Sprintf(" (goal %s %.2f)", bound, c.Goal)
				}
			}
			rows = append(rows, []string{
				name, s.Subject, formatCount(int64(s.RecordsPerS + 0.5)), fmt.Sprintf("%.0f", s.MBPerS),
				latencyOrDash(s.P50Us), latencyOrDash(s.P99Us),
				number(s.ServerCPUPerRecordUs, 1), fmt.Sprintf("%.2f", s.ClientCPUPerRecordUs),
				number(s.ServerMallocs, 1), number(s.ServerAnonymousBytes, 1<<20), ratio,
			})
		}
	}
	if len(rows) > 0 {
		err := a.printTable([]string{
			"workload", "subject", "records/s", "MB/s", "p50", "p99", "server us/rec", "client us/rec", "allocs/rec", "anon MiB", "ratio",
		}, rows)
		if err != nil || len(figures) == 0 {
			return err
		}
		fmt.Fprintln(a.stdout)
	}
	return a.printTable([]string{"workload", "figure", "value", "goal"}, figures)
}

// figureText is a figure for people.
func figureText(unit string, v float64) string {
	switch unit {
	case bench.UnitBytes:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case bench.UnitSeconds:
		return fmt.Sprintf("%.3f s", v)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

func latencyOrDash(us *float64) string {
	if us == nil {
		return "-"
	}
	return microseconds(*us)
}

// number is a figure in a unit, or a dash where it is not known.
func number(v *float64, unit float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *v/unit)
}

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// CompareOptions say how a workload is measured beside its reference.
type CompareOptions struct {
	// Subjects are what the workload is run against, in turns. At most one of them
	// may be the name of another workload, which is then run against a broker.
	Subjects []string
	Rounds   int     // 1 to maxRounds
	Scale    float64 // of record counts and durations; 1 = as docs/performance.md has it
	Dir      string  // below which subjects keep their data; empty: the system's temporary directory
	Start    Starter
	Progress Progress
}

// maxRounds bounds how often everything is measured.
const maxRounds = 100

// Comparison is what was found for one workload.
type Comparison struct {
	Workload string    `json:"workload"`
	About    string    `json:"about"`
	Rounds   int       `json:"rounds"`
	Subjects []Summary `json:"subjects,omitempty"`
	// Figures are medians, of a workload without a reference, and then all there is.
	Figures []Figure `json:"figures,omitempty"`
	// Ratio is the median over the rounds of the first subject's figure divided by
	// the last one's: of records per second, in an open loop of median latencies.
	Ratio *float64 `json:"ratio,omitempty"`
	Goal  float64  `json:"goal,omitempty"` // what Ratio is meant to be, see Workload
}

// Summary holds the median of every figure over the rounds.
type Summary struct {
	Subject              string   `json:"subject"`
	RecordsPerS          float64  `json:"records_per_s"`
	MBPerS               float64  `json:"mb_per_s"`
	P50Us                *float64 `json:"p50_us,omitempty"` // absent where latencies were not taken
	P99Us                *float64 `json:"p99_us,omitempty"`
	P999Us               *float64 `json:"p999_us,omitempty"`
	ServerCPUPerRecordUs *float64 `json:"server_cpu_per_record_us"`
	ClientCPUPerRecordUs float64  `json:"client_cpu_per_record_us"`
	ServerMallocs        *float64 `json:"server_mallocs_per_record,omitempty"`
	ClientMallocs        float64  `json:"client_mallocs_per_record"`
	ServerAnonymousBytes *float64 `json:"server_anonymous_bytes,omitempty"`
}

// Check returns an ErrOption if Compare would refuse the options. It measures
// nothing: who has several workloads to compare asks before the first.
func (w Workload) Check(o CompareOptions) error {
	if o.Rounds < 1 || o.Rounds > maxRounds {
		return optionError("rounds %d: 1 to %d", o.Rounds, maxRounds)
	}
	if !(o.Scale > 0) || o.Scale > 100 {
		return optionError("scale %v: above 0, at most 100", o.Scale)
	}
	if w.Reference == "" {
		if !slices.Equal(o.Subjects, []string{string(Lockstep)}) {
			return optionError("%s stands beside its goals; compare it with nothing", w.Name)
		}
		return nil
	}
	for _, name := range o.Subjects {
		if _, _, err := w.against(name); err != nil {
			return err
		}
	}
	return nil
}

// Compare measures a workload against all subjects in turns, A B A B, each time
// with a process of its own, and reports medians.
func Compare(ctx context.Context, w Workload, o CompareOptions) (*Comparison, error) {
	if err := w.Check(o); err != nil {
		return nil, err
	}
	if w.Reference == "" {
		return w.compareFigures(ctx, o)
	}
	found := make([][]*Result, len(o.Subjects))
	for range o.Rounds {
		for i, name := range o.Subjects {
			load, subject, err := w.against(name)
			if err != nil {
				return nil, err
			}
			r, err := load.scaled(o.Scale).once(ctx, subject, o)
			if err != nil {
				return nil, fmt.Errorf("%s against %s: %w", load.Name, subject, err)
			}
			found[i] = append(found[i], r)
		}
	}
	c := &Comparison{Workload: w.Name, About: w.About, Rounds: o.Rounds}
	for i, name := range o.Subjects {
		c.Subjects = append(c.Subjects, summary(name, found[i]))
	}
	if last := len(found) - 1; last > 0 {
		ratios := make([]float64, o.Rounds)
		for i := range ratios {
			a, b := found[0][i], found[last][i]
			ratios[i] = a.RecordsPerS / b.RecordsPerS
			if w.OpenLoop() {
				ratios[i] = a.P50Us / b.P50Us
			}
		}
		ratio := round(median(ratios), 3)
		c.Ratio = &ratio
		if o.Subjects[0] == string(Lockstep) && strings.EqualFold(o.Subjects[last], w.Reference) {
			c.Goal = w.Goal
		}
	}
	return c, nil
}

// compareFigures measures a workload without a reference.
func (w Workload) compareFigures(ctx context.Context, o CompareOptions) (*Comparison, error) {
	c := &Comparison{Workload: w.Name, About: w.About, Rounds: o.Rounds}
	values := make(map[string][]float64)
	for range o.Rounds {
		figures, err := w.scaled(o.Scale).onceStanding(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.Name, err)
		}
		c.Figures = figures
		for _, f := range figures {
			values[f.Name] = append(values[f.Name], f.Value)
		}
	}
	for i := range c.Figures {
		f := &c.Figures[i]
		f.Value = median(values[f.Name])
		if o.Scale != 1 {
			f.Goal = 0
		}
	}
	return c, nil
}

// against finds what a name stands for: a subject of w, or another workload.
func (w Workload) against(name string) (Workload, Subject, error) {
	switch s := Subject(name); s {
	case Lockstep:
		return w, s, nil
	case Floor, FloorLog:
		if w.kind == queueWorkload {
			return w, s, optionError("%s has no floor: compare it with another workload", w.Name)
		}
		if s == Floor {
			return w, s, nil
		}
		if w.kind == consumeWorkload {
			return w, s, optionError("%s reads what is stored: compare it with floor", w.Name)
		}
		return w, s, nil
	}
	other, err := FindWorkload(name)
	if err != nil {
		return w, "", optionError("there is nothing named %q to compare with; use floor, floor-log or another workload", name)
	}
	if other.Reference == "" || other.OpenLoop() != w.OpenLoop() {
		return w, "", optionError("%s and %s measure different things", w.Name, other.Name)
	}
	return other, Lockstep, nil
}

// once starts a subject, measures and stops it.
func (w Workload) once(ctx context.Context, s Subject, o CompareOptions) (result *Result, err error) {
	if err := w.touchMemory(o.Dir); err != nil {
		return nil, err
	}
	launch := w.launch(s, o.Dir)
	running, err := o.Start(ctx, launch)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, running.Stop()) }()
	return w.run(ctx, launch, running.Target, o.Progress)
}

// onceStanding starts a broker, measures its figures and stops it.
func (w Workload) onceStanding(ctx context.Context, o CompareOptions) (figures []Figure, err error) {
	running, err := o.Start(ctx, w.launch(Lockstep, o.Dir))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, running.Stop()) }()
	return w.stand(ctx, running, o.Progress)
}

func summary(name string, all []*Result) Summary {
	of := func(f func(*Result) float64) float64 {
		values := make([]float64, len(all))
		for i, r := range all {
			values[i] = f(r)
		}
		return median(values)
	}
	known := func(f func(*Result) *float64) *float64 {
		var values []float64
		for _, r := range all {
			if v := f(r); v != nil {
				values = append(values, *v)
			}
		}
		if len(values) == 0 {
			return nil
		}
		m := median(values)
		return &m
	}
	latency := func(f func(*Result) float64) *float64 {
		return known(func(r *Result) *float64 {
			if r.Samples == 0 {
				return nil
			}
			v := f(r)
			return &v
		})
	}
	return Summary{
		Subject:              name,
		RecordsPerS:          of(func(r *Result) float64 { return r.RecordsPerS }),
		MBPerS:               of(func(r *Result) float64 { return r.MBPerS }),
		P50Us:                latency(func(r *Result) float64 { return r.P50Us }),
		P99Us:                latency(func(r *Result) float64 { return r.P99Us }),
		P999Us:               latency(func(r *Result) float64 { return r.P999Us }),
		ClientCPUPerRecordUs: of(func(r *Result) float64 { return r.ClientCPUPerRecordUs }),
		ClientMallocs:        of(func(r *Result) float64 { return r.ClientMallocs }),
		ServerCPUPerRecordUs: known(func(r *Result) *float64 { return r.ServerCPUPerRecordUs }),
		ServerMallocs:        known(func(r *Result) *float64 { return r.ServerMallocs }),
		ServerAnonymousBytes: known(func(r *Result) *float64 {
			if r.ServerAnonymousBytes == nil {
				return nil
			}
			bytes := float64(*r.ServerAnonymousBytes)
			return &bytes
		}),
	}
}

// median of an even number of values is the mean of the two in the middle.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	if n%2 == 1 {
		return values[n/2]
	}
	return (values[n/2-1] + values[n/2]) / 2
}

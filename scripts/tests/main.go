// Command tests reads what go test -json writes and says what a person wants to
// know: the output of what failed, what was skipped and why, how many tests ran
// in how many packages, and which took longest. It exits with 1 if anything failed.
//
//	go test -json ./... | go run ./scripts/tests
//
// With -all it says what the others wrote too, and -short names a file that gets the
// names of what failed and the first lines of why, for those who see only the end.
// SIGTERM does not end it: whoever ends go test as well learns what was running.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

const (
	// longest is how many of the slowest tests are named.
	longest = 5
	// newest is how many lines are shown of a package that failed although none of
	// its tests did: it leaked, raced or ended outside of them.
	newest = 100
)

// event is one line of go test -json, as go doc test2json describes it.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of a build
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

// result is a finished test.
type result struct {
	name    string
	seconds float64
}

type report struct {
	out      io.Writer
	all      bool            // what passes is shown as well
	running  map[string]bool // tests that have begun, by package and name
	short    []failure
	output   map[string][]string // of tests that have not ended, by package and name
	tails    map[string][]string // the newest lines of packages
	faulty   map[string]bool     // packages with failed tests
	passed   []result
	skipped  int
	failed   int
	packages int
}

func main() {
	all := flag.Bool("all", false, "say what tests wrote that passed")
	short := flag.String("short", "", "write the names of what failed, and the first lines of why, to this file")
	flag.Parse()
	signal.Ignore(syscall.SIGTERM)
	r := newReport(os.Stdout)
	r.all = *all
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	r.summary()
	if *short != "" {
		if err := os.WriteFile(*short, []byte(shorten(r.short)), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if r.failed > 0 {
		os.Exit(1)
	}
}

func newReport(out io.Writer) *report {
	return &report{out: out, running: map[string]bool{}, output: map[string][]string{}, tails: map[string][]string{}, faulty: map[string]bool{}}
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.out, "%s", line) // a message of the go command itself
			} else {
				r.take(&e)
			}
		}
		if err == io.EOF {
			r.cut()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// cut is told when nothing more comes: what still runs was ended from outside.
func (r *report) cut() {
	for _, key := range slices.Sorted(maps.Keys(r.running)) {
		r.failed++
		fmt.Fprintf(r.out, "CUT OFF %s\n", key)
		r.print(key)
		r.short = append(r.short, failure{key: key + " (was cut off)", output: r.text(key)})
	}
}

func (r *report) take(e *event) {
	key := strings.TrimSpace(e.Package + e.ImportPath + " " + e.Test)
	switch e.Action {
	case "run", "cont":
		r.running[key] = true
		return
	case "pause":
		delete(r.running, key)
		return
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
		tail := append(r.tails[e.Package], e.Output)
		r.tails[e.Package] = tail[max(0, len(tail)-newest):]
		return
	case "pass":
		if e.Test != "" {
			r.passed = append(r.passed, result{name: e.Package + " " + e.Test, seconds: e.Elapsed})
		} else {
			r.packages++
		}
		if r.all {
			r.print(key)
		}
	case "skip":
		if e.Test != "" {
			r.skipped++
			fmt.Fprintf(r.out, "SKIPPED %s\n", key)
			r.print(key)
		}
	case "fail", "build-fail":
		r.failed++
		fmt.Fprintf(r.out, "FAILED %s\n", key)
		if e.Test == "" && !r.faulty[e.Package] {
			r.output[key] = r.tails[e.Package]
		}
		if e.Test != "" || !r.faulty[e.Package] {
			r.short = append(r.short, failure{key: key, output: r.text(key)})
		}
		r.faulty[e.Package] = true
		r.print(key)
	default:
		return
	}
	delete(r.running, key)
	delete(r.output, key)
}

// text is what a test wrote: a long line comes in several events.
func (r *report) text(key string) string { return strings.Join(r.output[key], "") }

// print shows what a test wrote, without the lines that every test has.
func (r *report) print(key string) {
	for line := range strings.Lines(r.text(key)) {
		if !strings.HasPrefix(line, "=== ") {
			fmt.Fprint(r.out, "    ", line)
		}
	}
}

func (r *report) summary() {
	slices.SortFunc(r.passed, func(a, b result) int { return cmp.Compare(b.seconds, a.seconds) })
	for _, t := range r.passed[:min(longest, len(r.passed))] {
		fmt.Fprintf(r.out, "%6.1f s %s\n", t.seconds, t.name)
	}
	fmt.Fprintf(r.out, "%d tests passed in %d packages, %d skipped, %d failed\n", len(r.passed), r.packages, r.skipped, r.failed)
}

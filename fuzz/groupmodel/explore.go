package groupmodel

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"unsafe"

	"github.com/lockstepmq/lockstep/promise"
)

// node is what is kept of a state that was reached: how, for the trace.
type node struct {
	parent uint32
	by     action
}

// Result is the outcome of an exploration.
type Result struct {
	States, Steps, Depth int
	// Complete says that no state was left out.
	Complete bool
	// Promise is the one that is broken, "" if none is. What says how, and Trace is the
	// way there, one line for each action.
	Promise Promise
	What    string
	Trace   []string
	actions []action
}

func (r *Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d states, %d steps, depth %d", r.States, r.Steps, r.Depth)
	if r.Promise != "" {
		fmt.Fprintf(&b, "; %s is broken: %s", r.Promise, r.What)
		for i, line := range r.Trace {
			fmt.Fprintf(&b, "\n%4d  %s", i+1, line)
		}
	}
	return b.String()
}

// explorer goes through all states breadth first, so that the first counterexample is
// a shortest one.
type explorer struct {
	*model
	seed  maphash.Seed
	known table // hash of a state → its node
	nodes []node
	// For G6: edges that need no fault, and states that are good in themselves.
	from, to []uint32
	good     []uint32
}

// explore visits up to limit states. States are told apart by a hash of 64 bits: with
// ten million of them, the chance that two are taken for one is 1 in 300,000.
func (m *model) explore(limit int) *Result {
	x := &explorer{model: m, seed: maphash.MakeSeed(), known: newTable(1 << 12)}
	start := m.initial()
	if !m.exact {
		start.renumber()
	}
	x.add(start, 0, action{})
	level, first := []state{*start}, uint32(0)
	r := &Result{Complete: true}
	var next []state
	for ; len(level) > 0; r.Depth++ {
		next = next[:0]
		nextFirst := uint32(len(x.nodes))
		for i := range level {
			at := first + uint32(i)
			if m.finished(&level[i]) || !m.hopeful(&level[i]) {
				x.good = append(x.good, at)
			}
			m.successors(&level[i], func(a action, s *state) {
				r.Steps++
				if m.bad != nil {
					if r.Promise == "" {
						r.Promise, r.What = m.bad.promise, m.bad.what
						r.actions = append(x.path(at), a)
					}
					return
				}
				if r.Promise != "" {
					return
				}
				if m.edge {
					x.good = append(x.good, at) // who knows what comes after
					return
				}
				id, fresh := x.add(s, at, a)
				if fresh {
					next = append(next, *s)
				}
				if a.kind.helps() && id != at {
					x.from, x.to = append(x.from, at), append(x.to, id)
				}
			})
			if r.Promise != "" {
				break
			}
		}
		if r.Promise != "" {
			break
		}
		if len(x.nodes) > limit {
			r.Complete = false
			break
		}
		level, next, first = next, level, nextFirst
	}
	r.States = len(x.nodes)
	if r.Promise == "" && r.Complete && (m.only == "" || m.only == G6) {
		if stuck, ok := x.stuck(); ok {
			r.Promise, r.What = G6, "from here on nothing leads to the end without another fault"
			r.actions = x.path(stuck)
		}
	}
	r.Trace, _ = m.replay(r.actions, nil)
	return r
}

func bytesOf(s *state) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s)) }

func (x *explorer) add(s *state, parent uint32, by action) (id uint32, fresh bool) {
	h := maphash.Bytes(x.seed, bytesOf(s))
	if x.consumers > 1 {
		exchanged := *s
		exchanged.exchange()
		h = min(h, maphash.Bytes(x.seed, bytesOf(&exchanged)))
	}
	id = uint32(len(x.nodes))
	if known := x.known.put(h, id); known != id {
		return known, false
	}
	x.nodes = append(x.nodes, node{parent, by})
	return id, true
}

// path is the way to a node.
func (x *explorer) path(id uint32) (way []action) {
	for ; id != 0; id = x.nodes[id].parent {
		way = append(way, x.nodes[id].by)
	}
	slices.Reverse(way)
	return way
}

// stuck returns the first state from which no good one can be reached by steps that
// are no faults: G6, by going backward from the good ones.
func (x *explorer) stuck() (uint32, bool) {
	begin := make([]uint32, len(x.nodes)+1) // of the edges into each node
	for _, to := range x.to {
		begin[to+1]++
	}
	for i := range x.nodes {
		begin[i+1] += begin[i]
	}
	into := make([]uint32, len(x.to))
	fill := slices.Clone(begin)
	for i, to := range x.to {
		into[fill[to]] = x.from[i]
		fill[to]++
	}
	reached := make([]bool, len(x.nodes))
	work := x.good
	for len(work) > 0 {
		id := work[len(work)-1]
		work = work[:len(work)-1]
		if reached[id] {
			continue
		}
		reached[id] = true
		work = append(work, into[begin[id]:begin[id+1]]...)
	}
	i := slices.Index(reached, false)
	return uint32(i), i >= 0
}

// replay goes a way again and describes it. An observer is told what consumers see.
func (m *model) replay(way []action, observer func(promise.Event)) (trace []string, end *state) {
	again := *m
	again.exact, again.watched = true, observer != nil
	end = again.initial()
	for _, a := range way {
		trace = append(trace, again.describe(a, end))
		next := again.after(end, a)
		if next == nil {
			panic(fmt.Sprintf("groupmodel: step %d of a trace is not possible: %s", len(trace), trace[len(trace)-1]))
		}
		for _, e := range again.told {
			observer(e)
		}
		*end = *next
	}
	return trace, end
}

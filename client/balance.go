package client

import (
	"math/rand/v2"
	"slices"
	"sort"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Where records without a key go. They stay with one partition until their batch is on
// its way; then one is chosen for the next batch, from the first of these that has one
// which takes records at the moment:
//
//	local    as the next, and led by the node that the client is connected to
//	active   led, neither full nor closed to new records, and with consumers, if any has
//	left     the others of those, of a queue without consumers in these partitions
//	all      if there is none
//
// Records that a partition does not take are given to another one, as long as they are
// known to be in no log (RULES R6).

// Policy is how a producer chooses among the partitions that may have a record without
// a key.
type Policy uint8

// The policies.
const (
	// Weighted gives the partitions records in proportion to their weights, which the
	// broker tells: in turn as long as they are equal.
	Weighted Policy = 0
	// RoundRobin takes the partitions in turn, whatever their weights.
	RoundRobin Policy = 1
	// Random takes any of them, whatever their weights.
	Random Policy = 2
)

// AffinityScope is for how long a producer stays with a partition that it has chosen.
type AffinityScope uint8

// The scopes.
const (
	// PerMessage chooses anew for every batch; one that is not held back by those in
	// flight, and does not linger, is a single record.
	PerMessage AffinityScope = 0
	// PerProducer chooses once, at random, for the life of the producer. Whatever happens
	// to that partition, its records wait for it.
	PerProducer AffinityScope = 1
)

const (
	// unreachableAfter is how long a partition is without a session with its leader
	// until its records are given to another one, and listeners are told.
	unreachableAfter = time.Second
	// layoutPause is how often the broker is asked whether a partition is active again.
	layoutPause = time.Second
)

// choices are the places in Producer.lanes among which records without a key are
// spread, ascending. They are made anew when leaders change or the home does.
type choices struct {
	home   uint32 // node that was local; 0: make them anew
	local  []int
	active []int // never empty
	left   []int // that would be active if they had consumers, as others have
	equal  bool  // all weights are
}

// takes reports whether a partition is one for records without a key, as far as the
// answering broker knows.
func takes(p *wire.PartitionInfo) bool {
	return p.State == wire.PartitionActive && p.Leader != 0 && p.Flags&^wire.PartitionUnattended == 0
}

// spread makes the choices. home is the node that the client is connected to.
func (p *Producer) spread(home uint32) {
	c := choices{home: home, equal: true}
	consumed := false
	for i, takes := range p.layout.takes {
		consumed = consumed || takes && p.layout.attended[i] && p.scope.has(p.layout.partitions[i])
	}
	for i := range p.layout.partitions {
		if !p.layout.takes[i] || !p.scope.has(p.layout.partitions[i]) {
			continue
		}
		if consumed && !p.layout.attended[i] {
			c.left = append(c.left, i)
			continue
		}
		c.active = append(c.active, i)
		c.equal = c.equal && p.layout.weights[i] == p.layout.weights[c.active[0]]
		if p.options.localPreference && p.lanes[i].leader.node == home {
			c.local = append(c.local, i)
		}
	}
	if len(c.active) == 0 {
		for i, n := range p.layout.partitions {
			if p.scope.has(n) {
				c.active = append(c.active, i)
			}
		}
	}
	p.choices = c
}

// begin chooses the first lane.
func (p *Producer) begin() {
	p.sticky = len(p.layout.partitions) - 1 // in turn the first comes next
	if p.options.affinity == PerProducer {
		p.sticky = rand.IntN(len(p.layout.partitions))
	}
	p.sticky = p.choose()
}

// choose is the place of the lane for the next batch of records without a key. If none
// takes records, they wait where they would have gone: with the present lane, if it is
// among those.
func (p *Producer) choose() int {
	for _, places := range [][]int{p.choices.local, p.choices.active, p.choices.left} {
		if i := p.pick(places); i >= 0 {
			return i
		}
	}
	if slices.Contains(p.choices.active, p.sticky) {
		return p.sticky
	}
	return p.choices.active[0]
}

// pick chooses one of the places by the policy, or -1 if all are stalled.
func (p *Producer) pick(places []int) int {
	n := len(places)
	if n == 0 {
		return -1
	}
	first := sort.SearchInts(places, p.sticky+1)
	switch {
	case p.options.policy == Random:
		first = rand.IntN(n)
	case p.options.policy == Weighted && !p.choices.equal:
		return p.pickLeast(places)
	}
	for k := range n {
		if i := places[(first+k)%n]; !p.lanes[i].stalled() {
			return i
		}
	}
	return -1
}

// pickLeast chooses the place that has had the fewest records for its weight. One that
// took none for a while does not make up for it.
func (p *Producer) pickLeast(places []int) int {
	best := -1
	for _, i := range places {
		a := p.lanes[i]
		if a.stalled() {
			continue
		}
		a.share = max(a.share, p.share)
		if best < 0 || a.share < p.lanes[best].share {
			best = i
		}
	}
	if best >= 0 {
		p.share = p.lanes[best].share
	}
	return best
}

// spill gives the records of partitions that do not take any to others: those without
// a key that are known to be in no log.
func (p *Producer) spill(now time.Time) {
	if !p.options.spill || p.options.fixed || p.options.affinity == PerProducer || p.bufferedRecords == 0 {
		return
	}
	for _, a := range p.lanes {
		if !a.unreachable && (a.failures == 0 || a.stall == nil) || a.inFlight > 0 {
			continue
		}
		if to := p.lanes[p.choose()]; to.stalled() || slices.ContainsFunc(p.lanes, func(a *accumulator) bool { return a.untold > 0 }) {
			return
		}
		var moved []*batch
		for i := a.queue.len() - 1; i >= 0; i-- {
			if b := a.queue.at(i); !b.stamped && !b.keyed && b.builder.Count() > 0 {
				a.remove(b)
				moved = append(moved, b)
			}
		}
		if len(moved) == 0 {
			continue
		}
		for _, b := range slices.Backward(moved) {
			p.place(b)
		}
		if a.queue.len() == 0 && !a.unreachable {
			a.paused, a.resumeAt = true, now.Add(maxBackoff) // another record may find out soon
		}
	}
}

package sim

import (
	"slices"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// Replicas give records back behind one that stays (RULES L7), as a node does: with groups
// the leader proposes what all are done with; without, every sixteenth record stays. What
// stays has to be there on every replica, and what is erased is never read as anything else.

// eraseLeast is how many bytes are given back at a time at least: runs are as small as the
// logs here.
const eraseLeast = 512

// erasing is what a member does about it.
type erasing struct {
	checkpoints int // that are still to be taken for it
	erasable    []erasable
}

// erasable is what may be erased as of a checkpoint.
type erasable struct {
	applied wire.Index
	runs    []group.Span
}

// erasing is how often replicas erase: in two runs of three, and not where a run is to show
// that something is missed, for which its seeds were chosen.
func (f *fleet) erasing() int {
	if f.options.Mutant != NoMutant && f.options.Mutant != StateNotFetched || len(f.options.Without) > 0 || f.options.Cluster {
		return 0
	}
	return int(f.options.Seed % 3)
}

// erase makes a member look for what may be erased.
func (f *fleet) erase() {
	f.living((*member).eraseSoon)
}

func (m *member) eraseSoon() {
	if m.metadata != nil {
		return
	}
	m.fleet.erases = true
	if m.cell.ledger != nil {
		runs, _ := m.state.Finished(0)
		m.part.Erase(m.nowMs, slices.DeleteFunc(runs, func(r group.Span) bool { return r.To > m.log.ErasableBelow() }))
	}
	m.erasing.checkpoints = 2
	m.turn()
}

// keeps reports whether nobody handles a record as long as there are faults: the old one
// behind which the others are erased. It does nothing to the records of a shared group.
func (f *fleet) keeps(o wire.Offset) bool {
	return o == 0 && f.groups != nil && f.groups.settings.Mode == wire.ModeShared && f.erasing() == 2
}

// missedRounds bounds for how long a member is left behind, in tenths of a second.
const missedRounds = 100

// leaveBehind takes a member away until the others have erased what it has not got, so that
// it has to pass over that when it is back: at once, or when everything else has happened
// that happens to a fleet.
func (f *fleet) leaveBehind() {
	m := f.cells[0].members[f.random.IntN(len(f.hosts))]
	if f.groups != nil && !f.keeps(0) || !m.up || f.replacing != nil || f.erasedBehind(m) {
		return
	}
	f.heal()
	for _, other := range f.hosts {
		if other.stopped() || other != m.host && (!other.up || other.paused) {
			return
		}
	}
	f.trace.add("%s is left behind", m)
	switch f.random.IntN(3) {
	case 0:
		m.crash()
	case 1:
		m.powerCut()
	default:
		f.counts[FleetPaused]++
		m.paused = true
	}
	for round := 0; round < missedRounds && !f.erasedBehind(m) && f.violation == nil; round++ {
		for _, other := range f.hosts {
			if other != m.host {
				other.tick(1)
			}
		}
		for range 4 {
			f.produce()
			if f.groups != nil {
				f.consume()
			}
			f.exhaust()
		}
		for _, other := range f.cells[0].members {
			if round%10 == 9 && other != m && other.up {
				other.eraseSoon()
			}
		}
	}
	if f.random.IntN(2) == 0 {
		return
	}
	if !m.up {
		m.host.start()
	}
	f.wake(m.host)
	f.exhaust()
}

// erasedBehind reports whether another member has erased entries that this one has not got.
func (f *fleet) erasedBehind(m *member) bool {
	for _, other := range m.cell.members {
		for i := m.log.LastIndex() + 1; other != m && other.up && i <= other.log.Watermark().Index; i++ {
			if _, erased := other.log.ErasedRun(i); erased {
				return true
			}
		}
	}
	return false
}

// noteErasable is called as a checkpoint is taken.
func (m *member) noteErasable() {
	if !m.fleet.erases || m.group == nil {
		return
	}
	e := erasable{applied: m.group.Applied()}
	if m.cell.ledger != nil {
		e.runs, _ = m.state.Erased(0)
	} else if k := m.cell.truth.at(e.applied); k != nil {
		for o := wire.Offset(1); o < k.next(); o = o&^15 + 17 {
			e.runs = append(e.runs, group.Span{From: o, To: min(o|15+1, k.next())})
		}
	}
	m.erasing.erasable = append(m.erasing.erasable, e)
}

// eraseOlder erases what the older checkpoint allows.
func (m *member) eraseOlder() {
	e := &m.erasing
	if e.checkpoints > 0 && !m.log.CheckpointPending() {
		e.checkpoints--
		m.group.Checkpoint()
	}
	n := 0
	for n < len(e.erasable) && e.erasable[n].applied <= m.log.OlderCheckpoint() {
		n++
	}
	if n == 0 || m.log.Erasing() {
		return
	}
	var done []log.Records
	for _, r := range e.erasable[n-1].runs {
		done = append(done, log.Records{From: r.From, To: r.To})
	}
	before := m.log.ErasedBytes()
	m.log.Erase(done)
	e.erasable = append(e.erasable[:0], e.erasable[n:]...)
	if before > 0 {
		m.fleet.counts[FleetErased]++
	}
}

// passed checks what a member has come to that was given a checkpoint: what it has not got is
// done, and it knows so.
func (m *member) passed() {
	f := m.fleet
	if m.log.ErasedBytes() == 0 {
		return
	}
	f.counts[FleetPassed]++
	for i := m.log.FirstIndex(); i <= m.log.LastIndex(); i++ {
		run, erased := m.log.ErasedRun(i)
		if !erased {
			continue
		}
		m.gone(run)
		i = run.After.Index
		if m.cell.ledger == nil {
			continue
		}
		known, _ := m.state.Erased(run.Before.Next)
		for o := max(run.Before.Next, m.state.Start()); o < run.After.Next; o++ {
			if !slices.ContainsFunc(known, func(r group.Span) bool { return r.From <= o && o < r.To }) {
				f.fail("%s has not got record %d, and does not know that it is erased: it knows of %v", m, o, known)
			}
		}
	}
}

// gone checks that a run which a member does not have any more is of records that are done.
func (m *member) gone(run log.ErasedRun) {
	f := m.fleet
	for o := run.Before.Next; o < run.After.Next; o++ {
		if done := m.cell.ledger != nil && m.cell.ledger.acked[o] || m.cell.ledger == nil && o%16 != 0; !done {
			f.fail("%s has erased entries %d to %d, and record %d, which is not done", m, run.Before.Index+1, run.After.Index, o)
		}
	}
}

// walk gives all entries of a member's log that are there, and checks those that are not.
func (m *member) walk(each func(e log.Entry)) (next wire.Index) {
	next = m.log.FirstIndex()
	for next <= m.log.Watermark().Index {
		if run, erased := m.log.ErasedRun(next); erased {
			m.gone(run)
			if k := m.cell.truth.at(run.After.Index); k == nil || k.term != run.After.Term || k.next() != run.After.Next {
				m.fleet.fail("%s: a run of erased entries ends with %+v; committed is %v", m, run.After, k)
			}
			next = run.After.Index + 1
			continue
		}
		entries, err := m.log.Entries(next, 1<<20)
		if err != nil || len(entries) == 0 {
			m.fleet.fail("%s: entries from %d on do not read: %v", m, next, err)
		}
		for i := range entries {
			each(entries[i])
			next++
		}
	}
	return next
}

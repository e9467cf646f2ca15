package group

import "github.com/lockstepmq/lockstep/wire"

// Browse lists the records from an offset on that are not done, at most limit, and how each
// stands: runs of those that stand alike. It ends early where repaired records take more
// than wire.MaxBrowseSubstitutes. It changes nothing.
func (l *Leader) Browse(from wire.Offset, limit int) wire.BrowseResponse {
	var offsets []wire.Offset
	repaired := 0 // bytes
	o := l.g.Done.Next(max(from, l.g.Done.Floor()))
	for ; o < l.end && len(offsets) < limit; o = l.g.Done.Next(o + 1) {
		if n := len(l.g.Substitutes[o]); n > 0 {
			if repaired > 0 && repaired+n > wire.MaxBrowseSubstitutes {
				break
			}
			repaired += n
		}
		offsets = append(offsets, o)
	}
	answer := wire.BrowseResponse{Next: uint64(min(o, l.end)), End: uint64(l.end)}
	holders := l.holders(offsets)
	parked := make(map[wire.Offset]string, len(l.g.Parked))
	for _, p := range l.g.Parked {
		parked[p.Head] = p.Reason
	}
	for _, o := range offsets {
		run := wire.BrowseRun{Offset: uint64(o), Count: 1, State: wire.BrowseWaiting, Substitute: l.g.Substitutes[o]}
		known, returned := l.g.Record(o)
		run.Deliveries, run.Attempts = known.Deliveries, known.Attempts
		reason, isParked := parked[o]
		switch holder := holders[o]; {
		case holder != "":
			run.State, run.Holder = wire.BrowseLeased, holder
			run.Deliveries++ // this one is not counted before it has ended
		case l.lettered[o]:
			run.State = wire.BrowseLetter
		case isParked:
			run.State, run.Reason = wire.BrowseParked, reason
		case returned:
			run.State = wire.BrowseReturned
		case o < l.scan:
			run.State = wire.BrowseBehind
		}
		if n := len(answer.Runs); n > 0 && answer.Runs[n-1].Joins(&run) {
			answer.Runs[n-1].Count++
		} else {
			answer.Runs = append(answer.Runs, run)
		}
	}
	return answer
}

// holders says which session has each of some ascending records, if any has.
func (l *Leader) holders(offsets []wire.Offset) map[wire.Offset]string {
	out := make(map[wire.Offset]string)
	if len(offsets) == 0 {
		return out
	}
	last := offsets[len(offsets)-1]
	for _, m := range l.members {
		if _, any := m.leases.within(offsets[0], last+1); !any {
			continue
		}
		name := of(m)
		for _, o := range offsets {
			if m.leases.find(o) != nil {
				out[o] = name
			}
		}
	}
	return out
}

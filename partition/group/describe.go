package group

import (
	"encoding/hex"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// Describe adds what only the leader knows.
func (l *Leader) Describe(d *wire.GroupPartition) {
	d.Scan, d.ParkedScopes = uint64(l.scan), l.describeParked()
	sessions := make([]Session, 0, len(l.members))
	for s := range l.members {
		sessions = append(sessions, s)
	}
	slices.SortFunc(sessions, compareSessions)
	for _, s := range sessions {
		m := l.members[s]
		d.Leased += uint64(m.held)
		shown := wire.GroupSession{
			ID: hex.EncodeToString(s[:]), Name: m.name, State: l.stateOf(m), Leased: uint32(m.held), Capacity: uint32(m.capacity),
			HeardMs: uint64(max(0, l.now-m.heard).Milliseconds()),
		}
		if listed := l.g.Sessions[s]; listed != nil {
			shown.Client = listed.Client
		}
		if m.waiting {
			d.Waiting = append(d.Waiting, shown.ID)
		}
		d.Sessions = append(d.Sessions, shown)
	}
}

func (l *Leader) stateOf(m *member) string {
	switch {
	case m.waiting:
		return "waiting"
	case m.ending:
		return "ending"
	case m.draining:
		return "draining"
	case m.suspect:
		return "suspect"
	case l.kind == single && l.g.Settings.Holder != wire.HolderAny && l.g.Active != m.session:
		return "standby"
	}
	return "active"
}

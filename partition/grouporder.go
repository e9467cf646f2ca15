package partition

import (
	"cmp"
	"encoding/hex"
	"encoding/json"

	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// order carries out what somebody asks of a group, or hands it to its Leader.
func (g *Groups) order(in *Input) {
	if in.Order.Op == wire.OrderLetters {
		var q wire.LettersRequest
		if !unmarshal(in, &q) {
			return
		}
		switch {
		case q.Removed && q.GiveUp:
			g.giveUpRemoved(in)
			return
		case q.Removed:
			in.Reply(json.Marshal(wire.LettersResponse{Removed: g.removedLetters()}))
			return
		}
	}
	s := g.p.state.groups.Named(in.Group)
	if s == nil {
		g.await(in) // it may have been created a moment ago
		return
	}
	switch in.Order.Op {
	case wire.OrderDescribe:
		in.Reply(json.Marshal(g.describe(in.Group)))
	case wire.OrderSeek:
		g.seek(s, in)
	case wire.OrderPause, wire.OrderResume:
		l := g.lead(s)
		l.Order(group.Order{Command: group.AppendPause(nil, s.ID, in.Order.Op == wire.OrderPause), Done: func(err error) { in.Reply([]byte("{}"), err) }})
		g.wake(l)
	case wire.OrderExplain:
		g.explain(s, in)
	case wire.OrderUnfinished:
		var q wire.BrowseRequest
		if unmarshal(in, &q) {
			if q.Limit == 0 || q.Limit > wire.MaxBrowse {
				q.Limit = wire.MaxBrowse
			}
			in.Reply(json.Marshal(g.lead(s).Browse(wire.Offset(q.From), int(q.Limit))))
		}
	case wire.OrderPark, wire.OrderUnpark, wire.OrderSkip, wire.OrderShow, wire.OrderRepair:
		g.scope(s, in)
	case wire.OrderSettle:
		g.settle(s, in)
	case wire.OrderRedrive:
		g.redrive(s, in)
	case wire.OrderLetters:
		g.openLetters(s, in)
	default:
		in.Reply(nil, wire.Errorf(wire.CodeUnsupported, "this broker does not know operation %d on groups", in.Order.Op))
	}
}

// seek moves a group when nothing of it is leased any more.
func (g *Groups) seek(s *group.Group, in *Input) {
	var q wire.SeekRequest
	if err := json.Unmarshal(in.Order.JSON, &q); err != nil {
		in.Reply(nil, wire.Errorf(wire.CodeMalformed, "the body of the seek: %v", err))
		return
	}
	switch q.To {
	case "earliest":
		g.seekTo(s, g.p.state.start, &q, in)
	case "latest":
		g.seekTo(s, g.p.state.next, &q, in)
	case "offset":
		if wire.Offset(q.Offset) > g.p.state.next {
			in.Reply(nil, wire.Errorf(wire.CodeOutOfRange, "offset %d lies behind the end of the partition, %d", q.Offset, g.p.state.next))
			return
		}
		g.seekTo(s, wire.Offset(q.Offset), &q, in)
	case "time":
		g.effects.Locate(q.TimeMs, func(o wire.Offset, err error) {
			if err != nil || g.p.state.groups.Group(s.ID) != s || !g.leading {
				in.Reply(nil, cmp.Or[error](err, wire.CodeRetry))
				return
			}
			g.seekTo(s, o, &q, in)
		})
	default:
		in.Reply(nil, wire.Errorf(wire.CodeInvalidSetting, "a group is moved to earliest, latest, offset or time, not to %q", q.To))
	}
}

func (g *Groups) seekTo(s *group.Group, to wire.Offset, q *wire.SeekRequest, in *Input) {
	to = min(max(to, g.p.state.start), g.p.state.next)
	from := s.Done.Floor()
	if q.ID != 0 && q.ID == s.Sought.ID { // who asks again does so because an answer was lost
		from, to = s.Sought.From, s.Sought.To
	}
	answer, err := json.Marshal(wire.SeekResponse{From: uint64(from), To: uint64(to), Records: uint64(max(from, to) - min(from, to))})
	l := g.lead(s)
	switch {
	case err != nil || q.DryRun || q.ID != 0 && q.ID == s.Sought.ID:
		in.Reply(answer, err)
	case l.Stops():
		in.Reply(nil, wire.Errorf(wire.CodeRetry, "the group is being changed by another order"))
	default:
		g.change(l, group.Order{Command: group.AppendSeek(nil, s.ID, to, q.ID), Drain: true, Reason: wire.ReasonSeek, Done: func(err error) { in.Reply(answer, err) }})
	}
}

// Show calls then with how a group stands, if there is one of that name. Owner only.
func (g *Groups) Show(name string, then func(*wire.GroupPartition)) {
	if g.p.state.groups.Named(name) != nil {
		then(g.describe(name))
	}
}

// describe says how a group stands. Number and Leader are for the client, which knows them.
func (g *Groups) describe(name string) *wire.GroupPartition {
	s := g.p.state.groups.Named(name)
	floor, above := s.Done.Floor(), s.Done.Above()
	d := &wire.GroupPartition{
		GroupID: uint64(s.ID), Floor: uint64(floor), Next: uint64(g.p.state.next), Scan: uint64(floor), Horizon: uint64(s.Horizon), Backlog: uint64(g.p.state.next-floor) - above,
		Done: above, Parked: uint64(len(s.Parked)), Letters: uint64(len(s.Letters.Open)), Expired: s.Expired,
	}
	s.Returned(floor, g.p.state.next, func(from, to wire.Offset, _ group.Returned) bool {
		d.Returned += uint64(to - from)
		return true
	})
	if l := g.leads[s.ID]; l != nil {
		l.Describe(d)
		l.covered(d)
		return d
	}
	for id, m := range s.Sessions {
		d.Sessions = append(d.Sessions, wire.GroupSession{ID: hex.EncodeToString(id[:]), Name: m.Name, Client: m.Client})
	}
	return d
}

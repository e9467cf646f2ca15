package partition

import (
	"encoding/json"

	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// explain answers why a group, a key or a record stands still.
func (g *Groups) explain(s *group.Group, in *Input) {
	var q wire.ExplainRequest
	if !unmarshal(in, &q) {
		return
	}
	in.Reply(json.Marshal(g.lead(s).Explain(&q, g.nowMs)))
}

// scope parks a key or publisher, lets it go on, skips its head, or shows it.
func (g *Groups) scope(s *group.Group, in *Input) {
	var q wire.ScopeRequest
	if !unmarshal(in, &q) {
		return
	}
	l := g.lead(s)
	h, err := l.ScopeOf(&q)
	if err != nil {
		in.Reply(nil, err)
		return
	}
	done := func(err error) { in.Reply([]byte("{}"), err) }
	switch in.Order.Op {
	case wire.OrderPark:
		l.Park(h, q.Reason, q.Now, done)
	case wire.OrderUnpark:
		l.Unpark(h, done)
	case wire.OrderSkip:
		if l.order {
			in.Reply(nil, wire.Errorf(wire.CodeRetry, "the group is being changed by another order"))
			return
		}
		l.Skip(h, func(o wire.Offset, err error) {
			answer, _ := json.Marshal(wire.ScopeResponse{Scope: uint64(h), Offset: uint64(o)})
			in.Reply(answer, err)
		})
	default:
		answer := wire.ScopeResponse{Scope: uint64(h)}
		if o, ok := l.Head(h); ok {
			answer.Offset, answer.Known = uint64(o), true
			r, _ := s.Record(o)
			answer.Deliveries, answer.Attempts = r.Deliveries, r.Attempts
		}
		if p, ok := s.Parked[h]; ok {
			answer.Parked, answer.Reason = true, p.Reason
		}
		answer.Reasons = l.ExplainScope(h, g.nowMs)
		in.Reply(json.Marshal(answer))
		return
	}
	g.wake(l)
}

// unmarshal reads the body of an order, and answers if it cannot.
func unmarshal(in *Input, v any) bool {
	if len(in.Order.JSON) == 0 {
		return true
	}
	err := json.Unmarshal(in.Order.JSON, v)
	if err != nil {
		in.Reply(nil, wire.Errorf(wire.CodeMalformed, "the body of the order: %v", err))
	}
	return err == nil
}

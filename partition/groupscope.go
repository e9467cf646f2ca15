package partition

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// explain answers why a group, a key or a record stands still.
func (g *Groups) explain(s *group.Group, in *Input) {
	var q wire.ExplainRequest
	if !unmarshal(in, &q) {
		return
	}
	answer := g.lead(s).Explain(&q, g.nowMs)
	if len(g.controls) > 0 && g.now-g.controls[0].at >= commitPatience {
		since := g.now - g.controls[0].at
		answer.Reasons = slices.Insert(answer.Reasons, 0, wire.Reason{
			Code: "no_quorum", Text: "What was decided is not committed: too few of the partition's replicas answer.",
			SinceMs: g.nowMs - since.Milliseconds(), Advice: wire.Advice("no_quorum"),
		})
	}
	in.Reply(json.Marshal(answer))
}

// commitPatience is after how long an entry that is not committed is a reason.
const commitPatience = 300 * time.Millisecond

// scope parks a key or publisher, lets it go on, skips or repairs its head, or shows it.
func (g *Groups) scope(s *group.Group, in *Input) {
	var q wire.RepairRequest
	if !unmarshal(in, &q) {
		return
	}
	l := g.lead(s)
	h, err := l.ScopeOf(&q.ScopeRequest)
	if err != nil {
		in.Reply(nil, err)
		return
	}
	if in.Order.Op == wire.OrderSkip && q.Scope != nil && l.Lettered(wire.Offset(*q.Scope)) {
		o := wire.Offset(*q.Scope)
		l.DropLetter(o, g.headed(h, o, in))
		g.wake(l)
		return
	}
	if q.Scope != nil && g.one(l, wire.Offset(*q.Scope), in) {
		return
	}
	switch in.Order.Op {
	case wire.OrderPark, wire.OrderUnpark:
		done := func(err error) { in.Reply([]byte("{}"), err) }
		if len(q.Reason) > wire.MaxReasonBytes {
			in.Reply(nil, wire.Errorf(wire.CodeInvalidRequest, "a reason of %d bytes; at most %d", len(q.Reason), wire.MaxReasonBytes))
			return
		}
		if in.Order.Op == wire.OrderPark {
			l.Park(h, q.Reason, q.Now, done)
		} else {
			_, parked := s.Parked[h]
			l.Unpark(h, func(err error) {
				answer, _ := json.Marshal(wire.ScopeResponse{Scope: uint64(h), Parked: parked})
				in.Reply(answer, err)
			})
		}
		g.wake(l)
	default:
		skip := in.Order.Op == wire.OrderSkip
		g.head(l, h, func(o wire.Offset, ok bool, err error) {
			switch {
			case err != nil:
				in.Reply(nil, err)
			case skip && q.Head != nil && s.Done.Has(wire.Offset(*q.Head)):
				g.headed(h, wire.Offset(*q.Head), in)(nil)
			case in.Order.Op == wire.OrderShow:
				g.show(l, h, o, ok, in)
			case !ok:
				in.Reply(nil, wire.Errorf(wire.CodeRefused, "the group is done with every record of it"))
			case skip && q.Head != nil && wire.Offset(*q.Head) != o:
				in.Reply(nil, wire.Errorf(wire.CodeRefused, "the record to be skipped is the one at offset %d, not %d; look at it again", o, *q.Head))
			case l.Hashed() && q.Scope == nil && g.unreadable(o):
				in.Reply(nil, wire.Errorf(wire.CodeCorrupt, "the record at offset %d, which may be the next one, cannot be read: give up that one with key skip --partition --offset, or wait until it is repaired", o))
			case l.Stops():
				in.Reply(nil, wire.Errorf(wire.CodeRetry, "the group is being changed by another order"))
			case skip:
				l.Settle([]group.Span{{From: o, To: o + 1}}, &h, g.over(g.headed(h, o, in)))
				g.wake(l)
			default:
				g.repair(l, h, o, &q, in)
			}
		})
	}
}

// unreadable reports whether a record is known to be damaged: whose it is may not be known.
func (g *Groups) unreadable(o wire.Offset) bool {
	p, known := g.feed.At(o)
	return known && p.Damaged
}

// one carries out an order about one record, by its offset, in a group where that is no scope
// of its own, and reports whether it has: to give it up, wherever it stands in its scope, or to
// show it. Others have to name its key or publisher: parking it is refused.
func (g *Groups) one(l *lead, o wire.Offset, in *Input) bool {
	// What is not there, or will not be given out again, would stay parked for ever, and one whose
	// body is gone cannot be looked at.
	switch {
	case in.Order.Op != wire.OrderPark:
	case o >= g.p.state.next:
		in.Reply(nil, wire.Errorf(wire.CodeInvalidRequest, "there is no record at offset %d: the partition ends at %d", o, g.p.state.next))
		return true
	case l.group.Done.Has(o):
		in.Reply(nil, wire.Errorf(wire.CodeRefused, "the group is done with it"))
		return true
	}
	p, known := g.feed.At(o)
	if o >= g.p.state.next || l.group.Settings.Mode == wire.ModeShared || known && l.Loose(p, o) {
		return false
	}
	switch {
	case in.Order.Op == wire.OrderShow:
		answer := wire.ScopeResponse{Scope: uint64(o)}
		if !l.group.Done.Has(o) {
			r, _ := l.group.Record(o)
			answer.Offset, answer.Known, answer.Deliveries, answer.Attempts = uint64(o), true, l.Deliveries(o), r.Attempts
		}
		at := uint64(o)
		answer.Reasons = l.Explain(&wire.ExplainRequest{Offset: &at}, g.nowMs).Reasons
		in.Reply(json.Marshal(answer))
	case in.Order.Op == wire.OrderPark && l.Hashed() && !known: // it is looked at first
		g.feed.use(true)
		g.scans = append(g.scans, o)
		in.Reply(nil, wire.Errorf(wire.CodeRetry, "the record at offset %d is being looked at", o))
	case in.Order.Op == wire.OrderPark && l.Hashed():
		by := l.group.Settings.Scope
		in.Reply(nil, wire.Errorf(wire.CodeInvalidRequest, "group %s goes by %s, and the record at offset %d has one: park that, or give up the record alone with key skip", l.group.Name, by, o))
	case in.Order.Op == wire.OrderPark:
		in.Reply(nil, wire.Errorf(wire.CodeInvalidRequest, "group %s handles the partition in order: park it as a whole, without an offset, or give up the record alone with key skip", l.group.Name))
	case in.Order.Op != wire.OrderSkip:
		return false
	case l.group.Done.Has(o):
		in.Reply(nil, wire.Errorf(wire.CodeRefused, "the group is done with it"))
	case l.Stops():
		in.Reply(nil, wire.Errorf(wire.CodeRetry, "the group is being changed by another order"))
	default:
		alone := group.Scope(o) // what is parked as that, if it has no key
		l.Settle([]group.Span{{From: o, To: o + 1}}, &alone, g.over(g.headed(alone, o, in)))
		g.wake(l)
	}
	return true
}

// headed answers what was done to the head of a scope.
func (g *Groups) headed(h group.Scope, o wire.Offset, in *Input) func(error) {
	return func(err error) {
		answer, _ := json.Marshal(wire.ScopeResponse{Scope: uint64(h), Offset: uint64(o)})
		in.Reply(answer, err)
	}
}

// show says how a scope stands.
func (g *Groups) show(l *lead, h group.Scope, o wire.Offset, ok bool, in *Input) {
	answer := wire.ScopeResponse{Scope: uint64(h)}
	if ok {
		answer.Offset, answer.Known = uint64(o), true
		r, _ := l.group.Record(o)
		answer.Deliveries, answer.Attempts = l.Deliveries(o), r.Attempts
	}
	if p, ok := l.group.Parked[h]; ok {
		answer.Parked, answer.Reason = true, p.Reason
	}
	answer.Reasons = l.ExplainScope(h, g.nowMs)
	in.Reply(json.Marshal(answer))
}

// repair puts a record in the place of the head of a scope.
func (g *Groups) repair(l *lead, h group.Scope, o wire.Offset, q *wire.RepairRequest, in *Input) {
	var key, value []byte
	var hash, publisher uint64
	if q.Key != nil {
		key = *q.Key
		hash = uint64(group.HashOf(key))
	}
	if q.Value != nil {
		value = *q.Value
	}
	by := l.group.Settings.Scope
	if p, ok := g.feed.At(o); ok {
		publisher = p.Publisher
	}
	switch serial := l.group.Settings.Mode == wire.ModeSerial; {
	case wire.Offset(q.Offset) != o:
		in.Reply(nil, wire.Errorf(wire.CodeRefused, "the record to be repaired is the one at offset %d, not %d; look at it again", o, q.Offset))
		return
	case serial && by == wire.ScopeKey && group.Scope(hash) != h && h != group.Scope(o):
		in.Reply(nil, wire.Errorf(wire.CodeInvalidRequest, "a repaired record keeps its key"))
		return
	case serial && by == wire.ScopePublisher:
		publisher = uint64(h)
	}
	headers := make([]wire.RecordHeader, len(q.Headers))
	for i, x := range q.Headers {
		headers[i] = wire.RecordHeader(x)
	}
	var b wire.BatchBuilder
	b.Reset(true)
	if !b.Append(q.TimestampMs, 0, key, value, headers, hash) {
		in.Reply(nil, wire.Errorf(wire.CodeTooLarge, "a repaired record of %d bytes", len(value)))
		return
	}
	batch, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, publisher, wire.CodecNone, nil)
	wire.PatchBatch(batch, o, 0)
	l.Repair(h, o, wire.AppendBodyBatch(nil, index, batch), g.over(g.headed(h, o, in)))
	g.wake(l)
}

// asked is who waits for the head of a scope, of which everything up to after is done.
type asked struct {
	group group.ID
	scope group.Scope
	after wire.Offset
}

// head calls then with the lowest unfinished record of a scope, now or in a later turn: one
// that no consumer has met is looked for.
func (g *Groups) head(l *lead, h group.Scope, then func(o wire.Offset, ok bool, err error)) {
	o, ok := l.Head(h)
	if ok || !l.Hashed() {
		then(o, ok, nil)
		return
	}
	s := l.group
	if o := wire.Offset(h); o < g.p.state.next && o >= s.Done.Floor() { // of a record without a key
		if p, known := g.feed.At(o); known && l.Loose(p, o) {
			then(o, !s.Done.Has(o), nil)
			return
		}
	}
	key := asked{s.ID, h, s.Done.Floor() - 1} // which wraps at 0, as the search expects
	if g.heads == nil {
		g.heads = make(map[asked][]func(wire.Offset, bool, error))
	}
	if g.heads[key] = append(g.heads[key], then); len(g.heads[key]) > 1 {
		return
	}
	done, lettered := s.Done.Clone(), make(map[wire.Offset]bool)
	for _, letter := range s.Letters.Open {
		lettered[letter.Offset] = true
	}
	g.effects.NextOf(s.ID, h, s.Settings.Scope == wire.ScopePublisher, key.after, g.p.state.next, func(o wire.Offset) bool { return done.Has(o) || lettered[o] })
}

// headFound answers those who wait for a head.
func (g *Groups) headFound(key asked, at wire.Offset, ok bool, err error) {
	waiting := g.heads[key]
	delete(g.heads, key)
	for _, then := range waiting {
		then(at, ok, err)
	}
}

// settle makes records done.
func (g *Groups) settle(s *group.Group, in *Input) {
	var q wire.SettleRequest
	if !unmarshal(in, &q) {
		return
	}
	l := g.lead(s)
	spans := make([]group.Span, 0, len(q.Spans))
	last := uint64(0)
	for _, x := range q.Spans {
		if x.From >= x.To || x.From < last || wire.Offset(x.To) > g.p.state.next {
			in.Reply(nil, wire.Errorf(wire.CodeInvalidRequest, "records [%d, %d) of a partition that ends at %d, behind %d", x.From, x.To, g.p.state.next, last))
			return
		}
		last = x.To
		spans = append(spans, group.Span{From: wire.Offset(x.From), To: wire.Offset(x.To)})
	}
	switch {
	case len(spans) == 0 || len(spans) > wire.MaxSettle:
		in.Reply(nil, wire.Errorf(wire.CodeInvalidRequest, "%d stretches of records; name 1 to %d", len(spans), wire.MaxSettle))
	case l.Stops():
		in.Reply(nil, wire.Errorf(wire.CodeRetry, "the group is being changed by another order"))
	default:
		if q.GiveUp {
			l.GiveUp(spans, func() error { return g.stillIn(s, spans, q.Last) }, g.over(func(err error) { in.Reply([]byte("{}"), err) }))
		} else {
			l.Settle(spans, nil, g.over(func(err error) { in.Reply([]byte("{}"), err) }))
		}
		g.wake(l)
	}
}

// redrive sends dead letters back to where they come from.
func (g *Groups) redrive(s *group.Group, in *Input) {
	var q wire.RedriveRequest
	if !unmarshal(in, &q) {
		return
	}
	letters := make([]group.Letter, 0, min(len(q.Letters), wire.MaxRedrive))
	next := uint64(0)
	for i := range q.Letters {
		x := &q.Letters[i]
		if err := wire.ValidateName(x.To); err != nil {
			in.Reply(nil, err)
			return
		}
		if x.Offset < next || wire.Offset(x.Offset) >= g.p.state.next || i == wire.MaxRedrive {
			in.Reply(nil, wire.Errorf(wire.CodeInvalidRequest, "%d letters, one at offset %d of a partition that ends at %d, behind %d; name up to %d, by offset", len(q.Letters), x.Offset, g.p.state.next, next, wire.MaxRedrive))
			return
		}
		next = x.Offset + 1
		letters = append(letters, group.Letter{Offset: wire.Offset(x.Offset), Text: group.TargetText(x.To, x.Partition)})
	}
	l := g.lead(s)
	// One order at a time: what another group is about to send back is not seen before it is applied.
	if l.Stops() || g.redrives != nil && !g.redrives.closed {
		in.Reply(nil, wire.Errorf(wire.CodeRetry, "the group is being changed by another order, or another group sends letters back"))
		return
	}
	g.redrives = l
	l.Redrive(letters, func(o wire.Offset) (bool, error) { return g.othersOf(s, o) }, g.over(func(err error) {
		g.redrives = nil
		if in.Reply([]byte("{}"), err); err == nil {
			g.tryLetters(l)
		}
	}))
	g.wake(l)
}

// othersOf is what the other groups of the partition have to do with a dead letter that a group is
// to send back: gone says that one has it on its way, and the error names one that is not done with
// it, or begins and may not be. Whoever sent it back by that one later would send it a second time.
func (g *Groups) othersOf(s *group.Group, o wire.Offset) (gone bool, err error) {
	for other := range g.p.state.groups.All {
		switch {
		case other == s:
		case other.Redrives(o):
			return true, nil
		case !other.Done.Has(o):
			err = wire.Errorf(wire.CodeRefused, "group %q is not done with the letter at offset %d: settle it there first", other.Name, o)
		}
	}
	for i := range g.intents {
		if v := &g.intents[i]; g.p.state.groups.Group(v.ID) == nil {
			err = cmp.Or(err, error(wire.Errorf(wire.CodeRefused, "group %q begins, and may have the letter at offset %d: settle it there first", v.Name, o)))
		}
	}
	if err != nil && begunIgnored() {
		return false, nil
	}
	return false, err
}

// stillIn names another group that is not done with dead letters, or begins and may have them,
// when the last group is to give them up: they would be there again by that one.
func (g *Groups) stillIn(s *group.Group, spans []group.Span, last bool) error {
	if !last || begunIgnored() {
		return nil
	}
	for other := range g.p.state.groups.All {
		for _, x := range spans {
			if o := other.Done.Next(x.From); other != s && o < x.To {
				return wire.Errorf(wire.CodeRefused, "group %q is not done with the letter at offset %d: settle it there first", other.Name, o)
			}
		}
	}
	for i := range g.intents {
		if v := &g.intents[i]; g.p.state.groups.Group(v.ID) == nil {
			return wire.Errorf(wire.CodeRefused, "group %q begins, and may have the letters: settle them there first", v.Name)
		}
	}
	return nil
}

// openLetters shows the dead letters that are not written, or gives one up.
func (g *Groups) openLetters(s *group.Group, in *Input) {
	var q wire.LettersRequest
	if !unmarshal(in, &q) {
		return
	}
	l := g.lead(s)
	if q.Drop == nil {
		d := l.DescribeLetters()
		d.Removed = g.removedLetters()
		in.Reply(json.Marshal(d))
		return
	}
	l.DropLetter(wire.Offset(*q.Drop), func(err error) { in.Reply([]byte("{}"), err) })
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

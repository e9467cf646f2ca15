package group

import "github.com/lockstepmq/lockstep/wire"

// maxFirsts bounds the scopes whose first unfinished record a new leader looks up.
// Claims of further ones are refused: those records are delivered again.
const maxFirsts = 1 << 20

// firsts are the lowest unfinished records of all scopes, as far as [floor, scan) has
// been looked at. A leader that has just begun needs them to judge claims.
type firsts struct {
	of      map[Scope]wire.Offset
	scan    wire.Offset
	partial bool // some scopes are missing
	unread  Span // the first records that could not be read, which may have them
	chain   chain
}

// chain says which unfinished record of its scope comes before each that is not the lowest,
// where several of a scope are leased at once (window above 1): claims must leave none out.
type chain struct {
	last   map[Scope]wire.Offset
	before map[wire.Offset]wire.Offset
	cut    bool        // there were more than maxFirsts
	end    wire.Offset // then it is not known from here on, and claims there are refused
}

func (c *chain) add(h Scope, o wire.Offset) {
	switch {
	case c.last == nil || c.cut:
		return
	case len(c.before) >= maxFirsts:
		c.cut, c.end = true, o
		return
	}
	if p, known := c.last[h]; known {
		c.before[o] = p
	}
	c.last[h] = o
}

// follows reports whether a session that claims a record has all unfinished ones of its scope
// that come before.
func (l *Leader) follows(m *member, h Scope, o wire.Offset) bool {
	c := &l.firsts.chain
	if first, known := l.firsts.of[h]; known && first == o || !l.keeps(RuleGap) {
		return true
	}
	if c.cut && o >= c.end {
		return false
	}
	p, known := c.before[o]
	for known && l.g.Done.Has(p) { // it has expired
		p, known = c.before[p]
	}
	return !known || m.leases.find(p) != nil
}

// resolve finds out what is needed to judge the claims of an attach, and reports whether
// it is known: for a session that had its leases from another leader, the scopes of the
// records, and the first unfinished record of each.
func (l *Leader) resolve(a *attachment) bool {
	claims := a.request.Claims
	if l.kind != hashed || !a.member.waiting || len(claims) == 0 {
		return true
	}
	if a.scopes == nil {
		a.scopes = make(map[wire.Offset]Scope)
	}
	for ; a.claim < len(claims); a.claim, a.within = a.claim+1, 0 {
		for c := &claims[a.claim]; a.within < c.Count; a.within++ {
			o := c.Offset + wire.Offset(a.within)
			if o >= l.end || l.g.Done.Has(o) {
				continue
			}
			p, ok := l.feed.At(o)
			if !ok {
				l.wantScan(o)
				return false
			}
			a.scopes[o] = l.hashOf(p, o)
		}
	}
	return l.lookUp(min(claims[len(claims)-1].Next(), l.end))
}

// lookUp goes on with the search for first unfinished records up to a goal, by as much as
// one turn may, and reports whether it is there.
func (l *Leader) lookUp(goal wire.Offset) bool {
	f := &l.firsts
	if f.of == nil {
		f.of = make(map[Scope]wire.Offset)
		if l.g.Settings.Window > 1 {
			f.chain.last, f.chain.before = make(map[Scope]wire.Offset), make(map[wire.Offset]wire.Offset)
		}
	}
	for budget := turnRecords; f.scan < goal; {
		if f.scan = l.g.Done.Next(f.scan); f.scan >= goal {
			break
		}
		p, ok := l.feed.At(f.scan)
		if !ok {
			l.wantScan(f.scan)
			return false
		}
		if p.Erased {
			f.scan = p.Next()
			continue
		}
		if p.Damaged {
			if f.unread.From == f.unread.To {
				f.unread = Span{f.scan, p.Next()}
			}
			f.scan, f.partial = p.Next(), true
			continue
		}
		for ; f.scan < min(goal, p.Next()); f.scan++ {
			if budget--; budget < 0 {
				l.busy = true
				return false
			}
			h := l.hashOf(p, f.scan)
			if h == 0 || l.g.Done.Has(f.scan) || l.lettered[f.scan] {
				continue
			}
			f.chain.add(h, f.scan)
			if _, known := f.of[h]; known {
				continue
			}
			if len(f.of) >= maxFirsts {
				f.partial = true
				continue
			}
			f.of[h] = f.scan
		}
	}
	return true
}

// settleClaims decides on everything that a session says it holds. What it returns is
// refused, or known to be settled; all else is leased to the session from now on.
func (l *Leader) settleClaims(a *attachment, m *member) []wire.OutcomeAnswer {
	l.strays = maxStrays
	var refused []wire.OutcomeAnswer
	refuse := func(o wire.Offset, epoch wire.Index, code wire.ErrorCode) {
		if n := len(refused); n > 0 {
			if last := &refused[n-1]; last.Code == code && last.Epoch == epoch && last.Offset+wire.Offset(last.Count) == o {
				last.Count++
				return
			}
		}
		refused = append(refused, wire.OutcomeAnswer{Offset: o, Count: 1, Epoch: epoch, Code: code})
	}
	for i := range a.request.Claims {
		c := &a.request.Claims[i]
		if c.Kind == wire.OutcomeLostSeen {
			continue
		}
		for o := c.Offset; o < c.Next(); o++ {
			if code := l.claim(a, m, o, c.Epoch); code != wire.CodeOK || l.g.Done.Has(o) {
				refuse(o, c.Epoch, code)
			}
		}
	}
	return refused
}

// returnUnclaimed gives back what the session holds here and does not claim: it was lost
// on the way. What is claimed behind it goes back with it, and its claim will be
// refused, or the session would go on behind the gap.
func (l *Leader) returnUnclaimed(a *attachment, m *member) {
	if !l.keeps(RuleUnclaimed) {
		return
	}
	lost := cause{reason: wire.ReasonReturned, silent: true}
	for _, r := range l.unclaimed(m, a.request.Claims) {
		for from := r.from; from < r.to; {
			piece, ok := m.leases.within(from, r.to)
			if !ok {
				break
			}
			if from = piece.to; l.kind != shared {
				piece.to = piece.from + 1
				from = piece.to
			}
			if piece.state == held {
				l.giveBack(m, piece, lost)
			}
		}
	}
}

// undecided reports whether the end of a lease that is claimed is proposed and not applied.
func (l *Leader) undecided(a *attachment, m *member) bool {
	if !l.keeps(RuleStale) {
		return false
	}
	for i := range a.request.Claims {
		c := &a.request.Claims[i]
		for from := c.Offset; from < c.Next(); {
			piece, ok := m.leases.within(from, c.Next())
			if !ok {
				break
			}
			if piece.state == ending {
				return true
			}
			from = piece.to
		}
	}
	return false
}

// unclaimed are the runs that the session holds here and does not claim.
func (l *Leader) unclaimed(m *member, claims []wire.Outcome) []lease {
	var out []lease
	for _, r := range m.leases.held(0) {
		at := r.from
		for i := range claims {
			c := &claims[i]
			if c.Next() <= at || c.Kind == wire.OutcomeLostSeen {
				continue
			}
			if c.Offset >= r.to {
				break
			}
			if c.Epoch != r.epoch {
				continue
			}
			if at < c.Offset {
				piece := r
				piece.from, piece.to = at, c.Offset
				out = append(out, piece)
			}
			at = c.Next()
		}
		if at < r.to {
			piece := r
			piece.from = at
			out = append(out, piece)
		}
	}
	return out
}

// claim decides on one record. OK means that it is leased to the session, or done by it.
func (l *Leader) claim(a *attachment, m *member, o wire.Offset, epoch wire.Index) wire.ErrorCode {
	if o >= l.end {
		return wire.CodeOutOfRange
	}
	if r := m.leases.find(o); r != nil {
		switch { // it is not ending: see undecided
		case epoch < r.epoch:
			return wire.CodeStaleEpoch
		case epoch > r.epoch:
			return wire.CodeNotOwner
		}
		return wire.CodeOK
	}
	if l.g.Done.Has(o) {
		return l.g.Late(o, epoch)
	}
	if l.keeps(RuleFence) && (epoch < l.g.FenceOf(o) || epoch < l.g.Forgotten) || l.lettered[o] {
		return wire.CodeStaleEpoch
	}
	if !m.waiting || epoch > l.applied || o >= l.grace.bound {
		return l.late(m, o, epoch)
	}
	var s *scope
	if h := a.scopes[o]; h != 0 {
		if s = l.scopes[h]; s == nil {
			s = l.newScope(h)
		}
		if s.holder != nil && s.holder != m {
			return wire.CodeStaleEpoch
		}
		l.take(m, s, o)
	} else if l.granted.Has(o) {
		return wire.CodeStaleEpoch
	}
	l.granted.Add(o, o+1)
	if !l.keeps(RuleKeepEpoch) {
		epoch = l.applied
	}
	m.lease(lease{from: o, to: o + 1, epoch: epoch, since: l.now})
	m.held++
	l.holder = m
	if o >= l.scan {
		l.ahead.add(lease{from: o, to: o + 1})
	}
	if s != nil && len(s.leased) == 1 {
		// An earlier record of the scope that nobody claims must come before this one.
		if first, known := l.firsts.of[s.hash]; !known || first != o && !l.g.Done.Has(first) {
			piece, _ := m.leases.within(o, o+1)
			l.takeBack(m, piece, cause{reason: wire.ReasonReturned, counted: true})
			return wire.CodeStaleEpoch
		}
	}
	if s != nil && (s.ending > 0 || !l.follows(m, s.hash, o)) || l.kind == single && l.gap(a, m) < o { // the one before it was refused, or is not claimed
		piece, _ := m.leases.within(o, o+1)
		l.takeBack(m, piece, cause{reason: wire.ReasonReturned, counted: true})
		return wire.CodeStaleEpoch
	}
	return wire.CodeOK
}

// gap is the lowest record that is not finished and not leased to the session, where the
// partition is one scope. Claims ascend: what the search has passed it does not look at again.
func (l *Leader) gap(a *attachment, m *member) wire.Offset {
	if !l.keeps(RuleGap) {
		return l.end
	}
	a.gap = l.g.Done.Next(max(a.gap, l.g.Done.Floor()))
	for a.gap < l.end && (l.lettered[a.gap] || m.leases.find(a.gap) != nil) {
		a.gap = l.g.Done.Next(a.gap + 1)
	}
	return a.gap
}

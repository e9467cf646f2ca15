package group

import "github.com/lockstepmq/lockstep/wire"

// HandOver stops giving records out and has the leases committed for the leader that is to
// follow by plan. Done hears when that is applied; until then the leadership must not be
// given away, and after an error this leader goes on with Stay. What consumers say
// meanwhile counts as ever.
func (l *Leader) HandOver(done func(error)) {
	l.frozen = true
	l.handed++
	if l.waiting > 0 && l.keeps(RuleWhole) {
		done(wire.Errorf(wire.CodeRetry, "%d sessions have not said yet what the leader before this one gave them", l.waiting))
		return
	}
	var table []TableLease
	for _, m := range l.members {
		for _, r := range m.leases.all() {
			table = append(table, TableLease{Session: m.session, Epoch: r.epoch, From: r.from, To: r.to})
		}
	}
	sortTable(table)
	command := AppendTable(nil, l.g.ID, table)
	if len(command) > MaxPayload/2 {
		done(wire.Errorf(wire.CodeTooLarge, "the %d leases of group %s do not fit into one entry", len(table), l.g.Name))
		return
	}
	l.next.orders = append(l.next.orders, Order{Command: command, Done: done})
}

// Stay gives up a hand-over: the leases that were committed are void, and when that is
// applied records are given out again.
func (l *Leader) Stay() {
	handed := l.handed
	l.next.orders = append(l.next.orders, Order{Command: AppendTableVoid(nil, l.g.ID), Done: func(err error) {
		if err == nil && handed == l.handed { // and it was not begun again since
			l.frozen = false
		}
	}})
}

// takeOver takes the leases that the leader before has handed over, except for those that
// have ended since.
func (l *Leader) takeOver(table []TableLease) {
	for i := range table {
		t := &table[i]
		m := l.members[t.Session]
		if m == nil {
			continue
		}
		for o := t.From; o < t.To; o++ {
			if l.g.Done.Has(o) || t.Epoch < l.g.FenceOf(o) {
				continue
			}
			m.lease(lease{from: o, to: o + 1, epoch: t.Epoch, since: l.now})
			m.held++
			l.holder = m
			l.ahead.add(lease{from: o, to: o + 1})
			if l.kind == hashed {
				l.table = append(l.table, lease{from: o, to: o + 1})
			}
		}
	}
}

// resolveTable finds the scopes of the leases that were taken over and reports whether all
// are known. Before that nothing is given out and nobody attaches.
func (l *Leader) resolveTable() bool {
	for budget := turnRecords; len(l.table) > 0; budget-- {
		o := l.table[0].from
		p, ok := l.feed.At(o)
		if !ok {
			l.wantScan(o)
			return false
		}
		if budget == 0 {
			l.busy = true
			return false
		}
		l.table = l.table[1:]
		l.adopt(p, o)
	}
	return true
}

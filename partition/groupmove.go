package partition

import "cmp"

// HandOver has the leases of all groups committed for a leader that is to follow by plan,
// and gives nothing out from then on. Then is called once, in an owner's turn, with an
// error if they are not all there: the next leader waits for the consumers, then. Either
// the leadership is given away, or Stay is called. Owner only; a turn has to follow.
func (g *Groups) HandOver(then func(error)) {
	left, failed := 1+len(g.leads), error(nil)
	done := func(err error) {
		failed = cmp.Or(failed, err)
		if left--; left == 0 {
			then(failed)
		}
	}
	for _, l := range g.leads {
		l.HandOver(done)
		g.wake(l)
	}
	done(nil)
}

// Stay has the groups go on after a hand-over that has come to nothing. Owner only; a turn
// has to follow.
func (g *Groups) Stay() {
	for _, l := range g.leads {
		l.Stay()
		g.wake(l)
	}
}

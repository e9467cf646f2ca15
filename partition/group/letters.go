package group

import "github.com/lockstepmq/lockstep/wire"

// unpark as the head of a park says that the scope goes on.
const unpark = ^wire.Offset(0)

// verdict decides on a record that has failed and reports whether it does not go back to
// be tried again. The decision is in the entry that would have returned it, so that
// nothing of its scope goes out before it is applied.
func (l *Leader) verdict(m *member, piece lease, r Return, c cause) bool {
	s := &l.g.Settings
	reject := c.verdict == wire.OutcomeReject
	if !c.attempt || !reject && (s.DeliveryLimit == 0 || uint32(r.Attempts) < s.DeliveryLimit) {
		return false
	}
	reason := uint8(1)
	if reject {
		reason = 2
	}
	switch s.DeadLetterMode {
	case wire.DeadLetterRecord:
		for o := r.From; o < r.To; o++ {
			l.number = max(l.number, l.g.Letters.Next)
			one := r
			one.From, one.To = o, o+1
			l.next.letters = append(l.next.letters, sent{
				back:   back{member: m, ret: one, epoch: piece.epoch, asked: c.asked, lost: !c.asked && !c.silent, reason: c.reason},
				letter: Letter{Number: l.number, Offset: o, Deliveries: r.Deliveries, Attempts: r.Attempts, Reason: reason, Text: c.text},
			})
			l.number++
		}
		return true
	case wire.DeadLetterPark:
		for o := r.From; o < r.To; o++ {
			h := l.scopeOf(o)
			l.parking[h]++
			l.next.parks = append(l.next.parks, park{scope: h, head: o, reason: "delivery limit"})
		}
	}
	return false
}

// appliedLetter has a dead letter written.
func (l *Leader) appliedLetter(s *sent) {
	l.lettered[s.letter.Offset] = true
	l.gone(&s.back)
	if sc := l.leave(s.letter.Offset); sc != nil {
		l.ready(sc)
	}
	l.want.Letters = append(l.want.Letters, s.letter)
}

// LetterWritten notes that a dead letter is where it belongs: its record is done.
func (l *Leader) LetterWritten(number uint64) {
	if _, open := l.g.Letters.Open[number]; open {
		l.next.written = append(l.next.written, number)
	}
}

func (l *Leader) appliedWritten(uint64) {
	for o := range l.lettered {
		if l.g.Done.Has(o) {
			delete(l.lettered, o)
		}
	}
}

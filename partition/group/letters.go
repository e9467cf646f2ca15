package group

import (
	"fmt"

	"github.com/lockstepmq/lockstep/wire"
)

// MaxLetters bounds the dead letters of a group that are not written in one partition.
// Beyond it a record that has failed too often goes back to be tried again, as if the limit
// were higher.
const MaxLetters = 10_000

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
		l.number = max(l.number, l.g.Letters.Next) // those between the two are on their way
		if len(l.lettered)+int(l.number-l.g.Letters.Next)+int(r.To-r.From) > l.letterLimit {
			return false
		}
		for o := r.From; o < r.To; o++ {
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
		if l.parked()+int(r.To-r.From) > l.parkLimit {
			return false
		}
		why := "delivery limit"
		if reject {
			why = "rejected: " + c.text
		}
		for o := r.From; o < r.To; o++ {
			h := l.scopeOf(o)
			l.parking[h]++
			l.next.parks = append(l.next.parks, park{scope: h, head: o, reason: why})
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
	if l.refusal.code != wire.CodeOK && number >= l.refusal.number {
		l.refusal = refusal{}
	}
}

// Lettered reports whether the record at o is a dead letter that is not written yet.
func (l *Leader) Lettered(o wire.Offset) bool { return l.lettered[o] }

// DropLetter gives up a dead letter that is not written, by the offset of its record.
func (l *Leader) DropLetter(o wire.Offset, done func(error)) {
	for number, letter := range l.g.Letters.Open {
		if letter.Offset == o {
			l.Order(Order{Command: AppendLetterDone(nil, l.g.ID, number), Done: func(err error) {
				l.appliedWritten()
				done(err)
			}})
			return
		}
	}
	done(wire.Errorf(wire.CodeRefused, "no dead letter of the record at offset %d waits", o))
}

// DescribeLetters says which dead letters are not written, and why.
func (l *Leader) DescribeLetters() wire.LettersResponse {
	const most = 1000
	d := wire.LettersResponse{To: l.g.Settings.DeadLetter, Count: uint64(len(l.g.Letters.Open))}
	if d.Count == 0 {
		return d
	}
	d.Problem = l.advice()
	for _, number := range sorted(l.g.Letters.Open)[:min(most, len(l.g.Letters.Open))] {
		x := l.g.Letters.Open[number]
		d.Letters = append(d.Letters, wire.LetterInfo{
			Number: number, Offset: uint64(x.Offset), Deliveries: x.Deliveries, Attempts: x.Attempts, Reason: x.Why(), Text: x.Text,
		})
	}
	return d
}

// Why is the reason of a letter, as its header has it.
func (l *Letter) Why() string {
	if l.Reason == 2 {
		return "rejected"
	}
	return "delivery limit"
}

// refusal is why a letter could not be written.
type refusal struct {
	number uint64
	code   wire.ErrorCode
	text   string
}

// LetterFailed notes why a letter could not be written, for those who ask. It is tried
// again.
func (l *Leader) LetterFailed(number uint64, err error) {
	if _, open := l.g.Letters.Open[l.refusal.number]; !open || number <= l.refusal.number || l.refusal.code == wire.CodeOK {
		l.refusal = refusal{number: number, code: wire.CodeOf(err), text: err.Error()}
	}
}

// Forgotten is the order by which the producer of letters begins again, if the partition
// that they go to has said that it does not know it or that one is missing. That partition
// sees to it that nothing is written twice.
func (l *Leader) Forgotten(done func(error)) (Order, bool) {
	if c := l.refusal.code; c != wire.CodeUnknownProducer && c != wire.CodeOutOfSequence {
		return Order{}, false
	}
	l.refusal = refusal{}
	s := &l.g.Letters
	return Order{Command: AppendLetterProducer(nil, l.g.ID, s.Producer, s.Epoch+1), Done: done}, true
}

// advice says what to do about letters that are not written.
func (l *Leader) advice() string {
	to := l.g.Settings.DeadLetter
	switch r := &l.refusal; r.code {
	case wire.CodeOK:
		return "they are on their way"
	case wire.CodeUnknownDestination, wire.CodeDestinationGone:
		return fmt.Sprintf("there is no %q: create it, or name another one for dead letters", to)
	case wire.CodePartitionFull:
		return fmt.Sprintf("%q is full: redrive or purge what it holds, or raise its threshold", to)
	case wire.CodeSendDisabled:
		return fmt.Sprintf("a partition of %q is closed to new records: open it", to)
	case wire.CodeTooLarge:
		return fmt.Sprintf("the record at offset %d is too large for %q: let that take larger records, or skip it by its offset", l.g.Letters.Open[r.number].Offset, to)
	case wire.CodeCorrupt:
		return fmt.Sprintf("the record at offset %d cannot be read: repair it, or skip it by its offset", l.g.Letters.Open[r.number].Offset)
	default:
		return fmt.Sprintf("%q does not take them (%s); they are tried again", to, r.text)
	}
}

// appliedWritten forgets the letters that are done.
func (l *Leader) appliedWritten() {
	for o := range l.lettered {
		if l.g.Done.Has(o) {
			delete(l.lettered, o)
		}
	}
}

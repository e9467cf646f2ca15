package group

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"

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
	reason := DeliveryLimit
	if reject {
		reason = Rejected
	}
	switch s.DeadLetterMode {
	case wire.DeadLetterRecord:
		l.number = max(l.number, l.g.Letters.Next) // those between the two are on their way
		if len(l.g.Letters.Open)+int(l.number-l.g.Letters.Next)+int(r.To-r.From) > l.letterLimit {
			return false
		}
		for o := r.From; o < r.To; o++ {
			one := r
			one.From, one.To = o, o+1
			l.next.letters = append(l.next.letters, sent{
				back:   back{member: m, ret: one, epoch: piece.epoch, asked: c.asked, lost: !c.asked, reason: c.reason},
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
	delete(l.refused, number)
	l.refusal = refusal{}
	if _, open := l.g.Letters.Open[number]; open {
		l.next.written = append(l.next.written, number)
	}
}

// SendLetters has committed that letters may be sent, in this order.
func (l *Leader) SendLetters(numbers []uint64, done func(error)) {
	l.Order(Order{Command: AppendLetterSend(nil, l.g.ID, numbers), Done: done})
}

// MoveLetters has committed that letters are written in another way from now on, and that next
// is the next sequence of the producer before, which will take no more.
func (l *Leader) MoveLetters(p Path, next uint32, done func(error)) {
	l.Order(Order{Command: AppendLetterPath(nil, l.g.ID, &p, next), Done: func(err error) {
		l.appliedWritten()
		done(err)
	}})
}

// Redrive has dead letters sent back where their Text says (TargetText): it and Offset are set. Those that the group is done with, or that are on their way, are
// passed over. others says what the other groups of the partition have to do with a record: one that
// they have sent back this group is done with, and an error leaves all letters where they are. The
// group stops for it, so that no consumer has what goes.
func (l *Leader) Redrive(letters []Letter, others func(wire.Offset) (gone bool, err error), done func(error)) {
	if n := len(l.g.Letters.Open); n+len(letters) > l.letterLimit {
		done(wire.Errorf(wire.CodeTooMany, "%d letters of this partition are on their way, and %d may be: lockstep dlq ls says what they wait for", n, l.letterLimit))
		return
	}
	var refused error
	answer := func(err error) { done(cmp.Or(err, refused)) }
	l.Order(Order{Drain: true, Reason: wire.ReasonPark, Done: answer, Make: func() []byte {
		number := max(l.number, l.g.Letters.Next)
		var gone []Span
		var command []byte
		for _, x := range letters {
			if l.g.Done.Has(x.Offset) || l.lettered[x.Offset] {
				continue
			}
			sent, err := others(x.Offset)
			if err != nil {
				refused = err
				return AppendOutcomes(nil, l.g.ID, nil, nil)
			}
			if sent {
				gone = append(gone, Span{x.Offset, x.Offset + 1})
				continue
			}
			known, _ := l.g.Record(x.Offset)
			x.Number, x.Reason, x.Deliveries, x.Attempts = number, Redriven, known.Deliveries, known.Attempts
			number++
			command = AppendLetter(command, l.g.ID, Session{}, &x)
		}
		l.number = number
		return AppendOutcomes(command, l.g.ID, gone, nil) // which may be none: an entry says something
	}})
}

// Target is where a letter goes back to, or false if it goes where the group says.
func (l *Letter) Target() (destination string, partition uint32, back bool) {
	if l.Reason != Redriven {
		return "", 0, false
	}
	at := strings.LastIndexByte(l.Text, '/')
	n, err := strconv.ParseUint(l.Text[at+1:], 10, 32)
	if at < 0 || err != nil {
		return l.Text, math.MaxUint32, true // there is no such partition
	}
	return l.Text[:at], uint32(n), true
}

// TargetText is the Text of a letter that goes back.
func TargetText(destination string, partition uint32) string {
	return fmt.Sprintf("%s/%d", destination, partition)
}

// Lettered reports whether the record at o is a dead letter that is not written yet.
func (l *Leader) Lettered(o wire.Offset) bool { return l.lettered[o] }

// DropLetter gives up the dead letters that are not written of the record at o.
func (l *Leader) DropLetter(o wire.Offset, done func(error)) {
	var command []byte
	for number, letter := range l.g.Letters.Open {
		if letter.Offset == o {
			delete(l.refused, number)
			command = AppendLetterDone(command, l.g.ID, number)
		}
	}
	if command == nil {
		done(wire.Errorf(wire.CodeRefused, "no dead letter of the record at offset %d waits", o))
		return
	}
	l.Order(Order{Command: command, Done: func(err error) {
		l.appliedWritten()
		done(err)
	}})
}

// DropLetters gives up all dead letters that are not written.
func (l *Leader) DropLetters(done func(error)) {
	var command []byte
	for _, number := range sorted(l.g.Letters.Open) {
		command = AppendLetterDone(command, l.g.ID, number)
	}
	l.Order(Order{Command: command, Done: func(err error) {
		l.appliedWritten()
		done(err)
	}})
}

// DescribeLetters says which dead letters are not written, and why.
func (l *Leader) DescribeLetters() wire.LettersResponse {
	const most = 1000
	d := wire.LettersResponse{To: l.g.Settings.DeadLetter, Count: uint64(len(l.g.Letters.Open))}
	if d.Count == 0 {
		return d
	}
	d.Problem = l.advice(nil)
	for _, number := range sorted(l.g.Letters.Open)[:min(most, len(l.g.Letters.Open))] {
		x := l.g.Letters.Open[number]
		d.Letters = append(d.Letters, wire.LetterInfo{
			Number: number, Offset: uint64(x.Offset), Deliveries: x.Deliveries, Attempts: x.Attempts, Reason: x.Reason.String(), Text: x.Text,
			Problem: l.problemOf(number),
		})
	}
	return d
}

// problemOf is why a letter waits that others do not wait for.
func (l *Leader) problemOf(number uint64) string {
	if r, refused := l.refused[number]; refused {
		return l.advise(r, l.g.Letters.Open[number].Offset)
	}
	return ""
}

// refusal is why a letter could not be written.
type refusal struct {
	code wire.ErrorCode
	text string
	back string // where it should go back to; "": it goes where the group says
}

// LettersFailed notes why no letters could be written, for those who ask: nil if they can be.
// They are tried again.
func (l *Leader) LettersFailed(err error) {
	if l.refusal = (refusal{}); err != nil {
		l.refusal = refusal{code: wire.CodeOf(err), text: err.Error()}
	}
}

// LetterFailed notes why one letter could not be written, which others do not wait for: nil
// if it can be.
func (l *Leader) LetterFailed(number uint64, err error) {
	if err == nil {
		delete(l.refused, number)
		return
	}
	if l.refused == nil {
		l.refused = make(map[uint64]refusal)
	}
	x := l.g.Letters.Open[number]
	back, _, _ := x.Target()
	l.refused[number] = refusal{wire.CodeOf(err), err.Error(), back}
}

// advice says what to do about letters that are not written: about all of a group, or about
// that of the record at o.
func (l *Leader) advice(o *wire.Offset) string {
	var first uint64
	alone := 0
	for number := range l.refused {
		if x, open := l.g.Letters.Open[number]; !open || o != nil && x.Offset != *o {
			continue
		}
		if alone++; alone == 1 || number < first {
			first = number
		}
	}
	if alone == 0 || o == nil && l.refusal.code != wire.CodeOK {
		return l.advise(l.refusal, 0)
	}
	text := l.advise(l.refused[first], l.g.Letters.Open[first].Offset)
	if alone > 1 {
		text += fmt.Sprintf("; %d more wait each for itself, see dlq ls", alone-1)
	}
	return text
}

// advise says what to do about a refusal, of the letter of the record at o.
func (l *Leader) advise(r refusal, o wire.Offset) string {
	to := cmp.Or(r.back, l.g.Settings.DeadLetter)
	switch r.code {
	case wire.CodeOK:
		return "they are on their way"
	case wire.CodeUnknownDestination, wire.CodeDestinationGone, wire.CodeUnknownPartition:
		if r.back != "" {
			return fmt.Sprintf("%q, where they come from, is gone: create it again, or give them up with lockstep dlq purge", to)
		}
		if to == "" {
			return "the group names no destination for dead letters any more: name one, or skip them by their offsets"
		}
		return fmt.Sprintf("there is no %q: create it, or name another one for dead letters", to)
	case wire.CodePartitionFull:
		if r.back != "" {
			return fmt.Sprintf("%q is full: let its consumers go on, or raise its threshold", to)
		}
		return fmt.Sprintf("%q is full: redrive or purge what it holds, or raise its threshold", to)
	case wire.CodeSendDisabled:
		return fmt.Sprintf("a partition of %q is closed to new records: open it", to)
	case wire.CodeTooLarge:
		return fmt.Sprintf("the record at offset %d is too large for %q: let that take larger records, or skip it by its offset", o, to)
	case wire.CodeCorrupt, wire.CodeErased:
		return fmt.Sprintf("the record at offset %d cannot be read: repair it, or skip it by its offset", o)
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
	for number := range l.refused {
		if _, open := l.g.Letters.Open[number]; !open {
			delete(l.refused, number)
		}
	}
}

package partition

import (
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/partition/group"
)

const (
	// maxLetters bounds the dead letters of a group that Effects.Letter has and that are not
	// done.
	maxLetters = 64
	// letterRetry is after how long letters are tried again that could not be written; it
	// doubles up to letterRetryMax.
	letterRetry    = 500 * time.Millisecond
	letterRetryMax = 8 * time.Second
)

// letters are the dead letters of a group on their way. They are written in the order of
// their numbers: if one cannot be, those behind it wait.
type letters struct {
	sent  map[uint64]bool // true: written, which is not applied yet
	pause time.Duration   // before the next attempt
	rests time.Duration   // until then; 0: nothing has failed
}

// writeLetters hands letters of a group on, the lowest first.
func (g *Groups) writeLetters(l *lead) {
	open := l.group.Letters.Open
	for number := range l.letters.sent {
		if _, still := open[number]; !still {
			delete(l.letters.sent, number)
		}
	}
	if l.letters.rests > 0 || len(open) <= len(l.letters.sent) || len(l.letters.sent) >= maxLetters {
		return
	}
	var numbers []uint64
	for number := range open {
		if _, sent := l.letters.sent[number]; !sent {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	if l.letters.sent == nil {
		l.letters.sent = make(map[uint64]bool)
	}
	for _, number := range numbers[:min(len(numbers), maxLetters-len(l.letters.sent))] {
		l.letters.sent[number] = false
		g.effects.Letter(l.group, open[number])
	}
}

// LetterWritten says that Effects.Letter has written a letter, or why it could not: then
// it and all of the group that it was to write after it are tried again. Any goroutine;
// the caller sees to a turn.
func (p *Partition) LetterWritten(id group.ID, number uint64, err error) {
	g := &p.groups
	g.result(func() {
		l := g.leads[id]
		switch {
		case l == nil:
		case err != nil:
			l.LetterFailed(number, err)
			g.restLetters(l)
		default:
			l.letters.pause = 0
			if _, sent := l.letters.sent[number]; sent {
				l.letters.sent[number] = true
			}
			l.Leader.LetterWritten(number)
			g.wake(l)
		}
	})
}

// restLetters has the letters of a group that are not written tried again in a while.
func (g *Groups) restLetters(l *lead) {
	for number, written := range l.letters.sent {
		if !written {
			delete(l.letters.sent, number)
		}
	}
	if l.letters.rests == 0 {
		g.resting = append(g.resting, l)
	}
	l.letters.pause = min(max(2*l.letters.pause, letterRetry), letterRetryMax)
	l.letters.rests = g.now + l.letters.pause
}

// retryLetters tries again what has rested. A producer that was forgotten begins again
// first.
func (g *Groups) retryLetters() {
	g.resting = slices.DeleteFunc(g.resting, func(l *lead) bool {
		if !l.closed && l.letters.rests > g.now {
			return false
		}
		l.letters.rests = 0
		if l.closed {
			return true
		}
		again := func(err error) {
			if err == nil {
				g.writeLetters(l)
			}
		}
		if order, forgotten := l.Forgotten(again); forgotten {
			l.Order(order)
			g.wake(l)
		} else {
			again(nil)
		}
		return true
	})
}

// LetterProducer brings the ID of a producer for the dead letters of a group, or why there
// is none yet. Any goroutine; the caller sees to a turn.
func (p *Partition) LetterProducer(id group.ID, producer int64, err error) {
	g := &p.groups
	g.result(func() {
		l := g.leads[id]
		if l == nil {
			return
		}
		again := func(err error) {
			if g.restLetters(l); err == nil {
				l.letters.rests, l.letters.pause = g.now, 0 // at once
			}
		}
		if err != nil {
			again(err)
			return
		}
		l.Order(group.Order{Command: group.AppendLetterProducer(nil, id, producer, 0), Done: again})
		g.wake(l)
	})
}

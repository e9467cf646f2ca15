package partition

import (
	"cmp"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// maxLetters bounds the dead letters that a round sends, and those that it looks at meanwhile
	// for the next one. So twice as many may have been written that a new leader does not know to be.
	maxLetters = 128
	// letterRetry is after how long letters are tried again that could not be written; it
	// doubles up to letterRetryMax.
	letterRetry    = 200 * time.Millisecond
	letterRetryMax = 2 * time.Second
)

// letters are the dead letters of a group on their way. They are written in rounds, one at a
// time, each by Effects.Letters. A round sends what may be sent, in its order, and looks meanwhile
// which others can be: those are noted in the log before the next round sends them, and one that
// cannot be is left out for a while. So a letter waits for no other one but what was sent
// before it, and a leader that begins knows of every letter that may have been written.
type letters struct {
	written map[uint64]bool  // which is not applied yet
	round   *LetterRound     // that is not over
	busy    bool             // what a round has found is being committed
	renew   bool             // the way in which they are written is over
	again   bool             // a renewal has brought nothing yet
	rests   time.Duration    // until then nothing is tried; 0: nothing has failed
	pause   time.Duration    // after the next failure
	alone   map[uint64]retry // letters that could not be written, which others do not wait for
	wake    time.Duration    // when something is to be tried again; 0: nothing is
	// way is a letter that goes where the last ones went, and ways are those, by the Text of
	// letters on their way back, that take none at the moment: they keep their order.
	way  *group.Letter
	ways map[string]retry
}

// retry is when something is tried again, and how long it rests before the time after that.
type retry struct{ at, pause time.Duration }

func (r retry) next(now time.Duration) retry {
	pause := min(max(2*r.pause, letterRetry), letterRetryMax)
	return retry{now + pause, pause}
}

// LetterRound is what one round is about: letters that go to one partition. It does not change.
type LetterRound struct {
	Group    group.ID
	Name, To string // of the group; of the destination that they go to
	// Back says that they are dead letters on their way back, to the partition with a Number;
	// others go to the one that the source's leads to.
	Back   bool
	Number uint32
	Path   group.Path
	// Renew asks for another Path, before anything is sent. It is needed too if there is none
	// yet, or To is another destination by now.
	Renew    bool
	Sent     []group.Letter         // in the order of their sequences, from Path.Sequence on
	Fresh    []group.Letter         // that are not sent before they are noted
	Repaired map[wire.Offset][]byte // body batches to write instead of what is stored
}

// LetterResult is how a round has ended.
type LetterResult struct {
	// Path is what letters are written by from now on, if it is not nil. Nothing more will be
	// written by the one before, of whose producer Next is the next sequence.
	Path *group.Path
	Next uint32
	// Ready are fresh letters that can be sent, and Refused those that cannot, and why.
	Ready   []uint64
	Refused map[uint64]error
	// Renew says that nothing more is taken of the Path. Err is why nothing was.
	Renew bool
	Err   error
}

// writeLetters begins a round, if there is something to do and none runs.
func (g *Groups) writeLetters(l *lead) {
	t, open := &l.letters, &l.group.Letters
	if t.round != nil || t.busy || len(open.Open) == 0 || t.rests > g.now {
		return
	}
	t.rests = 0
	for number := range t.written {
		if _, still := open.Open[number]; !still {
			delete(t.written, number)
		}
	}
	r := &LetterRound{Group: l.group.ID, Name: l.group.Name, Path: open.Path, Renew: t.renew}
	sent := make(map[uint64]bool, len(open.Sent))
	for i, number := range open.Sent {
		if t.written[number] && i == len(sent) {
			sent[number] = true
			r.Path.Sequence++
			continue
		}
		x, still := open.Open[number]
		if !still { // it was given up: what is behind it has no sequence that is taken
			r.Renew = true
			break
		}
		sent[number] = true
		r.Sent = append(r.Sent, x)
	}
	g.fresh(l, r, sent)
	switch {
	case len(r.Sent) > 0:
		r.to(l, &r.Sent[0])
	case len(r.Fresh) > 0:
		r.to(l, &r.Fresh[0])
	default:
		return
	}
	for _, list := range [][]group.Letter{r.Sent, r.Fresh} {
		for i := range list {
			if b := l.group.Substitutes[list[i].Offset]; b != nil {
				if r.Repaired == nil {
					r.Repaired = make(map[wire.Offset][]byte)
				}
				r.Repaired[list[i].Offset] = b
			}
		}
	}
	t.round = r
	g.effects.Letters(r)
}

// to says where the letters of a round go.
func (r *LetterRound) to(l *lead, x *group.Letter) {
	if r.To, r.Number, r.Back = x.Target(); !r.Back {
		r.To = l.group.Settings.DeadLetter
	}
}

// together reports whether two letters go the same way.
func together(a, b *group.Letter) bool {
	return (a.Reason == group.Redriven) == (b.Reason == group.Redriven) && (a.Reason != group.Redriven || a.Text == b.Text)
}

// maxOvertaken is how many numbers a letter may be behind those that go before it because
// they go where the ones before them went: to go elsewhere costs two fences.
const maxOvertaken = 1024

// fresh adds the letters that are to be looked at: the lowest that do not rest, of those that
// go one way. That is the way of what was sent before, as long as it does not keep others
// waiting.
func (g *Groups) fresh(l *lead, r *LetterRound, sent map[uint64]bool) {
	t, open := &l.letters, l.group.Letters.Open
	for number := range t.alone {
		if _, still := open[number]; !still {
			delete(t.alone, number)
		}
	}
	if len(open) == len(sent) {
		return
	}
	going := make(map[string]bool)
	before := g.sentBefore(l)
	for number, x := range open {
		back := x.Reason == group.Redriven && len(t.ways) > 0
		if going[x.Text] = going[x.Text] || back; back && t.ways[x.Text].at > g.now {
			continue
		}
		if since, others := before[x.Text]; others && x.Reason == group.Redriven && since < x.Since {
			g.queued = true
			l.LetterFailed(number, errBehind)
			continue
		}
		if t.alone[number].at <= g.now && !sent[number] {
			r.Fresh = append(r.Fresh, x)
		}
	}
	maps.DeleteFunc(t.ways, func(way string, _ retry) bool { return !going[way] })
	sort.Slice(r.Fresh, func(i, j int) bool { return r.Fresh[i].Number < r.Fresh[j].Number })
	if len(r.Fresh) == 0 {
		return
	}
	first, goes := r.Fresh[0], t.way
	if len(r.Sent) > 0 {
		goes = &r.Sent[0]
	}
	if i := slices.IndexFunc(r.Fresh, func(x group.Letter) bool {
		return goes != nil && together(&x, goes) && x.Number < first.Number+maxOvertaken
	}); i >= 0 {
		first = r.Fresh[i]
	} else if len(r.Sent) > 0 { // when these are there the lowest goes
		r.Fresh = nil
		return
	}
	r.Fresh = slices.DeleteFunc(r.Fresh, func(x group.Letter) bool { return !together(&x, &first) })
	r.Fresh = r.Fresh[:min(len(r.Fresh), maxLetters)]
	t.way = &first
}

// errBehind is why a letter waits for those of another group, see sentBefore.
var errBehind = wire.Errorf(wire.CodeRetry, "what another group has sent back before goes first")

// sentBefore is, by where they go, since when letters of other groups of the partition are on
// their way back, as far as letters of this one go there too. Those that were sent back later
// wait, also for a group that is removed, so that they arrive in the order in which they were
// sent back. Nobody waits for a letter that waits for itself.
func (g *Groups) sentBefore(l *lead) map[string]wire.Index {
	if waysIgnored() {
		return nil
	}
	var before map[string]wire.Index
	for _, x := range l.group.Letters.Open {
		if x.Reason == group.Redriven {
			if before == nil {
				before = make(map[string]wire.Index)
			}
			before[x.Text] = math.MaxUint64
		}
	}
	if before == nil {
		return nil
	}
	for other := range g.p.state.groups.All {
		if other == l.group {
			continue
		}
		var alone map[uint64]retry
		if led := g.leads[other.ID]; led != nil {
			alone = led.letters.alone
		}
		for number, x := range other.Letters.Open {
			if since, same := before[x.Text]; same && x.Reason == group.Redriven && x.Since < since {
				if _, waits := alone[number]; !waits {
					before[x.Text] = x.Since
				}
			}
		}
	}
	return before
}

// dequeue tries the letters that have waited for those of other groups.
func (g *Groups) dequeue() {
	if !g.queued {
		return
	}
	g.queued = false
	for _, l := range g.leads {
		if len(l.group.Letters.Open) > 0 {
			g.tryLetters(l)
		}
	}
}

// removedLetters are the letters of groups that are removed, by group.
func (g *Groups) removedLetters() (all []wire.RemovedLetters) {
	for s := range g.p.state.groups.All {
		if s.Removed {
			all = append(all, wire.RemovedLetters{Group: s.Name, LettersResponse: g.lead(s).DescribeLetters()})
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Group < all[j].Group })
	return all
}

// giveUpRemoved gives up the letters of the removed groups of one name: there may have been
// several.
func (g *Groups) giveUpRemoved(in *Input) {
	var named []*group.Group
	var answer wire.LettersResponse
	for s := range g.p.state.groups.All {
		if s.Removed && s.Name == in.Group {
			named = append(named, s)
			answer.Count += uint64(len(s.Letters.Open))
		}
	}
	if len(named) == 0 {
		in.Reply(json.Marshal(answer))
		return
	}
	waits := len(named)
	var failed error
	for _, s := range named {
		l := g.lead(s)
		l.DropLetters(func(err error) {
			if wire.CodeOf(err) != wire.CodeGroupGone { // with its last letter it is
				failed = cmp.Or(failed, err)
			}
			if waits--; waits > 0 {
				return
			}
			if failed != nil {
				in.Reply(nil, failed)
				return
			}
			in.Reply(json.Marshal(answer))
		})
		g.wake(l)
	}
}

// LetterWritten says that a round has written a letter. Any goroutine; the caller sees to a
// turn.
func (p *Partition) LetterWritten(r *LetterRound, number uint64) {
	g := &p.groups
	g.result(func() {
		if l := g.leads[r.Group]; l != nil {
			l.letters.pause, l.letters.again = 0, false
			if l.letters.written == nil {
				l.letters.written = make(map[uint64]bool)
			}
			l.letters.written[number] = true
			l.Leader.LetterWritten(number)
			g.wake(l)
		}
	})
}

// LettersDone says how a round has ended. Any goroutine; the caller sees to a turn.
func (p *Partition) LettersDone(r *LetterRound, result LetterResult) {
	g := &p.groups
	g.result(func() {
		if l := g.leads[r.Group]; l != nil && l.letters.round == r {
			l.letters.round = nil
			if r.Back {
				l.backFailed(r, &result, g.now)
			}
			g.endRound(l, &result)
			g.wake(l)
		}
	})
}

// backFailed has letters rest that cannot go back where they come from: those that go elsewhere
// go on, unless it is not known which of these are there.
func (l *lead) backFailed(r *LetterRound, result *LetterResult, now time.Duration) {
	t, all := &l.letters, slices.Concat(r.Sent, r.Fresh)
	if result.Err == nil {
		delete(t.ways, all[0].Text)
		return
	}
	if t.ways == nil {
		t.ways = make(map[string]retry)
	}
	t.ways[all[0].Text] = t.ways[all[0].Text].next(now)
	for _, x := range all {
		l.LetterFailed(x.Number, result.Err)
	}
	if len(r.Sent) == 0 {
		result.Err = nil
	}
}

// endRound takes in what a round has found.
func (g *Groups) endRound(l *lead, result *LetterResult) {
	t := &l.letters
	l.LettersFailed(result.Err)
	t.renew = result.Renew || t.renew && result.Path == nil // a Path that is over stays so
	for number, err := range result.Refused {
		if t.alone == nil {
			t.alone = make(map[uint64]retry)
		}
		t.alone[number] = t.alone[number].next(g.now)
		l.LetterFailed(number, err)
	}
	if len(result.Refused) > 0 {
		g.dequeue()
	}
	for _, number := range result.Ready {
		delete(t.alone, number)
		l.LetterFailed(number, nil)
	}
	committed := func(err error) {
		if t.busy = false; err == nil {
			g.tryLetters(l)
		}
	}
	switch {
	case result.Path != nil:
		t.busy, t.again = true, true
		l.MoveLetters(*result.Path, result.Next, committed)
	case len(result.Ready) > 0:
		t.busy = true
		l.SendLetters(result.Ready, committed)
	}
	if result.Err != nil || t.renew && t.again { // a new way that takes nothing rests too
		next := retry{pause: t.pause}.next(g.now)
		t.rests, t.pause = next.at, next.pause
	}
	g.tryLetters(l)
}

// tryLetters begins a round, or has a turn taken when there is something to try again.
func (g *Groups) tryLetters(l *lead) {
	t := &l.letters
	if g.writeLetters(l); t.round != nil || t.busy {
		return // what they end with tries again
	}
	listed := t.wake > 0
	t.wake = t.rests
	for number, x := range t.alone {
		if _, open := l.group.Letters.Open[number]; open && t.rests == 0 && (t.wake == 0 || x.at < t.wake) {
			t.wake = max(x.at, g.now+letterRetry) // one that is due waits for those on their way
		}
	}
	for _, x := range t.ways {
		if t.rests == 0 && (t.wake == 0 || x.at < t.wake) {
			t.wake = max(x.at, g.now+letterRetry)
		}
	}
	if t.wake > 0 && !listed {
		g.resting = append(g.resting, l)
	}
}

// retryLetters tries again what has rested.
func (g *Groups) retryLetters() {
	due := g.resting[:0:0]
	g.resting = slices.DeleteFunc(g.resting, func(l *lead) bool {
		if !l.closed && l.letters.wake > g.now {
			return false
		}
		if l.letters.wake = 0; !l.closed {
			due = append(due, l)
		}
		return true
	})
	for _, l := range due {
		g.tryLetters(l)
	}
}

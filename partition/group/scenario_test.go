package group

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/wire"
)

// rig is one Leader over a State, step by step: entries are applied when a test says so.
type rig struct {
	t       testing.TB
	state   *State
	leader  *Leader
	now     time.Duration
	applied wire.Index
	end     wire.Offset
	places  []Place
	entries [][]byte // proposed and not applied
	want    Want
	unheard bool                 // no quorum round ends
	hidden  map[wire.Offset]bool // bases of batches that the feed does not know
}

func newRig(t testing.TB, s Settings, without ...Rule) *rig {
	t.Helper()
	if len(without) > 0 && !invariants.Enabled {
		t.Skip("rules can be taken away in builds with invariants only")
	}
	r := &rig{t: t, state: NewState(), now: time.Second}
	s = s.WithDefaults()
	r.state.Term(1)
	r.apply(AppendPut(nil, 1, 1, "g", &s, 0, PutQueue))
	r.lead(without...)
	return r
}

func (r *rig) lead(without ...Rule) {
	r.applied++
	r.entries = nil
	r.leader = NewLeader(r.state.Group(1), r, r.now, r.applied)
	r.leader.Without(without...)
}

func (r *rig) At(o wire.Offset) (*Place, bool) {
	for i := range r.places {
		if p := &r.places[i]; o < p.Next() {
			return p, !r.hidden[p.Base]
		}
	}
	return nil, false
}

func (r *rig) apply(data []byte) {
	r.applied++
	for len(data) > 0 {
		n := binary.LittleEndian.Uint32(data[4:])
		r.state.Apply(r.applied, Command(data[0]), data[1], data[8:8+n])
		data = data[8+n:]
	}
}

// produce appends one batch with a record for each key hash.
func (r *rig) produce(keys ...uint64) {
	p := Place{Base: r.end, Count: len(keys), BatchBytes: 100 * len(keys)}
	for _, k := range keys {
		p.Index = binary.LittleEndian.AppendUint64(p.Index, k)
		p.Index = append(p.Index, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	r.places = append(r.places, p)
	r.applied++
	r.end = p.Next()
	r.state.Appended(r.end)
}

// turn takes a turn and proposes; nothing of it is applied.
func (r *rig) turn() {
	for r.leader.Turn(r.now, r.applied, r.end) {
	}
	if data, ok := r.leader.Propose(nil, 1<<20); ok {
		r.entries = append(r.entries, data)
	}
	w := r.leader.Wants()
	r.want.Letters = append(r.want.Letters, w.Letters...)
	r.want.Find = append(r.want.Find, w.Find...)
	r.want.Scan = append(r.want.Scan, w.Scan...)
	if w.Confirm && !r.unheard {
		r.leader.Confirmed(nil)
		r.turn()
	}
}

// settle takes turns and applies what they propose until there is nothing left.
func (r *rig) settle() {
	for r.turn(); len(r.entries) > 0; r.turn() {
		data := r.entries[0]
		r.entries = r.entries[1:]
		r.apply(data)
		r.leader.Applied(r.applied)
	}
}

func (r *rig) pass(d time.Duration) {
	r.now += d
	r.turn()
}

// overdue lets time pass until what a consumer holds and says nothing about is taken back.
func (r *rig) overdue(c *recorder) {
	r.t.Helper()
	for range 18 { // the ack wait of 30 s, and 5 s to stop
		require.Empty(r.t, r.entries)
		r.now += 2 * time.Second
		r.leader.Heard(c, r.now)
		r.turn()
	}
	require.Len(r.t, c.revokes, 1)
	require.Len(r.t, r.entries, 1)
}

// recorder is a link that writes down what it hears.
type recorder struct {
	r        *rig
	session  Session
	attempt  uint64
	response *wire.AttachResponse
	refused  error
	grants   []wire.Grant
	answers  []wire.OutcomeAnswer
	revokes  []wire.Revoke
	lost     []wire.Lost
	numbers  []uint64
	closed   bool
	reason   error
}

func (c *recorder) Attached(r *wire.AttachResponse, err error) { c.response, c.refused = r, err }
func (c *recorder) Deliver(d *Delivery)                        { c.grants = append(c.grants, d.Grants...) }
func (c *recorder) Answer(a []wire.OutcomeAnswer)              { c.answers = append(c.answers, a...) }
func (c *recorder) Revoke(v []wire.Revoke)                     { c.revokes = append(c.revokes, v...) }
func (c *recorder) Lost(v []wire.Lost)                         { c.lost = append(c.lost, v...) }
func (c *recorder) Confirmed(n uint64)                         { c.numbers = append(c.numbers, n) }
func (c *recorder) Closed(err error)                           { c.closed, c.reason = true, err }

// attach begins a link of the session that a letter stands for.
func (r *rig) attach(name byte, attempt uint64, capacity uint32, claims ...wire.Outcome) *recorder {
	c := &recorder{r: r, session: Session{name}, attempt: attempt}
	r.leader.Attach(c, &wire.AttachRequest{
		Session: c.session, Attempt: attempt, Term: 1, Capacity: capacity, Refill: capacity / 2, Claims: claims,
	}, "", 1, r.now)
	r.settle()
	return c
}

// offsets are the records that the consumer got so far.
func (c *recorder) offsets() (out []wire.Offset) {
	for _, g := range c.grants {
		for i := range g.Count {
			out = append(out, g.Offset+wire.Offset(i))
		}
	}
	return out
}

// say sends an outcome of one record under the epoch of its last grant.
func (c *recorder) say(kind wire.OutcomeKind, o wire.Offset) {
	var epoch wire.Index
	for _, g := range c.grants {
		if g.Offset <= o && o < g.Offset+wire.Offset(g.Count) {
			epoch = g.Epoch
		}
	}
	c.sayUnder(kind, o, epoch)
}

func (c *recorder) sayUnder(kind wire.OutcomeKind, o wire.Offset, epoch wire.Index) {
	c.r.leader.Outcomes(c, []wire.Outcome{{Offset: o, Count: 1, Epoch: epoch, Kind: kind}}, c.r.now)
	c.r.turn()
}

// code is the last answer about a record, -1 for none.
func (c *recorder) code(o wire.Offset) wire.ErrorCode {
	code := wire.ErrorCode(-1)
	for _, a := range c.answers {
		if a.Offset <= o && o < a.Offset+wire.Offset(a.Count) {
			code = a.Code
		}
	}
	return code
}

var (
	sharedGroup = Settings{Mode: wire.ModeShared}
	keyGroup    = Settings{Mode: wire.ModeSerial}
)

// Rule 24, T4: what waits behind the first record of its scope was not begun: the broker asks
// for the first alone, and that one alone has failed.
func TestRule24_OnlyTheHeadOfAScopeTakesTooLong(t *testing.T) {
	for _, s := range []Settings{{Mode: wire.ModeStream}, {Mode: wire.ModeSerial, Window: 3}} {
		r := newRig(t, s)
		r.produce(1, 1, 1)
		a := r.attach('A', 1, 5)
		r.overdue(a)
		require.Equal(t, []wire.Offset{0}, []wire.Offset{a.revokes[0].Offset})
		require.EqualValues(t, 1, a.revokes[0].Count)
		r.settle()
		for o, attempts := range []uint16{1, 0, 0} {
			known, _ := r.state.Group(1).Record(wire.Offset(o))
			require.Equal(t, []uint16{1, attempts}, []uint16{known.Deliveries, known.Attempts}, "record %d", o)
		}
		require.EqualValues(t, 1, a.lost[0].Offset, "the first is told last, or the consumer would go on behind it")
	}
}

// What a consumer says while the end of its lease is proposed is answered when that is
// applied. Told at once that it is stale, it would forget what it has done; and if the
// entry dies with the leader, nobody knows that the record was started.
func TestNothingIsRefusedBeforeTheEndOfItsLeaseIsCommitted(t *testing.T) {
	begin := func(t *testing.T) (*rig, *recorder, wire.Outcome) {
		r := newRig(t, sharedGroup)
		r.produce(0)
		a := r.attach('A', 1, 10)
		r.overdue(a)
		return r, a, wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeAck}
	}
	t.Run("the entry dies with its leader", func(t *testing.T) {
		r, a, done := begin(t)
		a.say(wire.OutcomeAck, 0)
		require.Empty(t, a.answers)
		require.Empty(t, a.lost)
		r.lead()
		a = r.attach('A', 2, 10, done)
		require.Equal(t, wire.CodeOK, a.code(0))
		require.Empty(t, a.grants)
	})
	t.Run("the entry is applied", func(t *testing.T) {
		r, a, _ := begin(t)
		a.say(wire.OutcomeAck, 0)
		r.settle()
		require.Equal(t, []wire.Lost{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Reason: wire.ReasonAckWait}}, a.lost)
		require.Empty(t, a.answers)
	})
	t.Run("an attach waits, too", func(t *testing.T) {
		r, a, done := begin(t)
		again := &recorder{r: r, session: a.session, attempt: 2}
		r.leader.Attach(again, &wire.AttachRequest{
			Session: a.session, Attempt: 2, Term: 1, Capacity: 10, Claims: []wire.Outcome{done},
		}, "", 1, r.now)
		r.turn()
		require.Nil(t, again.response)
		r.settle()
		require.Len(t, again.response.Refused, 1)
		require.Equal(t, wire.CodeStaleEpoch, again.response.Refused[0].Code)
	})
}

// A handler that an operator wants to stop may be at work until it has said that it has
// stopped, or its session is over: only then may another get the record.
func TestParkNowAsksTheHolder(t *testing.T) {
	begin := func(t *testing.T) (*rig, *recorder) {
		r := newRig(t, keyGroup)
		r.produce(5)
		a := r.attach('A', 1, 10)
		require.Len(t, a.grants, 1)
		return r, a
	}
	park := func(r *rig) {
		r.leader.Park(5, "broken", true, nil)
		r.settle()
		r.leader.Unpark(5, nil)
		r.settle()
	}
	t.Run("it answers", func(t *testing.T) {
		r, a := begin(t)
		park(r)
		b := r.attach('B', 1, 10)
		require.Len(t, a.revokes, 1)
		require.Equal(t, wire.ReasonPark, a.revokes[0].Reason)
		require.Empty(t, b.grants)
		a.say(wire.OutcomeReleased, 0)
		r.settle()
		require.Len(t, append(a.grants[1:], b.grants...), 1)
	})
	t.Run("it does not answer", func(t *testing.T) {
		r, a := begin(t)
		park(r)
		for range 5 {
			r.now += time.Second
			r.leader.Heard(a, r.now)
			r.settle()
			require.Empty(t, a.lost)
		}
		r.now += time.Second
		r.leader.Heard(a, r.now)
		r.settle()
		require.Equal(t, []wire.Lost{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Reason: wire.ReasonPark}}, a.lost)
	})
	t.Run("it cannot be asked", func(t *testing.T) {
		r, a := begin(t)
		held := a.grants[0]
		r.leader.Gone(a, false)
		park(r)
		b := r.attach('B', 1, 10)
		require.Empty(t, b.grants)
		a = r.attach('A', 2, 10, wire.Outcome{Offset: 0, Count: 1, Epoch: held.Epoch})
		require.Empty(t, a.response.Refused)
		require.Len(t, a.revokes, 1)
		require.Equal(t, wire.ReasonPark, a.revokes[0].Reason)
		require.Empty(t, b.grants)
		r.heard(a, r.leader.patience()-1)
		require.Empty(t, a.lost)
		r.heard(a, 1)
		require.Len(t, a.lost, 1, "and it does not answer now either")
	})
	t.Run("the others are not", func(t *testing.T) {
		r := newRig(t, keyGroup)
		r.produce(5, 6)
		a := r.attach('A', 1, 10)
		for range 2 { // said twice it is asked once
			park(r)
		}
		require.Equal(t, []wire.Revoke{{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Reason: wire.ReasonPark, GraceMs: wire.DefaultRevokeMs}}, a.revokes)
	})
}

// Each case is what a rule is for: it holds, and does not without the rule.
var soleGroup = Settings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination, Holder: wire.HolderSole}

func TestLeaderRules(t *testing.T) {
	for _, c := range []struct {
		name     string
		settings Settings
		rule     Rule
		holds    func(r *rig) bool
	}{
		{"an attach that is older than the last is ignored", sharedGroup, RuleAttempt, func(r *rig) bool {
			now := r.attach('A', 2, 10)
			late := r.attach('A', 1, 10)
			return late.refused != nil && !now.closed
		}},
		{"a claim below the fence of its record is refused", sharedGroup, RuleFence, func(r *rig) bool {
			r.produce(0)
			a := r.attach('A', 1, 10)
			epoch := a.grants[0].Epoch
			r.overdue(a)
			r.settle()
			r.lead(r.without()...)
			a = r.attach('A', 2, 10, wire.Outcome{Offset: 0, Count: 1, Epoch: epoch})
			return len(a.response.Refused) == 1 && a.response.Refused[0].Code == wire.CodeStaleEpoch
		}},
		{"what is said of a record that is being taken back does not count", sharedGroup, RuleStale, func(r *rig) bool {
			r.produce(0)
			a := r.attach('A', 1, 10)
			r.overdue(a)
			a.say(wire.OutcomeAck, 0)
			r.settle()
			return len(a.lost) == 1 && a.code(0) == -1 && !r.state.Group(1).Done.Has(0)
		}},
		{"a suspect session that is the only one gets records", sharedGroup, RuleSuspect, func(r *rig) bool {
			r.produce(0)
			a := r.attach('A', 1, 10)
			r.overdue(a)
			r.settle()
			r.pass(time.Second)
			return len(a.offsets()) == 2
		}},
		{"another session becomes the active one when the one before holds nothing", Settings{Mode: wire.ModeStream}, RuleActive, func(r *rig) bool {
			r.produce(0)
			a := r.attach('A', 1, 10)
			r.attach('B', 1, 10)
			r.leader.Leave(a, true, r.now)
			r.settle()
			return r.state.Group(1).Active == Session{'A'}
		}},
		{"acks of a scope are taken in order", Settings{Mode: wire.ModeSerial, Window: 2}, RuleInOrder, func(r *rig) bool {
			r.produce(5, 5)
			a := r.attach('A', 1, 10)
			a.say(wire.OutcomeAck, 1)
			r.settle()
			return a.code(1) == wire.CodeOutOfOrder
		}},
		{"a session that was removed is not listed again", sharedGroup, RuleKnown, func(r *rig) bool {
			a := r.attach('A', 1, 10)
			r.pass(wire.DefaultSessionMs * time.Millisecond)
			r.settle()
			if !a.closed {
				r.t.Fatal("it was not removed")
			}
			late := &recorder{r: r}
			r.leader.Attach(late, &wire.AttachRequest{Session: a.session, Attempt: 2, Capacity: 1, Flags: wire.AttachKnown}, "", 1, r.now)
			r.settle()
			return late.refused == wire.CodeSessionGone
		}},
		{"an ack is answered when it is applied", sharedGroup, RuleCommitted, func(r *rig) bool {
			r.produce(0)
			a := r.attach('A', 1, 10)
			a.say(wire.OutcomeAck, 0)
			return a.code(0) == -1
		}},
		{"the next record of a key goes to another session when the ack is applied", keyGroup, RuleSameHolder, func(r *rig) bool {
			r.produce(5, 5)
			a := r.attach('A', 1, 1)
			b := r.attach('B', 1, 1)
			r.leader.Capacity(a, &wire.GroupCapacity{Records: 1})
			a.say(wire.OutcomeAck, 0)
			return len(b.offsets()) == 0
		}},
		{"a new leader waits for the sessions of the one before", sharedGroup, RuleWait, func(r *rig) bool {
			r.produce(0)
			r.attach('A', 1, 10)
			r.lead(r.without()...)
			return len(r.attach('B', 1, 10).offsets()) == 0
		}},
		{"R-SIB-26: a second consumer of a group that takes one is refused", soleGroup, RuleSole, func(r *rig) bool {
			r.produce(0)
			r.attach('A', 1, 10)
			refused := r.attach('B', 1, 10).refused
			r.lead(r.without()...)
			later := r.attach('C', 1, 10).refused // the next leader knows too
			return wire.CodeOf(refused) == wire.CodeRefused && wire.CodeOf(later) == wire.CodeRefused && r.attach('A', 2, 10).response != nil
		}},
		{"a record that a session did not see is given out again", sharedGroup, RuleUnclaimed, func(r *rig) bool {
			r.produce(0)
			r.attach('A', 1, 10)
			return len(r.attach('A', 2, 10).offsets()) == 1
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.True(t, c.holds(newRig(t, c.settings)), "with the rule")
			require.False(t, c.holds(newRig(t, c.settings, c.rule)), "without the rule")
		})
	}
}

// without are the rules that the leader works without.
func (r *rig) without() (out []Rule) {
	for x := range rules {
		if !r.leader.keeps(x) {
			out = append(out, x)
		}
	}
	return out
}

// What is said of records that a session does not hold.
func TestLeaderAnswersWhatItDidNotAsk(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0, 0)
	a := r.attach('A', 1, 2)
	b := r.attach('B', 1, 2)
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	require.Equal(t, []wire.Offset{2}, b.offsets())

	epoch := a.grants[0].Epoch
	b.sayUnder(wire.OutcomeAck, 0, epoch)
	require.Equal(t, wire.CodeStaleEpoch, b.code(0), "of another")
	b.sayUnder(wire.OutcomeAck, 3, epoch)
	require.Equal(t, wire.CodeOutOfRange, b.code(3), "beyond the end")
	a.sayUnder(wire.OutcomeAck, 0, epoch-1)
	require.Equal(t, wire.CodeStaleEpoch, a.code(0), "under an older lease")
	a.sayUnder(wire.OutcomeAck, 0, epoch+1)
	require.Equal(t, wire.CodeNotOwner, a.code(0), "under a lease to come")
	r.settle()

	a.say(wire.OutcomeAck, 0)
	a.say(wire.OutcomeAck, 0)
	a.say(wire.OutcomeNack, 0)
	n := len(a.answers)
	r.settle()
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 0, Count: 1, Epoch: epoch}}, a.answers[n:], "one answer for all")
	a.say(wire.OutcomeAck, 0)
	require.Equal(t, wire.CodeOK, a.code(0), "again, when it is done")
	require.Equal(t, wire.Offset(1), r.state.Group(1).Done.Floor())
}

func TestLeaderRestsAFailedRecordLongerEachTime(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeSerial, BackoffMs: 100, BackoffMaxMs: 250})
	r.produce(5, 5, 6)
	a := r.attach('A', 1, 10)
	require.Equal(t, []wire.Offset{0, 2}, a.offsets())
	for attempt, rest := range []time.Duration{100, 200, 250, 250} {
		a.say(wire.OutcomeNack, 0)
		r.settle()
		n := len(a.grants)
		r.pass((rest - 1) * time.Millisecond)
		require.Len(t, a.grants, n, "attempt %d: it rests", attempt)
		require.Equal(t, r.now+time.Millisecond, r.leader.Deadline(), "attempt %d", attempt)
		r.pass(time.Millisecond)
		require.Len(t, a.grants, n+1, "attempt %d", attempt)
		g := a.grants[n]
		require.Equal(t, wire.Grant{
			Offset: 0, Count: 1, Epoch: g.Epoch, Deliveries: uint16(attempt + 2), Attempts: uint16(attempt + 1), Flags: wire.GrantRedelivered,
		}, g)
	}
	a.say(wire.OutcomeAck, 0)
	r.settle()
	require.Equal(t, wire.Offset(1), a.grants[len(a.grants)-1].Offset)
}

func TestLeaderKeepsToTheCapacityAndTheRefill(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(make([]uint64, 20)...)
	a := r.attach('A', 1, 10)
	require.Len(t, a.offsets(), 10)
	for o := range wire.Offset(4) {
		a.say(wire.OutcomeAck, o)
		r.settle()
	}
	require.Len(t, a.offsets(), 10, "above the refill nothing comes")
	a.say(wire.OutcomeAck, 4)
	require.Len(t, a.offsets(), 15)
}

func TestLeaderWritesARecordThatFailsTooOftenAsALetter(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeSerial, DeliveryLimit: 2, BackoffMs: 1, BackoffMaxMs: 1, DeadLetter: "dead"})
	r.produce(5, 5)
	a := r.attach('A', 1, 10)
	a.say(wire.OutcomeNack, 0)
	r.settle()
	r.pass(time.Millisecond)
	a.say(wire.OutcomeNack, 0)
	require.Equal(t, []wire.Offset{0, 0}, a.offsets(), "nothing goes out before the verdict is applied")
	r.settle()
	require.Equal(t, []wire.Offset{0, 0, 1}, a.offsets())
	require.Equal(t, []Letter{{Offset: 0, Deliveries: 2, Attempts: 2, Reason: 1}}, r.want.Letters)
	a.say(wire.OutcomeAck, 1)
	r.settle()
	require.Equal(t, wire.Offset(0), r.state.Group(1).Done.Floor(), "the record stays until the letter is written")
	r.leader.LetterWritten(0)
	r.settle()
	require.Equal(t, wire.Offset(2), r.state.Group(1).Done.Floor())
	require.Empty(t, r.leader.scopes)
}

// A key with a backlog takes turns with the others.
func TestLeaderLetsNoKeyStarve(t *testing.T) {
	r := newRig(t, keyGroup)
	for range 20 {
		r.produce(1, 1, 1, 1, 1, 1, 1, 1, 1, 2)
	}
	r.produce(3)
	a := r.attach('A', 1, 3)
	for n := 0; r.state.Group(1).Done.Floor() < r.end; n++ {
		require.Less(t, n, 1000)
		g := a.grants[n]
		a.say(wire.OutcomeAck, g.Offset)
		r.finish()
		if g.Offset == r.end-1 {
			require.Less(t, n, 70, "the last key waits for its share only")
		}
	}
	require.Empty(t, r.leader.scopes)
}

// A key that nearly all records are of gets the same share of the credit as any other
// that has records: as many of a consumer's places as the window allows, and deliveries in
// turns.
func TestAHotKeyGetsItsShareOfTheCredit(t *testing.T) {
	settings := keyGroup
	settings.Window = 2
	r := newRig(t, settings)
	for range 60 {
		r.produce(1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5)
	}
	a := r.attach('A', 1, 10)
	hot, handled := 0, 0
	for n := range 5 * 60 { // as long as all keys have records
		held := 0
		for _, o := range r.leader.members[a.session].leases.all() {
			for at := o.from; at < o.to; at++ {
				if p, _ := r.At(at); r.leader.hashOf(p, at) == 1 {
					held++
				}
			}
		}
		require.LessOrEqual(t, held, 2)
		o := a.offsets()[n]
		if p, _ := r.At(o); r.leader.hashOf(p, o) == 1 {
			hot++
		}
		handled++
		a.say(wire.OutcomeAck, o)
		r.finish()
	}
	t.Logf("%d of %d deliveries were of the hot key", hot, handled)
	require.InDelta(t, 60, hot, 12, "a fifth of the deliveries for one of five keys")
}

// finish is settle that also answers what is looked for.
func (r *rig) finish() {
	for r.settle(); len(r.want.Find) > 0; r.settle() {
		f := r.want.Find[0]
		r.want.Find = r.want.Find[1:]
		at, ok := r.find(f)
		r.leader.Found(f.Scope, f.After, at, ok)
	}
}

// find is a search as partition has it: a damaged record may be what is looked for.
func (r *rig) find(f Find) (wire.Offset, bool) {
	for o := f.After + 1; o < f.Below; o++ {
		p, _ := r.At(o)
		if (p.Damaged || r.leader.hashOf(p, o) == f.Scope) && !r.state.Group(1).Done.Has(o) {
			return o, true
		}
	}
	return 0, false
}

func TestLeaderParksAKeyAndGoesOnWithTheOthers(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5, 5, 6)
	a := r.attach('A', 1, 10)
	var said []error
	r.leader.Park(5, "broken", false, func(err error) { said = append(said, err) })
	r.turn()
	a.say(wire.OutcomeAck, 0)
	a.say(wire.OutcomeAck, 2)
	r.settle()
	require.Equal(t, []error{nil}, said)
	require.Equal(t, []wire.Offset{0, 2}, a.offsets(), "who has the head may finish, and nothing follows")
	require.Equal(t, "broken", r.state.Group(1).Parked[5].Reason)

	r.lead()
	a = r.attach('A', 2, 10)
	require.Empty(t, a.offsets(), "it is parked for the next leader too")
	r.leader.Unpark(5, nil)
	r.settle()
	require.Equal(t, []wire.Offset{1}, a.offsets())
}

// What is parked is listed in the order in which it was, with since when: exactly by the leader
// that saw it, at least for the next one. What is not parked any more is not kept in mind.
func TestLeaderListsWhatIsParked(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5, 6, 5)
	listed := func() []wire.ParkedScope {
		var d wire.GroupPartition
		r.leader.Describe(&d)
		return d.ParkedScopes
	}
	r.leader.Park(6, "b", false, nil)
	r.settle()
	r.now += 2 * time.Second
	r.leader.Reaches(r.end, r.now)
	r.leader.Park(5, "a", false, nil)
	r.settle()
	r.now += time.Second
	r.leader.Reaches(r.end, r.now)
	require.Equal(t, []wire.ParkedScope{{Scope: 6, Reason: "b", ForMs: 3000}, {Scope: 5, Reason: "a", ForMs: 1000}}, listed())
	r.leader.Unpark(6, nil)
	r.settle()
	r.leader.Park(6, "b", false, nil)
	r.settle()
	require.Equal(t, []wire.ParkedScope{{Scope: 5, Reason: "a", ForMs: 1000}, {Scope: 6, Reason: "b"}}, listed(), "anew")
	r.lead()
	r.now += 4 * time.Second
	r.leader.Reaches(r.end, r.now)
	require.Equal(t, []wire.ParkedScope{{Scope: 5, Reason: "a", ForMs: 4000, AtLeast: true}, {Scope: 6, Reason: "b", ForMs: 4000, AtLeast: true}}, listed())

	r.leader.parkLimit = 4
	r.leader.Unpark(5, nil)
	for h := range Scope(100) { // they come and go, as records that are their own scope do
		r.leader.noteParked(1000+h, true)
	}
	r.settle()
	require.LessOrEqual(t, len(r.leader.parkedAt), 4)
	require.Len(t, listed(), 1)
	for h := range Scope(wire.MaxParkedShown) {
		r.state.Group(1).Parked[2000+h] = Park{Since: 1 << 40}
	}
	require.Len(t, listed(), wire.MaxParkedShown)
}

func TestLeaderSkipsTheHeadOfAKey(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5, 5)
	a := r.attach('A', 1, 10)
	var skipped []wire.Offset
	head, ok := r.leader.Head(5)
	require.True(t, ok)
	five := Scope(5)
	r.leader.Settle([]Span{{head, head + 1}}, &five, func(err error) {
		require.NoError(t, err)
		skipped = append(skipped, head)
	})
	r.settle()
	require.Len(t, a.revokes, 1, "the one who works on it is asked to stop")
	require.Empty(t, skipped)
	a.say(wire.OutcomeReleased, 0)
	r.settle()
	require.Equal(t, []wire.Offset{0}, skipped)
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	require.Equal(t, wire.Offset(1), r.state.Group(1).Done.Floor())
}

func TestLeaderParksAKeyWhoseHeadHasFailedTooOften(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeSerial, DeliveryLimit: 1, DeadLetterMode: wire.DeadLetterPark, BackoffMs: 1})
	r.produce(5, 5, 6, 0)
	a := r.attach('A', 1, 10)
	a.say(wire.OutcomeNack, 0)
	a.say(wire.OutcomeNack, 3)
	r.settle()
	r.pass(time.Second)
	require.Equal(t, []wire.Offset{0, 2, 3}, a.offsets())
	require.Contains(t, r.state.Group(1).Parked, Scope(5))
	require.Contains(t, r.state.Group(1).Parked, Scope(3), "a record without a key is parked by its offset")
	r.leader.Unpark(5, nil)
	r.leader.Unpark(3, nil)
	r.settle()
	require.ElementsMatch(t, []wire.Offset{0, 2, 3, 0, 3}, a.offsets())
}

func TestLeaderExplains(t *testing.T) {
	codes := func(r *rig, q wire.ExplainRequest) (out []string) {
		for _, reason := range r.leader.Explain(&q, 1_000_000).Reasons {
			out = append(out, reason.Code)
		}
		return out
	}
	at := func(o uint64) wire.ExplainRequest { return wire.ExplainRequest{Offset: &o} }
	key := []byte("k")

	r := newRig(t, Settings{Mode: wire.ModeSerial, BackoffMs: 500})
	require.Empty(t, codes(r, wire.ExplainRequest{}), "nothing stands still")
	r.produce(uint64(HashOf(key)), uint64(HashOf(key)), 7)
	r.turn()
	require.Equal(t, []string{"no_consumer"}, codes(r, wire.ExplainRequest{}))
	a := r.attach('A', 1, 1)
	require.Equal(t, []string{"held"}, codes(r, at(0)))
	require.Equal(t, []string{"no_credit", "held"}, codes(r, wire.ExplainRequest{Key: &key}))
	require.Equal(t, []string{"no_credit", "behind_scan"}, codes(r, at(2)))
	require.Equal(t, []string{"not_there"}, codes(r, at(3)))
	a.say(wire.OutcomeAck, 0)
	require.Equal(t, []string{"ack_not_committed"}, codes(r, at(0)))
	r.settle()
	require.Equal(t, []string{"done"}, codes(r, at(0)))
	a.say(wire.OutcomeNack, 1)
	require.Equal(t, []string{"revoking"}, codes(r, at(1)))
	r.settle()
	reasons := r.leader.Explain(&wire.ExplainRequest{Key: &key}, 1_000_000).Reasons
	require.Equal(t, "backoff", reasons[len(reasons)-1].Code)
	require.Equal(t, int64(1_000_500), reasons[len(reasons)-1].UntilMs)
	r.leader.Park(HashOf(key), "broken", false, nil)
	r.settle()
	reasons = r.leader.Explain(&wire.ExplainRequest{Key: &key}, 0).Reasons
	require.Equal(t, "The key of the record at offset 1, which browse shows, is parked from there on: broken.", reasons[len(reasons)-1].Text)

	r.leader.Order(Order{Drain: true, Reason: wire.ReasonSeek, Command: AppendSeek(nil, 1, 0, 0)})
	r.turn()
	require.Equal(t, []string{"draining", "no_credit", "parked"}, codes(r, wire.ExplainRequest{}))
	r.lead()
	require.Equal(t, []string{"waiting_for_session"}, codes(r, wire.ExplainRequest{})[:1])

	r = newRig(t, sharedGroup)
	r.produce(0)
	a = r.attach('A', 1, 1)
	a.say(wire.OutcomeAck, 0)
	zero := at(0)
	said := r.leader.Explain(&zero, 1_000_000).Reasons[0]
	require.Equal(t, "ack_not_committed", said.Code)
	require.Zero(t, said.SinceMs, "when that was said is not known, only when it went out")
}

// A record at or above the horizon waits until a higher one is committed, and is said to.
func TestExplainNamesAHorizonThatIsNotCommitted(t *testing.T) {
	r := newRig(t, Settings{Mode: wire.ModeShared})
	a := r.attach('A', 1, 10)
	r.state.Group(1).Horizon = 2
	r.produce(5, 6, 7)
	r.turn()
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	reasons := r.leader.Explain(&wire.ExplainRequest{}, 0).Reasons
	require.Len(t, reasons, 1)
	require.Equal(t, "horizon_not_committed", reasons[0].Code)
	require.Contains(t, reasons[0].Text, "Records from offset 2 on")
	r.settle()
	require.Equal(t, []wire.Offset{0, 1, 2}, a.offsets())
	require.Empty(t, r.leader.Explain(&wire.ExplainRequest{}, 0).Reasons)
}

// Who has the first record is said also where the group has not come to those behind it: of a whole
// partition, and of a key whose consumer has no room.
func TestExplainSaysWhoHoldsWhatTheUnseenRestMayWaitFor(t *testing.T) {
	for name, c := range map[string]struct {
		settings Settings
		room     uint32
		codes    []string
	}{
		"a partition": {Settings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination}, 10, []string{"held"}},
		"a stream":    {Settings{Mode: wire.ModeStream}, 1, []string{"no_credit", "held"}},
		"a key":       {keyGroup, 1, []string{"no_credit", "held"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.settings)
			r.produce(5, 5)
			a := r.attach('A', 1, c.room)
			r.settle()
			require.Equal(t, []wire.Offset{0}, a.offsets())
			r.now += time.Second
			r.leader.Reaches(r.end, r.now)
			codes := func(q *wire.ExplainRequest) (out []string) {
				for _, reason := range r.leader.Explain(q, 1_000_000).Reasons {
					if out = append(out, reason.Code); reason.Code == "held" {
						require.Equal(t, []uint64{0, 999_000}, []uint64{*reason.Offset, uint64(reason.SinceMs)})
					}
				}
				return out
			}
			require.Equal(t, c.codes, codes(&wire.ExplainRequest{}))
			if c.settings.Scope == wire.ScopeDestination || c.settings.Mode == wire.ModeStream {
				one := uint64(1)
				require.Equal(t, append(c.codes, "behind_scan"), codes(&wire.ExplainRequest{Offset: &one}))
			}
			a.say(wire.OutcomeAck, 0)
			r.settle()
			require.Equal(t, []wire.Offset{0, 1}, a.offsets())
			require.NotContains(t, codes(&wire.ExplainRequest{}), "held", "nothing waits")
		})
	}
}

// A record that rests after a failure is named, whatever it holds up: nothing, or a whole partition.
func TestExplainSaysWhatRests(t *testing.T) {
	for name, c := range map[string]struct {
		settings Settings
		behind   []string // what is said of the record behind it
	}{
		"shared":      {Settings{Mode: wire.ModeShared, BackoffMs: 500}, []string{"backoff"}},
		"without key": {Settings{Mode: wire.ModeSerial, BackoffMs: 500}, []string{"backoff"}},
		"a partition": {Settings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination, BackoffMs: 500}, []string{"backoff", "behind_scan"}},
		"a stream":    {Settings{Mode: wire.ModeStream, BackoffMs: 500}, []string{"backoff", "behind_scan"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.settings)
			r.produce(0, 0)
			a := r.attach('A', 1, 10)
			r.settle()
			a.say(wire.OutcomeNack, 0)
			r.settle()
			alone := c.settings.Scope != wire.ScopeDestination && c.settings.Mode != wire.ModeStream
			if alone {
				a.say(wire.OutcomeNack, 1)
				r.settle()
			}
			reasons := r.leader.Explain(&wire.ExplainRequest{}, 1_000_000).Reasons
			require.Len(t, reasons, 1)
			require.Equal(t, "backoff", reasons[0].Code)
			require.EqualValues(t, 0, *reasons[0].Offset)
			require.EqualValues(t, 1_000_500, reasons[0].UntilMs)
			text := "Record 0 has failed and rests before the next attempt."
			require.Equal(t, alone, reasons[0].Text != text, "both rest")
			one := r.leader.Explain(&wire.ExplainRequest{Offset: new(uint64)}, 1_000_000).Reasons
			require.Len(t, one, 1)
			require.Equal(t, text, one[0].Text)
			var codes []string
			offset := uint64(1)
			for _, reason := range r.leader.Explain(&wire.ExplainRequest{Offset: &offset}, 0).Reasons {
				codes = append(codes, reason.Code)
			}
			require.Equal(t, c.behind, codes)
			r.pass(time.Second)
			for _, reason := range r.leader.Explain(&wire.ExplainRequest{}, 0).Reasons {
				require.NotEqual(t, "backoff", reason.Code, "it has rested")
			}
		})
	}
}

// Of a record whose key is not in memory it is not said that it only waits for room.
func TestExplainSaysThatARecordMayWaitForItsKey(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5)
	r.produce(5)
	a := r.attach('A', 1, 10)
	r.settle()
	require.Equal(t, []wire.Offset{0}, a.offsets())
	offset := uint64(1)
	code := func() string {
		reasons := r.leader.Explain(&wire.ExplainRequest{Offset: &offset}, 0).Reasons
		return reasons[len(reasons)-1].Code
	}
	require.Equal(t, "held", code())
	r.hidden = map[wire.Offset]bool{1: true}
	require.Equal(t, "behind_key", code())
}

// A record that is asked back is so since it was asked for, not since it was given.
func TestExplainSaysSinceWhenARecordIsAskedBack(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(5)
	r.attach('A', 1, 10)
	r.settle()
	r.now += 2 * time.Second
	r.leader.Reaches(r.end, r.now)
	r.leader.Order(Order{Drain: true, Reason: wire.ReasonSeek, Command: AppendSeek(nil, 1, 0, 0)})
	r.turn()
	r.now += time.Second
	r.leader.Reaches(r.end, r.now)
	reason := r.leader.Explain(&wire.ExplainRequest{Offset: new(uint64)}, 1_000_000).Reasons[0]
	require.Equal(t, "revoking", reason.Code)
	require.EqualValues(t, 999_000, reason.SinceMs)
}

// Since when a record is held is its own time, and not that of those of its key before it,
// though the next one goes out while the ack of the one before is being committed.
func TestExplainSaysSinceWhenTheRecordItselfIsHeld(t *testing.T) {
	key := []byte("k")
	r := newRig(t, keyGroup)
	for range 3 {
		r.produce(uint64(HashOf(key)))
	}
	a := r.attach('A', 1, 10)
	since := func(q wire.ExplainRequest) (wire.Offset, int64) {
		r.leader.Reaches(r.end, r.now)
		reasons := r.leader.Explain(&q, 1_000_000).Reasons
		reason := reasons[len(reasons)-1]
		require.Equal(t, "held", reason.Code)
		return wire.Offset(*reason.Offset), 1_000_000 - reason.SinceMs
	}
	for o := range uint64(3) {
		r.now += time.Second
		for _, q := range []wire.ExplainRequest{{Key: &key}, {Offset: &o}} {
			head, ms := since(q)
			require.Equal(t, wire.Offset(o), head)
			require.EqualValues(t, 1000, ms, "record %d", o)
		}
		r.leader.Reaches(r.end, r.now)
		a.say(wire.OutcomeAck, wire.Offset(o))
		r.settle()
	}
}

// Where nobody is there who could have room, or the group stands still, no key is said to wait
// for room.
func TestExplainBlamesNoRoomWhereNobodyIsToHaveIt(t *testing.T) {
	key := []byte("k")
	for name, c := range map[string]struct {
		stop func(r *rig, a *recorder)
		code string
	}{
		"nobody is there": {func(r *rig, a *recorder) { r.die(a) }, "no_consumer"},
		"a seek waits": {func(r *rig, a *recorder) {
			r.leader.Order(Order{Drain: true, Reason: wire.ReasonSeek, Command: AppendSeek(nil, 1, 0, 0)})
		}, "draining"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, keyGroup)
			r.produce(uint64(HashOf(key)), 7, 8)
			a := r.attach('A', 1, 9)
			require.Equal(t, []wire.Offset{0, 1, 2}, a.offsets())
			a.say(wire.OutcomeReleased, 0)
			c.stop(r, a)
			r.settle()
			for _, q := range []wire.ExplainRequest{{}, {Key: &key}, {Offset: new(uint64)}} {
				var codes []string
				for _, reason := range r.leader.Explain(&q, 0).Reasons {
					codes = append(codes, reason.Code)
				}
				require.Contains(t, codes, c.code)
				require.NotContains(t, codes, "no_credit")
			}
		})
	}
}

// What a silent session holds is explained by that, with the time of the question, not of the
// last turn; and of a key that is done nothing is left to look at.
func TestLeaderExplainsSilence(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(11)
	a := r.attach('A', 1, 10)
	ask := func() wire.Reason {
		r.leader.Reaches(r.end, r.now)
		reasons := r.leader.Explain(&wire.ExplainRequest{Offset: new(uint64)}, 1_000_000).Reasons
		require.Len(t, reasons, 1)
		return reasons[0]
	}
	r.now += 2 * time.Second
	require.Equal(t, "held", ask().Code)
	r.now += 2 * time.Second
	silent := ask()
	require.Equal(t, "silent", silent.Code)
	require.Equal(t, []int64{996_000, 1_002_000}, []int64{silent.SinceMs, silent.UntilMs})
	require.Contains(t, silent.Advice, "Start that consumer again")
	a.say(wire.OutcomeAck, 0)
	r.settle()
	key := []byte("any")
	reasons := r.leader.Explain(&wire.ExplainRequest{Key: &key}, 0).Reasons
	require.Equal(t, "done", reasons[len(reasons)-1].Code)
}

// A planned move: the next leader knows who holds what, waits for nobody, and gives
// nothing out twice.
func TestLeaderHandsItsLeasesOver(t *testing.T) {
	for _, settings := range []Settings{sharedGroup, keyGroup, {Mode: wire.ModeStream}} {
		r := newRig(t, settings)
		r.produce(5, 5, 6)
		a := r.attach('A', 1, 2)
		first := a.offsets()
		require.Len(t, first, 2)
		var done []error
		r.leader.HandOver(func(err error) { done = append(done, err) })
		r.settle()
		require.Equal(t, []error{nil}, done)
		r.state.Term(2)
		before := r.applied
		r.lead()
		r.produce(7)
		b := r.attach('B', 1, 5)
		for _, o := range b.offsets() {
			require.NotContains(t, first, o)
		}
		if settings.Mode == wire.ModeSerial {
			require.Equal(t, []wire.Offset{3}, b.offsets(), "keys 5 and 6 are with A")
		}
		var claims []wire.Outcome
		for _, g := range a.grants {
			claims = append(claims, wire.Outcome{Offset: g.Offset, Count: g.Count, Epoch: g.Epoch})
		}
		again := r.attach('A', 2, 2, claims...)
		require.Empty(t, again.response.Refused)
		require.Empty(t, again.grants)
		again.sayUnder(wire.OutcomeAck, first[0], a.grants[0].Epoch)
		r.settle()
		require.Equal(t, wire.CodeOK, again.code(first[0]))
		require.Less(t, a.grants[0].Epoch, before)
	}
}

// A hand-over that is given up: nothing goes out before that is committed.
func TestLeaderStays(t *testing.T) {
	r := newRig(t, sharedGroup)
	a := r.attach('A', 1, 2)
	r.leader.HandOver(func(error) {})
	r.settle()
	r.produce(0)
	r.settle()
	require.Empty(t, a.grants)
	r.leader.Stay()
	r.turn()
	require.Empty(t, a.grants)
	r.settle()
	require.Len(t, a.grants, 1)
	r.state.Term(2)
	r.lead()
	require.Equal(t, 1, r.leader.waiting, "the table is void")
}

// As many sessions as a group may have join at once, under one entry.
func TestLeaderListsTenThousandSessionsAtOnce(t *testing.T) {
	r := newRig(t, sharedGroup)
	links := make([]*recorder, MaxSessions+1)
	for i := range links {
		links[i] = &recorder{r: r}
		m := &wire.AttachRequest{Attempt: 1, Capacity: 1}
		binary.LittleEndian.PutUint32(m.Session[:], uint32(i+1))
		r.leader.Attach(links[i], m, "", 1, r.now)
	}
	r.settle()
	require.Equal(t, wire.CodeTooMany, wire.CodeOf(links[MaxSessions].refused))
	for _, c := range links[:MaxSessions] {
		require.NotNil(t, c.response)
	}
	r.produce(make([]uint64, 100)...)
	r.settle()
	got := 0
	for _, c := range links {
		got += len(c.grants)
	}
	require.Equal(t, 100, got)
}

// A consumer that comes back under its name takes over at once.
func TestLeaderGivesTheNameToTheNewOne(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0)
	attach := func(session byte) *recorder {
		c := &recorder{r: r}
		r.leader.Attach(c, &wire.AttachRequest{Session: [16]byte{session}, Attempt: 1, Capacity: 1, Name: "billing-1"}, "", 1, r.now)
		r.settle()
		return c
	}
	first := attach(1)
	require.Len(t, first.grants, 1)
	second := attach(2)
	require.Equal(t, wire.CodeSessionGone, first.reason)
	require.Len(t, second.grants, 1)
	require.Equal(t, wire.GrantRedelivered, second.grants[0].Flags)
	require.Len(t, r.state.Group(1).Sessions, 1)
}

// What no consumer that works says, and whoever wants to do harm.
func TestLeaderStandsWhatNoConsumerSays(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(make([]uint64, 10)...)
	a := r.attach('A', 1, 5)
	say := func(o ...wire.Outcome) {
		a.answers = nil
		r.leader.Outcomes(a, o, r.now)
		r.settle()
	}
	say(wire.Outcome{Offset: 0, Count: 1<<32 - 1, Epoch: 1, Kind: wire.OutcomeLostSeen})
	require.Empty(t, a.answers)
	say(wire.Outcome{Offset: 1 << 60, Count: 1<<32 - 1, Epoch: 1, Kind: wire.OutcomeAck})
	require.Equal(t, []wire.OutcomeAnswer{{Offset: 1 << 60, Count: 1<<32 - 1, Epoch: 1, Code: wire.CodeOutOfRange}}, a.answers)
	say(wire.Outcome{Offset: 8, Count: 1 << 31, Epoch: 1 << 60, Kind: wire.OutcomeNack})
	require.Equal(t, wire.CodeNotOwner, a.code(9))
	require.Equal(t, wire.CodeOutOfRange, a.code(10))
	say(wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeReject, Text: "no"})
	require.Equal(t, wire.CodeOK, a.code(0), "there is nowhere for it: it is tried again")
	r.leader.Capacity(a, new(wire.GroupCapacity))
	r.leader.Capacity(a, &wire.GroupCapacity{Records: 1<<32 - 1, Refill: 1<<32 - 1, Bytes: 1<<32 - 1, Working: 1<<32 - 1})
	for range 3 {
		r.leader.Heartbeat(a, 1, r.now)
	}
	stranger := &recorder{r: r}
	r.leader.Outcomes(stranger, []wire.Outcome{{Count: 1, Kind: wire.OutcomeAck}}, r.now)
	r.leader.Leave(stranger, true, r.now)
	r.leader.Gone(stranger, true)
	r.leader.Heartbeat(stranger, 1, r.now)
	r.leader.Capacity(stranger, &wire.GroupCapacity{Records: 1})
	many := make([]wire.Outcome, 40)
	for i := range many {
		many[i] = wire.Outcome{Offset: wire.Offset(i), Count: 1 << 31, Epoch: 1}
	}
	greedy := r.attach('B', 1, 5, many...)
	require.Equal(t, wire.CodeMalformed, wire.CodeOf(greedy.refused))
	r.settle()
	require.NotContains(t, a.lost, wire.ReasonRemoved)
	require.Less(t, int(r.state.Group(1).Done.Floor()), 10)
}

// A key that stands still costs the same whatever lies behind it.
func TestLeaderForgetsWhatLiesBehindABlockedKey(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1)
	slow := r.attach('A', 1, 1)
	require.Len(t, slow.grants, 1)
	fast := r.attach('B', 1, 10)
	for i := range 200 {
		keys := make([]uint64, 100)
		for k := range keys {
			keys[k] = 1
		}
		keys[50] = uint64(2 + i)
		r.produce(keys...)
	}
	r.settle()
	for done := 0; done < len(fast.grants); done++ {
		fast.say(wire.OutcomeAck, fast.grants[done].Offset)
		r.settle()
	}
	require.Len(t, fast.offsets(), 200, "the other keys went on")
	require.Len(t, r.leader.scopes, 1)
	require.Empty(t, r.want.Find)
	require.Equal(t, inlineNext, r.leader.scopes[1].n)
	require.Equal(t, r.end, r.leader.scan)
}

// Who wants to leave when it is finished gets nothing more, and is taken off the list once it
// has settled what it holds.
// A session that drains goes on, with what it holds, when it asks for records again.
func TestASessionThatDrainsMayStay(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1, 2)
	a := r.attach('A', 1, 1)
	r.leader.Leave(a, true, r.now)
	r.turn()
	r.leader.Capacity(a, &wire.GroupCapacity{Records: 2, Refill: 1})
	a.say(wire.OutcomeAck, 0)
	r.settle()
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	require.Equal(t, wire.CodeOK, a.code(0))
	require.Contains(t, r.state.Group(1).Sessions, a.session)
	require.False(t, a.closed)
}

func TestADrainedSessionIsRemoved(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0)
	a := r.attach('A', 1, 2)
	require.Equal(t, []wire.Offset{0, 1}, a.offsets())
	r.leader.Leave(a, true, r.now)
	a.say(wire.OutcomeAck, 0)
	r.produce(0)
	r.settle()
	require.Len(t, a.offsets(), 2)
	require.Contains(t, r.state.Group(1).Sessions, a.session)

	a.say(wire.OutcomeReleased, 1)
	r.settle()
	require.NotContains(t, r.state.Group(1).Sessions, a.session)
	require.True(t, a.closed)
	require.NoError(t, a.reason)
	require.Equal(t, wire.CodeOK, a.code(1), "it hears what became of its record before")
}

// Retention takes records that are leased: their sessions hear of it, and what was on its
// way back or acked ends as it would have.
func TestLeaderEndsLeasesOfExpiredRecords(t *testing.T) {
	r := newRig(t, keyGroup)
	r.produce(1, 2, 3, 1)
	a := r.attach('A', 1, 3)
	require.Equal(t, []wire.Offset{0, 1, 2}, a.offsets())
	a.say(wire.OutcomeNack, 0)
	a.say(wire.OutcomeAck, 1)
	r.state.Trimmed(3)
	r.leader.Trimmed()
	require.Equal(t, []wire.Lost{{Offset: 0, Count: 3, Reason: wire.ReasonExpired}, {Offset: 2, Count: 1, Epoch: a.grants[0].Epoch, Reason: wire.ReasonExpired}}, a.lost)
	r.settle()
	require.Equal(t, wire.CodeOK, a.code(0))
	require.Equal(t, wire.CodeOK, a.code(1))
	r.pass(time.Second)
	require.Equal(t, []wire.Offset{0, 1, 2, 3}, a.offsets())
	a.say(wire.OutcomeAck, 3)
	r.settle()
	require.EqualValues(t, 3, r.state.Group(1).Expired, "none of them was done when they went")
	require.Empty(t, r.leader.scopes)
	require.Zero(t, r.leader.members[a.session].held)
}

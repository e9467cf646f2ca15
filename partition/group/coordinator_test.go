package group

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/wire"
)

// district is the world of Coordinators: a destination of four partitions, two of which
// may keep the members of the group, and consumers that come, leave, die and lose their
// links, while leaders change, entries are lost, and the coordinator moves.
type district struct {
	rand    *rand.Rand
	without []CoordinatorRule
	policy  wire.BindingPolicy
	now     time.Duration
	states  [2]*State // of the partitions that may coordinate
	indexes [2]wire.Index
	older   [2][]byte // what a machine that has lost records begins with
	term    Term
	at      int       // the partition that coordinates
	offices []*office // the last is that of the newest leader of its partition
	clients []*citizen
	nextID  byte
	makers  map[uint32]int // the partition that a generation is of
	err     error
}

// office is one Coordinator, with the entry that it has proposed.
type office struct {
	d       *district
	at      int
	c       *Coordinator
	entry   []byte
	newest  bool // of its partition
	deposed bool // another partition coordinates, and it does not know yet
}

// citizen is a consumer.
type citizen struct {
	d          *district
	session    Session
	old        Session
	known      Binding
	partitions []uint32
	link       *channel
	dead       bool
}

// channel is a link of a citizen to an office.
type channel struct {
	of     *citizen
	office *office
	bound  bool
}

func (k *channel) fail(format string, args ...any) {
	if k.of.d.err == nil {
		k.of.d.err = fmt.Errorf(format, args...)
	}
}

// told takes a binding in: it is committed, and newer than what was known.
func (k *channel) told(b Binding, partitions []uint32) {
	c := k.of
	if c.link != k || c.dead {
		return
	}
	m := k.office.d.states[k.office.at].Group(1).Members
	switch {
	case m == nil || m.Binding != b || !slices.Equal(m.Of(c.session), partitions):
		k.fail("consumer %x was told %v of binding %v, which is not committed", c.session[0], partitions, b)
	case b.Before(c.known):
		k.fail("consumer %x was told of binding %v after %v", c.session[0], b, c.known)
	}
	if at, known := c.d.makers[b.Generation]; known && at != k.office.at {
		k.fail("binding %v is of partition %d, and its generation of %d", b, k.office.at, at)
	}
	c.d.makers[b.Generation] = k.office.at
	c.known, c.partitions = b, partitions
}

func (k *channel) Bound(r *wire.BindResponse, err error) {
	if err != nil {
		k.Closed(err)
		return
	}
	k.bound = true
	k.told(Binding{r.Generation, r.Counter}, r.Partitions)
}

func (k *channel) Rebound(b *wire.GroupBinding) {
	k.told(Binding{b.Generation, b.Counter}, b.Partitions)
}
func (k *channel) Confirmed(uint64) {}
func (k *channel) Closed(err error) {
	if k.of.link != k {
		return
	}
	if k.of.link = nil; err == wire.CodeSessionGone {
		k.of.old, k.of.session = k.of.session, k.of.d.fresh()
	}
}

func newDistrict(seed uint64, policy wire.BindingPolicy, without ...CoordinatorRule) *district {
	d := &district{rand: rand.New(rand.NewPCG(seed, 1)), policy: policy, without: without, now: time.Second, term: Term{Generation: 1}, makers: make(map[uint32]int)}
	for i := range d.states {
		s := Settings{Mode: wire.ModeSerial, Binding: policy}.WithDefaults()
		d.states[i] = NewState()
		d.apply(i, AppendPut(nil, 1, 1, "g", &s, 0, PutQueue))
		d.older[i] = d.states[i].Snapshot()(nil)
	}
	d.elect(0)
	return d
}

func (d *district) fresh() Session {
	d.nextID++
	return Session{d.nextID, byte(d.rand.Uint32())}
}

func (d *district) apply(at int, data []byte) {
	d.indexes[at]++
	for len(data) > 0 {
		n := binary.LittleEndian.Uint32(data[4:])
		d.states[at].Apply(d.indexes[at], Command(data[0]), data[1], data[8:8+n])
		data = data[8+n:]
	}
}

func (d *district) loads() []PartitionLoad {
	return []PartitionLoad{{Number: 0}, {Number: 1}, {Number: 2}, {Number: 3}}
}

// elect begins the Coordinator of a new leader of a partition. What the one before has
// proposed is committed or lost.
func (d *district) elect(at int) {
	for _, o := range d.offices {
		if o.at == at && o.newest {
			o.newest = false
			if o.entry != nil && d.chance(0.5) {
				d.apply(at, o.entry)
			}
			o.c.Close(wire.CodeNotLeader)
		}
	}
	d.offices = slices.DeleteFunc(d.offices, func(o *office) bool { return !o.newest })
	c := NewCoordinator(d.states[at].Group(1), d.loads, d.term, d.now)
	c.Without(d.without...)
	d.offices = append(d.offices, &office{d: d, at: at, c: c, newest: true})
}

func (d *district) chance(p float64) bool { return d.rand.Float64() < p }

// office is where a citizen binds: mostly at the coordinator, as far as somebody knows.
func (d *district) office() *office {
	var list []*office
	for _, o := range d.offices {
		if o.at == d.at && !o.deposed || o.deposed && d.chance(0.3) {
			list = append(list, o)
		}
	}
	return list[d.rand.IntN(len(list))]
}

func (d *district) bind(c *citizen) {
	k := &channel{of: c, office: d.office()}
	c.link = k
	k.office.c.Bind(k, &wire.BindRequest{
		Session: c.session, Predecessor: c.old, Generation: c.known.Generation, Counter: c.known.Counter, Partitions: slices.Clone(c.partitions),
	}, d.now)
}

// commit has what an office proposed applied.
func (o *office) commit() {
	if o.entry != nil {
		o.d.apply(o.at, o.entry)
		o.entry = nil
		o.c.Applied()
	}
}

func (o *office) propose() {
	o.c.Turn(o.d.now)
	if o.entry == nil {
		if data, some := o.c.Propose(nil, 1<<20); some {
			o.entry = data
		}
	}
}

// step is one thing that happens.
func (d *district) step() {
	var c *citizen
	if len(d.clients) > 0 {
		c = d.clients[d.rand.IntN(len(d.clients))]
	}
	o := d.offices[d.rand.IntN(len(d.offices))]
	switch k := d.rand.IntN(100); {
	case k < 8 && len(d.clients) < 6:
		d.clients = append(d.clients, &citizen{d: d, session: d.fresh()})
	case k < 30 && c != nil:
		if c.link == nil && !c.dead {
			d.bind(c)
		}
	case k < 34 && c != nil: // its link breaks
		if c.link != nil {
			c.link.office.c.Gone(c.link, false)
			c.link = nil
		}
	case k < 36 && c != nil: // it dies without a word
		c.dead = true
	case k < 38 && c != nil:
		if c.link != nil && c.link.bound && !c.dead {
			c.link.office.c.Leave(c.link)
			d.clients = slices.DeleteFunc(d.clients, func(other *citizen) bool { return other == c })
		}
	case k < 58:
		o.propose()
	case k < 76:
		o.commit()
	case k < 80:
		if o.entry != nil {
			o.entry = nil
			o.c.Dropped()
		}
	case k < 82:
		d.elect(o.at)
	case k < 83: // the machine loses what was committed last, as a node without a quorum may
		if s, err := Restore(d.older[o.at]); err == nil && d.at == o.at && !o.deposed {
			o.entry = nil
			d.states[o.at] = s
			d.elect(o.at)
		}
	case k < 84: // another partition coordinates
		d.term = Term{Generation: d.term.Generation + 1, Since: 100}
		for _, o := range d.offices {
			o.deposed = o.at == d.at
		}
		d.at = 1 - d.at
		for _, o := range d.offices {
			if o.at == d.at {
				o.deposed = false
			}
		}
		d.elect(d.at)
	case k < 88: // a coordinator of before hears of it
		if o.deposed {
			o.c.Close(wire.CodeNotCoordinator)
			d.offices = slices.DeleteFunc(d.offices, func(other *office) bool { return other == o })
		}
	case k < 90:
		d.older[o.at] = d.states[o.at].Snapshot()(nil)
	default:
		d.pass(time.Duration(d.rand.IntN(1000)) * time.Millisecond)
	}
}

// pass lets time go by; who lives is heard.
func (d *district) pass(t time.Duration) {
	d.now += t
	for _, c := range d.clients {
		if c.link != nil && !c.dead {
			c.link.office.c.Heartbeat(c.link, 1, d.now)
		}
	}
}

// run does steps at random, ends all faults, and looks at what everybody has then.
func (d *district) run(steps int) error {
	for range steps {
		if d.step(); d.err != nil {
			return d.err
		}
	}
	for _, o := range slices.Clone(d.offices) {
		if o.deposed {
			o.c.Close(wire.CodeNotCoordinator)
		}
	}
	d.offices = slices.DeleteFunc(d.offices, func(o *office) bool { return o.deposed })
	for range 40 {
		d.pass(500 * time.Millisecond)
		for _, c := range d.clients {
			if c.link == nil && !c.dead {
				d.bind(c)
			}
		}
		for range 3 {
			for _, o := range d.offices {
				o.propose()
				o.commit()
			}
		}
	}
	return d.settled()
}

// settled reports what is wrong when nothing has gone wrong for a while.
func (d *district) settled() error {
	if d.err != nil {
		return d.err
	}
	m := d.states[d.at].Group(1).Members
	has := make(map[uint32]int)
	living := make(map[Session]bool)
	for _, c := range d.clients {
		if c.dead {
			continue
		}
		living[c.session] = true
		if m == nil || c.known != m.Binding || !slices.Equal(c.partitions, m.Of(c.session)) {
			return fmt.Errorf("consumer %x goes by %v of binding %v", c.session[0], c.partitions, c.known)
		}
		for _, p := range c.partitions {
			has[p]++
		}
	}
	if len(living) == 0 {
		return nil
	}
	for s := range m.List {
		if !living[s] {
			return fmt.Errorf("%x is listed, and does not live", s[0])
		}
	}
	if m.Binding.Generation != d.term.Generation {
		return fmt.Errorf("the binding is %v in generation %d", m.Binding, d.term.Generation)
	}
	if d.policy == wire.BindingCover && len(slices.Collect(maps.Keys(has))) != 4 {
		return fmt.Errorf("partitions have %v consumers", has)
	}
	return nil
}

func TestCoordinatorsKeepWhatTheySay(t *testing.T) {
	for _, policy := range []wire.BindingPolicy{wire.BindingCover, wire.BindingStrict, wire.BindingGather} {
		for seed := range uint64(200) {
			require.NoError(t, newDistrict(seed, policy).run(400), "policy %v seed %d", policy, seed)
		}
	}
}

// Every rule of the Coordinator is needed: without it a consumer hears what is not so, or
// what is wrong stays wrong.
func TestCoordinatorCatchesEveryRuleThatIsTakenAway(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("rules can be taken away in builds with invariants only")
	}
	for _, m := range []struct {
		name string
		rule CoordinatorRule
	}{
		{"a consumer hears of partitions before it is listed", RuleEnrolled},
		{"only those that bind hear of a binding", RuleTold},
		{"a binding is older than one that a member knows", RuleAbove},
		{"a deposed coordinator serves members of its successor", RuleNewest},
		{"nobody is too silent", RuleQuiet},
		{"what was not committed is forgotten", RuleAgain},
	} {
		t.Run(m.name, func(t *testing.T) {
			for seed := range uint64(3000) {
				if err := newDistrict(seed, wire.BindingCover, m.rule).run(400); err != nil {
					t.Logf("seed %d: %s", seed, err)
					return
				}
			}
			require.Fail(t, "nothing was seen in 3,000 histories")
		})
	}
}

// Who is started again under its name has the partitions that it had.
func TestCoordinatorGivesThePlaceToTheNewOne(t *testing.T) {
	restarted := func(without ...CoordinatorRule) (before, after []uint32) {
		d := newDistrict(1, wire.BindingStrict, without...)
		o := d.offices[0]
		say := func(session byte, name string) *channel {
			k := &channel{of: &citizen{d: d, session: Session{session}}, office: o}
			k.of.link = k
			o.c.Bind(k, &wire.BindRequest{Session: k.of.session, Name: name}, d.now)
			o.propose()
			o.commit()
			require.NoError(t, d.err)
			return k
		}
		say(1, "one")
		before = say(2, "two").of.partitions
		say(3, "three").office.c.Leave(nil)
		d.clients = nil
		o.c.Leave(o.c.members[Session{1}].link) // now there is a partition with fewer consumers
		o.propose()
		o.commit()
		return before, say(4, "two").of.partitions
	}
	before, after := restarted()
	require.Equal(t, before, after)
	if invariants.Enabled {
		before, after = restarted(RuleInherits)
		require.NotEqual(t, before, after)
	}
}

// heard notes how its link ended, or that it was not begun.
type heard struct{ err *error }

func (h *heard) Bound(_ *wire.BindResponse, err error) { *h.err = err }
func (h *heard) Rebound(*wire.GroupBinding)            {}
func (h *heard) Confirmed(uint64)                      {}
func (h *heard) Closed(err error)                      { *h.err = err }

// One name is for one consumer: who had it when another one came is told so for good, and so
// is one that comes back after it was taken off the list meanwhile.
func TestCoordinatorFencesWhoseNameAnotherHas(t *testing.T) {
	d := newDistrict(1, wire.BindingCover)
	o := d.offices[0]
	bind := func(r *wire.BindRequest) (told *error) {
		told = new(error)
		o.c.Bind(&heard{told}, r, d.now)
		o.propose()
		o.commit()
		return told
	}
	first := bind(&wire.BindRequest{Session: Session{1}, Name: "bob"})
	require.NoError(t, *first)
	second := bind(&wire.BindRequest{Session: Session{2}, Name: "bob"})
	require.NoError(t, *second)
	require.ErrorIs(t, *first, wire.CodeFenced)
	back := bind(&wire.BindRequest{Session: Session{3}, Predecessor: Session{1}, Name: "bob"})
	require.ErrorIs(t, *back, wire.CodeFenced)
	require.NoError(t, *second)

	own := bind(&wire.BindRequest{Session: Session{4}, Predecessor: Session{2}, Name: "bob"})
	require.NoError(t, *own, "its own successor")
	require.ErrorIs(t, *second, wire.CodeSessionGone)
	o.c.Gone(o.c.members[Session{4}].link, false)
	require.NoError(t, *bind(&wire.BindRequest{Session: Session{5}, Predecessor: Session{1}, Name: "bob"}), "who has it is not connected")
}

// Two consumers die, the second while the first still counts as living: what the first had
// goes to the one that is left, and does not wait for the second one's session timeout too
// (R-X-1).
func TestR_X_1_WhatADeadConsumerHadGoesToOneThatLives(t *testing.T) {
	adopted := func(without ...CoordinatorRule) (by int, again []uint32) {
		d := newDistrict(1, wire.BindingCover, without...)
		o := d.offices[0]
		for range 3 {
			c := &citizen{d: d, session: d.fresh()}
			d.clients = append(d.clients, c)
			d.bind(c)
			o.propose()
			o.commit()
		}
		leave := func(c *citizen) {
			o.c.Gone(c.link, false)
			c.link = nil
		}
		living, first, second := d.clients[0], d.clients[1], d.clients[2]
		leave(first)
		d.pass(5 * time.Second)
		leave(second)
		d.pass(1500 * time.Millisecond)
		o.propose()
		o.commit()
		m := d.states[0].Group(1).Members
		require.NotContains(t, m.List, first.session)
		require.Contains(t, m.List, second.session)
		by = len(living.partitions)
		d.bind(second)
		o.propose()
		o.commit()
		require.NoError(t, d.err)
		return by, second.partitions
	}
	by, again := adopted()
	require.Equal(t, 3, by, "the living one has its own, and both of the first")
	require.Len(t, again, 2, "who comes back has its share again")
	if invariants.Enabled {
		by, _ = adopted(RuleThere)
		require.Less(t, by, 3)
	}
}

// Many consumers that come at once are in few bindings: each names all of them, and all
// hear of each.
func TestR_SIB_17_ACrowdIsBoundInFewBindings(t *testing.T) {
	const consumers = 10_000
	d := newDistrict(1, wire.BindingCover)
	o := d.offices[0]
	var all []*citizen
	entries, bytes := 0, 0
	for i := range consumers {
		c := &citizen{d: d, session: Session{byte(i), byte(i >> 8), 1}}
		all = append(all, c)
		d.clients = append(d.clients, c)
		d.bind(c)
		if i%10 > 0 {
			continue
		}
		d.now += time.Millisecond
		if o.propose(); o.entry != nil { // a quorum is faster than ten consumers come
			entries++
			bytes += len(o.entry)
			o.commit()
		}
	}
	for range 100 {
		d.pass(500 * time.Millisecond)
		if o.propose(); o.entry != nil {
			entries++
			bytes += len(o.entry)
			o.commit()
		}
	}
	require.NoError(t, d.err)
	has := make(map[uint32]int)
	for _, c := range all {
		require.Equal(t, d.states[0].Group(1).Members.Binding, c.known)
		require.Len(t, c.partitions, 1)
		has[c.partitions[0]]++
	}
	require.Equal(t, map[uint32]int{0: 2500, 1: 2500, 2: 2500, 3: 2500}, has)
	require.Less(t, entries, 100)
	require.Less(t, bytes, 8<<20)
	t.Logf("%d consumers: %d bindings, %d bytes", consumers, entries, bytes)

	refused := &channel{of: &citizen{d: d, session: Session{9, 9, 9}}, office: o}
	refused.of.link = refused
	var limit error
	o.c.Bind(&limited{channel: refused, err: &limit}, &wire.BindRequest{Session: refused.of.session}, d.now)
	require.ErrorIs(t, limit, wire.CodeTooMany)
}

// limited notes how it was refused.
type limited struct {
	*channel
	err *error
}

func (k *limited) Bound(_ *wire.BindResponse, err error) { *k.err = err }

// Where a consumer of a newer generation is, none of an older one stays or comes: what it
// has it may claim when it knows the new binding.
func TestLeaderServesNoGenerationOfBefore(t *testing.T) {
	stays := func(without ...Rule) (held, comes bool) {
		r := newRig(t, keyGroup, without...)
		r.produce(5, 6)
		attach := func(name byte, attempt uint64, b Binding, claims ...wire.Outcome) *recorder {
			c := &recorder{r: r, session: Session{name}}
			r.leader.Attach(c, &wire.AttachRequest{
				Session: c.session, Attempt: attempt, Term: 1, Capacity: 1, Claims: claims, Generation: b.Generation, Counter: b.Counter,
			}, "", 1, r.now)
			r.settle()
			return c
		}
		a := attach('A', 1, Binding{1, 9})
		require.Len(t, a.grants, 1)
		b := attach('B', 1, Binding{2, 1})
		require.NotNil(t, b.response)
		late := attach('C', 1, Binding{1, 10})
		if len(without) == 0 {
			require.ErrorIs(t, a.reason, wire.CodeStaleBinding)
			claim := wire.Outcome{Offset: 0, Count: 1, Epoch: a.grants[0].Epoch, Kind: wire.OutcomeAck}
			require.ErrorIs(t, attach('A', 2, Binding{1, 9}, claim).refused, wire.CodeStaleBinding)
			again := attach('A', 3, Binding{2, 1}, claim)
			require.Equal(t, wire.CodeOK, again.code(0), "nothing was lost by it")

			newest := attach('G', 1, Binding{2, 2})
			require.NotNil(t, attach('B', 2, Binding{2, 1}).response, "who is there may stay behind in a generation")
			require.ErrorIs(t, attach('D', 1, Binding{2, 1}).refused, wire.CodeStaleBinding, "who comes may not")
			r.leader.Leave(newest, false, r.now)
			r.settle()
			require.ErrorIs(t, attach('E', 1, Binding{1, 12}).refused, wire.CodeStaleBinding, "that is older than what B has")
			require.NotNil(t, attach('F', 1, Binding{2, 1}).response, "that is not")

			r.lead() // the next leader knows too
			require.ErrorIs(t, attach('D', 1, Binding{1, 11}).refused, wire.CodeStaleBinding)
		}
		return !a.closed, late.response != nil
	}
	held, comes := stays()
	require.False(t, held)
	require.False(t, comes)
	if invariants.Enabled {
		held, comes = stays(RuleGeneration)
		require.True(t, held)
		require.True(t, comes)
	}
}

// The same where one entry lists both.
func TestLeaderServesNoGenerationOfBeforeOfTheSameEntry(t *testing.T) {
	for _, newest := range []int{0, 1} {
		r := newRig(t, keyGroup)
		r.produce(5)
		var both [2]*recorder
		for i := range both {
			both[i] = &recorder{r: r, session: Session{byte('A' + i)}}
			b := Binding{1, 1}
			if i == newest {
				b.Generation = 2
			}
			r.leader.Attach(both[i], &wire.AttachRequest{
				Session: both[i].session, Attempt: 1, Term: 1, Capacity: 1, Generation: b.Generation, Counter: b.Counter,
			}, "", 1, r.now)
		}
		r.settle()
		require.False(t, both[newest].closed)
		require.NotNil(t, both[newest].response)
		older := both[1-newest]
		require.True(t, errors.Is(older.refused, wire.CodeStaleBinding) || errors.Is(older.reason, wire.CodeStaleBinding), "%v, %v", older.refused, older.reason)
	}
}

func TestRuleQ1_ABindingThatNobodyHasMadeIsRefused(t *testing.T) {
	d := newDistrict(1, wire.BindingCover)
	o := d.offices[0]
	turn := func(c *citizen) {
		d.clients = append(d.clients, c)
		d.bind(c)
		o.propose()
		o.commit()
		o.c.Turn(d.now)
	}
	honest, late := &citizen{d: d, session: Session{1}}, &citizen{d: d, session: Session{2}}
	turn(honest)
	require.NotZero(t, honest.known)
	var why error
	liar := &channel{of: &citizen{d: d, session: Session{9}}, office: o}
	o.c.Bind(&limited{channel: liar, err: &why}, &wire.BindRequest{Session: liar.of.session, Generation: honest.known.Generation, Counter: 1<<32 - 1}, d.now)
	require.Equal(t, wire.CodeInvalidRequest, wire.CodeOf(why))
	turn(late)
	require.Equal(t, Binding{honest.known.Generation, 2}, late.known, "the next binding is the next one")
}

// The same of a generation of which there is no binding yet: the counter behind the last one
// is 0, and a binding that is older than what somebody knows is told to nobody.
func TestRuleQ1_ABindingThatNobodyHasMadeIsRefusedFromTheFirstOn(t *testing.T) {
	for name, moved := range map[string]bool{"a group that is new": false, "a coordinator that is": true} {
		d := newDistrict(1, wire.BindingCover)
		honest := &citizen{d: d, session: Session{1}}
		d.clients = append(d.clients, honest)
		turn := func() {
			for _, o := range d.offices {
				o.propose()
				o.commit()
				o.c.Turn(d.now)
			}
		}
		if moved {
			d.bind(honest)
			turn()
			d.term.Generation++
			d.elect(0)
		}
		var why error
		o := d.offices[0]
		liar := &channel{of: &citizen{d: d, session: Session{9}}, office: o}
		o.c.Bind(&limited{channel: liar, err: &why}, &wire.BindRequest{Session: liar.of.session, Generation: d.term.Generation, Counter: 1<<32 - 1}, d.now)
		require.Equal(t, wire.CodeInvalidRequest, wire.CodeOf(why), name)
		d.bind(honest)
		turn()
		require.Equal(t, Binding{d.term.Generation, 1}, honest.known, name)
		require.NoError(t, d.err)
	}
}

// RULES Q1: a session that comes back under a binding of a newer generation counts as one that
// joins under it: those of the older generation go, and none comes.
func TestRuleQ1_WhoComesBackUnderANewerGenerationIsOfIt(t *testing.T) {
	r := newRig(t, keyGroup)
	attach := func(name byte, attempt uint64, b Binding) *recorder {
		c := &recorder{r: r, session: Session{name}}
		r.leader.Attach(c, &wire.AttachRequest{Session: c.session, Attempt: attempt, Term: 1, Capacity: 1, Generation: b.Generation, Counter: b.Counter}, "", 1, r.now)
		r.settle()
		return c
	}
	attach('A', 1, Binding{1, 1})
	b := attach('B', 1, Binding{1, 1})
	a := attach('A', 2, Binding{2, 3})
	require.False(t, a.closed)
	require.ErrorIs(t, b.reason, wire.CodeStaleBinding)
	require.ErrorIs(t, attach('B', 2, Binding{1, 1}).refused, wire.CodeStaleBinding)
	require.ErrorIs(t, attach('C', 1, Binding{1, 2}).refused, wire.CodeStaleBinding)
	require.ErrorIs(t, attach('C', 2, Binding{2, 2}).refused, wire.CodeStaleBinding, "who comes is not behind A")
	newest := attach('D', 1, Binding{2, 4})
	r.leader.Leave(newest, false, r.now)
	r.settle()
	require.ErrorIs(t, attach('C', 3, Binding{2, 2}).refused, wire.CodeStaleBinding, "what A goes by outlives who had a newer one")
	require.NoError(t, attach('C', 4, Binding{2, 3}).refused)
}

// The binding that a partition goes by is that of consumers it has.
func TestRuleQ1_ABindingIsForgottenWithItsConsumers(t *testing.T) {
	r := newRig(t, keyGroup)
	attach := func(name byte, attempt uint64, b Binding) *recorder {
		c := &recorder{r: r, session: Session{name}}
		r.leader.Attach(c, &wire.AttachRequest{Session: c.session, Attempt: attempt, Term: 1, Capacity: 1, Generation: b.Generation, Counter: b.Counter}, "", 1, r.now)
		r.settle()
		return c
	}
	attach('A', 1, Binding{1, 1})
	liar := attach('L', 1, Binding{1<<32 - 1, 1<<32 - 1})
	r.leader.Leave(liar, false, r.now)
	r.settle()
	require.Empty(t, r.state.Group(1).Sessions[Session{'L'}])
	other := attach('B', 1, Binding{1, 2})
	require.NoError(t, other.refused, "the one who had the newer binding is gone")
}

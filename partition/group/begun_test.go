package group

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// works attaches a session that works on so many records at once.
func (r *rig) works(name byte, capacity, working uint32) *recorder {
	c := &recorder{r: r, session: Session{name}, attempt: 1}
	r.leader.Attach(c, &wire.AttachRequest{
		Session: c.session, Attempt: 1, Term: 1, Capacity: capacity, Working: working, Flags: wire.AttachReleaseOnDisconnect | wire.AttachReleaseChosen,
	}, "", 1, r.now)
	r.settle()
	return c
}

// die ends a session as its process ends.
func (r *rig) die(c *recorder) {
	r.leader.Gone(c, true)
	r.settle()
}

// counts are the deliveries and attempts of each record so far.
func (r *rig) counts() (deliveries, attempts []uint16) {
	for o := range r.end {
		known, _ := r.state.Group(1).Record(o)
		deliveries, attempts = append(deliveries, known.Deliveries), append(attempts, known.Attempts)
	}
	return deliveries, attempts
}

// Rule 24: of what a session keeps for too long, only that counts as failed which it may have begun.
func TestRule24_OnlyWhatWasBegunTakesTooLong(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(1, 2, 3)
	a := r.works('A', 10, 1)
	require.Len(t, a.offsets(), 3)
	r.overdue(a)
	r.settle()
	deliveries, attempts := r.counts()
	require.Equal(t, []uint16{1, 1, 1}, deliveries)
	require.Equal(t, []uint16{1, 0, 0}, attempts)
}

// Rule 24: where the partition is one scope, a session that dies has one head, also if it was given
// its records at several times.
func TestRule24_ADeadSessionHasOneHead(t *testing.T) {
	for _, s := range oneScope {
		s.Window = 3
		r := newRig(t, s)
		r.produce(1)
		a := r.attach('A', 1, 5)
		r.produce(1)
		r.settle()
		require.Equal(t, []wire.Offset{0, 1}, a.offsets())
		require.NotEqual(t, a.grants[0].Epoch, a.grants[1].Epoch)
		r.die(a)
		r.pass(wire.DefaultSessionMs * time.Millisecond)
		r.settle()
		_, attempts := r.counts()
		require.Equal(t, []uint16{1, 0}, attempts, "mode %v", s.Mode)
	}
}

// What a consumer held when it died counts as delivered, and as failed only what it may have
// begun: as many of those that it was given first as it works on at once.
func TestOnlyWhatADeadConsumerHadBegunHasFailed(t *testing.T) {
	for _, s := range []Settings{sharedGroup, keyGroup} {
		for _, c := range []struct {
			working  uint32
			attempts []uint16
		}{
			{0, []uint16{1, 1, 1, 1, 1, 1}}, // it does not say
			{1, []uint16{1, 0, 0, 0, 0, 0}},
			{4, []uint16{1, 1, 1, 1, 0, 0}},
			{64, []uint16{1, 1, 1, 1, 1, 1}},
		} {
			r := newRig(t, s)
			r.produce(1, 2, 3)
			r.produce(4, 5, 6)
			a := r.works('A', 10, c.working)
			require.Len(t, a.offsets(), 6)
			r.die(a)
			deliveries, attempts := r.counts()
			require.Equal(t, []uint16{1, 1, 1, 1, 1, 1}, deliveries)
			require.Equal(t, c.attempts, attempts, "mode %v, works on %d", s.Mode, c.working)
		}
	}
}

// It is the order in which the records were given that counts, not that of the log; what is
// acknowledged has left it, and a higher number counts from when it is said.
func TestWhatWasGivenFirstWasBegunFirst(t *testing.T) {
	r := newRig(t, sharedGroup)
	r.produce(0, 0, 0, 0)
	a := r.works('A', 2, 1) // 0 and 1
	b := r.works('B', 4, 1) // 2 and 3
	r.die(a)                // 0 has failed
	require.Equal(t, []wire.Offset{2, 3, 0, 1}, b.offsets())
	r.leader.Capacity(b, &wire.GroupCapacity{Records: 4, Working: 2})
	b.say(wire.OutcomeAck, 2)
	r.settle()
	r.die(b)
	_, attempts := r.counts()
	require.Equal(t, []uint16{2, 0, 0, 1}, attempts)
}

// A record that kills its consumers becomes a dead letter, and takes none of those along that
// they had only prefetched.
func TestAPoisonedRecordFailsAlone(t *testing.T) {
	const poisoned = 3
	r := newRig(t, Settings{Mode: wire.ModeShared, DeliveryLimit: 3, DeadLetter: "dead", BackoffMs: 1, BackoffMaxMs: 1})
	r.produce(0, 0, 0, 0, 0, 0, 0, 0)
	crashes := 0
	for name := byte('A'); len(r.state.Group(1).Letters.Open) == 0; name++ {
		require.Less(t, crashes, 3)
		c := r.works(name, 8, 1)
		alive := true
		for _, o := range c.offsets() { // one after the other
			if alive = o != poisoned; !alive {
				break
			}
			c.say(wire.OutcomeAck, o)
			r.settle()
		}
		require.False(t, alive)
		crashes++
		r.die(c)
		r.pass(rereadPause) // the backoff
		r.settle()
	}
	require.Equal(t, 3, crashes)
	require.EqualValues(t, poisoned, r.state.Group(1).Letters.Open[0].Offset)
	last := r.works('Z', 8, 1)
	for _, o := range last.offsets() {
		require.NotEqualValues(t, poisoned, o)
		last.say(wire.OutcomeAck, o)
		r.settle()
	}
	require.Len(t, r.state.Group(1).Letters.Open, 1)
}

// What was given first is known however the runs of a session are cut and joined.
func TestLeasesKnowTheOrderInWhichTheyWereGiven(t *testing.T) {
	m := &member{working: 3}
	m.lease(lease{from: 10, to: 20, epoch: 1})
	m.lease(lease{from: 0, to: 10, epoch: 1})
	m.lease(lease{from: 20, to: 25, epoch: 1})
	require.Len(t, m.leases.all(), 3, "runs that were not given one behind the other are not joined")
	m.leases.remove(10, 18)
	b := m.begun() // 18, 19 and 0
	ends := map[wire.Offset]wire.Offset{}
	for _, r := range m.leases.held(0) {
		ends[r.from] = b.end(&r)
	}
	require.Equal(t, map[wire.Offset]wire.Offset{0: 1, 18: 20, 20: 20}, ends)
	m.leases.change(4, 6, func(x *lease) { x.state = settling })
	m.leases.change(4, 6, func(x *lease) { x.state = held })
	require.Len(t, m.leases.all(), 3, "alike neighbours are one run again")
	m.leases.removeAll([]Span{{0, 4}, {18, 19}})
	b = m.begun() // 19, 4 and 5
	ends = map[wire.Offset]wire.Offset{}
	for _, r := range m.leases.held(0) {
		ends[r.from] = b.end(&r)
	}
	require.Equal(t, map[wire.Offset]wire.Offset{4: 6, 19: 20, 20: 20}, ends)
}

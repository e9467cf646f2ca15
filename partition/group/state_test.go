package group

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// book is a State that commands are applied to as a partition does it.
type book struct {
	*State
	t     *testing.T
	index wire.Index
}

func newBook(t *testing.T, next wire.Offset) *book {
	b := &book{State: NewState(), t: t, index: 10}
	b.Appended(next)
	return b
}

// apply applies one entry with the commands in body and returns the last effect.
func (b *book) apply(body []byte) (e Effect) {
	b.index++
	for len(body) > 0 {
		length := int(uint32(body[4]) | uint32(body[5])<<8 | uint32(body[6])<<16 | uint32(body[7])<<24)
		require.LessOrEqual(b.t, commandHeader+length, len(body))
		e = b.Apply(b.index, Command(body[0]), body[1], body[commandHeader:commandHeader+length])
		body = body[commandHeader+length:]
	}
	return e
}

var serial = Settings{Mode: wire.ModeSerial, Scope: wire.ScopeKey, SessionMs: 6000}

func session(b byte) Session { return Session{0: b, 15: b} }

func (b *book) group(id ID, flags uint8) *Group {
	e := b.apply(AppendPut(nil, id, uint64(id), string(rune('a'+id)), &serial, 0, flags))
	require.NotNil(b.t, e.Group)
	return e.Group
}

func (b *book) join(g *Group, s Session) {
	b.apply(AppendJoin(nil, g.ID, &Member{ID: s, Name: "n", Client: "c"}, 0, nil))
	require.Contains(b.t, g.Sessions, s)
}

// The example of the design: a session that held five records of two scopes is removed.
func TestRemovalReturnsWhatTheSessionHeld(t *testing.T) {
	b := newBook(t, 1000)
	g := b.group(7, 0)
	aa, bb := session(0xaa), session(0xbb)
	b.join(g, aa)
	b.join(g, bb)
	b.index = 89
	b.apply(AppendRemove(nil, 7, aa, 1, 0, []Return{
		{100, 101, 1, 1, 1000}, {101, 102, 1, 0, 0}, {102, 103, 1, 1, 1000}, {103, 105, 1, 0, 0},
	}))
	require.NotContains(t, g.Sessions, aa)
	for o := wire.Offset(100); o < 105; o++ {
		r, ok := g.Record(o)
		require.True(t, ok)
		head := o == 100 || o == 102
		want := Returned{Deliveries: 1, Fence: 90}
		if head {
			want.Attempts, want.DelayMs = 1, 1000
		}
		require.Equal(t, want, r, "offset %d", o)
		require.EqualValues(t, 90, g.FenceOf(o))
	}
	_, ok := g.Record(105)
	require.False(t, ok)

	// aa needs no fence once a record is done: whatever it brings, it is not listed.
	b.apply(AppendOutcomes(nil, 7, []Span{{100, 105}}, nil))
	require.Zero(t, g.returned.len())
	require.Zero(t, g.settled.len())
}

// GROUPS 27 and 28: the answers to an outcome of a lease that is not held any more.
func TestLateOutcomes(t *testing.T) {
	b := newBook(t, 1000)
	g := b.group(7, 0)
	aa, bb := session(0xaa), session(0xbb)
	b.join(g, aa)
	b.join(g, bb)
	// Records 10 and 11 are taken from aa; bb acknowledges 10.
	b.apply(AppendOutcomes(nil, 7, nil, []Taken{{Session: aa, Returns: []Return{{10, 12, 1, 1, 0}}}}))
	taken := b.index
	b.apply(AppendOutcomes(nil, 7, []Span{{10, 11}, {20, 21}}, nil))

	require.Equal(t, wire.CodeStaleEpoch, g.Late(10, taken-1), "aa, of the lease that it lost")
	require.Equal(t, wire.CodeOK, g.Late(10, taken), "bb, once more")
	require.Equal(t, wire.CodeStaleEpoch, g.Late(11, taken-1))
	require.Equal(t, wire.CodeNotOwner, g.Late(11, taken), "nobody was given it since")
	require.Equal(t, wire.CodeOK, g.Late(20, 12), "it was never taken back")
	require.Equal(t, wire.CodeNotOwner, g.Late(30, 12))

	// Once aa knows, the fence is not needed.
	b.apply(AppendOutcomes(nil, 7, nil, []Taken{{Session: aa, Seen: []Span{{10, 12}}}}))
	require.Zero(t, g.settled.len())
	require.Equal(t, wire.CodeOK, g.Late(10, taken-1))
	require.Equal(t, wire.CodeStaleEpoch, g.Late(11, taken-1), "it is not done: a claim must not get it")
	b.apply(AppendOutcomes(nil, 7, []Span{{11, 12}}, nil))
	require.Zero(t, g.settled.len())
}

// A record that was taken from two sessions is fenced until both know.
func TestAFenceStaysUntilEverybodyKnows(t *testing.T) {
	b := newBook(t, 1000)
	g := b.group(7, 0)
	aa, bb, cc := session(1), session(2), session(3)
	for _, s := range []Session{aa, bb, cc} {
		b.join(g, s)
	}
	for _, s := range []Session{aa, bb} {
		b.apply(AppendOutcomes(nil, 7, nil, []Taken{{Session: s, Returns: []Return{{5, 8, 1, 1, 0}}}}))
	}
	fence := b.index
	b.apply(AppendOutcomes(nil, 7, []Span{{5, 8}}, nil))
	b.apply(AppendOutcomes(nil, 7, nil, []Taken{{Session: bb, Seen: []Span{{5, 7}}}}))
	require.Equal(t, wire.CodeStaleEpoch, g.Late(5, fence-1))
	b.apply(AppendOutcomes(nil, 7, nil, []Taken{{Session: aa, Seen: []Span{{5, 6}}}}))
	require.Equal(t, wire.CodeOK, g.Late(5, fence-1))
	require.Equal(t, wire.CodeStaleEpoch, g.Late(6, fence-1))
	require.Equal(t, wire.CodeStaleEpoch, g.Late(7, fence-1))
}

func TestASuccessorTakesThePlaceOfItsPredecessor(t *testing.T) {
	b := newBook(t, 1000)
	g := b.group(7, 0)
	aa, bb := session(1), session(2)
	b.join(g, aa)
	b.apply(AppendActive(nil, 7, aa, nil))
	require.Equal(t, aa, g.Active)
	m := &Member{ID: bb, Predecessor: aa, Name: "n", Client: "c", Binding: Binding{1, 2}, Flags: wire.AttachStandby}
	e := b.apply(AppendJoin(nil, 7, m, 50, []Return{{3, 4, 1, 0, 0}}))
	require.Equal(t, bb, e.Session)
	require.Len(t, g.Sessions, 1)
	m.Since = b.index
	require.Equal(t, m, g.Sessions[bb])
	require.Zero(t, g.Active)
	r, _ := g.Record(3)
	require.Equal(t, Returned{Deliveries: 1, Fence: b.index, InDoubt: true}, r)
	_, ok := g.Record(49)
	require.False(t, ok)
}

// What a seek has left behind counts for no limit: records that are parked by themselves, and
// repaired ones. A parked key, and a parked partition, stay.
func TestASeekLeavesNoParkedRecordsBehind(t *testing.T) {
	for name, tt := range map[string]struct {
		settings Settings
		parked   []Scope
	}{
		"shared":          {Settings{Mode: wire.ModeShared, SessionMs: 6000}, []Scope{60}},
		"by key":          {serial, []Scope{60, 0x1234}},
		"whole partition": {Settings{Mode: wire.ModeStream, SessionMs: 6000}, []Scope{1}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, 100)
			b.apply(AppendPut(nil, 7, 1, "g", &tt.settings, 0, 0))
			if name == "whole partition" {
				b.apply(AppendPark(nil, 7, 1, 1, ""))
			} else {
				b.apply(AppendPark(nil, 7, 20, 20, ""))
				b.apply(AppendPark(nil, 7, 60, 60, ""))
			}
			if name == "by key" {
				b.apply(AppendPark(nil, 7, 0x1234, 30, ""))
			}
			b.apply(AppendSubstitute(nil, 7, 41, []byte("record")))
			b.apply(AppendSubstitute(nil, 7, 61, []byte("record")))
			saved := b.Save(nil)
			snapshot := b.Snapshot()
			b.apply(AppendSeek(nil, 7, 50, 0))
			require.Equal(t, saved, snapshot(nil), "a snapshot stays what it is")
			require.Equal(t, tt.parked, sorted(b.Group(7).Parked))
			require.Equal(t, []wire.Offset{61}, sorted(b.Group(7).Substitutes))
		})
	}
}

// A seek that is repeated by its number moves the group once, also after the state was saved;
// behind another seek it moves it again.
func TestASeekIsDoneOnceByItsNumber(t *testing.T) {
	b := newBook(t, 100)
	b.apply(AppendPut(nil, 7, 1, "g", &serial, 10, 0))
	b.apply(AppendSeek(nil, 7, 50, 3))
	require.Equal(t, Sought{ID: 3, From: 10, To: 50}, b.Group(7).Sought)
	b.apply(AppendOutcomes(nil, 7, []Span{{50, 60}}, nil))
	again, err := Restore(b.Save(nil))
	require.NoError(t, err)
	for _, s := range []*book{{again, t, b.index}, b} {
		s.apply(AppendSeek(nil, 7, 50, 3))
		require.EqualValues(t, 60, s.Group(7).Done.Floor(), "what was done since stays done")
		require.Equal(t, Sought{ID: 3, From: 10, To: 50}, s.Group(7).Sought)
	}
	b.apply(AppendSeek(nil, 7, 20, 0))
	require.Equal(t, Sought{}, b.Group(7).Sought)
	b.apply(AppendSeek(nil, 7, 50, 3))
	require.EqualValues(t, 50, b.Group(7).Done.Floor())
}

func TestASeekFencesTheGroup(t *testing.T) {
	b := newBook(t, 1000)
	g := b.group(7, 0)
	aa := session(1)
	b.join(g, aa)
	b.apply(AppendOutcomes(nil, 7, []Span{{0, 50}, {60, 70}}, []Taken{{Session: aa, Returns: []Return{{50, 52, 3, 2, 0}}}}))
	b.apply(AppendSeek(nil, 7, 51, 0))
	require.EqualValues(t, 51, g.Done.Floor())
	require.False(t, g.Done.Has(60))
	require.Equal(t, b.index, g.Fence)
	require.Equal(t, b.index, g.SeekIndex)
	require.Equal(t, wire.CodeStaleEpoch, g.Late(55, b.index-1))
	_, ok := g.Record(50)
	require.False(t, ok)
	r, _ := g.Record(51)
	require.EqualValues(t, 2, r.Attempts)
	b.apply(AppendSeek(nil, 7, 5000, 0))
	require.EqualValues(t, 1000, g.Done.Floor())
}

// A queue begins at the lowest floor of its groups, a topic where retention says.
func TestTheStartOfAQueueFollowsItsGroups(t *testing.T) {
	b := newBook(t, 1000)
	_, ok := b.Floor()
	require.False(t, ok)
	b.group(7, PutQueue)
	b.group(8, PutQueue)
	floor := func() wire.Offset {
		o, ok := b.Floor()
		require.True(t, ok)
		return o
	}
	require.EqualValues(t, 0, floor())
	b.apply(AppendOutcomes(nil, 7, []Span{{0, 100}}, nil))
	require.EqualValues(t, 0, floor())
	b.apply(AppendOutcomes(nil, 8, []Span{{0, 40}}, nil))
	require.EqualValues(t, 40, floor())
	b.Trimmed(40)
	require.EqualValues(t, 40, floor())
	b.apply(AppendRemoveGroup(nil, 8))
	require.EqualValues(t, 100, floor())
	b.apply(AppendRemoveGroup(nil, 7))
	_, ok = b.Floor()
	require.False(t, ok)
	g := b.group(9, PutQueue)
	require.EqualValues(t, 40, g.Done.Floor(), "no group begins before the partition")
}

func TestWhatRetentionTakesHasExpired(t *testing.T) {
	b := newBook(t, 1000)
	g := b.group(7, 0)
	aa := session(1)
	b.join(g, aa)
	b.apply(AppendOutcomes(nil, 7, []Span{{10, 20}}, []Taken{{Session: aa, Returns: []Return{{5, 6, 1, 1, 0}}}}))
	fence := b.index
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 0, Offset: 7, Deliveries: 1, Attempts: 1}))
	b.apply(AppendSubstitute(nil, 7, 8, []byte("s")))
	b.Trimmed(15)
	require.EqualValues(t, 20, g.Done.Floor())
	require.EqualValues(t, 10, g.Expired)
	require.Empty(t, g.Letters.Open)
	require.Empty(t, g.Substitutes)
	require.Zero(t, g.returned.len())
	require.Equal(t, wire.CodeStaleEpoch, g.Late(5, fence-1))
}

// GROUPS 31: the no-op of the next leader leaves the table, any later one voids it.
func TestATableServesOneTerm(t *testing.T) {
	b := newBook(t, 1000)
	g := b.group(7, 0)
	aa := session(1)
	b.join(g, aa)
	b.Term(5)
	table := []TableLease{{aa, 90, 3, 5}}
	b.apply(AppendTable(nil, 7, table))
	b.Term(5)
	require.Equal(t, table, g.Table)
	b.Term(6)
	require.Equal(t, table, g.Table)
	again, err := Restore(b.Save(nil))
	require.NoError(t, err)
	again.Term(6)
	require.Equal(t, table, again.Group(7).Table)
	again.Term(7)
	require.Nil(t, again.Group(7).Table)
	b.Term(7)
	require.Nil(t, g.Table)

	b.apply(AppendTable(nil, 7, nil))
	b.Term(8)
	require.NotNil(t, g.Table, "one without leases says that nobody holds anything")
	b.apply(AppendTableVoid(nil, 7))
	require.Nil(t, g.Table)
}

func TestALetterKeepsItsRecord(t *testing.T) {
	b := newBook(t, 1000)
	g := b.group(7, PutQueue)
	b.apply(AppendOutcomes(nil, 7, []Span{{0, 5}, {6, 10}}, nil))
	l := Letter{Number: 3, Offset: 5, Deliveries: 4, Attempts: 3, Reason: 2, Text: "no"}
	b.apply(AppendLetter(nil, 7, Session{}, &l))
	l.Since = b.index
	require.Equal(t, map[uint64]Letter{3: l}, g.Letters.Open)
	require.EqualValues(t, 4, g.Letters.Next)
	require.EqualValues(t, 5, g.Done.Floor())
	require.Equal(t, wire.CodeStaleEpoch, g.Late(5, b.index-1), "whoever held it does not any more")
	b.apply(AppendLetterDone(nil, 7, 3))
	require.Empty(t, g.Letters.Open)
	require.EqualValues(t, 10, g.Done.Floor())
}

// Which letters have been written when they are written in another way from then on.
func TestRuleQ3_LettersOfAnotherWay(t *testing.T) {
	for name, c := range map[string]struct {
		done []uint64 // written, or given up
		next uint32   // of the producer
		left []uint64
	}{
		"none is there":              {next: 7, left: []uint64{0, 1, 2, 3}},
		"two are there":              {next: 9, left: []uint64{2, 3}},
		"all that were sent are":     {next: 10, left: []uint64{3}},
		"one was known to be":        {done: []uint64{0}, next: 9, left: []uint64{2, 3}},
		"more was given up":          {done: []uint64{0, 1}, next: 8, left: []uint64{2, 3}},
		"one in between is not sent": {done: []uint64{1}, next: 8, left: []uint64{2, 3}},
		"nobody knows":               {next: 1 << 31, left: []uint64{0, 1, 2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBook(t, 100)
			g := b.group(7, PutQueue)
			b.apply(AppendLetterPath(nil, 7, &Path{Producer: 12, Sequence: 7}, 0))
			for n := range uint64(4) {
				b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: n, Offset: wire.Offset(n)}))
			}
			b.apply(AppendLetterSend(nil, 7, []uint64{0, 1, 2}))
			for _, n := range c.done {
				b.apply(AppendLetterDone(nil, 7, n))
			}
			again, err := Restore(b.Save(nil))
			require.NoError(t, err)
			require.Equal(t, g.Letters, again.Group(7).Letters)
			next := &Path{Producer: 13, Destination: [16]byte{1}, Partition: 3, Metadata: 9}
			b.apply(AppendLetterPath(nil, 7, next, c.next))
			require.Equal(t, *next, g.Letters.Path)
			require.Empty(t, g.Letters.Sent)
			require.Equal(t, c.left, sorted(g.Letters.Open))
		})
	}
}

// Letters that were written and known to be are the first of those that were sent no more.
func TestRuleQ3_SequencesOfLettersWrap(t *testing.T) {
	b := newBook(t, 100)
	g := b.group(7, PutQueue)
	b.apply(AppendLetterPath(nil, 7, &Path{Producer: 12, Sequence: 1<<31 - 2}, 0))
	for n := range uint64(3) {
		b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: n, Offset: wire.Offset(n)}))
	}
	b.apply(AppendLetterSend(nil, 7, []uint64{0, 1, 2}))
	require.Equal(t, 3, g.Letters.below(1))
	b.apply(AppendLetterDone(nil, 7, 0))
	b.apply(AppendLetterDone(nil, 7, 1))
	require.Zero(t, g.Letters.Path.Sequence)
	require.Equal(t, []uint64{2}, g.Letters.Sent)
	require.Equal(t, 1, g.Letters.below(1))
}

// A seek back over a record whose letter is not written yet has it given out again: the letter
// is written all the same, and says nothing about it.
func TestRuleQ3_ASeekBackHasTheRecordGivenOutAgain(t *testing.T) {
	b := newBook(t, 100)
	g := b.group(7, PutQueue)
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 0, Offset: 5}))
	b.apply(AppendSeek(nil, 7, 3, 0))
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 1, Offset: 6}))
	b.apply(AppendLetterDone(nil, 7, 0))
	b.apply(AppendLetterDone(nil, 7, 1))
	require.False(t, g.Done.Has(5), "it is given out again")
	require.True(t, g.Done.Has(6))
}

// A group that is removed is gone when its letters are written, and its name is free at once.
func TestRuleQ3_AGroupThatIsRemovedLeavesItsLetters(t *testing.T) {
	b := newBook(t, 100)
	g := b.group(7, PutQueue)
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 0, Offset: 5}))
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 1, Offset: 6}))
	b.apply(AppendRemoveGroup(nil, 7))
	require.Nil(t, b.Named(g.Name))
	b.apply(AppendJoin(nil, 7, &Member{ID: session(1)}, 0, nil))
	require.Empty(t, g.Sessions, "nobody consumes")
	b.apply(AppendPut(nil, 9, 9, g.Name, &g.Settings, 50, PutQueue))
	require.Equal(t, ID(9), b.Named(g.Name).ID)
	again, err := Restore(b.Save(nil))
	require.NoError(t, err)
	require.Equal(t, b.Save(nil), again.Save(nil))
	require.Equal(t, ID(9), again.Named(g.Name).ID)
	floor, _ := b.Floor()
	require.EqualValues(t, 5, floor, "the records of the letters stay")
	b.apply(AppendOutcomes(nil, 9, []Span{{50, 100}}, nil))
	runs, _ := b.Finished(0)
	require.Equal(t, []Span{{0, 5}, {7, 100}}, runs)
	b.Erase(Span{5, 6}, Span{7, 90})
	erased, _ := b.Erased(0)
	require.Equal(t, []Span{{7, 90}}, erased)
	b.apply(AppendLetterDone(nil, 7, 0))
	b.apply(AppendLetterDone(nil, 7, 1))
	require.Nil(t, b.Group(7))
	floor, _ = b.Floor()
	require.EqualValues(t, 100, floor)
}

// A seek, an order that settles, and another group that is done leave a record where it is
// until its dead letter is written.
func TestRuleQ3_ALetterKeepsItsRecordFromWhoMovesTheGroup(t *testing.T) {
	b := newBook(t, 100)
	g := b.group(7, PutQueue)
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 0, Offset: 5}))
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 1, Offset: 8}))
	needs := func() wire.Offset {
		floor, ok := b.Floor()
		require.True(t, ok)
		again, err := Restore(b.Save(nil))
		require.NoError(t, err)
		same, _ := again.Floor()
		require.Equal(t, floor, same, "what is restored agrees")
		return floor
	}
	b.apply(AppendSeek(nil, 7, 90, 0))
	require.EqualValues(t, 90, g.Done.Floor())
	require.EqualValues(t, 5, needs())
	b.apply(AppendLetterDone(nil, 7, 0))
	require.EqualValues(t, 8, needs())
	b.apply(AppendOutcomes(nil, 7, []Span{{90, 95}}, nil))
	require.EqualValues(t, 8, needs())
	b.apply(AppendLetterDone(nil, 7, 1))
	require.EqualValues(t, 95, needs())
}

// The lowest record of which a letter is open is known whatever was opened, closed and expired,
// several letters of one record among them, and a copy stays as it was.
func TestTheLowestOpenLetterIsKnown(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	g := newGroup(1, "g")
	lowest := func(l *Letters) (low wire.Offset, all []wire.Offset) {
		for _, x := range l.Open {
			all = append(all, x.Offset)
		}
		slices.Sort(all)
		if low = math.MaxUint64; len(all) > 0 {
			low = all[0]
		}
		return low, all
	}
	for n := range uint64(5000) {
		before := g.snapshot()
		_, were := lowest(&before.Letters)
		g.own()
		switch l := &g.Letters; {
		case random.IntN(100) == 0:
			l.expire(wire.Offset(random.IntN(60)))
		case len(l.Open) > 0 && random.IntN(21) >= 10:
			open := sorted(l.Open)
			l.close(l.Open[open[random.IntN(len(open))]])
		default:
			l.open(Letter{Number: n, Offset: wire.Offset(random.IntN(60))})
		}
		low, all := lowest(&g.Letters)
		require.Equal(t, low, g.Letters.low())
		require.Equal(t, all, g.Letters.offsets)
		require.Equal(t, were, before.Letters.offsets, "of the copy")
	}
}

package group

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// everything is a state in which every list has something.
func everything(t *testing.T) *book {
	b := newBook(t, 100_000)
	b.Term(3)
	g := b.group(7, PutQueue)
	b.group(9, PutPaused)
	aa, bb := session(1), session(2)
	b.join(g, aa)
	b.join(g, bb)
	b.apply(AppendOutcomes(nil, 7, []Span{{0, 5}, {6, 9}, {70_000, 70_001}}, []Taken{
		{Session: aa, Returns: []Return{{10, 12, 1, 1, 1000}, {20, 21, 2, 0, 0}}},
	}))
	b.apply(AppendOutcomes(nil, 7, []Span{{20, 21}}, nil))
	b.apply(AppendHorizon(nil, 7, 65_536))
	b.apply(AppendPark(nil, 7, 0x1234, 30, "poison"))
	b.apply(AppendActive(nil, 7, bb, nil))
	b.apply(AppendLetter(nil, 7, Session{}, &Letter{Number: 2, Offset: 40, Deliveries: 3, Attempts: 3, Reason: 1, Text: "why"}))
	b.apply(AppendSubstitute(nil, 7, 41, []byte("record")))
	b.apply(AppendTable(nil, 7, []TableLease{{bb, 15, 50, 60}}))
	b.apply(AppendMember(nil, 7, true, &Membership{Session: aa, Name: "n", Node: 2}))
	b.apply(AppendBinding(nil, 7, Binding{1, 2}, map[Session][]uint32{aa: {0, 300}}))
	b.Term(4)
	return b
}

func TestSavedGroups(t *testing.T) {
	b := newBook(t, 100)
	b.Term(3)
	settings := Settings{
		Mode: wire.ModeSerial, Scope: wire.ScopeKey, Holder: wire.HolderAny, Binding: wire.BindingCover, Order: wire.OrderStrict, DeadLetterMode: wire.DeadLetterNone,
		Window: 1, SessionMs: 6000, AckWaitMs: 30_000, RevokeMs: 5000, BackoffMs: 1000, BackoffMaxMs: 300_000,
	}
	b.apply(AppendPut(nil, 7, 21, "g", &settings, 2, PutQueue))
	b.apply(AppendJoin(nil, 7, &Member{ID: session(0xaa), Name: "n", Client: "c", Binding: Binding{1, 2}, Flags: 1}, 0, nil))
	b.apply(AppendOutcomes(nil, 7, []Span{{4, 6}}, []Taken{{Session: session(0xaa), Returns: []Return{{6, 8, 1, 1, 1000}}}}))
	want := "" +
		"0300000000000000" + "0000000000000000" + "6400000000000000" + "01000000" + // term, start, next, count
		"0700000000000000" + "1500000000000000" + "010067" + // ID, version, name
		"0201020101000300" + "01000000" + "70170000" + "30750000" + "88130000" + "e8030000" + "e0930400" + "00000000" + "0000" + // settings
		"02" + // flags
		"0000000000000000" + "0200000000000000" + "0000000000000000" + // expired, horizon, doubt
		"0b00000000000000" + "0000000000000000" + "0000000000000000" + // fence, seek index, forgotten
		"00000000000000000000000000000000" + // active
		"0200000000000000" + "01000000" + "000000000000" + "01" + "0100" + "0402" + // done: floor, chunks, number, kind, runs
		"01000000" + "aa0000000000000000000000000000aa" + "00000000000000000000000000000000" + "01000000" + "02000000" + "01" + "01006e" + "010063" + "0c00000000000000" +
		"01000000" + "0602" + "01" + "01" + "e807" + "0d" + "01" + "aa0000000000000000000000000000aa" + // returned
		"00000000" + // settled
		"00000000" + "00000000" + // parked, substitutes
		"0000000000000000" + "ffffffffffffffff" + "00000000000000000000000000000000" + "00000000" + "00000000" + "0000000000000000" + "00" + "00000000" // letters
	require.Equal(t, want, hex.EncodeToString(b.Save(nil)))
}

func TestSavedGroupsComeBack(t *testing.T) {
	saved := everything(t).Save(nil)
	again, err := Restore(saved)
	require.NoError(t, err)
	require.Equal(t, saved, again.Save(nil))
	require.EqualValues(t, 4, again.term)
	g := again.Named(again.Group(7).Name)
	require.Equal(t, everything(t).Group(7).Sessions, g.Sessions)
	require.Equal(t, []TableLease{{session(2), 15, 50, 60}}, g.Table)
	require.Equal(t, map[Session][]uint32{session(1): {0, 300}}, g.Members.Partitions)
	require.Equal(t, wire.CodeStaleEpoch, g.Late(20, 11))
	for n := range saved {
		_, err := Restore(saved[:n])
		require.ErrorIs(t, err, ErrState)
	}
	_, err = Restore(append(saved, 0))
	require.ErrorIs(t, err, ErrState)
}

// A snapshot is what the state was, while the state goes on in another goroutine.
func TestASnapshotDoesNotChange(t *testing.T) {
	for seed := range uint64(20) {
		b := everything(t)
		random := rand.New(rand.NewPCG(seed, 3))
		for range 5 {
			want, snapshot := b.Save(nil), b.Snapshot()
			got := make(chan []byte)
			go func() { got <- snapshot(nil) }()
			for range 50 {
				b.random(random)
			}
			require.Equal(t, want, <-got)
		}
	}
}

// random applies some entry that a leader may have proposed.
func (b *book) random(random *rand.Rand) {
	groups := slices.Clone(sorted(b.byID))
	if len(groups) == 0 {
		groups = append(groups, 7)
	}
	id := groups[random.IntN(len(groups))]
	offset := func() wire.Offset { return min(b.next-1, b.start+wire.Offset(random.IntN(300))) }
	spans := func(n int) (list []Span) {
		for from := offset(); n > 0 && from < b.next; n-- {
			to := min(b.next, from+1+wire.Offset(random.IntN(20)))
			list = append(list, Span{from, to})
			from = to + 1 + wire.Offset(random.IntN(10))
		}
		return list
	}
	returns := func(n int) (list []Return) {
		for _, s := range spans(n) {
			list = append(list, Return{s.From, s.To, uint16(random.IntN(3)), uint16(random.IntN(2)), uint32(random.IntN(2))})
		}
		return list
	}
	who := func() Session { return session(byte(random.IntN(6))) }
	var body []byte
	switch random.IntN(20) {
	case 0:
		body = AppendPut(nil, ID(7+random.IntN(4)), uint64(random.IntN(40)), string(rune('a'+random.IntN(5))), &serial, offset(), uint8(random.IntN(4)))
	case 1:
		body = AppendRemoveGroup(nil, id)
	case 2, 3:
		body = AppendJoin(nil, id, &Member{ID: who(), Predecessor: who()}, offset(), returns(2))
	case 4, 5:
		body = AppendRemove(nil, id, who(), 1, offset(), returns(3))
	case 6:
		body = AppendHorizon(nil, id, offset())
	case 7:
		body = AppendPark(nil, id, Scope(random.IntN(3)), offset(), "r")
	case 8:
		body = AppendUnpark(nil, id, Scope(random.IntN(3)))
	case 9:
		body = AppendActive(nil, id, who(), returns(1))
	case 10:
		if random.IntN(5) == 0 {
			body = AppendSeek(nil, id, offset(), 0)
		}
	case 11:
		body = AppendLetter(nil, id, Session{}, &Letter{Number: uint64(random.IntN(5)), Offset: offset()})
	case 12:
		switch random.IntN(4) {
		case 0:
			body = AppendLetterSend(nil, id, []uint64{uint64(random.IntN(5)), uint64(random.IntN(5))})
		case 1:
			body = AppendLetterPath(nil, id, &Path{Producer: 3}, uint32(random.IntN(3)))
		default:
			body = AppendLetterDone(nil, id, uint64(random.IntN(5)))
		}
	case 13:
		body = AppendSubstitute(nil, id, offset(), []byte{byte(random.IntN(9))})
	case 14:
		if random.IntN(4) == 0 {
			b.Trimmed(offset() / 4)
		}
	case 15:
		b.Term(b.term + 1)
		body = AppendTable(nil, id, []TableLease{{Session: who(), From: 1, To: 4}})
	default:
		body = AppendOutcomes(nil, id, spans(random.IntN(4)), []Taken{
			{Session: who(), Returns: returns(random.IntN(3)), Seen: spans(random.IntN(3))}, {Session: who(), Seen: spans(1)},
		})
	}
	b.apply(body)
}

// Replicas of which one began from a checkpoint agree to the byte.
func TestReplicasAgree(t *testing.T) {
	for seed := range uint64(40) {
		a, b := everything(t), everything(t)
		one, two := rand.New(rand.NewPCG(seed, 4)), rand.New(rand.NewPCG(seed, 4))
		for n := range 400 {
			a.random(one)
			b.random(two)
			if n%50 == int(seed) {
				restored, err := Restore(b.Save(nil))
				require.NoError(t, err)
				b.State = restored
			}
			if n%20 == 0 {
				require.Equal(t, a.Save(nil), b.Save(nil), "seed %d, entry %d", seed, n)
			}
		}
		for g := range a.All {
			if !g.Removed {
				require.Equal(t, g, a.Named(g.Name))
			}
			var last wire.Offset
			g.Returned(0, a.next, func(from, to wire.Offset, _ Returned) bool {
				require.LessOrEqual(t, last, from)
				require.Less(t, from, to)
				last = to
				for o := from; o < to; o++ {
					require.False(t, g.Done.Has(o), "seed %d: record %d is done and was returned", seed, o)
				}
				return true
			})
		}
	}
}

func TestACommandThatIsTooNew(t *testing.T) {
	b := newBook(t, 100)
	for _, f := range []func(){
		func() { b.Apply(1, CommandPause+1, 1, nil) },
		func() { b.Apply(1, CommandPause, 2, nil) },
	} {
		func() {
			defer func() { require.ErrorIs(t, recover().(error), log.ErrTooNew) }()
			f()
		}()
	}
}

func TestACommandThatNoLeaderProposes(t *testing.T) {
	for name, body := range map[string][]byte{
		"beyond the end":    AppendOutcomes(nil, 7, []Span{{99, 101}}, nil),
		"an empty run":      AppendOutcomes(nil, 7, []Span{{9, 9}}, nil),
		"a run that wraps":  AppendOutcomes(nil, 7, []Span{{9, 10}, {8, 10}}, nil),
		"one byte too many": end(append(AppendTableVoid(nil, 7), 0), 0),
	} {
		b := newBook(t, 100)
		b.group(7, 0)
		func() {
			defer func() { require.ErrorIs(t, recover().(error), ErrState, name) }()
			b.apply(body)
			t.Error(name, "is applied")
		}()
	}
}

// Fences beyond the bound are forgotten, the lowest first, and that is known.
func TestForgottenFences(t *testing.T) {
	b := newBook(t, 10_000_000)
	g := b.group(7, 0)
	aa := session(1)
	b.join(g, aa)
	take := func(o wire.Offset) {
		b.apply(AppendOutcomes(nil, 7, nil, []Taken{{Session: aa, Returns: []Return{{o, o + 1, 1, 1, 0}}}}))
		b.apply(AppendOutcomes(nil, 7, []Span{{o, o + 1}}, nil))
	}
	for n := range wire.Offset(MaxSettled - 1) {
		take(10 + 2*n)
	}
	require.Equal(t, MaxSettled-1, g.settled.len())
	require.Zero(t, g.Forgotten)
	take(2)
	require.Less(t, g.settled.len(), MaxSettled/2+2)
	require.NotZero(t, g.Forgotten)
	require.Equal(t, wire.CodeAlreadyDone, g.Late(10, g.Forgotten-1))
	require.Equal(t, wire.CodeOK, g.Late(10, g.Forgotten))
	require.Equal(t, wire.CodeStaleEpoch, g.Late(2, b.index-2))
	require.Equal(t, wire.CodeStaleEpoch, g.Late(11, g.Forgotten-1), "who knows whether it was taken")
}

// FuzzRestore: what restores saves to the same bytes, and what does not says why.
func FuzzRestore(f *testing.F) {
	f.Add(NewState().Save(nil))
	b := newBook(nil, 100_000)
	for i, body := range [][]byte{
		AppendPut(nil, 7, 7, "g", &serial, 3, PutQueue),
		AppendJoin(nil, 7, &Member{ID: session(1), Name: "n"}, 9, nil),
		AppendOutcomes(nil, 7, []Span{{4, 6}, {9, 10}}, []Taken{{Session: session(1), Returns: []Return{{6, 8, 1, 1, 1000}}}}),
		AppendTable(nil, 7, []TableLease{{session(1), 2, 3, 4}}),
		AppendLetter(nil, 7, Session{}, &Letter{Number: 1, Offset: 20, Text: "t"}),
		AppendPark(nil, 7, 5, 6, "r"),
		AppendSubstitute(nil, 7, 21, []byte("s")),
		AppendMember(nil, 7, true, &Membership{Session: session(1)}),
		AppendBinding(nil, 7, Binding{1, 2}, map[Session][]uint32{session(1): {4}}),
	} {
		b.Apply(wire.Index(i+1), Command(body[0]), body[1], body[commandHeader:])
		f.Add(b.Save(nil))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		s, err := Restore(src)
		if err != nil {
			require.True(t, errors.Is(err, ErrState), "%v", err)
			return
		}
		require.Equal(t, src, s.Save(nil))
		s.Trimmed(s.next)
		s.Term(s.term + 1)
	})
}

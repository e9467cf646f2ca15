package partition

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// A record of a shared group is parked, shown, explained and let go.
func TestAScopeIsParkedThroughTheLeader(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	h.turns(0)
	h.send(-1, 0, 0, 3)
	ask := func(op wire.GroupOrderOp, json string) (answer string, err error) {
		h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: op, JSON: []byte(json)}, Reply: func(json []byte, e error) {
			answer, err = string(json), e
		}})
		h.turns(1)
		return answer, err
	}
	answer, err := ask(wire.OrderExplain, "")
	require.NoError(t, err)
	require.Contains(t, answer, `"code":"no_consumer"`)
	_, err = ask(wire.OrderPark, `{"key":"aw=="}`)
	require.ErrorIs(t, err, wire.CodeInvalidSetting)
	answer, err = ask(wire.OrderPark, `{"scope":1,"reason":"broken"}`)
	require.NoError(t, err)
	require.Equal(t, "{}", answer)
	c := h.attach("workers", 1)
	h.turns(2)
	require.Equal(t, 2, c.records())
	answer, err = ask(wire.OrderShow, `{"scope":1}`)
	require.NoError(t, err)
	require.Contains(t, answer, `{"scope":"1","offset":1,"known":true,"parked":true,"reason":"broken"`)
	_, err = ask(wire.OrderUnpark, `{"scope":1}`)
	require.NoError(t, err)
	require.Equal(t, 3, c.records())
	_, err = ask(wire.OrderExplain, "{")
	require.ErrorIs(t, err, wire.CodeMalformed)
}

// A delivery that has not ended counts for who asks, as it does for the consumer and for browse,
// by the scope and by the record.
func TestADeliveryThatIsOutIsShown(t *testing.T) {
	for name, settings := range map[string]wire.GroupSettings{
		"shared": {Mode: wire.ModeShared}, "one scope": {Mode: wire.ModeSerial, Scope: wire.ScopeDestination},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newGroups(t)
			h.log.immediate = true
			group := intent(7, "workers")
			group.Settings = settings.WithDefaults()
			h.part.Groups().Intend(20, []Intent{group})
			h.turns(0)
			h.send(-1, 0, 0, 1)
			show := func() (answer string) {
				h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: wire.OrderShow, JSON: []byte(`{"scope":0}`)}, Reply: func(json []byte, err error) {
					require.NoError(t, err)
					answer = string(json)
				}})
				h.turns(1)
				return answer
			}
			require.NotContains(t, show(), "deliveries")
			c := h.attach("workers", 1)
			h.turns(2)
			require.Equal(t, 1, c.records())
			require.Contains(t, show(), `"known":true,"deliveries":1`)
		})
	}
}

// What is stored while a group has no consumer takes no turn of its Leader, and is there for
// who asks.
func TestWhoAsksSeesWhatWasStoredSince(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.turns(0)
	h.send(-1, 0, 0, 2)
	h.turns(1)
	h.ack(c)
	h.put(Input{Kind: InputLeave, Consumer: c})
	h.turns(2)
	require.True(t, c.over)
	h.put(Input{Kind: InputGone, Consumer: c})
	h.turns(2)
	ask := func(op wire.GroupOrderOp, json string) (answer string) {
		h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: op, JSON: []byte(json)}, Reply: func(json []byte, e error) {
			require.NoError(t, e)
			answer = string(json)
		}})
		h.turns(1)
		return answer
	}
	h.send(-1, 0, 0, 2)
	h.turns(3)
	require.Contains(t, ask(wire.OrderUnfinished, ""), `"runs":[{"offset":2,"count":2,`)
	h.send(-1, 0, 0, 1)
	h.turns(4)
	explained := ask(wire.OrderExplain, `{"offset":4}`)
	require.Contains(t, explained, `"no_consumer"`)
	require.NotContains(t, explained, `"not_there"`)
	h.send(-1, 0, 0, 1)
	h.turns(5)
	require.Contains(t, ask(wire.OrderShow, `{"scope":5}`), `"offset":5,"known":true`)
	h.send(-1, 0, 0, 1)
	h.turns(6)
	require.Contains(t, ask(wire.OrderSkip, `{"scope":6}`), `"offset":6`)
}

// A planned move: the leases are in the log before the leadership goes, and the next leader
// gives the rest out at once.
func TestLeasesAreCommittedBeforeAPlannedMove(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
	c := h.attach("workers", 1)
	h.turns(0)
	h.send(-1, 0, 0, 3)
	h.turns(1)
	require.Equal(t, 3, c.records())
	var ready []error
	h.part.Groups().HandOver(func(err error) { ready = append(ready, err) })
	require.Empty(t, ready)
	h.turns(2)
	require.Equal(t, []error{nil}, ready)
	require.Len(t, h.part.state.groups.Named("workers").Table, 1)

	h.log.term++
	h.noOp()
	h.send(-1, 0, 0, 2)
	late := h.attach("workers", 2)
	h.turns(3)
	require.Equal(t, 2, late.records(), "nobody is waited for")

	h.part.Groups().HandOver(func(err error) { ready = append(ready, err) })
	h.turns(4)
	require.Len(t, ready, 2)
	h.part.Groups().Stay()
	h.send(-1, 0, 0, 1)
	h.turns(5)
	h.turns(6)
	require.Equal(t, 3, late.records(), "it goes on")
	require.Nil(t, h.part.state.groups.Named("workers").Table)
}

// After a planned move the next leader of a serial group looks at the records that are
// leased before anybody has attached, once.
func TestHandedOverLeasesAreLookedAtOnce(t *testing.T) {
	h, w := newGroups(t)
	h.log.immediate = true
	serial := intent(7, "workers")
	serial.Settings = wire.GroupSettings{Mode: wire.ModeSerial, Scope: wire.ScopePublisher}.WithDefaults()
	h.part.Groups().Intend(20, []Intent{serial})
	c := h.attach("workers", 1)
	h.turns(0)
	h.send(-1, 0, 0, 3)
	h.turns(1)
	require.Equal(t, 3, c.records())
	h.part.Groups().HandOver(func(err error) { require.NoError(t, err) })
	h.turns(2)

	h.log.term++
	h.part.Reject(wire.CodeNotLeader)
	w.scans = 0
	h.noOp()
	h.turns(3)
	require.LessOrEqual(t, w.scans, 1)
}

// A group is removed while a reader looks for the head of a key.
func TestWhoAsksForAHeadOfARemovedGroupIsAnswered(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	v := intent(7, "workers")
	v.Settings.Mode, v.Settings.Scope = wire.ModeSerial, wire.ScopeKey
	h.part.Groups().Intend(20, []Intent{v})
	h.turns(0)
	h.send(-1, 0, 0, 5)
	h.turns(1)
	var err error
	h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: wire.OrderShow, JSON: []byte(`{"scope":12345}`)}, Reply: func(_ []byte, e error) { err = e }})
	h.turns(2)
	require.NoError(t, err)
	h.part.Groups().Intend(30, nil)
	h.turns(3)
	require.Nil(t, h.part.state.groups.Named("workers"))
	h.part.Found(7, 12345, ^wire.Offset(0), 0, false) // the reader comes back
	h.turns(4)
	require.ErrorIs(t, err, wire.CodeGroupGone)
	require.Empty(t, h.part.groups.heads)
}

// A group is to become another kind while it stops for an operator.
func TestAChangeOfAGroupThatStopsWaitsWithoutTurns(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	v := intent(7, "workers")
	h.part.Groups().Intend(20, []Intent{v})
	c := h.attach("workers", 1)
	h.turns(0)
	h.send(-1, 0, 0, 5)
	h.turns(1)
	require.Equal(t, 5, c.records())
	h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: wire.OrderSettle, JSON: []byte(`{"spans":[{"from":0,"to":1}]}`)}, Reply: func([]byte, error) {}})
	h.turns(2)
	v.Version, v.Settings.Mode = 31, wire.ModeStream
	h.part.Groups().Intend(31, []Intent{v})
	turns := 0
	for ; turns < 100 && h.part.Turn(1000, 3*time.Millisecond); turns++ {
	}
	require.Less(t, turns, 100, "the owner goes on for ever")
	h.put(Input{Kind: InputLeave, Consumer: c})
	h.turns(4)
	require.Equal(t, wire.ModeStream, h.part.state.groups.Group(7).Settings.Mode, "it is changed when the other order is over")
}

// What is parked by its offset is there, and not done: a record that is not there would stay
// parked for ever, and one whose body is gone cannot be looked at, however often it is asked for.
func TestARecordThatIsDoneOrNotThereIsNotParked(t *testing.T) {
	for name, settings := range map[string]wire.GroupSettings{
		"shared": {Mode: wire.ModeShared}, "by key": {Mode: wire.ModeSerial, Scope: wire.ScopeKey}, "one scope": {Mode: wire.ModeSerial, Scope: wire.ScopeDestination},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newGroups(t)
			h.log.immediate = true
			v := intent(7, "workers")
			v.Settings = settings.WithDefaults()
			h.part.Groups().Intend(20, []Intent{v})
			h.turns(0)
			h.send(-1, 0, 0, 3)
			ask := func(op wire.GroupOrderOp, json string) (err error) {
				err = errors.New("not answered")
				h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: op, JSON: []byte(json)}, Reply: func(_ []byte, e error) { err = e }})
				h.turns(2)
				return err
			}
			require.NoError(t, ask(wire.OrderSettle, `{"spans":[{"from":0,"to":1}]}`))
			require.ErrorIs(t, ask(wire.OrderPark, `{"scope":0}`), wire.CodeRefused)
			require.ErrorIs(t, ask(wire.OrderPark, `{"scope":3}`), wire.CodeInvalidRequest)
			require.Empty(t, h.part.state.groups.Named("workers").Parked)
			require.NoError(t, ask(wire.OrderUnpark, `{"scope":3}`), "what an earlier version has parked can be let go")
		})
	}
}

// RULES L8: nobody gives up or repairs, by the name of a key, a damaged record that may be another key's.
func TestRuleL8_ADamagedRecordIsGivenUpByItsOffset(t *testing.T) {
	h, _ := newGroups(t)
	h.log.immediate = true
	keyed := intent(7, "workers")
	keyed.Settings = wire.GroupSettings{Mode: wire.ModeSerial, Scope: wire.ScopeKey}.WithDefaults()
	groups := h.part.Groups()
	groups.Intend(20, []Intent{keyed})
	h.turns(0)
	h.send(-1, 0, 0, 4)
	groups.feed.use(true)
	groups.feed.scanned([]log.Batch{{Base: 0, Count: 4, Damaged: true}})
	ask := func(op wire.GroupOrderOp, json string, found bool) (err error) {
		h.put(Input{Kind: InputOrder, Group: "workers", Order: &wire.GroupOrderRequest{Op: op, JSON: []byte(json)}, Reply: func(_ []byte, e error) { err = e }})
		h.turns(1)
		if found {
			h.part.Found(7, group.HashOf([]byte("k")), ^wire.Offset(0), 1, true)
			h.turns(1)
		}
		return err
	}
	for _, op := range []wire.GroupOrderOp{wire.OrderSkip, wire.OrderRepair} {
		err := ask(op, `{"key":"aw==","offset":1}`, true)
		require.ErrorIs(t, err, wire.CodeCorrupt)
		require.ErrorContains(t, err, "the record at offset 1")
	}
	require.NoError(t, ask(wire.OrderShow, `{"key":"aw=="}`, true))
	require.NoError(t, ask(wire.OrderSkip, `{"scope":1}`, false))
	require.True(t, h.part.state.groups.Named("workers").Done.Has(1))
}

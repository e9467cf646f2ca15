package cluster

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func grouped(t *testing.T, partitions uint32) *State {
	s := NewState()
	require.NoError(t, s.Apply(1, &Command{Register: &Register{ClusterID: id(1), Node: 1, Store: id(1), Address: "127.0.0.1:7400"}}).Err)
	created(t, s, "orders", partitions)
	return s
}

func setGroup(s *State, index wire.Index, c SetGroup) Result {
	c.Destination = "orders"
	command := Command{SetGroup: &c}
	command.stamp()
	return s.Apply(index, &command)
}

func TestAGroupIsCreatedAlteredPausedAndRemoved(t *testing.T) {
	s := grouped(t, 2)
	r := setGroup(s, 20, SetGroup{Group: "billing", Create: true, Settings: wire.GroupSettings{Mode: wire.ModeSerial}})
	require.NoError(t, r.Err)
	require.Equal(t, &Group{ID: 20, Version: 20, Settings: wire.GroupSettings{Mode: wire.ModeSerial}}, r.Group)
	require.Equal(t, LevelGroups, s.Level)
	require.Equal(t, 3, s.Version, "an older build must not open it")

	before := s.Destinations["orders"]
	require.ErrorIs(t, setGroup(s, 21, SetGroup{Group: "billing", Create: true}).Err, wire.CodeAlreadyExists)
	again := setGroup(s, 22, SetGroup{Group: "billing", Create: true, Exists: true, Settings: wire.GroupSettings{Mode: wire.ModeSerial, Scope: wire.ScopeKey}})
	require.NoError(t, again.Err)
	require.False(t, again.Changed)
	require.Equal(t, wire.Index(20), again.Group.ID)
	for _, other := range []wire.GroupSettings{{Mode: wire.ModeShared}, {Scope: wire.ScopePublisher}, {Binding: wire.BindingGather}} {
		require.ErrorIs(t, setGroup(s, 23, SetGroup{Group: "billing", Create: true, Exists: true, Settings: other}).Err, wire.CodeGroupMismatch)
	}

	r = setGroup(s, 24, SetGroup{Group: "billing", Settings: wire.GroupSettings{Mode: wire.ModeShared}, IfVersion: 20})
	require.NoError(t, r.Err)
	require.Equal(t, &Group{ID: 20, Version: 24, Settings: wire.GroupSettings{Mode: wire.ModeShared}}, r.Group)
	require.ErrorIs(t, setGroup(s, 25, SetGroup{Group: "billing", IfVersion: 20}).Err, wire.CodeRefused)
	require.Equal(t, wire.ModeSerial, before.Groups["billing"].Settings.Mode, "a view that shares the old one sees no change")

	paused := true
	r = setGroup(s, 26, SetGroup{Group: "billing", Paused: &paused})
	require.NoError(t, r.Err)
	require.Equal(t, &Group{ID: 20, Version: 26, Settings: wire.GroupSettings{Mode: wire.ModeShared}, Paused: true}, r.Group)

	require.NoError(t, s.Apply(27, &Command{RemoveGroup: &RemoveGroup{Destination: "orders", Group: "billing"}}).Err)
	require.ErrorIs(t, s.Apply(28, &Command{RemoveGroup: &RemoveGroup{Destination: "orders", Group: "billing"}}).Err, wire.CodeUnknownGroup)
	require.Equal(t, wire.Index(29), setGroup(s, 29, SetGroup{Group: "billing", Create: true}).Group.ID, "it is another group")
}

// R-UM-8 and others: what a group cannot be is refused with the reason.
func TestR_UM_8_AGroupThatCannotBeIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		group string
		set   wire.GroupSettings
		code  wire.ErrorCode
	}{
		"serial destination on two partitions": {"g", wire.GroupSettings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination}, wire.CodeSerialNeedsOnePartition},
		"no name":                              {"", wire.GroupSettings{}, wire.CodeInvalidName},
		"its own dead letters":                 {"g", wire.GroupSettings{DeadLetter: "orders"}, wire.CodeInvalidSetting},
		"dead letters to nowhere":              {"g", wire.GroupSettings{DeadLetterMode: wire.DeadLetterRecord}, wire.CodeInvalidSetting},
		"a limit without consequences":         {"g", wire.GroupSettings{DeliveryLimit: 3}, wire.CodeInvalidSetting},
		"a session of no time":                 {"g", wire.GroupSettings{SessionMs: 1}, wire.CodeInvalidSetting},
		"an unknown mode":                      {"g", wire.GroupSettings{Mode: 9}, wire.CodeInvalidSetting},
		"backoff backwards":                    {"g", wire.GroupSettings{BackoffMs: 10, BackoffMaxMs: 5}, wire.CodeInvalidSetting},
		"failback without an active one":       {"g", wire.GroupSettings{Mode: wire.ModeSerial, Failback: true}, wire.CodeInvalidSetting},
		"hold on a queue":                      {"g", wire.GroupSettings{Hold: true}, wire.CodeInvalidSetting},
	} {
		s := grouped(t, 2)
		require.ErrorIs(t, setGroup(s, 20, SetGroup{Group: test.group, Create: true, Settings: test.set}).Err, test.code, name)
		require.Empty(t, s.Destinations["orders"].Groups, name)
	}
	s := grouped(t, 1)
	require.NoError(t, setGroup(s, 20, SetGroup{Group: "g", Create: true, Settings: wire.GroupSettings{Mode: wire.ModeSerial, Scope: wire.ScopeDestination}}).Err)
	require.Equal(t, wire.Errorf(wire.CodeUnknownGroup, `queue "orders" has no group "unknown"`), setGroup(s, 21, SetGroup{Group: "unknown"}).Err, "what to do is said by the code")
	c := Command{SetGroup: &SetGroup{Destination: "unknown", Group: "g", Create: true}}
	require.ErrorIs(t, s.Apply(22, &c).Err, wire.CodeUnknownDestination)
}

func TestGroupsWaitForTheLastOldBuild(t *testing.T) {
	s := grouped(t, 1)
	s.Nodes[2] = &Node{ID: 2, Store: id(2), MaxLevel: LevelCluster}
	s.Nodes[1].MaxLevel = LevelGroups
	require.ErrorIs(t, setGroup(s, 20, SetGroup{Group: "g", Create: true}).Err, wire.CodeUnsupported)
	s.Nodes[2].MaxLevel = LevelGroups
	require.NoError(t, setGroup(s, 21, SetGroup{Group: "g", Create: true}).Err)
}

// letters alters what the destination orders says about dead letters.
func letters(s *State, index wire.Index, limit uint32, mode wire.DeadLetterMode, to string) Result {
	return s.Apply(index, &Command{Alter: &Alter{Name: "orders", Kind: wire.Queue, Mask: wire.MaskLetters, Settings: wire.Settings{
		DeliveryLimit: limit, DeadLetterMode: mode, DeadLetter: to,
	}}})
}

// R-MQC-12: what a destination says about poison messages holds for its groups, also for
// those that are there, unless they say something themselves.
func TestR_MQC_12_GroupsGoByTheDeadLettersOfTheirDestination(t *testing.T) {
	type said struct {
		limit uint32
		mode  wire.DeadLetterMode
		to    string
	}
	for name, test := range map[string]struct{ destination, own, want said }{
		"all of the destination":            {said{5, 0, "dead"}, said{}, said{5, wire.DeadLetterRecord, "dead"}},
		"a limit of its own":                {said{5, 0, "dead"}, said{3, 0, ""}, said{3, wire.DeadLetterRecord, "dead"}},
		"a destination of its own":          {said{5, wire.DeadLetterPark, ""}, said{0, 0, "mine"}, said{5, wire.DeadLetterRecord, "mine"}},
		"it parks":                          {said{5, 0, "dead"}, said{0, wire.DeadLetterPark, ""}, said{5, wire.DeadLetterPark, ""}},
		"the destination parks":             {said{5, wire.DeadLetterPark, ""}, said{}, said{5, wire.DeadLetterPark, ""}},
		"it wants none":                     {said{5, 0, "dead"}, said{0, wire.DeadLetterNone, ""}, said{0, wire.DeadLetterNone, ""}},
		"nobody says anything":              {said{}, said{}, said{0, wire.DeadLetterNone, ""}},
		"only what is rejected goes there":  {said{0, 0, "dead"}, said{}, said{0, wire.DeadLetterRecord, "dead"}},
		"record, where the destination has": {said{5, wire.DeadLetterPark, "dead"}, said{0, wire.DeadLetterRecord, ""}, said{5, wire.DeadLetterRecord, "dead"}},
	} {
		s := grouped(t, 1)
		require.NoError(t, setGroup(s, 20, SetGroup{Group: "own", Create: true, Settings: wire.GroupSettings{DeadLetterMode: wire.DeadLetterNone}}).Err, name)
		require.NoError(t, letters(s, 21, test.destination.limit, test.destination.mode, test.destination.to).Err, name)
		r := setGroup(s, 22, SetGroup{Group: "g", Create: true, Settings: wire.GroupSettings{
			DeliveryLimit: test.own.limit, DeadLetterMode: test.own.mode, DeadLetter: test.own.to,
		}})
		require.NoError(t, r.Err, name)
		got := r.Destination.Resolved(r.Group)
		require.Equal(t, test.want, said{got.DeliveryLimit, got.DeadLetterMode, got.DeadLetter}, name)
	}

	s := grouped(t, 1)
	setGroup(s, 20, SetGroup{Group: "follows", Create: true})
	setGroup(s, 21, SetGroup{Group: "says itself", Create: true, Settings: wire.GroupSettings{DeliveryLimit: 2, DeadLetter: "mine"}})
	before := s.Destinations["orders"]
	require.NoError(t, letters(s, 22, 5, 0, "dead").Err)
	require.Equal(t, 3, s.Version, "an older build must not open it")
	require.EqualValues(t, 22, s.Destinations["orders"].Groups["follows"].Version, "its partitions take it over")
	require.EqualValues(t, 21, s.Destinations["orders"].Groups["says itself"].Version)
	require.EqualValues(t, 20, before.Groups["follows"].Version, "a view that shares the old one sees no change")

	// What would leave a group with a limit and nothing that follows from it is refused.
	require.NoError(t, setGroup(s, 23, SetGroup{Group: "own limit", Create: true, Settings: wire.GroupSettings{DeliveryLimit: 9}}).Err)
	r := letters(s, 24, 0, 0, "")
	require.ErrorIs(t, r.Err, wire.CodeInvalidSetting)
	require.ErrorContains(t, r.Err, `group "own limit" of "orders" goes by these settings`)
	require.Equal(t, "dead", s.Destinations["orders"].Settings.DeadLetter)
}

// Bad input: dead letters to their own source, to nowhere, and round and round.
func TestDeadLettersOfADestinationThatCannotBeAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		limit uint32
		mode  wire.DeadLetterMode
		to    string
		code  wire.ErrorCode
		text  string
	}{
		"to itself":                    {5, 0, "orders", wire.CodeInvalidSetting, "its own dead letter destination"},
		"to nowhere":                   {5, wire.DeadLetterRecord, "", wire.CodeInvalidSetting, "name the destination"},
		"a limit without consequences": {5, 0, "", wire.CodeInvalidSetting, "a delivery limit needs"},
		"a name that is none":          {5, 0, "a//b", wire.CodeInvalidName, ""},
		"a mode that nobody knows":     {5, 9, "dead", wire.CodeInvalidSetting, "dead letter mode 9"},
	} {
		s := grouped(t, 1)
		r := letters(s, 20, test.limit, test.mode, test.to)
		require.ErrorIs(t, r.Err, test.code, name)
		require.ErrorContains(t, r.Err, test.text, name)
	}

	s := grouped(t, 1)
	create := func(index wire.Index, name, to string) Result {
		c := &Create{Name: name, ID: id(byte(index)), Kind: wire.Queue, Settings: s.Destinations["orders"].Settings, PartitionIDs: []uuid.UUID{id(byte(index))}, Node: 1}
		c.Settings.DeadLetter, c.Settings.DeliveryLimit = to, 0
		return s.Apply(index, &Command{Create: c})
	}
	require.NoError(t, create(20, "b", "c").Err)
	require.NoError(t, create(21, "c", "").Err)
	require.NoError(t, letters(s, 22, 5, 0, "b").Err)
	r := s.Apply(23, &Command{Alter: &Alter{Name: "c", Kind: wire.Queue, Mask: wire.MaskDeadLetter, Settings: wire.Settings{DeadLetter: "orders"}}})
	require.ErrorIs(t, r.Err, wire.CodeInvalidSetting)
	require.ErrorContains(t, r.Err, `dead letters of "c" would come back to it by way of "b"`)
	r = s.Apply(24, &Command{SetGroup: &SetGroup{Destination: "c", Group: "g", Create: true, Settings: wire.GroupSettings{DeadLetter: "b"}}})
	require.ErrorIs(t, r.Err, wire.CodeInvalidSetting, "nor by a group")
	require.NoError(t, s.Apply(25, &Command{SetGroup: &SetGroup{Destination: "c", Group: "g", Create: true, Settings: wire.GroupSettings{DeadLetter: "d"}}}).Err)
	require.ErrorIs(t, create(26, "d", "orders").Err, wire.CodeInvalidSetting, "nor by a new one")
	require.NoError(t, create(27, "d", "").Err)

	// An older build among the members would not know it.
	s = grouped(t, 1)
	s.Nodes[2] = &Node{ID: 2, MaxLevel: LevelCluster}
	require.ErrorIs(t, letters(s, 20, 5, 0, "dead").Err, wire.CodeUnsupported)
	require.NotEqual(t, LevelGroups, s.Level)
}

// One group more than a destination may have is refused by name, and those that there are
// can be altered and removed.
func TestTheGroupsOfADestinationAreBounded(t *testing.T) {
	s := grouped(t, 1)
	require.NoError(t, setGroup(s, 20, SetGroup{Group: "first", Create: true, Settings: wire.GroupSettings{Mode: wire.ModeShared}}).Err)
	g := s.Destinations["orders"].Groups["first"]
	for i := range MaxGroups - 1 {
		s.Destinations["orders"].Groups[fmt.Sprint("group-", i)] = g
	}
	one := SetGroup{Group: "one more", Create: true, Settings: wire.GroupSettings{Mode: wire.ModeShared}}
	err := setGroup(s, 21, one).Err
	require.ErrorIs(t, err, wire.CodeTooMany)
	require.Contains(t, err.Error(), "has 10000 groups, its limit")
	require.NoError(t, setGroup(s, 22, SetGroup{Group: "first", Settings: wire.GroupSettings{Mode: wire.ModeSerial}}).Err)
	require.NoError(t, s.Apply(23, &Command{RemoveGroup: &RemoveGroup{Destination: "orders", Group: "group-1"}}).Err)
	require.NoError(t, setGroup(s, 24, one).Err)
}

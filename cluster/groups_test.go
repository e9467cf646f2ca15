package cluster

import (
	"testing"

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
	require.ErrorIs(t, setGroup(s, 21, SetGroup{Group: "unknown"}).Err, wire.CodeUnknownGroup)
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

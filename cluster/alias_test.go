package cluster

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

func setAlias(s *State, index wire.Index, c SetAlias) Result {
	command := Command{SetAlias: &c}
	command.stamp()
	r := s.Apply(index, &command)
	if r.Changed {
		s.Epoch = index
	}
	return r
}

func TestAnAliasIsCreatedRetargetedAndRemoved(t *testing.T) {
	s := grouped(t, 4)
	created(t, s, "archive", 2)
	view := newView(s)
	require.NoError(t, setAlias(s, 20, SetAlias{Name: "current", Destination: "orders", Partitions: []uint32{3, 1, 3}, Create: true}).Err)
	require.Equal(t, LevelAliases, s.Level)
	require.Equal(t, 4, s.Version, "an older build must not open it")
	require.NoError(t, setAlias(s, 21, SetAlias{Name: "all", Destination: "orders", Create: true}).Err)

	view = view.next(s)
	require.Equal(t, []*Alias{{Name: "all", Destination: "orders", Version: 21}, {Name: "current", Destination: "orders", Partitions: []uint32{1, 3}, Version: 20}}, view.Aliases)
	again := setAlias(s, 22, SetAlias{Name: "current", Destination: "orders", Partitions: []uint32{1, 3}})
	require.NoError(t, again.Err)
	require.False(t, again.Changed)

	require.NoError(t, setAlias(s, 23, SetAlias{Name: "current", Destination: "archive"}).Err)
	after := view.next(s)
	a, ok := after.Alias("current")
	require.True(t, ok)
	require.Equal(t, &Alias{Name: "current", Destination: "archive", Version: 23}, a)
	a, _ = view.Alias("current")
	require.Equal(t, "orders", a.Destination, "a view never changes")

	saved := s.Save(nil)
	r := NewState()
	require.NoError(t, r.Restore(saved))
	require.Equal(t, string(saved), string(r.Save(nil)))
	require.Len(t, newView(r).Aliases, 2)

	require.NoError(t, s.Apply(24, &Command{RemoveAlias: &RemoveAlias{Name: "current"}}).Err)
	_, ok = newView(s).Alias("current")
	require.False(t, ok)
	require.NoError(t, s.Apply(25, &Command{Delete: &Delete{Name: "archive", Kind: wire.Queue}}).Err, "nothing stands for it any more")
}

func TestAnAliasNeverLeadsNowhere(t *testing.T) {
	for name, c := range map[string]struct {
		command Command
		code    wire.ErrorCode
		says    string
	}{
		"the name of a destination":     {Command{SetAlias: &SetAlias{Name: "archive", Destination: "orders", Create: true}}, wire.CodeAlreadyExists, `queue "archive" exists`},
		"the name of an alias":          {Command{SetAlias: &SetAlias{Name: "current", Destination: "archive", Create: true}}, wire.CodeAlreadyExists, `stands for "orders"`},
		"a name for temporary queues":   {Command{SetAlias: &SetAlias{Name: "$tmp/x", Destination: "orders", Create: true}}, wire.CodeInvalidName, "temporary"},
		"a bad name":                    {Command{SetAlias: &SetAlias{Name: "a//b", Destination: "orders", Create: true}}, wire.CodeInvalidName, "empty level"},
		"no destination":                {Command{SetAlias: &SetAlias{Name: "x", Destination: "none", Create: true}}, wire.CodeUnknownDestination, `"none" not found`},
		"itself, new":                   {Command{SetAlias: &SetAlias{Name: "x", Destination: "x", Create: true}}, wire.CodeUnknownDestination, `"x" not found`},
		"itself":                        {Command{SetAlias: &SetAlias{Name: "current", Destination: "current"}}, wire.CodeRefused, `stands for "orders"`},
		"another alias":                 {Command{SetAlias: &SetAlias{Name: "x", Destination: "current", Create: true}}, wire.CodeRefused, `"current" is an alias itself`},
		"a partition that there is not": {Command{SetAlias: &SetAlias{Name: "x", Destination: "orders", Partitions: []uint32{4}, Create: true}}, wire.CodeUnknownPartition, "partitions 0 to 3, not 4"},
		"changing none":                 {Command{SetAlias: &SetAlias{Name: "x", Destination: "orders"}}, wire.CodeUnknownDestination, `alias "x" not found`},
		"removing none":                 {Command{RemoveAlias: &RemoveAlias{Name: "orders"}}, wire.CodeUnknownDestination, `alias "orders" not found`},
		"a destination of its name":     {Command{Create: &Create{Name: "current", Kind: wire.Topic, Settings: settings(1), PartitionIDs: ids(1)}}, wire.CodeAlreadyExists, `alias "current"`},
		"removing what it stands for":   {Command{Delete: &Delete{Name: "orders", Kind: wire.Queue}}, wire.CodeRefused, `alias "current" stands for queue "orders"`},
		"removing it as a queue":        {Command{Delete: &Delete{Name: "current", Kind: wire.Queue}}, wire.CodeRefused, `"current" is an alias of "orders"`},
		"altering it as a queue":        {Command{Alter: &Alter{Name: "current", Kind: wire.Queue}}, wire.CodeRefused, `"current" is an alias of "orders"`},
		"dead letters of a destination": {Command{Alter: &Alter{Name: "archive", Kind: wire.Queue, Mask: wire.MaskDeadLetter, Settings: wire.Settings{DeadLetter: "current"}}}, wire.CodeInvalidSetting, "dead letters go to a destination"},
		"dead letters of a group": {Command{SetGroup: &SetGroup{Destination: "archive", Group: "g", Create: true,
			Settings: wire.GroupSettings{DeadLetterMode: wire.DeadLetterRecord, DeadLetter: "current"}}}, wire.CodeInvalidSetting, "dead letters go to a destination"},
	} {
		t.Run(name, func(t *testing.T) {
			s := grouped(t, 4)
			created(t, s, "archive", 2)
			require.NoError(t, setAlias(s, 20, SetAlias{Name: "current", Destination: "orders", Create: true}).Err)
			before := s.Save(nil)
			r := s.Apply(99, &c.command)
			require.ErrorIs(t, r.Err, c.code)
			require.ErrorContains(t, r.Err, c.says)
			require.False(t, r.Changed)
			require.Equal(t, string(before), string(s.Save(nil)))
		})
	}
}

func TestAliasesAreForClustersWhoseNodesAllKnowThem(t *testing.T) {
	s := clusterOf(t, 3)
	placed(t, s, "orders", []uint32{1, 2, 3})
	old := *s.Nodes[2]
	old.MaxLevel = LevelFences
	s.Nodes[2] = &old
	r := setAlias(s, 20, SetAlias{Name: "current", Destination: "orders", Create: true})
	require.ErrorIs(t, r.Err, wire.CodeUnsupported)
	require.ErrorContains(t, r.Err, "node 2 runs a build that knows no aliases")
}

func TestAliasesAreLimited(t *testing.T) {
	s := grouped(t, 1)
	for range MaxAliases {
		s.Aliases = append(s.Aliases, &Alias{Name: string(rune('a' + len(s.Aliases))), Destination: "orders"})
	}
	require.ErrorIs(t, setAlias(s, 20, SetAlias{Name: "A", Destination: "orders", Create: true}).Err, wire.CodeTooMany)
}

func TestSavedAliasesThatLeadNowhereAreMalformed(t *testing.T) {
	s := grouped(t, 1)
	s.Aliases = []*Alias{{Name: "a", Destination: "gone"}}
	require.ErrorIs(t, NewState().Restore(s.Save(nil)), ErrState)
	s.Aliases = []*Alias{{Name: "b", Destination: "orders"}, {Name: "a", Destination: "orders"}}
	require.ErrorIs(t, NewState().Restore(s.Save(nil)), ErrState)
	s.Aliases = []*Alias{nil}
	require.ErrorIs(t, NewState().Restore(s.Save(nil)), ErrState)
}

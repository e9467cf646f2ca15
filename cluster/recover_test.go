package cluster

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// recoverable is a state with one partition of the replicas 1, 2, 3 on nodes of that ID.
func recoverable() (*State, *Recover) {
	s := NewState()
	id := uuid.UUID{1}
	p := Partition{Incarnation: 4, Founders: []uint64{1, 2, 3}, Voters: []uint64{1, 2, 3}, ConfIndex: 500}
	for i := uint64(1); i <= 3; i++ {
		s.Nodes[uint32(i)] = &Node{ID: uint32(i), MaxLevel: MaxLevel}
		p.Replicas = append(p.Replicas, Replica{ID: i, Node: uint32(i), State: ReplicaActive})
	}
	s.NextReplicaID = 4
	s.Destinations["q"] = &Destination{Name: "q", ID: id, Partitions: []Partition{p}}
	return s, &Recover{Destination: id, Replica: 2, Incarnation: 4}
}

func TestRecoverLeavesOneReplica(t *testing.T) {
	s, c := recoverable()
	s.Destinations["q"].Partitions[0].Replicas[0].State = ReplicaLeft
	require.NoError(t, s.Apply(9, &Command{Recover: c}).Err)
	p := &s.Destinations["q"].Partitions[0]
	require.Equal(t, []Replica{{ID: 1, Node: 1, State: ReplicaLeft}, {ID: 2, Node: 2, State: ReplicaActive}, {ID: 3, Node: 3, State: ReplicaLost}}, p.Replicas)
	require.Equal(t, &Recovery{Replica: 2, Before: 4}, p.Recovery)
	require.True(t, p.Recovering())
	for id, outcast := range map[uint64]bool{1: true, 2: false, 3: true, 4: false} {
		require.Equal(t, outcast, p.Recovery.Outcast(id), "replica %d", id)
	}
	require.False(t, (*Recovery)(nil).Outcast(1))
	require.False(t, s.Apply(10, &Command{Recover: c}).Changed, "it is on its way")

	// Only the word of the replica itself counts, and only once it is alone.
	report := func(index wire.Index, voters ...uint64) bool {
		return s.Apply(index, &Command{Reconfigured: &Reconfigured{Destination: c.Destination, Voters: voters, Index: index}}).Changed
	}
	require.False(t, report(600, 1, 2, 3), "a leader that does not know")
	require.False(t, report(601, 3), "an outcast")
	require.False(t, report(602, 2, 4), "what it led before it went on alone")
	require.True(t, report(7, 2), "however short its log is")
	p = &s.Destinations["q"].Partitions[0]
	require.False(t, p.Recovering())
	require.Equal(t, ReplicaLeft, p.Replicas[2].State)
	require.False(t, report(700, 1, 3), "also later")
	require.True(t, report(8, 2, 4))
}

func TestRecoverIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*State, *Recover)
		code   wire.ErrorCode
	}{
		"another incarnation":    {func(_ *State, c *Recover) { c.Incarnation = 3 }, wire.CodeRefused},
		"one replica":            {func(s *State, _ *Recover) { s.Destinations["q"].Partitions[0].Founders = nil }, wire.CodeRefused},
		"no such replica":        {func(_ *State, c *Recover) { c.Replica = 9 }, wire.CodeInvalidRequest},
		"a replica without log":  {func(s *State, _ *Recover) { s.Destinations["q"].Partitions[0].Replicas[1].State = ReplicaNew }, wire.CodeInvalidRequest},
		"a lost replica":         {func(s *State, _ *Recover) { s.Destinations["q"].Partitions[0].Replicas[1].State = ReplicaLost }, wire.CodeInvalidRequest},
		"no such destination":    {func(_ *State, c *Recover) { c.Destination = uuid.UUID{7} }, wire.CodeDestinationGone},
		"a node of an old build": {func(s *State, _ *Recover) { s.Nodes[3].MaxLevel = 2 }, wire.CodeUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			s, r := recoverable()
			c.change(s, r)
			got := s.Apply(9, &Command{Recover: r})
			require.ErrorIs(t, got.Err, c.code)
			require.False(t, got.Changed)
			require.Nil(t, s.Destinations["q"].Partitions[0].Recovery)
		})
	}
}

package cluster

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
)

const goldenCreate = `{"create":{"name":"orders","kind":1,"settings":{"Partitions":2,"Replicas":1,"RetentionTimeMs":-1,"RetentionBytes":-1},` +
	`"id":"00000000-0000-0000-0000-000000000003","node":1,` +
	`"partition_ids":["00000000-0000-0000-0000-000000000004","00000000-0000-0000-0000-000000000005"]}}`

const goldenJoin = `{"join":{"cluster_id":"00000000-0000-0000-0000-000000000001","node":2,"store":"00000000-0000-0000-0000-000000000008",` +
	`"address":"127.0.0.1:7410","peer_address":"127.0.0.1:7411","min_level":1,"max_level":2},"minimum_version":2}`

// FuzzState: metadata that restores saves to bytes that restore to the same, and a
// view can be made of it; what does not restore changes nothing.
func FuzzState(f *testing.F) {
	f.Add([]byte(goldenState))
	f.Add(NewState().Save(nil))
	f.Add([]byte(`{"version":3,"nodes":[]}`))
	f.Add([]byte(`{"version":1,"nodes":null,"destinations":{"a":null}}`))
	f.Fuzz(func(t *testing.T, src []byte) {
		s := NewState()
		if err := s.Restore(src); err != nil {
			require.NotEqual(t, errors.Is(err, ErrState), errors.Is(err, log.ErrTooNew), "%v", err)
			require.Equal(t, NewState(), s)
			return
		}
		newView(s)
		saved := s.Save(nil)
		again := NewState()
		require.NoError(t, again.Restore(saved))
		require.Equal(t, string(saved), string(again.Save(nil)))
	})
}

// FuzzCommand applies any two commands to the same metadata twice. The outcome is
// the same both times, and what comes of it can be saved, restored and shown. The
// only panics are those that ask for a newer build.
func FuzzCommand(f *testing.F) {
	for _, seed := range [][2]string{
		{goldenCreate, `{"alter":{"name":"orders","kind":1,"mask":16,"settings":{"RetentionTimeMs":5}}}`},
		{goldenCreate, `{"delete":{"name":"orders","kind":1}}`},
		{`{"delete":{"name":"orders","kind":1}}`, `{"bury":{"id":"00000000-0000-0000-0000-000000000003","node":1}}`},
		{`{"register":{"cluster_id":"00000000-0000-0000-0000-000000000001","node":1,"address":"a:1"}}`, `{"activate":{"replicas":[1,2]}}`},
		{`{"allocate_ids":{"node":1}}`, `{"open_producer":{"name":"p"}}`},
		{`{"move":{"destination":"00000000-0000-0000-0000-000000000003","partition":0,"add":[2]}}`, `{"activate":{"replicas":[2]}}`},
		{goldenJoin, `{"move":{"destination":"00000000-0000-0000-0000-000000000003","partition":0,"add":[2],"remove":[1]}}`},
		{`{"set_node":{"node":1,"state":"leaving"}}`, `{"remove_node":{"node":1}}`},
		{`{"lost":{"destination":"00000000-0000-0000-0000-000000000003","partition":0,"replica":1}}`, `{"set_level":{"level":2}}`},
		{`{"reconfigured":{"destination":"00000000-0000-0000-0000-000000000003","partition":0,"voters":[1],"index":3}}`, `{"bury":{"node":1,"replicas":[1]}}`},
		{`{"set_placement":{"name":"orders","kind":1,"partition":-1,"preferred":1,"failback":true}}`, `{"reset_memory":{"node":1}}`},
		{`{"reset_memory":{"node":1}}`, `{"minimum_version":3}`},
		{`{"create":{"name":"late","kind":1,"settings":{"Partitions":1,"Replicas":2,"RetentionTimeMs":-1,"RetentionBytes":-1,"DeadLetter":"dead"},` +
			`"id":"00000000-0000-0000-0000-000000000007","node":1,"partition_ids":["00000000-0000-0000-0000-000000000009"]}}`, `{"set_group":{"destination":"orders","group":"g","create":true}}`},
		{`{"register":{"cluster_id":"00000000-0000-0000-0000-000000000001","node":1,"min_level":9,"max_level":9}}`, `{"remove_group":{"destination":"orders","group":"g"}}`},
		{`{"set_alias":{"name":"current","destination":"orders","partitions":[0],"create":true}}`, `{"delete":{"name":"orders","kind":1}}`},
	} {
		f.Add([]byte(seed[0]), []byte(seed[1]))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var outcomes [2]string
		for i := range outcomes {
			s := NewState()
			require.NoError(t, s.Restore([]byte(goldenState)))
			for n, src := range [][]byte{first, second} {
				var c Command
				if json.Unmarshal(src, &c) != nil || needsNewerBuild(&c) {
					return
				}
				before := string(s.Save(nil))
				if r := s.Apply(10, &c); r.Err != nil {
					require.False(t, r.Changed)
					require.Equal(t, before, string(s.Save(nil)), "command %d was refused: %v", n, r.Err)
				}
				newView(s)
			}
			outcomes[i] = string(s.Save(nil))
			again := NewState()
			require.NoError(t, again.Restore([]byte(outcomes[i])))
			require.Equal(t, outcomes[i], string(again.Save(nil)))
		}
		require.Equal(t, outcomes[0], outcomes[1])
	})
}

func needsNewerBuild(c *Command) bool {
	known := c.Register != nil || c.Create != nil || c.Alter != nil || c.Delete != nil || c.Activate != nil ||
		c.AllocateIDs != nil || c.OpenProducer != nil || c.ResetMemory != nil || c.Bury != nil || c.Reform != nil ||
		c.Join != nil || c.SetNode != nil || c.RemoveNode != nil || c.SetLevel != nil || c.Move != nil || c.Reconfigured != nil ||
		c.Lost != nil || c.SetPlacement != nil || c.SetAlias != nil || c.RemoveAlias != nil ||
		c.SetReplicas != nil || c.SetGroup != nil || c.RemoveGroup != nil || c.MoveCoordinator != nil || c.Recover != nil
	return c.MinimumVersion > Version || !known
}

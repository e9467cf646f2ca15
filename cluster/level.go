package cluster

import "github.com/lockstepmq/lockstep/wire"

// Feature levels: what all nodes of a cluster have agreed to use. It rises once every
// node runs a build that knows the next one, and never falls.
const (
	// LevelAlone is a cluster of one node, as the first builds made it.
	LevelAlone = 1
	// LevelCluster has nodes that join, several replicas, and their moves.
	LevelCluster = 2
	// LevelGroups has groups of consumers.
	LevelGroups = 3
	// LevelFences has fences of named producers in the partitions.
	LevelFences = 4
	// LevelAliases has aliases of destinations.
	LevelAliases = 5
	// LevelErasing has queues whose replicas give records back that all groups are done with.
	LevelErasing = 6

	// MinLevel and MaxLevel are those that this build can work at.
	MinLevel = LevelAlone
	MaxLevel = LevelErasing
)

// level is the level in use.
func (s *State) level() int { return max(s.Level, LevelAlone) }

// SetLevel raises the feature level.
type SetLevel struct {
	Level int `json:"level"`
}

func (s *State) setLevel(c *SetLevel) Result {
	for _, n := range s.Nodes {
		if c.Level > max(n.MaxLevel, LevelAlone) && !s.leaping {
			return refuse(wire.CodeRefused, "node %d does not know feature level %d; upgrade it first", n.ID, c.Level)
		}
	}
	if c.Level <= s.level() {
		return Result{}
	}
	s.Level = c.Level
	return Result{Changed: true}
}

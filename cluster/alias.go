package cluster

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lockstepmq/lockstep/wire"
)

// An alias is another name for a destination, or for some partitions of it. Clients find
// out what it stands for and work with that, so that it costs nothing where records go. It
// never stands for an alias, and what it stands for cannot be removed: an alias leads
// nowhere else, and never nowhere.

// MaxAliases bounds the aliases of a cluster.
const MaxAliases = 1_000

// Alias is never changed: it is replaced by one of a higher version.
type Alias struct {
	Name        string     `json:"name"`
	Destination string     `json:"destination"`
	Partitions  []uint32   `json:"partitions,omitempty"` // ascending; none: all
	Version     wire.Index `json:"version"`              // metadata index of the last change
}

// SetAlias makes an alias, or has one stand for something else, at one moment for all.
type SetAlias struct {
	Name        string   `json:"name"`
	Destination string   `json:"destination"`
	Partitions  []uint32 `json:"partitions,omitempty"` // in any order; none: all
	Create      bool     `json:"create,omitempty"`     // it must not exist, else it must
}

// RemoveAlias removes one. What it stands for stays.
type RemoveAlias struct {
	Name string `json:"name"`
}

func compareAlias(a *Alias, name string) int { return strings.Compare(a.Name, name) }

func findAlias(list []*Alias, name string) (*Alias, bool) {
	i, ok := slices.BinarySearchFunc(list, name, compareAlias)
	if !ok {
		return nil, false
	}
	return list[i], true
}

// Alias finds an alias by name.
func (v *View) Alias(name string) (*Alias, bool) { return findAlias(v.Aliases, name) }

func (s *State) setAlias(index wire.Index, c *SetAlias) Result {
	if err := wire.ValidateName(c.Name); err != nil {
		return Result{Err: err}
	}
	for _, n := range s.Nodes {
		if n.MaxLevel < LevelAliases && len(s.Nodes) > 1 {
			return refuse(wire.CodeUnsupported, "node %d runs a build that knows no aliases; upgrade it first", n.ID)
		}
	}
	old, exists := findAlias(s.Aliases, c.Name)
	switch {
	case wire.IsTemporary(c.Name):
		return refuse(wire.CodeInvalidName, "%.64q is the name of a temporary queue; give the alias another one", c.Name)
	case s.Destinations[c.Name] != nil:
		return refuse(wire.CodeAlreadyExists, "%s %q exists; give the alias another name", s.Destinations[c.Name].Kind, c.Name)
	case exists && c.Create:
		return refuse(wire.CodeAlreadyExists, "alias %q exists and stands for %q; alter it to have it stand for something else", c.Name, old.Destination)
	case !exists && !c.Create:
		return refuse(wire.CodeUnknownDestination, "alias %q not found", c.Name)
	case !exists && len(s.Aliases) >= MaxAliases:
		return refuse(wire.CodeTooMany, "the cluster knows %d aliases, its limit", MaxAliases)
	}
	d := s.Destinations[c.Destination]
	if to, chain := findAlias(s.Aliases, c.Destination); chain {
		return refuse(wire.CodeRefused, "%q is an alias itself and stands for %q; an alias stands for a destination: name that", c.Destination, to.Destination)
	} else if d == nil {
		return refuse(wire.CodeUnknownDestination, "destination %q not found", c.Destination)
	}
	partitions := slices.Compact(slices.Sorted(slices.Values(c.Partitions)))
	if n := len(partitions); n > 0 && partitions[n-1] >= uint32(len(d.Partitions)) {
		return refuse(wire.CodeUnknownPartition, "%s %q has partitions 0 to %d, not %d", d.Kind, d.Name, len(d.Partitions)-1, partitions[n-1])
	}
	if exists && old.Destination == d.Name && slices.Equal(old.Partitions, partitions) {
		return Result{}
	}
	s.Aliases = s.otherAliases(c.Name)
	i, _ := slices.BinarySearchFunc(s.Aliases, c.Name, compareAlias)
	s.Aliases = slices.Insert(s.Aliases, i, &Alias{Name: c.Name, Destination: d.Name, Partitions: partitions, Version: index})
	s.Level = max(s.Level, LevelAliases)
	return Result{Changed: true}
}

func (s *State) removeAlias(c *RemoveAlias) Result {
	if _, ok := findAlias(s.Aliases, c.Name); !ok {
		return refuse(wire.CodeUnknownDestination, "alias %q not found", c.Name)
	}
	s.Aliases = s.otherAliases(c.Name)
	return Result{Changed: true}
}

// otherAliases are all but one, in a list of their own: views share the old one.
func (s *State) otherAliases(name string) []*Alias {
	return slices.DeleteFunc(slices.Clone(s.Aliases), func(a *Alias) bool { return a.Name == name })
}

// checkUnaliased refuses to remove what an alias stands for.
func (s *State) checkUnaliased(d *Destination) error {
	for _, a := range s.Aliases {
		if a.Destination == d.Name {
			return refuse(wire.CodeRefused, "alias %q stands for %s %q; remove it, or have it stand for something else, first", a.Name, d.Kind, d.Name).Err
		}
	}
	return nil
}

// notFound is the error of a name that is no destination's where an alias will not do.
func (s *State) notFound(name string) error {
	if a, ok := findAlias(s.Aliases, name); ok {
		return &wire.Error{Code: wire.CodeRefused, Detail: fmt.Sprintf("%q is an alias of %q; name that", name, a.Destination)}
	}
	return &wire.Error{Code: wire.CodeUnknownDestination, Detail: fmt.Sprintf("destination %q not found", name)}
}

// noAlias refuses an alias as the place for dead letters: they are written by brokers, which
// go by the destination.
func (s *State) noAlias(letter string) error {
	if a, ok := findAlias(s.Aliases, letter); ok {
		return refuse(wire.CodeInvalidSetting, "dead letters go to a destination, and %q is an alias of %q; name that", letter, a.Destination).Err
	}
	return nil
}

// checkAliases looks for what the rest relies on in saved aliases.
func (s *State) checkAliases() error {
	for i, a := range s.Aliases {
		if a == nil || i > 0 && s.Aliases[i-1].Name >= a.Name || s.Destinations[a.Destination] == nil || s.Destinations[a.Name] != nil {
			return fmt.Errorf("alias %d is out of order or stands for nothing", i)
		}
	}
	return nil
}

package client

import (
	"context"
	"fmt"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// Alias is a name that the cluster knows for some partitions of a destination. Producers,
// Readers, Consumers, Browse and what is asked about groups take it in place of a destination:
//
//   - a Producer spreads records without a key over these partitions alone, by the same rules
//     as over all. A record whose key, or whose publisher, belongs to another partition is
//     not sent (ErrOutsideAlias): its order with the others of the key lives there;
//   - a Reader and Browse read them;
//   - a Consumer of an alias with partitions has all of them, beside whatever other consumers
//     of the group have, and no other, whatever the group's binding is. Of one without, it is
//     a Consumer of the destination.
//
// The cluster may have it stand for something else, AlterAlias, while all that goes on. Then
// a Producer stores what it has accepted where it was meant for, holds later records back
// until that is done, and sends them to where the alias leads now: nothing of a partition is
// overtaken. One with a name (ProducerName), or for which that is of another kind or lacks its
// Partition, takes no more records with ErrAliasMoved. A Consumer and a Reader end with
// ErrAliasMoved; a Consumer's records that are being worked on are still its own until Close,
// and what the old destination holds is for consumers of that. A Reader with StopAtEnd reads
// to its end. All of them end with ErrAliasMoved if the alias is removed.
type Alias = wire.Alias

// CreateAlias makes an alias. Errors: wire.CodeAlreadyExists, also if a destination has the
// name; wire.CodeUnknownDestination; wire.CodeUnknownPartition; wire.CodeRefused if it is to
// stand for an alias. After ErrDisconnected it may exist or not.
func (c *Conn) CreateAlias(ctx context.Context, a Alias) error {
	return c.setAlias(ctx, wire.AliasCreate, "create", a, false)
}

// AlterAlias has an alias stand for something else, from one moment on for everybody who asks
// the cluster; who has it open hears of it at once, and follows as Alias says. Errors:
// wire.CodeUnknownDestination, also if there is no such alias, and those of CreateAlias.
func (c *Conn) AlterAlias(ctx context.Context, a Alias) error {
	return c.setAlias(ctx, wire.AliasAlter, "alter", a, true)
}

// RemoveAlias removes an alias, and nothing of what it stands for. Error:
// wire.CodeUnknownDestination.
func (c *Conn) RemoveAlias(ctx context.Context, name string) error {
	return c.setAlias(ctx, wire.AliasRemove, "remove", Alias{Name: name}, false)
}

func (c *Conn) setAlias(ctx context.Context, op wire.AliasOp, doing string, a Alias, repeatable bool) error {
	if err := c.do(ctx, wire.OpAlias, &wire.AliasRequest{Op: op, Alias: a}, &wire.Empty{}, repeatable); err != nil {
		return fmt.Errorf("%s alias %q: %w", doing, a.Name, err)
	}
	return nil
}

// Aliases lists all aliases, by name.
func (c *Conn) Aliases(ctx context.Context) ([]Alias, error) {
	aliases := []Alias{}
	err := c.list(ctx, "aliases", func(m *wire.MetadataResponse) { aliases = append(aliases, m.Aliases...) })
	return aliases, err
}

// scope is what somebody works with: a destination, or some of its partitions, and the name
// that he asked for.
type scope struct {
	name        string // as the cluster knows it: that of the destination, or of an alias
	destination string
	partitions  []uint32 // ascending; empty: all
	own         []uint32 // those of WithAlias
	version     uint64   // of the metadata that said so
}

// WithAlias makes a name stand for some partitions of a destination as an Alias does, for this
// Conn alone: the cluster does not know it, and it hides a destination or alias of the same name. It
// may be given several times, with other names. The destination may be an alias.
func WithAlias(name, destination string, partitions ...uint32) Option {
	return func(o *connOptions) {
		if o.aliases == nil {
			o.aliases = make(map[string]scope)
		}
		o.aliases[name] = scope{name: destination, own: slices.Compact(slices.Sorted(slices.Values(partitions)))}
	}
}

// in is what the scope's name stands for according to an answer to METADATA that asked for
// it. Errors: wire.CodeUnknownDestination, ErrUnknownPartition.
func (s scope) in(m *wire.MetadataResponse) (scope, *wire.DestinationInfo, error) {
	s.destination, s.partitions, s.version = s.name, s.own, m.Version
	for i := range m.Aliases {
		a := &m.Aliases[i]
		if a.Name != s.name {
			continue
		}
		s.destination = a.Destination
		if len(s.own) == 0 {
			s.partitions = a.Partitions
		}
		for _, n := range s.own {
			if len(a.Partitions) > 0 && !slices.Contains(a.Partitions, n) {
				return s, nil, fmt.Errorf("%w: alias %q has partitions %v of %q, not %d", ErrUnknownPartition, a.Name, a.Partitions, a.Destination, n)
			}
		}
	}
	d := destinationIn(m, s.destination)
	if d == nil {
		return s, nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", s.destination)
	}
	for _, n := range s.partitions {
		if !slices.ContainsFunc(d.Partitions, func(p wire.PartitionInfo) bool { return p.Number == n }) {
			return s, nil, fmt.Errorf("%w: an alias has partition %d of %q", ErrUnknownPartition, n, s.destination)
		}
	}
	return s, d, nil
}

func destinationIn(m *wire.MetadataResponse, name string) *wire.DestinationInfo {
	for i := range m.Destinations {
		if m.Destinations[i].Name == name {
			return &m.Destinations[i]
		}
	}
	return nil
}

// ask is the request for what the name stands for, and for what it stood for last.
func (s *scope) ask() *wire.MetadataRequest {
	m := &wire.MetadataRequest{Scope: wire.MetadataNamed, Names: []string{s.name}}
	if s.follows() {
		m.Names = append(m.Names, s.destination)
	}
	return m
}

// follows reports whether the name was an alias, which may stand for something else later.
func (s *scope) follows() bool { return s.destination != s.name }

// has reports whether a partition is one of them.
func (s *scope) has(partition uint32) bool {
	return len(s.partitions) == 0 || slices.Contains(s.partitions, partition)
}

// moved is the error of one who does not follow his alias to what it stands for according to
// an answer to METADATA; nil if that is the same. An answer that is older than what is known
// says nothing.
func (s *scope) moved(m *wire.MetadataResponse, id [16]byte) error {
	if !s.follows() || m.Version < s.version {
		return nil
	}
	now, d, err := s.in(m)
	switch {
	case err != nil && codeOf(err) != wire.CodeUnknownDestination:
		return fmt.Errorf("%w: %w", ErrAliasMoved, err)
	case err != nil:
		return fmt.Errorf("%w: alias %q was removed", ErrAliasMoved, s.name)
	case d.ID != id || !slices.Equal(now.partitions, s.partitions):
		return fmt.Errorf("%w: alias %q stands for %s, not for %s any more", ErrAliasMoved, s.name, &now, s)
	}
	return nil
}

// String is for people.
func (s *scope) String() string {
	if len(s.partitions) == 0 {
		return fmt.Sprintf("%q", s.destination)
	}
	return fmt.Sprintf("partitions %v of %q", s.partitions, s.destination)
}

// resolve asks what a name stands for.
func (c *Conn) resolve(ctx context.Context, name string) (scope, *wire.DestinationInfo, error) {
	s, known := c.options.aliases[name]
	if !known {
		s.name = name
	}
	if err := wire.ValidateName(s.name); err != nil {
		return s, nil, fmt.Errorf("destination %q: %w", s.name, err)
	}
	var m wire.MetadataResponse
	if err := c.do(ctx, wire.OpMetadata, s.ask(), &m, true); err != nil {
		return s, nil, fmt.Errorf("destination %q: %w", s.name, err)
	}
	c.learn(&m)
	return s.in(&m)
}

// scoped is what a name stands for, with the layout of that.
func (c *Conn) scoped(ctx context.Context, name string) (scope, *layout, error) {
	generation := c.topology.generation.Load()
	s, info, err := c.resolve(ctx, name)
	if err != nil {
		return s, nil, err
	}
	l, err := newLayout(generation, info)
	return s, l, err
}

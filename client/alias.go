package client

import (
	"context"
	"fmt"
	"slices"
)

// alias is a name for some partitions of a destination.
type alias struct {
	destination string
	partitions  []uint32 // ascending; empty: all
}

// WithAlias makes a name stand for some partitions of a destination, for all Producers,
// Readers and Consumers of the Conn that are given it in place of a destination:
//
//   - a Producer spreads records without a key over these partitions alone, by the same rules
//     as over all. A record whose key, or whose publisher, belongs to another partition is
//     not sent (ErrOutsideAlias): its order with the others of the key lives there;
//   - a Reader reads them;
//   - a Consumer has all of them, beside whatever other consumers of the group have, and no
//     other, whatever the group's binding is.
//
// The name is the program's own: the cluster does not know it, and it hides a destination
// of the same name. It may be given several times, with other names.
func WithAlias(name, destination string, partitions ...uint32) Option {
	return func(o *connOptions) {
		if o.aliases == nil {
			o.aliases = make(map[string]alias)
		}
		o.aliases[name] = alias{destination, slices.Compact(slices.Sorted(slices.Values(partitions)))}
	}
}

// aliased is what a name stands for, and the layout of that. Errors: ErrUnknownPartition,
// and those of layout.
func (c *Conn) aliased(ctx context.Context, name string) (alias, *layout, error) {
	a, known := c.options.aliases[name]
	if !known {
		a.destination = name
	}
	l, err := c.layout(ctx, a.destination)
	if err != nil {
		return a, nil, err
	}
	for _, n := range a.partitions {
		if !slices.Contains(l.partitions, n) {
			return a, nil, fmt.Errorf("%w: alias %q has partition %d of %q", ErrUnknownPartition, name, n, a.destination)
		}
	}
	return a, l, nil
}

// has reports whether a partition is one of the alias's.
func (a *alias) has(partition uint32) bool {
	return len(a.partitions) == 0 || slices.Contains(a.partitions, partition)
}

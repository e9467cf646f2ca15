package server

import "github.com/lockstepmq/lockstep/log"

// Needs is what a broker takes of its machine at most, so that the machine can be
// looked at before the load is there.
type Needs struct {
	// Connections is how many clients the descriptor limit leaves room for, 0 if
	// Start refuses it.
	Connections int
	// Descriptors is a descriptor limit that leaves room for Limits.Connections.
	Descriptors int
	// MappedSegments is how many segments stay mapped, of destinations on disk and
	// in memory together; those that are being read come on top.
	MappedSegments int
	// MemoryBytes is what the budgets of memory add up to; the fixed costs of
	// partitions and connections come on top.
	MemoryBytes int64
}

// Needs checks the configuration and adds up what such a broker takes under a
// limit of so many open files (RLIMIT_NOFILE).
func (c Config) Needs(descriptors uint64) (Needs, error) {
	c, err := c.withDefaults()
	if err != nil {
		return Needs{}, err
	}
	wanted, err := c.Limits.withDefaults(unlimitedDescriptors)
	if err != nil {
		return Needs{}, err
	}
	n := Needs{
		Descriptors:    wanted.Connections + wanted.DescriptorReserve + registeringDescriptors - 1,
		MappedSegments: 2 * log.DefaultMappedSegments,
		MemoryBytes:    c.MemoryBytes + c.PendingBytes + int64(wanted.InboundBytes) + int64(wanted.OutboundBytes),
	}
	// The same limits failed above already for any other reason.
	if given, err := c.Limits.withDefaults(descriptors); err == nil {
		n.Connections = given.Connections
	}
	return n, nil
}

// unlimitedDescriptors is a descriptor limit that lowers no other one.
const unlimitedDescriptors = 1 << 30

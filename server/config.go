package server

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// MaxPartitions bounds the partitions of one destination.
const MaxPartitions = cluster.MaxPartitions

// Config says how a broker runs. The zero value of a field means its default.
type Config struct {
	// DataDir holds everything that must survive. Default "lockstep-data".
	DataDir string
	// AllowNetworkFS lets DataDir be on a network or FUSE file system, which is
	// refused otherwise: what is mapped there can fault for want of a network.
	AllowNetworkFS bool
	// Listen is the address for clients. Default "127.0.0.1:7400".
	Listen string
	// NodeID is this node's ID in its cluster, which an empty DataDir gets. Default: 1
	// for the founder, whatever the cluster chooses for a node that joins.
	NodeID uint32
	// PeerListen is the address for other nodes. Default: none, the broker runs alone.
	PeerListen string
	// Join are client addresses of members of the cluster that an empty DataDir joins.
	// Default: none, an empty DataDir founds a cluster.
	Join []string
	// Role is "broker" or "gateway", which holds no partitions. Default "broker".
	Role string
	// Rack names what fails together: replicas are spread over racks. Default: none.
	Rack string
	// Advertise and PeerAdvertise are what clients and other nodes connect to. Default:
	// what is listened on.
	Advertise, PeerAdvertise string
	// ReplaceAfter is how long a node is dead before its replicas are made anew on
	// others. Default 5 min.
	ReplaceAfter time.Duration
	// StrictRecovery distrusts disks that lose what they have synced: after every stop
	// that was not clean a replica of several counts for nothing before it has caught up
	// with the others (RELIABILITY F9).
	StrictRecovery bool
	// Bootstrap allows an empty DataDir to become a new cluster where Listen is not
	// a loopback address (RULES R10): a node that was wiped must not found a second one.
	Bootstrap bool
	// HTTP is the address of health and metrics. Default "127.0.0.1:7402"; "off" serves none.
	HTTP string
	// Logger gets the broker's log. Default: discarded.
	Logger *slog.Logger
	// Limits bound what each client and all of them may take.
	Limits Limits
	// MinFreeBytes is the free space below which records are refused with
	// DISK_FULL. Default 5 % of the device, at least 1 GiB; negative switches it off.
	MinFreeBytes int64
	// MemoryBytes bounds what destinations with storage=memory hold. Default 1 GiB.
	MemoryBytes int64
	// PendingBytes bounds the memory of records on their way into the logs of all
	// partitions: batches in mailboxes and entries that consensus has not let go
	// of. Default 512 MiB, at least 64 MiB; beyond it producers get MAILBOX_FULL.
	PendingBytes int64
	// EventLoops is the number of network loops. Default half the processors, at least 1.
	EventLoops int
	// StorageWorkers bounds concurrent syncs and other storage jobs, of destinations on
	// disk and in memory each. Default 64; a partition gets a quarter.
	StorageWorkers int
	// ReadWorkers bounds concurrent blocking reads for clients, of destinations on
	// disk and in memory each. Default 16; a session gets half, a partition a quarter.
	ReadWorkers int
	// CheckpointBytes is how much a partition's log grows between checkpoints. Default 64 MiB.
	CheckpointBytes int64
	// RetentionPeriod lies between two looks at what retention lets go. Default 10 s.
	RetentionPeriod time.Duration
	// ScrubInterval lies between two readings of everything that is stored. Default
	// 24 h; negative switches them off.
	ScrubInterval time.Duration

	fs           vfs.FS
	kindOf       func(dir string) (vfs.Kind, error) // of the file system, if fs is nil
	memoryFS     vfs.FS
	bootID       string
	clock        func() time.Time // nil: the machine's
	stopPatience time.Duration
	stallAfter   time.Duration
	hoard        bool // see engineOptions
	// connect makes the connections to other nodes; nil: the broker runs alone.
	connect func(b *broker) (network, error)
	givenUp <-chan struct{} // closed when nobody waits for the start any more; nil: never
}

// checkCluster checks the fields that say how the node is part of a cluster.
func (c *Config) checkCluster() error {
	for _, f := range []struct{ name, address string }{
		{"peer-listen", c.PeerListen}, {"advertise", c.Advertise}, {"peer-advertise", c.PeerAdvertise},
	} {
		if f.address == "" {
			continue
		}
		if err := CheckAddress(f.address); err != nil {
			return fmt.Errorf("%s address %q: %w; give host:port", f.name, f.address, err)
		}
	}
	for _, address := range c.Join {
		if err := CheckAddress(address); err != nil {
			return fmt.Errorf("join address %q: %w; give host:port", address, err)
		}
	}
	switch role := cluster.Role(c.Role); {
	case c.Bootstrap && len(c.Join) > 0:
		return errors.New("--bootstrap and --join contradict each other: the first node of a new cluster is started with --bootstrap, every other with --join; leave one of them out")
	case role != "" && role != cluster.RoleBroker && role != cluster.RoleGateway:
		return fmt.Errorf("role %q is neither %s nor %s", c.Role, cluster.RoleBroker, cluster.RoleGateway)
	case c.PeerListen == "" && (len(c.Join) > 0 || role == cluster.RoleGateway):
		return errors.New("a node of a cluster needs an address for the others; give one with --peer-listen")
	case c.PeerListen == "":
		return nil
	}
	for _, f := range []struct{ flag, address string }{
		{"--advertise", cmp.Or(c.Advertise, c.Listen)}, {"--peer-advertise", cmp.Or(c.PeerAdvertise, c.PeerListen)},
	} {
		if host, _, _ := net.SplitHostPort(f.address); host == "" || net.ParseIP(host).IsUnspecified() {
			return fmt.Errorf("%s stands for every address of a machine, and others would connect to themselves; give the one they reach this node at with %s", f.address, f.flag)
		}
	}
	return nil
}

// CheckAddress says what is wrong with host:port, without asking anybody who the host is.
func CheckAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if known, ok := errors.AsType[*net.AddrError](err); ok {
		return errors.New(known.Err)
	}
	if err == nil {
		if _, err = net.LookupPort("tcp", port); err != nil {
			err = fmt.Errorf("%q is no port", port)
		}
	}
	return err
}

// minPendingBytes is the least that Config.PendingBytes may be: eight batches of
// the largest size.
const minPendingBytes = 8 * wire.MaxBatchBytes

const defaultReadWorkers = 16

// withDefaults fills in defaults and checks the fields.
// Check returns what Start would refuse of the configuration before it touches anything.
func (c Config) Check() error {
	_, err := c.withDefaults()
	return err
}

func (c Config) withDefaults() (Config, error) {
	c.DataDir = cmp.Or(c.DataDir, "lockstep-data")
	c.Listen = cmp.Or(c.Listen, "127.0.0.1:7400")
	c.HTTP = cmp.Or(c.HTTP, "127.0.0.1:7402")
	c.MemoryBytes = cmp.Or(c.MemoryBytes, 1<<30)
	c.PendingBytes = cmp.Or(c.PendingBytes, 512<<20)
	c.StorageWorkers = cmp.Or(c.StorageWorkers, 64)
	c.ReadWorkers = cmp.Or(c.ReadWorkers, defaultReadWorkers)
	c.CheckpointBytes = cmp.Or(c.CheckpointBytes, 64<<20)
	c.ScrubInterval = cmp.Or(c.ScrubInterval, 24*time.Hour)
	c.RetentionPeriod = cmp.Or(c.RetentionPeriod, retentionPeriod)
	c.stallAfter = cmp.Or(c.stallAfter, stallAfter)
	c.stopPatience = cmp.Or(c.stopPatience, stopPatience)
	if c.kindOf == nil {
		c.kindOf = vfs.KindOf
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := CheckAddress(c.Listen); err != nil {
		return c, fmt.Errorf("listen address %q: %w; give host:port", c.Listen, err)
	}
	if c.HTTP != "off" {
		if err := CheckAddress(c.HTTP); err != nil {
			return c, fmt.Errorf("http address %q: %w; give host:port, or off", c.HTTP, err)
		}
	}
	if err := c.checkCluster(); err != nil {
		return c, err
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"MemoryBytes", c.MemoryBytes}, {"PendingBytes", c.PendingBytes}, {"EventLoops", int64(c.EventLoops)}, {"StorageWorkers", int64(c.StorageWorkers)},
		{"ReadWorkers", int64(c.ReadWorkers)}, {"CheckpointBytes", c.CheckpointBytes}, {"RetentionPeriod", int64(c.RetentionPeriod)},
		{"ReplaceAfter", int64(c.ReplaceAfter)},
	} {
		if f.value < 0 {
			return c, fmt.Errorf("%s is negative", f.name)
		}
	}
	if c.PendingBytes < minPendingBytes {
		return c, fmt.Errorf("pending-bytes is %d; it must be at least %d, or a large batch would never find room", c.PendingBytes, minPendingBytes)
	}
	return c, nil
}

package server

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits bounds everything a session may take. A zero field means its default.
// The table in docs/limits.md lists the same names with what happens when each
// is reached.
type Limits struct {
	// Connections is how many client connections are served at once. Default
	// 65,536, lowered to what the descriptor limit leaves beside the reserve.
	// Beyond it a connection is answered BUSY and closed.
	Connections int
	// ConnectionsPerAddress is how many of them one IP address may hold. Default a
	// tenth of Connections or 1,000, whichever is more. Beyond it: BUSY.
	ConnectionsPerAddress int
	// Registering is how many accepted connections may be on their way to an
	// event loop at once; each counts as three descriptors. Default 16.
	Registering int
	// DescriptorReserve is how many file descriptors stay free for storage, beside
	// those it has open, for HTTP and for the loops themselves. Default a quarter of
	// the descriptor limit, at least 96 and at most 4,096.
	DescriptorReserve int

	// HandshakeTimeout is how long preface and HELLO may take together. Default
	// 5 s; then the connection is closed.
	HandshakeTimeout time.Duration
	// FrameTimeout is how long a frame may take from its first to its last byte.
	// Default 10 s; then the connection is closed.
	FrameTimeout time.Duration
	// IdleTimeout is how long a client may send nothing while it waits for
	// nothing. Default 60 s; then it gets the error IDLE.
	IdleTimeout time.Duration
	// WriteTimeout is how long a client may take nothing of what waits for it, or so
	// little that its socket does not take more: half of unsentBytes.
	// Default 10 s; then the connection is closed.
	WriteTimeout time.Duration
	// LingerTimeout is how long a connection stays open for reading after its
	// error frame, so that the frame is not lost in a reset. Default 1 s.
	LingerTimeout time.Duration
	// LingerBytes is how many bytes are read and dropped meanwhile. Default 1 MiB.
	LingerBytes int

	// InFlightRequests is how many requests of one connection may wait for their
	// answer. Default 1,024; then its socket is not read until half are answered.
	InFlightRequests int
	// InFlightBytes is how many bytes those requests may hold. Default 16 MiB; same
	// reaction. The request that reaches it is still taken.
	InFlightBytes int
	// GroupInboxBytes is how many bytes of what the consumers of one connection say may wait
	// for the owners of partitions; one larger message is still taken. Default 1 MiB; the
	// socket is not read beyond it.
	GroupInboxBytes int
	// OutboxBytes is how many bytes of replies may wait for one client to read
	// them. Default 1 MiB; then its socket is not read until half are gone.
	OutboxBytes int
	// Handles is how many partitions one connection may open. Default 4,096;
	// then TOO_MANY.
	Handles int
	// Links is how many streams one connection may have. Default 1,024; then
	// TOO_MANY.
	Links int
	// LinkCredit is how many bytes of credit one link may hold. Default 64 MiB;
	// more is clamped.
	LinkCredit int

	// TemporaryQueues is how many temporary queues one connection may have. Default
	// 1,000; then TOO_MANY.
	TemporaryQueues int
	// TemporaryBytes is how many bytes may wait in one of them. Default 4 MiB; then
	// PARTITION_FULL. One larger batch is still taken.
	TemporaryBytes int
	// NodeTemporaryQueues is how many temporary queues a node has. Default 20,000; then
	// TOO_MANY.
	NodeTemporaryQueues int
	// NodeTemporaryBytes is how many bytes may wait in all of them. Default 64 MiB; then
	// MEMORY_FULL.
	NodeTemporaryBytes int

	// InboundBytes is how much memory unfinished frames of all connections may take
	// together. Default 256 MiB; then a connection that needs more than 64 KiB for
	// its frame is answered BUSY and closed.
	InboundBytes int
	// OutboundBytes is how much memory replies may take that wait for clients that
	// do not read, all together. Default 256 MiB; then such a connection with more
	// than 64 KiB of it is closed.
	OutboundBytes int

	// LogLines is how many lines a second each kind of bad input may write to the
	// log. Default 5; the rest is counted.
	LogLines int

	descriptors int // what connections may use together
}

// Limits that are part of the design and not of the configuration.
const (
	// readBufferBytes is what one read of a socket takes at most.
	readBufferBytes = 256 << 10
	// pieceBytes is the stream part of one DELIVER at most.
	pieceBytes = wire.MaxDeliverBytes
	// turnBytes and turnSlices bound one write of a stream.
	turnBytes  = 256 << 10
	turnSlices = 1024
	// loopTurnBytes is what the streams of one loop write between two looks at
	// the other connections.
	loopTurnBytes = 256 << 10
	// inlineTurnBytes is up to what size the work of one read is done by the
	// loop itself when the partition is idle; above it a worker is woken.
	inlineTurnBytes = 64 << 10
	// fairBytes is what a connection may hold when a budget of all is used up.
	fairBytes = 64 << 10
	// populateBytes is how much of a cold range is made resident at once.
	populateBytes = 1 << 20
	// warmBytes is how far ahead of a replaying link that is done.
	warmBytes = 2 << 20
	// goodbyes is how many refused connections may linger for their BUSY frame.
	goodbyes = 16
	// goodbyeTimeout is how long each may take.
	goodbyeTimeout = 250 * time.Millisecond
	// turnTimers is how many deadlines a loop looks at before it looks at its
	// sockets: thousands of connections that came together also end together, and
	// to close one takes 20 to 40 µs.
	turnTimers = 16
	// turnSessions is how many sessions with something to write get their turn
	// before the loop looks at its sockets: thousands may wait for one partition.
	turnSessions = 128
	// acceptBatch is how many connections are accepted in acceptPeriod at most. gnet
	// registers all that are there before it looks at its sockets.
	acceptBatch  = 16
	acceptPeriod = time.Millisecond
	// peerConnections is how many connections the port for other nodes serves: one for
	// each node, and the forwarded sessions of clients.
	peerConnections = 1024
	// orphanTicks is how many slow ticks lie between two looks at partitions that have no
	// leader: one that has none at two of them is told of.
	orphanTicks = 10
	// slowTick is the granularity of all deadlines.
	slowTick = 100 * time.Millisecond
)

// withDefaults fills in the zero fields. descriptors is the process's limit.
func (l Limits) withDefaults(descriptors uint64) (Limits, error) {
	setInt := func(field *int, value int) {
		if *field == 0 {
			*field = value
		}
	}
	setTime := func(field *time.Duration, value time.Duration) {
		if *field == 0 {
			*field = value
		}
	}
	setInt(&l.DescriptorReserve, int(min(max(descriptors/4, 96), 4096)))
	setInt(&l.Registering, 16)
	setInt(&l.Connections, 65536)
	l.descriptors = int(min(descriptors, 1<<30)) - l.DescriptorReserve
	room := l.descriptors - registeringDescriptors + 1
	if room < 1 {
		return l, fmt.Errorf("descriptor limit %d leaves no connection beside a reserve of %d: raise the limit (ulimit -n)", descriptors, l.DescriptorReserve)
	}
	l.Connections = min(l.Connections, room)
	setInt(&l.ConnectionsPerAddress, max(l.Connections/10, 1000))
	l.ConnectionsPerAddress = min(l.ConnectionsPerAddress, l.Connections)
	setTime(&l.HandshakeTimeout, 5*time.Second)
	setTime(&l.FrameTimeout, 10*time.Second)
	setTime(&l.IdleTimeout, 60*time.Second)
	setTime(&l.WriteTimeout, 10*time.Second)
	setTime(&l.LingerTimeout, time.Second)
	setInt(&l.LingerBytes, 1<<20)
	setInt(&l.InFlightRequests, 1024)
	setInt(&l.InFlightBytes, 16<<20)
	setInt(&l.GroupInboxBytes, 1<<20)
	setInt(&l.OutboxBytes, 1<<20)
	setInt(&l.Handles, 4096)
	setInt(&l.Links, 1024)
	setInt(&l.LinkCredit, 64<<20)
	setInt(&l.TemporaryQueues, 1000)
	setInt(&l.TemporaryBytes, 4<<20)
	setInt(&l.NodeTemporaryQueues, 20000)
	setInt(&l.NodeTemporaryBytes, 64<<20)
	setInt(&l.InboundBytes, 256<<20)
	setInt(&l.OutboundBytes, 256<<20)
	setInt(&l.LogLines, 5)
	// In this order: a default that follows from another limit is named after it.
	for _, limit := range []struct {
		name  string
		value int
	}{
		{"Connections", l.Connections},
		{"ConnectionsPerAddress", l.ConnectionsPerAddress},
		{"Registering", l.Registering},
		{"DescriptorReserve", l.DescriptorReserve},
		{"LingerBytes", l.LingerBytes},
		{"InFlightRequests", l.InFlightRequests},
		{"InFlightBytes", l.InFlightBytes},
		{"GroupInboxBytes", l.GroupInboxBytes},
		{"OutboxBytes", l.OutboxBytes},
		{"Handles", l.Handles},
		{"Links", l.Links},
		{"LinkCredit", l.LinkCredit},
		{"LogLines", l.LogLines},
		{"TemporaryQueues", l.TemporaryQueues},
		{"TemporaryBytes", l.TemporaryBytes},
		{"NodeTemporaryQueues", l.NodeTemporaryQueues},
		{"NodeTemporaryBytes", l.NodeTemporaryBytes},
		{"InboundBytes", l.InboundBytes},
		{"OutboundBytes", l.OutboundBytes},
		{"HandshakeTimeout", int(l.HandshakeTimeout)},
		{"FrameTimeout", int(l.FrameTimeout)},
		{"IdleTimeout", int(l.IdleTimeout)},
		{"WriteTimeout", int(l.WriteTimeout)},
		{"LingerTimeout", int(l.LingerTimeout)},
	} {
		if limit.value < 0 {
			return l, fmt.Errorf("limit %s is negative: %d", limit.name, limit.value)
		}
	}
	return l, nil
}

// setAside takes the descriptors of n connections, or of a quarter of all if that is
// less, out of what clients may use, and returns the limits of those who use them.
func (l *Limits) setAside(n int) Limits {
	aside := *l
	n = min(n, max(l.descriptors/4, 1))
	aside.Connections, aside.ConnectionsPerAddress = n, n
	aside.descriptors = n + (aside.Registering+1)*(registeringDescriptors-1)
	l.descriptors = max(l.descriptors-n, registeringDescriptors)
	l.Connections = min(l.Connections, l.descriptors-registeringDescriptors+1)
	l.ConnectionsPerAddress = min(l.ConnectionsPerAddress, l.Connections)
	return aside
}

// descriptorLimit is the process's limit of open files, RLIMIT_NOFILE.
func descriptorLimit() (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	return limit.Cur, nil
}

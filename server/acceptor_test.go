package server

import (
	"flag"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/wire"
)

func TestAdmissionCountsThreeDescriptorsWhileRegistering(t *testing.T) {
	limits, err := Limits{DescriptorReserve: 10}.withDefaults(20)
	require.NoError(t, err)
	require.Equal(t, 10, limits.descriptors)
	require.Equal(t, 8, limits.Connections, "the last one needs three to come in")
	a := admission{limits: &limits, storage: func() int { return 0 }, addresses: make(map[netip.Addr]int)}
	address := netip.MustParseAddr("192.0.2.1")
	for range 3 {
		require.NoError(t, a.admit(address))
	}
	require.ErrorIs(t, a.admit(address), errTooManyConnections, "nine are in use, three more would be twelve")
	for range 3 {
		a.registered()
	}
	for range 5 {
		require.NoError(t, a.admit(address))
		a.registered()
	}
	require.ErrorIs(t, a.admit(address), errTooManyConnections)
	for range 8 {
		a.release(address)
	}
	require.Zero(t, a.total)
	require.Zero(t, a.registering)
	require.Empty(t, a.addresses)
}

// What storage has open is beside the reserve, not in it; but a few connections are
// served even then.
func TestF24_AdmissionLeavesTheReserveBesideOpenFiles(t *testing.T) {
	limits, err := Limits{DescriptorReserve: 20}.withDefaults(60)
	require.NoError(t, err)
	open := 0
	a := admission{limits: &limits, storage: func() int { return open }, addresses: make(map[netip.Addr]int)}
	for _, test := range []struct{ open, connections int }{{0, 38}, {10, 28}, {25, 13}, {30, 8}, {50, 8}} {
		open = test.open
		n := 0
		for a.admit(netip.MustParseAddr("192.0.2.1")) == nil {
			a.registered()
			n++
		}
		require.Equal(t, test.connections, n, "%d files open", open)
		for range n {
			a.release(netip.MustParseAddr("192.0.2.1"))
		}
	}
}

func TestAdmissionOfOneAddress(t *testing.T) {
	limits, err := Limits{ConnectionsPerAddress: 2}.withDefaults(1000)
	require.NoError(t, err)
	a := admission{limits: &limits, storage: func() int { return 0 }, addresses: make(map[netip.Addr]int)}
	one, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	require.NoError(t, a.admit(one))
	require.NoError(t, a.admit(one))
	require.ErrorIs(t, a.admit(one), errTooManyFromAddress)
	require.NoError(t, a.admit(other))
	a.release(one)
	require.NoError(t, a.admit(one))
}

func TestThePaceOfAccepting(t *testing.T) {
	var p pace
	begin := time.Now()
	for range 3*acceptBatch + 1 {
		p.wait()
	}
	require.GreaterOrEqual(t, time.Since(begin), 2*acceptPeriod, "the first batch may follow a pause")
}

type zonedConn struct{ net.Conn }

func (zonedConn) LocalAddr() net.Addr  { return localZoned }
func (zonedConn) RemoteAddr() net.Addr { return remoteZoned }

var localZoned, remoteZoned *net.TCPAddr

func TestZonesAreKeptFromGnet(t *testing.T) {
	localZoned = &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}
	remoteZoned = &net.TCPAddr{IP: net.ParseIP("fe80::2"), Zone: "eth0"}
	require.Equal(t, netip.MustParseAddr("fe80::2"), addressOf(zonedConn{}))
	require.Empty(t, localZoned.Zone)
	require.Empty(t, remoteZoned.Zone)
	mapped := &net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.1")}
	remoteZoned = mapped
	require.Equal(t, netip.MustParseAddr("192.0.2.1"), addressOf(zonedConn{}))
}

// openDescriptors counts this process's open files.
func openDescriptors(t *testing.T) uint64 {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return uint64(len(entries))
}

// lowerDescriptors leaves this process with room for n more files.
func lowerDescriptors(t *testing.T, n uint64) uint64 {
	t.Helper()
	var before unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	lowered := before
	lowered.Cur = openDescriptors(t) + n
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lowered))
	t.Cleanup(func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) })
	return lowered.Cur
}

func TestRunningOutOfDescriptorsIsSurvived(t *testing.T) {
	// The acceptor is told of far more descriptors than there are.
	n := startNode(t, Limits{LogLines: 1000}, func(o *engineOptions) { o.descriptors = 100_000 })
	served := dialOpen(t, n.address)
	lowerDescriptors(t, 40)
	flood := startAttack(t, attack{Mode: "idle", Address: n.address, Connections: 200})
	eventually(t, "EMFILE", func() bool { return n.engine.counters.acceptErrors.Load() > 0 })
	served.send(wire.OpPing, 2, &wire.PingRequest{})
	require.Equal(t, wire.CodeOK, served.answer(2).code())
	require.Contains(t, n.log.String(), "too many open files")
	flood.stop()
	eventually(t, "only one session", func() bool { return n.engine.counters.sessions.Load() == 1 })
	dialOpen(t, n.address)
}

// floods is how many floods TestF24 rides out; the row asks for 100.
var floods = flag.Int("attack.floods", 10, "floods of connections against a low limit of descriptors in TestF24")

// F24 of RELIABILITY: floods against a low limit, storage always gets its files,
// and a client that was there before is served.
func TestF24_TheReserveOfDescriptorsIsKept(t *testing.T) {
	n, limit := startWithFewDescriptors(t)
	served := dialOpen(t, n.address)
	flood := startAttack(t, attack{Mode: "idle", Address: n.address, Connections: 512})
	for round := range *floods {
		if round > 0 {
			flood.again()
		}
		require.Positive(t, flood.connected())
		require.NoError(t, openReserve(), "round %d", round)
		served.send(wire.OpPing, 2, &wire.PingRequest{})
		require.Equal(t, wire.CodeOK, served.answer(2).code(), "round %d", round)
		flood.withdraw()
		eventually(t, "only one session", func() bool { return n.engine.counters.sessions.Load() == 1 })
	}
	require.NotZero(t, n.engine.counters.refusedTotal.Load())
	require.Zero(t, n.engine.counters.acceptErrors.Load())
	t.Logf("%d floods of 512 connections under a limit of %d descriptors, %d connections refused",
		*floods, limit, n.engine.counters.refusedTotal.Load())
}

// The same check finds a broker that keeps nothing back.
func TestF24_Catches_ABrokerWithoutReserve(t *testing.T) {
	n, _ := startWithFewDescriptors(t, func(o *engineOptions) { o.descriptors = 100_000 })
	flood := startAttack(t, attack{Mode: "idle", Address: n.address, Connections: 512})
	eventually(t, "EMFILE", func() bool { return n.engine.counters.acceptErrors.Load() > 0 })
	require.ErrorIs(t, openReserve(), unix.EMFILE)
	flood.stop()
}

// reserveFiles is the reserve of the brokers of F24.
const reserveFiles = 64

// startWithFewDescriptors runs sessions in a process that may open 256 more files.
func startWithFewDescriptors(t *testing.T, change ...func(*engineOptions)) (n *testNode, limit uint64) {
	limit = lowerDescriptors(t, 256)
	return startNode(t, Limits{LogLines: 1000, DescriptorReserve: int(limit) - 256 + reserveFiles}, change...), limit
}

// openReserve opens half of the reserve, as storage would.
func openReserve() error {
	for range reserveFiles / 2 {
		f, err := os.Open("/proc/self/stat")
		if err != nil {
			return err
		}
		defer f.Close()
	}
	return nil
}

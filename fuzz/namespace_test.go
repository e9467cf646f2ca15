package fuzz

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// childVariable is set in a test that runs again in namespaces of its own. It holds a
// directory that goes with the test.
const childVariable = "FUZZ_CHILD_DIR"

// childFarewell is how long before its parent a child gives up.
const childFarewell = 10 * time.Second

// inNamespaces runs a test again in a child process that has namespaces of its own
// (CLONE_NEW… flags) as root in them. However the child ends, the kernel then takes
// back what it mounted, its network, and with CLONE_NEWPID its processes.
func inNamespaces(t *testing.T, namespaces uintptr, tools []string, run func(*testing.T)) {
	if os.Getenv(childVariable) != "" {
		run(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("namespaces with mounts and networks need root")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("this machine has no %s", tool)
		}
	}
	t.Parallel() // the child shares nothing with others, and waits most of its time
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v"}
	if end, ok := t.Deadline(); ok { // it ends before this process does, and says where it stood
		args = append(args, fmt.Sprint("-test.timeout=", max(time.Second, time.Until(end)-childFarewell)))
	} else {
		args = append(args, "-test.timeout=0")
	}
	flag.Visit(func(f *flag.Flag) {
		if !strings.HasPrefix(f.Name, "test.") {
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	name, err := program() // built once, out here
	require.NoError(t, err)
	child := exec.Command(os.Args[0], args...)
	child.Env = append(os.Environ(), childVariable+"="+t.TempDir(), programVariable+"="+name)
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the child dies with this thread
	defer runtime.UnlockOSThread()
	out, err := child.CombinedOutput()
	switch {
	case errors.Is(err, unix.EPERM):
		t.Skip("namespaces are not allowed here")
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("\n%s", out)
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip("the child could not get what it needs: its output is above")
	}
}

// privateMounts keeps what the child mounts to itself, and gives it a view of its own
// processes if they have a namespace.
func privateMounts(t *testing.T) {
	t.Helper()
	require.NoError(t, unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	if os.Getpid() == 1 {
		require.NoError(t, unix.Mount("proc", "/proc", "proc", 0, ""))
	}
}

// hosts is a network of the test's own: a bridge, and hosts on it that are network
// namespaces. Neighbour entries are written by hand, so that a link is cut in one
// direction by an entry that nobody has the address of: what is sent there is lost
// without a word, as on a broken cable. The test itself stands on the bridge and reaches
// all hosts whatever is cut between them.
type hosts struct {
	t     *testing.T
	count int
}

// nowhere is the hardware address of no host.
const nowhere = "02:00:00:00:00:ff"

// bridgeNumber is the test's own number among the hosts.
const bridgeNumber = 100

func hostName(n int) string    { return fmt.Sprintf("host%d", n) }
func hostIP(n int) string      { return fmt.Sprintf("10.77.0.%d", n) }
func hostLink(n int) string    { return fmt.Sprintf("02:00:00:00:00:%02x", n) }
func hostAddress(n int) string { return hostIP(n) + ":7400" }
func hostPeer(n int) string    { return hostIP(n) + ":7401" }

// newHosts makes n hosts, numbered from 1, in a child with namespaces for its mounts
// and its network.
func newHosts(t *testing.T, n int) *hosts {
	t.Helper()
	require.NoError(t, unix.Mount("none", "/run", "tmpfs", 0, ""), "ip keeps the names of namespaces there")
	h := &hosts{t: t, count: n}
	h.ip("link set lo up")
	h.ip("link add bridge address %s type bridge", hostLink(bridgeNumber))
	h.ip("addr add %s/24 dev bridge", hostIP(bridgeNumber))
	h.ip("link set bridge up")
	for i := 1; i <= n; i++ {
		h.ip("netns add %s", hostName(i))
		h.ip("link add port%d type veth peer name eth0 address %s netns %s", i, hostLink(i), hostName(i))
		h.ip("link set port%d master bridge up", i)
		h.ip("-n %s link set lo up", hostName(i))
		h.ip("-n %s addr add %s/24 dev eth0", hostName(i), hostIP(i))
		h.ip("-n %s link set eth0 up", hostName(i))
		h.ip("neigh replace %s lladdr %s dev bridge nud permanent", hostIP(i), hostLink(i))
	}
	for i := 1; i <= n; i++ {
		h.heal(i, bridgeNumber)
		for j := 1; j <= n; j++ {
			h.heal(i, j)
		}
	}
	return h
}

// ip runs an ip command.
func (h *hosts) ip(format string, args ...any) {
	h.t.Helper()
	h.run("ip", fmt.Sprintf(format, args...))
}

func (h *hosts) run(tool, args string) {
	h.t.Helper()
	out, err := exec.Command(tool, strings.Fields(args)...).CombinedOutput()
	require.NoError(h.t, err, "%s %s: %s", tool, args, out)
}

// cut loses everything that one host sends to another, and heal ends that.
func (h *hosts) cut(from, to int)  { h.neighbour(from, to, nowhere) }
func (h *hosts) heal(from, to int) { h.neighbour(from, to, hostLink(to)) }

func (h *hosts) neighbour(from, to int, link string) {
	h.t.Helper()
	if from == to {
		return
	}
	h.ip("-n %s neigh replace %s lladdr %s dev eth0 nud permanent", hostName(from), hostIP(to), link)
}

// isolate cuts or heals all links between a host and the others, in both directions.
func (h *hosts) isolate(host int, change func(from, to int)) {
	for other := 1; other <= h.count; other++ {
		change(host, other)
		change(other, host)
	}
}

// slow lets a host send no more than 4 Mbit/s; what does not fit into 100 ms is lost.
func (h *hosts) slow(host int) {
	h.run("tc", fmt.Sprintf("-n %s qdisc replace dev eth0 root tbf rate 4mbit burst 16kb latency 100ms", hostName(host)))
}

func (h *hosts) fast(host int) {
	h.run("tc", fmt.Sprintf("-n %s qdisc del dev eth0 root", hostName(host)))
}

// broker returns a broker on a host. Brokers join those that were made before.
func (h *hosts) broker(n int, dir string) *brokerProcess {
	h.t.Helper()
	b := newBroker(h.t)
	b.host, b.data, b.address = hostName(n), dir, hostAddress(n)
	b.args = []string{"--node-id", fmt.Sprint(n), "--peer-listen", hostPeer(n)}
	return b
}

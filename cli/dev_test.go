package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// freePorts finds a base port with the ports of n nodes free above it. Somebody may
// take one until they are used: the caller tries again.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for base := 20000 + os.Getpid()%1000*10; base < 32000; base += maxDevNodes * devPorts {
		free := true
		for port := base; port < base+n*devPorts; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if free = err == nil; !free {
				break
			}
			l.Close()
		}
		if free {
			return base
		}
	}
	t.Fatal("no ports are free")
	return 0
}

func devState(t *testing.T, dir string) []string {
	t.Helper()
	var nodes []struct {
		State   string
		PID     int
		Started uint64 `json:"started_ticks"`
	}
	require.NoError(t, json.Unmarshal([]byte(must(t, shell{}, "dev", "status", "--dir", dir, "-o", "json")), &nodes))
	var states []string
	for _, n := range nodes {
		require.Equal(t, n.State == devStopped, n.PID == 0)
		require.Equal(t, n.State == devStopped, n.Started == 0)
		states = append(states, n.State)
	}
	return states
}

func TestDevRunsKillsStartsAndStopsNodes(t *testing.T) {
	t.Setenv(childVariable, "1")
	dir := filepath.Join(t.TempDir(), "it's mine")
	port := freePorts(t, 1)
	run := func(args ...string) outcome {
		return shell{}.run(context.Background(), append([]string{"dev"}, append(args, "--dir", dir)...)...)
	}
	t.Cleanup(func() { run("down") })
	require.Equal(t, outcome{1, "", "lockstep: there is no cluster in " + dir + "; start one with: lockstep dev up --nodes 3 --dir " + shellWord(dir) + "\n"}, run("status"))

	up := run("up", "--detach", "--base-port", fmt.Sprint(port))
	require.Equal(t, 0, up.code, up.stderr)
	server := fmt.Sprintf("127.0.0.1:%d", port)
	require.Equal(t, fmt.Sprintf("lockstep dev: 1 node ready in %s; try: lockstep queue create orders --server %s; stop with: lockstep dev down --dir %s\n", dir, server, shellWord(dir)), up.stderr)
	must(t, at(server, ""), "queue", "create", "orders")
	require.Equal(t, []string{devRunning}, devState(t, dir))
	again := run("up", "--detach")
	require.Equal(t, 1, again.code)
	require.Contains(t, again.stderr, "1 of 1 nodes in "+dir+" run already")
	require.Contains(t, run("start", "1").stderr, "node 1 runs already, as process ")
	require.Contains(t, run("kill", "2").stderr, "there is no node 2: the cluster in "+dir+" has 1 node")
	require.Equal(t, 2, run("kill", "x").code)

	require.Equal(t, 0, run("kill", "1").code)
	require.Equal(t, []string{devStopped}, devState(t, dir))
	require.Equal(t, outcome{1, "", "lockstep: node 1 does not run; start it with: lockstep dev start 1\n"}, run("kill", "n1"))
	started := run("start", "1")
	require.Equal(t, 0, started.code, started.stderr)
	require.Contains(t, must(t, at(server, ""), "queue", "ls"), "orders")

	require.Equal(t, 0, run("down").code)
	require.Equal(t, []string{devStopped}, devState(t, dir))
	require.Contains(t, run("up", "--nodes", "2").stderr, "the cluster in "+dir+" has 1 node; leave --nodes out")

	require.Equal(t, 0, run("down", "--purge").code)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// Who has a port of a node is not taken for the node: not a process that was there before,
// and not a broker that answers in its place.
func TestDevTellsWhoHasItsPorts(t *testing.T) {
	address, _ := startServer(t)
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	run := func(dir string, args ...string) outcome {
		return shell{}.run(context.Background(), append([]string{"dev"}, append(args, "--dir", dir)...)...)
	}
	dir := filepath.Join(t.TempDir(), "new")
	up := run(dir, "up", "--detach", "--base-port", port)
	require.Equal(t, 1, up.code)
	require.Regexp(t, fmt.Sprintf(`^lockstep: node 1 cannot listen for clients on %s: process %d \(.+\) has that port; stop that, and run this again, `+
		`or have a cluster on other ports with: lockstep dev up --nodes 1 --base-port \d+ --dir %s\n$`, address, os.Getpid(), dir), up.stderr)
	require.NoFileExists(t, filepath.Join(dir, devStateFile), "another port can be chosen")

	old := newDevCluster(t.TempDir(), 1, (&devCluster{Nodes: []devNode{{Client: address}}}).basePort())
	require.NoError(t, old.save())
	again := run(old.dir, "up", "--detach")
	require.Regexp(t, fmt.Sprintf(`^lockstep: node 1 cannot listen for clients on %s: .+ --base-port \d+ --dir DIR\n$`, address), again.stderr)
	require.Contains(t, run(old.dir, "start", "1").stderr, "has that port; stop that, and run this again\n")
	require.Equal(t, outcome{1, "", "lockstep: the cluster in " + old.dir + " has its ports from " + address + " on; leave --base-port out, or choose another directory with --dir\n"},
		run(old.dir, "up", "--base-port", "1000"))

	_, old.Nodes[0].Started, err = processState(os.Getpid())
	require.NoError(t, err)
	old.Nodes[0].PID = os.Getpid() // as if it ran
	_, err = devHealth(context.Background(), old, 1)
	var taken *portTaken
	require.ErrorAs(t, err, &taken)
	require.Regexp(t, `^node 1 of another cluster, process \d+ \(.+\), has that port$`, taken.by+" has that port")
}

// Why a node ended at its start is its own error, not what its log held before.
func TestDevSaysWhyANodeEnded(t *testing.T) {
	d := newDevCluster(t.TempDir(), 1, defaultBasePort)
	n := &d.Nodes[0]
	require.NoError(t, os.MkdirAll(filepath.Dir(d.logFile(n)), 0o700))
	old := "lockstep: an earlier end\n"
	for name, c := range map[string]struct{ log, want string }{
		"an error":      {"time=1 level=INFO msg=x\nlockstep: the disk burns\n", "node 1 ended at its start: the disk burns"},
		"no error":      {"panic: x\ngoroutine 1\n", "node 1 ended at its start: panic: x\ngoroutine 1"},
		"nothing":       {"", "node 1 ended at its start: "},
		"a left member": {"lockstep: node 1 was removed from the cluster\n", "node 1 ended at its start: node 1 was removed from the cluster; here: rm -r " + d.dataDir(n)},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(d.logFile(n), []byte(old+c.log), 0o600))
			n.logged = int64(len(old))
			require.EqualError(t, d.endedEarly(n), c.want)
		})
	}
}

// Without --detach the nodes' logs are printed, and an interrupt ends them.
func TestDevUpPrintsTheLogsUntilItIsInterrupted(t *testing.T) {
	t.Setenv(childVariable, "1")
	dir := t.TempDir()
	ctx, interrupt := context.WithCancelCause(context.Background())
	var stderr lockedBuffer
	ended := make(chan int)
	go func() {
		ended <- shell{}.app(discard{}, &stderr).run(ctx, []string{"dev", "up", "--dir", dir, "--base-port", fmt.Sprint(freePorts(t, 1))})
	}()
	require.Eventually(t, func() bool {
		return strings.Contains(stderr.String(), "n1 | lockstep: ready on 127.0.0.1:") && strings.Contains(stderr.String(), "lockstep dev: 1 node ready")
	}, 60*time.Second, 10*time.Millisecond)
	interrupt(errInterrupted)
	require.Equal(t, 0, <-ended)
	require.Equal(t, []string{devStopped}, devState(t, dir))
}

func TestDevTellsANodeFromAnotherProcessWithItsPID(t *testing.T) {
	_, started, err := processState(os.Getpid())
	require.NoError(t, err)
	require.Equal(t, devRunning, (&devNode{PID: os.Getpid(), Started: started}).state())
	require.Equal(t, devStopped, (&devNode{PID: os.Getpid(), Started: started + 1}).state())
	require.Equal(t, devStopped, (&devNode{}).state())
}

// Three processes, of which one is killed with SIGKILL while a producer and a consumer
// are at work: both go on, and every record arrives once.
func TestDevThreeNodesSurviveAKill(t *testing.T) {
	t.Setenv(childVariable, "1")
	dir := t.TempDir()
	run := func(args ...string) outcome {
		return shell{}.run(context.Background(), append([]string{"dev"}, append(args, "--dir", dir)...)...)
	}
	t.Cleanup(func() { run("down") })
	up := run("up", "--nodes", "3", "--detach", "--base-port", fmt.Sprint(freePorts(t, 3)))
	require.Equal(t, 0, up.code, up.stderr)
	d, err := loadDev(dir)
	require.NoError(t, err)
	server := d.clients()
	require.Equal(t, 0, run("kill", "1").code) // the founder, at once
	must(t, at(server, ""), "queue", "create", "early", "--replicas", "2")
	require.Equal(t, 0, run("start", "1").code)
	must(t, at(server, ""), "queue", "create", "orders", "--partitions", "6", "--replicas", "3")
	must(t, at(server, ""), "cluster", "health", "--watch", "--exit-when-healthy", "--timeout", "60s")

	// A node that has an only replica is drained when it leads nothing else.
	must(t, at(server, ""), "queue", "create", "lone", "--replicas", "1")
	must(t, at(server, "x\n"), "produce", "lone")
	var lone []replicatedJSON
	require.NoError(t, json.Unmarshal([]byte(must(t, at(server, ""), "partition", "ls", "lone", "-o", "json")), &lone))
	holder := fmt.Sprint(lone[0].Replicas[0].Node)
	drained := at(server, "").run(context.Background(), "node", "drain", holder, "--wait")
	require.Equal(t, 0, drained.code)
	require.Contains(t, drained.stderr, "node "+holder+" is drained")
	must(t, at(server, ""), "node", "undrain", holder)

	const records = 3000
	lines, input := io.Pipe()
	produced := make(chan outcome, 1)
	go func() {
		var out, log lockedBuffer
		a := at(server, "").app(&out, &log)
		a.stdin = lines
		code := a.run(context.Background(), []string{"produce", "orders", "--server", server})
		produced <- outcome{code, out.String(), log.String()}
	}()
	consumed := make(chan outcome, 1)
	go func() {
		consumed <- at(server, "").run(context.Background(), "consume", "orders", "--from", "earliest", "-c", fmt.Sprint(records), "--server", server)
	}()
	for i := range records {
		if i == records/3 {
			require.Equal(t, 0, run("kill", "2").code)
		}
		if i == 2*records/3 {
			started := run("start", "2")
			require.Equal(t, 0, started.code, started.stderr)
		}
		_, err := fmt.Fprintf(input, "record %d\n", i)
		require.NoError(t, err)
	}
	require.NoError(t, input.Close())
	result := <-produced
	require.Equal(t, 0, result.code, result.stderr)
	result = <-consumed
	require.Equal(t, 0, result.code, result.stderr)
	seen := map[string]int{}
	for _, line := range strings.Split(strings.TrimSuffix(result.stdout, "\n"), "\n") {
		seen[line]++
	}
	require.Len(t, seen, records)
	for i := range records {
		require.Equal(t, 1, seen[fmt.Sprintf("record %d", i)])
	}
	must(t, at(server, ""), "cluster", "health", "--watch", "--exit-when-healthy", "--timeout", "60s")
}

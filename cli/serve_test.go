package cli

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// child is a broker that runs as its own process.
type child struct {
	command *exec.Cmd
	address string // empty: it ended before it was ready
	log     *lockedBuffer
	exited  chan struct{}
}

// startChild runs serve with these arguments and waits until it is ready or has ended.
func startChild(t *testing.T, args ...string) *child {
	t.Helper()
	executable, err := os.Executable()
	require.NoError(t, err)
	return start(t, exec.Command(executable, append([]string{"serve", "--http", "off"}, args...)...), "LOCKSTEP_MIN_FREE_BYTES=1MiB")
}

// startChildIn is startChild in a mount namespace of its own, after a shell script
// that may mount what the broker is to find; the kernel unmounts it at the end.
func startChildIn(t *testing.T, script string, args ...string) *child {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounting a file system needs root")
	}
	executable, err := os.Executable()
	require.NoError(t, err)
	command := exec.Command("sh", append([]string{"-ec", script + `; exec "$0" "$@"`, executable, "serve", "--http", "off"}, args...)...)
	command.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	c := start(t, command)
	if log := c.log.String(); c.address == "" && !strings.HasPrefix(log, "lockstep: ") {
		t.Skipf("SKIPPED: a file system cannot be mounted here: %s", log)
	}
	return c
}

func start(t *testing.T, command *exec.Cmd, environment ...string) *child {
	t.Helper()
	c := &child{command: command, log: &lockedBuffer{}, exited: make(chan struct{})}
	c.command.Env = append(append(os.Environ(), childVariable+"=1"), environment...)
	stderr, err := c.command.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, c.command.Start())
	ready := make(chan string, 1)
	go func() {
		defer close(c.exited)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			fmt.Fprintln(c.log, lines.Text())
			if m := readyPattern.FindStringSubmatch(lines.Text()); m != nil {
				ready <- m[1]
			}
		}
		_ = c.command.Wait()
	}()
	t.Cleanup(func() {
		_ = c.command.Process.Kill()
		<-c.exited
	})
	select {
	case c.address = <-ready:
	case <-c.exited:
	case <-time.After(60 * time.Second):
		t.Fatal("the broker is not ready after 20 s:\n" + c.log.String())
	}
	return c
}

// requireRefused checks that serve ended at its start with one line.
func (c *child) requireRefused(t *testing.T, code int, want string) {
	t.Helper()
	require.Equal(t, want+"\n", c.log.String())
	require.Empty(t, c.address)
	require.Equal(t, code, c.command.ProcessState.ExitCode())
}

func (c *child) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, c.command.Process.Signal(syscall.SIGTERM))
	<-c.exited
	require.Equal(t, 0, c.command.ProcessState.ExitCode(), c.log.String())
}

func TestServeSaysWhereItIsAndStopsCleanly(t *testing.T) {
	data := t.TempDir()
	first := startChild(t, "--data", data, "--listen", "127.0.0.1:0")
	require.Equal(t, "lockstep: ready on "+first.address+", data in "+data+"; try: lockstep queue create orders --server "+first.address+"\n", first.log.String())
	must(t, at(first.address, ""), "queue", "create", "orders")

	asked := time.Now()
	require.NoError(t, first.command.Process.Signal(syscall.SIGTERM))
	<-first.exited
	require.Equal(t, 0, first.command.ProcessState.ExitCode(), first.log.String())
	require.Less(t, time.Since(asked), 5*time.Second)
	got := at(first.address, "").run(context.Background(), "queue", "ls")
	require.Equal(t, outcome{1, "", "lockstep: no broker at " + first.address + " (connection refused); start one with: lockstep serve, or name one with --server\n"}, got)
}

func TestServeRefusesToStart(t *testing.T) {
	data := t.TempDir()
	first := startChild(t, "--data", data, "--listen", "127.0.0.1:0")
	_, port, err := net.SplitHostPort(first.address)
	require.NoError(t, err)

	t.Run("two brokers on one directory", func(t *testing.T) {
		startChild(t, "--data", data, "--listen", "127.0.0.1:0").requireRefused(t, 1, fmt.Sprintf(
			"lockstep: data directory %s is in use: locked by another process (process %d); stop that broker, or choose another directory with --data",
			data, first.command.Process.Pid))
	})
	t.Run("a port in use", func(t *testing.T) {
		startChild(t, "--data", t.TempDir(), "--listen", first.address).requireRefused(t, 1,
			"lockstep: address 127.0.0.1:"+port+" is in use; stop what listens there, or choose another with --listen")
	})
	t.Run("an HTTP port in use", func(t *testing.T) {
		startChild(t, "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--http", first.address).requireRefused(t, 1,
			"lockstep: address 127.0.0.1:"+port+" is in use; stop what listens there, or choose another with --http, or switch HTTP off with --http off")
	})
	t.Run("a directory of a newer version", func(t *testing.T) {
		newer := t.TempDir()
		name := filepath.Join(newer, "node.json")
		require.NoError(t, os.WriteFile(name, []byte(`{"format_version": 99}`), 0o600))
		startChild(t, "--data", newer, "--listen", "127.0.0.1:0").requireRefused(t, 1,
			"lockstep: data directory "+newer+": "+name+": data directory was written by a newer version: format 99, this build reads up to 1; start the newer version, or choose another --data")
	})
	t.Run("a read-only directory", func(t *testing.T) {
		dir := t.TempDir()
		startChildIn(t, "mount -t tmpfs -o ro none '"+dir+"'", "--data", dir, "--listen", "127.0.0.1:0").requireRefused(t, 1,
			"lockstep: data directory "+dir+" cannot be written: read-only file system; mend its permissions or mount, or choose another with --data")
	})
	t.Run("a directory that cannot be made", func(t *testing.T) {
		startChild(t, "--data", "/proc/lockstep", "--listen", "127.0.0.1:0").requireRefused(t, 1,
			"lockstep: data directory /proc/lockstep: no such file or directory; choose another with --data")
	})
	t.Run("hard states that are missing", func(t *testing.T) {
		dir := t.TempDir()
		startChild(t, "--data", dir, "--listen", "127.0.0.1:0").stop(t)
		require.NoError(t, os.Remove(filepath.Join(dir, "hardstate")))
		refused := startChild(t, "--data", dir, "--listen", "127.0.0.1:0")
		require.Contains(t, refused.log.String(), "; restore it from a copy of the directory, or set the directory aside and start with an empty one; what is intact shows: lockstep log verify "+dir+"\n")
		require.Equal(t, 1, refused.command.ProcessState.ExitCode())
	})
}

// RELIABILITY §6.4, row 45.
func TestServeRefusesVariablesThatAreNoSettings(t *testing.T) {
	for _, c := range []struct{ variable, want string }{
		{"LOCKSTEP_LISTN", "lockstep: environment variable LOCKSTEP_LISTN is no setting; did you mean LOCKSTEP_LISTEN? (see lockstep serve --help)\n"},
		{"LOCKSTEP_RAKC", "lockstep: environment variable LOCKSTEP_RAKC is no setting; did you mean LOCKSTEP_RACK? (see lockstep serve --help)\n"},
		{"LOCKSTEP_QUORUM_SIZE", "lockstep: environment variable LOCKSTEP_QUORUM_SIZE is no setting; remove it (see lockstep serve --help)\n"},
	} {
		got := shell{env: map[string]string{c.variable: "x", "LOCKSTEP_SERVER": "a:1", "LOCKSTEP_TEST_X": "1", "LOCKSTEP_BENCH_DIR": "/tmp", "OTHER": ""}}.
			run(context.Background(), "serve")
		require.Equal(t, outcome{2, "", c.want}, got)
	}
}

// RULES R10: a node that was wiped does not found a second cluster.
func TestServeFoundsAClusterOnlyWhenTold(t *testing.T) {
	dir := t.TempDir()
	// Port 0 of all addresses; the firewall of the test machine is not asked: nothing connects.
	refused := startChild(t, "--data", dir, "--listen", "0.0.0.0:0")
	require.Empty(t, refused.address)
	require.Equal(t, 1, refused.command.ProcessState.ExitCode())
	require.Regexp(t, `^lockstep: data directory `+dir+` is empty, and on 0\.0\.0\.0:\d+, which other machines reach, a new cluster is founded only with --bootstrap, and another one is joined with --join; `+
		"if this node had data before, mount or restore its directory instead\n$", refused.log.String())
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, names, "nothing was made")

	founded := startChild(t, "--data", dir, "--listen", "0.0.0.0:0", "--bootstrap")
	require.NotEmpty(t, founded.address)
	require.Regexp(t, `; try: lockstep queue create orders --server 127\.0\.0\.1:\d+\n$`, founded.log.String())
	founded.stop(t)
	again := startChild(t, "--data", dir, "--listen", "0.0.0.0:0", "--bootstrap")
	require.NotEmpty(t, again.address)
	require.Contains(t, again.log.String(), "--bootstrap has no effect; leave it out")
	again.stop(t)
	require.NotEmpty(t, startChild(t, "--data", dir, "--listen", "0.0.0.0:0").address)
}

func TestTheReadyLineNamesPartitionsThatAreDown(t *testing.T) {
	dir := t.TempDir()
	broker := startChild(t, "--data", dir, "--listen", "127.0.0.1:0")
	must(t, at(broker.address, ""), "queue", "create", "orders", "--partitions", "3")
	must(t, at(broker.address, "x\n"), "produce", "orders", "--partition", "1")
	broker.stop(t)
	manifests, err := filepath.Glob(filepath.Join(dir, "partitions", "*-1", "manifest"))
	require.NoError(t, err)
	require.Len(t, manifests, 1)
	require.NoError(t, os.Truncate(manifests[0], 10))
	broker = startChild(t, "--data", dir, "--listen", "127.0.0.1:0")
	require.Contains(t, broker.log.String(), "lockstep: ready on "+broker.address+", data in "+dir+"; 1 partition down: orders/1; the log above says why\n")
	must(t, at(broker.address, "y\n"), "produce", "orders", "--partition", "0")
}

// A disk that is really full, from the socket: records are refused at once, reads
// and deletes go on, and writing resumes when there is space again.
func TestAFullDiskIsAnsweredAndPasses(t *testing.T) {
	dir := t.TempDir()
	image, data := filepath.Join(dir, "image"), filepath.Join(dir, "data")
	require.NoError(t, os.Mkdir(data, 0o700))
	f, err := os.Create(image)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(256<<20))
	require.NoError(t, f.Close())
	broker := startChildIn(t, "mkfs.ext4 -q -F '"+image+"'; mount -o loop '"+image+"' '"+data+"'",
		"--data", filepath.Join(data, "d"), "--listen", "127.0.0.1:0", "--min-free-bytes", "8MiB")
	sh := at(broker.address, "")
	must(t, sh, "topic", "create", "large", "--sync", "os")
	must(t, sh, "topic", "create", "small")
	must(t, at(broker.address, "before\n"), "produce", "small")

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stalled := make(chan client.Event, 64)
	conn, err := client.Connect(ctx, broker.address, client.WithEvents(func(e client.Event) {
		switch e.(type) {
		case client.ProducerStalled, client.ProducerResumed:
			stalled <- e
		}
	}))
	require.NoError(t, err)
	defer conn.Close()
	filler, err := conn.Producer(ctx, "large", client.WaitForSpace(false), client.BatchBytes(256<<10))
	require.NoError(t, err)
	value := make([]byte, 256<<10)
	stored := 0
	var asked time.Time
	for err == nil {
		asked = time.Now()
		if _, err = filler.Send(ctx, &client.Record{Value: value}); err == nil {
			stored++
		}
	}
	require.ErrorIs(t, err, wire.CodeDiskFull)
	require.Less(t, time.Since(asked), 10*time.Second, "answered, not hung")
	var failed *client.SendError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, client.NotSent, failed.Outcome)

	require.Equal(t, strings.Repeat("x", stored), must(t, sh, "consume", "large", "-e", "-f", "x"), "reading goes on")
	require.Equal(t, "before\n", must(t, sh, "consume", "small", "-e"))
	patient, err := conn.Producer(ctx, "small", client.MaxBufferedBytes(64<<20))
	require.NoError(t, err)
	var tickets []*client.Ticket
	for range 2000 { // more than what a segment that was begun may still take
		ticket, err := patient.SendAsync(ctx, &client.Record{Value: value[:16<<10]})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	next := func() client.Event {
		select {
		case e := <-stalled:
			return e
		case <-ctx.Done():
			t.Fatal("the producer does not tell that it waits")
			return nil
		}
	}
	require.ErrorIs(t, next().(client.ProducerStalled).Err, wire.CodeDiskFull)
	require.Equal(t, "removed topic \"large\"\n", must(t, sh, "topic", "rm", "large"), "deleting goes on")
	for _, ticket := range tickets {
		_, err := ticket.Wait(ctx)
		require.NoError(t, err, "writing resumes")
	}
	require.Equal(t, client.ProducerResumed{Destination: "small"}, next())
	must(t, at(broker.address, "after\n"), "produce", "small")
}

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/bench"
)

const (
	// embeddedStartTimeout bounds the start of an embedded broker.
	embeddedStartTimeout = 20 * time.Second
	// embeddedStopTimeout bounds its clean stop; then it is killed.
	embeddedStopTimeout = 5 * time.Second
	// restartStopTimeout bounds a clean stop whose end matters: beyond what the broker
	// allows itself.
	restartStopTimeout = shutdownTimeout + 5*time.Second
	// embeddedLogBytes is how much of its log is kept to explain a failure.
	embeddedLogBytes = 4 << 10
)

// embedded is a broker or a floor that bench started: this same binary as a child
// process, on free ports and a temporary directory, so that the CPU time of
// broker and load generator can be told apart.
type embedded struct {
	what    string // for errors
	args    []string
	address string // of clients
	http    string // of metrics; empty: none
	command *exec.Cmd
	stdin   io.Closer // closing it stops the child, also when this process dies
	dir     string
	exited  chan struct{} // closed when the child has ended and its log was read

	mu   sync.Mutex
	tail []byte // the end of its log
}

// startEmbedded starts a broker with a data directory below dir and waits until
// it is ready.
func (a *app) startEmbedded(ctx context.Context, dir string) (*embedded, error) {
	return a.startChild(ctx, "embedded broker", dir, embeddedArgs)
}

func embeddedArgs(data string) []string {
	return []string{
		"serve", "--data", data, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
		"--log-level", "warn", "--log-format", "text", "--stop-with-stdin",
	}
}

// startCluster starts a cluster of brokers for a workload; what it uses is theirs
// together.
func (a *app) startCluster(ctx context.Context, l bench.Launch) (*bench.Running, error) {
	var nodes []*embedded
	stop := func() error {
		var failed error
		for _, n := range nodes {
			failed = errors.Join(failed, n.stop())
		}
		return failed
	}
	for i := range l.Nodes {
		n, err := a.startChild(ctx, fmt.Sprintf("embedded broker %d", i+1), l.Dir, func(data string) []string {
			args := append(embeddedArgs(data), "--node-id", fmt.Sprint(i+1), "--peer-listen", "127.0.0.1:0")
			if i > 0 {
				args = append(args, "--join", nodes[0].address)
			}
			return args
		})
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		nodes = append(nodes, n)
	}
	var targets []bench.Target
	for _, n := range nodes {
		targets = append(targets, n.target())
	}
	return &bench.Running{Target: bench.Together(targets), Stop: stop}, nil
}

// startChild starts this binary with the given arguments, which get a directory
// of their own below dir, and waits for its ready line.
func (a *app) startChild(ctx context.Context, what, dir string, args func(data string) []string) (*embedded, error) {
	data, err := os.MkdirTemp(dir, "lockstep-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the %s: %w; choose another with --embedded-dir", what, err)
	}
	b := &embedded{what: what, args: args(data), dir: data}
	if err := a.startProcess(ctx, b); err != nil {
		return nil, errors.Join(err, b.stop())
	}
	return b, nil
}

// startProcess starts the child's process, of which none runs, and waits for its
// ready line. After an error the process may run.
func (a *app) startProcess(ctx context.Context, b *embedded) error {
	executable, err := a.executable()
	if err != nil {
		return fmt.Errorf("find this binary to start the %s: %w", b.what, err)
	}
	command := exec.Command(executable, b.args...)
	command.Env = withoutOwnVariables(os.Environ())
	stdin, err := command.StdinPipe()
	if err != nil {
		return err
	}
	stderr, err := command.StderrPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start the %s: %w", b.what, err)
	}
	b.command, b.stdin, b.exited = command, stdin, make(chan struct{})
	ready := make(chan []string, 1)
	go b.watch(stderr, ready)

	timeout := time.NewTimer(embeddedStartTimeout)
	defer timeout.Stop()
	select {
	case addresses := <-ready:
		b.address, b.http = addresses[0], addresses[1]
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.exited:
		return fmt.Errorf("the %s ended at its start: %s", b.what, b.log())
	case <-timeout.C:
		return fmt.Errorf("the %s was not ready within %s: %s", b.what, embeddedStartTimeout, b.log())
	}
}

// restart ends the process, with SIGKILL or cleanly, which it must do in time, and
// starts another on the same directory, at another address. It returns when that
// was started, once it is ready.
func (a *app) restart(ctx context.Context, b *embedded, kill bool) (started time.Time, err error) {
	if kill {
		_ = b.command.Process.Kill()
		<-b.exited
	} else if !b.end(restartStopTimeout) {
		return started, fmt.Errorf("the %s did not stop within %s: %s", b.what, restartStopTimeout, b.log())
	} else if !b.command.ProcessState.Success() {
		return started, fmt.Errorf("the %s did not stop cleanly: %s: %s", b.what, b.command.ProcessState, b.log())
	}
	started = time.Now()
	return started, a.startProcess(ctx, b)
}

// withoutOwnVariables drops LOCKSTEP_*: the embedded broker is set up by flags only.
func withoutOwnVariables(environment []string) []string {
	var kept []string
	for _, e := range environment {
		if !strings.HasPrefix(e, "LOCKSTEP_") || strings.HasPrefix(e, childVariable+"=") {
			kept = append(kept, e)
		}
	}
	return kept
}

// childVariable makes a test binary behave like the lockstep binary; nothing
// else reads it.
const childVariable = "LOCKSTEP_TEST_MAIN"

// watch reads the child's log until its end and reports the ready line.
func (b *embedded) watch(stderr io.Reader, ready chan<- []string) {
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if m := readyPattern.FindStringSubmatch(lines.Text()); m != nil {
			ready <- m[1:]
			continue
		}
		b.mu.Lock()
		b.tail = append(append(b.tail, lines.Bytes()...), '\n')
		if len(b.tail) > embeddedLogBytes {
			b.tail = append(b.tail[:0], b.tail[len(b.tail)-embeddedLogBytes:]...)
		}
		b.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, stderr) // a line too long to scan
	_ = b.command.Wait()               // how it ended is in its log
	close(b.exited)
}

func (b *embedded) log() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.TrimSpace(string(b.tail))
}

// target is what package bench needs to load the child and to look at it.
func (b *embedded) target() bench.Target {
	pid := b.command.Process.Pid
	t := bench.Target{Servers: b.address, ServerCPU: bench.CPUOfProcess(pid),
		ServerAnonymous: bench.AnonymousOfProcess(pid), ServerResident: bench.ResidentOfProcess(pid)}
	if b.http != "" {
		t.ServerMallocs = bench.FromMetrics(b.http, bench.MetricMallocs)
	}
	return t
}

// stop ends the child, if it runs, and removes its directory.
func (b *embedded) stop() error {
	if b.command != nil {
		b.end(embeddedStopTimeout)
	}
	return os.RemoveAll(b.dir)
}

// end ends the process, by force after the timeout, and reports whether that was
// not needed.
func (b *embedded) end(after time.Duration) bool {
	_ = b.stdin.Close()
	timeout := time.NewTimer(after)
	defer timeout.Stop()
	select {
	case <-b.exited:
		return true
	case <-timeout.C:
		_ = b.command.Process.Kill()
		<-b.exited
		return false
	}
}

package fuzz

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

// startTimeout bounds how long a broker may take to start, recovery included.
const startTimeout = 60 * time.Second

// program builds the lockstep program once for all tests.
var program = sync.OnceValues(func() (string, error) {
	if name := os.Getenv(programVariable); name != "" {
		return name, nil
	}
	dir, err := os.MkdirTemp("", "lockstep-kill-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	name := filepath.Join(dir, "lockstep")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", name, module).CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return name, nil
})

// programVariable names the program to test. Without it, it is built; figures are those
// of a release build.
const programVariable = "FUZZ_PROGRAM"

// builtIn is where the binary lies, to be removed when the tests are done.
var builtIn string

// brokerProcess is a real broker on a data directory and an address that stay
// the same over its lives.
type brokerProcess struct {
	t       *testing.T
	binary  string
	role    string   // of the binary, if that is this test's
	host    string   // network namespace that it runs in; empty: the test's
	args    []string // further ones
	data    string
	address string
	command *exec.Cmd
	stdin   io.WriteCloser // the broker ends when it closes, as it does if the test dies
	ended   chan struct{}
	stderr  *tailBuffer
}

func newBroker(t *testing.T) *brokerProcess {
	t.Helper()
	name, err := program()
	require.NoError(t, err)
	b := &brokerProcess{t: t, binary: name, data: t.TempDir(), address: freeAddress(t), stderr: &tailBuffer{}}
	t.Cleanup(func() {
		b.kill()
		if t.Failed() {
			t.Logf("the end of the broker's log:\n%s", b.stderr)
		}
	})
	return b
}

// start begins a life of the broker without waiting for it to be ready.
func (b *brokerProcess) start() {
	b.t.Helper()
	line := append([]string{b.binary, "serve", "--data", b.data, "--listen", b.address, "--http", "off",
		"--min-free-bytes", "1MiB", "--log-level", "warn", "--stop-with-stdin"}, b.args...)
	if b.host != "" {
		line = append([]string{"nsenter", "--net=/run/netns/" + b.host}, line...) // not ip netns exec, which keeps a copy of all mounts
	}
	b.command = exec.Command(line[0], line[1:]...)
	if b.role != "" {
		b.command.Env = append(os.Environ(), roleVariable+"="+b.role)
	}
	var err error
	b.stdin, err = b.command.StdinPipe()
	require.NoError(b.t, err)
	b.command.Stderr = b.stderr
	require.NoError(b.t, b.command.Start())
	b.ended = make(chan struct{})
	go func() {
		_ = b.command.Wait()
		close(b.ended)
	}()
}

// kill ends the broker's life with SIGKILL.
func (b *brokerProcess) kill() {
	if b.command == nil {
		return
	}
	_ = b.command.Process.Kill()
	<-b.ended
	b.command = nil
}

// connect returns a connection once the broker answers. It reconnects by itself
// in the broker's later lives.
func (b *brokerProcess) connect() *client.Conn {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), startTimeout)
	defer cancel()
	for {
		conn, err := client.Connect(ctx, b.address, client.WithReconnectBackoff(5*time.Millisecond, 50*time.Millisecond))
		if err == nil {
			b.t.Cleanup(func() { _ = conn.Close() })
			return conn
		}
		select {
		case <-b.ended:
			require.FailNow(b.t, "the broker ended", "%v", err)
		case <-ctx.Done():
			require.FailNow(b.t, "the broker does not answer", "%v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ready waits until the broker answers on a connection from an earlier life.
func (b *brokerProcess) ready(conn *client.Conn) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), startTimeout)
	defer cancel()
	for {
		err := conn.Ping(ctx)
		if err == nil {
			return
		}
		select {
		case <-b.ended:
			require.FailNow(b.t, "the broker ended", "%v", err)
		case <-ctx.Done():
			require.FailNow(b.t, "the broker does not answer", "%v", err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// run runs another lockstep command against the broker.
func (b *brokerProcess) run(stdin io.Reader, stdout io.Writer, args ...string) error {
	name, err := program()
	if err != nil {
		return err
	}
	command := exec.Command(name, append(args, "--server", b.address)...)
	command.Stdin, command.Stdout = stdin, stdout
	var stderr bytes.Buffer
	command.Stderr = &stderr
	if err := command.Run(); err != nil {
		return errors.Join(err, errors.New(stderr.String()))
	}
	return nil
}

// tailBuffer keeps the newest lines that are written to it.
type tailBuffer struct {
	mu    sync.Mutex
	lines []string
	rest  []byte
}

const tailLines = 60

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rest = append(b.rest, p...)
	s := bufio.NewScanner(bytes.NewReader(b.rest))
	complete := bytes.LastIndexByte(b.rest, '\n') + 1
	for n := 0; n < complete && s.Scan(); n += len(s.Bytes()) + 1 {
		b.lines = append(b.lines, s.Text())
	}
	b.rest = append([]byte(nil), b.rest[complete:]...)
	b.lines = b.lines[max(0, len(b.lines)-tailLines):]
	return len(p), nil
}

func (b *tailBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.lines, "\n")
}

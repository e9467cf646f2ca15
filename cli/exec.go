package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// killAfter is how long a command that is told to end may take until it is killed.
	killAfter = 3 * time.Second
	// exitNotRunnable and exitNotFound are what a shell says of a command that it cannot
	// start.
	exitNotRunnable = 126
	exitNotFound    = 127
)

// errCommand ends consume: the command will not start for any record.
var errCommand = errors.New("the command of --exec cannot be started")

// runCommands runs the command of --exec for each record.
func (r *consumeRun) runCommands(ctx context.Context, consumer *client.Consumer) error {
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r.member.stdout, r.member.stderr = shared(r.app.stdout), shared(r.app.stderr)
	guard, err := newGuard()
	if err != nil {
		return err
	}
	defer guard.close()
	go watchReader(r.member.stdout, running.Done(), func() { stop(errOutputClosed) })
	var begun, done atomic.Int64
	begun.Store(r.taken)
	done.Store(r.taken)
	defer func() { r.taken = done.Load() }()
	err = consumer.Run(running, func(ctx context.Context, d *client.Delivery) error {
		if n := begun.Add(1); r.limit > 0 && n > r.limit {
			<-ctx.Done() // given back before the others have ended, it would come again
			return d.Release()
		}
		err := runShell(ctx, guard, r.member.exec, d, r.member.stdout, r.member.stderr)
		switch {
		case err != nil && readerGone(r.member.stdout):
			stop(errOutputClosed) // no fault of the record
			return d.Release()
		case errors.Is(err, errCommand):
			stop(fmt.Errorf("%s/%d@%d: %w; it is given back uncounted, and ends whoever gets it next; if the command fails for this record alone, pass it over with: lockstep key skip %s %s --partition %d --offset %d",
				r.destination, d.Partition, d.Offset, err, shellWord(r.destination), shellWord(r.member.group), d.Partition, d.Offset))
		case err != nil && running.Err() == nil && ctx.Err() != nil && !errors.Is(context.Cause(ctx), client.ErrFenced): // of those OnEvent tells
			fmt.Fprintf(r.app.stderr, "lockstep: %s/%d@%d was taken back before its command had ended, which was told to end: %s; %s\n",
				r.destination, d.Partition, d.Offset, oneLine(err.Error()), r.whyTakenBack(context.Cause(ctx)))
		case err != nil && ctx.Err() == nil:
			fmt.Fprintf(r.app.stderr, "lockstep: %s/%d@%d failed, attempt %d: %s\n", r.destination, d.Partition, d.Offset, d.Attempts+1, oneLine(err.Error()))
		}
		if r.limit > 0 && done.Add(1) == r.limit {
			defer stop(nil)
		}
		switch {
		case err == nil:
			return d.Ack()
		case ctx.Err() == nil && !errors.Is(err, errCommand):
			return d.Nack()
		}
		return err
	}, client.Workers(r.member.parallel))
	if cause := context.Cause(running); errors.Is(cause, errCommand) || errors.Is(cause, errOutputClosed) {
		return cause
	}
	if r.limit > 0 && done.Load() >= r.limit {
		return nil
	}
	return err
}

// whyTakenBack says why the broker wants a record back, and what to do if it need not be so.
func (r *consumeRun) whyTakenBack(cause error) string {
	var revoked *client.RevokedError
	if errors.As(cause, &revoked) {
		switch revoked.Reason {
		case wire.ReasonSeek:
			return "the group is moved to another place"
		case wire.ReasonSettings:
			return "the group is changed, and its records come again under the new rules"
		case wire.ReasonPark:
			return "somebody parks, skips or repairs a record"
		case wire.ReasonRebinding, wire.ReasonActive:
			return "its partition goes to another member"
		}
	}
	if code := wire.CodeOf(cause); code == wire.CodeGroupGone || code == wire.CodeDestinationGone {
		return oneLine(code.Info().Description)
	}
	return fmt.Sprintf("if the command needs more than the group's ack wait: lockstep group alter %s %s --ack-wait TIME", shellWord(r.destination), shellWord(r.member.group))
}

// shared is a writer that commands may write to at the same time: a file as it is, which
// they inherit.
func shared(w io.Writer) io.Writer {
	if file, ok := w.(*os.File); ok {
		return file
	}
	return &sharedWriter{w: w}
}

type sharedWriter struct {
	mu   sync.Mutex
	w    io.Writer
	gone bool // nobody reads what is written
}

func (s *sharedWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.w.Write(p)
	s.gone = s.gone || errors.Is(outputError(err), errOutputClosed)
	return n, err
}

func (s *sharedWriter) readerGone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

// runShell runs a command for one record. When ctx ends, the command and what it has started
// are told to end, and killed if they do not. What it has started and left behind is killed
// when it ends: the next record of its key may begin. Its group dies with this process: guard.
// What it prints is passed on as it comes, and what it does not read is dropped.
func runShell(ctx context.Context, guard *guard, command string, d *client.Delivery, stdout, stderr io.Writer) error {
	// Pdeathsig is for the instant before guard knows the group. The kernel sends it when the
	// thread ends that has started the command.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	c.Env = append(os.Environ(), recordEnvironment(d)...)
	c.Stdin = bytes.NewReader(d.Value)
	c.Stdout, c.Stderr = stdout, stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var kill *time.Timer
	c.Cancel = func() error {
		group := -c.Process.Pid
		kill = time.AfterFunc(killAfter, func() { syscall.Kill(group, syscall.SIGKILL) })
		return syscall.Kill(group, syscall.SIGTERM)
	}
	c.WaitDelay = killAfter + time.Second
	err := c.Start()
	if err == nil {
		guard.add(c.Process.Pid)
		awaitEnd(c.Process.Pid)
		syscall.Kill(-c.Process.Pid, syscall.SIGKILL) // whatever it has left behind, and may hold its output open
		guard.remove(c.Process.Pid)
		err = c.Wait()
	}
	if kill != nil {
		kill.Stop()
	}
	var exit *exec.ExitError
	switch {
	case errors.Is(err, syscall.E2BIG):
		return fmt.Errorf("its key and headers do not fit into an environment: %w", err)
	case errors.Is(err, exec.ErrWaitDelay) && c.ProcessState.Success():
		return nil // what is in no group of ours any more holds its output open
	case errors.As(err, &exit) && (exit.ExitCode() == exitNotFound || exit.ExitCode() == exitNotRunnable):
		return fmt.Errorf("%w: %q: %w", errCommand, command, err)
	case errors.Is(err, ctx.Err()) && c.ProcessState != nil && c.ProcessState.Success():
		return nil // it was told to end, and has done its work
	case err != nil && c.Process == nil && ctx.Err() != nil:
		return err // the record was taken back before: that says nothing about the command
	case err != nil && c.Process == nil:
		return fmt.Errorf("%w: %w", errCommand, err)
	}
	return err
}

// awaitEnd waits for the end of a child and does not reap it: so its group keeps its number.
func awaitEnd(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// environmentText is a key or publisher as a variable can hold it: in base64 if it is no text or
// has a zero byte, and then the encoding says so.
func environmentText(b []byte) (text, encoding string) {
	if bytes.IndexByte(b, 0) >= 0 {
		return base64.StdEncoding.EncodeToString(b), "base64"
	}
	return textOrBase64(b)
}

// recordEnvironment is what a command is told of its record. A key or publisher that no
// environment can hold is in base64, and LOCKSTEP_KEY_ENCODING or LOCKSTEP_PUBLISHER_ENCODING says so.
func recordEnvironment(d *client.Delivery) []string {
	key, keyEncoding := environmentText(d.Key)
	headers := make([]jsonHeader, 0, len(d.Headers))
	publisher, publisherEncoding := "", ""
	for _, h := range d.Headers {
		value, encoding := textOrBase64(h.Value)
		headers = append(headers, jsonHeader{Name: h.Key, Value: value, ValueEncoding: encoding})
		if h.Key == wire.PublisherHeader {
			publisher, publisherEncoding = environmentText(h.Value)
		}
	}
	text, err := json.Marshal(headers)
	if err != nil {
		panic("headers of strings cannot fail to encode: " + err.Error())
	}
	return []string{
		"LOCKSTEP_KEY=" + key,
		"LOCKSTEP_KEY_ENCODING=" + keyEncoding,
		"LOCKSTEP_PARTITION=" + strconv.FormatUint(uint64(d.Partition), 10),
		"LOCKSTEP_OFFSET=" + strconv.FormatUint(d.Offset, 10),
		"LOCKSTEP_EPOCH=" + strconv.FormatUint(d.Epoch(), 10),
		"LOCKSTEP_DELIVERY_COUNT=" + strconv.Itoa(d.Deliveries),
		"LOCKSTEP_PUBLISHER=" + publisher,
		"LOCKSTEP_PUBLISHER_ENCODING=" + publisherEncoding,
		"LOCKSTEP_HEADERS=" + string(text),
	}
}

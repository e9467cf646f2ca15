package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// exitAgain is what a command of reply ends with to have its request tried again:
	// EX_TEMPFAIL of sysexits.h.
	exitAgain = 75
	// maxReplyBytes is how much a command of reply may print: a record with its headers.
	maxReplyBytes = wire.DefaultMaxRecordBytes - 4<<10
	// errorBytes is how much of what a command says on standard error goes to the requester.
	errorBytes = 1 << 10
)

func (a *app) replyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "reply DEST --exec COMMAND",
		SuggestFor: []string{"respond", "answer", "server"},
		Short:      "Answer the requests that come to a queue or topic with what a command prints",
		Long: `Take records as a member of a group, run a shell command for each, with the value on its standard input, and send what it
prints to whoever has sent the request. A record that wants no reply is handled all the same. The environment of the command is that of
consume --exec.

The exit code decides what becomes of the request:
  0        what was printed is the reply
  75       not now: the request is given back and tried again, here or elsewhere, after the group's backoff
  others   the requester gets an error, with the end of what was printed on standard error
A command that is told to end with reply has its request given back, whatever its exit code.

A command that is not there (126, 127) ends reply, and its request is given back. One that prints more than 1020 KiB is ended, and the
requester gets an error.

The reply is sent first and the request acknowledged then: if this member dies in between, another one handles and answers it again,
and the requester takes the first reply. Who is gone before the reply costs nothing: the reply is dropped.

An alias is followed when it comes to stand for something else: what is being answered is answered, and the requests there come next.`,
		Example: `  lockstep reply orders --exec 'tr a-z A-Z'
  lockstep reply orders --exec 'wc -c' --parallel 8 --group counters`,
		Args:              exactArgs("DEST"),
		ValidArgsFunction: a.completeDestinations(),
	}
	a.clientFlags(c)
	r := replyRun{app: a}
	flags := c.Flags()
	flags.StringVar(&r.exec, "exec", "", "the shell `command`; needed")
	flags.StringVarP(&r.group, "group", "g", client.DefaultServeGroup, "be a member of the group with this `name`")
	flags.IntVar(&r.parallel, "parallel", 1, "`commands` that run at once")
	flags.Int64VarP(&r.limit, "count", "c", 0, "stop after a `number` of replies; 0 = never")
	flags.Var(&r.ackWait, "ack-wait", "`time` that a request may be worked on, for a new group")
	withoutDefault(flags, "ack-wait")
	c.RunE = func(c *cobra.Command, args []string) error {
		r.destination = args[0]
		switch {
		case r.exec == "":
			return usagef(c, "give the command that answers: --exec COMMAND")
		case r.parallel < 1:
			return usagef(c, "flag --parallel: %d is not positive", r.parallel)
		case r.limit < 0:
			return usagef(c, "flag --count: %d is negative", r.limit)
		}
		opts := []client.ConsumerOption{client.Group(r.group), client.Prefetch(2 * r.parallel)}
		if flags.Changed("ack-wait") {
			opts = append(opts, client.AckWait(r.ackWait.value))
		}
		return r.run(c.Context(), opts)
	}
	return c
}

// replyRun is one run of reply.
type replyRun struct {
	app         *app
	destination string
	group       string
	exec        string
	parallel    int
	limit       int64
	ackWait     durationFlag
	stderr      io.Writer
	guard       *guard
	begun, done atomic.Int64 // requests that want a reply
}

func (r *replyRun) run(ctx context.Context, opts []client.ConsumerOption) error {
	conn, err := r.app.connect(ctx, r.app.sayReconnect())
	if err != nil {
		return err
	}
	defer conn.Close()
	_, words, err := r.app.find(ctx, conn, r.destination)
	if err != nil {
		return err
	}
	r.stderr = shared(r.app.stderr)
	if r.guard, err = newGuard(); err != nil {
		return err
	}
	defer r.guard.close()
	if err = r.app.follow(ctx, conn, r.destination, func() error { return r.serve(ctx, conn, opts) }); err == nil {
		return nil
	}
	return interruptedOr(ctx, &failure{doing: "reply to requests of", destination: r.destination, kind: words, err: err})
}

// serve is a member until it ends, for one thing that the destination's name stands for.
func (r *replyRun) serve(ctx context.Context, conn *client.Conn, opts []client.ConsumerOption) error {
	r.begun.Store(r.done.Load())
	consumer, err := conn.Consumer(ctx, r.destination, opts...)
	if err != nil {
		return err
	}
	running, stop := context.WithCancelCause(ctx)
	err = consumer.Run(running, func(ctx context.Context, d *client.Delivery) error { return r.handle(ctx, d, stop) }, client.Workers(r.parallel))
	if cause := context.Cause(running); errors.Is(cause, errCommand) {
		err = cause
	} else if r.limit > 0 && r.done.Load() >= r.limit {
		err = nil
	}
	stop(nil)
	leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	closeErr := consumer.Close(leaving)
	if err == nil {
		err = closeErr
	}
	return err
}

// handle answers one request, and says what becomes of it.
func (r *replyRun) handle(ctx context.Context, d *client.Delivery, stop context.CancelCauseFunc) error {
	counts := r.limit > 0 && d.WantsReply()
	if counts && r.begun.Add(1) > r.limit {
		<-ctx.Done() // given back before the others have ended, it would come again
		return d.Release()
	}
	reply, err := r.answer(ctx, d)
	switch {
	case errors.Is(err, errCommand):
		stop(fmt.Errorf("%s/%d@%d: %w; it is given back uncounted, and ends whoever gets it next", r.destination, d.Partition, d.Offset, err))
		return d.Release()
	case ctx.Err() != nil:
		return ctx.Err() // released
	case errors.Is(err, client.ErrAgain):
		if counts {
			r.begun.Add(-1)
		}
		return d.Nack()
	case err != nil:
		fmt.Fprintf(r.stderr, "lockstep: %s/%d@%d failed: %s\n", r.destination, d.Partition, d.Offset, oneLine(err.Error()))
		err = d.ReplyError(ctx, err)
	default:
		err = d.Reply(ctx, reply)
	}
	if err != nil {
		if counts {
			r.begun.Add(-1)
		}
		fmt.Fprintf(r.stderr, "lockstep: %s/%d@%d is given back: %s\n", r.destination, d.Partition, d.Offset, oneLine(err.Error()))
		return d.Nack()
	}
	if counts && r.done.Add(1) == r.limit {
		defer stop(nil)
	}
	return d.Ack()
}

// answer runs the command for a request. An error that is neither errCommand nor
// client.ErrAgain is for the requester.
func (r *replyRun) answer(ctx context.Context, d *client.Delivery) (*client.Record, error) {
	out := &bounded{most: maxReplyBytes}
	complaint := &tail{most: errorBytes}
	err := runShell(ctx, r.guard, r.exec, d, out, io.MultiWriter(r.stderr, complaint))
	var exit *exec.ExitError
	switch {
	case errors.Is(err, errCommand), ctx.Err() != nil:
		return nil, err
	case out.over:
		return nil, fmt.Errorf("the command printed more than %s", exactSize(maxReplyBytes))
	case errors.As(err, &exit) && exit.ExitCode() == exitAgain:
		return nil, client.ErrAgain
	case err != nil:
		if said := strings.TrimSpace(complaint.String()); said != "" {
			return nil, fmt.Errorf("%w: %s", err, said)
		}
		return nil, err
	}
	return &client.Record{Key: d.Key, Value: out.buffer.Bytes()}, nil
}

// errTooMuch ends the copying of what a command prints, and so the command.
var errTooMuch = errors.New("too much output")

// bounded keeps what is written to it, up to a limit.
type bounded struct {
	most   int
	buffer bytes.Buffer
	over   bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.buffer.Len()+len(p) > b.most {
		b.over = true
		return 0, errTooMuch
	}
	return b.buffer.Write(p)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	most int
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p[max(0, len(p)-t.most):]...)
	t.kept = t.kept[max(0, len(t.kept)-t.most):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(string(t.kept), "?")
}

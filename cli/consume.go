package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
)

func (a *app) consumeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "consume DEST",
		SuggestFor: []string{"subscribe", "sub", "read", "get", "cat", "tail", "receive"},
		Short:      "Print the records of a queue or topic",
		Long: `Print the records of a queue or topic, each value on a line, and wait for more.
Partitions are read side by side: order holds within each. A record made by produce from a last line without a newline ends the
output without one. An alias is followed when it comes to stand for something else: what is there comes next, from where --from
and --at say.

Without --group nothing is removed or acknowledged: every reader sees everything. With
--group the records are shared between the members of a group and acknowledged when they
are printed, or when the command of --exec has ended with exit code 0; the group is made
if there is none. Exit codes other than 0 give the record back, to be tried again after
the group's backoff, and with it, in a serial group, those of its scope.

The command of --exec gets the value on its standard input and in its environment
LOCKSTEP_KEY, _PARTITION, _OFFSET, _EPOCH (the fencing token: a later holder of the same
key has a higher one), _DELIVERY_COUNT, _PUBLISHER and _HEADERS, a list in JSON.

Verbs of --format:
  %p partition  %o offset  %e epoch  %k key  %v value  %h headers as name=value
  %t timestamp as RFC 3339  %T timestamp in ms since 1970  %% percent sign
  \n newline  \t tab  \r carriage return  \0 zero byte  \\ backslash  \xNN any byte

-o json prints one object a line. Keys and values that are not UTF-8 are in base64,
and key_encoding or value_encoding says so. Of a member of a group they have lease_epoch,
which is LOCKSTEP_EPOCH, deliveries and attempts.`,
		Example: `  lockstep consume orders --from earliest -e
  lockstep consume orders -f '%p %o %k %v\n' -c 10
  lockstep consume events --at '15m ago' -o json
  lockstep consume orders --group billing --mode serial --scope key --exec './charge.sh' --parallel 8`,
		Args:              exactArgs("DEST"),
		ValidArgsFunction: a.completeDestinations(),
	}
	a.clientFlags(c)
	r := consumeRun{app: a, from: newChoice("earliest", "earliest", "latest"), output: newChoice("text", "text", "json")}
	flags := c.Flags()
	flags.Var(r.from, "from", "where to start")
	flags.BoolVarP(&r.exit, "exit", "e", false, "stop after the last record that is there now")
	flags.Int64VarP(&r.limit, "count", "c", 0, "stop after a `number` of records, with --exec of attempts; 0 = never")
	partitions := flags.UintSlice("partition", nil, "read only the partition with this `number`; may be repeated; without it all are read")
	flags.Uint64Var(&r.offset, "offset", 0, "start at the record with this `number`; needs one --partition unless there is only one")
	withoutDefault(flags, "offset")
	at := flags.String("at", "", "start at the first record appended at or after a `time`: RFC 3339, a local date, or a distance like '15m ago'")
	formatText := flags.StringP("format", "f", "", "print every record by a `format`; without it each value and a newline")
	flags.VarP(r.output, "output", "o", "how to print")
	r.member.add(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		r.destination = args[0]
		starts := 0
		for _, name := range []string{"from", "offset", "at"} {
			if flags.Changed(name) {
				starts++
			}
		}
		if starts > 1 {
			return usagef(c, "--from, --offset and --at say where to start: give only one of them")
		}
		if err := r.member.check(c); err != nil {
			return err
		}
		if r.limit < 0 {
			return usagef(c, "flag --count: %d is negative", r.limit)
		}
		if flags.Changed("format") && r.output.value == "json" {
			return usagef(c, "--format and -o json exclude each other")
		}
		r.byOffset = flags.Changed("offset")
		for _, n := range *partitions {
			if n > 1<<32-1 {
				return usagef(c, "flag --partition: %d is no partition number", n)
			}
			r.partitions = append(r.partitions, uint32(n))
		}
		slices.Sort(r.partitions)
		r.partitions = slices.Compact(r.partitions)
		if r.byOffset && len(r.partitions) > 1 {
			return usagef(c, "--offset counts within one partition; give one --partition")
		}
		if flags.Changed("at") {
			t, err := parseTime(*at, a.now())
			if err != nil {
				return usagef(c, "flag --at: %v", err)
			}
			r.at = t
		}
		if flags.Changed("format") {
			f, err := parseFormat(*formatText)
			if err != nil {
				return usagef(c, "flag --format: %v", err)
			}
			r.format = f
		}
		if r.member.group != "" {
			return r.runMember(c)
		}
		return r.run(c)
	}
	return c
}

// consumeRun is one run of consume.
type consumeRun struct {
	app         *app
	destination string
	from        *choiceFlag
	exit        bool
	limit       int64
	taken       int64 // records that are printed
	partitions  []uint32
	byOffset    bool
	offset      uint64
	at          time.Time
	member      groupFlags
	format      format // nil: values with newlines
	output      *choiceFlag
}

func (r *consumeRun) run(c *cobra.Command) error {
	ctx := c.Context()
	waiting := r.app.newWaiting(r.destination)
	conn, err := r.app.connect(ctx, waiting.events())
	if err != nil {
		return err
	}
	defer conn.Close()
	d, words, err := r.app.find(ctx, conn, r.destination)
	if err != nil {
		return err
	}
	if r.byOffset && len(r.partitions) == 0 && len(d.Partitions) != 1 {
		return usagef(c, "--offset counts within one partition and %s %q has %d; give one --partition", words.noun, d.Name, len(d.Partitions))
	}
	for _, n := range r.partitions {
		if err := hasPartition(d, words, n); err != nil {
			return err
		}
	}
	if err = r.copy(ctx, conn, waiting); err == nil || errors.Is(err, errOutputClosed) {
		return err
	}
	return interruptedOr(ctx, &failure{doing: "consume", destination: r.destination, kind: words, err: err})
}

func (r *consumeRun) options() []client.ReaderOption {
	var opts []client.ReaderOption
	switch {
	case r.byOffset:
		opts = append(opts, client.FromOffset(r.offset))
	case !r.at.IsZero():
		opts = append(opts, client.FromTime(r.at))
	case r.from.value == "latest":
		opts = append(opts, client.FromLatest())
	default:
		opts = append(opts, client.FromEarliest())
	}
	if len(r.partitions) > 0 {
		opts = append(opts, client.Partitions(r.partitions...))
	}
	if r.exit {
		opts = append(opts, client.StopAtEnd())
	}
	return opts
}

// copy prints records until the end, the limit, an error, or a closed stdout.
func (r *consumeRun) copy(ctx context.Context, conn *client.Conn, waiting *waiting) error {
	out := newOutputQueue(r.app.stdout)
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	// Without these, a quiet partition would keep the command alive after the
	// reader of its output has gone.
	go out.watch(cancel)
	go func() {
		select {
		case <-out.failed():
			cancel()
		case <-reading.Done():
		}
	}()
	p, begun := newPrinter(r.format, r.output.value == "json"), r.app.now()
	err := r.app.follow(reading, conn, r.destination, func() error {
		err := r.read(reading, conn, waiting, p, out)
		if errors.Is(err, client.ErrAliasMoved) {
			return r.elsewhere(err, begun)
		}
		return err
	})
	if closeErr := out.close(); closeErr != nil {
		return closeErr
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// elsewhere says where to begin at what an alias stands for from now on. An offset says
// nothing there, and "latest" would leave out what was sent there before the news was here.
func (r *consumeRun) elsewhere(moved error, begun time.Time) error {
	if r.byOffset {
		return fmt.Errorf("%v; offsets of the one say nothing about the other: name the destination, or begin anew there with: lockstep consume %s --from earliest", moved, shellWord(r.destination))
	}
	if r.at.IsZero() && r.from.value == "latest" {
		r.at = begun
	}
	return moved
}

// read prints what comes from one thing that the destination's name stands for.
func (r *consumeRun) read(ctx context.Context, conn *client.Conn, waiting *waiting, p *printer, out *outputQueue) error {
	var reader *client.Reader
	err := waiting.begin(func() (err error) {
		reader, err = conn.Reader(ctx, r.destination, r.options()...)
		return err
	})
	if err != nil {
		return err
	}
	defer reader.Close()
	for ; r.limit == 0 || r.taken < r.limit; r.taken++ {
		record, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		if err := out.append(func(dst []byte) []byte { return p.append(dst, record, nil) }); err != nil {
			return err
		}
	}
	return nil
}

// printer turns records into output.
type printer struct {
	format       format
	json         bool
	buffer       bytes.Buffer // one JSON line
	owingNewline bool         // the last value ended without its newline
}

func newPrinter(f format, json bool) *printer { return &printer{format: f, json: json} }

// append writes one record to dst; in JSON with how it stands in a group, unless that is nil.
func (p *printer) append(dst []byte, r *client.Record, standing *standingJSON) []byte {
	switch {
	case p.json:
		p.buffer.Reset()
		if err := appendJSON(&p.buffer, r, standing); err != nil {
			panic("a record of strings and numbers cannot fail to encode: " + err.Error())
		}
		return append(dst, p.buffer.Bytes()...)
	case p.format != nil:
		return p.format.append(dst, r)
	}
	if p.owingNewline {
		dst = append(dst, '\n')
	}
	dst = append(dst, r.Value...)
	p.owingNewline = withoutNewline(r)
	if !p.owingNewline {
		dst = append(dst, '\n')
	}
	return dst
}

// withoutNewline reports whether produce made the record from a last line
// without a newline.
func withoutNewline(r *client.Record) bool {
	for _, h := range r.Headers {
		if h.Key == noNewlineHeader && string(h.Value) == noNewlineValue {
			return true
		}
	}
	return false
}

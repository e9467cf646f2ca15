package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// noNewlineHeader marks a record made from a last line that had no newline at
// its end. consume ends its output without a newline after such a record, so
// that a file comes back byte for byte.
const (
	noNewlineHeader = "lockstep-newline"
	noNewlineValue  = "none"
)

// produceBufferBytes bounds the records that were read and not yet acknowledged,
// in bytes. When it is reached, reading waits.
const produceBufferBytes = 16 << 20

// stoppedFlushTimeout bounds the flush after a record has failed.
const stoppedFlushTimeout = 10 * time.Second

// interruptedFlushTimeout bounds the flush from SIGINT or SIGTERM on, whatever it
// waits for: a broker that is away or a full disk must not keep the command.
const interruptedFlushTimeout = 1500 * time.Millisecond

func (a *app) produceCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "produce DEST [FILE...]",
		SuggestFor: []string{"publish", "pub", "send", "put", "write"},
		Short:      "Send lines of stdin, or files, as records",
		Long: `Send each line of stdin as a record to a queue or topic. The newline is not part
of the record. A last line without a newline is sent with the header
` + noNewlineHeader + `: ` + noNewlineValue + `, so that consume can give the input back byte for byte.

Lines without a key are spread over the partitions: consumers see those of one partition
in the order of the input, and nothing is said about the order between partitions. With
--in-order all lines go to one partition, which is chosen once. Lines with a key keep the
order of their key.

With --file each file is one record, as it is. More files may follow DEST.

Lines are read as they are sent, at most 8 MiB each. A broker that is away or has a
full disk is waited for, at most --timeout for a record. The first record that fails
ends the command with its line, whether it was stored ("not sent": it is in no
partition, "outcome unknown": it may be), and the command that goes on from there.
SIGINT stops reading and waits for what was read, 1.5 s at most.`,
		Example: `  lockstep produce orders < access.log
  printf 'k1:first\nk2:second\n' | lockstep produce orders -K :
  lockstep produce orders --file invoice-1.pdf invoice-2.pdf -H type=application/pdf`,
		ValidArgsFunction: a.completeDestinations(),
		Args: func(c *cobra.Command, args []string) error {
			return exactArgs("DEST")(c, args[:min(len(args), 1)])
		},
	}
	a.clientFlags(c)
	p := produceRun{app: a, codec: newChoice("none", "none", "snappy", "zstd"), acks: newChoice("quorum", "quorum", "leader", "none"),
		timeout: durationFlag{value: 30 * time.Second}}
	flags := c.Flags()
	flags.StringVarP(&p.keyDelimiter, "key-delimiter", "K", "", "`text` between key and value of a line; every line must have it")
	flags.StringArrayVarP(&p.files, "file", "F", nil, "send a `file` as one record; may be repeated")
	flags.StringArrayVarP(&p.headerFlags, "header", "H", nil, "header for every record, as `name=value`; may be repeated")
	flags.Uint32Var(&p.partition, "partition", 0, "send to one partition, a `number`; without it the key or the broker's load decides")
	withoutDefault(flags, "partition")
	flags.StringVar(&p.publisher, "publisher", "", "publish as a `name`: its records go to one partition and keep their order, also for groups with --scope publisher")
	flags.StringVar(&p.name, "name", "", "write under a `name` that one producer has at a time: of who had it before nothing more is stored")
	flags.BoolVar(&p.inOrder, "in-order", false, "send all records to one partition, whichever, so that they are read in the order of the input")
	flags.Var(p.acks, "acks", "what an acknowledgement waits for: a quorum, the leader's memory, or nothing")
	flags.Var(p.codec, "compression", "compression of batches")
	flags.Var(&p.linger, "linger", "wait a `duration` for more records before a batch is sent; 0 = only while others are on their way")
	flags.Var(&p.timeout, "timeout", "give a record up after a `duration`")
	c.RunE = func(c *cobra.Command, args []string) error {
		p.destination = args[0]
		p.files = append(p.files, args[1:]...)
		if len(args) > 1 && !c.Flags().Changed("file") {
			return usagef(c, "%q is an argument too many; to send files put --file before them: lockstep produce %s --file %s",
				args[1], shellWord(args[0]), shellWord(args[1]))
		}
		if p.keyDelimiter == "" && c.Flags().Changed("key-delimiter") {
			return usagef(c, "flag --key-delimiter: the text is empty; write one, as in -K :")
		}
		if p.inOrder && (p.keyDelimiter != "" || c.Flags().Changed("partition")) {
			return usagef(c, "--in-order chooses a partition; it does not go with --partition or --key-delimiter, which do that too")
		}
		if p.keyDelimiter != "" && len(p.files) > 0 {
			return usagef(c, "--key-delimiter splits lines and does not go with --file")
		}
		for _, h := range p.headerFlags {
			name, value, found := strings.Cut(h, "=")
			if !found || name == "" {
				return usagef(c, "flag --header: %q is not name=value", h)
			}
			p.headers = append(p.headers, client.Header{Key: name, Value: []byte(value)})
		}
		if c.Flags().Changed("name") {
			var bad *wire.Error
			if errors.As(wire.ValidateName(p.name), &bad) {
				return usagef(c, "flag --name: %s", bad.Detail)
			}
		}
		p.fixed = c.Flags().Changed("partition")
		if p.timeout.value < time.Millisecond {
			return usagef(c, "flag --timeout: %s is too short", p.timeout.String())
		}
		p.command = a.commandOf(c, p.destination)
		return p.run(c.Context())
	}
	return c
}

// produceRun is one run of produce.
type produceRun struct {
	app          *app
	destination  string
	words        destinationWords
	keyDelimiter string
	files        []string
	headerFlags  []string
	headers      []client.Header
	partition    uint32
	fixed        bool
	inOrder      bool
	publisher    string
	name         string // of the producer
	acks, codec  *choiceFlag
	linger       durationFlag
	timeout      durationFlag
	command      string // this one again, without its files
	typed        bool   // lines come from a terminal

	bar          *progressBar
	producer     *client.Producer
	acknowledged atomic.Int64
	bytes        atomic.Int64 // of keys and values of acknowledged records
	unknown      atomic.Int64 // records that may be stored, or are without having been acknowledged

	mu      sync.Mutex
	stopped bool         // no record is sent any more
	failed  *recordError // the earliest that failed
	cancel  context.CancelFunc
}

// recordError is a record that failed, or a line or file that is no record.
type recordError struct {
	number int64 // of the line or file, from 1
	err    error
	text   string // says it all; empty: err is the client's
}

func (e *recordError) Error() string { return e.text }

func (e *recordError) Unwrap() error { return e.err }

func (p *produceRun) run(ctx context.Context) error {
	a := p.app
	if err := checkFiles(p.files); err != nil {
		return err
	}
	conn, err := a.connect(ctx, p.sayTrouble())
	if err != nil {
		return err
	}
	defer conn.Close()
	var found client.Destination
	if wire.IsTemporary(p.destination) {
		p.words.noun = "temporary queue"
	} else if found, p.words, err = a.find(ctx, conn, p.destination); err != nil {
		return err
	}
	opts := []client.ProducerOption{
		client.Acks(ackLevel(p.acks.value)), client.Compression(codec(p.codec.value)),
		client.Publisher(p.publisher), client.Linger(p.linger.value), client.DeliveryTimeout(p.timeout.value), client.MaxBufferedBytes(produceBufferBytes),
	}
	if p.fixed && found.Name == "" {
		return fmt.Errorf("temporary queue %q has no partitions; leave out --partition", p.destination)
	} else if p.fixed {
		if err := hasPartition(found, p.words, p.partition); err != nil {
			return err
		}
		opts = append(opts, client.Partition(p.partition))
	}
	if p.inOrder {
		opts = append(opts, client.Affinity(client.PerProducer))
	}
	if p.name != "" {
		opts = append(opts, client.ProducerName(p.name))
	}
	opening, cancel := context.WithTimeout(ctx, p.timeout.value)
	defer cancel()
	if p.producer, err = conn.Producer(opening, p.destination, opts...); err != nil {
		if opening.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w after %v: the producer could not be opened: %v", client.ErrDeliveryTimeout, p.timeout.value, err)
		}
		if errors.Is(err, client.ErrFenced) {
			return errors.New(p.fenced())
		}
		return interruptedOr(ctx, &failure{doing: "produce to", destination: p.destination, kind: p.words, err: err})
	}

	screen := a.stderr
	if p.typed = len(p.files) == 0 && isTerminal(a.stdin); p.typed {
		fmt.Fprintf(a.stderr, "lockstep: each line typed is a record for %s %q; Ctrl-D ends\n", p.words.noun, p.destination)
		screen = io.Discard // a bar would be drawn over what is typed
	}
	p.bar = startProgress(screen, "produce "+p.destination, p.inputBytes(), true, quietWithoutTerminal)
	defer p.bar.finish()
	started := time.Now()
	err = p.send(ctx)
	if closeErr := p.flush(ctx); err == nil {
		err = closeErr
	}
	elapsed := time.Since(started)
	p.bar.finish()

	p.mu.Lock()
	failed := p.failed
	p.mu.Unlock()
	if failed != nil {
		err = p.explain(failed)
		if errors.Is(failed.err, client.ErrClosed) && ctx.Err() != nil {
			fmt.Fprintf(a.stderr, "lockstep: %v\n", err)
			return interruptedOr(ctx, err)
		}
	} else if bad := (*recordError)(nil); errors.As(err, &bad) {
		err = fmt.Errorf("%s%s", bad.text, p.goOn(bad.number))
	}
	if n := p.acknowledged.Load(); err == nil {
		p.summary(elapsed, "")
	} else if errors.Is(err, errInterrupted) && n > 0 {
		p.summary(elapsed, p.goOn(n+1))
	}
	return err
}

// checkFiles finds out before anything is sent whether all files can be.
func checkFiles(names []string) error {
	for _, name := range names {
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("file %s does not exist; check its name, nothing was sent", name)
		case err != nil:
			return fmt.Errorf("file %s: %w; nothing was sent", name, cutPath(err))
		case info.IsDir():
			return fmt.Errorf("%s is a directory; name the files in it, as in --file %s/*; nothing was sent", name, strings.TrimRight(name, "/"))
		case info.Mode().IsRegular() && info.Size() > maxLineBytes:
			return fmt.Errorf("file %s has %s bytes, above %s, the largest record; split it, nothing was sent", name, formatCount(info.Size()), formatSize(maxLineBytes))
		}
	}
	return nil
}

// cutPath is the reason in an error of package os, without operation and path.
func cutPath(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// commandOf is the command line of a run, for pasting, without its files.
func (a *app) commandOf(c *cobra.Command, destination string) string {
	text := c.CommandPath() + " " + shellWord(destination)
	c.Flags().Visit(func(f *pflag.Flag) {
		if value, found := a.lookupEnv(envOf(f)); f.Name == "file" || found && value == f.Value.String() {
			return // the environment stays
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		if f.NoOptDefVal != "" { // one that needs no value takes it behind = only
			text += " --" + f.Name
			if value := f.Value.String(); value != f.NoOptDefVal {
				text += "=" + shellWord(value)
			}
			return
		}
		for _, value := range values {
			text += " --" + f.Name + " " + shellWord(value)
		}
	})
	return text
}

// goOn says what is stored and how to continue with line or file number next. It
// is called when every record has its outcome: those before next are stored.
func (p *produceRun) goOn(next int64) string {
	if p.acks.value == "none" || p.typed {
		return "" // nobody knows; or there is nothing to cut
	}
	unit, command := "line", fmt.Sprintf("tail -n +%d FILE | %s", next, p.command)
	if len(p.files) > 0 {
		unit, command = "file", p.command+" --file"
		for _, name := range p.files[next-1:] {
			command += " " + shellWord(name)
		}
	}
	// Other partitions do not wait for the one that failed.
	later := p.acknowledged.Load() - (next - 1)
	var text string
	switch {
	case next == 1 && later == 0 && p.unknown.Load() == 0:
		return "; nothing is stored"
	case next == 1:
	case next == 2:
		text = fmt.Sprintf("; %s 1 is stored", unit)
	default:
		text = fmt.Sprintf("; %ss 1 to %d are stored", unit, next-1)
	}
	if later > 0 {
		text += fmt.Sprintf("; %s behind it are stored in other partitions", plural(later, unit))
	}
	text += "; continue with: " + command
	if twice := later + p.unknown.Load(); twice > 0 {
		text += fmt.Sprintf(" (which may store %s twice)", plural(twice, unit))
	}
	return text
}

// sayTrouble tells on stderr when the connection is lost or a partition takes no
// records, and when that is over, so that a command that waits does not look dead.
func (p *produceRun) sayTrouble() client.Option {
	connection := p.app.reconnectSayer()
	stalled := 0 // partitions
	return client.WithEvents(func(e client.Event) {
		switch e := e.(type) {
		case client.ProducerStalled:
			if stalled++; stalled == 1 {
				reason := (&failure{err: e.Err}).text(wire.CodeOf(e.Err))
				fmt.Fprintf(p.app.stderr, "lockstep: %s %q, partition %d: %s; waiting, at most %s for a record (--timeout)\n",
					p.words.noun, p.destination, e.Partition, oneLine(reason), p.timeout.String())
			}
		case client.ProducerResumed:
			if stalled--; stalled == 0 {
				fmt.Fprintf(p.app.stderr, "lockstep: %s %q takes records again\n", p.words.noun, p.destination)
			}
		default:
			connection(e)
		}
	})
}

// send reads the input in its own goroutine, because a read from a terminal or a
// pipe cannot be interrupted, and returns when it has ended or ctx has.
func (p *produceRun) send(ctx context.Context) error {
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.cancel = cancel
	p.mu.Unlock()
	ended := make(chan error, 1)
	go func() {
		if len(p.files) > 0 {
			ended <- p.sendFiles(sending)
		} else {
			ended <- p.sendLines(sending)
		}
	}()
	select {
	case err := <-ended:
		return interruptedOr(ctx, err)
	case <-sending.Done():
	}
	// The reader may hang in its read for ever; it can only not send any more.
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	if ctx.Err() != nil {
		return interruptedOr(ctx, context.Cause(ctx))
	}
	return nil
}

// flush waits for everything that was sent; after interrupted is done, not for long.
func (p *produceRun) flush(interrupted context.Context) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(interrupted))
	defer cancel()
	limit := p.timeout.value
	if p.isStopped() {
		limit = min(limit, stoppedFlushTimeout)
	}
	timer := time.AfterFunc(limit+limit/8+time.Second, cancel) // the producer may be so late
	defer timer.Stop()
	defer context.AfterFunc(interrupted, func() { timer.Reset(interruptedFlushTimeout) })()
	return p.producer.Close(ctx)
}

func (p *produceRun) isStopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped
}

// inputBytes is the size of the input if it can be known, else 0.
func (p *produceRun) inputBytes() int64 {
	var total int64
	for _, name := range p.files {
		if info, err := os.Stat(name); err == nil {
			total += info.Size()
		}
	}
	if f, ok := p.app.stdin.(*os.File); ok && len(p.files) == 0 {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			total = info.Size()
		}
	}
	return total
}

func (p *produceRun) sendLines(ctx context.Context) error {
	lines := newLineReader(p.app.stdin)
	delimiter := []byte(p.keyDelimiter)
	withoutNewline := append(p.headers[:len(p.headers):len(p.headers)], client.Header{Key: noNewlineHeader, Value: []byte(noNewlineValue)})
	var record client.Record
	for {
		line, newline, err := lines.next()
		number := lines.count
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, errLineTooLong) {
			return &recordError{number + 1, err, fmt.Sprintf("line %d of stdin is %v; is the input text?", number+1, err)}
		}
		if err != nil {
			return &recordError{number + 1, err, fmt.Sprintf("read line %d of stdin: %v", number+1, cutPath(err))}
		}
		record = client.Record{Value: line, Headers: p.headers}
		if len(delimiter) > 0 {
			key, value, found := bytes.Cut(line, delimiter)
			if !found {
				return &recordError{number, nil, fmt.Sprintf("line %d of stdin has no %q between key and value; check -K, or mend the line", number, p.keyDelimiter)}
			}
			record.Key, record.Value = key, value
		}
		if !newline {
			record.Headers = withoutNewline
		}
		if !p.sendOne(ctx, &record, number) {
			return nil
		}
		p.bar.set(lines.bytes)
	}
}

func (p *produceRun) sendFiles(ctx context.Context) error {
	for i, name := range p.files {
		number := int64(i) + 1
		value, err := readRecordFile(name)
		if err != nil {
			return &recordError{number, err, fmt.Sprintf("file %s: %v", name, cutPath(err))}
		}
		record := client.Record{Value: value, Headers: p.headers}
		if !p.sendOne(ctx, &record, number) {
			return nil
		}
		p.bar.add(int64(len(value)))
	}
	return nil
}

// readRecordFile reads a file that is to become one record.
func readRecordFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	value, err := io.ReadAll(io.LimitReader(f, maxLineBytes+1))
	if err != nil {
		return nil, err
	}
	if len(value) > maxLineBytes {
		return nil, errLineTooLong
	}
	return value, nil
}

// sendOne hands one record to the producer, waiting for room in its buffer, and
// reports whether the input goes on.
func (p *produceRun) sendOne(ctx context.Context, r *client.Record, number int64) bool {
	p.mu.Lock()
	stopped := p.stopped || p.failed != nil
	p.mu.Unlock()
	if stopped {
		return false
	}
	size := int64(len(r.Key) + len(r.Value))
	err := p.producer.SendFunc(ctx, r, func(_ client.Receipt, err error) {
		if err != nil {
			p.fail(&recordError{number: number, err: err})
			return
		}
		p.acknowledged.Add(1)
		p.bytes.Add(size)
	})
	if err != nil && ctx.Err() == nil { // else: interrupted, or an earlier record failed
		p.fail(&recordError{number: number, err: err})
	}
	return err == nil
}

// fail keeps the earliest record that failed and stops the input, before the
// partition takes another record.
func (p *produceRun) fail(e *recordError) {
	if outcomeOf(e.err) != client.NotSent {
		p.unknown.Add(1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil || e.number < p.failed.number {
		p.failed = e
	}
	p.cancel()
}

// outcomeOf is what is known about a record that failed.
func outcomeOf(err error) client.Outcome {
	var e *client.SendError
	if errors.As(err, &e) {
		return e.Outcome
	}
	return client.NotSent
}

func (p *produceRun) explain(e *recordError) error {
	what := fmt.Sprintf("line %d", e.number)
	if len(p.files) > 0 {
		what = "file " + p.files[e.number-1]
	}
	reason := e.err
	var sendError *client.SendError
	if errors.As(e.err, &sendError) {
		reason = sendError.Err
	}
	text := "interrupted before the broker acknowledged it"
	switch {
	case errors.Is(reason, client.ErrFenced):
		text = p.fenced()
	case !errors.Is(reason, client.ErrClosed):
		text = p.app.explain(&failure{doing: "produce to", destination: p.destination, kind: p.words, err: reason})
	}
	said := "not sent"
	switch outcomeOf(e.err) {
	case client.Unknown:
		said = "outcome unknown, it may or may not be stored"
	case client.Applied:
		said = "stored, but"
	}
	return fmt.Errorf("%s: %s: %s%s", what, said, text, p.goOn(e.number))
}

// fenced says that another producer has the name.
func (p *produceRun) fenced() string {
	return fmt.Sprintf("another producer has taken the name %q, and one at a time writes under it; let only one run, or give each its own --name", p.name)
}

// summary tells what was done, and what comes next where that is not all.
func (p *produceRun) summary(elapsed time.Duration, next string) {
	n, size := p.acknowledged.Load(), p.bytes.Load()
	verb := "acknowledged"
	if p.acks.value == "none" {
		verb = "sent without acknowledgement"
	}
	text := fmt.Sprintf("%s (%s) %s by %s %q in %s", plural(n, "record"), formatSize(size), verb, p.words.noun, p.destination, shortDuration(elapsed))
	if p.acks.value == "none" {
		text = strings.Replace(text, " by ", " to ", 1)
	}
	if s := elapsed.Seconds(); n >= 1000 && s > 0 {
		text += fmt.Sprintf(": %s records/s, %s/s", formatCount(int64(float64(n)/s)), formatSize(int64(float64(size)/s)))
	}
	fmt.Fprintln(p.app.stderr, text+next)
}

// shortDuration rounds for people: three digits.
func shortDuration(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

func ackLevel(word string) client.AckLevel {
	switch word {
	case "none":
		return client.AcksNone
	case "leader":
		return client.AcksLeader
	}
	return client.AcksQuorum
}

func codec(word string) client.Codec {
	switch word {
	case "snappy":
		return client.Snappy
	case "zstd":
		return client.Zstd
	}
	return client.NoCompression
}

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// usageError is a mistake in the command line. It ends with exit code 2 and
// points to the help of the command.
type usageError struct {
	command *cobra.Command
	text    string
}

func (e *usageError) Error() string { return e.text }

func usagef(c *cobra.Command, format string, args ...any) error {
	return &usageError{command: c, text: fmt.Sprintf(format, args...)}
}

// failure is a client command that failed: what was done to which destination.
// explain makes one line of it.
type failure struct {
	doing       string           // "produce to", "create": completed by kind and name; may be empty
	destination string           // "" if no single one is meant
	group       string           // "" if no single one is meant
	near        string           // an existing name that is much like the one that is missing, or ""
	kind        destinationWords // zero if the command does not know whether queue or topic
	err         error
}

// connecting is what failed where no broker has introduced itself; err says so, too.
const connecting = "connect"

func (e *failure) Error() string {
	if e.destination == "" {
		return e.doing + ": " + e.err.Error()
	}
	return fmt.Sprintf("%s %q: %v", e.doing, e.destination, e.err)
}

func (e *failure) Unwrap() error { return e.err }

// report prints err as one line on stderr and returns the exit code.
func (a *app) report(ctx context.Context, c *cobra.Command, err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errOutputClosed):
		return exitOK
	case errors.Is(err, errInterrupted),
		errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errInterrupted):
		return exitInterrupted
	case errors.As(err, &usage):
		path := "lockstep"
		if usage.command != nil {
			path = usage.command.CommandPath()
		} else if c != nil {
			path = c.CommandPath()
		}
		fmt.Fprintf(a.stderr, "lockstep: %s (see %s --help)\n", oneLine(usage.text), path)
		return exitUsage
	case errors.Is(err, client.ErrAddress) && c != nil:
		return a.report(ctx, c, usagef(c, "%s: %s; write host:port[,host:port...], as in %s",
			setting(c, "server"), strings.TrimPrefix(err.Error(), "connect: "), defaultServer))
	}
	fmt.Fprintf(a.stderr, "lockstep: %s\n", oneLine(a.explain(err)))
	return exitError
}

// oneLine keeps an error on one line whatever it quotes.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// brokerError is how a broker did not start, or ended. The server says what to do
// about it, and the way to a broker that clients take is not what failed.
type brokerError struct{ err error }

// Error keeps all that the server says, without the name of a code among it.
func (e *brokerError) Error() string {
	text := e.err.Error()
	var known *wire.Error
	if errors.As(e.err, &known) && known.Detail != "" {
		text = strings.ReplaceAll(text, known.Error(), known.Detail)
	}
	return text
}

func (e *brokerError) Unwrap() error { return e.err }

// explain is the one place that turns an error into what happened, to what, and
// what to do next.
func (a *app) explain(err error) string {
	var broker *brokerError
	if errors.As(err, &broker) {
		return broker.Error()
	}
	var unknown *unknownError
	if errors.As(err, &unknown) {
		return unknown.Error()
	}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{err: err}
	}
	if text := a.explainConnection(err); text != "" {
		return text
	}
	code := wire.CodeOf(err)
	if text := f.explainClient(); text != "" {
		return text
	}
	if code == wire.CodeUnknown && !errors.Is(err, wire.CodeUnknown) {
		return err.Error()
	}
	if text := f.explainCode(code); text != "" {
		return text
	}
	text := f.text(code)
	if hint := code.Info().Hint; hint != "" {
		text += "; " + hint
	}
	return text
}

// text says what failed without a next step, with the broker's own detail if it sent one.
func (f *failure) text(code wire.ErrorCode) string {
	detail := code.Info().Description
	var e *wire.Error
	if errors.As(f.err, &e) && e.Detail != "" {
		detail = e.Detail
	}
	switch {
	case f.doing == "" && f.destination == "":
		return detail
	case f.destination == "":
		return f.doing + ": " + detail
	}
	return fmt.Sprintf("%s %q: %s", f.doing, f.destination, detail)
}

// command is the command group for the destination.
func (f *failure) command() string {
	if f.kind.noun == "" {
		return "lockstep queue"
	}
	return "lockstep " + f.kind.noun
}

// explainClient words what the client finds out by itself.
func (f *failure) explainClient() string {
	name := shellWord(f.destination)
	var damage *client.CorruptError
	var lost *client.DataLostError
	switch {
	case errors.As(f.err, &lost):
		return f.explainLoss(lost)
	case errors.As(f.err, &damage):
		return f.explainDamage(damage)
	case errors.Is(f.err, client.ErrRecordTooLarge) && wire.IsTemporary(f.destination):
		return f.err.Error()
	case errors.Is(f.err, client.ErrRecordTooLarge):
		return fmt.Sprintf("%v; raise the limit with: %s alter %s --max-record-bytes SIZE", f.err, f.command(), name)
	case errors.Is(f.err, client.ErrUnknownPartition):
		inner := f.err // it says the destination again
		for e := f.err; e != client.ErrUnknownPartition && e != nil; e = errors.Unwrap(e) {
			inner = e
		}
		return fmt.Sprintf("%s %q: %v; list its partitions with: %s describe %s", f.doing, f.destination, inner, f.command(), name)
	case errors.Is(f.err, client.ErrDeliveryTimeout) && errors.Is(f.err, wire.CodeDiskFull):
		return fmt.Sprintf("%s %q: %v; free space or shorten retention on the broker's disk, or wait longer with --timeout", f.doing, f.destination, f.err)
	case errors.Is(f.err, client.ErrDeliveryTimeout) && errors.Is(f.err, wire.CodeMemoryFull):
		return fmt.Sprintf("%s %q: %v; shorten retention or raise --memory-bytes of the broker, or wait longer with --timeout", f.doing, f.destination, f.err)
	case errors.Is(f.err, client.ErrDeliveryTimeout) && errors.Is(f.err, wire.CodePartitionFull):
		return fmt.Sprintf("%s %q: %v; see who is to consume it with: lockstep group ls %s, raise what it may hold with: %s alter %s --threshold-records or --threshold-bytes, or wait longer with --timeout",
			f.doing, f.destination, f.err, name, f.command(), name)
	case errors.Is(f.err, client.ErrDeliveryTimeout):
		return fmt.Sprintf("%s %q: %v; see what does not answer with: lockstep cluster health, or wait longer with --timeout", f.doing, f.destination, f.err)
	case errors.Is(f.err, client.ErrDisconnected) && f.doing == connecting:
		return fmt.Sprintf("%v; check that the broker runs, and that --server names its port for clients (--listen) and not the one for other brokers (--peer-listen)", f.err)
	case errors.Is(f.err, client.ErrDisconnected) && f.destination == "":
		return fmt.Sprintf("%v; check that the broker runs", f)
	case errors.Is(f.err, client.ErrDisconnected):
		return fmt.Sprintf("%s %q: %v; check that the broker runs", f.doing, f.destination, f.err)
	}
	return ""
}

// explainDamage says which records cannot be read, and how to read the others.
func (f *failure) explainDamage(e *client.CorruptError) string {
	cause := e.Err.Error()
	var known *wire.Error
	if errors.As(e.Err, &known) && known.Detail != "" {
		cause = known.Detail
	}
	text := fmt.Sprintf("%s %q: partition %d: damaged at offset %d: %s; ", f.doing, f.destination, e.Partition, e.Offset, cause)
	stored := known != nil && known.Next > 0
	if !stored {
		text += "the broker examines its copy now: run this again to see whether only the way was bad"
	}
	switch {
	case e.Next <= e.Offset:
		return text
	case f.doing != "consume" && stored: // it has gone on behind them
		return text + fmt.Sprintf("see what they hold up with: lockstep explain %s %s --partition %d --offset %d", cmp.Or(f.kind.noun, "queue"), shellWord(f.destination), e.Partition, e.Offset)
	}
	if !stored {
		text += ", or "
	}
	return text + fmt.Sprintf("continue with: lockstep consume %s --partition %d --offset %d", shellWord(f.destination), e.Partition, e.Next)
}

// explainLoss says how much is lost at most, and how to read what is there.
func (f *failure) explainLoss(e *client.DataLostError) string {
	cause := wire.CodeOf(e.Err).Info().Description
	var known *wire.Error
	if errors.As(e.Err, &known) && known.Detail != "" {
		cause = known.Detail
	}
	return fmt.Sprintf("%s %q: partition %d: at most %s from offset %d on are lost: %s; continue with: lockstep consume %s --partition %d --offset %d",
		f.doing, f.destination, e.Partition, plural(clampInt64(e.Offset-min(e.Next, e.Offset)), "record"), e.Next, cause, shellWord(f.destination), e.Partition, e.Next)
}

// explainCode words the codes for which the command line knows a better next
// step than the error table.
func (f *failure) explainCode(code wire.ErrorCode) string {
	name := shellWord(f.destination)
	kind, command := f.kind.noun, f.command()
	switch code {
	case wire.CodeUnknownDestination, wire.CodeDestinationGone:
		if f.destination == "" {
			return ""
		}
		noun := kind
		if noun == "" {
			noun = "destination"
		}
		if wire.IsTemporary(f.destination) {
			return fmt.Sprintf("there is no temporary queue %q: it ends with the connection that has made it, or with its broker", f.destination)
		}
		if code == wire.CodeDestinationGone {
			return fmt.Sprintf("%s %q was deleted while it was in use; create it again with: %s create %s", noun, f.destination, command, name)
		}
		if strings.HasPrefix(f.doing, "remove") {
			text := fmt.Sprintf("%s %q not found; ", noun, f.destination)
			if f.near != "" {
				text += fmt.Sprintf("did you mean %q? Or ", f.near)
			}
			return text + fmt.Sprintf("list what there is with: %s ls, or pass --if-exists", command)
		}
		if f.near != "" {
			return fmt.Sprintf("%s %q not found; did you mean %q? Create it with: %s create %s", noun, f.destination, f.near, command, name)
		}
		return fmt.Sprintf("%s %q not found; create it with: %s create %s", noun, f.destination, command, name)
	case wire.CodeAlreadyExists:
		if f.group != "" {
			return f.text(code) + fmt.Sprintf("; look at it with: lockstep group describe %s %s", name, shellWord(f.group))
		}
		if kind == "" {
			return ""
		}
		return fmt.Sprintf("%s %q already exists; look at it with: %s describe %s, or pass --if-not-exists", kind, f.destination, command, name)
	case wire.CodeKindMismatch:
		if kind == "" {
			return ""
		}
		if strings.HasPrefix(f.doing, "create") {
			return fmt.Sprintf("the name %q is taken by a %s; choose another, or look at it with: lockstep %s describe %s", f.destination, f.kind.other, f.kind.other, name)
		}
		return fmt.Sprintf("%q is a %s, not a %s; work with it by: lockstep %s", f.destination, f.kind.other, kind, f.kind.other)
	case wire.CodeUnknownPartition:
		if f.destination == "" {
			return f.text(code) + "; list them with: lockstep partition ls"
		}
		return fmt.Sprintf("destination %q has no such partition; list them with: %s describe %s", f.destination, command, name)
	case wire.CodeOutOfRange:
		text := f.text(code)
		var outside *client.OutOfRangeError
		if errors.As(f.err, &outside) {
			text = fmt.Sprintf("%s %q: partition %d: %s", f.doing, f.destination, outside.Partition, (&failure{err: f.err}).text(code))
		}
		if strings.HasPrefix(f.doing, "seek") {
			return text + "; move it with --to earliest or --to latest, or look at the range with: " + command + " describe " + name
		}
		return text + "; read with --from earliest or --from latest, or look at the range with: " + command + " describe " + name
	case wire.CodeUnknownGroup:
		if f.destination == "" || f.group == "" {
			return ""
		}
		text := f.text(code)
		if f.near != "" {
			text += fmt.Sprintf("; did you mean %q?", f.near)
			return text + " List them with: lockstep group ls " + name
		}
		text += "; list them with: lockstep group ls " + name
		switch verb, _, _ := strings.Cut(f.doing, " "); verb {
		case "describe", "explain", "consume":
			text += fmt.Sprintf(", or create it with: lockstep group create %s %s", name, shellWord(f.group))
		}
		return text
	case wire.CodeGroupGone:
		if f.destination == "" || f.group == "" {
			return ""
		}
		return f.text(code) + fmt.Sprintf("; make it again with: lockstep group create %s %s", name, shellWord(f.group))
	case wire.CodeGroupMismatch, wire.CodeSerialNeedsOnePartition:
		return f.text(code) // the broker says what to do, by its names
	case wire.CodeTooMany:
		return f.text(code) + "; remove what is not needed, or use fewer partitions"
	case wire.CodeTooLarge:
		return f.text(code) + "; raise the limit with: " + command + " alter " + name + " --max-record-bytes SIZE"
	case wire.CodeUnavailable:
		return f.text(code) + "; try again; if it lasts, see which nodes do not answer with: lockstep cluster health"
	case wire.CodeDiskFull:
		return f.text(code) + "; free space or shorten retention on the broker's disk, then run this again"
	}
	return ""
}

// explainConnection words errors of the way to the broker; "" for all others.
func (a *app) explainConnection(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("no broker at %s (connection refused); start one with: lockstep serve, or name one with --server", a.servers)
	case errors.Is(err, client.ErrProtocol):
		return fmt.Sprintf("%s does not speak Lockstep's protocol (%v); check --server, the HTTP port is another one", a.servers, err)
	case errors.Is(err, client.ErrVersion):
		return fmt.Sprintf("the broker at %s speaks no protocol version this lockstep knows; use the same release on both sides", a.servers)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return fmt.Sprintf("host %q cannot be found (%s); check --server", dns.Name, dns.Err)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Sprintf("cannot connect to %s: %v; check --server and the network", a.servers, op.Err)
	}
	var answered interface{ LastAnswer() error }
	if errors.As(err, &answered) {
		return fmt.Sprintf("%v; see what is away with: lockstep cluster health, and run this again when it is back", err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("%v: no answer from %s in time; see what is away with: lockstep cluster health, or look at one broker with: curl http://HOST:HTTP-PORT/healthz", err, a.servers)
	}
	return ""
}

// shellWord quotes s for a shell if it needs it, so that a printed command can be pasted.
func shellWord(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@%+,"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// flagError turns pflag's errors into usage errors that name the nearest flag.
func flagError(c *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	var (
		unknown *pflag.NotExistError
		value   *pflag.InvalidValueError
		missing *pflag.ValueRequiredError
	)
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			return usagef(c, "unknown flag -%s in %q", name, c.CommandPath())
		}
		var known []string
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				known = append(known, f.Name)
			}
		})
		text := fmt.Sprintf("unknown flag --%s", name)
		if near := nearest(name, known); near != "" {
			text += fmt.Sprintf("; did you mean --%s?", near)
		}
		return usagef(c, "%s", text)
	case errors.As(err, &value):
		return usagef(c, "flag --%s: %v", value.GetFlag().Name, cause(err))
	case errors.As(err, &missing):
		return usagef(c, "flag --%s needs a value", missing.GetFlag().Name)
	}
	return usagef(c, "%v", err)
}

// cause is what the flag's own Set said, without pflag's wrapping.
func cause(err error) error {
	var value *pflag.InvalidValueError
	if !errors.As(err, &value) {
		return err
	}
	inner := value.Unwrap()
	switch value.GetFlag().Value.Type() {
	case "int", "int64", "uint", "uint8", "uint16", "uint32", "uint64", "uintSlice", "intSlice":
		return fmt.Errorf("%q is not a whole number in range", value.GetValue())
	case "bool":
		return fmt.Errorf("%q is neither true nor false", value.GetValue())
	}
	return inner
}

// refuseEmpty reports flags that are given without a value. That is mostly a variable that is not
// set, and what is meant is less than what the command does without the flag.
func refuseEmpty(c *cobra.Command, names ...string) error {
	for _, name := range names {
		if f := c.Flags().Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
			return usagef(c, "--%s is empty; give a value, or leave it out", name)
		}
	}
	return nil
}

func unknownCommand(c *cobra.Command, word string) error {
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			if slices.Contains(sub.SuggestFor, word) {
				return usagef(c, "unknown command %q for %q; did you mean %s?", word, c.CommandPath(), sub.Name())
			}
			names = append(names, sub.Name())
			names = append(names, sub.Aliases...)
		}
	}
	text := fmt.Sprintf("unknown command %q for %q", word, c.CommandPath())
	if near := nearest(word, names); near != "" {
		text += fmt.Sprintf("; did you mean %s?", near)
	}
	return usagef(c, "%s", text)
}

// exactArgs accepts one argument for each name, and names the missing one.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef(c, "%q needs %s; the usage is: %s", c.CommandPath(), names[len(args)], useLine(c))
		}
		if len(args) > len(names) {
			return usagef(c, "%q takes no argument %q; the usage is: %s", c.CommandPath(), args[len(names)], useLine(c))
		}
		return nil
	}
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// groupFlags are the flags of consume that count with --group only.
type groupFlags struct {
	group     string
	mode      *choiceFlag
	scope     *choiceFlag
	holder    *choiceFlag
	binding   *choiceFlag
	order     *choiceFlag
	prefetch  int
	refill    int
	ackWait   durationFlag
	session   durationFlag
	name      string
	release   bool
	standby   bool
	exec      string
	parallel  int
	ack       *choiceFlag
	createNot bool
	stdout    io.Writer // of commands that run at once
	stderr    io.Writer
}

// groupOnly lists them, except --group.
var groupOnly = []string{"mode", "scope", "holder", "binding", "order", "prefetch", "refill", "ack-wait", "session-timeout", "name",
	"release-on-disconnect", "standby", "exec", "parallel", "ack", "no-create"}

// withoutGroup lists the flags of consume that a group leaves no room for.
var withoutGroup = []string{"partition", "offset", "exit"}

func (g *groupFlags) add(c *cobra.Command) {
	flags := c.Flags()
	g.mode = newChoice("", "shared", "serial", "stream")
	g.scope = newChoice("", "key", "publisher", "destination")
	g.holder = newChoice("", "sticky", "any", "sole")
	g.binding = newChoice("", "cover", "strict", "gather", "local")
	g.order = newChoice("", "strict", "replay")
	g.ack = newChoice("auto", "auto", "none")
	flags.StringVarP(&g.group, "group", "g", "", "take records as a member of the group with this `name`, and acknowledge them")
	flags.Var(g.mode, "mode", "how the group shares records: shared, any to any member; serial, one of a scope at a time; stream, all of a partition to one member")
	flags.Var(g.scope, "scope", "what a serial group handles one after the other")
	flags.Var(g.holder, "holder", "with --scope destination: one member while it lives, or whoever is free")
	flags.Var(g.binding, "binding", "which partitions a member has")
	flags.Var(g.order, "order", "when the next record of a scope starts: after the outcome of the one before is committed, or known")
	flags.IntVar(&g.prefetch, "prefetch", 512, "`records` that are sent ahead per partition; with --exec twice --parallel")
	withoutDefault(flags, "prefetch")
	flags.IntVar(&g.refill, "refill", -1, "`records` that are left when more are sent; half of --prefetch if not given")
	withoutDefault(flags, "refill")
	flags.Var(&g.ackWait, "ack-wait", "`time` that a record may be worked on, for a new group")
	flags.Var(&g.session, "session-timeout", "`time` without a sign of life after which a member's records go to others, for a new group")
	flags.StringVar(&g.name, "name", "", "`name` of this member: another one started under it takes over at once")
	flags.BoolVar(&g.release, "release-on-disconnect", false, "give records to others as soon as the connection ends; a shared group does")
	withoutDefault(flags, "release-on-disconnect")
	withoutDefault(flags, "ack-wait")
	withoutDefault(flags, "session-timeout")
	flags.BoolVar(&g.standby, "standby", false, "rather stand by than be the active member")
	flags.StringVar(&g.exec, "exec", "", "run this shell `command` for each record, with the value on its standard input; exit code 0 acknowledges")
	flags.IntVar(&g.parallel, "parallel", 1, "`commands` of --exec that run at once, of records that need not wait for each other")
	flags.Var(g.ack, "ack", "auto acknowledges what was printed; none gives everything back in the end")
	flags.BoolVar(&g.createNot, "no-create", false, "fail if there is no such group")
}

// check reports flags that do not go together.
func (g *groupFlags) check(c *cobra.Command) error {
	flags := c.Flags()
	if err := refuseEmpty(c, "exec"); err != nil {
		return err
	}
	if g.group == "" {
		for _, name := range groupOnly {
			if flags.Changed(name) {
				return usagef(c, "--%s is about members of a group; give --group NAME", name)
			}
		}
		return nil
	}
	for _, name := range withoutGroup {
		if flags.Changed(name) {
			return usagef(c, "--%s and --group exclude each other: %s", name, map[string]string{
				"partition": "the group says which partitions a member has; see --binding",
				"offset":    "a group has its own place in every partition; see lockstep group seek",
				"exit":      "other members may take what is there; end after a number of records with --count, or stop with Ctrl-C",
			}[name])
		}
	}
	if flags.Changed("scope") && g.mode.value == "" {
		g.mode.value = "serial" // a shared one has no order
	}
	switch mode := g.mode.value; {
	case flags.Changed("scope") && mode != "serial":
		return usagef(c, "--scope is about --mode serial, not %s", mode)
	case flags.Changed("holder") && (mode != "serial" || g.scope.value != "destination"):
		return usagef(c, "--holder is about --mode serial --scope destination; give these, too")
	case g.exec != "" && (flags.Changed("format") || flags.Changed("output")):
		return usagef(c, "--exec prints nothing itself; leave out --format and --output")
	case g.exec != "" && flags.Changed("ack"):
		return usagef(c, "with --exec the exit code of the command decides; leave out --ack")
	case g.exec == "" && flags.Changed("parallel"):
		return usagef(c, "--parallel is about --exec")
	case g.parallel < 1:
		return usagef(c, "flag --parallel: %d is not positive", g.parallel)
	case g.prefetch < 1:
		return usagef(c, "flag --prefetch: %d is not positive", g.prefetch)
	}
	return nil
}

func (r *consumeRun) consumerOptions(c *cobra.Command) []client.ConsumerOption {
	g, flags := &r.member, c.Flags()
	opts := []client.ConsumerOption{client.Group(g.group), client.Create(!g.createNot), client.ConsumerName(g.name), client.StandbyPreferred(g.standby)}
	settings := []struct {
		flag *choiceFlag
		set  func(int) client.ConsumerOption
	}{
		{g.mode, func(v int) client.ConsumerOption { return client.Mode(client.GroupMode(v)) }},
		{g.scope, func(v int) client.ConsumerOption { return client.Scope(client.GroupScope(v)) }},
		{g.holder, func(v int) client.ConsumerOption { return client.Holder(wire.GroupHolder(v)) }},
		{g.binding, func(v int) client.ConsumerOption { return client.Binding(wire.BindingPolicy(v)) }},
		{g.order, func(v int) client.ConsumerOption { return client.Order(wire.GroupOrder(v)) }},
	}
	for _, s := range settings {
		for i, choice := range s.flag.choices {
			if choice == s.flag.value {
				opts = append(opts, s.set(i+1)) // the values are numbered as the choices are
			}
		}
	}
	prefetch := g.prefetch
	if g.exec != "" && !flags.Changed("prefetch") {
		prefetch = 2 * g.parallel
	}
	if g.ack.value == "none" {
		opts = append(opts, client.LookOnly(true))
		if !flags.Changed("prefetch") { // nothing makes room for more
			prefetch = min(max(prefetch, int(min(r.limit, wire.MaxGroupCapacity))), wire.MaxGroupCapacity)
		}
	}
	if flags.Changed("refill") {
		opts = append(opts, client.Prefetch(prefetch, g.refill))
	} else {
		opts = append(opts, client.Prefetch(prefetch))
	}
	if flags.Changed("ack-wait") {
		opts = append(opts, client.AckWait(g.ackWait.value))
	}
	if flags.Changed("session-timeout") {
		opts = append(opts, client.SessionTimeout(g.session.value))
	}
	if flags.Changed("release-on-disconnect") {
		opts = append(opts, client.ReleaseOnDisconnect(g.release))
	}
	switch {
	case !r.at.IsZero():
		opts = append(opts, client.StartAt(client.AtTime(r.at)))
	case flags.Changed("from") && r.from.value == "latest":
		opts = append(opts, client.StartAt(client.Latest()))
	case flags.Changed("from"):
		opts = append(opts, client.StartAt(client.Earliest()))
	}
	return opts
}

// leaveTimeout bounds how long a member that stops waits for what it has said to be
// committed.
const leaveTimeout = 5 * time.Second

// runMember consumes as a member of a group.
func (r *consumeRun) runMember(c *cobra.Command) error {
	ctx := c.Context()
	waiting := r.app.newWaiting(r.destination)
	conn, err := r.app.connect(ctx, waiting.events())
	if err != nil {
		return err
	}
	defer conn.Close()
	_, words, err := r.app.find(ctx, conn, r.destination)
	if err != nil {
		return err
	}
	opts := append(r.consumerOptions(c), client.OnEvent(func(e client.Event) {
		switch e := e.(type) {
		case client.LeaseLost:
			fmt.Fprintf(r.app.stderr, "lockstep: %s/%d@%d is not ours any more: %s\n", r.destination, e.Partition, e.Offset, oneLine(e.Reason))
		case client.DataExpired:
			fmt.Fprintf(r.app.stderr, "lockstep: %s/%d: retention has removed the records at offsets %d to %d before group %s was done with them; it goes on at %d\n",
				r.destination, e.Partition, e.From, e.To-1, e.Group, e.To)
		case client.Blocked:
			waiting.say(r.destination, fmt.Sprintf("partition %d gives no records", e.Partition), e.Err.Error())
		}
	}))
	err = r.app.follow(ctx, conn, r.destination, func() error { return r.consumeOnce(ctx, conn, waiting, opts) })
	if err == nil || errors.Is(err, errOutputClosed) {
		return err
	}
	return interruptedOr(ctx, &failure{doing: "consume", destination: r.destination, group: r.member.group, kind: words, err: err})
}

// consumeOnce is a member until it ends, for one thing that the destination's name stands for.
func (r *consumeRun) consumeOnce(ctx context.Context, conn *client.Conn, waiting *waiting, opts []client.ConsumerOption) error {
	var consumer *client.Consumer
	err := waiting.begin(func() (err error) {
		consumer, err = conn.Consumer(ctx, r.destination, opts...)
		return err
	})
	if err == nil {
		if r.member.session.value > 0 {
			r.warnOfSession(ctx, conn)
		}
		if r.member.exec != "" {
			err = r.runCommands(ctx, consumer)
		} else {
			err = r.printMember(ctx, consumer)
		}
		leaving, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
		closeErr := consumer.Close(leaving)
		cancel()
		if err == nil {
			err = closeErr
		}
	}
	return err
}

// warnOfSession says what a short session timeout costs, if the group has it: one that was
// there keeps its own.
func (r *consumeRun) warnOfSession(ctx context.Context, conn *client.Conn) {
	ctx, cancel := context.WithTimeout(ctx, r.app.requestTimeout)
	defer cancel()
	groups, err := conn.Groups(ctx, r.destination)
	if err != nil {
		return // it is a member, and the group is made: nobody needs to be stopped by that
	}
	for _, g := range groups {
		if g.Name == r.member.group {
			r.app.warnOfSession(g.Settings.SessionMs)
		}
	}
}

// fetchRecords is how many records are printed with one write.
const fetchRecords = 256

// printMember prints records, and acknowledges them when they are written.
func (r *consumeRun) printMember(ctx context.Context, consumer *client.Consumer) error {
	p := newPrinter(r.format, r.output.value == "json")
	var out []byte
	reading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go watchReader(r.app.stdout, reading.Done(), func() { stop(errOutputClosed) })
	for r.limit == 0 || r.taken < r.limit {
		most := fetchRecords
		if r.limit > 0 {
			most = int(min(int64(most), r.limit-r.taken))
		}
		list, err := consumer.Fetch(reading, most, time.Hour)
		if err != nil {
			if cause := context.Cause(reading); errors.Is(cause, errOutputClosed) {
				return cause
			}
			return err
		}
		out = out[:0]
		for _, d := range list {
			out = p.append(out, &d.Record, &standingJSON{Group: r.member.group, LeaseEpoch: d.Epoch(), Deliveries: d.Deliveries, Attempts: d.Attempts})
		}
		if _, err := r.app.stdout.Write(out); err != nil {
			for _, d := range list {
				d.Release()
			}
			return outputError(err)
		}
		for _, d := range list {
			r.taken++
			if r.member.ack.value == "auto" {
				d.Ack()
			}
		}
	}
	return nil
}

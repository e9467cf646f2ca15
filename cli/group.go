package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func (a *app) groupCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:        "group",
		SuggestFor: []string{"groups", "subscription", "subscriptions", "consumer-group", "consumers"},
		Short:      "List, describe, alter and remove groups of consumers",
		Example: `  lockstep group ls orders
  lockstep group describe orders billing`,
	})
	a.clientFlags(c)
	c.AddCommand(a.groupLsCommand(), a.groupDescribeCommand(), a.groupCreateCommand(), a.groupAlterCommand(),
		a.groupSeekCommand(), a.groupPauseCommand(true), a.groupPauseCommand(false), a.groupRmCommand())
	return c
}

// groupFailure says what failed with a group.
func groupFailure(doing, destination, group string, err error) error {
	if err == nil {
		return nil
	}
	return &failure{doing: fmt.Sprintf("%s group %q of", doing, group), destination: destination, group: group, err: err}
}

func (a *app) groupLsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "ls [DEST]",
		Aliases: []string{"list"},
		Short:   "List the groups of a destination, or of all",
		Example: `  lockstep group ls
  lockstep group ls orders -o json`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeNames(destinationNames(0, true)),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		destination := strings.Join(args, "")
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			list, err := conn.Groups(ctx, destination)
			if err != nil {
				return &failure{doing: "list groups of", destination: destination, err: err}
			}
			if output.value == "json" {
				return a.printJSON(list)
			}
			var rows [][]string
			for _, g := range list {
				state := "active"
				if g.Paused {
					state = "paused"
				}
				rows = append(rows, []string{g.Destination, g.Name, modeText(&g.Settings), g.Settings.Binding.String(), state})
			}
			removed, err := a.removedGroups(ctx, conn, destination)
			if err != nil {
				return &failure{doing: "list groups of", destination: destination, err: err}
			}
			rows = append(rows, removed...)
			return a.printTable([]string{"destination", "group", "mode", "binding", "state"}, rows)
		})
	}
	return c
}

// removedGroups are the rows of groups that are removed and have left dead letters.
func (a *app) removedGroups(ctx context.Context, conn *client.Conn, destination string) (rows [][]string, err error) {
	var all []client.Destination
	if destination == "" {
		all, err = conn.Destinations(ctx)
	} else {
		all = make([]client.Destination, 1)
		all[0], err = conn.Destination(ctx, destination)
	}
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, removedTimeout)
	defer stop()
	type group struct{ destination, name string }
	count := make(map[group]uint64)
	var order []group
	for _, x := range lettersLeft(ctx, conn, "", all...) {
		g := group{x.destination, x.Group}
		if count[g] == 0 {
			order = append(order, g)
		}
		count[g] += x.Count
	}
	for _, g := range order {
		rows = append(rows, []string{g.destination, g.name, "", "", "removed, " + plural(int64(count[g]), "dead letter") + " to be written"})
	}
	return rows, nil
}

// modeText is how a group shares records, in a few words.
func modeText(s *client.GroupSettings) string {
	text := s.Mode.String()
	if s.Mode == wire.ModeSerial {
		text += " by " + s.Scope.String()
		if s.Scope == wire.ScopeDestination {
			text += ", " + s.Holder.String()
			if s.Failback {
				text += " with failback"
			}
		}
		if s.Order == wire.OrderReplay {
			text += ", replay order"
		}
	}
	if s.Mode == wire.ModeStream && s.Order == wire.OrderStrict {
		text += ", strict order"
	}
	return text
}

func (a *app) groupDescribeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "describe DEST GROUP",
		Aliases: []string{"show"},
		Short:   "Show a group: its settings, its backlog and its members, by partition",
		Example: `  lockstep group describe orders billing
  lockstep group describe orders billing -o json`,
		Args: exactArgs("DEST", "GROUP"), ValidArgsFunction: a.completeGroups(),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			info, err := conn.DescribeGroup(ctx, args[0], args[1])
			removed := a.removedOf(ctx, conn, args[0], args[1])
			if err != nil {
				fmt.Fprint(a.stderr, removed)
				return groupFailure("describe", args[0], args[1], err)
			}
			naming, stop := context.WithTimeout(ctx, namingTimeout)
			(&namer{conn, args[0], args[1], info.Settings.WithDefaults()}).nameParked(naming, &info)
			stop()
			if output.value == "json" {
				return a.printJSON(info)
			}
			if err := a.printGroup(&info); err != nil {
				return err
			}
			_, err = fmt.Fprint(a.stdout, removed)
			return outputError(err)
		})
	}
	return c
}

// removedOf says in lines what removed groups of a name have left, "" if nothing.
func (a *app) removedOf(ctx context.Context, conn *client.Conn, destination, group string) string {
	ctx, stop := context.WithTimeout(ctx, removedTimeout)
	defer stop()
	d, err := conn.Destination(ctx, destination)
	if err != nil {
		return ""
	}
	var text strings.Builder
	for _, x := range lettersLeft(ctx, conn, group, d) {
		fmt.Fprintf(&text, "partition %d: a group %s was removed, with %s; %s gives them up\n", x.partition, group, x.which(), x.giveUp())
	}
	return text.String()
}

func (a *app) printGroup(g *client.GroupInfo) error {
	s := &g.Settings
	ms := func(n uint32) string { return formatDuration(time.Duration(n) * time.Millisecond) }
	fmt.Fprintf(a.stdout, "%s of %s: %s, binding %s, session timeout %s, ack wait %s, backoff %s to %s", g.Name, g.Destination, modeText(s), s.Binding,
		ms(s.SessionMs), ms(s.AckWaitMs), ms(s.BackoffMs), ms(s.BackoffMaxMs))
	if s.DeliveryLimit > 0 {
		fmt.Fprintf(a.stdout, ", after %s %s", plural(int64(s.DeliveryLimit), "attempt"), letterText(s))
		switch limit, letters := g.Own.DeliveryLimit == s.DeliveryLimit, g.Own.DeadLetterMode != 0 || g.Own.DeadLetter != ""; {
		case !limit && !letters:
			fmt.Fprintf(a.stdout, " (as %s says)", g.Destination)
		case !limit:
			fmt.Fprintf(a.stdout, " (the number as %s says)", g.Destination)
		case !letters:
			fmt.Fprintf(a.stdout, " (what becomes of it as %s says)", g.Destination)
		}
	}
	if g.Paused {
		fmt.Fprint(a.stdout, ", paused")
	}
	fmt.Fprintln(a.stdout)
	var rows, members [][]string
	unknown := 0
	for _, p := range g.Partitions {
		if p.Problem != "" {
			unknown++
			rows = append(rows, []string{fmt.Sprint(p.Number), "?", "?", "?", "?", "?", "?", p.Problem})
			continue
		}
		rows = append(rows, []string{
			fmt.Sprint(p.Number), fmt.Sprint(p.Floor), fmt.Sprint(p.Next), fmt.Sprint(p.Backlog), fmt.Sprint(p.Leased), fmt.Sprint(p.Returned),
			fmt.Sprint(p.Parked), strings.Join(p.Waiting, ", "),
		})
		for _, m := range p.Sessions {
			name := m.Name
			if name == "" {
				name = m.ID[:min(len(m.ID), 8)]
			}
			members = append(members, []string{
				fmt.Sprint(p.Number), name, m.Client, m.State, fmt.Sprint(m.Leased), fmt.Sprint(m.Capacity),
				formatDuration((time.Duration(m.HeardMs) * time.Millisecond).Round(time.Millisecond)),
			})
		}
	}
	if err := a.printTable([]string{"partition", "done below", "next", "backlog", "leased", "returned", "parked", "waits for"}, rows,
		"partition", "done below", "next", "backlog", "leased", "returned", "parked"); err != nil {
		return err
	}
	for _, p := range g.Partitions {
		if p.Expired > 0 {
			fmt.Fprintf(a.stdout, "partition %d: retention has removed %s that the group was not done with\n", p.Number, plural(int64(p.Expired), "record"))
		}
	}
	for _, p := range g.Partitions {
		if p.Letters > 0 {
			fmt.Fprintf(a.stdout, "partition %d: %s to be written; lockstep explain says what they wait for\n", p.Number, plural(int64(p.Letters), "dead letter"))
		}
	}
	if err := a.printParked(g); err != nil {
		return err
	}
	for _, p := range g.Partitions {
		if n := len(p.Uncovered); n > 0 {
			more := ""
			if n > maxProblems {
				more = fmt.Sprintf(" and %d more", n-maxProblems)
			}
			fmt.Fprintf(a.stdout, "partitions without a consumer: %v%s; start more consumers, or bind with cover\n", p.Uncovered[:min(n, maxProblems)], more)
		}
	}
	if unknown > 0 {
		fmt.Fprintf(a.stdout, "%s without an answer: how the group stands there, and its members there, is not known; see lockstep cluster health\n", plural(int64(unknown), "partition"))
	}
	if len(members) == 0 {
		if unknown > 0 {
			return nil
		}
		_, err := fmt.Fprintln(a.stdout, "no members")
		return err
	}
	return a.printTable([]string{"partition", "member", "from", "state", "leased", "capacity", "heard"}, members, "partition", "leased", "capacity", "heard")
}

// printParked lists what is parked, if anything is.
func (a *app) printParked(g *client.GroupInfo) error {
	var rows [][]string
	n := namer{settings: g.Settings.WithDefaults()}
	hidden := uint64(0)
	for _, p := range g.Partitions {
		for _, x := range p.ParkedScopes {
			lasts := formatDuration((time.Duration(x.ForMs) * time.Millisecond).Round(time.Second))
			if x.AtLeast {
				lasts = "more than " + lasts
			}
			rows = append(rows, []string{fmt.Sprint(p.Number), n.parked(&x, p.Number), fmt.Sprint(x.Offset), lasts, oneLine(x.Reason)})
		}
		hidden += p.Parked - min(p.Parked, uint64(len(p.ParkedScopes)))
	}
	if len(rows) == 0 {
		return nil
	}
	if err := a.printTable([]string{"partition", "parked", "from", "for", "reason"}, rows, "partition", "from"); err != nil {
		return err
	}
	if hidden > 0 {
		_, err := fmt.Fprintf(a.stdout, "and %s more, the %d that were parked first of each partition are shown\n", formatCount(int64(hidden)), wire.MaxParkedShown)
		return outputError(err)
	}
	return nil
}

func letterText(s *client.GroupSettings) string {
	if s.DeadLetterMode == wire.DeadLetterPark {
		return "its scope is parked"
	}
	return fmt.Sprintf("a record goes to %q", s.DeadLetter)
}

// groupSettingsFlags are the flags of group create and alter.
type groupSettingsFlags struct {
	mode, scope, holder, binding, order, letterMode *choiceFlag
	ackWait, session, revoke, backoff, backoffMax   durationFlag
	limit, window                                   uint32
	letter                                          string
	hold, failback                                  bool
}

func newGroupSettingsFlags(c *cobra.Command) *groupSettingsFlags {
	f := &groupSettingsFlags{
		mode: newChoice("", "shared", "serial", "stream"), scope: newChoice("", "key", "publisher", "destination"), holder: newChoice("", "sticky", "any", "sole"),
		binding: newChoice("", "cover", "strict", "gather", "local"), order: newChoice("", "strict", "replay"), letterMode: newChoice("", "record", "park", "none"),
	}
	flags := c.Flags()
	flags.Var(f.mode, "mode", "how the group shares records")
	flags.Var(f.scope, "scope", "what a serial group handles one after the other")
	flags.Var(f.holder, "holder", "with --scope destination: one member while it lives, whoever is free, or the only one that may join")
	flags.Var(f.binding, "binding", "which partitions a member has")
	flags.Var(f.order, "order", "when the next record of a scope starts: after the outcome of the one before is committed, or known")
	flags.Var(&f.ackWait, "ack-wait", "`time` that a record may be worked on")
	flags.Var(&f.session, "session-timeout", "`time` without a sign of life after which a member's records go to others")
	flags.Var(&f.revoke, "revoke-grace", "`time` that a member has to give back what it is asked for")
	flags.Var(&f.backoff, "backoff", "`pause` before the second attempt; it doubles with each")
	flags.Var(&f.backoffMax, "backoff-max", "longest `pause` before an attempt")
	flags.Uint32Var(&f.limit, "delivery-limit", 0, "`attempts` after which a record is a dead letter; 0 = as many as it takes")
	flags.StringVar(&f.letter, "dead-letter", "", "`destination` for dead letters")
	flags.Var(f.letterMode, "dead-letter-mode", "what becomes of a record at the delivery limit: it goes to the dead letters alone, or its scope is parked with it")
	flags.Uint32Var(&f.window, "scope-window", 0, "`records` of one scope that are sent ahead")
	flags.BoolVar(&f.hold, "hold", false, "keep records in a topic until this group is done with them")
	flags.BoolVar(&f.failback, "failback", false, "an active member with --standby makes way for one without it")
	for _, name := range []string{"ack-wait", "session-timeout", "revoke-grace", "backoff", "backoff-max", "delivery-limit", "scope-window", "hold", "failback"} {
		withoutDefault(flags, name)
	}
	return f
}

// apply puts what was given into settings.
func (f *groupSettingsFlags) apply(c *cobra.Command, s *client.GroupSettings) error {
	flags := c.Flags()
	for _, choice := range []struct {
		flag *choiceFlag
		into interface{ UnmarshalText([]byte) error }
	}{{f.mode, &s.Mode}, {f.scope, &s.Scope}, {f.holder, &s.Holder}, {f.binding, &s.Binding}, {f.order, &s.Order}, {f.letterMode, &s.DeadLetterMode}} {
		if choice.flag.value != "" {
			if err := choice.into.UnmarshalText([]byte(choice.flag.value)); err != nil {
				return err
			}
		}
	}
	for _, d := range []struct {
		name string
		flag durationFlag
		into *uint32
	}{
		{"ack-wait", f.ackWait, &s.AckWaitMs}, {"session-timeout", f.session, &s.SessionMs}, {"revoke-grace", f.revoke, &s.RevokeMs},
		{"backoff", f.backoff, &s.BackoffMs}, {"backoff-max", f.backoffMax, &s.BackoffMaxMs},
	} {
		if flags.Changed(d.name) {
			ms := d.flag.value.Milliseconds()
			if ms < 1 || ms > 1<<32-1 {
				return usagef(c, "flag --%s: %s is not between 1ms and 49 days", d.name, d.flag.String())
			}
			*d.into = uint32(ms)
		}
	}
	if flags.Changed("delivery-limit") {
		s.DeliveryLimit = f.limit
	}
	if flags.Changed("dead-letter") {
		s.DeadLetter = f.letter
	}
	if flags.Changed("scope-window") {
		s.Window = f.window
	}
	if flags.Changed("hold") {
		s.Hold = f.hold
	}
	if flags.Changed("failback") {
		s.Failback = f.failback
	}
	switch d := s.WithDefaults(); { // what would count for nothing is not what is meant
	case flags.Changed("scope") && d.Mode != client.Serial:
		return usagef(c, "--scope is about serial groups, and this one is %s; make it serial with: %s --mode serial --scope %s", d.Mode, sameCommand(c), f.scope.value)
	case flags.Changed("holder") && (d.Mode != client.Serial || d.Scope != client.ByDestination):
		return usagef(c, "--holder is about groups that are serial by destination, and this one is %s; make it so with: %s --mode serial --scope destination --holder %s", modeText(&d), sameCommand(c), f.holder.value)
	}
	return nil
}

// sameCommand is a command with its arguments and without its flags, to be pasted.
func sameCommand(c *cobra.Command) string {
	text := c.CommandPath()
	for _, word := range c.Flags().Args() {
		text += " " + shellWord(word)
	}
	return text
}

func (a *app) groupCreateCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "create DEST GROUP",
		Short: "Make a group, before anybody consumes",
		Example: `  lockstep group create orders audit --mode serial --scope key
  lockstep group create events etl2 --mode stream --from earliest`,
		Args: exactArgs("DEST", "GROUP"), ValidArgsFunction: a.completeNames(destinationNames(0, true), nil),
	}
	f := newGroupSettingsFlags(c)
	from := newChoice("", "earliest", "latest")
	c.Flags().Var(from, "from", "where it begins: at the earliest record, as for queues, or behind the latest, as for topics")
	at := c.Flags().String("at", "", "begin at the first record appended at or after a `time`: RFC 3339, a local date, or a distance like '15m ago'")
	c.RunE = func(c *cobra.Command, args []string) error {
		if from.value != "" && *at != "" {
			return usagef(c, "--from and --at say where the group begins: give only one of them")
		}
		intent := client.GroupIntent{Start: client.GroupStart{To: from.value}}
		if *at != "" {
			t, err := parseTime(*at, a.now())
			if err != nil {
				return usagef(c, "flag --at: %v", err)
			}
			intent.Start = client.GroupStart{To: "time", TimeMs: t.UnixMilli()}
		}
		switch mode := f.mode.value; {
		case f.scope.value != "" && mode == "":
			f.mode.value = "serial"
		case f.scope.value != "" && mode != "serial":
			return usagef(c, "--scope is about --mode serial, not %s", mode)
		}
		if err := f.apply(c, &intent.Settings); err != nil {
			return err
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			info, err := conn.CreateGroup(ctx, args[0], args[1], intent)
			if err == nil {
				fmt.Fprintf(a.stdout, "group %s of %s created: %s\n", args[1], args[0], modeText(&info.Settings))
				a.warnOfLetters(ctx, conn, intent.Settings.DeadLetter)
				a.warnOfSession(intent.Settings.SessionMs)
			}
			return groupFailure("create", args[0], args[1], err)
		})
	}
	return c
}

// warnOfSession says what a session timeout below the default costs: consumers count nine
// tenths of it from the last heartbeat that was answered, which is up to a third of it old
// when a leader hangs, and the next leader may take 3 s.
func (a *app) warnOfSession(ms uint32) {
	if ms > 0 && ms < wire.DefaultSessionMs {
		timeout := time.Duration(ms) * time.Millisecond
		left := (timeout * 17 / 30).Round(100 * time.Millisecond)
		fmt.Fprintf(a.stderr, "lockstep: with a session timeout of %s records may be delivered again when a leader hangs: another one leads within 3s, and consumers give up what they hold after %s; from %s on that repeats nothing\n",
			formatDuration(timeout), formatDuration(left), formatDuration(wire.DefaultSessionMs*time.Millisecond))
	}
}

func (a *app) groupAlterCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "alter DEST GROUP",
		Short: "Change a group; what is not given stays as it is",
		Long: `Change a group. What is not given stays as it is. Members are asked to give back what
they hold first, and outcomes of the time before do not count after it: old rules before,
new rules behind.`,
		Example: `  lockstep group alter orders billing --ack-wait 5m
  lockstep group alter orders billing --mode shared
  lockstep group alter orders billing --delivery-limit 5 --dead-letter-mode park`,
		Args: exactArgs("DEST", "GROUP"), ValidArgsFunction: a.completeGroups(),
	}
	f := newGroupSettingsFlags(c)
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		changes := false
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { changes = changes || f.Changed && f.Name != "output" })
		if !changes {
			return usagef(c, "nothing to change in group %q of %q; give at least one setting, as in --ack-wait 5m", args[1], args[0])
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			info, err := f.alter(ctx, c, conn, args[0], args[1])
			if err != nil {
				return err
			}
			a.warnOfLetters(ctx, conn, info.Own.DeadLetter)
			a.warnOfSession(info.Own.SessionMs)
			if output.value == "json" {
				return a.printJSON(&info)
			}
			_, err = fmt.Fprintf(a.stdout, "group %s of %s altered: %s\n", args[1], args[0], modeText(&info.Settings))
			return outputError(err)
		})
	}
	return c
}

// alter changes what was given and nothing else: where others have changed the group since it
// was looked at, it is looked at again.
func (f *groupSettingsFlags) alter(ctx context.Context, c *cobra.Command, conn *client.Conn, destination, name string) (client.GroupInfo, error) {
	for seen := uint64(0); ; {
		list, err := conn.Groups(ctx, destination)
		i := slices.IndexFunc(list, func(g client.GroupInfo) bool { return g.Name == name })
		if err == nil && i < 0 {
			err = wire.Errorf(wire.CodeUnknownGroup, "%q has no group %q", destination, name)
		}
		if err != nil {
			return client.GroupInfo{}, groupFailure("alter", destination, name, err)
		}
		intent := client.GroupIntent{Settings: list[i].Own, IfVersion: list[i].Version}
		if err := f.apply(c, &intent.Settings); err != nil {
			return client.GroupInfo{}, err
		}
		info, err := conn.AlterGroup(ctx, destination, name, intent)
		if !errors.Is(err, wire.CodeRefused) || list[i].Version == seen {
			return info, groupFailure("alter", destination, name, err)
		}
		seen = list[i].Version
	}
}

func (a *app) groupPauseCommand(pause bool) *cobra.Command {
	verb, short, outcome := "resume", "Let the deliveries of a paused group go on", "resumed"
	if pause {
		verb, short, outcome = "pause", "Stop the deliveries of a group; what is held may be finished", "paused"
	}
	c := &cobra.Command{
		Use: verb + " DEST GROUP", Short: short, Example: fmt.Sprintf("  lockstep group %[1]s orders billing\n  lockstep group %[1]s events etl", verb), Args: exactArgs("DEST", "GROUP"), ValidArgsFunction: a.completeGroups(),
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			old, err := conn.Groups(ctx, args[0])
			if err == nil {
				_, err = conn.PauseGroup(ctx, args[0], args[1], pause)
			}
			same := slices.ContainsFunc(old, func(g client.GroupInfo) bool { return g.Name == args[1] && g.Paused == pause })
			switch {
			case err != nil:
			case same && pause:
				fmt.Fprintf(a.stdout, "group %s of %s was paused already\n", args[1], args[0])
			case same:
				fmt.Fprintf(a.stdout, "group %s of %s was not paused\n", args[1], args[0])
			default:
				fmt.Fprintf(a.stdout, "group %s of %s %s\n", args[1], args[0], outcome)
			}
			return groupFailure(verb, args[0], args[1], err)
		})
	}
	return c
}

// waitingLetters is how many dead letters of a group are not written yet, as far as the leaders
// say, and where they go.
func waitingLetters(ctx context.Context, conn *client.Conn, destination, group string) (n uint64, to string) {
	d, err := conn.Destination(ctx, destination)
	if err != nil {
		return 0, ""
	}
	for _, p := range d.Partitions {
		var open wire.LettersResponse
		if conn.GroupOrder(ctx, wire.OrderLetters, destination, p.Number, group, nil, &open) == nil {
			n, to = n+open.Count, open.To
		}
	}
	return n, to
}

func (a *app) groupRmCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "rm DEST GROUP", Aliases: []string{"remove", "delete"}, Short: "Remove a group with all it knows about records",
		Long: `Remove a group with all it knows about records. Its dead letters that are not written yet
are written all the same, and lockstep dlq ls shows them until then; --letters gives them up,
also those of a group that was removed before.`,
		Example: "  lockstep group rm orders billing\n  lockstep group rm events etl --letters", Args: exactArgs("DEST", "GROUP"), ValidArgsFunction: a.completeGroups(),
	}
	letters := c.Flags().Bool("letters", false, "give up its dead letters that are not written yet")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			var waiting uint64
			var to string
			groups, err := conn.Groups(ctx, args[0])
			if err == nil && slices.ContainsFunc(groups, func(g client.GroupInfo) bool { return g.Name == args[1] }) {
				waiting, to = waitingLetters(ctx, conn, args[0], args[1])
			}
			err = conn.RemoveGroup(ctx, args[0], args[1])
			if err == nil {
				fmt.Fprintf(a.stdout, "group %s of %s removed\n", args[1], args[0])
			}
			if *letters && (err == nil || errors.Is(err, wire.CodeUnknownGroup)) {
				n, failed := giveUpRemoved(ctx, conn, args[0], args[1], waiting)
				if n > 0 {
					fmt.Fprintf(a.stdout, "gave up %s of %s\n", plural(int64(n), "dead letter"), args[1])
				}
				if n > 0 || failed != nil {
					err = failed
				}
			} else if err == nil {
				if waiting > 0 {
					fmt.Fprintf(a.stderr, "lockstep: %s of it will be written to %q as soon as that takes them; their records are kept until then\n", plural(int64(waiting), "dead letter"), to)
				}
			}
			return groupFailure("remove", args[0], args[1], err)
		})
	}
	return c
}

func (a *app) groupSeekCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "seek DEST GROUP",
		Short: "Move a group to another place, backwards to repeat or forwards to skip",
		Long: `Move a group in all partitions, or in some. Members give back what they hold first, and
outcomes of the time before do not count after it. With --dry-run nothing happens, and
what would is printed.`,
		Example: `  lockstep group seek orders billing --to earliest --dry-run
  lockstep group seek orders billing --at '1h ago'
  lockstep group seek orders billing --partition 2 --offset 4711`,
		Args: exactArgs("DEST", "GROUP"), ValidArgsFunction: a.completeGroups(),
	}
	flags := c.Flags()
	to := newChoice("", "earliest", "latest")
	flags.Var(to, "to", "the first record that is there, or behind the last")
	offset := flags.Uint64("offset", 0, "the record with this `number`, of one --partition")
	withoutDefault(flags, "offset")
	at := flags.String("at", "", "the first record appended at or after a `time`: RFC 3339, a local date, or a distance like '15m ago'")
	partitions := flags.UintSlice("partition", nil, "move the group in the partition with this `number` only; may be repeated")
	dry := flags.Bool("dry-run", false, "say what would happen")
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		ask := client.SeekRequest{To: to.value, DryRun: *dry}
		given := 0
		if to.value != "" {
			given++
		}
		if flags.Changed("offset") {
			given++
			ask.To, ask.Offset = "offset", *offset
		}
		if *at != "" {
			given++
			t, err := parseTime(*at, a.now())
			if err != nil {
				return usagef(c, "flag --at: %v", err)
			}
			ask.To, ask.TimeMs = "time", t.UnixMilli()
		}
		if given != 1 {
			return usagef(c, "say where to: one of --to, --offset and --at")
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			d, err := conn.Destination(ctx, args[0])
			if err != nil {
				return groupFailure("seek", args[0], args[1], err)
			}
			var numbers []uint32
			for _, n := range *partitions {
				numbers = append(numbers, uint32(n))
			}
			if len(numbers) == 0 {
				for _, p := range d.Partitions {
					numbers = append(numbers, p.Number)
				}
			}
			if flags.Changed("offset") && len(numbers) != 1 {
				return usagef(c, "--offset counts within one partition; give one --partition")
			}
			return a.seek(ctx, conn, args[0], args[1], numbers, &ask, output.value == "json")
		})
	}
	return c
}

// seekJSON is one partition of `group seek -o json`.
type seekJSON struct {
	Partition uint32 `json:"partition"`
	client.SeekResponse
	Are string `json:"are"` // the records: repeated, or skipped
}

func (a *app) seek(ctx context.Context, conn *client.Conn, destination, group string, partitions []uint32, ask *client.SeekRequest, asJSON bool) error {
	objects, rows := []seekJSON{}, [][]string(nil)
	infos, err := conn.Groups(ctx, destination)
	if err == nil && !slices.ContainsFunc(infos, func(g client.GroupInfo) bool { return g.Name == group }) {
		err = wire.Errorf(wire.CodeUnknownGroup, "%q has no group %q", destination, group)
	}
	if err != nil {
		return groupFailure("seek", destination, group, err)
	}
	answers := make([]client.SeekResponse, len(partitions))
	errs := conn.GroupOrders(ctx, 0, wire.OrderSeek, destination, partitions, group, ask, func(i int) any { return &answers[i] })
	for i, n := range partitions {
		if errs[i] != nil {
			continue
		}
		answer := answers[i]
		what := "repeated"
		if answer.To > answer.From {
			what = "skipped"
		}
		objects = append(objects, seekJSON{n, answer, what})
		rows = append(rows, []string{fmt.Sprint(n), fmt.Sprint(answer.From), fmt.Sprint(answer.To), fmt.Sprint(answer.Records), what})
	}
	if asJSON {
		err = a.printJSON(objects)
	} else if len(rows) > 0 {
		err = a.printTable([]string{"partition", "from", "to", "records", "are"}, rows, "partition", "from", "to", "records")
	}
	return errors.Join(err, groupFailure("seek", destination, group, errors.Join(errs...)))
}

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func (a *app) dlqCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:        "dlq",
		SuggestFor: []string{"dead-letter", "dead-letters", "dlx", "dead"},
		Short:      "List, show, redrive and purge dead letters",
		Long: `Dead letters are records that failed too often or were rejected. They go where
--dead-letter of their queue, topic or group says.`,
		Example: `  lockstep dlq ls
  lockstep dlq show orders.dead`,
	})
	a.clientFlags(c)
	c.AddCommand(a.dlqLsCommand(), a.dlqShowCommand(), a.dlqRedriveCommand(), a.dlqPurgeCommand())
	return c
}

// dlqJSON is a destination for dead letters as `dlq ls -o json` prints it.
type dlqJSON struct {
	Name    string      `json:"name"`
	Exists  bool        `json:"exists"`
	From    []string    `json:"from"` // destinations, or destination/group where a group says it
	Letters int         `json:"letters"`
	Groups  []lettersOf `json:"groups"`           // that gave them up, by name
	Oldest  *time.Time  `json:"oldest,omitempty"` // when it was written there
	Waiting uint64      `json:"waiting"`          // that could not be written yet
	Back    uint64      `json:"back"`             // of Letters: on their way back to where they come from
	Problem string      `json:"problem,omitempty"`
}

// lettersOf is how many dead letters one group of a destination has given up.
type lettersOf struct {
	Origin  string `json:"origin"`
	Group   string `json:"group"`
	Letters int    `json:"letters"`
}

// say adds a problem.
func (d *dlqJSON) say(problem string) {
	if d.Problem != "" {
		problem = d.Problem + "; " + problem
	}
	d.Problem = problem
}

// count adds a letter.
func (d *dlqJSON) count(l *client.Letter) {
	d.Letters++
	for i := range d.Groups {
		if x := &d.Groups[i]; x.Origin == l.Origin && x.Group == l.Group {
			x.Letters++
			return
		}
	}
	d.Groups = append(d.Groups, lettersOf{Origin: l.Origin, Group: l.Group, Letters: 1})
}

func (a *app) dlqLsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List where dead letters go, from where, how many are there of which group, and the oldest",
		Example: "  lockstep dlq ls\n  lockstep dlq ls -o json", Args: exactArgs(),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			list, missing, err := letterDestinations(ctx, conn)
			if err != nil {
				return &failure{doing: "list dead letters", err: err}
			}
			if missing != nil {
				missing = &failure{doing: "list dead letters", err: missing}
			}
			if output.value == "json" {
				return cmp.Or(a.printJSON(list), missing)
			}
			if len(list) == 0 && missing == nil {
				fmt.Fprintln(a.stderr, "no dead letter destinations yet; name one with: lockstep queue alter orders --delivery-limit 5 --dead-letter orders.dead")
				return nil
			}
			var rows [][]string
			for _, d := range list {
				oldest, problem := "", d.Problem
				if d.Oldest != nil {
					oldest = formatDuration(max(a.now().Sub(*d.Oldest).Round(time.Second), 0)) + " ago" // it was stored by another clock
				}
				if !d.Exists {
					problem = cmp.Or(problem, "it does not exist: lockstep queue create "+d.Name)
				}
				var of []string
				for _, x := range d.Groups {
					of = append(of, fmt.Sprintf("%s/%s %d", x.Origin, x.Group, x.Letters))
				}
				rows = append(rows, []string{d.Name, strings.Join(d.From, ", "), fmt.Sprint(d.Letters), strings.Join(of, ", "), oldest, fmt.Sprint(d.Waiting), fmt.Sprint(d.Back), problem})
			}
			return cmp.Or(a.printTable([]string{"name", "from", "letters", "of groups", "oldest", "waiting", "going back", "problem"}, rows, "letters", "waiting", "going back"), missing)
		})
	}
	return c
}

// warnOfLetters says on stderr that a destination for dead letters is missing: until it is
// there they wait. "" is none.
func (a *app) warnOfLetters(ctx context.Context, conn *client.Conn, name string) {
	if name == "" {
		return
	}
	if _, err := conn.Destination(ctx, name); errors.Is(err, wire.CodeUnknownDestination) {
		fmt.Fprintf(a.stderr, "lockstep: dead letters are to go to %q, which does not exist yet; create it with: lockstep queue create %s\n", name, shellWord(name))
	}
}

// lettersOfRemoved says which dead letters are lost when d is removed, and whose have nowhere to
// go then, in lines; "" if there are none, or if nobody can say.
func (a *app) lettersOfRemoved(ctx context.Context, conn *client.Conn, d client.Destination) string {
	ctx, cancel := context.WithTimeout(ctx, a.requestTimeout)
	defer cancel()
	groups, err := conn.Groups(ctx, "")
	if err != nil {
		return ""
	}
	all, err := conn.Destinations(ctx)
	if err != nil {
		return ""
	}
	var text strings.Builder
	var from []string
	for _, other := range all {
		if other.Name != d.Name && other.Settings.DeadLetter == d.Name {
			from = append(from, other.Name)
		}
	}
	for _, g := range groups {
		if g.Destination == d.Name {
			if n, to := waitingLetters(ctx, conn, d.Name, g.Name); n > 0 {
				fmt.Fprintf(&text, "lockstep: %s of group %s went with it that could not be written to %q\n", plural(int64(n), "dead letter"), g.Name, to)
			}
		} else if g.Own.DeadLetter == d.Name {
			from = append(from, g.Destination+"/"+g.Name)
		}
	}
	if len(from) > 0 {
		fmt.Fprintf(&text, "lockstep: dead letters of %s are to go to %q, and wait until it is there again; create it with: lockstep queue create %s\n",
			strings.Join(from, ", "), d.Name, shellWord(d.Name))
	}
	return text.String()
}

// silence is why the letters of partitions are not known, nil if they are.
func silence(silent []place) error {
	if len(silent) == 0 {
		return nil
	}
	sort.Slice(silent, func(i, j int) bool {
		a, b := silent[i], silent[j]
		return cmp.Or(strings.Compare(a.destination, b.destination), cmp.Compare(a.partition, b.partition)) < 0
	})
	var names []string
	for _, p := range silent[:min(len(silent), maxProblems)] {
		names = append(names, fmt.Sprintf("%s/%d", p.destination, p.partition))
	}
	if more := len(silent) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return wire.Errorf(wire.CodeUnavailable, "no leader of %s has answered within %s: the letters there are not known", strings.Join(names, ", "), formatDuration(removedTimeout))
}

// letterDestinations gathers where dead letters go. missing says which partitions nobody leads,
// whose letters are not in the list.
func letterDestinations(ctx context.Context, conn *client.Conn) (list []*dlqJSON, missing, err error) {
	all, err := conn.Destinations(ctx)
	if err != nil {
		return nil, nil, err
	}
	groups, err := conn.Groups(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	remains, silent := lettersAndSilent(ctx, conn, "", all...)
	unknown := make(map[place]bool)
	led := func(d *dlqJSON, p place) bool { // it can be asked
		if silent[p] {
			unknown[p] = true
			if text := fmt.Sprintf("%s/%d has no leader that answers", p.destination, p.partition); !strings.Contains(d.Problem, text) {
				d.say(text)
			}
		}
		return !silent[p]
	}
	byName := make(map[string]*dlqJSON)
	list = []*dlqJSON{}
	at := func(name, from string) *dlqJSON {
		d := byName[name]
		if d == nil {
			d = &dlqJSON{Name: name, Groups: []lettersOf{}}
			byName[name] = d
			list = append(list, d)
		}
		if !slices.Contains(d.From, from) {
			d.From = append(d.From, from)
		}
		return d
	}
	partitions := make(map[string][]client.PartitionInfo)
	for _, d := range all {
		partitions[d.Name] = d.Partitions
		if s := &d.Settings; s.DeadLetter != "" && s.DeadLetterMode <= wire.DeadLetterRecord {
			at(s.DeadLetter, d.Name)
		}
	}
	for _, g := range groups {
		s := &g.Settings
		if s.DeadLetterMode != wire.DeadLetterRecord {
			continue
		}
		from := g.Destination
		if g.Own.DeadLetter != "" {
			from += "/" + g.Name
		}
		d := at(s.DeadLetter, from)
		for _, p := range partitions[g.Destination] {
			if !led(d, place{g.Destination, p.Number}) {
				continue
			}
			var open wire.LettersResponse
			if err := conn.GroupOrder(ctx, wire.OrderLetters, g.Destination, p.Number, g.Name, nil, &open); err != nil {
				d.Problem = err.Error()
				continue
			}
			if d.Waiting += open.Count; open.Problem != "" {
				d.Problem = open.Problem
			}
		}
	}
	for _, of := range remains {
		from := of.destination + "/" + of.Group + " (removed)"
		problem := fmt.Sprintf("of a removed group: %s; %s gives them up", of.Problem, of.giveUp())
		if of.back > 0 {
			x := at(of.destination, from)
			x.Back += of.back
			x.say(problem)
		}
		if waiting := of.Count - of.back; waiting > 0 {
			x := at(of.To, from)
			x.Waiting += waiting
			x.say(problem)
		}
	}
	for _, d := range list {
		if _, d.Exists = partitions[d.Name]; !d.Exists {
			continue
		}
		for _, p := range partitions[d.Name] {
			if !led(d, place{d.Name, p.Number}) {
				continue
			}
			for l, err := range conn.DeadLetters(ctx, d.Name, client.LetterFilter{Partition: &p.Number}) {
				if err != nil {
					d.Problem = err.Error()
					break
				}
				if d.count(l); d.Oldest == nil || l.AppendTime.Before(*d.Oldest) {
					d.Oldest = &l.AppendTime
				}
			}
		}
	}
	for _, g := range groups { // also those without dead letters of their own
		d := byName[g.Destination]
		if d == nil || !d.Exists {
			continue
		}
		for _, p := range partitions[d.Name] {
			if !led(d, place{d.Name, p.Number}) {
				continue
			}
			var open wire.LettersResponse
			if err := conn.GroupOrder(ctx, wire.OrderLetters, d.Name, p.Number, g.Name, nil, &open); err != nil {
				d.Problem = cmp.Or(d.Problem, err.Error())
				continue
			}
			for _, l := range open.Letters {
				if l.Reason == wire.ReasonRedriven {
					d.Back++
					d.Problem = cmp.Or(d.Problem, l.Problem)
				}
			}
		}
	}
	for _, d := range list {
		sort.Slice(d.Groups, func(i, j int) bool {
			a, b := &d.Groups[i], &d.Groups[j]
			return cmp.Or(strings.Compare(a.Origin, b.Origin), strings.Compare(a.Group, b.Group)) < 0
		})
	}
	slices.SortFunc(list, func(a, b *dlqJSON) int { return strings.Compare(a.Name, b.Name) })
	return list, silence(slices.Collect(maps.Keys(unknown))), nil
}

// letterFlags say which letters are meant.
type letterFlags struct {
	origin, group, key string
	partition          uint32
	offset             uint64
	limit              int
}

func newLetterFlags(c *cobra.Command, limit int) *letterFlags {
	f := &letterFlags{}
	flags := c.Flags()
	flags.StringVar(&f.origin, "origin", "", "letters that come from this `queue or topic`")
	flags.StringVar(&f.group, "group", "", "letters that this `group` of their origin gave up")
	flags.StringVar(&f.key, "key", "", "letters with this `key`; bytes that do not print are written as hex:00ff")
	flags.Uint32Var(&f.partition, "partition", 0, "letters in the partition with this `number`")
	flags.Uint64Var(&f.offset, "offset", 0, "the letter with this `number`, of one --partition")
	flags.IntVarP(&f.limit, "limit", "n", limit, "the first so many `letters`")
	if limit == 0 {
		withoutDefault(flags, "limit") // all
	}
	withoutDefault(flags, "partition")
	withoutDefault(flags, "offset")
	return f
}

func (f *letterFlags) filter(c *cobra.Command) (client.LetterFilter, error) {
	out := client.LetterFilter{Origin: f.origin, Group: f.group, Limit: f.limit}
	flags := c.Flags()
	if flags.Changed("key") {
		key, err := parseKey(f.key)
		if err != nil {
			return out, usagef(c, "flag --key: %v", err)
		}
		out.Key = &key
	}
	if flags.Changed("partition") {
		out.Partition = &f.partition
	}
	if flags.Changed("offset") {
		out.Offset = &f.offset
	}
	switch {
	case flags.Changed("offset") && !flags.Changed("partition"):
		return out, usagef(c, "--offset counts within one partition; give --partition too")
	case f.limit < 1 && flags.Changed("limit"):
		return out, usagef(c, "flag --limit: at least 1")
	}
	return out, nil
}

// unknownError says that what a flag names is not there.
type unknownError struct {
	code wire.ErrorCode
	text string
}

func (e *unknownError) Error() string { return e.text }
func (e *unknownError) Unwrap() error { return e.code }

// known fails if no letter is meant because the origin or the group is misspelt: because there
// is neither a letter of it nor, any more, itself. The error is an *unknownError.
func (f *letterFlags) known(ctx context.Context, conn *client.Conn, letters string) error {
	if f.origin == "" && f.group == "" {
		return nil
	}
	origins, err := destinationNames(0, false)(ctx, conn)
	if err != nil {
		return err
	}
	groups, err := groupNames("")(ctx, conn)
	if err != nil {
		return err
	}
	for l, err := range conn.DeadLetters(ctx, letters, client.LetterFilter{}) {
		if err != nil {
			return err
		}
		if l.Origin == f.origin || f.origin == "" {
			groups = append(groups, l.Group)
		}
		origins = append(origins, l.Origin)
	}
	for _, name := range []struct {
		flag, noun, value string
		known             []string
		code              wire.ErrorCode
	}{{"origin", "queue or topic", f.origin, origins, wire.CodeUnknownDestination}, {"group", "group", f.group, groups, wire.CodeUnknownGroup}} {
		if name.value == "" || slices.Contains(name.known, name.value) {
			continue
		}
		text := fmt.Sprintf("flag --%s: there is no %s %q, and %q has no letters of one", name.flag, name.noun, name.value, letters)
		if near := nearest(name.value, name.known); near != "" {
			text += fmt.Sprintf("; did you mean %q?", near)
		} else {
			text += "; see whose letters are where with: lockstep dlq ls"
		}
		return &unknownError{name.code, text}
	}
	return nil
}

// meant says that not all letters are meant, if so.
func (f *letterFlags) meant(c *cobra.Command) string {
	for _, name := range []string{"origin", "group", "key", "partition", "offset", "limit"} {
		if c.Flags().Changed(name) {
			return " of that kind"
		}
	}
	return ""
}

// letterJSON is a dead letter as `dlq show -o json` prints it.
type letterJSON struct {
	Partition  uint32    `json:"partition"`
	Offset     uint64    `json:"offset"`
	Time       time.Time `json:"time"`
	Origin     string    `json:"origin"`
	Group      string    `json:"group"`
	Reason     string    `json:"reason"`
	Text       string    `json:"text,omitempty"`
	Deliveries int       `json:"deliveries"`
	Attempts   int       `json:"attempts"`
	jsonContent
}

func (a *app) dlqShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "show DEST", Aliases: []string{"describe", "browse"}, Short: "Show dead letters: where each comes from, why, how often it was tried, and what it holds",
		Example: "  lockstep dlq show orders.dead\n  lockstep dlq show orders.dead --group billing --limit 1 -o json", Args: exactArgs("DEST"), ValidArgsFunction: a.completeDestinations(),
	}
	flags := newLetterFlags(c, 100)
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := flags.filter(c)
		if err != nil {
			return err
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			n := 0
			for l, err := range conn.DeadLetters(ctx, args[0], filter) {
				if err != nil {
					return &failure{doing: "show dead letters of", destination: args[0], err: err}
				}
				n++
				if err := a.showLetter(args[0], l, output.value == "json"); err != nil {
					return err
				}
			}
			if n > 0 {
				return nil
			}
			if err := flags.known(ctx, conn, args[0]); err != nil {
				return &failure{doing: "show dead letters of", destination: args[0], err: err}
			}
			fmt.Fprintf(a.stderr, "no dead letters%s in %q%s\n", flags.meant(c), args[0], lettersGoTo(ctx, conn, args[0]))
			return nil
		})
	}
	return c
}

// lettersGoTo says where the groups of a destination send dead letters, for who looks for
// them in that itself; "" if nowhere else.
func lettersGoTo(ctx context.Context, conn *client.Conn, destination string) string {
	groups, err := conn.Groups(ctx, destination)
	if err != nil {
		return ""
	}
	var names []string
	for _, g := range groups {
		if name := g.Settings.DeadLetter; name != "" && name != destination && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return fmt.Sprintf("; those of %q go to %s", destination, strings.Join(names, ", "))
}

func (a *app) showLetter(destination string, l *client.Letter, asJSON bool) error {
	r := l.Original()
	if asJSON {
		j := letterJSON{
			Partition: l.Partition, Offset: l.Offset, Time: l.AppendTime, Origin: originText(l),
			Group: l.Group, Reason: l.Reason, Text: l.Text, Deliveries: l.Deliveries, Attempts: l.Attempts, jsonContent: contentOf(r),
		}
		return a.printJSON(j)
	}
	why := l.Reason
	if l.Text != "" {
		why += ": " + oneLine(l.Text)
	}
	fmt.Fprintf(a.stdout, "%s/%d@%d  from %s/%d@%d, group %s, %s\n  %s, delivered %s, failed %s\n", destination, l.Partition, l.Offset,
		l.Origin, l.OriginPartition, l.OriginOffset, l.Group, why, l.AppendTime.Format(time.RFC3339), plural(int64(l.Deliveries), "time"), plural(int64(l.Attempts), "time"))
	if r.Key != nil {
		fmt.Fprintf(a.stdout, "  key:   %q\n", keyText(r.Key))
	}
	for _, h := range r.Headers {
		fmt.Fprintf(a.stdout, "  %s: %q\n", h.Key, h.Value)
	}
	_, err := fmt.Fprintf(a.stdout, "  value: %q\n", r.Value)
	return outputError(err)
}

// originText is where a letter comes from.
func originText(l *client.Letter) string {
	return fmt.Sprintf("%s/%d@%d", l.Origin, l.OriginPartition, l.OriginOffset)
}

// redrivenJSON is a dead letter that goes back to where it comes from, or stays.
type redrivenJSON struct {
	Partition uint32 `json:"partition"`
	Offset    uint64 `json:"offset"`
	Origin    string `json:"origin"`
	Group     string `json:"group"`
	Problem   string `json:"problem,omitempty"` // why it stays
}

func (a *app) dlqRedriveCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "redrive DEST", Aliases: []string{"replay"}, Short: "Send dead letters back to where they come from, in order, and take them off",
		Long: `Send dead letters back to the partitions they come from, in order, and take them off.
Every group of the origin gets what is sent back, also those that were done with it. It
has the original key, value and headers, and the header lockstep-redriven. Each letter goes
back once and in its order, however this command ends: what is on its way then arrives all
the same, and the next one goes on with the rest, behind it. --dry-run only says what would
be sent back.`,
		Example: "  lockstep dlq redrive orders.dead --dry-run\n  lockstep dlq redrive orders.dead --group billing --key customer-17", Args: exactArgs("DEST"), ValidArgsFunction: a.completeDestinations(),
	}
	flags := newLetterFlags(c, 10_000)
	dry := c.Flags().Bool("dry-run", false, "say what would happen")
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := flags.filter(c)
		if err != nil {
			return err
		}
		conn, err := a.connect(c.Context())
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx := c.Context() // it takes as long as it gets on
		return interruptedOr(ctx, func() error {
			said := func(l *client.Letter, err error) {
				if output.value == "json" {
					j := redrivenJSON{Partition: l.Partition, Offset: l.Offset, Origin: originText(l), Group: l.Group}
					if err != nil {
						j.Problem = err.Error()
					}
					_ = a.printJSON(&j) // what is on its way arrives all the same, and the summary fails as well
					return
				}
				if err != nil {
					fmt.Fprintf(a.stderr, "lockstep: %s/%s\n", args[0], oneLine(err.Error()))
					return
				}
				fmt.Fprintf(a.stdout, "%s/%d@%d to %s/%d\n", args[0], l.Partition, l.Offset, l.Origin, l.OriginPartition)
			}
			redrive, verb := conn.Redrive, "redrove"
			if *dry {
				redrive, verb = conn.RedriveDryRun, "would redrive"
			}
			n, err := redrive(ctx, args[0], filter, said)
			if err == nil && n == 0 {
				err = flags.known(ctx, conn, args[0])
			}
			var printed error
			if err == nil || n > 0 {
				elsewhere := ""
				if n == 0 {
					elsewhere = lettersGoTo(ctx, conn, args[0])
				}
				summary := a.stdout
				if output.value == "json" {
					summary = a.stderr
				}
				_, printed = fmt.Fprintf(summary, "%s %s%s\n", verb, plural(int64(n), "letter"), elsewhere)
			}
			if stays := new(client.LetterError); errors.As(err, &stays) { // its code is about the origin
				return errors.New(oneLine(err.Error()))
			}
			if err != nil {
				return a.suggest(ctx, conn, &failure{doing: "redrive", destination: args[0], err: err})
			}
			return outputError(printed)
		}())
	}
	return c
}

func (a *app) dlqPurgeCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "purge DEST", Short: "Give up dead letters of a queue, all or those that are meant, for good",
		Long: `Give up dead letters of a queue for good: all, or those that are meant. Without --yes it
only counts them. It takes as long as it gets on; who interrupts it may run it again for
the rest.`,
		Example: "  lockstep dlq purge orders.dead --yes\n  lockstep dlq purge orders.dead --group billing --yes", Args: exactArgs("DEST"), ValidArgsFunction: a.completeDestinations(),
	}
	flags := newLetterFlags(c, 0)
	yes := c.Flags().Bool("yes", false, "do it: they are gone for good")
	c.RunE = func(c *cobra.Command, args []string) error {
		filter, err := flags.filter(c)
		if err != nil {
			return err
		}
		conn, err := a.connect(c.Context())
		if err != nil {
			return err
		}
		defer conn.Close()
		ctx := c.Context() // it takes as long as it gets on
		n := 0
		if *yes {
			if n, err = conn.Purge(ctx, args[0], filter); err != nil && n > 0 {
				fmt.Fprintf(a.stderr, "lockstep: %s of %q purged so far; the same command goes on with the rest\n", plural(int64(n), "dead letter"), args[0])
			}
		} else {
			for _, err = range conn.DeadLetters(ctx, args[0], filter) {
				if err != nil {
					break
				}
				n++
			}
		}
		switch {
		case err != nil:
			return interruptedOr(ctx, a.suggest(ctx, conn, &failure{doing: "purge", destination: args[0], err: err}))
		case n == 0:
			if err := flags.known(ctx, conn, args[0]); err != nil {
				return &failure{doing: "purge", destination: args[0], err: err}
			}
			_, err = fmt.Fprintf(a.stdout, "%q holds no dead letters%s; other records stay%s\n", args[0], flags.meant(c), lettersGoTo(ctx, conn, args[0]))
		case !*yes:
			return &failure{doing: "purge", destination: args[0], err: errors.New("it holds " + plural(int64(n), "dead letter") + flags.meant(c) + "; repeat the command with --yes to give them up for good")}
		default:
			_, err = fmt.Fprintf(a.stdout, "purged %s of %q\n", plural(int64(n), "dead letter"), args[0])
		}
		return outputError(err)
	}
	return c
}

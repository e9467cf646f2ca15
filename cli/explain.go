package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// explainJSON is one answer of `explain -o json`. The times are of the clock of the
// partition's leader, which says what time it is.
type explainJSON struct {
	Partition uint32 `json:"partition"`
	Group     string `json:"group"`
	NowMs     int64  `json:"now_ms,omitempty"`
	Key       string `json:"key,omitempty"` // or publisher of the record that waits, as commands take it, if it could be read
	client.Reason
}

func (a *app) explainCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:        "explain",
		SuggestFor: []string{"why", "diagnose"},
		Short:      "Say why records are not moving, and what blocks them",
		Example: `  lockstep explain queue orders
  lockstep explain queue orders --group billing`,
	})
	a.clientFlags(c)
	c.AddCommand(a.explainDestinationCommand(queueWords), a.explainDestinationCommand(topicWords))
	return c
}

func (a *app) explainDestinationCommand(w destinationWords) *cobra.Command {
	kind := w.noun
	example := []string{"orders", "billing"}
	if kind == "topic" {
		example = []string{"events", "etl"}
	}
	c := &cobra.Command{
		Use:   kind + " DEST",
		Short: "Say why records of a " + kind + " are not moving, and what blocks them",
		Example: fmt.Sprintf(`  lockstep explain %[1]s %[2]s
  lockstep explain %[1]s %[2]s --group %[3]s
  lockstep explain %[1]s %[2]s --group %[3]s --key customer-17
  lockstep explain %[1]s %[2]s --group %[3]s --partition 2 --offset 4711`, kind, example[0], example[1]),
		Args: exactArgs("DEST"), ValidArgsFunction: a.completeNames(destinationNames(w.kind, true)),
	}
	flags := c.Flags()
	group := flags.String("group", "", "only the group with this `name`; without it all groups")
	key := flags.String("key", "", "the records with this `key`; bytes that do not print are written as hex:00ff")
	publisher := flags.String("publisher", "", "the records of the publisher with this `name`")
	partition := flags.Uint32("partition", 0, "only the partition with this `number`")
	offset := flags.Uint64("offset", 0, "the record with this `number`, of one --partition")
	withoutDefault(flags, "offset")
	withoutDefault(flags, "partition")
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var ask client.ExplainRequest
		var name []byte // of a key or publisher
		given := 0
		if flags.Changed("key") {
			b, err := parseKey(*key)
			if err != nil {
				return usagef(c, "flag --key: %v", err)
			}
			ask.Key, name = &b, b
			given++
		}
		if flags.Changed("publisher") {
			b, err := parseKey(*publisher)
			if err != nil {
				return usagef(c, "flag --publisher: %v", err)
			}
			ask.Publisher, name = &b, b
			given++
		}
		if flags.Changed("offset") {
			ask.Offset = offset
			given++
		}
		if given > 1 {
			return usagef(c, "--key, --publisher and --offset say what to explain: give only one of them")
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			d, err := conn.Destination(ctx, args[0])
			if err != nil {
				return &failure{doing: "explain", destination: args[0], kind: w, err: err}
			}
			if d.Kind.String() != kind {
				return usagef(c, "%q is a %s; use lockstep explain %s %s", args[0], d.Kind, d.Kind, args[0])
			}
			args[0] = d.Name // an alias may stand for something else in between
			var partitions []uint32
			for _, p := range d.Partitions {
				if !flags.Changed("partition") || p.Number == *partition {
					partitions = append(partitions, p.Number)
				}
			}
			if len(partitions) == 0 {
				return usagef(c, "%s %s has no partition %d, but %s", kind, args[0], *partition, plural(int64(len(d.Partitions)), "partition"))
			}
			if ask.Offset != nil && len(partitions) != 1 {
				return usagef(c, "--offset counts within one partition; give one --partition")
			}
			if name != nil && !flags.Changed("partition") {
				n, err := conn.PartitionOf(ctx, args[0], name)
				if err != nil {
					return &failure{doing: "explain", destination: args[0], err: err}
				}
				partitions = []uint32{n}
			}
			infos, err := conn.Groups(ctx, args[0])
			if err != nil {
				return &failure{doing: "explain", destination: args[0], err: err}
			}
			var groups []string
			settings := make(map[string]client.GroupSettings)
			for _, g := range infos {
				if *group == "" || g.Name == *group {
					groups = append(groups, g.Name)
					settings[g.Name] = g.Settings.WithDefaults()
				}
			}
			asking, stop := context.WithTimeout(ctx, removedTimeout)
			removed := slices.DeleteFunc(lettersLeft(asking, conn, *group, d), func(x left) bool {
				return name != nil || !slices.Contains(partitions, x.partition) || ask.Offset != nil && !x.has(*ask.Offset)
			})
			stop()
			switch {
			case len(groups)+len(removed) > 0:
			case *group != "":
				return groupFailure("explain", args[0], *group, wire.Errorf(wire.CodeUnknownGroup, "%s %q has no group %q", kind, args[0], *group))
			case output.value != "json":
				_, err := fmt.Fprintf(a.stdout, "%s %s has no groups, so nothing takes its records; start one with lockstep consume %s --group NAME --mode shared\n", kind, args[0], shellWord(args[0]))
				return err
			}
			return a.explainGroups(ctx, conn, args[0], groups, removed, settings, partitions, ask, output.value == "json")
		})
	}
	return c
}

// boundElsewhere is the reason if a group has consumers, and its binding gives the partition
// to none of them.
func boundElsewhere(ctx context.Context, conn *client.Conn, destination, group string, partition uint32) (client.Reason, bool) {
	info, err := conn.DescribeGroup(ctx, destination, group)
	if err != nil {
		return client.Reason{}, false
	}
	binding := info.Settings.WithDefaults().Binding
	for _, p := range info.Partitions {
		if p.Number != partition && len(p.Sessions) > 0 && binding == wire.BindingStrict {
			return client.Reason{
				Code: "binding_mismatch", Object: binding.String(), Advice: wire.Advice("binding_mismatch"),
				Text: fmt.Sprintf("The group has consumers, and the binding %s gives this partition to none of them.", binding),
			}, true
		}
		if p.Number != partition && len(p.Sessions) > 0 {
			return client.Reason{
				Code: "no_consumer", Object: binding.String(), Advice: "Wait: it gets one of them within the session timeout and a second, or start more.",
				Text: fmt.Sprintf("No consumer is attached to this partition, though the group has some: the binding %s is about to give it to one.", binding),
			}, true
		}
	}
	return client.Reason{}, false
}

// nameScope says the key or publisher that the reason is about, in the place of its hash, as
// commands take it.
func (e *explainJSON) nameScope(ctx context.Context, n *namer) {
	scope, err := strconv.ParseUint(e.Object, 16, 64)
	if err != nil {
		scope = 0 // it is a session, and the record is theirs
	}
	parked := e.Code == "parked"
	alone := parked && e.Offset != nil && scope == *e.Offset
	if n.hashed() && !alone && e.Offset != nil && slices.Contains([]string{"parked", "backoff", "no_credit", "held", "silent", "revoking"}, e.Code) {
		if e.Key = n.name(ctx, e.Partition, *e.Offset, scope); e.Key == "" && parked {
			e.Key = n.find(ctx, e.Partition, *e.Offset, scope)
		}
	}
	if e.Key != "" {
		e.Text = strings.NewReplacer(fmt.Sprintf("The %s of the record at offset %d, which browse shows,", n.settings.Scope, *e.Offset),
			fmt.Sprintf("The %s %q, from the record at offset %d,", n.settings.Scope, e.Key, *e.Offset),
			fmt.Sprintf("A %s is parked", n.settings.Scope), fmt.Sprintf("The %s %q is parked", n.settings.Scope, e.Key)).Replace(e.Text)
	}
	if e.Offset != nil {
		e.Advice = strings.ReplaceAll(e.Advice, "--partition P --offset O", fmt.Sprintf("--partition %d --offset %d", e.Partition, *e.Offset))
	}
	e.Advice = strings.ReplaceAll(e.Advice, " KEY", " "+n.argument(e.Key, e.Partition, e.Offset, alone))
}

// reasons are those for which the key or publisher of a record stands still, nil if they are not known.
func (n *namer) reasons(ctx context.Context, partition uint32, offset uint64) *client.ExplainResponse {
	key, err := parseKey(n.name(ctx, partition, offset, 0))
	if err != nil {
		return nil
	}
	ask := client.ExplainRequest{Group: n.group, Key: &key}
	if n.settings.Scope == wire.ScopePublisher {
		ask.Key, ask.Publisher = nil, &key
	}
	var answer client.ExplainResponse
	if err := n.conn.GroupOrder(ctx, wire.OrderExplain, n.destination, partition, n.group, &ask, &answer); err != nil || len(answer.Reasons) == 0 {
		return nil
	}
	return &answer
}

// adviceWithNames is advice of which the commands name the destination and the group, so that
// they can be pasted.
func adviceWithNames(advice, destination, group string) string {
	d, g := shellWord(destination), shellWord(group)
	return strings.NewReplacer(
		"lockstep consume --group", "lockstep consume "+d+" --group "+g,
		"lockstep group resume", "lockstep group resume "+d+" "+g,
		"lockstep group alter", "lockstep group alter "+d+" "+g,
		"lockstep group seek", "lockstep group seek "+d+" "+g,
		"lockstep key park", "lockstep key park "+d+" "+g+" KEY",
		"lockstep key unpark", "lockstep key unpark "+d+" "+g+" KEY",
		"lockstep key skip --partition --offset", "lockstep key skip "+d+" "+g+" --partition P --offset O",
		"lockstep key skip", "lockstep key skip "+d+" "+g+" KEY",
	).Replace(advice)
}

func (a *app) explainGroups(ctx context.Context, conn *client.Conn, destination string, groups []string, removed []left, settings map[string]client.GroupSettings, partitions []uint32, ask client.ExplainRequest, asJSON bool) error {
	answers := []explainJSON{}
	naming, stop := context.WithTimeout(ctx, namingTimeout)
	defer stop()
	for _, g := range groups {
		ask.Group = g
		responses := make([]client.ExplainResponse, len(partitions))
		errs := conn.GroupOrders(ctx, 0, wire.OrderExplain, destination, partitions, g, &ask, func(i int) any { return &responses[i] })
		for i, n := range partitions {
			answer := &responses[i]
			if err := errs[i]; err != nil {
				if wire.CodeOf(err) == wire.CodeUnknownGroup {
					answers = append(answers, explainJSON{n, g, 0, "", client.Reason{Code: "no_consumer", Text: "Nobody has consumed here yet: the group begins with its first member.",
						Advice: adviceWithNames(wire.Advice("no_consumer"), destination, g)}})
					continue
				}
				answer.Reasons = []client.Reason{{Code: "no_quorum", Text: "The partition has no leader that answers: " + err.Error() + ".", Advice: wire.Advice("no_quorum")}}
			}
			if i := slices.IndexFunc(answer.Reasons, func(r client.Reason) bool { return r.Code == "no_consumer" }); i >= 0 {
				if r, elsewhere := boundElsewhere(ctx, conn, destination, g, n); elsewhere {
					answer.Reasons[i] = r
				}
			}
			scopes := &namer{conn, destination, g, settings[g]}
			if slices.ContainsFunc(answer.Reasons, func(r client.Reason) bool { return r.Code == "behind_key" }) {
				answer.Reasons = cmp.Or(scopes.reasons(naming, n, *ask.Offset), answer).Reasons
			}
			for _, r := range answer.Reasons {
				r.Advice = adviceWithNames(r.Advice, destination, g)
				e := explainJSON{n, g, answer.NowMs, "", r}
				e.nameScope(naming, scopes)
				answers = append(answers, e)
			}
		}
	}
	for i := range removed {
		answers = append(answers, explainJSON{Partition: removed[i].partition, Group: removed[i].Group, Reason: removed[i].reason()})
	}
	if asJSON {
		return a.printJSON(answers)
	}
	for _, e := range answers {
		text := fmt.Sprintf("%s, %s/%d: %s", e.Group, destination, e.Partition, e.Text)
		if e.SinceMs > 0 {
			text += fmt.Sprintf(" Since %s.", formatDuration(time.Duration(e.NowMs-e.SinceMs)*time.Millisecond))
		}
		if e.UntilMs > 0 {
			text += fmt.Sprintf(" For another %s.", formatDuration(time.Duration(e.UntilMs-e.NowMs)*time.Millisecond))
		}
		if e.Advice != "" {
			text += " " + e.Advice
		}
		switch {
		case e.Key != "" && e.Code != "held" && e.Code != "silent" && e.Code != "revoking":
			text += fmt.Sprintf(" [%s: %s]", e.Code, e.Key)
		case e.Object != "":
			text += fmt.Sprintf(" [%s: %s]", e.Code, e.Object)
		default:
			text += fmt.Sprintf(" [%s]", e.Code)
		}
		if _, err := fmt.Fprintln(a.stdout, text); err != nil {
			return err
		}
	}
	if len(answers) == 0 {
		_, err := fmt.Fprintln(a.stdout, "nothing is held up")
		return err
	}
	return nil
}

package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// keyDoneJSON is what was done to a key, or to one record or partition.
type keyDoneJSON struct {
	Partition uint32  `json:"partition"`
	Group     string  `json:"group"`
	Key       string  `json:"key,omitempty"`    // or publisher, as commands take it
	Offset    *uint64 `json:"offset,omitempty"` // of the record that was skipped or repaired, or that --offset names
	Outcome   string  `json:"outcome"`          // parked, unparked, not parked, skipped or repaired
}

// keyDeed is one command about the records of a key.
type keyDeed struct {
	op                          wire.GroupOrderOp
	verb, short, after, example string // the second example
}

func (a *app) keyCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:        "key",
		SuggestFor: []string{"keys", "scope", "scopes"},
		Short:      "Show, park, unpark, skip and repair what a serial group does with one key",
		Long: `Show, park, unpark, skip and repair what a serial group does with one key. A KEY of which
not all is printable is written as hex: and two digits for each byte, hex:00ff, as all
commands print it; hex: alone is the key of no bytes. What is parked lists group describe.`,
		Example: `  lockstep key show orders billing customer-17
  lockstep key park orders billing customer-17 --reason 'card is being replaced'`,
	})
	a.clientFlags(c)
	for _, deed := range []keyDeed{
		{wire.OrderShow, "show", "Show the next record of a key and what holds it up", "", "customer-17 -o json"},
		{wire.OrderPark, "park", "Deliver no record of a key until it is unparked; who works on one may finish", "parked", "customer-17 --now"},
		{wire.OrderUnpark, "unpark", "Deliver the records of a parked key again, in order, the one it stopped at first", "unparked", "clerk-3"},
		{wire.OrderSkip, "skip", "Give up the next record of a key; it goes on with the one behind it", "skipped", "clerk-3"},
		{wire.OrderRepair, "repair", "Give the next record of a key another value; it goes on with that", "repaired", "clerk-3 --value '{\"amount\": 12}'"},
	} {
		c.AddCommand(a.keyDeedCommand(deed))
	}
	return c
}

func (a *app) keyDeedCommand(deed keyDeed) *cobra.Command {
	first := ""
	if deed.op == wire.OrderRepair {
		first = " --value 12"
	}
	c := &cobra.Command{
		Use:   deed.verb + " DEST GROUP [KEY]",
		Short: deed.short,
		Example: fmt.Sprintf(`  lockstep key %[1]s orders billing customer-17%[3]s
  lockstep key %[1]s orders billing %[2]s`, deed.verb, deed.example, first),
		Args: func(c *cobra.Command, args []string) error {
			return exactArgs([]string{"DEST", "GROUP", "KEY"}[:min(max(len(args), 2), 3)]...)(c, args)
		},
		ValidArgsFunction: a.completeGroups(),
	}
	flags := c.Flags()
	publisher := flags.Bool("publisher", false, "KEY is the name of a publisher, in a group with --scope publisher")
	partition := flags.Uint32("partition", 0, "instead of KEY: the partition with this `number`, where a whole one is handled in order, or with --offset")
	offset := flags.Uint64("offset", 0, "with --partition: the record with this `number`; skip and show take any, the others one that has no key, or of a group that is not serial")
	withoutDefault(flags, "partition")
	withoutDefault(flags, "offset")
	var ask client.ScopeRequest
	output := outputFlag(c)
	var value *string
	switch deed.op {
	case wire.OrderPark:
		flags.StringVar(&ask.Reason, "reason", "", "a `text` for those who look at it later")
		flags.BoolVar(&ask.Now, "now", false, "ask who works on a record of it to give that back")
	case wire.OrderRepair:
		value = flags.String("value", "", "the new `value`, or @FILE to read it from there, @- from standard input")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		var what, again string // in words, and as commands take it
		var name []byte        // of a key or publisher
		switch {
		case len(args) == 3 && !flags.Changed("partition") && !flags.Changed("offset"):
			key, err := parseKey(args[2])
			if err != nil {
				return usagef(c, "KEY: %v", err)
			}
			name, what, again = key, fmt.Sprintf("%q", keyText(key)), shellWord(keyText(key))
			if *publisher {
				again += " --publisher"
				ask.Publisher = &key
			} else {
				ask.Key = &key
			}
		case len(args) == 2 && flags.Changed("partition"):
			what, again = fmt.Sprintf("partition %d", *partition), fmt.Sprintf("--partition %d", *partition)
			if flags.Changed("offset") {
				what = fmt.Sprintf("%s/%d@%d", args[0], *partition, *offset)
				again += fmt.Sprintf(" --offset %d", *offset)
				ask.Scope = offset
			}
		default:
			return usagef(c, "name a KEY, or --partition and --offset for one record, or --partition where a whole one is handled in order")
		}
		if len(ask.Reason) > wire.MaxReasonBytes {
			return usagef(c, "flag --reason: %s are more than %s, which every explain prints", plural(int64(len(ask.Reason)), "byte"), formatCount(wire.MaxReasonBytes))
		}
		if deed.op == wire.OrderRepair && !flags.Changed("value") {
			return usagef(c, "say what the record is to hold, with --value")
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			fail := func(err error) error {
				return groupFailure(deed.verb+" "+what+" in", args[0], args[1], err)
			}
			n, err := *partition, error(nil)
			if name != nil {
				n, err = conn.PartitionOf(ctx, args[0], name)
			}
			if err != nil {
				return fail(err)
			}
			var answer wire.ScopeResponse
			if deed.op == wire.OrderRepair {
				var text []byte
				if text, err = a.valueOf(*value); err == nil {
					answer, err = conn.RepairHead(ctx, args[0], n, args[1], ask, text)
				}
			} else {
				err = conn.GroupOrder(ctx, deed.op, args[0], n, args[1], &ask, &answer)
			}
			if err != nil {
				return fail(err)
			}
			if deed.op == wire.OrderShow {
				for i := range answer.Reasons {
					r := &answer.Reasons[i]
					r.Advice = strings.ReplaceAll(adviceWithNames(r.Advice, args[0], args[1]), " KEY", " "+again)
				}
				return a.showKey(&answer, args[0], what, n, output.value == "json")
			}
			done := keyDoneJSON{Partition: n, Group: args[1], Offset: ask.Scope, Outcome: deed.after}
			if name != nil {
				done.Key = keyText(name)
			}
			text := fmt.Sprintf("%s %s of %s for %s", deed.after, what, args[0], args[1])
			switch deed.op {
			case wire.OrderUnpark:
				if !answer.Parked {
					done.Outcome, text = "not parked", fmt.Sprintf("%s of %s was not parked for %s", what, args[0], args[1])
				}
			case wire.OrderSkip, wire.OrderRepair:
				done.Offset = &answer.Offset
				text += fmt.Sprintf(": %s/%d@%d", args[0], n, answer.Offset)
			}
			if output.value == "json" {
				return a.printJSON(&done)
			}
			_, err = fmt.Fprintln(a.stdout, text)
			return err
		})
	}
	return c
}

// valueOf is what --value says: a text, or what a file holds.
func (a *app) valueOf(text string) ([]byte, error) {
	switch name, file := strings.CutPrefix(text, "@"); {
	case !file:
		return []byte(text), nil
	case name == "-":
		return io.ReadAll(a.stdin)
	default:
		return os.ReadFile(name)
	}
}

func (a *app) showKey(s *wire.ScopeResponse, destination, what string, partition uint32, asJSON bool) error {
	if asJSON {
		return a.printJSON(s)
	}
	switch {
	case s.Known:
		fmt.Fprintf(a.stdout, "%s: next is %s/%d@%d, delivered %s, failed %s\n", what, destination, partition, s.Offset, plural(int64(s.Deliveries), "time"), plural(int64(s.Attempts), "time"))
	default:
		fmt.Fprintf(a.stdout, "%s in %s/%d: the group is done with every record of it\n", what, destination, partition)
	}
	if s.Parked {
		text := "parked"
		if s.Reason != "" {
			text += ": " + s.Reason
		}
		fmt.Fprintln(a.stdout, text)
	}
	for _, r := range s.Reasons {
		text := r.Text
		if r.Advice != "" {
			text += " " + r.Advice
		}
		if _, err := fmt.Fprintf(a.stdout, "%s [%s]\n", text, r.Code); err != nil {
			return err
		}
	}
	return nil
}

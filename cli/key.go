package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// keyDeed is one command about the records of a key.
type keyDeed struct {
	op                          wire.GroupOrderOp
	verb, short, after, example string // the second example
}

func (a *app) keyCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:        "key",
		SuggestFor: []string{"keys", "scope", "scopes"},
		Short:      "Show, park, unpark and skip what a serial group does with one key",
		Example: `  lockstep key show orders billing customer-17
  lockstep key park orders billing customer-17 --reason 'card is being replaced'`,
	})
	a.clientFlags(c)
	for _, deed := range []keyDeed{
		{wire.OrderShow, "show", "Show the next record of a key and what holds it up", "", "customer-17 -o json"},
		{wire.OrderPark, "park", "Deliver no record of a key until it is unparked; who works on one may finish", "parked", "customer-17 --now"},
		{wire.OrderUnpark, "unpark", "Deliver the records of a parked key again, in order", "unparked", "clerk-3"},
		{wire.OrderSkip, "skip", "Give up the next record of a key; the one behind it is next", "skipped", "clerk-3"},
	} {
		c.AddCommand(a.keyDeedCommand(deed))
	}
	return c
}

func (a *app) keyDeedCommand(deed keyDeed) *cobra.Command {
	c := &cobra.Command{
		Use:   deed.verb + " DEST GROUP KEY",
		Short: deed.short,
		Example: fmt.Sprintf(`  lockstep key %[1]s orders billing customer-17
  lockstep key %[1]s orders billing %[2]s`, deed.verb, deed.example),
		Args: exactArgs("DEST", "GROUP", "KEY"),
	}
	flags := c.Flags()
	publisher := flags.Bool("publisher", false, "KEY is the name of a publisher, in a group with --scope publisher")
	var ask client.ScopeRequest
	var output *choiceFlag
	switch deed.op {
	case wire.OrderShow:
		output = outputFlag(c)
	case wire.OrderPark:
		flags.StringVar(&ask.Reason, "reason", "", "a `text` for those who look at it later")
		flags.BoolVar(&ask.Now, "now", false, "ask who works on a record of it to give that back")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		key := []byte(args[2])
		if *publisher {
			ask.Publisher = &key
		} else {
			ask.Key = &key
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			fail := func(err error) error {
				return groupFailure(deed.verb+" "+fmt.Sprintf("%q in", args[2]), args[0], args[1], err)
			}
			partition, err := conn.PartitionOf(ctx, args[0], key)
			if err != nil {
				return fail(err)
			}
			var answer wire.ScopeResponse
			if deed.op == wire.OrderSkip { // the leader would look for a record until somebody consumes
				if err := conn.GroupOrder(ctx, wire.OrderShow, args[0], partition, args[1], &ask, &answer); err != nil {
					return fail(err)
				}
				if !answer.Known {
					return fail(errors.New("no member has met a record of it, so none blocks; let a member run, and see lockstep key show"))
				}
			}
			if err := conn.GroupOrder(ctx, deed.op, args[0], partition, args[1], &ask, &answer); err != nil {
				return fail(err)
			}
			if output != nil {
				return a.showKey(&answer, args[0], args[2], partition, output.value == "json")
			}
			text := fmt.Sprintf("%s %q of %s for %s", deed.after, args[2], args[0], args[1])
			if deed.op == wire.OrderSkip {
				text += fmt.Sprintf(": %s/%d@%d", args[0], partition, answer.Offset)
			}
			_, err = fmt.Fprintln(a.stdout, text)
			return err
		})
	}
	return c
}

func (a *app) showKey(s *wire.ScopeResponse, destination, key string, partition uint32, asJSON bool) error {
	if asJSON {
		return a.printJSON(s)
	}
	switch {
	case s.Known:
		fmt.Fprintf(a.stdout, "%q: next is %s/%d@%d, delivered %d times, failed %d times\n", key, destination, partition, s.Offset, s.Deliveries, s.Attempts)
	default:
		fmt.Fprintf(a.stdout, "%q in %s/%d: nothing of it is held, waiting or parked\n", key, destination, partition)
	}
	if s.Parked {
		fmt.Fprintf(a.stdout, "parked: %s\n", s.Reason)
	}
	for _, r := range s.Reasons {
		if _, err := fmt.Fprintf(a.stdout, "%s [%s]\n", r.Text, r.Code); err != nil {
			return err
		}
	}
	return nil
}

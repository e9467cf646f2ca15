package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func (a *app) aliasCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:   "alias",
		Short: "Give queues, topics and some of their partitions other names",
		Long: `Give queues, topics and some of their partitions other names. Producers, consumers, readers,
browse, explain, describe and the commands about groups take an alias in place of a destination. What it stands
for can be changed at one moment for everybody: producers that have it open store what they
have accepted where it was meant for, and go on at the new place; consumers begin anew there.`,
		Example: `  lockstep alias create current orders
  lockstep alias ls`,
	})
	a.clientFlags(c)
	c.AddCommand(
		a.aliasSetCommand("create", "Create an alias of a queue or topic, or of some of its partitions", "created", (*client.Conn).CreateAlias),
		a.aliasSetCommand("alter", "Have an alias stand for something else", "altered", (*client.Conn).AlterAlias),
		a.aliasLsCommand(),
		a.aliasRmCommand(),
	)
	return c
}

// aliasText is what an alias stands for.
func aliasText(x client.Alias) string {
	if len(x.Partitions) == 0 {
		return x.Destination
	}
	return "partitions " + partitionWords(x) + " of " + x.Destination
}

// aliasNow is what an alias stands for, "" if there is none of the name.
func aliasNow(ctx context.Context, conn *client.Conn, name string) (string, error) {
	list, err := conn.Aliases(ctx)
	if err != nil {
		return "", err
	}
	for _, x := range list {
		if x.Name == name {
			return aliasText(x), nil
		}
	}
	return "", nil
}

func partitionWords(x client.Alias) string {
	if len(x.Partitions) == 0 {
		return "all"
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(x.Partitions), " ", ","), "[]")
}

func (a *app) aliasSetCommand(verb, short, done string, set func(*client.Conn, context.Context, client.Alias) error) *cobra.Command {
	example := "  lockstep alias create current orders\n  lockstep alias create east orders --partition 0"
	if verb == "alter" {
		example = "  lockstep alias alter current orders\n  lockstep alias alter current orders --partition 0"
	}
	var known nameList // of the first argument
	if verb == "alter" {
		known = aliasNames
	}
	c := &cobra.Command{
		Use: verb + " ALIAS DEST", Short: short, Example: example,
		Args: exactArgs("ALIAS", "DEST"), ValidArgsFunction: a.completeNames(known, destinationNames(0, false)),
	}
	partitions := c.Flags().UintSlice("partition", nil, "stand for the partition with this `number` only; may be repeated")
	c.RunE = func(c *cobra.Command, args []string) error {
		x := client.Alias{Name: args[0], Destination: args[1]}
		for _, n := range *partitions {
			if n > 1<<32-1 {
				return usagef(c, "flag --partition: %d is no partition number", n)
			}
			x.Partitions = append(x.Partitions, uint32(n))
		}
		slices.Sort(x.Partitions)
		x.Partitions = slices.Compact(x.Partitions)
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			before := ""
			if verb == "alter" {
				var err error
				if before, err = aliasNow(ctx, conn, x.Name); err != nil {
					return aliasFailure(ctx, conn, verb, x, err)
				}
			}
			if err := set(conn, ctx, x); err != nil {
				return aliasFailure(ctx, conn, verb, x, err)
			}
			text := fmt.Sprintf("%s alias %q of %s", done, x.Name, aliasText(x))
			if before != "" {
				text = fmt.Sprintf("%s alias %q: it stands for %s now, and stood for %s before", done, x.Name, aliasText(x), before)
			}
			_, err := fmt.Fprintln(a.stdout, text)
			return outputError(err)
		})
	}
	return c
}

// aliasFailure says what the broker says: it names what is in the way. Of a name that there
// is not it names the next one.
func aliasFailure(ctx context.Context, conn *client.Conn, verb string, x client.Alias, err error) error {
	var e *wire.Error
	if !errors.As(err, &e) || e.Detail == "" || e.Code == wire.CodeUnavailable {
		return &failure{doing: verb + " alias " + x.Name, err: err}
	}
	text := fmt.Sprintf("%s alias %q: %s", verb, x.Name, e.Detail)
	if e.Code == wire.CodeUnknownDestination {
		if known, err := aliasNames(ctx, conn); err == nil {
			near := nearest(x.Name, known)
			if verb == "create" || slices.Contains(known, x.Name) { // what is not there is what it is to stand for
				known, _ = destinationNames(0, false)(ctx, conn)
				near = nearest(x.Destination, known)
			}
			if near != "" {
				text += fmt.Sprintf("; did you mean %q?", near)
			}
		}
	}
	return errors.New(text)
}

func (a *app) aliasLsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List all aliases and what they stand for",
		Example: `  lockstep alias ls
  lockstep alias ls -o json`,
		Args: exactArgs(),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			list, err := conn.Aliases(ctx)
			if err != nil {
				return &failure{doing: "list aliases", err: err}
			}
			objects, rows := []aliasJSON{}, [][]string{}
			for _, x := range list {
				objects = append(objects, aliasJSON(x))
				rows = append(rows, []string{x.Name, x.Destination, partitionWords(x)})
			}
			if output.value == "json" {
				return a.printJSON(objects)
			}
			if len(rows) == 0 {
				fmt.Fprintln(a.stderr, "no aliases yet; create one with: lockstep alias create ALIAS DEST")
				return nil
			}
			return a.printTable([]string{"alias", "destination", "partitions"}, rows)
		})
	}
	return c
}

// aliasJSON is an alias as -o json prints it; without partitions it stands for all.
type aliasJSON struct {
	Name        string   `json:"name"`
	Destination string   `json:"destination"`
	Partitions  []uint32 `json:"partitions,omitempty"`
}

func (a *app) aliasRmCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "rm ALIAS...", Aliases: []string{"delete"}, Short: "Remove aliases; what they stand for stays",
		Example: `  lockstep alias rm current
  lockstep alias rm current --if-exists`,
		ValidArgsFunction: a.completeNames(aliasNames),
		Args: func(c *cobra.Command, args []string) error {
			return exactArgs("ALIAS")(c, args[:min(len(args), 1)])
		},
	}
	ifExists := c.Flags().Bool("if-exists", false, "succeed if there is no such alias")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			for _, name := range args {
				err := conn.RemoveAlias(ctx, name)
				if *ifExists && errors.Is(err, wire.CodeUnknownDestination) {
					continue
				}
				if err != nil {
					return aliasFailure(ctx, conn, "remove", client.Alias{Name: name}, err)
				}
				if _, err := fmt.Fprintf(a.stdout, "removed alias %q\n", name); err != nil {
					return outputError(err)
				}
			}
			return nil
		})
	}
	return c
}

// follow does work, and does it anew each time that the name it goes by has come to stand for
// something else. It is over, with an error that says so, if the name is no alias any more.
func (a *app) follow(ctx context.Context, conn *client.Conn, name string, work func() error) error {
	for {
		moved := work()
		if !errors.Is(moved, client.ErrAliasMoved) {
			return moved
		}
		asking, cancel := context.WithTimeout(ctx, a.requestTimeout)
		_, err := conn.Destination(asking, name)
		cancel()
		switch {
		case errors.Is(err, wire.CodeUnknownDestination):
			return fmt.Errorf("%w; name what is meant, or create the alias again with: lockstep alias create %s DEST", moved, shellWord(name))
		case err != nil:
			return err
		}
		fmt.Fprintf(a.stderr, "lockstep: %s; it is followed\n", oneLine(moved.Error()))
	}
}

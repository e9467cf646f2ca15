package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// defaultServer is where client commands look for a broker, and where serve
// listens unless told otherwise.
const defaultServer = "127.0.0.1:7400"

const (
	// connectTimeout bounds the first connection of a command.
	connectTimeout = 5 * time.Second
	// defaultRequestTimeout bounds one administrative request.
	defaultRequestTimeout = 30 * time.Second
	// completionTimeout bounds what a shell waits for names when TAB is pressed.
	completionTimeout = 700 * time.Millisecond
)

// clientFlags gives a command, and those below it, the flags of all client commands.
func (a *app) clientFlags(c *cobra.Command) {
	flags := c.PersistentFlags()
	flags.StringVar(&a.servers, "server", defaultServer, "brokers to try in turn, as `host:port[,host:port...]`")
	withEnv(flags, "server", "LOCKSTEP_SERVER")
}

// connect opens the connection of a client command.
func (a *app) connect(ctx context.Context, opts ...client.Option) (*client.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := client.Connect(ctx, a.servers, append([]client.Option{client.WithName("lockstep-cli")}, opts...)...)
	if errors.Is(err, client.ErrDisconnected) {
		err = &failure{doing: connecting, err: err}
	}
	if err != nil {
		return nil, interruptedOr(ctx, err)
	}
	return conn, nil
}

// sayReconnect tells on stderr when the connection of a long command is lost and
// when it is back, so that a command that waits does not look dead.
func (a *app) sayReconnect() client.Option { return client.WithEvents(a.reconnectSayer()) }

func (a *app) reconnectSayer() func(client.Event) {
	lost := false
	return func(e client.Event) {
		switch e := e.(type) {
		case client.Disconnected:
			if !errors.Is(e.Err, client.ErrClosed) {
				lost = true
				fmt.Fprintf(a.stderr, "lockstep: connection to %s lost (%s); trying again\n", e.Address, oneLine(e.Err.Error()))
			}
		case client.Connected:
			if lost {
				fmt.Fprintf(a.stderr, "lockstep: connected to %s again\n", e.Address)
			}
			lost = false
		}
	}
}

// withConn runs fn with a connection and a time limit for requests. It says so on stderr if that
// takes long.
func (a *app) withConn(c *cobra.Command, fn func(ctx context.Context, conn *client.Conn) error) error {
	conn, err := a.connect(c.Context())
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(c.Context(), a.requestTimeout)
	defer cancel()
	slow := time.AfterFunc(min(awaitPatience, a.requestTimeout/2), func() {
		fmt.Fprintf(a.stderr, "lockstep: no answer yet; waiting, %s in all (lockstep cluster health shows the nodes that are away)\n", formatDuration(a.requestTimeout))
	})
	defer slow.Stop()
	return interruptedOr(ctx, a.suggest(ctx, conn, fn(ctx, conn)))
}

// suggest adds to a failure because of a destination or group that there is not the name of
// one that there is and that looks like it.
func (a *app) suggest(ctx context.Context, conn *client.Conn, err error) error {
	var f *failure
	if !errors.As(err, &f) || f.near != "" || ctx.Err() != nil {
		return err
	}
	switch {
	case errors.Is(f.err, wire.CodeUnknownGroup) && f.group != "":
		names, _ := groupNames(f.destination)(ctx, conn) // the error that led here says enough
		f.near = nearest(f.group, names)
	case errors.Is(f.err, wire.CodeUnknownDestination) && f.destination != "":
		f.near = nearestDestination(ctx, conn, f.destination)
	}
	return err
}

// interruptedOr replaces an error by errInterrupted if that is its reason.
func interruptedOr(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return errInterrupted
	}
	return err
}

// find looks a destination up, so that a mistyped name fails before any work
// and errors can say queue or topic.
func (a *app) find(ctx context.Context, conn *client.Conn, name string) (client.Destination, destinationWords, error) {
	ctx, cancel := context.WithTimeout(ctx, a.requestTimeout)
	defer cancel()
	d, err := conn.Destination(ctx, name)
	if err != nil {
		return d, destinationWords{}, interruptedOr(ctx, a.suggest(ctx, conn, &failure{doing: "look up", destination: name, err: err}))
	}
	return d, wordsOf(d.Kind), nil
}

// nearestDestination is the destination or alias whose name looks most like a mistyped
// one, or "".
func nearestDestination(ctx context.Context, conn *client.Conn, name string) string {
	names, err := destinationNames(0, true)(ctx, conn)
	if err != nil {
		return "" // the error that led here says enough
	}
	return nearest(name, names)
}

// hasPartition fails if the destination has no partition n.
func hasPartition(d client.Destination, words destinationWords, n uint32) error {
	for _, p := range d.Partitions {
		if p.Number == n {
			return nil
		}
	}
	if d.Alias != nil {
		return fmt.Errorf("alias %q has no partition %d: it stands for %s", d.Alias.Name, n, aliasText(*d.Alias))
	}
	return fmt.Errorf("%s %q has no partition %d: it has %s, counted from 0; list them with: lockstep %s describe %s",
		words.noun, d.Name, n, plural(int64(len(d.Partitions)), "partition"), words.noun, shellWord(d.Name))
}

// nameList asks a cluster for names.
type nameList func(ctx context.Context, conn *client.Conn) ([]string, error)

// destinationNames are those of existing destinations, and of aliases of such if they are
// meant too. kind 0 means both.
func destinationNames(kind client.Kind, aliases bool) nameList {
	return func(ctx context.Context, conn *client.Conn) ([]string, error) {
		destinations, err := conn.Destinations(ctx)
		if err != nil {
			return nil, err
		}
		var names []string
		meant := make(map[string]bool)
		for _, d := range destinations {
			if kind == 0 || d.Kind == kind {
				names = append(names, d.Name)
				meant[d.Name] = true
			}
		}
		if !aliases {
			return names, nil
		}
		list, err := conn.Aliases(ctx)
		for _, x := range list {
			if meant[x.Destination] {
				names = append(names, x.Name)
			}
		}
		return names, err
	}
}

// groupNames are those of the groups of a destination, or, if that is empty, of all.
func groupNames(destination string) nameList {
	return func(ctx context.Context, conn *client.Conn) ([]string, error) {
		list, err := conn.Groups(ctx, destination)
		var names []string
		for _, g := range list {
			if !slices.Contains(names, g.Name) {
				names = append(names, g.Name)
			}
		}
		return names, err
	}
}

// aliasNames are those of existing aliases.
func aliasNames(ctx context.Context, conn *client.Conn) ([]string, error) {
	list, err := conn.Aliases(ctx)
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = x.Name
	}
	return names, err
}

// completeDestinations offers what may stand in the place of a destination to a shell.
func (a *app) completeDestinations() cobra.CompletionFunc {
	return a.completeNames(destinationNames(0, true))
}

// completeNames offers names to a shell, for each argument those of its place; behind the
// last one files.
func (a *app) completeNames(lists ...nameList) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(lists) {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.complete(c, lists[len(args)])
	}
}

// completeGroups offers destinations to a shell, and then the groups of the one that is named.
func (a *app) completeGroups() cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return a.complete(c, destinationNames(0, true))
		case 1:
			return a.complete(c, groupNames(args[0]))
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// complete offers the names of a list to a shell; nil has none.
func (a *app) complete(c *cobra.Command, list nameList) ([]string, cobra.ShellCompDirective) {
	if list == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if err := a.applySettings(c); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	conn, err := client.Connect(ctx, a.servers, client.WithReconnect(false))
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer conn.Close()
	names, _ := list(ctx, conn) // nobody could be told of an error
	return names, cobra.ShellCompDirectiveNoFileComp
}

package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
)

func (a *app) nodeCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:        "node",
		SuggestFor: []string{"nodes", "broker", "brokers"},
		Short:      "List, drain and remove nodes of the cluster",
		Example: `  lockstep node ls
  lockstep node drain 2 --wait`,
	})
	a.clientFlags(c)
	c.AddCommand(
		a.nodeLsCommand(),
		a.nodeAdminCommand(client.NodeDrain, "drain", "Give a node's leaderships away, as before its restart", "drained"),
		a.nodeAdminCommand(client.NodeUndrain, "undrain", "Let a node take part in everything again", "back"),
		a.nodeAdminCommand(client.NodeDecommission, "decommission", "Give a node's replicas to others and remove it from the cluster", "removed"),
	)
	return c
}

func (a *app) nodeLsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the nodes of the cluster",
		Example: `  lockstep node ls
  lockstep node ls -o json`,
		Args: exactArgs(),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			s, _, err := askStatus(ctx, conn)
			if err != nil {
				return &failure{doing: "list nodes", err: err}
			}
			if output.value == "json" {
				return a.printJSON(s.Nodes)
			}
			return a.printNodes(s.Nodes)
		})
	}
	return c
}

func (a *app) printNodes(nodes []nodeJSON) error {
	var rows [][]string
	for _, n := range nodes {
		state := n.State
		if !n.Alive {
			state += ", does not answer"
		}
		if n.LacksSpace {
			state += ", disk full"
		}
		rack := n.Rack
		if rack == "" {
			rack = "-"
		}
		version, uptime, stored, free := "-", "-", "-", "-"
		if n.answered {
			version, uptime = n.Version, formatDuration((time.Duration(n.UptimeMs) * time.Millisecond).Truncate(time.Second))
			stored, free = formatSize(clampInt64(n.StoredBytes)), formatSize(clampInt64(n.FreeBytes))
		}
		rows = append(rows, []string{
			fmt.Sprint(n.Node), n.Address, rack, n.Role, state, strconv.Itoa(n.Leaders), strconv.Itoa(n.Replicas), version, uptime, stored, free,
		})
	}
	return a.printTable([]string{"node", "address", "rack", "role", "state", "leaders", "replicas", "version", "uptime", "stored", "free"}, rows,
		"node", "leaders", "replicas", "uptime", "stored", "free")
}

// nodeAdminCommand makes the command for one action.
func (a *app) nodeAdminCommand(action client.NodeAction, verb, short, outcome string) *cobra.Command {
	c := &cobra.Command{
		Use:   verb + " NODE",
		Short: short,
		Example: fmt.Sprintf(`  lockstep node %[1]s 2
  lockstep node %[1]s 2 --wait`, verb),
		Args: exactArgs("NODE"),
	}
	wait := c.Flags().Bool("wait", false, "return when it is done and not when it is decided")
	c.RunE = func(c *cobra.Command, args []string) error {
		id, err := nodeID(c, args[0])
		if err != nil {
			return err
		}
		doing := fmt.Sprintf("%s node %d", verb, id)
		return a.withCluster(c, func(ctx context.Context, conn *client.Conn) error {
			if err := conn.AdministerNode(ctx, id, action); err != nil {
				return &failure{doing: doing, err: err}
			}
			if !*wait {
				fmt.Fprintf(a.stderr, "node %d is to be %s; see how far it is with: lockstep cluster status\n", id, outcome)
				return nil
			}
			alone, look := 0, nodeOutlook(id, action)
			err := a.awaitChange(ctx, conn, "lockstep cluster status", func(s *clusterJSON, _ []client.Destination) outlook {
				if i := slices.IndexFunc(s.Nodes, func(n nodeJSON) bool { return n.Node == id }); i >= 0 {
					alone = s.Nodes[i].alone
				}
				return look(s)
			})
			if err != nil {
				return &failure{doing: doing, err: err}
			}
			text := fmt.Sprintf("node %d is %s", id, outcome)
			if action == client.NodeDrain && alone > 0 {
				text += fmt.Sprintf("; %s with the only replica there cannot be used while it is down", plural(int64(alone), "partition"))
			}
			fmt.Fprintln(a.stderr, text)
			return nil
		})
	}
	return c
}

func nodeID(c *cobra.Command, word string) (uint32, error) {
	id, err := strconv.ParseUint(strings.TrimPrefix(word, "n"), 10, 32)
	if err != nil || id == 0 {
		return 0, usagef(c, "%q is no node; write its number, as lockstep node ls shows it", word)
	}
	return uint32(id), nil
}

// withCluster is withConn for a command that waits as long as the user does.
func (a *app) withCluster(c *cobra.Command, fn func(ctx context.Context, conn *client.Conn) error) error {
	conn, err := a.connect(c.Context(), a.sayReconnect())
	if err != nil {
		return err
	}
	defer conn.Close()
	return interruptedOr(c.Context(), fn(c.Context(), conn))
}

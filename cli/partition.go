package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func (a *app) partitionCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:        "partition",
		SuggestFor: []string{"partitions", "replica", "shard"},
		Short:      "List, move and alter partitions",
		Example: `  lockstep partition ls
  lockstep partition transfer-leader orders/0 --to 2`,
	})
	a.clientFlags(c)
	c.AddCommand(a.partitionLsCommand(), a.partitionAlterCommand(), a.partitionMoveCommand(), a.partitionTransferCommand(), a.partitionRecoverCommand())
	return c
}

// replicatedJSON is a partition as partition ls prints it.
type replicatedJSON struct {
	Destination string `json:"destination"`
	partitionJSON
	Replicas  []replicaJSON `json:"replicas"`
	Preferred uint32        `json:"preferred_leader"` // 0: none
	Policy    string        `json:"leader_policy"`
	Weight    uint8         `json:"weight"`
}

type replicaJSON struct {
	Replica uint64 `json:"replica"`
	Node    uint32 `json:"node"`
	State   string `json:"state"`
}

func (a *app) partitionLsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "ls [DEST]",
		Aliases: []string{"list"},
		Short:   "List the partitions of all destinations or of one",
		Example: `  lockstep partition ls
  lockstep partition ls orders -o json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeDestinations(),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			var all []client.Destination
			var err error
			if len(args) == 1 {
				var d client.Destination
				if d, err = conn.Destination(ctx, args[0]); err != nil {
					return &failure{doing: "list partitions of", destination: args[0], err: err}
				}
				all = []client.Destination{d}
			} else if all, err = conn.Destinations(ctx); err != nil {
				return &failure{doing: "list partitions", err: err}
			}
			objects, rows := []replicatedJSON{}, [][]string(nil)
			for _, d := range all {
				for i, j := range describe(d).Partitions {
					p := &d.Partitions[i]
					o := replicatedJSON{
						Destination: d.Name, partitionJSON: j, Replicas: []replicaJSON{},
						Preferred: p.Preferred, Policy: p.Policy.String(), Weight: max(p.Weight, 1),
					}
					var replicas []string
					for _, r := range p.Replicas {
						o.Replicas = append(o.Replicas, replicaJSON{Replica: r.Replica, Node: r.Node, State: r.State.String()})
						text := fmt.Sprint(r.Node)
						if r.State != wire.ReplicaActive {
							text += " (" + r.State.String() + ")"
						}
						replicas = append(replicas, text)
					}
					objects = append(objects, o)
					leader := "none"
					if j.Leader != 0 {
						leader = fmt.Sprint(j.Leader)
					}
					rows = append(rows, []string{
						fmt.Sprintf("%s/%d", d.Name, j.Partition), leader, fmt.Sprint(j.Epoch), stateText(j), strings.Join(replicas, ", "),
						preferenceText(p), fmt.Sprint(o.Weight), fmt.Sprint(j.StartOffset), fmt.Sprint(j.NextOffset),
					})
				}
			}
			if output.value == "json" {
				return a.printJSON(objects)
			}
			return a.printTable([]string{"partition", "leader", "epoch", "state", "replicas on", "prefers", "weight", "start", "next"}, rows,
				"leader", "epoch", "weight", "start", "next")
		})
	}
	return c
}

// preferenceText is who is to lead a partition. Who only led first does not count any
// more.
func preferenceText(p *client.PartitionInfo) string {
	if p.Preferred == 0 || p.Policy == wire.LeaderAny {
		return "-"
	}
	return fmt.Sprintf("%d, %s", p.Preferred, p.Policy)
}

func (a *app) partitionAlterCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "alter DEST[/N]",
		SuggestFor: []string{"set", "place", "prefer", "pin", "weight", "close", "open"},
		Short:      "Say who leads a partition, or all of a destination, and which records it gets",
		Long: `Say who leads a partition, or all partitions of a destination, and which records they
get. What is not given stays as it is.

A preferred leader must hold a replica. With the policy failback it gets the leadership
back whenever it returns; with pinned also its replica is never moved elsewhere for the
sake of balance; with any whoever leads goes on until something else moves it.

Weights divide records without a key between the partitions of a destination. A
partition with --send disabled takes no new records and can be read: those without a
key go to the others, those with a key wait until it is opened again, or fail.`,
		Example: `  lockstep partition alter orders/0 --preferred-leader 2
  lockstep partition alter orders --preferred-leader 1 --leader-policy pinned
  lockstep partition alter orders/3 --weight 3
  lockstep partition alter orders/3 --send disabled`,
		Args: exactArgs("DEST[/N]"),
	}
	flags := c.Flags()
	preferred := flags.Uint32("preferred-leader", 0, "`node` that is to lead; 0 = whichever")
	policy := newChoice("failback", "any", "failback", "pinned")
	flags.Var(policy, "leader-policy", "what the preferred leader means while another leads")
	weight := flags.Uint8("weight", 1, "share of the records without a key relative to the other partitions, a `number` from 1 to 255")
	send := newChoice("enabled", "enabled", "disabled")
	flags.Var(send, "send", "whether new records are taken")
	c.RunE = func(c *cobra.Command, args []string) error {
		destination, number := args[0], uint32(client.AllPartitions)
		if strings.Contains(args[0], "/") {
			if d, n, err := partitionArgument(c, args[0]); err == nil {
				destination, number = d, n
			}
		}
		p := client.Placement{Preferred: *preferred, Weight: *weight, SendDisabled: send.value == "disabled"}
		if flags.Changed("preferred-leader") {
			p.Mask |= wire.MaskPreferred
		}
		if flags.Changed("leader-policy") || *preferred != 0 {
			p.Mask |= wire.MaskPolicy
			p.Policy = wire.LeaderPolicy(slices.Index(policy.choices, policy.value))
		}
		if flags.Changed("weight") {
			p.Mask |= wire.MaskWeight
		}
		if flags.Changed("send") {
			p.Mask |= wire.MaskSend
		}
		switch {
		case p.Mask == 0:
			return usagef(c, "nothing to change in %s; give at least one setting, as in --preferred-leader 2", args[0])
		case *weight == 0:
			return usagef(c, "flag --weight: 0 is no share; to give a partition no records, use --send disabled")
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			err := conn.PlacePartition(ctx, destination, number, p)
			if errors.Is(err, wire.CodeUnknownDestination) && number != client.AllPartitions {
				// Names have levels: orders/7 may be one.
				if whole := conn.PlacePartition(ctx, args[0], client.AllPartitions, p); !errors.Is(whole, wire.CodeUnknownDestination) {
					err = whole
				}
			}
			if err != nil {
				return &failure{doing: "alter partition", destination: destination, err: err}
			}
			_, err = fmt.Fprintf(a.stdout, "altered %s\n", args[0])
			return outputError(err)
		})
	}
	return c
}

// partitionArgument parses DEST/N.
func partitionArgument(c *cobra.Command, word string) (destination string, number uint32, err error) {
	i := strings.LastIndexByte(word, '/')
	if i > 0 {
		n, err := strconv.ParseUint(word[i+1:], 10, 32)
		if err == nil {
			return word[:i], uint32(n), nil
		}
	}
	return "", 0, usagef(c, "%q is no partition; write destination and number, as in orders/0", word)
}

// findPartition is a partition of a list, nil if it is not there.
func findPartition(all []client.Destination, destination string, number uint32) *client.PartitionInfo {
	for _, d := range all {
		for i := range d.Partitions {
			if d.Name == destination && d.Partitions[i].Number == number {
				return &d.Partitions[i]
			}
		}
	}
	return nil
}

func (a *app) partitionMoveCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "move DEST/N",
		Short: "Move a replica of a partition from one node to another",
		Example: `  lockstep partition move orders/0 --from 1 --to 4
  lockstep partition move orders/0 --from 1 --to 4 --wait`,
		Args: exactArgs("DEST/N"),
	}
	from := c.Flags().Uint32("from", 0, "`node` that holds the replica")
	to := c.Flags().Uint32("to", 0, "`node` that gets it")
	withoutDefault(c.Flags(), "from", "to")
	wait := c.Flags().Bool("wait", false, "return when it is done and not when it is decided")
	c.RunE = func(c *cobra.Command, args []string) error {
		destination, number, err := partitionArgument(c, args[0])
		if err != nil {
			return err
		}
		if *from == 0 || *to == 0 || *from == *to {
			return usagef(c, "flags --from and --to: two nodes are needed, as lockstep partition ls and lockstep node ls show them")
		}
		return a.withCluster(c, func(ctx context.Context, conn *client.Conn) error {
			doing := fmt.Sprintf("move %s from node %d to node %d", args[0], *from, *to)
			if err := conn.MoveReplica(ctx, destination, number, *from, *to); err != nil {
				return &failure{doing: doing, err: err}
			}
			if !*wait {
				fmt.Fprintf(a.stderr, "%s is to move from node %d to node %d; see how far it is with: lockstep partition ls %s\n", args[0], *from, *to, shellWord(destination))
				return nil
			}
			look := moveOutlook(destination, number, *from, *to)
			err := a.awaitChange(ctx, conn, "lockstep partition ls "+shellWord(destination), func(_ *clusterJSON, all []client.Destination) outlook { return look(all) })
			if err != nil {
				return &failure{doing: doing, err: err}
			}
			fmt.Fprintf(a.stderr, "moved %s from node %d to node %d\n", args[0], *from, *to)
			return nil
		})
	}
	return c
}

func (a *app) partitionTransferCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "transfer-leader DEST/N",
		Short: "Give the leadership of a partition to another of its replicas",
		Example: `  lockstep partition transfer-leader orders/0
  lockstep partition transfer-leader orders/0 --to 2`,
		Args: exactArgs("DEST/N"),
	}
	to := c.Flags().Uint32("to", 0, "`node` that shall lead; 0 = any other that holds a replica")
	c.RunE = func(c *cobra.Command, args []string) error {
		destination, number, err := partitionArgument(c, args[0])
		if err != nil {
			return err
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			doing := "transfer the leadership of " + args[0]
			before, err := conn.Destination(ctx, destination)
			if err != nil {
				return &failure{doing: doing, err: err}
			}
			if err := conn.TransferLeader(ctx, destination, number, *to); err != nil {
				return &failure{doing: doing, err: err}
			}
			var old client.PartitionInfo // which partition it is, the broker has looked at
			if p := findPartition([]client.Destination{before}, destination, number); p != nil {
				old = *p
			}
			look := transferOutlook(destination, number, old, *to)
			var now *client.PartitionInfo
			err = a.awaitChange(ctx, conn, "lockstep partition ls "+shellWord(destination), func(_ *clusterJSON, all []client.Destination) outlook {
				now = findPartition(all, destination, number)
				return look(now)
			})
			if err != nil {
				return &failure{doing: doing, err: err}
			}
			said := fmt.Sprintf("%s is led by node %d", args[0], now.Leader)
			if now.Policy == wire.LeaderAny || now.Preferred != now.Leader {
				said += "; " + keepLeader(destination, number, now.Leader)
			}
			fmt.Fprintln(a.stderr, said)
			return nil
		})
	}
	return c
}

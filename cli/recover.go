package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
)

func (a *app) partitionRecoverCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "recover DEST/N",
		SuggestFor: []string{"reform", "unsafe-recover"},
		Short:      "Let a partition go on whose majority of replicas is gone for good, and accept what is lost",
		Long: `Say what is left of a partition of which a majority of replicas cannot be reached, and
what may be lost if it goes on with that. Nothing is changed without --accept-loss.

With it the replica with the longest log, or the one of --node, goes on alone, and others
are made from it. Records that only the others had are lost, also acknowledged ones;
readers that were further get DATA_LOST. The others are given up: when their nodes come
back, their replicas are removed. Start those nodes instead if that is possible at all.`,
		Example: `  lockstep partition recover orders/0
  lockstep partition recover orders/0 --accept-loss`,
		Args: exactArgs("DEST/N"),
	}
	node := c.Flags().Uint32("node", 0, "`node` whose replica goes on; 0 = the one with the longest log")
	accept := c.Flags().Bool("accept-loss", false, "do it: what only the other replicas have is lost")
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		destination, number, err := partitionArgument(c, args[0])
		if err != nil {
			return err
		}
		return a.withCluster(c, func(ctx context.Context, conn *client.Conn) error {
			doing := "recover " + args[0]
			found, err := conn.RecoverPartition(ctx, destination, number, *node, *accept)
			if err != nil {
				return &failure{doing: doing, err: err}
			}
			if output.value == "json" {
				err = a.printJSON(recoveryOf(args[0], &found))
			} else {
				_, err = io.WriteString(a.stdout, recoveryText(args[0], &found))
			}
			switch {
			case err != nil:
				return outputError(err)
			case !*accept:
				return fmt.Errorf("%s: nothing was changed; start the other nodes if you can, else accept the loss with: lockstep partition recover %s --accept-loss", args[0], shellWord(args[0]))
			}
			err = a.awaitChange(ctx, conn, "lockstep partition ls "+shellWord(destination), func(_ *clusterJSON, all []client.Destination) outlook {
				p := findPartition(all, destination, number)
				if p == nil {
					return outlook{err: errRemovedMeanwhile(destination)}
				}
				return outlook{done: p.Leader == found.Node, left: fmt.Sprintf("node %d does not lead %s yet", found.Node, args[0])}
			})
			if err != nil {
				return &failure{doing: doing, err: err}
			}
			fmt.Fprintf(a.stderr, "%s goes on with the replica on node %d; see the others being made with: lockstep partition ls %s\n", args[0], found.Node, shellWord(destination))
			return nil
		})
	}
	return c
}

// recoveryJSON is what partition recover prints.
type recoveryJSON struct {
	Partition string `json:"partition"`
	Node      uint32 `json:"node"`      // whose replica goes on
	LostFrom  uint64 `json:"lost_from"` // offset
	// What the last leader has said of itself, up to a second before it was gone; absent if
	// nobody has heard it.
	LedBy    uint32          `json:"last_leader,omitempty"`
	LedEpoch uint32          `json:"last_epoch,omitempty"`
	LedUpTo  uint64          `json:"last_next_offset,omitempty"`
	Replicas []remainderJSON `json:"replicas"`
}

type remainderJSON struct {
	Replica   uint64 `json:"replica"`
	Node      uint32 `json:"node"`
	Reached   bool   `json:"reached"`
	Uncertain bool   `json:"uncertain,omitempty"`
	Term      uint64 `json:"last_term,omitempty"`
	Next      uint64 `json:"next_offset,omitempty"`
}

func recoveryOf(name string, r *client.PartitionRecovery) *recoveryJSON {
	out := &recoveryJSON{Partition: name, Node: r.Node, LostFrom: r.Next, LedBy: r.HeardNode, LedEpoch: r.HeardEpoch, LedUpTo: r.HeardNext, Replicas: []remainderJSON{}}
	for _, o := range r.Replicas {
		out.Replicas = append(out.Replicas, remainderJSON{Replica: o.Replica, Node: o.Node, Reached: o.Reached, Uncertain: o.Uncertain, Term: o.Term, Next: o.Next})
	}
	return out
}

// recoveryText says what is left, and what is not.
func recoveryText(name string, r *client.PartitionRecovery) string {
	var text strings.Builder
	for _, o := range r.Replicas {
		switch {
		case !o.Reached:
			fmt.Fprintf(&text, "node %d: its replica cannot be reached\n", o.Node)
		case o.Uncertain:
			fmt.Fprintf(&text, "node %d: its log ends at offset %d (last term %d); its machine stopped while records were not synced\n", o.Node, o.Next, o.Term)
		default:
			fmt.Fprintf(&text, "node %d: its log ends at offset %d (last term %d)\n", o.Node, o.Next, o.Term)
		}
	}
	fmt.Fprintf(&text, "%s goes on with node %d. Lost is whatever was stored from offset %d on, acknowledged or not", name, r.Node, r.Next)
	switch {
	case r.HeardNode == 0:
		fmt.Fprint(&text, "; how much that is nobody can say.\n")
	case r.HeardNext > r.Next:
		fmt.Fprintf(&text, ":\nat least the %s up to offset %d, where the log of the last leader (node %d) was in its last second.\n",
			plural(int64(r.HeardNext-r.Next), "record"), r.HeardNext, r.HeardNode)
	default:
		fmt.Fprintf(&text, ":\nat most what came after the last leader (node %d) said, within its last second, that its log ends at offset %d.\n", r.HeardNode, r.HeardNext)
	}
	return text.String()
}

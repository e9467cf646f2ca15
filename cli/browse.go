package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
)

// browsedRunes is how much of a key or value the table shows.
const browsedRunes = 48

// standingJSON is how a record stands in a group, in browse -o json and consume -o json.
type standingJSON struct {
	Group      string `json:"group,omitempty"`
	LeaseEpoch uint64 `json:"lease_epoch,omitempty"` // the fencing token of who consumes it
	State      string `json:"state,omitempty"`
	Holder     string `json:"holder,omitempty"`
	Deliveries int    `json:"deliveries,omitempty"`
	Attempts   int    `json:"attempts,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

func (a *app) browseCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "browse DEST",
		SuggestFor: []string{"peek", "look", "inspect"},
		Short:      "Look at records without consuming them",
		Long: `Print records and leave them where they are. Of a group these are the records that it is not done with, and how each stands:
  waiting      nobody has had it
  leased       a consumer has it
  behind       it waits for an earlier record of its key or publisher
  returned     it was given back, and is tried again
  parked       it is the first of its parked key or publisher; see lockstep key
  dead letter  it has failed too often, and is being written elsewhere

Without --group it is the queue's only group, or, if it has none, and of topics, what is there. Why a record is not moving
says lockstep explain.`,
		Example: `  lockstep browse orders
  lockstep browse orders --group billing --limit 5 -o json
  lockstep browse events --from 1000 --partition 2`,
		Args:              exactArgs("DEST"),
		ValidArgsFunction: a.completeDestinations(),
	}
	a.clientFlags(c)
	var o client.BrowseOptions
	flags := c.Flags()
	flags.StringVarP(&o.Group, "group", "g", "", "the unfinished records of the group with this `name`")
	flags.IntVarP(&o.Limit, "limit", "n", 100, "print at most this `number` of records; 0 = all")
	flags.Uint64Var(&o.From, "from", 0, "begin at this `offset`, in each partition")
	withoutDefault(flags, "from")
	partitions := flags.UintSlice("partition", nil, "look only at the partition with this `number`; may be repeated")
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if o.Limit < 0 {
			return usagef(c, "flag --limit: %d is negative", o.Limit)
		}
		for _, n := range *partitions {
			if n > 1<<32-1 {
				return usagef(c, "flag --partition: %d is no partition number", n)
			}
			o.Partitions = append(o.Partitions, uint32(n))
		}
		return a.browse(c, args[0], o, output.value == "json")
	}
	return c
}

func (a *app) browse(c *cobra.Command, destination string, o client.BrowseOptions, asJSON bool) error {
	ctx := c.Context()
	conn, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, words, err := a.find(ctx, conn, destination)
	if err != nil {
		return err
	}
	header := []string{"partition", "offset", "key", "bytes", "value"}
	var rows [][]string
	var line bytes.Buffer
	late := a.newWaiting(destination).beginning()
	defer late.Stop()
	var failed error // what could be read is printed before that
	for r, err := range conn.Browse(ctx, destination, o) {
		late.Stop()
		if err != nil {
			failed = interruptedOr(ctx, a.suggest(ctx, conn, &failure{doing: "browse", destination: destination, group: o.Group, kind: words, err: err}))
			break
		}
		if asJSON {
			line.Reset()
			if err := appendJSON(&line, &r.Record, &standingJSON{Group: r.Group, State: string(r.State), Holder: r.Holder, Deliveries: r.Deliveries, Attempts: r.Attempts, Reason: r.Reason}); err != nil {
				return err
			}
			if _, err := a.stdout.Write(line.Bytes()); err != nil {
				return outputError(err)
			}
			continue
		}
		row := []string{strconv.FormatUint(uint64(r.Partition), 10), strconv.FormatUint(r.Offset, 10), shown(r.Key), strconv.Itoa(len(r.Value)), shown(r.Value)}
		if r.Group != "" {
			if len(rows) == 0 {
				header = append(header[:2:2], append([]string{"state", "delivered", "failed", "holder"}, header[2:]...)...)
			}
			state := string(r.State)
			if r.Reason != "" {
				state += ": " + r.Reason
			}
			row = append(row[:2:2], append([]string{state, strconv.Itoa(r.Deliveries), strconv.Itoa(r.Attempts), holderName(r.Holder)}, row[2:]...)...)
		}
		if rows = append(rows, row); len(rows) == maxBrowsedRows {
			return fmt.Errorf("browse %q: more than %d records do not fit into one table; print them with -o json, or fewer with --limit", destination, maxBrowsedRows)
		}
	}
	if asJSON || failed != nil && len(rows) == 0 {
		return failed
	}
	return cmp.Or(a.printTable(header, rows, "partition", "offset", "delivered", "failed", "bytes"), failed)
}

// maxBrowsedRows bounds a table, whose columns are as wide as their widest cell.
const maxBrowsedRows = 100_000

// holderName is the name of a consumer, or the beginning of its session.
func holderName(s string) string {
	if name, _, named := strings.Cut(s, " ("); named {
		return name
	}
	return s[:min(len(s), 8)]
}

// shown is the beginning of a key or value as a cell of a table.
func shown(b []byte) string {
	text := []rune(strings.ToValidUTF8(string(b[:min(len(b), 4*browsedRunes)]), "\ufffd"))
	for i, r := range text {
		if unicode.IsControl(r) {
			text[i] = ' '
		}
	}
	if len(text) > browsedRunes {
		return string(text[:browsedRunes]) + "…"
	}
	return string(text)
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/verify"
)

// errNotKept ends verify when its result was printed, and is no good one.
var errNotKept = errors.New("the check has found something")

func (a *app) verifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify [DEST]",
		Short: "Check order, loss, duplicates and single holders on a cluster, with processes killed or paused",
		Long: `Send numbered records, take them with the consumers of a serial group, and compare
everything that these saw with what Lockstep promises: records of a key in order, each
handled by one consumer at a time, none lost, and none repeated but where a consumer
had given it back or had lost it. Exit code 0 says that all was kept, 1 that something
was not, or that records were left over.

Without DEST it makes a queue and removes it at the end. A named one that is missing is
made, as a queue, and removed as well; one that exists must be a topic created with
--record-index, whose other groups see these records too. The group has a name of its own.

--kill and --pause name processes of this machine, brokers for example, that get
SIGKILL once, or SIGSTOP and a while later SIGCONT, at moments that --seed draws.`,
		Example: `  lockstep verify --records 2000
  lockstep verify --records 1000 --rate 0 --keys 10 --consumers 8 --nack 10 -o json
  lockstep verify --for 5m --replicas 3 --kill 4711 --pause 4712,4713`,
		ValidArgsFunction: a.completeDestinations(),
	}
	a.clientFlags(c)
	flags := c.Flags()
	o := verify.Options{Settings: client.Settings{}}
	lasts, session, work, pauseFor, patience := durationFlag{}, durationFlag{}, durationFlag{value: time.Millisecond}, durationFlag{value: 10 * time.Second}, durationFlag{value: time.Minute}
	flags.IntVarP(&o.Records, "records", "n", 10_000, "`number` of records that are sent")
	flags.Var(&lasts, "for", "send for a `duration` instead")
	withoutDefault(flags, "for")
	flags.Float64Var(&o.Rate, "rate", 2000, "`number` of records per second; 0 = as fast as they are taken")
	flags.IntVar(&o.Keys, "keys", 100, "`number` of keys")
	flags.IntVar(&o.Consumers, "consumers", 4, "`number` of consumers, each with a connection of its own")
	flags.IntVar(&o.Workers, "parallel", 8, "`number` of records that a consumer handles at once")
	nack := flags.Float64("nack", 0, "give back so many `percent` of the deliveries; 0 = none")
	flags.Var(&work, "work", "a `duration`: the longest that a record is worked on")
	flags.Var(&session, "session-timeout", "`time` without a sign of life after which a consumer's records go to others; 0 = that of new groups")
	flags.IntSliceVar(&o.Kill, "kill", nil, "kill the processes `PID,...` of this machine (SIGKILL)")
	flags.IntSliceVar(&o.Pause, "pause", nil, "pause the processes `PID,...` of this machine (SIGSTOP, then SIGCONT)")
	flags.Var(&pauseFor, "pause-for", "a `duration`: the longest pause")
	flags.Uint64Var(&o.Seed, "seed", 0, "draw the same moments as a run with this `number`; 0 = others")
	flags.BoolVar(&o.Steady, "steady", false, "nothing fails meanwhile: a lost lease is a broken promise too")
	flags.Var(&patience, "patience", "give up when nothing has been handled for this `duration`")
	flags.BoolVar(&o.Keep, "keep", false, "leave the destination and the group, to look at")
	flags.Uint32Var(&o.Settings.Partitions, "partitions", 2, "`number` of partitions of a destination that is made")
	flags.Uint8Var(&o.Settings.Replicas, "replicas", 0, "`number` of replicas of a destination that is made; 0 = automatic")
	output := outputFlag(c)
	c.Args = func(c *cobra.Command, args []string) error {
		switch {
		case len(args) > 1:
			return usagef(c, "%q takes one DEST, not also %q", c.CommandPath(), args[1])
		case flags.Changed("records") && flags.Changed("for"):
			return usagef(c, "--records and --for exclude each other")
		case o.Steady && len(o.Kill)+len(o.Pause) > 0:
			return usagef(c, "--steady says that nothing fails; leave out --kill and --pause")
		case flags.Changed("records") && o.Records < 1, flags.Changed("keys") && o.Keys < 1, flags.Changed("consumers") && o.Consumers < 1, flags.Changed("parallel") && o.Workers < 1:
			return usagef(c, "--records, --keys, --consumers and --parallel are at least 1")
		case *nack < 0 || *nack > 90:
			return usagef(c, "flag --nack: %g is not between 0 and 90", *nack)
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 1 {
			o.Destination = args[0]
		}
		o.For, o.Session, o.Work, o.PauseFor, o.Patience, o.Nack = lasts.value, session.value, work.value, pauseFor.value, patience.value, *nack/100
		if o.For > 0 {
			o.Records = 0
		}
		return a.verify(c, o, output.value == "json")
	}
	return c
}

func (a *app) verify(c *cobra.Command, o verify.Options, asJSON bool) error {
	ctx := c.Context()
	o.Connect = func(ctx context.Context) (*client.Conn, error) { return a.connect(ctx) }
	bar := startProgress(a.stderr, "verify", int64(o.Records), false, linesWithoutTerminal)
	o.Progress = func(_, handled int) { bar.set(int64(handled)) }
	o.Say = func(text string) { fmt.Fprintf(a.stderr, "lockstep: %s\n", text) }
	result, err := verify.Run(ctx, o)
	bar.finish()
	if errors.Is(err, verify.ErrOption) {
		return usagef(c, "%v", strings.TrimPrefix(err.Error(), verify.ErrOption.Error()+": "))
	}
	if err != nil {
		return interruptedOr(ctx, &failure{doing: "verify", destination: o.Destination, err: err})
	}
	if asJSON {
		err = a.printJSON(result)
	} else {
		err = a.printVerified(result)
	}
	if err == nil && result.Verdict != verify.Kept {
		return fmt.Errorf("%w: verdict %s; the same moments are drawn with: lockstep verify --seed %d", errNotKept, result.Verdict, result.Seed)
	}
	return err
}

// printVerified prints what people read.
func (a *app) printVerified(r *verify.Result) error {
	var b strings.Builder
	verdict := map[verify.Verdict]string{
		verify.Kept:       "kept: no promise was broken",
		verify.Broken:     "BROKEN",
		verify.Unfinished: "UNFINISHED: nothing is known to be broken, and not everything was handled",
	}[r.Verdict]
	fmt.Fprintf(&b, "%s\n", verdict)
	fmt.Fprintf(&b, "sent        %s records, %s stored, %d failed (%d of them may be stored)\n", formatCount(int64(r.Sent)), formatCount(int64(r.Stored)), r.Failed, r.Unknown)
	fmt.Fprintf(&b, "handled     %s in %s deliveries; %d acknowledgements refused because the lease was lost\n", formatCount(int64(r.Handled)), formatCount(int64(r.Deliveries)), r.Stale)
	for _, why := range slices.Sorted(maps.Keys(r.Again)) {
		fmt.Fprintf(&b, "repeated    %s: %s\n", formatCount(int64(r.Again[why])), why)
	}
	fmt.Fprintf(&b, "compared    %s events in %.1f s\n", formatCount(int64(r.Events)), r.Seconds)
	for _, d := range r.Deeds {
		fmt.Fprintf(&b, "process     %d %s at %.1f s\n", d.PID, d.Did, d.Seconds)
	}
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "VIOLATION   %s\n", oneLine(v))
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "VIOLATION   and %d more\n", r.More)
	}
	places := func(word string, list []verify.Place, count int) {
		for _, p := range list {
			fmt.Fprintf(&b, "%s        record number %d, %s/%d@%d\n", word, p.Number, r.Destination, p.Partition, p.Offset)
		}
		if count > len(list) {
			fmt.Fprintf(&b, "%s        and %d more\n", word, count-len(list))
		}
	}
	places("LOST", r.Lost, r.LostCount)
	places("OPEN", r.Open, r.OpenCount)
	fmt.Fprintf(&b, "seed        %d\n", r.Seed)
	if r.Kept {
		fmt.Fprintf(&b, "left there  %s, group %s; see: lockstep explain queue %s --group %s\n", r.Destination, r.Group, r.Destination, r.Group)
	}
	_, err := a.stdout.Write([]byte(b.String()))
	return outputError(err)
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

// destinationWords are the words in which the commands queue and topic differ.
type destinationWords struct {
	kind    client.Kind
	noun    string // the command's name
	other   string // the other kind's
	example string // a name for examples
	story   string
}

var (
	queueWords = destinationWords{
		kind: client.Queue, noun: "queue", other: "topic", example: "orders",
		story: "A queue is for work: a\nrecord goes when all groups of the queue are done with it. Without a group it stays, as\nlong as the limits by time and size let it.",
	}
	topicWords = destinationWords{
		kind: client.Topic, noun: "topic", other: "queue", example: "events",
		story: "A topic keeps its records by time and size, whoever has read them.",
	}
)

func wordsOf(kind client.Kind) destinationWords {
	if kind == client.Topic {
		return topicWords
	}
	return queueWords
}

// destinationCommand is `lockstep queue` or `lockstep topic`.
func (a *app) destinationCommand(w destinationWords) *cobra.Command {
	c := a.group(&cobra.Command{
		Use:   w.noun,
		Short: fmt.Sprintf("Create, list, describe, alter and remove %ss", w.noun),
		Long:  fmt.Sprintf("Create, list, describe, alter and remove %ss. %s", w.noun, w.story),
		Example: fmt.Sprintf(`  lockstep %[1]s create %[2]s --partitions 4
  lockstep %[1]s ls`, w.noun, w.example),
	})
	a.clientFlags(c)
	c.AddCommand(a.createCommand(w), a.lsCommand(w), a.describeCommand(w), a.alterCommand(w), a.rmCommand(w))
	return c
}

// settingsFlags are the flags of create and alter.
type settingsFlags struct {
	partitions     uint32
	replicas       uint8
	retentionTime  durationFlag
	retentionBytes sizeFlag
	maxRecordBytes sizeFlag
	storage        *choiceFlag
	sync           *choiceFlag

	thresholdRecords countFlag
	thresholdBytes   sizeFlag

	limit      uint32
	letter     string
	letterMode *choiceFlag

	index bool
}

// newSettingsFlags adds the flags of create and alter to c, in alter those that
// can be changed.
func newSettingsFlags(c *cobra.Command, w destinationWords, altering bool) *settingsFlags {
	s := &settingsFlags{
		retentionTime:  durationFlag{value: -1, unlimited: true},
		retentionBytes: sizeFlag{bytes: -1, unlimited: true},
		maxRecordBytes: sizeFlag{bytes: wire.DefaultMaxRecordBytes},
		storage:        newChoice("disk", "disk", "memory"),
		sync:           newChoice("quorum-fsync", "quorum-fsync", "interval", "os"),

		thresholdBytes: sizeFlag{bytes: -1, unlimited: true},
		letterMode:     newChoice("", "record", "park", "none"),
	}
	flags := c.Flags()
	if !altering {
		flags.Uint32Var(&s.partitions, "partitions", 1, fmt.Sprintf("`number` of partitions, the unit of order and of parallel work: 1 to %s", formatCount(server.MaxPartitions)))
		flags.Uint8Var(&s.replicas, "replicas", 0, "`number` of nodes that hold each partition; 0 = 3 once there are three brokers, 1 until then")
		flags.Var(s.storage, "storage", "where records live; those in memory are lost when the broker stops")
	}
	if !altering && w.kind == client.Topic {
		flags.BoolVar(&s.index, "record-index", false, "store 16 bytes more for each record, by which serial groups find those of a key or publisher; queues do")
	}
	flags.Var(&s.retentionTime, "retention-time", "drop records older than a `duration` such as 24h or 7d, or unlimited")
	flags.Var(&s.retentionBytes, "retention-bytes", "drop the oldest records of a partition beyond a `size` such as 10GiB, or unlimited")
	flags.Var(&s.thresholdRecords, "threshold-records", "refuse records while their partition holds a `number` of them, or unlimited")
	flags.Var(&s.thresholdBytes, "threshold-bytes", "refuse records while their partition holds a `size` of them, or unlimited")
	flags.Var(s.sync, "sync", "when records are synced to disk: before they are acknowledged, soon after, or when the kernel does it")
	flags.Var(&s.maxRecordBytes, "max-record-bytes", "refuse records above a `size`, at most "+exactSize(maxRecordLimit))
	flags.Uint32Var(&s.limit, "delivery-limit", 0, "`attempts` after which a record is a dead letter, unless its group says otherwise; 0 = as many as it takes")
	flags.StringVar(&s.letter, "dead-letter", "", "`destination` for dead letters, which is to be created, too")
	flags.Var(s.letterMode, "dead-letter-mode", "what becomes of a dead letter: it goes there alone, or its key is parked with all that follows")
	return s
}

// maxRecordLimit is the highest value of --max-record-bytes, in bytes. The wire's
// own limit is a few bytes below the batch limit, for the batch header.
const maxRecordLimit = wire.MaxRecordBytes

// read checks the flags and returns the settings and which of them were given.
func (s *settingsFlags) read(c *cobra.Command) (client.Settings, client.SettingsMask, error) {
	flags := c.Flags()
	settings := client.Settings{Partitions: s.partitions, Replicas: s.replicas}
	switch {
	case flags.Changed("partitions") && (s.partitions == 0 || s.partitions > server.MaxPartitions):
		return settings, 0, usagef(c, "flag --partitions: %d is not between 1 and %s; records that need more than that many consumers at once belong into several destinations",
			s.partitions, formatCount(server.MaxPartitions))
	case flags.Changed("retention-time") && s.retentionTime.value >= 0 && s.retentionTime.value < time.Millisecond:
		return settings, 0, usagef(c, "flag --retention-time: %s is below 1ms; to keep records for ever write unlimited", s.retentionTime.String())
	case flags.Changed("retention-bytes") && s.retentionBytes.bytes == 0:
		return settings, 0, usagef(c, "flag --retention-bytes: at least 1B; to keep records however many write unlimited")
	case flags.Changed("threshold-bytes") && s.thresholdBytes.bytes == 0:
		return settings, 0, usagef(c, "flag --threshold-bytes: at least 1B; to hold records however many write unlimited")
	case s.maxRecordBytes.bytes < 1 || s.maxRecordBytes.bytes > maxRecordLimit:
		return settings, 0, usagef(c, "flag --max-record-bytes: %s is not between 1B and %s", s.maxRecordBytes.String(), exactSize(maxRecordLimit))
	}
	// In client.Settings zero means unlimited.
	settings.RetentionTime = max(s.retentionTime.value, 0)
	settings.RetentionBytes = max(s.retentionBytes.bytes, 0)
	settings.ThresholdRecords, settings.ThresholdBytes = s.thresholdRecords.value, uint64(max(s.thresholdBytes.bytes, 0))
	if flags.Changed("max-record-bytes") {
		settings.MaxRecordBytes = uint32(s.maxRecordBytes.bytes)
	}
	if s.storage.value == "memory" {
		settings.Storage = wire.StorageMemory
	}
	settings.Sync = syncMode(s.sync.value)
	if s.index {
		settings.RecordIndex = wire.RecordIndexOn
	}
	settings.DeliveryLimit, settings.DeadLetter = s.limit, s.letter
	if err := settings.DeadLetterMode.UnmarshalText([]byte(s.letterMode.value)); err != nil {
		return settings, 0, err
	}

	var mask client.SettingsMask
	for name, bit := range map[string]client.SettingsMask{
		"partitions": wire.MaskPartitions, "replicas": wire.MaskReplicas,
		"retention-time": wire.MaskRetentionTime, "retention-bytes": wire.MaskRetentionBytes,
		"storage": wire.MaskStorage, "sync": wire.MaskSync, "max-record-bytes": wire.MaskMaxRecordBytes,
		"threshold-records": wire.MaskThresholdRecords, "threshold-bytes": wire.MaskThresholdBytes,
		"delivery-limit": wire.MaskDeliveryLimit, "dead-letter": wire.MaskDeadLetter, "dead-letter-mode": wire.MaskDeadLetterMode,
	} {
		if flags.Changed(name) {
			mask |= bit
		}
	}
	return settings, mask, nil
}

func syncMode(word string) wire.SyncMode {
	for _, m := range []wire.SyncMode{wire.SyncQuorumFsync, wire.SyncInterval, wire.SyncOS} {
		if m.String() == word {
			return m
		}
	}
	panic(fmt.Sprintf("sync mode %q is not in the list of choices", word))
}

func (a *app) createCommand(w destinationWords) *cobra.Command {
	c := &cobra.Command{
		Use:        "create NAME",
		SuggestFor: []string{"add", "new", "make", "declare"},
		Short:      "Create a " + w.noun,
		Example: fmt.Sprintf(`  lockstep %[1]s create %[2]s --partitions 4
  lockstep %[1]s create %[2]s --retention-time 24h --retention-bytes 10GiB --if-not-exists`, w.noun, w.example),
		Args: exactArgs("NAME"),
	}
	settings := newSettingsFlags(c, w, false)
	ifNotExists := c.Flags().Bool("if-not-exists", false, "succeed without a change if the "+w.noun+" exists")
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		wanted, _, err := settings.read(c)
		if err != nil {
			return err
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			d, err := conn.CreateDestination(ctx, client.Destination{Name: args[0], Kind: w.kind, Settings: wanted})
			verb := "created"
			if errors.Is(err, wire.CodeAlreadyExists) {
				if there, lookErr := conn.Destination(ctx, args[0]); lookErr == nil && there.Alias != nil {
					return fmt.Errorf("create %s %q: an alias of %q has that name; choose another, or remove the alias with: lockstep alias rm %s", w.noun, args[0], there.Name, shellWord(args[0]))
				}
			}
			if *ifNotExists && errors.Is(err, wire.CodeAlreadyExists) {
				verb = "exists already:"
				d, err = conn.Destination(ctx, args[0])
				if err == nil && d.Kind != w.kind {
					err = wire.CodeKindMismatch
				}
				if err == nil && c.Flags().Changed("partitions") && d.Settings.Partitions != wanted.Partitions {
					fmt.Fprintf(a.stderr, "lockstep: %s %q has %s, not %d; see: lockstep %s describe %s\n",
						w.noun, d.Name, plural(int64(d.Settings.Partitions), "partition"), wanted.Partitions, w.noun, d.Name)
				}
			}
			if errors.Is(err, wire.CodeAlreadyExists) {
				if there, lookErr := conn.Destination(ctx, args[0]); lookErr == nil && there.Kind != w.kind {
					err = wire.CodeKindMismatch
				}
			}
			if err != nil {
				return &failure{doing: "create " + w.noun, destination: args[0], kind: w, err: err}
			}
			a.warnOfLetters(ctx, conn, wanted.DeadLetter)
			return a.printChanged(output.value, verb, d)
		})
	}
	return c
}

// printChanged reports a destination that was created or altered.
func (a *app) printChanged(output, verb string, d client.Destination) error {
	if output == "json" {
		return a.printJSON(describe(d))
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s %q (%s)\n", verb, d.Kind, d.Name, plural(int64(d.Settings.Partitions), "partition"))
	return outputError(err)
}

func plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return formatCount(n) + " " + noun + "s"
}

// destinationJSON is a destination as -o json prints it. Absent retention means unlimited.
type destinationJSON struct {
	Name            string `json:"name"`
	Kind            string `json:"kind"`
	ID              string `json:"id"`
	Version         uint64 `json:"version"`
	PartitionCount  uint32 `json:"partition_count"`
	Replicas        uint8  `json:"replicas"`
	Automatic       bool   `json:"automatic_replicas"`
	Storage         string `json:"storage"`
	Sync            string `json:"sync"`
	RetentionTimeMs *int64 `json:"retention_time_ms,omitempty"`
	RetentionBytes  *int64 `json:"retention_bytes,omitempty"`
	MaxRecordBytes  uint32 `json:"max_record_bytes"`
	RecordIndex     bool   `json:"record_index"`
	// Absent thresholds mean none.
	ThresholdRecords uint64          `json:"threshold_records,omitempty"`
	ThresholdBytes   uint64          `json:"threshold_bytes,omitempty"`
	DeliveryLimit    uint32          `json:"delivery_limit,omitempty"`
	DeadLetter       string          `json:"dead_letter,omitempty"`
	DeadLetterMode   string          `json:"dead_letter_mode,omitempty"`
	Records          uint64          `json:"records"`
	Bytes            uint64          `json:"bytes"`
	Partitions       []partitionJSON `json:"partitions"`
}

type partitionJSON struct {
	Partition   uint32 `json:"partition"`
	Leader      uint32 `json:"leader"`
	Epoch       uint32 `json:"epoch"`
	State       string `json:"state"`
	Full        bool   `json:"full"`
	Unattended  bool   `json:"unattended,omitempty"`
	Closed      bool   `json:"closed"`
	Damaged     uint32 `json:"damaged_ranges"`
	Problem     string `json:"problem,omitempty"`
	StartOffset uint64 `json:"start_offset"`
	NextOffset  uint64 `json:"next_offset"`
	Records     uint64 `json:"records"`
	Bytes       uint64 `json:"bytes"`
	unled       bool   // nobody leads it, though it has several replicas
}

func describe(d client.Destination) destinationJSON {
	out := destinationJSON{
		Name: d.Name, Kind: d.Kind.String(), ID: uuid.UUID(d.ID).String(), Version: d.Version,
		PartitionCount: d.Settings.Partitions, Replicas: d.Settings.Replicas, Automatic: d.Automatic,
		Storage: d.Settings.Storage.String(), Sync: d.Settings.Sync.String(),
		MaxRecordBytes: d.Settings.MaxRecordBytes, ThresholdRecords: d.Settings.ThresholdRecords, ThresholdBytes: d.Settings.ThresholdBytes,
		DeliveryLimit: d.Settings.DeliveryLimit, DeadLetter: d.Settings.DeadLetter, DeadLetterMode: d.Settings.DeadLetterMode.String(),
		Partitions: make([]partitionJSON, len(d.Partitions)),
	}
	out.RecordIndex = d.Settings.RecordIndex == wire.RecordIndexOn || d.Settings.RecordIndex == wire.RecordIndexDefault && d.Kind == client.Queue
	if out.MaxRecordBytes == 0 {
		out.MaxRecordBytes = wire.DefaultMaxRecordBytes
	}
	if d.Settings.RetentionTime > 0 {
		ms := d.Settings.RetentionTime.Milliseconds()
		out.RetentionTimeMs = &ms
	}
	if d.Settings.RetentionBytes > 0 {
		out.RetentionBytes = &d.Settings.RetentionBytes
	}
	for i, p := range d.Partitions {
		out.Partitions[i] = partitionJSON{
			Partition: p.Number, Leader: p.Leader, Epoch: p.Epoch, State: p.State.String(), Damaged: p.Damaged, Problem: p.Problem,
			Full: p.Flags&wire.PartitionFull != 0, Unattended: p.Flags&wire.PartitionUnattended != 0, Closed: p.Flags&wire.PartitionSendDisabled != 0,
			StartOffset: p.StartOffset, NextOffset: p.NextOffset, Records: p.NextOffset - p.StartOffset, Bytes: p.Bytes,
			unled: p.Leader == 0 && len(p.Replicas) > 1,
		}
		out.Records += p.NextOffset - p.StartOffset
		out.Bytes += p.Bytes
	}
	return out
}

// replicaText is the number of replicas, and whether it may rise.
func replicaText(d client.Destination) string {
	text := strconv.Itoa(int(d.Settings.Replicas))
	if d.Automatic {
		text += " (automatic)"
	}
	return text
}

// retentionText shows settings whose zero has a meaning.

func retentionText(d client.Destination) string {
	age, size := d.Settings.RetentionTime, d.Settings.RetentionBytes
	switch {
	case age > 0 && size > 0:
		return formatDuration(age) + ", " + formatSize(size)
	case age > 0:
		return formatDuration(age)
	case size > 0:
		return formatSize(size)
	}
	return "unlimited"
}

func thresholdText(d client.Destination) string {
	records, size := d.Settings.ThresholdRecords, d.Settings.ThresholdBytes
	var words []string
	if records > 0 {
		words = append(words, plural(clampInt64(records), "record"))
	}
	if size > 0 {
		words = append(words, formatSize(clampInt64(size)))
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ") + " in each partition"
}

// deadLetterText is what groups do with a record that fails, unless they say otherwise.
func deadLetterText(d client.Destination) string {
	s := &d.Settings
	what := "to " + strconv.Quote(s.DeadLetter)
	switch {
	case s.DeadLetterMode == wire.DeadLetterPark:
		what = "parked with its key"
	case s.DeadLetterMode == wire.DeadLetterNone, s.DeadLetter == "":
		return "none, unless a group says otherwise"
	}
	if s.DeliveryLimit == 0 {
		return what + " when rejected, unless a group says otherwise"
	}
	return what + fmt.Sprintf(" after %s, unless a group says otherwise", plural(int64(s.DeliveryLimit), "attempt"))
}

func (a *app) lsCommand(w destinationWords) *cobra.Command {
	c := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List all " + w.noun + "s",
		Example: fmt.Sprintf(`  lockstep %[1]s ls
  lockstep %[1]s ls -o json`, w.noun),
		Args: exactArgs(),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			all, err := conn.Destinations(ctx)
			if err != nil {
				return &failure{doing: "list " + w.noun + "s", err: err}
			}
			sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
			rows, objects := [][]string(nil), []destinationJSON{}
			for _, d := range all {
				if d.Kind != w.kind {
					continue
				}
				j := describe(d)
				objects = append(objects, j)
				rows = append(rows, []string{
					d.Name, fmt.Sprint(d.Settings.Partitions), replicaText(d), j.Storage, j.Sync,
					retentionText(d), formatCount(clampInt64(j.Records)), formatSize(clampInt64(j.Bytes)),
				})
			}
			if output.value == "json" {
				return a.printJSON(objects)
			}
			if len(rows) == 0 {
				fmt.Fprintf(a.stderr, "no %ss yet; create one with: lockstep %s create %s\n", w.noun, w.noun, w.example)
				return nil
			}
			return a.printTable([]string{"name", "partitions", "replicas", "storage", "sync", "retention", "records", "size"}, rows,
				"partitions", "records", "size")
		})
	}
	return c
}

func clampInt64(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

func (a *app) describeCommand(w destinationWords) *cobra.Command {
	c := &cobra.Command{
		Use:        "describe NAME",
		SuggestFor: []string{"show", "info", "get", "inspect"},
		Short:      "Show the settings and partitions of a " + w.noun,
		Example: fmt.Sprintf(`  lockstep %[1]s describe %[2]s
  lockstep %[1]s describe %[2]s -o json`, w.noun, w.example),
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.completeNames(destinationNames(w.kind, true)),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			d, err := conn.Destination(ctx, args[0])
			if err == nil && d.Kind != w.kind {
				err = wire.CodeKindMismatch
			}
			if err != nil {
				return &failure{doing: "describe " + w.noun, destination: args[0], kind: w, err: err}
			}
			if output.value == "json" {
				return a.printJSON(describe(d))
			}
			if d.Alias != nil {
				fmt.Fprintf(a.stdout, "Alias:       %s, which stands for %s\n", d.Alias.Name, aliasText(*d.Alias))
			}
			return a.printDescription(d)
		})
	}
	return c
}

func (a *app) printDescription(d client.Destination) error {
	j := describe(d)
	kind := j.Kind
	if d.Kind == client.Topic && j.RecordIndex {
		kind += ", with a record index"
	}
	_, err := fmt.Fprintf(a.stdout, `Name:        %s
Kind:        %s
ID:          %s
Partitions:  %d
Replicas:    %s
Storage:     %s
Sync:        %s
Retention:   %s
Threshold:   %s
Dead letter: %s
Max record:  %s
Records:     %s
Size:        %s

`, d.Name, kind, j.ID, j.PartitionCount, replicaText(d), j.Storage, j.Sync, retentionText(d), thresholdText(d), deadLetterText(d),
		formatSize(int64(j.MaxRecordBytes)), formatCount(clampInt64(j.Records)), formatSize(clampInt64(j.Bytes)))
	if err != nil {
		return outputError(err)
	}
	rows := make([][]string, len(j.Partitions))
	for i, p := range j.Partitions {
		leader := "none"
		if p.Leader != 0 {
			leader = fmt.Sprint(p.Leader)
		}
		rows[i] = []string{
			fmt.Sprint(p.Partition), leader, fmt.Sprint(p.Epoch), stateText(p),
			fmt.Sprint(p.StartOffset), fmt.Sprint(p.NextOffset), formatSize(clampInt64(p.Bytes)),
		}
	}
	return a.printTable([]string{"partition", "leader", "epoch", "state", "start", "next", "size"}, rows,
		"partition", "leader", "epoch", "start", "next", "size")
}

// stateText is a partition's state with what is wrong with it.
func stateText(p partitionJSON) string {
	switch {
	case p.Problem != "":
		return p.State + ": " + oneLine(p.Problem)
	case p.Damaged > 0:
		return p.State + ", " + plural(int64(p.Damaged), "damaged range")
	case p.unled:
		return "no leader: see lockstep cluster health"
	}
	text := p.State
	if p.Full {
		text += ", full"
	}
	if p.Closed {
		text += ", closed to new records"
	}
	if p.Unattended {
		text += ", no consumer"
	}
	return text
}

func (a *app) alterCommand(w destinationWords) *cobra.Command {
	c := &cobra.Command{
		Use:        "alter NAME",
		SuggestFor: []string{"set", "update", "edit", "configure"},
		Short:      "Change settings of a " + w.noun,
		Long: "Change settings of a " + w.noun + ". Settings that are not given stay as they are.\n" +
			"Partitions, replicas and storage are fixed when a " + w.noun + " is created. Who leads its partitions\n" +
			"and which records they get is changed with: lockstep partition alter",
		Example: fmt.Sprintf(`  lockstep %[1]s alter %[2]s --retention-time 7d
  lockstep %[1]s alter %[2]s --max-record-bytes 4MiB --sync os`, w.noun, w.example),
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.completeNames(destinationNames(w.kind, false)),
	}
	settings := newSettingsFlags(c, w, true)
	c.Flags().VisitAll(func(f *pflag.Flag) { f.DefValue = "" }) // nothing is changed by default
	output := outputFlag(c)
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return fixedSettingError(c, w, err) })
	c.RunE = func(c *cobra.Command, args []string) error {
		wanted, mask, err := settings.read(c)
		if err != nil {
			return err
		}
		if mask == 0 {
			return usagef(c, "nothing to change in %s %q; give at least one setting, as in --retention-time 7d", w.noun, args[0])
		}
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			d, err := conn.AlterDestination(ctx, client.Destination{Name: args[0], Kind: w.kind, Settings: wanted}, mask)
			if err != nil {
				return &failure{doing: "alter " + w.noun, destination: args[0], kind: w, err: err}
			}
			a.warnOfLetters(ctx, conn, wanted.DeadLetter)
			return a.printChanged(output.value, "altered", d)
		})
	}
	return c
}

// fixedSettingError says why alter has no flag for a setting of create.
func fixedSettingError(c *cobra.Command, w destinationWords, err error) error {
	why := map[string]string{
		"partitions": "the partitions of a %[1]s cannot be changed: keys would move away from their earlier records",
		"replicas":   "the replicas of a %[1]s cannot be changed yet",
		"storage":    "the storage of a %[1]s cannot be changed",

		"record-index": "the records that a %[1]s holds get no index afterwards",
	}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		if text, fixed := why[unknown.GetSpecifiedName()]; fixed {
			return usagef(c, text+"; create another %[1]s with the setting you want", w.noun)
		}
	}
	return flagError(c, err)
}

func (a *app) rmCommand(w destinationWords) *cobra.Command {
	c := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"delete"},
		Short:   "Remove " + w.noun + "s with all their records",
		Long:    "Remove " + w.noun + "s with all their records, without asking and for good.",
		Example: fmt.Sprintf(`  lockstep %[1]s rm %[2]s
  lockstep %[1]s rm %[2]s %[2]s-old --if-exists`, w.noun, w.example),
		ValidArgsFunction: a.completeNames(destinationNames(w.kind, false)),
		Args: func(c *cobra.Command, args []string) error {
			return exactArgs("NAME")(c, args[:min(len(args), 1)])
		},
	}
	ifExists := c.Flags().Bool("if-exists", false, "succeed if there is no such "+w.noun)
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			var found []client.Destination
			for _, name := range args { // all of them first: a mistyped name removes nothing
				d, err := conn.Destination(ctx, name)
				if *ifExists && errors.Is(err, wire.CodeUnknownDestination) {
					continue
				}
				if err == nil && d.Kind != w.kind {
					err = wire.CodeKindMismatch
				}
				if err == nil && d.Alias != nil {
					err = wire.Errorf(wire.CodeRefused, "it is an alias of %q; remove that, or the alias with: lockstep alias rm %s", d.Name, shellWord(name))
				}
				if err != nil {
					return &failure{doing: "remove " + w.noun, destination: name, kind: w, err: err}
				}
				found = append(found, d)
			}
			for _, d := range found {
				name := d.Name
				warn := a.lettersOfRemoved(ctx, conn, d)
				err := conn.DeleteDestination(ctx, d)
				if *ifExists && errors.Is(err, wire.CodeUnknownDestination) {
					continue
				}
				if err != nil {
					return &failure{doing: "remove " + w.noun, destination: name, kind: w, err: err}
				}
				if _, err := fmt.Fprintf(a.stdout, "removed %s %q\n", w.noun, name); err != nil {
					return outputError(err)
				}
				fmt.Fprint(a.stderr, warn)
			}
			return nil
		})
	}
	return c
}

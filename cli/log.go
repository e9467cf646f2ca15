package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func (a *app) logCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:   "log",
		Short: "Look at stored segments offline, and skip what is damaged",
		Long: `Look at stored segments without a broker. DIR is a data directory or the directory of
one partition in it. inspect and verify change nothing and do not disturb a running
broker, but what it is writing may look torn. skip needs the broker stopped.`,
		Example: `  lockstep log verify ` + defaultData + `
  lockstep log inspect ` + defaultData + `/meta
  lockstep log skip --corrupt ` + examplePartition,
	})
	c.AddCommand(a.logInspectCommand(), a.logVerifyCommand(), a.logSkipCommand())
	return c
}

// examplePartition is the directory of a partition in examples.
const examplePartition = defaultData + "/partitions/5f2c8a4e9b1d4c7f8e3a6b2d1c0f9e8d-0"

// frameJSON is one line of `log inspect -o json`.
type frameJSON struct {
	Partition  string `json:"partition"` // directory
	File       string `json:"file"`
	Position   int64  `json:"position"`
	Kind       string `json:"kind,omitempty"`
	Index      uint64 `json:"index"`
	Term       uint64 `json:"term"`
	BaseOffset uint64 `json:"base_offset"`
	NextOffset uint64 `json:"next_offset"`
	Records    uint32 `json:"records"`
	AppendTime string `json:"append_time,omitempty"`
	BodyBytes  uint32 `json:"body_bytes"`
	Durable    uint64 `json:"durable_index,omitempty"` // durable mark that the frame carries
	Status     string `json:"status"`                  // "ok", or what is wrong
}

func (a *app) logInspectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "inspect DIR",
		Short: "Print every stored entry: place, index, term, offsets, checksum status",
		Example: `  lockstep log inspect ` + defaultData + `
  lockstep log inspect ` + defaultData + `/meta -o json`,
		Args: exactArgs("DIR"),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		dirs, err := a.readableLogs(args[0])
		if err != nil {
			return err
		}
		w := bufio.NewWriterSize(a.stdout, 64<<10)
		encode := json.NewEncoder(w)
		for i, dir := range dirs {
			if output.value == "table" {
				if i > 0 {
					fmt.Fprintln(w)
				}
				fmt.Fprintf(w, "%s\n%s\n", dir, frameHeader)
			}
			err := log.Inspect(vfs.OS(), dir, func(f log.InspectedFrame) error {
				if c.Context().Err() != nil {
					return errInterrupted
				}
				j := frameOf(dir, f)
				if output.value == "json" {
					return outputError(encode.Encode(j))
				}
				_, err := fmt.Fprintf(w, "%-41s %10d %-13s %10d %6d %12d %8d %10d %-24s %s\n",
					j.File, j.Position, j.Kind, j.Index, j.Term, j.BaseOffset, j.Records, j.BodyBytes, j.AppendTime, j.Status)
				return outputError(err)
			})
			if err != nil {
				return inspectError(dir, err)
			}
		}
		return outputError(w.Flush())
	}
	return c
}

// frameHeader names the columns of the inspect table. The table is written
// while the log is read, so its columns have fixed widths.
var frameHeader = fmt.Sprintf("%-41s %10s %-13s %10s %6s %12s %8s %10s %-24s %s",
	"FILE", "POSITION", "KIND", "INDEX", "TERM", "OFFSET", "RECORDS", "BYTES", "APPENDED", "STATUS")

func frameOf(dir string, f log.InspectedFrame) frameJSON {
	j := frameJSON{Partition: dir, File: f.File, Position: f.Position, Status: "ok"}
	if f.Problem != nil {
		j.Status = f.Problem.Error()
	}
	if f.Header == (wire.FrameHeader{}) {
		return j
	}
	h := f.Header
	if f.Erased {
		j.Kind, j.Index, j.Term = "erased", uint64(h.Index), uint64(h.Term)
		j.BaseOffset, j.NextOffset, j.Records = uint64(h.BaseOffset), uint64(h.NextOffset()), h.RecordCount
		j.Status = fmt.Sprintf("acknowledged; %d bytes given back, up to this entry", h.FrameSize())
		return j
	}
	j.Kind, j.Index, j.Term = h.Kind.String(), uint64(h.Index), uint64(h.Term)
	j.BaseOffset, j.NextOffset, j.Records = uint64(h.BaseOffset), uint64(h.NextOffset()), h.RecordCount
	j.BodyBytes, j.Durable = h.BodyLength, uint64(f.Mark)
	if h.AppendTimeMs != 0 {
		j.AppendTime = string(appendTimestamp(nil, time.UnixMilli(h.AppendTimeMs)))
	}
	return j
}

// logTotals is what verify counted in one directory.
type logTotals struct {
	Partition string `json:"partition"`
	Files     int    `json:"files"`
	Entries   int64  `json:"entries"`
	Records   int64  `json:"records"`
	Bytes     int64  `json:"bytes"`
	Erased    int64  `json:"erased_bytes"`     // acknowledged and given back to the disk
	Damage    string `json:"damage,omitempty"` // file, position and cause of the first damage
}

func (a *app) logVerifyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify DIR",
		Short: "Check every stored entry, batch and checkpoint; exit code 1 if something is damaged",
		Example: `  lockstep log verify ` + defaultData + `
  lockstep log verify ` + defaultData + `/meta -o json`,
		Args: exactArgs("DIR"),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		dirs, err := a.readableLogs(args[0])
		if err != nil {
			return err
		}
		var all []logTotals
		var damaged []string
		for _, dir := range dirs {
			t, err := verifyDirectory(c, dir)
			if err != nil {
				return inspectError(dir, err)
			}
			if t.Damage != "" {
				damaged = append(damaged, dir+"/"+t.Damage)
			}
			all = append(all, t)
		}
		if output.value == "json" {
			err = a.printJSON(all)
		} else {
			rows := make([][]string, len(all))
			for i, t := range all {
				status := "ok"
				if t.Erased > 0 {
					status = "ok, " + formatSize(t.Erased) + " erased"
				}
				if t.Damage != "" {
					status = "DAMAGED"
				}
				rows[i] = []string{t.Partition, fmt.Sprint(t.Files), formatCount(t.Entries), formatCount(t.Records), formatSize(t.Bytes), status}
			}
			err = a.printTable([]string{"directory", "files", "entries", "records", "size", "status"}, rows, "files", "entries", "records", "size")
		}
		if err != nil {
			return err
		}
		if len(damaged) > 0 {
			more := ""
			if len(damaged) > 1 {
				more = fmt.Sprintf(" (and %s more)", plural(int64(len(damaged)-1), "damaged directory"))
			}
			return fmt.Errorf("%s%s; nothing was changed; look around it with: lockstep log inspect %s", damaged[0], more, shellWord(args[0]))
		}
		return nil
	}
	return c
}

// skippedJSON is one range of `log skip -o json`.
type skippedJSON struct {
	File       string `json:"file"`
	Position   int64  `json:"position"`
	Entries    uint64 `json:"entries"`
	BaseOffset uint64 `json:"base_offset"`
	NextOffset uint64 `json:"next_offset"`
}

func (a *app) logSkipCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "skip --corrupt DIR",
		Short: "Give up what a damaged header hides, so that its partition serves the rest",
		Long: `Give up the records that damaged headers hide in the directory of one partition, so
that it starts again and serves everything before and behind them. Readers get
CORRUPT there, and the offset at which they can go on. The broker must be stopped.

It cannot be undone: copy the directory first, or better restore the file from a
copy instead. Damaged bodies need no skip, the partition serves around them. Damage
at the end of a log, with nothing whole behind it, is not skipped.`,
		Example: `  lockstep log skip --corrupt ` + examplePartition + `
  lockstep log skip --corrupt ` + examplePartition + ` -o json`,
		Args: exactArgs("DIR"),
	}
	corrupt := c.Flags().Bool("corrupt", false, "yes, give up what is damaged (required)")
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if !*corrupt {
			return usagef(c, "records are given up only with --corrupt")
		}
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		dirs, err := a.readableLogs(dir)
		if err != nil {
			return err
		}
		if len(dirs) != 1 || dirs[0] != dir {
			return usagef(c, "%s is not the directory of one partition; which are damaged says: lockstep log verify %s", args[0], shellWord(args[0]))
		}
		gaps, err := log.Skip(vfs.OS(), dataDirectory(dir), dir)
		ranges := make([]skippedJSON, len(gaps))
		rows := make([][]string, len(gaps))
		for i, g := range gaps {
			ranges[i] = skippedJSON{g.File, g.Position, uint64(g.LastIndex - g.FirstIndex + 1), uint64(g.Base), uint64(g.Next)}
			rows[i] = []string{g.File, fmt.Sprint(g.Position), formatCount(int64(ranges[i].Entries)), fmt.Sprint(g.Base), fmt.Sprint(g.Next)}
		}
		switch {
		case errors.Is(err, log.ErrLocked):
			return fmt.Errorf("data directory %s is in use: %w; stop the broker first", dataDirectory(dir), err)
		case err != nil && len(gaps) > 0:
			return fmt.Errorf("%s: %s closed, then: %w", dir, plural(int64(len(gaps)), "gap"), err)
		case err != nil:
			return inspectError(dir, err)
		case output.value == "json":
			return a.printJSON(ranges)
		case len(gaps) == 0:
			_, err = fmt.Fprintf(a.stdout, "no damaged header with something whole behind it; nothing was changed\n")
			return outputError(err)
		}
		return a.printTable([]string{"file", "position", "entries", "first lost offset", "next offset"}, rows, "position", "entries", "first lost offset", "next offset")
	}
	return c
}

// dataDirectory is the one that holds the directory of a log.
func dataDirectory(dir string) string {
	data := filepath.Dir(dir)
	if filepath.Base(data) == "partitions" {
		data = filepath.Dir(data)
	}
	return data
}

// readableLogs finds the logs in dir, those of a format that this build reads.
func (a *app) readableLogs(dir string) ([]string, error) {
	dirs, err := logDirectories(dir)
	if err != nil {
		return nil, err
	}
	if _, err := server.DataFormat(dataDirectory(dirs[0])); errors.Is(err, server.ErrNewerFormat) {
		return nil, fmt.Errorf("%w; use the newer lockstep", err)
	}
	a.tellOfJournal(dirs[0])
	return dirs, nil
}

// tellOfJournal says that a broker that did not stop in order has left entries which
// its next start brings into the logs: until then a log may end earlier than it will.
func (a *app) tellOfJournal(dir string) {
	data := dataDirectory(dir)
	files, err := filepath.Glob(filepath.Join(data, "journal", "*.journal"))
	if err == nil && len(files) > 0 {
		fmt.Fprintf(a.stderr, "the broker runs or has not stopped in order: %s holds the newest entries of some partitions; they are not looked at here, and the broker's next start writes them to the segments\n",
			filepath.Join(data, "journal"))
	}
}

// verifyDirectory walks one directory. Damage is counted, not returned: the rest of the
// data directory is still to be checked.
func verifyDirectory(c *cobra.Command, dir string) (logTotals, error) {
	t := logTotals{Partition: dir}
	file := ""
	err := log.Inspect(vfs.OS(), dir, func(f log.InspectedFrame) error {
		if c.Context().Err() != nil {
			return errInterrupted
		}
		if f.File != file {
			file = f.File
			t.Files++
		}
		if f.Problem == nil {
			f.Problem = verifyBatches(f)
		}
		if f.Problem != nil {
			if t.Damage == "" {
				t.Damage = fmt.Sprintf("%s: position %d: %v", f.File, f.Position, f.Problem)
			}
			return nil
		}
		if f.Erased {
			t.Erased += f.Header.FrameSize()
			return nil
		}
		t.Entries++
		t.Records += int64(f.Header.RecordCount)
		t.Bytes += f.Header.FrameSize()
		return nil
	})
	if err == nil {
		err = log.VerifyCheckpoints(vfs.OS(), dir)
	}
	if errors.Is(err, log.ErrCorrupt) {
		if t.Damage == "" {
			t.Damage = strings.TrimPrefix(err.Error(), dir+"/")
		}
		err = nil
	}
	return t, err
}

// verifyBatches checks the batches inside a whole frame: the checksum that each
// producer made, the records, and that their offsets follow each other.
func verifyBatches(f log.InspectedFrame) error {
	if f.Header.Kind != wire.KindRecords {
		return nil
	}
	next := f.Header.BaseOffset
	for rest := f.Body; len(rest) > 0; {
		var b wire.BodyBatch
		var err error
		if b, rest, err = wire.NextBodyBatch(rest); err != nil {
			return err
		}
		info, err := wire.ValidateBatch(b.Batch, b.Index, wire.BatchLimits{})
		if err != nil {
			return err
		}
		if info.BaseOffset != next {
			return fmt.Errorf("batch starts at offset %d and not at %d", info.BaseOffset, next)
		}
		next = info.NextOffset()
	}
	if next != f.Header.NextOffset() {
		return fmt.Errorf("batches end at offset %d, the header says %d", next, f.Header.NextOffset())
	}
	return nil
}

func inspectError(dir string, err error) error {
	if errors.Is(err, errOutputClosed) || errors.Is(err, errInterrupted) {
		return err
	}
	if errors.Is(err, log.ErrTooNew) {
		return fmt.Errorf("%s: %w; use the newer lockstep", dir, err)
	}
	return fmt.Errorf("%s: %w", dir, err)
}

// logDirectories finds the logs in dir: itself, or those of a data directory,
// metadata first.
func logDirectories(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("directory %s does not exist; give a data directory such as %s", dir, defaultData)
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("%s is a file; give the directory that holds it: %s", dir, shellWord(filepath.Dir(dir)))
	}
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		switch {
		case !e.IsDir() && (strings.HasSuffix(e.Name(), ".segment") || e.Name() == "manifest"):
			return []string{dir}, nil
		case e.IsDir() && e.Name() == "meta":
			found = append([]string{filepath.Join(dir, "meta")}, found...)
		case e.IsDir() && e.Name() == "partitions":
			partitions, err := os.ReadDir(filepath.Join(dir, "partitions"))
			if err != nil {
				return nil, err
			}
			var names []string
			for _, p := range partitions {
				if p.IsDir() {
					names = append(names, filepath.Join(dir, "partitions", p.Name()))
				}
			}
			sort.Strings(names)
			found = append(found, names...)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s holds no segments; give a data directory such as %s, or one partition's directory in it", dir, defaultData)
	}
	return found, nil
}

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/vfs"
)

// machine is what doctor knows: facts about this process, its machine and one data
// directory, without a judgement. A test fills it by hand.
type machine struct {
	descriptors reading[unix.Rlimit] // of this process
	maxMaps     reading[int64]       // vm.max_map_count: mappings of one process
	memory      reading[int64]       // bytes: of the machine, or what its control group allows
	swap        reading[int64]       // bytes
	processors  int
	clockSynced reading[bool]

	place  reading[string] // the data directory, or the nearest parent that exists
	exists bool            // the data directory itself
	format reading[int]    // 0: no broker has used it yet
	holder reading[holder]
	stored reading[int64] // bytes that the data directory takes
	limit  reading[int64] // bytes that retention by size lets the destinations there grow to
	kind   reading[vfs.Kind]
	space  reading[space]
	syncs  reading[[]time.Duration] // one for each write of the probe, sorted
}

// reading is one answer of the machine, or why there is none.
type reading[T any] struct {
	value T
	err   error
}

func read[T any](value T, err error) reading[T] { return reading[T]{value, err} }

// holder is who holds the lock of a data directory.
type holder struct {
	held    bool
	process int // 0: unknown
}

// space is of a file system, in bytes. free is what the user of this process may take.
type space struct{ free, total int64 }

// lookAt reads what there is to know about this machine and a data directory. It
// changes nothing but for one file, which probeSyncs removes again.
func lookAt(ctx context.Context, dir string) *machine {
	m := &machine{
		maxMaps:    read(integerFile("/proc/sys/vm/max_map_count")),
		memory:     read(memoryLimit()),
		swap:       read(memoryInfo("SwapTotal")),
		processors: runtime.GOMAXPROCS(0),
		place:      read(nearestDirectory(dir)),
	}
	m.descriptors.err = unix.Getrlimit(unix.RLIMIT_NOFILE, &m.descriptors.value)
	var clock unix.Timex // asks and sets nothing
	_, m.clockSynced.err = unix.Adjtimex(&clock)
	m.clockSynced.value = clock.Status&unix.STA_UNSYNC == 0
	if m.place.err != nil {
		return m
	}
	info, err := os.Stat(dir)
	m.exists = err == nil && info.IsDir()
	m.format = read(server.DataFormat(dir))
	m.holder.value.held, m.holder.value.process, m.holder.err = vfs.Locked(filepath.Join(dir, "lock"))
	m.stored = read(bytesBelow(ctx, dir))
	if m.format.err == nil && m.format.value > 0 {
		m.limit = read(server.RetainedBytes(dir))
	}
	m.kind = read(vfs.KindOf(m.place.value))
	m.space.value.free, m.space.value.total, m.space.err = vfs.OS().Space(m.place.value)
	m.syncs = read(probeSyncs(ctx, m.place.value))
	return m
}

// nearestDirectory is dir or, where it is missing, the first parent that exists:
// what is asked about a disk is answered there.
func nearestDirectory(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for {
		info, err := os.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			return "", fmt.Errorf("%s is not a directory", dir)
		case errors.Is(err, fs.ErrNotExist) && dir != "/":
			dir = filepath.Dir(dir)
			continue
		}
		return dir, err
	}
}

// bytesBelow adds up what the files below dir take on the disk. Those that vanish
// meanwhile, as they do while a broker runs, and a missing dir count nothing.
func bytesBelow(ctx context.Context, dir string) (total int64, err error) {
	dir, err = filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var info fs.FileInfo
		if err == nil {
			info, err = entry.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !entry.IsDir() {
			total += st.Blocks * 512
		}
		return nil
	})
	return total, err
}

// The probe writes as a partition does: one block after the other into space that
// was allocated before, each made durable before the next.
const (
	probeBytes  = 4 << 10
	probeSyncsN = 200
	probeTime   = 3 * time.Second // after it, fewer must do
)

// probeSyncs measures writes of 4 KiB with their fdatasync in dir, and removes the
// file it writes. It returns the times sorted.
func probeSyncs(ctx context.Context, dir string) (times []time.Duration, err error) {
	temp, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(temp.Name())) }()
	f, err := vfs.OS().Open(temp.Name())
	if err = errors.Join(err, temp.Close()); err != nil {
		return nil, err
	}
	defer f.Close()
	if err := errors.Join(f.Allocate(0, probeSyncsN*probeBytes), f.Sync()); err != nil {
		return nil, err
	}
	block := make([]byte, probeBytes)
	for start := time.Now(); len(times) < probeSyncsN && time.Since(start) < probeTime; {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		begin := time.Now()
		if _, err := f.WriteAt(block, int64(len(times))*probeBytes); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(begin))
	}
	slices.Sort(times)
	return times, nil
}

// integerFile reads a number from a file of the kernel.
func integerFile(name string) (int64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// memoryInfo returns a field of /proc/meminfo in bytes.
func memoryInfo(field string) (int64, error) {
	const name = "/proc/meminfo"
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if words := strings.Fields(line); len(words) == 3 && words[0] == field+":" && words[2] == "kB" {
			n, err := strconv.ParseInt(words[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no field %s", name, field)
}

// memoryLimit is the memory of the machine or, if that is less, what the control
// groups of this process leave it.
func memoryLimit() (int64, error) {
	limit, err := memoryInfo("MemTotal")
	if err != nil {
		return 0, err
	}
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return limit, nil // a kernel without control groups
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		for _, name := range memoryLimitFiles(lines.Text()) {
			// "max", or a file that this container does not see, is no limit.
			if n, err := integerFile(name); err == nil {
				limit = min(limit, n)
			}
		}
	}
	return limit, nil
}

// memoryLimitFiles names the files that hold the limits of a control group and of
// those above it. line is one of /proc/self/cgroup: number, controllers (none in
// version 2) and path, separated by colons.
func memoryLimitFiles(line string) (names []string) {
	parts := strings.SplitN(line, ":", 3)
	if len(parts) != 3 {
		return nil
	}
	root, file := "/sys/fs/cgroup", "memory.max"
	switch {
	case parts[1] == "":
	case slices.Contains(strings.Split(parts[1], ","), "memory"):
		root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	default:
		return nil
	}
	for group := filepath.Clean("/" + parts[2]); ; group = filepath.Dir(group) {
		names = append(names, filepath.Join(root, group, file))
		if group == "/" {
			return names
		}
	}
}

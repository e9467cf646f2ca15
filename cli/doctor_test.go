package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/vfs"
)

// healthy is a machine without a finding.
func healthy() *machine {
	return &machine{
		descriptors: reading[unix.Rlimit]{value: unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}},
		maxMaps:     reading[int64]{value: 262144},
		memory:      reading[int64]{value: 16 << 30},
		processors:  4,
		clockSynced: reading[bool]{value: true},
		place:       reading[string]{value: "/data"},
		exists:      true,
		format:      reading[int]{value: 1},
		kind:        reading[vfs.Kind]{value: vfs.Kind{Name: "ext4"}},
		space:       reading[space]{value: space{free: 50 << 30, total: 100 << 30}},
		syncs:       reading[[]time.Duration]{value: syncTimes(100, time.Millisecond, 0)},
	}
}

// syncTimes is n times, of which the last few took a second.
func syncTimes(n int, each time.Duration, slow int) []time.Duration {
	times := make([]time.Duration, n)
	for i := range times {
		times[i] = each
		if i >= n-slow {
			times[i] = time.Second
		}
	}
	return times
}

func TestDoctorFindsNothingOnAHealthyMachine(t *testing.T) {
	got := shell{look: func(context.Context, string) *machine { return healthy() }}.run(context.Background(), "doctor", "--data", "/data")
	require.Equal(t, outcome{stdout: `CHECK           SEVERITY  FOUND
data directory  ok        /data, format 1; this build reads up to 1
in use          ok        by no broker
file system     ok        ext4
free space      ok        50 GiB of 100 GiB; records are refused below 5 GiB
sync            ok        p50 1ms, p99 1ms for a durable write of 4 KiB (100 writes)
open files      ok        limit 1,048,576, at most 1,048,576: room for 65,536 connections beside segments
memory maps     ok        vm.max_map_count 262,144; 2,048 segments are kept mapped
memory          ok        16 GiB; the broker's budgets add up to 2 GiB
swap            ok        none
processors      ok        4 processors
clock           ok        2026-03-01T12:00:00Z, synchronised
`}, got)
}

// Each case makes one thing of a healthy machine worse, or of the configuration, and
// has the finding that comes of it.
func TestDoctorFindings(t *testing.T) {
	silent := errors.New("no answer")
	type machineAnd = func(m *machine, cfg *server.Config)
	for _, c := range []struct {
		name                   string
		change                 machineAnd
		severity, check, found string
		fix                    string // all of it, or "" where nothing is to be done
	}{
		{"a directory that is to be made", func(m *machine, _ *server.Config) { m.exists, m.format.value, m.place.value = false, 0, "/" },
			"ok", "data directory", "/data does not exist yet; serve makes it in /", ""},
		{"a directory without a broker so far", func(m *machine, _ *server.Config) { m.format.value = 0 },
			"ok", "data directory", "/data was not used by a broker yet", ""},
		{"a directory that is a file", func(m *machine, _ *server.Config) { m.place.err = errors.New("/data is not a directory") },
			"error", "data directory", "/data is not a directory", "choose another directory with --data, or mend the permissions of its parents"},
		{"a newer directory", func(m *machine, _ *server.Config) { m.format.err = server.ErrNewerFormat },
			"error", "data directory", "data directory was written by a newer version", "start the newer version, or choose another --data"},
		{"a directory that cannot be read", func(m *machine, _ *server.Config) { m.format.err = silent },
			"error", "data directory", "no answer", "mend the permissions of /data or restore the file from a copy"},

		{"a broker runs", func(m *machine, _ *server.Config) { m.holder.value = holder{held: true, process: 7} },
			"note", "in use", "by a broker (process 7)", "none is needed; stop it before you start another one here"},
		{"somebody runs", func(m *machine, _ *server.Config) { m.holder.value.held = true },
			"note", "in use", "by a broker", "none is needed; stop it before you start another one here"},

		{"a network file system", func(m *machine, _ *server.Config) { m.kind.value = vfs.Kind{Name: "nfs", Network: true} },
			"error", "file system", "nfs, over the network", "put the data directory on a local ext4 or xfs; --allow-network-fs insists"},
		{"FUSE", func(m *machine, _ *server.Config) { m.kind.value = vfs.Kind{Name: "fuse", FUSE: true} },
			"error", "file system", "fuse, served by a user process", "put the data directory on a local ext4 or xfs; --allow-network-fs insists"},
		{"a network file system that is wanted", func(m *machine, cfg *server.Config) {
			m.kind.value, cfg.AllowNetworkFS = vfs.Kind{Name: "nfs", Network: true}, true
		}, "warning", "file system", "nfs, over the network", "put the data directory on a local ext4 or xfs"},
		{"memory as a disk", func(m *machine, _ *server.Config) { m.kind.value = vfs.Kind{Name: "tmpfs", Volatile: true} },
			"warning", "file system", "tmpfs", "put the data directory on a local ext4 or xfs"},
		{"a container's layer", func(m *machine, _ *server.Config) { m.kind.value = vfs.Kind{Name: "overlay"} },
			"warning", "file system", "overlay", "mount a volume at the data directory, as in: docker run -v lockstep:/var/lib/lockstep"},
		{"another local file system", func(m *machine, _ *server.Config) { m.kind.value = vfs.Kind{Name: "btrfs"} },
			"note", "file system", "btrfs", "put the data directory on a local ext4 or xfs if in doubt"},

		{"a full disk", func(m *machine, _ *server.Config) { m.space.value.free = 3 << 30 },
			"error", "free space", "3 GiB of 100 GiB; records are refused below 5 GiB",
			"free 2 GiB, shorten the retention of destinations, or lower --min-free-bytes"},
		{"a full disk, by the least minimum", func(m *machine, _ *server.Config) { m.space.value = space{free: 1<<30 - 1<<20, total: 4 << 30} },
			"error", "free space", "1023 MiB of 4 GiB; records are refused below 1 GiB",
			"free 1 MiB, shorten the retention of destinations, or lower --min-free-bytes"},
		{"a disk below the least minimum", func(m *machine, _ *server.Config) { m.space.value = space{free: 64 << 20, total: 64 << 20} },
			"error", "free space", "64 MiB of 64 MiB; records are refused below 1 GiB", "choose a larger disk, or lower --min-free-bytes"},
		{"a minimum that was set", func(m *machine, cfg *server.Config) { m.space.value.free, cfg.MinFreeBytes = 3<<30, 1<<30 },
			"ok", "free space", "3 GiB of 100 GiB; records are refused below 1 GiB", ""},
		{"little room beside much data", func(m *machine, _ *server.Config) { m.space.value.free, m.stored.value = 8<<30, 80<<30 },
			"warning", "free space", "8 GiB of 100 GiB; records are refused below 5 GiB; 80 GiB are stored",
			"shorten the retention of destinations (lockstep queue alter NAME --retention-bytes SIZE), or give the disk more space"},
		{"a tenth of the data is room enough", func(m *machine, _ *server.Config) { m.space.value.free, m.stored.value = 13<<30, 80<<30 },
			"ok", "free space", "13 GiB of 100 GiB; records are refused below 5 GiB; 80 GiB are stored", ""},
		{"retention that fits", func(m *machine, _ *server.Config) { m.limit.value, m.stored.value = 60<<30, 20<<30 },
			"ok", "free space", "50 GiB of 100 GiB; records are refused below 5 GiB; 20 GiB are stored; retention lets destinations grow to 60 GiB", ""},
		{"retention beyond the disk", func(m *machine, _ *server.Config) { m.limit.value, m.stored.value = 70<<30, 20<<30 },
			"warning", "free space", "50 GiB of 100 GiB; records are refused below 5 GiB; 20 GiB are stored; retention lets destinations grow to 70 GiB",
			"shorten the retention of destinations (lockstep queue alter NAME --retention-bytes SIZE), or give the disk more space"},
		{"retention unknown", func(m *machine, _ *server.Config) { m.limit.err = silent }, "note", "free space",
			"50 GiB of 100 GiB; records are refused below 5 GiB; what retention allows is unknown: no answer", askAgain},

		{"a slow disk", func(m *machine, _ *server.Config) { m.syncs.value = syncTimes(100, time.Millisecond, 2) },
			"warning", "sync", "p50 1ms, p99 1s for a durable write of 4 KiB (100 writes)",
			"use a local SSD with power-loss protection and keep other writers off it; where a power cut may cost records, --sync interval does not wait"},
		{"one slow sync of a hundred", func(m *machine, _ *server.Config) { m.syncs.value = syncTimes(100, time.Millisecond, 1) },
			"ok", "sync", "p50 1ms, p99 1ms for a durable write of 4 KiB (100 writes)", ""},
		{"10 ms are not slow yet", func(m *machine, _ *server.Config) { m.syncs.value = syncTimes(3, 10*time.Millisecond, 0) },
			"ok", "sync", "p50 10ms, p99 10ms for a durable write of 4 KiB (3 writes)", ""},
		{"a disk too fast to be true", func(m *machine, _ *server.Config) { m.syncs.value = syncTimes(100, 99*time.Microsecond, 0) },
			"note", "sync", "p50 99µs, p99 99µs for a durable write of 4 KiB (100 writes)",
			"make sure that the drive has power-loss protection, and that no hypervisor or RAID layer ignores flushes (cache=unsafe)"},
		{"a read-only disk", func(m *machine, _ *server.Config) { m.syncs = reading[[]time.Duration]{err: unix.EROFS} },
			"error", "sync", "a probe could not be written: read-only file system",
			"run this as the broker's user; mend permissions, mount or disk of /data, or choose another directory with --data"},

		{"few descriptors", func(m *machine, _ *server.Config) { m.descriptors.value = unix.Rlimit{Cur: 1024, Max: 4096} },
			"warning", "open files", "limit 1,024, at most 4,096: room for 766 connections beside segments",
			"ulimit -n 65536 before the broker starts, LimitNOFILE=65536 in its systemd unit, or --ulimit nofile=65536 of its container; to go above the limit's most takes root"},
		{"too few descriptors to start", func(m *machine, _ *server.Config) {
			m.descriptors.value = unix.Rlimit{Cur: 64, Max: unix.RLIM_INFINITY}
		},
			"error", "open files", "limit 64, at most unlimited: room for 0 connections beside segments",
			"ulimit -n 65536 before the broker starts, LimitNOFILE=65536 in its systemd unit, or --ulimit nofile=65536 of its container"},
		{"the recommended number of descriptors", func(m *machine, _ *server.Config) { m.descriptors.value = unix.Rlimit{Cur: 65536, Max: 65536} },
			"ok", "open files", "limit 65,536, at most 65,536: room for 61,438 connections beside segments", ""},
		{"few descriptors are enough for few connections", func(m *machine, cfg *server.Config) {
			m.descriptors.value, cfg.Limits.Connections = unix.Rlimit{Cur: 1024, Max: 1024}, 500
		}, "ok", "open files", "limit 1,024, at most 1,024: room for 500 connections beside segments", ""},
		{"more connections than descriptors", func(m *machine, cfg *server.Config) {
			m.descriptors.value, cfg.Limits.Connections = unix.Rlimit{Cur: 65536, Max: 1 << 20}, 100_000
		}, "warning", "open files", "limit 65,536, at most 1,048,576: room for 61,438 connections beside segments",
			"ulimit -n 104098 before the broker starts, LimitNOFILE=104098 in its systemd unit, or --ulimit nofile=104098 of its container"},

		{"few mappings", func(m *machine, _ *server.Config) { m.maxMaps.value = 10239 },
			"warning", "memory maps", "vm.max_map_count 10,239; 2,048 segments are kept mapped",
			"as root: sysctl -w vm.max_map_count=262144, and the same line in /etc/sysctl.d/lockstep.conf for the next boot"},
		{"little memory", func(m *machine, _ *server.Config) { m.memory.value = 1 << 30 },
			"warning", "memory", "1 GiB; the broker's budgets add up to 2 GiB",
			"give it 3 GiB (MemoryMax=3G in its systemd unit, --memory of its container), or lower --memory-bytes and --pending-bytes"},
		{"little memory for a small broker", func(m *machine, cfg *server.Config) {
			m.memory.value, cfg.MemoryBytes, cfg.PendingBytes = 1<<30, 64<<20, 64<<20
		}, "ok", "memory", "1 GiB; the broker's budgets add up to 640 MiB", ""},
		{"swap", func(m *machine, _ *server.Config) { m.swap.value = 2 << 30 },
			"note", "swap", "2 GiB", "MemorySwapMax=0 in the broker's systemd unit, or as root: swapoff -a"},
		{"one processor", func(m *machine, _ *server.Config) { m.processors = 1 },
			"note", "processors", "1 processor", "give it two or more where latency matters"},
		{"a clock on its own", func(m *machine, _ *server.Config) { m.clockSynced.value = false },
			"warning", "clock", "2026-03-01T12:00:00Z, not synchronised", "timedatectl set-ntp true, or run chronyd; in a virtual machine also on its host"},

		{"lock not readable", func(m *machine, _ *server.Config) { m.holder.err = silent }, "note", "in use", "cannot tell: no answer", askAgain},
		{"file system unknown", func(m *machine, _ *server.Config) { m.kind.err = silent }, "note", "file system", "cannot tell: no answer", askAgain},
		{"space unknown", func(m *machine, _ *server.Config) { m.space.err = silent }, "note", "free space", "cannot tell: no answer", askAgain},
		{"stored bytes unknown", func(m *machine, _ *server.Config) { m.stored.err = silent }, "note", "free space",
			"50 GiB of 100 GiB; records are refused below 5 GiB; what is stored is unknown: no answer", askAgain},
		{"descriptors unknown", func(m *machine, _ *server.Config) { m.descriptors.err = silent }, "note", "open files", "cannot tell: no answer", askAgain},
		{"mappings unknown", func(m *machine, _ *server.Config) { m.maxMaps.err = silent }, "note", "memory maps", "cannot tell: no answer", askAgain},
		{"memory unknown", func(m *machine, _ *server.Config) { m.memory.err = silent }, "note", "memory", "cannot tell: no answer", askAgain},
		{"swap unknown", func(m *machine, _ *server.Config) { m.swap.err = silent }, "note", "swap", "cannot tell: no answer", askAgain},
		{"clock unknown", func(m *machine, _ *server.Config) { m.clockSynced.err = silent }, "note", "clock", "cannot tell: no answer", askAgain},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, cfg := healthy(), server.Config{DataDir: "/data"}
			c.change(m, &cfg)
			findings, err := examine(m, cfg, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
			require.NoError(t, err)
			for _, f := range findings {
				if f.Check != c.check {
					require.Equal(t, severityOK, f.Severity, f)
					continue
				}
				require.Equal(t, finding{c.severity, c.check, c.found, f.Why, c.fix}, f)
				require.Equal(t, f.Severity == severityOK, f.Why == "", "a reason is given where something is wrong")
			}
		})
	}
}

const askAgain = "run this as the user, and where, the broker runs"

func TestDoctorKnowsAClockThatWasNeverSet(t *testing.T) {
	for _, year := range []int{1970, 2025, 2101} {
		findings, err := examine(healthy(), server.Config{DataDir: "/data"}, time.Date(year, 7, 1, 0, 0, 0, 0, time.UTC))
		require.NoError(t, err)
		require.Equal(t, severityError, findings[len(findings)-1].Severity, year)
	}
}

func TestDoctorSaysWhyAndWhatToDoAndFails(t *testing.T) {
	sh := shell{look: func(context.Context, string) *machine {
		m := healthy()
		m.space.value.free = 3 << 30
		m.processors = 1
		return m
	}}
	got := sh.run(context.Background(), "doctor")
	require.Equal(t, 1, got.code)
	require.Equal(t, "lockstep: doctor: 1 error: free space; mend what stands under fix, then run this again\n", got.stderr)
	require.Contains(t, got.stdout, `clock           ok        2026-03-01T12:00:00Z, synchronised

error: free space: 3 GiB of 100 GiB; records are refused below 5 GiB
  why: producers get DISK_FULL until there is more
  fix: free 2 GiB, shorten the retention of destinations, or lower --min-free-bytes

note: processors: 1 processor
`)

	got = sh.run(context.Background(), "doctor", "-o", "json")
	require.Equal(t, 1, got.code)
	var findings []map[string]string
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &findings))
	require.Len(t, findings, 11)
	require.Equal(t, map[string]string{"severity": "ok", "check": "swap", "found": "none"}, findings[8])
	require.Equal(t, map[string]string{
		"severity": "note", "check": "processors", "found": "1 processor",
		"why": "network, consensus and syncs take turns on it", "fix": "give it two or more where latency matters",
	}, findings[9])
}

// The flags and variables of serve mean the same to doctor.
func TestDoctorTakesTheSettingsOfServe(t *testing.T) {
	var asked string
	sh := shell{
		env: map[string]string{"LOCKSTEP_DATA": "/var/lib/lockstep", "LOCKSTEP_MIN_FREE_BYTES": "60GiB", "LOCKSTEP_ALLOW_NETWORK_FS": "true"},
		look: func(_ context.Context, dir string) *machine {
			asked = dir
			m := healthy()
			m.kind.value = vfs.Kind{Name: "nfs", Network: true}
			return m
		},
	}
	got := sh.run(context.Background(), "doctor", "--memory-bytes", "2GiB", "--pending-bytes", "64MiB", "--max-connections", "100")
	require.Equal(t, "/var/lib/lockstep", asked)
	require.Contains(t, got.stdout, "file system     warning   nfs, over the network\n")
	require.Contains(t, got.stdout, "records are refused below 60 GiB\n")
	require.Contains(t, got.stdout, "the broker's budgets add up to 2.6 GiB\n")
	require.Contains(t, got.stdout, "room for 100 connections")

	for _, c := range []struct{ flag, value, want string }{
		{"--pending-bytes", "1MiB", "lockstep: pending-bytes is 1048576; it must be at least 67108864, or a large batch would never find room (see lockstep doctor --help)\n"},
		{"--max-connections", "-1", "lockstep: flag --max-connections: -1 is negative (see lockstep doctor --help)\n"},
		{"--data", "", "lockstep: flag --data: a directory is needed, as in ./lockstep-data (see lockstep doctor --help)\n"},
	} {
		require.Equal(t, outcome{code: 2, stderr: c.want}, sh.run(context.Background(), "doctor", c.flag, c.value))
	}
}

// On this machine, for a directory that a broker uses, the probe leaves nothing.
func TestDoctorOnThisMachine(t *testing.T) {
	address, data := startServer(t)
	must(t, at(address, "a\n"), "queue", "create", "orders")
	must(t, at(address, ""), "topic", "create", "events", "--partitions", "3", "--retention-bytes", "2GiB")
	names := func() []string {
		list, err := vfs.OS().List(data)
		require.NoError(t, err)
		return list
	}
	before := names()
	m := lookAt(t.Context(), data)
	require.Equal(t, before, names())
	require.NoError(t, errors.Join(m.descriptors.err, m.maxMaps.err, m.memory.err, m.swap.err, m.place.err, m.format.err, m.holder.err,
		m.stored.err, m.kind.err, m.space.err, m.syncs.err))
	require.True(t, m.exists)
	require.Equal(t, server.FormatVersion, m.format.value)
	require.Equal(t, holder{held: true, process: os.Getpid()}, m.holder.value)
	require.Positive(t, m.stored.value)
	require.Equal(t, reading[int64]{value: 3 * 2 << 30}, m.limit)
	require.Positive(t, m.space.value.free)
	require.NotEmpty(t, m.syncs.value)
	require.Positive(t, m.descriptors.value.Cur)
	require.Positive(t, m.maxMaps.value)
	require.Positive(t, m.memory.value)
	require.Positive(t, m.processors)
}

func TestDoctorMakesNoDirectory(t *testing.T) {
	parent := t.TempDir()
	m := lookAt(t.Context(), filepath.Join(parent, "a", "b"))
	require.Equal(t, reading[string]{value: parent}, m.place)
	require.False(t, m.exists)
	require.Zero(t, m.stored)
	require.Zero(t, m.holder)
	require.NoError(t, m.syncs.err)
	list, err := vfs.OS().List(parent)
	require.NoError(t, err)
	require.Empty(t, list)

	file := filepath.Join(parent, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.EqualError(t, lookAt(t.Context(), file).place.err, file+" is not a directory")
}

func TestDoctorIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errInterrupted)
	data := t.TempDir()
	require.Equal(t, outcome{code: 130}, shell{}.run(ctx, "doctor", "--data", data))
	list, err := vfs.OS().List(data)
	require.NoError(t, err)
	require.Empty(t, list)
}

func TestMemoryLimitsOfControlGroups(t *testing.T) {
	for _, c := range []struct {
		name, line string
		want       []string
	}{
		{"version 2", "0::/system.slice/lockstep.service", []string{
			"/sys/fs/cgroup/system.slice/lockstep.service/memory.max", "/sys/fs/cgroup/system.slice/memory.max", "/sys/fs/cgroup/memory.max"}},
		{"version 1", "4:memory:/box", []string{"/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}},
		{"a group above the container's own", "0::/../x", []string{"/sys/fs/cgroup/x/memory.max", "/sys/fs/cgroup/memory.max"}},
		{"another controller", "3:cpu,cpuacct:/box", nil},
		{"no group at all", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, memoryLimitFiles(c.line)) })
	}
}

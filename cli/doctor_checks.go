package cli

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/server"
)

// Severities of a finding. A broker does not start, or takes no records, where
// there is an error; a warning says what will hurt it under load or at a crash; a
// note says what is worth knowing.
const (
	severityOK      = "ok"
	severityNote    = "note"
	severityWarning = "warning"
	severityError   = "error"
)

// finding is what one check says. All but why and fix are always there.
type finding struct {
	Severity string `json:"severity"`
	Check    string `json:"check"`
	Found    string `json:"found"`
	Why      string `json:"why,omitempty"`
	Fix      string `json:"fix,omitempty"`
}

// What doctor compares with.
const (
	recommendedDescriptors = 65536  // what a broker without --max-connections should have
	recommendedMaps        = 262144 // vm.max_map_count
	spareMaps              = 8192   // mappings for the Go runtime and for segments that are being read
	slowSync               = 10 * time.Millisecond
	suspiciousSync         = 100 * time.Microsecond
	// tightShare is the part of what is stored that should still find room.
	tightShare = 10
	firstYear  = 2026 // a clock that shows less was never set
	lastYear   = 2100
)

// examination compares a machine with what a broker of one configuration takes.
type examination struct {
	machine *machine
	config  server.Config
	needs   server.Needs
	now     time.Time
}

// examine judges a machine. It fails only if the configuration makes no sense.
func examine(m *machine, cfg server.Config, now time.Time) ([]finding, error) {
	needs, err := cfg.Needs(m.descriptors.value.Cur)
	if err != nil {
		return nil, err
	}
	e := &examination{machine: m, config: cfg, needs: needs, now: now}
	findings := []finding{e.directory()}
	if m.place.err == nil {
		findings = append(findings, e.use(), e.fileSystem(), e.freeSpace(), e.sync())
	}
	return append(findings, e.descriptors(), e.maps(), e.memory(), e.swap(), e.processors(), e.clock()), nil
}

// unknown is the finding of a check that got no answer.
func unknown(check string, err error) finding {
	return finding{severityNote, check, "cannot tell: " + err.Error(), "what was not looked at may be wrong", "run this as the user, and where, the broker runs"}
}

func (e *examination) directory() finding {
	const check = "data directory"
	m, dir := e.machine, e.config.DataDir
	switch {
	case m.place.err != nil:
		return finding{severityError, check, m.place.err.Error(), "a broker cannot keep anything there",
			"choose another directory with --data, or mend the permissions of its parents"}
	case errors.Is(m.format.err, server.ErrNewerFormat):
		return finding{severityError, check, m.format.err.Error(), "this version does not read what a newer one wrote, and refuses to start",
			"start the newer version, or choose another --data"}
	case m.format.err != nil:
		return finding{severityError, check, m.format.err.Error(), "a broker that cannot read who it is refuses to start",
			"mend the permissions of " + shellWord(dir) + " or restore the file from a copy"}
	case !m.exists:
		return finding{Severity: severityOK, Check: check, Found: fmt.Sprintf("%s does not exist yet; serve makes it in %s", dir, m.place.value)}
	case m.format.value == 0:
		return finding{Severity: severityOK, Check: check, Found: dir + " was not used by a broker yet"}
	}
	return finding{Severity: severityOK, Check: check, Found: fmt.Sprintf("%s, format %d; this build reads up to %d", dir, m.format.value, server.FormatVersion)}
}

func (e *examination) use() finding {
	const check = "in use"
	h := e.machine.holder
	switch {
	case h.err != nil:
		return unknown(check, h.err)
	case !h.value.held:
		return finding{Severity: severityOK, Check: check, Found: "by no broker"}
	}
	who := "a broker"
	if h.value.process != 0 {
		who = fmt.Sprintf("a broker (process %d)", h.value.process)
	}
	return finding{severityNote, check, "by " + who, "a second broker on this directory refuses to start, and the sync times below are taken beside its load",
		"none is needed; stop it before you start another one here"}
}

// tested are the file systems that Lockstep's crash tests run on.
var tested = []string{"ext4", "xfs"}

func (e *examination) fileSystem() finding {
	const check = "file system"
	kind := e.machine.kind.value
	move := "put the data directory on a local ext4 or xfs"
	switch {
	case e.machine.kind.err != nil:
		return unknown(check, e.machine.kind.err)
	case kind.Network || kind.FUSE:
		f := finding{severityError, check, kind.Name + ", over the network", "mapped reads can hang or fail there, and a sync may promise nothing; serve refuses it",
			move + "; --allow-network-fs insists"}
		if kind.FUSE {
			f.Found = kind.Name + ", served by a user process"
		}
		if e.config.AllowNetworkFS {
			f.Severity, f.Why = severityWarning, "mapped reads can hang or fail there, and a sync may promise nothing"
			f.Fix = move
		}
		return f
	case kind.Volatile:
		return finding{severityWarning, check, kind.Name, "it is memory: nothing survives a reboot, acknowledged or not", move}
	case kind.Name == "overlay":
		return finding{severityWarning, check, kind.Name, "it is a container's own layer: the data goes when the container is removed",
			"mount a volume at the data directory, as in: docker run -v lockstep:/var/lib/lockstep"}
	case slices.Contains(tested, kind.Name):
		return finding{Severity: severityOK, Check: check, Found: kind.Name}
	}
	return finding{severityNote, check, kind.Name, "crash tests run on ext4 and xfs; elsewhere preallocated space may not be kept for its file, and syncs may cost more",
		move + " if in doubt"}
}

func (e *examination) freeSpace() finding {
	const check = "free space"
	m := e.machine
	if m.space.err != nil {
		return unknown(check, m.space.err)
	}
	free, total := m.space.value.free, m.space.value.total
	least := log.MinFree(e.config.MinFreeBytes, total)
	found := fmt.Sprintf("%s of %s; records are refused below %s", formatSize(free), formatSize(total), formatSize(least))
	if free < least {
		fix := fmt.Sprintf("free %s, shorten the retention of destinations, or lower --min-free-bytes", formatSize(least-free))
		if least > total {
			fix = "choose a larger disk, or lower --min-free-bytes"
		}
		return finding{severityError, check, found, "producers get DISK_FULL until there is more", fix}
	}
	if m.stored.err != nil {
		f := unknown(check, m.stored.err)
		f.Found = fmt.Sprintf("%s; what is stored is unknown: %v", found, m.stored.err)
		return f
	}
	if m.stored.value > 0 {
		found += "; " + formatSize(m.stored.value) + " are stored"
	}
	if room := free - least; room < m.stored.value/tightShare {
		return finding{severityWarning, check, found,
			fmt.Sprintf("there is room for %s more, less than a tenth of what is stored: retention that lets it grow further ends in DISK_FULL", formatSize(room)),
			"shorten the retention of destinations (lockstep queue alter NAME --retention-bytes SIZE), or give the disk more space"}
	}
	if m.limit.err != nil {
		f := unknown(check, m.limit.err)
		f.Found = fmt.Sprintf("%s; what retention allows is unknown: %v", found, m.limit.err)
		return f
	}
	if m.limit.value > 0 {
		found += fmt.Sprintf("; retention lets destinations grow to %s", formatSize(m.limit.value))
	}
	if room := free - least; m.limit.value > m.stored.value+room {
		return finding{severityWarning, check, found,
			fmt.Sprintf("that is %s more than there is room for: producers get DISK_FULL before retention removes anything", formatSize(m.limit.value-m.stored.value-room)),
			"shorten the retention of destinations (lockstep queue alter NAME --retention-bytes SIZE), or give the disk more space"}
	}
	return finding{Severity: severityOK, Check: check, Found: found}
}

func (e *examination) sync() finding {
	const check = "sync"
	m := e.machine
	if m.syncs.err != nil {
		return finding{severityError, check, "a probe could not be written: " + m.syncs.err.Error(), "a broker cannot write there either",
			"run this as the broker's user; mend permissions, mount or disk of " + shellWord(m.place.value) + ", or choose another directory with --data"}
	}
	half, slow := percentile(m.syncs.value, 50), percentile(m.syncs.value, 99)
	found := fmt.Sprintf("p50 %s, p99 %s for a durable write of %s (%d writes)", roundSync(half), roundSync(slow), formatSize(probeBytes), len(m.syncs.value))
	switch {
	case slow > slowSync:
		return finding{severityWarning, check, found, "an acknowledgement at the default level waits for one of these",
			"use a local SSD with power-loss protection and keep other writers off it; where a power cut may cost records, --sync interval does not wait"}
	case half < suspiciousSync && !m.kind.value.Volatile:
		return finding{severityNote, check, found, "so fast are drives whose cache survives a power cut, and layers that acknowledge a flush they have not done: then a power cut loses acknowledged records",
			"make sure that the drive has power-loss protection, and that no hypervisor or RAID layer ignores flushes (cache=unsafe)"}
	}
	return finding{Severity: severityOK, Check: check, Found: found}
}

// percentile is the least of the sorted times that p of a hundred do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}

func roundSync(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

func (e *examination) descriptors() finding {
	const check = "open files"
	limit := e.machine.descriptors
	if limit.err != nil {
		return unknown(check, limit.err)
	}
	enough := uint64(recommendedDescriptors)
	short := limit.value.Cur < enough
	if wanted := e.config.Limits.Connections; wanted > 0 {
		enough = max(enough, uint64(e.needs.Descriptors))
		short = e.needs.Connections < wanted
	}
	found := fmt.Sprintf("limit %s, at most %s: room for %s beside segments", formatLimit(limit.value.Cur), formatLimit(limit.value.Max),
		plural(int64(e.needs.Connections), "connection"))
	fix := fmt.Sprintf("ulimit -n %d before the broker starts, LimitNOFILE=%d in its systemd unit, or --ulimit nofile=%d of its container", enough, enough, enough)
	if limit.value.Max < enough {
		fix += "; to go above the limit's most takes root"
	}
	switch {
	case e.needs.Connections == 0:
		return finding{severityError, check, found, "serve refuses to start", fix}
	case short:
		return finding{severityWarning, check, found, "clients beyond that are answered BUSY", fix}
	}
	return finding{Severity: severityOK, Check: check, Found: found}
}

// formatLimit writes a resource limit.
func formatLimit(n uint64) string {
	if n > 1<<62 {
		return "unlimited"
	}
	return formatCount(int64(n))
}

func (e *examination) maps() finding {
	const check = "memory maps"
	limit := e.machine.maxMaps
	if limit.err != nil {
		return unknown(check, limit.err)
	}
	found := fmt.Sprintf("vm.max_map_count %s; %s are kept mapped", formatCount(limit.value), plural(int64(e.needs.MappedSegments), "segment"))
	if limit.value < int64(e.needs.MappedSegments)+spareMaps {
		return finding{severityWarning, check, found, "consumers that read many segments at once run into it, and so may the Go runtime, which ends the process",
			fmt.Sprintf("as root: sysctl -w vm.max_map_count=%d, and the same line in /etc/sysctl.d/lockstep.conf for the next boot", recommendedMaps)}
	}
	return finding{Severity: severityOK, Check: check, Found: found}
}

func (e *examination) memory() finding {
	const check = "memory"
	limit := e.machine.memory
	if limit.err != nil {
		return unknown(check, limit.err)
	}
	found := fmt.Sprintf("%s; the broker's budgets add up to %s", formatSize(limit.value), formatSize(e.needs.MemoryBytes))
	if limit.value < e.needs.MemoryBytes {
		enough := (e.needs.MemoryBytes*3/2 + 1<<30 - 1) >> 30
		return finding{severityWarning, check, found, "under full load the kernel kills the broker; what is acknowledged survives it, destinations in memory do not",
			fmt.Sprintf("give it %d GiB (MemoryMax=%dG in its systemd unit, --memory of its container), or lower --memory-bytes and --pending-bytes", enough, enough)}
	}
	return finding{Severity: severityOK, Check: check, Found: found}
}

func (e *examination) swap() finding {
	const check = "swap"
	switch swap := e.machine.swap; {
	case swap.err != nil:
		return unknown(check, swap.err)
	case swap.value > 0:
		return finding{severityNote, check, formatSize(swap.value), "memory that was swapped out stalls an event loop, and all its clients, until it is back",
			"MemorySwapMax=0 in the broker's systemd unit, or as root: swapoff -a"}
	}
	return finding{Severity: severityOK, Check: check, Found: "none"}
}

func (e *examination) processors() finding {
	const check = "processors"
	found := plural(int64(e.machine.processors), "processor")
	if e.machine.processors < 2 {
		return finding{severityNote, check, found, "network, consensus and syncs take turns on it", "give it two or more where latency matters"}
	}
	return finding{Severity: severityOK, Check: check, Found: found}
}

func (e *examination) clock() finding {
	const check = "clock"
	found := e.now.UTC().Format(time.RFC3339)
	synced := e.machine.clockSynced
	if year := e.now.UTC().Year(); year < firstYear || year > lastYear {
		return finding{severityError, check, found, "retention by time goes by this clock: it keeps records for ever, or drops all of them once the clock is set",
			"set the clock, then: timedatectl set-ntp true"}
	}
	switch {
	case synced.err != nil:
		return unknown(check, synced.err)
	case !synced.value:
		return finding{severityWarning, check, found + ", not synchronised", "timestamps and retention by time drift away from those of other machines",
			"timedatectl set-ntp true, or run chronyd; in a virtual machine also on its host"}
	}
	return finding{Severity: severityOK, Check: check, Found: found + ", synchronised"}
}

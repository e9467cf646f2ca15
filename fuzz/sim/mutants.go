package sim

import (
	"encoding/binary"
	"path"
	"strings"
	"time"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// Mutant is a protection that is taken away, to show that the simulation would
// notice its absence.
type Mutant int

const (
	// NoMutant is the real thing.
	NoMutant Mutant = iota
	// NoSync makes File.Sync do nothing.
	NoSync
	// LateSync makes File.Sync return before its work is done: it happens with
	// the file's next Sync. So a durable ticket comes too early.
	LateSync
	// NoSyncDir makes FS.SyncDir do nothing.
	NoSyncDir
	// IgnoredSyncError makes File.Sync hide an error.
	IgnoredSyncError
	// NoHardState makes writes to the file of hard states do nothing.
	NoHardState
	// AckBeforeSync opens partitions in a mode that acknowledges before it syncs.
	AckBeforeSync
	// ForgottenProducers restores checkpoints without the dedupe table.
	ForgottenProducers
	// EarlyRemoval removes a destination's directories when its deletion is
	// asked for, not when it is committed.
	EarlyRemoval
	// GreedyRetention takes a missing limit for a limit of zero.
	GreedyRetention
	// NoJournalSync makes File.Sync of journal files do nothing.
	NoJournalSync
	// NoJournalReplay shows a start no journal files.
	NoJournalReplay
	// EarlyJournalTrim empties a journal file when the next one begins, before the
	// segments of its logs are synced.
	EarlyJournalTrim
	// ForgottenTrim keeps from the log that its start has moved.
	ForgottenTrim
	// ClientTime lets records age by a client's clock, which is ten years ahead.
	ClientTime
	// BeginAgain takes every forgotten producer for a new one.
	BeginAgain
	// EarlierState saves checkpoints with the state from before the entry that they
	// say is applied.
	EarlierState
	// UnsyncedCheckpoint gives a checkpoint its name before its bytes are durable.
	UnsyncedCheckpoint
	// NoReform lets a partition that may have lost records with the machine go on under
	// its old incarnation.
	NoReform

	// Those that follow are for several machines.

	// AckBeforeQuorum acknowledges what the leader alone has.
	AckBeforeQuorum
	// StaleRead lets a leader answer reads without asking whether it still leads.
	StaleRead
	// DeposedRead is StaleRead for whoever looks at what clients saw only.
	DeposedRead
	// DirtyRead shows readers what is not committed.
	DirtyRead
	// WipedReplica lets a replica whose disk is lost go on under its old ID.
	WipedReplica
	// ForgedPromise lets a leader believe that what it has sent is durable there.
	ForgedPromise
	// ForgedVote lets a candidate believe that it gets every vote.
	ForgedVote

	// StateNotFetched lets a replica that passes over erased records go on with the state
	// that it had.
	StateNotFetched

	// Those that follow are for the metadata of several machines.

	// EarlyBurial lets nodes remove directories of replicas that are about to leave.
	EarlyBurial
	// LateReports lets a configuration that a leader reported long ago count as its newest.
	LateReports
	// RemovalFirst lets the controller take replicas away before others are in their place.
	RemovalFirst
	// RestlessBalance lets the controller move replicas between nodes that have as many.
	RestlessBalance
	// SpaceUnheard keeps from it, and from who creates destinations, whose disk is full.
	SpaceUnheard
	// RoomUnheard keeps from nodes that a disk which was full has room again.
	RoomUnheard

	// OneOpinion lets the leader of the metadata say alone that a voter is gone.
	OneOpinion
	// NoRacks keeps from it where nodes stand.
	NoRacks

	// Those that follow are for names in partitions beside the metadata.

	// EpochsNotRaised lets the metadata answer every opening with the first epoch.
	EpochsNotRaised
	// AnyoneRenews lets the metadata give a name back to who had it, without a fence.
	AnyoneRenews
	// EpochsNotHeard keeps from leaders what the metadata say of epochs.
	EpochsNotHeard
	// FencesNotCommitted answers fences without an entry.
	FencesNotCommitted
	// FencesNotApplied commits fences, and no partition takes them in.
	FencesNotApplied
)

// MutateFS wraps the file system as the mutant needs it.
func (m Mutant) MutateFS(disk vfs.FS) vfs.FS {
	switch m {
	case NoSync, LateSync, NoSyncDir, IgnoredSyncError, NoHardState, NoJournalSync, NoJournalReplay, EarlyJournalTrim, UnsyncedCheckpoint:
		return &mutantFS{FS: disk, mutant: m}
	}
	return disk
}

// mutateLog wraps the log as a partition sees it.
func (m Mutant) mutateLog(l *log.Log) partition.Log {
	switch m {
	case GreedyRetention, ForgottenTrim, ClientTime:
		return &mutantLog{l, m}
	}
	return l
}

type mutantLog struct {
	*log.Log
	mutant Mutant
}

func (l *mutantLog) RetentionPoint(nowMs int64, maxAge time.Duration, maxBytes int64) (wire.Offset, bool) {
	if l.mutant == GreedyRetention {
		maxAge, maxBytes = max(maxAge, 0), max(maxBytes, 0)
	}
	if l.mutant == ClientTime {
		nowMs += maxJumpMs
	}
	return l.Log.RetentionPoint(nowMs, maxAge, maxBytes)
}

func (l *mutantLog) Trim(start wire.Offset) {
	if l.mutant != ForgottenTrim {
		l.Log.Trim(start)
	}
}

type mutantFS struct {
	vfs.FS
	mutant  Mutant
	journal vfs.File // the file that was begun last
}

type mutantFile struct {
	vfs.File
	mutant Mutant
	name   string
	owed   bool // a sync was promised and not done
}

func (f *mutantFS) wrap(file vfs.File, name string, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &mutantFile{File: file, mutant: f.mutant, name: name}, nil
}

func (f *mutantFS) Create(name string) (vfs.File, error) {
	file, err := f.FS.Create(name)
	if f.mutant == EarlyJournalTrim && strings.HasSuffix(name, ".journal") && err == nil {
		if f.journal != nil {
			_ = f.journal.ZeroRange(0, 1<<20)
			_ = f.journal.Sync()
		}
		f.journal = file
	}
	return f.wrap(file, name, err)
}

func (f *mutantFS) Open(name string) (vfs.File, error) {
	file, err := f.FS.Open(name)
	return f.wrap(file, name, err)
}

func (f *mutantFS) List(dir string) ([]string, error) {
	if f.mutant == NoJournalReplay && path.Base(dir) == "journal" {
		return nil, nil
	}
	return f.FS.List(dir)
}

func (f *mutantFS) SyncDir(dir string) error {
	if f.mutant == NoSyncDir {
		return nil
	}
	return f.FS.SyncDir(dir)
}

func (f *mutantFile) Sync() error {
	switch f.mutant {
	case NoSync:
		return nil
	case NoJournalSync:
		if strings.HasSuffix(f.name, ".journal") {
			return nil
		}
	case UnsyncedCheckpoint:
		if strings.HasPrefix(path.Base(f.name), "checkpoint") {
			return nil
		}
	case LateSync:
		// What is written until the next Sync stays unsynced, as if the answer
		// of this one had been believed too early.
		if strings.HasSuffix(f.name, ".segment") {
			f.owed = !f.owed
			if f.owed {
				return nil
			}
		}
	case IgnoredSyncError:
		_ = f.File.Sync()
		return nil
	}
	return f.File.Sync()
}

func (f *mutantFile) WriteAt(p []byte, off int64) (int, error) {
	if f.mutant == NoHardState && path.Base(f.name) == "hardstate" {
		return len(p), nil
	}
	return f.File.WriteAt(p, off)
}

// The dedupe table stands in a partition's saved state behind 20 bytes: the number of
// producers, each 28 bytes of which the last four count its runs of 16 bytes, then 12
// bytes about forgotten ones and what those count.
const (
	tableAt       = 20
	savedProducer = 28
	savedRun      = 16
	savedNone     = 12
)

// withoutProducers cuts the dedupe table out of a partition's saved state.
func withoutProducers(state []byte) []byte {
	return append(append([]byte(nil), state[:tableAt]...), make([]byte, 4+savedNone)...)
}

// withoutForgotten takes out what the table knows of forgotten producers only.
func withoutForgotten(state []byte) []byte {
	end := tableAt + 4
	for range binary.LittleEndian.Uint32(state[tableAt:]) {
		end += savedProducer
		end += savedRun * int(binary.LittleEndian.Uint32(state[end-4:]))
	}
	return append(append([]byte(nil), state[:end]...), make([]byte, savedNone)...)
}

// A command of a partition is 8 bytes, of which the first is its type and the last four are
// the length of what follows; a fence is the producer's ID and the first epoch that stays.
const (
	commandHeader = 8
	commandFence  = 20
	fencedID      = 8
)

// withoutFences lets the fences of an entry begin with epoch 0, below which there is none.
func withoutFences(entry []byte) []byte {
	entry = append([]byte(nil), entry...)
	for rest := entry; len(rest) > 0; {
		payload := rest[commandHeader:]
		length := binary.LittleEndian.Uint32(rest[4:])
		if rest[0] == commandFence {
			clear(payload[fencedID:length])
		}
		rest = payload[length:]
	}
	return entry
}

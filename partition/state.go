package partition

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// ErrState is returned for a saved state that does not decode.
var ErrState = errors.New("partition state is malformed")

// stateVersion is the first byte of a saved state. Version 1 said nothing of
// forgotten producers. Version 2 is one without groups, and version 3 one of which nothing is
// erased; both are still saved where that is so, for brokers that know no more.
const (
	stateVersion     = 4
	versionGroups    = 3
	versionGroupless = 2
)

// State is what all replicas of a partition agree on at one index. It changes
// only by applied entries.
type State struct {
	start     wire.Offset // first offset that may be read
	next      wire.Offset // one past the last applied record
	producers *producers
	groups    *group.State
}

// NewState is the state of a partition without entries.
func NewState() *State { return &State{producers: newProducers(), groups: group.NewState()} }

// Start is the first offset that readers may ask for.
func (s *State) Start() wire.Offset { return s.start }

// Finished lists runs of records from an offset on that all groups of a queue are done with
// and that are not erased, and where another call goes on. Owner only.
func (s *State) Finished(from wire.Offset) ([]group.Span, wire.Offset) {
	return s.groups.Finished(from)
}

// Erased lists runs of records from an offset on that every replica may give back, and where
// another call goes on. Owner only.
func (s *State) Erased(from wire.Offset) ([]group.Span, wire.Offset) { return s.groups.Erased(from) }

// Forgotten is one past the highest producer ID that was forgotten here: who begins
// with an ID below it, and without an epoch, is refused. It never falls. Owner only.
func (s *State) Forgotten() int64 { return s.producers.forgotten }

// applyRecords takes the batches of one entry into the dedupe table.
func (s *State) applyRecords(base wire.Offset, count uint32, appendTimeMs int64, body []byte) {
	offset := base
	for len(body) > 0 {
		b, rest, err := wire.NextBodyBatch(body)
		if err != nil {
			panic(fmt.Sprintf("partition: committed records at offset %d: %v", offset, err))
		}
		info, err := wire.ParseBatch(b.Batch)
		if err != nil {
			panic(fmt.Sprintf("partition: committed batch at offset %d: %v", offset, err))
		}
		if info.ProducerID >= 0 {
			s.producers.append(&info, offset, appendTimeMs)
		}
		offset += wire.Offset(info.RecordCount)
		body = rest
	}
	if offset != base+wire.Offset(count) {
		panic(fmt.Sprintf("partition: entry at offset %d announces %d records and holds %d", base, count, offset-base))
	}
	s.next = offset
	s.groups.Appended(offset)
}

// applyDamaged takes an entry whose batches cannot be read any more. Any producer
// may have had its latest batch in it, so all are forgotten: those that wrote
// behind it are known again by that, the others get UNKNOWN_PRODUCER and take a new
// identity. Nobody's record is taken for a repetition that it is not, and none is
// refused for not following one that is lost.
func (s *State) applyDamaged(base wire.Offset, count uint32) {
	s.producers.removeAll()
	s.next = base + wire.Offset(count)
	s.groups.Appended(s.next)
}

// Control entries hold commands one after the other, each
//
//	+------+---------+------+----------------+--------
//	| type | version | zero | payload length | payload
//	+------+---------+------+----------------+--------
//	0      1         2      4                8
//
// so that a replica can name a command it is too old for.
type commandType uint8

const (
	// commandTrim moves the start of the partition: payload is the new start, u64. The
	// commands behind it are those of groups, but for one.
	commandTrim commandType = 1
	// commandFence ends the epochs of a producer below one, see appendFence.
	commandFence commandType = 20
	// commandErase lets replicas give records back that all groups are done with: payload is
	// one or more runs, each from u64 | to u64, as far as the groups still are.
	commandErase commandType = 22
)

const (
	commandHeader  = 8
	commandVersion = 1
	eraseRun       = 16 // bytes of a run in commandErase
)

func appendCommand(dst []byte, t commandType, payload []byte) []byte {
	dst = append(dst, byte(t), commandVersion, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// applyControl carries out the commands of the entry at i, appended at a time, and reports
// what becomes of groups. It panics with log.ErrTooNew for a command that it does not know.
func (s *State) applyControl(i wire.Index, appendTimeMs int64, body []byte, effect func(group.Effect)) {
	for len(body) > 0 {
		if len(body) < commandHeader {
			panic(fmt.Sprintf("partition: %d bytes are left for a command", len(body)))
		}
		t, version := commandType(body[0]), body[1]
		length := uint64(binary.LittleEndian.Uint32(body[4:]))
		if length > uint64(len(body)-commandHeader) {
			panic(fmt.Sprintf("partition: command %d of %d bytes in %d", t, length, len(body)))
		}
		payload := body[commandHeader : commandHeader+length]
		body = body[commandHeader+length:]
		switch {
		case t == commandFence && version == commandVersion:
			id, epoch := parseFence(payload)
			s.producers.fence(id, epoch, appendTimeMs)
		case t == commandErase && version == commandVersion:
			if length == 0 || length%eraseRun != 0 {
				panic(fmt.Sprintf("partition: runs to be erased of %d bytes", length))
			}
			runs := make([]group.Span, 0, length/eraseRun)
			for ; len(payload) > 0; payload = payload[eraseRun:] {
				runs = append(runs, group.Span{From: wire.Offset(binary.LittleEndian.Uint64(payload)), To: wire.Offset(binary.LittleEndian.Uint64(payload[8:]))})
			}
			s.groups.Erase(runs...)
		case t > commandTrim && t != commandFence && t != commandErase:
			effect(s.groups.Apply(i, group.Command(t), version, payload))
		case t == commandTrim && version == commandVersion:
			if length != 8 {
				panic(fmt.Sprintf("partition: trim of %d bytes", length))
			}
			if start := wire.Offset(binary.LittleEndian.Uint64(payload)); start > s.start {
				effect(group.Effect{Kind: group.Command(commandTrim), Expired: s.trim(start)})
			}
		default:
			panic(fmt.Errorf("partition: command %d version %d: %w; upgrade this broker", t, version, log.ErrTooNew))
		}
	}
	// A queue keeps what its groups are not done with, and nothing else.
	if floor, ok := s.groups.Floor(); ok && floor > s.start {
		s.trim(floor)
	}
}

// trim moves the start, and returns how many records groups have lost by it.
func (s *State) trim(start wire.Offset) (expired uint64) {
	s.start = min(start, s.next)
	return s.groups.Trimmed(s.start)
}

// Save appends the state to dst. Equal states have equal bytes. Owner only.
func (s *State) Save(dst []byte) []byte {
	return saveState(dst, s.version(), s.start, s.next, s.producers.picture(), s.saveGroups())
}

// Snapshot captures the state; what it returns appends it to dst as Save does, once
// and on any goroutine, however the state goes on. It takes the time of a walk over
// the producers (10,000 of them: 0.2 ms; to encode them takes a hundred times as long),
// and each producer is copied when it is changed next.
func (s *State) Snapshot() func(dst []byte) []byte {
	version, start, next, producers, groups := s.version(), s.start, s.next, s.producers.snapshot(), s.saveGroups()
	return func(dst []byte) []byte { return saveState(dst, version, start, next, producers, groups) }
}

// version is that of the saved state.
func (s *State) version() byte {
	switch {
	case s.groups.HasErased():
		return stateVersion
	case s.groups.Len() > 0:
		return versionGroups
	}
	return versionGroupless
}

// saveGroups captures the groups, nil if there is nothing to be said of any.
func (s *State) saveGroups() func([]byte) []byte {
	if s.version() == versionGroupless {
		return nil
	}
	return s.groups.Snapshot()
}

// saveState lays out: version u8, three zero bytes, start u64, next u64, producers, and
// if there are groups, length u64 and groups.
func saveState(dst []byte, version byte, start, next wire.Offset, producers picture, groups func([]byte) []byte) []byte {
	dst = append(dst, version, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(start))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(next))
	dst = saveProducers(dst, producers)
	if groups != nil {
		at := len(dst)
		dst = groups(binary.LittleEndian.AppendUint64(dst, 0))
		binary.LittleEndian.PutUint64(dst[at:], uint64(len(dst)-at-8))
	}
	return dst
}

// Restore replaces the state with a saved one.
func (s *State) Restore(src []byte) error {
	const header = 4 + 8 + 8
	switch {
	case len(src) > 0 && src[0] > stateVersion:
		return fmt.Errorf("partition state version %d, this build reads up to %d: %w; upgrade this broker", src[0], stateVersion, log.ErrTooNew)
	case len(src) < header:
		return fmt.Errorf("%w: %d bytes", ErrState, len(src))
	case src[0] == 0 || src[1]|src[2]|src[3] != 0:
		return fmt.Errorf("%w: it begins with %x", ErrState, src[:4])
	}
	table, rest, err := restoreProducers(src[header:], src[0])
	if err != nil {
		return err
	}
	start := wire.Offset(binary.LittleEndian.Uint64(src[4:]))
	next := wire.Offset(binary.LittleEndian.Uint64(src[12:]))
	groups := group.NewState()
	if src[0] > versionGroupless {
		if len(rest) < 8 || binary.LittleEndian.Uint64(rest) != uint64(len(rest)-8) {
			return fmt.Errorf("%w: %d bytes for the groups", ErrState, len(rest))
		}
		if groups, err = group.Restore(rest[8:]); err != nil {
			return fmt.Errorf("%w: %w", ErrState, err)
		}
		if groups.HasErased() != (src[0] == stateVersion) || groups.Len() == 0 && !groups.HasErased() || groups.Start() != start || groups.Next() != next {
			return fmt.Errorf("%w: groups of [%d, %d) in a partition of [%d, %d)", ErrState, groups.Start(), groups.Next(), start, next)
		}
	} else if len(rest) != 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrState, len(rest))
	}
	groups.Trimmed(start)
	groups.Appended(next)
	s.start, s.next, s.producers, s.groups = start, next, table, groups
	return nil
}

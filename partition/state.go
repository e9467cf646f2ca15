package partition

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// ErrState is returned for a saved state that does not decode.
var ErrState = errors.New("partition state is malformed")

// stateVersion is the first byte of a saved state. Version 1 said nothing of
// forgotten producers.
const stateVersion = 2

// State is what all replicas of a partition agree on at one index. It changes
// only by applied entries.
type State struct {
	start     wire.Offset // first offset that may be read
	next      wire.Offset // one past the last applied record
	producers *producers
}

// NewState is the state of a partition without entries.
func NewState() *State { return &State{producers: newProducers()} }

// Start is the first offset that readers may ask for.
func (s *State) Start() wire.Offset { return s.start }

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
}

// applyDamaged takes an entry whose batches cannot be read any more. Any producer
// may have had its latest batch in it, so all are forgotten: those that wrote
// behind it are known again by that, the others get UNKNOWN_PRODUCER and take a new
// identity. Nobody's record is taken for a repetition that it is not, and none is
// refused for not following one that is lost.
func (s *State) applyDamaged(base wire.Offset, count uint32) {
	s.producers.removeAll()
	s.next = base + wire.Offset(count)
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

// commandTrim moves the start of the partition: payload is the new start, u64.
const commandTrim commandType = 1

const (
	commandHeader  = 8
	commandVersion = 1
)

func appendCommand(dst []byte, t commandType, payload []byte) []byte {
	dst = append(dst, byte(t), commandVersion, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// applyControl carries out the commands of one entry and reports whether the
// start moved. It panics with log.ErrTooNew for a command it does not know.
func (s *State) applyControl(body []byte) (trimmed bool) {
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
		case t == commandTrim && version == commandVersion:
			if length != 8 {
				panic(fmt.Sprintf("partition: trim of %d bytes", length))
			}
			if start := wire.Offset(binary.LittleEndian.Uint64(payload)); start > s.start {
				s.start = min(start, s.next)
				trimmed = true
			}
		default:
			panic(fmt.Errorf("partition: command %d version %d: %w; upgrade this broker", t, version, log.ErrTooNew))
		}
	}
	return trimmed
}

// Save appends the state to dst. Equal states have equal bytes. Owner only.
func (s *State) Save(dst []byte) []byte {
	return saveState(dst, s.start, s.next, s.producers.picture())
}

// Snapshot captures the state; what it returns appends it to dst as Save does, once
// and on any goroutine, however the state goes on. It takes the time of a walk over
// the producers (10,000 of them: 0.2 ms; to encode them takes a hundred times as long),
// and each producer is copied when it is changed next.
func (s *State) Snapshot() func(dst []byte) []byte {
	start, next, producers := s.start, s.next, s.producers.snapshot()
	return func(dst []byte) []byte { return saveState(dst, start, next, producers) }
}

// saveState lays out: version u8, three zero bytes, start u64, next u64, producers.
func saveState(dst []byte, start, next wire.Offset, producers picture) []byte {
	dst = append(dst, stateVersion, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(start))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(next))
	return saveProducers(dst, producers)
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
	if len(rest) != 0 {
		return fmt.Errorf("%w: %d bytes too many", ErrState, len(rest))
	}
	s.start = wire.Offset(binary.LittleEndian.Uint64(src[4:]))
	s.next = wire.Offset(binary.LittleEndian.Uint64(src[12:]))
	s.producers = table
	return nil
}

package log

import (
	"encoding/binary"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// Checkpoint is a state of the state machine after the entry at Applied. Two are
// kept; a log that lost the newer one falls back to the older.
type Checkpoint struct {
	Applied      wire.Index
	Term         wire.Term   // of the entry at Applied
	NextOffset   wire.Offset // one past the last record at or below Applied
	AppendTimeMs int64       // of the entry at Applied, as the state machine knows it
	ConfState    []byte      // Raft's configuration as of Applied
	State        []byte      // opaque
	// Save, if it is set, appends State to dst. WriteCheckpoint calls it in its job,
	// so that a large state is not encoded in the owner's turn.
	Save func(dst []byte) []byte
}

// A checkpoint file is written beside, synced and renamed over the older of the
// two names. All integers are little-endian.
//
//	+--------------------------------+--------+--------+-----------+
//	| magic "LKCHECK\n"              | version| flags  |incarnation|   0
//	+--------------------------------+--------+--------+-----------+
//	| partition ID, 16 bytes                                       |  16
//	+--------------------------------+-----------------------------+
//	| applied index                  | applied term                |  32
//	+--------------------------------+-----------------------------+
//	| next offset                    | append time (ms)            |  48
//	+--------------------------------+-----------------------------+
//	| position: segment sequence     | position: byte              |  64
//	+----------------+---------------+-----------------------------+
//	| chain          | conf length   | state length                |  80
//	+----------------+---------------+-----------------------------+
//	| chain's append time (ms)       | configuration state         |  96
//	+--------------------------------+-----------------------------+
//	| state                                                        |
//	+--------------------------------------------------------------+
//	| CRC32C of all bytes before it, 4 bytes                       |
//	+--------------------------------------------------------------+
//
// Position and chain are those of the log behind the entry at Applied: recovery
// starts there. Flag 1 says that the checkpoint came from another replica, see
// Install: its position is segment 0 and, as the byte, the index before the first
// entry of the log that it belongs to. The magic and the version keep their place, and the CRC is last,
// in every version.
const (
	checkpointMagic   = "LKCHECK\n"
	checkpointVersion = 1
	checkpointFixed   = 104

	// MaxCheckpointBytes bounds a checkpoint file: what is larger is not written, see
	// ErrCheckpointTooLarge.
	MaxCheckpointBytes = 1 << 30

	checkpointTransferred = 1 << 0
)

var checkpointNames = [2]string{"checkpoint.0", "checkpoint.1"}

// savedCheckpoint is a Checkpoint with the place in the log where it stands.
type savedCheckpoint struct {
	Checkpoint
	position Position
	chain    uint32
	timeMs   int64
	// transferred says that another replica wrote it: it may lie above the end of the
	// log, and says nothing about where the log stands.
	transferred bool
}

// link is what the entry behind the checkpoint continues from.
func (c *savedCheckpoint) link() segment.Link {
	return segment.Link{Index: c.Applied, Term: c.Term, Next: c.NextOffset, TimeMs: c.timeMs, Chain: c.chain}
}

func (c *savedCheckpoint) append(dst []byte, id segment.Identity) []byte {
	start := len(dst)
	le := binary.LittleEndian
	dst = append(dst, checkpointMagic...)
	dst = le.AppendUint16(dst, checkpointVersion)
	flags := uint16(0)
	if c.transferred {
		flags |= checkpointTransferred
	}
	dst = le.AppendUint16(dst, flags)
	dst = le.AppendUint32(dst, id.Incarnation)
	dst = append(dst, id.PartitionID[:]...)
	dst = le.AppendUint64(dst, uint64(c.Applied))
	dst = le.AppendUint64(dst, uint64(c.Term))
	dst = le.AppendUint64(dst, uint64(c.NextOffset))
	dst = le.AppendUint64(dst, uint64(c.AppendTimeMs))
	dst = le.AppendUint64(dst, c.position.Segment)
	dst = le.AppendUint64(dst, uint64(c.position.Byte))
	dst = le.AppendUint32(dst, c.chain)
	dst = le.AppendUint32(dst, uint32(len(c.ConfState)))
	dst = le.AppendUint64(dst, uint64(len(c.State)))
	dst = le.AppendUint64(dst, uint64(c.timeMs))
	dst = append(dst, c.ConfState...)
	dst = append(dst, c.State...)
	return le.AppendUint32(dst, wire.Checksum(dst[start:]))
}

// parseCheckpoint decodes and verifies a checkpoint. ConfState and State are
// views into src.
func parseCheckpoint(src []byte) (*savedCheckpoint, segment.Identity, error) {
	var id segment.Identity
	if err := checkEnvelope(src, checkpointMagic, checkpointFixed, checkpointVersion); err != nil {
		return nil, id, err
	}
	le := binary.LittleEndian
	id.Incarnation = le.Uint32(src[12:])
	copy(id.PartitionID[:], src[16:])
	c := &savedCheckpoint{transferred: le.Uint16(src[10:])&checkpointTransferred != 0}
	c.Applied = wire.Index(le.Uint64(src[32:]))
	c.Term = wire.Term(le.Uint64(src[40:]))
	c.NextOffset = wire.Offset(le.Uint64(src[48:]))
	c.AppendTimeMs = int64(le.Uint64(src[56:]))
	c.position = Position{Segment: le.Uint64(src[64:]), Byte: int64(le.Uint64(src[72:]))}
	c.chain = le.Uint32(src[80:])
	conf, state := uint64(le.Uint32(src[84:])), le.Uint64(src[88:])
	c.timeMs = int64(le.Uint64(src[96:]))
	if state > MaxCheckpointBytes || uint64(len(src)) != checkpointFixed+conf+state+4 {
		return nil, id, errLength
	}
	c.ConfState = src[checkpointFixed : checkpointFixed+conf : checkpointFixed+conf]
	c.State = src[checkpointFixed+conf : checkpointFixed+conf+state : checkpointFixed+conf+state]
	return c, id, nil
}

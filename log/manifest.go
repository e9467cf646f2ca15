package log

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// The manifest says what a partition's directory holds. It is replaced as a
// whole: written beside, synced, renamed, directory synced. A segment is named
// here before its first frame is written, and no more before it is removed; a
// file that is not named is not part of the log. All integers are little-endian.
//
//	+--------------------------------+--------+--------+-----------+
//	| magic "LKMANIF\n"              | version| zero   |incarnation|   0
//	+--------------------------------+--------+--------+-----------+
//	| partition ID, 16 bytes                                       |  16
//	+--------------------------------+-----------------------------+
//	| replica ID                     | next sequence               |  32
//	+--------------------------------+-----------------------------+
//	| start: index                   | start: term                 |  48
//	+--------------------------------+-----------------------------+
//	| start: next offset             | start: append time (ms)     |  64
//	+----------------+---------------+-----------------------------+
//	| start: chain   | segment count | segments: sequence, file ID,|  80
//	+----------------+---------------+ base index; 3 x 8 bytes each|
//	|                                                              |  88
//	+--------------------------------------------------------------+
//	| CRC32C of all bytes before it, 4 bytes                       |
//	+--------------------------------------------------------------+
//
// The start fields describe the entry before the first one. A base index of zero
// means that nothing had been written to the segment. The magic and the version
// keep their place, and the CRC is last, in every version.
const (
	manifestName    = "manifest"
	manifestMagic   = "LKMANIF\n"
	manifestVersion = 1
	manifestFixed   = 88
	manifestEntry   = 24

	// maxSegments bounds the segments of one partition.
	maxSegments = 1 << 20
	// tempSuffix marks a file that is being written and means nothing after a crash.
	tempSuffix = segment.TempSuffix
)

type manifest struct {
	segment.Identity
	replicaID    uint64
	nextSequence uint64
	start        segment.Link
	segments     []manifestSegment
}

type manifestSegment struct {
	sequence  uint64
	fileID    uint64
	baseIndex wire.Index // 0: not written yet when the manifest was
}

func (m *manifest) append(dst []byte) []byte {
	start := len(dst)
	le := binary.LittleEndian
	dst = append(dst, manifestMagic...)
	dst = le.AppendUint16(dst, manifestVersion)
	dst = le.AppendUint16(dst, 0)
	dst = le.AppendUint32(dst, m.Incarnation)
	dst = append(dst, m.PartitionID[:]...)
	dst = le.AppendUint64(dst, m.replicaID)
	dst = le.AppendUint64(dst, m.nextSequence)
	dst = le.AppendUint64(dst, uint64(m.start.Index))
	dst = le.AppendUint64(dst, uint64(m.start.Term))
	dst = le.AppendUint64(dst, uint64(m.start.Next))
	dst = le.AppendUint64(dst, uint64(m.start.TimeMs))
	dst = le.AppendUint32(dst, m.start.Chain)
	dst = le.AppendUint32(dst, uint32(len(m.segments)))
	for _, s := range m.segments {
		dst = le.AppendUint64(dst, s.sequence)
		dst = le.AppendUint64(dst, s.fileID)
		dst = le.AppendUint64(dst, uint64(s.baseIndex))
	}
	return le.AppendUint32(dst, wire.Checksum(dst[start:]))
}

var (
	errMagic    = errors.New("wrong magic")
	errChecksum = errors.New("checksum mismatch")
	errLength   = errors.New("wrong length")
	errFields   = errors.New("contradictory fields")
)

// checkEnvelope verifies what the manifest and the checkpoint have in common:
// magic, length, CRC at the end, version.
func checkEnvelope(src []byte, magic string, fixed int, version uint16) error {
	le := binary.LittleEndian
	n := len(src) - 4
	switch {
	case len(src) < len(magic) || string(src[:len(magic)]) != magic:
		return errMagic
	case n < 16:
		return errLength
	case wire.Checksum(src[:n]) != le.Uint32(src[n:]):
		return errChecksum
	case le.Uint16(src[8:]) == 0 || le.Uint16(src[8:]) > version:
		return fmt.Errorf("version %d, this build reads up to %d: %w", le.Uint16(src[8:]), version, ErrTooNew)
	case n < fixed:
		return errLength
	}
	return nil
}

func parseManifest(src []byte) (*manifest, error) {
	if err := checkEnvelope(src, manifestMagic, manifestFixed, manifestVersion); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	m := &manifest{replicaID: le.Uint64(src[32:]), nextSequence: le.Uint64(src[40:])}
	m.Incarnation = le.Uint32(src[12:])
	copy(m.PartitionID[:], src[16:])
	m.start = segment.Link{
		Index:  wire.Index(le.Uint64(src[48:])),
		Term:   wire.Term(le.Uint64(src[56:])),
		Next:   wire.Offset(le.Uint64(src[64:])),
		TimeMs: int64(le.Uint64(src[72:])),
		Chain:  le.Uint32(src[80:]),
	}
	count := le.Uint32(src[84:])
	if count > maxSegments || len(src) != manifestFixed+int(count)*manifestEntry+4 {
		return nil, errLength
	}
	m.segments = make([]manifestSegment, count)
	for i := range m.segments {
		b := src[manifestFixed+i*manifestEntry:]
		s := manifestSegment{sequence: le.Uint64(b), fileID: le.Uint64(b[8:]), baseIndex: wire.Index(le.Uint64(b[16:]))}
		if s.sequence == 0 || s.sequence >= m.nextSequence || i > 0 && s.sequence <= m.segments[i-1].sequence {
			return nil, errFields
		}
		m.segments[i] = s
	}
	return m, nil
}

// replaceFile writes name in dir as a whole and durably.
func replaceFile(fs vfs.FS, dir, name string, content []byte) error {
	temp := path.Join(dir, name+tempSuffix)
	if err := segment.WriteFile(fs, temp, content); err != nil {
		return err
	}
	if err := fs.Rename(temp, path.Join(dir, name)); err != nil {
		return err
	}
	return segment.Final(fs.SyncDir(dir))
}

// readFile reads a file of at most limit bytes; a larger one is damaged.
func readFile(fs vfs.FS, name string, limit int64) ([]byte, error) {
	b, err := segment.ReadFile(fs, name, limit)
	if errors.Is(err, segment.ErrFormat) {
		return nil, &CorruptionError{File: name, Cause: err}
	}
	return b, err
}

// ReplicaIn is the replica whose log a directory holds. It blocks and changes nothing.
// Errors: fs.ErrNotExist if there is no manifest, ErrTooNew, or what is wrong with it.
func ReplicaIn(fs vfs.FS, dir string) (uint64, error) {
	name := path.Join(dir, manifestName)
	b, err := readFile(fs, name, manifestFixed+maxSegments*manifestEntry+4)
	if err != nil {
		return 0, err
	}
	m, err := parseManifest(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return m.replicaID, nil
}

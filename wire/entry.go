package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The data of a Raft entry of kind records or control starts with what a
// follower needs to write the same frame header as the leader:
//
//	+------+-------------+--------------+------------------+------
//	| kind | 3 zero bytes| record count | append time (ms) | body
//	+------+-------------+--------------+------------------+------
//	0      1             4              8                  16
//
// Configuration entries are a bare raftpb.ConfChangeV2, no-ops are empty.
const EntryPrefixSize = 16

// ErrEntry is returned for entry data or a records body that is malformed.
var ErrEntry = errors.New("malformed entry")

// PutEntryPrefix writes the prefix to dst[:EntryPrefixSize].
func PutEntryPrefix(dst []byte, kind Kind, recordCount uint32, appendTimeMs int64) {
	_ = dst[EntryPrefixSize-1]
	dst[0], dst[1], dst[2], dst[3] = byte(kind), 0, 0, 0
	binary.LittleEndian.PutUint32(dst[4:], recordCount)
	binary.LittleEndian.PutUint64(dst[8:], uint64(appendTimeMs))
}

// ParseEntryPrefix splits the data of a records or control entry. body is a
// view into data.
func ParseEntryPrefix(data []byte) (kind Kind, recordCount uint32, appendTimeMs int64, body []byte, err error) {
	if len(data) < EntryPrefixSize {
		return 0, 0, 0, nil, fmt.Errorf("%w: %d bytes are shorter than the prefix", ErrEntry, len(data))
	}
	kind = Kind(data[0])
	if kind != KindRecords && kind != KindControl {
		return 0, 0, 0, nil, fmt.Errorf("%w: kind %d carries no prefix", ErrEntry, data[0])
	}
	if data[1]|data[2]|data[3] != 0 {
		return 0, 0, 0, nil, fmt.Errorf("%w: reserved bytes %x are not zero", ErrEntry, data[1:4])
	}
	recordCount = binary.LittleEndian.Uint32(data[4:])
	appendTimeMs = int64(binary.LittleEndian.Uint64(data[8:]))
	return kind, recordCount, appendTimeMs, data[EntryPrefixSize:], nil
}

// The body of a records entry is a sequence of
//
//	+--------------+--------------+--------------+-------
//	| index length | batch length | record index | batch
//	+--------------+--------------+--------------+-------
//	0              4              8
//
// one for each batch, without padding. A record index of length zero is left out.
const bodyBatchHeader = 8

// BodyBatch is one batch inside a records body. Both slices are views.
type BodyBatch struct {
	Index []byte // record index, empty where nothing dispatches by record
	Batch []byte // record batch, magic 2
}

// BodyBatchSize is the number of bytes that a batch takes inside a records body.
func BodyBatchSize(indexLength, batchLength int) int {
	return bodyBatchHeader + indexLength + batchLength
}

// AppendBodyBatch appends one batch with its record index to a records body.
func AppendBodyBatch(dst, index, batch []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(index)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(batch)))
	dst = append(dst, index...)
	return append(dst, batch...)
}

// NextBodyBatch splits the first batch off a records body.
func NextBodyBatch(body []byte) (b BodyBatch, rest []byte, err error) {
	if len(body) < bodyBatchHeader {
		return b, nil, fmt.Errorf("%w: %d bytes are left for a batch", ErrEntry, len(body))
	}
	indexLength := uint64(binary.LittleEndian.Uint32(body))
	batchLength := uint64(binary.LittleEndian.Uint32(body[4:]))
	if indexLength+batchLength > uint64(len(body)-bodyBatchHeader) {
		return b, nil, fmt.Errorf("%w: batch of %d+%d bytes in %d", ErrEntry, indexLength, batchLength, len(body))
	}
	body = body[bodyBatchHeader:]
	b.Index = body[:indexLength:indexLength]
	b.Batch = body[indexLength : indexLength+batchLength : indexLength+batchLength]
	return b, body[indexLength+batchLength:], nil
}

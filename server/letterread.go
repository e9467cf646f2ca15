package server

import (
	"sort"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
	"github.com/lockstepmq/lockstep/wire/inflate"
)

// letterReader reads the records of letters one after the other: what lies in one frame is looked
// for once, and what lies in one batch is read and checked once. The zero value is ready; one
// goroutine at a time has it. It holds one batch, and its records if it is compressed, which
// are no more than wire.MaxUncompressedBytes.
type letterReader struct {
	found   log.Scanned
	at      log.Position // of the batch in body, if publisher, info and section are of one
	known   bool
	body    []byte
	info    wire.BatchInfo
	section []byte
	records wire.RecordReader
	record  wire.Record // that was read last; none if its offset is behind the next one wanted
	begun   bool
}

// read returns the record at o and the hash of its publisher; repaired is what stands in its
// place, nil if nothing does. The record is the reader's until the next call. It may block.
func (l *letterReader) read(r *partitionReplica, o wire.Offset, repaired []byte) (rec *wire.Record, publisher uint64, err error) {
	b, err := l.batch(r, o)
	if err != nil {
		return nil, 0, err
	}
	if repaired != nil {
		var one letterReader
		stored, _, err := wire.NextBodyBatch(repaired)
		if err == nil {
			err = one.open(&stored)
		}
		if err != nil {
			return nil, 0, err
		}
		return one.find(o, b.Publisher)
	}
	if !l.known || l.at != b.At {
		l.known = false
		stored, err := r.readBatch(b, &l.body)
		if err == nil {
			err = l.open(&stored)
		}
		if err != nil {
			return nil, 0, err
		}
		l.known, l.at = true, b.At
	}
	return l.find(o, b.Publisher)
}

// batch describes the batch that holds o.
func (l *letterReader) batch(r *partitionReplica, o wire.Offset) (*log.Batch, error) {
	b := l.holds(o)
	if b == nil {
		if err := r.records.Scan(o, 1, &l.found); err != nil {
			return nil, err
		}
		if b = l.holds(o); b == nil {
			return nil, wire.CodeCorrupt
		}
	}
	switch {
	case b.Damaged:
		return nil, wire.CodeCorrupt
	case b.Erased:
		return nil, wire.CodeErased
	}
	return b, nil
}

// holds is the batch that holds o among those that were found last, or nil.
func (l *letterReader) holds(o wire.Offset) *log.Batch {
	all := l.found.Batches
	i := sort.Search(len(all), func(i int) bool { return o < all[i].Next() })
	if i < len(all) && all[i].Base <= o {
		return &all[i]
	}
	return nil
}

// open checks a batch and stands before its first record.
func (l *letterReader) open(b *wire.BodyBatch) (err error) {
	if l.info, err = wire.VerifyBatch(b.Batch); err != nil {
		return err
	}
	if l.section = wire.Records(b.Batch); l.info.Codec != wire.CodecNone {
		if l.section, err = inflate.Records(nil, l.info.Codec, l.section); err != nil {
			return err
		}
	}
	l.begun = false
	return nil
}

// find goes to the record at o, from where it stands if that is not behind it.
func (l *letterReader) find(o wire.Offset, publisher uint64) (*wire.Record, uint64, error) {
	if !l.begun || l.record.Offset > o {
		l.records.Reset(&l.info, l.section)
		l.begun = true
		l.record.Offset = o + 1 // it stands at none
	}
	for l.record.Offset != o {
		if !l.records.Next(&l.record) {
			l.begun = false
			return nil, 0, wire.CodeCorrupt
		}
	}
	return &l.record, publisher, nil
}

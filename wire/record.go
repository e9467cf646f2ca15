package wire

import "iter"

// A record inside an uncompressed records section. Varints are zigzag and minimal.
//
//	+--------+------------+-----------------+--------------+
//	| length | attributes | timestamp delta | offset delta |
//	+--------+------------+-----------------+--------------+
//	| key length | key | value length | value              |
//	+------------+-----+--------------+--------------------+
//	| header count | headers ...
//	+--------------+
//
// length varint (bytes after it), attributes i8, timestamp delta varlong (ms, from
// the batch's base timestamp), offset delta varint (0, 1, 2 ...), key length
// varint (-1 = no key), value length varint (-1 = no value), header count varint;
// each header is a key length varint, key, value length varint (-1 = no value),
// value.
//
// The encoding of a record, wherever its length or CRC is meant, is all of that,
// the length field included: the encodings of all records make up the section.

// minRecordSize is the shortest record: seven fields of one byte.
const minRecordSize = 7

// recordFields says where the parts of a record lie in its section.
type recordFields struct {
	attributes     int8
	timestampDelta int64
	offsetDelta    int32
	key, keyEnd    int // [key, keyEnd); key < 0 = none
	value          int // [value, valueEnd); value < 0 = none
	valueEnd       int
	headers        int // position of the first header; they reach to the record's end
	headerCount    int
}

// split takes the record at section[p:] apart. It returns the position of the next
// record, or what is wrong. Nothing else about f holds after a fault.
func (f *recordFields) split(section []byte, p int) (next int, fault string) {
	// Every field is tried with the inlined form first: a walk over 100-byte records
	// takes half as long as with a call for each field.
	u, q := shortVarint(section, p)
	if q < 0 {
		u, q = uvarint32(section, p)
	}
	length := int(unzigzag32(u))
	if fault = checkLength(length, q, len(section)); fault != "" {
		return 0, fault
	}
	// Below, fields are read without regard to the record's end, which a faulty one
	// crosses; each length and at last the position itself are held against it.
	end := q + length
	f.attributes = int8(section[q])
	p = q + 1
	if u, q = shortVarint(section, p); q >= 0 {
		f.timestampDelta = int64(unzigzag32(u))
	} else {
		f.timestampDelta, q = varint64(section, p)
	}
	p = q
	if u, q = shortVarint(section, p); q < 0 {
		u, q = uvarint32(section, p)
	}
	f.offsetDelta = unzigzag32(u)
	p = q
	if u, q = shortVarint(section, p); q < 0 {
		u, q = uvarint32(section, p)
	}
	n := int(unzigzag32(u))
	if q < 0 {
		return 0, "a field is cut short or not a minimal varint"
	}
	if n < -1 || n > end-q {
		return 0, "key length is negative or reaches past the end of the record"
	}
	f.key, f.keyEnd = q, q+max(n, 0)
	if n < 0 {
		f.key = -1
	}
	p = f.keyEnd
	if u, q = shortVarint(section, p); q < 0 {
		u, q = uvarint32(section, p)
	}
	n = int(unzigzag32(u))
	if q < 0 {
		return 0, "value length is cut short or not a minimal varint"
	}
	if n < -1 || n > end-q {
		return 0, "value length is negative or reaches past the end of the record"
	}
	f.value, f.valueEnd = q, q+max(n, 0)
	if n < 0 {
		f.value = -1
	}
	p = f.valueEnd
	if u, q = shortVarint(section, p); q < 0 {
		u, q = uvarint32(section, p)
	}
	n = int(unzigzag32(u))
	if q < 0 {
		return 0, "header count is cut short or not a minimal varint"
	}
	f.headers, f.headerCount = q, n
	if n != 0 {
		if q, fault = splitHeaders(section[:end], q, n); fault != "" {
			return 0, fault
		}
	}
	if q != end {
		return 0, "length does not match the fields"
	}
	return end, ""
}

// skipRecord is split without a look at the fields.
func skipRecord(section []byte, p int) (next int, fault string) {
	u, q := shortVarint(section, p)
	if q < 0 {
		u, q = uvarint32(section, p)
	}
	length := int(unzigzag32(u))
	if fault = checkLength(length, q, len(section)); fault != "" {
		return 0, fault
	}
	return q + length, ""
}

// checkLength judges a record's length field that ends at q; q < 0 means that it
// could not be read.
func checkLength(length, q, sectionLength int) (fault string) {
	switch {
	case q < 0:
		return "length is cut short or not a minimal varint"
	case length < minRecordSize-1:
		return "length is negative or too short for a record"
	case length > sectionLength-q:
		return "length reaches past the end of the batch"
	}
	return ""
}

// minHeaderSize is the shortest header: two lengths.
const minHeaderSize = 2

func splitHeaders(b []byte, p, count int) (next int, fault string) {
	if count < 0 || count > (len(b)-p)/minHeaderSize {
		return 0, "header count is negative or larger than the bytes that follow"
	}
	for range count {
		n, q := varint32(b, p)
		if q < 0 || n < 0 || int(n) > len(b)-q {
			return 0, "header key is malformed"
		}
		n, p = varint32(b, q+int(n))
		if p < 0 || n < -1 || int(n) > len(b)-p {
			return 0, "header value is malformed"
		}
		p += max(int(n), 0)
	}
	return p, ""
}

// Record is one record as a view into its section: all slices end with the life
// of the section.
type Record struct {
	Offset      Offset
	TimestampMs int64 // the producer's time, ms since 1970
	Attributes  int8
	Key         []byte // nil = none
	Value       []byte // nil = none
	HeaderCount int
	Encoding    []byte // the whole record, as the record index counts and checksums it

	headers []byte
}

// Headers yields the headers in their order, as views; a nil value means none.
func (r *Record) Headers() iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		p := 0
		for range r.HeaderCount {
			n, q := varint32(r.headers, p)
			key := r.headers[q : q+int(n) : q+int(n)]
			n, p = varint32(r.headers, q+int(n))
			var value []byte
			if n >= 0 {
				value = r.headers[p : p+int(n) : p+int(n)]
				p += int(n)
			}
			if !yield(key, value) {
				return
			}
		}
	}
}

// PublisherHeader is the header that names the publisher of a record, whose hash the
// record index has.
const PublisherHeader = "lockstep-publisher"

// RecordHeader is a named value of a record.
type RecordHeader struct {
	Key   string
	Value []byte // nil = none
}

// AppendHeaders appends the headers to dst. Keys are copies, values are views.
func (r *Record) AppendHeaders(dst []RecordHeader) []RecordHeader {
	for key, value := range r.Headers() {
		dst = append(dst, RecordHeader{Key: string(key), Value: value})
	}
	return dst
}

// RecordReader walks the records of a batch. It allocates nothing unless it fails.
// It is not safe for concurrent use; the zero value has no records.
type RecordReader struct {
	section       []byte
	position      int
	read, count   int
	baseOffset    Offset
	baseTimestamp int64
	err           error
}

// Reset starts at the first record of an uncompressed section. The header must be
// one that ParseBatch returned; the section may be anything.
func (r *RecordReader) Reset(info *BatchInfo, section []byte) {
	*r = RecordReader{
		section:       section,
		count:         int(info.RecordCount),
		baseOffset:    info.BaseOffset,
		baseTimestamp: info.BaseTimestamp,
	}
}

// Next sets *rec to the next record. It returns false after the last one and
// after an error.
func (r *RecordReader) Next(rec *Record) bool {
	if r.err != nil {
		return false
	}
	if r.read == r.count {
		r.err = checkSectionEnd(r.section, r.position, r.count)
		return false
	}
	var f recordFields
	next, fault := f.split(r.section, r.position)
	if fault != "" {
		r.err = recordFault(r.read, fault)
		return false
	}
	if f.offsetDelta != int32(r.read) {
		r.err = offsetDeltaFault(r.read, f.offsetDelta)
		return false
	}
	rec.Offset = r.baseOffset + Offset(r.read)
	rec.TimestampMs = r.baseTimestamp + f.timestampDelta
	rec.Attributes = f.attributes
	rec.Key, rec.Value = nil, nil
	if f.key >= 0 {
		rec.Key = r.section[f.key:f.keyEnd:f.keyEnd]
	}
	if f.value >= 0 {
		rec.Value = r.section[f.value:f.valueEnd:f.valueEnd]
	}
	rec.HeaderCount = f.headerCount
	rec.headers = r.section[f.headers:next:next]
	rec.Encoding = r.section[r.position:next:next]
	r.position = next
	r.read++
	return true
}

// Err is the reason why Next stopped early, an *Error with CodeMalformed, or nil
// after the last record of a sound section.
func (r *RecordReader) Err() error { return r.err }

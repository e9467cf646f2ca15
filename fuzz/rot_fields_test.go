package fuzz

import (
	"encoding/binary"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// The formats of docs/formats.md and docs/formats-storage.md, written down a second
// time: which bytes of a data directory belong to which field.

// field is one field of a format: its name and where it ends, its predecessor's end
// being its start.
type field struct {
	name string
	end  int64
}

var (
	frameFields = []field{
		{"magic", 2}, {"version", 3}, {"kind", 4}, {"record count", 8}, {"term", 16}, {"index", 24}, {"base offset", 32},
		{"append time", 40}, {"body length", 44}, {"body CRC", 48}, {"prev", 52}, {"header CRC", 56}, {"local word", 64},
	}
	batchFields = []field{
		{"base offset", 8}, {"batch length", 12}, {"leader epoch", 16}, {"magic", 17}, {"CRC", 21}, {"attributes", 23},
		{"last offset delta", 27}, {"base timestamp", 35}, {"max timestamp", 43}, {"producer ID", 51}, {"producer epoch", 53},
		{"base sequence", 57}, {"record count", 61},
	}
	segmentFields = []field{
		{"magic", 8}, {"version", 10}, {"zero", 12}, {"incarnation", 16}, {"partition ID", 32}, {"sequence", 40}, {"file ID", 48},
		{"base index", 56}, {"base offset", 64}, {"previous term", 72}, {"previous time", 80}, {"previous chain", 84}, {"zero", 88},
		{"capacity", 96}, {"zero", 124}, {"CRC", 128},
	}
	sparseFields = []field{
		{"segment header", 128}, {"end position", 136}, {"last index", 144}, {"last term", 152}, {"next offset", 160},
		{"last time", 168}, {"max time", 176}, {"roll time", 184}, {"last chain", 188}, {"entry count", 192}, {"run count", 196},
		{"term run count", 200}, {"entries and runs", -4}, {"CRC", 0},
	}
	manifestFields = []field{
		{"magic", 8}, {"version", 10}, {"zero", 12}, {"incarnation", 16}, {"partition ID", 32}, {"replica ID", 40},
		{"next sequence", 48}, {"start index", 56}, {"start term", 64}, {"start offset", 72}, {"start time", 80},
		{"start chain", 84}, {"segment count", 88}, {"segments", -4}, {"CRC", 0},
	}
	checkpointFields = []field{
		{"magic", 8}, {"version", 10}, {"zero", 12}, {"incarnation", 16}, {"partition ID", 32}, {"applied index", 40},
		{"applied term", 48}, {"next offset", 56}, {"append time", 64}, {"position segment", 72}, {"position byte", 80},
		{"chain", 84}, {"conf length", 88}, {"state length", 96}, {"chain time", 104}, {"conf and state", -4}, {"CRC", 0},
	}
	damagedFields = []field{
		{"magic", 8}, {"version", 10}, {"zero", 12}, {"incarnation", 16}, {"partition ID", 32}, {"run count", 36}, {"zero", 40},
		{"runs", -4}, {"CRC", 0},
	}
	stateHeaderFields = []field{
		{"magic", 8}, {"version", 10}, {"zero", 16}, {"store UUID", 32}, {"open count", 40}, {"zero", 60}, {"CRC", 64}, {"rest of page", 4096},
	}
	slotFields = []field{
		{"CRC", 4}, {"version", 5}, {"flags", 6}, {"zero", 8}, {"sequence", 12}, {"boot tag", 16}, {"identity", 32}, {"term", 40},
		{"vote", 48}, {"commit", 56}, {"mark", 64},
	}
	blockFields = []field{
		{"magic", 4}, {"version", 6}, {"zero", 8}, {"sequence", 16}, {"length", 20}, {"records", 24}, {"previous CRC", 28},
		{"payload CRC", 32}, {"zero", 36}, {"header CRC", 40},
	}
	journalRecordFields = []field{
		{"identity", 16}, {"file ID", 24}, {"length", 28}, {"flags", 30}, {"zero", 32}, {"zero", 36}, {"CRC", 40},
	}
)

// rotPlace is a range of bytes that belong to one field.
type rotPlace struct {
	file     string
	from, to int64
	log      int        // whose partition's bytes they are; everybody's if -1
	entry    wire.Index // whose frame; 0: no frame's
	frameAt  int64      // where that frame begins
	body     bool       // behind that frame's header
}

// fieldMap lists the places of every field of a data directory.
type fieldMap struct {
	names  []string // in the order in which they were found
	places map[string][]rotPlace
}

func (m *fieldMap) add(name string, p rotPlace) {
	if p.from >= p.to {
		return
	}
	if _, ok := m.places[name]; !ok {
		m.names = append(m.names, name)
	}
	m.places[name] = append(m.places[name], p)
}

// addAll adds the fields of a structure at at. size is that of the file where fields
// count from its end.
func (m *fieldMap) addAll(what string, fields []field, p rotPlace, at, size int64) {
	from := int64(0)
	for _, f := range fields {
		end := f.end
		if end <= 0 {
			end += size
		}
		p.from, p.to = at+from, at+end
		m.add(what+": "+f.name, p)
		from = end
	}
}

// fields maps the files of a directory.
func (s *rotStore) fields(t testing.TB) *fieldMap {
	m := &fieldMap{places: map[string][]rotPlace{}}
	for _, name := range s.names {
		size := int64(len(s.files[name]))
		p := rotPlace{file: name, log: s.logOf(name)}
		switch base := path.Base(name); {
		case strings.HasSuffix(base, ".segment"):
			s.segmentFields(t, m, p)
		case strings.HasSuffix(base, ".sparse"):
			m.addAll("sparse index", sparseFields, p, 0, size)
		case base == "manifest":
			m.addAll("manifest", manifestFields, p, 0, size)
		case strings.HasPrefix(base, "checkpoint."):
			m.addAll("checkpoint", checkpointFields, p, 0, size)
		case base == "damaged":
			m.addAll("damaged ranges", damagedFields, p, 0, size)
		case base == "hardstate":
			s.hardStateFields(m, p)
		case strings.HasSuffix(base, ".journal"):
			s.journalFields(t, m, p)
		default:
			require.Fail(t, "a file of no known format", name)
		}
	}
	return m
}

func (s *rotStore) segmentFields(t testing.TB, m *fieldMap, p rotPlace) {
	content := s.files[p.file]
	m.addAll("segment header", segmentFields, p, 0, 0)
	end := int64(128)
	for _, e := range s.logs[p.log].entries {
		if e.file == p.file {
			q := p
			q.entry, q.frameAt = e.header.Index, e.at
			frameBytes(t, m, "frame", content, q)
			end = max(end, e.at+e.header.FrameSize())
		}
	}
	p.from, p.to = end, int64(len(content))
	m.add("segment: allocated tail", p)
}

// frameBytes maps one frame at p.frameAt of content.
func frameBytes(t testing.TB, m *fieldMap, what string, content []byte, p rotPlace) {
	m.addAll(what+" header", frameFields, p, p.frameAt, 0)
	p.body = true
	h, err := wire.ParseFrameHeader(content[p.frameAt:])
	require.NoError(t, err)
	at := p.frameAt + wire.FrameHeaderSize
	end := at + int64(h.BodyLength)
	if h.Kind == wire.KindRecords {
		for at < end {
			le := binary.LittleEndian
			index, batch := int64(le.Uint32(content[at:])), int64(le.Uint32(content[at+4:]))
			m.addAll(what+" body", []field{{"index length", 4}, {"batch length", 8}, {"record index", 8 + index}}, p, at, 0)
			at += 8 + index
			m.addAll(what+" batch", batchFields, p, at, 0)
			m.addAll(what+" batch", []field{{"records", batch - 61}}, p, at+61, 0)
			at += batch
		}
	} else {
		m.addAll(what+" body", []field{{"of no records", end - at}}, p, at, 0)
	}
	p.body = false
	p.from, p.to = end, p.frameAt+h.FrameSize()
	m.add(what+": padding", p)
}

func (s *rotStore) hardStateFields(m *fieldMap, p rotPlace) {
	content := s.files[p.file]
	m.addAll("hard state header", stateHeaderFields, p, 0, 0)
	m.addAll("hard state header", stateHeaderFields, p, 4096, 0)
	for page := int64(2); page*4096 < int64(len(content)); page++ {
		for at := page * 4096; at < (page+1)*4096; at += 64 {
			slot := content[at : at+64]
			q := p
			q.log = s.ownerOf(content, at)
			switch {
			case [64]byte(slot) != [64]byte{}:
				m.addAll("slot", slotFields, q, at, 0)
			case q.log >= 0:
				m.addAll("slot", []field{{"second copy, never written", 64}}, q, at, 0)
			default:
				m.addAll("slot", []field{{"free", 64}}, q, at, 0)
			}
		}
	}
}

// ownerOf is the log whose slot has a copy at at, or -1.
func (s *rotStore) ownerOf(content []byte, at int64) int {
	pair := (at/4096 - 2) &^ 1
	for _, copyAt := range [2]int64{(2+pair)*4096 + at%4096, (3+pair)*4096 + at%4096} {
		for i := range s.logs {
			if string(content[copyAt+16:copyAt+32]) == string(s.logs[i].identity[:]) {
				return i
			}
		}
	}
	return -1
}

func (s *rotStore) journalFields(t testing.TB, m *fieldMap, p rotPlace) {
	content := s.files[p.file]
	le := binary.LittleEndian
	at := int64(0)
	for at < int64(len(content)) && le.Uint32(content[at:]) == 0x4e4a4b4c {
		end := at + int64(le.Uint32(content[at+16:]))
		block := p
		records := journalRecords(content[at:end], at)
		// What becomes of the block becomes of every entry in it.
		for _, q := range records {
			block.log, block.entry = s.logOfRecord(t, content, q), s.indexOfRecord(t, content, q)
			m.addAll("journal block", blockFields, block, at, 0)
			m.addAll("journal record", journalRecordFields, block, q[0]-40, 0)
			for pos := q[0]; pos < q[1]; {
				f := block
				h, err := wire.ParseFrameHeader(content[pos:])
				require.NoError(t, err)
				f.entry, f.frameAt = h.Index, pos
				frameBytes(t, m, "journal frame", content, f)
				pos += h.FrameSize()
			}
		}
		padded := (end + 4095) &^ 4095
		p.from, p.to = end, padded
		m.add("journal: padding", p)
		at = padded
	}
	p.from, p.to = at, int64(len(content))
	m.add("journal: space", p)
}

// journalRecords returns where the frames of the records of a block at at lie.
func journalRecords(block []byte, at int64) (frames [][2]int64) {
	for pos := int64(40); pos < int64(len(block)); {
		n := int64(binary.LittleEndian.Uint32(block[pos+24:]))
		frames = append(frames, [2]int64{at + pos + 40, at + pos + 40 + n})
		pos += 40 + n
	}
	return frames
}

func (s *rotStore) logOfRecord(t testing.TB, content []byte, frames [2]int64) int {
	for i := range s.logs {
		if string(content[frames[0]-40:frames[0]-24]) == string(s.logs[i].identity[:]) {
			return i
		}
	}
	require.Fail(t, "a record of no log")
	return -1
}

func (s *rotStore) indexOfRecord(t testing.TB, content []byte, frames [2]int64) wire.Index {
	h, err := wire.ParseFrameHeader(content[frames[0]:])
	require.NoError(t, err)
	return h.Index
}

package wire

import "encoding/binary"

// APPEND (4): entries of one Raft log from its leader, the hot path of replication.
// The data of the entries follows a table of their lengths, so that a sender writes
// it from where it lies and a receiver splits it without looking at it.
//
//	0          8          16         24           32
//	+----------+----------+----------+------------+
//	| to       | from     | term     | prev index |
//	+----------+----------+----------+------------+
//	| prev term| commit   | chain | flags | count | zero |
//	+----------+----------+-------+-------+-------+------+ 64
//	| count × { term u64 | length u32 | check u32 | type u8 | 7 zero }  |
//	+--------------------------------------------------------------------+
//	| data of all entries, back to back                                  |
//
// chain, flags, count and the zero field are u32. Entry i has the index prev index
// + 1 + i. chain is the header CRC of the stored frame at prev index. The check is
// a CRC32C over the body first and then over the prefix of the entry (EntryCheck):
// so a replica computes the CRC that its stored frame needs and the check in one pass.

const (
	peerAppendFixed = 64
	peerEntrySize   = 24

	peerAppendMeta  = 1
	peerAppendChain = 2
)

// PeerEntry is one entry of an APPEND. Data is a view when parsed.
type PeerEntry struct {
	Term  Term
	Type  uint8  // raftpb.EntryType: 0 normal, 1 and 2 configuration
	Check uint32 // EntryCheck of Data
	Data  []byte
}

// EntryCheck is the checksum under which the data of an entry travels between
// brokers: CRC32C over what follows the prefix, continued over the prefix. body is
// the first part alone, which is the body CRC of the stored frame. Data that is too
// short to have a prefix is all body.
func EntryCheck(data []byte) (check, body uint32) {
	n := min(len(data), EntryPrefixSize)
	if len(data) < EntryPrefixSize {
		n = 0
	}
	body = Checksum(data[n:])
	return UpdateChecksum(body, data[:n]), body
}

// PeerAppend is raft's MsgApp.
type PeerAppend struct {
	Meta       bool   // the replica IDs are those of the metadata group
	To, From   uint64 // replica IDs
	Term       Term   // of the leader
	PrevIndex  Index  // the entry before the first
	PrevTerm   Term
	Commit     Index // of the leader
	Chain      uint32
	ChainKnown bool // Chain says something; zero otherwise
	Entries    []PeerEntry
}

// Size is the length of the encoded body.
func (m *PeerAppend) Size() int {
	n := peerAppendFixed + len(m.Entries)*peerEntrySize
	for i := range m.Entries {
		n += len(m.Entries[i].Data)
	}
	return n
}

// AppendHead appends the frame up to the data of its entries: header, fields and
// table. The data must follow on the connection.
func (m *PeerAppend) AppendHead(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	PutPeerHeader(dst[start:], PeerHeader{Length: FrameLength(m.Size()), Kind: PeerKindAppend, Version: 1})
	return m.appendTable(dst)
}

func (m *PeerAppend) appendTable(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, m.To)
	dst = le.AppendUint64(dst, m.From)
	dst = le.AppendUint64(dst, uint64(m.Term))
	dst = le.AppendUint64(dst, uint64(m.PrevIndex))
	dst = le.AppendUint64(dst, uint64(m.PrevTerm))
	dst = le.AppendUint64(dst, uint64(m.Commit))
	flags := uint32(0)
	if m.Meta {
		flags |= peerAppendMeta
	}
	chain := uint32(0)
	if m.ChainKnown {
		flags |= peerAppendChain
		chain = m.Chain
	}
	dst = le.AppendUint32(dst, chain)
	dst = le.AppendUint32(dst, flags)
	dst = le.AppendUint32(dst, uint32(len(m.Entries)))
	dst = le.AppendUint32(dst, 0)
	for i := range m.Entries {
		e := &m.Entries[i]
		dst = le.AppendUint64(dst, uint64(e.Term))
		dst = le.AppendUint32(dst, uint32(len(e.Data)))
		dst = le.AppendUint32(dst, e.Check)
		dst = append(dst, e.Type, 0, 0, 0, 0, 0, 0, 0)
	}
	return dst
}

// Append implements Message: the body with the data copied behind its table.
func (m *PeerAppend) Append(dst []byte) []byte {
	dst = m.appendTable(dst)
	for i := range m.Entries {
		dst = append(dst, m.Entries[i].Data...)
	}
	return dst
}

// Parse implements Message. It reuses the memory of Entries; their Data are views
// into src. The checks are not verified: that is done where the data is taken.
func (m *PeerAppend) Parse(src []byte) error {
	r := reader{src: src}
	m.To, m.From = r.uint64(), r.uint64()
	m.Term = Term(r.uint64())
	m.PrevIndex, m.PrevTerm = Index(r.uint64()), Term(r.uint64())
	m.Commit = Index(r.uint64())
	m.Chain = r.uint32()
	flags := r.uint32()
	if flags&^(peerAppendMeta|peerAppendChain) != 0 {
		r.fail("unknown flags")
	}
	m.Meta, m.ChainKnown = flags&peerAppendMeta != 0, flags&peerAppendChain != 0
	if !m.ChainKnown && m.Chain != 0 {
		r.fail("a chain value that is not known")
	}
	count := r.uint32()
	peerReserved(&r, r.uint32())
	m.Entries = m.Entries[:0]
	if uint64(count)*peerEntrySize > uint64(len(r.src)) {
		r.fail("count is larger than the bytes that follow")
		count = 0
	}
	table := r.take(int(count) * peerEntrySize)
	le := binary.LittleEndian
	for ; len(table) > 0; table = table[peerEntrySize:] {
		e := PeerEntry{Term: Term(le.Uint64(table)), Check: le.Uint32(table[12:]), Type: table[16]}
		if le.Uint64(table[16:])>>8 != 0 {
			r.fail("reserved field is not zero")
		}
		e.Data = r.bytes(int(le.Uint32(table[8:])))
		m.Entries = append(m.Entries, e)
	}
	return r.done("peer APPEND")
}

package wire

import "encoding/binary"

// REPORT_DAMAGE (17), since version 1: a client tells that a frame it received does
// not match its checksums. It is not answered: the broker reads the frame again
// and, if it is damaged on the disk, answers reads of it with CORRUPT from then on.
// A client sends it only to a broker that lists the opcode in its HELLO.

// ReportDamage names a frame.
//
//	handle u32 | offset u64
type ReportDamage struct {
	Handle uint32
	Offset Offset // of a record in the frame
}

// Append implements Message.
func (m *ReportDamage) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, m.Handle)
	return binary.LittleEndian.AppendUint64(dst, uint64(m.Offset))
}

// Parse implements Message.
func (m *ReportDamage) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.Offset = Offset(r.uint64())
	return r.done("REPORT_DAMAGE")
}

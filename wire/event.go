package wire

import "encoding/binary"

// EVENT (16), since version 1: what the broker tells a client unasked. The ID of
// the frame is 0.

// EventKind says what happened. Clients ignore kinds they do not know.
type EventKind uint8

const (
	// EventTopologyChanged says that metadata moved to Version: ask again.
	EventTopologyChanged EventKind = 1
	// EventGoAway says that the broker is about to close the session. Requests in
	// flight are still answered; connect elsewhere for new ones.
	EventGoAway EventKind = 2
	// EventDestinationUnavailable says that Destination cannot be served for now.
	EventDestinationUnavailable EventKind = 3
)

func (k EventKind) String() string {
	switch k {
	case EventTopologyChanged:
		return "topology changed"
	case EventGoAway:
		return "go away"
	case EventDestinationUnavailable:
		return "destination unavailable"
	}
	return "unknown"
}

// Event is one piece of news. All kinds share the layout; fields that a kind does
// not need are zero.
//
//	kind u8 | version u64 | destination string | detail string
type Event struct {
	Kind        EventKind
	Version     uint64 // of the metadata
	Destination string
	Detail      string // for people, at most MaxDetailBytes
}

// Append implements Message.
func (m *Event) Append(dst []byte) []byte {
	dst = append(dst, byte(m.Kind))
	dst = binary.LittleEndian.AppendUint64(dst, m.Version)
	dst = appendString(dst, m.Destination)
	return appendDetail(dst, m.Detail)
}

// Parse implements Message.
func (m *Event) Parse(src []byte) error {
	r := reader{src: src}
	m.Kind = EventKind(r.uint8())
	m.Version = r.uint64()
	m.Destination = r.string()
	m.Detail = r.string()
	return r.done("EVENT")
}

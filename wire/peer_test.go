package wire

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

// peerKinds makes an empty message of each kind.
var peerKinds = map[PeerKind]func() Message{
	PeerKindHello:      func() Message { return new(PeerHello) },
	PeerKindWelcome:    func() Message { return new(PeerHello) },
	PeerKindRefused:    func() Message { return new(PeerRefused) },
	PeerKindAppend:     func() Message { return new(PeerAppend) },
	PeerKindRaft:       func() Message { return new(PeerRaft) },
	PeerKindHeartbeats: func() Message { return new(PeerBeats) },
	PeerKindSnapshot:   func() Message { return new(PeerSnapshot) },
	PeerKindLeaders:    func() Message { return new(PeerLeaders) },
	PeerKindRequest:    func() Message { return new(PeerRequest) },
	PeerKindResponse:   func() Message { return new(PeerResponse) },
	PeerKindChunk:      func() Message { return new(PeerChunk) },
	PeerKindAck:        func() Message { return new(PeerAck) },
}

const goldenPeerHelloHex = `
	01 00 01 00             // versions 1 to 1
	01 00 02 00             // levels 1 to 2
	c0 00 00 00 00 00 00 00 00 00 00 00 00 00 00 cf // cluster
	03 00 00 00             // node 3
	50 00 00 00 00 00 00 00 00 00 00 00 00 00 00 5f // store
	08 07 06 05 04 03 02 01 // boot
	09 00 00 00             // attempt 9
	03 00 61 3a 31          // client address "a:1"
	03 00 61 3a 32          // peer address "a:2"
`

var goldenPeerHello = &PeerHello{
	MinVersion: 1, MaxVersion: 1, MinLevel: 1, MaxLevel: 2, Cluster: [16]byte{0: 0xc0, 15: 0xcf}, Node: 3,
	Store: [16]byte{0: 0x50, 15: 0x5f}, Boot: 0x0102030405060708, Attempt: 9, ClientAddress: "a:1", PeerAddress: "a:2",
}

// goldenEntryData is a records entry with the body "hi".
var goldenEntryData = append([]byte{1, 0, 0, 0, 2, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1}, "hi"...)

// goldenPeer are the bodies of MaxPeerVersion.
var goldenPeer = []struct {
	kind    PeerKind
	message Message
	hex     string
}{
	{PeerKindHello, goldenPeerHello, goldenPeerHelloHex},
	{PeerKindWelcome, goldenPeerHello, goldenPeerHelloHex},
	{PeerKindRefused, &PeerRefused{Code: CodeDuplicate, Detail: "no"}, `
		19 00                   // DUPLICATE
		02 00 6e 6f             // "no"
	`},
	{PeerKindAppend, &PeerAppend{
		Meta: true, To: 1, From: 2, Term: 3, PrevIndex: 4, PrevTerm: 5, Commit: 6, Chain: 0x0a0b0c0d, ChainKnown: true,
		Entries: []PeerEntry{{Term: 7, Type: 0, Check: 0x7c48a70f, Data: goldenEntryData}, {Term: 8, Type: 2}},
	}, `
		01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 // to, from
		03 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00 // term, prev index
		05 00 00 00 00 00 00 00 06 00 00 00 00 00 00 00 // prev term, commit
		0d 0c 0b 0a 03 00 00 00 02 00 00 00 00 00 00 00 // chain, flags meta and chain, count 2
		07 00 00 00 00 00 00 00 12 00 00 00 0f a7 48 7c 00 00 00 00 00 00 00 00 // term 7, 18 bytes, check, normal
		08 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 // term 8, empty, configuration
		01 00 00 00 02 00 00 00 08 07 06 05 04 03 02 01 68 69 // data of the first
	`},
	{PeerKindRaft, &PeerRaft{Messages: []PeerRaftMessage{
		{Type: PeerVote, Meta: true, Forced: true, To: 1, From: 2, Term: 3, LogTerm: 4, Index: 5, Context: []byte{0xee}},
		{Type: PeerAppendResp, Reject: true, Uncertain: true, To: 1, From: 2, Term: 3, LogTerm: 4, Index: 5, Commit: 6, RejectHint: 7},
	}}, `
		02 00 00 00
		01 05 00 00 01 00 00 00 // vote, meta and forced, context of 1 byte
		01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00 // to, from, term
		04 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00 // log term, index
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 // commit, reject hint
		ee
		05 0a 00 00 00 00 00 00 // append response, reject and uncertain
		01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00
		04 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00
		06 00 00 00 00 00 00 00 07 00 00 00 00 00 00 00
	`},
	{PeerKindHeartbeats, &PeerBeats{Tick: 9, Heard: 8, State: PeerLacksSpace, Beats: []PeerBeat{
		{Meta: true, Quiet: true, To: 1, From: 2, Term: 3, Commit: 4, Context: []byte{0xaa, 0xbb}},
		{Response: true, Wake: true, To: 1, From: 2, Term: 3, Commit: 4},
	}}, `
		09 00 00 00 08 00 00 00 01 00 00 00 02 00 00 00 // tick, heard, state, count
		01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 // to, from
		03 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00 // term, commit
		05 02 00 00 00 00 00 00 aa bb // meta and quiet, context of 2 bytes
		01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00
		03 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00
		0a 00 00 00 00 00 00 00 // response and wake
	`},
	{PeerKindSnapshot, &PeerSnapshot{
		Meta: true, To: 1, From: 2, Term: 3, StartIndex: 4, StartTerm: 5, StartOffset: 6, StartTimeMs: -2, StartChain: 0x0a0b0c0d,
		Applied: 7, CheckpointBytes: 8, CheckpointCRC: 9, ConfState: []byte{0x08, 0x01},
	}, `
		01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00 // to, from, term
		01 00 00 00             // meta
		04 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00 06 00 00 00 00 00 00 00 // index, term, offset
		fe ff ff ff ff ff ff ff // time
		0d 0c 0b 0a             // chain
		07 00 00 00 00 00 00 00 // applied
		08 00 00 00 00 00 00 00 09 00 00 00 // bytes and CRC of the checkpoint
		02 00 00 00 08 01       // configuration
	`},
	{PeerKindLeaders, &PeerLeaders{Leaders: []PeerLeader{
		{Replica: 1, Epoch: 2, State: PartitionActive, Full: true, Unattended: true, Start: 3, Next: 4, Bytes: 5},
		{Replica: 6, State: PartitionFenced},
	}}, `
		02 00 00 00
		01 00 00 00 00 00 00 00 02 00 00 00 01 03 00 00 // replica, epoch, active, full and unattended
		03 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00 // start, next, bytes
		06 00 00 00 00 00 00 00 00 00 00 00 02 00 00 00 // replica, no epoch, fenced
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
	`},
	{PeerKindRequest, &PeerRequest{Op: PeerStatus, Body: []byte{0xab}}, `05 00 00 00 ab`},
	{PeerKindResponse, &PeerResponse{Code: CodeNotLeader, Body: []byte("no")}, `21 00 00 00 6e 6f`},
	{PeerKindChunk, &PeerChunk{Offset: 65536, Last: true, Data: []byte("abc")}, `
		00 00 01 00 00 00 00 00 01 00 00 00 b7 3f 4b 36 61 62 63 // offset, last, CRC, data
	`},
	{PeerKindAck, &PeerAck{Offset: 65539}, `03 00 01 00 00 00 00 00`},
}

func TestPeerGoldenBytes(t *testing.T) {
	seen := make(map[PeerKind]bool)
	for _, g := range goldenPeer {
		t.Run(g.kind.String(), func(t *testing.T) {
			seen[g.kind] = true
			want := unhex(t, g.hex)
			require.Equal(t, want, g.message.Append(nil))
			parsed := peerKinds[g.kind]()
			require.NoError(t, parsed.Parse(want))
			require.Equal(t, g.message, parsed)
			for n := range want {
				if (g.kind == PeerKindRequest || g.kind == PeerKindResponse) && n >= 4 {
					break // their bodies end anywhere
				}
				require.Error(t, peerKinds[g.kind]().Parse(want[:n:n]), "cut at %d", n)
			}
		})
	}
	require.Len(t, seen, len(peerKinds), "every kind has its bytes")
	for kind := PeerKindHello; kind.Known(); kind++ {
		require.Contains(t, peerKinds, kind)
	}
}

// RELIABILITY F26: builds with different layouts refuse each other in HELLO. Whoever changes
// the bytes of a kind raises MaxPeerVersion, and notes here what they are now.
func TestPeerLayoutsAreThoseOfTheirVersion(t *testing.T) {
	var all []byte
	for _, g := range goldenPeer {
		all = append(append(all, byte(g.kind)), unhex(t, g.hex)...)
	}
	require.Equal(t, map[int]uint32{2: 0x5dddcf14}[MaxPeerVersion], Checksum(all), "a layout of the peer protocol has changed, and its version has not")
}

// A newer build may say more of itself than an older one understands.
func TestPeerStateMayHaveUnknownBits(t *testing.T) {
	body := (&PeerBeats{Tick: 1, State: 0x80000000 | PeerLacksSpace}).Append(nil)
	var m PeerBeats
	require.NoError(t, m.Parse(body))
	require.Equal(t, body, m.Append(nil))
}

func TestPeerBodiesThatEndAnywhere(t *testing.T) {
	var request PeerRequest
	require.NoError(t, request.Parse([]byte{1, 0, 0, 0}))
	require.Equal(t, PeerRequest{Op: PeerSubmit}, request)
	require.ErrorIs(t, request.Parse([]byte{1, 0, 0, 1}), CodeMalformed)
	var response PeerResponse
	require.NoError(t, response.Parse([]byte{0, 0, 0, 0}))
	require.Equal(t, PeerResponse{}, response)
	fetch := PeerFetch{Meta: true, Replica: 1, From: 2, To: 3}
	want := unhex(t, `01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00`)
	require.Equal(t, want, fetch.Append(nil))
	var parsed PeerFetch
	require.NoError(t, parsed.Parse(want))
	require.Equal(t, fetch, parsed)
	frames := PeerFrames{Frames: []PeerFrame{{Index: 5, Body: []byte("ab")}, {Index: 7}}}
	want = unhex(t, `
		02 00 00 00 00 00 00 00
		05 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 61 62
		07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
	`)
	require.Equal(t, want, frames.Append(nil))
	var got PeerFrames
	require.NoError(t, got.Parse(want))
	require.Equal(t, frames, got)
	for n := range want {
		require.ErrorIs(t, got.Parse(want[:n:n]), CodeMalformed, "cut at %d", n)
	}
	require.ErrorIs(t, got.Parse([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}), CodeMalformed)
}

func TestPeerFrameGolden(t *testing.T) {
	want := unhex(t, `
		14 00 00 00 0c 00 01 00 07 00 00 00 ea 68 98 62 // length 20, ACK, version 1, number 7, CRC
		03 00 01 00 00 00 00 00
	`)
	require.Equal(t, want, AppendPeerFrame(nil, PeerKindAck, 7, &PeerAck{Offset: 65539}))
	h, err := ParsePeerHeader(want)
	require.NoError(t, err)
	require.Equal(t, PeerHeader{Length: 20, Kind: PeerKindAck, Version: 1, Number: 7}, h)
	require.Equal(t, 8, h.BodySize())
	require.Equal(t, 24, h.TotalSize())
	require.NotEqual(t, Preface, PeerPreface)
	require.Len(t, PeerPreface, len(Preface))
	require.Len(t, ForwardPreface, len(Preface))
}

// What is written as a head and slices is the frame that is written in one piece.
func TestPeerAppendHead(t *testing.T) {
	m := goldenPeer[3].message.(*PeerAppend)
	head := m.AppendHead(nil)
	require.Equal(t, unhex(t, `8e 00 00 00 04 00 01 00 00 00 00 00 60 b3 45 05`), head[:HeaderSize])
	require.Equal(t, AppendPeerFrame(nil, PeerKindAppend, 0, m), append(head, goldenEntryData...))
}

func TestEntryCheck(t *testing.T) {
	check, body := EntryCheck(goldenEntryData)
	require.Equal(t, uint32(0x7c48a70f), check)
	require.Equal(t, uint32(0xf59dd9c2), body, "the CRC of the stored frame's body")
	check, body = EntryCheck([]byte("ab"))
	require.Equal(t, uint32(0xe2a22936), check, "too short for a prefix")
	require.Equal(t, check, body)
	check, _ = EntryCheck(nil)
	require.Zero(t, check)
}

func TestPeerHeaderRefuses(t *testing.T) {
	header := func(change func(b []byte)) []byte {
		b := make([]byte, HeaderSize)
		PutPeerHeader(b, PeerHeader{Length: 12, Kind: PeerKindAck, Version: 1})
		change(b)
		binary.LittleEndian.PutUint32(b[12:], Checksum(b[:12]))
		return b
	}
	for _, c := range []struct {
		name string
		src  []byte
		err  error
	}{
		{"one byte short", header(func([]byte) {})[:HeaderSize-1], ErrHeaderShort},
		{"a wrong CRC", append(header(func([]byte) {})[:15:15], 0xff), ErrHeaderChecksum},
		{"a length below the header", header(func(b []byte) { b[0] = 11 }), CodeMalformed},
		{"the length that is one too much", header(func(b []byte) { binary.LittleEndian.PutUint32(b, MaxPeerFrameBytes+1) }), CodeTooLarge},
		{"all ones as the length", header(func(b []byte) { binary.LittleEndian.PutUint32(b, 1<<32-1) }), CodeTooLarge},
		{"a reserved flag", header(func(b []byte) { b[5] = 1 }), CodeMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParsePeerHeader(c.src)
			require.ErrorIs(t, err, c.err)
		})
	}
	h, err := ParsePeerHeader(header(func(b []byte) { binary.LittleEndian.PutUint32(b, MaxPeerFrameBytes) }))
	require.NoError(t, err, "the longest frame")
	require.Equal(t, uint32(MaxPeerFrameBytes), h.Length)
}

func TestPeerBodiesRefuse(t *testing.T) {
	golden := func(i int, change func(b []byte) []byte) []byte { return change(unhex(t, goldenPeer[i].hex)) }
	set := func(position int, value ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[position:], value); return b }
	}
	for _, c := range []struct {
		name string
		kind PeerKind
		body []byte
		code ErrorCode
	}{
		{"a count of entries above the bytes", PeerKindAppend, golden(3, set(56, 0xff, 0xff, 0xff, 0xff)), CodeMalformed},
		{"an entry longer than the bytes", PeerKindAppend, golden(3, set(72, 0xff, 0xff, 0xff, 0xff)), CodeMalformed},
		{"data that no entry has", PeerKindAppend, golden(3, func(b []byte) []byte { return append(b, 0) }), CodeMalformed},
		{"an unknown flag of APPEND", PeerKindAppend, golden(3, set(52, 7)), CodeMalformed},
		{"a chain that is not known", PeerKindAppend, golden(3, set(52, 1)), CodeMalformed},
		{"a reserved field of an entry", PeerKindAppend, golden(3, set(81, 1)), CodeMalformed},
		{"a count of messages above the bytes", PeerKindRaft, golden(4, set(0, 0xff, 0xff, 0xff, 0xff)), CodeMalformed},
		{"an unknown type of message", PeerKindRaft, golden(4, set(4, 10)), CodeMalformed},
		{"type 0", PeerKindRaft, golden(4, set(4, 0)), CodeMalformed},
		{"a context that is too long", PeerKindRaft, append(append([]byte{1, 0, 0, 0, 1, 0, 0, 0, MaxPeerContextBytes + 1, 0, 0, 0}, make([]byte, 56)...), make([]byte, 25)...), CodeMalformed},
		{"a context as long as it may be, of which a byte is missing", PeerKindRaft, append([]byte{1, 0, 0, 0, 1, 0, 0, 0, MaxPeerContextBytes, 0, 0, 0}, make([]byte, 56+MaxPeerContextBytes-1)...), CodeMalformed},
		{"an unknown flag of a message", PeerKindRaft, golden(4, set(5, 0x10)), CodeMalformed},
		{"a flag of SNAPSHOT above all known ones", PeerKindSnapshot, golden(6, set(24, 4)), CodeMalformed},
		{"a detail that is too long", PeerKindRefused, append(append([]byte{1, 0}, byte((MaxDetailBytes+1)&0xff), byte((MaxDetailBytes+1)>>8)), make([]byte, MaxDetailBytes+1)...), CodeMalformed},
		{"an unknown flag of a heartbeat", PeerKindHeartbeats, golden(5, set(48, 0x10)), CodeMalformed},
		{"a count of heartbeats above the bytes", PeerKindHeartbeats, golden(5, set(12, 0xff, 0xff, 0xff, 0x0f)), CodeMalformed},
		{"an unknown flag of SNAPSHOT", PeerKindSnapshot, golden(6, set(24, 2)), CodeMalformed},
		{"a configuration longer than the bytes", PeerKindSnapshot, golden(6, set(84, 0xff, 0xff, 0xff, 0xff)), CodeMalformed},
		{"an unknown flag of a leader", PeerKindLeaders, golden(7, set(17, 4)), CodeMalformed},
		{"a chunk with other data than its CRC", PeerKindChunk, golden(10, set(16, 'x')), CodeCorrupt},
		{"a chunk that is too long", PeerKindChunk, (&PeerChunk{Data: make([]byte, PeerChunkBytes+1)}).Append(nil), CodeTooLarge},
		{"an unknown flag of a chunk", PeerKindChunk, golden(10, set(8, 2)), CodeMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.ErrorIs(t, peerKinds[c.kind]().Parse(c.body), c.code)
		})
	}
	for _, m := range []Message{&PeerAppend{Entries: []PeerEntry{}}, &PeerSnapshot{}, &PeerChunk{}} { // no flag is set
		got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
		require.NoError(t, got.Parse(m.Append(nil)))
		require.Equal(t, m.Append(nil), got.Append(nil))
	}
	require.False(t, PeerKind(0).Known())
	require.True(t, PeerKindAck.Known())
	require.False(t, (PeerKindAck + 1).Known())
	require.False(t, PeerOp(0).Known())
	require.True(t, PeerHear.Known())
	require.False(t, (PeerHear + 1).Known())
	var refused PeerRefused
	require.NoError(t, refused.Parse(append(append([]byte{1, 0}, byte(MaxDetailBytes&0xff), byte(MaxDetailBytes>>8)), make([]byte, MaxDetailBytes)...)), "the longest detail")
	var raft PeerRaft
	require.NoError(t, raft.Parse(append([]byte{1, 0, 0, 0, byte(PeerReadIndexResp), 0, 0, 0, MaxPeerContextBytes, 0, 0, 0}, make([]byte, 56+MaxPeerContextBytes)...)), "the longest context, the last type")
	require.NoError(t, new(PeerSnapshot).Parse((&PeerSnapshot{Meta: true, Erased: true}).Append(nil)), "all flags")
	both := PeerFrames{Frames: []PeerFrame{{Index: 1}}} // as many as the bytes allow, none of them with a body
	require.NoError(t, new(PeerFrames).Parse(both.Append(nil)))
	require.NoError(t, new(PeerAppend).Parse((&PeerAppend{Entries: []PeerEntry{{Term: 1}}}).Append(nil)))
	shortest, err := ParsePeerHeader(AppendPeerFrame(nil, PeerKindAck, 0, &Empty{}))
	require.NoError(t, err, "a frame without a body")
	require.Zero(t, shortest.BodySize())
	var longest PeerChunk
	require.NoError(t, longest.Parse((&PeerChunk{Data: make([]byte, PeerChunkBytes)}).Append(nil)), "the longest chunk")
}

// FuzzPeerFrame: no body of any kind makes a decoder panic, read past its end or
// allocate beyond what has arrived, and what it accepts has no other encoding.
func FuzzPeerFrame(f *testing.F) {
	for _, g := range goldenPeer {
		f.Add(byte(g.kind), unhex(f, g.hex))
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		_, _ = ParsePeerHeader(body)
		if frames := new(PeerFrames); frames.Parse(body) == nil {
			require.Equal(t, body, frames.Append(nil))
		}
		empty := peerKinds[PeerKind(kind)]
		if empty == nil {
			return
		}
		whole := append(append([]byte(nil), body...), 0xdd)
		m := empty()
		if err := m.Parse(whole[:len(body):len(body)]); err != nil {
			return
		}
		require.Equal(t, byte(0xdd), whole[len(body)])
		encoded := m.Append(nil)
		require.Equal(t, body, encoded)
		again := empty()
		require.NoError(t, again.Parse(bytes.Clone(encoded)))
		require.True(t, reflect.DeepEqual(m, again))
		frame := AppendPeerFrame(nil, PeerKind(kind), 1, m)
		h, err := ParsePeerHeader(frame)
		require.NoError(t, err)
		require.Equal(t, len(frame), h.TotalSize())
	})
}

package server

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// FuzzSession feeds a session any bytes in any pieces. It never panics, and never
// takes more memory for unfinished frames than twice what has arrived.
func FuzzSession(f *testing.F) {
	batch, index := testBatch(f, "one", "two")
	good := []byte(wire.Preface)
	for _, m := range []struct {
		op wire.Opcode
		m  wire.Message
	}{
		{wire.OpHello, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1, ClientName: "fuzz"}},
		{wire.OpPing, &wire.PingRequest{}},
		{wire.OpCreate, &wire.CreateRequest{Name: "a/b", Kind: wire.Queue, Settings: wire.Settings{Partitions: 2}}},
		{wire.OpMetadata, &wire.MetadataRequest{Scope: wire.MetadataNamed, Names: []string{"events"}}},
		{wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: "events"}},
		{wire.OpProduce, &wire.ProduceRequest{Handle: 1, Acks: wire.AcksQuorum, Index: index, Batch: batch}},
		{wire.OpProduce, &wire.ProduceRequest{Handle: 1, Acks: wire.AcksNone, Keyed: true, Batch: batch}},
		{wire.OpListOffsets, &wire.ListOffsetsRequest{Handle: 1, Kind: wire.OffsetAtTime}},
		{wire.OpLinkOpen, &wire.LinkOpenRequest{Handle: 1, Credit: 1000}},
		{wire.OpLinkCredit, &wire.LinkCredit{Credit: 1000}},
		{wire.OpLinkClose, &wire.LinkClose{}},
		{wire.OpInitProducer, &wire.InitProducerRequest{Name: "p"}},
		{wire.OpDelete, &wire.DeleteRequest{Name: "events", Kind: wire.Topic}},
	} {
		good = append(good, frameOf(m.op, uint32(m.op), m.m)...)
		f.Add(uint16(7), append([]byte(nil), good...))
	}
	f.Add(uint16(1), []byte("GET / HTTP/1.1\r\n"))

	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(f, err)
	f.Cleanup(func() { null.Close() })
	f.Fuzz(func(t *testing.T, piece uint16, stream []byte) {
		s := fuzzSession(t, null)
		arrived := 0
		for rest := stream; len(rest) > 0 && s.phase < phaseClosing; {
			n := min(int(piece)+1, len(rest))
			s.halfClosed = false // frames may still be cut
			arrived += n
			s.parse(rest[:n])
			s.loop.giveTurns(true)
			s.halfClosed = true
			require.LessOrEqual(t, s.rest.size()-s.parsed, arrived)
			require.LessOrEqual(t, s.rest.capacity(), max(2*arrived, 1<<minBufferShift))
			rest = rest[n:]
		}
		require.Zero(t, s.engine.counters.panics.Load())
	})
}

// FuzzRequest gives an open session any body for any opcode. The header's
// checksum would keep a fuzzer from getting so far.
func FuzzRequest(f *testing.F) {
	batch, index := testBatch(f, "one", "two")
	for _, m := range []struct {
		op wire.Opcode
		m  wire.Message
	}{
		{wire.OpMetadata, &wire.MetadataRequest{Scope: wire.MetadataNamed, Names: []string{"events", "x"}}},
		{wire.OpCreate, &wire.CreateRequest{Name: "a/b", Kind: wire.Queue, Settings: wire.Settings{Partitions: 2}}},
		{wire.OpAlter, &wire.AlterRequest{Name: "events", Kind: wire.Topic}},
		{wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: "events", Partition: 1}},
		{wire.OpProduce, &wire.ProduceRequest{Handle: 1, Acks: wire.AcksQuorum, Keyed: true, SlotVersion: 1, Index: index, Batch: batch}},
		{wire.OpListOffsets, &wire.ListOffsetsRequest{Handle: 1, Kind: wire.OffsetLatest}},
		{wire.OpLinkOpen, &wire.LinkOpenRequest{Handle: 1, Credit: 1000}},
		{wire.OpLinkCredit, &wire.LinkCredit{Credit: 1000}},
	} {
		f.Add(uint8(m.op), m.m.Append(nil))
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(f, err)
	f.Cleanup(func() { null.Close() })
	f.Fuzz(func(t *testing.T, op uint8, body []byte) {
		s := fuzzSession(t, null)
		s.phase = phaseOpen
		s.out.requests = make(map[uint32]inFlight)
		_, err := s.openHandle("events", 0)
		require.NoError(t, err)
		s.request(wire.Header{Length: wire.FrameLength(len(body)), Opcode: wire.Opcode(op), Version: wire.Opcode(op).Version(), ID: 5}, body)
		s.loop.giveTurns(true)
		// Either it is answered, or waits, or was not to be answered, or ended the session.
		s.out.mu.Lock()
		defer s.out.mu.Unlock()
		if s.out.pending == nil && len(s.out.requests) == 0 && s.phase == phaseOpen {
			require.Contains(t, []wire.Opcode{
				wire.OpLinkCredit, wire.OpProduce, wire.OpReportDamage,
				wire.OpGroupOutcome, wire.OpGroupCapacity, wire.OpGroupHeartbeat, wire.OpGroupLeave, wire.OpTempTaken, // of links that are not there any more
			}, wire.Opcode(op))
		}
	})
}

// fuzzSession is a session without a loop: what it writes goes to a file.
func fuzzSession(t *testing.T, out *os.File) *session {
	backend := newFakeBackend()
	backend.create(wire.Topic, "events", 2)
	backend.hold = true // administration is answered by nobody, and nor are links
	e := &engine{backend: &discardBackend{backend}, logger: newDiscardLogger()}
	var err error
	e.limits, err = Limits{}.withDefaults(1000)
	require.NoError(t, err)
	e.temporaries.limits = &e.limits
	e.bad = complaints{logger: e.logger, counters: &e.counters, kinds: make(map[string]*complaintWindow)}
	l := &loop{engine: e, sessions: make(map[*session]struct{}), running: true, epoll: -1}
	l.wheel.init(0)
	s := &session{engine: e, halfClosed: true, remote: "fuzz"}
	s.loop, s.fd, s.timer.conn = l, int(out.Fd()), s
	s.release = func() { s.phase = phaseClosed }
	return s
}

// FuzzIdentity reads any bytes as node.json: what is accepted names everything and
// survives being written again, and only another version is too new.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"format_version":1,"cluster_id":"00000000-0000-0000-0000-000000000001","node_id":1,"store_id":"00000000-0000-0000-0000-000000000002"}`))
	f.Add([]byte(`{"format_version":2,"node_id":"a name"}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, src []byte) {
		id, err := parseIdentity(src)
		if err != nil {
			return
		}
		require.Equal(t, FormatVersion, id.FormatVersion)
		require.NotZero(t, id.ClusterID)
		require.NotZero(t, id.NodeID)
		require.NotZero(t, id.StoreID)
		b, err := json.Marshal(&id)
		require.NoError(t, err)
		again, err := parseIdentity(b)
		require.NoError(t, err)
		require.Equal(t, id, again)
	})
}

func TestIdentityOfANewerVersionIsNotDamage(t *testing.T) {
	for _, newer := range []string{`{"format_version":2}`, `{"format_version":2,"node_id":"a name"}`} {
		_, err := parseIdentity([]byte(newer))
		require.ErrorIs(t, err, ErrNewerFormat)
	}
	for _, damaged := range []string{``, `{}`, `null`, `{"format_version":"2"}`, `{"format_version":1,"node_id":1}`} {
		_, err := parseIdentity([]byte(damaged))
		require.Error(t, err)
		require.NotErrorIs(t, err, ErrNewerFormat, damaged)
	}
}

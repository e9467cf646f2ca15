package client

import (
	"bufio"
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lockstepmq/lockstep/wire"
	"github.com/lockstepmq/lockstep/wire/inflate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeBroker is a broker of one process and no disk: it speaks wire over loopback
// TCP, keeps partitions as the bytes of stored frames, recognises resends, and
// lets a test's script see every request first. Several of them are the nodes of a
// cluster, see startCluster.
type fakeBroker struct {
	*fakeStore
	t        testing.TB
	listener net.Listener
	hello    wire.HelloResponse
	piece    int // bytes of stream in one DELIVER

	scripting sync.Mutex // held while a script runs: scripts need no locks of their own

	// These are guarded by the store's mu, as it is.
	script    func(*fakeRequest) bool // true: the script has dealt with it
	onConnect func(net.Conn) bool     // true: it has dealt with the connection
	conns     map[*fakeConn]struct{}
	accepted  int
	produced  int // PRODUCEs
	forwarded int // requests for partitions that others lead
	refused   int // those of clients that go there themselves
	closed    bool
	wg        sync.WaitGroup
	rack      string
	role      wire.NodeRole
}

// fakeStore is what the brokers of a cluster share: one log for each partition.
type fakeStore struct {
	mu           sync.Mutex
	brokers      []*fakeBroker
	version      uint64 // of the metadata
	destinations map[string]*fakeDestination
	order        []string
	handles      []*fakePartition // the same in every session
	nextProducer int64
	names        map[string]wire.InitProducerResponse
	holders      map[string]uint64 // of names
	reports      []wire.ReportDamage
	incarnation  uint32 // of all partitions, less 1
}

func newFakeStore() *fakeStore {
	return &fakeStore{
		version:      42,
		destinations: make(map[string]*fakeDestination),
		names:        make(map[string]wire.InitProducerResponse),
		holders:      make(map[string]uint64),
		nextProducer: 100,
	}
}

type fakeDestination struct {
	info       wire.DestinationInfo
	partitions []*fakePartition
}

type fakePartition struct {
	destination *fakeDestination
	number      uint32
	handle      uint32
	start, next wire.Offset
	index       wire.Index
	prev        uint32 // header CRC of the last frame
	log         []byte // stored frames
	frames      []fakeFrame
	producers   map[int64]*fakeProducer
	links       map[*fakeLink]struct{}
	batches     []wire.BatchInfo // in the order of their appending
	clock       int64
	leader      uint32 // node; 0: none
	elections   uint32
	flags       wire.PartitionFlags
	weight      uint8
}

// epoch is the term of the partition's leader.
func (p *fakePartition) epoch() uint32 { return fakeTerm + p.elections }

type fakeFrame struct {
	position   int
	base, next wire.Offset
	timeMs     int64
}

type fakeProducer struct {
	epoch int16
	next  int32
	old   map[int32]wire.Receipt // by base sequence
}

type fakeConn struct {
	b      *fakeBroker
	net    net.Conn
	reader *bufio.Reader
	write  sync.Mutex
	links  map[uint32]*fakeLink
	// takeover, set by a script, serves the rest of the connection.
	takeover func()
	last     uint32 // link ID
	features uint64 // of the client
}

type fakeLink struct {
	conn      *fakeConn
	id        uint32
	partition *fakePartition
	position  int
	credit    int
	granted   int
	sent      int
	atEnd     bool
}

// fakeRequest is a request as a script sees it.
type fakeRequest struct {
	b       *fakeBroker
	conn    *fakeConn
	header  wire.Header
	body    []byte
	produce wire.ProduceRequest // of OpProduce
}

// startBroker starts a broker that is stopped with the test.
func startBroker(t testing.TB, configure ...func(*fakeBroker)) *fakeBroker {
	t.Helper()
	return startNode(t, newFakeStore(), configure...)
}

// startNode starts a broker that has a store in common with others.
func startNode(t testing.TB, store *fakeStore, configure ...func(*fakeBroker)) *fakeBroker {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return serveNode(t, store, listener, configure...)
}

// serveNode is startNode where the broker listens somewhere else.
func serveNode(t testing.TB, store *fakeStore, listener net.Listener, configure ...func(*fakeBroker)) *fakeBroker {
	t.Helper()
	store.mu.Lock()
	b := &fakeBroker{
		fakeStore: store,
		t:         t,
		listener:  listener,
		piece:     wire.MaxDeliverBytes,
		hello: wire.HelloResponse{
			Version: 1, ClusterID: "cluster-a", NodeID: uint32(len(store.brokers) + 1), ServerVersion: "fake",
			MaxFrameBytes: wire.MaxFrameBytes, MaxRecordBytes: wire.DefaultMaxRecordBytes,
			MaxInFlightRequests: 1024, MaxInFlightBytes: 64 << 20, IdleTimeoutMs: 60_000,
			Opcodes: wire.SupportedOpcodes(),
		},
		conns: make(map[*fakeConn]struct{}),
	}
	store.brokers = append(store.brokers, b)
	store.mu.Unlock()
	for _, f := range configure {
		f(b)
	}
	b.wg.Add(1)
	go b.accept(listener)
	t.Cleanup(b.stop)
	return b
}

func (b *fakeBroker) address() string { return b.listener.Addr().String() }

// stop ends the broker as a crash would: connections are reset.
func (b *fakeBroker) stop() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.listener.Close()
	b.dropConns()
	b.wg.Wait()
}

// restart starts a broker that was stopped, at its old address.
func (b *fakeBroker) restart() {
	listener, err := net.Listen("tcp", b.address())
	require.NoError(b.t, err)
	b.mu.Lock()
	b.listener, b.closed = listener, false
	b.mu.Unlock()
	b.wg.Add(1)
	go b.accept(listener)
}

// connections counts the connections that were accepted.
func (b *fakeBroker) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.accepted
}

// dropConns resets all connections.
func (b *fakeBroker) dropConns() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.drop()
	}
}

// drop closes the connection with a reset, so that what is in its buffers is lost.
func (c *fakeConn) drop() {
	if tcp, ok := c.net.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.net.Close()
}

// setScript replaces the script, after a run of the old one has ended. What that
// has written may be read from now on.
func (b *fakeBroker) setScript(script func(*fakeRequest) bool) {
	b.scripting.Lock()
	defer b.scripting.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.script = script
}

// holdProduce keeps up to n batches unanswered, in the order in which they came.
func (b *fakeBroker) holdProduce(n int) chan *fakeRequest {
	held := make(chan *fakeRequest, n)
	b.setScript(produceScript(func(_ int, q *fakeRequest) bool {
		held <- q
		return true
	}))
	return held
}

// create makes a destination with its slots spread over the partitions.
func (b *fakeBroker) create(name string, kind Kind, partitions int) *fakeDestination {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.createLocked(name, kind, wire.Settings{Partitions: uint32(partitions), RetentionTimeMs: -1, RetentionBytes: -1})
}

func (b *fakeBroker) createLocked(name string, kind Kind, settings wire.Settings) *fakeDestination {
	d := &fakeDestination{info: wire.DestinationInfo{
		Name: name, Kind: kind, Version: 1, SlotVersion: 1, Settings: settings,
	}}
	d.info.ID[0] = byte(len(b.order) + 1)
	partitions := int(settings.Partitions)
	for n := range partitions {
		p := &fakePartition{
			destination: d, number: uint32(n), handle: uint32(len(b.handles) + 1),
			producers: make(map[int64]*fakeProducer), links: make(map[*fakeLink]struct{}), clock: 1_000_000,
			leader: b.brokers[n%len(b.brokers)].hello.NodeID,
		}
		d.partitions = append(d.partitions, p)
		b.handles = append(b.handles, p)
		d.info.Slots = append(d.info.Slots, wire.SlotRun{FirstSlot: uint16(n * wire.SlotCount / partitions), Partition: uint32(n)})
	}
	b.destinations[name] = d
	b.order = append(b.order, name)
	return d
}

// describe is the destination's metadata as of now.
func (d *fakeDestination) describe() wire.DestinationInfo {
	info := d.info
	info.Partitions = nil
	for _, p := range d.partitions {
		info.Partitions = append(info.Partitions, wire.PartitionInfo{
			Number: p.number, Leader: p.leader, Epoch: p.epoch(), State: wire.PartitionActive,
			StartOffset: p.start, NextOffset: p.next, Bytes: uint64(len(p.log)), Flags: p.flags, Weight: p.weight,
		})
		if p.leader == 0 {
			info.Partitions[p.number].State = wire.PartitionUnavailable
		}
	}
	return info
}

const fakeTerm = 7

// indexed reports whether batches need a record index.
func (d *fakeDestination) indexed() bool {
	return d.info.Settings.RecordIndex == wire.RecordIndexOn ||
		d.info.Settings.RecordIndex == wire.RecordIndexDefault && d.info.Kind == wire.Queue
}

func (b *fakeBroker) accept(listener net.Listener) {
	defer b.wg.Done()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		b.accepted++
		onConnect := b.onConnect
		c := &fakeConn{b: b, net: conn, links: make(map[uint32]*fakeLink)}
		if b.closed {
			conn.Close()
		}
		b.conns[c] = struct{}{}
		b.wg.Add(1)
		b.mu.Unlock()
		go func() {
			defer b.wg.Done()
			if onConnect == nil || !onConnect(conn) {
				c.serve()
			}
			conn.Close()
			b.mu.Lock()
			delete(b.conns, c)
			for _, l := range c.links {
				delete(l.partition.links, l)
			}
			b.mu.Unlock()
		}()
	}
}

// serve is one connection's goroutine.
func (c *fakeConn) serve() {
	r := bufio.NewReaderSize(c.net, 64<<10)
	c.reader = r
	preface := make([]byte, len(wire.Preface))
	if _, err := io.ReadFull(r, preface); err != nil {
		return
	}
	if string(preface) != wire.Preface {
		c.b.t.Errorf("preface %q", preface)
		return
	}
	head := make([]byte, wire.HeaderSize)
	for {
		if _, err := io.ReadFull(r, head); err != nil {
			return
		}
		h, err := wire.ParseHeader(head)
		if err != nil {
			c.b.t.Errorf("client sent a bad header: %v", err)
			return
		}
		body := make([]byte, h.BodySize())
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		request := &fakeRequest{b: c.b, conn: c, header: h, body: body}
		if h.Opcode == wire.OpProduce {
			if err := request.produce.Parse(body); err != nil {
				c.b.t.Errorf("client sent a bad PRODUCE: %v", err)
				return
			}
		}
		if !request.followScript() {
			request.handle()
		}
		if c.takeover != nil {
			c.takeover()
			return
		}
	}
}

// followScript reports whether the script has dealt with the request.
func (q *fakeRequest) followScript() bool {
	q.b.scripting.Lock()
	defer q.b.scripting.Unlock()
	q.b.mu.Lock()
	script := q.b.script
	q.b.mu.Unlock()
	return script != nil && script(q)
}

// reply answers the request.
func (q *fakeRequest) reply(m wire.Message) {
	q.conn.send(wire.Header{Opcode: q.header.Opcode, Flags: wire.FlagResponse, Version: q.header.Opcode.Version(), ID: q.header.ID}, m)
}

// refuse answers it with an error.
func (q *fakeRequest) refuse(code wire.ErrorCode) { q.redirect(code, 0, 0) }

// redirect answers it with an error that names a leader.
func (q *fakeRequest) redirect(code wire.ErrorCode, node, epoch uint32) {
	q.conn.send(wire.Header{Opcode: q.header.Opcode, Flags: wire.FlagResponse | wire.FlagError, Version: q.header.Opcode.Version(), ID: q.header.ID},
		&wire.ErrorBody{Code: code, Detail: "by the test", Next: wire.Offset(node)<<32 | wire.Offset(epoch)})
}

// elsewhere reports whether another broker leads the partition, and refuses the
// request then, unless the client expects that it is passed on.
func (q *fakeRequest) elsewhere(p *fakePartition) bool {
	switch {
	case p.leader == q.b.hello.NodeID:
		return false
	case p.leader == 0:
		q.refuse(wire.CodeUnavailable)
	case q.conn.features&wire.FeatureFollowsRedirects == 0:
		q.b.forwarded++
		return false
	default:
		q.b.refused++
		q.redirect(wire.CodeNotLeader, p.leader, p.epoch())
	}
	return true
}

func (c *fakeConn) send(h wire.Header, m wire.Message) {
	c.write.Lock()
	defer c.write.Unlock()
	c.net.Write(wire.AppendFrame(nil, h, m))
}

func (q *fakeRequest) parse(m wire.Message) bool {
	if err := m.Parse(q.body); err != nil {
		q.b.t.Errorf("client sent a bad %v: %v", q.header.Opcode, err)
		return false
	}
	return true
}

// handle does what a broker does.
func (q *fakeRequest) handle() {
	b := q.b
	b.mu.Lock()
	defer b.mu.Unlock()
	switch q.header.Opcode {
	case wire.OpHello:
		var m wire.HelloRequest
		if q.parse(&m) {
			q.conn.features = m.Features
		}
		hello := b.hello
		q.reply(&hello)
	case wire.OpPing:
		q.reply(&wire.PingResponse{})
	case wire.OpMetadata:
		q.metadata()
	case wire.OpCreate:
		var m wire.CreateRequest
		switch {
		case !q.parse(&m):
		case b.destinations[m.Name] != nil:
			q.refuse(wire.CodeAlreadyExists)
		default:
			info := b.createLocked(m.Name, m.Kind, m.Settings).describe()
			q.reply(&info)
		}
	case wire.OpAlter:
		var m wire.AlterRequest
		if q.parse(&m); b.destinations[m.Name] == nil {
			q.refuse(wire.CodeUnknownDestination)
			return
		}
		d := b.destinations[m.Name]
		d.info.Settings = d.info.Settings.Merge(m.Settings, m.Mask)
		info := d.describe()
		q.reply(&info)
	case wire.OpDelete:
		var m wire.DeleteRequest
		if q.parse(&m); b.destinations[m.Name] == nil {
			q.refuse(wire.CodeUnknownDestination)
			return
		}
		if b.destinations[m.Name].info.ID != m.ID {
			q.refuse(wire.CodeRefused)
			return
		}
		delete(b.destinations, m.Name)
		q.reply(&wire.DeleteResponse{})
	case wire.OpInitProducer:
		var m wire.InitProducerRequest
		q.parse(&m)
		r, ok := b.names[m.Name]
		if m.Renews && (m.Name == "" || m.Holder != b.holders[m.Name]) {
			q.refuse(wire.CodeFenced)
			return
		}
		b.holders[m.Name] = m.Holder
		if !ok || m.Name == "" {
			b.nextProducer++
			r = wire.InitProducerResponse{ProducerID: b.nextProducer}
		} else {
			r.Epoch++
		}
		b.names[m.Name] = r
		q.reply(&r)
	case wire.OpOpenPartition:
		var m wire.OpenPartitionRequest
		q.parse(&m)
		d := b.destinations[m.Destination]
		if d == nil || int(m.Partition) >= len(d.partitions) {
			q.refuse(wire.CodeUnknownDestination)
			return
		}
		p := d.partitions[m.Partition]
		if q.elsewhere(p) {
			return
		}
		q.reply(&wire.OpenPartitionResponse{
			Handle: p.handle, DestinationID: d.info.ID, Epoch: p.epoch(), StartOffset: p.start, NextOffset: p.next,
			SlotVersion: d.info.SlotVersion, RecordIndex: d.indexed(), MaxRecordBytes: wire.DefaultMaxRecordBytes,
			Incarnation: b.incarnation + 1,
		})
	case wire.OpProduce:
		b.produced++
		if h := q.produce.Handle; h != 0 && int(h) <= len(b.handles) && q.produce.Acks != wire.AcksNone && q.elsewhere(b.handles[h-1]) {
			return
		}
		q.answerProduce(q.applyLocked())
	case wire.OpListOffsets:
		q.listOffsets()
	case wire.OpLinkOpen:
		q.linkOpen()
	case wire.OpLinkCredit:
		var m wire.LinkCredit
		q.parse(&m)
		if l := q.conn.links[q.header.ID]; l != nil {
			l.credit += int(m.Credit)
			l.granted += int(m.Credit)
			l.pump()
		}
	case wire.OpLinkClose:
		if l := q.conn.links[q.header.ID]; l != nil {
			delete(q.conn.links, l.id)
			delete(l.partition.links, l)
			q.conn.send(wire.Header{Opcode: wire.OpLinkClosed, Version: 1, ID: l.id}, &wire.LinkClosed{})
		}
	case wire.OpReportDamage:
		var m wire.ReportDamage
		q.parse(&m)
		b.reports = append(b.reports, m)
	default:
		b.t.Errorf("client sent %v", q.header.Opcode)
	}
}

// fakePage is how many destinations the fake broker puts into one answer.
const fakePage = 3

func (q *fakeRequest) metadata() {
	var m wire.MetadataRequest
	q.parse(&m)
	names := m.Names
	if m.Scope == wire.MetadataAll {
		names = slices.Clone(q.b.order)
	}
	slices.Sort(names)
	response := wire.MetadataResponse{Version: q.b.version}
	for _, b := range q.b.brokers {
		response.Nodes = append(response.Nodes, wire.Node{ID: b.hello.NodeID, Address: b.address(), Alive: !b.closed, Rack: b.rack, Role: b.role})
	}
	for _, name := range names {
		d := q.b.destinations[name]
		if d == nil || name <= m.After {
			continue
		}
		if n := len(response.Destinations); n == fakePage {
			response.Next = response.Destinations[n-1].Name
			break
		}
		response.Destinations = append(response.Destinations, d.describe())
	}
	q.reply(&response)
}

func (q *fakeRequest) listOffsets() {
	var m wire.ListOffsetsRequest
	q.parse(&m)
	p := q.b.handles[m.Handle-1]
	if q.elsewhere(p) {
		return
	}
	offset := p.next
	switch m.Kind {
	case wire.OffsetEarliest:
		offset = p.start
	case wire.OffsetAtTime:
		for i := len(p.frames) - 1; i >= 0 && p.frames[i].timeMs >= m.TimeMs; i-- {
			offset = p.frames[i].base
		}
	}
	q.reply(&wire.ListOffsetsResponse{Offset: offset, Epoch: p.epoch()})
}

func (q *fakeRequest) linkOpen() {
	var m wire.LinkOpenRequest
	q.parse(&m)
	p := q.b.handles[m.Handle-1]
	if q.elsewhere(p) {
		return
	}
	if m.Offset < p.start || m.Offset > p.next {
		q.refuse(wire.CodeOutOfRange)
		return
	}
	q.conn.last++
	l := &fakeLink{conn: q.conn, id: q.conn.last, partition: p, position: len(p.log), credit: int(m.Credit), granted: int(m.Credit)}
	for _, f := range p.frames {
		if f.next > m.Offset {
			l.position = f.position
			break
		}
	}
	q.conn.links[l.id] = l
	p.links[l] = struct{}{}
	q.reply(&wire.LinkOpenResponse{Link: l.id, StartOffset: p.start, NextOffset: p.next})
	l.pump()
}

// pump sends what the credit allows.
func (l *fakeLink) pump() {
	for l.position < len(l.partition.log) && l.credit > 0 {
		n := min(len(l.partition.log)-l.position, l.credit, l.conn.b.piece)
		l.conn.send(wire.Header{Opcode: wire.OpDeliver, Version: 1, ID: l.id},
			&wire.Deliver{NextOffset: l.partition.next, Stream: l.partition.log[l.position : l.position+n]})
		l.position += n
		l.credit -= n
		l.sent += n
		l.atEnd = false
	}
	if l.position == len(l.partition.log) && !l.atEnd {
		l.atEnd = true
		l.conn.send(wire.Header{Opcode: wire.OpDeliver, Version: 1, ID: l.id}, &wire.Deliver{NextOffset: l.partition.next})
	}
}

// sequence is that of the batch of a PRODUCE.
func (q *fakeRequest) sequence() int32 {
	info, err := wire.ParseBatch(q.produce.Batch)
	if err != nil {
		q.b.t.Errorf("client sent a bad batch: %v", err)
	}
	return info.BaseSequence
}

// apply appends the batch of a PRODUCE, or recognises it.
func (q *fakeRequest) apply() (wire.Receipt, wire.ErrorCode) {
	q.b.mu.Lock()
	defer q.b.mu.Unlock()
	return q.applyLocked()
}

func (q *fakeRequest) answerProduce(r wire.Receipt, code wire.ErrorCode) {
	switch {
	case q.produce.Acks == wire.AcksNone:
	case code != wire.CodeOK:
		q.refuse(code)
	default:
		q.reply(&r)
	}
}

func (q *fakeRequest) applyLocked() (wire.Receipt, wire.ErrorCode) {
	m := &q.produce
	if m.Handle == 0 || int(m.Handle) > len(q.b.handles) {
		return wire.Receipt{}, wire.CodeUnknownHandle
	}
	p := q.b.handles[m.Handle-1]
	info, err := wire.ValidateBatch(m.Batch, m.Index, wire.BatchLimits{RequireIndex: p.destination.indexed(), VerifyIndexChecksums: true})
	if err != nil {
		q.b.t.Errorf("client sent a bad batch: %v", err)
		return wire.Receipt{}, wire.CodeOf(err)
	}
	if m.Keyed {
		owner, _ := wire.SlotPartition(p.destination.info.Slots, m.Slot)
		if m.SlotVersion != p.destination.info.SlotVersion || owner != p.number {
			return wire.Receipt{}, wire.CodeWrongPartition
		}
	}
	var known *fakeProducer
	if info.ProducerID >= 0 {
		known = p.producers[info.ProducerID]
		switch {
		case known == nil && info.BaseSequence != 0:
			return wire.Receipt{}, wire.CodeUnknownProducer
		case known == nil || info.ProducerEpoch > known.epoch:
			known = &fakeProducer{epoch: info.ProducerEpoch, old: make(map[int32]wire.Receipt)}
			p.producers[info.ProducerID] = known
		case info.ProducerEpoch < known.epoch:
			return wire.Receipt{}, wire.CodeFenced
		}
		if r, ok := known.old[info.BaseSequence]; ok {
			r.Duplicate = true
			return r, wire.CodeOK
		}
		if info.BaseSequence != known.next {
			return wire.Receipt{}, wire.CodeOutOfSequence
		}
		known.next += int32(info.RecordCount)
	}
	r := wire.Receipt{Handle: m.Handle, BaseOffset: p.next, Epoch: p.epoch(), AppendTimeMs: p.clock, Replicas: 1, Synced: m.Acks == wire.AcksQuorum}
	if known != nil {
		known.old[info.BaseSequence] = r
	}
	p.batches = append(p.batches, info)
	p.append(m.Index, m.Batch, info.RecordCount)
	for l := range p.links {
		l.pump()
	}
	return r, wire.CodeOK
}

// append stores a batch as a frame of its own.
func (p *fakePartition) append(index, batch []byte, records uint32) {
	batch = append([]byte(nil), batch...)
	wire.PatchBatch(batch, p.next, int32(p.epoch()))
	p.frames = append(p.frames, fakeFrame{position: len(p.log), base: p.next, next: p.next + wire.Offset(records), timeMs: p.clock})
	p.appendFrame(wire.KindRecords, wire.AppendBodyBatch(nil, index, batch), records)
	p.next += wire.Offset(records)
	p.clock += 10
}

// appendFrame stores any frame.
func (p *fakePartition) appendFrame(kind wire.Kind, body []byte, records uint32) {
	p.index++
	h := wire.FrameHeader{
		Kind: kind, RecordCount: records, Term: wire.Term(p.epoch()), Index: p.index, BaseOffset: p.next, AppendTimeMs: p.clock,
		BodyLength: uint32(len(body)), BodyCRC: wire.Checksum(body), PrevCRC: p.prev, Local: 0xabcdef,
	}
	frame := make([]byte, h.FrameSize())
	h.Encode(frame)
	copy(frame[wire.FrameHeaderSize:], body)
	p.prev = h.HeaderCRC
	p.log = append(p.log, frame...)
}

// values reads back what a partition holds.
func (b *fakeBroker) values(destination string, partition int) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var values []string
	for _, rec := range b.destinations[destination].partitions[partition].recordsLocked(b.t) {
		values = append(values, string(rec.Value))
	}
	return values
}

func (p *fakePartition) recordsLocked(t testing.TB) []wire.Record {
	var records []wire.Record
	for _, f := range p.frames {
		h, err := wire.ParseFrameHeader(p.log[f.position:])
		require.NoError(t, err)
		body := p.log[f.position+wire.FrameHeaderSize:][:h.BodyLength]
		b, _, err := wire.NextBodyBatch(body)
		require.NoError(t, err)
		info, err := wire.VerifyBatch(b.Batch)
		require.NoError(t, err)
		section := wire.Records(b.Batch)
		if info.Codec != wire.CodecNone {
			section, err = inflate.Records(nil, info.Codec, section)
			require.NoError(t, err)
		}
		var r wire.RecordReader
		var rec wire.Record
		for r.Reset(&info, section); r.Next(&rec); {
			records = append(records, rec)
		}
		require.NoError(t, r.Err())
	}
	return records
}

// batchInfos lists the batches of a partition as they were appended.
func (b *fakeBroker) batchInfos(destination string, partition int) []wire.BatchInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]wire.BatchInfo(nil), b.destinations[destination].partitions[partition].batches...)
}

// startCluster starts brokers with one store: node 1 is the first of them. Partitions
// are led by the nodes in turn.
func startCluster(t testing.TB, nodes int, configure ...func(*fakeBroker)) []*fakeBroker {
	t.Helper()
	store := newFakeStore()
	for range nodes {
		startNode(t, store, configure...)
	}
	return store.brokers
}

// elect makes a node the leader of a partition, 0: nobody. The one before closes its
// links. tell says whether clients hear of it at once.
func (b *fakeBroker) elect(d *fakeDestination, partition int, node uint32, tell bool) {
	b.mu.Lock()
	p := d.partitions[partition]
	p.leader = node
	if node != 0 {
		p.elections++
	}
	b.version++
	for l := range p.links {
		if node != 0 && l.conn.features&wire.FeatureFollowsRedirects != 0 && l.conn.b.hello.NodeID != node {
			delete(l.conn.links, l.id)
			delete(p.links, l)
			l.conn.send(wire.Header{Opcode: wire.OpLinkClosed, Version: 1, ID: l.id},
				&wire.LinkClosed{Code: wire.CodeNotLeader, Next: wire.Offset(node)<<32 | wire.Offset(p.epoch())})
		}
	}
	e := wire.Event{Kind: wire.EventTopologyChanged, Version: b.version}
	brokers := b.brokers
	b.mu.Unlock()
	for _, other := range brokers {
		if tell {
			other.sendEvent(e)
		}
	}
}

// sendEvent pushes an event to all sessions.
func (b *fakeBroker) sendEvent(e wire.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.send(wire.Header{Opcode: wire.OpEvent, Version: 1}, &e)
	}
}

// testContext ends before the test times out, so that a hang shows where it is.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// connect connects to the broker; the Conn is closed with the test, before the
// broker.
func connect(t testing.TB, b *fakeBroker, opts ...Option) *Conn {
	t.Helper()
	opts = append([]Option{WithReconnectBackoff(time.Millisecond, 10*time.Millisecond)}, opts...)
	c, err := Connect(testContext(t), b.address(), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func newTestProducer(t testing.TB, c *Conn, destination string, opts ...ProducerOption) *Producer {
	t.Helper()
	p, err := c.Producer(testContext(t), destination, opts...)
	require.NoError(t, err)
	return p
}

func newTestReader(t testing.TB, c *Conn, destination string, opts ...ReaderOption) *Reader {
	t.Helper()
	r, err := c.Reader(testContext(t), destination, opts...)
	require.NoError(t, err)
	return r
}

// readAll reads until io.EOF and returns the values.
func readAll(t testing.TB, r *Reader) []string {
	t.Helper()
	var values []string
	for rec, err := range r.Records(testContext(t)) {
		require.NoError(t, err)
		values = append(values, string(rec.Value))
	}
	return values
}

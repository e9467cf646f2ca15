package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// fakeBackend is a broker without disk or consensus: metadata in memory, and
// partitions that are a slice of bytes.
type fakeBackend struct {
	clusterID uuid.UUID
	node      uint32 // 0 means fakeNode
	metadata  *cluster.Metadata

	mu        sync.Mutex
	index     wire.Index
	replicas  map[replicaID]*fakeReplica
	elsewhere map[replicaID]route // partitions that other nodes lead
	producer  int64
	panicOn   string                 // name of a destination whose CREATE panics
	hold      bool                   // administration is never answered
	blocking  atomic.Pointer[func()] // called before each blocking read
}

type replicaID struct {
	destination uuid.UUID
	number      uint32
}

const fakeNode = 1

func newFakeBackend() *fakeBackend {
	b := &fakeBackend{clusterID: uuid.New(), metadata: cluster.NewMetadata(nil), replicas: make(map[replicaID]*fakeReplica), elsewhere: make(map[replicaID]route)}
	b.apply(cluster.Command{Register: &cluster.Register{ClusterID: b.clusterID, Node: fakeNode, Store: uuid.New(), Address: "127.0.0.1:7400"}})
	return b
}

// apply carries out a metadata command and keeps the partitions in step.
func (b *fakeBackend) apply(c cluster.Command) {
	b.mu.Lock()
	defer b.mu.Unlock()
	body, err := json.Marshal(&c)
	if err != nil {
		panic(err)
	}
	b.index++
	b.metadata.Apply(replication.Entry{Index: b.index, Term: 1, Kind: wire.KindControl, Body: body})
	seen := make(map[replicaID]bool)
	for _, d := range b.metadata.View().Destinations {
		for _, p := range d.Partitions {
			id := replicaID{d.ID, p.Number}
			seen[id] = true
			if b.replicas[id] == nil {
				b.replicas[id] = newFakeReplica(p.Number)
				b.replicas[id].blocking = &b.blocking
			}
		}
	}
	for id, r := range b.replicas {
		if !seen[id] {
			delete(b.replicas, id)
			r.wake()
		}
	}
}

// create makes a destination.
func (b *fakeBackend) create(kind wire.DestinationKind, name string, partitions uint32) {
	b.apply(createCommand(kind, name, partitions))
}

func createCommand(kind wire.DestinationKind, name string, partitions uint32) cluster.Command {
	ids := make([]uuid.UUID, partitions)
	for i := range ids {
		ids[i] = uuid.New()
	}
	return cluster.Command{Create: &cluster.Create{
		Name: name, Kind: kind, ID: uuid.New(), PartitionIDs: ids, Node: fakeNode,
		Settings: wire.Settings{Partitions: partitions, RetentionTimeMs: wire.Unlimited, RetentionBytes: wire.Unlimited},
	}}
}

// replica finds a partition by name.
func (b *fakeBackend) replica(name string, number uint32) *fakeReplica {
	d, ok := b.View().Destination(name)
	if !ok {
		panic("no destination " + name)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.replicas[replicaID{d.ID, number}]
}

func (b *fakeBackend) View() *cluster.View { return b.metadata.View() }

func (b *fakeBackend) Partition(destination [16]byte, number uint32) (replica, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.replicas[replicaID{destination, number}]; r != nil {
		return r, nil
	}
	return nil, wire.Errorf(wire.CodeUnavailable, "no such partition")
}

func (b *fakeBackend) Route(destination [16]byte, number uint32) (route, error) {
	b.mu.Lock()
	elsewhere := b.elsewhere[replicaID{destination, number}]
	b.mu.Unlock()
	if elsewhere != (route{}) {
		return elsewhere, nil
	}
	r, err := b.Partition(destination, number)
	return route{local: r, node: fakeNode, epoch: 1}, err
}

// lead makes another node lead a partition, or this one again: node 0.
func (b *fakeBackend) lead(name string, number, node, epoch uint32) {
	d, _ := b.View().Destination(name)
	b.mu.Lock()
	defer b.mu.Unlock()
	id := replicaID{d.ID, number}
	if delete(b.elsewhere, id); node != 0 {
		b.elsewhere[id] = route{node: node, epoch: epoch}
	}
}

func (b *fakeBackend) Admin(request wire.Message, reply func(wire.Message, error)) {
	b.mu.Lock()
	if b.hold {
		b.mu.Unlock()
		return
	}
	panicOn := b.panicOn
	b.mu.Unlock()
	if c, ok := request.(*wire.CreateRequest); ok && c.Name == panicOn {
		panic("a bug in the administration")
	}
	go b.admin(request, reply)
}

func (b *fakeBackend) admin(request wire.Message, reply func(wire.Message, error)) {
	switch m := request.(type) {
	case *wire.CreateRequest:
		if _, exists := b.View().Destination(m.Name); exists {
			reply(nil, wire.Errorf(wire.CodeAlreadyExists, "destination %q exists", m.Name))
			return
		}
		b.create(m.Kind, m.Name, max(m.Settings.Partitions, 1))
		d, _ := b.View().Destination(m.Name)
		info := b.Describe(d)
		reply(&info, nil)
	case *wire.GroupAdminRequest:
		reply(&wire.GroupJSON{}, nil)
	case *wire.DeleteRequest:
		if _, exists := b.View().Destination(m.Name); !exists {
			reply(nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", m.Name))
			return
		}
		b.apply(cluster.Command{Delete: &cluster.Delete{Name: m.Name, Kind: m.Kind, ID: m.ID}})
		reply(&wire.DeleteResponse{}, nil)
	case *wire.JoinRequest, *wire.NodeAdminRequest, *wire.PartitionAdminRequest, *wire.PartitionRecoverRequest, *wire.ClusterStatusRequest, *wire.AliasRequest:
		reply(&wire.Empty{}, nil)
	case *wire.AlterRequest:
		d, _ := b.View().Destination(m.Name)
		info := b.Describe(d)
		reply(&info, nil)
	case *wire.InitProducerRequest:
		b.mu.Lock()
		b.producer++
		id := b.producer
		b.mu.Unlock()
		reply(&wire.InitProducerResponse{ProducerID: id}, nil)
	default:
		reply(nil, errors.New("not faked"))
	}
}

func (b *fakeBackend) Describe(d *cluster.Destination) wire.DestinationInfo {
	info := wire.DestinationInfo{Name: d.Name, ID: d.ID, Kind: d.Kind, Settings: d.Settings, SlotVersion: d.SlotVersion, Slots: d.Slots}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range d.Partitions {
		info.Partitions = append(info.Partitions, b.replicas[replicaID{d.ID, p.Number}].info())
	}
	return info
}

func (b *fakeBackend) Alive(uint32) bool { return true }

func (b *fakeBackend) Info() serverInfo {
	return serverInfo{ClusterID: b.clusterID.String(), NodeID: max(b.node, fakeNode), Version: "test"}
}

// fakeReplica appends in the callers' goroutines and keeps its log in memory.
type fakeReplica struct {
	verified batchHeaders
	number   uint32
	owner    sync.Mutex // held for a turn

	mu      sync.Mutex
	mailbox []partition.Append
	hold    bool // appends wait for release
	full    bool // the mailbox refuses
	next    wire.Offset
	start   wire.Offset
	frames  []byte
	bases   []int // position of the frame that holds each offset
	parked  map[waiter]struct{}
	state   wire.PartitionState
	leading bool
	locate  chan struct{} // if set, Locate waits until it is closed
	cold    map[int]bool  // positions that must be populated first
	block   int           // at which the disk returns an error, 0: none
	unmap   bool          // View fails as if mmap had
	reading func()        // if set, called once at the next View or ReadAt
	inline  int           // turns taken inline
	handed  int
	mark    *log.Watermark
	reports []wire.Offset
	inputs  []partition.Input
	damage  *log.DamagedError // what View answers

	blocking *atomic.Pointer[func()] // of the backend
}

func newFakeReplica(number uint32) *fakeReplica {
	return &fakeReplica{
		number: number, parked: make(map[waiter]struct{}), state: wire.PartitionActive, leading: true,
		cold: make(map[int]bool), mark: &log.Watermark{},
	}
}

func (r *fakeReplica) Append(a partition.Append) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full {
		return partition.ErrMailboxFull
	}
	a.Batch, a.Index = append([]byte(nil), a.Batch...), append([]byte(nil), a.Index...)
	r.mailbox = append(r.mailbox, a)
	return nil
}

// Group notes what links bring. What it does with it the test says.
func (r *fakeReplica) Group(in partition.Input) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full && in.Kind != partition.InputGone {
		return partition.ErrMailboxFull
	}
	r.inputs = append(r.inputs, in)
	return nil
}

func (r *fakeReplica) Kick(inline bool) {
	r.mu.Lock()
	hold := r.hold
	if inline {
		r.inline++
	} else {
		r.handed++
	}
	r.mu.Unlock()
	switch {
	case hold:
	case inline:
		r.turn()
	default:
		go r.turn()
	}
}

// turn appends what waits.
func (r *fakeReplica) turn() {
	r.owner.Lock()
	defer r.owner.Unlock()
	r.mu.Lock()
	taken := r.mailbox
	r.mailbox = nil
	receipts := make([]wire.Receipt, len(taken))
	for i, a := range taken {
		receipts[i] = wire.Receipt{BaseOffset: r.next, Epoch: 1, Replicas: 1, AppendTimeMs: 1}
		wire.PatchBatch(a.Batch, r.next, 1)
		r.appendFrame(wire.AppendBodyBatch(nil, a.Index, a.Batch), a.Info.RecordCount)
	}
	r.mark = &log.Watermark{Next: r.next, Index: wire.Index(len(r.bases)), Position: log.Position{Segment: 1, Byte: int64(len(r.frames))}}
	r.mu.Unlock()
	for i, a := range taken {
		if a.Acks != wire.AcksNone {
			a.Receiver.Appended(a.Tag, receipts[i], wire.CodeOK)
		}
	}
	r.wake()
}

func (r *fakeReplica) appendFrame(body []byte, records uint32) {
	h := wire.FrameHeader{
		Kind: wire.KindRecords, RecordCount: records, Term: 1, Index: wire.Index(r.next + 1), BaseOffset: r.next,
		BodyLength: uint32(len(body)), BodyCRC: wire.Checksum(body),
	}
	at := len(r.frames)
	r.frames = append(r.frames, make([]byte, h.FrameSize())...)
	h.Encode(r.frames[at:])
	copy(r.frames[at+wire.FrameHeaderSize:], body)
	for range records {
		r.bases = append(r.bases, at)
	}
	r.next += wire.Offset(records)
}

// fill appends frames with bodies of the given size, one record each, without
// any client.
func (r *fakeReplica) fill(frames, bodyBytes int) {
	r.mu.Lock()
	for range frames {
		r.appendFrame(make([]byte, bodyBytes), 1)
	}
	r.mark = &log.Watermark{Next: r.next, Position: log.Position{Segment: 1, Byte: int64(len(r.frames))}}
	r.mu.Unlock()
	r.wake()
}

// release lets held appends go.
func (r *fakeReplica) release() {
	r.mu.Lock()
	r.hold = false
	r.mu.Unlock()
	r.turn()
}

// turns is how many turns were offered to the loop and to a worker.
func (r *fakeReplica) turns() (inline, handed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.inline, r.handed
}

// stored is everything in the log.
func (r *fakeReplica) stored() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.frames
}

// set changes fields under the lock.
func (r *fakeReplica) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *fakeReplica) wake() {
	r.mu.Lock()
	woken := r.parked
	r.parked = make(map[waiter]struct{})
	r.mu.Unlock()
	for w := range woken {
		w.Wake()
	}
}

func (r *fakeReplica) Log() partitionLog { return r }

func (r *fakeReplica) batchHeaders() *batchHeaders { return &r.verified }

func (r *fakeReplica) Park(w waiter) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mark.Position != w.position() || r.state == wire.PartitionFenced {
		return false
	}
	r.parked[w] = struct{}{}
	return true
}

func (r *fakeReplica) Unpark(w waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.parked, w)
}

func (r *fakeReplica) Blocking(f func()) {
	if r.blocking != nil {
		if called := r.blocking.Load(); called != nil {
			(*called)()
		}
	}
	go f()
}

func (r *fakeReplica) ReportDamage(o wire.Offset) { r.set(func() { r.reports = append(r.reports, o) }) }

func (r *fakeReplica) Confirm(then func(error)) { then(nil) }

func (r *fakeReplica) Epoch() uint32 { return 1 }

func (r *fakeReplica) Leading() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leading
}

func (r *fakeReplica) State() wire.PartitionState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *fakeReplica) info() wire.PartitionInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	return wire.PartitionInfo{
		Number: r.number, Leader: fakeNode, Epoch: 1, State: r.state, StartOffset: r.start, NextOffset: r.mark.Next, Bytes: uint64(len(r.frames)),
	}
}

func (r *fakeReplica) Watermark() *log.Watermark {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mark
}

var errNoMap = errors.New("mmap: cannot allocate memory")

// meanwhile does what the test wants to happen just before something is read.
func (r *fakeReplica) meanwhile() {
	r.mu.Lock()
	f := r.reading
	r.reading = nil
	r.mu.Unlock()
	if f != nil {
		f()
	}
}

func (r *fakeReplica) View(p log.Position, maxBytes int) (*log.View, error) {
	r.meanwhile()
	r.mu.Lock()
	defer r.mu.Unlock()
	at, end := int(p.Byte), int(r.mark.Position.Byte)
	switch {
	case r.unmap:
		return nil, errNoMap
	case r.damage != nil:
		return nil, r.damage
	case r.cold[at], r.block > 0 && at <= r.block:
		return nil, log.ErrCold
	}
	n := min(end-at, maxBytes)
	v := &log.View{Bytes: n, Next: log.Position{Segment: 1, Byte: int64(at + n)}}
	for rest := r.frames[at : at+n]; len(rest) > 0; { // several slices, as in a log with control frames
		m := min(len(rest), 30<<10)
		v.Slices = append(v.Slices, rest[:m:m])
		rest = rest[m:]
	}
	return v, nil
}

func (r *fakeReplica) Populate(p log.Position, n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at := int64(r.block); at > 0 && p.Byte <= at && at < p.Byte+int64(n) {
		return syscall.EIO
	}
	delete(r.cold, int(p.Byte))
	return nil
}

func (r *fakeReplica) ReadAt(p log.Position, b []byte) (int, log.Position, error) {
	r.meanwhile()
	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.mark.Position.Byte
	if at := int64(r.block); at > 0 && p.Byte <= at {
		end = at
	}
	n := copy(b, r.frames[p.Byte:end])
	if n == 0 && end == int64(r.block) {
		return 0, p, syscall.EIO
	}
	return n, log.Position{Segment: 1, Byte: p.Byte + int64(n)}, nil
}

func (r *fakeReplica) Locate(o wire.Offset) (log.Position, wire.Offset, error) {
	r.mu.Lock()
	wait := r.locate
	r.mu.Unlock()
	if wait != nil {
		<-wait
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if o == r.mark.Next {
		return r.mark.Position, o, nil
	}
	if o < r.start || o > r.mark.Next {
		return log.Position{}, 0, &log.OutOfRangeError{Offset: o, Start: r.start, Next: r.mark.Next}
	}
	return log.Position{Segment: 1, Byte: int64(r.bases[o])}, o, nil
}

func (r *fakeReplica) LocateTime(int64) (wire.Offset, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.start, nil
}

// testNode is a session layer over a fake backend.
type testNode struct {
	t        testing.TB
	backend  *fakeBackend
	engine   *engine
	acceptor *acceptor
	address  string
	log      *lockedBuffer
	stopped  bool // by the test
}

// startNode runs a session layer on a loopback port until the test ends.
func startNode(t *testing.T, limits Limits, change ...func(*engineOptions)) *testNode {
	t.Helper()
	return startNodeOf(t, newFakeBackend(), limits, change...)
}

func startNodeOf(t testing.TB, backend *fakeBackend, limits Limits, change ...func(*engineOptions)) *testNode {
	t.Helper()
	n := &testNode{t: t, backend: backend, log: &lockedBuffer{}}
	o := engineOptions{
		Backend: n.backend, Dir: t.TempDir(), Loops: 1, Limits: limits,
		Logger: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	var err error
	n.engine, err = newEngine(o)
	require.NoError(t, err)
	require.NoError(t, n.engine.run())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n.address = listener.Addr().String()
	n.acceptor = newAcceptor(n.engine, listener)
	n.acceptor.run()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if !n.stopped {
			n.acceptor.stop()
			require.NoError(t, n.engine.stop(ctx))
		}
		require.Zero(t, n.engine.counters.sessions.Load(), "sessions are left")
		require.Zero(t, n.engine.counters.links.Load(), "links are left")
		require.Zero(t, n.engine.counters.upstreams.Load(), "connections to other nodes are left")
		require.Zero(t, n.engine.counters.inFlight.Load(), "requests are left")
		require.Zero(t, n.engine.counters.inbound.Load(), "unfinished frames are left")
		require.Zero(t, n.engine.counters.outbound.Load(), "replies are left")
		require.Zero(t, n.engine.counters.paused.Load(), "the gauge of paused sessions is off")
	})
	return n
}

// eventually waits until the condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !condition(); time.Sleep(time.Millisecond) { // for what has no event
		if time.Now().After(deadline) {
			require.FailNow(t, "did not happen", what)
		}
	}
}

// lockedBuffer collects log lines.
type lockedBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}

// rawClient speaks frames and nothing else.
type rawClient struct {
	t    testing.TB
	conn *net.TCPConn
	r    *bufio.Reader
	hold []rawFrame // read while waiting for another

	patience time.Duration // with the next frame
}

type rawFrame struct {
	wire.Header
	body []byte
}

// dialRaw connects and sends nothing.
func dialRaw(t testing.TB, address string) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	c := &rawClient{t: t, conn: conn.(*net.TCPConn), r: bufio.NewReaderSize(conn, 64<<10), patience: clientPatience}
	t.Cleanup(func() { conn.Close() })
	return c
}

// dialOpen connects and says HELLO.
func dialOpen(t testing.TB, address string) *rawClient {
	t.Helper()
	c := dialRaw(t, address)
	c.write([]byte(wire.Preface))
	c.send(wire.OpHello, 1, &wire.HelloRequest{MinVersion: 1, MaxVersion: 1, ClientName: t.Name()})
	f := c.read()
	require.Equal(t, wire.OpHello, f.Opcode)
	require.Equal(t, wire.FlagResponse, f.Flags)
	return c
}

func (c *rawClient) write(b []byte) {
	c.t.Helper()
	_, err := c.conn.Write(b)
	require.NoError(c.t, err)
}

func frameOf(op wire.Opcode, id uint32, m wire.Message) []byte {
	return wire.AppendFrame(nil, wire.Header{Opcode: op, Version: op.Version(), ID: id}, m)
}

func (c *rawClient) send(op wire.Opcode, id uint32, m wire.Message) {
	c.t.Helper()
	c.write(frameOf(op, id, m))
}

const clientPatience = 60 * time.Second

// tryRead reads the next frame.
func (c *rawClient) tryRead() (rawFrame, error) {
	if len(c.hold) > 0 {
		f := c.hold[0]
		c.hold = c.hold[1:]
		return f, nil
	}
	return c.receive()
}

func (c *rawClient) receive() (rawFrame, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(c.patience))
	var head [wire.HeaderSize]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return rawFrame{}, err
	}
	h, err := wire.ParseHeader(head[:])
	if err != nil {
		return rawFrame{}, err
	}
	f := rawFrame{Header: h, body: make([]byte, h.BodySize())}
	_, err = io.ReadFull(c.r, f.body)
	return f, err
}

func (c *rawClient) read() rawFrame {
	c.t.Helper()
	f, err := c.tryRead()
	require.NoError(c.t, err)
	return f
}

// answer reads the answer to a request, putting other frames aside.
func (c *rawClient) answer(id uint32) rawFrame {
	c.t.Helper()
	for i, f := range c.hold {
		if f.Flags&wire.FlagResponse != 0 && f.ID == id {
			c.hold = append(c.hold[:i], c.hold[i+1:]...)
			return f
		}
	}
	for {
		f, err := c.receive()
		require.NoError(c.t, err)
		if f.Flags&wire.FlagResponse != 0 && f.ID == id {
			return f
		}
		c.hold = append(c.hold, f)
	}
}

// ok parses a good answer.
func (c *rawClient) ok(f rawFrame, m wire.Message) {
	c.t.Helper()
	if f.Flags&wire.FlagError != 0 {
		require.FailNow(c.t, "request failed", "%v", f.failure())
	}
	require.NoError(c.t, m.Parse(f.body))
}

// failure is the error that a frame carries.
func (f rawFrame) failure() wire.ErrorBody {
	var body wire.ErrorBody
	if f.Flags&wire.FlagError == 0 {
		return body
	}
	if err := body.Parse(f.body); err != nil {
		body.Detail = err.Error()
	}
	return body
}

// code is the code of the error, CodeOK for a good answer.
func (f rawFrame) code() wire.ErrorCode { return f.failure().Code }

// closed expects the end of the connection: an end of stream or a reset.
func (c *rawClient) closed() error {
	c.t.Helper()
	f, err := c.tryRead()
	require.Error(c.t, err, "a frame came instead of the end: %v %v", f.Header, f.failure())
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		require.FailNow(c.t, "connection was not closed")
	}
	return err
}

// open opens a partition and returns its handle.
func (c *rawClient) open(name string, number uint32) uint32 {
	c.t.Helper()
	c.send(wire.OpOpenPartition, 1<<30, &wire.OpenPartitionRequest{Destination: name, Partition: number})
	var m wire.OpenPartitionResponse
	c.ok(c.answer(1<<30), &m)
	return m.Handle
}

// link opens a link and returns its ID.
func (c *rawClient) link(handle uint32, offset wire.Offset, credit uint32) uint32 {
	c.t.Helper()
	c.send(wire.OpLinkOpen, 1<<30+1, &wire.LinkOpenRequest{Handle: handle, Offset: offset, Credit: credit})
	var m wire.LinkOpenResponse
	c.ok(c.answer(1<<30+1), &m)
	return m.Link
}

// testBatch is an uncompressed batch of records with the given values, and its
// record index.
func testBatch(t testing.TB, values ...string) (batch, index []byte) {
	t.Helper()
	var b wire.BatchBuilder
	b.Reset(true)
	for _, v := range values {
		require.True(t, b.Append(1_000, 0, nil, []byte(v), nil, 0))
	}
	batch, index = b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
	return append([]byte(nil), batch...), append([]byte(nil), index...)
}

func newDiscardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

// discardBackend answers appends at once and keeps nothing. What may block is never done.
type discardBackend struct{ *fakeBackend }

func (b *discardBackend) Route(destination [16]byte, number uint32) (route, error) {
	r, err := b.fakeBackend.Route(destination, number)
	if err != nil {
		return r, err
	}
	r.local = &discardReplica{replica: r.local}
	return r, nil
}

type discardReplica struct {
	replica
	waiting []partition.Append
}

func (r *discardReplica) Append(a partition.Append) error {
	r.waiting = append(r.waiting, a)
	return nil
}

func (r *discardReplica) Blocking(func()) {}

func (r *discardReplica) Kick(bool) {
	for _, a := range r.waiting {
		a.Receiver.Appended(a.Tag, wire.Receipt{}, wire.CodeOK)
	}
	r.waiting = r.waiting[:0]
}

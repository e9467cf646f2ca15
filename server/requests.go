package server

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/wire"
)

// handle is a partition that a session has opened.
type handle struct {
	number  uint32
	key     handleKey
	replica replica       // of this node, nil while another leads
	node    uint32        // that leads
	routes  uint64        // the engine's, as of which it does
	view    *cluster.View // destination is as of this one
	dest    *cluster.Destination
	limits  wire.BatchLimits
	// appended is what the replica got from this session in this callback, in bytes.
	// While it is not 0 the handle is in session.touched.
	appended int
	// orphaned says that nobody led the partition at the last look, toldOf that the client
	// was told.
	orphaned, toldOf bool
}

// kick gives the replica's owner its turn if it has got something.
func (t *handle) kick(l *loop) {
	if t.appended > 0 {
		l.kick(t.replica, t.appended)
		t.appended = 0
	}
}

type handleKey struct {
	destination uuid.UUID
	partition   uint32
}

// request handles one request. body is valid until it returns.
func (s *session) request(h wire.Header, body []byte) {
	if h.Opcode.Known() {
		s.engine.counters.requests[h.Opcode].Add(1)
	} else {
		s.engine.counters.requests[0].Add(1)
	}
	if s.phase == phaseHello {
		s.hello(h, body)
		return
	}
	if h.Opcode.Known() && (h.Version < h.Opcode.Oldest() || h.Version > h.Opcode.Version()) {
		s.refuse(h.Opcode, h.ID, wire.Errorf(wire.CodeUnsupported, "%v version %d; this broker understands version %s; upgrade %s",
			h.Opcode, h.Version, understood(h.Opcode), olderOf(h.Version, h.Opcode.Version())))
		return
	}
	var err error
	switch h.Opcode {
	case wire.OpProduce:
		err = s.produce(h, body)
	case wire.OpLinkCredit:
		err = s.linkCredit(h, body)
	case wire.OpGroupOutcome, wire.OpGroupCapacity, wire.OpGroupHeartbeat, wire.OpGroupLeave:
		err = s.groupFrame(h, body)
	case wire.OpPing:
		err = s.ping(h, body)
	case wire.OpOpenPartition:
		err = s.openPartition(h, body)
	case wire.OpListOffsets:
		err = s.listOffsets(h, body)
	case wire.OpLinkOpen:
		err = s.linkOpen(h, body)
	case wire.OpGroupAttach:
		err = s.groupAttach(h, body)
	case wire.OpGroupBind:
		err = s.groupBind(h, body)
	case wire.OpGroupOrder:
		err = s.groupOrder(h, body)
	case wire.OpTempSend:
		err = s.tempSend(h, body)
	case wire.OpTempTaken:
		err = s.tempTaken(h, body)
	case wire.OpTempOpen:
		err = s.tempOpen(h, body)
	case wire.OpReportDamage:
		err = s.reportDamage(h, body)
	case wire.OpLinkClose:
		err = s.linkClose(h, body)
	case wire.OpMetadata:
		err = s.metadata(h, body)
	case wire.OpCreate:
		err = s.create(h, body)
	case wire.OpAlter:
		err = s.alter(h, body)
	case wire.OpDelete:
		err = s.delete(h, body)
	case wire.OpInitProducer:
		err = s.initProducer(h, body)
	case wire.OpJoin:
		err = s.administer(h, body, &wire.JoinRequest{})
	case wire.OpNodeAdmin:
		err = s.administer(h, body, &wire.NodeAdminRequest{})
	case wire.OpClusterStatus:
		err = s.administer(h, body, &wire.ClusterStatusRequest{})
	case wire.OpPartAdmin:
		err = s.administer(h, body, &wire.PartitionAdminRequest{})
	case wire.OpPartRecover:
		err = s.administer(h, body, &wire.PartitionRecoverRequest{})
	case wire.OpAlias:
		err = s.administer(h, body, &wire.AliasRequest{})
	case wire.OpGroupAdmin:
		err = s.administer(h, body, &wire.GroupAdminRequest{})
	case wire.OpHello:
		err = wire.Errorf(wire.CodeMalformed, "HELLO twice")
	default: // DELIVER and the like, which only brokers send, among them
		s.refuse(h.Opcode, h.ID, wire.Errorf(wire.CodeUnsupported, "no request has opcode %d", h.Opcode))
	}
	if err != nil {
		// The message itself cannot be read: nothing after it can be trusted.
		s.fail(h.Opcode, h.ID, err)
	}
}

// A request method returns an error only if the message is malformed: that ends
// the session. Everything else is answered.

// free reports whether a request's correlation ID is not in flight, and answers
// DUPLICATE otherwise.
func (s *session) free(h wire.Header) bool {
	if s.out.inFlight(h.ID) {
		s.refuse(h.Opcode, h.ID, wire.Errorf(wire.CodeDuplicate, "a request with the ID %d is in flight", h.ID))
		return false
	}
	return true
}

// begin registers a request whose answer comes later.
func (s *session) begin(h wire.Header, r inFlight) bool {
	r.opcode = h.Opcode
	ok, full := s.out.begin(&s.engine.limits, h.ID, r)
	if !ok {
		s.refuse(h.Opcode, h.ID, wire.Errorf(wire.CodeDuplicate, "a request with the ID %d is in flight", h.ID))
		return false
	}
	s.full = s.full || full
	s.engine.counters.inFlight.Add(1)
	return true
}

func (s *session) hello(h wire.Header, body []byte) {
	if h.Opcode != wire.OpHello {
		s.fail(h.Opcode, h.ID, wire.Errorf(wire.CodeMalformed, "the first request is %v (%d), not HELLO", h.Opcode, uint8(h.Opcode)))
		return
	}
	if h.Version != h.Opcode.Version() {
		s.fail(h.Opcode, h.ID, wire.Errorf(wire.CodeVersion, "HELLO version %d; this broker understands version %d; upgrade %s",
			h.Version, h.Opcode.Version(), olderOf(h.Version, h.Opcode.Version())))
		return
	}
	if s.forwarded {
		s.helloForwarded(h, body)
		return
	}
	var m wire.HelloRequest
	if err := m.Parse(body); err != nil {
		s.fail(h.Opcode, h.ID, err)
		return
	}
	s.greet(h, &m)
}

// understood is the range of versions of an opcode's body.
func understood(o wire.Opcode) string {
	if o.Oldest() < o.Version() {
		return fmt.Sprintf("%d to %d", o.Oldest(), o.Version())
	}
	return fmt.Sprint(o.Version())
}

// olderOf says who has to be upgraded, by the versions that both know.
func olderOf(client, broker uint16) string {
	if client < broker {
		return "the client"
	}
	return "the broker"
}

// greet answers HELLO.
func (s *session) greet(h wire.Header, m *wire.HelloRequest) {
	if m.MinVersion > wire.MaxProtocolVersion || m.MaxVersion < wire.MinProtocolVersion || m.MinVersion > m.MaxVersion {
		s.fail(h.Opcode, h.ID, wire.Errorf(wire.CodeVersion, "the client speaks versions %d to %d, this broker %d to %d; upgrade %s",
			m.MinVersion, m.MaxVersion, wire.MinProtocolVersion, wire.MaxProtocolVersion, olderOf(m.MaxVersion, wire.MaxProtocolVersion)))
		return
	}
	info := s.engine.backend.Info()
	if m.ClusterID != "" && m.ClusterID != info.ClusterID {
		s.fail(h.Opcode, h.ID, wire.Errorf(wire.CodeClusterMismatch, "this broker belongs to cluster %s, not %.64q", info.ClusterID, m.ClusterID))
		return
	}
	s.name = m.ClientName[:min(len(m.ClientName), wire.MaxNameBytes)]
	s.features = m.Features & (wire.FeatureFollowsRedirects | wire.FeatureTopologyEvents)
	s.phase = phaseOpen
	s.out.mu.Lock()
	s.out.requests = make(map[uint32]inFlight)
	s.out.mu.Unlock()
	l := &s.engine.limits
	s.loop.wheel.schedule(&s.timer, s.loop.now+l.IdleTimeout)
	s.reply(h.Opcode, h.ID, &wire.HelloResponse{
		Version: min(m.MaxVersion, wire.MaxProtocolVersion), Features: s.features, ClusterID: info.ClusterID, NodeID: info.NodeID, ServerVersion: info.Version,
		MaxFrameBytes: wire.MaxFrameBytes, MaxRecordBytes: wire.MaxRecordBytes,
		MaxInFlightRequests: uint32(l.InFlightRequests), MaxInFlightBytes: uint32(l.InFlightBytes),
		IdleTimeoutMs: uint32(l.IdleTimeout.Milliseconds()), Opcodes: wire.SupportedOpcodes(),
	})
}

func (s *session) ping(h wire.Header, body []byte) error {
	var m wire.PingRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	if s.free(h) {
		s.reply(h.Opcode, h.ID, &wire.PingResponse{})
	}
	return nil
}

func (s *session) metadata(h wire.Header, body []byte) error {
	if !s.free(h) {
		return nil
	}
	var m wire.MetadataRequest
	if err := m.Parse(body); errors.Is(err, wire.CodeTooMany) {
		s.refuse(h.Opcode, h.ID, err)
		return nil
	} else if err != nil {
		return err
	}
	view := s.engine.backend.View()
	response := wire.MetadataResponse{Version: uint64(view.Epoch)}
	for i := range view.Nodes {
		response.Nodes = append(response.Nodes, describeNode(&view.Nodes[i], s.engine.backend.Alive(view.Nodes[i].ID)))
	}
	s.describePage(&response, view, &m)
	s.replyVersion(h, &response)
	return nil
}

// describeNode is a member as METADATA shows it.
func describeNode(n *cluster.Node, alive bool) wire.Node {
	info := wire.Node{ID: n.ID, Address: n.Address, Rack: n.Rack, Alive: alive, Level: uint16(n.MaxLevel)}
	if !n.Broker() {
		info.Role = wire.RoleGateway
	}
	switch n.State {
	case cluster.NodeDraining:
		info.State = wire.NodeDraining
	case cluster.NodeLeaving:
		info.State = wire.NodeLeaving
	}
	return info
}

// wanted is what a METADATA request asks for behind the page before, by name, each once: of
// an alias the destination, too.
func wanted(view *cluster.View, m *wire.MetadataRequest) ([]*cluster.Destination, []*cluster.Alias) {
	all, aliases := view.Destinations, view.Aliases
	if m.Scope != wire.MetadataAll {
		all, aliases = nil, nil
		names := slices.Clone(m.Names)
		for _, name := range m.Names {
			if a, ok := view.Alias(name); ok {
				names = append(names, a.Destination)
			}
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if d, ok := view.Destination(name); ok {
				all = append(all, d)
			} else if a, ok := view.Alias(name); ok {
				aliases = append(aliases, a)
			}
		}
	}
	return behind(all, m.After, func(d *cluster.Destination) string { return d.Name }),
		behind(aliases, m.After, func(a *cluster.Alias) string { return a.Name })
}

// behind is the rest of a list in the order of names.
func behind[T any](list []T, after string, name func(T) string) []T {
	from, found := slices.BinarySearchFunc(list, after, func(t T, after string) int { return strings.Compare(name(t), after) })
	if found {
		from++
	}
	return list[from:]
}

// describePage puts what is wanted into the answer until it is a page long: so much
// a request costs the loop at most, however many there are.
func (s *session) describePage(response *wire.MetadataResponse, view *cluster.View, m *wire.MetadataRequest) {
	destinations, aliases := wanted(view, m)
	last := ""
	for size := 0; len(destinations)+len(aliases) > 0; {
		if size >= wire.MetadataPageBytes {
			response.Next = last
			return
		}
		if len(aliases) > 0 && (len(destinations) == 0 || aliases[0].Name < destinations[0].Name) {
			a := wire.Alias{Name: aliases[0].Name, Destination: aliases[0].Destination, Partitions: aliases[0].Partitions}
			response.Aliases = append(response.Aliases, a)
			size, last, aliases = size+a.Size(), a.Name, aliases[1:]
			continue
		}
		info := s.engine.backend.Describe(destinations[0])
		response.Destinations = append(response.Destinations, info)
		size, last, destinations = size+info.Size(), info.Name, destinations[1:]
	}
}

func (s *session) create(h wire.Header, body []byte) error {
	var m wire.CreateRequest
	if err := wire.ParseMessage(&m, body, h.Version); err != nil {
		return err
	}
	if wire.IsTemporary(m.Name) {
		if s.free(h) {
			s.refuse(h.Opcode, h.ID, wire.Errorf(wire.CodeInvalidName, "%.64q is the name of a temporary queue: those come with a connection and are not created by name", m.Name))
		}
		return nil
	}
	s.admin(h, body, m.Name, &m)
	return nil
}

func (s *session) alter(h wire.Header, body []byte) error {
	var m wire.AlterRequest
	if err := wire.ParseMessage(&m, body, h.Version); err != nil {
		return err
	}
	s.admin(h, body, m.Name, &m)
	return nil
}

func (s *session) delete(h wire.Header, body []byte) error {
	var m wire.DeleteRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	s.admin(h, body, m.Name, &m)
	return nil
}

func (s *session) initProducer(h wire.Header, body []byte) error {
	var m wire.InitProducerRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	s.admin(h, body, m.Name, &m)
	return nil
}

// admin hands a request to the metadata. name may be empty only for a producer.
func (s *session) admin(h wire.Header, body []byte, name string, m wire.Message) {
	if !s.begin(h, inFlight{bytes: len(body), version: h.Version}) {
		return
	}
	if name != "" || h.Opcode != wire.OpInitProducer {
		if err := wire.ValidateName(name); err != nil {
			s.finish(h.ID, nil, err)
			return
		}
	}
	s.engine.backend.Admin(m, func(response wire.Message, err error) { s.finish(h.ID, response, err) })
}

// administer hands a request about the cluster itself to the metadata.
func (s *session) administer(h wire.Header, body []byte, m wire.Message) error {
	if err := m.Parse(body); err != nil {
		return err
	}
	if s.begin(h, inFlight{bytes: len(body)}) {
		s.engine.backend.Admin(m, func(response wire.Message, err error) { s.finish(h.ID, response, err) })
	}
	return nil
}

func (s *session) openPartition(h wire.Header, body []byte) error {
	var m wire.OpenPartitionRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	if !s.free(h) {
		return nil
	}
	handle, err := s.openHandle(m.Destination, m.Partition)
	if err != nil {
		s.refuse(h.Opcode, h.ID, err)
		return nil
	}
	if handle.replica == nil {
		if s.begin(h, inFlight{bytes: len(body)}) {
			s.forward(h, handle, body, true)
		}
		return nil
	}
	info := handle.replica.info()
	s.reply(h.Opcode, h.ID, &wire.OpenPartitionResponse{
		Handle: handle.number, DestinationID: handle.dest.ID, Epoch: info.Epoch,
		StartOffset: info.StartOffset, NextOffset: info.NextOffset, SlotVersion: handle.dest.SlotVersion,
		RecordIndex: handle.limits.RequireIndex, MaxRecordBytes: uint32(handle.limits.MaxRecordBytes),
		Incarnation: handle.dest.Partitions[m.Partition].Incarnation,
	})
	return nil
}

// openHandle finds or makes the handle of a partition.
func (s *session) openHandle(name string, number uint32) (*handle, error) {
	if err := wire.ValidateName(name); err != nil {
		return nil, err
	}
	view := s.engine.backend.View()
	d, ok := view.Destination(name)
	switch {
	case !ok && wire.IsTemporary(name):
		return nil, wire.Errorf(wire.CodeInvalidRequest, "%.64q is a temporary queue: it has no partitions; everybody sends to it with TEMPORARY_SEND, and who has created it receives", name)
	case !ok:
		if a, alias := view.Alias(name); alias {
			return nil, wire.Errorf(wire.CodeUnknownDestination, "%q is an alias of %q: a client opens that", name, a.Destination)
		}
		return nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", name)
	}
	if number >= uint32(len(d.Partitions)) {
		return nil, wire.Errorf(wire.CodeUnknownPartition, "%v %q has partitions 0 to %d, not %d", d.Kind, name, len(d.Partitions)-1, number)
	}
	routes := s.engine.routes.Load()
	r, err := s.route(d.ID, number)
	if err != nil {
		return nil, err
	}
	key := handleKey{d.ID, number}
	t := s.handleOf[key]
	if t == nil {
		if len(s.handles) >= s.engine.limits.Handles {
			return nil, wire.Errorf(wire.CodeTooMany, "%d partitions are open; one connection may open %d", len(s.handles), s.engine.limits.Handles)
		}
		t = &handle{number: uint32(len(s.handles)) + 1, key: key}
		s.handles = append(s.handles, t)
		if s.handleOf == nil {
			s.handleOf = make(map[handleKey]*handle)
		}
		s.handleOf[key] = t
	}
	t.kick(s.loop)
	t.bind(view, d, r, routes)
	return t, nil
}

// route is where requests of this session for a partition go. NOT_LEADER tells the
// client where it should go itself, or that nobody can.
func (s *session) route(destination [16]byte, number uint32) (route, error) {
	r, err := s.engine.backend.Route(destination, number)
	switch {
	case err != nil || r.local != nil:
	case r.node == 0 || s.features&wire.FeatureFollowsRedirects != 0:
		err = wire.NotLeader(r.node, r.epoch)
	case s.hops >= wire.MaxForwardHops:
		err = errCircle(s.hops)
	}
	return r, err
}

// bind notes what the metadata says about the destination, and who leads the partition.
func (t *handle) bind(view *cluster.View, d *cluster.Destination, r route, routes uint64) {
	t.view, t.dest, t.replica, t.node, t.routes = view, d, r.local, r.node, routes
	t.limits = limitsOf(d)
}

// limitsOf is what a destination takes.
func limitsOf(d *cluster.Destination) wire.BatchLimits {
	return wire.BatchLimits{
		MaxRecordBytes: cmp.Or(int(d.Settings.MaxRecordBytes), wire.DefaultMaxRecordBytes),
		RequireIndex: d.Settings.RecordIndex == wire.RecordIndexOn ||
			d.Settings.RecordIndex == wire.RecordIndexDefault && d.Kind == wire.Queue,
	}
}

// handle finds an open partition whose destination still exists.
func (s *session) handle(number uint32) (*handle, error) {
	if number == 0 || uint64(number) > uint64(len(s.handles)) {
		return nil, wire.Errorf(wire.CodeUnknownHandle, "handle %d is not open", number)
	}
	t := s.handles[number-1]
	if err := s.refresh(t); err != nil {
		return nil, err
	}
	return t, nil
}

// refresh brings a handle up to date with the metadata and the leaders, which costs
// two comparisons while nothing changes.
func (s *session) refresh(t *handle) error {
	view, routes := s.engine.backend.View(), s.engine.routes.Load()
	if view == t.view && routes == t.routes {
		return nil
	}
	d, ok := view.DestinationByID(t.key.destination)
	if !ok {
		return wire.Errorf(wire.CodeDestinationGone, "destination %q was deleted", t.dest.Name)
	}
	r, err := s.route(t.key.destination, t.key.partition)
	if err != nil {
		return err
	}
	t.kick(s.loop)
	t.bind(view, d, r, routes)
	return nil
}

func (s *session) produce(h wire.Header, body []byte) error {
	var m wire.ProduceRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	if !m.Acks.Valid() {
		return wire.Errorf(wire.CodeMalformed, "acks is %d", m.Acks)
	}
	t, err := s.handle(m.Handle)
	if err == nil && t.replica == nil {
		if m.Acks == wire.AcksNone || s.begin(h, inFlight{handle: m.Handle, bytes: len(body)}) {
			s.forward(h, t, body, m.Acks != wire.AcksNone)
		}
		return nil
	}
	var info wire.BatchInfo
	if err == nil {
		info, err = t.checkBatch(&m)
	}
	if m.Acks == wire.AcksNone {
		if err == nil {
			err = t.replica.Append(partition.Append{Batch: m.Batch, Index: m.Index, Info: info, Acks: m.Acks, Receiver: s})
		}
		if err != nil {
			s.engine.counters.unackedRefused.Add(1)
			s.engine.counters.countError(errorBody(err).Code)
			return nil
		}
		s.touch(t, len(m.Batch))
		return nil
	}
	if !s.begin(h, inFlight{handle: m.Handle, bytes: len(body)}) {
		return nil
	}
	if err == nil {
		err = t.replica.Append(partition.Append{
			Batch: m.Batch, Index: m.Index, Info: info, Acks: m.Acks, Receiver: s, Tag: uint64(h.ID),
		})
	}
	if err != nil {
		s.finish(h.ID, nil, err)
		return nil
	}
	s.touch(t, len(m.Batch))
	return nil
}

// touch notes that the partition's owner needs a turn once this read is parsed.
func (s *session) touch(t *handle, n int) {
	if t.appended == 0 {
		s.touched = append(s.touched, t)
	}
	t.appended += max(n, 1)
}

// checkBatch judges the batch of a produce request. It allocates only for an error.
func (t *handle) checkBatch(m *wire.ProduceRequest) (wire.BatchInfo, error) {
	if m.Keyed {
		owner, ok := wire.SlotPartition(t.dest.Slots, m.Slot)
		if !ok || m.SlotVersion != t.dest.SlotVersion || owner != t.key.partition {
			return wire.BatchInfo{}, wire.Errorf(wire.CodeWrongPartition, "slot %d of slot map %d is not of partition %d in slot map %d",
				m.Slot, m.SlotVersion, t.key.partition, t.dest.SlotVersion)
		}
	}
	info, err := wire.ValidateBatch(m.Batch, m.Index, t.limits)
	if err != nil {
		return info, err
	}
	// Only batches that reach a quorum are deduplicated (RULES R4).
	if m.Acks != wire.AcksQuorum && info.ProducerID >= 0 {
		return info, wire.Errorf(wire.CodeInvalidRequest, "a batch with acks=%v must not carry a producer ID", m.Acks)
	}
	// Brokers write dead letters, and not by sessions: a batch with the next sequence of such a
	// producer would have its next letter taken for a duplicate.
	if info.ProducerID >= wire.LetterProducers {
		return info, wire.Errorf(wire.CodeInvalidRequest, "producer ID %d is one by which brokers write dead letters: ask for one with INIT_PRODUCER", info.ProducerID)
	}
	return info, nil
}

func (s *session) listOffsets(h wire.Header, body []byte) error {
	var m wire.ListOffsetsRequest
	if err := m.Parse(body); err != nil {
		return err
	}
	if m.Kind > wire.OffsetAtTime {
		return wire.Errorf(wire.CodeMalformed, "kind of offset is %d", m.Kind)
	}
	if !s.free(h) {
		return nil
	}
	t, err := s.handle(m.Handle)
	if err != nil {
		s.refuse(h.Opcode, h.ID, err)
		return nil
	}
	if t.replica == nil {
		if s.begin(h, inFlight{bytes: len(body)}) {
			s.forward(h, t, body, true)
		}
		return nil
	}
	info := t.replica.info()
	switch m.Kind {
	case wire.OffsetEarliest:
		s.reply(h.Opcode, h.ID, &wire.ListOffsetsResponse{Offset: info.StartOffset, Epoch: info.Epoch})
	case wire.OffsetLatest:
		if !s.begin(h, inFlight{bytes: len(body)}) {
			return nil
		}
		r := t.replica
		r.Confirm(func(err error) {
			info := r.info()
			s.finish(h.ID, &wire.ListOffsetsResponse{Offset: info.NextOffset, Epoch: info.Epoch}, err)
		})
	case wire.OffsetAtTime:
		if !s.begin(h, inFlight{bytes: len(body)}) {
			return nil
		}
		records := t.replica.Log() // the handle is the loop's
		answer := &wire.ListOffsetsResponse{Epoch: info.Epoch}
		s.blocking(t.replica, func() (err error) {
			answer.Offset, err = records.LocateTime(m.TimeMs)
			return err
		}, func(err error) { s.finish(h.ID, answer, err) })
	}
	return nil
}

// errorBody is what a client is told about an error. The cause of one that has
// no code of its own stays here.
func errorBody(err error) wire.ErrorBody {
	var known *wire.Error
	if errors.As(err, &known) {
		return wire.ErrorBody{Code: known.Code, Detail: known.Detail, Next: known.Next}
	}
	var code wire.ErrorCode
	var gap *log.OutOfRangeError
	var erased *log.ErasedError
	switch {
	case errors.As(err, &code):
		return wire.ErrorBody{Code: code}
	case errors.Is(err, partition.ErrMailboxFull):
		return wire.ErrorBody{Code: wire.CodeMailboxFull}
	case errors.Is(err, partition.ErrMemoryFull):
		return wire.ErrorBody{Code: wire.CodeMailboxFull,
			Detail: "the node holds as much of records on their way into logs as it may, or this partition more than its share: slow down, or raise --pending-bytes of the broker"}
	case errors.As(err, &erased):
		return wire.ErrorBody{Code: wire.CodeErased, Next: erased.Next, Detail: fmt.Sprintf("%v; reading can go on at offset %d", erased, erased.Next)}
	case errors.As(err, &gap):
		body := wire.ErrorBody{Code: wire.CodeOutOfRange, Detail: gap.Error()}
		if gap.Offset < gap.Start { // what lies before was removed
			body.Next = gap.Start
		}
		return body
	case errors.Is(err, log.ErrOffsetOutOfRange):
		return wire.ErrorBody{Code: wire.CodeOutOfRange}
	case errors.Is(err, log.ErrMemoryFull):
		return wire.ErrorBody{Code: wire.CodeMemoryFull}
	case errors.Is(err, log.ErrDiskFull):
		return wire.ErrorBody{Code: wire.CodeDiskFull}
	case errors.Is(err, log.ErrFenced):
		return wire.ErrorBody{Code: wire.CodePartitionFenced}
	case errors.Is(err, log.ErrCorrupt):
		return wire.ErrorBody{Code: wire.CodeCorrupt, Detail: "stored frames are damaged"}
	case errors.Is(err, log.ErrClosed), errors.Is(err, partition.ErrClosed):
		return wire.ErrorBody{Code: wire.CodeUnavailable}
	}
	return wire.ErrorBody{Code: wire.CodeInternal}
}

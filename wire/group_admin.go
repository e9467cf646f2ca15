package wire

import "encoding/binary"

// GROUP_ADMIN (32) and GROUP_ORDER (33), since version 1: what people and tools ask of
// groups. GROUP_ADMIN concerns the group of all partitions and goes to the metadata,
// GROUP_ORDER one partition and goes to its leader. Bodies are JSON: they are rare, large
// and read by people; unknown fields are ignored.

// GroupAdminOp is what GROUP_ADMIN asks for. Numbers are never reused.
type GroupAdminOp uint8

// The operations.
const (
	GroupCreate   GroupAdminOp = 1 // GroupIntent; answered with GroupInfo
	GroupAlter    GroupAdminOp = 2 // GroupIntent; answered with GroupInfo
	GroupRemove   GroupAdminOp = 3
	GroupList     GroupAdminOp = 4 // answered with a list of GroupInfo
	GroupDescribe GroupAdminOp = 5 // answered with GroupInfo
	GroupPause    GroupAdminOp = 6
	GroupResume   GroupAdminOp = 7
)

// GroupAdminRequest is the body of GROUP_ADMIN.
//
//	op u8 | destination string | group string | json bytes
type GroupAdminRequest struct {
	Op          GroupAdminOp
	Destination string
	Group       string
	JSON        []byte // a view when parsed
}

// Append implements Message.
func (m *GroupAdminRequest) Append(dst []byte) []byte {
	dst = appendString(append(dst, byte(m.Op)), m.Destination)
	return appendBytes(appendString(dst, m.Group), m.JSON)
}

// Parse implements Message.
func (m *GroupAdminRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Op = GroupAdminOp(r.uint8())
	m.Destination = r.string()
	m.Group = r.string()
	m.JSON = r.take(r.count(1))
	return r.done("GROUP_ADMIN request")
}

// GroupOrderOp is what GROUP_ORDER asks for. Numbers are never reused.
type GroupOrderOp uint8

// The operations.
const (
	OrderDescribe   GroupOrderOp = 1  // answered with GroupPartition
	OrderExplain    GroupOrderOp = 2  // ExplainRequest; answered with ExplainResponse
	OrderSeek       GroupOrderOp = 3  // SeekRequest; answered with SeekResponse
	OrderPause      GroupOrderOp = 4  //
	OrderResume     GroupOrderOp = 5  //
	OrderPark       GroupOrderOp = 6  // ScopeRequest
	OrderUnpark     GroupOrderOp = 7  // ScopeRequest
	OrderSkip       GroupOrderOp = 8  // ScopeRequest
	OrderShow       GroupOrderOp = 9  // ScopeRequest
	OrderUnfinished GroupOrderOp = 10 // BrowseRequest; answered with BrowseResponse
	OrderLetters    GroupOrderOp = 11 // LettersRequest; answered with LettersResponse
	OrderRepair     GroupOrderOp = 12 // RepairRequest; answered with ScopeResponse
	OrderSettle     GroupOrderOp = 13 // SettleRequest
	OrderRedrive    GroupOrderOp = 14 // RedriveRequest
)

// GroupOrderRequest is the body of GROUP_ORDER. The answer is GroupJSON.
//
//	handle u32 | op u8 | group string | json bytes
type GroupOrderRequest struct {
	Handle uint32
	Op     GroupOrderOp
	Group  string
	JSON   []byte // a view when parsed
}

// Append implements Message.
func (m *GroupOrderRequest) Append(dst []byte) []byte {
	dst = append(binary.LittleEndian.AppendUint32(dst, m.Handle), byte(m.Op))
	return appendBytes(appendString(dst, m.Group), m.JSON)
}

// Parse implements Message.
func (m *GroupOrderRequest) Parse(src []byte) error {
	r := reader{src: src}
	m.Handle = r.uint32()
	m.Op = GroupOrderOp(r.uint8())
	m.Group = r.string()
	m.JSON = r.take(r.count(1))
	return r.done("GROUP_ORDER request")
}

// GroupJSON answers GROUP_ADMIN and GROUP_ORDER.
//
//	json bytes
type GroupJSON struct {
	JSON []byte // a view when parsed; empty if there is nothing to say
}

// Append implements Message.
func (m *GroupJSON) Append(dst []byte) []byte { return appendBytes(dst, m.JSON) }

// Parse implements Message.
func (m *GroupJSON) Parse(src []byte) error {
	r := reader{src: src}
	m.JSON = r.take(r.count(1))
	return r.done("group JSON")
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(dst, uint32(len(b))), b...)
}

// GroupIntent is what a group is to be.
type GroupIntent struct {
	Settings GroupSettings `json:"settings"`
	// Exists makes it no error that a group of the name exists with the same mode, scope
	// and binding: its other settings stay as they are.
	Exists bool       `json:"exists,omitempty"`
	Start  GroupStart `json:"start,omitzero"` // with GroupCreate only
	// Selector and ForwardDelayMs are what other systems have and brokers refuse with
	// UNSUPPORTED: consumers of a group get its records whatever is in them, and no record is
	// moved to another partition.
	Selector       string `json:"selector,omitempty"`
	ForwardDelayMs uint32 `json:"forward_delay_ms,omitempty"`
	// IfVersion refuses the change if the group has another one; 0 does not ask.
	IfVersion uint64 `json:"if_version,omitempty"`
}

// GroupStart is where a group begins in each partition.
type GroupStart struct {
	To     string `json:"to,omitempty"` // earliest, latest, offset or time; empty: earliest of a queue, latest of a topic
	Offset uint64 `json:"offset,omitempty"`
	TimeMs int64  `json:"time_ms,omitempty"`
}

// GroupInfo is a group as it is shown.
type GroupInfo struct {
	Name        string           `json:"name"`
	Destination string           `json:"destination"`
	ID          uint64           `json:"id"`
	Version     uint64           `json:"version"`
	Settings    GroupSettings    `json:"settings"` // what they come to
	Own         GroupSettings    `json:"own"`      // what the group itself says; the rest is of its destination, or default
	Paused      bool             `json:"paused,omitempty"`
	Created     bool             `json:"created,omitempty"` // by the request that is answered
	Partitions  []GroupPartition `json:"partitions,omitempty"`
}

// GroupPartition is a group in one partition, as its leader knows it.
type GroupPartition struct {
	Number   uint32 `json:"number"`
	GroupID  uint64 `json:"group_id"` // of the group that the partition knows by the name
	Leader   uint32 `json:"leader"`   // its node as the client has heard, 0 if it has not
	Floor    uint64 `json:"floor"`    // everything below is done
	Next     uint64 `json:"next"`
	Scan     uint64 `json:"scan"` // everything below has been looked at
	Horizon  uint64 `json:"horizon"`
	Backlog  uint64 `json:"backlog"` // records that are not done
	Done     uint64 `json:"done"`    // above the floor
	Returned uint64 `json:"returned"`
	Leased   uint64 `json:"leased"`
	Parked   uint64 `json:"parked"` // scopes
	// ParkedScopes are the first MaxParkedShown of them, in the order in which they were parked.
	ParkedScopes []ParkedScope  `json:"parked_scopes,omitempty"`
	Letters      uint64         `json:"letters"`
	Expired      uint64         `json:"expired"`
	Waiting      []string       `json:"waiting,omitempty"` // sessions that are waited for after a change of the leader
	Sessions     []GroupSession `json:"sessions,omitempty"`
	Binding      string         `json:"binding,omitempty"`
	Uncovered    []uint32       `json:"uncovered,omitempty"` // partitions that no consumer has, said by the one that coordinates
	Problem      string         `json:"problem,omitempty"`   // why the partition did not answer: nothing else of it is known
}

// MaxParkedShown bounds the parked scopes that GroupPartition lists of one partition.
const MaxParkedShown = 100

// ParkedScope is a scope of which nothing is delivered from a record on.
type ParkedScope struct {
	Scope   uint64 `json:"scope,string"`       // a hash; of a record that is a scope of its own its offset
	Name    string `json:"name,omitempty"`     // the key or publisher as commands take it, "" if not known; for the client
	Offset  uint64 `json:"offset"`             // the next record of it, or below the next one
	Reason  string `json:"reason,omitempty"`   // of whoever has parked it
	ForMs   uint64 `json:"for_ms"`             // since it was parked
	AtLeast bool   `json:"at_least,omitempty"` // it was parked before the leader began, which is ForMs ago
}

// GroupSession is one consumer of a group in one partition.
type GroupSession struct {
	ID       string `json:"id"`
	Name     string `json:"name,omitempty"`
	Client   string `json:"client,omitempty"`
	Node     uint32 `json:"node,omitempty"`
	State    string `json:"state"` // active standby waiting draining ending suspect
	Leased   uint32 `json:"leased"`
	Capacity uint32 `json:"capacity"`
	HeardMs  uint64 `json:"heard_ms"` // since it was heard
}

// ExplainRequest asks why a record, a key or the group stands still. At most one of the
// pointers is set.
type ExplainRequest struct {
	Group     string  `json:"group,omitempty"`
	Key       *[]byte `json:"key,omitempty"`
	Publisher *[]byte `json:"publisher,omitempty"`
	Offset    *uint64 `json:"offset,omitempty"`
}

// ExplainResponse is what holds it up, the first thing first. The times are of the leader's
// clock, as NowMs is, which is not that of who asks: what counts is their distance.
type ExplainResponse struct {
	Reasons []Reason `json:"reasons"`
	NowMs   int64    `json:"now_ms"`
}

// Reason is one thing that holds records up.
type Reason struct {
	Code    string  `json:"code"`
	Text    string  `json:"text"`             // a sentence
	Object  string  `json:"object,omitempty"` // what blocks
	SinceMs int64   `json:"since_ms,omitempty"`
	UntilMs int64   `json:"until_ms,omitempty"`
	Offset  *uint64 `json:"offset,omitempty"`
	Advice  string  `json:"advice,omitempty"` // what to do next
}

// Advice says what somebody can do who is told a reason, "" if there is nothing to do. What
// follows a command is no sign that could be taken for part of a name.
func Advice(code string) string { return reasonAdvice[code] }

var reasonAdvice = map[string]string{
	"paused":                "lockstep group resume lets it go on.",
	"draining":              "Wait, or end the handlers that hold records; what they hold is asked back first.",
	"waiting_for_session":   "Start that consumer again, or wait until its session timeout is over.",
	"no_consumer":           "lockstep consume --group starts one.",
	"standby":               "Wait for the active one, or end it: another takes over when its session timeout is over.",
	"horizon_not_committed": "Wait for a moment; if it stays, see lockstep cluster health.",
	"no_credit":             "Start more consumers, give them more --prefetch, or see why their handlers are slow.",
	"behind_key":            "Ask about its key, which lockstep browse shows, to see what holds that up.",
	"behind_scan":           "Wait: it is its turn when what lies before it is given out; more consumers get there sooner.",
	"corrupt_range":         "See the broker's log, or lockstep log verify; other replicas repair it; with none, lockstep key skip --partition --offset gives it up, and lockstep group seek passes over all of it.",
	"data_expired":          "Keep records longer, or add consumers; in a topic a group made with --hold keeps what it needs.",
	"parked":                "Repair what was wrong, then lockstep key unpark; or lockstep key skip passes its head over.",
	"held":                  "Wait for its handler, or see why it is slow; lockstep key park --now takes it back.",
	"silent":                "Start that consumer again under its --name, or wait: its records go to others then.",
	"backoff":               "Wait; or lockstep group alter gives the group a shorter --backoff.",
	"ack_not_committed":     "Wait for a moment; if it stays, see lockstep cluster health.",
	"revoking":              "Wait: what is not given back within the revoke grace is taken.",
	"no_quorum":             "Start the nodes that hold its replicas: see lockstep partition ls and lockstep cluster health.",
	"binding_mismatch":      "Start more consumers, or give the group the binding cover.",
}

// SeekRequest moves a group.
type SeekRequest struct {
	To     string `json:"to"` // earliest, latest, offset or time
	Offset uint64 `json:"offset,omitempty"`
	TimeMs int64  `json:"time_ms,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"`
	// ID names this seek: asked for again under it, the group is not moved again, as long as
	// no other seek came after. 0: it moves each time.
	ID uint64 `json:"id,omitempty"`
}

// SeekResponse is where a group was, and is. Records is how many are delivered again, or
// passed over if From is below To.
type SeekResponse struct {
	From    uint64 `json:"from"`
	To      uint64 `json:"to"`
	Records uint64 `json:"records"`
}

// ScopeResponse is how one scope stands: its lowest unfinished record, if it is known, and
// what holds it up. Deliveries counts the one that is out, which has not ended.
type ScopeResponse struct {
	Scope      uint64   `json:"scope,string"` // a hash: most readers of JSON round numbers of this size
	Offset     uint64   `json:"offset"`
	Known      bool     `json:"known,omitempty"`
	Deliveries uint16   `json:"deliveries,omitempty"`
	Attempts   uint16   `json:"attempts,omitempty"`
	Parked     bool     `json:"parked,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Reasons    []Reason `json:"reasons,omitempty"`
}

// MaxSettle bounds the stretches of one SettleRequest.
const MaxSettle = 4096

// SettleRequest names stretches of records, ascending, that a group is done with then. With
// GiveUp also those that are on their way back, by a RedriveRequest, need not get there,
// and with Last it is REFUSED while another group of the partition is not done with one, or begins.
type SettleRequest struct {
	Spans  []OffsetSpan `json:"spans"`
	GiveUp bool         `json:"give_up,omitempty"`
	Last   bool         `json:"last,omitempty"` // the other groups have been asked before
}

// OffsetSpan is a stretch of records [From, To).
type OffsetSpan struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// MaxRedrive bounds the letters of one RedriveRequest.
const MaxRedrive = 100

// RedriveRequest sends dead letters back: when it is answered that is committed, and each is
// written where it says once, whoever leads, and asks again, by then; the group is done with it
// when it is there. Those that the group is done with, or that are on their way already, are
// passed over. It is REFUSED while another group of the partition is not done with one of them.
type RedriveRequest struct {
	Letters []Redriven `json:"letters"` // by offset
}

// Redriven is one dead letter on its way back.
type Redriven struct {
	Offset    uint64 `json:"offset"`
	To        string `json:"to"` // the destination that it comes from
	Partition uint32 `json:"partition"`
}

// LettersRequest asks for the dead letters that are not written yet. Drop gives one up, by
// the offset of its record: it is done then and nowhere written. Removed asks for those of
// removed groups only, and needs no group that is there; with GiveUp those of the removed groups
// of that name are given up, and Count says how many.
type LettersRequest struct {
	Drop    *uint64 `json:"drop,omitempty"`
	Removed bool    `json:"removed,omitempty"`
	GiveUp  bool    `json:"give_up,omitempty"`
}

// LettersResponse are dead letters of one partition that are not written yet, by number: the
// first 1,000.
type LettersResponse struct {
	To      string           `json:"to"`
	Count   uint64           `json:"count"`
	Problem string           `json:"problem,omitempty"` // why, and what to do
	Letters []LetterInfo     `json:"letters,omitempty"`
	Removed []RemovedLetters `json:"removed,omitempty"` // of the partition, by name
}

// RemovedLetters are the dead letters of a group that is removed.
type RemovedLetters struct {
	Group string `json:"group"`
	LettersResponse
}

// ReasonRedriven is the Reason of a dead letter that goes back to where it comes from.
const ReasonRedriven = "redriven"

// LetterInfo is one dead letter that is not written yet.
type LetterInfo struct {
	Number     uint64 `json:"number"`
	Offset     uint64 `json:"offset"`
	Deliveries uint16 `json:"deliveries"`
	Attempts   uint16 `json:"attempts"`
	Reason     string `json:"reason"` // ReasonRedriven: it is one, and goes back
	Text       string `json:"text,omitempty"`
	Problem    string `json:"problem,omitempty"` // why it waits for itself
}

// RepairRequest gives the lowest unfinished record of a scope another content, which the
// group is given instead from then on. What is stored stays as it is. The scope goes on if
// it was parked.
type RepairRequest struct {
	ScopeRequest
	Offset      uint64         `json:"offset"` // of that record, so that no other one is meant
	Key         *[]byte        `json:"record_key,omitempty"`
	Value       *[]byte        `json:"value,omitempty"`
	Headers     []RepairHeader `json:"headers,omitempty"`
	TimestampMs int64          `json:"timestamp_ms"`
}

// RepairHeader is a header of a record.
type RepairHeader struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// ScopeRequest names one scope of a serial group. Exactly one of the pointers is set.
type ScopeRequest struct {
	Key       *[]byte `json:"key,omitempty"`
	Publisher *[]byte `json:"publisher,omitempty"`
	Scope     *uint64 `json:"scope,omitempty"`
	Reason    string  `json:"reason,omitempty"` // at most MaxReasonBytes
	Now       bool    `json:"now,omitempty"`    // do not wait for the holder
	// Head is the record that a SKIP of a scope means, so that it skips no other one when it is
	// asked for again: it is refused if the next one is another, and done if that is finished.
	Head *uint64 `json:"head,omitempty"`
}

// MaxReasonBytes bounds the Reason of a ScopeRequest: it is kept for each parked scope.
const MaxReasonBytes = 256

// MaxBrowse is how many records one BrowseRequest lists at most, and MaxBrowseSubstitutes how
// many bytes of repaired ones, beyond the first.
const (
	MaxBrowse            = 1000
	MaxBrowseSubstitutes = 512 << 10
)

// BrowseRequest asks for the records of a partition that a group is not done with.
type BrowseRequest struct {
	From  uint64 `json:"from"`
	Limit uint32 `json:"limit"` // at most MaxBrowse, which is also what 0 means
}

// BrowseResponse lists them in ascending order.
type BrowseResponse struct {
	Next uint64      `json:"next"` // where to go on; End if that is all
	End  uint64      `json:"end"`  // behind the last record of the partition
	Runs []BrowseRun `json:"runs"`
}

// BrowseState says how an unfinished record stands.
type BrowseState string

// The states.
const (
	BrowseWaiting  BrowseState = "waiting"     // nobody has had it
	BrowseLeased   BrowseState = "leased"      // a consumer has it
	BrowseBehind   BrowseState = "behind"      // it waits for an earlier record of its key or publisher
	BrowseReturned BrowseState = "returned"    // it was given back, and is tried again
	BrowseParked   BrowseState = "parked"      // it is the first of its parked key or publisher
	BrowseLetter   BrowseState = "dead letter" // it has failed too often, and is being written elsewhere
)

// BrowseRun is Count records from Offset on that stand alike.
type BrowseRun struct {
	Offset     uint64      `json:"offset"`
	Count      uint32      `json:"count"`
	State      BrowseState `json:"state"`
	Holder     string      `json:"holder,omitempty"` // the consumer that has it
	Deliveries uint16      `json:"deliveries,omitempty"`
	Attempts   uint16      `json:"attempts,omitempty"`
	Reason     string      `json:"reason,omitempty"` // why it is parked
	// Substitute is the body batch of one record that is delivered instead of the stored one:
	// an operator has repaired it.
	Substitute []byte `json:"substitute,omitempty"`
}

// Joins reports whether another run follows this one and stands alike.
func (r *BrowseRun) Joins(next *BrowseRun) bool {
	return r.Substitute == nil && next.Substitute == nil && r.Offset+uint64(r.Count) == next.Offset && r.State == next.State && r.Holder == next.Holder &&
		r.Deliveries == next.Deliveries && r.Attempts == next.Attempts && r.Reason == next.Reason
}

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// ErrorCode is a wire error. As a Go error it serves as the sentinel of its
// condition: errors.Is(err, wire.CodeNotLeader). Codes are never reused.
type ErrorCode int16

// The wire errors; docs/protocol.md shows the whole table.
const (
	CodeOK                      ErrorCode = 0
	CodeUnknown                 ErrorCode = 1
	CodeInternal                ErrorCode = 2
	CodeVersion                 ErrorCode = 3
	CodeMalformed               ErrorCode = 4
	CodeTooLarge                ErrorCode = 5
	CodeUnsupported             ErrorCode = 6
	CodeCorrupt                 ErrorCode = 7
	CodeInvalidRequest          ErrorCode = 8
	CodeInvalidName             ErrorCode = 9
	CodeInvalidSetting          ErrorCode = 10
	CodeUnknownDestination      ErrorCode = 11
	CodeUnknownPartition        ErrorCode = 12
	CodeUnknownHandle           ErrorCode = 13
	CodeUnknownLink             ErrorCode = 14
	CodeAlreadyExists           ErrorCode = 15
	CodeKindMismatch            ErrorCode = 16
	CodeDestinationGone         ErrorCode = 17
	CodeOutOfRange              ErrorCode = 18
	CodeRetry                   ErrorCode = 19
	CodeTooMany                 ErrorCode = 20
	CodeBusy                    ErrorCode = 21
	CodeAuthRequired            ErrorCode = 22
	CodeAuthFailed              ErrorCode = 23
	CodeClusterMismatch         ErrorCode = 24
	CodeDuplicate               ErrorCode = 25
	CodeFenced                  ErrorCode = 26
	CodeOutOfSequence           ErrorCode = 27
	CodeUnknownProducer         ErrorCode = 28
	CodeDiskFull                ErrorCode = 29
	CodeMemoryFull              ErrorCode = 30
	CodeMailboxFull             ErrorCode = 31
	CodeWrongPartition          ErrorCode = 32
	CodeNotLeader               ErrorCode = 33
	CodeUnavailable             ErrorCode = 34
	CodePartitionFenced         ErrorCode = 35
	CodePartitionReset          ErrorCode = 36
	CodeDataLost                ErrorCode = 37
	CodeErased                  ErrorCode = 38
	CodeTimeout                 ErrorCode = 39
	CodeIdle                    ErrorCode = 40
	CodeShuttingDown            ErrorCode = 41
	CodeRefused                 ErrorCode = 42
	CodePartitionFull           ErrorCode = 43
	CodeNotController           ErrorCode = 44
	CodeSendDisabled            ErrorCode = 45
	CodeStaleEpoch              ErrorCode = 46
	CodeNotOwner                ErrorCode = 47
	CodeAlreadyDone             ErrorCode = 48
	CodeOutOfOrder              ErrorCode = 49
	CodeSessionGone             ErrorCode = 50
	CodeUnknownGroup            ErrorCode = 51
	CodeGroupMismatch           ErrorCode = 52
	CodeSerialNeedsOnePartition ErrorCode = 53
	CodeStaleBinding            ErrorCode = 54
	CodeNotCoordinator          ErrorCode = 55
	CodeDataExpired             ErrorCode = 56
	CodeGroupGone               ErrorCode = 57
	CodeNotMember               ErrorCode = 58
)

// Closes says what an error does to the connection it travels on.
type Closes uint8

const (
	// ClosesNever fails the request alone.
	ClosesNever Closes = iota
	// ClosesOnFrame fails the request alone if the fault lies in what it carries, a
	// batch say, and closes the connection if the fault lies in the frame or the
	// fields of the message: then what follows cannot be trusted.
	ClosesOnFrame
	// ClosesAlways is the last frame of the connection.
	ClosesAlways
)

func (c Closes) String() string {
	switch c {
	case ClosesNever:
		return "no"
	case ClosesOnFrame:
		return "frame"
	case ClosesAlways:
		return "yes"
	}
	return "unknown"
}

// ErrorInfo is one row of the error table.
type ErrorInfo struct {
	Code ErrorCode
	Name string
	// Retriable means that the same request, unchanged, may succeed later.
	Retriable bool
	// Rejected means that nothing of the request took effect or ever will. Where it
	// is false, a produce request that failed may have been appended all the same. A
	// broker must answer a batch that it has proposed with such a code only.
	Rejected    bool
	Closes      Closes
	Description string
	Hint        string // what to do next; may be empty
}

// errorTable is indexed by code.
var errorTable = [...]ErrorInfo{
	{CodeOK, "OK", false, false, ClosesNever,
		"success", ""},
	{CodeUnknown, "UNKNOWN", false, false, ClosesNever,
		"an error this build has no code for",
		"use a client as new as the broker"},
	{CodeInternal, "INTERNAL", false, false, ClosesNever,
		"the broker failed in a way it did not expect",
		"look at the broker's log"},
	{CodeVersion, "VERSION", false, true, ClosesAlways,
		"no protocol version is shared",
		"use a client and a broker whose version ranges overlap"},
	{CodeMalformed, "MALFORMED", false, true, ClosesOnFrame,
		"the bytes do not follow the protocol", ""},
	{CodeTooLarge, "TOO_LARGE", false, true, ClosesOnFrame,
		"a frame, batch or record is above its limit",
		"send less at once, or raise the destination's record limit"},
	{CodeUnsupported, "UNSUPPORTED", false, true, ClosesNever,
		"the opcode, batch format or compression is not supported",
		"use none, snappy or zstd as compression, and a client that is not newer than the broker"},
	{CodeCorrupt, "CORRUPT", false, true, ClosesNever,
		"a checksum does not match the data",
		"build the batch again and send it; when reading, look for the damaged range with: lockstep log verify"},
	{CodeInvalidRequest, "INVALID_REQUEST", false, true, ClosesNever,
		"the fields of the request contradict each other or the state of the session", ""},
	{CodeInvalidName, "INVALID_NAME", false, true, ClosesNever,
		"the name is empty, longer than 255 bytes, not UTF-8, or has empty or dot levels or control characters", ""},
	{CodeInvalidSetting, "INVALID_SETTING", false, true, ClosesNever,
		"a setting of the destination is out of its range or cannot be changed", ""},
	{CodeUnknownDestination, "UNKNOWN_DESTINATION", false, true, ClosesNever,
		"no destination has this name",
		"create it with: lockstep queue create NAME, or: lockstep topic create NAME"},
	{CodeUnknownPartition, "UNKNOWN_PARTITION", false, true, ClosesNever,
		"the destination has no partition of this number", ""},
	{CodeUnknownHandle, "UNKNOWN_HANDLE", false, true, ClosesNever,
		"the session has no partition open under this handle",
		"open the partition again"},
	{CodeUnknownLink, "UNKNOWN_LINK", false, true, ClosesNever,
		"the session has no link of this ID", ""},
	{CodeAlreadyExists, "ALREADY_EXISTS", false, true, ClosesNever,
		"a destination of this name exists", ""},
	{CodeKindMismatch, "KIND_MISMATCH", false, true, ClosesNever,
		"the destination is a queue where a topic is named, or the reverse", ""},
	{CodeDestinationGone, "DESTINATION_GONE", false, false, ClosesNever,
		"the destination was deleted while it was in use", ""},
	{CodeOutOfRange, "OUT_OF_RANGE", false, true, ClosesNever,
		"the offset is below the first or above the next offset of the partition",
		"read from the earliest or the latest offset"},
	{CodeRetry, "RETRY", true, true, ClosesNever,
		"the answer is not known yet", "try again shortly"},
	{CodeTooMany, "TOO_MANY", false, true, ClosesNever,
		"a count is above its limit", ""},
	{CodeBusy, "BUSY", true, true, ClosesAlways,
		"the broker accepts no more connections", "connect again later, or to another node"},
	{CodeAuthRequired, "AUTH_REQUIRED", false, true, ClosesAlways,
		"the request came before the session was authenticated", ""},
	{CodeAuthFailed, "AUTH_FAILED", false, true, ClosesAlways,
		"the credentials were refused", ""},
	{CodeClusterMismatch, "CLUSTER_MISMATCH", false, true, ClosesAlways,
		"the broker belongs to another cluster than the one the client was connected to before",
		"check the list of servers"},
	{CodeDuplicate, "DUPLICATE", false, false, ClosesNever,
		"a request with this correlation ID is in flight, or the batch was appended before and its offset is no longer remembered", ""},
	{CodeFenced, "FENCED", false, true, ClosesNever,
		"a newer producer or consumer of the same name has taken over", "stop this one"},
	{CodeOutOfSequence, "OUT_OF_SEQUENCE", false, true, ClosesNever,
		"the batch does not follow the last one of its producer in this partition", ""},
	{CodeUnknownProducer, "UNKNOWN_PRODUCER", false, true, ClosesNever,
		"the partition does not know the producer, and the batch is not its first or may have been stored before it was forgotten; or its ID was never handed out",
		"take a new producer ID once nothing is outstanding"},
	{CodeDiskFull, "DISK_FULL", true, true, ClosesNever,
		"the disk has too little space for records; reading and deleting go on",
		"free space or shorten retention; writing resumes by itself"},
	{CodeMemoryFull, "MEMORY_FULL", true, true, ClosesNever,
		"the memory budget has no room for records",
		"raise the budget or shorten retention; writing resumes by itself"},
	{CodeMailboxFull, "MAILBOX_FULL", true, true, ClosesNever,
		"the partition has more work waiting than it may hold", "slow down"},
	{CodeWrongPartition, "WRONG_PARTITION", true, true, ClosesNever,
		"the key slot belongs to another partition", "ask for metadata and send to the partition it names"},
	{CodeNotLeader, "NOT_LEADER", true, true, ClosesNever,
		"the node does not lead the partition", "ask for metadata and send to the leader"},
	{CodeUnavailable, "UNAVAILABLE", true, false, ClosesNever,
		"the partition has no leader or no quorum", "try again; check the nodes if it lasts"},
	{CodePartitionFenced, "PARTITION_FENCED", false, false, ClosesNever,
		"the partition stopped after a storage error",
		"look at the broker's log for the cause; a restart copies what is durable to new files"},
	{CodePartitionReset, "PARTITION_RESET", false, false, ClosesNever,
		"the partition lost its memory and began again, empty", "read from the earliest offset"},
	{CodeDataLost, "DATA_LOST", false, true, ClosesNever,
		"the position lies above the end of a log that was cut back after a disaster", "read from the next offset in the detail"},
	{CodeErased, "ERASED", false, true, ClosesNever,
		"the records at this offset were acknowledged and erased", ""},
	{CodeTimeout, "TIMEOUT", true, false, ClosesNever,
		"the request took too long", "send it again; deduplication drops what was appended"},
	{CodeIdle, "IDLE", true, true, ClosesAlways,
		"the session was silent for longer than the idle timeout", "connect again; send PING when idle"},
	{CodeShuttingDown, "SHUTTING_DOWN", true, false, ClosesAlways,
		"the broker is stopping", "connect again, or to another node"},
	{CodeRefused, "REFUSED", false, true, ClosesNever,
		"the destination is another one than the request was made for: it was deleted and created again",
		""},
	{CodePartitionFull, "PARTITION_FULL", true, true, ClosesNever,
		"the partition holds as much as its destination allows",
		"send to another partition, or wait until records are consumed or expire"},
	{CodeNotController, "NOT_CONTROLLER", true, true, ClosesNever,
		"the node does not lead the metadata of the cluster",
		"send it again; if it lasts, check the nodes"},
	{CodeSendDisabled, "SEND_DISABLED", true, true, ClosesNever,
		"an operator has closed the partition to new records",
		"send to another partition, or wait until it is opened again"},
	{CodeStaleEpoch, "STALE_EPOCH", false, true, ClosesNever,
		"the lease has ended: another session may have the record", "drop the record; its handler must not have effects any more"},
	{CodeNotOwner, "NOT_OWNER", false, true, ClosesNever,
		"the record was never leased to the session", ""},
	{CodeAlreadyDone, "ALREADY_DONE", false, true, ClosesNever,
		"the record is settled, perhaps by another session", ""},
	{CodeOutOfOrder, "OUT_OF_ORDER", false, true, ClosesNever,
		"an earlier record of the same key or publisher has no outcome yet", "acknowledge the records of one key in order"},
	{CodeSessionGone, "SESSION_GONE", false, false, ClosesNever,
		"the session is not one of the group any more", "drop everything it holds and attach as a new session"},
	{CodeUnknownGroup, "UNKNOWN_GROUP", false, true, ClosesNever,
		"the destination has no group of this name", "create it with: lockstep group create DESTINATION GROUP, or consume with a mode"},
	{CodeGroupMismatch, "GROUP_MISMATCH", false, true, ClosesNever,
		"a group of this name exists with another mode, scope or binding", "use its mode, or another name; lockstep group describe shows it"},
	{CodeSerialNeedsOnePartition, "SERIAL_NEEDS_ONE_PARTITION", false, true, ClosesNever,
		"a group that is serial for the whole destination needs a destination with one partition", "use a destination with one partition, or the scope key or publisher"},
	{CodeStaleBinding, "STALE_BINDING", false, true, ClosesNever,
		"the session attaches with an older binding than the partition knows", "ask the coordinator for the binding of now"},
	{CodeNotCoordinator, "NOT_COORDINATOR", true, true, ClosesNever,
		"the node does not coordinate the group", "ask for metadata and go to the leader of the coordinating partition"},
	{CodeDataExpired, "DATA_EXPIRED", false, true, ClosesNever,
		"retention has removed records that the group had not finished", "keep records longer, or add consumers"},
	{CodeGroupGone, "GROUP_GONE", false, false, ClosesNever,
		"the group was removed while it was in use", ""},
	{CodeNotMember, "NOT_MEMBER", false, true, ClosesNever,
		"the node is no member of the cluster",
		""},
}

// ErrorTable lists all wire errors by ascending code, starting with CodeOK. The
// caller owns the slice.
func ErrorTable() []ErrorInfo { return append([]ErrorInfo(nil), errorTable[:]...) }

// Known reports whether this build has the code in its table.
func (c ErrorCode) Known() bool { return c >= 0 && int(c) < len(errorTable) }

// Info is the code's row in the error table; that of CodeUnknown for a code this
// build does not know.
func (c ErrorCode) Info() ErrorInfo {
	if !c.Known() {
		c = CodeUnknown
	}
	return errorTable[c]
}

// Retriable reports whether the same request may succeed later, unchanged.
func (c ErrorCode) Retriable() bool { return c.Info().Retriable }

// Rejected reports whether nothing of the request took effect or ever will.
func (c ErrorCode) Rejected() bool { return c.Info().Rejected }

// String is the code's name.
func (c ErrorCode) String() string { return c.Info().Name }

// Error implements error.
func (c ErrorCode) Error() string {
	i := c.Info()
	return i.Name + ": " + i.Description
}

// Error is a wire error with what happened to what, in words.
type Error struct {
	Code   ErrorCode
	Detail string
	// Next is where reading can go on, for CodeCorrupt, CodeErased and CodeDataLost on a link, and
	// who leads for CodeNotLeader, see Leader; 0 if there is no such place, and with
	// other codes.
	Next Offset
}

// NotLeader is the answer of a node that does not lead a partition. It names the node
// that does and that one's epoch, 0 and 0 if no leader is known.
func NotLeader(node, epoch uint32) *Error {
	e := &Error{Code: CodeNotLeader, Next: Offset(node)<<32 | Offset(epoch), Detail: "no leader of the partition is known for now"}
	if node != 0 {
		e.Detail = fmt.Sprintf("node %d leads the partition", node)
	}
	return e
}

// Leader is who leads the partition as CodeNotLeader says it: a node and its epoch, 0
// and 0 if it names none, and with other codes. Of several answers the one with the
// highest epoch counts.
func (e *Error) Leader() (node, epoch uint32) {
	if e.Code != CodeNotLeader {
		return 0, 0
	}
	return uint32(e.Next >> 32), uint32(e.Next)
}

// Errorf makes an *Error.
func Errorf(code ErrorCode, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Error implements error.
func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Code.Error()
	}
	return e.Code.String() + ": " + e.Detail
}

// Is reports whether target is an *Error of the same code. Through Unwrap, the
// ErrorCode itself is matched too.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Unwrap returns the code.
func (e *Error) Unwrap() error { return e.Code }

// CodeOf is the code of an error that has one, CodeOK for nil and CodeUnknown for
// any other error.
func CodeOf(err error) ErrorCode {
	if err == nil {
		return CodeOK
	}
	var code ErrorCode
	if errors.As(err, &code) {
		return code
	}
	return CodeUnknown
}

// ErrorBody is the body of an answer with FlagError, and of LINK_CLOSED.
//
//	code i16 | detail string | next u64
type ErrorBody struct {
	Code   ErrorCode
	Detail string // for people, at most MaxDetailBytes
	Next   Offset // of Error
}

// Err is the body as an error, nil for CodeOK.
func (m *ErrorBody) Err() error {
	if m.Code == CodeOK {
		return nil
	}
	return &Error{Code: m.Code, Detail: m.Detail, Next: m.Next}
}

// Append implements Message.
func (m *ErrorBody) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m.Code))
	dst = appendDetail(dst, m.Detail)
	return binary.LittleEndian.AppendUint64(dst, uint64(m.Next))
}

// Parse implements Message. A code that this build does not know becomes
// CodeUnknown, with its number in front of the detail.
func (m *ErrorBody) Parse(src []byte) error {
	r := reader{src: src}
	m.Code = ErrorCode(r.uint16())
	m.Detail = r.string()
	m.Next = Offset(r.uint64())
	if !m.Code.Known() {
		m.Detail = fmt.Sprintf("code %d: %s", m.Code, m.Detail)
		m.Code = CodeUnknown
	}
	return r.done("error")
}

// appendDetail appends a text for people, cut at MaxDetailBytes between two runes.
func appendDetail(dst []byte, s string) []byte {
	if len(s) > MaxDetailBytes {
		n := MaxDetailBytes
		for n > MaxDetailBytes-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return appendString(dst, s)
}

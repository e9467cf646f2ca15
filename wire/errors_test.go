package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestErrorTableIsDenseAndUnique(t *testing.T) {
	names := map[string]bool{}
	for i, row := range ErrorTable() {
		require.Equal(t, ErrorCode(i), row.Code)
		require.Equal(t, row, row.Code.Info())
		require.Regexp(t, `^[A-Z]+(_[A-Z]+)*$`, row.Name)
		require.False(t, names[row.Name], row.Name)
		names[row.Name] = true
		require.NotEmpty(t, row.Description, row.Name)
		require.NotRegexp(t, `^[A-Z]|\.$`, row.Description, "descriptions go into the middle of a sentence")
		require.NotRegexp(t, `^[A-Z][a-z]|\.$`, row.Hint)
	}
	require.Equal(t, CodeNotMember, ErrorCode(len(ErrorTable())-1), "the last constant is in the table")
}

// Codes are never reused: this list only ever grows at its end.
func TestErrorCodesKeepTheirNumbers(t *testing.T) {
	want := []string{
		"OK", "UNKNOWN", "INTERNAL", "VERSION", "MALFORMED", "TOO_LARGE", "UNSUPPORTED", "CORRUPT",
		"INVALID_REQUEST", "INVALID_NAME", "INVALID_SETTING", "UNKNOWN_DESTINATION", "UNKNOWN_PARTITION",
		"UNKNOWN_HANDLE", "UNKNOWN_LINK", "ALREADY_EXISTS", "KIND_MISMATCH", "DESTINATION_GONE", "OUT_OF_RANGE",
		"RETRY", "TOO_MANY", "BUSY", "AUTH_REQUIRED", "AUTH_FAILED", "CLUSTER_MISMATCH", "DUPLICATE", "FENCED",
		"OUT_OF_SEQUENCE", "UNKNOWN_PRODUCER", "DISK_FULL", "MEMORY_FULL", "MAILBOX_FULL", "WRONG_PARTITION",
		"NOT_LEADER", "UNAVAILABLE", "PARTITION_FENCED", "PARTITION_RESET", "DATA_LOST", "ERASED", "TIMEOUT",
		"IDLE", "SHUTTING_DOWN", "REFUSED", "PARTITION_FULL", "NOT_CONTROLLER", "SEND_DISABLED",
		"STALE_EPOCH", "NOT_OWNER", "ALREADY_DONE", "OUT_OF_ORDER", "SESSION_GONE", "UNKNOWN_GROUP",
		"GROUP_MISMATCH", "SERIAL_NEEDS_ONE_PARTITION", "STALE_BINDING", "NOT_COORDINATOR", "DATA_EXPIRED", "GROUP_GONE", "NOT_MEMBER",
	}
	var got []string
	for _, row := range ErrorTable() {
		got = append(got, row.Name)
	}
	require.Equal(t, want, got)
}

// The table in docs/protocol.md is the one that clients are written from.
func TestErrorTableIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/protocol.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(doc), "\n## Errors\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	var got []string
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| ") && line[2] >= '0' && line[2] <= '9' {
			got = append(got, strings.TrimSpace(line))
		}
	}
	var want []string
	for _, row := range ErrorTable() {
		want = append(want, documentedError(row))
	}
	require.Equal(t, want, got)
}

func documentedError(row ErrorInfo) string {
	yes := map[bool]string{true: "yes", false: "no"}
	return fmt.Sprintf("| %d | %s | %s | %s | %s | %s |", row.Code, row.Name, yes[row.Retriable], yes[row.Rejected], row.Closes, row.Description)
}

func TestErrorsAreFoundByTheirCode(t *testing.T) {
	err := error(Errorf(CodeNotLeader, "partition %d moved", 3))
	wrapped := fmt.Errorf("produce: %w", err)
	require.EqualError(t, wrapped, "produce: NOT_LEADER: partition 3 moved")
	require.ErrorIs(t, wrapped, CodeNotLeader)
	require.ErrorIs(t, wrapped, &Error{Code: CodeNotLeader})
	require.NotErrorIs(t, wrapped, CodeTimeout)
	require.NotErrorIs(t, wrapped, &Error{Code: CodeTimeout})

	var typed *Error
	require.ErrorAs(t, wrapped, &typed)
	require.Equal(t, "partition 3 moved", typed.Detail)
	var code ErrorCode
	require.ErrorAs(t, wrapped, &code)
	require.Equal(t, CodeNotLeader, code)

	require.Equal(t, CodeNotLeader, CodeOf(wrapped))
	require.Equal(t, CodeOK, CodeOf(nil))
	require.Equal(t, CodeUnknown, CodeOf(io.EOF))
	require.Equal(t, CodeDiskFull, CodeOf(errors.Join(io.EOF, CodeDiskFull)))
	require.EqualError(t, &Error{Code: CodeErased}, "ERASED: the records at this offset were acknowledged and erased")
}

func TestNotLeaderNamesTheLeader(t *testing.T) {
	src := (&ErrorBody{Code: CodeNotLeader, Next: 0x0000000700000003}).Append(nil)
	var m ErrorBody
	require.NoError(t, m.Parse(src))
	var e *Error
	require.ErrorAs(t, m.Err(), &e)
	node, epoch := e.Leader()
	require.Equal(t, uint32(7), node)
	require.Equal(t, uint32(3), epoch)
	require.Equal(t, NotLeader(7, 3).Next, e.Next)
	require.EqualError(t, NotLeader(7, 3), "NOT_LEADER: node 7 leads the partition")
	require.EqualError(t, NotLeader(0, 0), "NOT_LEADER: no leader of the partition is known for now")

	node, epoch = (&Error{Code: CodeCorrupt, Next: 0x0000000700000003}).Leader()
	require.Zero(t, node)
	require.Zero(t, epoch)
}

func TestUnknownCodesBecomeUnknown(t *testing.T) {
	for _, code := range []int16{int16(len(errorTable)), 999, -1, -32768} {
		src := (&ErrorBody{Code: ErrorCode(code), Detail: "news"}).Append(nil)
		var m ErrorBody
		require.NoError(t, m.Parse(src))
		require.Equal(t, CodeUnknown, m.Code)
		require.Equal(t, fmt.Sprintf("code %d: news", code), m.Detail)
		require.ErrorIs(t, m.Err(), CodeUnknown)
		require.Equal(t, "UNKNOWN", ErrorCode(code).String())
		require.False(t, ErrorCode(code).Retriable())
		require.False(t, ErrorCode(code).Rejected())
	}
	require.NoError(t, (&ErrorBody{}).Err())
}

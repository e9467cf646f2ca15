package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func TestErrorsSayWhatToDoNext(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	unreachable := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"destination unknown, kind unknown",
			&failure{doing: "produce to", destination: "orders", err: wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", "orders")},
			`destination "orders" not found; create it with: lockstep queue create orders`},
		{"topic unknown",
			&failure{doing: "describe topic", destination: "events", kind: topicWords, err: wire.CodeUnknownDestination},
			`topic "events" not found; create it with: lockstep topic create events`},
		{"a name that a shell would split",
			&failure{doing: "consume", destination: "it's new", err: wire.CodeUnknownDestination},
			`destination "it's new" not found; create it with: lockstep queue create 'it'\''s new'`},
		{"deleted meanwhile",
			&failure{doing: "consume", destination: "orders", kind: queueWords, err: wire.CodeDestinationGone},
			`queue "orders" was deleted while it was in use; create it again with: lockstep queue create orders`},
		{"exists already",
			&failure{doing: "create queue", destination: "orders", kind: queueWords, err: wire.Errorf(wire.CodeAlreadyExists, "taken")},
			`queue "orders" already exists; look at it with: lockstep queue describe orders, or pass --if-not-exists`},
		{"the other kind",
			&failure{doing: "describe queue", destination: "events", kind: queueWords, err: wire.CodeKindMismatch},
			`"events" is a topic, not a queue; work with it by: lockstep topic`},
		{"the name is taken by the other kind",
			&failure{doing: "create topic", destination: "orders", kind: topicWords, err: wire.CodeKindMismatch},
			`the name "orders" is taken by a queue; choose another, or look at it with: lockstep queue describe orders`},
		{"too many",
			&failure{doing: "create topic", destination: "orders", kind: topicWords, err: wire.Errorf(wire.CodeTooMany, "node 1 would hold 10001 partitions; its limit is 10000")},
			`create topic "orders": node 1 would hold 10001 partitions; its limit is 10000; remove what is not needed, or use fewer partitions`},
		{"full disk until the delivery timeout",
			&failure{doing: "produce to", destination: "orders", kind: queueWords, err: fmt.Errorf("%w after 30s: last: %w", client.ErrDeliveryTimeout, wire.CodeDiskFull)},
			`produce to "orders": delivery timeout after 30s: last: DISK_FULL: the disk has too little space for records; reading and deleting go on; ` +
				`free space or shorten retention on the broker's disk, or wait longer with --timeout`},
		{"no better answer in time",
			&failure{doing: "pause", destination: "orders", err: overdue{context.DeadlineExceeded}},
			`pause "orders": context deadline exceeded; the last answer: NOT_LEADER; see what is away with: lockstep cluster health, and run this again when it is back`},
		{"full partition until the delivery timeout",
			&failure{doing: "produce to", destination: "orders", kind: queueWords, err: fmt.Errorf("%w after 30s: last: %w", client.ErrDeliveryTimeout, wire.CodePartitionFull)},
			`produce to "orders": delivery timeout after 30s: last: PARTITION_FULL: the partition holds as much as its destination allows; ` +
				`see who is to consume it with: lockstep group ls orders, raise what it may hold with: lockstep queue alter orders --threshold-records or --threshold-bytes, or wait longer with --timeout`},
		{"offset out of range",
			&failure{doing: "consume", destination: "events", kind: topicWords,
				err: &client.OutOfRangeError{Partition: 1, Offset: 9, Err: wire.Errorf(wire.CodeOutOfRange, "offset 9 is not in [100, 200]")}},
			`consume "events": partition 1: offset 9 is not in [100, 200]; read with --from earliest or --from latest, or look at the range with: lockstep topic describe events`},
		{"damage that the broker knows",
			&failure{doing: "consume", destination: "events", kind: topicWords,
				err: &client.CorruptError{Partition: 2, Offset: 4, Next: 6, Err: &wire.Error{Code: wire.CodeCorrupt, Detail: "records at offsets 4 to 5 are damaged on the disk", Next: 6}}},
			`consume "events": partition 2: damaged at offset 4: records at offsets 4 to 5 are damaged on the disk; continue with: lockstep consume events --partition 2 --offset 6`},
		{"damage among what somebody looks at",
			&failure{doing: "browse", destination: "events", kind: topicWords,
				err: &client.CorruptError{Partition: 2, Offset: 4, Next: 6, Err: &wire.Error{Code: wire.CodeCorrupt, Detail: "records at offsets 4 to 5 are damaged on the disk", Next: 6}}},
			`browse "events": partition 2: damaged at offset 4: records at offsets 4 to 5 are damaged on the disk; see what they hold up with: lockstep explain topic events --partition 2 --offset 4`},
		{"damage on the way or not",
			&failure{doing: "consume", destination: "events", kind: topicWords, err: &client.CorruptError{Partition: 2, Offset: 4, Err: errors.New("checksum mismatch")}},
			`consume "events": partition 2: damaged at offset 4: checksum mismatch; the broker examines its copy now: run this again to see whether only the way was bad`},
		{"records that went with the machine",
			&failure{doing: "consume", destination: "events", kind: topicWords,
				err: &client.DataLostError{Partition: 2, Offset: 9, Next: 6, Err: wire.Errorf(wire.CodeDataLost, "the machine stopped")}},
			`consume "events": partition 2: at most 3 records from offset 6 on are lost: the machine stopped; continue with: lockstep consume events --partition 2 --offset 6`},
		{"full disk",
			&failure{doing: "produce to", destination: "orders", kind: queueWords, err: wire.CodeDiskFull},
			`produce to "orders": the disk has too little space for records; reading and deleting go on; free space or shorten retention on the broker's disk, then run this again`},
		{"a code without words of its own takes the table's hint",
			&failure{doing: "produce to", destination: "orders", kind: queueWords, err: wire.Errorf(wire.CodePartitionFenced, "partition 3: write failed")},
			`produce to "orders": partition 3: write failed; look at the broker's log for the cause; a restart copies what is durable to new files`},
		{"wrapped in a send error", fmt.Errorf("%w", &client.SendError{Outcome: client.NotSent, Err: wire.CodeMailboxFull}),
			"the partition has more work waiting than it may hold; slow down"},
		{"a broker that may not join",
			&brokerError{fmt.Errorf("data directory d belongs to cluster 1; choose another --data, or leave --join out: %w", wire.Errorf(wire.CodeClusterMismatch, "this broker belongs to cluster 2, not 1"))},
			"data directory d belongs to cluster 1; choose another --data, or leave --join out: this broker belongs to cluster 2, not 1"},
		{"a broker that finds no member",
			&brokerError{fmt.Errorf("join via c:3: %w; nobody took this node in for 1m0s: is one of the members running?", refused)},
			"join via c:3: dial tcp: connect: connection refused; nobody took this node in for 1m0s: is one of the members running?"},
		{"a partition that is not there",
			&failure{doing: "move orders/99 from node 1 to node 2", err: wire.Errorf(wire.CodeUnknownPartition, `queue "orders" has partitions 0 to 3`)},
			`move orders/99 from node 1 to node 2: queue "orders" has partitions 0 to 3; list them with: lockstep partition ls`},
		{"a port that closes the connection at once",
			&failure{doing: connecting, err: fmt.Errorf("connect: handshake with a:1: %w: closed by the broker", client.ErrDisconnected)},
			"connect: handshake with a:1: connection to the broker lost: closed by the broker; check that the broker runs, and that --server names its port for clients (--listen) and not the one for other brokers (--peer-listen)"},
		{"a connection that is lost while no destination is meant",
			&failure{doing: "list partitions", err: fmt.Errorf("%w: closed by the broker", client.ErrDisconnected)},
			"list partitions: connection to the broker lost: closed by the broker; check that the broker runs"},
		{"a group that is not there",
			groupFailure("describe", "orders", "g", wire.Errorf(wire.CodeUnknownGroup, `queue "orders" has no group "g"`)),
			`describe group "g" of "orders": queue "orders" has no group "g"; list them with: lockstep group ls orders, or create it with: lockstep group create orders g`},
		{"a group to remove that is not there",
			groupFailure("remove", "orders", "g", wire.Errorf(wire.CodeUnknownGroup, `queue "orders" has no group "g"`)),
			`remove group "g" of "orders": queue "orders" has no group "g"; list them with: lockstep group ls orders`},
		{"nobody listens", fmt.Errorf("connect: %w", refused),
			"no broker at a:1,b:2 (connection refused); start one with: lockstep serve, or name one with --server"},
		{"host unreachable", fmt.Errorf("connect: %w", unreachable),
			"cannot connect to a:1,b:2: connect: no route to host; check --server and the network"},
		{"unknown host", fmt.Errorf("connect: %w", &net.DNSError{Name: "brokr", Err: "no such host"}),
			`host "brokr" cannot be found (no such host); check --server`},
		{"another protocol", fmt.Errorf("connect: %w", client.ErrProtocol),
			"a:1,b:2 does not speak Lockstep's protocol (connect: peer does not speak the protocol); check --server, the HTTP port is another one"},
		{"record too large for the client",
			&failure{doing: "produce to", destination: "events", kind: topicWords, err: fmt.Errorf("%w: 3000066 bytes", client.ErrRecordTooLarge)},
			"record is too large: 3000066 bytes; raise the limit with: lockstep topic alter events --max-record-bytes SIZE"},
		{"delivery timeout",
			&failure{doing: "produce to", destination: "events", kind: topicWords, err: client.ErrDeliveryTimeout},
			`produce to "events": delivery timeout; see what does not answer with: lockstep cluster health, or wait longer with --timeout`},
		{"anything else stays as it is", errors.New("out of cheese"), "out of cheese"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := shell{}.app(discard{}, discard{})
			a.servers = "a:1,b:2"
			require.Equal(t, c.want, a.explain(c.err))
		})
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	var stderr strings.Builder
	a := shell{}.app(discard{}, &stderr)
	require.Equal(t, 1, a.report(context.Background(), nil, errors.Join(errors.New("first"), errors.New("second\r\n"))))
	require.Equal(t, "lockstep: first; second\n", stderr.String())
}

// Every code of the error table that a client command can meet has a next step,
// its own or the table's, unless the description already says all.
func TestEveryErrorCodeIsExplained(t *testing.T) {
	a := shell{}.app(discard{}, discard{})
	for _, info := range wire.ErrorTable()[1:] {
		text := a.explain(&failure{doing: "produce to", destination: "orders", kind: queueWords, err: info.Code})
		require.NotEmpty(t, text)
		require.NotContains(t, text, info.Name, "people see words and not codes")
		require.Contains(t, text, "orders")
	}
}

// overdue is ctx's error after an answer that promised a better one, as the client returns it.
type overdue struct{ error }

func (e overdue) Error() string     { return e.error.Error() + "; the last answer: NOT_LEADER" }
func (e overdue) Unwrap() error     { return e.error }
func (e overdue) LastAnswer() error { return wire.CodeNotLeader }

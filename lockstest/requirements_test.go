package lockstest_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// What the requirements ask of groups, shown with one broker that all parts share: each
// bears the number of its requirement, and has a queue of its own. What needs more nodes
// than one is in requirements_cluster_test.go, what needs processes that are killed in
// package fuzz.

// stage is the broker of the parts.
type stage struct {
	broker *lockstest.Broker
	conn   *client.Conn
	queues atomic.Int64
}

func TestRequirementsOfGroups(t *testing.T) {
	s := &stage{broker: lockstest.Start(t)}
	s.conn = connectTo(t, s.broker.URL())
	for _, c := range []struct {
		name string
		show func(*testing.T)
	}{
		{"R_BRK_4_MembersLookPastPublishersOfOthers", s.pastPublishers},
		{"R_BRK_5_WhatIsSentAheadIsBounded", s.prefetch},
		{"R_BRK_6_AMemberHandlesOneRecordAtATime", s.oneAtATime},
		{"R_BRK_7_WhatALostMemberHeldComesAgainInOrder", s.lostMember},
		{"R_BRK_9_NothingIsAcknowledgedBeforeItsHandlerIsDone", s.midHandler},
		{"R_LSN_1_R_LSN_2_EachRecordIsHandledByOneInstance", s.listeners},
		{"R_LSN_6_ListenersOfTwoNamesShareAConnection", s.identities},
		{"R_UM_1_R_LSN_2_OneConsumerIsActiveAndTheOthersStandBy", s.sticky},
		{"R_UM_2_OneThatStandsByTakesOver", s.takeover},
		{"R_UM_3_AnyMemberMayBeNext", s.anyHolder},
		{"R_UM_4_OneRecordAMemberIsAnotherMode", s.unordered},
		{"R_UM_5_TheModeOfAGroupAtWorkChangesAtABoundary", s.altered},
		{"R_UM_7_WhoWouldRatherStandBy", s.preference},
		{"R_UM_8_OneAtATimeNeedsOnePartition", s.refused},
		{"AGroupHasWhatIsSentAfterItWasMade", s.begins},
		{"R_WLS_13_UnitsOfOrder", s.units},
		{"R_SIB_26_ASecondConsumerIsRefusedOrStandsBy", s.sole},
		{"R_SIB_19_AnAliasIsSomeOfThePartitions", s.alias},
		{"R_MQC_15_RecordsGoWhereConsumersAre", func(t *testing.T) { s.attended(t) }},
		{"R_MQC_12_WhatFailsTooOftenIsADeadLetter", s.letters},
		{"R_MQC_12_ACrashingConsumerTakesNoOtherRecordsAlong", s.crashing},
		{"R_MQC_12_AnInterruptedRedriveRepeatsNothing", s.redriven},
		{"R_MQC_12_AGroupThatBeginsAmidARedriveHasNothingOfIt", s.begunAmid},
		{"R_MQC_17_APoisonHoldsUpNobodyElse", s.poison},
		{"R_WLS_12_AForwardDelayIsRefused", s.forwarding},
		{"R_WLS_15_NothingIsWedgedInSilence", func(t *testing.T) { s.wedged(t) }},
		{"R_X_2_EpochsKeepStaleWritesOut", s.fenced},
		{"R_X_7_WhateverHoldsARecordUpIsNamed", s.explained},
		{"R_X_4_ABlockedKeyCostsOthersNothing", s.isolated},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.show(t)
		})
	}
}

// queue makes a queue of so many partitions.
func (s *stage) queue(t *testing.T, partitions uint32) string {
	t.Helper()
	return s.destination(t, client.Queue, partitions)
}

func (s *stage) destination(t *testing.T, kind client.Kind, partitions uint32) string {
	t.Helper()
	name := fmt.Sprintf("queue-%d", s.queues.Add(1))
	create(t.Context(), t, s.conn, client.Destination{Name: name, Kind: kind,
		Settings: client.Settings{Partitions: partitions, Sync: client.SyncOS, RecordIndex: wire.RecordIndexOn}}) // which topics have only if asked
	return name
}

// group makes the group g of a queue, with settings that are no options of a consumer.
func (s *stage) group(t *testing.T, queue string, settings client.GroupSettings) {
	t.Helper()
	_, err := s.conn.CreateGroup(t.Context(), queue, "g", client.GroupIntent{Settings: settings, Start: client.GroupStart{To: "earliest"}})
	require.NoError(t, err)
}

// send stores records one after the other; each is "key value", its value the whole.
func (s *stage) send(t *testing.T, queue string, items ...string) {
	t.Helper()
	p, err := s.conn.Producer(t.Context(), queue)
	require.NoError(t, err)
	for _, item := range items {
		key, _, _ := strings.Cut(item, " ")
		p.SendFunc(t.Context(), &client.Record{Key: []byte(key), Value: []byte(item)}, func(_ client.Receipt, err error) {
			if err != nil {
				t.Errorf("%s: %v", item, err)
			}
		})
	}
	require.NoError(t, p.Close(t.Context()))
}

// numbered are so many records of a key.
func numbered(key string, n int) (items []string) {
	for i := range n {
		items = append(items, fmt.Sprintf("%s %d", key, i))
	}
	return items
}

// join makes a member of the group g with a connection of its own.
func (s *stage) join(t *testing.T, queue string, opts ...client.ConsumerOption) *client.Consumer {
	t.Helper()
	c, err := connectTo(t, s.broker.URL()).Consumer(t.Context(), queue, append([]client.ConsumerOption{client.Group("g")}, opts...)...)
	require.NoError(t, err)
	return c
}

// mortal is a member that can die without a word, as its process does.
func (s *stage) mortal(t *testing.T, queue string, opts ...client.ConsumerOption) (c *client.Consumer, die func()) {
	t.Helper()
	conn, die := mortalConn(t, s.broker.URL())
	c, err := conn.Consumer(t.Context(), queue, append([]client.ConsumerOption{client.Group("g")}, opts...)...)
	require.NoError(t, err)
	return c, die
}

// mortalConn is a connection that does not come back once it was cut.
func mortalConn(t *testing.T, url string) (conn *client.Conn, die func()) {
	t.Helper()
	var sockets atomic.Pointer[[]net.Conn]
	conn, err := client.Connect(t.Context(), url, client.WithReconnect(false), client.WithDialer(func(ctx context.Context, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			var all []net.Conn
			if before := sockets.Load(); before != nil {
				all = *before
			}
			all = append(slices.Clip(all), c)
			sockets.Store(&all)
		}
		return c, err
	}))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn, func() {
		for _, c := range *sockets.Load() {
			_ = c.Close()
		}
	}
}

// state is how the group g stands in a partition of a queue.
func (s *stage) state(t *testing.T, queue string, partition int) client.GroupPartition {
	t.Helper()
	info, err := s.conn.DescribeGroup(t.Context(), queue, "g")
	require.NoError(t, err)
	require.Empty(t, info.Partitions[partition].Problem)
	return info.Partitions[partition]
}

// leased waits until the group g has leased so many records of the first partition.
func (s *stage) leased(t *testing.T, queue string, n uint64) {
	t.Helper()
	awaitThat(t, fmt.Sprintf("%d records are leased", n), func() bool { return s.state(t, queue, 0).Leased == n })
}

// awaitThat waits for what has no event.
func awaitThat(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, timeout, 2*time.Millisecond, what)
}

// take gets the next record of a member.
func take(t *testing.T, c *client.Consumer) *client.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	d, err := c.Next(ctx)
	require.NoError(t, err)
	return d
}

const idleWait = 50 * time.Millisecond

// idle says that a member gets nothing for a while that is long for a broker at rest.
func idle(t *testing.T, c *client.Consumer) {
	t.Helper()
	list, err := c.Fetch(t.Context(), 1, idleWait)
	require.NoError(t, err)
	require.Empty(t, list)
}

// done acknowledges records and waits until the broker has that.
func done(t *testing.T, list ...*client.Delivery) {
	t.Helper()
	for _, d := range list {
		require.NoError(t, d.AckSync(t.Context()))
	}
}

// leave ends a member in order.
func leave(t *testing.T, members ...*client.Consumer) {
	t.Helper()
	for _, c := range members {
		require.NoError(t, c.Close(t.Context()))
	}
}

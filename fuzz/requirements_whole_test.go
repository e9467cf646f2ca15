package fuzz

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// The requirements that hold while nothing fails.

// script is a client's work with a cluster, in two halves: all requests that there are,
// among them some that are refused. What comes of it is the same wherever it is done.
type script struct {
	conn *client.Conn
	name string
	p    *client.Producer
	said []string
}

func (s *script) say(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

// outcome is an error without what differs between nodes.
func outcome(err error) string {
	var refused *wire.Error
	if errors.As(err, &refused) {
		return refused.Code.String()
	}
	return fmt.Sprint(err)
}

func (s *script) send(t *testing.T, from, to int) {
	for i := from; i < to; i++ {
		r, err := s.p.Send(patient(t), &client.Record{Key: fmt.Appendf(nil, "key %d", i%7), Value: fmt.Append(nil, i)})
		require.NoError(t, err)
		s.say("%d: %d/%d, synced %t, again %t", i, r.Partition, r.Offset, r.Synced, r.Duplicate)
	}
}

func (s *script) begin(t *testing.T) {
	ctx := patient(t)
	d := client.Destination{Name: s.name, Kind: client.Topic, Settings: replicated}
	made, err := s.conn.CreateDestination(ctx, d)
	require.NoError(t, err)
	s.say("%d partitions of %d replicas", len(made.Partitions), len(made.Partitions[0].Replicas))
	ledTopic(t, s.conn, s.name)
	_, err = s.conn.CreateDestination(ctx, d)
	s.say("again: %s", outcome(err))
	d.Settings.RetentionTime = time.Hour
	altered, err := s.conn.AlterDestination(ctx, d, wire.MaskRetentionTime)
	s.say("altered: %v, %s", altered.Settings.RetentionTime, outcome(err))
	s.p, err = s.conn.Producer(ctx, s.name, client.ProducerName(s.name))
	require.NoError(t, err)
	s.send(t, 0, 15)
}

func (s *script) end(t *testing.T) {
	ctx := patient(t)
	s.send(t, 15, 30)
	require.NoError(t, s.p.Close(ctx))
	for _, q := range []client.OffsetQuery{client.Earliest(), client.Latest(), client.AtTime(time.Unix(1, 0))} {
		offsets, err := s.conn.Offsets(ctx, s.name, q)
		s.say("offsets: %v, %s", offsets, outcome(err))
	}
	s.say("content: %v", content(t, s.conn, s.name))
	r, err := s.conn.Reader(ctx, s.name, client.Partitions(0), client.FromOffset(1))
	require.NoError(t, err)
	rec, err := r.Next(ctx)
	require.NoError(t, err)
	s.say("one: %s at %d, %s", rec.Value, rec.Offset, outcome(r.Close()))
	_, err = s.conn.Reader(ctx, s.name, client.FromOffset(1000))
	var outside *client.OutOfRangeError
	s.say("outside: %t", errors.As(err, &outside))
	d, err := s.conn.Destination(ctx, s.name)
	require.NoError(t, err)
	s.say("to nowhere: %s", outcome(s.conn.TransferLeader(ctx, s.name, 0, 99)))
	s.say("to nowhere: %s", outcome(s.conn.MoveReplica(ctx, s.name, 0, 1, 99)))
	s.say("nobody: %s", outcome(s.conn.AdministerNode(ctx, 99, client.NodeDrain)))
	s.say("deleted: %s", outcome(s.conn.DeleteDestination(ctx, d)))
	_, err = s.conn.Destination(ctx, s.name)
	s.say("gone: %s", outcome(err))
	_, err = s.conn.Producer(ctx, s.name)
	s.say("gone: %s", outcome(err))
}

// everyNode does the same work through every node alone. What the first says is held
// against what a person expects of it.
func (s *suite) everyNode(t *testing.T) {
	var first []string
	for n := 1; n <= len(s.nodes); n++ {
		work := script{conn: dial(t, s.at(n), client.AllowRedirect(false)), name: fmt.Sprintf("script-%d", n)}
		work.begin(t)
		work.end(t)
		if first == nil {
			first = work.said
			require.Equal(t, []string{"3 partitions of 3 replicas", "again: ALREADY_EXISTS", "altered: 1h0m0s, <nil>"}, first[:3])
			require.Contains(t, first, "deleted: <nil>")
			require.Equal(t, "gone: UNKNOWN_DESTINATION", first[len(first)-1])
		}
		require.Equal(t, first, work.said, "node %d", n)
	}
	s.script = first
}

// topology is what a client learns from any node: the members, what they are and where,
// who leads what, and the version of all this.
func (s *suite) topology(t *testing.T) {
	d := s.topic(t, dial(t, s.at(1)), replicated)
	for n := 1; n <= len(s.nodes); n++ {
		conn := dial(t, s.at(n), client.AllowRedirect(false))
		var nodes []client.Node
		eventually(t, "a node knows all", func() bool {
			var version uint64
			var err error
			nodes, version, err = conn.Nodes(t.Context())
			return err == nil && version > 0 && len(nodes) == len(s.nodes)
		})
		for i, node := range nodes {
			require.EqualValues(t, i+1, node.ID)
			require.Equal(t, s.nodes[i].address, node.Address)
			require.True(t, node.Alive)
			require.Equal(t, i+1 == gateway, node.Role == wire.RoleGateway)
		}
		eventually(t, "all name the same leaders", func() bool {
			other, err := conn.Destination(t.Context(), d.Name)
			return err == nil && slices.EqualFunc(d.Partitions, other.Partitions, func(a, b client.PartitionInfo) bool {
				return a.Leader == b.Leader && a.Epoch == b.Epoch
			})
		})
	}
}

// redirects asks nodes that do not lead a partition, as one does whose metadata is old.
// They name who does, which serves: two hops. And a request that pretends to have been
// forwarded round and round is refused.
func (s *suite) redirects(t *testing.T) {
	d := s.topic(t, dial(t, s.at(1)), replicated)
	hello := wire.HelloRequest{MinVersion: wire.MinProtocolVersion, MaxVersion: wire.MaxProtocolVersion, Features: wire.FeatureFollowsRedirects}
	for _, p := range d.Partitions {
		for n := 1; n <= len(s.nodes); n++ {
			before := s.metric(t, n, "lockstep_redirects_total")
			open := &wire.OpenPartitionRequest{Destination: d.Name, Partition: p.Number}
			c, failure := rawDial(t, s.at(n), wire.Preface, &hello)
			require.Zero(t, failure.Code)
			failure = c.ask(wire.OpOpenPartition, open)
			if uint32(n) == p.Leader {
				require.Zero(t, failure.Code)
				continue
			}
			require.Equal(t, wire.CodeNotLeader, failure.Code)
			var refusal *wire.Error
			require.ErrorAs(t, failure.Err(), &refusal)
			leader, epoch := refusal.Leader()
			require.Equal(t, p.Leader, leader)
			require.Equal(t, p.Epoch, epoch)
			require.Equal(t, before+1, s.metric(t, n, "lockstep_redirects_total"))
			c, failure = rawDial(t, s.at(int(leader)), wire.Preface, &hello)
			require.Zero(t, failure.Code)
			require.Zero(t, c.ask(wire.OpOpenPartition, open).Code)
		}
	}
	_, failure := rawDial(t, s.nodes[0].args[3], wire.ForwardPreface, &wire.ForwardRequest{HelloRequest: hello, Node: 2, Hops: wire.MaxForwardHops + 1})
	require.Equal(t, wire.CodeNotLeader, failure.Code)
	require.Contains(t, failure.Detail, "circle")
}

// spread connects many clients that know three nodes.
func (s *suite) spread(t *testing.T) {
	homes := map[uint32]int{}
	for range 300 {
		conn, err := client.Connect(patient(t), s.at(1, 2, 3))
		require.NoError(t, err)
		homes[conn.Info().Node]++
		require.NoError(t, conn.Close())
	}
	for n := uint32(1); n <= 3; n++ {
		require.InDelta(t, 100, homes[n], 15)
	}
}

// thirtyTopics looks who leads thirty destinations; and a producer on one node reaches a
// consumer on another.
func (s *suite) thirtyTopics(t *testing.T) {
	conn := dial(t, s.at(1))
	leads := map[uint32]int{}
	eventually(t, "each node leads its share", func() bool {
		clear(leads)
		for _, name := range s.thirty {
			leads[ledTopic(t, conn, name).Partitions[0].Leader]++
		}
		return min(leads[1], leads[2], leads[3]) >= 8 && max(leads[1], leads[2], leads[3]) <= 12
	})
	d := ledTopic(t, conn, s.thirty[0])
	sendAll(t, producer(t, dial(t, s.at(1), client.AllowRedirect(false)), d), "from node 1 ", 100)
	require.Len(t, content(t, dial(t, s.at(3), client.AllowRedirect(false)), d.Name)[0], 100)
}

// local sends by way of a node that leads one of three partitions: all to that one, which
// nobody forwards; with the switch, to all.
func (s *suite) local(t *testing.T) {
	conn := dial(t, s.at(1))
	d := s.onePerNode(t, conn)
	mine := partitionOf(t, conn, d, 1)
	before := s.metrics(t, "lockstep_forwarded_total")
	require.Equal(t, map[uint32]int{mine: 10_000}, sendAll(t, producer(t, conn, d), "local ", 10_000).share())
	require.Equal(t, before, s.metrics(t, "lockstep_forwarded_total"))

	p := producer(t, conn, d, client.LocalPreference(false), client.BatchBytes(1))
	connected(t, p, 3)
	for partition, n := range sendAll(t, p, "any ", 3000).share() {
		require.InDelta(t, 1000, n, 30, "partition %d", partition)
	}
}

// byGateway sends by way of a node without partitions: evenly to all that there are,
// whether the client is sent there or the gateway passes on.
func (s *suite) byGateway(t *testing.T) {
	for _, partitions := range []uint32{2, 3} {
		for _, redirect := range []bool{true, false} {
			conn := dial(t, s.at(gateway), client.AllowRedirect(redirect))
			d := s.topic(t, conn, client.Settings{Partitions: partitions, Replicas: 1, Sync: client.SyncOS})
			p := producer(t, conn, d, client.BatchBytes(1))
			connected(t, p, int(partitions))
			before := s.metric(t, gateway, "lockstep_forwarded_total")
			counts := sendAll(t, p, "", 10_000).share()
			require.Len(t, counts, int(partitions))
			for partition, n := range counts {
				require.InDelta(t, 10_000/int(partitions), n, 100, "%d partitions, redirect %t: partition %d", partitions, redirect, partition)
			}
			require.Equal(t, redirect, before == s.metric(t, gateway, "lockstep_forwarded_total"))
		}
	}
}

// once sends through all nodes at the same time: each record is in one partition.
func (s *suite) once(t *testing.T) {
	conn := dial(t, s.at(1))
	d := s.topic(t, conn, replicated)
	var senders sync.WaitGroup
	ledgers := make([]*ledger, len(s.nodes))
	for n := range s.nodes {
		p := producer(t, dial(t, s.at(n+1), client.AllowRedirect(n%2 == 0)), d)
		senders.Go(func() { ledgers[n] = sendAll(t, p, fmt.Sprintf("node %d: ", n+1), 500) })
	}
	senders.Wait()
	values := content(t, conn, d.Name)
	total := 0
	for _, l := range ledgers {
		l.holds(t, values)
		total += l.answered()
	}
	offsets, err := conn.Offsets(patient(t), d.Name, client.Latest())
	require.NoError(t, err)
	var depth uint64
	for _, next := range offsets {
		depth += next
	}
	require.EqualValues(t, total, depth)
	require.Equal(t, len(s.nodes)*500, total)
	s.depth(t, conn)
}

// depth sends to a queue through all nodes and handles some of it at one: what all its
// partitions have left is what was sent and not acknowledged.
func (s *suite) depth(t *testing.T, conn *client.Conn) {
	const each, acked = 100, 150
	d, err := conn.CreateDestination(patient(t), client.Destination{Name: "depth", Kind: client.Queue, Settings: replicated})
	require.NoError(t, err)
	ledTopic(t, conn, d.Name)
	for n := range s.nodes {
		sendAll(t, producer(t, dial(t, s.at(n+1), client.AllowRedirect(false)), &d, client.LocalPreference(n%2 == 0)), fmt.Sprintf("node %d: ", n+1), each)
	}
	require.EqualValues(t, len(s.nodes)*each-acked, backlog(t, conn, d.Name, func(c *client.Consumer) { handle(t, c, acked) }))
}

// handle acknowledges records.
func handle(t *testing.T, c *client.Consumer, records int) {
	for records > 0 {
		list, err := c.Fetch(patient(t), records, startTimeout)
		require.NoError(t, err)
		for _, d := range list {
			require.NoError(t, d.Ack())
		}
		records -= len(list)
	}
}

// backlog is what a queue has left, all partitions together, after a consumer's work.
func backlog(t *testing.T, conn *client.Conn, queue string, work func(*client.Consumer)) (left uint64) {
	c, err := conn.Consumer(patient(t), queue, client.Group("g"), client.Mode(client.Shared))
	require.NoError(t, err)
	work(c)
	require.NoError(t, c.Close(patient(t)))
	for _, p := range standing(t, conn, queue).Partitions {
		left += p.Backlog
	}
	return left
}

// standing is how the group of a queue stands, as soon as every partition can say it.
func standing(t *testing.T, conn *client.Conn, queue string) (info client.GroupInfo) {
	eventually(t, "the group is known in each partition", func() bool {
		var err error
		info, err = conn.DescribeGroup(t.Context(), queue, "g")
		return err == nil && !slices.ContainsFunc(info.Partitions, func(p client.GroupPartition) bool { return p.Problem != "" || p.GroupID == 0 })
	})
	return info
}

// forwardedOrder sends by way of a gateway to one partition, as fast as it goes.
func (s *suite) forwardedOrder(t *testing.T) {
	conn := dial(t, s.at(gateway), client.AllowRedirect(false))
	d := s.onePerNode(t, conn)
	n := partitionOf(t, conn, d, 2)
	sendAll(t, producer(t, conn, d, client.Partition(n), client.BatchBytes(500)), "", 10_000)
	values := content(t, conn, d.Name)[n]
	require.Len(t, values, 10_000)
	require.True(t, slices.IsSorted(values))
}

// affinity binds what a producer sends: on its opening, not at all, or by the group that
// a record belongs to.
func (s *suite) affinity(t *testing.T) {
	conn := dial(t, s.at(gateway))
	d := s.topic(t, conn, client.Settings{Partitions: 6, Replicas: 1, Sync: client.SyncOS})
	taken := map[uint32]bool{}
	for range 20 {
		counts := sendAll(t, producer(t, conn, d, client.Affinity(client.PerProducer), client.BatchBytes(1)), "", 30).share()
		require.Len(t, counts, 1, "one partition for the life of a producer")
		for n := range counts {
			taken[n] = true
		}
	}
	require.Greater(t, len(taken), 2, "but not the same for all")
	p := producer(t, conn, d, client.BatchBytes(1))
	connected(t, p, 6)
	require.Len(t, sendAll(t, p, "", 60).share(), 6)
	ctx, l := patient(t), newLedger()
	for i := range 60 {
		require.NoError(t, l.send(ctx, p, "group 7", fmt.Sprint(i)))
	}
	require.NoError(t, p.Flush(ctx))
	require.Equal(t, 60, l.answered())
	require.Len(t, l.share(), 1)
}

// policies spreads records in turn and at random. Weights are for another test.
func (s *suite) policies(t *testing.T) {
	conn := dial(t, s.at(1))
	d := s.onePerNode(t, conn)
	for name, policy := range map[string]client.Policy{"in turn": client.RoundRobin, "random": client.Random, "all of the same weight": client.Weighted} {
		p := producer(t, conn, d, client.Balance(policy), client.LocalPreference(false), client.BatchBytes(1))
		connected(t, p, 3)
		for partition, n := range sendAll(t, p, name, 12_000).share() {
			require.InDelta(t, 4000, n, 240, "%s: partition %d", name, partition)
		}
	}
}

// targets asks for a node or a rack as the home.
func (s *suite) targets(t *testing.T) {
	for _, c := range []struct {
		name string
		opt  client.Option
		want uint32
	}{
		{"a node that was not given", client.TargetNode(3, client.Require), 3},
		{"the gateway", client.TargetNode(gateway, client.Require), gateway},
		{"a rack", client.TargetRack("b", client.Require), 2},
		{"a rack that would be nice", client.TargetRack("c", client.Prefer), 3},
		{"a rack that does not exist and would be nice", client.TargetRack("z", client.Prefer), 1},
	} {
		require.Equal(t, c.want, dial(t, s.at(1), c.opt).Info().Node, c.name)
	}
	_, err := client.Connect(patient(t), s.at(1), client.TargetRack("z", client.Require))
	require.ErrorIs(t, err, client.ErrTarget)
}

// receipts holds what receipts say against what the destination is and what is read.
func (s *suite) receipts(t *testing.T) {
	conn := dial(t, s.at(1))
	for _, c := range []struct {
		name     string
		settings client.Settings
		acks     client.AckLevel
		least    int // replicas
		synced   bool
	}{
		{"three replicas, synced", replicated, client.AcksQuorum, 2, true},
		{"three replicas, not synced", client.Settings{Partitions: 3, Replicas: 3, Sync: client.SyncOS}, client.AcksQuorum, 2, false},
		{"the leader's memory", replicated, client.AcksLeader, 1, false},
		{"one replica", client.Settings{Partitions: 3, Replicas: 1}, client.AcksQuorum, 1, true},
		{"memory", client.Settings{Partitions: 3, Replicas: 3, Storage: client.StorageMemory}, client.AcksQuorum, 2, false},
	} {
		d := s.topic(t, conn, c.settings)
		options := []client.ProducerOption{client.Acks(c.acks), client.LocalPreference(false)}
		if c.acks != client.AcksQuorum {
			options = append(options, client.Idempotent(false))
		}
		l := sendAll(t, producer(t, conn, d, options...), "", 30)
		r, err := conn.Reader(patient(t), d.Name)
		require.NoError(t, err)
		for range l.receipts {
			rec, err := r.Next(patient(t))
			require.NoError(t, err)
			said := l.receipts[string(rec.Value)]
			require.Equal(t, rec.Partition, said.Partition, c.name)
			require.Equal(t, rec.Offset, said.Offset, c.name)
			require.Equal(t, rec.Epoch, said.Epoch, c.name)
			require.Equal(t, rec.AppendTime, said.AppendTime, c.name)
		}
		require.NoError(t, r.Close())
		for _, r := range l.receipts {
			require.GreaterOrEqual(t, r.Replicas, c.least, c.name)
			require.LessOrEqual(t, r.Replicas, max(c.least, len(d.Partitions[0].Replicas)), c.name)
			require.Equal(t, c.synced, r.Synced, c.name)
			if c.acks == client.AcksLeader {
				require.Equal(t, 1, r.Replicas, c.name)
			}
		}
	}
}

func TestRequirements(t *testing.T) {
	s := newSuite(t)
	for _, c := range []struct {
		name string
		show func(*testing.T)
	}{
		{"R_IS_1_EveryNodeDoesTheSame", s.everyNode},
		{"R_IS_2_EveryNodeTellsTheTopology", s.topology},
		{"R_IS_3_WhoDoesNotLeadNamesTheLeader", s.redirects},
		{"R_IS_4_ConnectionsSpread", s.spread},
		{"R_SIB_1_R_SIB_5_R_MQC_3_LocalPartitionsComeFirst", s.local},
		{"R_SIB_2_R_MQC_2_AGatewaySpreads", s.byGateway},
		{"R_SIB_7_R_MQC_1_EachRecordIsInOnePartition", s.once},
		{"R_SIB_8_ForwardingKeepsTheOrder", s.forwardedOrder},
		{"R_SIB_6_R_MQC_6_AProducerMayStay", s.affinity},
		{"R_WLS_11_PoliciesSpreadAsTheySay", s.policies},
		{"R_SIB_24_TheHomeIsTheNodeThatIsWanted", s.targets},
		{"R_X_11_ReceiptsAreTrue", s.receipts},
		{"R_WLS_1_ThirtyDestinationsAreLedByAllNodes", s.thirtyTopics},
		{"R_SIB_20_R_WLS_4_TemporaryQueuesAreReachedOverAnyNode", s.temporary},
	} {
		t.Run(c.name, c.show)
	}
	load := s.startLoad(t)
	publishers := s.crew(t, "publishers", 3, crewPublishers, client.GroupSettings{Mode: client.Serial, Scope: client.ByPublisher})
	sticky := s.crew(t, "sticky", 1, 1, client.GroupSettings{Mode: client.Serial, Scope: client.ByDestination, Holder: client.Sticky})
	s.lose(t, 2, []loss{
		{"R_WLS_2_OtherPartitionsDoNotNotice", s.isolated(1, 3)},
		{"R_WLS_9_R_WLS_14_AnotherNodeLeads", s.available},
		{"R_IS_1_TheFirstNodeIsNoMoreThanThat", s.bootstrap},
		{"R_IS_7_ASessionOutlivesItsNode", s.session(2)},
		{"R_IS_2_WithoutRedirectsCallsFail", s.restricted},
		{"R_WLS_5_R_WLS_7_WhoIsConcernedIsTold", s.told},
		{"R_WLS_6_NoCallOutlivesItsBroker", s.unreconnected(2)},
		{"R_SIB_3_R_MQC_4_OnlyActivePartitionsReceive", s.active},
		{"R_MQC_8_R_MQC_9_ProducerAndReaderGoOnElsewhere", s.combined},
		{"R_WLS_3_OnlyVolatileRecordsAreLost", s.volatile(s.at(1))},
		{"R_MQC_11_OnlyVolatileRecordsAreLost", s.volatile(s.at(gateway), client.AllowRedirect(false))},
		{"R_SIB_24_RequiredOrPreferred", s.untargeted},
		{"R_X_11_ReceiptsCountTheLiving", s.fewer},
		{"R_WLS_4_R_IS_7_TemporaryQueuesDieWithTheirNode", s.orphans(2)},
	})
	s.await(t, 1, 2, 3, gateway)
	s.lose(t, gateway, []loss{
		{"R_MQC_10_OthersDoNotNotice", s.isolated(1, 3)},
		{"R_SIB_9_AGatewayKeepsNothing", s.passedOn},
	})
	for _, c := range []struct {
		name string
		show func(*testing.T)
	}{
		{"R_WLS_5_R_WLS_6_ASilentNodeIsALostOne", s.silent},
		{"R_X_5_RotIsRepaired", s.rot},
		{"R_WLS_10_R_X_6_R_MQC_16_ProducesOnceAcrossKills", s.kills},
		{"R_WLS_8_AllIsThereAfterARestart", s.restart},
		{"R_IS_5_AnotherNodeTakesItsShare", s.grow},
		{"R_MQC_14_R_MQC_9_NothingIsMarooned", s.destroy},
		{"R_X_5_WhatWasAcknowledgedIsReadable", load.check},
		{"R_BRK_10_PublishersStayInOrderThroughAllThat", publishers.check},
		{"R_UM_6_AndThereIsOneActiveConsumerAtATime", sticky.check},
	} {
		t.Run(c.name, c.show)
	}
}

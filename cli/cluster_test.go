package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/wire"
)

// threeNodes is a healthy cluster with one queue of two partitions.
func threeNodes() ([]client.Node, []client.Destination) {
	nodes := []client.Node{
		{ID: 1, Address: "a:1", Alive: true}, {ID: 2, Address: "b:1", Alive: true, Rack: "r2"}, {ID: 3, Address: "c:1", Alive: true, Role: wire.RoleGateway},
	}
	replicas := func() []client.Replica {
		return []client.Replica{{Replica: 5, Node: 1, State: wire.ReplicaActive}, {Replica: 6, Node: 2, State: wire.ReplicaActive}}
	}
	d := client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Replicas: 2}, Partitions: []client.PartitionInfo{
		{Number: 0, Leader: 1, State: wire.PartitionActive, Replicas: replicas()},
		{Number: 1, Leader: 2, State: wire.PartitionActive, Replicas: replicas()},
	}}
	return nodes, []client.Destination{d}
}

func TestHealthNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(nodes []client.Node, orders []client.PartitionInfo)
		want   []string
		counts [2]int // under-replicated, offline
	}{
		{"nothing", func([]client.Node, []client.PartitionInfo) {}, []string{}, [2]int{}},
		{"a dead node", func(n []client.Node, _ []client.PartitionInfo) { n[1].Alive = false }, []string{
			"partitions orders/0, orders/1 take no records: 1 of 2 replicas can, 2 are needed: node 2 does not answer; " +
				"start node 2, or give up what they had, see lockstep partition recover --help",
			"node 2 (b:1) does not answer; it has 2 replicas",
		}, [2]int{2, 0}},
		{"a dead gateway", func(n []client.Node, _ []client.PartitionInfo) { n[2].Alive = false }, []string{"node 3 (c:1) does not answer"}, [2]int{}},
		{"no leader", func(_ []client.Node, p []client.PartitionInfo) { p[1].Leader = 0 }, []string{"partition orders/1 has no leader"}, [2]int{0, 1}},
		{"a partition of one replica that nobody wrote to", func(_ []client.Node, p []client.PartitionInfo) {
			p[1].Leader, p[1].Replicas = 0, p[1].Replicas[:1]
		}, []string{"partition orders/1 has 1 of 2 replicas; others are made once brokers that hold none of it can take them"}, [2]int{1, 0}},
		{"a partition of one replica on a dead node", func(n []client.Node, p []client.PartitionInfo) {
			n[1].Alive, p[1].Leader, p[1].Replicas = false, 0, p[1].Replicas[1:]
			p[0].Replicas = p[0].Replicas[:1]
		}, []string{
			"partition orders/0 has 1 of 2 replicas; others are made once brokers that hold none of it can take them",
			"partition orders/1 has 1 of 2 replicas; others are made once brokers that hold none of it can take them",
			"partition orders/1 has no leader and takes no records: its only replica cannot: node 2 does not answer; start node 2",
			"node 2 (b:1) does not answer; it has 1 replica",
		}, [2]int{2, 1}},
		{"a fence", func(_ []client.Node, p []client.PartitionInfo) {
			p[0].State, p[0].Problem = wire.PartitionFenced, "disk\nerror"
		}, []string{"partition orders/0 is fenced: disk; error"}, [2]int{}},
		{"damage", func(_ []client.Node, p []client.PartitionInfo) { p[0].Damaged = 2 }, []string{"partition orders/0 has 2 damaged ranges"}, [2]int{}},
		{"a replica that moves", func(_ []client.Node, p []client.PartitionInfo) {
			p[0].Replicas[0].State, p[0].Replicas[1].State = wire.ReplicaLeaving, wire.ReplicaJoining
		}, []string{
			"partition orders/0: its replica on node 1 is leaving", "partition orders/0: its replica on node 2 is joining",
			"partition orders/0 has 1 of 2 replicas; others are made once brokers that hold none of it can take them",
		}, [2]int{1, 0}},
		{"a replica that is yet to be made", func(_ []client.Node, p []client.PartitionInfo) { p[1].Replicas = p[1].Replicas[1:] }, []string{
			"partition orders/1 has 1 of 2 replicas; others are made once brokers that hold none of it can take them",
		}, [2]int{1, 0}},
		{"a new partition whose replicas are not there yet", func(_ []client.Node, p []client.PartitionInfo) {
			p[1].Replicas[0].State, p[1].Replicas[1].State = wire.ReplicaNew, wire.ReplicaNew
		}, []string{}, [2]int{1, 0}},
		{"a draining node that leads", func(n []client.Node, _ []client.PartitionInfo) { n[0].State = wire.NodeDraining },
			[]string{"node 1 is draining and still leads 1 partition"}, [2]int{}},
		{"a draining node that leads what nobody else could", func(n []client.Node, p []client.PartitionInfo) {
			n[0].State, p[0].Replicas = wire.NodeDraining, p[0].Replicas[:1]
		}, []string{"partition orders/0 has 1 of 2 replicas; others are made once brokers that hold none of it can take them"}, [2]int{1, 0}},
		{"no leaders", func(_ []client.Node, p []client.PartitionInfo) { p[0].Leader, p[1].Leader = 0, 0 },
			[]string{"partitions orders/0, orders/1 have no leader"}, [2]int{0, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes, destinations := threeNodes()
			c.change(nodes, destinations[0].Partitions)
			got := judgeCluster(7, nodes, destinations, nil)
			require.Equal(t, c.want, got.Problems)
			require.Equal(t, len(c.want) == 0, got.Healthy)
			require.Equal(t, c.counts, [2]int{got.UnderReplicated, got.Offline})
		})
	}
}

// A partition that cannot store is named, with the reason and what to do, and those that
// lack the same together (docs/cluster.md, "Looking at it").
func TestHealthNamesPartitionsThatCannotStore(t *testing.T) {
	const orders, many = "partition orders/0 takes no records: ", "partitions orders/0, orders/1, orders/2 and 2 more take no records: "
	const recoverHint = ", or give up what they had, see lockstep partition recover --help"
	for _, c := range []struct {
		name       string
		storage    wire.Storage
		partitions int
		nodes      [4]string // from 1 on: full, dead, or empty
		states     []wire.ReplicaState
		want       string
	}{
		{"one of three is full", wire.StorageDisk, 1, [4]string{1: "full"}, []wire.ReplicaState{1, 1, 1}, ""},
		{"one of three is dead", wire.StorageDisk, 1, [4]string{1: "dead"}, []wire.ReplicaState{1, 1, 1}, ""},
		{"two of three are full", wire.StorageDisk, 1, [4]string{2: "full", 3: "full"}, []wire.ReplicaState{1, 1, 1},
			orders + "1 of 3 replicas can, 2 are needed: no space on nodes 2, 3; free disk space on nodes 2, 3"},
		{"in memory that does not matter", wire.StorageMemory, 1, [4]string{2: "full", 3: "full"}, []wire.ReplicaState{1, 1, 1}, ""},
		{"one is full and one is dead", wire.StorageDisk, 5, [4]string{1: "full", 3: "dead"}, []wire.ReplicaState{1, 1, 1},
			many + "1 of 3 replicas can, 2 are needed: node 3 does not answer, no space on node 1; start node 3, or free disk space on node 1"},
		{"two are dead", wire.StorageDisk, 1, [4]string{1: "dead", 2: "dead"}, []wire.ReplicaState{1, 1, 1},
			orders + "1 of 3 replicas can, 2 are needed: nodes 1, 2 do not answer; start 1 of nodes 1, 2" + recoverHint},
		{"two are lost", wire.StorageDisk, 1, [4]string{}, []wire.ReplicaState{1, 4, 4},
			orders + "1 of 3 replicas can, 2 are needed: what nodes 2, 3 had is lost; give up what they had, see lockstep partition recover --help"},
		{"the only one is full", wire.StorageDisk, 1, [4]string{1: "full"}, []wire.ReplicaState{1},
			orders + "its only replica cannot: no space on node 1; free disk space on node 1"},
		{"one that joins has no vote yet", wire.StorageDisk, 1, [4]string{1: "full"}, []wire.ReplicaState{1, 2, 2},
			orders + "its only replica cannot: no space on node 1; free disk space on node 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			full := map[uint32]bool{}
			var nodes []client.Node
			for id := uint32(1); id <= 3; id++ {
				nodes = append(nodes, client.Node{ID: id, Alive: c.nodes[id] != "dead"})
				full[id] = c.nodes[id] == "full"
			}
			d := client.Destination{Name: "orders", Settings: client.Settings{Storage: c.storage}}
			for number := range c.partitions {
				p := client.PartitionInfo{Number: uint32(number), Leader: 1, State: wire.PartitionActive}
				for i, state := range c.states {
					p.Replicas = append(p.Replicas, client.Replica{Node: uint32(i + 1), State: state})
				}
				d.Partitions = append(d.Partitions, p)
			}
			problems := judgeCluster(7, nodes, []client.Destination{d}, full).Problems
			i := slices.IndexFunc(problems, func(text string) bool { return strings.Contains(text, "no records") })
			if c.want == "" {
				require.Negative(t, i, problems)
				return
			}
			require.Contains(t, problems, c.want)
		})
	}
}

func TestTooFewVotersOfTheMetadataAreAProblem(t *testing.T) {
	nodes := func(alive, dead, leaving int) (list []nodeJSON) {
		for range alive {
			list = append(list, nodeJSON{State: "up", Alive: true})
		}
		for range dead {
			list = append(list, nodeJSON{State: "up"})
		}
		for range leaving {
			list = append(list, nodeJSON{State: wire.NodeLeaving.String(), Alive: true})
		}
		return list
	}
	const lacks = "%d of %d nodes that could vote about the metadata do: they are still joining"
	for _, c := range []struct {
		name   string
		nodes  []nodeJSON
		voters uint16
		want   string
	}{
		{"one node", nodes(1, 0, 0), 1, ""},
		{"two nodes cannot do better than one", nodes(2, 0, 0), 1, ""},
		{"three nodes that were just started", nodes(3, 0, 0), 1, fmt.Sprintf(lacks, 1, 3)},
		{"three that vote", nodes(3, 0, 0), 3, ""},
		{"one of three is dead and votes", nodes(2, 1, 0), 3, ""},
		{"one of four leaves", nodes(3, 0, 1), 3, ""},
		{"six nodes", nodes(6, 0, 0), 3, fmt.Sprintf(lacks, 3, 5)},
		{"nine nodes have five voters", nodes(9, 0, 0), 5, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, lacksVoters(&clusterJSON{Nodes: c.nodes, Voters: make([]uint32, c.voters)}))
		})
	}
}

func TestNodesAreCountedWithWhatTheyHold(t *testing.T) {
	nodes, destinations := threeNodes()
	got := judgeCluster(7, nodes, destinations, nil)
	require.Equal(t, &clusterJSON{Version: 7, Healthy: true, Problems: []string{}, Destinations: 1, Partitions: 2, Nodes: []nodeJSON{
		{Node: 1, Address: "a:1", Role: "broker", State: "up", Alive: true, Leaders: 1, Replicas: 2},
		{Node: 2, Address: "b:1", Rack: "r2", Role: "broker", State: "up", Alive: true, Leaders: 1, Replicas: 2},
		{Node: 3, Address: "c:1", Role: "gateway", State: "up", Alive: true},
	}}, got)
}

// A node whose disk is full is a problem that says what to do.
func TestAFullDiskIsAProblem(t *testing.T) {
	s, err := server.Start(context.Background(), server.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: 1 << 60})
	require.NoError(t, err)
	defer s.Close(context.Background())
	sh := at(s.Addr(), "")
	health := sh.run(context.Background(), "cluster", "health")
	require.Equal(t, 1, health.code)
	require.Equal(t, "not healthy:\n  node 1 ("+s.Addr()+") takes no records: its disk has no more than the 1 EiB free that are kept; "+
		"free some there, shorten a retention, or delete a destination\n", health.stdout)
	must(t, sh, "queue", "create", "orders")
	require.Eventually(t, func() bool { // once the metadata knows that the replica is there
		return strings.Contains(sh.run(context.Background(), "cluster", "health").stdout,
			"\n  partition orders/0 takes no records: its only replica cannot: no space on node 1; free disk space on node 1\n")
	}, 30*time.Second, 20*time.Millisecond)
	require.Regexp(t, `broker +up, disk full +`, must(t, sh, "node", "ls"))
}

// Who reads the health of a cluster that does not answer finds a list of nodes all the same.
func TestHealthOfNobodyHasAListOfNodes(t *testing.T) {
	got := at("127.0.0.1:1", "").run(context.Background(), "cluster", "health", "--watch", "--timeout", "1ms", "-o", "json")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stdout, `"nodes": []`)
	require.Contains(t, got.stdout, "no broker at 127.0.0.1:1")
}

func TestTimeThatIsOverNamesWhatIsLeft(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	require.EqualError(t, notDone(ctx, context.DeadlineExceeded, "nobody leads orders/0"),
		"not done in time: nobody leads orders/0; if that lasts, see what is not as it should be with: lockstep cluster health")
	require.ErrorIs(t, notDone(ctx, context.DeadlineExceeded, ""), context.DeadlineExceeded, "nobody has answered")
	require.ErrorIs(t, notDone(t.Context(), client.ErrDisconnected, "nobody leads orders/0"), client.ErrDisconnected)
}

// Nodes that must be given have no default.
func TestMovesHelpNamesNoDefaultNode(t *testing.T) {
	require.NotContains(t, shell{}.run(context.Background(), "partition", "move", "--help").stdout, "default 0")
}

func TestClusterCommandsOnOneNode(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders", "--partitions", "2")
	must(t, at(address, "a\nb\n"), "produce", "orders", "--partition", "0")

	require.Equal(t, "healthy\n", must(t, sh, "cluster", "health"))
	stamp := `20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)`
	require.Regexp(t, `^`+stamp+` healthy\n$`, must(t, sh, "cluster", "health", "--watch", "--exit-when-healthy"))
	require.Regexp(t, `^\{\n  "time": "`+stamp+`",\n`, must(t, sh, "cluster", "health", "--watch", "--exit-when-healthy", "-o", "json"))
	var s clusterJSON
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "cluster", "status", "-o", "json")), &s))
	require.True(t, s.Healthy)
	require.Equal(t, 2, s.Partitions)
	require.Equal(t, []any{0, 0, uint32(1), uint16(1)}, []any{s.UnderReplicated, s.Offline, s.Controller, s.Level})
	n := s.Nodes[0]
	require.Positive(t, n.StoredBytes)
	require.Greater(t, n.TotalBytes, n.FreeBytes)
	require.Equal(t, nodeJSON{
		Node: 1, Address: address, Role: "broker", State: "up", Alive: true, Leaders: n.Leaders, Replicas: 2,
		Version: server.Version(), UptimeMs: n.UptimeMs, StoredBytes: n.StoredBytes, FreeBytes: n.FreeBytes, TotalBytes: n.TotalBytes, KeptBytes: n.KeptBytes,
		PeerAddress: n.PeerAddress, HTTP: n.HTTP,
	}, n)
	require.Regexp(t, `^NODE +ADDRESS +RACK +ROLE +STATE +LEADERS +REPLICAS +VERSION +UPTIME +STORED +FREE\n +1 +`+address+` +- +broker +up +\d +2 +`+server.Version()+` +\ds +392 B +\S+ \S+\n`+
		`\n1 node, 1 destination, 2 partitions \(0 under-replicated, 0 offline\)\ncontroller: node 1, 1 voter \[1\], feature level 1, metadata version \d+\nhealthy\n$`,
		must(t, sh, "cluster", "status"))
	require.Regexp(t, `(?m)^orders/0 +1 +1 +active +1 +- +1 +0 +2$`, must(t, sh, "partition", "ls", "orders"))
	var partitions []replicatedJSON
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "partition", "ls", "-o", "json")), &partitions))
	require.Len(t, partitions, 2)
	require.Len(t, partitions[0].Replicas, 1)

	require.Equal(t, "altered orders/0\n", must(t, sh, "partition", "alter", "orders/0", "--weight", "3", "--send", "disabled"))
	require.Equal(t, "altered orders\n", must(t, sh, "partition", "alter", "orders", "--preferred-leader", "1"))
	require.Regexp(t, `(?m)^orders/0 +1 +1 +active, closed to new records +1 +1, failback +3 +0 +2$`, must(t, sh, "partition", "ls", "orders"))
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "partition", "ls", "-o", "json")), &partitions))
	require.Equal(t, []any{uint32(1), "failback", uint8(3), true}, []any{partitions[0].Preferred, partitions[0].Policy, partitions[0].Weight, partitions[0].Closed})
	require.Equal(t, []any{uint32(1), "failback", uint8(1), false}, []any{partitions[1].Preferred, partitions[1].Policy, partitions[1].Weight, partitions[1].Closed})
	must(t, sh, "partition", "alter", "orders", "--preferred-leader", "0", "--send", "enabled")
	must(t, sh, "queue", "create", "eu/7")
	require.Equal(t, "altered eu/7\n", must(t, sh, "partition", "alter", "eu/7", "--weight", "2"), "a name that looks like a partition")
	require.Equal(t, "altered eu/7/0\n", must(t, sh, "partition", "alter", "eu/7/0", "--weight", "2"))

	must(t, sh, "queue", "create", "lines", "--partitions", "8")
	must(t, at(address, strings.Repeat("x\n", 1000)), "produce", "lines", "--in-order")
	var lines destinationJSON
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "queue", "describe", "lines", "-o", "json")), &lines))
	require.Equal(t, 1, len(slices.DeleteFunc(lines.Partitions, func(p partitionJSON) bool { return p.Records != 1000 })), "all are in one partition")

	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"produce", "lines", "--in-order", "--partition", "1"}, 2},
		{[]string{"produce", "lines", "--in-order", "-K", ":"}, 2},
		{[]string{"partition", "alter", "orders"}, 2},
		{[]string{"partition", "alter", "orders/0", "--weight", "0"}, 2},
		{[]string{"partition", "alter", "orders/9", "--weight", "2"}, 1},
		{[]string{"partition", "alter", "nope/0", "--weight", "2"}, 1},
		{[]string{"partition", "alter", "orders/0", "--preferred-leader", "2"}, 1},
		{[]string{"partition", "alter", "orders/0", "--leader-policy", "pinned"}, 1},
		{[]string{"node", "decommission", "1"}, 1},
		{[]string{"node", "drain", "9"}, 1},
		{[]string{"node", "drain", "x"}, 2},
		{[]string{"partition", "move", "orders"}, 2},
		{[]string{"partition", "move", "orders/0"}, 2},
		{[]string{"partition", "move", "orders/0", "--from", "1", "--to", "2"}, 1},
		{[]string{"partition", "transfer-leader", "nope/0"}, 1},
		{[]string{"cluster", "health", "--exit-when-healthy"}, 2},
		{[]string{"partition", "recover", "orders"}, 2},
		{[]string{"partition", "recover", "orders/0"}, 1},
		{[]string{"partition", "recover", "orders/0", "--accept-loss"}, 1},
		{[]string{"partition", "recover", "nope/0"}, 1},
	} {
		got := sh.run(context.Background(), c.args...)
		require.Equal(t, c.code, got.code, "%v: %s", c.args, got.stderr)
		require.Empty(t, got.stdout)
		t.Log(got.stderr)
	}
}

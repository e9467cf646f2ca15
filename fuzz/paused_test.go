package fuzz

import (
	"flag"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

var pausedLeaders = flag.Int("paused.leaders", 0, "how often TestR_IS_7_APausedLeaderCostsNoSession pauses a leader; 0: not at all")

const (
	pausedSession = 6 * time.Second
	pausedFor     = 15 * time.Second
	pausedRecords = 20
)

// TestR_IS_7_APausedLeaderCostsNoSession stops the process of a leader for more than twice
// the session timeout of a group. Its consumer finds the next leader in time: what it
// held is its own, and settled by its own acknowledgements; nothing is delivered twice, and
// no lease is lost, neither meanwhile nor when the leader that was goes on.
func TestR_IS_7_APausedLeaderCostsNoSession(t *testing.T) {
	if *pausedLeaders == 0 {
		t.Skip("SKIPPED: TestR_IS_7_ASilentLeaderIsGivenUpWithinTheSessionTimeout shows it with a broker of the client's tests; -paused.leaders 10 pauses real ones")
	}
	c := newClusterProcess(t)
	conn := c.connect()
	const queue = "jobs"
	require.Eventually(t, func() bool {
		_, err := conn.CreateDestination(t.Context(), client.Destination{Name: queue, Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: clusterNodes}})
		return err == nil
	}, startTimeout, 50*time.Millisecond)
	settings := client.GroupSettings{Mode: client.Serial, SessionMs: uint32(pausedSession.Milliseconds())}
	_, err := conn.CreateGroup(patient(t), queue, "g", client.GroupIntent{Settings: settings})
	require.NoError(t, err)
	lost := newEvents()
	own := c.connect() // whoever only sends takes longer to notice
	consumer, err := own.Consumer(patient(t), queue, client.Group("g"), client.Prefetch(2*pausedRecords), client.OnEvent(lost.add))
	require.NoError(t, err)
	p := producer(t, own, &client.Destination{Name: queue})
	sent, seen := 0, map[string]int{}
	fill := func(n int) (held []*client.Delivery) {
		t.Helper()
		for range n {
			_, err := p.Send(patient(t), &client.Record{Key: fmt.Append(nil, sent), Value: fmt.Append(nil, sent)})
			require.NoError(t, err)
			sent++
		}
		for range n {
			d, err := consumer.Next(patient(t))
			require.NoError(t, err)
			require.False(t, d.Redelivered, "record %s", d.Value)
			seen[string(d.Value)]++
			held = append(held, d)
		}
		return held
	}
	for round := range *pausedLeaders {
		node := round%clusterNodes + 1
		c.lead(conn, queue, 0, uint32(node))
		held := fill(pausedRecords)
		process := c.nodes[node-1].command.Process
		require.NoError(t, process.Signal(syscall.SIGSTOP))
		began := time.Now()
		held = append(held, fill(1)...) // over another leader
		found := time.Since(began)
		time.Sleep(time.Until(began.Add(pausedFor))) // the length of the pause is the case
		require.NoError(t, process.Signal(syscall.SIGCONT))
		held = append(held, fill(1)...)
		for _, d := range held {
			require.NoError(t, d.AckSync(patient(t)), "record %s", d.Value)
		}
		t.Logf("node %d stood still for %v; the next record came over another leader after %v", node, pausedFor, found)
	}
	require.Len(t, seen, sent)
	for value, n := range seen {
		require.Equal(t, 1, n, "record %s", value)
	}
	_, some := find[client.LeaseLost](lost)
	require.False(t, some, "a lease was lost, and no consumer had failed")
	require.NoError(t, consumer.Close(patient(t)))
}

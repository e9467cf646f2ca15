package fuzz

import (
	"context"
	"flag"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/internal/invariants"
)

var minorityRounds = flag.Int("minority.rounds", 1, "how often TestF14 lets a deposed leader wake up behind a cut")

// minority is a history to which clients of a deposed leader contribute.
type minority struct {
	*faultRun
	producer *client.Producer
	refused  int
}

func newMinority(t *testing.T, role string) *minority {
	m := &minority{faultRun: newFaultRun(t, clusterNodes, role, nil)}
	m.create(m.conn, faultHistory, 1)
	m.history = newClientHistory(faultHistory)
	var err error
	m.producer, err = m.conn.Producer(t.Context(), faultHistory, client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	m.append(20)
	return m
}

// append appends records by way of whoever leads.
func (m *minority) append(n int) {
	m.t.Helper()
	for range n {
		require.NoError(m.t, m.history.write(m.t.Context(), 0, m.producer))
	}
}

// round stops the leader until another one has taken over and acknowledged records, cuts
// its links and lets it go on: it finds clients who ask it, and believes for a moment
// that it leads. None of their records may be acknowledged.
func (m *minority) round() {
	t := m.t
	old := m.leader(faultHistory, 0, 0)
	conn := m.direct(int(old))
	lone, err := conn.Producer(t.Context(), faultHistory, client.DeliveryTimeout(time.Second), client.Idempotent(false))
	require.NoError(t, err)
	_, err = m.history.readEnd(t.Context(), 1, conn, 0)
	require.NoError(t, err, "it serves while it leads")
	m.signal(int(old), unix.SIGSTOP)
	m.leader(faultHistory, 0, old)
	m.append(20)
	m.hosts.isolate(int(old), m.hosts.cut)
	m.signal(int(old), unix.SIGCONT)
	var clients sync.WaitGroup
	until := time.Now().Add(2 * time.Second)
	clients.Go(func() {
		for time.Now().Before(until) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			_, _ = m.history.readEnd(ctx, 1, conn, 0)
			cancel()
		}
	})
	clients.Go(func() {
		for time.Now().Before(until) {
			if err := m.history.write(t.Context(), 2, lone); err == nil {
				t.Error("a minority has acknowledged a record")
			}
			m.refused++
		}
	})
	clients.Wait()
	m.append(5)
	m.hosts.isolate(int(old), m.hosts.heal)
	healthy(t, m.nodes[0])
}

// TestF14_ADeposedLeaderServesNothing lets leaders sleep and wake up behind a cut. What
// clients that stay with them read must fit into one order with what others appended
// meanwhile (RELIABILITY F14, F15): unavailable beats wrong.
func TestF14_ADeposedLeaderServesNothing(t *testing.T) {
	inNamespaces(t, chaosNamespaces, chaosTools, func(t *testing.T) {
		m := newMinority(t, "")
		for range *minorityRounds {
			m.round()
		}
		m.history.check(t, m.conn)
		t.Logf("%d rounds, %d records refused", *minorityRounds, m.refused)
		require.Positive(t, m.refused)
	})
}

// TestF14_Catches_ReadsThatNobodyConfirms shows that the check would notice leaders that
// answer reads without asking whether they still lead.
func TestF14_Catches_ReadsThatNobodyConfirms(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds always ask")
	}
	inNamespaces(t, chaosNamespaces, chaosTools, func(t *testing.T) {
		m := newMinority(t, "confirmations")
		for n := range 5 {
			m.round()
			if fails(t, func(t testing.TB) { m.history.check(t, m.conn) }) {
				t.Logf("caught after %d rounds", n+1)
				return
			}
		}
		t.Fatal("not caught")
	})
}

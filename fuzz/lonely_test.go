package fuzz

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/internal/invariants"
)

// lonely cuts the leader of a partition off from the other brokers while a client of its
// own goes on, until the others have elected another. Nothing that the lone leader was
// given since may be acknowledged; what others acknowledge meanwhile stays.
func lonely(t *testing.T, role string, check func(func(testing.TB))) {
	r := newFaultRun(t, clusterNodes, role, nil)
	r.create(r.conn, "lonely", 1)
	producer, err := r.conn.Producer(t.Context(), "lonely", client.DeliveryTimeout(killDelivery))
	require.NoError(t, err)
	send := func() {
		_, err := producer.Send(t.Context(), &client.Record{Value: []byte("of the majority")})
		require.NoError(t, err)
	}
	send()
	old := r.leader("lonely", 0, 0)
	lone, err := r.direct(int(old)).Producer(t.Context(), "lonely", client.DeliveryTimeout(time.Second), client.Idempotent(false))
	require.NoError(t, err)
	_, err = lone.Send(t.Context(), &client.Record{Value: []byte("before the cut")})
	require.NoError(t, err, "it leads")
	r.hosts.isolate(int(old), r.hosts.cut)
	acknowledged, refused := 0, 0
	began := time.Now()
	for time.Since(began) < 2*time.Second {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if _, err := lone.Send(ctx, &client.Record{Value: []byte("of the minority")}); err == nil {
			acknowledged++
		} else {
			refused++
		}
		cancel()
	}
	r.leader("lonely", 0, old)
	for range 10 {
		send()
	}
	r.hosts.isolate(int(old), r.hosts.heal)
	healthy(t, r.nodes[0])
	ends, err := r.conn.Offsets(t.Context(), "lonely", client.Latest())
	require.NoError(t, err)
	t.Logf("behind the cut %d records were acknowledged and %d not; %d are there in all", acknowledged, refused, ends[0])
	check(func(t testing.TB) {
		require.Zero(t, acknowledged, "a minority has acknowledged records")
		require.Positive(t, refused)
	})
	require.GreaterOrEqual(t, ends[0], uint64(12), "what a majority acknowledged is there")
}

// TestF15_AMinorityAcknowledgesNothing cuts a leader off with a client (RELIABILITY F15).
func TestF15_AMinorityAcknowledgesNothing(t *testing.T) {
	inNamespaces(t, chaosNamespaces, chaosTools, func(t *testing.T) {
		lonely(t, "", func(check func(testing.TB)) { check(t) })
	})
}

// TestF15_Catches_AcksWithoutAMajority shows that the check would notice a leader that
// answers before a majority has the record.
func TestF15_Catches_AcksWithoutAMajority(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("release builds always wait for a majority")
	}
	inNamespaces(t, chaosNamespaces, chaosTools, func(t *testing.T) {
		lonely(t, "majorities", func(check func(testing.TB)) { require.True(t, fails(t, check), "not caught") })
	})
}

package lockstest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
)

// R-MQC-7: what a consumer held when it was lost is there, and comes again with a delivery
// count that is one more; the count is in the log, so it is the same after the broker
// was restarted.
func TestR_MQC_7_WhatALostConsumerHeldIsCountedAcrossARestart(t *testing.T) {
	broker := lockstest.Start(t)
	s := &stage{broker: broker, conn: connectTo(t, broker.URL())}
	modes := []client.GroupMode{client.Serial, client.Shared}
	var queues []string
	for _, mode := range modes {
		queue := s.queue(t, 1)
		queues = append(queues, queue)
		s.group(t, queue, client.GroupSettings{Mode: mode, BackoffMs: 1, BackoffMaxMs: 1})
		s.send(t, queue, "a 0", "b 0", "c 0")
		lost, die := s.mortal(t, queue, client.ReleaseOnDisconnect(true), client.Prefetch(2))
		for range 2 {
			d := take(t, lost)
			require.Equal(t, 1, d.Deliveries)
		}
		s.leased(t, queue, 2)
		die()
		s.leased(t, queue, 0)
	}
	broker.Restart()
	for i, queue := range queues {
		next := s.join(t, queue, client.Prefetch(3))
		counts, flags := map[string]int{}, map[string]bool{}
		for range 3 {
			d := take(t, next)
			counts[string(d.Value)], flags[string(d.Value)] = d.Deliveries, d.Redelivered
			done(t, d)
		}
		require.Equal(t, map[string]int{"a 0": 2, "b 0": 2, "c 0": 1}, counts, "mode %v", modes[i])
		require.Equal(t, map[string]bool{"a 0": true, "b 0": true, "c 0": false}, flags, "mode %v", modes[i])
		leave(t, next)
	}
}

package server

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestALineKeepsItsShareAndServesAll(t *testing.T) {
	pool := newBlockingPool(8)
	slow, other := newLine(pool), newLine(pool)
	stalled := make(chan struct{})
	var running, most, done atomic.Int32
	for range 20 {
		slow.submit(func() {
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-stalled
			running.Add(-1)
			done.Add(1)
		})
	}
	served := make(chan struct{})
	other.submit(func() { close(served) })
	<-served
	require.EqualValues(t, 0, done.Load())
	close(stalled)
	pool.wait()
	require.EqualValues(t, 20, done.Load())
	require.LessOrEqual(t, most.Load(), int32(2))
}

package server

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func TestReadinessNamesWhatIsDown(t *testing.T) {
	b := testBroker(t, vfs.NewSimulated(1))
	createOrders(t, b)
	require.Equal(t, Readiness{Ready: 2, Total: 2}, b.readiness())
	orders(t, b, 1).Blocking(func() { panic("read") })
	eventually(t, "the partition is fenced", func() bool { return orders(t, b, 1).State() == wire.PartitionFenced })
	got := b.readiness()
	require.Equal(t, 1, got.Ready)
	require.Equal(t, 2, got.Total)
	require.Len(t, got.Down, 1)
	require.Equal(t, "orders/1", got.Down[0].Partition)
	require.Contains(t, got.Down[0].Reason, "a read panicked: read")
	_ = b.close()
}

// Whoever gets the ID later would be told that its batches are duplicates.
func TestAProducerIDThatNobodyWasGivenIsRefused(t *testing.T) {
	disk := vfs.NewSimulated(1)
	b := testBroker(t, disk)
	createOrders(t, b)
	var id int64
	done := make(chan error, 1)
	b.Admin(&wire.InitProducerRequest{}, func(m wire.Message, err error) {
		if err == nil {
			id = m.(*wire.InitProducerResponse).ProducerID
		}
		done <- err
	})
	require.NoError(t, <-done)
	send := func(b *broker, id int64) error {
		a := testAppend(t, make(outcomes, 1))
		a.Info.ProducerID = id
		return orders(t, b, 0).Append(a)
	}
	require.NoError(t, send(b, id))
	require.NoError(t, send(b, wire.NoProducerID))
	require.ErrorIs(t, send(b, 1<<40), wire.CodeUnknownProducer)
	require.NoError(t, b.close())

	b = testBroker(t, disk)
	require.NoError(t, send(b, id), "a restart remembers")
	require.ErrorIs(t, send(b, 1<<40), wire.CodeUnknownProducer)
	require.NoError(t, b.close())
}

package client

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRecordsGoThereAndBack(t *testing.T) {
	b := startBroker(t)
	c := connect(t, b)
	ctx := testContext(t)
	d, err := c.CreateDestination(ctx, Destination{Name: "orders", Kind: Queue, Settings: Settings{Partitions: 2}})
	require.NoError(t, err)
	require.Equal(t, "orders", d.Name)
	require.Len(t, d.Partitions, 2)

	p := newTestProducer(t, c, "orders", Partition(1))
	for i := range 10 {
		r, err := p.Send(ctx, &Record{Key: []byte("k"), Value: fmt.Appendf(nil, "value %d", i), Headers: []Header{{Key: "h", Value: []byte("x")}}})
		require.NoError(t, err)
		require.Equal(t, Receipt{Partition: 1, Offset: uint64(i), Epoch: fakeTerm, Replicas: 1, Synced: true, AppendTime: r.AppendTime}, r)
	}
	require.NoError(t, p.Close(ctx))

	r := newTestReader(t, c, "orders", StopAtEnd())
	n := 0
	for rec, err := range r.Records(ctx) {
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("value %d", n), string(rec.Value))
		require.Equal(t, "k", string(rec.Key))
		require.Equal(t, []Header{{Key: "h", Value: []byte("x")}}, rec.Headers)
		require.Equal(t, uint32(1), rec.Partition)
		require.Equal(t, uint64(n), rec.Offset)
		require.Equal(t, uint32(fakeTerm), rec.Epoch)
		n++
	}
	require.Equal(t, 10, n)
	require.NoError(t, r.Close())
}

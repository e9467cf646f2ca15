package client

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// A publisher's records lie in the partition of its slot, whatever their keys; its hash
// is in the record index, its name in a header, once.
func TestARecordSaysWhoPublishedIt(t *testing.T) {
	b := startBroker(t)
	b.create("readings", Queue, 4)
	b.create("other", Queue, 4)
	c := connect(t, b)
	ctx := testContext(t)
	p, err := c.Producer(ctx, "readings", Publisher("sensor-7"))
	require.NoError(t, err)
	plain, err := c.Producer(ctx, "other")
	require.NoError(t, err)
	key, err := plain.Send(ctx, &Record{Key: []byte("sensor-7")})
	require.NoError(t, err)
	require.NoError(t, plain.Close(ctx))
	foreign := Header{Key: wire.PublisherHeader, Value: []byte("sensor-1")}
	sent := []Record{
		{Value: []byte("plain")},
		{Key: []byte("a"), Value: []byte("with a key"), Headers: []Header{{Key: "unit", Value: []byte("K")}}},
		{Value: []byte("passed on"), Headers: []Header{foreign}},
	}
	for i := range sent {
		r, err := p.Send(ctx, &sent[i])
		require.NoError(t, err)
		require.Equal(t, key.Partition, r.Partition, "as for a key of that name")
		require.EqualValues(t, i, r.Offset)
	}
	require.Equal(t, []Header{foreign}, sent[2].Headers, "the caller's record stays as it is")
	require.NoError(t, p.Close(ctx))

	r, err := c.Reader(ctx, "readings", StopAtEnd())
	require.NoError(t, err)
	own := Header{Key: wire.PublisherHeader, Value: []byte("sensor-7")}
	headers := [][]Header{{own}, {{Key: "unit", Value: []byte("K")}, own}, {own}}
	for _, h := range headers {
		record, err := r.Next(ctx)
		require.NoError(t, err)
		require.Equal(t, h, record.Headers)
	}
	require.NoError(t, r.Close())

	_, err = c.Producer(ctx, "readings", Publisher(strings.Repeat("n", 1025)))
	require.ErrorContains(t, err, "option Publisher: the name has 1025 bytes, the limit is 1024")
}

package bench

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/lockstest"
)

func TestRequestsAreMeasuredBesideRecords(t *testing.T) {
	o := RequestOptions{Target: Target{Servers: lockstest.Start(t).Addr()}, Requests: 50, Requesters: 3, Size: 100, Payload: PayloadRandom}
	o.Destination.Settings.Partitions = 1
	r, err := Request(context.Background(), o)
	require.NoError(t, err)
	require.EqualValues(t, 50, r.Records)
	require.EqualValues(t, 50, r.Samples)
	require.EqualValues(t, 50, r.Ack.Samples)
	require.EqualValues(t, 50*200, r.Bytes)
	for _, change := range []func(*RequestOptions){
		func(o *RequestOptions) { o.Requests = 0 },
		func(o *RequestOptions) { o.Requesters = 0 },
		func(o *RequestOptions) { o.Size = 0 },
	} {
		bad := o
		change(&bad)
		_, err = Request(context.Background(), bad)
		require.ErrorContains(t, err, "0: ")
	}
}

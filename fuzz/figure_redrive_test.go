package fuzz

import (
	"bytes"
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
)

var (
	figureLetters = flag.Int("figure.letters", 1000, "dead letters that TestFigure_Redrive sends back in each round")
	figureOrigins = flag.Uint("figure.origins", 1, "partitions that they come from, in turn")
)

// TestFigure_Redrive says how fast records become dead letters, by a consumer that rejects them, and
// go back, by `dlq redrive`, on -redrive.nodes brokers: of one partition, or several in turn. Each is
// back once and in order.
func TestFigure_Redrive(t *testing.T) {
	r := &redriveRig{t: t, c: &clusterProcess{t: t}}
	for range *redriveNodes {
		r.c.add()
	}
	r.conn = r.c.connect()
	r.queue("dead", 1)
	r.queue("orders", uint32(*figureOrigins))
	_, err := r.conn.CreateGroup(t.Context(), "orders", "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Shared, DeadLetterMode: client.DeadLetter, DeadLetter: "dead"}})
	require.NoError(t, err)
	said := func(what string, took time.Duration) {
		t.Logf("%d letters of %d partitions on %d nodes %s in %v: %.0f letters/s; %s", *figureLetters, *figureOrigins, *redriveNodes, what,
			took.Round(time.Millisecond), float64(*figureLetters)/took.Seconds(), machineLoad())
	}
	value := make([]byte, 100)
	for round := range *figureRounds {
		for partition := range uint32(*figureOrigins) {
			p, err := r.conn.Producer(t.Context(), "orders", client.Partition(partition))
			require.NoError(t, err)
			for i := int(partition); i < *figureLetters; i += int(*figureOrigins) {
				copy(value, fmt.Sprintf("%09d", i))
				_, err := p.SendAsync(t.Context(), &client.Record{Key: []byte("k"), Value: bytes.Clone(value)})
				require.NoError(t, err)
			}
			require.NoError(t, p.Close(t.Context()))
		}
		began := time.Now()
		written := func() int {
			d, err := r.conn.Destination(t.Context(), "dead")
			require.NoError(t, err)
			return int(d.Partitions[0].NextOffset) - round**figureLetters
		}
		rejected := 0
		r.each(func(d *client.Delivery) {
			require.NoError(t, d.Reject("for the figure"))
			for rejected++; rejected%500 == 0 && rejected-written() > 5000; { // more than 10,000 may not wait
				time.Sleep(time.Millisecond) // what is written has no event for who rejects
			}
		})
		for written() < *figureLetters {
			time.Sleep(time.Millisecond) // as above
		}
		said("were written", time.Since(began))
		began = time.Now()
		require.NoError(t, r.process(0, "--limit", fmt.Sprint(*figureLetters)))
		said("went back", time.Since(began))
		back, last := 0, make(map[uint32]string)
		for x, err := range r.conn.Browse(t.Context(), "orders", client.BrowseOptions{}) {
			require.NoError(t, err)
			require.Greater(t, string(x.Value[:9]), last[x.Partition], "in order")
			last[x.Partition] = string(x.Value[:9])
			back++
		}
		require.Equal(t, *figureLetters, back)
		r.each(func(d *client.Delivery) { require.NoError(t, d.Ack()) })
	}
}

// each has a consumer handle as many records as there are letters.
func (r *redriveRig) each(handle func(d *client.Delivery)) {
	c, err := r.conn.Consumer(r.t.Context(), "orders", client.Group("g"), client.Prefetch(2000))
	require.NoError(r.t, err)
	for range *figureLetters {
		d, err := c.Next(r.t.Context())
		require.NoError(r.t, err)
		handle(d)
	}
	require.NoError(r.t, c.Close(r.t.Context()))
}

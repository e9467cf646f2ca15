package fuzz

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

var (
	redriveKills = flag.Int("redrive.kills", 4, "how often TestRuleQ3_AKilledRedrive kills a process that redrives dead letters, and at times a broker")
	redriveNodes = flag.Int("redrive.nodes", 1, "how many brokers it has")
	redriveSeed  = flag.Uint64("redrive.seed", 0, "draws victims and moments; 0 takes the clock's")
)

const (
	redriveLetters = 800              // that come before each kill
	redriveHope    = 60 * time.Second // for the redrive that nobody kills
)

// redriveRig is a queue of dead letters, and the queues that they come from.
type redriveRig struct {
	t       *testing.T
	c       *clusterProcess
	conn    *client.Conn
	letters int
}

func newRedriveRig(t *testing.T, nodes int) *redriveRig {
	r := &redriveRig{t: t, c: &clusterProcess{t: t}}
	for range nodes {
		r.c.add()
	}
	r.conn = r.c.connect()
	r.queue("dead", 1)
	r.queue("orders", 2)
	r.queue("returns", 1)
	return r
}

func (r *redriveRig) queue(name string, partitions uint32) {
	require.Eventually(r.t, func() bool {
		_, err := r.conn.CreateDestination(r.t.Context(), client.Destination{Name: name, Kind: wire.Queue, Settings: client.Settings{Partitions: partitions, Replicas: uint8(len(r.c.nodes)), SegmentBytes: 1 << 20}})
		return err == nil
	}, startTimeout, 50*time.Millisecond)
}

// fill adds dead letters, as groups of the queues would have written them.
func (r *redriveRig) fill(n int) {
	p, err := r.conn.Producer(r.t.Context(), "dead")
	require.NoError(r.t, err)
	for range n {
		from := []string{"orders/0", "orders/1", "returns/0"}[r.letters%3]
		_, err := p.SendAsync(r.t.Context(), &client.Record{Key: []byte("k"), Value: fmt.Append(nil, r.letters), Headers: []client.Header{
			{Key: wire.LetterOrigin, Value: []byte(from)}, {Key: wire.LetterHeader + "offset", Value: fmt.Append(nil, r.letters)}, {Key: wire.LetterHeader + "group", Value: []byte("g")},
		}})
		require.NoError(r.t, err)
		r.letters++
	}
	require.NoError(r.t, p.Close(r.t.Context()))
}

// once requires that each letter is in its queue once, in the order of the letters, and that none is left.
func (r *redriveRig) once(t testing.TB) {
	got := make(map[string]int)
	for _, name := range []string{"orders", "returns"} {
		last := make(map[uint32]int)
		for x, err := range r.conn.Browse(r.t.Context(), name, client.BrowseOptions{}) {
			require.NoError(r.t, err)
			var n int
			_, err = fmt.Sscan(string(x.Value), &n)
			require.NoError(r.t, err)
			got[string(x.Value)]++
			require.GreaterOrEqual(t, n, last[x.Partition], "in order")
			last[x.Partition] = n
			require.Len(r.t, x.Headers, 1, "the headers of the letter are gone")
			require.Equal(r.t, client.RedrivenHeader, x.Headers[0].Key)
			require.Equal(r.t, []string{"orders/0", "orders/1", "returns/0"}[n%3], fmt.Sprintf("%s/%d", name, x.Partition))
		}
	}
	for n := range r.letters {
		require.Equal(t, 1, got[fmt.Sprint(n)], "letter %d is back once", n)
	}
	for l, err := range r.conn.DeadLetters(r.t.Context(), "dead", client.LetterFilter{}) {
		require.NoError(r.t, err)
		require.Fail(t, "a letter is left", "%d@%d", l.Partition, l.Offset)
	}
}

// process runs `dlq redrive` and kills it after a while; 0 lets it end.
func (r *redriveRig) process(until time.Duration, more ...string) error {
	name, err := program()
	require.NoError(r.t, err)
	ctx, cancel := context.WithTimeout(r.t.Context(), redriveHope)
	defer cancel()
	var addresses []string
	for _, b := range r.c.nodes {
		addresses = append(addresses, b.address)
	}
	command := exec.CommandContext(ctx, name, append([]string{"dlq", "redrive", "dead", "--server", strings.Join(addresses, ",")}, more...)...)
	stderr := &tailBuffer{}
	command.Stderr = stderr
	require.NoError(r.t, command.Start())
	if until > 0 {
		timer := time.AfterFunc(until, func() { _ = command.Process.Kill() })
		defer timer.Stop()
	}
	if err = command.Wait(); err != nil {
		err = fmt.Errorf("%w: %s", err, stderr)
	}
	return err
}

// RULES Q3 of the way back: a process that redrives dead letters is killed at random moments, and
// brokers are, which lead the queues of both ends. What the next one finds goes back too, and
// each letter is in its queue exactly once.
func TestRuleQ3_AKilledRedriveSendsNoLetterTwice(t *testing.T) {
	t.Parallel()
	seed := *redriveSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("redrive.seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRedriveRig(t, *redriveNodes)
	killed, brokers := 0, 0
	for n := range *redriveKills {
		r.fill(redriveLetters)
		until := time.Millisecond * time.Duration(1+random.Int64N(250))
		if n%4 == 3 {
			b := r.c.nodes[random.IntN(len(r.c.nodes))]
			time.AfterFunc(until/2, func() { _ = b.command.Process.Kill() })
			until += 200 * time.Millisecond
			brokers++
			if r.process(until) != nil {
				killed++
			}
			<-b.ended
			b.start()
			b.ready(r.conn)
			continue
		}
		if r.process(until) != nil {
			killed++
		}
	}
	// A partition of the broker that was killed last may not have a leader yet.
	require.Eventually(t, func() bool { return r.process(0) == nil }, redriveHope, time.Millisecond)
	r.once(t)
	t.Logf("%d letters, %d processes of %d killed before they had ended, %d brokers", r.letters, killed, *redriveKills, brokers)
}

// A redrive that sends letters itself and notes that afterwards, and ends in between.
func TestRuleQ3_Catches_ARedriveThatNotesAfterwards(t *testing.T) {
	t.Parallel()
	r := newRedriveRig(t, 1)
	r.fill(9)
	for range 2 {
		for l, err := range r.conn.DeadLetters(t.Context(), "dead", client.LetterFilter{Limit: 3}) {
			require.NoError(t, err)
			p, err := r.conn.Producer(t.Context(), l.Origin, client.Partition(l.OriginPartition))
			require.NoError(t, err)
			record := l.Original()
			record.Headers = append(record.Headers, client.Header{Key: client.RedrivenHeader})
			_, err = p.Send(t.Context(), record)
			require.NoError(t, err)
			require.NoError(t, p.Close(t.Context()))
		}
	}
	require.NoError(t, r.process(0))
	require.True(t, fails(t, func(t testing.TB) { r.once(t) }))
}

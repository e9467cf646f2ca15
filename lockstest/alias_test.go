package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// alias has a name for two of three partitions, that the cluster knows or the program alone:
// what is sent by that name goes there alone, in turn, what is received by it comes from
// there alone, and a key that lives elsewhere is refused.
func (s *stage) alias(t *testing.T) {
	t.Run("of the program", func(t *testing.T) {
		queue := s.queue(t, 3)
		conn, err := client.Connect(t.Context(), s.broker.URL(), client.WithAlias("east", queue, 2, 0), client.WithAlias("nowhere", queue, 3))
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		s.aliased(t, conn, queue)
		_, err = conn.Producer(t.Context(), "nowhere")
		require.ErrorIs(t, err, client.ErrUnknownPartition)
	})
	t.Run("of the cluster", func(t *testing.T) {
		queue := s.queue(t, 3)
		require.NoError(t, s.conn.CreateAlias(t.Context(), client.Alias{Name: "east", Destination: queue, Partitions: []uint32{2, 0}}))
		s.aliased(t, connectTo(t, s.broker.URL()), queue)
		s.aliasesLookedAt(t, queue)
	})
	t.Run("that would lead nowhere", s.aliasesRefused)
	t.Run("altered", s.retargeted)
	t.Run("followed by nobody", s.notFollowed)
	t.Run("caught when it is the whole queue", s.boundless)
	t.Run("served", s.served)
}

// served answers requests by an alias, which then stands for another queue, and is removed.
func (s *stage) served(t *testing.T) {
	require.NoError(t, s.conn.CreateAlias(t.Context(), client.Alias{Name: "service", Destination: s.queue(t, 1)}))
	ended := make(chan error, 1)
	go func() { ended <- s.conn.Serve(context.WithoutCancel(t.Context()), "service", shout) }()
	ask := func(what string) {
		reply, err := s.conn.Request(t.Context(), "service", &client.Record{Value: []byte(what)})
		require.NoError(t, err)
		require.Equal(t, strings.ToUpper(what), string(reply.Value))
	}
	ask("a")
	require.NoError(t, s.conn.AlterAlias(t.Context(), client.Alias{Name: "service", Destination: s.queue(t, 1)}))
	ask("b")
	require.NoError(t, s.conn.RemoveAlias(t.Context(), "service"))
	err := <-ended
	require.ErrorIs(t, err, client.ErrAliasMoved)
	require.ErrorContains(t, err, `alias "service" was removed`)
}

// outside works by a name for partitions 0 and 2 of a queue of three, of which the other one
// has a record too, and says who got out of them.
func (s *stage) outside(t *testing.T, conn *client.Conn, name, queue string) []string {
	who := map[string]bool{}
	s.sendTo(t, queue, 1, "elsewhere")
	p, err := conn.Producer(t.Context(), name)
	require.NoError(t, err)
	sent := uint64(0)
	for i := range 60 { // without keys, then with
		r := &client.Record{Value: fmt.Append(nil, i)}
		if i >= 30 {
			r.Key = r.Value
		}
		receipt, err := p.Send(t.Context(), r)
		if errors.Is(err, client.ErrOutsideAlias) {
			continue
		}
		require.NoError(t, err)
		if sent++; receipt.Partition == 1 {
			who["producer"] = true
		}
	}
	require.NoError(t, p.Close(t.Context()))
	r, err := conn.Reader(t.Context(), name, client.StopAtEnd())
	require.NoError(t, err)
	for record, err := range r.Records(t.Context()) {
		require.NoError(t, err)
		if record.Partition == 1 {
			who["reader"] = true
		}
	}
	require.NoError(t, r.Close())
	c, err := conn.Consumer(t.Context(), name, client.Group("outside"))
	require.NoError(t, err)
	for range sent {
		d := take(t, c)
		if d.Partition == 1 {
			who["consumer"] = true
		}
		done(t, d)
	}
	leave(t, c)
	return slices.Sorted(maps.Keys(who))
}

// boundless takes the partitions from an alias: outside says so of all that work by it.
func (s *stage) boundless(t *testing.T) {
	for name, c := range map[string]struct {
		partitions []uint32
		who        []string
	}{
		"kept":       {[]uint32{0, 2}, nil},
		"taken away": {nil, []string{"consumer", "producer", "reader"}},
	} {
		queue := s.queue(t, 3)
		conn, err := client.Connect(t.Context(), s.broker.URL(), client.WithAlias("east", queue, c.partitions...))
		require.NoError(t, err)
		require.Equal(t, c.who, s.outside(t, conn, "east", queue), name)
		require.NoError(t, conn.Close())
	}
}

// aliased works with two of three partitions of a queue by the name "east".
func (s *stage) aliased(t *testing.T, conn *client.Conn, queue string) {
	s.group(t, queue, client.GroupSettings{Mode: client.Shared})
	p, err := conn.Producer(t.Context(), "east")
	require.NoError(t, err)
	const records = 40
	count := map[uint32]int{}
	for i := range records {
		r, err := p.Send(t.Context(), &client.Record{Value: fmt.Append(nil, i)})
		require.NoError(t, err)
		count[r.Partition]++
	}
	require.Equal(t, map[uint32]int{0: records / 2, 2: records / 2}, count)

	refused, sent := 0, records
	for i := range 30 {
		key := fmt.Append(nil, i)
		home, err := conn.PartitionOf(t.Context(), queue, key)
		require.NoError(t, err)
		r, err := p.Send(t.Context(), &client.Record{Key: key, Value: key})
		if home == 1 {
			require.ErrorIs(t, err, client.ErrOutsideAlias)
			var failed *client.SendError
			require.True(t, errors.As(err, &failed))
			require.Equal(t, client.NotSent, failed.Outcome)
			refused++
			continue
		}
		require.NoError(t, err)
		require.Equal(t, home, r.Partition)
		sent++
	}
	require.NotZero(t, refused)
	require.NoError(t, p.Close(t.Context()))
	s.send(t, queue, numbered("k", 1)...) // by the name of the queue, to any partition
	whole, err := s.conn.Producer(t.Context(), queue, client.Partition(1))
	require.NoError(t, err)
	_, err = whole.Send(t.Context(), &client.Record{Value: []byte("elsewhere")})
	require.NoError(t, err)
	home, err := conn.PartitionOf(t.Context(), queue, []byte("k"))
	require.NoError(t, err)
	if home != 1 {
		sent++
	}

	r, err := conn.Reader(t.Context(), "east", client.FromEarliest(), client.StopAtEnd())
	require.NoError(t, err)
	read := 0
	for {
		rec, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.NotEqual(t, uint32(1), rec.Partition)
		read++
	}
	require.Equal(t, sent, read)
	r.Close()

	c, err := conn.Consumer(t.Context(), "east", client.Group("g"))
	require.NoError(t, err)
	for range sent {
		d := take(t, c)
		require.NotEqual(t, uint32(1), d.Partition)
		done(t, d)
	}
	idle(t, c)
	require.Equal(t, []uint32{0, 2}, c.Partitions())
	leave(t, c)

	_, err = conn.Producer(t.Context(), "east", client.Partition(1))
	require.ErrorIs(t, err, client.ErrUnknownPartition)
	_, err = conn.Reader(t.Context(), "east", client.Partitions(1))
	require.ErrorIs(t, err, client.ErrUnknownPartition)
}

// aliasesLookedAt asks about "east", which is two of three partitions of a queue.
func (s *stage) aliasesLookedAt(t *testing.T, queue string) {
	east := client.Alias{Name: "east", Destination: queue, Partitions: []uint32{0, 2}}
	list, err := s.conn.Aliases(t.Context())
	require.NoError(t, err)
	require.Equal(t, []client.Alias{east}, list)
	d, err := s.conn.Destination(t.Context(), "east")
	require.NoError(t, err)
	require.Equal(t, queue, d.Name)
	require.Equal(t, &east, d.Alias)
	require.Len(t, d.Partitions, 2)

	inside := s.sendTo(t, queue, 0, "inside")
	s.sendTo(t, queue, 1, "outside")
	for r, err := range s.conn.Browse(t.Context(), "east", client.BrowseOptions{}) {
		require.NoError(t, err)
		require.Equal(t, uint32(0), r.Partition)
		require.Equal(t, inside.Offset, r.Offset)
		require.Equal(t, "g", r.Group)
	}
	info, err := s.conn.DescribeGroup(t.Context(), "east", "g")
	require.NoError(t, err)
	require.Equal(t, queue, info.Destination)
	var why client.ExplainResponse
	require.NoError(t, s.conn.GroupOrder(t.Context(), wire.OrderExplain, "east", 0, "g", client.ExplainRequest{Group: "g"}, &why))
	require.NotEmpty(t, why.Reasons)
	offsets, err := s.conn.Offsets(t.Context(), "east", client.Earliest())
	require.NoError(t, err)
	require.Len(t, offsets, 3)

	err = s.conn.DeleteDestination(t.Context(), d)
	require.ErrorIs(t, err, wire.CodeRefused)
	require.ErrorContains(t, err, `alias "east" stands for queue`)
	require.NoError(t, s.conn.RemoveAlias(t.Context(), "east"))
	_, err = s.conn.Destination(t.Context(), "east")
	require.ErrorIs(t, err, wire.CodeUnknownDestination)
	require.NoError(t, s.conn.DeleteDestination(t.Context(), d))
}

// sendTo stores a record in a partition.
func (s *stage) sendTo(t *testing.T, queue string, partition uint32, value string) client.Receipt {
	t.Helper()
	p, err := s.conn.Producer(t.Context(), queue, client.Partition(partition))
	require.NoError(t, err)
	r, err := p.Send(t.Context(), &client.Record{Value: []byte(value)})
	require.NoError(t, err)
	require.NoError(t, p.Close(t.Context()))
	return r
}

// aliasesRefused makes aliases of nothing, of aliases, and of names that are taken.
func (s *stage) aliasesRefused(t *testing.T) {
	queue := s.queue(t, 1)
	require.NoError(t, s.conn.CreateAlias(t.Context(), client.Alias{Name: "taken", Destination: queue}))
	defer func() { require.NoError(t, s.conn.RemoveAlias(t.Context(), "taken")) }()
	for name, c := range map[string]struct {
		err  error
		code wire.ErrorCode
	}{
		"of nothing":     {s.conn.CreateAlias(t.Context(), client.Alias{Name: "x", Destination: "nothing"}), wire.CodeUnknownDestination},
		"of itself":      {s.conn.AlterAlias(t.Context(), client.Alias{Name: "taken", Destination: "taken"}), wire.CodeRefused},
		"of another":     {s.conn.CreateAlias(t.Context(), client.Alias{Name: "x", Destination: "taken"}), wire.CodeRefused},
		"of a partition": {s.conn.CreateAlias(t.Context(), client.Alias{Name: "x", Destination: queue, Partitions: []uint32{1}}), wire.CodeUnknownPartition},
		"that there is":  {s.conn.CreateAlias(t.Context(), client.Alias{Name: "taken", Destination: queue}), wire.CodeAlreadyExists},
		"with its name":  {s.conn.CreateAlias(t.Context(), client.Alias{Name: queue, Destination: queue}), wire.CodeAlreadyExists},
		"of no text":     {s.conn.CreateAlias(t.Context(), client.Alias{Name: "\xff", Destination: queue}), wire.CodeInvalidName},
		"altered":        {s.conn.AlterAlias(t.Context(), client.Alias{Name: "x", Destination: queue}), wire.CodeUnknownDestination},
		"removed":        {s.conn.RemoveAlias(t.Context(), "x"), wire.CodeUnknownDestination},
	} {
		require.ErrorIs(t, c.err, c.code, name)
	}
	_, err := s.conn.CreateDestination(t.Context(), client.Destination{Name: "taken", Kind: client.Queue})
	require.ErrorIs(t, err, wire.CodeAlreadyExists)
	_, err = s.conn.AlterDestination(t.Context(), client.Destination{Name: "taken", Kind: client.Queue, Settings: client.Settings{DeliveryLimit: 3}}, wire.MaskDeliveryLimit)
	require.ErrorIs(t, err, wire.CodeRefused)
}

// retargeted has an alias stand for another queue under a producer that sends all the while,
// and a consumer that works: what was accepted before is stored where it was meant for, what
// comes later goes to the other queue, each once and in order; the consumer ends, and keeps
// what it has in its hands.
func (s *stage) retargeted(t *testing.T) {
	old, next := s.queue(t, 1), s.queue(t, 2)
	require.NoError(t, s.conn.CreateAlias(t.Context(), client.Alias{Name: "current", Destination: old}))
	conn := connectTo(t, s.broker.URL())
	awaitThat(t, "the node that is asked has heard of it", func() bool {
		aliases, err := conn.Aliases(t.Context())
		return err == nil && slices.ContainsFunc(aliases, func(a client.Alias) bool { return a.Name == "current" })
	})
	c := s.join(t, "current")
	reader, err := conn.Reader(t.Context(), "current")
	require.NoError(t, err)
	p, err := conn.Producer(t.Context(), "current")
	require.NoError(t, err)
	first, err := p.Send(t.Context(), &client.Record{Value: []byte("0")})
	require.NoError(t, err)
	require.Zero(t, first.Offset)
	held := []*client.Delivery{take(t, c)}

	altered := make(chan error, 1)
	sent := 1
	deadline := time.Now().Add(timeout)
	for arrived := 0; arrived < 100; sent++ {
		require.True(t, time.Now().Before(deadline), "the producer stays where it is")
		if sent == 100 {
			go func() {
				altered <- s.conn.AlterAlias(context.WithoutCancel(t.Context()), client.Alias{Name: "current", Destination: next, Partitions: []uint32{1}})
			}()
		}
		ticket, err := p.SendAsync(t.Context(), &client.Record{Value: fmt.Append(nil, sent)})
		require.NoError(t, err)
		if sent%10 == 0 {
			r, err := ticket.Wait(t.Context())
			require.NoError(t, err)
			if r.Partition == 1 {
				arrived++
			}
		}
	}
	require.NoError(t, <-altered)
	require.NoError(t, p.Close(t.Context()))
	n := 0
	for _, queue := range []string{old, next} {
		from, err := s.conn.Reader(t.Context(), queue, client.StopAtEnd())
		require.NoError(t, err)
		before := n
		for r, err := range from.Records(t.Context()) {
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(n), string(r.Value))
			require.Equal(t, queue == next, r.Partition == 1)
			n++
		}
		require.Greater(t, n, before)
		require.NoError(t, from.Close())
	}
	require.Equal(t, sent, n)

	for {
		d, nextErr := c.Next(t.Context())
		if err = nextErr; err != nil {
			break
		}
		held = append(held, d)
	}
	require.ErrorIs(t, err, client.ErrAliasMoved)
	require.ErrorContains(t, err, fmt.Sprintf("stands for partitions [1] of %q, not for %q any more", next, old))
	done(t, held...)
	leave(t, c)
	for {
		if _, err = reader.Next(t.Context()); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, client.ErrAliasMoved)
	require.NoError(t, s.conn.RemoveAlias(t.Context(), "current"))
}

// notFollowed has an alias stand for what its producers cannot go on with.
func (s *stage) notFollowed(t *testing.T) {
	next := s.queue(t, 1)
	topic := next + "-topic"
	create(t.Context(), t, s.conn, client.Destination{Name: topic, Kind: client.Topic})
	for name, c := range map[string]struct {
		opts []client.ProducerOption
		to   string
		says string
	}{
		"a name that would fence nobody there":  {[]client.ProducerOption{client.ProducerName(next)}, next, "is fenced when it is opened again"},
		"a partition that there is not":         {[]client.ProducerOption{client.Partition(1)}, next, "without partition 1"},
		"a topic in the place of a queue":       {nil, topic, "a topic and no queue"},
		"nothing: the alias is removed":         {nil, "", `alias "this" was removed`},
		"nothing, with its destination removed": {nil, "all", `alias "this" was removed`},
	} {
		t.Run(name, func(t *testing.T) {
			old := s.queue(t, 2)
			require.NoError(t, s.conn.CreateAlias(t.Context(), client.Alias{Name: "this", Destination: old}))
			p, err := s.conn.Producer(t.Context(), "this", c.opts...)
			require.NoError(t, err)
			_, err = p.Send(t.Context(), &client.Record{Value: []byte("x")})
			require.NoError(t, err)
			if c.to != "" && c.to != "all" {
				require.NoError(t, s.conn.AlterAlias(t.Context(), client.Alias{Name: "this", Destination: c.to}))
			}
			if c.to == "" {
				require.NoError(t, s.conn.RemoveAlias(t.Context(), "this"))
			}
			if c.to == "all" {
				require.NoError(t, s.conn.RemoveAlias(t.Context(), "this"))
				d, err := s.conn.Destination(t.Context(), old)
				require.NoError(t, err)
				require.NoError(t, s.conn.DeleteDestination(t.Context(), d))
			}
			awaitThat(t, "the producer ends", func() bool {
				_, err = p.Send(t.Context(), &client.Record{Value: []byte("y")})
				return errors.Is(err, client.ErrAliasMoved)
			})
			require.ErrorContains(t, err, c.says)
			require.NoError(t, p.Close(t.Context()))
			_ = s.conn.RemoveAlias(t.Context(), "this")
		})
	}
}

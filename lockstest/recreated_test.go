package lockstest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// isGone reports whether an error says that the destination is not the one it was.
func isGone(err error) bool {
	return errors.Is(err, wire.CodeDestinationGone) || errors.Is(err, wire.CodeUnknownDestination)
}

// A queue is deleted and made again under its name while a producer, a reader, consumers with
// records in their hands and dead letters on their way live: those of the old one end, and
// nothing that they say or hold reaches the new one. What goes by the name alone goes to it.
func TestAQueueThatIsMadeAgainIsAnother(t *testing.T) {
	for name, nodes := range map[string]int{"one node": 1, "three nodes": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := lockstest.StartCluster(t, nodes)
			madeAgain(limited(t), t, c, nodes)
		})
	}
}

func madeAgain(ctx context.Context, t *testing.T, c *lockstest.Cluster, nodes int) {
	admin, conn := to(ctx, t, c.Broker(1)), to(ctx, t, c.Broker(nodes))
	intent := client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: uint8(nodes)}}
	dead := client.Destination{Name: "dead", Kind: client.Queue, Settings: client.Settings{Partitions: 1, Replicas: uint8(nodes)}}
	create(ctx, t, admin, dead)
	make := func() client.Destination {
		t.Helper()
		d, err := admin.CreateDestination(ctx, intent)
		require.NoError(t, err)
		for _, group := range []string{"serial", "shared"} {
			mode := client.Serial
			if group == "shared" {
				mode = client.Shared
			}
			_, err = admin.CreateGroup(ctx, "orders", group, client.GroupIntent{Settings: client.GroupSettings{Mode: mode, DeadLetterMode: client.DeadLetter, DeadLetter: "dead"}, Start: client.GroupStart{To: "earliest"}})
			require.NoError(t, err)
		}
		return d
	}
	old := make()
	producer, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	named, err := conn.Producer(ctx, "orders", client.ProducerName("billing"))
	require.NoError(t, err)
	for i := range 4 {
		_, err := producer.Send(ctx, &client.Record{Key: fmt.Append(nil, i), Value: fmt.Append(nil, "old ", i)})
		require.NoError(t, err)
	}
	_, err = named.Send(ctx, &client.Record{Value: []byte("old named")})
	require.NoError(t, err)
	_, err = conn.Send(ctx, "orders", &client.Record{Value: []byte("old by name")})
	require.NoError(t, err)
	reader, err := conn.Reader(ctx, "orders", client.FromEarliest())
	require.NoError(t, err)
	_, err = reader.Next(ctx)
	require.NoError(t, err)
	held := map[string]*client.Delivery{}
	consumers := map[string]*client.Consumer{}
	for _, group := range []string{"serial", "shared"} {
		consumers[group], err = conn.Consumer(ctx, "orders", client.Group(group))
		require.NoError(t, err)
		held[group] = take(t, consumers[group])
		require.Zero(t, held[group].Offset)
	}

	require.NoError(t, admin.DeleteDestination(ctx, old))
	made := make()
	require.NotEqual(t, old.ID, made.ID)

	// The old ones end.
	_, err = producer.Send(ctx, &client.Record{Value: []byte("of the old producer")})
	require.True(t, isGone(err), err)
	_, err = named.Send(ctx, &client.Record{Value: []byte("of the old named producer")})
	require.True(t, isGone(err), err)
	for err = nil; err == nil; _, err = reader.Next(ctx) {
	}
	require.True(t, isGone(err), err)
	for group, consumer := range consumers {
		for err = nil; err == nil; _, err = consumer.Next(ctx) {
		}
		require.True(t, isGone(err), "%s: %v", group, err)
	}
	err = admin.DeleteDestination(ctx, old)
	require.ErrorIs(t, err, wire.CodeRefused)

	// What goes by the name reaches the new one, as if there had been no other.
	first, err := conn.Send(ctx, "orders", &client.Record{Key: []byte("0"), Value: []byte("new")})
	require.NoError(t, err)
	require.Zero(t, first.Offset)
	again, err := conn.Producer(ctx, "orders", client.ProducerName("billing"))
	require.NoError(t, err)
	receipt, err := again.Send(ctx, &client.Record{Key: []byte("1"), Value: []byte("new named")})
	require.NoError(t, err)
	require.EqualValues(t, 1, receipt.Offset)
	fresh, err := conn.Reader(ctx, "orders", client.FromEarliest(), client.StopAtEnd())
	require.NoError(t, err)
	var values []string
	for r, err := range fresh.Records(ctx) {
		require.NoError(t, err)
		values = append(values, string(r.Value))
	}
	require.Equal(t, []string{"new", "new named"}, values)
	for _, group := range []string{"serial", "shared"} {
		consumer, err := conn.Consumer(ctx, "orders", client.Group(group))
		require.NoError(t, err)
		d := take(t, consumer)
		require.Equal(t, "new", string(d.Value))
		require.Equal(t, 1, d.Deliveries)
		require.Error(t, held[group].AckSync(ctx), "of the old record at the same offset")
		info, err := conn.DescribeGroup(ctx, "orders", group)
		require.NoError(t, err)
		require.Empty(t, info.Partitions[0].Problem)
		require.EqualValues(t, 2, info.Partitions[0].Backlog, group)
		done(t, d)
		d = take(t, consumer)
		require.Equal(t, "new named", string(d.Value))
		done(t, d)
		idle(t, consumer)
		leave(t, consumer)
	}
	for _, consumer := range consumers {
		_ = consumer.Close(ctx)
	}
	_, _ = reader.Close(), producer.Close(ctx)
	_ = named.Close(ctx)
	require.NoError(t, again.Close(ctx))
}

// Where dead letters go is deleted and made again while they are on their way: whoever is
// rejected when the new one is there has its letter there, once, and nothing waits for ever.
func TestRuleQ3_LettersGoOnWhereTheirQueueIsMadeAgain(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "work", Kind: client.Queue, Settings: client.Settings{Partitions: 1}})
	intent := client.Destination{Name: "dead", Kind: client.Queue, Settings: client.Settings{Partitions: 2}}
	dead, err := conn.CreateDestination(ctx, intent)
	require.NoError(t, err)
	_, err = conn.CreateGroup(ctx, "work", "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Shared, DeadLetterMode: client.DeadLetter, DeadLetter: "dead"}, Start: client.GroupStart{To: "earliest"}})
	require.NoError(t, err)
	c, err := conn.Consumer(ctx, "work", client.Group("g"))
	require.NoError(t, err)
	const rounds, each = 5, 40
	for round := range rounds {
		if round > 0 { // letters of the round before are on their way
			require.NoError(t, conn.DeleteDestination(ctx, dead))
			dead, err = conn.CreateDestination(ctx, intent)
			require.NoError(t, err)
		}
		for i := range each {
			_, err := conn.Send(ctx, "work", &client.Record{Value: fmt.Append(nil, round, "/", i)})
			require.NoError(t, err)
		}
		for range each {
			require.NoError(t, take(t, c).Reject("no good"))
		}
	}
	awaitThat(t, "no letter waits", func() bool {
		info, err := conn.DescribeGroup(ctx, "work", "g")
		require.NoError(t, err)
		return info.Partitions[0].Backlog == 0
	})
	r, err := conn.Reader(ctx, "dead", client.FromEarliest(), client.StopAtEnd())
	require.NoError(t, err)
	count := map[string]int{}
	for record, err := range r.Records(ctx) {
		require.NoError(t, err)
		count[string(record.Value)]++
	}
	for value, n := range count {
		require.Equal(t, 1, n, value)
	}
	for i := range each {
		require.Equal(t, 1, count[fmt.Sprint(rounds-1, "/", i)], "%d", i)
	}
	leave(t, c)
}

// What a Conn keeps for a name it gives up with the queue: a request goes to the new one.
func TestARequestGoesToTheQueueThatIsMadeAgain(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	intent := client.Destination{Name: "words", Kind: client.Queue, Settings: client.Settings{Partitions: 1}}
	for range 3 {
		made, err := conn.CreateDestination(ctx, intent)
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- conn.Serve(ctx, "words", shout) }()
		reply, err := conn.Request(ctx, "words", &client.Record{Value: []byte("a")})
		require.NoError(t, err)
		require.Equal(t, "A", string(reply.Value))
		require.NoError(t, conn.DeleteDestination(ctx, made))
		err = <-ended
		require.True(t, isGone(err), err)
	}
	_, err := conn.Request(ctx, "words", &client.Record{Value: []byte("a")})
	require.ErrorIs(t, err, wire.CodeUnknownDestination)
	_, err = conn.Send(ctx, "words", &client.Record{Value: []byte("a")})
	require.ErrorIs(t, err, wire.CodeUnknownDestination)
}

// A queue is deleted and made again while old and new producers send all the while: the new
// one has what was sent by those that were made for it, each once, and nothing else.
func TestNothingOfAnOldProducerIsInTheNewQueue(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	intent := client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 2}}
	var producers []*client.Producer
	for round := range 6 {
		made, err := conn.CreateDestination(ctx, intent)
		require.NoError(t, err)
		p, err := conn.Producer(ctx, "orders")
		require.NoError(t, err)
		producers = append(producers, p)
		want := map[string]int{}
		for i := range 50 {
			for k, p := range producers {
				value := fmt.Sprint(k, "/", round, "/", i)
				receipt, err := p.Send(ctx, &client.Record{Value: []byte(value)})
				if k < round {
					require.True(t, isGone(err), "%s: %v, %v", value, receipt, err)
					continue
				}
				require.NoError(t, err)
				want[value] = 1
			}
		}
		r, err := conn.Reader(ctx, "orders", client.FromEarliest(), client.StopAtEnd())
		require.NoError(t, err)
		got := map[string]int{}
		for record, err := range r.Records(ctx) {
			require.NoError(t, err)
			got[string(record.Value)]++
		}
		require.Equal(t, want, got)
		for range 100 { // on their way when the queue goes
			if _, err := p.SendAsync(ctx, &client.Record{Value: []byte("on its way")}); err != nil {
				break
			}
		}
		require.NoError(t, conn.DeleteDestination(ctx, made))
	}
	for _, p := range producers {
		_ = p.Close(ctx)
	}
}

// The name of a deleted queue becomes an alias, and that a queue again: who sends by the name
// reaches what it stands for.
func TestANameThatBecomesAnAliasAndAQueueAgain(t *testing.T) {
	b := lockstest.Start(t)
	ctx, conn := connect(t, b)
	intent := client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: 1}}
	create(ctx, t, conn, client.Destination{Name: "other", Kind: client.Queue, Settings: client.Settings{Partitions: 1}})
	sent := func(offset uint64, value string) {
		t.Helper()
		r, err := conn.Send(ctx, "orders", &client.Record{Value: []byte(value)})
		require.NoError(t, err)
		require.Equal(t, offset, r.Offset)
	}
	holds := func(name string, values ...string) {
		t.Helper()
		r, err := conn.Reader(ctx, name, client.FromEarliest(), client.StopAtEnd())
		require.NoError(t, err)
		var got []string
		for record, err := range r.Records(ctx) {
			require.NoError(t, err)
			got = append(got, string(record.Value))
		}
		require.Equal(t, values, got)
	}
	for round := range uint64(3) {
		made, err := conn.CreateDestination(ctx, intent)
		require.NoError(t, err)
		sent(0, "to the queue")
		holds("orders", "to the queue")
		require.NoError(t, conn.DeleteDestination(ctx, made))
		require.NoError(t, conn.CreateAlias(ctx, client.Alias{Name: "orders", Destination: "other"}))
		sent(round, "by the alias")
		require.NoError(t, conn.RemoveAlias(ctx, "orders"))
	}
	holds("other", "by the alias", "by the alias", "by the alias")
}

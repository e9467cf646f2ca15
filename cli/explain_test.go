package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

// why is a broker with a queue, and what makes records of it stand still.
type why struct {
	t      *testing.T
	broker *lockstest.Broker
	conn   *client.Conn
}

// producer, consumer and the like fail the test if they fail.
func (w *why) send(keys ...string) {
	w.t.Helper()
	p, err := w.conn.Producer(w.t.Context(), "orders")
	require.NoError(w.t, err)
	for _, k := range keys {
		_, err := p.Send(w.t.Context(), &client.Record{Key: []byte(k), Value: []byte("v")})
		require.NoError(w.t, err)
	}
	require.NoError(w.t, p.Close(w.t.Context()))
}

func (w *why) join(opts ...client.ConsumerOption) *client.Consumer {
	w.t.Helper()
	c, err := w.conn.Consumer(w.t.Context(), "orders", append([]client.ConsumerOption{client.Group("g")}, opts...)...)
	require.NoError(w.t, err)
	return c
}

func (w *why) next(c *client.Consumer) *client.Delivery {
	w.t.Helper()
	d, err := c.Next(w.t.Context())
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = d.Release() }) // else the end waits for it
	return d
}

// rows are what explain says, as JSON and as text; both have to agree.
func (w *why) rows(args ...string) []explainJSON {
	w.t.Helper()
	sh := at(w.broker.Addr(), "")
	args = append([]string{"explain", "queue", "orders", "--group", "g"}, args...)
	var rows []explainJSON
	require.NoError(w.t, json.Unmarshal([]byte(must(w.t, sh, append(args, "-o", "json")...)), &rows))
	return rows
}

// says waits for a row with a code, and returns it as text and as JSON. What has to be
// committed first takes a moment.
func (w *why) says(code string, args ...string) (string, explainJSON) {
	w.t.Helper()
	var row explainJSON
	var text string
	require.Eventually(w.t, func() bool {
		rows := w.rows(args...)
		i := slices.IndexFunc(rows, func(r explainJSON) bool { return r.Code == code })
		if i < 0 {
			return false
		}
		row = rows[i]
		all := must(w.t, at(w.broker.Addr(), ""), append([]string{"explain", "queue", "orders", "--group", "g"}, args...)...)
		for line := range strings.Lines(all) {
			if strings.Contains(line, "["+code) && strings.Contains(line, row.Text) {
				text = line
			}
		}
		return text != ""
	}, 30*time.Second, 5*time.Millisecond, "no row %s", code)
	advice := adviceWithNames(wire.Advice(code), "orders", "g")
	if row.Key != "" {
		advice = strings.ReplaceAll(advice, " KEY", " "+row.Key)
	}
	require.Equal(w.t, advice, row.Advice)
	require.Contains(w.t, text, row.Text)
	require.Contains(w.t, text, row.Advice)
	return text, row
}

// Each reason for which records stand still, made with a broker and read with explain: what
// blocks, and what to do next.
func TestExplainNamesWhatBlocks(t *testing.T) {
	serial := client.GroupSettings{Mode: client.Serial}
	for name, c := range map[string]struct {
		partitions uint32
		settings   client.GroupSettings
		show       func(w *why)
	}{
		"no consumer": {1, serial, func(w *why) {
			w.send("a")
			text, _ := w.says("no_consumer")
			require.Contains(w.t, text, "lockstep consume orders --group g starts one.")
			info, err := w.conn.DescribeGroup(w.t.Context(), "orders", "g")
			require.NoError(w.t, err)
			require.Equal(w.t, uint32(1), info.Partitions[0].Leader)
		}},
		"no credit": {1, client.GroupSettings{Mode: client.Shared}, func(w *why) {
			w.send("a", "b")
			w.next(w.join(client.Prefetch(1)))
			_, row := w.says("no_credit")
			require.Equal(w.t, "The only consumer holds as many records as it asked for.", row.Text)
			w.says("no_credit", "--offset", "1", "--partition", "0")
		}},
		"held": {1, serial, func(w *why) {
			w.send("a", "a")
			d := w.next(w.join(client.ConsumerName("one")))
			_, row := w.says("held", "--key", "a")
			require.Contains(w.t, row.Object, "one (")
			require.EqualValues(w.t, 0, *row.Offset)
			require.NotZero(w.t, row.SinceMs)
			require.Contains(w.t, row.Text, fmt.Sprintf("has record 0 under epoch %d", d.Epoch()))
		}},
		"held by one without a name": {1, serial, func(w *why) {
			w.send("a")
			w.next(w.join())
			_, row := w.says("held", "--key", "a")
			require.Contains(w.t, row.Advice, "lockstep key park orders g a --now")
		}},
		"backoff": {1, serial, func(w *why) {
			w.send("a")
			require.NoError(w.t, w.next(w.join()).Nack(client.Delay(time.Hour)))
			text, row := w.says("backoff", "--key", "a")
			require.Regexp(w.t, " For another (1h|59m|58m)", text, "by the broker's clock: the one of this shell is months behind")
			require.Greater(w.t, row.UntilMs, row.NowMs)
		}},
		"parked": {1, serial, func(w *why) {
			w.send("a")
			w.says("not_there", "--offset", "1", "--partition", "0") // the partition knows the group
			must(w.t, at(w.broker.Addr(), ""), "key", "park", "orders", "g", "a", "--reason", "the account is closed")
			text, _ := w.says("parked", "--key", "a")
			require.Contains(w.t, text, `The key "a" is parked from offset 0 on: `)
			require.Contains(w.t, text, "[parked: a]", "as the commands want it, and no hash")
			require.Regexp(w.t, `the account is closed\. Since \d+m?s\. Repair what was wrong, then lockstep key unpark orders g a; or lockstep key skip orders g a passes its head over\.`, text)
		}},
		"paused": {1, serial, func(w *why) {
			w.send("a")
			must(w.t, at(w.broker.Addr(), ""), "group", "pause", "orders", "g")
			text, _ := w.says("paused")
			require.Contains(w.t, text, "The group is paused. lockstep group resume orders g lets it go on.")
		}},
		"revoking": {1, client.GroupSettings{Mode: client.Serial, RevokeMs: 600_000}, func(w *why) {
			w.send("a")
			w.next(w.join()) // a handler that does not stop
			must(w.t, at(w.broker.Addr(), ""), "key", "park", "orders", "g", "a", "--now")
			_, row := w.says("revoking", "--offset", "0", "--partition", "0")
			require.Contains(w.t, row.Text, "was asked to give record 0 back")
		}},
		"draining for a seek": {1, client.GroupSettings{Mode: client.Serial, RevokeMs: 600_000}, func(w *why) {
			w.send("a")
			d := w.next(w.join())
			sought := make(chan error, 1)
			go func() {
				var answer client.SeekResponse
				sought <- w.conn.GroupOrder(w.t.Context(), wire.OrderSeek, "orders", 0, "g", &client.SeekRequest{To: "latest"}, &answer)
			}()
			_, row := w.says("draining")
			require.Contains(w.t, row.Text, ": 1 record is still with consumers.")
			require.NoError(w.t, d.Release())
			require.NoError(w.t, <-sought)
		}},
		"dead letter destination not there": {1, client.GroupSettings{Mode: client.Serial, DeliveryLimit: 1, DeadLetterMode: client.DeadLetter, DeadLetter: "letters"}, func(w *why) {
			w.send("a")
			require.NoError(w.t, w.next(w.join()).Nack())
			_, row := w.says("letter_not_accepted")
			require.Contains(w.t, row.Text, `1 record has failed too often and is not written to "letters" yet`)
			must(w.t, at(w.broker.Addr(), ""), "queue", "create", "letters")
			require.Eventually(w.t, func() bool {
				return !slices.ContainsFunc(w.rows(), func(r explainJSON) bool { return r.Code == "letter_not_accepted" })
			}, 30*time.Second, 10*time.Millisecond)
		}},
		"another session is waited for": {1, client.GroupSettings{Mode: client.Serial, SessionMs: 600_000}, func(w *why) {
			w.send("a", "b")
			conn, err := client.Connect(w.t.Context(), w.broker.URL(), client.WithReconnect(false))
			require.NoError(w.t, err)
			c, err := conn.Consumer(w.t.Context(), "orders", client.Group("g"), client.ConsumerName("gone"))
			require.NoError(w.t, err)
			w.next(c)
			w.broker.Restart()
			_, row := w.says("waiting_for_session")
			require.Contains(w.t, row.Object, "gone (")
			require.Greater(w.t, row.UntilMs, time.Now().UnixMilli())
			_ = conn.Close() // its broker has stopped
		}},
		"the binding gives it to nobody": {2, client.GroupSettings{Mode: client.Serial, Binding: client.StrictlyOne}, func(w *why) {
			w.send("a", "b", "c", "d", "e", "f", "g", "h") // some to either partition
			w.join()
			w.says("binding_mismatch")
			rows := w.rows()
			require.True(w.t, slices.ContainsFunc(rows, func(r explainJSON) bool {
				return r.Code == "binding_mismatch" && r.Object == "strict" && r.Text == "The group has consumers, and the binding strict gives this partition to none of them."
			}))
			w.join()
			require.Eventually(w.t, func() bool {
				return !slices.ContainsFunc(w.rows(), func(r explainJSON) bool { return r.Code == "binding_mismatch" })
			}, 30*time.Second, 10*time.Millisecond)
		}},
		"the active one is away": {1, client.GroupSettings{Mode: client.Stream, SessionMs: 600_000}, func(w *why) {
			w.send("a")
			var socket net.Conn
			conn, err := client.Connect(w.t.Context(), w.broker.URL(), client.WithReconnect(false), client.WithDialer(func(ctx context.Context, address string) (c net.Conn, err error) {
				c, err = new(net.Dialer).DialContext(ctx, "tcp", address)
				socket = c
				return c, err
			}))
			require.NoError(w.t, err)
			c, err := conn.Consumer(w.t.Context(), "orders", client.Group("g"), client.ConsumerName("first"))
			require.NoError(w.t, err)
			w.next(c)
			w.join(client.StandbyPreferred(true))
			require.NoError(w.t, socket.Close())
			_, row := w.says("standby")
			require.Contains(w.t, row.Object, "first (")
			_ = conn.Close()
		}},
		"what is done, and what is not there": {1, serial, func(w *why) {
			w.send("a")
			require.NoError(w.t, w.next(w.join()).AckSync(w.t.Context()))
			w.says("done", "--offset", "0", "--partition", "0")
			w.says("not_there", "--offset", "1", "--partition", "0")
		}},
		"a record of which the leader has forgotten the key": {1, serial, func(w *why) {
			w.send("a", "a", "a")
			w.next(w.join())
			n := &namer{w.conn, "orders", "g", client.GroupSettings{Mode: client.Serial, Scope: client.ByKey}}
			require.Eventually(w.t, func() bool {
				answer := n.reasons(w.t.Context(), 0, 2)
				return answer != nil && answer.Reasons[0].Code == "held"
			}, 30*time.Second, 5*time.Millisecond)
			require.Nil(w.t, n.reasons(w.t.Context(), 0, 3), "there is no such record")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &why{t: t, broker: lockstest.Start(t, lockstest.Logger(slog.New(slog.DiscardHandler)))}
			var err error
			w.conn, err = client.Connect(t.Context(), w.broker.URL())
			require.NoError(t, err)
			t.Cleanup(func() { _ = w.conn.Close() })
			_, err = w.conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Partitions: c.partitions, Sync: client.SyncOS}})
			require.NoError(t, err)
			_, err = w.conn.CreateGroup(t.Context(), "orders", "g", client.GroupIntent{Settings: c.settings})
			require.NoError(t, err)
			c.show(w)
		})
	}
}

// Two of three brokers are gone: the one that is left says so, and what was acknowledged
// there is not committed.
func TestExplainNamesAMissingQuorum(t *testing.T) {
	c := lockstest.StartCluster(t, 3)
	conn, err := client.Connect(t.Context(), c.URL())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.CreateDestination(t.Context(), client.Destination{Name: "orders", Kind: client.Queue, Settings: client.Settings{Replicas: 3, Sync: client.SyncOS}})
	require.NoError(t, err)
	_, err = conn.CreateGroup(t.Context(), "orders", "g", client.GroupIntent{Settings: client.GroupSettings{Mode: client.Serial}})
	require.NoError(t, err)
	c.Stop(2)
	c.Stop(3)
	w := &why{t: t, broker: c.Broker(1), conn: conn}
	text, _ := w.says("no_quorum")
	require.Contains(t, text, "Start the nodes that hold its replicas")
	gone := at(c.Broker(1).Addr(), "a\n").run(t.Context(), "produce", "orders", "--timeout", "1s")
	require.Equal(t, 1, gone.code, "a producer gives up as well")
	require.Contains(t, gone.stderr, "wait longer with --timeout")
	// An order says that it waits, and what the last answer was.
	hasty := at(c.Broker(1).Addr(), "")
	hasty.timeout = time.Second
	order := hasty.run(t.Context(), "key", "park", "orders", "g", "a")
	require.Equal(t, 1, order.code)
	require.Contains(t, order.stderr, "lockstep: no answer yet; waiting, 1s in all (lockstep cluster health shows the nodes that are away)\n")
	require.Regexp(t, `park "a" in group "g" of "orders": group "g" of "orders" partition 0: .*context deadline exceeded; the last answer: [A-Z_]+: .*; see what is away with: lockstep cluster health`, order.stderr)
	// Who consumes there is told what is missing, goes on waiting, and gets what comes.
	for _, args := range [][]string{{"consume", "orders", "-c", "1"}, {"consume", "orders", "--group", "g", "-c", "1"}} {
		var stdout bytes.Buffer
		var stderr lockedBuffer
		done := make(chan int, 1)
		waiting, stop := context.WithCancel(t.Context())
		go func() { done <- at(c.Broker(1).Addr(), "").app(&stdout, &stderr).run(waiting, args) }()
		require.Eventually(t, func() bool { return strings.Contains(stderr.String(), `"orders": partition 0 `) }, 30*time.Second, 10*time.Millisecond, "%v says: %s", args, &stderr)
		require.Contains(t, stderr.String(), "UNAVAILABLE")
		require.Contains(t, stderr.String(), "lockstep partition ls orders")
		require.Empty(t, done, "it goes on waiting")
		stop()
		<-done
	}
	c.Start(2)
	c.Start(3)
	require.Eventually(t, func() bool {
		return !slices.ContainsFunc(w.rows(), func(r explainJSON) bool { return r.Code == "no_quorum" })
	}, 30*time.Second, 10*time.Millisecond)
}

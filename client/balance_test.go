package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// sendOneByOne sends records without a key, each when the one before is stored, and
// counts where they went.
func sendOneByOne(t *testing.T, p *Producer, n int) map[uint32]int {
	t.Helper()
	ctx := testContext(t)
	counts := make(map[uint32]int)
	for range n {
		r, err := p.Send(ctx, &Record{Value: []byte("x")})
		require.NoError(t, err)
		counts[r.Partition]++
	}
	return counts
}

// startGateway starts a cluster whose last node leads nothing.
func startGateway(t *testing.T, partitions int) ([]*fakeBroker, *fakeDestination, *fakeBroker) {
	t.Helper()
	store := newFakeStore()
	for range partitions {
		startNode(t, store)
	}
	d := store.brokers[0].create("d", Topic, partitions)
	gateway := startNode(t, store)
	gateway.mu.Lock()
	gateway.role = wire.RoleGateway
	gateway.mu.Unlock()
	return store.brokers, d, gateway
}

// R-SIB-1, R-MQC-3: what has no key stays on the node of the producer.
func TestR_SIB_1_LocalPartitionsComeFirst(t *testing.T) {
	const records = 10_000
	nodes := startCluster(t, 3)
	nodes[0].create("d", Topic, 3)
	c := connect(t, nodes[0])
	p := newTestProducer(t, c, "d")
	values := make([]string, records)
	_, errs := sendAll(t, p, nil, values...)
	require.Equal(t, make([]error, records), errs)
	require.Len(t, nodes[0].values("d", 0), records)
	require.Empty(t, nodes[0].values("d", 1))
	require.Empty(t, nodes[0].values("d", 2))
	for _, b := range nodes {
		_, _, forwarded := b.counts()
		require.Zero(t, forwarded)
	}
}

// R-SIB-5, R-MQC-3: the switch.
func TestR_SIB_5_WithoutLocalPreferenceAllTakePart(t *testing.T) {
	nodes := startCluster(t, 3)
	nodes[0].create("d", Topic, 3)
	p := newTestProducer(t, connect(t, nodes[0]), "d", LocalPreference(false))
	for _, n := range sendOneByOne(t, p, 3000) {
		require.InDelta(t, 1000, n, 10)
	}
}

// R-SIB-2, R-MQC-2: a node without partitions spreads evenly, whether it passes on or
// the client goes there itself. R-SIB-7, R-MQC-1: each record is in one partition.
func TestR_SIB_2_AGatewaySpreadsOverThePartitions(t *testing.T) {
	for _, redirect := range []bool{true, false} {
		for _, partitions := range []int{2, 3} {
			t.Run(fmt.Sprintf("%d partitions, redirect %v", partitions, redirect), func(t *testing.T) {
				_, d, gateway := startGateway(t, partitions)
				p := newTestProducer(t, connect(t, gateway, AllowRedirect(redirect)), "d")
				records := 1200 * partitions
				sum := 0
				for _, n := range sendOneByOne(t, p, records) {
					require.InDelta(t, 1200, n, 12)
				}
				for i := range d.partitions {
					sum += len(gateway.values("d", i))
				}
				require.Equal(t, records, sum)
				_, _, forwarded := gateway.counts()
				require.Equal(t, redirect, forwarded == 0)
			})
		}
	}
}

// R-SIB-3, R-MQC-4: who has no leader gets nothing; the share comes back with it, within 2 s: the
// client looks every second, or when it is told, and then it connects at once, however long the
// pause is that the last attempt has left behind.
func TestR_SIB_3_OnlyActivePartitionsReceive(t *testing.T) {
	nodes, d, gateway := startGateway(t, 3)
	c := connect(t, gateway, WithReconnectBackoff(time.Hour, time.Hour))
	p := newTestProducer(t, c, "d")
	sendOneByOne(t, p, 30)
	nodes[1].stop()
	gateway.elect(d, 1, 0, true)
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return time.Until(c.nodes[2].retryAt) > time.Minute
	}, 10*time.Second, time.Millisecond)
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return !p.layout.takes[1]
	}, 10*time.Second, time.Millisecond)
	counts := sendOneByOne(t, p, 1000)
	require.Zero(t, counts[1])
	require.InDelta(t, 500, counts[0], 5)

	nodes[1].restart()
	gateway.elect(d, 1, 2, false) // no event: the client looks for itself
	back := time.Now()
	for sendOneByOne(t, p, 3)[1] == 0 {
		require.Less(t, time.Since(back), 15*time.Second)
	}
	t.Logf("the share was back after %v", time.Since(back))
	for _, n := range sendOneByOne(t, p, 600) {
		require.InDelta(t, 200, n, 2)
	}
}

// R-SIB-3: each of what a broker says of a partition is enough to send it nothing.
func TestR_SIB_3_WhatAPartitionNeedsToReceive(t *testing.T) {
	active := wire.PartitionInfo{State: wire.PartitionActive, Leader: 1, Flags: wire.PartitionUnattended}
	require.True(t, takes(&active))
	for name, change := range map[string]func(p *wire.PartitionInfo){
		"no leader":    func(p *wire.PartitionInfo) { p.Leader = 0 },
		"fenced":       func(p *wire.PartitionInfo) { p.State = wire.PartitionFenced },
		"full":         func(p *wire.PartitionInfo) { p.Flags |= wire.PartitionFull },
		"closed":       func(p *wire.PartitionInfo) { p.Flags |= wire.PartitionSendDisabled },
		"a newer flag": func(p *wire.PartitionInfo) { p.Flags |= 1 << 7 },
	} {
		p := active
		change(&p)
		require.False(t, takes(&p), name)
	}
}

// A leader that refuses a record just before its node is gone has its share too when it is back,
// though its record went elsewhere and nothing is left that would find out.
func TestR_SIB_3_AShareReturnsAfterARefusalAndALoss(t *testing.T) {
	nodes, d, gateway := startGateway(t, 3)
	p := newTestProducer(t, connect(t, gateway), "d")
	sendOneByOne(t, p, 30)
	refused := make(chan struct{}, 100)
	nodes[1].setScript(produceScript(func(_ int, q *fakeRequest) bool {
		q.refuse(wire.CodeNotLeader)
		refused <- struct{}{}
		return true
	}))
	outcomes := make(chan error, 3)
	for range 3 {
		require.NoError(t, p.SendFunc(testContext(t), &Record{Value: []byte("x")}, func(_ Receipt, err error) { outcomes <- err }))
	}
	<-refused
	nodes[1].stop()
	gateway.elect(d, 1, 0, true)
	for range 3 {
		require.NoError(t, <-outcomes)
	}
	nodes[1].setScript(nil)
	nodes[1].restart()
	gateway.elect(d, 1, 2, true)
	require.Eventually(t, func() bool { return sendOneByOne(t, p, 3)[1] > 0 }, 10*time.Second, time.Millisecond)
}

// R-SIB-4: a local partition that does not take records counts as not local.
func TestR_SIB_4_ALocalPartitionThatTakesNothingIsNotLocal(t *testing.T) {
	for _, c := range []struct {
		name  string
		apply func(b *fakeBroker, d *fakeDestination)
	}{
		{"stopped", func(b *fakeBroker, d *fakeDestination) { b.elect(d, 0, 0, true) }},
		{"over its threshold", func(b *fakeBroker, d *fakeDestination) {
			b.mu.Lock()
			d.partitions[0].flags = wire.PartitionFull
			b.mu.Unlock()
			b.elect(d, 1, 2, true)
		}},
		{"closed to new records", func(b *fakeBroker, d *fakeDestination) {
			b.mu.Lock()
			d.partitions[0].flags = wire.PartitionSendDisabled
			b.mu.Unlock()
			b.elect(d, 1, 2, true)
		}},
		{"refused by the broker", func(b *fakeBroker, d *fakeDestination) {
			b.setScript(produceScript(func(_ int, q *fakeRequest) bool {
				q.refuse(wire.CodePartitionFull)
				return true
			}))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes := startCluster(t, 3)
			d := nodes[0].create("d", Topic, 3)
			p := newTestProducer(t, connect(t, nodes[0]), "d")
			require.Equal(t, map[uint32]int{0: 20}, sendOneByOne(t, p, 20))
			c.apply(nodes[0], d)
			if c.name != "refused by the broker" {
				require.Eventually(t, func() bool {
					p.mu.Lock()
					defer p.mu.Unlock()
					return !p.layout.takes[0]
				}, 10*time.Second, time.Millisecond)
			}
			counts := sendOneByOne(t, p, 200)
			require.Zero(t, counts[0])
			require.InDelta(t, 100, counts[1], 2)
			require.InDelta(t, 100, counts[2], 2)
		})
	}
}

// R-SIB-25: what a partition does not take goes elsewhere if it may, and what may not waits for the
// partition, in its order: what has a key, what the application has placed, and what comes from a
// producer that stays where it is.
func TestR_SIB_25_OnlyWhatIsFreeToGoSpills(t *testing.T) {
	nodes := startCluster(t, 3)
	nodes[0].create("d", Topic, 3)
	c := connect(t, nodes[0])
	key := []byte("0")
	for n := 1; ; n++ {
		if at, err := c.PartitionOf(testContext(t), "d", key); err != nil || at == 0 {
			require.NoError(t, err)
			break
		}
		key = fmt.Append(nil, n)
	}
	p := newTestProducer(t, c, "d")
	pinned := newTestProducer(t, c, "d", Partition(0))
	stays := newTestProducer(t, c, "d", Affinity(PerProducer), LocalPreference(true))
	for range 50 { // it chooses once, at random
		if n := sendOneByOne(t, stays, 1); n[0] == 1 {
			break
		}
		stays = newTestProducer(t, c, "d", Affinity(PerProducer), LocalPreference(true))
	}
	before := len(nodes[0].values("d", 0))

	nodes[0].setScript(produceScript(func(_ int, q *fakeRequest) bool {
		q.refuse(wire.CodePartitionFull)
		return true
	}))
	const each = 10 // half of them before it is known that the partition takes nothing
	waits := make(chan Receipt, 3*each)
	var want []string
	for i := range each {
		if i == each/2 {
			for _, from := range []*Producer{p, pinned, stays} {
				require.Eventually(t, func() bool {
					from.mu.Lock()
					defer from.mu.Unlock()
					return from.lanes[0].stalled()
				}, 10*time.Second, time.Millisecond)
			}
		}
		for name, from := range map[string]*Producer{"keyed": p, "pinned": pinned, "stays": stays} {
			r := &Record{Value: fmt.Appendf(nil, "%s %d", name, i)}
			if name == "keyed" {
				r.Key = key
			}
			want = append(want, string(r.Value))
			require.NoError(t, from.SendFunc(testContext(t), r, func(r Receipt, err error) {
				if err == nil {
					waits <- r
				}
			}))
		}
	}
	for n := range sendOneByOne(t, p, 30) {
		require.NotZero(t, n)
	}
	require.Empty(t, waits)
	nodes[0].setScript(nil)
	for range 3 * each {
		require.Zero(t, (<-waits).Partition)
	}
	got := nodes[0].values("d", 0)[before:]
	require.ElementsMatch(t, want, got)
	for _, name := range []string{"keyed", "pinned", "stays"} {
		next := 0
		for _, v := range got {
			if v == fmt.Sprintf("%s %d", name, next) {
				next++
			}
		}
		require.Equal(t, each, next, "%s: in order", name)
	}
}

// R-SIB-6, R-MQC-6, R-WLS-11: a producer may stay with what it has chosen, or choose
// each time; what has a key (a group, say) stays together anyway.
func TestR_SIB_6_AffinityIsPerMessageOrPerProducer(t *testing.T) {
	nodes := startCluster(t, 3)
	nodes[0].create("d", Topic, 6)
	c := connect(t, nodes[0])
	seen := map[uint32]bool{}
	for range 40 {
		p := newTestProducer(t, c, "d", Affinity(PerProducer), LocalPreference(false))
		counts := sendOneByOne(t, p, 10)
		require.Len(t, counts, 1)
		for n := range counts {
			seen[n] = true
		}
		require.NoError(t, p.Close(testContext(t)))
	}
	require.Greater(t, len(seen), 3)

	p := newTestProducer(t, c, "d", LocalPreference(false))
	require.Len(t, sendOneByOne(t, p, 60), 6)
	first, err := p.Send(testContext(t), &Record{Key: []byte("group 7"), Value: []byte("x")})
	require.NoError(t, err)
	for range 20 {
		r, err := p.Send(testContext(t), &Record{Key: []byte("group 7"), Value: []byte("x")})
		require.NoError(t, err)
		require.Equal(t, first.Partition, r.Partition)
	}
}

// R-SIB-6: a producer that stays with its partition stays when that is lost, and goes on there under its next leader.
func TestR_SIB_6_AProducerStaysWithAPartitionThatIsLost(t *testing.T) {
	nodes := startCluster(t, 3)
	d := nodes[0].create("d", Topic, 3)
	ctx := testContext(t)
	c := connect(t, nodes[0])
	var p *Producer
	for own := false; !own; { // it chooses at random; here the client's home lives on
		p = newTestProducer(t, c, "d", Affinity(PerProducer), LocalPreference(false))
		own = sendOneByOne(t, p, 1)[1] == 1
	}
	before := len(nodes[0].values("d", 1))
	nodes[1].stop()
	nodes[0].elect(d, 1, 0, true)
	var tickets []*Ticket
	for range 20 {
		ticket, err := p.SendAsync(ctx, &Record{Value: []byte("x")})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	other := newTestProducer(t, c, "d", LocalPreference(false))
	require.NotContains(t, sendOneByOne(t, other, 20), uint32(1), "others go where there is a leader")
	nodes[0].elect(d, 1, 3, true)
	for _, ticket := range tickets {
		r, err := ticket.Wait(ctx)
		require.NoError(t, err)
		require.Equal(t, uint32(1), r.Partition)
	}
	require.Len(t, nodes[0].values("d", 1), before+len(tickets))
}

// R-WLS-11, R-MQC-5: how each policy spreads. The counts are those of the choice itself,
// of 100,000 records that each find the batch before on its way.
func TestR_WLS_11_PoliciesSpreadAsTheySay(t *testing.T) {
	for _, c := range []struct {
		name    string
		policy  Policy
		weights []uint8
		want    []int // of 100,000
	}{
		{"weighted, all weights the same", Weighted, []uint8{0, 1, 1, 1}, []int{25_000, 25_000, 25_000, 25_000}},
		{"weighted 3:1", Weighted, []uint8{3, 1}, []int{75_000, 25_000}},
		{"weighted 5:3:2", Weighted, []uint8{5, 3, 2}, []int{50_000, 30_000, 20_000}},
		{"in turn, whatever the weights", RoundRobin, []uint8{3, 1}, []int{50_000, 50_000}},
		{"random, whatever the weights", Random, []uint8{3, 1, 1, 1}, []int{25_000, 25_000, 25_000, 25_000}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := startBroker(t)
			d := b.create("d", Topic, len(c.weights))
			for i, w := range c.weights {
				d.partitions[i].weight = w
			}
			p := newTestProducer(t, connect(t, b), "d", Balance(c.policy))
			p.mu.Lock()
			counts := make([]int, len(c.weights))
			again, last := 0, uint32(len(c.weights))
			for range 100_000 {
				a, _, _ := p.route(&Record{}, 10)
				counts[a.partition]++
				if a.partition == last {
					again++
				}
				last = a.partition
			}
			p.mu.Unlock()
			for i, want := range c.want {
				require.InDelta(t, want, counts[i], 2000)
			}
			switch c.policy {
			case RoundRobin:
				require.Zero(t, again)
			case Random:
				require.InDelta(t, 25_000, again, 2000, "not in turn")
			}
			sent := sendOneByOne(t, p, 400)
			require.InDelta(t, c.want[0]/250, sent[0], 60)
		})
	}
	b := startBroker(t)
	b.create("d", Topic, 1)
	conn := connect(t, b)
	_, err := conn.Producer(testContext(t), "d", Balance(3))
	require.ErrorContains(t, err, "Balance")
	_, err = conn.Producer(testContext(t), "d", Affinity(2))
	require.ErrorContains(t, err, "Affinity")
}

// A partition that took nothing for a while does not get it all at once afterwards.
func TestAPartitionThatWasAwayDoesNotMakeUpForIt(t *testing.T) {
	b := startBroker(t)
	d := b.create("d", Topic, 2)
	d.partitions[0].weight = 3
	p := newTestProducer(t, connect(t, b), "d")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lanes[1].away = true
	for range 1000 {
		a, _, _ := p.route(&Record{}, 10)
		require.Zero(t, a.partition)
	}
	p.lanes[1].away = false
	counts := make([]int, 2)
	for range 400 {
		a, _, _ := p.route(&Record{}, 10)
		counts[a.partition]++
	}
	require.InDelta(t, 300, counts[0], 5)
}

// RULES R6: what is known to be in no log may go elsewhere, what is not may not.
func TestRuleR6_OnlyCertainRecordsSpill(t *testing.T) {
	nodes := startCluster(t, 2)
	d := nodes[0].create("d", Topic, 2)
	c := connect(t, nodes[0])
	ctx := testContext(t)
	p := newTestProducer(t, c, "d", BatchBytes(1), InFlight(1), LocalPreference(false))
	sendOneByOne(t, p, 2)
	swallowed := make(chan struct{})
	nodes[1].setScript(produceScript(func(int, *fakeRequest) bool { close(swallowed); return true }))
	var tickets []*Ticket
	send := func(value string) {
		ticket, err := p.SendAsync(ctx, &Record{Value: []byte(value)})
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	for i := range 6 { // in turn: the odd ones to partition 1
		send(fmt.Sprint(i))
	}
	<-swallowed
	nodes[1].setScript(nil)
	nodes[1].stop()
	nodes[0].elect(d, 1, 0, true)
	var unsure []int
	for i, ticket := range tickets {
		select {
		case <-ticket.Done():
		case <-time.After(unreachableAfter * 3):
			unsure = append(unsure, i)
			continue
		}
		r, err := ticket.Wait(ctx)
		require.NoError(t, err)
		require.Zero(t, r.Partition)
	}
	require.Equal(t, []int{1}, unsure, "it may be stored where it was sent to")
	nodes[0].elect(d, 1, 1, true)
	r, err := tickets[1].Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, uint32(1), r.Partition)
	require.Len(t, nodes[0].values("d", 0), 1+5)
	require.Len(t, nodes[0].values("d", 1), 1+1)
}

// R-WLS-7, as far as there are no groups: who loses its own broker hears of that, who is
// connected elsewhere hears that the destination cannot be reached, and stays connected.
func TestR_WLS_7_ThreeEventsAreTold(t *testing.T) {
	t.Run("the broker that the client is connected to", func(t *testing.T) {
		nodes := startCluster(t, 2)
		nodes[0].create("d", Topic, 2)
		log := newEventLog()
		c := connect(t, nodes[1], WithEvents(log.add))
		p := newTestProducer(t, c, "d", LocalPreference(false))
		sendOneByOne(t, p, 4)
		nodes[1].stop()
		lost := log.await(t, func(e Event) bool { _, ok := e.(Disconnected); return ok }).(Disconnected)
		require.Equal(t, uint32(2), lost.Node)
		log.await(t, func(e Event) bool { return e == Connected{Address: nodes[0].address(), Node: 1} })
		log.mu.Lock()
		defer log.mu.Unlock()
		for _, e := range log.events {
			_, other := e.(NodeLost)
			require.False(t, other)
		}
	})
	t.Run("a broker that leads the partition", func(t *testing.T) {
		nodes := startCluster(t, 2)
		nodes[0].create("d", Topic, 2)
		log := newEventLog()
		c := connect(t, nodes[0], WithEvents(log.add))
		p := newTestProducer(t, c, "d", Partition(1))
		r := newTestReader(t, c, "d", Partitions(1))
		sendOneByOne(t, p, 4)
		nodes[1].stop()
		lost := log.await(t, func(e Event) bool { _, ok := e.(NodeLost); return ok }).(NodeLost)
		require.Equal(t, uint32(2), lost.Node)
		require.ErrorIs(t, lost.Err, ErrDisconnected)
		log.await(t, func(e Event) bool { return e == DestinationUnavailable{Destination: "d", Partition: 1} })
		require.NoError(t, c.Ping(testContext(t)))
		require.NoError(t, r.Close())
		log.mu.Lock()
		defer log.mu.Unlock()
		for _, e := range log.events {
			_, other := e.(Disconnected)
			require.False(t, other)
		}
	})
	t.Run("the broker says so", func(t *testing.T) {
		b := startBroker(t)
		log := newEventLog()
		connect(t, b, WithEvents(log.add))
		b.sendEvent(wire.Event{Kind: wire.EventDestinationUnavailable, Destination: "d", Detail: "partition 3"})
		log.await(t, func(e Event) bool { return e == DestinationUnavailable{Destination: "d", Detail: "partition 3"} })
		b.sendEvent(wire.Event{Kind: wire.EventDestinationUnavailable, Destination: "d", Detail: "partition 3"})
		b.sendEvent(wire.Event{Kind: wire.EventDestinationUnavailable, Destination: "d", Detail: "partition 4"})
		log.await(t, func(e Event) bool { return e == DestinationUnavailable{Destination: "d", Detail: "partition 4"} })
		require.Equal(t, 1, log.count(func(e Event) bool { return e == DestinationUnavailable{Destination: "d", Detail: "partition 3"} }))
	})
	t.Run("every broker tells of the same change", func(t *testing.T) {
		nodes := startCluster(t, 2)
		nodes[0].create("d", Topic, 2)
		log := newEventLog()
		c := connect(t, nodes[0], WithEvents(log.add))
		sendOneByOne(t, newTestProducer(t, c, "d", Partition(1)), 1)
		for _, version := range []uint64{70, 70, 69, 71} {
			nodes[1].sendEvent(wire.Event{Kind: wire.EventTopologyChanged, Version: version})
		}
		log.await(t, func(e Event) bool { return e == TopologyChanged{Epoch: 71} })
		require.Equal(t, 2, log.count(func(e Event) bool { m, ok := e.(TopologyChanged); return ok && m.Epoch >= 69 }))
	})
}

// R-MQC-4: who lost its session gets nothing from that moment on, whatever the metadata
// says still.
func TestR_MQC_4_ALaneWithoutASessionIsPassedOver(t *testing.T) {
	nodes := startCluster(t, 2)
	nodes[0].create("d", Topic, 2)
	p := newTestProducer(t, connect(t, nodes[0]), "d", LocalPreference(false), Spill(false))
	require.Equal(t, map[uint32]int{0: 5, 1: 5}, sendOneByOne(t, p, 10))
	nodes[1].stop() // and nobody is elected
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.lanes[1].away
	}, 10*time.Second, time.Millisecond)
	require.Equal(t, map[uint32]int{0: 100}, sendOneByOne(t, p, 100))
	nodes[1].restart()
	for sendOneByOne(t, p, 1)[1] == 0 {
	}
}

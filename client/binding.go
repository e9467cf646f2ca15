package client

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// binding is which partitions are a consumer's, as its group's coordinator says.
type binding struct {
	generation, counter uint32
	partitions          []uint32
	uncovered           []uint32
}

// older reports whether the binding is older than another.
func (b *binding) older(generation, counter uint32) bool {
	return b.generation < generation || b.generation == generation && b.counter < counter
}

// bindLink is a consumer's link to the coordinator of its group, the leader of one
// partition. While the coordinator cannot be reached the binding stays as it is, and the
// other partitions are asked in turn which of them coordinates by now. Where brokers have
// no coordinator, all partitions are the consumer's. Guarded by Consumer.mu.
type bindLink struct {
	consumer   *Consumer
	leaders    map[uint32]leadership // of all partitions
	at         uint32                // the partition that coordinates, or is asked
	since      time.Time             // when it was asked first; zero: it was not
	without    time.Time             // since when there is no link; zero: there is one
	blocked    bool                  // Blocked was sent for it
	id         [16]byte
	old        [16]byte // predecessor
	session    *session
	opening    *session
	tries      uint64 // how often one was opened
	link       uint32
	retryAt    time.Time
	pause      time.Duration
	every      time.Duration // between heartbeats
	beat       time.Time
	beatNumber uint64
	left       bool
}

func newBindLink(c *Consumer, l *layout) *bindLink {
	b := &bindLink{consumer: c, id: newSessionID(), leaders: make(map[uint32]leadership, len(l.partitions))}
	for i, n := range l.partitions {
		b.leaders[n] = l.leaders[i]
	}
	b.at = slices.Min(l.partitions)
	return b
}

func (b *bindLink) learn(partition uint32, said leadership) {
	l := b.leaders[partition]
	l.learn(said)
	b.leaders[partition] = l
}

// elsewhere has another partition asked: the one that was named, or else the next.
func (b *bindLink) elsewhere(named bool, partition uint32) {
	if _, there := b.leaders[partition]; !named || !there {
		numbers := slices.Sorted(maps.Keys(b.leaders))
		partition = numbers[(slices.Index(numbers, b.at)+1)%len(numbers)]
	}
	b.at, b.since = partition, time.Time{}
}

// tend binds, and keeps the link alive.
func (b *bindLink) tend(now time.Time) (pause time.Duration) {
	c := b.consumer
	switch {
	case b.left || c.err != nil:
		return 0
	case b.session != nil:
		b.without, b.blocked = time.Time{}, false
		if !now.Before(b.beat) {
			b.beatNumber++
			b.beat = now.Add(b.every)
			b.session.tell(wire.OpGroupHeartbeat, b.link, &wire.GroupHeartbeat{Number: b.beatNumber})
		}
		return until(b.beat, now)
	}
	b.checkBlocked(now)
	if now.Before(b.retryAt) {
		return until(b.retryAt, now)
	}
	if b.since.IsZero() {
		b.since = now
	} else if b.opening == nil && now.Sub(b.since) > bindPatience {
		b.elsewhere(false, 0)
	}
	s := c.conn.sessionTo(b.leaders[b.at].node)
	if s == nil {
		c.want = true
	} else if b.opening != s {
		b.open(s)
	}
	return leaderPause
}

// checkBlocked tells once that nobody says which partitions are the consumer's, if it has
// none: the bindings that it has go on.
func (b *bindLink) checkBlocked(now time.Time) {
	c := b.consumer
	if b.without.IsZero() {
		b.without = now
	}
	if !b.blocked && len(c.attachments) == 0 && now.Sub(b.without) >= blockedAfter {
		b.blocked = true
		err := wire.Errorf(wire.CodeUnavailable, "no node that leads the partition with the members of the group can be reached")
		c.events.send(Blocked{Destination: c.destination, Group: c.options.group, Partition: b.at, Err: err})
	}
}

const (
	// bindPatience is how long a partition is asked for the coordinator before the next is.
	bindPatience = 2 * time.Second
	// A consumer tells the coordinator that it lives three times in the session timeout, but
	// not less often than bindBeatMax says.
	bindBeatMin = 100 * time.Millisecond
	bindBeatMax = 10 * time.Second
)

func (b *bindLink) open(s *session) {
	c := b.consumer
	if s.speaks(wire.OpGroupBind) != nil {
		c.rebind(binding{partitions: slices.Sorted(maps.Keys(b.leaders))})
		b.left = true
		return
	}
	b.opening = s
	b.tries++
	var opened wire.OpenPartitionResponse
	b.ask(s, wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: c.destination, Partition: b.at}, &opened, func() {
		request := wire.BindRequest{Handle: opened.Handle, Group: c.options.group, Session: b.id, Predecessor: b.old, Name: c.options.name,
			Node: c.conn.homeNode(), Flags: c.flags, Generation: c.binding.generation, Counter: c.binding.counter, Partitions: c.binding.partitions}
		var response wire.BindResponse
		b.ask(s, wire.OpGroupBind, &request, &response, func() {
			b.opening = nil
			if b.left {
				s.tell(wire.OpGroupLeave, response.Link, &wire.GroupLeave{})
				return
			}
			b.session, b.link, b.pause = s, response.Link, 0
			b.old = [16]byte{}
			s.attachLink(b.link, b)
			b.since = time.Time{}
			s.hurry(time.Duration(response.SessionMs) * time.Millisecond)
			b.every = min(max(time.Duration(response.SessionMs)*time.Millisecond/3, bindBeatMin), bindBeatMax)
			b.beat = time.Now().Add(b.every)
			c.rebind(binding{response.Generation, response.Counter, response.Partitions, response.Uncovered})
			if response.Binding == BindLocal { // perhaps nothing is local by now
				c.begun()
			}
			poke(c.wake)
		})
	})
}

// ask is attachment.ask for the link to the coordinator.
func (b *bindLink) ask(s *session, op wire.Opcode, request, response wire.Message, then func()) {
	try := b.tries
	handle := func(body []byte, err error) {
		if err == nil {
			err = response.Parse(body)
		}
		switch {
		case b.opening != s || b.tries != try:
		case err != nil:
			b.opening = nil
			b.refused(err)
		default:
			then()
		}
	}
	if _, err := s.request(op, request, &memberReply{b.consumer, handle}); err != nil {
		handle(nil, err)
	}
}

func (b *bindLink) refused(err error) {
	c := b.consumer
	l := b.leaders[b.at]
	switch code := codeOf(err); {
	case code == wire.CodeNotLeader && l.follow(err):
		b.leaders[b.at] = l
	case code == wire.CodeNotCoordinator:
		b.follow(err)
	case code == wire.CodeUnsupported: // brokers without a coordinator
		c.rebind(binding{partitions: slices.Sorted(maps.Keys(b.leaders))})
		b.left = true
	case code == wire.CodeFenced:
		c.fail(fmt.Errorf("%w: another consumer has the name %q in group %q; one name is for one consumer at a time", ErrFenced, c.options.name, c.options.group))
	case code == wire.CodeSessionGone:
		b.old, b.id = b.id, newSessionID()
	case code == 0 || code.Retriable() || code == wire.CodeUnknownHandle || code == wire.CodeNotLeader || code == wire.CodeDuplicate:
		c.want = true
		b.pause = min(max(2*b.pause, attachPauseMin), attachPauseMax)
		b.retryAt = time.Now().Add(jittered(b.pause))
	default:
		c.fail(err)
	}
	poke(c.wake)
}

// follow asks the partition that coordinates as the error says.
func (b *bindLink) follow(err error) {
	var e *wire.Error
	named := errors.As(err, &e) && uint64(e.Next) <= math.MaxUint32
	if named {
		b.elsewhere(true, uint32(e.Next))
	} else {
		b.elsewhere(false, 0)
	}
	b.pause = min(max(2*b.pause, attachPauseMin), attachPauseMax) // two that name each other are not asked without end
	b.retryAt = time.Now().Add(b.pause)
}

// outdated leaves a coordinator that does not know of a newer one.
func (b *bindLink) outdated(generation uint32) {
	if b.left || generation <= b.consumer.binding.generation {
		return
	}
	if b.session != nil {
		b.session.tell(wire.OpGroupLeave, b.link, &wire.GroupLeave{})
		b.session.dropLink(b.link)
		b.session = nil
		b.elsewhere(false, 0)
	}
}

// closed implements link.
func (b *bindLink) closed(s *session, err error) {
	c := b.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.session == s {
		b.session = nil
		if err == nil {
			err = wire.Errorf(wire.CodeSessionGone, "the coordinator has removed the consumer")
		}
		b.refused(err)
	}
}

// lost implements link.
func (b *bindLink) lost(s *session) {
	c := b.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.session == s {
		b.session = nil
	}
	poke(c.wake)
}

// frame implements member.
func (b *bindLink) frame(s *session, op wire.Opcode, body []byte) error {
	c := b.consumer
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.session != s || op != wire.OpGroupBinding {
		return nil
	}
	var m wire.GroupBinding
	if err := m.Parse(body); err != nil {
		return err
	}
	c.rebind(binding{m.Generation, m.Counter, m.Partitions, m.Uncovered})
	return nil
}

// leave says that the consumer wants no partitions any more.
func (b *bindLink) leave() {
	b.left = true
	if b.session != nil {
		b.session.tell(wire.OpGroupLeave, b.link, &wire.GroupLeave{})
		b.session.dropLink(b.link)
		b.session = nil
	}
}

// rebind takes over a binding: partitions that are not in it are left when nothing of
// them is held any more. c.mu is held.
func (c *Consumer) rebind(to binding) {
	before, partitions := c.binding, to.partitions
	if before.partitions != nil && !before.older(to.generation, to.counter) {
		return
	}
	changed := before.partitions != nil && !slices.Equal(before.partitions, partitions)
	if partitions == nil {
		to.partitions = []uint32{} // it is bound
	}
	c.binding = to
	for _, at := range c.attachments {
		if !slices.Contains(partitions, at.partition) {
			at.drain()
		}
	}
	for _, n := range partitions {
		if i := slices.IndexFunc(c.attachments, func(at *attachment) bool { return at.partition == n && !at.left }); i >= 0 {
			c.attachments[i].stay()
		} else {
			c.attachments = append(c.attachments, newAttachment(c, n, c.bind.leaders[n]))
		}
	}
	if changed {
		c.events.send(Rebound{Destination: c.destination, Group: c.options.group, Partitions: partitions})
	}
	if !slices.Equal(before.uncovered, to.uncovered) {
		c.events.send(Uncovered{Destination: c.destination, Group: c.options.group, Partitions: to.uncovered})
	}
	poke(c.wake)
}

// stay takes it back that the partition is to be left: what is worked on stays the
// session's. If the broker has removed it already, it closes the link, and another one joins.
func (at *attachment) stay() {
	if at.leaving && !at.consumer.closing {
		at.leaving = false
		at.setCapacity()
	}
}

// drain gives back what was not handed out, and leaves the partition when the rest is
// settled.
func (at *attachment) drain() {
	if at.leaving || at.left {
		return
	}
	at.leaving = true
	switch {
	case at.session != nil:
		at.session.tell(wire.OpGroupLeave, at.link, &wire.GroupLeave{Drain: true})
		at.releaseQueued()
	case !at.attached:
		at.depart(ErrClosed)
	}
}

// stale is told that an attach had a binding that is not the newest: the coordinator will
// say which one is.
func (c *Consumer) stale(at *attachment, err error) {
	at.retryAt = time.Now().Add(retryPause)
	var e *wire.Error
	if errors.As(err, &e) && c.bind != nil {
		c.bind.outdated(uint32(e.Next >> 32))
	}
}

// homeNode is the node the client is connected to.
func (c *Conn) homeNode() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.hello.NodeID
}

package client

import (
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// upkeep is the goroutine that attaches to partitions, again where need be, sends
// heartbeats, and stops what has taken too long. It never waits for an answer.
func (c *Consumer) upkeep() {
	defer c.wg.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s, changed, err := c.conn.peek()
		c.mu.Lock()
		if err != nil {
			c.fail(err)
		}
		var dead <-chan struct{}
		now := time.Now()
		pause := c.checkTimes(now)
		if s != nil && err == nil {
			dead = s.done
			pause = shorter(pause, c.tend(s, now))
		}
		if c.look = (time.Time{}); pause > 0 {
			c.look = now.Add(pause)
		}
		c.mu.Unlock()

		timer.Stop()
		if pause > 0 {
			timer.Reset(pause)
		}
		if err != nil {
			changed = nil // there will be no other session
		}
		select {
		case <-c.wake:
		case <-timer.C:
		case <-changed:
		case <-dead:
		case <-c.ctx.Done():
			return
		}
	}
}

// checkTimes ends what is over by its time, and returns when to look again. c.mu is held.
func (c *Consumer) checkTimes(now time.Time) (next time.Duration) {
	for _, at := range c.attachments {
		next = shorter(next, at.checkBlocked(now))
		if at.attached && at.held.Len() > 0 && !at.left {
			if !now.Before(at.valid) {
				at.expire()
			} else {
				next = shorter(next, until(at.valid, now))
			}
		}
		if at.session != nil {
			if !now.Before(at.beat) {
				at.heartbeat(now)
			}
			next = shorter(next, until(at.beat, now))
		}
	}
	for d := c.running.first; d != nil; d = c.running.first {
		if now.Before(d.due) {
			next = shorter(next, until(d.due, now))
			break
		}
		if d.revoked == 0 {
			d.revoked = wire.ReasonAckWait
			c.running.remove(d)
			d.due = now.Add(c.revokeGrace)
			c.running.insert(d)
			d.stop(errAckWait)
			continue
		}
		kind := wire.OutcomeNack
		if c.flags&wire.AttachLookOnly != 0 || d.err != nil {
			kind = wire.OutcomeReleased
		}
		d.conclude(kind, 0, "ack wait")
		if kind == wire.OutcomeNack {
			d.at.tellLost(d, errAckWait)
		}
		if d.err == nil {
			d.err = fenced(d.Partition, wire.Offset(d.Offset), errAckWait)
		}
	}
	return next
}

// blockedAfter is how long a consumer is without a link to a partition that it has before it
// is told so.
const blockedAfter = time.Second

// checkBlocked tells once that a partition gives no records, and returns when to look again.
func (at *attachment) checkBlocked(now time.Time) time.Duration {
	c := at.consumer
	switch {
	case at.session != nil:
		at.without, at.blocked = time.Time{}, false
		return 0
	case at.left, at.leaving, at.blocked, c.err != nil:
		return 0
	case at.without.IsZero():
		at.without, at.why = now, nil
	}
	if due := at.without.Add(blockedAfter); now.Before(due) {
		return until(due, now)
	}
	at.blocked = true
	err := at.why
	if err == nil {
		err = wire.Errorf(wire.CodeUnavailable, "no node that leads the partition can be reached")
	}
	c.events.send(Blocked{Destination: c.destination, Group: c.options.group, Partition: at.partition, Err: err})
	return 0
}

// maxHeartbeats bounds the heartbeats that wait for an answer; older ones are forgotten.
const maxHeartbeats = 16

// heartbeat asks the broker to confirm the session.
func (at *attachment) heartbeat(now time.Time) {
	at.beatNumber++
	if len(at.beats) == maxHeartbeats {
		at.beats = append(at.beats[:0], at.beats[1:]...)
	}
	at.beats = append(at.beats, heartbeat{at.beatNumber, now})
	at.beat = now.Add(at.timeout / 3)
	at.session.tell(wire.OpGroupHeartbeat, at.link, &wire.GroupHeartbeat{Number: at.beatNumber})
}

// tend attaches to the leaders of partitions, and asks the home, s, who they are, if
// that is in doubt. It returns when to look again. c.mu is held.
func (c *Consumer) tend(s *session, now time.Time) time.Duration {
	var pause time.Duration
	if c.bind != nil {
		pause = c.bind.tend(now)
	}
	if !c.closing {
		c.attachments = slices.DeleteFunc(c.attachments, func(at *attachment) bool { return at.left })
	}
	c.want = c.want || c.seen != c.conn.topology.generation.Load()
	for _, at := range c.attachments {
		if at.session != nil || at.left || c.err != nil && !c.closing && at.held.Len() == 0 {
			continue
		}
		if now.Before(at.retryAt) {
			pause = shorter(pause, until(at.retryAt, now))
			continue
		}
		leader := c.conn.sessionTo(at.leader.node)
		pause = shorter(pause, leaderPause)
		if leader == nil {
			c.want = true // perhaps there is another leader
		} else if at.opening != leader {
			at.open(leader)
		}
	}
	if c.want && !c.asking && !now.Before(c.retryAt) {
		c.ask(s)
	}
	return pause
}

// ask asks the home who leads the partitions. c.mu is held.
func (c *Consumer) ask(s *session) {
	c.want, c.asking = false, true
	c.seen = c.conn.topology.generation.Load()
	c.retryAt = time.Now().Add(leaderPause)
	for _, at := range c.attachments {
		s.hurry(at.timeout) // a home that says nothing is no help
	}
	reply := &memberReply{c, func(body []byte, err error) {
		c.asking = false
		var response wire.MetadataResponse
		if err == nil {
			err = response.Parse(body)
		}
		if err != nil {
			c.want = true
			poke(c.wake)
			return
		}
		c.conn.learn(&response)
		if err := c.scope.moved(&response, c.destinationID); err != nil && c.err == nil {
			c.stop(err)
		}
		if d := destinationIn(&response, c.destination); d != nil {
			if d.ID == c.destinationID {
				c.learn(d)
			} else {
				c.fail(wire.Errorf(wire.CodeDestinationGone, "destination %q was deleted and created again", c.destination))
			}
		}
		poke(c.wake)
	}}
	if _, err := s.request(wire.OpMetadata, c.scope.ask(), reply); err != nil {
		c.asking = false
	}
}

// learn takes over who leads the partitions. c.mu is held.
func (c *Consumer) learn(d *wire.DestinationInfo) {
	for _, p := range d.Partitions {
		for _, at := range c.attachments {
			if at.partition == p.Number {
				at.leader.learn(leadership{p.Leader, p.Epoch})
			}
		}
		if c.bind != nil {
			c.bind.learn(p.Number, leadership{p.Leader, p.Epoch})
		}
	}
}

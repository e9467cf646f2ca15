package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Which broker is to be the home. Any that answers knows where the others are, so the
// list given to Connect need not name the one that is wanted.

// TargetMode says what happens when the broker that is wanted cannot be reached.
type TargetMode uint8

const (
	// Prefer takes another one then, until the one that is wanted can be reached again.
	Prefer TargetMode = 0
	// Require takes none: connecting fails with ErrTarget, and after a loss calls wait
	// for the one that is wanted.
	Require TargetMode = 1
)

// ErrTarget is returned when no broker that is required as the home can be reached.
var ErrTarget = errors.New("no broker that TargetNode or TargetRack require can be reached")

// target is the broker that is wanted.
type target struct {
	node uint32 // 0: any
	rack string // if not empty: any there
	mode TargetMode
}

// TargetNode makes a node the home. Sessions with the leaders of partitions are not
// affected.
func TargetNode(id uint32, mode TargetMode) Option {
	return func(o *connOptions) { o.target = target{node: id, mode: mode} }
}

// TargetRack makes a node of a rack, or zone, the home: any of those that are there.
// Sessions with the leaders of partitions are not affected.
func TargetRack(rack string, mode TargetMode) Option {
	return func(o *connOptions) { o.target = target{rack: rack, mode: mode} }
}

// any reports whether it does not matter which broker is the home.
func (t *target) any() bool { return t.node == 0 && t.rack == "" }

// wants reports whether a node is wanted.
func (t *target) wants(n *wire.Node) bool {
	return t.any() || t.node != 0 && n.ID == t.node || t.rack != "" && n.Rack == t.rack
}

// openHome tries addresses until a broker answers that is wanted, those of wanted ones
// as soon as they are known. If there is none it returns one that is not, if that will
// do. One that does not answer is overtaken by the next, see attempts.
func (c *Conn) openHome(ctx context.Context, addresses []string) (*session, error) {
	t := &c.options.target
	var second *session
	var errs []error
	tries := newAttempts(ctx, func(ctx context.Context, address string) (*session, error) {
		return open(ctx, &c.options, address, c.clusterID, c.brokerEvent)
	})
	defer tries.close()
	for {
		var tried attempt
		var left bool
		if addresses, tried, left = tries.next(addresses); !left {
			break
		}
		s, address := tried.session, tried.address
		if tried.err != nil {
			errs = append(errs, tried.err)
			continue
		}
		if t.any() {
			return s, nil
		}
		members, err := s.askNodes(ctx)
		if err != nil {
			s.conn.Close()
			errs = append(errs, fmt.Errorf("nodes of %s: %w", address, err))
			continue
		}
		c.learn(&members)
		var wanted []string
		found := false
		for i := range members.Nodes {
			if n := &members.Nodes[i]; t.wants(n) {
				found = found || n.ID == s.hello.NodeID
				wanted = append(wanted, n.Address)
			}
		}
		if found {
			if second != nil {
				second.conn.Close()
			}
			return s, nil
		}
		if c.options.redirect {
			addresses = append(wanted, addresses...)
		}
		if second == nil && t.mode == Prefer {
			second = s
		} else {
			s.conn.Close()
		}
	}
	if second != nil {
		return second, nil
	}
	if !t.any() && ctx.Err() == nil {
		errs = append([]error{ErrTarget}, errs...)
	}
	return nil, errors.Join(append(errs, ctx.Err())...)
}

// askNodes asks who the members are, over a session that is not started. What else the
// broker says meanwhile is dropped: nobody knows anything yet that could be out of date.
func (s *session) askNodes(ctx context.Context) (m wire.MetadataResponse, err error) {
	s.conn.SetDeadline(time.Now().Add(handshakeTimeout))
	stop := context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })
	m, err = exchangeNodes(s)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	s.conn.SetDeadline(time.Time{})
	return m, err
}

func exchangeNodes(s *session) (m wire.MetadataResponse, err error) {
	const id = 2 // HELLO had 1
	out := wire.AppendFrame(nil, wire.Header{Opcode: wire.OpMetadata, Version: wire.OpMetadata.Version(), ID: id}, &wire.MetadataRequest{Scope: wire.MetadataNodes})
	if _, err := s.conn.Write(out); err != nil {
		return m, disconnected(err)
	}
	for {
		h, body, err := nextFrame(s.input)
		switch {
		case err != nil:
			return m, err
		case h.Flags&wire.FlagError != 0:
			return m, brokerError(body)
		case h.Opcode == wire.OpMetadata && h.ID == id:
			if err := m.Parse(body); err != nil {
				return m, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			return m, nil
		}
	}
}

// nextFrame reads one frame. The body is a copy.
func nextFrame(r *bufio.Reader) (h wire.Header, body []byte, err error) {
	head, err := r.Peek(wire.HeaderSize)
	if err != nil {
		return h, nil, disconnected(err)
	}
	if h, err = wire.ParseHeader(head); err != nil {
		return h, nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	r.Discard(wire.HeaderSize)
	view, err := readBody(r, h.BodySize())
	if err != nil {
		return h, nil, disconnected(err)
	}
	body = append(body, view...)
	if h.BodySize() <= r.Size() {
		r.Discard(h.BodySize())
	}
	return h, body, nil
}

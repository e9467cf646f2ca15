package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// Metadata commands are proposed by the node that leads group 0. Any other sends
// them there as a peer request and waits until its own metadata has what came of
// them, so that whoever asked reads what it wrote.

const (
	// submitPause lies between two attempts of a command that nobody took.
	submitPause = 100 * time.Millisecond
	// submitPatience bounds all attempts of a command together.
	submitPatience = 10 * time.Second
)

// command submits a metadata change and waits for its result, or until the broker
// closes: what others have to do for it may then never come.
func (b *broker) command(c cluster.Command) cluster.Result { return b.commandUntil(c, nil) }

// commandUntil is command that also ends, with errGivenUp, when givenUp is closed.
func (b *broker) commandUntil(c cluster.Command, givenUp <-chan struct{}) cluster.Result {
	result := make(chan cluster.Result, 1)
	b.submit(c, func(r cluster.Result) { result <- r })
	select {
	case r := <-result:
		return r
	case <-b.closing:
		return cluster.Result{Err: &wire.Error{Code: wire.CodeShuttingDown, Detail: "the broker is stopping"}}
	case <-b.removed:
		return cluster.Result{Err: b.errRemoved()}
	case <-givenUp:
		return cluster.Result{Err: errGivenUp}
	}
}

// submit has a metadata change carried out, here or on the node that leads the
// metadata. reply is called once, on any goroutine, and must not block. If the
// outcome cannot be known the error is UNAVAILABLE.
func (b *broker) submit(c cluster.Command, reply func(cluster.Result)) {
	b.attempt(c, time.Now().Add(submitPatience), reply)
}

func (b *broker) attempt(c cluster.Command, until time.Time, reply func(cluster.Result)) {
	b.propose(c, func(r cluster.Result) {
		var elsewhere *cluster.NotController
		if b.network != nil && errors.Is(r.Err, wire.CodeUnavailable) && c.Repeatable() {
			b.again(c, until, r.Err, reply)
			return
		}
		if !errors.As(r.Err, &elsewhere) {
			reply(r)
			return
		}
		b.forward(c, b.nodeOfMeta(elsewhere.Replica), until, reply)
	})
}

// again makes another attempt after a while, or gives up with err.
func (b *broker) again(c cluster.Command, until time.Time, err error, reply func(cluster.Result)) {
	if time.Now().After(until) {
		reply(cluster.Result{Err: err})
		return
	}
	time.AfterFunc(submitPause, func() { b.attempt(c, until, reply) })
}

// forward sends a command to the node that leads the metadata.
func (b *broker) forward(c cluster.Command, node uint32, until time.Time, reply func(cluster.Result)) {
	lost := &wire.Error{Code: wire.CodeUnavailable, Detail: "the node that leads the metadata cannot be reached"}
	if b.network == nil || node == 0 || !b.network.Alive(node) {
		b.again(c, until, lost, reply)
		return
	}
	body, err := json.Marshal(&c)
	if err != nil {
		panic(fmt.Sprintf("server: command does not marshal: %v", err))
	}
	b.network.Request(node, wire.PeerSubmit, body, func(code wire.ErrorCode, body []byte) {
		var s submitted
		switch {
		case code == wire.CodeNotController: // nothing has happened
			b.again(c, until, lost, reply)
		case code != wire.CodeOK && c.Repeatable():
			b.again(c, until, lost, reply)
		case code != wire.CodeOK:
			reply(cluster.Result{Err: &wire.Error{Code: wire.CodeUnavailable, Detail: fmt.Sprintf("the outcome of the change of the metadata is unknown: %s", body)}})
		case json.Unmarshal(body, &s) != nil:
			reply(cluster.Result{Err: &wire.Error{Code: wire.CodeInternal, Detail: fmt.Sprintf("node %d answered a metadata change with something else", node)}})
		case s.Code == wire.CodeUnavailable && c.Repeatable(): // it leads no longer
			b.again(c, until, s.result().Err, reply)
		default:
			result := s.result()
			b.meta.metadata.WhenApplied(result.Index, func() { reply(result) })
		}
	})
}

// nodeOfMeta is the node of a replica of group 0, 0 if the metadata does not know.
func (b *broker) nodeOfMeta(replica uint64) uint32 {
	for _, n := range b.View().Nodes {
		if n.MetaID() == replica {
			return n.ID
		}
	}
	for _, m := range b.identity.Members {
		if m.MetaReplica == replica {
			return m.Node
		}
	}
	return 0
}

// submitRequest carries out a command of another node.
func (b *broker) submitRequest(body []byte, reply func(code wire.ErrorCode, body []byte)) {
	var c cluster.Command
	if err := json.Unmarshal(body, &c); err != nil {
		reply(wire.CodeMalformed, []byte(err.Error()))
		return
	}
	b.propose(c, func(r cluster.Result) {
		var elsewhere *cluster.NotController
		if errors.As(r.Err, &elsewhere) {
			reply(wire.CodeNotController, nil)
			return
		}
		out, err := json.Marshal(submittedOf(r))
		if err != nil {
			panic(fmt.Sprintf("server: result does not marshal: %v", err))
		}
		reply(wire.CodeOK, out)
	})
}

// submitted is a cluster.Result between two nodes.
type submitted struct {
	Code        wire.ErrorCode          `json:"code,omitempty"`
	Detail      string                  `json:"detail,omitempty"`
	Index       wire.Index              `json:"index"`
	Changed     bool                    `json:"changed,omitempty"`
	Destination *cluster.Destination    `json:"destination,omitempty"`
	Node        *cluster.Node           `json:"node,omitempty"`
	Group       *cluster.Group          `json:"group,omitempty"`
	Producer    cluster.ProducerSession `json:"producer"`
	FirstID     int64                   `json:"first_id,omitempty"`
}

func submittedOf(r cluster.Result) submitted {
	s := submitted{Index: r.Index, Changed: r.Changed, Destination: r.Destination, Node: r.Node, Group: r.Group, Producer: r.Producer, FirstID: r.FirstID}
	if r.Err != nil {
		s.Code, s.Detail = wire.CodeUnavailable, r.Err.Error()
		var known *wire.Error
		if errors.As(r.Err, &known) {
			s.Code, s.Detail = known.Code, known.Detail
		}
	}
	return s
}

func (s *submitted) result() cluster.Result {
	r := cluster.Result{Index: s.Index, Changed: s.Changed, Destination: s.Destination, Node: s.Node, Group: s.Group, Producer: s.Producer, FirstID: s.FirstID}
	if s.Code != wire.CodeOK {
		r.Err = &wire.Error{Code: s.Code, Detail: s.Detail}
	}
	return r
}

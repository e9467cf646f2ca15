package server

import (
	"sync"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/internal/invariants"
	"github.com/lockstepmq/lockstep/wire"
)

// confirmationsIgnored is a check that a test takes away to show that it is needed.
var confirmationsIgnored atomic.Bool

// IgnoreConfirmations lets every leader believe that it still is one when it answers
// reads. It is for the test that shows the question to be needed, and does nothing in
// release builds.
func IgnoreConfirmations(ignore bool) { confirmationsIgnored.Store(ignore) }

// maxConfirms bounds the reads of one partition that wait for their leader to be
// confirmed; beyond it they are answered RETRY.
const maxConfirms = 4096

// confirms are the reads of a partition that wait until its leader is confirmed. All
// that came before a turn are confirmed together.
type confirms struct {
	mu      sync.Mutex
	waiting []func(error)
	closed  bool // nobody takes them any more
}

var (
	errUnconfirmed     = wire.Errorf(wire.CodeRetry, "it cannot be confirmed for now that this node leads the partition")
	errTooManyConfirms = wire.Errorf(wire.CodeRetry, "%d reads wait for the leader to be confirmed, as many as may", maxConfirms)
)

// put notes a read. It returns an error if it does not wait.
func (c *confirms) put(then func(error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return errUnconfirmed
	case len(c.waiting) >= maxConfirms:
		return errTooManyConfirms
	}
	c.waiting = append(c.waiting, then)
	return nil
}

// take hands over the reads that wait. With last there will be no more.
func (c *confirms) take(last bool) []func(error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.waiting
	c.waiting = nil
	c.closed = c.closed || last
	return taken
}

// Confirm implements replica. Nobody else can lead a partition that only this node has
// a replica of.
func (r *partitionReplica) Confirm(then func(error)) {
	if r.inbox == nil || invariants.Enabled && confirmationsIgnored.Load() {
		then(nil)
		return
	}
	if err := r.confirms.put(then); err != nil {
		then(err)
		return
	}
	r.ask(requestConfirm)
}

// confirmReads asks the group whether it still leads, for all reads that wait. Owner
// only.
func (r *partitionReplica) confirmReads() {
	waiting := r.confirms.take(false)
	if len(waiting) == 0 {
		return
	}
	asked := &waiting
	if r.asked == nil {
		r.asked = make(map[*[]func(error)]struct{})
	}
	r.asked[asked] = struct{}{}
	if r.alone && !r.campaigned && r.down.Load() == nil {
		r.confirmed(asked, nil) // it has not even begun, and nobody else can
		return
	}
	r.group.ReadIndex(func(_ wire.Index, err error) { r.confirmed(asked, err) })
}

// confirmed answers reads that were asked for together, once.
func (r *partitionReplica) confirmed(asked *[]func(error), err error) {
	if _, ok := r.asked[asked]; !ok {
		return
	}
	delete(r.asked, asked)
	if err != nil {
		err = errUnconfirmed
	}
	for _, then := range *asked {
		then(err)
	}
}

// endConfirms answers all reads that wait: the replica stops. Owner only.
func (r *partitionReplica) endConfirms() {
	for asked := range r.asked {
		r.confirmed(asked, errUnconfirmed)
	}
	for _, then := range r.confirms.take(true) {
		then(errUnconfirmed)
	}
}

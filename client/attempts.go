package client

import (
	"context"
	"time"
)

// overlapAfter is how long the newest attempt to connect goes on alone. Then the next
// address is tried beside it: a broker that hangs takes the connection and answers nothing,
// and is not to keep anybody from the others for a whole handshakeTimeout.
const overlapAfter = time.Second

// attempts opens sessions with addresses in their order, each as soon as the one before has
// failed or is overlapAfter old. One goroutine uses it; its own end with close.
type attempts struct {
	open    func(ctx context.Context, address string) (*session, error)
	ctx     context.Context
	cancel  context.CancelFunc
	results chan attempt
	tried   map[string]bool
	running int
	started time.Time // the newest one, zero if it need not be waited for
}

// attempt is how one ended.
type attempt struct {
	address string
	session *session
	err     error
}

func newAttempts(ctx context.Context, open func(context.Context, string) (*session, error)) *attempts {
	a := &attempts{open: open, results: make(chan attempt), tried: make(map[string]bool)}
	a.ctx, a.cancel = context.WithCancel(ctx)
	return a
}

// next waits for one of the attempts to end, and begins those whose time has come. It
// returns the addresses that are still to be tried, and false when none is left and none
// runs. No address is tried twice.
func (a *attempts) next(addresses []string) (rest []string, ended attempt, ok bool) {
	for {
		for len(addresses) > 0 && (a.tried[addresses[0]] || a.ctx.Err() != nil) {
			addresses = addresses[1:]
		}
		if len(addresses) == 0 && a.running == 0 {
			return nil, attempt{}, false
		}
		var due <-chan time.Time
		stop := func() bool { return true }
		if len(addresses) > 0 {
			wait := time.Until(a.started.Add(overlapAfter))
			if a.running == 0 || wait <= 0 {
				a.begin(addresses[0])
				continue
			}
			late := time.NewTimer(wait)
			due, stop = late.C, late.Stop
		}
		select {
		case ended = <-a.results:
			stop()
			a.running, a.started = a.running-1, time.Time{}
			return addresses, ended, true
		case <-due:
		}
	}
}

func (a *attempts) begin(address string) {
	a.tried[address], a.started = true, time.Now()
	a.running++
	go func() {
		s, err := a.open(a.ctx, address)
		a.results <- attempt{address, s, err}
	}()
}

// close ends the attempts that still run, and waits for them. Their sessions are closed.
func (a *attempts) close() {
	a.cancel()
	for ; a.running > 0; a.running-- {
		if ended := <-a.results; ended.session != nil {
			ended.session.conn.Close()
		}
	}
}

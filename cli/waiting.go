package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/client"
)

const (
	// waitingAgain is after how long a command says again that it waits for a partition.
	waitingAgain = 30 * time.Second
	// beginPatience is after how long a command says that it could not begin yet.
	beginPatience = 3 * time.Second
)

// waiting tells on stderr that a command waits for partitions that nobody leads, so that it
// does not look dead. It is told of one from several sides.
type waiting struct {
	app         *app
	destination string

	mu   sync.Mutex
	said map[string]time.Time // when, by what is awaited
}

func (a *app) newWaiting(destination string) *waiting {
	return &waiting{app: a, destination: destination, said: make(map[string]time.Time)}
}

// events is the listener of the command's connection.
func (w *waiting) events() client.Option {
	connection := w.app.reconnectSayer()
	return client.WithEvents(func(e client.Event) {
		if gone, ok := e.(client.DestinationUnavailable); ok {
			what := gone.Detail
			if what == "" {
				what = fmt.Sprintf("partition %d has no leader", gone.Partition)
			}
			w.say(gone.Destination, what, "UNAVAILABLE")
			return
		}
		connection(e)
	})
}

// say tells what is missing, why, and what to look at.
func (w *waiting) say(destination, what, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if key := destination + "\n" + what; time.Since(w.said[key]) >= waitingAgain {
		w.said[key] = time.Now()
		fmt.Fprintf(w.app.stderr, "lockstep: %q: %s: %s; waiting for it (lockstep partition ls %s shows its replicas, lockstep cluster health the nodes that are away)\n",
			destination, oneLine(what), oneLine(why), destination)
	}
}

// begin calls f, and says so if it takes long.
func (w *waiting) begin(f func() error) error {
	defer w.beginning().Stop()
	return f()
}

// beginning says that the command could not begin yet, unless it is stopped before.
func (w *waiting) beginning() *time.Timer {
	return time.AfterFunc(beginPatience, func() {
		fmt.Fprintf(w.app.stderr, "lockstep: %q: not everything that is needed to begin answers; waiting (lockstep cluster health shows the nodes that are away)\n", w.destination)
	})
}

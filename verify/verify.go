package verify

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/promise"
	"github.com/lockstepmq/lockstep/wire"
)

// ErrOption is wrapped by errors about Options.
var ErrOption = errors.New("invalid option")

func optionError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrOption, fmt.Sprintf(format, args...))
}

// Options say what Run does.
type Options struct {
	// Connect makes a connection; Run makes one for each consumer and two more, and
	// closes them.
	Connect func(ctx context.Context) (*client.Conn, error)
	// Destination is used, or created if it is missing. Empty: one of a fresh name. One
	// that exists has to be a topic: of a queue, records that this group is done with
	// would be removed.
	Destination string
	// Kind and Settings are those of a destination that is made. Kind 0: a queue.
	Kind     client.Kind
	Settings client.Settings
	// Records is how many are sent, unless For is set: for how long. Both 0: 10,000 records.
	Records int
	For     time.Duration
	// Rate is records per second at most; 0: as fast as they are taken.
	Rate float64
	Keys int // 0: 100
	// Consumers are the members of the group, each with a connection of its own, and
	// Workers how many records each handles at once. 0: 4 and 8.
	Consumers, Workers int
	// Nack is the share of deliveries that are given back, from 0 to 1. Backoff is the pause
	// before the next attempt. 0: 10 ms.
	Nack    float64
	Backoff time.Duration
	// Work is for how long a record is worked on at the most.
	Work time.Duration
	// Session is the group's session timeout. 0: that of new groups.
	Session time.Duration
	// Steady says that nothing fails: a lost lease is a broken promise then.
	Steady bool
	// Kill and Pause are processes of this machine that get SIGKILL, or SIGSTOP and
	// SIGCONT after PauseFor at the most, at random moments. 0: 10 s.
	Kill, Pause []int
	PauseFor    time.Duration
	// Seed draws moments and what is given back. 0: a random one, which the Result names.
	Seed uint64
	// Patience is how long the consumers may finish nothing before Run gives up. 0: one minute.
	Patience time.Duration
	// Keep leaves the destination and the group.
	Keep bool
	// Progress, if set, is told several times a second how many records were sent and
	// handled; Say what is done to processes.
	Progress func(sent, handled int)
	Say      func(string)
}

func (o *Options) validate() error {
	if o.Records == 0 && o.For == 0 {
		o.Records = 10_000
	}
	for _, d := range []struct {
		field *int
		value int
	}{{&o.Keys, 100}, {&o.Consumers, 4}, {&o.Workers, 8}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if o.Kind == 0 {
		o.Kind = client.Queue
	}
	if o.Backoff == 0 {
		o.Backoff = 10 * time.Millisecond
	}
	if o.PauseFor == 0 {
		o.PauseFor = 10 * time.Second
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.Seed == 0 {
		o.Seed = rand.Uint64()>>12 + 1 // as text it is read back, also by programs with floating point numbers only
	}
	switch {
	case o.Records < 0 || o.Records > MaxRecords:
		return optionError("records %d: at most %d", o.Records, MaxRecords)
	case o.Keys < 1:
		return optionError("keys %d: at least 1", o.Keys)
	case o.Consumers < 1 || o.Consumers > 1000:
		return optionError("consumers %d: 1 to 1000", o.Consumers)
	case o.Workers < 1 || o.Workers > 1000:
		return optionError("workers %d: 1 to 1000", o.Workers)
	case o.Nack < 0 || o.Nack > 0.9:
		return optionError("a share of %g given back: 0 to 0.9", o.Nack)
	case o.Rate < 0 || o.For < 0 || o.Work < 0 || o.Session < 0 || o.PauseFor < 0:
		return optionError("a rate or a time is negative")
	}
	return nil
}

// Verdict is what a run has come to.
type Verdict string

const (
	Kept       Verdict = "kept"       // every promise
	Broken     Verdict = "broken"     // Violations or Lost say which
	Unfinished Verdict = "unfinished" // nothing is known to be broken, and records are not handled
)

// Result is what a run has found.
type Result struct {
	Verdict     Verdict        `json:"verdict"`
	Destination string         `json:"destination"`
	Group       string         `json:"group"`
	Seed        uint64         `json:"seed"`
	Seconds     float64        `json:"seconds"`
	Sent        int            `json:"sent"`
	Stored      int            `json:"stored"`
	Failed      int            `json:"failed"`     // to be sent
	Unknown     int            `json:"unknown"`    // of those: may be stored
	Deliveries  int            `json:"deliveries"` // to handlers
	Handled     int            `json:"handled"`    // acknowledged, and that was confirmed
	Stale       int            `json:"stale"`      // acknowledged, and refused: the lease was lost
	Again       map[string]int `json:"again"`      // records that were started again, by reason
	Events      uint64         `json:"events"`     // that were compared with the promises
	Violations  []string       `json:"violations"`
	More        int            `json:"more_violations"`
	Lost        []Place        `json:"lost"` // the first of them
	LostCount   int            `json:"lost_count"`
	Open        []Place        `json:"open"` // the first of those that are not handled
	OpenCount   int            `json:"open_count"`
	Deeds       []Deed         `json:"deeds"`
	Kept        bool           `json:"left_there"` // the destination and the group are still there
}

// shownPlaces is how many lost or open records a Result names.
const shownPlaces = 10

const (
	// cleanupTimeout bounds the removal of what a run has made.
	cleanupTimeout = 15 * time.Second
	// lookInterval is the time between two looks at how far the group is.
	lookInterval = 100 * time.Millisecond
	// closeTimeout bounds the end of one consumer.
	closeTimeout = 10 * time.Second
)

// run is one run.
type run struct {
	Options
	id        string
	group     string
	conn      *client.Conn // to administer
	book      *Book
	began     time.Time
	sent      atomic.Int64
	consumers []*client.Consumer
	conns     []*client.Conn
	working   sync.WaitGroup
	failed    chan error // why a consumer has ended
}

// Run checks a cluster. It returns an error if the check could not be made, not if it
// found something: that is in the Result. What it has made in the cluster is removed,
// also when ctx ends, unless Options.Keep is set.
func Run(ctx context.Context, o Options) (result *Result, err error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(o.Seed, 0))
	processes, err := victims(random, o.Kill, o.Pause, o.PauseFor)
	if err != nil {
		return nil, err
	}
	var id [6]byte
	for i := range id {
		id[i] = byte(rand.Uint32()) // not drawn from the seed: runs of one seed must not meet
	}
	r := &run{
		Options: o, id: hex.EncodeToString(id[:]), began: time.Now(), failed: make(chan error, o.Consumers),
		book: NewBook(promise.Options{Steady: o.Steady && o.Nack == 0, Flags: true}),
	}
	r.group = "verify-" + r.id
	if r.conn, err = o.Connect(ctx); err != nil {
		return nil, err
	}
	defer r.conn.Close()
	cleanup, err := r.prepare(ctx)
	if cleanup != nil {
		defer func() {
			if o.Keep {
				return
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
			defer cancel()
			if failed := cleanup(ctx); err == nil && failed != nil {
				err = fmt.Errorf("remove what the check has made: %w", failed)
			}
		}()
	}
	if err != nil {
		return nil, err
	}
	deeds, open, err := r.work(ctx, processes)
	if closed := r.close(ctx); err == nil && !open {
		err = closed
	}
	if err != nil {
		return nil, err
	}
	return r.result(deeds, open), nil
}

// prepare makes the destination and the group, and returns what removes them again.
func (r *run) prepare(ctx context.Context) (cleanup func(context.Context) error, err error) {
	d := client.Destination{Name: r.Destination, Kind: r.Kind, Settings: r.Settings}
	exists := false
	if d.Name == "" {
		d.Name = "lockstep-" + r.group
		r.Destination = d.Name
	} else {
		there, err := r.conn.Destination(ctx, d.Name)
		switch {
		case err == nil && there.Kind != client.Topic:
			return nil, optionError("destination %q is a queue, which removes what its groups are done with, and this group may be its only one; name a topic, or none", d.Name)
		case err == nil && there.Settings.RecordIndex != wire.RecordIndexOn:
			return nil, optionError("topic %q has no record index, by which records of a key are found; name one that was created with --record-index, or none", d.Name)
		case err == nil:
			exists, d = true, there
		case !errors.Is(err, wire.CodeUnknownDestination):
			return nil, err
		}
	}
	cleanup = func(ctx context.Context) error { return r.conn.RemoveGroup(ctx, d.Name, r.group) }
	if !exists {
		if d, err = r.conn.CreateDestination(ctx, d); err != nil {
			return nil, err
		}
		cleanup = func(ctx context.Context) error { return r.conn.DeleteDestination(ctx, d) }
	}
	intent := client.GroupIntent{Start: client.GroupStart{To: "latest"}}
	intent.Settings.Mode, intent.Settings.Scope = client.Serial, client.ByKey
	intent.Settings.SessionMs = uint32(r.Session.Milliseconds())
	intent.Settings.BackoffMs, intent.Settings.BackoffMaxMs = uint32(max(r.Backoff.Milliseconds(), 1)), uint32(max(4*r.Backoff.Milliseconds(), 4))
	if _, err := r.conn.CreateGroup(ctx, d.Name, r.group, intent); err != nil {
		if exists {
			return nil, err
		}
		return cleanup, err
	}
	return cleanup, nil
}

// work sends, consumes and does to processes what was drawn. open is closed over what is
// left when nothing moves any more.
func (r *run) work(ctx context.Context, processes []victim) (done []Deed, open bool, err error) {
	for i := range r.Consumers {
		conn, err := r.Connect(ctx)
		if err != nil {
			return nil, false, err
		}
		r.conns = append(r.conns, conn)
		// Create makes sure that the node it is connected to knows of the group.
		w := NewWatcher(fmt.Sprintf("consumer %d", i+1), r.book.Observe, func(d *client.Delivery) uint64 {
			n, _ := numberIn(d.Value, r.id)
			return n
		})
		c, err := conn.Consumer(ctx, r.Destination, client.Group(r.group), client.Mode(client.Serial), client.Create(true), client.OnEvent(w.Event))
		if err != nil {
			return nil, false, err
		}
		r.consumers = append(r.consumers, c)
		r.consume(ctx, i, c, w)
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	if r.For > 0 {
		var cancel context.CancelFunc
		sending, cancel = context.WithTimeout(sending, r.For)
		defer cancel()
	}
	began := time.Now()
	progress := func() float64 {
		if r.For > 0 {
			return float64(time.Since(began)) / float64(r.For)
		}
		return float64(r.sent.Load()) / float64(r.Records)
	}
	d := &deeds{began: r.began, say: r.Say}
	if d.say == nil {
		d.say = func(string) {}
	}
	doing, enough := context.WithCancel(ctx)
	defer enough()
	var running sync.WaitGroup
	running.Go(func() { d.run(doing, processes, progress) })
	running.Go(func() { r.report(doing) })
	err = r.produce(ctx, sending)
	if err == nil && ctx.Err() == nil {
		open, err = r.drain(ctx)
	}
	enough()
	running.Wait()
	if err == nil {
		err = ctx.Err()
	}
	return d.list, open, err
}

// consume runs one consumer until ctx or the consumer ends.
func (r *run) consume(ctx context.Context, i int, c *client.Consumer, w *Watcher) {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(r.Seed, uint64(i)+1))
	handle := func(ctx context.Context, d *client.Delivery) error {
		mu.Lock()
		var work time.Duration
		if r.Work > 0 {
			work = time.Duration(random.Int64N(int64(r.Work)) + 1)
		}
		fails := r.Nack > 0 && random.Float64() < r.Nack
		mu.Unlock()
		if work > 0 {
			select {
			case <-time.After(work):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if fails {
			return errGivenBack
		}
		return nil
	}
	watched := w.Handler(handle)
	r.working.Go(func() {
		err := c.Run(ctx, func(ctx context.Context, d *client.Delivery) error {
			n, ours := numberIn(d.Value, r.id)
			switch {
			case !ours:
				return nil // somebody else's
			case string(d.Key) != keyOf(n, r.Keys):
				r.book.mu.Lock()
				r.book.violation("record number %d came with the key %q", n, d.Key)
				r.book.mu.Unlock()
			}
			return watched(ctx, d)
		}, client.Workers(r.Workers))
		if !errors.Is(err, client.ErrClosed) && ctx.Err() == nil {
			r.failed <- err
		}
	})
}

var errGivenBack = errors.New("given back, as drawn")

// produce sends records until there are enough, and waits for their answers.
func (r *run) produce(ctx, sending context.Context) error {
	conn, err := r.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	p, err := conn.Producer(ctx, r.Destination)
	if err != nil {
		return err
	}
	began := time.Now()
	for n := uint64(0); sending.Err() == nil && n < MaxRecords && (r.For > 0 || n < uint64(r.Records)); n++ {
		if r.Rate > 0 {
			due := began.Add(time.Duration(float64(n) / r.Rate * float64(time.Second)))
			if pause := time.Until(due); pause > time.Millisecond {
				select {
				case <-time.After(pause):
				case <-sending.Done():
				}
			}
		}
		if err := p.SendFunc(ctx, &client.Record{Key: []byte(keyOf(n, r.Keys)), Value: valueOf(r.id, n)}, func(at client.Receipt, err error) {
			if err == nil {
				r.book.Stored(n, at.Partition, at.Offset)
				return
			}
			var failed *client.SendError
			r.book.Failed(n, !errors.As(err, &failed) || failed.Outcome != client.NotSent)
		}); err != nil && ctx.Err() == nil {
			r.book.Failed(n, false)
		}
		r.sent.Store(int64(n + 1))
	}
	if err := p.Flush(ctx); err != nil && ctx.Err() != nil {
		return err
	}
	return p.Close(ctx)
}

// drain waits until the group is done with everything that is stored. It reports true
// if it gave up because nothing was finished for too long.
func (r *run) drain(ctx context.Context) (gaveUp bool, err error) {
	handled, since := 0, time.Now()
	ticks := time.NewTicker(lookInterval)
	defer ticks.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, 5*time.Second)
		info, err := r.conn.DescribeGroup(asking, r.Destination, r.group)
		cancel()
		if err == nil && r.finished(&info) {
			return false, nil
		}
		if n := r.book.Counts().Handled; n != handled {
			handled, since = n, time.Now()
		}
		if time.Since(since) > r.Patience {
			return true, nil
		}
		select {
		case err := <-r.failed:
			return false, fmt.Errorf("a consumer has ended: %w", err)
		case <-ctx.Done():
			return false, ctx.Err()
		case <-ticks.C:
		}
	}
}

// finished reports whether the group is done with all records that are known to be
// stored.
func (r *run) finished(info *client.GroupInfo) bool {
	for partition, end := range r.book.Ends() {
		i := slices.IndexFunc(info.Partitions, func(p client.GroupPartition) bool { return p.Number == partition })
		if i < 0 || info.Partitions[i].Problem != "" || info.Partitions[i].Floor < end {
			return false
		}
	}
	return true
}

// report tells how far the run is.
func (r *run) report(ctx context.Context) {
	if r.Progress == nil {
		return
	}
	ticks := time.NewTicker(lookInterval)
	defer ticks.Stop()
	for {
		r.Progress(int(r.sent.Load()), r.book.Counts().Handled)
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

// close ends the consumers and their connections.
func (r *run) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	var closing sync.WaitGroup
	errs := make([]error, len(r.consumers))
	for i, c := range r.consumers {
		closing.Go(func() { errs[i] = c.Close(ctx) })
	}
	closing.Wait()
	r.working.Wait()
	for _, conn := range r.conns {
		_ = conn.Close()
	}
	return errors.Join(errs...)
}

func (r *run) result(done []Deed, open bool) *Result {
	counts := r.book.Counts()
	result := &Result{
		Verdict: Kept, Destination: r.Destination, Group: r.group, Seed: r.Seed, Seconds: time.Since(r.began).Seconds(),
		Sent: int(r.sent.Load()), Stored: counts.Stored, Failed: counts.Failed, Unknown: counts.Unknown,
		Deliveries: counts.Deliveries, Handled: counts.Handled, Stale: counts.Stale,
		Again: r.book.Again(), Events: r.book.Events(), Violations: []string{}, Lost: []Place{}, Open: []Place{}, Deeds: done, Kept: r.Keep,
	}
	if done == nil {
		result.Deeds = []Deed{}
	}
	list, more := r.book.Violations()
	result.Violations, result.More = append(result.Violations, list...), more
	if open {
		places := r.book.Unfinished()
		result.OpenCount, result.Open = len(places), append(result.Open, places[:min(len(places), shownPlaces)]...)
		result.Verdict = Unfinished
	} else {
		places := r.book.Unhandled()
		result.LostCount, result.Lost = len(places), append(result.Lost, places[:min(len(places), shownPlaces)]...)
	}
	if len(list) > 0 || result.LostCount > 0 {
		result.Verdict = Broken
	}
	return result
}

package client

import "sync"

// Event is something that happened to a Conn or one of its producers: Connected,
// Disconnected, NodeLost, DestinationUnavailable, TopologyChanged, ProducerStalled or
// ProducerResumed; or to a Consumer: those that OnEvent names.
type Event interface{ event() }

// Connected is sent when the Conn has a home: a broker that it is connected to for all
// that is not for the leader of a partition. The first is included.
type Connected struct {
	Address string // as given to Connect, or learned
	Node    uint32 // the broker's node ID
}

// Disconnected is sent when the connection to the home was lost or closed:
// CONNECTION_LOST.
type Disconnected struct {
	Address string
	Node    uint32
	Err     error // why; ErrClosed after Close
}

// NodeLost is sent when the connection to another node than the home was lost, of one
// that leads partitions which are in use.
type NodeLost struct {
	Address string
	Node    uint32
	Err     error // why
}

// DestinationUnavailable is sent when the leader of a partition that is in use cannot be
// reached or is not known for a second, or when the broker says that the destination
// cannot be served: DESTINATION_UNAVAILABLE. The connection stays, and the partition is
// looked for. It may be sent more than once, but not within 5 s.
type DestinationUnavailable struct {
	Destination string
	Partition   uint32
	Detail      string // of the broker, if it says so; then Partition is 0
}

// TopologyChanged is sent when the broker announces a new cluster topology:
// members, leaders, destinations or key slots.
type TopologyChanged struct {
	Epoch uint64 // version of the cluster's metadata
}

// ProducerStalled is sent when a partition takes no records: at once when disk or
// memory is full, after a few refusals in a row when it is another condition that
// may pass. The producer goes on trying until the delivery timeout.
type ProducerStalled struct {
	Destination string
	Partition   uint32
	Err         error // what the broker answered; errors.Is(Err, wire.CodeDiskFull)
}

// ProducerResumed is sent when such a partition has stored a batch again.
type ProducerResumed struct {
	Destination string
	Partition   uint32
}

func (Connected) event()              {}
func (Disconnected) event()           {}
func (NodeLost) event()               {}
func (DestinationUnavailable) event() {}
func (TopologyChanged) event()        {}
func (ProducerStalled) event()        {}
func (ProducerResumed) event()        {}

// eventLimit bounds the events that wait for a slow listener. When it is
// reached the oldest event is dropped: the newest state is what counts.
const eventLimit = 64

// dispatcher hands events to the listener from one goroutine, so that a slow
// listener delays nothing but itself.
type dispatcher struct {
	listener func(Event)
	wake     chan struct{} // capacity 1
	done     chan struct{}

	mu     sync.Mutex
	queue  []Event // oldest first, at most eventLimit
	closed bool
}

// newDispatcher starts the goroutine. Without a listener there is none, and
// every method does nothing.
func newDispatcher(listener func(Event)) *dispatcher {
	d := &dispatcher{listener: listener, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if listener == nil {
		close(d.done)
		return d
	}
	go d.run()
	return d
}

// send never blocks.
func (d *dispatcher) send(e Event) {
	if d.listener == nil {
		return
	}
	d.mu.Lock()
	if !d.closed {
		if len(d.queue) == eventLimit {
			d.queue = append(d.queue[:0], d.queue[1:]...)
		}
		d.queue = append(d.queue, e)
	}
	d.mu.Unlock()
	poke(d.wake)
}

func (d *dispatcher) run() {
	defer close(d.done)
	for range d.wake {
		for {
			d.mu.Lock()
			if len(d.queue) == 0 {
				closed := d.closed
				d.mu.Unlock()
				if closed {
					return
				}
				break
			}
			e := d.queue[0]
			d.queue = append(d.queue[:0], d.queue[1:]...)
			d.mu.Unlock()
			d.listener(e)
		}
	}
}

// close lets the listener see what is queued and waits for it.
func (d *dispatcher) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	poke(d.wake)
	<-d.done
}

// poke wakes the goroutine that waits on a channel of capacity 1; a wake-up
// that is already pending is enough.
func poke(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Limits and times that are not options. Each says what happens when it is reached.
const (
	// handshakeTimeout bounds dialing aside the time from the first byte to
	// the broker's HELLO answer. Afterwards the attempt has failed. Others are made beside
	// it long before, see overlapAfter.
	handshakeTimeout = 5 * time.Second
	// detectionTime is how long a broker may be silent before it counts as dead. It is less
	// where the broker's idle timeout is, or a third of the session timeout of a consumer
	// that is attached there, and at least detectionMin for the latter.
	detectionTime = 6 * time.Second
	detectionMin  = 500 * time.Millisecond
	// silentTicks is how often within that time it is looked whether something came.
	// After pingTicks of them in which nothing came, or nothing was sent, the broker
	// is asked for a sign of life.
	silentTicks = 6
	pingTicks   = 2
	// drainTimeout bounds how long Conn.Close waits for records that are
	// still unanswered. Afterwards they fail.
	drainTimeout = 5 * time.Second
	// writeBytes is how much one turn of a connection's writer gathers, at
	// most one batch more. The rest waits for the next turn.
	writeBytes = 256 << 10
	// readBufferBytes is the read buffer of a connection. Larger pieces are
	// read past it, straight to where they belong.
	readBufferBytes = 32 << 10
)

// Option configures a Conn.
type Option func(*connOptions)

type connOptions struct {
	logger       *slog.Logger
	name         string
	events       func(Event)
	reconnect    bool
	redirect     bool
	inOrder      bool
	target       target
	retryList    string
	retryServers []string
	backoffMin   time.Duration
	backoffMax   time.Duration
	dialTimeout  time.Duration
	unused       time.Duration // after which a session that nobody uses is closed
	returnPause  time.Duration
	aliases      map[string]scope
	dialer       func(ctx context.Context, address string) (net.Conn, error)
}

func newConnOptions(opts []Option) (connOptions, error) {
	o := connOptions{
		logger:      slog.New(slog.DiscardHandler),
		name:        "lockstep-go",
		reconnect:   true,
		redirect:    true,
		backoffMin:  50 * time.Millisecond,
		backoffMax:  2 * time.Second,
		dialTimeout: 3 * time.Second,
		unused:      unusedTimeout,
		returnPause: returnPause,
	}
	for _, opt := range opts {
		opt(&o)
	}
	if o.dialer == nil {
		var d net.Dialer
		o.dialer = func(ctx context.Context, address string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", address)
		}
	}
	if o.backoffMin <= 0 || o.backoffMax < o.backoffMin {
		return o, fmt.Errorf("option WithReconnectBackoff: %v to %v is no range", o.backoffMin, o.backoffMax)
	}
	if o.dialTimeout <= 0 {
		return o, fmt.Errorf("option WithDialTimeout: %v is not positive", o.dialTimeout)
	}
	if o.target.mode > Require {
		return o, fmt.Errorf("options TargetNode, TargetRack: unknown mode %d", o.target.mode)
	}
	if o.retryList != "" {
		var err error
		if o.retryServers, err = parseAddresses(o.retryList); err != nil {
			return o, fmt.Errorf("option RetryServers: %w", err)
		}
	}
	return o, nil
}

// features are what the client tells a broker that it can do.
func (o *connOptions) features() uint64 {
	if !o.redirect {
		return wire.FeatureTopologyEvents
	}
	return wire.FeatureFollowsRedirects | wire.FeatureTopologyEvents
}

// AllowRedirect says whether the client goes where brokers send it: to the leaders of
// partitions, and to members of the cluster that Connect was not given. With false it
// speaks to one of the servers that it was given and to nobody else, and that one
// passes on what is for others; when it is lost and none of the others given answers,
// calls fail, also those to send, until one does. Default: true.
func AllowRedirect(on bool) Option { return func(o *connOptions) { o.redirect = on } }

// RetryServers is a second list of brokers, tried in its order after the one given to
// Connect.
func RetryServers(servers string) Option { return func(o *connOptions) { o.retryList = servers } }

// InOrder tries the servers given to Connect in their order, where clients otherwise
// spread over them. One that does not answer for a second is overtaken by the next.
func InOrder() Option { return func(o *connOptions) { o.inOrder = true } }

// WithLogger sets the logger for connects, disconnects and retries. Default: none.
func WithLogger(l *slog.Logger) Option { return func(o *connOptions) { o.logger = l } }

// WithName sets the name under which the broker logs and lists this client.
// Default: lockstep-go.
func WithName(name string) Option { return func(o *connOptions) { o.name = name } }

// WithEvents sets the listener of a Conn's events. It is called from one
// goroutine, in order; while it runs, newer events wait, the last 64 of them.
// It must not call Conn.Close, which waits for it.
func WithEvents(listener func(Event)) Option { return func(o *connOptions) { o.events = listener } }

// WithReconnect says whether a lost connection is replaced. With false, every
// outstanding and later call fails with ErrDisconnected as soon as the connection to
// the home is lost; when that to the leader of a partition is lost, what is outstanding
// there does, and later calls fail with wire.CodeUnavailable if no leader is found
// within a second. Default: true.
func WithReconnect(on bool) Option { return func(o *connOptions) { o.reconnect = on } }

// WithReconnectBackoff sets the pause between reconnect attempts: min at first,
// doubled after every round over all servers, at most max; each pause is
// shortened by up to half at random. The first attempt after a session that lasted
// longer than max comes without a pause. Default: 50 ms to 2 s.
func WithReconnectBackoff(min, max time.Duration) Option {
	return func(o *connOptions) { o.backoffMin, o.backoffMax = min, max }
}

// WithDialTimeout bounds one attempt to open a TCP connection. Default: 3 s.
func WithDialTimeout(d time.Duration) Option { return func(o *connOptions) { o.dialTimeout = d } }

// WithDialer replaces the TCP dialer, for TLS, proxies and tests.
func WithDialer(dial func(ctx context.Context, address string) (net.Conn, error)) Option {
	return func(o *connOptions) { o.dialer = dial }
}

// AckLevel says what the answer to a record waits for.
type AckLevel = wire.Acks

// The ack levels.
const (
	AcksNone   = wire.AcksNone   // nothing is answered; a record may be lost without notice
	AcksLeader = wire.AcksLeader // answered from the leader's memory: one replica, not synced
	AcksQuorum = wire.AcksQuorum // answered after commit: on a quorum, synced as the destination says
)

// ProducerOption configures a Producer.
type ProducerOption func(*producerOptions)

type producerOptions struct {
	linger             time.Duration
	batchBytes         int
	inFlight           int
	maxBufferedBytes   int64
	maxBufferedRecords int64
	codec              Codec
	deliveryTimeout    time.Duration
	acks               AckLevel
	idempotent         bool
	waitForSpace       bool
	fixed              bool
	partition          uint32
	name               string
	publisher          string
	policy             Policy
	affinity           AffinityScope
	localPreference    bool
	spill              bool
}

func newProducerOptions(opts []ProducerOption) (producerOptions, error) {
	o := producerOptions{
		batchBytes:         64 << 10,
		inFlight:           16,
		maxBufferedBytes:   4 << 20,
		maxBufferedRecords: 1 << 20,
		deliveryTimeout:    30 * time.Second,
		acks:               AcksQuorum,
		idempotent:         true,
		waitForSpace:       true,
		localPreference:    true,
		spill:              true,
	}
	for _, opt := range opts {
		opt(&o)
	}
	switch {
	case o.linger < 0:
		return o, fmt.Errorf("option Linger: %v is negative", o.linger)
	case o.batchBytes < 1 || o.batchBytes > 4<<20:
		return o, fmt.Errorf("option BatchBytes: %d is not in [1, %d]", o.batchBytes, 4<<20)
	case o.inFlight < 1 || o.inFlight > 1024:
		return o, fmt.Errorf("option InFlight: %d is not in [1, 1024]", o.inFlight)
	case o.maxBufferedBytes < 1 || o.maxBufferedRecords < 1:
		return o, fmt.Errorf("options MaxBufferedBytes, MaxBufferedRecords: %d, %d: below 1", o.maxBufferedBytes, o.maxBufferedRecords)
	case o.deliveryTimeout <= 0:
		return o, fmt.Errorf("option DeliveryTimeout: %v is not positive", o.deliveryTimeout)
	case !o.codec.Supported():
		return o, fmt.Errorf("option Compression: unknown codec %d", o.codec)
	case !o.acks.Valid():
		return o, fmt.Errorf("option Acks: unknown level %d", o.acks)
	}
	switch {
	case o.policy > Random:
		return o, fmt.Errorf("option Balance: unknown policy %d", o.policy)
	case o.affinity > PerProducer:
		return o, fmt.Errorf("option Affinity: unknown scope %d", o.affinity)
	}
	if o.acks != AcksQuorum {
		o.idempotent = false // RULES R4: idempotence is part of quorum
	}
	if len(o.publisher) > maxPublisherBytes {
		return o, fmt.Errorf("option Publisher: the name has %d bytes, the limit is %d", len(o.publisher), maxPublisherBytes)
	}
	if o.name != "" && !o.idempotent {
		return o, fmt.Errorf("option ProducerName: needs quorum acks and idempotence")
	}
	return o, nil
}

// Linger makes a batch wait for more records before it is sent, unless it is
// full. Default: 0, a batch is sent at once when nothing is in flight to its
// partition; while something is, the records of a burst gather into the next batch
// until that holds as many.
// Below 1 ms an idle Go process cannot tell times apart.
func Linger(d time.Duration) ProducerOption { return func(o *producerOptions) { o.linger = d } }

// BatchBytes is the size at which a batch is full, before compression. A
// larger record travels in a batch of its own. Default: 64 KiB.
func BatchBytes(n int) ProducerOption { return func(o *producerOptions) { o.batchBytes = n } }

// InFlight is the number of unanswered batches per partition. When it is
// reached, records wait in the buffer. Default: 16.
func InFlight(n int) ProducerOption { return func(o *producerOptions) { o.inFlight = n } }

// MaxBufferedBytes bounds the unanswered records of a producer by their size.
// When it is reached, sends wait, and batches leave before they are full or have
// lingered. Into an empty buffer any record fits. Default: 4 MiB; a larger buffer
// lets batches go cold before they are checksummed and written, which costs an
// unbounded sender 0.75 µs instead of 0.47 µs of CPU for a record of 1 KiB, the
// peer's share included.
func MaxBufferedBytes(n int64) ProducerOption {
	return func(o *producerOptions) { o.maxBufferedBytes = n }
}

// MaxBufferedRecords bounds the unanswered records of a producer by their
// number. When it is reached, sends wait. Default: 1,048,576.
func MaxBufferedRecords(n int64) ProducerOption {
	return func(o *producerOptions) { o.maxBufferedRecords = n }
}

// Compression sets the codec of batches. A batch that does not get smaller is
// sent as it is, and so is one below 4 KiB for a queue. Default: NoCompression.
func Compression(c Codec) ProducerOption { return func(o *producerOptions) { o.codec = c } }

// DeliveryTimeout bounds the time from a record's batch being started to its
// answer, all resends included; it is noticed up to a sixteenth of it, or a second,
// late. What waits behind it in the partition fails with it. Default: 30 s.
func DeliveryTimeout(d time.Duration) ProducerOption {
	return func(o *producerOptions) { o.deliveryTimeout = d }
}

// WaitForSpace says whether records that are refused because disk, memory or their
// partition is full are sent again until the delivery timeout, as after other refusals that may pass.
// With false they fail at once. Default: true.
func WaitForSpace(on bool) ProducerOption { return func(o *producerOptions) { o.waitForSpace = on } }

// Acks sets what an answer waits for. Default: AcksQuorum.
func Acks(level AckLevel) ProducerOption { return func(o *producerOptions) { o.acks = level } }

// Idempotent says whether resends are recognised by the broker. Without it, a
// batch whose answer is lost is not resent but reported as Unknown. It belongs
// to AcksQuorum and is off at every other level. Default: true.
func Idempotent(on bool) ProducerOption { return func(o *producerOptions) { o.idempotent = on } }

// Partition sends every record to one partition, whatever its key.
func Partition(n uint32) ProducerOption {
	return func(o *producerOptions) { o.fixed, o.partition = true, n }
}

// Balance sets how partitions are chosen for records without a key. Default: Weighted.
func Balance(policy Policy) ProducerOption { return func(o *producerOptions) { o.policy = policy } }

// Affinity sets for how long records without a key stay with the partition that was
// chosen. Default: PerMessage.
func Affinity(scope AffinityScope) ProducerOption {
	return func(o *producerOptions) { o.affinity = scope }
}

// LocalPreference says whether records without a key go to partitions that are led by
// the broker the client is connected to, as long as one of them takes records.
// Default: true.
func LocalPreference(on bool) ProducerOption {
	return func(o *producerOptions) { o.localPreference = on }
}

// Spill says whether records without a key whose partition has no leader for a while,
// or refuses them, are given to another one if they are known not to be stored. There
// they come behind later ones. With false they wait where they are. Default: true.
func Spill(on bool) ProducerOption { return func(o *producerOptions) { o.spill = on } }

// ProducerName gives the producer an identity that outlives the process:
// opening a name fences whoever used it before. Default: anonymous.
func ProducerName(name string) ProducerOption { return func(o *producerOptions) { o.name = name } }

// maxPublisherBytes bounds a publisher's name. A longer one is refused.
const maxPublisherBytes = 1 << 10

// Publisher says who publishes what the producer sends. All records of a publisher go
// to one partition, whatever their keys, in the order in which they were stored there;
// a serial group ByPublisher handles them one after the other. The name belongs to no
// connection: the same publisher goes on with another producer, on another node, or
// with several at once, whose records are ordered as the partition got them. Consumers
// find it in the header wire.PublisherHeader. With the option Partition the publisher
// is where that says. Default: none, and each record is ordered with no other.
func Publisher(name string) ProducerOption { return func(o *producerOptions) { o.publisher = name } }

// ReaderOption configures a Reader.
type ReaderOption func(*readerOptions)

type startKind uint8

const (
	startEarliest startKind = iota
	startLatest
	startOffset
	startTime
)

type readerOptions struct {
	start      startKind
	offset     uint64
	time       time.Time
	partitions []uint32 // empty: all
	stopAtEnd  bool
	readAhead  int
}

func newReaderOptions(opts []ReaderOption) (readerOptions, error) {
	o := readerOptions{readAhead: 1 << 20}
	for _, opt := range opts {
		opt(&o)
	}
	if o.readAhead < 1024 || o.readAhead > 1<<30 {
		return o, fmt.Errorf("option ReadAhead: %d is not in [1024, %d]", o.readAhead, 1<<30)
	}
	return o, nil
}

// FromEarliest starts at the oldest record of every partition. It is the default.
func FromEarliest() ReaderOption { return func(o *readerOptions) { o.start = startEarliest } }

// FromLatest starts behind the newest record that is readable now.
func FromLatest() ReaderOption { return func(o *readerOptions) { o.start = startLatest } }

// FromOffset starts every partition that is read at the given offset.
func FromOffset(offset uint64) ReaderOption {
	return func(o *readerOptions) { o.start, o.offset = startOffset, offset }
}

// FromTime starts at the first record appended at or after t.
func FromTime(t time.Time) ReaderOption {
	return func(o *readerOptions) { o.start, o.time = startTime, t }
}

// Partitions restricts the reader to some partitions. Default: all.
func Partitions(n ...uint32) ReaderOption {
	return func(o *readerOptions) { o.partitions = append(o.partitions, n...) }
}

// StopAtEnd makes the reader finish with io.EOF when it has returned every
// record that was readable when it was opened.
func StopAtEnd() ReaderOption { return func(o *readerOptions) { o.stopAtEnd = true } }

// ReadAhead is the number of bytes a broker may send ahead of the application
// per partition. A larger stored frame is still received, one at a time.
// Default: 1 MiB.
func ReadAhead(bytes int) ReaderOption { return func(o *readerOptions) { o.readAhead = bytes } }

package verify

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/lockstepmq/lockstep/promise"
)

// MaxRecords bounds the records of one run: a Book keeps some bytes of each.
const MaxRecords = 50_000_000

// maxViolations bounds the violations that are kept in words; the others are counted.
const maxViolations = 20

// Seen is one thing that a consumer saw of a numbered record, or that happened to a
// consumer. Event.Session names the consumer's life.
type Seen struct {
	Partition uint32
	Number    uint64 // of the record, for Delivered and Started
	Key       string
	Reason    string // of Revoked, or an Answered that is Stale: why the lease was lost
	promise.Event
}

// Book compares what was sent with what consumers saw. It may be used by several
// goroutines; the order of calls is the order of events, and each has to be told when
// package promise says so.
type Book struct {
	options promise.Options

	mu       sync.Mutex
	checkers map[uint32]*promise.Checker
	fates    []fate            // by number
	highest  map[string]uint64 // of each key: the highest number that was started, plus one
	ended    map[uint64]string // of a started record without an outcome that counts: why it may come again
	working  map[string]map[uint64]bool
	again    map[string]int
	counts   Counts
	broken   []string
	unsaid   int
	told     map[uint32]bool // partitions whose checker has found something
	stored   map[uint32]uint64
}

// Counts are the events of a Book that are counted.
type Counts struct {
	Stored, Failed int // records sent, by their answer
	Unknown        int // of those that failed: may be stored
	Deliveries     int // records handed to a handler
	Handled        int // acknowledgements that were accepted
	Stale          int // and that were refused because the lease was lost
}

// fate is what is known of a record.
type fate struct {
	offset    uint64
	partition uint32
	state     state
}

type state uint8

const (
	isStored    state = 1 << iota // its producer was told so
	isUnknown                     // its producer was not told
	isStarted                     // a handler has begun with it; offset and partition are known
	isAcked                       // an acknowledgement was sent
	isConfirmed                   // and accepted
)

// NewBook returns an empty book for a group.
func NewBook(o promise.Options) *Book {
	return &Book{
		options: o, checkers: map[uint32]*promise.Checker{}, highest: map[string]uint64{}, ended: map[uint64]string{},
		working: map[string]map[uint64]bool{}, again: map[string]int{}, told: map[uint32]bool{}, stored: map[uint32]uint64{},
	}
}

// fate returns what is known of a number. b.mu is held.
func (b *Book) fate(number uint64) *fate {
	if n := int(number) + 1; n > len(b.fates) {
		b.fates = slices.Grow(b.fates, n-len(b.fates))[:n]
	}
	return &b.fates[number]
}

func (b *Book) violation(format string, args ...any) {
	if len(b.broken) == maxViolations {
		b.unsaid++
		return
	}
	b.broken = append(b.broken, fmt.Sprintf(format, args...))
}

// Stored notes that a broker has acknowledged a record.
func (b *Book) Stored(number uint64, partition uint32, offset uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Stored++
	b.stored[partition] = max(b.stored[partition], offset+1)
	f := b.fate(number)
	b.placed(f, number, partition, offset)
	f.state |= isStored
}

// Failed notes that sending a record has failed; unknown says that it may be stored.
func (b *Book) Failed(number uint64, unknown bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts.Failed++
	if unknown {
		b.counts.Unknown++
		b.fate(number).state |= isUnknown
	}
}

// placed checks that a record is at one place only. b.mu is held.
func (b *Book) placed(f *fate, number uint64, partition uint32, offset uint64) {
	if f.state&(isStored|isStarted) != 0 && (f.partition != partition || f.offset != offset) {
		b.violation("record number %d is stored twice: at %d@%d and at %d@%d", number, f.partition, f.offset, partition, offset)
	}
	f.partition, f.offset = partition, offset
}

// Observe takes in what a consumer saw.
func (b *Book) Observe(s Seen) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.Kind == promise.Died || s.Kind == promise.Stopped || s.Kind == promise.Removed {
		for _, c := range b.checkers { // a session is one in every partition
			_ = c.Observe(s.Event)
		}
		for number := range b.working[s.Session] {
			b.ended[number] = "its consumer failed"
		}
		return
	}
	c := b.checkers[s.Partition]
	if c == nil {
		c = promise.New(b.options)
		b.checkers[s.Partition] = c
	}
	if err := c.Observe(s.Event); err != nil && !b.told[s.Partition] {
		b.told[s.Partition] = true // a checker keeps to the first one
		b.violation("partition %d: %v", s.Partition, err)
	}
	switch s.Kind {
	case promise.Started:
		b.started(&s)
	case promise.Acked:
		b.fate(s.Number).state |= isAcked
	case promise.Nacked:
		b.ends(&s, "given back")
	case promise.Revoked:
		b.ends(&s, "lease lost: "+s.Reason)
	case promise.Answered:
		switch s.Answer {
		case promise.OK:
			b.counts.Handled++
			b.fate(s.Number).state |= isConfirmed
			delete(b.ended, s.Number)
			delete(b.working[s.Session], s.Number)
		case promise.Stale:
			b.counts.Stale++
			b.ends(&s, "lease lost: "+s.Reason)
		}
	}
}

// started takes in that a handler begins with a record. b.mu is held.
func (b *Book) started(s *Seen) {
	b.counts.Deliveries++
	f := b.fate(s.Number)
	b.placed(f, s.Number, s.Partition, s.Record)
	if f.state&isStarted == 0 {
		if next := b.highest[s.Key]; s.Number < next {
			b.violation("partition %d: record number %d of %s was started for the first time after number %d of it", s.Partition, s.Number, s.Key, next-1)
		} else {
			b.highest[s.Key] = s.Number + 1
		}
	} else {
		why := b.ended[s.Number]
		if why == "" {
			why = "no reason is known"
			b.violation("partition %d: record number %d of %s was started again, and nobody has given it back, lost it or failed", s.Partition, s.Number, s.Key)
		}
		b.again[why]++
	}
	f.state |= isStarted
	delete(b.ended, s.Number)
	if b.working[s.Session] == nil {
		b.working[s.Session] = map[uint64]bool{}
	}
	b.working[s.Session][s.Number] = true
}

// ends notes why a session has a record no more. b.mu is held.
func (b *Book) ends(s *Seen, why string) {
	delete(b.working[s.Session], s.Number)
	if b.fate(s.Number).state&isConfirmed == 0 {
		b.ended[s.Number] = why
	}
}

// Counts are what has been counted so far.
func (b *Book) Counts() Counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts
}

// Events is how many events the promises were compared with.
func (b *Book) Events() (n uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.checkers {
		n += c.Events()
	}
	return n
}

// Ends is, by partition, the offset behind the last record that is known to be stored.
func (b *Book) Ends() map[uint32]uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.stored)
}

// Again is how often records were started again, by reason.
func (b *Book) Again() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.again)
}

// Violations are the promises that are broken in words, and how many more there are.
func (b *Book) Violations() (list []string, more int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.broken), b.unsaid
}

// Place is where a record is stored.
type Place struct {
	Number    uint64 `json:"number"`
	Partition uint32 `json:"partition"`
	Offset    uint64 `json:"offset"`
}

// Unhandled returns, for a group that is done with everything, the records that a
// broker acknowledged and that no consumer has: they are lost. A record whose
// acknowledgement was sent and not answered counts as handled, since the answer may
// have been lost with a connection.
func (b *Book) Unhandled() []Place { return b.without(isAcked) }

// Unfinished returns the stored records that no consumer is known to have finished.
func (b *Book) Unfinished() []Place { return b.without(isConfirmed) }

func (b *Book) without(s state) (list []Place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for number, f := range b.fates {
		if f.state&isStored != 0 && f.state&s == 0 {
			list = append(list, Place{uint64(number), f.partition, f.offset})
		}
	}
	return list
}

package promise

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// on makes events of one session, for records of scope "k" unless scoped otherwise.
type on string

func (s on) event(kind Kind, record, epoch uint64) Event {
	return Event{Kind: kind, Session: string(s), Scope: "k", Record: record, Epoch: epoch}
}

func (s on) answer(a Answer, record, epoch uint64) Event {
	e := s.event(Answered, record, epoch)
	e.Answer = a
	return e
}

func (s on) gets(record, epoch uint64) Event     { return s.event(Delivered, record, epoch) }
func (s on) starts(record, epoch uint64) Event   { return s.event(Started, record, epoch) }
func (s on) finishes(record, epoch uint64) Event { return s.event(Finished, record, epoch) }
func (s on) acks(record, epoch uint64) Event     { return s.event(Acked, record, epoch) }
func (s on) ok(record, epoch uint64) Event       { return s.answer(OK, record, epoch) }
func (s on) stale(record, epoch uint64) Event    { return s.answer(Stale, record, epoch) }
func (s on) nacks(record, epoch uint64) Event    { return s.event(Nacked, record, epoch) }
func (s on) loses(record, epoch uint64) Event    { return s.event(Revoked, record, epoch) }
func (s on) is(kind Kind) Event                  { return Event{Kind: kind, Session: string(s)} }

// works is a record's way through a handler up to the ack.
func (s on) works(record, epoch uint64) []Event {
	return []Event{s.gets(record, epoch), s.starts(record, epoch), s.finishes(record, epoch), s.acks(record, epoch)}
}

func events(parts ...any) (out []Event) {
	for _, p := range parts {
		switch p := p.(type) {
		case Event:
			out = append(out, p)
		case []Event:
			out = append(out, p...)
		}
	}
	return out
}

const a, b, c = on("A"), on("B"), on("C")

func settled(record, epoch uint64) Event {
	return Event{Kind: Settled, Scope: "k", Record: record, Epoch: epoch}
}

func sought(record, epoch uint64) Event { return Event{Kind: Sought, Record: record, Epoch: epoch} }

func TestPromises(t *testing.T) {
	for _, test := range []struct {
		name    string
		options Options
		events  []Event
		broken  string // promise, or "" if none
		what    string
	}{
		{
			name:   "one record after another",
			events: events(a.works(0, 5), a.ok(0, 5), b.works(1, 7), b.ok(1, 7)),
		},
		{
			name:   "an answer may come after the next session has begun",
			events: events(a.works(0, 5), b.works(1, 7), a.ok(0, 5), b.ok(1, 7)),
		},
		{
			name:   "answers of neighbours may overtake each other",
			events: events(a.works(0, 5), b.works(1, 7), b.ok(1, 7), a.ok(0, 5)),
		},
		{
			name:   "a record comes again after a nack",
			events: events(a.gets(0, 5), a.starts(0, 5), a.finishes(0, 5), a.nacks(0, 5), b.works(0, 7), b.ok(0, 7)),
		},
		{
			name:   "what was not started comes again after its leader was lost",
			events: events(a.gets(0, 5), b.works(0, 9), b.ok(0, 9)),
		},
		{
			name:   "a session that is removed loses what it had started",
			events: events(a.gets(0, 5), a.starts(0, 5), a.is(Removed), a.finishes(0, 5), b.works(0, 7), b.ok(0, 7), a.acks(0, 5), a.stale(0, 5)),
		},
		{
			name:   "a dead process works on nothing",
			events: events(a.gets(0, 5), a.starts(0, 5), a.is(Died), b.works(0, 7), b.ok(0, 7)),
		},
		{
			name:   "a process that stands still may overlap, and is told that it is stale",
			events: events(a.gets(0, 5), a.starts(0, 5), a.is(Stopped), b.works(0, 7), b.ok(0, 7), a.finishes(0, 5), a.acks(0, 5), a.stale(0, 5)),
		},
		{
			name:   "a deposed leader may deliver what is settled, under its old epoch",
			events: events(b.works(0, 9), b.ok(0, 9), a.gets(0, 5), a.starts(0, 5), a.finishes(0, 5)),
		},
		{
			name:   "an answer that is repeated is the same one",
			events: events(a.works(0, 5), a.ok(0, 5), a.acks(0, 5), a.ok(0, 5)),
		},
		{
			name:    "in mode shared no record waits for another",
			options: Options{Shared: true},
			events:  events(a.gets(0, 5), a.starts(0, 5), b.works(1, 5), b.ok(1, 5), a.finishes(0, 5), a.acks(0, 5), a.ok(0, 5)),
		},
		{
			name:   "the next record starts when the one before it is skipped",
			events: events(a.gets(0, 5), a.starts(0, 5), a.finishes(0, 5), a.loses(0, 5), settled(0, 8), a.works(1, 9), a.ok(1, 9)),
		},
		{
			name:    "a started record comes again with a flag, one that was not started without",
			options: Options{Flags: true},
			events: events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.is(Died),
				Event{Kind: Delivered, Session: "B", Scope: "k", Record: 0, Epoch: 7, Redelivered: true}, b.gets(1, 7)),
		},
		{
			name:   "records come again after a seek",
			events: events(a.works(0, 5), a.ok(0, 5), a.works(1, 6), sought(0, 9), a.ok(1, 6), b.works(0, 9), b.ok(0, 9), b.works(1, 9), b.ok(1, 9)),
		},
		{
			name:   "a seek forward passes over what was not done, and over who holds it",
			events: events(a.gets(0, 5), a.starts(0, 5), a.finishes(0, 5), sought(1, 9), a.works(1, 9), a.ok(1, 9), a.acks(0, 5), a.stale(0, 5)),
		},
		{
			name:   "an ack from before a seek forward is answered after it",
			events: events(a.works(0, 5), sought(1, 9), a.ok(0, 5), b.works(1, 9), b.ok(1, 9)),
		},
		{
			name:    "in replay order the next record starts when the ack is sent",
			options: Options{Order: ReplayOnReceipt},
			events:  events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.finishes(0, 5), a.acks(0, 5), a.starts(1, 5)),
		},
		{
			name:    "in replay order holder and leader together may fail",
			options: Options{Order: ReplayOnReceipt},
			events: events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.finishes(0, 5), a.acks(0, 5), a.starts(1, 5),
				Event{Kind: LeaderLost}, a.is(Died), b.works(0, 9), b.ok(0, 9), b.works(1, 9), b.ok(1, 9)),
		},
		{
			name:    "without a gate a lost holder repeats its batch",
			options: Options{Order: ReplayUngated},
			events:  events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.starts(1, 5), a.is(Died), b.works(0, 9), b.ok(0, 9)),
		},

		{
			name:   "two acks of one record are accepted",
			events: events(a.works(0, 5), a.is(Removed), b.works(0, 7), a.ok(0, 5), b.ok(0, 7)),
			broken: "G1", what: "got the record under epoch 7, which is newer",
		},
		{
			name:   "an accepted ack is not the last one that is accepted",
			events: events(b.works(0, 7), b.ok(0, 7), a.works(0, 5), a.ok(0, 5)),
			broken: "G1", what: "session B got OK for it under epoch 7",
		},
		{
			name:   "a record comes again after OK",
			events: events(a.works(0, 5), a.ok(0, 5), b.gets(0, 7)),
			broken: "G1", what: "its ack from session A under epoch 5 got OK at event 5",
		},
		{
			name:   "two sessions share an epoch of the scope",
			events: events(a.works(0, 5), a.ok(0, 5), b.gets(1, 5)),
			broken: "G1", what: "session A has this epoch of the scope since event 1",
		},
		{
			name:   "a holder of the scope that has been replaced is told OK",
			events: events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.finishes(0, 5), a.is(Removed), b.gets(1, 7), a.acks(0, 5), a.ok(0, 5)),
			broken: "G1", what: "after session B had the scope under epoch 7",
		},
		{
			name: "an ack is accepted after the next record's was",
			events: events(a.gets(0, 5), a.gets(1, 5), a.acks(1, 5), a.ok(1, 5),
				a.acks(0, 5), a.ok(0, 5)),
			broken: "G1", what: "record 1 after it had its OK at event 4, before this ack was sent",
		},
		{
			name:   "the epoch falls from one record to the next",
			events: events(a.works(0, 7), a.ok(0, 7), a.works(1, 5), a.ok(1, 5)),
			broken: "G1", what: "record 0 before it was accepted under epoch 7, which is higher",
		},
		{
			name:   "an accepted ack is refused when it is repeated",
			events: events(a.works(0, 5), a.ok(0, 5), a.acks(0, 5), a.stale(0, 5)),
			broken: "G1", what: "the same ack got OK at event 5",
		},
		{
			name:   "an ack is accepted of a record that never came",
			events: events(a.gets(0, 5), a.acks(1, 5), a.ok(1, 5)),
			broken: "G1", what: "never got the record under this epoch",
		},
		{
			name:   "a skipped record comes again",
			events: events(settled(0, 8), a.gets(0, 8)),
			broken: "G1", what: "it was settled at event 1, under epoch 8",
		},
		{
			name:   "an ack from before a seek settles the record that is replayed",
			events: events(a.gets(0, 5), a.starts(0, 5), a.finishes(0, 5), sought(0, 9), a.acks(0, 5), a.ok(0, 5)),
			broken: "G1", what: "sent after the seek",
		},
		{
			name:   "a lease from before a seek comes late and is accepted",
			events: events(sought(0, 9), a.works(0, 5), a.ok(0, 5)),
			broken: "G1", what: "fenced everything below epoch 9",
		},
		{
			name:   "a record that a seek has passed over comes again",
			events: events(a.gets(0, 5), sought(1, 9), b.gets(0, 9)),
			broken: "G1", what: "it was settled at event 2, under epoch 9",
		},
		{
			name:   "two sessions work in one scope",
			events: events(a.gets(0, 5), a.starts(0, 5), a.is(Removed), b.gets(0, 7), b.starts(0, 7)),
			broken: "G2", what: "session A works on record 0 of the scope since event 2",
		},
		{
			name:   "the same session does not wait for the answer",
			events: events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.finishes(0, 5), a.acks(0, 5), a.starts(1, 5)),
			broken: "G3", what: "no OK yet for record 0",
		},
		{
			name:    "in replay order the ack must have been sent",
			options: Options{Order: ReplayOnReceipt},
			events:  events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.finishes(0, 5), a.starts(1, 5)),
			broken:  "G3", what: "has not acknowledged record 0",
		},
		{
			name:   "another session starts behind a record that is held",
			events: events(a.gets(0, 5), a.starts(0, 5), a.finishes(0, 5), b.gets(1, 7), b.starts(1, 7)),
			broken: "G3", what: "session A has record 0 before it since event 1",
		},
		{
			name:   "a record comes after a later one was started",
			events: events(a.works(0, 5), b.works(1, 7), a.is(Died), c.gets(0, 9)),
			broken: "G3", what: "a later record of the scope was started under epoch 7 at event 6",
		},
		{
			name:    "in replay order, too, a lost holder alone repeats nothing after a later record",
			options: Options{Order: ReplayOnReceipt},
			events: events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.finishes(0, 5), a.acks(0, 5), a.starts(1, 5), a.finishes(1, 5),
				a.is(Died), b.gets(0, 9)),
			broken: "G3", what: "a later record of the scope was started under epoch 5",
		},
		{
			name:   "the next record starts before a nacked one has come again",
			events: events(a.gets(0, 5), a.starts(0, 5), a.finishes(0, 5), a.nacks(0, 5), b.works(1, 7), a.gets(0, 8)),
			broken: "G3", what: "should have been settled",
		},
		{
			name:   "a session works on what it has given back",
			events: events(a.gets(0, 5), a.gets(1, 5), a.starts(0, 5), a.finishes(0, 5), a.nacks(0, 5), a.starts(1, 5)),
			broken: "G3", what: "gave it back at event 5",
		},
		{
			name:    "a lease is lost and no consumer has failed",
			options: Options{Steady: true},
			events:  events(a.works(0, 5), a.stale(0, 5)),
			broken:  "G4", what: "no consumer has failed",
		},
		{
			name:    "a started record comes again and looks new",
			options: Options{Flags: true},
			events:  events(a.gets(0, 5), a.starts(0, 5), a.is(Died), b.gets(0, 7)),
			broken:  "flag", what: "session A started it at event 2",
		},
		{
			name:   "a started record comes again although its session lives",
			events: events(a.works(0, 5), b.gets(0, 9)),
			broken: "G4", what: "session A started it under epoch 5 at event 2",
		},
		{
			name:   "a started record comes again to the same session",
			events: events(a.works(0, 5), a.gets(0, 9)),
			broken: "G4", what: "session A started it under epoch 5 at event 2",
		},
		{
			name:   "a record is started twice",
			events: events(a.gets(0, 5), a.starts(0, 5), a.finishes(0, 5), a.starts(0, 5)),
			broken: "G4", what: "the same session started it at event 2",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			checker := New(test.options)
			for i, e := range test.events {
				err := checker.Observe(e)
				require.Equal(t, err, checker.Err())
				if test.broken == "" || i < len(test.events)-1 && err == nil {
					require.NoError(t, err)
					continue
				}
				var v *Violation
				require.ErrorAs(t, err, &v, "event %d", i+1)
				require.Equal(t, test.broken, v.Promise, v)
				require.Contains(t, v.What, test.what)
				require.EqualValues(t, i+1, v.Number)
				return
			}
		})
	}
}

func TestUnsettledIsWhatNobodyFinished(t *testing.T) {
	checker := New(Options{})
	for record := range uint64(4) {
		require.NoError(t, checker.Observe(Event{Kind: Published, Scope: fmt.Sprint(record % 2), Record: record}))
	}
	require.Equal(t, []uint64{0, 1, 2, 3}, checker.Unsettled())
	done := Event{Kind: Settled, Scope: "1", Record: 3}
	require.NoError(t, checker.Observe(done))
	require.Equal(t, []uint64{0, 1, 2}, checker.Unsettled())
	require.EqualValues(t, 5, checker.Events())
}

// What a seek passes over is not lost.
func TestASeekSettlesWhatIsBeforeIt(t *testing.T) {
	checker := New(Options{Remember: 2})
	for record := range uint64(6) {
		require.NoError(t, checker.Observe(Event{Kind: Published, Scope: fmt.Sprint(record % 2), Record: record}))
	}
	require.NoError(t, checker.Observe(sought(5, 9)))
	require.Equal(t, []uint64{5}, checker.Unsettled())
	require.Len(t, checker.settled, 2)
	require.NoError(t, checker.Observe(sought(4, 10)))
	require.Contains(t, checker.Unsettled(), uint64(5))
}

func TestTheFirstViolationStays(t *testing.T) {
	checker := New(Options{})
	for _, e := range events(a.works(0, 5), a.ok(0, 5)) {
		require.NoError(t, checker.Observe(e))
	}
	first := checker.Observe(b.gets(0, 7))
	require.EqualError(t, first, `G1 is broken at event 6 (B: delivered record 0 of scope "k" under epoch 7): `+
		`its ack from session A under epoch 5 got OK at event 5`)
	require.Equal(t, first, checker.Observe(c.gets(0, 7)))
}

// TestSettledRecordsAreForgotten: memory is bounded, whatever a run's length.
func TestSettledRecordsAreForgotten(t *testing.T) {
	for _, shared := range []bool{false, true} {
		checker := New(Options{Shared: shared, Remember: 10})
		for i := range uint64(1000) {
			for _, e := range events(a.works(i, i+5), a.ok(i, i+5)) {
				require.NoError(t, checker.Observe(e))
			}
		}
		records, grants := 0, 0
		for _, s := range checker.scopes {
			records += len(s.records)
			grants += len(s.grants)
		}
		require.Equal(t, 10, records)
		require.LessOrEqual(t, grants, 11)
		require.Len(t, checker.settled, 10)
		require.ErrorContains(t, checker.Observe(b.gets(995, 2000)), "G1")
	}
}

func TestSessionsReportAtOnce(t *testing.T) {
	checker := New(Options{})
	var wg sync.WaitGroup
	for key := range 8 {
		wg.Go(func() {
			session := on(fmt.Sprint("s", key))
			for i := range uint64(50) {
				for _, e := range events(session.works(i, i), session.ok(i, i)) {
					e.Scope = fmt.Sprint(key)
					_ = checker.Observe(e)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, checker.Err())
	require.Empty(t, checker.Unsettled())
	require.EqualValues(t, 8*50*5, checker.Events())
}

func BenchmarkObserve(b *testing.B) {
	for _, shared := range []bool{false, true} {
		b.Run(fmt.Sprintf("shared=%v", shared), func(b *testing.B) {
			checker := New(Options{Shared: shared})
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				for _, e := range events(a.works(i, i+5), a.ok(i, i+5)) {
					if err := checker.Observe(e); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

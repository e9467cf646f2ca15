package group

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// sink is a consumer that acks whatever it got, when it is asked to.
type sink struct {
	outcomes []wire.Outcome
}

func (s *sink) Attached(*wire.AttachResponse, error) {}
func (s *sink) Deliver(d *Delivery) {
	for _, g := range d.Grants {
		s.outcomes = append(s.outcomes, wire.Outcome{Offset: g.Offset, Count: g.Count, Epoch: g.Epoch, Kind: wire.OutcomeAck})
	}
}
func (s *sink) Answer([]wire.OutcomeAnswer) {}
func (s *sink) Revoke([]wire.Revoke)        {}
func (s *sink) Lost([]wire.Lost)            {}
func (s *sink) Confirmed(uint64)            {}
func (s *sink) Closed(error)                {}

// benchFeed is a window over batches of which all are alike.
type benchFeed struct {
	place Place
	count int
	keys  []byte // of 400 batches
}

func (f *benchFeed) At(o wire.Offset) (*Place, bool) {
	n := int(o) / f.count
	f.place.Base = wire.Offset(n * f.count)
	f.place.Index = f.keys[(n%400)*f.count*16:][:f.count*16]
	return &f.place, true
}

// What a record costs from its delivery to the answer to its ack, without the log and the
// network: 4 consumers, batches of 250.
func BenchmarkLeader(b *testing.B) {
	const batch, consumers = 250, 4
	for _, k := range []struct {
		name     string
		settings Settings
		keys     int
	}{
		{"shared", Settings{Mode: wire.ModeShared}, 1},
		{"serial/keys=10000", Settings{Mode: wire.ModeSerial}, 10_000},
	} {
		b.Run(k.name, func(b *testing.B) {
			f := &benchFeed{count: batch, place: Place{Count: batch, BatchBytes: batch << 10}}
			random := rand.New(rand.NewPCG(1, 2))
			for range 400 * batch {
				f.keys = binary.LittleEndian.AppendUint64(f.keys, uint64(1+random.IntN(k.keys)))
				f.keys = append(f.keys, 0, 0, 0, 0, 0, 0, 0, 0)
			}
			state, settings := NewState(), k.settings.WithDefaults()
			applied := wire.Index(0)
			apply := func(data []byte) {
				applied++
				for len(data) > 0 {
					n := binary.LittleEndian.Uint32(data[4:])
					state.Apply(applied, Command(data[0]), data[1], data[8:8+n])
					data = data[8+n:]
				}
			}
			apply(AppendPut(nil, 1, 1, "g", &settings, 0, PutQueue))
			state.Appended(wire.Offset(b.N + batch))
			l := NewLeader(state.Group(1), f, 0, applied)
			sinks := make([]*sink, consumers)
			var now time.Duration
			var scratch []byte
			finds := 0
			turn := func() {
				l.Turn(now, applied, wire.Offset(b.N))
				for l.Pending() {
					data, ok := l.Propose(scratch[:0], 1<<20)
					if !ok {
						break
					}
					scratch = data
					apply(data)
					l.Applied(applied)
				}
				for _, w := range l.Wants().Find {
					finds++
					at := w.After + 1
					for at < w.Below && Scope(binary.LittleEndian.Uint64(f.keys[int(at)%(400*batch)*16:])) != w.Scope {
						at++
					}
					l.Found(w.Scope, w.After, at, at < w.Below)
				}
			}
			for i := range sinks {
				sinks[i] = new(sink)
				l.Attach(sinks[i], &wire.AttachRequest{Session: Session{byte(i + 1)}, Attempt: 1, Capacity: 1000, Refill: 500}, "", 0, now)
			}
			b.ReportAllocs()
			bytes := 0
			b.ResetTimer()
			for n := 0; state.Group(1).Done.Floor() < wire.Offset(b.N); n++ {
				turn()
				bytes += len(scratch)
				for _, s := range sinks {
					l.Outcomes(s, s.outcomes, now)
					s.outcomes = s.outcomes[:0]
				}
				if n > 10*b.N+100 {
					b.Fatalf("it stands still at %d of %d", state.Group(1).Done.Floor(), b.N)
				}
			}
			b.ReportMetric(float64(finds)/float64(b.N), "finds/op")
			b.ReportMetric(float64(bytes)/float64(b.N), "control-B/op")
		})
	}
}

// What a new leader looks through while sessions are waited for, for each unfinished record
// below the bound: 10,000 keys, batches of 250, without reading the log.
func BenchmarkGrace(b *testing.B) {
	const batch = 250
	f := &benchFeed{count: batch, place: Place{Count: batch, BatchBytes: batch << 10}}
	random := rand.New(rand.NewPCG(1, 2))
	for range 400 * batch {
		f.keys = binary.LittleEndian.AppendUint64(f.keys, uint64(1+random.IntN(10_000)))
		f.keys = append(f.keys, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	state, settings := NewState(), Settings{Mode: wire.ModeSerial}.WithDefaults()
	put := AppendPut(nil, 1, 1, "g", &settings, 0, PutQueue)
	state.Apply(1, Command(put[0]), put[1], put[8:])
	state.Appended(wire.Offset(b.N))
	b.ResetTimer()
	l := NewLeader(state.Group(1), f, 0, 2)
	l.grace.bound = wire.Offset(b.N)
	turns := 1
	for ; !l.lookUp(l.grace.bound); turns++ {
	}
	b.ReportMetric(float64(turns), "turns")
}

// BenchmarkClaims is a new leader to which all consumers of a shared group come back in
// one turn, each with 250 records.
func BenchmarkClaims(b *testing.B) {
	const sessions, each = 1600, 250
	r := newRig(b, sharedGroup)
	all := make([]*recorder, sessions)
	attach := func(i int, attempt uint64, claims []wire.Outcome) *recorder {
		c := &recorder{r: r, session: Session{byte(i), byte(i >> 8), 1}}
		r.leader.Attach(c, &wire.AttachRequest{Session: c.session, Attempt: attempt, Term: 1, Capacity: each, Refill: each - 1, Claims: claims}, "", 1, r.now)
		return c
	}
	for i := range all {
		r.produce(make([]uint64, each)...)
		all[i] = attach(i, 1, nil)
	}
	for range sessions / 4 {
		r.settle()
	}
	for b.Loop() {
		r.lead()
		for i, old := range all {
			var claims []wire.Outcome
			for _, g := range old.grants {
				claims = append(claims, wire.Outcome{Offset: g.Offset, Count: g.Count, Epoch: g.Epoch})
			}
			c := attach(i, 2, claims)
			c.grants = old.grants
			all[i] = c
		}
		r.turn()
		require.Zero(b, r.leader.waiting)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/sessions/each*1000, "ns/record")
}

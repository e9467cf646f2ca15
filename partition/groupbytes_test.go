package partition

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// What groups write into the log is less than a tenth of it at records of 100 bytes, also
// where consumers finish half of their records, at random, in each turn: what was finished
// since the last turn becomes one entry, and a record out of order costs it two bytes.
func TestGroupsWriteLessThanATenthOfTheLog(t *testing.T) {
	const batch, batches = 32, 8 // of a turn
	for _, c := range []struct {
		name     string
		settings wire.GroupSettings
		keys     uint64
		half     bool
	}{
		{"shared", shared, 0, false},
		{"shared, in any order", shared, 0, true},
		{"serial by one of 10,000 keys", wire.GroupSettings{Mode: wire.ModeSerial}, 10_000, false},
		{"serial by one of 500 keys", wire.GroupSettings{Mode: wire.ModeSerial}, 500, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(4, 2))
			h := &harness{t: t, log: &fakeLog{term: 3, immediate: true, places: true}}
			h.part = New(Config{Log: h.log, State: NewState(), Queue: true, Groups: &world{h: h}})
			h.log.part = h.part
			h.part.Bind(h.log)
			h.noOp()
			h.part.Groups().Intend(20, []Intent{{ID: 7, Version: 7, Name: "workers", Settings: c.settings}})
			h.part.Turn(0, 0)
			consumers := make([]*acker, 4)
			for n := range consumers {
				consumers[n] = new(acker)
				h.put(Input{Kind: InputAttach, Consumer: consumers[n], Group: "workers", Attach: &wire.AttachRequest{
					Session: [16]byte{byte(n) + 1}, Attempt: 1, Capacity: 512, Refill: 256, Bytes: 1 << 20,
				}})
			}
			h.turns(0)

			h.log.records, h.log.control = 0, 0
			var builder wire.BatchBuilder
			value := make([]byte, 100)
			for range 60 {
				for range batches {
					builder.Reset(c.keys > 0)
					for range batch {
						require.True(t, builder.Append(1000, 0, []byte("key"), value, nil, 1+random.Uint64N(max(c.keys, 1))))
					}
					data, index := builder.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 0, wire.CodecNone, nil)
					info, err := wire.ParseBatch(data)
					require.NoError(t, err)
					require.NoError(t, h.part.Append(Append{Batch: data, Index: index, Info: info, Acks: wire.AcksNone}))
				}
				h.turns(0)
				for _, k := range consumers {
					var now, later []wire.Outcome
					for _, o := range k.outcomes {
						for i := range wire.Offset(o.Count) {
							one := o
							one.Offset, one.Count = o.Offset+i, 1
							if c.half && random.IntN(2) == 0 {
								later = append(later, one)
							} else {
								now = append(now, one)
							}
						}
					}
					if k.outcomes = later; len(now) > 0 {
						h.put(Input{Kind: InputOutcomes, Consumer: k, Outcomes: now})
					}
				}
				h.turns(0)
			}
			share := float64(h.log.control) / float64(h.log.records+h.log.control)
			t.Logf("%d bytes of records, %d of groups: %.1f %%", h.log.records, h.log.control, 100*share)
			require.NotZero(t, h.log.control)
			require.Less(t, share, 0.1)
		})
	}
}

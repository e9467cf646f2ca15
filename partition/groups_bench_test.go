package partition

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// acker acknowledges what it is granted, as one frame for each delivery.
type acker struct {
	consumer
	outcomes []wire.Outcome
}

func (c *acker) Deliver(d *group.Delivery) {
	for _, g := range d.Grants {
		c.outcomes = append(c.outcomes, wire.Outcome{Offset: g.Offset, Count: g.Count, Epoch: g.Epoch, Kind: wire.OutcomeAck})
	}
}
func (c *acker) Answer([]wire.OutcomeAnswer) {}

// BenchmarkSharedGroup is the owner's work for one record of a shared group: it is
// produced, granted to one of four consumers, acknowledged, and gone.
func BenchmarkSharedGroup(b *testing.B) {
	for _, records := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("batches of %d", records), func(b *testing.B) {
			h := &harness{log: &fakeLog{term: 3, immediate: true, places: true}}
			h.part = New(Config{Log: h.log, State: NewState(), Queue: true, Groups: &world{h: h}})
			h.log.part = h.part
			h.part.Bind(h.log)
			h.noOp()
			h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
			h.part.Turn(0, 0)
			var all []*acker
			for n := range byte(4) {
				c := new(acker)
				all = append(all, c)
				require.NoError(b, h.part.Groups().Put(Input{Kind: InputAttach, Consumer: c, Group: "workers", Attach: &wire.AttachRequest{
					Session: [16]byte{n + 1}, Attempt: 1, Capacity: 1000, Refill: 1000, Bytes: 1 << 20,
				}}))
			}
			for h.part.Turn(0, 0) {
			}
			batch := testBatch(b, -1, 0, 0, records)
			info, err := wire.ParseBatch(batch)
			require.NoError(b, err)
			b.ReportAllocs()
			for n := 0; n < b.N; n += records {
				require.NoError(b, h.part.Append(Append{Batch: batch, Info: info, Acks: wire.AcksNone}))
				for h.part.Turn(0, 0) {
				}
				h.part.Recycle(h.log.data)
				for _, c := range all {
					if len(c.outcomes) > 0 {
						require.NoError(b, h.part.Groups().Put(Input{Kind: InputOutcomes, Consumer: c, Outcomes: c.outcomes}))
						c.outcomes = nil
					}
				}
			}
			for h.part.Turn(0, 0) {
			}
			require.EqualValues(b, h.log.at, h.part.state.Start())
		})
	}
}

package client

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/lockstepmq/lockstep/wire"
)

// topology counts how often the broker said, or a disconnect made likely, that
// leaders or key slots moved. Producers compare the count with the one their
// layout was made under, and ask again when it differs.
type topology struct{ generation atomic.Uint64 }

func (t *topology) forget() { t.generation.Add(1) }

// leadership is who leads a partition, as far as a lane or stream knows: the highest
// epoch that anybody told of.
type leadership struct {
	node  uint32 // 0: not known; the home is asked then
	epoch uint32
}

// learn takes over what a broker says in METADATA, unless something newer is known.
func (l *leadership) learn(said leadership) {
	if said.node != 0 && said.epoch >= l.epoch {
		*l = said
	}
}

// follow takes over what a refusal says, and reports whether it says where to go: to
// a leader of a newer epoch than all that are known, or to the one that is known, whom
// the batch or the link before this one has found out about.
func (l *leadership) follow(refusal error) bool {
	var e *wire.Error
	if !errors.As(refusal, &e) {
		return false
	}
	node, epoch := e.Leader()
	if node == 0 || epoch < l.epoch {
		return false
	}
	*l = leadership{node, epoch}
	return true
}

// layout is what a producer or reader knows about a destination. It is immutable.
type layout struct {
	destination    string // its name
	generation     uint64 // of the topology before it was asked for
	id             [16]byte
	kind           Kind
	partitions     []uint32     // numbers
	leaders        []leadership // of partitions
	takes          []bool       // which of them records without a key may go to
	attended       []bool       // which of them have consumers, as far as is known
	weights        []uint8      // of partitions, at least 1
	partial        bool         // some do not take records
	slots          []uint32     // for each key slot, the place of its partition in partitions
	slotVersion    uint32
	recordIndex    bool
	maxRecordBytes int
}

// layout asks the broker about a destination, or what an alias stands for.
func (c *Conn) layout(ctx context.Context, destination string) (*layout, error) {
	generation := c.topology.generation.Load()
	_, info, err := c.resolve(ctx, destination)
	if err != nil {
		return nil, err
	}
	return newLayout(generation, info)
}

func newLayout(generation uint64, info *wire.DestinationInfo) (*layout, error) {
	l := &layout{
		destination:    info.Name,
		generation:     generation,
		id:             info.ID,
		kind:           info.Kind,
		slotVersion:    info.SlotVersion,
		slots:          make([]uint32, wire.SlotCount),
		maxRecordBytes: int(info.Settings.MaxRecordBytes),
	}
	switch info.Settings.RecordIndex {
	case wire.RecordIndexOn:
		l.recordIndex = true
	case wire.RecordIndexDefault:
		l.recordIndex = info.Kind == Queue
	}
	if l.maxRecordBytes == 0 {
		l.maxRecordBytes = wire.DefaultMaxRecordBytes
	}
	place := make(map[uint32]uint32, len(info.Partitions))
	for i := range info.Partitions {
		n := info.Partitions[i].Number
		place[n] = uint32(i)
		l.partitions = append(l.partitions, n)
		l.leaders = append(l.leaders, leadership{info.Partitions[i].Leader, info.Partitions[i].Epoch})
		l.takes = append(l.takes, takes(&info.Partitions[i]))
		l.attended = append(l.attended, info.Partitions[i].Flags&wire.PartitionUnattended == 0)
		l.weights = append(l.weights, max(info.Partitions[i].Weight, 1))
		l.partial = l.partial || !l.takes[i]
	}
	if len(l.partitions) == 0 || len(info.Slots) == 0 || info.Slots[0].FirstSlot != 0 {
		return nil, wire.Errorf(wire.CodeUnavailable, "destination %q has no partitions yet", info.Name)
	}
	run := 0
	for slot := range l.slots {
		if run+1 < len(info.Slots) && int(info.Slots[run+1].FirstSlot) == slot {
			run++
		}
		n, ok := place[info.Slots[run].Partition]
		if !ok {
			return nil, wire.Errorf(wire.CodeUnknownPartition, "destination %q maps slot %d to partition %d, which it does not have",
				info.Name, slot, info.Slots[run].Partition)
		}
		l.slots[slot] = n
	}
	return l, nil
}

package server

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// cutBatch is a stored batch of so many records, whose keys are hashed to 1, 2, …, and where
// it lies in a log that has nothing else.
func cutBatch(records int) (body []byte, p group.Place) {
	var b wire.BatchBuilder
	b.Reset(true)
	for i := range records {
		b.Append(int64(i), 0, []byte("key"), fmt.Appendf(nil, "value %4d of a record that is not so small", i), nil, uint64(i+1))
	}
	batch, index := b.Finish(wire.ProducerIdentity{ID: wire.NoProducerID}, 77, wire.CodecNone, nil)
	wire.PatchBatch(batch, 0, 1)
	body = wire.AppendBodyBatch(nil, index, batch)
	publisher, entries := log.IndexEntries(index, records)
	return body, group.Place{
		At: log.Position{Segment: 1, Byte: wire.FrameHeaderSize}, IndexBytes: len(index), BatchBytes: len(batch), Count: records,
		Publisher: publisher, Index: entries,
	}
}

func grant(from wire.Offset, count uint32, deliveries uint16) wire.Grant {
	return wire.Grant{Offset: from, Count: count, Epoch: 9, Deliveries: deliveries}
}

// read returns the next GROUP_DELIVER.
func (n *groupNode) deliver(t *testing.T) (m wire.GroupDeliver) {
	t.Helper()
	f := n.c.read()
	require.Equal(t, wire.OpGroupDeliver, f.Opcode)
	require.NoError(t, m.Parse(f.body))
	return m
}

// cutNode has a batch of 200 records and a consumer.
func cutNode(t *testing.T) (*groupNode, []byte, group.Place) {
	n := attachGroup(t, 0, 0)
	body, p := cutBatch(200)
	n.r.mu.Lock()
	n.r.appendFrame(body, 200)
	n.r.mu.Unlock()
	n.r.fill(0, 0)
	return n, body, p
}

func TestLittleOfABatchGoesAsRunsOfRecords(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		n, _, p := cutNode(t)
		n.r.set(func() { n.r.unmap = !mapped })
		grants := []wire.Grant{grant(3, 2, 1), grant(6, 1, 1), grant(150, 3, 1)}
		n.k.Deliver(&group.Delivery{Place: p, Grants: grants})
		var got []string
		for _, want := range [][]wire.Grant{grants[:2], grants[2:]} { // 5 is between, and no frame of its own
			m := n.deliver(t)
			require.Equal(t, wire.DeliverRecords, m.Kind)
			require.Equal(t, want, m.Grants)
			require.Less(t, len(m.Bytes), 500)
			r, err := wire.ParseRecordRun(m.Bytes)
			require.NoError(t, err)
			require.EqualValues(t, 77, r.Publisher)
			var reader wire.RecordReader
			var record wire.Record
			r.Read(&reader)
			for i := 0; reader.Next(&record); i++ {
				require.NoError(t, r.Check(i, &record))
				require.EqualValues(t, record.Offset+1, r.Entry(i).KeyHash)
				got = append(got, string(record.Value[:10]))
			}
			require.NoError(t, reader.Err())
		}
		require.Equal(t, []string{"value    3", "value    4", "value    5", "value    6", "value  150", "value  151", "value  152"}, got)
	}
}

func TestABatchGoesWholeIfItIsNotToBeCut(t *testing.T) {
	n, body, p := cutNode(t)
	unindexed, compressed, lying := p, p, p
	unindexed.Index = nil
	compressed.Compressed = true
	lying.Index = append([]byte(nil), p.Index...)
	lying.Index[8+2] = 1 // the first record has 64 KiB
	for name, d := range map[string]*group.Delivery{
		"most of it":         {Place: p, Grants: []wire.Grant{grant(0, 110, 1)}},
		"delivered before":   {Place: p, Grants: []wire.Grant{grant(3, 1, 2)}},
		"whole ones wanted":  {Place: p, Whole: true, Grants: []wire.Grant{grant(3, 1, 1)}},
		"no index":           {Place: unindexed, Grants: []wire.Grant{grant(3, 1, 1)}},
		"compressed":         {Place: compressed, Grants: []wire.Grant{grant(3, 1, 1)}},
		"an index that lies": {Place: lying, Grants: []wire.Grant{grant(3, 1, 1)}},
		"every fourth record": {Place: p, Grants: func() (g []wire.Grant) {
			for o := wire.Offset(0); o < 200; o += 4 {
				g = append(g, grant(o, 1, 1))
			}
			return g
		}()},
	} {
		n.k.Deliver(d)
		m := n.deliver(t)
		require.Equal(t, wire.DeliverBatches, m.Kind, name)
		require.Equal(t, body, m.Bytes, name)
		require.Equal(t, d.Grants, m.Grants, name)
	}
}

// TestF3_ABatchThatIsDamagedIsNotCut: nothing on the way covers the header of a run, so
// what is cut was verified before, and what does not verify goes whole to the consumer, who
// finds the damage and reports it.
func TestF3_ABatchThatIsDamagedIsNotCut(t *testing.T) {
	n, body, p := cutNode(t)
	n.r.mu.Lock()
	n.r.frames[wire.FrameHeaderSize+8+p.IndexBytes+30] ^= 1 // of the time of the first record
	damaged := append([]byte(nil), n.r.frames[wire.FrameHeaderSize:][:len(body)]...)
	n.r.mu.Unlock()
	n.k.Deliver(&group.Delivery{Place: p, Grants: []wire.Grant{grant(3, 1, 1)}})
	m := n.deliver(t)
	require.Equal(t, wire.DeliverBatches, m.Kind)
	require.Equal(t, damaged, m.Bytes)

	// Without that the consumer would be told another time than the producer said.
	n.r.verified.put(p.At, damaged[8+p.IndexBytes:][:wire.BatchHeaderSize])
	n.k.Deliver(&group.Delivery{Place: p, Grants: []wire.Grant{grant(3, 1, 1)}})
	m = n.deliver(t)
	require.Equal(t, wire.DeliverRecords, m.Kind)
	r, err := wire.ParseRecordRun(m.Bytes)
	require.NoError(t, err)
	good, err := wire.ParseBatch(body[8+p.IndexBytes:][:p.BatchBytes])
	require.NoError(t, err)
	require.NotEqual(t, good.BaseTimestamp, r.Info.BaseTimestamp, "caught")
}

func TestHeadersOfVerifiedBatchesAreBounded(t *testing.T) {
	var h batchHeaders
	header := make([]byte, wire.BatchHeaderSize)
	for i := range int64(maxBatchHeaders + 10) {
		h.put(log.Position{Segment: 1, Byte: i}, header)
		h.put(log.Position{Segment: 1, Byte: i}, header)
	}
	require.Len(t, h.known, maxBatchHeaders)
	require.False(t, h.get(log.Position{Segment: 1, Byte: 9}, header))
	require.True(t, h.get(log.Position{Segment: 1, Byte: 10}, header))
}

package client

import (
	"context"
	"fmt"

	"github.com/lockstepmq/lockstep/wire"
)

// ScopeResponse is how a scope of a group stands, or what was done to its head.
type ScopeResponse = wire.ScopeResponse

// RepairHead gives the next record of a scope another value: the group gets that instead
// from then on, with the key, headers and time of the stored record, which stays as it is.
// A scope that is parked goes on with it. The members give back what they hold first.
// Errors: wire.CodeRefused if nothing of the scope is unfinished, wire.CodeTooLarge above
// 512 KiB.
func (c *Conn) RepairHead(ctx context.Context, destination string, partition uint32, group string, scope ScopeRequest, value []byte) (ScopeResponse, error) {
	var head, done ScopeResponse
	if err := c.GroupOrder(ctx, wire.OrderShow, destination, partition, group, &scope, &head); err != nil {
		return done, err
	}
	if !head.Known {
		return done, wire.Errorf(wire.CodeRefused, "the group is done with every record of it")
	}
	r, err := c.recordAt(ctx, destination, partition, head.Offset)
	if err != nil {
		return done, err
	}
	ask := wire.RepairRequest{ScopeRequest: scope, Offset: head.Offset, Value: &value, TimestampMs: r.Timestamp.UnixMilli()}
	if r.Key != nil {
		ask.Key = &r.Key
	}
	for _, h := range r.Headers {
		ask.Headers = append(ask.Headers, wire.RepairHeader(h))
	}
	return done, c.GroupOrder(ctx, wire.OrderRepair, destination, partition, group, &ask, &done)
}

// recordAt reads one record.
func (c *Conn) recordAt(ctx context.Context, destination string, partition uint32, offset uint64) (*Record, error) {
	reader, err := c.Reader(ctx, destination, Partitions(partition), FromOffset(offset), ReadAhead(64<<10))
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	r, err := reader.Next(ctx)
	if err != nil {
		return nil, fmt.Errorf("record %d of %q partition %d: %w", offset, destination, partition, err)
	}
	if r.Offset != offset {
		return nil, wire.Errorf(wire.CodeOutOfRange, "record %d of %q partition %d is not there any more", offset, destination, partition)
	}
	return r.Clone(), nil
}

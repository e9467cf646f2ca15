package client

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// Kind says what a destination is: Queue or Topic.
type Kind = wire.DestinationKind

// The kinds of destinations.
const (
	Queue = wire.Queue // records are removed when all its groups are done with them
	Topic = wire.Topic // records are kept by time and size
)

// The places where a destination's records may live, and when they are durable.
const (
	StorageDisk   = wire.StorageDisk
	StorageMemory = wire.StorageMemory // gone with the broker's process

	SyncQuorumFsync = wire.SyncQuorumFsync // synced before they are acknowledged
	SyncInterval    = wire.SyncInterval    // synced in the background, at short intervals
	SyncOS          = wire.SyncOS          // written back when the operating system likes
)

// Settings are the settings of a destination. The zero value of each field is
// the default.
type Settings struct {
	Partitions     uint32               // 0: 1
	Replicas       uint8                // 0: 3 if the cluster has 3 brokers, else 1
	Storage        wire.Storage         // StorageDisk or StorageMemory
	Sync           wire.SyncMode        // SyncQuorumFsync, SyncInterval or SyncOS
	RetentionTime  time.Duration        // milliseconds; 0: unlimited
	RetentionBytes int64                // per partition; 0: unlimited
	MaxRecordBytes uint32               // largest encoded record; 0: 1 MiB
	SegmentBytes   uint64               // size of a segment file; 0: the broker's default
	RecordIndex    wire.RecordIndexMode // default: on for queues, off for topics
	// ThresholdRecords and ThresholdBytes are what a partition may hold before it takes
	// no more; 0: no threshold.
	ThresholdRecords, ThresholdBytes uint64
	// DeliveryLimit is how often a record may fail before it is a dead letter, for groups
	// that say nothing else; 0: as often as it takes. DeadLetter is the destination that
	// dead letters go to; with the mode park their keys stop instead, until somebody acts.
	DeliveryLimit  uint32
	DeadLetter     string
	DeadLetterMode wire.DeadLetterMode // 0: DeadLetterRecord if DeadLetter is set
}

// What becomes of a record that has failed too often.
const (
	DeadLetterRecord = wire.DeadLetterRecord // it goes to the dead letter destination
	DeadLetterPark   = wire.DeadLetterPark   // its key, or whatever is handled in order, is parked
	DeadLetterNone   = wire.DeadLetterNone   // it is tried again for ever
)

func (s *Settings) encode() wire.Settings {
	w := wire.Settings{
		Partitions:      max(s.Partitions, 1),
		Replicas:        s.Replicas,
		Storage:         s.Storage,
		Sync:            s.Sync,
		RetentionTimeMs: s.RetentionTime.Milliseconds(),
		RetentionBytes:  s.RetentionBytes,
		MaxRecordBytes:  s.MaxRecordBytes,
		SegmentBytes:    s.SegmentBytes,
		RecordIndex:     s.RecordIndex,

		ThresholdRecords: s.ThresholdRecords, ThresholdBytes: s.ThresholdBytes,
		DeliveryLimit: s.DeliveryLimit, DeadLetterMode: s.DeadLetterMode, DeadLetter: s.DeadLetter,
	}
	if s.RetentionTime == 0 {
		w.RetentionTimeMs = wire.Unlimited
	}
	if s.RetentionBytes == 0 {
		w.RetentionBytes = wire.Unlimited
	}
	return w
}

func decodeSettings(w *wire.Settings) Settings {
	s := Settings{
		Partitions:     w.Partitions,
		Replicas:       w.Replicas,
		Storage:        w.Storage,
		Sync:           w.Sync,
		RetentionTime:  time.Duration(w.RetentionTimeMs) * time.Millisecond,
		RetentionBytes: w.RetentionBytes,
		MaxRecordBytes: w.MaxRecordBytes,
		SegmentBytes:   w.SegmentBytes,
		RecordIndex:    w.RecordIndex,

		ThresholdRecords: w.ThresholdRecords, ThresholdBytes: w.ThresholdBytes,
		DeliveryLimit: w.DeliveryLimit, DeadLetterMode: w.DeadLetterMode, DeadLetter: w.DeadLetter,
	}
	if w.RetentionTimeMs == wire.Unlimited {
		s.RetentionTime = 0
	}
	if w.RetentionBytes == wire.Unlimited {
		s.RetentionBytes = 0
	}
	return s
}

// SettingsMask names the settings that AlterDestination changes.
type SettingsMask = wire.SettingsMask

// Destination is a queue or topic. For CreateDestination and AlterDestination,
// Name, Kind and Settings are used.
type Destination struct {
	Name       string
	Kind       Kind
	Settings   Settings
	ID         [16]byte // differs between a destination and its successor of the same name
	Version    uint64   // raised by every change of settings or placement
	Automatic  bool     // the cluster chose the number of replicas, and raises it when it can
	Partitions []PartitionInfo
	Alias      *Alias // that it was asked for by; nil: its own name
}

// PartitionInfo is one partition as the answering broker saw it.
type PartitionInfo struct {
	Number      uint32
	Leader      uint32 // node ID; 0: none known
	Epoch       uint32
	State       wire.PartitionState
	StartOffset uint64 // first readable offset
	NextOffset  uint64 // one past the last readable offset
	Bytes       uint64 // size of the log on the leader
	Damaged     uint32 // ranges of offsets that are damaged and cannot be read
	Problem     string // why the partition does not serve; empty while it does
	Replicas    []Replica
	Flags       wire.PartitionFlags // why records without a key do not go there
	Weight      uint8               // its share of the records without a key, relative to the others'
	Preferred   uint32              // node that is to lead; 0: any
	Policy      wire.LeaderPolicy   // what that means once there is a leader
}

// Replica is one copy of a partition and where it is.
type Replica = wire.ReplicaInfo

func decodeDestination(info *wire.DestinationInfo) Destination {
	d := Destination{
		Name:       info.Name,
		Kind:       info.Kind,
		Settings:   decodeSettings(&info.Settings),
		ID:         info.ID,
		Version:    info.Version,
		Automatic:  info.Automatic,
		Partitions: make([]PartitionInfo, len(info.Partitions)),
	}
	for i, p := range info.Partitions {
		d.Partitions[i] = PartitionInfo{
			Number:      p.Number,
			Leader:      p.Leader,
			Epoch:       p.Epoch,
			State:       p.State,
			Damaged:     p.Damaged,
			Problem:     p.Problem,
			Replicas:    p.Replicas,
			Flags:       p.Flags,
			Weight:      p.Weight,
			Preferred:   p.Preferred,
			Policy:      p.Policy,
			StartOffset: uint64(p.StartOffset),
			NextOffset:  uint64(p.NextOffset),
			Bytes:       p.Bytes,
		}
	}
	return d
}

// CreateDestination creates a queue or topic and returns it as the broker
// committed it. Errors: wire.CodeAlreadyExists, CodeInvalidName,
// CodeInvalidSetting. After ErrDisconnected it may exist or not.
func (c *Conn) CreateDestination(ctx context.Context, d Destination) (Destination, error) {
	request := wire.CreateRequest{Name: d.Name, Kind: d.Kind, Settings: d.Settings.encode()}
	var info wire.DestinationInfo
	if err := c.do(ctx, wire.OpCreate, &request, &info, false); err != nil {
		return Destination{}, fmt.Errorf("create %v %q: %w", d.Kind, d.Name, err)
	}
	return decodeDestination(&info), nil
}

// AlterDestination changes the settings that mask names. Errors:
// wire.CodeUnknownDestination, CodeKindMismatch, CodeInvalidSetting.
func (c *Conn) AlterDestination(ctx context.Context, d Destination, mask SettingsMask) (Destination, error) {
	request := wire.AlterRequest{Name: d.Name, Kind: d.Kind, Mask: mask, Settings: d.Settings.encode()}
	var info wire.DestinationInfo
	if err := c.do(ctx, wire.OpAlter, &request, &info, false); err != nil {
		return Destination{}, fmt.Errorf("alter %v %q: %w", d.Kind, d.Name, err)
	}
	return decodeDestination(&info), nil
}

// DeleteDestination removes a destination with all its records. Of d, as another
// call returned it, Name, Kind and ID are used: a destination of the same name that
// was created since is not removed. Errors: wire.CodeUnknownDestination,
// CodeKindMismatch, CodeRefused.
func (c *Conn) DeleteDestination(ctx context.Context, d Destination) error {
	request := wire.DeleteRequest{Name: d.Name, Kind: d.Kind, ID: d.ID}
	if err := c.do(ctx, wire.OpDelete, &request, &wire.DeleteResponse{}, false); err != nil {
		return fmt.Errorf("delete %v %q: %w", d.Kind, d.Name, err)
	}
	return nil
}

// Destination describes one destination, or fails with wire.CodeUnknownDestination. By the
// name of an alias it has the alias's partitions alone.
func (c *Conn) Destination(ctx context.Context, name string) (Destination, error) {
	s, info, err := c.resolve(ctx, name)
	if err != nil {
		return Destination{}, err
	}
	d := decodeDestination(info)
	if name != d.Name {
		d.Alias = &Alias{Name: name, Destination: d.Name, Partitions: s.partitions}
		d.Partitions = slices.DeleteFunc(d.Partitions, func(p PartitionInfo) bool { return !s.has(p.Number) })
	}
	return d, nil
}

// Destinations describes all destinations, by name. The broker answers in pages;
// what is created or deleted meanwhile may be in the list or not.
func (c *Conn) Destinations(ctx context.Context) ([]Destination, error) {
	destinations := []Destination{}
	err := c.list(ctx, "destinations", func(m *wire.MetadataResponse) {
		for i := range m.Destinations {
			destinations = append(destinations, decodeDestination(&m.Destinations[i]))
		}
	})
	return destinations, err
}

// list goes through all pages of METADATA.
func (c *Conn) list(ctx context.Context, what string, page func(*wire.MetadataResponse)) error {
	for request := (wire.MetadataRequest{Scope: wire.MetadataAll}); ; {
		var response wire.MetadataResponse
		if err := c.do(ctx, wire.OpMetadata, &request, &response, true); err != nil {
			return fmt.Errorf("list %s: %w", what, err)
		}
		page(&response)
		if response.Next == "" {
			return nil
		}
		if response.Next <= request.After {
			return fmt.Errorf("list %s: %w: the page after %q leads to %q", what, ErrProtocol, request.After, response.Next)
		}
		request.After = response.Next
	}
}

// Node is one broker of the cluster.
type Node = wire.Node

// Nodes lists the brokers of the cluster and the version of its metadata.
func (c *Conn) Nodes(ctx context.Context) (nodes []Node, version uint64, err error) {
	var response wire.MetadataResponse
	if err := c.do(ctx, wire.OpMetadata, &wire.MetadataRequest{Scope: wire.MetadataNodes}, &response, true); err != nil {
		return nil, 0, fmt.Errorf("list nodes: %w", err)
	}
	c.learn(&response)
	return response.Nodes, response.Version, nil
}

// OffsetQuery asks Offsets for a place in each partition: Earliest, Latest or
// AtTime.
type OffsetQuery struct {
	kind wire.OffsetKind
	time time.Time
}

// Earliest asks for the first readable offset.
func Earliest() OffsetQuery { return OffsetQuery{kind: wire.OffsetEarliest} }

// Latest asks for one past the last readable offset.
func Latest() OffsetQuery { return OffsetQuery{kind: wire.OffsetLatest} }

// AtTime asks for the first offset appended at or after t; one past the last
// readable offset if there is none. Milliseconds count.
func AtTime(t time.Time) OffsetQuery { return OffsetQuery{kind: wire.OffsetAtTime, time: t} }

func (q OffsetQuery) request(handle uint32) *wire.ListOffsetsRequest {
	r := &wire.ListOffsetsRequest{Handle: handle, Kind: q.kind}
	if q.kind == wire.OffsetAtTime {
		r.TimeMs = q.time.UnixMilli()
	}
	return r
}

// Offsets answers a query for every partition of a destination.
func (c *Conn) Offsets(ctx context.Context, destination string, q OffsetQuery) (map[uint32]uint64, error) {
	offsets := make(map[uint32]uint64)
	for {
		l, err := c.layout(ctx, destination)
		if err != nil {
			return nil, err
		}
		missing, err := c.someOffsets(ctx, destination, q, l, offsets)
		if err == nil {
			return offsets, nil
		}
		code := codeOf(err)
		if ctx.Err() != nil || !sessionLost(err, &c.options) && !transient(code) && code != wire.CodeUnknownHandle {
			return nil, fmt.Errorf("offsets of %q partition %d: %w", destination, missing, err)
		}
		if err := c.pause(ctx, retryPause); err != nil {
			return nil, err
		}
	}
}

// someOffsets asks the leaders for what offsets still lacks, all requests on their way
// at once. It returns the partition that failed.
func (c *Conn) someOffsets(ctx context.Context, destination string, q OffsetQuery, l *layout, offsets map[uint32]uint64) (uint32, error) {
	asked := make(map[uint32]pending)
	for i, n := range l.partitions {
		if _, ok := offsets[n]; !ok {
			s, err := c.sessionWith(ctx, l.leaders[i].node)
			if err != nil {
				return n, err
			}
			asked[n] = s.send(wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: l.destination, Partition: n})
		}
	}
	for n, p := range asked {
		var opened wire.OpenPartitionResponse
		if err := p.wait(ctx, &opened); err != nil {
			return n, err
		}
		asked[n] = p.s.send(wire.OpListOffsets, q.request(opened.Handle))
	}
	for n, p := range asked {
		var answer wire.ListOffsetsResponse
		if err := p.wait(ctx, &answer); err != nil {
			return n, err
		}
		offsets[n] = uint64(answer.Offset)
	}
	return 0, nil
}

package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// What is asked and told about groups. The fields are described where they are defined.
type (
	GroupSettings   = wire.GroupSettings
	GroupStart      = wire.GroupStart
	GroupIntent     = wire.GroupIntent
	GroupInfo       = wire.GroupInfo
	GroupPartition  = wire.GroupPartition
	GroupSession    = wire.GroupSession
	ParkedScope     = wire.ParkedScope
	ExplainRequest  = wire.ExplainRequest
	ExplainResponse = wire.ExplainResponse
	Reason          = wire.Reason
	SeekRequest     = wire.SeekRequest
	SeekResponse    = wire.SeekResponse
	ScopeRequest    = wire.ScopeRequest
)

// CreateGroup makes a group of a destination. When it has returned, each partition has the
// group, and one that begins behind the latest record has what is sent from then on; a
// partition that has no leader for 3 s is not waited for. Errors: wire.CodeAlreadyExists, wire.CodeInvalidSetting,
// wire.CodeSerialNeedsOnePartition, wire.CodeUnknownDestination.
func (c *Conn) CreateGroup(ctx context.Context, destination, group string, intent GroupIntent) (GroupInfo, error) {
	info, err := c.createGroup(ctx, destination, group, intent)
	if err != nil {
		return info, err
	}
	return info, c.begun(ctx, destination, &info)
}

// createGroup has a group in the metadata.
func (c *Conn) createGroup(ctx context.Context, destination, group string, intent GroupIntent) (info GroupInfo, err error) {
	return info, c.groupAdmin(ctx, wire.GroupCreate, destination, group, intent, &info, intent.Exists)
}

// begun waits until the partitions have a group that was just made: their leaders hear of it
// from the metadata, and until then may know another of its name that was removed.
func (c *Conn) begun(ctx context.Context, destination string, info *GroupInfo) error {
	l, err := c.layout(ctx, destination)
	if err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	late := l.partitions
	for {
		had := make([]GroupPartition, len(late))
		errs := c.GroupOrders(patient, 0, wire.OrderDescribe, destination, late, info.Name, nil, func(i int) any { return &had[i] })
		var older []uint32
		for i, n := range late {
			if id := had[i].GroupID; errs[i] == nil && id != 0 && id < info.ID {
				older = append(older, n)
			}
		}
		if late = older; len(late) == 0 || c.pause(patient, retryPause) != nil {
			return ctx.Err()
		}
	}
}

// AlterGroup replaces the settings of a group, all of them; with IfVersion it is refused with
// wire.CodeRefused if the group was changed since it had that version, and is not repeated when
// its answer is lost; without it the last one counts, also one that is repeated. Leases are taken back first, and what was leased under the old
// settings is fenced.
func (c *Conn) AlterGroup(ctx context.Context, destination, group string, intent GroupIntent) (GroupInfo, error) {
	var info GroupInfo
	return info, c.groupAdmin(ctx, wire.GroupAlter, destination, group, intent, &info, intent.IfVersion == 0)
}

// RemoveGroup removes a group with all it knows about records.
func (c *Conn) RemoveGroup(ctx context.Context, destination, group string) error {
	return c.groupAdmin(ctx, wire.GroupRemove, destination, group, nil, nil, false)
}

// PauseGroup stops the deliveries of a group, or lets them go on.
func (c *Conn) PauseGroup(ctx context.Context, destination, group string, paused bool) (GroupInfo, error) {
	op := wire.GroupResume
	if paused {
		op = wire.GroupPause
	}
	var info GroupInfo
	return info, c.groupAdmin(ctx, op, destination, group, nil, &info, true)
}

// Groups lists the groups of a destination, or, if that is empty, of all.
func (c *Conn) Groups(ctx context.Context, destination string) ([]GroupInfo, error) {
	var list []GroupInfo
	return list, c.groupAdmin(ctx, wire.GroupList, destination, "", nil, &list, true)
}

// DescribeGroup says what a group is, and how it stands in each partition. A partition
// whose leader does not answer has Problem set.
func (c *Conn) DescribeGroup(ctx context.Context, destination, group string) (GroupInfo, error) {
	var info GroupInfo
	if err := c.groupAdmin(ctx, wire.GroupDescribe, destination, group, nil, &info, true); err != nil {
		return info, err
	}
	l, err := c.layout(ctx, destination)
	if err != nil {
		return info, err
	}
	info.Partitions = make([]GroupPartition, len(l.partitions))
	errs := c.GroupOrders(ctx, 0, wire.OrderDescribe, destination, l.partitions, group, nil, func(i int) any { return &info.Partitions[i] })
	if err := ctx.Err(); err != nil {
		return info, errors.Join(append(errs, err)...)
	}
	for i := range info.Partitions {
		p := &info.Partitions[i]
		if errs[i] != nil {
			*p = GroupPartition{Problem: errs[i].Error()}
		}
		p.Number, p.Leader = l.partitions[i], l.leaders[i].node
	}
	return info, nil
}

func (c *Conn) groupAdmin(ctx context.Context, op wire.GroupAdminOp, destination, group string, ask, answer any, repeatable bool) error {
	request := wire.GroupAdminRequest{Op: op, Destination: destination, Group: group}
	var err error
	if ask != nil {
		if request.JSON, err = json.Marshal(ask); err != nil {
			return err
		}
	}
	var response wire.GroupJSON
	if err := c.do(ctx, wire.OpGroupAdmin, &request, &response, repeatable); err != nil {
		return fmt.Errorf("group %q of %q: %w", group, destination, err)
	}
	return decodeJSON(response.JSON, answer)
}

// lookPatience is how long a partition without a leader is asked how a group stands there:
// that it has none is an answer.
const lookPatience = 3 * time.Second

// GroupOrder asks the leader of a partition something about a group there; ask and
// answer are as the operation has them, or nil. It is repeated while the partition has
// no leader, as long as ctx allows; where it only looks, for 3 s at most. An order whose
// answer was lost is not carried out twice: wire.OrderSkip of a scope skips the record that is
// the next one at the beginning, and wire.OrderSeek moves the group once.
func (c *Conn) GroupOrder(ctx context.Context, op wire.GroupOrderOp, destination string, partition uint32, group string, ask, answer any) error {
	request := wire.GroupOrderRequest{Op: op, Group: group}
	ask, err := c.once(ctx, op, destination, partition, group, ask)
	if err != nil {
		return err
	}
	if ask != nil {
		if request.JSON, err = json.Marshal(ask); err != nil {
			return err
		}
	}
	whole := ctx
	if op == wire.OrderDescribe || op == wire.OrderExplain {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lookPatience)
		defer cancel()
	}
	var last, answered error // answered is of a partition that did answer
	failed := func(err error) error {
		return fmt.Errorf("group %q of %q partition %d: %w", group, destination, partition, err)
	}
	for {
		var response wire.GroupJSON
		if err = c.askLeader(ctx, destination, partition, &request, &response); err == nil {
			return decodeJSON(response.JSON, answer)
		}
		code := codeOf(err)
		if code != 0 {
			answered = err
		}
		if last = cmp.Or(answered, last, err); ctx.Err() != nil && whole.Err() == nil {
			return failed(last)
		}
		if ctx.Err() != nil || !sessionLost(err, &c.options) && !transient(code) && code != wire.CodeUnknownHandle && code != wire.CodeNotLeader {
			return failed(overdue(ctx, err, answered))
		}
		if err := c.pause(ctx, retryPause); err != nil && (whole.Err() != nil || ctx.Err() == nil) {
			return failed(overdue(ctx, err, answered))
		}
	}
}

// once is what is asked, changed so that it is done once however often it is repeated: a seek
// has a number of its own, and a skip says which record it means.
func (c *Conn) once(ctx context.Context, op wire.GroupOrderOp, destination string, partition uint32, group string, ask any) (any, error) {
	switch q := ask.(type) {
	case *SeekRequest:
		return c.once(ctx, op, destination, partition, group, *q)
	case *ScopeRequest:
		return c.once(ctx, op, destination, partition, group, *q)
	case SeekRequest:
		if q.ID == 0 {
			q.ID = rand.Uint64() | 1
		}
		return q, nil
	case ScopeRequest:
		if op != wire.OrderSkip || q.Scope != nil || q.Head != nil {
			return q, nil
		}
		var head ScopeResponse
		if err := c.GroupOrder(ctx, wire.OrderShow, destination, partition, group, q, &head); err != nil {
			return nil, err
		}
		if !head.Known {
			return nil, fmt.Errorf("group %q of %q partition %d: %w", group, destination, partition, wire.Errorf(wire.CodeRefused, "the group is done with every record of it"))
		}
		q.Head = &head.Offset
		return q, nil
	}
	return ask, nil
}

// sideBySide is how many partitions are asked at once.
const sideBySide = 32

// GroupOrders asks several partitions at once as GroupOrder does: one that has no leader
// holds up no other. Each is asked for as long as within says, 0 is as long as ctx does: then its
// error is context.DeadlineExceeded. The answer of partitions[i] goes where answer(i) says, its
// error is the i-th.
func (c *Conn) GroupOrders(ctx context.Context, within time.Duration, op wire.GroupOrderOp, destination string, partitions []uint32, group string, ask any, answer func(i int) any) []error {
	errs := make([]error, len(partitions))
	var asked sync.WaitGroup
	room := make(chan struct{}, sideBySide)
	for i, n := range partitions {
		room <- struct{}{}
		asked.Go(func() {
			defer func() { <-room }()
			ctx := ctx
			if within > 0 {
				patient, stop := context.WithTimeout(ctx, within)
				defer stop()
				ctx = patient
			}
			errs[i] = c.GroupOrder(ctx, op, destination, n, group, ask, answer(i))
		})
	}
	asked.Wait()
	return errs
}

// askLeader sends an order to whoever leads the partition.
func (c *Conn) askLeader(ctx context.Context, destination string, partition uint32, request *wire.GroupOrderRequest, response *wire.GroupJSON) error {
	l, err := c.layout(ctx, destination)
	if err != nil {
		return err
	}
	for i, n := range l.partitions {
		if n != partition {
			continue
		}
		s, err := c.sessionWith(ctx, l.leaders[i].node)
		if err != nil {
			return err
		}
		var opened wire.OpenPartitionResponse
		if err := s.send(wire.OpOpenPartition, &wire.OpenPartitionRequest{Destination: l.destination, Partition: n}).wait(ctx, &opened); err != nil {
			return err
		}
		request.Handle = opened.Handle
		return s.send(wire.OpGroupOrder, request).wait(ctx, response)
	}
	return fmt.Errorf("%w: %d", ErrUnknownPartition, partition)
}

func decodeJSON(text []byte, into any) error {
	if into == nil || len(text) == 0 {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

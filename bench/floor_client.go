package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/bench/floor"
)

// The load on a floor has the shape of the load on a broker: as many connections,
// as many records outstanding on each, writes of the size of a batch, and the
// same rule for when a full window goes on. It is the least a client can do:
// records are copied into a write buffer, answers are counted.

// floorWriteBytes is the most that one write to a floor carries.
const floorWriteBytes = 64 << 10

// floorDialTimeout bounds connecting to a floor.
const floorDialTimeout = 5 * time.Second

func dialFloor(ctx context.Context, address string, kind byte) (net.Conn, error) {
	d := net.Dialer{Timeout: floorDialTimeout}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to the floor at %s: %w", address, err)
	}
	if _, err := c.Write([]byte{kind}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// floorProduce is Produce against the floor at o.Servers.
func floorProduce(ctx context.Context, o ProduceOptions) (*Result, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := &firstError{cancel: cancel}
	senders := make([]*floorSender, 0, o.Producers)
	defer func() {
		for _, s := range senders {
			s.conn.Close()
		}
	}()
	values := makePayloads(PayloadRandom, o.Size)
	for i := range o.Producers {
		conn, err := dialFloor(ctx, o.Servers, floor.Produce)
		if err != nil {
			return nil, err
		}
		share := o.Records / int64(o.Producers)
		if int64(i) < o.Records%int64(o.Producers) {
			share++
		}
		senders = append(senders, &floorSender{
			conn: conn, share: share, values: values, latencies: newHistogram(),
			window: int64(o.InFlight), resume: int64(o.InFlight) - max(1, int64(o.InFlight)/4), wake: make(chan struct{}, 1),
		})
	}
	defer context.AfterFunc(ctx, func() {
		for _, s := range senders {
			s.conn.Close()
		}
	})()
	use := o.startMeters(ctx)
	started := startClock()
	var running sync.WaitGroup
	for _, s := range senders {
		if o.InFlight == 1 {
			running.Go(func() { failed.set(s.pingPong(started)) })
			continue
		}
		running.Go(func() { failed.set(s.send()) })
		running.Go(func() { failed.set(s.count()) })
	}
	running.Wait()
	elapsed := started.seconds()
	used := use.stop(ctx)
	if err := failed.get(); err != nil {
		return nil, err
	}
	result := &Result{Benchmark: "produce", Records: o.Records, Bytes: o.Records * int64(o.Size), Seconds: elapsed, Settings: o.Settings}
	latencies := newHistogram()
	for _, s := range senders {
		latencies.merge(s.latencies)
	}
	result.Latencies = latencies.latencies()
	result.finish(used)
	return result, nil
}

// floorSender is one connection with its window.
type floorSender struct {
	conn      net.Conn
	share     int64
	values    [][]byte
	latencies *histogram // with a window of one only

	window      int64
	resume      int64         // send goes on when so few are outstanding
	wake        chan struct{} // capacity 1
	outstanding atomic.Int64
}

func appendFloorRecord(dst, value []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(dst, uint32(len(value))), value...)
}

// send writes the share in pieces of up to floorWriteBytes.
func (s *floorSender) send() error {
	buffer := make([]byte, 0, floorWriteBytes+4+len(s.values[0]))
	for sent := int64(0); sent < s.share; {
		for s.outstanding.Load() >= s.window {
			for s.outstanding.Load() > s.resume {
				if _, ok := <-s.wake; !ok {
					return errFloorEnded
				}
			}
		}
		n, room := int64(0), min(s.window-s.outstanding.Load(), s.share-sent)
		buffer = buffer[:0]
		for n < room && (n == 0 || len(buffer)+4+len(s.values[0]) <= floorWriteBytes) {
			buffer = appendFloorRecord(buffer, s.values[(sent+n)%payloadVariants])
			n++
		}
		s.outstanding.Add(n)
		sent += n
		if _, err := s.conn.Write(buffer); err != nil {
			return err
		}
	}
	return nil
}

// errFloorEnded ends a sender whose answers have stopped.
var errFloorEnded = errors.New("the floor closed the connection")

// count reads answers until the whole share is acknowledged.
func (s *floorSender) count() error {
	defer close(s.wake)
	var answers [4096]byte
	fill := 0
	for left := s.share; left > 0; {
		n, err := s.conn.Read(answers[fill:])
		if err != nil {
			return fmt.Errorf("%w: %w", errFloorEnded, err)
		}
		fill += n
		var records int64
		at := 0
		for ; fill-at >= 4; at += 4 {
			records += int64(binary.LittleEndian.Uint32(answers[at:]))
		}
		fill = copy(answers[:], answers[at:fill])
		left -= records
		if now := s.outstanding.Add(-records); now <= s.resume && now+records > s.resume {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

// pingPong has one record outstanding: one goroutine writes and reads in turn.
func (s *floorSender) pingPong(started clock) error {
	var buffer []byte
	var answer [4]byte
	for i := range s.share {
		from := started.now()
		buffer = appendFloorRecord(buffer[:0], s.values[i%payloadVariants])
		if _, err := s.conn.Write(buffer); err != nil {
			return err
		}
		if _, err := io.ReadFull(s.conn, answer[:]); err != nil {
			return fmt.Errorf("%w: %w", errFloorEnded, err)
		}
		s.latencies.record(started.now() - from)
	}
	return nil
}

// floorReplay is Consume against ServeReplay: the time to receive what is stored.
func floorReplay(ctx context.Context, o ConsumeOptions) (*Result, error) {
	total := o.Fill.Records * int64(o.Fill.Size)
	d := net.Dialer{Timeout: floorDialTimeout}
	conn, err := d.DialContext(ctx, "tcp", o.Servers)
	if err != nil {
		return nil, fmt.Errorf("connect to the floor at %s: %w", o.Servers, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(binary.LittleEndian.AppendUint64(nil, uint64(total))); err != nil {
		return nil, err
	}
	buffer := make([]byte, 256<<10)
	if _, err := io.ReadFull(conn, buffer[:1]); err != nil {
		return nil, fmt.Errorf("%w: %w", errFloorEnded, err)
	}
	use := o.startMeters(ctx)
	started := startClock()
	if _, err := conn.Write([]byte{'g'}); err != nil {
		return nil, err
	}
	for left := total; left > 0; {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errFloorEnded, err)
		}
		left -= int64(n)
	}
	elapsed := started.seconds()
	used := use.stop(ctx)
	result := &Result{Benchmark: "consume", Records: o.Fill.Records, Bytes: total, Seconds: elapsed, Settings: o.Settings}
	result.finish(used)
	return result, nil
}

// floorLatency is Latency against a floor: due until a subscriber has the record,
// and due until it was acknowledged.
func floorLatency(ctx context.Context, o LatencyOptions) (*Result, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := &firstError{cancel: cancel}
	producing, err := dialFloor(ctx, o.Servers, floor.Produce)
	if err != nil {
		return nil, err
	}
	defer producing.Close()
	receiving, err := dialFloor(ctx, o.Servers, floor.Subscribe)
	if err != nil {
		return nil, err
	}
	defer receiving.Close()
	if _, err := io.ReadFull(receiving, make([]byte, 1)); err != nil {
		return nil, fmt.Errorf("%w: %w", errFloorEnded, err)
	}
	defer context.AfterFunc(ctx, func() { producing.Close(); receiving.Close() })()

	l := &openLoop{o: &o, clock: startClock(), toAck: newHistogram(), toEnd: newHistogram()}
	pace := pacer{rate: o.Rate}
	warmup, measured := pace.count(o.Warmup), pace.count(o.Duration)
	total := warmup + measured
	begin := l.clock.now() + int64(10*time.Millisecond)
	due := func(i int64) int64 { return begin + pace.due(i) }

	var running sync.WaitGroup
	running.Go(func() {
		failed.set(l.eachFloorRecord(receiving, o.Size, total, func(i, now int64) {
			if i >= warmup {
				l.toEnd.record(now - due(i))
				l.latest.Store(now)
			}
		}))
	})
	running.Go(func() {
		acknowledged := int64(0)
		var answers [4096]byte
		fill := 0
		for acknowledged < total {
			n, err := producing.Read(answers[fill:])
			if err != nil {
				failed.set(fmt.Errorf("%w: %w", errFloorEnded, err))
				return
			}
			fill += n
			now := l.clock.now()
			at := 0
			for ; fill-at >= 4; at += 4 {
				for range binary.LittleEndian.Uint32(answers[at:]) {
					if acknowledged >= warmup {
						l.toAck.record(now - due(acknowledged))
					}
					acknowledged++
				}
			}
			fill = copy(answers[:], answers[at:fill])
		}
	})
	time.Sleep(time.Duration(due(0) - l.clock.now())) // nothing is sent before
	var use *meters
	sending := make(chan struct{})
	running.Go(func() {
		defer close(sending)
		lockPacingThread()
		values := makePayloads(PayloadRandom, o.Size)
		var buffer []byte
		for i := range total {
			if i == warmup {
				use = o.startMeters(ctx)
			}
			l.clock.sleepUntil(due(i))
			if i >= warmup {
				l.late(l.clock.now() - due(i))
			}
			buffer = appendFloorRecord(buffer[:0], values[i%payloadVariants])
			if _, err := producing.Write(buffer); err != nil {
				failed.set(err)
				return
			}
		}
	})
	running.Wait()
	<-sending
	if err := failed.get(); err != nil {
		return nil, err
	}
	used := use.stop(context.WithoutCancel(ctx))
	late := round(float64(l.lateMax.Load())/1e3, 2)
	ack := l.toAck.latencies()
	result := &Result{
		Benchmark: "latency", Records: measured, Seconds: max(float64(l.latest.Load()-due(warmup))/1e9, o.Duration.Seconds()),
		Bytes: measured * int64(o.Size), Latencies: l.toEnd.latencies(), Ack: &ack, LatestSend: &late, Settings: o.Settings,
	}
	result.finish(used)
	return result, nil
}

// eachFloorRecord reads total records of size bytes each and tells when each
// was there.
func (l *openLoop) eachFloorRecord(conn net.Conn, size int, total int64, each func(i, now int64)) error {
	length := int64(4 + size)
	buffer := make([]byte, 256<<10)
	received := int64(0)
	for i := int64(0); i < total; {
		n, err := conn.Read(buffer)
		if err != nil {
			return fmt.Errorf("%w: %w", errFloorEnded, err)
		}
		received += int64(n)
		now := l.clock.now()
		for ; (i+1)*length <= received; i++ {
			each(i, now)
		}
	}
	return nil
}

// Package floor is a broker reduced to what no broker can go below: the figure
// that stands beside every figure of the real one. It keeps nothing that makes a
// broker useful, and nobody should connect to it but package bench.
//
// Two things it can be. The *floor* acknowledges records and hands them to
// subscribers from memory: what remains is sockets, one event loop and counting.
// The *floor-log* also does what any log must: it computes the CRC32C of every
// record and writes what one read brought to a file with one pwrite; with Sync it
// acknowledges after the fdatasync that covers it, one for all that waited (group
// commit). Both run on the event loops that the broker runs on, so the difference
// between the two figures is the broker's own work.
//
// The protocol, little-endian, one kind of connection for each first byte:
//
//	'P'  produce:   records, each (length u32, payload); the answer to any number of
//	                them is their count u32
//	'S'  subscribe: the same records come back as they were sent
//
// Replay is separate, because it measures the machine and not a loop: it sends a
// mapped file to one TCP connection (ServeReplay).
package floor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"sync"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// Kinds of connections: the first byte a client sends.
const (
	Produce   = 'P'
	Subscribe = 'S'
)

// MaxRecordBytes bounds the length a record may announce.
const MaxRecordBytes = 1 << 20

// Options say what a floor does beside answering.
type Options struct {
	// Listen is a host:port on the loopback interface; port 0 means any free one.
	Listen string
	// Log is the file that records are appended to; it is made, and emptied if it
	// exists. Empty: the floor without a log.
	Log string
	// Sync delays acknowledgements until an fdatasync covers the records.
	Sync bool
}

// Serve runs a floor until ctx ends. ready is told the address once, on the
// calling goroutine's behalf, before the first connection is taken.
func Serve(ctx context.Context, o Options, ready func(address string)) error {
	s := &server{ready: ready, sync: o.Sync, subscribers: map[gnet.Conn]struct{}{}, wake: make(chan struct{}, 1)}
	if o.Sync && o.Log == "" {
		return errors.New("floor: nothing can be synced without a log")
	}
	if o.Log != "" {
		file, err := os.OpenFile(o.Log, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		defer file.Close()
		s.file = file
	}
	var syncer sync.WaitGroup
	syncing, stopSyncing := context.WithCancel(context.Background())
	syncer.Go(func() { s.syncLoop(syncing) })
	stopping := make(chan struct{})
	notStopped := context.AfterFunc(ctx, func() {
		defer close(stopping)
		_ = s.engine.Stop(context.Background())
	})
	err := gnet.Run(s, "tcp://"+o.Listen, gnet.WithNumEventLoop(1), gnet.WithTCPNoDelay(gnet.TCPNoDelay))
	if !notStopped() {
		<-stopping
	}
	stopSyncing()
	syncer.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return err
}

type server struct {
	gnet.BuiltinEventEngine
	engine gnet.Engine
	ready  func(string)
	file   *os.File // nil: no log
	sync   bool
	end    int64  // where the next write goes; the loop's
	crc    uint32 // of all records together: nobody reads it; the loop's

	subscribers map[gnet.Conn]struct{} // the loop's

	wake chan struct{} // capacity 1

	mu      sync.Mutex        // guards the rest
	waiting []acknowledgement // for the next fdatasync
	err     error             // why the floor stopped by itself
}

// fail remembers why the floor stops.
func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = fmt.Errorf("floor: %w", err)
	}
}

type acknowledgement struct {
	conn    gnet.Conn
	records uint32
}

func (s *server) OnBoot(engine gnet.Engine) gnet.Action {
	s.engine = engine
	address, err := listenAddress(engine)
	if err != nil {
		s.fail(err)
		return gnet.Shutdown
	}
	s.ready(address)
	return gnet.None
}

// listenAddress asks the kernel which port the engine listens on.
func listenAddress(engine gnet.Engine) (string, error) {
	fd, err := engine.Dup()
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	v4, ok := name.(*unix.SockaddrInet4)
	if !ok {
		return "", fmt.Errorf("listening on %T, not on IPv4", name)
	}
	return net.JoinHostPort(net.IP(v4.Addr[:]).String(), fmt.Sprint(v4.Port)), nil
}

func (s *server) OnClose(c gnet.Conn, _ error) gnet.Action {
	delete(s.subscribers, c)
	return gnet.None
}

// OnTraffic takes everything that one read brought.
func (s *server) OnTraffic(c gnet.Conn) gnet.Action {
	if c.Context() == nil {
		kind, err := c.Next(1)
		if err != nil {
			return gnet.Close
		}
		c.SetContext(kind[0])
		switch kind[0] {
		case Subscribe:
			s.subscribers[c] = struct{}{}
			_, _ = c.Write([]byte{Subscribe}) // from here on it gets everything
		case Produce:
		default:
			return gnet.Close
		}
	}
	if c.Context() == byte(Subscribe) {
		_, _ = c.Discard(c.InboundBuffered())
		return gnet.None
	}
	data, err := c.Peek(-1)
	if err != nil {
		return gnet.Close
	}
	records, end, ok := s.walk(data)
	if !ok {
		return gnet.Close
	}
	if records == 0 {
		return gnet.None
	}
	if s.file != nil {
		if _, err := s.file.WriteAt(data[:end], s.end); err != nil {
			s.fail(err)
			return gnet.Shutdown
		}
		s.end += int64(end)
	}
	if !s.sync {
		_, _ = c.Write(binary.LittleEndian.AppendUint32(nil, records))
	}
	for subscriber := range s.subscribers {
		_, _ = subscriber.Write(data[:end])
	}
	_, _ = c.Discard(end)
	if s.sync {
		s.mu.Lock()
		s.waiting = append(s.waiting, acknowledgement{c, records})
		s.mu.Unlock()
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return gnet.None
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// walk counts the whole records at the start of data and, with a log, checks
// them as a broker would.
func (s *server) walk(data []byte) (records uint32, end int, ok bool) {
	for len(data)-end >= 4 {
		n := binary.LittleEndian.Uint32(data[end:])
		if n > MaxRecordBytes {
			return 0, 0, false
		}
		if len(data)-end-4 < int(n) {
			break
		}
		if s.file != nil {
			s.crc ^= crc32.Checksum(data[end+4:end+4+int(n)], castagnoli)
		}
		end += 4 + int(n)
		records++
	}
	return records, end, true
}

// syncLoop makes groups durable and acknowledges them.
func (s *server) syncLoop(ctx context.Context) {
	var group []acknowledgement
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		group, s.waiting = s.waiting, group[:0]
		s.mu.Unlock()
		if err := unix.Fdatasync(int(s.file.Fd())); err != nil {
			s.fail(err)
			_ = s.engine.Stop(ctx)
			return
		}
		for i, a := range group {
			// Several reads of one connection are one answer.
			records := a.records
			for j := i + 1; j < len(group); j++ {
				if group[j].conn == a.conn {
					records += group[j].records
					group[j].records = 0
				}
			}
			if records > 0 && a.records > 0 {
				_ = a.conn.AsyncWrite(binary.LittleEndian.AppendUint32(nil, records), nil)
			}
		}
		clear(group)
	}
}

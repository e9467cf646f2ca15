package floor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// replayChunk is how much of the mapping one write sends, in bytes.
const replayChunk = 256 << 10

// maxReplayBytes bounds what one connection may ask for.
const maxReplayBytes = 64 << 30

// ServeReplay sends mapped files to TCP connections until ctx ends: what a reader
// of stored records can get at most. A client sends how many bytes it wants (u64);
// they are written to a file below dir first, then one byte says that they are
// there; after the client's next byte they are sent.
func ServeReplay(ctx context.Context, listen, dir string, ready func(address string)) error {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	var (
		mu    sync.Mutex
		conns = map[net.Conn]struct{}{}
		all   sync.WaitGroup
	)
	stop := context.AfterFunc(ctx, func() {
		listener.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range conns {
			c.Close()
		}
	})
	defer stop()
	ready(listener.Addr().String())
	for {
		c, err := listener.Accept()
		if err != nil {
			all.Wait()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("floor: %w", err)
		}
		mu.Lock()
		conns[c] = struct{}{}
		mu.Unlock()
		all.Go(func() {
			_ = replay(c, dir) // the client sees that the connection ends
			c.Close()
			mu.Lock()
			delete(conns, c)
			mu.Unlock()
		})
	}
}

func replay(c net.Conn, dir string) error {
	var request [8]byte
	if _, err := io.ReadFull(c, request[:]); err != nil {
		return err
	}
	total := binary.LittleEndian.Uint64(request[:])
	if total == 0 || total > maxReplayBytes {
		return errors.New("out of range")
	}
	file, err := os.CreateTemp(dir, "floor-replay-")
	if err != nil {
		return err
	}
	defer file.Close()
	if err := os.Remove(file.Name()); err != nil {
		return err
	}
	chunk := make([]byte, replayChunk)
	for left := total; left > 0; {
		n := min(left, uint64(len(chunk)))
		if _, err := file.Write(chunk[:n]); err != nil {
			return err
		}
		left -= n
	}
	mapped, err := unix.Mmap(int(file.Fd()), 0, int(total), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mapped) }()
	if err := unix.Madvise(mapped, unix.MADV_POPULATE_READ); err != nil {
		return err
	}
	if _, err := c.Write([]byte{'r'}); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, request[:1]); err != nil {
		return err
	}
	for left := mapped; len(left) > 0; {
		n, err := c.Write(left[:min(len(left), replayChunk)])
		if err != nil {
			return err
		}
		left = left[n:]
	}
	_, err = io.ReadFull(c, request[:1]) // until the client has it all
	return err
}

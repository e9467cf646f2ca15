package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lockstepmq/lockstep/wire"
)

// scheme may stand in front of a server list.
const scheme = "lockstep://"

// parseAddresses splits "lockstep://host:port,host:port" or the same without
// the scheme.
func parseAddresses(list string) ([]string, error) {
	var addresses []string
	for address := range strings.SplitSeq(strings.TrimPrefix(list, scheme), ",") {
		address = strings.TrimSpace(address)
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("%w: %q is not host:port", ErrAddress, address)
		}
		addresses = append(addresses, address)
	}
	return addresses, nil
}

// open dials one address and shakes hands. The session is not started. clusterID is
// what the broker must belong to; empty accepts any.
func open(ctx context.Context, o *connOptions, address, clusterID string, onEvent func(*session, wire.Event)) (*session, error) {
	dialCtx, cancel := context.WithTimeout(ctx, o.dialTimeout)
	conn, err := o.dialer(dialCtx, address)
	cancel()
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	in := &pulse{from: conn}
	r := bufio.NewReaderSize(in, readBufferBytes)
	hello, err := shakeHands(conn, r, o, clusterID)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("handshake with %s: %w", address, err)
	}
	conn.SetDeadline(time.Time{})
	s := newSession(conn, r, address, hello, onEvent)
	s.received = &in.reads
	return s, nil
}

// pulse counts the reads that brought something: each is a sign of life, also of a piece
// of a large frame.
type pulse struct {
	from  io.Reader
	reads atomic.Uint64
}

func (p *pulse) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	if n > 0 {
		p.reads.Add(1)
	}
	return n, err
}

// shakeHands sends the preface and HELLO and reads the answer.
func shakeHands(conn net.Conn, r *bufio.Reader, o *connOptions, clusterID string) (hello wire.HelloResponse, err error) {
	out := wire.AppendFrame([]byte(wire.Preface), wire.Header{Opcode: wire.OpHello, Version: wire.OpHello.Version(), ID: 1}, &wire.HelloRequest{
		MinVersion: wire.MinProtocolVersion,
		MaxVersion: wire.MaxProtocolVersion,
		Features:   o.features(),
		ClientName: o.name,
		ClusterID:  clusterID,
	})
	if _, err := conn.Write(out); err != nil {
		return hello, disconnected(err)
	}
	head, err := r.Peek(wire.HeaderSize)
	if err != nil {
		return hello, disconnected(err)
	}
	h, err := wire.ParseHeader(head)
	if err != nil {
		return hello, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	r.Discard(wire.HeaderSize)
	if h.Flags&wire.FlagResponse == 0 && h.Flags&wire.FlagError == 0 || h.BodySize() > r.Size() {
		return hello, fmt.Errorf("%w: %v of %d bytes instead of the HELLO answer", ErrProtocol, h.Opcode, h.BodySize())
	}
	body, err := r.Peek(h.BodySize())
	if err != nil {
		return hello, disconnected(err)
	}
	defer r.Discard(len(body))
	if h.Flags&wire.FlagError != 0 {
		return hello, handshakeError(brokerError(body))
	}
	if h.Opcode != wire.OpHello {
		return hello, fmt.Errorf("%w: %v instead of the HELLO answer", ErrProtocol, h.Opcode)
	}
	if err := hello.Parse(body); err != nil {
		return hello, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if hello.Version < wire.MinProtocolVersion || hello.Version > wire.MaxProtocolVersion {
		return hello, fmt.Errorf("%w: broker chose %d, this client speaks %d to %d",
			ErrVersion, hello.Version, wire.MinProtocolVersion, wire.MaxProtocolVersion)
	}
	if clusterID != "" && hello.ClusterID != clusterID {
		return hello, fmt.Errorf("%w: %q, expected %q", ErrClusterMismatch, hello.ClusterID, clusterID)
	}
	return hello, nil
}

// handshakeError gives a refused handshake the client's own sentinel beside the
// broker's code.
func handshakeError(err error) error {
	switch {
	case errors.Is(err, wire.CodeVersion):
		return fmt.Errorf("%w: %w", ErrVersion, err)
	case errors.Is(err, wire.CodeClusterMismatch):
		return fmt.Errorf("%w: %w", ErrClusterMismatch, err)
	}
	return err
}

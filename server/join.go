package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	// joinPatience bounds the attempts of a node to be taken in, and to announce itself.
	joinPatience = 60 * time.Second
	// joinTimeout bounds one attempt.
	joinTimeout = 15 * time.Second
	// joinPause lies between two rounds of attempts.
	joinPause = 500 * time.Millisecond
	// joinReminder lies between two log messages that say the same of them.
	joinReminder = 20 * time.Second
)

// notTakenIn is why a node did not join, where it is certain that no member knows it.
type notTakenIn struct{ error }

func (e notTakenIn) Unwrap() error { return e.error }

// askToJoin asks the members named in cfg.Join, one after the other, to take this node
// in, until one does, one refuses for good, or joinPatience is over. Its error is a
// notTakenIn unless a member may have taken it in and the answer was lost.
func askToJoin(cfg *Config, store uuid.UUID) (identity, error) {
	for _, address := range cfg.Join {
		if sameAddress(address, cfg.Listen) || sameAddress(address, cfg.Advertise) || sameAddress(address, cfg.PeerListen) {
			return identity{}, notTakenIn{fmt.Errorf("--join %s is the address of this node itself; name a member of the cluster to join", address)}
		}
	}
	request := &wire.JoinRequest{
		Node: cfg.NodeID, Store: store, Address: cfg.Advertise, PeerAddress: cfg.PeerAdvertise, HTTP: cfg.HTTP,
		Rack: cfg.Rack, Role: cfg.Role, MinLevel: cluster.MinLevel, MaxLevel: cluster.MaxLevel,
		MinPeer: wire.MinPeerVersion, MaxPeer: wire.MaxPeerVersion,
	}
	if cfg.HTTP == "off" {
		request.HTTP = ""
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-cfg.givenUp:
			cancel()
		case <-ctx.Done():
		}
	}()
	var last error
	var said string // of what was logged last
	var saidAt time.Time
	outside := true
	ended := func(err error) error {
		if outside {
			return notTakenIn{err}
		}
		return err
	}
	stopped := func() error {
		return ended(fmt.Errorf("%w; this node was told to stop before it was taken in", last))
	}
	for until := time.Now().Add(joinPatience); ; {
		for _, address := range cfg.Join {
			answer, err := joinVia(ctx, address, request)
			if err == nil {
				return joined(answer, store), nil
			}
			var known *wire.Error
			var dial *net.OpError
			told := errors.As(err, &known)
			outside = outside && (told && known.Code.Info().Rejected || errors.As(err, &dial) && dial.Op == "dial")
			if told && !known.Code.Info().Retriable {
				return identity{}, ended(fmt.Errorf("join via %s: %w", address, err))
			}
			last = fmt.Errorf("join via %s: %w", address, err)
		}
		if time.Now().After(until) {
			return identity{}, ended(fmt.Errorf("%w; nobody took this node in for %s: is one of the members running, and can most of them reach each other?", last, joinPatience))
		}
		if ctx.Err() != nil {
			return identity{}, stopped()
		}
		if text := last.Error(); text != said || time.Since(saidAt) >= joinReminder {
			said, saidAt = text, time.Now()
			cfg.Logger.Info("waiting to be taken in; trying again until it is, or "+joinPatience.String()+" are over", "err", last)
		}
		select {
		case <-time.After(joinPause):
		case <-ctx.Done():
			return identity{}, stopped()
		}
	}
}

// ownClusterTimeout bounds the look at the members in cfg.Join when a node starts on a
// directory that knows its cluster.
const ownClusterTimeout = time.Second

// joinsItsOwn refuses to start a node whose data directory belongs to another cluster than
// the members in cfg.Join, as far as these answer: it would go on with the old one, and
// who told it to join would not notice.
func joinsItsOwn(cfg *Config, id *identity) error {
	errs := make(chan error, len(cfg.Join))
	for _, address := range cfg.Join {
		go func() {
			var known *wire.Error
			conn, err := greet(context.Background(), address, ownClusterTimeout, id.ClusterID.String())
			if err == nil {
				err = conn.Close()
			}
			if !errors.As(err, &known) || known.Code != wire.CodeClusterMismatch {
				err = nil // it is not there, or has other worries
			}
			errs <- err
		}()
	}
	for range cfg.Join {
		if err := <-errs; err != nil {
			return fmt.Errorf("it belongs to cluster %s, and --join names a member of another one; choose another --data to join that, or leave --join out; the member says: %w",
				id.ClusterID, err)
		}
	}
	return nil
}

func joined(answer *wire.JoinResponse, store uuid.UUID) identity {
	id := identity{FormatVersion: FormatVersion, ClusterID: answer.ClusterID, NodeID: answer.Node, StoreID: store, MetaReplica: answer.MetaReplica}
	for _, m := range answer.Members {
		id.Members = append(id.Members, member{Node: m.Node, Store: m.Store, MetaReplica: m.MetaReplica, PeerAddress: m.PeerAddress})
	}
	return id
}

// joinVia asks one member. It speaks as much of the client protocol as that takes.
func joinVia(ctx context.Context, address string, request *wire.JoinRequest) (*wire.JoinResponse, error) {
	conn, err := greet(ctx, address, joinTimeout, "")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(longAgo) })()
	out := wire.AppendFrame(nil, wire.Header{Opcode: wire.OpJoin, Version: wire.OpJoin.Version(), ID: 2}, request)
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	var answer wire.JoinResponse
	return &answer, readAnswer(conn, 2, &answer)
}

// greet connects to a broker, of a cluster or of any, within a time that also bounds
// what follows on the connection. The end of ctx ends it at once.
func greet(ctx context.Context, address string, within time.Duration, clusterID string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: within}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	out := wire.AppendFrame([]byte(wire.Preface), wire.Header{Opcode: wire.OpHello, Version: wire.OpHello.Version(), ID: 1}, &wire.HelloRequest{
		MinVersion: wire.MinProtocolVersion, MaxVersion: wire.MaxProtocolVersion, ClientName: "joining node", ClusterID: clusterID,
	})
	err = conn.SetDeadline(time.Now().Add(within))
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(longAgo) })()
	if err == nil {
		_, err = conn.Write(out)
	}
	var hello wire.HelloResponse
	if err == nil {
		err = readAnswer(conn, 1, &hello)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// maxJoinAnswer bounds an answer to a joining node, in bytes.
const maxJoinAnswer = 1 << 20

// readAnswer reads the answer to a request. Frames that are none are skipped.
func readAnswer(conn net.Conn, id uint32, m wire.Message) error {
	for {
		head := make([]byte, wire.HeaderSize)
		if _, err := io.ReadFull(conn, head); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				err = io.EOF // which of the two is chance
			}
			return fmt.Errorf("no answer, is that the client address of a broker, its --listen? %w", err)
		}
		h, err := wire.ParseHeader(head)
		if bytes.HasPrefix(head, []byte("HTTP/")) {
			return errors.New("that is an HTTP port, as that of health and metrics (--http); name the client address of the member, its --listen")
		}
		if err != nil {
			return fmt.Errorf("that is no broker's client address: %w", err)
		}
		if h.BodySize() > maxJoinAnswer {
			return wire.Errorf(wire.CodeTooLarge, "an answer of %d bytes", h.BodySize())
		}
		body := make([]byte, h.BodySize())
		if _, err := io.ReadFull(conn, body); err != nil {
			return err
		}
		switch {
		case h.Flags&wire.FlagError != 0 && (h.ID == id || h.Opcode == wire.OpEvent):
			var e wire.ErrorBody
			if err := e.Parse(body); err != nil {
				return err
			}
			return &wire.Error{Code: e.Code, Detail: e.Detail}
		case h.Flags&wire.FlagResponse != 0 && h.ID == id:
			return m.Parse(body)
		}
	}
}

// sameAddress reports whether two addresses are the same place on this machine.
func sameAddress(a, b string) bool {
	if a == b && a != "" {
		return true
	}
	one, err := net.ResolveTCPAddr("tcp", a)
	if err != nil {
		return false
	}
	other, err := net.ResolveTCPAddr("tcp", b)
	if err != nil || one.Port != other.Port || one.Port == 0 {
		return false
	}
	local := func(ip net.IP) bool { return ip == nil || ip.IsLoopback() || ip.IsUnspecified() }
	return one.IP.Equal(other.IP) || local(one.IP) && local(other.IP)
}

// join takes a node in, or says why not. It is asked of any member.
func (b *broker) takeIn(m *wire.JoinRequest, reply func(wire.Message, error)) {
	if b.network == nil {
		reply(nil, &wire.Error{Code: wire.CodeRefused, Detail: "this broker runs alone: start it with --peer-listen to let others join"})
		return
	}
	if m.MaxPeer < wire.MinPeerVersion || m.MinPeer > wire.MaxPeerVersion { // it would be a member that nobody can talk to
		reply(nil, wire.Errorf(wire.CodeUnsupported, "this broker speaks versions %d to %d of the peer protocol, the one that joins %d to %d; upgrade the older one",
			wire.MinPeerVersion, wire.MaxPeerVersion, m.MinPeer, m.MaxPeer))
		return
	}
	c := cluster.Command{Join: &cluster.Join{
		ClusterID: m.ClusterID, Node: m.Node, Store: m.Store, Address: m.Address, PeerAddress: m.PeerAddress, HTTP: m.HTTP,
		Rack: m.Rack, Role: cluster.Role(m.Role), MinLevel: int(m.MinLevel), MaxLevel: int(m.MaxLevel),
	}}
	b.submit(c, func(r cluster.Result) {
		if r.Err != nil {
			reply(nil, r.Err)
			return
		}
		v := b.View()
		answer := &wire.JoinResponse{ClusterID: v.ClusterID, Node: r.Node.ID, MetaReplica: r.Node.MetaID()}
		for _, n := range v.Nodes {
			if n.ID != r.Node.ID {
				answer.Members = append(answer.Members, wire.JoinMember{Node: n.ID, Store: n.Store, MetaReplica: n.MetaID(), PeerAddress: n.PeerAddress})
			}
		}
		reply(answer, nil)
	})
}

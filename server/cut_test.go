package server

import (
	"context"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// cables are the connections between the nodes of a crew, which a test can cut: each node
// tells the others the address of a relay as its own.
type cables struct {
	mu     sync.Mutex
	relays map[uint32]*relay
	cut    map[[2]uint32]bool
	open   []*cable
}

// relay stands before the port for peers of a node.
type relay struct {
	listener net.Listener
	target   string // the same port of another address of this machine
}

// cable is one connection.
type cable struct {
	between [2]uint32
	ends    [2]net.Conn
}

func between(a, b uint32) [2]uint32 { return [2]uint32{min(a, b), max(a, b)} }

// newCutCrew is a crew whose nodes can be cut from each other, and that works at the
// newest feature level.
func newCutCrew(t *testing.T, n int, change func(*Config)) (*crew, *cables) {
	k := &cables{relays: map[uint32]*relay{}, cut: map[[2]uint32]bool{}}
	t.Cleanup(k.end) // after the nodes
	c := &crew{t: t, servers: map[uint32]*Server{}, dirs: map[uint32]string{}}
	c.change = func(cfg *Config) {
		r := k.before(t, cfg.NodeID)
		cfg.PeerListen, cfg.PeerAdvertise = r.target, r.listener.Addr().String()
		if change != nil {
			change(cfg)
		}
	}
	for i := 1; i <= n; i++ {
		c.start(uint32(i))
	}
	t.Cleanup(func() {
		var all sync.WaitGroup
		for _, s := range c.servers {
			all.Go(func() {
				if err := s.Close(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
	c.await("everybody hears everybody, and knows everything", func() bool {
		for id := range c.servers {
			b := c.broker(id)
			if b.View().Level < cluster.MaxLevel || b.meta.leader.Load() == 0 || n > 2 && b.meta.voters.Load() < 3 {
				return false
			}
			for other := range c.servers {
				if !b.reachable(other) {
					return false
				}
			}
		}
		return true
	})
	return c, k
}

// before is the relay of a node.
func (k *cables) before(t *testing.T, node uint32) *relay {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.relays[node]
	if r == nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		_, port, err := net.SplitHostPort(l.Addr().String())
		require.NoError(t, err)
		r = &relay{listener: l, target: net.JoinHostPort("127.0.0.2", port)}
		k.relays[node] = r
		go k.serve(node, r)
	}
	return r
}

func (k *cables) serve(node uint32, r *relay) {
	for {
		conn, err := r.listener.Accept()
		if err != nil {
			return
		}
		go k.carry(node, r, conn)
	}
}

// carry passes a connection on if its first frame says that it comes from a node that is
// not cut off.
func (k *cables) carry(node uint32, r *relay, in net.Conn) {
	defer in.Close()
	head := make([]byte, len(wire.PeerPreface)+wire.HeaderSize)
	if _, err := io.ReadFull(in, head); err != nil {
		return
	}
	h, err := wire.ParsePeerHeader(head[len(wire.PeerPreface):])
	if err != nil {
		return
	}
	body := make([]byte, h.BodySize())
	var hello wire.PeerHello
	if _, err := io.ReadFull(in, body); err != nil || hello.Parse(body) != nil {
		return
	}
	k.mu.Lock()
	target, pair := r.target, between(node, hello.Node)
	if k.cut[pair] {
		k.mu.Unlock()
		return
	}
	out, err := net.Dial("tcp", target)
	if err != nil {
		k.mu.Unlock()
		return
	}
	c := &cable{between: pair, ends: [2]net.Conn{in, out}}
	k.open = append(k.open, c)
	k.mu.Unlock()
	defer out.Close()
	if _, err := out.Write(append(head, body...)); err != nil {
		return
	}
	go func() {
		defer in.Close()
		_, _ = io.Copy(in, out)
	}()
	_, _ = io.Copy(out, in)
}

// set cuts two nodes from each other, or mends that.
func (k *cables) set(a, b uint32, cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut[between(a, b)] = cut
	if cut {
		k.open = slices.DeleteFunc(k.open, func(c *cable) bool {
			if c.between != between(a, b) {
				return false
			}
			for _, end := range c.ends {
				_ = end.Close()
			}
			return true
		})
	}
}

func (k *cables) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range k.relays {
		_ = r.listener.Close()
	}
	for _, c := range k.open {
		for _, end := range c.ends {
			_ = end.Close()
		}
	}
}

// controller is the node that leads the metadata.
func (c *crew) controller() (node uint32) {
	c.t.Helper()
	c.await("somebody leads the metadata", func() bool {
		for id := range c.servers {
			if c.broker(id).meta.leads.Load() {
				node = id
				return true
			}
		}
		return false
	})
	return node
}

package sim

import (
	"go.etcd.io/raft/v3/raftpb"

	"github.com/lockstepmq/lockstep/replication"
	"github.com/lockstepmq/lockstep/wire"
)

// network is what members have sent to each other and not got. It carries frames of
// the peer protocol.
type network struct {
	fleet *fleet
	links []*link
}

// link is one direction between two members.
type link struct {
	from, to *host
	parcels  []parcel
	cut      bool
}

// parcel is one frame, or a message that is not encoded yet and refers to memory of
// its sender, as one in the queue of a connection does.
type parcel struct {
	message *replication.Message
	frame   []byte
}

func newNetwork(f *fleet) network {
	n := network{fleet: f}
	for _, a := range f.hosts {
		for _, b := range f.hosts {
			if a != b {
				n.links = append(n.links, &link{from: a, to: b})
			}
		}
	}
	return n
}

func (n *network) link(from, to uint32) *link {
	for _, l := range n.links {
		if l.from.node == from && l.to.node == to {
			return l
		}
	}
	n.fleet.fail("a message from %d to %d", from, to)
	return nil
}

// Send implements replication.Transport.
func (m *member) Send(node uint32, message *replication.Message) {
	f := m.fleet
	m.promise(message)
	m.forge(message)
	l := f.network.link(m.node, node)
	if message.Type == raftpb.MsgSnap && !f.options.Quiet && !f.settling && f.random.IntN(100) < f.config.lost {
		// Raft sends it once, and the connection stays.
		f.counts[FleetOfferDropped]++
		message.Done()
		return
	}
	if len(l.parcels) >= f.config.queue {
		f.counts[FleetOverflow]++
		message.Done()
		m.inbox.PutEvent(replication.PeerEvent{Kind: replication.PeerUnreachable, Node: node})
		return
	}
	if n := len(message.Entries); message.Type == raftpb.MsgApp && n > 0 && message.Commit > message.Entries[n-1].Index {
		f.counts[FleetLingered]++
	}
	l.parcels = append(l.parcels, parcel{message: message})
	if f.random.IntN(100) >= f.config.lazy {
		l.parcels[len(l.parcels)-1].encode()
	}
}

// forge answers a message in the place of its receiver, as some mutants do.
func (m *member) forge(message *replication.Message) {
	answer := raftpb.Message{From: message.To, To: m.id, Term: message.Term}
	switch {
	case m.fleet.options.Mutant == ForgedPromise && message.Type == raftpb.MsgApp && len(message.Entries) > 0:
		answer.Type, answer.Index = raftpb.MsgAppResp, message.Entries[len(message.Entries)-1].Index
	case m.fleet.options.Mutant == ForgedVote && message.Type == raftpb.MsgVote:
		answer.Type = raftpb.MsgVoteResp
	default:
		return
	}
	m.inbox.Put(&replication.Message{Message: answer})
}

// Beat implements replication.Transport.
func (m *member) Beat(node uint32, h replication.Heartbeat) {
	f := m.fleet
	if !h.Response {
		m.cell.truth.leads(m.id, h.Term)
	}
	l := f.network.link(m.node, node)
	if len(l.parcels) >= f.config.queue {
		f.counts[FleetOverflow]++
		return
	}
	frame := wire.AppendPeerFrame(nil, wire.PeerKindHeartbeats, 0, &wire.PeerBeats{Beats: []wire.PeerBeat{replication.PeerBeat(&h)}})
	l.parcels = append(l.parcels, parcel{frame: frame})
}

// encode makes the bytes of a message and lets go of what it refers to.
func (p *parcel) encode() {
	if p.message == nil {
		return
	}
	p.frame = replication.AppendFrame(nil, p.message)
	for i := range p.message.Entries {
		p.frame = append(p.frame, p.message.Entries[i].Data...)
	}
	p.message.Done()
	p.message = nil
}

// drop loses parcel i of a link.
func (l *link) drop(i int) {
	if m := l.parcels[i].message; m != nil {
		m.Done()
	}
	l.parcels = append(l.parcels[:i:i], l.parcels[i+1:]...)
}

func (l *link) clear() {
	for len(l.parcels) > 0 {
		l.drop(0)
	}
}

// lose is the end of the connection between two members, which both notice.
func (n *network) lose(a, b *host) {
	n.link(a.node, b.node).clear()
	n.link(b.node, a.node).clear()
	for _, end := range [][2]*host{{a, b}, {b, a}} {
		if end[0].up {
			end[0].hear(replication.PeerEvent{Kind: replication.PeerUnreachable, Node: end[1].node})
		}
	}
}

// deliver takes the oldest parcel off a link and hands it to the receiver's inbox.
func (l *link) deliver() {
	p := &l.parcels[0]
	p.encode()
	frame := p.frame
	l.parcels = l.parcels[1:]
	if !l.to.up {
		return
	}
	f := l.from.fleet
	f.counts[FleetDelivered]++
	h, err := wire.ParsePeerHeader(frame)
	if err != nil || h.TotalSize() != len(frame) {
		f.fail("a frame of %d bytes does not parse: %+v, %v", len(frame), h, err)
	}
	body := frame[wire.HeaderSize:]
	if h.Kind == wire.PeerKindHeartbeats {
		var beats wire.PeerBeats
		if err := beats.Parse(body); err != nil {
			f.fail("a frame of heartbeats does not parse: %v", err)
		}
		for i := range beats.Beats {
			b := &beats.Beats[i]
			f.trace.add("heartbeat from %d to %d: term %d, commit %d, response %t", b.From, b.To, b.Term, b.Commit, b.Response)
			if to := l.to.replica(b.To); to != nil {
				to.inbox.PutBeat(replication.HeartbeatOf(b))
			}
		}
		return
	}
	var d replication.Decoder
	err = d.Decode(h.Kind, body, func(m *replication.Message) {
		f.trace.add("%v from %d to %d: term %d, index %d of term %d, commit %d, %d entries, reject %t", m.Type, m.From, m.To, m.Term, m.Index, m.LogTerm, m.Commit, len(m.Entries), m.Reject)
		if len(m.Entries) > 0 {
			f.counts[FleetReplicated]++
		}
		if to := l.to.replica(m.To); to != nil {
			to.inbox.Put(m)
		}
	})
	if err != nil {
		f.fail("a %v frame does not parse: %v", h.Kind, err)
	}
	// The receiver keeps nothing of the connection's memory.
	for i := range frame {
		frame[i] = 0xDD
	}
}

// gone is what the end of a process means for the network: what it had not encoded is
// gone, what was on its way to it too. The others notice the lost connection, and, if
// its port refuses them, that it is dead.
func (n *network) gone(m *host, refused bool) {
	for _, l := range n.links {
		switch {
		case l.to == m:
			l.clear()
			if !l.from.up {
				continue
			}
			l.from.hear(replication.PeerEvent{Kind: replication.PeerUnreachable, Node: m.node})
			if refused && !l.cut && n.fleet.random.IntN(2) == 0 {
				n.fleet.counts[FleetDownSeen]++
				l.from.hear(replication.PeerEvent{Kind: replication.PeerDown, Node: m.node, Refused: true})
			}
		case l.from == m:
			for i := len(l.parcels) - 1; i >= 0; i-- {
				if l.parcels[i].message != nil {
					l.drop(i)
				}
			}
		}
	}
}

// busy lists the links that have something for a member that takes it.
func (n *network) busy() (links []*link) {
	for _, l := range n.links {
		if len(l.parcels) > 0 && !l.cut && !l.to.paused && !l.from.paused {
			links = append(links, l)
		}
	}
	return links
}

package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/wire"
)

// Placement is a function of a view, so that it can be tested as one. Its result
// travels in a command: Apply never places anything.

// Spread chooses nodes for the replicas of new partitions, for each as many as asked
// for, the first to lead first. Replicas go to different racks while there are any,
// then to the nodes with the fewest replicas; leaders to those with the fewest. A node
// of which unfit says why it cannot take one gets none. It returns an INVALID_SETTING error
// that names these if there are fewer nodes than replicas.
func Spread(v *View, partitions []uuid.UUID, replicas int, unfit func(Node) string) ([][]uint32, error) {
	c := newCensus(v)
	var nodes []Node
	var without []string
	for _, n := range v.Nodes {
		why := ""
		if n.Up() {
			why = unfit(n)
		} else {
			why = "is " + string(n.State)
		}
		switch {
		case !n.Broker():
		case why == "":
			nodes = append(nodes, n)
		default:
			without = append(without, fmt.Sprintf("node %d %s", n.ID, why))
		}
	}
	if len(nodes) < replicas {
		detail := fmt.Sprintf("replicas %d: the cluster has %s that can take one; ", replicas, brokers(len(nodes)))
		if len(nodes) > 0 {
			detail += fmt.Sprintf("ask for fewer (--replicas %d), or ", len(nodes))
		}
		detail += "add a node"
		if len(without) > 0 {
			detail += ", or see to the others: " + strings.Join(without, ", ")
		}
		return nil, &wire.Error{Code: wire.CodeInvalidSetting, Detail: detail}
	}
	placement := make([][]uint32, len(partitions))
	for i, id := range partitions {
		var chosen []Node
		for range replicas {
			n, _ := c.best(id, nodes, chosen)
			chosen = append(chosen, n)
			c.replicas[n.ID]++
		}
		sort.SliceStable(chosen, func(i, j int) bool {
			a, b := chosen[i].ID, chosen[j].ID
			return cmp.Or(cmp.Compare(c.leaders[a], c.leaders[b]), cmp.Compare(tie(id, a), tie(id, b))) < 0
		})
		c.leaders[chosen[0].ID]++
		for _, n := range chosen {
			placement[i] = append(placement[i], n.ID)
		}
	}
	return placement, nil
}

// holds reports whether a node may get replicas.
func (n *Node) holds() bool { return n.Broker() && n.Up() }

// census counts what each node has.
type census struct {
	replicas map[uint32]int
	leaders  map[uint32]int // partitions that prefer it, or are led by it
}

func newCensus(v *View) *census {
	c := &census{replicas: map[uint32]int{}, leaders: map[uint32]int{}}
	for _, d := range v.Destinations {
		for i := range d.Partitions {
			p := &d.Partitions[i]
			for _, r := range p.Replicas {
				if r.staying() {
					c.replicas[r.Node]++
				}
			}
			if len(p.Replicas) > 0 {
				c.leaders[cmp.Or(p.Preferred, p.Replicas[0].Node)]++
			}
		}
	}
	return c
}

// staying reports whether a replica is one or is to become one.
func (r *Replica) staying() bool {
	return r.State == ReplicaNew || r.State == ReplicaJoining || r.State == ReplicaActive
}

// best is the node that should get the next replica of a partition which has some on
// the nodes of taken; false if there is none.
func (c *census) best(id uuid.UUID, nodes, taken []Node) (Node, bool) {
	found := false
	var best Node
	racks := func(n Node) int { // how many of taken share its rack
		same := 0
		for _, t := range taken {
			if n.Rack != "" && t.Rack == n.Rack {
				same++
			}
		}
		return same
	}
	for _, n := range nodes {
		if slices.ContainsFunc(taken, func(t Node) bool { return t.ID == n.ID }) {
			continue
		}
		if !found || cmp.Or(cmp.Compare(racks(n), racks(best)), cmp.Compare(c.replicas[n.ID], c.replicas[best.ID]),
			cmp.Compare(c.leaders[n.ID], c.leaders[best.ID]), cmp.Compare(tie(id, n.ID), tie(id, best.ID))) < 0 {
			best, found = n, true
		}
	}
	return best, found
}

// tie decides between nodes that are equal otherwise, differently for each partition.
func tie(id uuid.UUID, node uint32) uint64 {
	return xxhash.Sum64(append(id[:], byte(node), byte(node>>8), byte(node>>16), byte(node>>24)))
}

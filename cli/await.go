package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// awaitPatience is how long a command that waits for a change says nothing. Then it says
// what is left, and again after as long if that is something else.
const awaitPatience = 5 * time.Second

// outlook is what one look at the cluster says of a change that was decided.
type outlook struct {
	done bool
	left string // what it still takes, if it is not done
	// err says why it will never be done: somebody has decided otherwise since.
	err error
}

// awaitChange asks until a change is done, or will not be any more. Views older than one
// that it has seen, as another broker may have them after a reconnect, are passed over.
// Who interrupts it learns that the change goes on, and which command shows how far it is.
func (a *app) awaitChange(ctx context.Context, conn *client.Conn, shown string, look func(*clusterJSON, []client.Destination) outlook) error {
	err := a.awaitOutlook(ctx, conn, look)
	if err != nil && ctx.Err() != nil {
		fmt.Fprintf(a.stderr, "lockstep: it goes on without this command; see how far it is with: %s\n", shown)
	}
	return err
}

func (a *app) awaitOutlook(ctx context.Context, conn *client.Conn, look func(*clusterJSON, []client.Destination) outlook) error {
	tick := time.NewTicker(clusterPoll)
	defer tick.Stop()
	newest, left, said, quiet := uint64(0), "", "", time.Now()
	for {
		s, destinations, err := askCluster(ctx, conn, nil)
		if err != nil {
			return notDone(ctx, err, left)
		}
		if s.Version >= newest {
			newest = s.Version
			o := look(s, destinations)
			if o.err != nil || o.done {
				return o.err
			}
			left = o.left
			if left != "" && left != said && time.Since(quiet) >= awaitPatience {
				said, quiet = left, time.Now()
				fmt.Fprintf(a.stderr, "lockstep: waiting: %s\n", left)
			}
		}
		select {
		case <-ctx.Done():
			return notDone(ctx, ctx.Err(), left)
		case <-tick.C:
		}
	}
}

// notDone is err, or what is left where a command's time is over: the brokers have answered
// until then.
func notDone(ctx context.Context, err error, left string) error {
	if left == "" || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("not done in time: %s; if that lasts, see what is not as it should be with: lockstep cluster health", left)
}

// nodeOutlook judges looks at the cluster for what an operator wants of a node.
func nodeOutlook(id uint32, action client.NodeAction) func(*clusterJSON) outlook {
	wanted := map[client.NodeAction]string{
		client.NodeUndrain: wire.NodeUp.String(), client.NodeDrain: wire.NodeDraining.String(), client.NodeDecommission: wire.NodeLeaving.String(),
	}[action]
	begun := false // a look showed it, and a later one may show that it was called off
	return func(s *clusterJSON) outlook {
		i := slices.IndexFunc(s.Nodes, func(n nodeJSON) bool { return n.Node == id })
		if i < 0 {
			if action == client.NodeDecommission {
				return outlook{done: true}
			}
			return outlook{err: fmt.Errorf("node %d was removed from the cluster meanwhile", id)}
		}
		n := &s.Nodes[i]
		leads := plural(int64(n.Leaders-n.alone), "partition")
		switch {
		case n.State == wanted:
			begun = true
		case begun:
			return outlook{err: fmt.Errorf("it was called off: node %d is %s now, by another command", id, n.State)}
		}
		switch action {
		case client.NodeDrain:
			return outlook{done: n.Leaders == n.alone, left: fmt.Sprintf("node %d still leads %s", id, leads)}
		case client.NodeDecommission:
			left := fmt.Sprintf("node %d still has %s", id, plural(int64(n.Replicas), "replica"))
			if n.Replicas == 0 {
				left = fmt.Sprintf("node %d has no replicas any more and is to be removed", id)
			}
			return outlook{left: left}
		}
		return outlook{done: n.State == wanted}
	}
}

// moveOutlook judges looks at a partition whose replica goes from one node to another.
func moveOutlook(destination string, number, from, to uint32) func([]client.Destination) outlook {
	begun := false
	return func(all []client.Destination) outlook {
		p := findPartition(all, destination, number)
		if p == nil {
			return outlook{err: errRemovedMeanwhile(destination)}
		}
		leaves, comes := replicaOn(p, from), replicaOn(p, to)
		switch {
		case comes != nil:
			begun = true
		case begun:
			return outlook{err: fmt.Errorf("it was called off: node %d is to hold no replica of %s/%d any more; lockstep partition ls %s shows which do", to, destination, number, shellWord(destination))}
		}
		if leaves == nil {
			return outlook{done: comes != nil && comes.State == wire.ReplicaActive}
		}
		left := fmt.Sprintf("node %d still holds its replica", from)
		if comes != nil && comes.State != wire.ReplicaActive {
			left = fmt.Sprintf("the replica on node %d is %s", to, comes.State)
		}
		return outlook{left: left}
	}
}

// transferOutlook judges looks at a partition, as before described it, whose leadership goes to
// a node, or to any other one (0). A leader two epochs on that is not wanted is no step on the
// way: the leadership was given to another since, by the cluster's balance or an election.
func transferOutlook(destination string, number uint32, before client.PartitionInfo, to uint32) func(*client.PartitionInfo) outlook {
	return func(p *client.PartitionInfo) outlook {
		name := fmt.Sprintf("%s/%d", destination, number)
		switch {
		case p == nil:
			return outlook{err: errRemovedMeanwhile(destination)}
		case p.Leader == 0:
			return outlook{left: "nobody leads " + name}
		case p.Leader == to || to == 0 && p.Leader != before.Leader:
			return outlook{done: true}
		case before.Leader != 0 && p.Epoch > before.Epoch+1:
			return outlook{err: fmt.Errorf("it did not stay: node %d leads now, by an election or because the cluster keeps leaderships balanced; %s", p.Leader, keepLeader(destination, number, to))}
		}
		return outlook{left: fmt.Sprintf("node %d leads %s", p.Leader, name)}
	}
}

// keepLeader says how a node, 0 for one to be chosen, leads a partition for good.
func keepLeader(destination string, number, node uint32) string {
	where, who := "there", fmt.Sprint(node)
	if node == 0 {
		where, who = "elsewhere", "NODE"
	}
	return fmt.Sprintf("to keep it %s: lockstep partition alter %s --preferred-leader %s", where, shellWord(fmt.Sprintf("%s/%d", destination, number)), who)
}

// replicaOn is the replica that a node holds, nil if it holds none. Beside one that it has
// lost it may hold another, which counts if it is active.
func replicaOn(p *client.PartitionInfo, node uint32) (found *client.Replica) {
	for i := range p.Replicas {
		if r := &p.Replicas[i]; r.Node == node && (found == nil || r.State == wire.ReplicaActive) {
			found = r
		}
	}
	return found
}

func errRemovedMeanwhile(destination string) error {
	return fmt.Errorf("%s was removed meanwhile", destination)
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// clusterPoll is how often a command that waits for the cluster looks at it.
const clusterPoll = 200 * time.Millisecond

func (a *app) clusterCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:   "cluster",
		Short: "Look at the cluster as a whole",
		Example: `  lockstep cluster status
  lockstep cluster health --watch --exit-when-healthy`,
	})
	a.clientFlags(c)
	c.AddCommand(a.clusterStatusCommand(), a.clusterHealthCommand())
	return c
}

// clusterJSON is the cluster as -o json prints it, as one broker saw it.
type clusterJSON struct {
	// Time is when a look of health --watch was; absent elsewhere.
	Time         string     `json:"time,omitempty"`
	Version      uint64     `json:"version"`
	Healthy      bool       `json:"healthy"`
	Problems     []string   `json:"problems"`
	Nodes        []nodeJSON `json:"nodes"`
	Destinations int        `json:"destinations"`
	Partitions   int        `json:"partitions"`
	// UnderReplicated counts partitions with fewer replicas that vote and whose nodes
	// answer than they are to have, Offline those that nobody leads although they have
	// several.
	UnderReplicated int `json:"under_replicated"`
	Offline         int `json:"offline"`
	// What a broker that is older does not say.
	Controller uint32   `json:"controller,omitempty"` // node that leads the metadata
	Level      uint16   `json:"feature_level,omitempty"`
	Voters     []uint32 `json:"metadata_voters,omitempty"` // nodes that vote about the metadata
}

type nodeJSON struct {
	Node     uint32 `json:"node"`
	Address  string `json:"address"`
	Rack     string `json:"rack"`
	Role     string `json:"role"`
	State    string `json:"state"`
	Alive    bool   `json:"alive"`
	Leaders  int    `json:"leaders"`
	Replicas int    `json:"replicas"`
	// What the node says of itself; absent if it does not answer, or was not asked.
	Version     string `json:"version,omitempty"`
	UptimeMs    uint64 `json:"uptime_ms,omitempty"`
	StoredBytes uint64 `json:"stored_bytes,omitempty"`
	FreeBytes   uint64 `json:"free_bytes,omitempty"`
	TotalBytes  uint64 `json:"total_bytes,omitempty"`
	KeptBytes   uint64 `json:"kept_bytes,omitempty"`  // that records leave free
	LacksSpace  bool   `json:"lacks_space,omitempty"` // less is free: it takes no records
	PeerAddress string `json:"peer_address,omitempty"`
	HTTP        string `json:"http,omitempty"`
	answered    bool
	// alone are those of Leaders whose only replica is there: nobody else could lead them.
	alone int
}

// askStatus asks a broker for the cluster, and all nodes for what they know of themselves.
func askStatus(ctx context.Context, conn *client.Conn) (*clusterJSON, []client.Destination, error) {
	status, err := conn.ClusterStatus(ctx)
	older := errors.Is(err, wire.CodeUnsupported)
	if err != nil && !older {
		return nil, nil, err
	}
	full := map[uint32]bool{}
	if !older {
		for _, n := range status.Nodes {
			full[n.Node] = n.LacksSpace
		}
	}
	s, destinations, err := askCluster(ctx, conn, full)
	if err != nil || older {
		return s, destinations, err
	}
	s.Controller, s.Level, s.Voters = status.Controller, status.Level, status.Voters
	if s.Controller == 0 {
		s.Problems, s.Healthy = append(s.Problems, fmt.Sprintf("the metadata has no leader: nothing can be created, changed or moved and no node joins until most of the %s that vote on it answer",
			plural(int64(len(s.Voters)), "node"))), false
	}
	if lacks := lacksVoters(s); lacks != "" {
		s.Problems, s.Healthy = append(s.Problems, lacks), false
	}
	for _, said := range status.Nodes {
		i := slices.IndexFunc(s.Nodes, func(n nodeJSON) bool { return n.Node == said.Node })
		if i < 0 {
			continue // it joined meanwhile
		}
		n := &s.Nodes[i]
		n.PeerAddress, n.HTTP, n.answered = said.PeerAddress, said.HTTP, said.Answered
		n.Version, n.UptimeMs, n.StoredBytes, n.FreeBytes, n.TotalBytes = said.Version, said.UptimeMs, said.StoredBytes, said.FreeBytes, said.TotalBytes
		if n.KeptBytes, n.LacksSpace = said.KeptBytes, said.LacksSpace; n.LacksSpace {
			s.Problems, s.Healthy = append(s.Problems, fmt.Sprintf("node %d (%s) takes no records: its disk has no more than the %s free that are kept; free some there, shorten a retention, or delete a destination",
				n.Node, n.Address, formatSize(clampInt64(n.KeptBytes)))), false
		}
	}
	return s, destinations, nil
}

// lacksVoters says that fewer nodes vote about the metadata than could. A cluster of three
// that has just been formed has one voter for a moment; without that one nothing could be
// changed.
func lacksVoters(s *clusterJSON) string {
	able := 0
	for _, n := range s.Nodes {
		if n.Alive && n.State != wire.NodeLeaving.String() {
			able++
		}
	}
	able = min(able, wire.MaxMetadataVoters)
	if able -= 1 - able%2; len(s.Voters) >= able {
		return ""
	}
	return fmt.Sprintf("%d of %d nodes that could vote about the metadata do: they are still joining", len(s.Voters), able)
}

// askCluster asks a broker for the cluster. full are the nodes whose disks take no records,
// as far as that is known.
func askCluster(ctx context.Context, conn *client.Conn, full map[uint32]bool) (*clusterJSON, []client.Destination, error) {
	nodes, version, err := conn.Nodes(ctx)
	if err != nil {
		return nil, nil, err
	}
	destinations, err := conn.Destinations(ctx)
	if err != nil {
		return nil, nil, err
	}
	return judgeCluster(version, nodes, destinations, full), destinations, nil
}

// judgeCluster counts what each node has, and lists what is not as it should be.
func judgeCluster(version uint64, nodes []client.Node, destinations []client.Destination, full map[uint32]bool) *clusterJSON {
	out := &clusterJSON{Version: version, Problems: []string{}, Nodes: []nodeJSON{}, Destinations: len(destinations)}
	for _, n := range nodes {
		out.Nodes = append(out.Nodes, nodeJSON{
			Node: n.ID, Address: n.Address, Rack: n.Rack, Role: n.Role.String(), State: n.State.String(), Alive: n.Alive,
		})
	}
	problem := func(format string, args ...any) { out.Problems = append(out.Problems, fmt.Sprintf(format, args...)) }
	node := func(id uint32) *nodeJSON {
		i := slices.IndexFunc(out.Nodes, func(n nodeJSON) bool { return n.Node == id })
		if i < 0 {
			return &nodeJSON{Node: id}
		}
		return &out.Nodes[i]
	}
	away := func(id uint32) bool { return !node(id).Alive }
	helpless := &helplessness{}
	for _, d := range destinations {
		for _, p := range d.Partitions {
			out.Partitions++
			name := fmt.Sprintf("%s/%d", d.Name, p.Number)
			// The only replica leads at the first record, if its node is there.
			unled := p.Leader == 0 && (len(p.Replicas) > 1 || len(p.Replicas) == 1 && !node(p.Replicas[0].Node).Alive)
			lacks := lacksQuorum(&d, &p, away, full)
			switch {
			case p.Problem != "":
				problem("partition %s is %s: %s", name, p.State, oneLine(p.Problem))
			case p.State == wire.PartitionFenced:
				problem("partition %s is %s", name, p.State)
			case lacks != "":
				helpless.add(name, unled, lacks)
			case unled:
				helpless.add(name, unled, "")
			case p.Damaged > 0:
				problem("partition %s has %s", name, plural(int64(p.Damaged), "damaged range"))
			}
			if p.Leader != 0 {
				n := node(p.Leader)
				n.Leaders++
				if len(p.Replicas) == 1 {
					n.alone++
				}
			} else if unled {
				out.Offline++
			}
			voters, stay := 0, 0
			for _, r := range p.Replicas {
				n := node(r.Node)
				n.Replicas++
				if n.Alive && r.State == wire.ReplicaActive {
					voters++
				}
				if r.State != wire.ReplicaLeaving && r.State != wire.ReplicaLost {
					stay++
				}
				if r.State == wire.ReplicaJoining || r.State == wire.ReplicaLeaving || r.State == wire.ReplicaLost {
					problem("partition %s: its replica on node %d is %s", name, r.Node, r.State)
				}
			}
			if voters < int(d.Settings.Replicas) {
				out.UnderReplicated++
			}
			if stay < int(d.Settings.Replicas) {
				problem("partition %s has %d of %s; others are made once brokers that hold none of it can take them", name, stay, plural(int64(d.Settings.Replicas), "replica"))
			}
		}
	}
	for _, text := range helpless.texts() {
		problem("%s", text)
	}
	for _, n := range out.Nodes {
		switch {
		case !n.Alive && n.Replicas > 0:
			problem("node %d (%s) does not answer; it has %s", n.Node, n.Address, plural(int64(n.Replicas), "replica"))
		case !n.Alive:
			problem("node %d (%s) does not answer", n.Node, n.Address)
		case n.State == wire.NodeDraining.String() && n.Leaders == n.alone: // drained
		case n.State != wire.NodeUp.String() && n.Leaders > 0:
			problem("node %d is %s and still leads %s", n.Node, n.State, plural(int64(n.Leaders), "partition"))
		}
	}
	out.Healthy = len(out.Problems) == 0
	return out
}

func (a *app) clusterStatusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "status",
		Aliases: []string{"show"},
		Short:   "Show the nodes of the cluster, what they hold, and what is not as it should be",
		Example: `  lockstep cluster status
  lockstep cluster status -o json`,
		Args: exactArgs(),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
			s, _, err := askStatus(ctx, conn)
			if err != nil {
				return &failure{doing: "look at the cluster", err: err}
			}
			if output.value == "json" {
				return a.printJSON(s)
			}
			if err := a.printNodes(s.Nodes); err != nil {
				return err
			}
			controller := "none known"
			if s.Controller != 0 {
				controller = fmt.Sprintf("node %d", s.Controller)
			}
			text := fmt.Sprintf("\n%s, %s, %s (%d under-replicated, %d offline)\ncontroller: %s, %s %v, feature level %d, metadata version %d\n",
				plural(int64(len(s.Nodes)), "node"), plural(int64(s.Destinations), "destination"), plural(int64(s.Partitions), "partition"),
				s.UnderReplicated, s.Offline, controller, plural(int64(len(s.Voters)), "voter"), s.Voters, s.Level, s.Version)
			_, err = fmt.Fprint(a.stdout, text, healthText(s))
			return outputError(err)
		})
	}
	return c
}

// maxProblems bounds how many problems are printed; -o json has all.
const maxProblems = 20

func healthText(s *clusterJSON) string {
	if s.Healthy {
		return "healthy\n"
	}
	lines := s.Problems[:min(len(s.Problems), maxProblems)]
	text := "not healthy:\n  " + strings.Join(lines, "\n  ") + "\n"
	if more := len(s.Problems) - len(lines); more > 0 {
		text += fmt.Sprintf("  and %s more\n", plural(int64(more), "problem"))
	}
	return text
}

func (a *app) clusterHealthCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "health",
		Short: "Tell whether every node answers and every partition has its leader and replicas",
		Long: `Tell whether every node answers and every partition has its leader and its replicas. The
exit code is 1 if not. With --watch it goes on and prints what changes, with the time; a
cluster that does not answer is one that is not healthy.`,
		Example: `  lockstep cluster health
  lockstep cluster health --watch --exit-when-healthy`,
		Args: exactArgs(),
	}
	watch := c.Flags().Bool("watch", false, "go on, and print it again when it changes")
	exit := c.Flags().Bool("exit-when-healthy", false, "with --watch: end once the cluster is healthy")
	timeout := durationFlag{unlimited: true}
	c.Flags().Var(&timeout, "timeout", "with --watch: give up after a `duration`; 0 = never")
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if (*exit || timeout.value > 0) && !*watch {
			return usagef(c, "flags --exit-when-healthy and --timeout need --watch")
		}
		if !*watch {
			return a.withConn(c, func(ctx context.Context, conn *client.Conn) error {
				s, _, err := askStatus(ctx, conn)
				if err != nil {
					return &failure{doing: "look at the cluster", err: err}
				}
				return a.printHealth(s, output.value)
			})
		}
		return a.watchHealth(c.Context(), *exit, timeout.value, output.value)
	}
	return c
}

func (a *app) printHealth(s *clusterJSON, output string) error {
	if output == "json" {
		if err := a.printJSON(s); err != nil {
			return err
		}
	} else {
		text := healthText(s)
		if s.Time != "" {
			text = s.Time + " " + text
		}
		if _, err := fmt.Fprint(a.stdout, text); err != nil {
			return outputError(err)
		}
	}
	if !s.Healthy {
		return fmt.Errorf("the cluster has %s; wait for it with: lockstep cluster health --watch --exit-when-healthy", plural(int64(len(s.Problems)), "problem"))
	}
	return nil
}

// watchHealth prints the health whenever it changes.
func (a *app) watchHealth(ctx context.Context, exit bool, timeout time.Duration, output string) error {
	end := make(<-chan time.Time)
	if timeout > 0 {
		end = time.After(timeout)
	}
	tick := time.NewTicker(clusterPoll)
	defer tick.Stop()
	var conn *client.Conn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	for last := ""; ; {
		s, err := a.healthOnce(ctx, &conn)
		if err != nil {
			s = &clusterJSON{Nodes: []nodeJSON{}, Problems: []string{oneLine(a.explain(&failure{doing: "look at the cluster", err: err}))}}
		}
		if text := healthText(s); text != last && ctx.Err() == nil {
			last, s.Time = text, time.Now().Format(time.RFC3339)
			if err := a.printHealth(s, output); errors.Is(err, errOutputClosed) {
				return err
			}
		}
		if exit && s.Healthy {
			return nil
		}
		select {
		case <-ctx.Done():
			return interruptedOr(ctx, ctx.Err())
		case <-end:
			return fmt.Errorf("the cluster is not healthy after %s", formatDuration(timeout))
		case <-tick.C:
		}
	}
}

// healthOnce asks over a connection that it makes where there is none, and gives up
// where it fails.
func (a *app) healthOnce(ctx context.Context, conn **client.Conn) (*clusterJSON, error) {
	if *conn == nil {
		var err error
		if *conn, err = a.connect(ctx, client.WithReconnect(false)); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	s, _, err := askStatus(ctx, *conn)
	if err != nil {
		(*conn).Close()
		*conn = nil
	}
	return s, err
}

package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

const (
	defaultDevDir   = "./lockstep-dev"
	defaultBasePort = 7400
	// devReadyTimeout bounds how long a started cluster may take to serve.
	devReadyTimeout = 60 * time.Second
	// devPoll is how often files, processes and brokers are looked at.
	devPoll = 50 * time.Millisecond
	// devLogTail is how much of a node's log explains why it ended.
	devLogTail = 2 << 10
)

func (a *app) devCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:   "dev",
		Short: "Run a cluster on this machine, to try things and to break them",
		Example: `  lockstep dev up --nodes 3
  lockstep dev kill 2`,
	})
	dir := c.PersistentFlags().String("dir", defaultDevDir, "`directory` of the cluster: state, data and logs of its nodes")
	c.AddCommand(a.devUpCommand(dir), a.devStatusCommand(dir), a.devKillCommand(dir), a.devStartCommand(dir), a.devDownCommand(dir))
	return c
}

func (a *app) devUpCommand(dir *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster and print the log of all its nodes",
		Long: `Start a cluster of brokers on this machine and print the log of all of them until it
is interrupted or another terminal runs lockstep dev down. Each node has ports and a
directory of its own. What is in the directory from an earlier time is used again.`,
		Example: `  lockstep dev up --nodes 3
  lockstep dev up --nodes 3 --base-port 8400 --detach`,
		Args: exactArgs(),
	}
	nodes := c.Flags().Int("nodes", 0, "`number` of nodes; 0 = as many as the directory has, or 1")
	basePort := c.Flags().Int("base-port", defaultBasePort, "first `port` of the first node; each next node's are 10 higher")
	detach := c.Flags().Bool("detach", false, "return when the cluster serves, and leave it running")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *nodes < 0 || *nodes > maxDevNodes {
			return usagef(c, "flag --nodes: %d is not in [1, %d]", *nodes, maxDevNodes)
		}
		if *basePort < 1 || *basePort+maxDevNodes*devPorts > 1<<16 {
			return usagef(c, "flag --base-port: %d leaves no room for the ports of %d nodes", *basePort, maxDevNodes)
		}
		if !c.Flags().Changed("base-port") {
			*basePort = 0
		}
		d, err := a.devUp(*dir, *nodes, *basePort)
		if err != nil {
			return err
		}
		return a.devAttend(c.Context(), d, *detach)
	}
	return c
}

// devUp starts the processes of a cluster. Zero nodes are as many as there were, and base
// port 0 is the one that it had.
func (a *app) devUp(dir string, nodes, basePort int) (*devCluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockDev(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := loadDev(dir)
	switch {
	case err != nil:
		return nil, err
	case d == nil:
		d = newDevCluster(dir, max(nodes, 1), cmp.Or(basePort, defaultBasePort))
		if err := d.portsFree(); err != nil {
			return nil, d.otherPorts(err, dir)
		}
	case d.running() > 0:
		return nil, fmt.Errorf("%d of %d nodes in %s run already; look at them with: lockstep dev status%[4]s, or stop them with: lockstep dev down%[4]s", d.running(), len(d.Nodes), dir, devDirFlag(dir))
	case nodes != 0 && nodes != len(d.Nodes):
		return nil, fmt.Errorf("the cluster in %s has %s; leave --nodes out, or choose another directory with --dir", dir, plural(int64(len(d.Nodes)), "node"))
	case basePort != 0 && d.Nodes[0].Client != newDevCluster(dir, 1, basePort).Nodes[0].Client:
		return nil, fmt.Errorf("the cluster in %s has its ports from %s on; leave --base-port out, or choose another directory with --dir", dir, d.Nodes[0].Client)
	default:
		if err := d.portsFree(); err != nil {
			return nil, d.otherPorts(err, "DIR")
		}
	}
	for i := range d.Nodes {
		if err := a.devStartNode(d, &d.Nodes[i]); err != nil {
			return nil, errors.Join(err, d.stop())
		}
	}
	return d, nil
}

// devStartNode starts the process of one node, of which none runs, and saves that.
func (a *app) devStartNode(d *devCluster, n *devNode) error {
	executable, err := a.executable()
	if err != nil {
		return fmt.Errorf("find this binary to start node %d: %w", n.ID, err)
	}
	if err := os.MkdirAll(filepath.Dir(d.logFile(n)), 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(d.logFile(n), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if n.logged, err = log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	command := exec.Command(executable, d.serveArgs(n)...)
	command.Env = withoutOwnVariables(os.Environ())
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for this process
	if err := command.Start(); err != nil {
		return fmt.Errorf("start node %d: %w", n.ID, err)
	}
	go func() { _ = command.Wait() }() // so that it does not stay a zombie
	n.PID = command.Process.Pid
	if _, n.Started, err = processState(n.PID); err != nil {
		return fmt.Errorf("start node %d: %w", n.ID, err)
	}
	return d.save()
}

// devAttend waits until the cluster serves, and then, unless it is to be detached,
// prints its log until it ends or ctx does, which ends it.
func (a *app) devAttend(ctx context.Context, d *devCluster, detach bool) error {
	logs := newDevLogs(d, !detach)
	defer logs.close()
	if err := a.devReady(ctx, d, len(d.Nodes), func() { logs.print(a.stderr) }); err != nil {
		return errors.Join(err, d.stop())
	}
	what := plural(int64(len(d.Nodes)), "node")
	stop := "Ctrl-C"
	if detach {
		stop = "lockstep dev down" + devDirFlag(d.dir)
	}
	fmt.Fprintf(a.stderr, "lockstep dev: %s ready in %s; try: lockstep queue create orders --server %s; stop with: %s\n", what, d.dir, d.clients(), stop)
	if detach {
		return nil
	}
	tick := time.NewTicker(devPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			err := a.devDown(d.dir)
			logs.print(a.stderr)
			return err
		case <-tick.C:
		}
		logs.print(a.stderr)
		now, err := loadDev(d.dir)
		if err != nil || now == nil {
			return err
		}
		stopped := true
		for _, n := range now.Nodes {
			stopped = stopped && n.PID == 0
		}
		if stopped { // by dev down
			logs.print(a.stderr)
			return nil
		}
	}
}

// devDirFlag is the flag that names dir, if it is needed.
func devDirFlag(dir string) string {
	if usual, err := filepath.Abs(defaultDevDir); err == nil && usual == dir {
		return ""
	}
	return " --dir " + shellWord(dir)
}

// devReady waits until members of the cluster know each other, every partition has a
// leader, and, if there are three, the metadata survive the loss of any. meanwhile is called again and again.
func (a *app) devReady(ctx context.Context, d *devCluster, members int, meanwhile func()) error {
	ctx, cancel := context.WithTimeout(ctx, devReadyTimeout)
	defer cancel()
	last := errors.New("no broker answers")
	for {
		for i := range d.Nodes {
			if n := &d.Nodes[i]; n.PID != 0 && n.state() == devStopped {
				return d.endedEarly(n)
			}
		}
		lacks, err := devHealth(ctx, d, members)
		var taken *portTaken
		switch {
		case errors.As(err, &taken):
			return d.otherPorts(err, "DIR")
		case err == nil && lacks == "":
			return nil
		case err == nil:
			last = errors.New(lacks)
		case ctx.Err() == nil:
			last = err
		}
		meanwhile()
		select {
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return fmt.Errorf("the cluster does not serve after %s: %w; its logs are in %s", devReadyTimeout, last, filepath.Join(d.dir, "n*", "log"))
			}
			return context.Cause(ctx)
		case <-time.After(devPoll):
		}
	}
}

// devHealth asks the running nodes one after the other. lacks says what is missing
// until the cluster serves; it is empty if nothing is.
func devHealth(ctx context.Context, d *devCluster, members int) (lacks string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for i := range d.Nodes {
		n := &d.Nodes[i]
		if n.state() != devRunning {
			continue
		}
		conn, err := client.Connect(ctx, n.Client, client.WithReconnect(false))
		if err != nil {
			return "", fmt.Errorf("node %d: %w", n.ID, err)
		}
		if err := d.isNode(n, conn.Info()); err != nil {
			conn.Close()
			return "", err
		}
		lacks, err := devLacks(ctx, conn, members)
		conn.Close()
		if err != nil || lacks != "" {
			return lacks, err
		}
	}
	return "", nil
}

func devLacks(ctx context.Context, conn *client.Conn, members int) (string, error) {
	s, destinations, err := askStatus(ctx, conn)
	if err != nil {
		return "", err
	}
	here := 0
	for _, n := range s.Nodes {
		if n.Alive {
			here++
		}
	}
	if here < members {
		return fmt.Sprintf("%d of %s joined", here, plural(int64(members), "node")), nil
	}
	if lacks := lacksVoters(s); members > 1 && lacks != "" {
		return lacks, nil
	}
	for _, d := range destinations {
		for _, p := range d.Partitions {
			if p.State != wire.PartitionActive && p.State != wire.PartitionStarting {
				return fmt.Sprintf("partition %s/%d is %s: %s", d.Name, p.Number, p.State, p.Problem), nil
			}
		}
	}
	return "", nil
}

// endedEarly says why a node's process ended, by the log that it has written.
func (d *devCluster) endedEarly(n *devNode) error {
	why := tailOf(d.logFile(n), n.logged)
	if strings.Contains(why, "was removed from the cluster") {
		why += "; here: rm -r " + shellWord(d.dataDir(n))
	}
	return fmt.Errorf("node %d ended at its start: %s", n.ID, why)
}

// tailOf is the end of a log behind what it held before, for an error message: the error
// with which the process ended if there is one.
func tailOf(name string, before int64) string {
	content, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	text := strings.TrimSpace(string(content[min(max(before, int64(len(content)-devLogTail)), int64(len(content))):]))
	if last, ok := strings.CutPrefix(text[strings.LastIndexByte(text, '\n')+1:], "lockstep: "); ok {
		return last
	}
	return text
}

// devLogs are the logs of all nodes, read as they grow.
type devLogs struct {
	prefix []string
	files  []*os.File
	lines  []*bufio.Reader
	part   []string // of a line that has not ended
}

// newDevLogs begins where the nodes' processes began, or reads nothing.
func newDevLogs(d *devCluster, read bool) *devLogs {
	l := &devLogs{}
	if !read {
		return l
	}
	for i := range d.Nodes {
		f, err := os.Open(d.logFile(&d.Nodes[i]))
		if err != nil {
			continue
		}
		if _, err := f.Seek(d.Nodes[i].logged, io.SeekStart); err != nil {
			f.Close()
			continue
		}
		l.prefix = append(l.prefix, fmt.Sprintf("n%d | ", d.Nodes[i].ID))
		l.files = append(l.files, f)
		l.lines = append(l.lines, bufio.NewReader(f))
		l.part = append(l.part, "")
	}
	return l
}

// print writes the lines that came since it was last called.
func (l *devLogs) print(w io.Writer) {
	for i, lines := range l.lines {
		for {
			text, err := lines.ReadString('\n')
			l.part[i] += text
			if err != nil {
				break
			}
			fmt.Fprint(w, l.prefix[i]+l.part[i])
			l.part[i] = ""
		}
	}
}

func (l *devLogs) close() {
	for _, f := range l.files {
		f.Close()
	}
}

// withDev runs f on the cluster in dir, locked.
func withDev(dir string, f func(d *devCluster) error) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	none := fmt.Errorf("there is no cluster in %s; start one with: lockstep dev up --nodes 3%s", dir, devDirFlag(dir))
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return none
	}
	unlock, err := lockDev(dir)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := loadDev(dir)
	if err != nil {
		return err
	}
	if d == nil {
		return none
	}
	return f(d)
}

// devNodeArgument finds the node that a command names.
func devNodeArgument(c *cobra.Command, d *devCluster, word string) (*devNode, error) {
	id, err := strconv.Atoi(strings.TrimPrefix(word, "n"))
	if err != nil {
		return nil, usagef(c, "%q is no node; write its number, as in: lockstep dev %s 2", word, c.Name())
	}
	n := d.node(id)
	if n == nil {
		return nil, fmt.Errorf("there is no node %d: the cluster in %s has %s; list them with: lockstep dev status", id, d.dir, plural(int64(len(d.Nodes)), "node"))
	}
	return n, nil
}

func (a *app) devStatusCommand(dir *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "List the nodes of the cluster and whether they run",
		Example: `  lockstep dev status
  lockstep dev status -o json`,
		Args: exactArgs(),
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withDev(*dir, func(d *devCluster) error {
			type status struct {
				ID      int    `json:"id"`
				State   string `json:"state"`
				Client  string `json:"client"`
				Peer    string `json:"peer"`
				HTTP    string `json:"http"`
				PID     int    `json:"pid,omitempty"`
				Started uint64 `json:"started_ticks,omitempty"` // as in devNode
			}
			var all []status
			var rows [][]string
			for _, n := range d.Nodes {
				s := status{ID: n.ID, State: n.state(), Client: n.Client, Peer: n.Peer, HTTP: n.HTTP}
				if s.State != devStopped {
					s.PID, s.Started = n.PID, n.Started
				}
				all = append(all, s)
				rows = append(rows, []string{strconv.Itoa(n.ID), s.State, strconv.Itoa(s.PID), n.Client, n.Peer, n.HTTP})
			}
			if output.value == "json" {
				return a.printJSON(all)
			}
			return a.printTable([]string{"node", "state", "pid", "clients", "peers", "http"}, rows, "node", "pid")
		})
	}
	return c
}

func (a *app) devKillCommand(dir *string) *cobra.Command {
	return devNodeCommand(dir, "kill", "Kill the process of one node, as kill -9 does", func(_ context.Context, d *devCluster, n *devNode) error {
		if n.state() == devStopped {
			return fmt.Errorf("node %d does not run; start it with: lockstep dev start %d", n.ID, n.ID)
		}
		if err := n.signal(unix.SIGKILL); err != nil {
			return err
		}
		n.await(shutdownTimeout)
		fmt.Fprintf(a.stderr, "lockstep dev: killed node %d (process %d); start it again with: lockstep dev start %d\n", n.ID, n.PID, n.ID)
		return nil
	})
}

func (a *app) devStartCommand(dir *string) *cobra.Command {
	return devNodeCommand(dir, "start", "Start a node that was killed", func(ctx context.Context, d *devCluster, n *devNode) error {
		if n.state() != devStopped {
			return fmt.Errorf("node %d runs already, as process %d", n.ID, n.PID)
		}
		if err := n.portsFree(devPortPatience); err != nil {
			return fmt.Errorf("%w; stop that, and run this again", err)
		}
		if err := a.devStartNode(d, n); err != nil {
			return err
		}
		return a.devReady(ctx, &devCluster{dir: d.dir, Nodes: []devNode{*n}}, 1, func() {})
	})
}

// devNodeCommand makes a command that does something to one node.
func devNodeCommand(dir *string, verb, short string, do func(context.Context, *devCluster, *devNode) error) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " NODE",
		Short: short,
		Example: fmt.Sprintf(`  lockstep dev %[1]s 2
  lockstep dev %[1]s 2 --dir ./lockstep-dev`, verb),
		Args: exactArgs("NODE"),
		RunE: func(c *cobra.Command, args []string) error {
			return withDev(*dir, func(d *devCluster) error {
				n, err := devNodeArgument(c, d, args[0])
				if err != nil {
					return err
				}
				return do(c.Context(), d, n)
			})
		},
	}
}

func (a *app) devDownCommand(dir *string) *cobra.Command {
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop all nodes of the cluster",
		Long: `Stop all nodes of the cluster in order. What they stored stays, for the next
lockstep dev up, unless --purge removes it.`,
		Example: `  lockstep dev down
  lockstep dev down --purge`,
		Args: exactArgs(),
	}
	purge := c.Flags().Bool("purge", false, "remove data and logs of all nodes as well")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := a.devDown(*dir); err != nil || !*purge {
			return err
		}
		return withDev(*dir, func(d *devCluster) error {
			for i := range d.Nodes {
				if err := os.RemoveAll(filepath.Dir(d.logFile(&d.Nodes[i]))); err != nil {
					return err
				}
			}
			return os.Remove(filepath.Join(d.dir, devStateFile))
		})
	}
	return c
}

func (a *app) devDown(dir string) error {
	return withDev(dir, func(d *devCluster) error { return d.stop() })
}

// stop ends all processes, cleanly those that let themselves, and saves that.
func (d *devCluster) stop() error {
	var failed error
	for i := range d.Nodes {
		n := &d.Nodes[i]
		failed = errors.Join(failed, n.signal(unix.SIGTERM), n.signal(unix.SIGCONT))
	}
	for i := range d.Nodes {
		n := &d.Nodes[i]
		if !n.await(shutdownTimeout + time.Second) {
			failed = errors.Join(failed, n.signal(unix.SIGKILL))
			n.await(shutdownTimeout)
		}
		n.PID, n.Started = 0, 0
	}
	return errors.Join(failed, d.save())
}

// await waits until the node's process has ended, for a time at most, and reports
// whether it has. Nobody but its parent is told when a process ends.
func (n *devNode) await(most time.Duration) bool {
	for end := time.Now().Add(most); n.state() != devStopped; time.Sleep(devPoll / 5) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// devCluster is what lockstep dev knows of the cluster in a directory. It is kept in
// the file dev.json there, which every dev command reads and the ones that start or
// end a process replace, under a lock on the directory.
type devCluster struct {
	dir   string
	Nodes []devNode `json:"nodes"`
}

// devNode is one broker of it. Its data and its log are in dir/n<ID>.
type devNode struct {
	ID     int    `json:"id"`
	Client string `json:"client"` // host:port
	Peer   string `json:"peer"`
	HTTP   string `json:"http"`
	PID    int    `json:"pid,omitempty"` // of the process that was started last; 0: none
	// Started is when that was, in clock ticks since the machine started: another
	// process may have the PID today.
	Started uint64 `json:"started,omitempty"`

	logged int64 // bytes of its log from before this command started it
}

const (
	devStateFile = "dev.json"
	// devPorts is how far apart the ports of two nodes are.
	devPorts = 10
	// maxDevNodes keeps the ports of all nodes within those of one base.
	maxDevNodes = 15
)

func newDevCluster(dir string, nodes, basePort int) *devCluster {
	d := &devCluster{dir: dir}
	for i := range nodes {
		port := func(n int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(basePort+i*devPorts+n)) }
		d.Nodes = append(d.Nodes, devNode{ID: i + 1, Client: port(0), Peer: port(1), HTTP: port(2)})
	}
	return d
}

// loadDev reads the cluster in dir; nil if there is none.
func loadDev(dir string) (*devCluster, error) {
	name := filepath.Join(dir, devStateFile)
	content, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := &devCluster{dir: dir}
	if err := json.Unmarshal(content, d); err != nil {
		return nil, fmt.Errorf("%s: %w; remove it if no broker of it runs", name, err)
	}
	return d, nil
}

// save replaces the state file at once, so that a reader sees the old or the new.
func (d *devCluster) save() error {
	content, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	name := filepath.Join(d.dir, devStateFile)
	if err := os.WriteFile(name+".new", append(content, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// lockDev keeps other dev commands out of dir until unlock is called.
func lockDev(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// node finds a node by its ID.
func (d *devCluster) node(id int) *devNode {
	for i := range d.Nodes {
		if d.Nodes[i].ID == id {
			return &d.Nodes[i]
		}
	}
	return nil
}

// clients are the addresses for --server, those of node first in front.
func (d *devCluster) clients() string {
	var list []string
	for _, n := range d.Nodes {
		list = append(list, n.Client)
	}
	return strings.Join(list, ",")
}

// running is how many nodes' processes run.
func (d *devCluster) running() (count int) {
	for i := range d.Nodes {
		if d.Nodes[i].state() != devStopped {
			count++
		}
	}
	return count
}

func (d *devCluster) dataDir(n *devNode) string {
	return filepath.Join(d.dir, fmt.Sprintf("n%d", n.ID), "data")
}
func (d *devCluster) logFile(n *devNode) string {
	return filepath.Join(d.dir, fmt.Sprintf("n%d", n.ID), "log")
}

// serveArgs is the command line of a node.
func (d *devCluster) serveArgs(n *devNode) []string {
	args := []string{"serve", "--data", d.dataDir(n), "--listen", n.Client, "--http", n.HTTP}
	if len(d.Nodes) == 1 {
		return args
	}
	args = append(args, "--node-id", strconv.Itoa(n.ID), "--peer-listen", n.Peer)
	if n.ID > 1 {
		args = append(args, "--join", d.Nodes[0].Client)
	}
	return args
}

// What a node's process does.
const (
	devStopped = "stopped"
	devRunning = "running"
	devPaused  = "paused" // SIGSTOP
)

// state looks at the node's process, and takes no other for it.
func (n *devNode) state() string {
	state, started, err := processState(n.PID)
	switch {
	case n.PID == 0 || err != nil || started != n.Started || state == 'Z' && !hasThreads(n.PID) || state == 'X':
		return devStopped
	case state == 'T' || state == 't':
		return devPaused
	}
	return devRunning
}

// hasThreads reports whether a process whose first thread has ended has others: a process
// that was killed keeps its ports and files until the last is gone.
func hasThreads(pid int) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && len(tasks) > 1
}

// signal sends a signal to the node's process if that runs.
func (n *devNode) signal(s unix.Signal) error {
	if n.state() == devStopped {
		return nil
	}
	if err := unix.Kill(n.PID, s); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal node %d, process %d: %w", n.ID, n.PID, err)
	}
	return nil
}

// processState reads the state letter of a process and when it was started, in clock
// ticks since the machine was (proc_pid_stat(5), fields 3 and 22).
func processState(pid int) (state byte, started uint64, err error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	text := string(content)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // the name may hold anything
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	started, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0][0], started, err
}

package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/server"
)

// Before a node is started its ports are looked at: what holds one would otherwise be
// taken for the node, or be found at the end of its log only.

// portTaken is a port of a node that somebody else listens on.
type portTaken struct {
	node    int
	address string // host:port
	use     string // what the node wants it for
	by      string // who has it, for people
}

func (e *portTaken) Error() string {
	return fmt.Sprintf("node %d cannot listen for %s on %s: %s has that port", e.node, e.use, e.address, e.by)
}

// devPortPatience is how long a port may be in use by what is gone a moment later.
const devPortPatience = time.Second

// portsFree returns a portTaken for the first port of a node that is in use, and stays so
// for patience if nobody is found who has it.
func (n *devNode) portsFree(patience time.Duration) error {
	for _, p := range []struct{ use, address string }{{"clients", n.Client}, {"other nodes", n.Peer}, {"HTTP", n.HTTP}} {
		for end := time.Now().Add(patience); ; time.Sleep(devPoll) {
			l, err := net.Listen("tcp", p.address)
			if err == nil {
				_ = l.Close()
			}
			if !errors.Is(err, syscall.EADDRINUSE) {
				break // what else may be wrong the node says itself
			}
			by, found := listenerOn(p.address)
			if found || time.Now().After(end) {
				return &portTaken{node: n.ID, address: p.address, use: p.use, by: by}
			}
		}
	}
	return nil
}

// portsFree returns a portTaken for the first port of a cluster that is in use.
func (d *devCluster) portsFree() error {
	for i := range d.Nodes {
		if err := d.Nodes[i].portsFree(devPortPatience); err != nil {
			return err
		}
	}
	return nil
}

// isNode returns a portTaken if the broker that answers at the address of a node is not
// the one whose directory that node has.
func (d *devCluster) isNode(n *devNode, who client.Info) error {
	cluster, node, err := server.DataIdentity(d.dataDir(n))
	if err == nil && who.ClusterID == cluster && who.Node == node {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	by, _ := listenerOn(n.Client)
	return &portTaken{node: n.ID, address: n.Client, use: "clients", by: fmt.Sprintf("node %d of another cluster, %s,", who.Node, by)}
}

// otherPorts adds to a portTaken what to do: a cluster in dir would have ports of its own.
func (d *devCluster) otherPorts(err error, dir string) error {
	text := ""
	if base := freeBase(len(d.Nodes), d.basePort()); base > 0 {
		text = fmt.Sprintf(", or have a cluster on other ports with: lockstep dev up --nodes %d --base-port %d", len(d.Nodes), base)
		if dir == d.dir {
			text += devDirFlag(dir)
		} else {
			text += " --dir " + dir
		}
	}
	return fmt.Errorf("%w; stop that, and run this again%s", err, text)
}

// basePort is the first port of the first node.
func (d *devCluster) basePort() int {
	_, port, _ := net.SplitHostPort(d.Nodes[0].Client)
	number, _ := strconv.Atoi(port)
	return number
}

// freeBase finds a base whose ports are free for as many nodes, above taken; 0 if it
// finds none.
func freeBase(nodes, taken int) int {
	const step, tries = 1000, 10
	for base := taken + step; base < taken+tries*step && base+maxDevNodes*devPorts <= 1<<16; base += step {
		free := true
		for _, n := range newDevCluster("", nodes, base).Nodes {
			free = free && n.portsFree(0) == nil
		}
		if free {
			return base
		}
	}
	return 0
}

// listenerOn names the process that listens on a port of this machine, as far as this
// user may know (proc_pid_fd(5), proc_pid_net(5)).
func listenerOn(address string) (who string, found bool) {
	const unknown = "a process of another user"
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return unknown, false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return unknown, false
	}
	sockets := map[string]bool{}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for _, inode := range listening(name, uint16(number)) {
			sockets["socket:["+inode+"]"] = true
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || !sockets[to] {
			continue
		}
		pid := strings.Split(link, "/")[2]
		command, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		return fmt.Sprintf("process %s (%s)", pid, commandText(command)), true
	}
	return unknown, false
}

// listening returns the inodes of the sockets that listen on a port, from one of the
// kernel's tables.
func listening(table string, port uint16) (inodes []string) {
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	const stateListen = "0A"
	end := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[1], end) && fields[3] == stateListen {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}

// commandText is a command line as people read it, not more than the beginning.
func commandText(cmdline []byte) string {
	const most = 80
	text := oneLine(strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")))
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

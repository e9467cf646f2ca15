package cli

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// guardScript reads the process groups of all commands that run, a line for each change,
// and kills those of the last line when nobody is left who could write another.
const guardScript = `trap '' HUP INT TERM; while read -r line; do groups=$line; done; for g in $groups; do kill -KILL "-$g"; done`

// A guard is a shell beside one run of --exec that outlives it by an instant: however this
// process ends, SIGKILL included, the groups of its commands are killed. Pdeathsig reaches
// only the shell of a command, and not what that shell has started. What a command has put
// into a process group of its own is in no list. Safe for concurrent use.
type guard struct {
	shell *exec.Cmd
	pipe  *os.File // to the shell; its end is what the shell waits for

	mu     sync.Mutex
	groups map[int]bool
}

// newGuard starts the shell; close ends it.
func newGuard() (*guard, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCommand, err)
	}
	defer read.Close()
	g := &guard{shell: exec.Command("/bin/sh", "-c", guardScript), pipe: write, groups: make(map[int]bool)}
	g.shell.Stdin = read
	g.shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt of the terminal is not for it
	if err := g.shell.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("%w: %w", errCommand, err)
	}
	return g, nil
}

// add is called as soon as a command runs. Until then Pdeathsig is all that there is.
func (g *guard) add(group int) { g.change(group, true) }

// remove is called before the command is reaped: its number may belong to others then.
func (g *guard) remove(group int) { g.change(group, false) }

func (g *guard) change(group int, runs bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if runs {
		g.groups[group] = true
	} else {
		delete(g.groups, group)
	}
	list := strings.Trim(fmt.Sprint(slices.Sorted(maps.Keys(g.groups))), "[]")
	_, _ = g.pipe.WriteString(list + "\n") // if somebody has killed the shell, there is Pdeathsig still
}

// close ends the shell, when no command runs any more.
func (g *guard) close() {
	g.pipe.Close()
	_ = g.shell.Wait() // how it ended matters to nobody
}

package cli

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// errOutputClosed is returned when the reader of stdout went away. The command
// ends quietly and successfully: nobody wants the rest.
var errOutputClosed = errors.New("output closed")

// outputError maps a write error of stdout.
func outputError(err error) error {
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		return errOutputClosed
	}
	return err
}

// outputFlag adds -o table|json.
func outputFlag(c *cobra.Command) *choiceFlag {
	f := newChoice("table", "table", "json")
	c.Flags().VarP(f, "output", "o", "how to print: table or json")
	return f
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return outputError(e.Encode(v))
}

// printTable writes rows under a header, columns aligned, without borders: good
// for eyes and for awk. Columns named in right are aligned to the right.
func (a *app) printTable(header []string, rows [][]string, right ...string) error {
	w := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft = ""
	style.Box.PaddingRight = "  "
	style.Format.Header = text.FormatUpper
	w.SetStyle(style)
	w.AppendHeader(tableRow(header))
	for _, r := range rows {
		w.AppendRow(tableRow(r))
	}
	var columns []table.ColumnConfig
	for i, h := range header {
		for _, name := range right {
			if h == name {
				columns = append(columns, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
			}
		}
	}
	w.SetColumnConfigs(columns)
	var out strings.Builder
	for _, line := range strings.Split(w.Render(), "\n") {
		out.WriteString(strings.TrimRight(line, " "))
		out.WriteByte('\n')
	}
	_, err := io.WriteString(a.stdout, out.String())
	return outputError(err)
}

func tableRow(cells []string) table.Row {
	row := make(table.Row, len(cells))
	for i, c := range cells {
		row[i] = c
	}
	return row
}

// isTerminal reports whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminalWidth is the number of columns of a terminal, 80 if it does not tell.
func terminalWidth(w any) int {
	if f, ok := w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
	}
	return 80
}

// outputQueueBytes bounds what waits for a slow stdout, in bytes. When it is
// reached, append blocks.
const outputQueueBytes = 1 << 20

// outputWatchInterval is how long a command with nothing to write lives on after
// the reader of its output has gone.
const outputWatchInterval = 200 * time.Millisecond

// outputQueue gathers output while the previous piece is being written. One
// goroutine writes whatever is there as soon as there is something: nothing
// waits for a timer when records come slowly, and a fast stream is written in
// large pieces.
type outputQueue struct {
	w    io.Writer
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	changed sync.Cond // pending, err or closed changed
	pending []byte    // not yet taken by the goroutine
	err     error     // first write error; later appends return it
	closed  bool
}

// newOutputQueue starts the goroutine; close ends it.
func newOutputQueue(w io.Writer) *outputQueue {
	q := &outputQueue{w: w, done: make(chan struct{})}
	q.changed.L = &q.mu
	go q.run()
	return q
}

// append hands fill the queue's buffer to append to. It blocks while the queue
// is full and returns the first error of writing.
func (q *outputQueue) append(fill func(dst []byte) []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.pending) >= outputQueueBytes && q.err == nil {
		q.changed.Wait()
	}
	if q.err != nil {
		return q.err
	}
	wasEmpty := len(q.pending) == 0
	q.pending = fill(q.pending)
	if wasEmpty {
		q.changed.Broadcast()
	}
	return nil
}

// watch ends when nobody reads the output any more, which no write has told yet,
// and calls gone; or when the queue has ended.
func (q *outputQueue) watch(gone func()) {
	watchReader(q.w, q.done, func() {
		q.mu.Lock()
		if q.err == nil {
			q.err = errOutputClosed
		}
		q.mu.Unlock()
		gone()
	})
}

// watchReader calls gone when nobody reads w any more, and returns; or when done is closed.
func watchReader(w io.Writer, done <-chan struct{}, gone func()) {
	ticker := time.NewTicker(outputWatchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
		}
		if readerGone(w) {
			gone()
			return
		}
	}
}

// readerGone reports whether nobody reads w any more: of a file also if nothing was written
// since, of others if a write has told.
func readerGone(w io.Writer) bool {
	if s, ok := w.(*sharedWriter); ok {
		return s.readerGone()
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	gone := false
	_ = raw.Control(func(fd uintptr) { // fails when this process has closed it
		fds := []unix.PollFd{{Fd: int32(fd)}} // errors are always told
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
	})
	return gone
}

func (q *outputQueue) run() {
	defer close(q.done)
	var buffer []byte
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.pending) == 0 && !q.closed {
			q.changed.Wait()
		}
		if len(q.pending) == 0 {
			return
		}
		buffer, q.pending = q.pending, buffer[:0]
		q.mu.Unlock()
		_, err := q.w.Write(buffer)
		q.mu.Lock()
		if err != nil {
			q.err = outputError(err)
			q.changed.Broadcast()
			return
		}
		q.changed.Broadcast()
	}
}

// failed is closed when writing failed or the queue was closed.
func (q *outputQueue) failed() <-chan struct{} { return q.done }

// close writes what is left, waits for it and returns the first error.
func (q *outputQueue) close() error {
	q.mu.Lock()
	q.closed = true
	q.changed.Broadcast()
	q.mu.Unlock()
	<-q.done
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

package cli

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"
	"github.com/jedib0t/go-pretty/v6/text"
)

const (
	// progressInterval is how often a bar on a terminal is drawn.
	progressInterval = 200 * time.Millisecond
	// progressLineInterval is how often a line is printed where there is no terminal.
	progressLineInterval = 5 * time.Second
)

// progressBar shows how far a command is, on stderr: a bar on a terminal,
// otherwise a line now and then, or nothing. Its methods may be called from any
// goroutine; set is cheap enough to be called for every record.
type progressBar struct {
	message string
	bytes   bool
	total   int64
	value   atomic.Int64
	stop    chan struct{}
	once    sync.Once
	done    sync.WaitGroup
}

// progressKind says what to do where stderr is not a terminal.
type progressKind bool

const (
	quietWithoutTerminal progressKind = false
	linesWithoutTerminal progressKind = true
)

// startProgress shows a bar of total units, bytes or records; total 0 means that
// the end is not known.
func startProgress(w io.Writer, message string, total int64, inBytes bool, kind progressKind) *progressBar {
	p := &progressBar{message: message, bytes: inBytes, total: total, stop: make(chan struct{})}
	switch {
	case isTerminal(w):
		p.done.Go(func() { p.draw(w) })
	case kind == linesWithoutTerminal:
		p.done.Go(func() { p.print(w) })
	}
	return p
}

func (p *progressBar) set(n int64) { p.value.Store(n) }
func (p *progressBar) add(n int64) { p.value.Add(n) }

// finish takes the bar away.
func (p *progressBar) finish() {
	p.once.Do(func() { close(p.stop) })
	p.done.Wait()
}

func (p *progressBar) draw(w io.Writer) {
	units := progress.UnitsDefault
	if p.bytes {
		units = progress.UnitsBytes
	}
	tracker := &progress.Tracker{Message: p.message, Total: p.total, Units: units}
	screen := &countingWriter{w: w}
	writer := progress.NewWriter()
	writer.SetOutputWriter(screen)
	writer.SetTerminalWidth(terminalWidth(w)) // a line that wraps could not be drawn over
	writer.SetStyle(progress.StyleBlocks)
	writer.SetTrackerLength(20)
	writer.SetTrackerPosition(progress.PositionRight)
	writer.SetUpdateFrequency(progressInterval)
	writer.Style().Options.TimeInProgressPrecision = 100 * time.Millisecond
	writer.Style().Visibility.Speed = true
	writer.Style().Visibility.ETA = p.total > 0
	writer.Style().Visibility.TrackerOverall = false
	writer.AppendTracker(tracker)
	var rendering sync.WaitGroup
	rendering.Go(writer.Render)
	ticks := time.NewTicker(progressInterval / 2)
	defer ticks.Stop()
	for running := true; running; {
		select {
		case <-p.stop:
			running = false
		case <-ticks.C:
			// A full tracker would end by itself and leave its line behind.
			if n := p.value.Load(); p.total == 0 || n < p.total {
				tracker.SetValue(n)
			}
		}
	}
	writer.Stop()
	rendering.Wait()
	if screen.bytes > 0 {
		fmt.Fprint(w, text.CursorUp.Sprint(), text.EraseLine.Sprint()) // take the bar away
	}
}

// countingWriter knows whether anything was written.
type countingWriter struct {
	w     io.Writer
	bytes int
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.bytes += n
	return n, err
}

func (p *progressBar) print(w io.Writer) {
	ticks := time.NewTicker(progressLineInterval)
	defer ticks.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-ticks.C:
			n := p.value.Load()
			done := formatCount(n)
			if p.bytes {
				done = formatSize(n)
			}
			if p.total > 0 {
				fmt.Fprintf(w, "%s: %s (%d %%)\n", p.message, done, n*100/p.total)
			} else {
				fmt.Fprintf(w, "%s: %s\n", p.message, done)
			}
		}
	}
}

// formatCount writes a number with thousands separated by commas.
func formatCount(n int64) string {
	s := fmt.Sprint(n)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(s) - 3; i > start; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

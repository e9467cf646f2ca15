package sim

import (
	"context"
	"fmt"
	"hash"
	"hash/fnv"
	"log/slog"
)

// maxTraceLines bounds the lines that a trace keeps; the newest win.
const maxTraceLines = 1 << 16

// trace is what happened, a line for each event. Two runs of one seed have the
// same hash.
type trace struct {
	lines []string
	next  int // where the next line goes once there are maxTraceLines
	hash  hash.Hash64
}

func newTrace() trace { return trace{hash: fnv.New64a()} }

func (t *trace) add(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	_, _ = t.hash.Write([]byte(line))
	_, _ = t.hash.Write([]byte{'\n'})
	if len(t.lines) < maxTraceLines {
		t.lines = append(t.lines, line)
		return
	}
	t.lines[t.next] = line
	t.next = (t.next + 1) % maxTraceLines
}

// all returns the lines that are kept, oldest first.
func (t *trace) all() []string {
	return append(append([]string(nil), t.lines[t.next:]...), t.lines[:t.next]...)
}

// logger makes the broker's own messages part of the trace.
func (t *trace) logger() *slog.Logger { return slog.New(&traceHandler{trace: t}) }

type traceHandler struct {
	trace *trace
	attrs string
}

func (h *traceHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *traceHandler) Handle(_ context.Context, r slog.Record) error {
	line := "    log: " + r.Message + h.attrs
	r.Attrs(func(a slog.Attr) bool {
		line += format(a)
		return true
	})
	h.trace.add("%s", line)
	return nil
}

func (h *traceHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	for _, a := range attrs {
		with.attrs += format(a)
	}
	return &with
}

func (h *traceHandler) WithGroup(string) slog.Handler { return h }

// format writes an attribute, but no stacks: their addresses differ between runs.
func format(a slog.Attr) string {
	if a.Key == "stack" {
		return ""
	}
	return fmt.Sprintf(" %s=%v", a.Key, a.Value)
}

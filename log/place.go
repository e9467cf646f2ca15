package log

import "github.com/lockstepmq/lockstep/wire"

// Place is where the body of entry i lies, of which the caller knows that it has n bytes,
// if the log still has that in memory: it keeps it of the latest entries. Owner only. It
// holds for as long as the entry does: for good once it is committed.
func (l *Log) Place(i wire.Index, n int) (Position, bool) {
	p, ok := l.place(i)
	if !ok || p.seg == nil {
		return Position{}, false
	}
	return Position{Segment: p.seg.Sequence(), Byte: p.end - wire.FrameSize(n) + wire.FrameHeaderSize}, true
}

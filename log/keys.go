package log

import (
	"errors"
	"sort"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/wire"
)

// KeepKeys says whether somebody will ask for records by the hashes of their keys or
// publishers: then each sealed segment gets a key table, one after the other, the oldest
// first. Without tables NextOf reads the record indexes, which takes longer and finds the
// same. Owner only.
func (l *Log) KeepKeys(on bool) {
	l.tables = on
	l.tabulate()
}

// tabulate submits the next keysJob.
func (l *Log) tabulate() {
	if !l.tables || l.tabulating || l.closed || l.err != nil || l.tableGen == l.store.spaceGen.Load()+1 {
		return
	}
	if l.tableLost.Load() && l.tableLost.Swap(false) {
		l.tableNext = 0
	}
	list := *l.segments.Load()
	w := l.watermark.Load()
	for n := l.sealed(); l.tableNext < n; l.tableNext++ {
		s := list[l.tableNext]
		if s.Sequence() >= w.Position.Segment {
			return
		}
		if s.Keys() == segment.KeysUnknown && s.Acquire() {
			l.tabulating = true
			l.o.Executor.Submit(&keysJob{l: l, seg: s, next: list[l.tableNext+1].Previous().Next})
			return
		}
	}
}

// keysJob looks for the key table of a sealed segment, and makes it if there is none that
// can be used.
type keysJob struct {
	l    *Log
	seg  *segment.Segment
	next wire.Offset
	ran  bool
	// unwritten says that err is that of the table's file, and not of what it is made of.
	unwritten bool
	err       error
}

func (j *keysJob) Run() {
	if !j.l.gate.enter() {
		return
	}
	defer j.l.gate.leave()
	j.ran = true
	if _, f, err := j.seg.OpenKeys(); err == nil {
		j.seg.SetKeys(segment.KeysThere)
		j.err = f.Close()
		return
	}
	j.err = j.make()
}

// make reads the record indexes of the segment. What cannot be described whole gets no
// table: damage may be repaired, and then its records must be found.
func (j *keysJob) make() error {
	l := j.l
	// One at a time in a store: it is the memory that counts.
	l.store.tableMu.Lock()
	defer l.store.tableMu.Unlock()
	w := j.seg.NewKeysWriter(l.store.keepFree)
	described, err := j.describe(w)
	switch {
	case described:
		j.unwritten = true
		return w.Finish(j.next)
	case !j.unwritten:
		j.seg.SetKeys(segment.KeysNone)
	}
	return errors.Join(err, w.Abort())
}

// describe gives a table everything but its end. It is false if there can be none, or,
// with unwritten, if it cannot be written now.
func (j *keysJob) describe(w *segment.KeysWriter) (bool, error) {
	l := j.l
	var s Scanned
	for o := max(j.seg.Previous().Next, l.StartOffset()); o < j.next; {
		err := l.Scan(o, int(min(j.next-o, findRecords)), &s)
		if errors.Is(err, ErrOffsetOutOfRange) && o < l.StartOffset() {
			o = l.StartOffset()
			continue
		}
		if err != nil || len(s.Batches) == 0 {
			return false, err // whoever reads the segment will say what is wrong with it
		}
		for i := range s.Batches {
			b := &s.Batches[i]
			from := max(o, b.Base)
			o = b.Next()
			if b.Erased {
				continue
			}
			if b.Damaged || !w.Publishers.Add(b.Publisher, from, int(o-from)) {
				return false, nil
			}
			for ; from < o && len(b.Index) > 0; from++ {
				if !w.Keys.Add(b.key(from), from, 1) {
					return false, nil
				}
			}
			if err := w.Cut(o); err != nil {
				j.unwritten = true
				return false, err
			}
		}
	}
	return true, nil
}

func (j *keysJob) Done() {
	l := j.l
	l.tabulating = false
	j.seg.Release()
	if l.closed || l.err != nil || !j.ran {
		return
	}
	switch {
	case j.err == nil:
		l.tableGen = 0
	case !j.unwritten:
		l.logger.Warn("records of a segment have no key table, they are searched for in the segment itself", "dir", l.o.Dir, "segment", j.seg.Name(), "cause", j.err)
	case !isPassing(j.err):
		l.fence(j.err)
		return
	default:
		if l.tableGen == 0 {
			l.logger.Warn("key table is not written, records are searched for in the segment itself until there is space", "dir", l.o.Dir, "segment", j.seg.Name(), "cause", j.err)
		}
		l.tableGen = l.store.spaceGen.Load() + 1
	}
	l.tabulate()
}

// tableOf is the segment that holds o, if its key table is there, and where the next one
// begins.
func (l *Log) tableOf(o wire.Offset) (s *segment.Segment, next wire.Offset) {
	w := l.Watermark()
	list := *l.segments.Load()
	i := sort.Search(len(list), func(i int) bool {
		return list[i].Sequence() > w.Position.Segment || list[i].Previous().Next > o
	}) - 1
	if i < 0 || i+1 == len(list) || list[i].Sequence() >= w.Position.Segment || list[i].Keys() != segment.KeysThere || o < l.StartOffset() || !list[i].Acquire() {
		return nil, 0
	}
	return list[i], list[i+1].Previous().Next
}

// runsOf yields the runs of a hash that end behind from in a segment whose key table is
// there. It is false if the table cannot be read: then the segment can, and the table is
// made again.
func (l *Log) runsOf(s *segment.Segment, hash uint64, publisher bool, from wire.Offset, yield func(from, to wire.Offset) bool) bool {
	t, f, err := s.OpenKeys()
	if err == nil {
		err = errors.Join(t.Runs(hash, publisher, from, yield), f.Close())
	}
	if err == nil {
		return true
	}
	s.SetKeys(segment.KeysUnknown)
	l.tableLost.Store(true)
	return false
}

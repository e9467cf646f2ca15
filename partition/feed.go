package partition

import (
	"slices"
	"sort"
	"unsafe"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// Limits of a feed.
const (
	// MaxFeedBytes bounds the memory of one partition's feed; beyond it what was not looked
	// at for the longest time goes, and is scanned again when it is asked for.
	MaxFeedBytes = 4 << 20
	// ScanRecords is how many records a scan for a feed looks at.
	ScanRecords = 16 << 10
	// chunkIndexBytes is the memory for record indexes of a chunk that Apply fills.
	chunkIndexBytes = 64 << 10
)

// feed is what a partition knows of where its records are and which keys they have,
// without reading them: descriptors of batches in chunks without gaps. The end of the log is
// filled when entries are applied, while somebody consumes; what is older is scanned when
// it is asked for. Owner only.
type feed struct {
	on     bool
	chunks []*chunk // by offset, none empty, none overlaps another
	open   *chunk   // that Apply fills; nil if the next batch begins one
	last   *chunk   // where At found something last
	clock  uint64   // of At
	bytes  int
}

// chunk is a run of batches. Places of a chunk that was dropped stay valid for who holds
// them.
type chunk struct {
	places []group.Place
	index  []byte // of the places; it never moves
	used   uint64
	bytes  int
}

const placeBytes = int(unsafe.Sizeof(group.Place{}))

func (c *chunk) from() wire.Offset { return c.places[0].Base }
func (c *chunk) to() wire.Offset   { return c.places[len(c.places)-1].Next() }

// use turns the feed on, or off: then it forgets everything.
func (f *feed) use(on bool) {
	if f.on != on {
		*f = feed{on: on, clock: f.clock}
	}
}

// search is the place of the first chunk that ends behind o.
func (f *feed) search(o wire.Offset) int {
	return sort.Search(len(f.chunks), func(i int) bool { return f.chunks[i].to() > o })
}

// At implements group.Feed.
func (f *feed) At(o wire.Offset) (*group.Place, bool) {
	c := f.last
	if c == nil || o < c.from() || o >= c.to() {
		i := f.search(o)
		if i == len(f.chunks) || f.chunks[i].from() > o {
			return nil, false
		}
		c = f.chunks[i]
		f.last = c
		f.clock++
		c.used = f.clock
	}
	i := sort.Search(len(c.places), func(i int) bool { return c.places[i].Next() > o })
	return &c.places[i], true
}

// applied takes in the batches of an entry of records that was just applied. known is false
// if it is not known where the body lies: that is scanned when it is asked for.
func (f *feed) applied(at log.Position, known bool, e *Entry) {
	switch {
	case !f.on || e.RecordCount == 0:
		return
	case e.Damaged:
		f.add(&group.Place{Base: e.BaseOffset, Count: int(e.RecordCount), Damaged: true})
		return
	case !known:
		f.open = nil
		return
	}
	base := e.BaseOffset
	for body := e.Body; len(body) > 0; {
		b, rest, err := wire.NextBodyBatch(body)
		if err != nil {
			f.open = nil // a scan says what is wrong with it
			return
		}
		info, err := wire.ParseBatch(b.Batch)
		if err != nil || info.BaseOffset != base {
			f.open = nil
			return
		}
		p := group.Place{
			At: at, IndexBytes: len(b.Index), BatchBytes: len(b.Batch), Base: base, Count: int(info.RecordCount), Compressed: info.Codec != wire.CodecNone,
		}
		if len(b.Index) > 0 {
			p.Publisher, p.Index = log.IndexEntries(b.Index, p.Count)
		}
		f.add(&p)
		base = p.Next()
		at.Byte += int64(wire.BodyBatchSize(p.IndexBytes, p.BatchBytes))
		body = rest
	}
}

// add appends a batch at the end of the log. Its index is copied.
func (f *feed) add(p *group.Place) {
	c := f.open
	if c == nil || c.to() != p.Base || len(c.index)+len(p.Index) > cap(c.index) || len(c.places) == cap(c.places) && len(c.places) >= chunkIndexBytes/16 {
		if n := len(f.chunks); n > 0 && f.chunks[n-1].to() > p.Base {
			return // a scan was faster
		}
		f.clock++
		c = &chunk{index: make([]byte, 0, max(chunkIndexBytes, len(p.Index))), used: f.clock}
		c.bytes = cap(c.index)
		f.bytes += c.bytes
		f.open = c
		f.chunks = append(f.chunks, c)
	}
	at := len(c.index)
	c.index = append(c.index, p.Index...)
	p.Index = c.index[at:len(c.index):len(c.index)]
	c.places = append(c.places, *p)
	c.bytes += placeBytes
	f.bytes += placeBytes
	f.evict(c)
}

// scanned takes in what Log.Scan has found. The memory of the batches is the feed's from
// then on.
func (f *feed) scanned(batches []log.Batch) {
	if f.open != nil { // what Apply has filled in is the same and stays
		batches = batches[:sort.Search(len(batches), func(i int) bool { return batches[i].Next() > f.open.from() })]
	}
	if !f.on || len(batches) == 0 {
		return
	}
	f.clock++
	c := &chunk{places: make([]group.Place, len(batches)), used: f.clock}
	for i := range batches {
		b := &batches[i]
		c.places[i] = group.Place{
			At: b.At, IndexBytes: b.IndexBytes, BatchBytes: b.BatchBytes, Base: b.Base, Count: b.Count, Publisher: b.Publisher,
			Compressed: b.Compressed, Damaged: b.Damaged, Erased: b.Erased, Index: b.Index,
		}
		c.bytes += placeBytes + len(b.Index)
	}
	from, to := c.from(), c.to()
	i := f.search(from)
	j := i
	for ; j < len(f.chunks) && f.chunks[j].from() < to; j++ {
		f.forget(f.chunks[j])
	}
	f.chunks = slices.Replace(f.chunks, i, j, c)
	f.bytes += c.bytes
	f.evict(c)
}

// drop forgets the batches that hold records of [from, to): what is asked for again is
// read again.
func (f *feed) drop(from, to wire.Offset) {
	f.chunks = slices.DeleteFunc(f.chunks, func(c *chunk) bool {
		hit := c.from() < to && from < c.to()
		if hit {
			f.forget(c)
		}
		return hit
	})
}

func (f *feed) forget(c *chunk) {
	f.bytes -= c.bytes
	if f.last == c {
		f.last = nil
	}
	if f.open == c {
		f.open = nil
	}
}

// evict drops what was not looked at for the longest time, except what has just come.
func (f *feed) evict(but *chunk) {
	for f.bytes > MaxFeedBytes && len(f.chunks) > 1 {
		oldest := -1
		for i, c := range f.chunks {
			if c != but && c != f.open && (oldest < 0 || c.used < f.chunks[oldest].used) {
				oldest = i
			}
		}
		if oldest < 0 {
			return
		}
		f.forget(f.chunks[oldest])
		f.chunks = slices.Delete(f.chunks, oldest, oldest+1)
	}
}

package segment

import (
	"sync"
	"sync/atomic"
)

// Cache bounds how many resources of one kind (open files, maps) are held. A
// resource that somebody uses is never closed: the limit can be exceeded by what
// is in use at once. All methods may be called from any goroutine.
type Cache struct {
	limit int
	tick  atomic.Uint64 // counts insertions; the clock of "recently used"

	mu    sync.Mutex
	items []*resource
}

// NewCache makes a cache that closes the least recently used resource when more
// than limit are held.
func NewCache(limit int) *Cache { return &Cache{limit: max(limit, 1)} }

// Len is the number of resources held.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.items)
}

// resource counts the users of a file or map. One reference belongs to the
// cache; at zero it is closed and never comes back.
type resource struct {
	refs  atomic.Int32
	used  atomic.Uint64
	cache *Cache
	slot  int // in cache.items, under cache.mu; -1 when removed
	close func()
}

// acquire takes a reference. It is false if the resource is closed.
func (r *resource) acquire() bool {
	for {
		n := r.refs.Load()
		if n == 0 {
			return false
		}
		if r.refs.CompareAndSwap(n, n+1) {
			r.used.Store(r.cache.tick.Load())
			return true
		}
	}
}

func (r *resource) release() {
	if r.unref() {
		r.close()
	}
}

// unref gives a reference back and reports whether it was the last.
func (r *resource) unref() bool {
	n := r.refs.Add(-1)
	if n < 0 {
		panic("segment: resource released more often than acquired")
	}
	return n == 0
}

// insert adds a resource with two references, the cache's and the caller's, and
// closes the least recently used idle one if there are too many.
func (c *Cache) insert(r *resource) {
	r.cache = c
	r.refs.Store(2)
	r.used.Store(c.tick.Add(1))
	var victim *resource
	c.mu.Lock()
	r.slot = len(c.items)
	c.items = append(c.items, r)
	if len(c.items) > c.limit {
		victim = c.evictLocked()
	}
	c.mu.Unlock()
	if victim != nil {
		victim.close()
	}
}

// evictLocked removes the least recently used resource that nobody uses. Looking
// at all of them is cheap beside the open or mmap that brought us here.
func (c *Cache) evictLocked() *resource {
	for {
		var oldest *resource
		for _, r := range c.items {
			if r.refs.Load() == 1 && (oldest == nil || r.used.Load() < oldest.used.Load()) {
				oldest = r
			}
		}
		if oldest == nil {
			return nil
		}
		if oldest.refs.CompareAndSwap(1, 0) {
			c.removeLocked(oldest)
			return oldest
		}
	}
}

func (c *Cache) removeLocked(r *resource) {
	last := len(c.items) - 1
	c.items[r.slot] = c.items[last]
	c.items[r.slot].slot = r.slot
	c.items[last] = nil
	c.items = c.items[:last]
	r.slot = -1
}

// retire gives up the cache's reference: the resource closes with its last user.
func (c *Cache) retire(r *resource) {
	c.mu.Lock()
	held := r.slot >= 0
	if held {
		c.removeLocked(r)
	}
	c.mu.Unlock()
	if held {
		r.release()
	}
}

package segment

import "sync/atomic"

// chunkSize is how many elements a list grows by.
const chunkSize = 32

// list is an append-only sequence with one writer and any number of readers,
// who never wait: an element is complete before the length that covers it is
// stored, and it never moves.
type list[T any] struct {
	chunks atomic.Pointer[[]*[chunkSize]T]
	n      atomic.Int64
}

func newList[T any]() *list[T] {
	l := &list[T]{}
	l.chunks.Store(&[]*[chunkSize]T{})
	return l
}

// next returns the place of the element that commit will add. Writer only.
func (l *list[T]) next() *T {
	n := int(l.n.Load())
	chunks := *l.chunks.Load()
	if n/chunkSize == len(chunks) {
		grown := make([]*[chunkSize]T, len(chunks)+1)
		copy(grown, chunks)
		grown[len(chunks)] = new([chunkSize]T)
		l.chunks.Store(&grown)
		chunks = grown
	}
	return &chunks[n/chunkSize][n%chunkSize]
}

func (l *list[T]) commit() { l.n.Add(1) }

func (l *list[T]) len() int { return int(l.n.Load()) }

// at returns element i, which must be below a length read before.
func (l *list[T]) at(i int) *T {
	return &(*l.chunks.Load())[i/chunkSize][i%chunkSize]
}

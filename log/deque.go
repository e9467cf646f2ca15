package log

// deque is a ring buffer: append at the back, take from both ends, O(1) each. It
// grows by doubling and gives its memory back when it becomes empty and was
// large.
type deque[T any] struct {
	ring []T // length is zero or a power of two
	head int
	n    int
}

const dequeKeep = 1024 // elements that an empty deque may keep room for

func (d *deque[T]) len() int { return d.n }

// at returns element i from the front.
func (d *deque[T]) at(i int) *T { return &d.ring[(d.head+i)&(len(d.ring)-1)] }

func (d *deque[T]) back() *T { return d.at(d.n - 1) }

func (d *deque[T]) push(v T) {
	if d.n == len(d.ring) {
		grown := make([]T, max(8, 2*len(d.ring)))
		for i := range d.n {
			grown[i] = *d.at(i)
		}
		d.ring, d.head = grown, 0
	}
	d.n++
	*d.back() = v
}

func (d *deque[T]) popFront() {
	var zero T
	*d.at(0) = zero
	d.head = (d.head + 1) & (len(d.ring) - 1)
	d.n--
	if d.n == 0 && len(d.ring) > dequeKeep {
		d.ring, d.head = nil, 0
	}
}

// truncate keeps the first n elements.
func (d *deque[T]) truncate(n int) {
	var zero T
	for d.n > n {
		*d.back() = zero
		d.n--
	}
}

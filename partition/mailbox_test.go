package partition

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Every entry takes a buffer and gives it back.
func TestABufferGoesBackWithoutAnAllocation(t *testing.T) {
	for _, size := range bufferClasses {
		b := newBuffer(size)
		require.Empty(t, b)
		require.Equal(t, size, cap(b))
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			recycle(b)
			b = newBuffer(size)
		}))
		require.Equal(t, size, cap(b))
	}
}

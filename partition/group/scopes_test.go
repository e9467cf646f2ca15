package group

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// As many objects of scopes are kept as are in use, up to a bound, so that those that
// come and go beside them allocate nothing.
func TestScopesThatComeAndGoAllocateNothing(t *testing.T) {
	l := &Leader{scopes: map[Scope]*scope{}}
	begin := func(from, to Scope) {
		for h := from; h < to; h++ {
			l.newScope(h)
		}
	}
	end := func(from, to Scope) {
		for h := from; h < to; h++ {
			l.retire(l.scopes[h])
		}
	}
	begin(0, 6000)
	end(3000, 6000)
	require.Len(t, l.spare, 3000)
	require.Zero(t, testing.AllocsPerRun(10, func() {
		begin(3000, 6000)
		end(3000, 6000)
	}))
	end(0, 3000)
	require.Empty(t, l.scopes)
	require.Len(t, l.spare, 3000)
	begin(0, 100_000)
	end(0, 50_000)
	require.Len(t, l.spare, maxSpare)
}

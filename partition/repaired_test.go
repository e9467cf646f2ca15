package partition

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// What is known of records that were repaired is forgotten, also what a scan brings that began
// before: the groups get them without anything else happening.
func TestRuleL8_RepairedRecordsAreLookedAtAnew(t *testing.T) {
	for name, during := range map[string]bool{"after the scan": false, "during the scan": true} {
		t.Run(name, func(t *testing.T) {
			h, w := newGroups(t)
			h.log.immediate = true
			h.send(-1, 0, 0, 4)
			h.turns(0)
			var began []wire.Offset
			w.scan = func(from wire.Offset) { began = append(began, from) }
			scanned := func(damaged bool) {
				require.NotEmpty(t, began)
				from := began[0]
				began = began[1:]
				h.part.Scanned([]log.Batch{{Base: from, Count: int(4 - from), Damaged: damaged}}, nil)
				h.turns(0)
			}
			h.part.Groups().Intend(20, []Intent{intent(7, "workers")})
			c := h.attach("workers", 1)
			h.turns(0)
			if !during {
				scanned(true)
				require.Empty(t, began)
			}
			h.part.Groups().Repaired(0, 2)
			h.part.Groups().Repaired(3, 4)
			h.turns(0)
			if during {
				scanned(true)
			}
			require.Zero(t, c.records())
			scanned(false)
			require.Equal(t, 4, c.records())
			require.Empty(t, began)
		})
	}
}

package cli

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func TestRecoverSaysWhatIsLost(t *testing.T) {
	replicas := []wire.RemainingReplica{
		{Node: 1}, {Node: 2, Reached: true, Term: 3, Next: 70}, {Node: 4, Reached: true, Uncertain: true, Term: 2, Next: 90},
	}
	const left = "node 1: its replica cannot be reached\nnode 2: its log ends at offset 70 (last term 3)\n" +
		"node 4: its log ends at offset 90 (last term 2); its machine stopped while records were not synced\n" +
		"orders/0 goes on with node 2. Lost is whatever was stored from offset 70 on, acknowledged or not"
	for _, c := range []struct {
		name string
		said client.PartitionRecovery
		want string
	}{
		{"nobody heard the leader", client.PartitionRecovery{}, "; how much that is nobody can say.\n"},
		{"the leader had more", client.PartitionRecovery{HeardNode: 1, HeardEpoch: 3, HeardNext: 75},
			":\nat least the 5 records up to offset 75, where the log of the last leader (node 1) was in its last second.\n"},
		{"the leader had no more", client.PartitionRecovery{HeardNode: 1, HeardEpoch: 3, HeardNext: 60},
			":\nat most what came after the last leader (node 1) said, within its last second, that its log ends at offset 60.\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.said.Node, c.said.Next, c.said.Replicas = 2, 70, replicas
			require.Equal(t, left+c.want, recoveryText("orders/0", &c.said))
		})
	}
}

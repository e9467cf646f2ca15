package client

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/wire"
)

// R-UM-7, R-MQC-12: what a consumer says of a group that it creates.
func TestConsumerOptionsSetTheSettingsOfTheGroup(t *testing.T) {
	var o consumerOptions
	for _, option := range []ConsumerOption{Failback(true), DeliveryLimit(4, wire.DeadLetterRecord, "dead")} {
		option(&o)
	}
	require.Equal(t, wire.GroupSettings{Failback: true, DeliveryLimit: 4, DeadLetterMode: wire.DeadLetterRecord, DeadLetter: "dead"}, o.settings)
}

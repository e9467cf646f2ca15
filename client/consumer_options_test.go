package client

import (
	"testing"
	"time"

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

// What an option cannot mean is an error, not the nearest number; who asks for the order of a scope
// gets it, or hears that there is none.
func TestOptionsOfConsumersAreChecked(t *testing.T) {
	for name, opts := range map[string][]ConsumerOption{
		"AckWait: 0s":             {AckWait(0)},
		"AckWait: -1s":            {AckWait(-time.Second)},
		"DeliveryLimit: -1":       {DeliveryLimit(-1, ParkScope, "")},
		"Scope: it is about Mode": {Mode(Shared), Scope(ByKey)},
		"Scope: it is about":      {Scope(ByPublisher), Mode(Stream)},
	} {
		_, err := newConsumerOptions(append(opts, Group("billing")))
		require.ErrorContains(t, err, "option "+name)
	}
	o, err := newConsumerOptions([]ConsumerOption{Group("billing"), Scope(ByPublisher), AckWait(time.Microsecond)})
	require.NoError(t, err)
	require.Equal(t, Serial, o.settings.Mode)
	require.EqualValues(t, 1, o.settings.AckWaitMs)
	o, err = newConsumerOptions([]ConsumerOption{Group("billing")})
	require.NoError(t, err)
	require.Zero(t, o.settings.Mode, "that of the group")
}

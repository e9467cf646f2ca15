package server

import (
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEveryLimitIsInTheTable(t *testing.T) {
	table, err := os.ReadFile("../docs/limits.md")
	require.NoError(t, err)
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Limits]()) {
		if f.IsExported() {
			require.Contains(t, string(table), "`"+f.Name+"`")
		}
	}
}

func TestLimitsDefaults(t *testing.T) {
	l, err := Limits{}.withDefaults(20_000)
	require.NoError(t, err)
	require.Equal(t, Limits{
		Connections: 15_902, ConnectionsPerAddress: 1_590, Registering: 16, DescriptorReserve: 4_096,
		HandshakeTimeout: 5 * time.Second, FrameTimeout: 10 * time.Second, IdleTimeout: time.Minute, WriteTimeout: 10 * time.Second,
		LingerTimeout: time.Second, LingerBytes: 1 << 20, InFlightRequests: 1024, InFlightBytes: 16 << 20, GroupInboxBytes: 1 << 20, OutboxBytes: 1 << 20,
		Handles: 4096, Links: 1024, LinkCredit: 64 << 20, TemporaryQueues: 1000, TemporaryBytes: 4 << 20, NodeTemporaryQueues: 20_000, NodeTemporaryBytes: 64 << 20,
		InboundBytes: 256 << 20, OutboundBytes: 256 << 20, LogLines: 5, descriptors: 15_904,
	}, l)
}

func TestLimitsAreChecked(t *testing.T) {
	for name, test := range map[string]struct {
		limits      Limits
		descriptors uint64
		want        string
	}{
		"negative":                  {Limits{Links: -1}, 1000, "limit Links is negative: -1"},
		"negative time":             {Limits{IdleTimeout: -time.Second}, 1000, "limit IdleTimeout is negative"},
		"a reserve above the limit": {Limits{DescriptorReserve: 1000}, 1000, "raise the limit"},
		"too few descriptors":       {Limits{}, 64, "raise the limit"},
	} {
		_, err := test.limits.withDefaults(test.descriptors)
		require.ErrorContains(t, err, test.want, name)
	}
}

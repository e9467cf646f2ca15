package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheEarliestDeadlineAheadGetsTheAlarm(t *testing.T) {
	const ms = int64(time.Millisecond)
	a, now := newAlarm(), 1000*ms
	require.Zero(t, a.pause(now))
	a.set(now, now)                     // it is due, and has had its turn
	a.set(now+int64(alarmAhead)+1, now) // the ticks are good enough
	require.Zero(t, a.pause(now))
	require.Empty(t, a.closer)

	a.set(now+50*ms, now)
	require.Equal(t, 50*time.Millisecond, a.pause(now))
	<-a.closer
	a.set(now+60*ms, now)
	require.Equal(t, 50*time.Millisecond, a.pause(now))
	require.Empty(t, a.closer)
	a.set(now+20*ms, now)
	require.Equal(t, 20*time.Millisecond, a.pause(now))
	<-a.closer
	require.Equal(t, alarmGrain, a.pause(now+19*ms), "no more than one in that time")
	require.Equal(t, alarmGrain, a.pause(now+30*ms))
}

package server

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWheelFiresEachTimerAtItsTick(t *testing.T) {
	var w wheel
	w.init(0)
	var early, late, far timer
	w.schedule(&early, 250*time.Millisecond) // tick 3
	w.schedule(&late, 5*time.Second)
	w.schedule(&far, 60*time.Second) // more than one turn of the wheel
	require.Equal(t, 3, w.count)

	var fired []*timer
	fire := func(t *timer) { fired = append(fired, t) }
	w.advance(299*time.Millisecond, 100, fire)
	require.Empty(t, fired)
	w.advance(300*time.Millisecond, 100, fire)
	require.Equal(t, []*timer{&early}, fired)
	w.advance(4999*time.Millisecond, 100, fire)
	require.Len(t, fired, 1)
	w.advance(5*time.Second, 100, fire)
	require.Equal(t, []*timer{&early, &late}, fired)
	for now := 5 * time.Second; now < 60*time.Second; now += slowTick {
		w.advance(now, 100, fire)
	}
	require.Len(t, fired, 2, "a timer beyond one turn of the wheel fired early")
	w.advance(60*time.Second, 100, fire)
	require.Equal(t, []*timer{&early, &late, &far}, fired)
	require.Zero(t, w.count)
}

func TestWheelMovesATimerOnlyToEarlier(t *testing.T) {
	var w wheel
	w.init(10 * time.Second)
	var a timer
	w.schedule(&a, 20*time.Second)
	w.schedule(&a, 30*time.Second)
	require.EqualValues(t, 200, a.at)
	w.schedule(&a, 11*time.Second)
	require.EqualValues(t, 110, a.at)
	require.Equal(t, 1, w.count)
	w.remove(&a)
	w.remove(&a)
	require.Zero(t, w.count)
	w.schedule(&a, time.Second)
	require.EqualValues(t, 100, a.at, "a time in the past is the next tick")
}

func TestWheelSurvivesATimerThatReschedulesItselfAndALongPause(t *testing.T) {
	var w wheel
	w.init(0)
	var a, b timer
	w.schedule(&a, slowTick)
	w.schedule(&b, slowTick)
	count := 0
	w.advance(time.Hour, 100, func(t *timer) {
		count++
		if t == &a {
			w.remove(&b)
			w.schedule(&a, time.Hour+slowTick)
		}
	})
	require.Equal(t, 1, count, "a removed b before it fired, and itself fires once an advance")
	w.advance(2*time.Hour, 100, func(*timer) { count++ })
	require.Equal(t, 2, count)
}

// Thousands of timers that are due together fire in portions, so that the loop can
// look at its sockets in between.
func TestWheelFiresInPortions(t *testing.T) {
	var w wheel
	w.init(0)
	timers := make([]timer, 10)
	for i := range timers {
		w.schedule(&timers[i], slowTick)
	}
	var next, later timer
	w.schedule(&next, 2*slowTick)
	w.schedule(&later, (wheelSlots+1)*slowTick) // in the same slot
	var fired []*timer
	fire := func(t *timer) {
		if fired = append(fired, t); len(fired) == 5 {
			w.remove(&timers[9])
			w.schedule(&timers[0], slowTick) // once more, at the next tick
		}
	}
	require.True(t, w.advance(2*slowTick, 4, fire))
	require.Len(t, fired, 4)
	require.True(t, w.advance(2*slowTick, 4, fire))
	require.Len(t, fired, 8)
	require.False(t, w.advance(2*slowTick, 4, fire))
	require.Equal(t, []*timer{
		&timers[0], &timers[1], &timers[2], &timers[3], &timers[4], &timers[5], &timers[6], &timers[7], &timers[8], &next, &timers[0],
	}, fired)
	require.Equal(t, 1, w.count, "the later one")
}

func TestWheelAgreesWithAListOfDeadlines(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var w wheel
	w.init(0)
	timers := make([]timer, 500)
	want := make(map[*timer]int64)
	fire := func(now int64) func(*timer) {
		return func(t *timer) {
			if want[t] > now {
				panic("early")
			}
			delete(want, t)
		}
	}
	for now := int64(0); now < 5000; now++ {
		for range 3 {
			timer := &timers[random.IntN(len(timers))]
			at := now + 1 + random.Int64N(700)
			w.schedule(timer, time.Duration(at)*slowTick)
			if old, ok := want[timer]; !ok || at < old {
				want[timer] = at
			}
		}
		for w.advance(time.Duration(now)*slowTick, 2, fire(now)) {
		}
		for _, at := range want {
			require.Greater(t, at, now)
		}
		require.Equal(t, len(want), w.count)
	}
}

package lockstest_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// One record that cannot be read, on the only replica, stops a group that goes in order: all of
// it where the partition is one scope or nobody knows the record's key, and its key where that
// is known, because the damage was found when the record was to be sent. Nothing of its scope
// overtakes it, explain says which record that is and what to do, and each of the ways that it
// names lets the group go on.
func TestRuleL8_AnUnreadableRecordStopsAnOrderedGroup(t *testing.T) {
	byKey := client.GroupSettings{Mode: client.Serial, SessionMs: 60_000, DeliveryLimit: 1, DeadLetterMode: client.ParkScope}
	stream := client.GroupSettings{Mode: client.Stream, SessionMs: 60_000}
	skip := func(t *testing.T, s *stage, queue string) {
		o := uint64(1)
		var answer wire.ScopeResponse
		require.NoError(t, s.conn.GroupOrder(t.Context(), wire.OrderSkip, queue, 0, "g", client.ScopeRequest{Scope: &o}, &answer))
		require.EqualValues(t, 1, answer.Offset)
	}
	for _, c := range []struct {
		name     string
		settings client.GroupSettings
		known    bool // the broker knows of it when it starts
		before   []uint64
		goOn     func(t *testing.T, s *stage, queue string)
		after    []uint64
	}{
		{"by key, found when it is sent, the key is skipped", byKey, false, []uint64{0, 2, 4}, func(t *testing.T, s *stage, queue string) {
			key := []byte("a")
			var answer wire.ScopeResponse
			require.NoError(t, s.conn.GroupOrder(t.Context(), wire.OrderSkip, queue, 0, "g", client.ScopeRequest{Key: &key}, &answer))
			require.EqualValues(t, 1, answer.Offset)
		}, []uint64{3}},
		{"by key, known before, the record is skipped", byKey, true, []uint64{0}, skip, []uint64{2, 3, 4}},
		{"a stream, found when it is sent, the record is skipped", stream, false, []uint64{0}, skip, []uint64{2, 3, 4}},
		{"a stream, behind a damaged header that log skip has passed", stream, true, []uint64{0}, skip, []uint64{2, 3, 4}},
		{"a stream, known before, the group moves on", stream, true, []uint64{0}, func(t *testing.T, s *stage, queue string) {
			require.NoError(t, s.conn.GroupOrder(t.Context(), wire.OrderSeek, queue, 0, "g", client.SeekRequest{To: "offset", Offset: 2}, nil))
		}, []uint64{2, 3, 4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			broker := lockstest.Start(t, lockstest.DataDir(dir))
			s := &stage{broker: broker, conn: connectTo(t, broker.URL())}
			queue := s.queue(t, 1)
			s.group(t, queue, c.settings)
			for i, key := range []string{"a", "a", "b", "a", "c"} {
				s.send(t, queue, fmt.Sprint(key, " ", damagedRecord(i)))
			}
			if c.known {
				broker.Restart(func() {
					removeCheckpoints(t, dir)
					if !strings.Contains(c.name, "header") {
						flip(t, dir, damagedRecord(1))
						return
					}
					flipHeader(t, dir, damagedRecord(1))
					partitions, err := filepath.Glob(filepath.Join(dir, "partitions", "*"))
					require.NoError(t, err)
					for _, partition := range partitions {
						_, err := log.Skip(vfs.OS(), dir, partition)
						require.NoError(t, err)
					}
				})
			} else {
				flip(t, dir, damagedRecord(1))
			}
			member := s.join(t, queue)
			var got []uint64
			next := func(n int) {
				for range n {
					d := take(t, member)
					got = append(got, d.Offset)
					done(t, d)
				}
			}
			next(len(c.before))
			require.ElementsMatch(t, c.before, got)
			r := s.because(t, queue, "corrupt_range", client.ExplainRequest{})
			require.EqualValues(t, 1, *r.Offset)
			require.Contains(t, r.Text, "offset 1 cannot be read")
			require.Contains(t, r.Advice, "key skip")
			require.Contains(t, r.Advice, "group seek")
			idle(t, member)
			require.Zero(t, s.state(t, queue, 0).Letters+s.state(t, queue, 0).Parked, "no handler has failed")
			c.goOn(t, s, queue)
			got = nil
			next(len(c.after))
			require.Equal(t, c.after, got)
			leave(t, member)
		})
	}
}

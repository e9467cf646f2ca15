package server

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/wire"
)

// A consumer of a shared group, which has passed over a damaged record, gets it when it is
// repaired, and not only when the leader begins anew.
func TestRuleL8_ASharedGroupGetsARepairedRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Start(t.Context(), Config{
		DataDir: dir, Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, NodeID: 1,
		ScrubInterval: -1, RetentionPeriod: time.Hour, Logger: testLogger(1),
	})
	require.NoError(t, err)
	t.Cleanup(func() { closeMember(t, s) })
	createErasing(t, s.Addr())
	produceLarge(t, s.Addr(), 5)
	r := s.jobs(t)
	files, err := filepath.Glob(filepath.Join(dir, "partitions", "*", "*.segment"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	file, err := os.OpenFile(files[0], os.O_RDWR, 0)
	require.NoError(t, err)
	before := make([]byte, 1)
	_, err = file.ReadAt(before, 80<<10) // in the value of some record
	require.NoError(t, err)
	entries, err := r.records.Entries(1, repairBytes)
	require.NoError(t, err)
	var frames []wire.PeerFrame
	for i := range entries {
		f := entries[i].FrameBody()
		frames = append(frames, wire.PeerFrame{Index: f.Index, Body: append([]byte(nil), f.Body...)})
	}
	_, err = file.WriteAt([]byte{before[0] ^ 0xff}, 80<<10)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	for pass := r.records.NewScrub(); ; {
		if _, err := pass.Next(1 << 20); errors.Is(err, io.EOF) {
			break
		}
	}
	damage := r.records.Damage()
	require.Len(t, damage, 1)
	require.Equal(t, damage[0].Base+1, damage[0].Next)

	k := attachTo(t, s.Addr(), 1)
	for _, g := range k.next(4) {
		require.False(t, g.Offset <= damage[0].Base && damage[0].Base < g.Offset+wire.Offset(g.Count))
	}
	s.broker.mend(r, &damage[0], &cluster.Replica{}, frames)
	require.Empty(t, r.records.Damage())
	again := k.next(1)
	require.Equal(t, damage[0].Base, again[0].Offset)
	require.Equal(t, wire.CodeOK, k.say(ack(again[0]))[0].Code)
}

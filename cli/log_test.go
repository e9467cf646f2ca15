package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/server"
)

func TestLogsAreInspectedAndVerified(t *testing.T) {
	data := t.TempDir()
	s, err := server.Start(context.Background(), server.Config{DataDir: data, Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1})
	require.NoError(t, err)
	must(t, at(s.Addr(), ""), "topic", "create", "events")
	must(t, at(s.Addr(), "a\nb\nc\n"), "produce", "events")
	require.NoError(t, s.Close(context.Background()))

	partitions, err := filepath.Glob(filepath.Join(data, "partitions", "*"))
	require.NoError(t, err)
	require.Len(t, partitions, 1)
	out := must(t, shell{}, "log", "verify", data)
	require.Regexp(t, `(?m)^\S+/meta +1 +\d+ +0 .* ok$`, out)
	require.Regexp(t, `(?m)^\S+/partitions/\S+ +1 +\d+ +3 .* ok$`, out)
	var records uint32
	for _, line := range strings.Split(strings.TrimSpace(must(t, shell{}, "log", "inspect", partitions[0], "-o", "json")), "\n") {
		var f frameJSON
		require.NoError(t, json.Unmarshal([]byte(line), &f))
		require.Equal(t, "ok", f.Status)
		records += f.Records
	}
	require.Equal(t, uint32(3), records)
	require.Contains(t, must(t, shell{}, "log", "inspect", data), frameHeader)

	require.Empty(t, shell{}.run(context.Background(), "log", "verify", data).stderr)
	journal := filepath.Join(data, "journal", "0000000100000001.journal")
	require.NoError(t, os.WriteFile(journal, nil, 0o600))
	for _, args := range [][]string{{"log", "verify", data}, {"log", "verify", partitions[0]}, {"log", "inspect", filepath.Join(data, "meta")}} {
		got := shell{}.run(context.Background(), args...)
		require.Zero(t, got.code)
		require.Contains(t, got.stderr, filepath.Dir(journal)+" holds the newest entries of some partitions")
	}
	require.NoError(t, os.Remove(journal))

	segments, err := filepath.Glob(filepath.Join(partitions[0], "*.segment"))
	require.NoError(t, err)
	content, err := os.ReadFile(segments[0])
	require.NoError(t, err)
	place := bytes.LastIndex(content, []byte("c"))
	require.Positive(t, place)
	content[place] ^= 1
	require.NoError(t, os.WriteFile(segments[0], content, 0o600))
	got := shell{}.run(context.Background(), "log", "verify", data)
	require.Equal(t, 1, got.code)
	require.Regexp(t, `(?m)^\S+/partitions/\S+ .* DAMAGED$`, got.stdout)
	require.Regexp(t, `^lockstep: `+partitions[0]+`/`+filepath.Base(segments[0])+`: position \d+: .*; nothing was changed; look around it with: lockstep log inspect `+data+"\n$", got.stderr)
}

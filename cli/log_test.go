package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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

	saved := filepath.Join(partitions[0], "checkpoint.0") // what groups have done is there
	state, err := os.ReadFile(saved)
	require.NoError(t, err)
	state[len(state)/2] ^= 1
	require.NoError(t, os.WriteFile(saved, state, 0o600))
	got := shell{}.run(context.Background(), "log", "verify", data)
	require.Equal(t, 1, got.code)
	require.Regexp(t, `^lockstep: `+saved+`: position 0: corrupt: checkpoint: `, got.stderr)
	state[len(state)/2] ^= 1
	require.NoError(t, os.WriteFile(saved, state, 0o600))

	segments, err := filepath.Glob(filepath.Join(partitions[0], "*.segment"))
	require.NoError(t, err)
	content, err := os.ReadFile(segments[0])
	require.NoError(t, err)
	place := bytes.LastIndex(content, []byte("c"))
	require.Positive(t, place)
	content[place] ^= 1
	require.NoError(t, os.WriteFile(segments[0], content, 0o600))
	got = shell{}.run(context.Background(), "log", "verify", data)
	require.Equal(t, 1, got.code)
	require.Regexp(t, `(?m)^\S+/partitions/\S+ .* DAMAGED$`, got.stdout)
	require.Regexp(t, `^lockstep: `+partitions[0]+`/`+filepath.Base(segments[0])+`: position \d+: .*; nothing was changed; look around it with: lockstep log inspect `+data+"\n$", got.stderr)
}

// skip gives up what a damaged header hides, names it, and leaves everything else.
func TestRuleL8_LogSkipGivesUpWhatADamagedHeaderHides(t *testing.T) {
	data := t.TempDir()
	start := func() *server.Server {
		s, err := server.Start(context.Background(), server.Config{DataDir: data, Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1})
		require.NoError(t, err)
		return s
	}
	s := start()
	must(t, at(s.Addr(), ""), "topic", "create", "events")
	for _, value := range []string{"first", "second", "third"} {
		must(t, at(s.Addr(), value+"\n"), "produce", "events")
	}
	partitions, err := filepath.Glob(filepath.Join(data, "partitions", "*"))
	require.NoError(t, err)
	require.Len(t, partitions, 1)
	got := shell{}.run(context.Background(), "log", "skip", "--corrupt", partitions[0])
	require.Equal(t, 1, got.code)
	require.Regexp(t, "^lockstep: data directory "+data+" is in use: .*; stop the broker first\n$", got.stderr)
	require.NoError(t, s.Close(context.Background()))

	got = shell{}.run(context.Background(), "log", "skip", partitions[0])
	require.Equal(t, 2, got.code)
	require.Equal(t, "lockstep: records are given up only with --corrupt (see lockstep log skip --help)\n", got.stderr)
	got = shell{}.run(context.Background(), "log", "skip", "--corrupt", data)
	require.Equal(t, 2, got.code)
	require.Contains(t, got.stderr, data+" is not the directory of one partition; which are damaged says: lockstep log verify "+data)
	require.Equal(t, "no damaged header with something whole behind it; nothing was changed\n", must(t, shell{}, "log", "skip", "--corrupt", partitions[0]))

	var damaged frameJSON
	for _, line := range strings.Split(strings.TrimSpace(must(t, shell{}, "log", "inspect", partitions[0], "-o", "json")), "\n") {
		var f frameJSON
		require.NoError(t, json.Unmarshal([]byte(line), &f))
		if f.Records == 1 && f.BaseOffset == 1 {
			damaged = f
		}
	}
	require.Positive(t, damaged.Position)
	file := filepath.Join(partitions[0], damaged.File)
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	content[damaged.Position+9] ^= 1
	require.NoError(t, os.WriteFile(file, content, 0o600))
	require.Equal(t, 1, shell{}.run(context.Background(), "log", "verify", data).code)

	out := must(t, shell{}, "log", "skip", "--corrupt", partitions[0])
	require.Regexp(t, `(?m)^`+damaged.File+` +`+fmt.Sprint(damaged.Position)+` +1 +1 +2$`, out)
	s = start()
	defer s.Close(context.Background())
	got = at(s.Addr(), "").run(context.Background(), "consume", "events", "--exit")
	require.Equal(t, 1, got.code)
	require.Equal(t, "first\n", got.stdout)
	require.Contains(t, got.stderr, "reading can go on at offset 2")
	require.Equal(t, "third\n", must(t, at(s.Addr(), ""), "consume", "events", "--partition", "0", "--offset", "2", "--exit"))
}

func TestLogCommandsSayWhatElseToGive(t *testing.T) {
	data := t.TempDir()
	s, err := server.Start(context.Background(), server.Config{DataDir: data, Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1})
	require.NoError(t, err)
	must(t, at(s.Addr(), ""), "topic", "create", "events")
	require.NoError(t, s.Close(context.Background()))
	file, err := filepath.Glob(filepath.Join(data, "meta", "*.segment"))
	require.NoError(t, err)
	require.Len(t, file, 1)
	for _, command := range [][]string{{"log", "inspect"}, {"log", "verify"}, {"log", "skip", "--corrupt"}} {
		got := shell{}.run(context.Background(), append(command, file[0])...)
		require.Equal(t, 1, got.code)
		require.Equal(t, "lockstep: "+file[0]+" is a file; give the directory that holds it: "+filepath.Join(data, "meta")+"\n", got.stderr)
	}

	// A directory whose format is newer as a whole.
	name := filepath.Join(data, "node.json")
	require.NoError(t, os.WriteFile(name, []byte(`{"format_version": 99}`), 0o600))
	for _, args := range [][]string{{"log", "inspect", data}, {"log", "verify", data}, {"log", "verify", filepath.Join(data, "meta")}, {"log", "skip", "--corrupt", filepath.Join(data, "meta")}} {
		got := shell{}.run(context.Background(), args...)
		require.Equal(t, 1, got.code)
		require.Equal(t, "lockstep: "+name+": data directory was written by a newer version: format 99, this build reads up to 1; use the newer lockstep\n", got.stderr)
	}
}

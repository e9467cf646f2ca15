package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
)

// A start that is refused leaves what it found: no directory where there was none, and
// everything that somebody else has put there.
func TestARefusedStartLeavesNoDataDirectory(t *testing.T) {
	alone, err := Start(t.Context(), Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1})
	require.NoError(t, err)
	defer func() { require.NoError(t, alone.Close(t.Context())) }()
	root := t.TempDir()
	refused := func(dir, says string, change func(*Config)) {
		t.Helper()
		cfg := Config{DataDir: dir, Listen: "127.0.0.1:0", PeerListen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1, Logger: testLogger(2)}
		change(&cfg)
		_, err := Start(t.Context(), cfg)
		require.ErrorContains(t, err, says)
	}
	join := func(cfg *Config) { cfg.Join = []string{alone.Addr()} }
	entries := func(dir string) []string {
		all, err := os.ReadDir(dir)
		require.NoError(t, err)
		names := []string{}
		for _, e := range all {
			names = append(names, e.Name())
		}
		return names
	}

	refused(filepath.Join(root, "a", "b"), "this broker runs alone", join)
	refused(filepath.Join(root, "c"), "is in use", func(cfg *Config) { cfg.Listen = alone.Addr() })
	refused(filepath.Join(root, "d"), "only with --bootstrap", func(cfg *Config) { cfg.Listen, cfg.Advertise = "0.0.0.0:0", "127.0.0.1:7999" })
	require.Empty(t, entries(root), "nothing was there, and nothing is")

	empty := filepath.Join(root, "empty")
	require.NoError(t, os.Mkdir(empty, 0o700))
	refused(empty, "this broker runs alone", join)
	require.Empty(t, entries(empty))

	theirs := filepath.Join(root, "theirs")
	require.NoError(t, os.Mkdir(theirs, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(theirs, "notes"), []byte("mine"), 0o600))
	refused(theirs, "this broker runs alone", join)
	require.Contains(t, entries(theirs), "notes")
}

// What belongs to a node, or may, is not touched, whatever the start failed of.
func TestWhatBelongsToANodeIsNotUndone(t *testing.T) {
	refusal := notTakenIn{os.ErrInvalid}
	for _, c := range []struct {
		name  string
		file  string
		cause error
		gone  bool
	}{
		{"a node that was refused", joiningName, refusal, true},
		{"a node that may have been taken in", joiningName, os.ErrDeadlineExceeded, false},
		{"a node with an identity", "node.json", refusal, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "new")
			made := lookBefore(dir)
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, c.file), []byte("{}"), 0o600))
			lock, err := vfs.OS().Lock(filepath.Join(dir, lockName))
			require.NoError(t, err)
			made.undo(c.cause)
			require.FileExists(t, filepath.Join(dir, c.file), "another broker uses it")
			require.NoError(t, lock.Close())
			made.undo(c.cause)
			if c.gone {
				require.NoDirExists(t, dir)
			} else {
				require.FileExists(t, filepath.Join(dir, c.file))
			}
		})
	}
}

package server

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
)

// 2 GiB of memory are 1 GiB of destinations in memory, 512 MiB pending, and 256 MiB
// of frames in each direction.
func TestNeedsAddUp(t *testing.T) {
	for _, c := range []struct {
		name        string
		config      Config
		descriptors uint64
		want        Needs
	}{
		{"by default, under a high limit", Config{}, 1 << 20,
			Needs{Connections: 65536, Descriptors: 69634, MappedSegments: 2048, MemoryBytes: 2 << 30}},
		{"by default, under a common limit: a quarter is the reserve", Config{}, 1024,
			Needs{Connections: 766, Descriptors: 69634, MappedSegments: 2048, MemoryBytes: 2 << 30}},
		{"a limit that Start refuses", Config{}, 64,
			Needs{Connections: 0, Descriptors: 69634, MappedSegments: 2048, MemoryBytes: 2 << 30}},
		{"settings count", Config{Limits: Limits{Connections: 100}, MemoryBytes: 1 << 20, PendingBytes: 64 << 20}, 1024,
			Needs{Connections: 100, Descriptors: 4198, MappedSegments: 2048, MemoryBytes: 577 << 20}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.config.Needs(c.descriptors)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
	_, err := Config{PendingBytes: 1}.Needs(1024)
	require.EqualError(t, err, "pending-bytes is 1; it must be at least 67108864, or a large batch would never find room")
	_, err = Config{Limits: Limits{Connections: -1}}.Needs(1024)
	require.ErrorContains(t, err, "limit Connections is negative")
}

func TestDataFormatIsReadWithoutTouching(t *testing.T) {
	dir := t.TempDir()
	format, err := DataFormat(filepath.Join(dir, "missing"))
	require.NoError(t, err)
	require.Zero(t, format)
	format, err = DataFormat(dir)
	require.NoError(t, err)
	require.Zero(t, format)
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, names)

	made, err := loadIdentity(&Config{fs: vfs.OS(), DataDir: dir})
	require.NoError(t, err)
	format, err = DataFormat(dir)
	require.NoError(t, err)
	require.Equal(t, made.FormatVersion, format)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "node.json"), []byte(`{"format_version": 99}`), 0o600))
	_, err = DataFormat(dir)
	require.ErrorIs(t, err, ErrNewerFormat)
}

package lockstest_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/wire"
)

var rotFlips = flag.Int("rot.flips", 8, "how many bits TestF3 flips under a whole broker")

// RELIABILITY F3 from end to end: single bits rot in the files of a partition, under
// the broker or while it is down, and package client reads. Every record that it
// hands out is what was sent; what it does not hand out is an error with the place;
// the other partition does not notice; and once the bit is as it was, everything is
// there again.
func TestF3_TheClientHandsOutNoRottenRecord(t *testing.T) {
	dir := t.TempDir()
	b := lockstest.Start(t, lockstest.DataDir(dir))
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Topic, Settings: client.Settings{Partitions: 1}})
	create(ctx, t, conn, client.Destination{Name: "others", Kind: client.Topic, Settings: client.Settings{Partitions: 1}})
	random := rand.New(rand.NewPCG(1, 0xf3))
	var want []string
	for i := range 40 {
		want = append(want, damagedRecord(i)+strings.Repeat("x", random.IntN(500)))
		send(ctx, t, conn, "orders", want[i])
	}
	send(ctx, t, conn, "others", "untouched")
	outcomes := map[string]int{}
	for n := range *rotFlips {
		var rot func()
		var what string
		b.Restart(func() {
			if n%2 == 0 { // otherwise the newest checkpoint lies above everything
				removeCheckpoints(t, dir)
			}
			rot, what = randomBit(t, dir, want[0], random)
			if n%4 < 2 {
				rot()
			}
		})
		if n%4 >= 2 {
			rot()
		}
		ctx, conn := connect(t, b)
		outcome := "whole"
		for offset := uint64(0); offset < uint64(len(want)); {
			values, err := readFrom(ctx, t, conn, "orders", offset)
			for _, v := range values {
				require.Equal(t, want[offset], v, "%s: offset %d", what, offset)
				offset++
			}
			if err == nil {
				require.EqualValues(t, len(want), offset, "%s: a shorter log", what)
				break
			}
			var damage *client.CorruptError
			if errors.As(err, &damage) && damage.Next > offset {
				require.Equal(t, offset, damage.Offset, what)
				offset, outcome = damage.Next, "range"
				continue
			}
			require.True(t, errors.As(err, &damage) || errors.Is(err, wire.CodePartitionFenced), "%s: %v", what, err)
			outcome = "partition"
			break
		}
		outcomes[outcome]++
		values, err := readFrom(ctx, t, conn, "others", 0)
		require.NoError(t, err, what)
		require.Equal(t, []string{"untouched"}, values, what)
		b.Restart(rot)
		ctx, conn = connect(t, b)
		values, err = readFrom(ctx, t, conn, "orders", 0)
		require.NoError(t, err, "%s: and back", what)
		require.Equal(t, want, values, what)
	}
	t.Logf("%d flips: %v", *rotFlips, outcomes)
	require.NotZero(t, outcomes["range"])
}

// randomBit picks a bit in the used part of a file of the partition that holds value,
// and returns what flips it.
func randomBit(t *testing.T, dir, value string, random *rand.Rand) (flip func(), what string) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "partitions", "*", "*.segment"))
	require.NoError(t, err)
	for _, name := range segments {
		content, err := os.ReadFile(name)
		require.NoError(t, err)
		if !strings.Contains(string(content), value) {
			continue
		}
		files := []string{name, name, name, name, filepath.Join(filepath.Dir(name), "manifest")}
		file := files[random.IntN(len(files))]
		content, err = os.ReadFile(file)
		require.NoError(t, err)
		used := strings.TrimRight(string(content), "\x00")
		at, bit := random.IntN(len(used)), byte(1)<<random.IntN(8)
		return func() {
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			require.NoError(t, err)
			b := make([]byte, 1)
			_, err = f.ReadAt(b, int64(at))
			require.NoError(t, err)
			b[0] ^= bit
			_, err = f.WriteAt(b, int64(at))
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, fmt.Sprintf("bit %08b of byte %d of %s", bit, at, file)
	}
	require.Fail(t, "no segment holds the value")
	return nil, ""
}

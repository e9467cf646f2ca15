package lockstest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/lockstest"
	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/server"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// damagedRecord is a value that a test finds again in a file.
func damagedRecord(n int) string {
	return fmt.Sprintf("this is record number %06d of the damaged partition", n)
}

// flip changes a bit of a value in the one place under dir where it is stored, and
// returns the file's name.
func flip(t *testing.T, dir, value string) string {
	return change(t, dir, value, func(_ []byte, at int) int { return at })
}

// flipHeader changes a bit in the header of the frame that holds a value.
func flipHeader(t *testing.T, dir, value string) {
	change(t, dir, value, func(content []byte, at int) int {
		for pos := at &^ 7; pos > 0; pos -= 8 {
			if _, err := wire.ParseFrameHeader(content[pos:]); err == nil {
				return pos + 16
			}
		}
		panic("no frame before the value")
	})
}

// change flips a bit at the place that where returns for a value's.
func change(t *testing.T, dir, value string, where func(content []byte, at int) int) string {
	t.Helper()
	found := ""
	require.NoError(t, filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() || filepath.Ext(name) != ".segment" {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		at := bytes.Index(content, []byte(value))
		if at < 0 {
			return nil
		}
		require.Empty(t, found, "%q is stored once", value)
		found = name
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		at = where(content, at)
		_, err = f.WriteAt([]byte{content[at] ^ 4}, int64(at))
		return errors.Join(err, f.Close())
	}))
	require.NotEmpty(t, found)
	return filepath.Base(found)
}

// damageable starts a broker with two queues of one partition, sends records to
// "orders" one entry each, and one to "others".
func damageable(t *testing.T, options ...lockstest.Option) (*lockstest.Broker, string, *client.Conn) {
	t.Helper()
	dir := t.TempDir()
	b := lockstest.Start(t, append(options, lockstest.DataDir(dir))...)
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Topic, Settings: client.Settings{Partitions: 1}})
	create(ctx, t, conn, client.Destination{Name: "others", Kind: client.Topic, Settings: client.Settings{Partitions: 1}})
	for i := range 10 {
		send(ctx, t, conn, "orders", damagedRecord(i))
	}
	send(ctx, t, conn, "others", "untouched")
	return b, dir, conn
}

func send(ctx context.Context, t *testing.T, conn *client.Conn, name, value string) {
	t.Helper()
	p, err := conn.Producer(ctx, name)
	require.NoError(t, err)
	_, err = p.Send(ctx, &client.Record{Value: []byte(value)})
	require.NoError(t, err)
	require.NoError(t, p.Close(ctx))
}

// readFrom reads partition 0 from an offset to its end or to an error.
func readFrom(ctx context.Context, t *testing.T, conn *client.Conn, name string, offset uint64) (values []string, err error) {
	t.Helper()
	r, err := conn.Reader(ctx, name, client.Partitions(0), client.FromOffset(offset), client.StopAtEnd())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		rec, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return values, nil
		}
		if err != nil {
			return values, err
		}
		values = append(values, string(rec.Value))
	}
}

// A broker that finds a damaged body when it starts serves everything else, in
// the same partition too, and hands out nothing damaged.
func TestRuleL8_ADamagedBodyAtTheStart(t *testing.T) {
	for _, c := range []struct {
		name  string
		clean bool // a checkpoint lies above the damage: only reading finds it
	}{{"found by recovery", false}, {"found by the reader", true}} {
		t.Run(c.name, func(t *testing.T) {
			b, dir, conn := damageable(t, lockstest.Configure(func(c *server.Config) { c.HTTP = "127.0.0.1:0" }))
			ctx := t.Context()
			var file string
			b.Restart(func() {
				if !c.clean {
					removeCheckpoints(t, dir)
				}
				file = flip(t, dir, damagedRecord(4))
			})
			var damage *client.CorruptError
			if c.clean {
				// The first reader gets what the disk has, checks it and tells the broker.
				values, err := readFrom(ctx, t, conn, "orders", 0)
				require.ErrorAs(t, err, &damage)
				require.Len(t, values, 4)
				require.Equal(t, uint64(4), damage.Offset)
				awaitDamage(ctx, t, conn, 1)
			}
			for run := range 2 {
				values, err := readFrom(ctx, t, conn, "orders", 0)
				require.ErrorAs(t, err, &damage)
				require.Equal(t, []string{damagedRecord(0), damagedRecord(1), damagedRecord(2), damagedRecord(3)}, values)
				require.Equal(t, uint64(4), damage.Offset)
				require.Equal(t, uint64(5), damage.Next)
				require.ErrorIs(t, err, wire.CodeCorrupt)
				require.ErrorContains(t, err, "orders/0: the record at offset 4 is damaged on the disk ("+file)
				require.ErrorContains(t, err, "reading can go on at offset 5")
				_, err = readFrom(ctx, t, conn, "orders", 4)
				require.ErrorAs(t, err, &damage)
				require.Equal(t, uint64(5), damage.Next)

				send(ctx, t, conn, "orders", "more") // it is writable
				values, err = readFrom(ctx, t, conn, "orders", damage.Next)
				require.NoError(t, err)
				require.Len(t, values, 6+run)
				values, err = readFrom(ctx, t, conn, "others", 0)
				require.NoError(t, err)
				require.Equal(t, []string{"untouched"}, values)
				d, err := conn.Destination(ctx, "orders")
				require.NoError(t, err)
				require.Equal(t, uint32(1), d.Partitions[0].Damaged)
				require.Equal(t, wire.PartitionActive, d.Partitions[0].State)

				health := getHealth(t, b)
				require.Equal(t, "ok", health.Status)
				require.Contains(t, health.Damaged["orders/0"], "offsets 4 to 4 ("+file)
				b.Restart() // it is known from then on
			}
		})
	}
}

// Who looks at records gets all that can be read, and the place of the first that cannot, last.
func TestRuleL8_BrowseGoesOnBehindDamage(t *testing.T) {
	_, dir, conn := damageable(t)
	flip(t, dir, damagedRecord(0))
	flip(t, dir, damagedRecord(4))
	var offsets []uint64
	var damage *client.CorruptError
	for r, err := range conn.Browse(limited(t), "orders", client.BrowseOptions{}) {
		if err != nil {
			require.ErrorAs(t, err, &damage)
			continue
		}
		require.Nil(t, damage, "it comes last")
		offsets = append(offsets, r.Offset)
	}
	require.Equal(t, []uint64{1, 2, 3, 5, 6, 7, 8, 9}, offsets)
	require.NotNil(t, damage)
	require.EqualValues(t, 0, damage.Offset)
}

// A producer whose latest record is damaged when the broker starts is unknown to it,
// and goes on all the same.
func TestRuleL8_AProducerGoesOnBehindDamage(t *testing.T) {
	dir := t.TempDir()
	b := lockstest.Start(t, lockstest.DataDir(dir))
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Topic, Settings: client.Settings{Partitions: 1}})
	p, err := conn.Producer(ctx, "orders")
	require.NoError(t, err)
	for i := range 5 {
		_, err := p.Send(ctx, &client.Record{Value: []byte(damagedRecord(i))})
		require.NoError(t, err)
	}
	b.Restart(func() {
		removeCheckpoints(t, dir)
		flip(t, dir, damagedRecord(4))
	})
	for i := range 5 {
		receipt, err := p.Send(ctx, &client.Record{Value: []byte(damagedRecord(5 + i))})
		require.NoError(t, err)
		require.Equal(t, uint64(5+i), receipt.Offset)
	}
	require.NoError(t, p.Close(ctx))
	values, err := readFrom(ctx, t, conn, "orders", 5)
	require.NoError(t, err)
	require.Len(t, values, 5)
}

// What the damaged entry did is known while the broker runs, and would not be at the
// next start: a checkpoint is taken at once.
func TestRuleL8_DamageFoundWhileRunningTakesACheckpoint(t *testing.T) {
	_, dir, conn := damageable(t)
	ctx := t.Context()
	file := flip(t, dir, damagedRecord(4))
	_, err := readFrom(ctx, t, conn, "orders", 0)
	require.ErrorIs(t, err, client.ErrCorrupt)
	awaitDamage(ctx, t, conn, 1)
	require.Eventually(t, func() bool {
		found, err := filepath.Glob(filepath.Join(dir, "partitions", "*", file))
		require.NoError(t, err)
		require.Len(t, found, 1)
		checkpoints, err := filepath.Glob(filepath.Join(filepath.Dir(found[0]), "checkpoint.?"))
		return err == nil && len(checkpoints) == 1
	}, 60*time.Second, 5*time.Millisecond)
}

// A damaged header breaks the chain: the partition is down and says why, and
// nobody is told that its end came earlier.
func TestRuleL8_ADamagedHeaderStopsThePartitionOnly(t *testing.T) {
	b, dir, conn := damageable(t)
	ctx := t.Context()
	b.Restart(func() {
		removeCheckpoints(t, dir)
		flipHeader(t, dir, damagedRecord(4))
	})
	_, err := readFrom(ctx, t, conn, "orders", 0)
	require.ErrorIs(t, err, wire.CodePartitionFenced)
	require.ErrorContains(t, err, "corrupt")
	values, err := readFrom(ctx, t, conn, "others", 0)
	require.NoError(t, err)
	require.Equal(t, []string{"untouched"}, values)
	d, err := conn.Destination(ctx, "orders")
	require.NoError(t, err)
	require.Equal(t, wire.PartitionFenced, d.Partitions[0].State)
	require.Contains(t, d.Partitions[0].Problem, ".segment: position ")

	// The operator's decision brings back everything else.
	b.Restart(func() {
		partitions, err := filepath.Glob(filepath.Join(dir, "partitions", "*"))
		require.NoError(t, err)
		skipped := 0
		for _, partition := range partitions {
			gaps, err := log.Skip(vfs.OS(), dir, partition)
			require.NoError(t, err)
			skipped += len(gaps)
		}
		require.Equal(t, 1, skipped)
	})
	values, err = readFrom(ctx, t, conn, "orders", 0)
	var damage *client.CorruptError
	require.ErrorAs(t, err, &damage)
	require.Equal(t, []string{damagedRecord(0), damagedRecord(1), damagedRecord(2), damagedRecord(3)}, values)
	require.Equal(t, []uint64{4, 5}, []uint64{damage.Offset, damage.Next})
	send(ctx, t, conn, "orders", "more")
	values, err = readFrom(ctx, t, conn, "orders", damage.Next)
	require.NoError(t, err)
	require.Equal(t, []string{damagedRecord(5), damagedRecord(6), damagedRecord(7), damagedRecord(8), damagedRecord(9), "more"}, values)
}

// The same while the broker runs: the reader that finds it ends the partition's
// service.
func TestRuleL8_AHeaderThatRotsUnderTheBroker(t *testing.T) {
	_, dir, conn := damageable(t)
	ctx := t.Context()
	flipHeader(t, dir, damagedRecord(4))
	values, err := readFrom(ctx, t, conn, "orders", 0)
	require.ErrorIs(t, err, client.ErrCorrupt)
	require.Len(t, values, 4)
	require.Eventually(t, func() bool {
		d, err := conn.Destination(ctx, "orders")
		return err == nil && d.Partitions[0].State == wire.PartitionFenced
	}, 60*time.Second, 5*time.Millisecond)
	_, err = readFrom(ctx, t, conn, "orders", 0)
	require.ErrorIs(t, err, wire.CodePartitionFenced)
	send(ctx, t, conn, "others", "goes on")
}

// The scrubber finds what nobody reads.
func TestRuleL8_TheScrubberFindsDamageInSealedSegments(t *testing.T) {
	dir := t.TempDir()
	b := lockstest.Start(t, lockstest.DataDir(dir), lockstest.Configure(func(c *server.Config) { c.ScrubInterval = 200 * time.Millisecond }))
	ctx, conn := connect(t, b)
	create(ctx, t, conn, client.Destination{Name: "orders", Kind: client.Topic, Settings: client.Settings{Partitions: 1, SegmentBytes: 1 << 20}})
	for i := range 5 {
		send(ctx, t, conn, "orders", damagedRecord(i)+strings.Repeat(string(rune('a'+i)), 500<<10))
	}
	flip(t, dir, damagedRecord(1))
	awaitDamage(ctx, t, conn, 1)
	_, err := readFrom(ctx, t, conn, "orders", 0)
	var damage *client.CorruptError
	require.ErrorAs(t, err, &damage)
	require.Equal(t, []uint64{1, 2}, []uint64{damage.Offset, damage.Next})
}

// removeCheckpoints makes recovery read the logs of partitions from their start.
func removeCheckpoints(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "partitions", "*", "checkpoint.*"))
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		require.NoError(t, os.Remove(name))
	}
}

// awaitDamage waits until the broker knows of damaged ranges in "orders".
func awaitDamage(ctx context.Context, t *testing.T, conn *client.Conn, ranges uint32) {
	t.Helper()
	require.Eventually(t, func() bool {
		d, err := conn.Destination(ctx, "orders")
		return err == nil && d.Partitions[0].Damaged == ranges
	}, 60*time.Second, 5*time.Millisecond)
}

type healthAnswer struct {
	Status            string
	Problems, Damaged map[string]string
}

func getHealth(t *testing.T, b *lockstest.Broker) (h healthAnswer) {
	t.Helper()
	response, err := http.Get("http://" + b.HTTPAddr() + "/healthz")
	require.NoError(t, err)
	defer response.Body.Close()
	require.NoError(t, json.NewDecoder(response.Body).Decode(&h))
	return h
}

package fuzz

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lockstepmq/lockstep/client"
)

var matrixPower = flag.Bool("matrix.power", false, "TestR_SIB_10_ReliabilityWhenThePowerGoes cuts the power of a file system of its own")

// level is one of the five levels of reliability, as docs/guarantees.md maps them.
type level struct {
	name     string
	acks     client.AckLevel
	settings client.Settings
	power    kept // when the machine loses its power; the other columns follow from the storage
}

// kept is what is left of the records that were sent.
type kept int

const (
	nothing kept = iota
	oldest       // perhaps not the newest
	everything
)

var levels = []level{
	{"best-effort-nonpersistent", client.AcksNone, client.Settings{Storage: client.StorageMemory}, nothing},
	{"express-nonpersistent", client.AcksLeader, client.Settings{Storage: client.StorageMemory}, nothing},
	{"reliable-nonpersistent", client.AcksQuorum, client.Settings{Storage: client.StorageMemory}, nothing},
	{"reliable-persistent", client.AcksQuorum, client.Settings{Sync: client.SyncInterval}, oldest},
	{"assured-persistent", client.AcksQuorum, client.Settings{Sync: client.SyncQuorumFsync}, everything},
}

// matrix is a broker with a topic for each level, and what was sent to each.
type matrix struct {
	b    *brokerProcess
	conn *client.Conn
	sent map[string][]string
}

func newMatrix(t *testing.T, b *brokerProcess) *matrix {
	b.start()
	m := &matrix{b: b, conn: b.connect(), sent: map[string][]string{}}
	for _, l := range levels {
		_, err := m.conn.CreateDestination(patient(t), client.Destination{Name: l.name, Kind: client.Topic, Settings: l.settings})
		require.NoError(t, err)
	}
	return m
}

// lose sends to all levels, lets something happen to the broker, starts it again, and looks
// what is left.
func (m *matrix) lose(t *testing.T, what string, happens func(), left func(level) kept) {
	for _, l := range levels {
		p, err := m.conn.Producer(patient(t), l.name, client.Acks(l.acks))
		require.NoError(t, err)
		for i := range 10 {
			value := fmt.Sprintf("%s %d", what, i)
			_, err := p.Send(patient(t), &client.Record{Value: []byte(value)})
			require.NoError(t, err, l.name)
			m.sent[l.name] = append(m.sent[l.name], value)
		}
		require.NoError(t, p.Close(patient(t)))
	}
	happens()
	m.b.start()
	m.b.ready(m.conn)
	for _, l := range levels {
		got := []string{}
		for _, values := range content(t, m.conn, l.name) {
			got = append(got, values...)
		}
		switch left(l) {
		case nothing:
			require.Empty(t, got, "%s: %s", what, l.name)
			m.sent[l.name] = nil
		case oldest:
			require.LessOrEqual(t, len(got), len(m.sent[l.name]))
			require.Equal(t, m.sent[l.name][:len(got)], got, "%s: %s", what, l.name)
		case everything:
			require.Equal(t, m.sent[l.name], got, "%s: %s", what, l.name)
		}
	}
}

// onDisk is what a process leaves behind.
func onDisk(l level) kept {
	if l.settings.Storage == client.StorageMemory {
		return nothing
	}
	return everything
}

// R-SIB-10: what each level of reliability keeps when the broker is stopped, and when it is
// killed.
func TestR_SIB_10_ReliabilityWhenTheBrokerEnds(t *testing.T) {
	m := newMatrix(t, newBroker(t))
	m.lose(t, "stopped", func() {
		require.NoError(t, m.b.stdin.Close())
		<-m.b.ended
		m.b.command = nil
	}, onDisk)
	m.lose(t, "killed", m.b.kill, onDisk)
}

// R-SIB-10: and when the machine loses its power.
func TestR_SIB_10_ReliabilityWhenThePowerGoes(t *testing.T) {
	if !*matrixPower {
		t.Skip("SKIPPED: TestF1_… cut the power of the same log; -matrix.power cuts that of a broker with all levels")
	}
	inNamespaces(t, syscall.CLONE_NEWNS, []string{ext4.maker, "mount"}, func(t *testing.T) {
		privateMounts(t)
		dir := filepath.Join(os.Getenv(childVariable), "disk")
		require.NoError(t, os.Mkdir(dir, 0o755))
		f, err := os.Create(dir + ".image")
		require.NoError(t, err)
		require.NoError(t, f.Truncate(powerImage))
		require.NoError(t, f.Close())
		out, err := exec.Command(ext4.maker, append(ext4.flags, dir+".image")...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		if out, err := mountImage(dir); err != nil {
			t.Skipf("a loop device cannot be mounted here: %v: %s", err, out)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		b := newBroker(t)
		b.data = filepath.Join(dir, "data")
		m := newMatrix(t, b)
		m.lose(t, "dark", func() {
			cutPower(t, dir)
			b.kill()
			require.NoError(t, unix.Unmount(dir, 0))
			out, err := mountImage(dir)
			require.NoError(t, err, "%s", out)
		}, func(l level) kept { return l.power })
	})
}

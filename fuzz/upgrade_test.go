package fuzz

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/cluster"
)

var upgradeRuns = flag.Int("upgrade.runs", 1, "how many clusters TestF26 upgrades under load")

// nextBuild is this program as the next version will be: it knows one more feature level
// and one more version of the protocol between nodes. Built once for all tests.
var nextBuild = sync.OnceValues(func() (string, error) {
	current, err := program()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(filepath.Dir(current), "next")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	replaced := map[string]string{}
	for file, edit := range map[string][2]string{
		"../cluster/level.go": {`MaxLevel = LevelErasing\b`, "MaxLevel = LevelErasing + 1"},
		"../wire/peer.go":     {`MaxPeerVersion = 2\b`, "MaxPeerVersion = 3"},
	} {
		source, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		pattern := regexp.MustCompile(edit[0])
		if len(pattern.FindAll(source, -1)) != 1 {
			return "", fmt.Errorf("%s does not say %s once", file, edit[0])
		}
		edited := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(edited, pattern.ReplaceAll(source, []byte(edit[1])), 0o600); err != nil {
			return "", err
		}
		absolute, err := filepath.Abs(file)
		if err != nil {
			return "", err
		}
		replaced[absolute] = edited
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	name := filepath.Join(dir, "lockstep")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-overlay", list, "-o", name, module).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return name, nil
})

// TestF26_ARollingUpgradeLosesNothing replaces three brokers by those of the next version
// and back, one by one, under load, while the cluster still works at the old level; then
// it upgrades all of them. Nothing is lost, nothing is twice. Once the level has risen an
// old broker is refused with the reason, and its node goes on with the new one.
func TestF26_ARollingUpgradeLosesNothing(t *testing.T) {
	next, err := nextBuild()
	require.NoError(t, err)
	for range *upgradeRuns {
		upgrade(t, next)
	}
}

func upgrade(t *testing.T, next string) {
	c, addresses := withMetrics(t)
	level := func() float64 { return metric(t, addresses[0], "lockstep_feature_level") }
	old := c.nodes[0].binary
	conn := c.connect()
	const name = "upgraded"
	c.create(conn, name, killPartitions)
	var logs []*partitionLog
	for p := range uint32(killPartitions) {
		logs = append(logs, &partitionLog{destination: name, partition: p, keyedOnly: true})
	}
	running, stop := context.WithCancel(t.Context())
	defer stop()
	var producers []*killProducer
	for k := range uint32(killProducers) {
		p := &killProducer{id: k, receipts: map[uint64]place{}}
		producers = append(producers, p)
		p.start(t, running, c.connect(), name)
	}
	restarts := 0
	replace := func(b *brokerProcess, binary string) {
		c.progress(producers)
		b.end()
		b.binary = binary
		b.start()
		_ = b.connect().Close()
		c.progress(producers)
		healthy(t, b)
		restarts++
	}
	for _, b := range c.nodes[:2] {
		replace(b, next)
	}
	verify(t, conn, logs, producers)
	for _, b := range c.nodes[:2] {
		replace(b, old) // the third one knows no other level yet
	}
	verify(t, conn, logs, producers)
	require.EqualValues(t, cluster.MaxLevel, level())
	for _, b := range c.nodes {
		replace(b, next)
	}
	require.Eventually(t, func() bool { return level() == cluster.MaxLevel+1 }, startTimeout, 20*time.Millisecond, "every node knows the next level")

	b := c.nodes[1]
	b.end()
	b.binary = old
	b.start()
	select {
	case <-b.ended:
	case <-time.After(startTimeout):
		t.Fatalf("an old broker starts in a cluster of the next level: %s", b.stderr)
	}
	require.NotZero(t, b.command.ProcessState.ExitCode())
	require.Contains(t, b.stderr.String(), fmt.Sprintf("feature level %d", cluster.MaxLevel+1))
	require.Contains(t, b.stderr.String(), "upgrade this broker")
	b.binary = next
	b.start()
	_ = b.connect().Close()
	healthy(t, b)

	stop()
	for _, p := range producers {
		p.finish(t)
	}
	verify(t, conn, logs, producers)
	var sent, read uint64
	for _, p := range producers {
		sent += p.sent
		require.Equal(t, p.sent, p.verified, "producer %d: every record is acknowledged in the end", p.id)
	}
	for _, l := range logs {
		read += l.next
	}
	require.Equal(t, sent, read, "records sent and records read")
	t.Logf("%d restarts under %d records", restarts, sent)
}

// healthy waits until every partition of a broker's cluster has its leader and all its
// replicas.
func healthy(t *testing.T, b *brokerProcess) {
	t.Helper()
	out := &strings.Builder{}
	require.NoError(t, b.run(nil, out, "cluster", "health", "--watch", "--exit-when-healthy", "--timeout", startTimeout.String()), "%s", out)
}

// end lets the broker stop in order.
func (b *brokerProcess) end() {
	b.t.Helper()
	require.NoError(b.t, b.stdin.Close())
	select {
	case <-b.ended:
	case <-time.After(startTimeout):
		require.FailNow(b.t, "the broker does not stop")
	}
	b.command = nil
}

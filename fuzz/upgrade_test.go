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

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/cluster"
)

var upgradeRuns = flag.Int("upgrade.runs", 1, "how many clusters TestF26 upgrades under load")

// mutantUpgrades is from how many runs on the mutant of TestF26 has its turn as well.
const mutantUpgrades = 2

// nextBuild is this program as the next version will be: it knows one more feature level
// and one more version of the protocol between nodes. Built once for all tests.
var nextBuild = sync.OnceValues(func() (string, error) { return buildEdited("next", nextVersion()) })

// nextVersion are the edits that make the next version of this one: per file what is
// replaced, an expression that matches once, and by what.
func nextVersion() map[string][][2]string {
	return map[string][][2]string{
		"../cluster/level.go": {{`MaxLevel = LevelErasing\b`, "MaxLevel = LevelErasing + 1"}},
		"../wire/peer.go":     {{`MaxPeerVersion = 2\b`, "MaxPeerVersion = 3"}},
	}
}

// buildEdited builds this program with edits of its source, in a directory of that name
// beside the one without.
func buildEdited(name string, edits map[string][][2]string) (string, error) {
	current, err := program()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(filepath.Dir(current), name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	replaced := map[string]string{}
	for file, replacements := range edits {
		source, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		for _, edit := range replacements {
			pattern := regexp.MustCompile(edit[0])
			if len(pattern.FindAll(source, -1)) != 1 {
				return "", fmt.Errorf("%s does not say %s once", file, edit[0])
			}
			source = pattern.ReplaceAll(source, []byte(edit[1]))
		}
		edited := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(edited, source, 0o600); err != nil {
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
	binary := filepath.Join(dir, "lockstep")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-overlay", list, "-o", binary, module).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return binary, nil
}

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

// rollingUpgrade is a cluster under load whose brokers are replaced one by one.
type rollingUpgrade struct {
	*clusterProcess
	metrics   []string
	old       string // the build that all brokers begin with
	conn      *client.Conn
	logs      []*partitionLog
	producers []*killProducer
	stop      context.CancelFunc // ends the load
	restarts  int
}

func newRollingUpgrade(t *testing.T) *rollingUpgrade {
	u := &rollingUpgrade{}
	u.clusterProcess, u.metrics = withMetrics(t)
	u.old, u.conn = u.nodes[0].binary, u.connect()
	const name = "upgraded"
	u.create(u.conn, name, killPartitions)
	for p := range uint32(killPartitions) {
		u.logs = append(u.logs, &partitionLog{destination: name, partition: p, keyedOnly: true})
	}
	running, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	u.stop = stop
	for k := range uint32(killProducers) {
		p := &killProducer{id: k, receipts: map[uint64]place{}}
		u.producers = append(u.producers, p)
		p.start(t, running, u.connect(), name)
	}
	return u
}

// replace restarts a broker with another build, or its own.
func (u *rollingUpgrade) replace(b *brokerProcess, binary string) {
	u.t.Helper()
	u.progress(u.producers)
	b.end()
	b.binary = binary
	b.start()
	_ = b.connect().Close()
	u.progress(u.producers)
	healthy(u.t, b)
	u.restarts++
}

// level is the feature level that the first broker works at.
func (u *rollingUpgrade) level() float64 { return metric(u.t, u.metrics[0], "lockstep_feature_level") }

// most upgrades all brokers but the last.
func (u *rollingUpgrade) most(next string) {
	u.t.Helper()
	for _, b := range u.nodes[:clusterNodes-1] {
		u.replace(b, next)
	}
}

// waits checks that the level has not risen: the last broker, which does not know the next
// one, comes back to a cluster whose metadata a broker of the next version leads by then.
func (u *rollingUpgrade) waits(t testing.TB) {
	t.Helper()
	b := u.nodes[clusterNodes-1]
	u.progress(u.producers)
	b.end()
	u.progress(u.producers)
	b.start()
	_ = b.connect().Close()
	u.restarts++
	out := &strings.Builder{}
	for deadline := time.Now().Add(startTimeout); ; {
		select {
		case <-b.ended:
			require.FailNow(t, "the last broker has no place any more", "%s", b.stderr)
		default:
		}
		out.Reset()
		if awaitHealth(b, out, 2*time.Second) == nil {
			break
		}
		require.True(t, time.Now().Before(deadline), "%s", out)
	}
	require.EqualValues(t, cluster.MaxLevel, u.level())
}

// TestF26_Catches_ALevelThatWaitsForNobody upgrades to a build that raises the level
// without asking what the other nodes know, which the same check finds.
func TestF26_Catches_ALevelThatWaitsForNobody(t *testing.T) {
	if *upgradeRuns < mutantUpgrades {
		t.Skipf("SKIPPED: it builds the broker once more; -upgrade.runs %d runs it", mutantUpgrades)
	}
	edits := nextVersion()
	edits["../cluster/level.go"] = append(edits["../cluster/level.go"], [2]string{`if c\.Level > max\(`, "if false && c.Level > max("})
	edits["../cluster/controller.go"] = [][2]string{{`level = min\(level, max\(n\.MaxLevel, LevelAlone\)\)`, "_ = n"}}
	hasty, err := buildEdited("hasty", edits)
	require.NoError(t, err)
	for n := range 5 { // the controller may not have got to it
		u := newRollingUpgrade(t)
		u.most(hasty)
		caught := fails(t, u.waits)
		u.stop()
		for _, p := range u.producers {
			p.finish(t)
		}
		if caught {
			t.Logf("caught in round %d, after %d restarts", n+1, u.restarts)
			return
		}
	}
	t.Fatal("not caught")
}

func upgrade(t *testing.T, next string) {
	u := newRollingUpgrade(t)
	c, conn, logs, producers, old := u.clusterProcess, u.conn, u.logs, u.producers, u.old
	u.most(next)
	u.waits(t)
	verify(t, conn, logs, producers)
	for _, b := range c.nodes[:2] {
		u.replace(b, old)
	}
	verify(t, conn, logs, producers)
	require.EqualValues(t, cluster.MaxLevel, u.level())
	for _, b := range c.nodes {
		u.replace(b, next)
	}
	require.Eventually(t, func() bool { return u.level() == cluster.MaxLevel+1 }, startTimeout, 20*time.Millisecond, "every node knows the next level")

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

	u.stop()
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
	t.Logf("%d restarts under %d records", u.restarts, sent)
}

// healthy waits until every partition of a broker's cluster has its leader and all its
// replicas.
func healthy(t *testing.T, b *brokerProcess) {
	t.Helper()
	out := &strings.Builder{}
	require.NoError(t, awaitHealth(b, out, startTimeout), "%s", out)
}

func awaitHealth(b *brokerProcess, out *strings.Builder, most time.Duration) error {
	return b.run(nil, out, "cluster", "health", "--watch", "--exit-when-healthy", "--timeout", most.String())
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

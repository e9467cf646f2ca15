package replication

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/vfs"
)

var (
	strictCuts = flag.Int("strict.cuts", 20, "power cuts of TestF9_ADiskThatLies")
	strictSeed = flag.Uint64("strict.seed", 1, "the first of their seeds")
)

// liar is a disk that says to have synced, and has from time to time.
type liar struct {
	vfs.FS
	lies func() bool
}

type liarFile struct {
	vfs.File
	fs *liar
}

func (l *liar) Create(name string) (vfs.File, error) {
	f, err := l.FS.Create(name)
	return l.wrap(f, err)
}

func (l *liar) Open(name string) (vfs.File, error) {
	f, err := l.FS.Open(name)
	return l.wrap(f, err)
}

func (l *liar) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &liarFile{f, l}, nil
}

func (f *liarFile) Sync() error {
	if f.fs.lies() {
		return nil
	}
	return f.File.Sync()
}

// lyingCut is one power cut of replica 3, whose disk has lied since some moment, and
// the end of one other process, in any order, while the last one lacks a part of what
// was acknowledged. It returns what was lost of it.
func lyingCut(t *testing.T, seed uint64, lapses lapse) (lost int) {
	random := rand.New(rand.NewPCG(seed, 9))
	f := newFleet(t)
	f.founders = []uint64{1, 2, 3}
	f.options = func(o *log.Options) { o.StrictRecovery = true }
	lying := false
	for _, id := range f.founders {
		m := &member{f: f, id: id, files: vfs.NewSimulated(seed<<8 + id), config: func(c *Config) { c.Uncertain = c.Log.Uncertain() }}
		if id == 3 {
			m.wrap = func(fs vfs.FS) vfs.FS { return &liar{fs, func() bool { return lying }} }
		}
		f.members[id] = m
		m.open()
	}
	l := f.lead(1 + random.Uint64N(2))
	behind := f.members[3-l.id]
	number := 0
	write := func(n int) {
		for range n {
			l.propose(fmt.Sprintf("record %d", number))
			f.settle()
			number++
		}
	}
	write(random.IntN(20))
	lying = true
	write(random.IntN(20))
	f.isolate(behind.id)
	write(1 + random.IntN(20)) // the leader and the liar are the majority
	require.Len(t, l.applied(), number)
	u := f.members[3]
	if random.IntN(2) == 0 {
		l.crash(false)
	}
	u.files.CrashLoseAll()
	u.crash(false)
	if !l.down {
		l.crash(false)
	}
	lying = false
	f.heal()
	u.open()
	u.group.lapses, behind.group.lapses = lapses, lapses
	f.tick(60)
	l.open()
	f.elect()
	f.tick(10)
	if lapses != 0 {
		return number - len(f.elect().applied())
	}
	f.equal()
	for _, id := range f.founders {
		require.Len(t, f.members[id].applied(), number, "seed %d: replica %d", seed, id)
		require.False(t, f.members[id].log.Uncertain(), "seed %d: replica %d: its next start does not ask again", seed, id)
	}
	return 0
}

// TestF9_ADiskThatLiesLosesNothingWithStrictRecovery: a replica that has lost what it
// had promised is no reason to lose what others still have.
func TestF9_ADiskThatLiesLosesNothingWithStrictRecovery(t *testing.T) {
	for seed := *strictSeed; seed < *strictSeed+uint64(*strictCuts); seed++ {
		lyingCut(t, seed, 0)
		if t.Failed() {
			t.Fatalf("strict.seed %d", seed)
		}
	}
	t.Logf("strict.seed %d: %d power cuts, 0 records lost", *strictSeed, *strictCuts)
}

func TestF9_Catches_VotesOfALiarThatCount(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		if lost := lyingCut(t, seed, trusting); lost > 0 {
			t.Logf("caught with seed %d: %d acknowledged records are gone", seed, lost)
			return
		}
	}
	t.Fatal("not caught in 20 power cuts")
}

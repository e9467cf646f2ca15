package log

import (
	"fmt"
	"github.com/lockstepmq/lockstep/vfs"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

func TestDebugSeed(t *testing.T) {
	seed, _ := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	mode := SyncQuorum
	if os.Getenv("MODE") == "os" {
		mode = SyncOS
	}
	m := &crashModel{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 42)), fs: vfs.NewSimulated(seed), mode: mode, first: 1}
	m.segment = []int64{700, 2000, 10_000, 200_000}[m.random.IntN(4)]
	m.fs.Inject(func(op vfs.Op, name string) error {
		if op != vfs.OpRead && op != vfs.OpStat {
			fmt.Println("   ", op, name)
		}
		return nil
	})
	for range 3 + m.random.IntN(4) {
		fmt.Println("OPEN")
		m.open()
		fmt.Println("RUN last", m.log.LastIndex(), "first", m.log.FirstIndex())
		m.run()
		fmt.Println("CRASH", m.log.Err(), "durable", m.durable, "last", len(m.entries), "committed", m.committed)
	}
	m.open()
}

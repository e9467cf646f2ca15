package log

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

func TestAppendReadReopen(t *testing.T) {
	for _, segmentBytes := range []int64{1 << 10, 8 << 10, 100 << 10, 64 << 20} {
		for _, name := range []string{"simulated", "memory"} {
			t.Run(name, func(t *testing.T) {
				var fs vfs.FS = vfs.NewSimulated(1)
				if name == "memory" {
					fs = vfs.NewMemory(func(int64) error { return nil })
				}
				r := newRig(t, fs, func(o *Options) { o.SegmentBytes = segmentBytes }).open()
				r.term(1)
				var want, wantRecords []Entry
				offset := wire.Offset(0)
				for i := wire.Index(1); i <= 200; i++ {
					e := records(i, 1+wire.Term(i/50), uint32(i%3)+1, int(i*7%900))
					switch {
					case i%50 == 0 || i == 1:
						e = noOp(i, 1+wire.Term(i/50))
					case i%11 == 0:
						e = control(i, 1+wire.Term(i/50), 40)
					case i%37 == 0:
						e = configuration(i, 1+wire.Term(i/50), "add replica 9")
					}
					want = append(want, e)
					if e.Kind == wire.KindRecords {
						wantRecords = append(wantRecords, e)
						offset += wire.Offset(i%3) + 1
					}
					r.append(e)
					if i%7 == 0 {
						r.commit()
					}
				}
				r.commit()
				check := func() {
					require.Equal(t, wire.Index(200), r.log.LastIndex())
					require.Equal(t, offset, r.log.NextOffset())
					require.Equal(t, want, r.replayed(1))
					require.Equal(t, want[120:], r.replayed(121))
					for i := wire.Index(1); i <= 200; i++ {
						term, ok := r.log.Term(i)
						require.True(t, ok)
						require.Equal(t, 1+wire.Term(i/50), term)
					}
				}
				check()
				require.Equal(t, wantRecords, r.stream(Position{}, 777))
				r.close(true)
				r.open()
				check()
				require.Equal(t, wire.Index(0), r.log.Watermark().Index)
				require.Equal(t, wire.Index(200), r.log.HardState().Commit)
				r.log.Publish(200)
				require.Equal(t, wantRecords, r.stream(Position{}, 100_000))
				r.close(false)
			})
		}
	}
}

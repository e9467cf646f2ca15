package sim

// Shrink leaves steps out of a failing run as long as it breaks the same promise, and
// returns the smallest run it found. It ends when nothing can be left out any
// more or more returns false.
func Shrink(o Options, more func() bool) (Options, *Result) {
	best := Run(o)
	if best.Err == nil {
		return o, best
	}
	o.Steps = best.Step + 1
	skip := make([]bool, o.Steps)
	copy(skip, o.Skip)
	for chunk := o.Steps / 2; chunk > 0; chunk /= 2 {
		for from := 0; from < o.Steps; from += chunk {
			if !more() {
				o.Skip = skip
				return o, best
			}
			tried := append([]bool(nil), skip...)
			fresh := false
			for i := from; i < min(from+chunk, o.Steps); i++ {
				fresh = fresh || !tried[i]
				tried[i] = true
			}
			if !fresh {
				continue
			}
			t := o
			t.Skip = tried
			if r := Run(t); r.Err != nil && r.Err.kind == best.Err.kind {
				skip, best = tried, r
				o.Steps = min(o.Steps, r.Step+1)
			}
		}
	}
	o.Skip = skip
	return o, best
}

package server

import (
	"fmt"
	"testing"
)

// Mutants take one protection away. The test of the same row must then fail.

// expectedFailure ends a run that has noticed the mutant. It says how.
type expectedFailure string

// failing is a test that is meant to fail.
type failing struct{ testing.TB }

func (f *failing) Errorf(format string, args ...any) {
	panic(expectedFailure(fmt.Sprintf(format, args...)))
}
func (f *failing) FailNow()                          { panic(expectedFailure("")) }
func (f *failing) Fatalf(format string, args ...any) { f.Errorf(format, args...) }

// caught requires that run fails its test.
func caught(t *testing.T, run func(testing.TB)) {
	t.Helper()
	defer func() {
		p := recover()
		if p == nil {
			t.Fatal("the mutant was not caught")
		}
		how, expected := p.(expectedFailure)
		if !expected {
			panic(p)
		}
		t.Logf("caught: %s", how)
	}()
	run(&failing{t})
}

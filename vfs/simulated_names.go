package vfs

import (
	"math/rand/v2"
	"slices"
)

// simNode is a file or directory of a Simulated.
type simNode = node[*simFile]

// nameKey is one name in one directory.
type nameKey struct {
	directory *simNode
	name      string
}

// binding is the change of one name: what it meant before and means after.
// A nil node stands for no such name.
type binding struct {
	nameKey
	before, after *simNode
	synced        bool // SyncDir of the directory has covered it
}

func (b *binding) set(to *simNode) {
	if to == nil {
		delete(b.directory.entries, b.name)
	} else {
		b.directory.entries[b.name] = to
	}
}

// nameOp is one creation, removal or rename that is not durable yet. It happens
// whole or not at all, as the journals of ext4 and xfs promise for a rename.
type nameOp struct {
	bindings []binding // one, or two for a rename: the old name, then the new
	// emptied is a directory that this operation removed: every operation
	// that took something out of it must have happened before.
	emptied *simNode
	// doubtful is set when a SyncDir that should have covered it failed: no later
	// SyncDir makes it durable, only an operation that builds on it does.
	doubtful bool
	durable  bool // scratch of sync
}

// nameLog is the list of operations on names that a crash may still undo, in
// the order in which they happened. The volatile tree has all of them; the
// durable tree is what remains when all are undone.
//
// Any of them may be durable without those before it, with these exceptions,
// which no file system breaks: operations on one name keep their order, a
// directory is removed only empty, and nothing happens in a directory that
// was never made.
type nameLog struct {
	pending []*nameOp
}

func (l *nameLog) add(emptied *simNode, bindings ...binding) {
	for i := range bindings {
		bindings[i].set(bindings[i].after)
	}
	l.pending = append(l.pending, &nameOp{bindings: bindings, emptied: emptied})
}

// sync makes the operations in a directory durable and calls gone for every
// node whose removal became durable with it. A rename between two directories
// needs both synced.
func (l *nameLog) sync(directory *simNode, gone func(*simNode)) {
	required := map[nameKey]bool{}
	emptied := map[*simNode]bool{}
	anything := false
	for _, op := range slices.Backward(l.pending) {
		whole := true
		for i := range op.bindings {
			b := &op.bindings[i]
			if b.directory == directory && !op.doubtful {
				b.synced = true
			}
			whole = whole && b.synced
			op.durable = op.durable || required[b.nameKey] || emptied[b.directory]
		}
		op.durable = op.durable || whole
		if !op.durable {
			continue
		}
		anything = true
		for i := range op.bindings {
			required[op.bindings[i].nameKey] = true
		}
		if op.emptied != nil {
			emptied[op.emptied] = true
		}
	}
	if !anything {
		return
	}
	kept := l.pending[:0]
	for _, op := range l.pending {
		if !op.durable {
			kept = append(kept, op)
			continue
		}
		for i := range op.bindings {
			if before := op.bindings[i].before; before != nil {
				gone(before)
			}
		}
	}
	clear(l.pending[len(kept):])
	l.pending = kept
}

// doubt is what a failed SyncDir leaves: the operations in the directory may
// or may not be durable, and asking again does not help.
func (l *nameLog) doubt(directory *simNode) {
	for _, op := range l.pending {
		for i := range op.bindings {
			op.doubtful = op.doubtful || op.bindings[i].directory == directory
		}
	}
}

// crash turns the volatile tree into one that a power cut may leave: all
// operations are undone, newest first, and those that survive are done again.
func (l *nameLog) crash(s nameSurvival) {
	survivors := s.choose(l.pending)
	for _, op := range slices.Backward(l.pending) {
		for _, b := range slices.Backward(op.bindings) {
			b.set(b.before)
		}
	}
	for _, op := range survivors {
		for i := range op.bindings {
			op.bindings[i].set(op.bindings[i].after)
		}
	}
	l.pending = nil
}

// nameSurvival decides which operations on names a crash keeps.
type nameSurvival struct {
	kind   survivalKind // loseAll, keepAll, keepHalf or keepPrefix
	random *rand.Rand
}

func randomNameSurvival(random *rand.Rand) nameSurvival {
	kinds := [...]survivalKind{loseAll, keepAll, keepHalf, keepHalf, keepPrefix}
	return nameSurvival{kind: kinds[random.IntN(len(kinds))], random: random}
}

// choose returns the operations to keep, closed under what each of them needs.
func (s nameSurvival) choose(pending []*nameOp) []*nameOp {
	if s.kind == loseAll || len(pending) == 0 {
		return nil
	}
	if s.kind == keepAll {
		return pending
	}
	if s.kind == keepPrefix {
		return pending[:s.random.IntN(len(pending)+1)]
	}
	var kept []*nameOp
	droppedNames := map[nameKey]bool{}
	occupied := map[*simNode]bool{} // directories that an operation was dropped in
	missing := map[*simNode]bool{}  // directories whose making was dropped
	for _, op := range pending {
		drop := s.random.Uint32()&1 == 0 || occupied[op.emptied]
		for i := range op.bindings {
			b := &op.bindings[i]
			drop = drop || droppedNames[b.nameKey] || missing[b.directory]
		}
		if !drop {
			kept = append(kept, op)
			continue
		}
		for i := range op.bindings {
			b := &op.bindings[i]
			droppedNames[b.nameKey] = true
			occupied[b.directory] = true
		}
		if made := op.bindings[0].after; len(op.bindings) == 1 && made != nil && made.isDirectory() {
			missing[made] = true
		}
	}
	return kept
}

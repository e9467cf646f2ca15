package log

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path"
	"sort"

	"github.com/lockstepmq/lockstep/segment"
	"github.com/lockstepmq/lockstep/vfs"
	"github.com/lockstepmq/lockstep/wire"
)

// InspectedFrame is what Inspect tells about one frame, or about a place where
// there should be one.
type InspectedFrame struct {
	File     string // name in the directory
	Position int64
	Header   wire.FrameHeader // zero if it cannot be read
	Body     []byte           // valid during the call; nil if it is damaged
	Mark     wire.Index       // durable mark, 0 if the local word is not of this file
	Problem  error            // nil if the frame is whole and in its place
	// Erased says that the header stands for a run of entries up to its index whose records
	// were acknowledged and whose bytes, Header.FrameSize of them, were given back.
	Erased bool
}

// errStale is the problem of a frame behind the end of its log.
var errStale = errors.New("whole frame behind the end of the log")

// Inspect walks the segments of a log that is not open, frame by frame, without
// changing anything: it goes on behind damage as far as frames can be found. It
// needs no store and no lock. An error of fn ends the walk and is returned; problems
// of the data are reported to fn. Files of a newer version are ErrTooNew.
func Inspect(fs vfs.FS, dir string, fn func(InspectedFrame) error) error {
	names, manifested, err := inspectNames(fs, dir)
	if err != nil {
		return err
	}
	in := &inspection{fs: fs, dir: dir, fn: fn}
	if manifested != nil {
		in.link, in.linked = manifested.start, true
	}
	for i, name := range names {
		in.last = i+1 == len(names)
		if err := in.segment(name); err != nil {
			return err
		}
	}
	return nil
}

// Replay gives the state of a log that is not open, as far as it can be read: restore
// gets the newest whole checkpoint's state, if there is one, and apply what lies above
// it, up to the first damage. Like Inspect it changes nothing and needs no lock; beside
// a running broker it may miss the last entries. Errors of restore and apply end it.
func Replay(fs vfs.FS, dir string, restore func(state []byte) error, apply func(InspectedFrame) error) error {
	var newest *savedCheckpoint
	for _, name := range checkpointNames {
		b, err := readFile(fs, path.Join(dir, name), MaxCheckpointBytes)
		if err != nil {
			continue
		}
		if c, _, err := parseCheckpoint(b); err == nil && (newest == nil || c.Applied > newest.Applied) {
			newest = c
		}
	}
	next := wire.Index(1)
	if newest != nil {
		if err := restore(newest.State); err != nil {
			return err
		}
		next = newest.Applied + 1
	}
	return Inspect(fs, dir, func(f InspectedFrame) error {
		if f.Problem != nil || f.Header.Index != next {
			return nil // below the checkpoint, or no longer a continuation
		}
		next++
		return apply(f)
	})
}

// inspectNames lists the segments: by the manifest, or if that is unreadable by
// their names.
func inspectNames(fs vfs.FS, dir string) ([]string, *manifest, error) {
	b, err := readFile(fs, path.Join(dir, manifestName), manifestFixed+maxSegments*manifestEntry+4)
	if err == nil {
		m, err := parseManifest(b)
		if errors.Is(err, ErrTooNew) {
			return nil, nil, fmt.Errorf("%s: %w", path.Join(dir, manifestName), err)
		}
		if err == nil {
			var names []string
			for _, s := range m.segments {
				names = append(names, segment.Name(s.sequence, s.fileID))
			}
			return names, m, nil
		}
	}
	all, err := fs.List(dir)
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, name := range all {
		if _, _, ok := segment.ParseName(name); ok {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil, nil
}

type inspection struct {
	fs     vfs.FS
	dir    string
	fn     func(InspectedFrame) error
	link   segment.Link
	linked bool // link is known
	last   bool
	buffer []byte
}

func (in *inspection) segment(name string) error {
	sequence, fileID, _ := segment.ParseName(name)
	file, err := in.fs.OpenReadOnly(path.Join(in.dir, name))
	if errors.Is(err, iofs.ErrNotExist) {
		return in.fn(InspectedFrame{File: name, Problem: errors.New("file is missing")})
	}
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Size()
	if err != nil {
		return err
	}
	var b [segment.HeaderSize]byte
	if n, err := file.ReadAt(b[:], 0); n < len(b) && !errors.Is(err, io.EOF) {
		return err
	}
	h, err := segment.ParseHeader(b[:])
	switch {
	case errors.Is(err, segment.ErrTooNew) && segment.HeaderFileID(b[:]) == fileID:
		return fmt.Errorf("%s: %w: %w", name, ErrTooNew, err)
	case err != nil || h.FileID != fileID || h.Sequence != sequence:
		if in.last {
			return nil // prepared, not written yet
		}
		return in.fn(InspectedFrame{File: name, Problem: segment.ErrBlank})
	}
	if in.linked && h.Previous != in.link {
		// It may have been taken back and not been forgotten yet.
		if err := in.fn(InspectedFrame{File: name, Problem: fmt.Errorf("%w: header continues entry %d, the log is at %d", segment.ErrChain, h.Previous.Index, in.link.Index)}); err != nil {
			return err
		}
	}
	in.link, in.linked = h.Previous, true
	runs, err := segment.ReadErased(in.fs, in.dir, &h)
	if err = erasedError(in.dir, &h, err); errors.Is(err, ErrCorrupt) {
		if err := in.fn(InspectedFrame{File: segment.ErasedName(sequence, fileID), Problem: err}); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return in.frames(name, fileID, file, size, runs)
}

func (in *inspection) frames(name string, fileID uint64, file io.ReaderAt, size int64, runs []segment.Erased) error {
	sc := segment.NewScanner(file, segment.HeaderSize, size, in.buffer)
	sc.PassErased(runs)
	defer func() { in.buffer = sc.Buffer() }()
	ended := false
	for {
		h, err := sc.Header()
		newer := false
		if errors.Is(err, wire.ErrFrameVersion) {
			index, prev, e := sc.PrevOf()
			newer = e == nil && index == in.link.Index+1 && prev == in.link.Chain
		}
		if err == nil && !ended {
			err = sc.Check(&in.link, &h)
			newer = errors.Is(err, wire.ErrFrameVersion)
		}
		if newer {
			return fmt.Errorf("%s: position %d: %w: %w", name, sc.Position(), ErrTooNew, err)
		}
		f := InspectedFrame{File: name, Position: sc.Position(), Header: h, Erased: err == nil && h.Kind == segment.KindErased}
		f.Mark, _ = segment.DecodeMark(fileID, h.HeaderCRC, h.Local)
		switch {
		case err == nil && !ended:
			if f.Body, err = sc.Body(&h); err != nil {
				if !segment.IsDamage(err) {
					return err
				}
				f.Body, f.Problem = nil, err
			}
			in.link = segment.After(&h)
			sc.Skip(&h)
			if err := in.fn(f); err != nil {
				return err
			}
			continue
		case err == nil:
		case !segment.IsDamage(err):
			return err
		}
		// The end, or damage: frames of this file behind it tell which.
		problem := err
		end := sc.Position()
		found, next, err := in.findNext(sc, fileID)
		if err != nil {
			return err
		}
		if !found {
			return nil
		}
		if next.PrevCRC != 0 && next.Index > in.link.Index+1 && !ended {
			f = InspectedFrame{File: name, Position: end, Problem: fmt.Errorf("entries %d to %d: %w", in.link.Index+1, next.Index-1, problem)}
			if err := in.fn(f); err != nil {
				return err
			}
			in.link = segment.Link{Index: next.Index - 1, Term: next.Term, Next: next.BaseOffset, TimeMs: next.AppendTimeMs, Chain: next.PrevCRC}
			continue
		}
		ended = true
		mark, _ := segment.DecodeMark(fileID, next.HeaderCRC, next.Local)
		if err := in.fn(InspectedFrame{File: name, Position: sc.Position(), Header: next, Mark: mark, Problem: errStale}); err != nil {
			return err
		}
		sc.MoveTo(sc.Position() + next.FrameSize())
	}
}

// findNext moves to the next whole frame header that was written to this file.
func (in *inspection) findNext(sc *segment.Scanner, fileID uint64) (bool, wire.FrameHeader, error) {
	for {
		h, err := sc.Find()
		if errors.Is(err, io.EOF) {
			return false, h, nil
		}
		if err != nil {
			return false, h, err
		}
		if _, ok := segment.DecodeMark(fileID, h.HeaderCRC, h.Local); ok {
			return true, h, nil
		}
		sc.MoveTo(sc.Position() + wire.FrameAlignment)
	}
}

// VerifyCheckpoints reads the checkpoints of a log that is not open, and returns a
// *CorruptionError for the first that is damaged. A log opens with the other one, and with none if it has all
// its entries, so that damage of one costs nothing yet. Beside a running broker it is as good:
// checkpoints are replaced whole. Files of a newer version are ErrTooNew.
func VerifyCheckpoints(fs vfs.FS, dir string) error {
	for _, name := range checkpointNames {
		file := path.Join(dir, name)
		b, err := readFile(fs, file, MaxCheckpointBytes)
		if errors.Is(err, iofs.ErrNotExist) {
			continue
		}
		if err == nil {
			_, _, err = parseCheckpoint(b)
		}
		switch {
		case errors.Is(err, ErrTooNew):
			return fmt.Errorf("%s: %w", file, err)
		case err != nil:
			return &CorruptionError{File: file, Cause: fmt.Errorf("checkpoint: %w", err)}
		}
	}
	return nil
}

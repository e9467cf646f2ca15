package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

const (
	// lineReadBytes is the read buffer of produce, in bytes.
	lineReadBytes = 256 << 10
	// maxLineBytes is the longest line produce takes, in bytes: no broker stores
	// a longer record, and without a bound a stream without newlines would be
	// read into memory whole.
	maxLineBytes = 8 << 20
)

var errLineTooLong = fmt.Errorf("longer than %s, the largest record", formatSize(maxLineBytes))

// lineReader splits a stream into lines without their newline. Lines come as
// views into the read buffer; only those that do not fit it are copied.
type lineReader struct {
	r     *bufio.Reader
	long  []byte // a line that did not fit the read buffer
	count int64  // lines returned so far
	bytes int64  // bytes taken from the stream, newlines included
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, lineReadBytes)}
}

// next returns the next line, valid until the following call, and whether a
// newline ended it. After the last line it returns io.EOF. A stream that ends
// in a newline has no empty line after it.
func (l *lineReader) next() (line []byte, newline bool, err error) {
	line, err = l.r.ReadSlice('\n')
	l.bytes += int64(len(line))
	if errors.Is(err, bufio.ErrBufferFull) {
		l.long = l.long[:0]
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(l.long)+len(line) > maxLineBytes {
				return nil, false, errLineTooLong
			}
			l.long = append(l.long, line...)
			line, err = l.r.ReadSlice('\n')
			l.bytes += int64(len(line))
		}
		l.long = append(l.long, line...)
		line = l.long
	}
	switch {
	case err == nil:
		line, newline = line[:len(line)-1], true
	case errors.Is(err, io.EOF) && len(line) > 0:
		// The last line has no newline.
	default:
		return nil, false, err
	}
	if len(line) > maxLineBytes {
		return nil, false, errLineTooLong
	}
	l.count++
	return line, newline, nil
}

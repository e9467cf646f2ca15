// Package segment keeps one file of stored frames: a stretch of a partition's
// log that is appended to, then sealed, and read by many.
//
// The types. A Segment is the file with what is known about it: where it ends,
// how much of it is allocated, the sparse index, the runs of frames that are not
// records. A Link is what the next frame must continue from; it carries the
// chain of header checksums from frame to frame and from file to file. A Scanner
// walks frames with pread. A View is a range of records frames as slices of the
// mapped file, for the kernel to send. A Cache bounds how many files and how
// many maps are open.
//
// The main path. Space is taken ahead of the writer by Extend; Append writes the
// frames of one turn with one pwritev; a sync is somebody else's job and goes
// through a FileRef. Readers ask for a View, which never blocks: it needs the
// file mapped and the bytes in memory, and answers ErrCold otherwise; Populate,
// which may block, provides both.
//
// What is not done here: which frames are durable, committed or wanted is the
// business of package log. A segment knows nothing of Raft, of consumers or of
// sockets; it starts no goroutine and reads no clock.
//
// Mapped memory is never touched by this package, nor may it be by its users: a
// cold page touched by Go code stops the whole process at the next garbage
// collection, and a bad one kills it. Headers, checksums and recovery use pread.
//
// Concurrency. Methods marked "owner only" belong to the one who appends. All
// others may be called by anybody who holds a reference (Acquire): they read
// what the owner has published through atomics and, in the file, only ranges
// that the caller knows to be immutable, that is below the log's watermark.
package segment

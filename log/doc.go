// Package log keeps the entries of one partition: an append-only sequence of
// segments that is at once the partition's Raft log and its message log.
//
// The types. A Store is one data directory: its lock, the hard states of all
// partitions in one file, the journal that logs share when many wait for a sync,
// recycled segments, the reserve for a full disk, and the limits on open files.
// A Log is one partition in it: a manifest that names the segments, the segments,
// two checkpoints, and in memory the newest entries by reference, the runs of
// terms and the positions of what is not yet published.
//
// The main path. The owner of a partition calls Reserve until space is there,
// then Append, which turns Raft entries into frames and writes them, then Sync.
// Both return without waiting for the disk's promise: DurableTicket says later
// how far it has come. When Raft has committed the entries the owner calls
// Publish and readers see them: View hands out the mapped bytes themselves.
//
// Nobody waits here. The package starts no goroutine and reads no clock. Work
// that may block (a sync, the next segment, a checkpoint, dropping segments)
// is a Job given to the Executor that was injected; its second half, Done, runs
// in a turn of the owner. Readers never wait for the owner either: they go
// through an atomic pointer to an immutable list of segments and an atomic
// watermark, and everything below the watermark is immutable.
//
// What a crash leaves. Frames are chained by checksums, so a stale suffix is
// never taken for the present. Recovery scans from the newest checkpoint,
// verifies everything and ends at the first frame that does not fit. If that
// frame is at or below something known to have been durable it is corruption,
// reported and never cut; otherwise it is the last, never confirmed group of
// writes, and the tail is cleared durably. The first failed write or sync fences
// the log for good: nothing is retried, nothing more is reported durable.
//
// Not done here: deciding what is committed, applying entries, choosing what to
// retain, repairing from peers.
package log

package wire

// Limits that both ends know. A broker may announce lower ones in its HELLO
// answer; none may be raised above these without a new protocol version.
const (
	// MaxFrameBytes is the largest value of a protocol frame's length field, in
	// bytes: a full batch and 64 KiB for the header, the request's own fields and
	// a record index. Longer frames are answered with TOO_LARGE and the connection
	// is closed.
	MaxFrameBytes = MaxBatchBytes + 64<<10
	// MaxHandshakeFrameBytes is the largest value of the length field before HELLO
	// was accepted, in bytes.
	MaxHandshakeFrameBytes = 4 << 10
	// MaxBatchBytes is the largest record batch as it travels, header included, in
	// bytes.
	MaxBatchBytes = 8 << 20
	// MaxUncompressedBytes is the largest records section of a batch after
	// decompression, in bytes. Readers must refuse to inflate more than that.
	MaxUncompressedBytes = 8 << 20
	// MaxZstdWindowBytes is the largest window that a zstd frame may ask its
	// reader for, in bytes.
	MaxZstdWindowBytes = 8 << 20
	// MaxBatchRecords is the largest number of records in one batch.
	MaxBatchRecords = 1<<16 - 1
	// DefaultMaxRecordBytes is the largest encoded record of a destination that
	// sets no limit of its own, in bytes.
	DefaultMaxRecordBytes = 1 << 20
	// MaxRecordBytes is the largest limit a destination may set for one encoded
	// record, in bytes: a record alone in a batch.
	MaxRecordBytes = MaxBatchBytes - BatchHeaderSize
	// MaxBodyBytes is the longest body of a stored frame, in bytes: an entry is cut
	// at 1 MiB or at one batch with its index, whichever is larger.
	MaxBodyBytes = MaxFrameBytes
	// MaxNameBytes is the longest name of a destination, producer or group, in
	// bytes of UTF-8.
	MaxNameBytes = 255
	// MaxMetadataNames is the largest number of destinations that one METADATA
	// request may name. A name of no bytes takes two on the wire and sixteen in
	// memory, so that without a limit a frame would grow eightfold.
	MaxMetadataNames = 1 << 10
	// MetadataPageBytes is where a page of METADATA ends: with the destination that
	// reaches it. The largest destination, 1,024 partitions and a run for each key
	// slot, is below four times as much.
	MetadataPageBytes = 64 << 10
	// MaxDetailBytes is the longest detail text of an error or event, in bytes.
	// Longer texts are cut when they are written.
	MaxDetailBytes = 1 << 10
	// MaxDeliverBytes is the longest piece of stream in one DELIVER frame, in bytes.
	MaxDeliverBytes = 64 << 10
	// SlotCount is the number of key slots of a destination: the slot of a key is
	// the top 14 bits of the key's xxhash64.
	SlotCount = 1 << 14
)

// Package wire holds every layout of bytes that leaves the process: to a
// socket, to a segment file, or into a Raft entry. It is a leaf. It knows no
// sockets, files, goroutines or clocks, and imports only the standard library.
//
// Four families of layouts live here.
//
//   - The protocol between client and broker. A connection starts with the
//     Preface, then protocol frames go both ways: a Header and a body. Every
//     body is a message, one file for each request pair (hello.go, produce.go,
//     link.go and so on), with an Append method that writes it and a Parse method
//     that reads it. Errors are one table (errors.go).
//
//   - The record batch, which is Kafka's record batch of magic 2 byte for byte,
//     and the record index that travels beside it. Producers write them with a
//     BatchBuilder, brokers check them with ValidateBatch and set offset and epoch
//     with PatchBatch, consumers walk the records with a RecordReader.
//
//   - The stored frame (FrameHeader) and the prefix of a Raft entry. Consumers
//     receive stored frames as they lie on disk, so the codec is here and not in
//     the storage packages.
//
//   - The protocol between brokers of a cluster (peer.go and peer_….go): frames with a
//     header of their own, in which entries, small messages of many Raft groups,
//     heartbeats and requests travel.
//
// The path of one record: BatchBuilder.Append writes it into a batch,
// ProduceRequest carries the batch to the broker, ValidateBatch checks it,
// AppendBodyBatch puts it into an entry body, FrameHeader.Encode heads that body
// on disk, Deliver streams the frame to a reader, NextBodyBatch and RecordReader
// take it apart again.
//
// Rules that hold for every decoder here. It returns views into its input and
// never keeps them. It checks every length against the bytes that are present
// before it allocates or slices. It accepts exactly one encoding of each value,
// so that decode(encode(x)) = x and encode(decode(b)) = b. It never panics on any
// input.
//
// Integers are little-endian, except inside a record batch, where Kafka's layout
// is big-endian.
package wire

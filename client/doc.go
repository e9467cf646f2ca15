// Package client is the Go client of a Lockstep cluster: it sends records, reads
// them, and administers destinations.
//
// Connect opens a Conn: one session to one of the brokers, the home, which accepts
// requests for all of them, and another one when it breaks. From a Conn come Producers
// and Readers, each for one destination, and the administrative calls.
//
//	conn, err := client.Connect(ctx, "lockstep://127.0.0.1:7400")
//	p, err := conn.Producer(ctx, "orders")
//	receipt, err := p.Send(ctx, &client.Record{Key: []byte("customer 17"), Value: order})
//	r, err := conn.Reader(ctx, "orders", client.FromEarliest())
//	for record, err := range r.Records(ctx) { … }
//
// # The way of a record
//
// Send copies the record into the open batch of its partition (partitioner.go,
// accumulator.go). The session's writer takes batches when the socket is free,
// stamps them with the producer's identity and a sequence, and writes them without
// another copy (session.go). The answer of the broker, or its absence, decides what
// becomes of a batch (delivery.go), and every record's caller is told (batch.go).
// What is out of the ordinary, new sessions, timeouts and identities, is the work of
// one goroutine per producer (upkeep.go).
//
// In a cluster records go straight to the leaders of their partitions and come
// straight from there. Who leads what comes from METADATA, from brokers that refuse
// what is not theirs and name the leader, and from events (topology.go); where the
// nodes are, and the sessions with them, is nodes.go. Which partition gets a record
// without a key is decided in balance.go. When a leader is lost, what is
// unanswered goes to the next one under the same identity and sequence.
//
// The other way, the session's reader copies stored frames into memory of the
// stream they belong to (stream.go), and Next walks down from frame to batch to
// record in the goroutine of the application (reader.go).
//
// # What is promised
//
//   - With idempotence, which is the default, a record is stored at most once
//     however often the connection breaks, and in the order of the calls inside its
//     partition, without holes: what waits behind a record that fails, fails with
//     it. A failed send says what is known: NotSent, Unknown or Applied.
//   - No call outlives its context. A broker that stops answering is noticed within
//     6 s; then calls fail or wait for another session, as WithReconnect says.
//   - A Reader returns every record once, in order, across reconnects, and never
//     one whose checksum does not match.
//   - Nothing grows without bound: what is buffered for sending and what is read
//     ahead have limits, and reaching them holds back the caller or the broker.
//
// # Groups
//
// A Consumer (consumer.go) has an attachment for each partition that its group gives it
// (binding.go, attachment.go): a session that outlives links and leaders, and everything
// that it has leased (lease.go). A record of a scope is handed out when the outcome of
// the one before it is committed. What the broker cannot confirm in time stops here
// before it goes to somebody else (consumer_upkeep.go).
//
// # Requests
//
// A TemporaryQueue (temporary.go) is where others send to for as long as this Conn lives.
// Request sends a record that says where its reply is wanted and waits for that
// (requester.go): all replies of a Conn come to one such queue and are told apart there.
// Serve is the other side: a Consumer that answers, and then acknowledges (serve.go).
//
// # What is not done here
//
// TLS and authentication (WithDialer is the place for TLS). A Reader reads the partitions that exist when it is opened.
//
// # Locks
//
// A Producer's or Reader's mutex comes before a session's and before the Conn's;
// no two of the same kind are held together, and none across the network or while
// foreign code runs.
package client

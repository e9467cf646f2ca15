package wire

// PING (2), since version 1: keeps a session from being idle and measures the
// round trip. Request and answer have no body.

// PingRequest asks for a sign of life.
type PingRequest = Empty

// PingResponse is the sign of life.
type PingResponse = Empty

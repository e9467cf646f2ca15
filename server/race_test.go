//go:build race

package server

// slower divides what tests do a thousand times: the race detector is on.
const slower = 10

//go:build !race

package server

// slower divides what tests do a thousand times.
const slower = 1

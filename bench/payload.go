package bench

import (
	"math/rand/v2"
	"strconv"
)

// Payload is what values are made of.
type Payload string

const (
	// PayloadRandom does not compress.
	PayloadRandom Payload = "random"
	// PayloadText looks like log lines in JSON and compresses about as well.
	PayloadText Payload = "text"
)

// payloadVariants is the number of different values that are made; records take
// turns, so that making them costs nothing while measuring.
const payloadVariants = 64

// makePayloads returns values of size bytes each, always the same ones.
func makePayloads(kind Payload, size int) [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	values := make([][]byte, payloadVariants)
	for i := range values {
		v := make([]byte, 0, size+128)
		for len(v) < size {
			if kind == PayloadText {
				v = appendEvent(v, r)
				continue
			}
			v = append(v, byte(r.Uint32()))
		}
		values[i] = v[:size:size]
	}
	return values
}

func appendEvent(dst []byte, r *rand.Rand) []byte {
	levels := [...]string{"info", "info", "info", "warning", "error"}
	paths := [...]string{"/orders", "/orders/items", "/customers", "/health", "/invoices/pdf"}
	dst = append(dst, `{"level":"`...)
	dst = append(dst, levels[r.IntN(len(levels))]...)
	dst = append(dst, `","path":"`...)
	dst = append(dst, paths[r.IntN(len(paths))]...)
	dst = append(dst, `","customer":`...)
	dst = strconv.AppendInt(dst, int64(r.IntN(100000)), 10)
	dst = append(dst, `,"duration_us":`...)
	dst = strconv.AppendInt(dst, int64(r.IntN(5000)), 10)
	return append(dst, "}\n"...)
}

// makeKeys returns n keys, or nil for n = 0.
func makeKeys(n int) [][]byte {
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = strconv.AppendInt([]byte("key-"), int64(i), 10)
	}
	return keys
}

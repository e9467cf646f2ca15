package lockstest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// given are the ports that freeAddress has given: a broker that is stopped needs its own
// again.
var given sync.Map

// freeAddress is a loopback address that is free and stays so while its broker is stopped:
// its port is below those that systems give to outgoing connections and to port 0, where a
// stopped broker's may be gone when it comes back.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := 10_000 + rand.IntN(10_000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		address := l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatalf("lockstest: %v", err)
		}
		if _, taken := given.LoadOrStore(port, true); !taken {
			return address
		}
	}
	t.Fatalf("lockstest: no port from 10000 to 19999 is free")
	return ""
}

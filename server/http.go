package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lockstepmq/lockstep/log"
	"github.com/lockstepmq/lockstep/wire"
)

// admin is the HTTP side: health and metrics.
type adminServer struct {
	listener net.Listener
	server   *http.Server
	done     chan struct{}
}

// tcpOf is the network for an address: one of IPv4 is not listened to on IPv6 too,
// which Go would do for 0.0.0.0.
func tcpOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil && net.ParseIP(host).To4() != nil {
		return "tcp4"
	}
	return "tcp"
}

// startAdmin serves HTTP on addr until stop.
func startAdmin(addr string, b *broker, more ...prometheus.Collector) (*adminServer, error) {
	listener, err := net.Listen(tcpOf(addr), addr)
	if err != nil {
		return nil, fmt.Errorf("%w, or switch HTTP off with --http off", listenError(addr, "--http", err))
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&brokerCollector{b},
	)
	registry.MustRegister(more...)
	listener = &fewConnections{Listener: listener, places: make(chan struct{}, httpConnections), closed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", b.serveHealth)
	a := &adminServer{
		listener: listener,
		server: &http.Server{
			Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		},
		done: make(chan struct{}),
	}
	go func() {
		defer close(a.done)
		if err := a.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			b.logger.Error("http server ended", "err", err)
		}
	}()
	return a, nil
}

// httpConnections is how many HTTP connections are served at once; others wait to be
// accepted. Whoever keeps one open without a request loses it in five seconds.
const httpConnections = 64

// fewConnections is a listener that accepts while it has a place.
type fewConnections struct {
	net.Listener
	places chan struct{}
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *fewConnections) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &placedConn{Conn: conn, leave: sync.OnceFunc(func() { <-l.places })}, nil
}

// Close implements net.Listener.
func (l *fewConnections) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// placedConn gives its place back when it is closed.
type placedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *placedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

func (a *adminServer) stop(ctx context.Context) error {
	err := a.server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, a.server.Close())
	}
	<-a.done
	return err
}

// health is the body of /healthz.
type health struct {
	Status     string            `json:"status"` // "ok" or "degraded"
	Node       uint32            `json:"node"`
	ClusterID  string            `json:"cluster_id"`
	Version    string            `json:"version"`
	Partitions map[string]int    `json:"partitions"`         // by state
	Problems   map[string]string `json:"problems,omitempty"` // by partition, at most maxProblems
	Damaged    map[string]string `json:"damaged,omitempty"`  // what cannot be read, by partition, at most maxProblems; all else is served
}

const maxProblems = 20

// serveHealth answers 200 while every partition serves and 503 otherwise, with
// what is wrong in the body.
func (b *broker) serveHealth(w http.ResponseWriter, _ *http.Request) {
	h := health{
		Status: "ok", Node: b.identity.NodeID, ClusterID: b.identity.ClusterID.String(), Version: Version(),
		Partitions: map[string]int{}, Problems: map[string]string{}, Damaged: map[string]string{},
	}
	for _, d := range b.View().Destinations {
		info := b.Describe(d)
		for _, p := range info.Partitions {
			h.Partitions[p.State.String()]++
			if (p.State != wire.PartitionActive || p.Problem != "") && len(h.Problems) < maxProblems {
				h.Problems[fmt.Sprintf("%s/%d", d.Name, p.Number)] = cmp.Or(b.whyNotReady(replicaKey{d.ID, p.Number}), p.Problem, p.State.String())
			}
			if r := b.local(d.ID, p.Number); r != nil && p.Damaged > 0 && len(h.Damaged) < maxProblems {
				h.Damaged[fmt.Sprintf("%s/%d", d.Name, p.Number)] = describeDamage(r.harm())
			}
		}
	}
	code := http.StatusOK
	if len(h.Problems) > 0 {
		h.Status, code = "degraded", http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(&h); err != nil {
		b.logger.Debug("health answer not sent", "err", err)
	}
}

// describeDamage names the first ranges of damaged records and how many there are.
func describeDamage(list []log.Damage) string {
	const named = 3
	var b strings.Builder
	for i, d := range list[:min(len(list), named)] {
		if i > 0 {
			b.WriteString("; ")
		}
		what := fmt.Sprintf("offsets %d to %d", d.Base, d.Next-1)
		if d.Base == d.Next { // commands, which nobody reads again
			what = fmt.Sprintf("no records, entry %d", d.FirstIndex)
		}
		fmt.Fprintf(&b, "%s (%s, position %d)", what, d.File, d.Position)
	}
	if len(list) > named {
		fmt.Fprintf(&b, "; %d more ranges", len(list)-named)
	}
	return b.String()
}

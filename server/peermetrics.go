package server

import "github.com/prometheus/client_golang/prometheus"

// peerCollector reads the state of the connections to other nodes when it is asked.
type peerCollector struct{ p *peerSet }

var (
	metricPeersConnected = prometheus.NewDesc("lockstep_peers_connected", "Other nodes that this one is connected to.", nil, nil)
	metricPeersKnown     = prometheus.NewDesc("lockstep_peers_known", "Other nodes of the cluster.", nil, nil)
	metricPeerQueue      = prometheus.NewDesc("lockstep_peer_queue_bytes", "Bytes that wait for the node that most wait for.", nil, nil)
	metricPeerBytes      = prometheus.NewDesc("lockstep_peer_bytes_total", "Bytes on connections to other nodes.", []string{"direction"}, nil)
	metricPeerFrames     = prometheus.NewDesc("lockstep_peer_frames_total", "Frames on connections to other nodes.", []string{"direction"}, nil)
	metricPeerEvents     = prometheus.NewDesc("lockstep_peer_events_total", "What happened on connections to other nodes.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (c *peerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{metricPeersConnected, metricPeersKnown, metricPeerQueue, metricPeerBytes, metricPeerFrames, metricPeerEvents} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *peerCollector) Collect(ch chan<- prometheus.Metric) {
	nodes := *c.p.nodes.Load()
	connected, longest := 0, 0
	for _, n := range nodes {
		if conn := n.conn.Load(); conn != nil {
			connected++
			longest = max(longest, conn.queue.size())
		}
	}
	gauge := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	gauge(metricPeersConnected, connected)
	gauge(metricPeersKnown, len(nodes))
	gauge(metricPeerQueue, longest)
	count := func(d *prometheus.Desc, v uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), label)
	}
	n := &c.p.counters
	count(metricPeerBytes, n.bytesIn.Load(), "in")
	count(metricPeerBytes, n.bytesOut.Load(), "out")
	count(metricPeerFrames, n.framesIn.Load(), "in")
	count(metricPeerFrames, n.framesOut.Load(), "out")
	for kind, v := range map[string]uint64{
		"connected": n.connected.Load(), "lost": n.lost.Load(), "down": n.downs.Load(), "dial-error": n.dialErrors.Load(), "refused": n.refused.Load(),
		"bad-input": n.badInput.Load(), "unknown-frame": n.unknown.Load(), "stall": n.stalls.Load(), "dropped": n.dropped.Load(),
		"unconnected": n.unconnected.Load(), "undelivered": n.undelivered.Load(), "request": n.requests.Load(), "stray-chunk": n.strayChunks.Load(), "bad-transfer": n.badTransfers.Load(),
	} {
		count(metricPeerEvents, v, kind)
	}
}

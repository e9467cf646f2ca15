package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstepmq/lockstep/wire"
)

// brokerCollector reads the broker's state when it is asked: metrics cost
// nothing in between, and nothing depends on them.
type brokerCollector struct{ b *broker }

var (
	metricDestinations = prometheus.NewDesc("lockstep_destinations", "Destinations in the metadata.", nil, nil)
	metricPartitions   = prometheus.NewDesc("lockstep_partitions", "Partitions on this node by state.", []string{"state"}, nil)
	metricAppended     = prometheus.NewDesc("lockstep_records_appended_total",
		"Records appended to a destination on this node, over all its partitions and restarts.", []string{"destination"}, nil)
	metricRetained   = prometheus.NewDesc("lockstep_records_retained", "Records that can be read.", []string{"destination"}, nil)
	metricBytes      = prometheus.NewDesc("lockstep_log_bytes", "Bytes of the logs, frames and control entries included.", []string{"destination"}, nil)
	metricErased     = prometheus.NewDesc("lockstep_log_erased_bytes", "Bytes of acknowledged records inside the logs that were given back to the disk while an older record stays; not part of lockstep_log_bytes.", []string{"destination"}, nil)
	metricWaiting    = prometheus.NewDesc("lockstep_mailbox_bytes", "Bytes that wait for the partitions' owners.", []string{"destination"}, nil)
	metricPending    = prometheus.NewDesc("lockstep_pending_bytes", "Memory of records on their way into logs, all partitions together.", nil, nil)
	metricVoters     = prometheus.NewDesc("lockstep_metadata_voters", "Nodes that vote about the metadata: most of them must live for it to change. A cluster that grows has one at first.", nil, nil)
	metricLevel      = prometheus.NewDesc("lockstep_feature_level", "What all nodes of the cluster have agreed to use; it rises when all have been upgraded.", nil, nil)
	metricEpoch      = prometheus.NewDesc("lockstep_metadata_epoch", "Index of the last metadata change.", nil, nil)
	metricDamaged    = prometheus.NewDesc("lockstep_damaged_records", "Stored records that cannot be read because their bytes are damaged.", []string{"destination"}, nil)
	metricExpired    = prometheus.NewDesc("lockstep_group_expired_records_total", "Records that retention removed before a group was done with them, of all groups of partitions led here.", []string{"destination"}, nil)
	metricUncovered  = prometheus.NewDesc("lockstep_partitions_without_consumer", "Partitions that no consumer of a group has which has consumers, of all groups, as this node coordinates them.", []string{"destination"}, nil)
	metricRanges     = prometheus.NewDesc("lockstep_damaged_ranges", "Ranges of damaged frames.", []string{"destination"}, nil)
	metricLeft       = prometheus.NewDesc("lockstep_damaged_ranges_left", "Ranges of damaged frames that no other replica has any more, which is asked seldom; those that are erased here too are not in lockstep_damaged_ranges.", []string{"destination"}, nil)
	metricReports    = prometheus.NewDesc("lockstep_damage_reports_total", "Damaged frames reported by clients, by what the disk says.", []string{"result"}, nil)
	metricScrubbed   = prometheus.NewDesc("lockstep_scrubbed_bytes_total", "Bytes that the scrubber has verified.", nil, nil)
	metricPasses     = prometheus.NewDesc("lockstep_scrub_passes_total", "Complete passes of the scrubber.", nil, nil)
	metricScrubFails = prometheus.NewDesc("lockstep_scrub_errors_total", "Reads of the scrubber that failed, or found a broken chain.", nil, nil)
	metricRepaired   = prometheus.NewDesc("lockstep_damage_repaired_total", "Damaged frames that were written again from another replica.", nil, nil)
	metricAsked      = prometheus.NewDesc("lockstep_damage_repair_requests_total", "Requests to other replicas for damaged frames.", nil, nil)
	metricUnsaved    = prometheus.NewDesc("lockstep_checkpoints_failed_total", "Checkpoints that were not written, for want of space or because they are too large.", nil, nil)
	metricReformed   = prometheus.NewDesc("lockstep_partitions_cut_back_total", "Partitions that may have lost unsynced records with the machine, since this process started.", nil, nil)
	metricRecovered  = prometheus.NewDesc("lockstep_partitions_recovered_total", "Partitions that went on with a replica of this node without a majority, because an operator accepted the loss.", nil, nil)
	metricStalls     = prometheus.NewDesc("lockstep_storage_stalls", "Partitions, metadata and journal included, that wait for a disk that has stalled.", nil, nil)
	metricStallTime  = prometheus.NewDesc("lockstep_storage_stall_seconds", "How long a partition has waited for a disk that has stalled; of the longest only, at most 20.", []string{"partition"}, nil)
	metricFree       = prometheus.NewDesc("lockstep_storage_free_bytes", "Free space of the device that holds the data directory.", nil, nil)
)

// What the sync journal of the disk store has done since this process started.
var (
	metricJournalGroups = prometheus.NewDesc("lockstep_journal_groups_total", "Syncs of the journal that several partitions shared.", nil, nil)
	metricJournalSyncs  = prometheus.NewDesc("lockstep_journal_syncs_total", "Syncs of partitions that the journal served.", nil, nil)
	metricJournalBytes  = prometheus.NewDesc("lockstep_journal_bytes_total", "Bytes written to the journal.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *brokerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		metricDestinations, metricPartitions, metricAppended, metricRetained, metricBytes, metricErased, metricWaiting, metricPending, metricVoters, metricLevel, metricEpoch, metricFree, metricStalls, metricStallTime,
		metricDamaged, metricExpired, metricUncovered, metricRanges, metricLeft, metricReports, metricScrubbed, metricPasses, metricScrubFails, metricRepaired, metricAsked, metricUnsaved, metricReformed, metricRecovered,
		metricJournalGroups, metricJournalSyncs, metricJournalBytes,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *brokerCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	v := c.b.View()
	gauge(metricDestinations, float64(len(v.Destinations)))
	gauge(metricVoters, float64(c.b.meta.voters.Load()))
	gauge(metricLevel, float64(v.Level))
	gauge(metricEpoch, float64(v.Epoch))
	gauge(metricPending, float64(c.b.pending.Used()))
	if free, _, err := c.b.cfg.fs.Space(c.b.cfg.DataDir); err == nil {
		gauge(metricFree, float64(free))
	}
	stalls := c.b.stalls()
	gauge(metricStalls, float64(len(stalls)))
	for _, s := range stalls[:min(len(stalls), maxProblems)] {
		gauge(metricStallTime, s.lasts.Seconds(), s.name)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	damage := &c.b.damage
	for result, n := range map[string]uint64{
		"damaged": damage.confirmed.Load(), "whole": damage.whole.Load(), "dropped": damage.dropped.Load(),
	} {
		count(metricReports, n, result)
	}
	count(metricScrubbed, damage.scrubbed.Load())
	count(metricRepaired, damage.repaired.Load())
	count(metricAsked, damage.asked.Load())
	count(metricUnsaved, c.b.disk.CheckpointsFailed())
	count(metricReformed, damage.reformed.Load())
	count(metricRecovered, damage.recovered.Load())
	count(metricPasses, damage.passes.Load())
	count(metricScrubFails, damage.failures.Load())
	states := map[wire.PartitionState]int{
		wire.PartitionStarting: 0, wire.PartitionActive: 0, wire.PartitionFenced: 0, wire.PartitionUnavailable: 0,
	}
	for _, d := range v.Destinations {
		var appended, retained, bytes, waiting, erased, damaged, ranges, left, uncovered, expired float64
		info := c.b.Describe(d)
		for _, p := range info.Partitions {
			states[p.State]++
			appended += float64(p.NextOffset)
			retained += float64(p.NextOffset - min(p.StartOffset, p.NextOffset))
			bytes += float64(p.Bytes)
			if r := c.b.local(d.ID, p.Number); r != nil {
				waiting += float64(r.part.Waiting())
				erased += float64(r.records.ErasedBytes())
				expired += float64(r.expired.Load())
				uncovered += float64(r.uncovered.withoutConsumer())
				left += float64(r.mending.left(r.records.Damage(), r.others()))
				for _, run := range r.harm() {
					damaged += float64(run.Next - run.Base)
					ranges++
				}
			}
		}
		ch <- prometheus.MustNewConstMetric(metricAppended, prometheus.CounterValue, appended, d.Name)
		gauge(metricRetained, retained, d.Name)
		gauge(metricBytes, bytes, d.Name)
		gauge(metricErased, erased, d.Name)
		gauge(metricWaiting, waiting, d.Name)
		gauge(metricDamaged, damaged, d.Name)
		gauge(metricRanges, ranges, d.Name)
		gauge(metricLeft, left, d.Name)
		gauge(metricUncovered, uncovered, d.Name)
		ch <- prometheus.MustNewConstMetric(metricExpired, prometheus.CounterValue, expired, d.Name)
	}
	for state, n := range states {
		gauge(metricPartitions, float64(n), state.String())
	}
}

// sessionCollector exports the counters of the session layer.
type sessionCollector struct {
	c *counters
	t *temporaries
}

var (
	metricSessions   = prometheus.NewDesc("lockstep_sessions", "Open client sessions.", nil, nil)
	metricLinks      = prometheus.NewDesc("lockstep_links", "Open links.", nil, nil)
	metricGroupLinks = prometheus.NewDesc("lockstep_group_links", "Open links of consumers in groups.", nil, nil)
	metricGroupCount = prometheus.NewDesc("lockstep_group_records_total", "What consumers in groups were told of records, by kind.", []string{"kind"}, nil)
	metricPaused     = prometheus.NewDesc("lockstep_sessions_paused", "Sessions whose socket is not read because a limit is reached.", nil, nil)
	metricInFlight   = prometheus.NewDesc("lockstep_requests_in_flight", "Requests that wait for their answer.", nil, nil)
	metricRequests   = prometheus.NewDesc("lockstep_requests_total", "Requests by opcode.", []string{"opcode"}, nil)
	metricRedirects  = prometheus.NewDesc("lockstep_redirects_total", "Answers and links that sent a client to another node: NOT_LEADER.", nil, nil)
	metricForwarded  = prometheus.NewDesc("lockstep_forwarded_total", "Requests of clients handed on to the nodes that lead their partitions.", nil, nil)
	metricUpstreams  = prometheus.NewDesc("lockstep_upstreams", "Connections to other nodes that carry forwarded sessions.", nil, nil)
	metricErrors     = prometheus.NewDesc("lockstep_errors_total", "Error answers by code.", []string{"code"}, nil)
	metricClosed     = prometheus.NewDesc("lockstep_sessions_closed_total", "Ended sessions by reason.", []string{"reason"}, nil)
	metricAccepted   = prometheus.NewDesc("lockstep_connections_accepted_total", "Connections admitted.", nil, nil)
	metricRefused    = prometheus.NewDesc("lockstep_connections_refused_total", "Connections refused, by limit.", []string{"limit"}, nil)
	metricBytesIn    = prometheus.NewDesc("lockstep_client_bytes_in_total", "Bytes read from clients.", nil, nil)
	metricBytesOut   = prometheus.NewDesc("lockstep_client_bytes_out_total", "Bytes handed to clients' sockets.", nil, nil)
	metricTemporary  = prometheus.NewDesc("lockstep_temporary_queues", "Temporary queues of this node.", nil, nil)
	metricTempBytes  = prometheus.NewDesc("lockstep_temporary_bytes", "Bytes that wait in temporary queues.", nil, nil)
	metricUnfinished = prometheus.NewDesc("lockstep_inbound_bytes", "Memory held by frames that have not fully arrived.", nil, nil)
	metricUnread     = prometheus.NewDesc("lockstep_outbound_bytes", "Memory held by replies that clients have not taken.", nil, nil)
	metricStream     = prometheus.NewDesc("lockstep_stream_bytes_total", "Bytes of stored frames sent on links.", nil, nil)
	metricSessionLog = prometheus.NewDesc("lockstep_session_events_total", "What happened in the session layer, by kind.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (s *sessionCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		metricSessions, metricLinks, metricGroupLinks, metricGroupCount, metricPaused, metricInFlight, metricRequests, metricRedirects, metricForwarded, metricUpstreams, metricErrors, metricClosed,
		metricAccepted, metricRefused, metricBytesIn, metricBytesOut, metricStream, metricSessionLog,
		metricUnfinished, metricUnread, metricTemporary, metricTempBytes,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *sessionCollector) Collect(ch chan<- prometheus.Metric) {
	c := s.c
	gauge := func(d *prometheus.Desc, v int64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(metricSessions, c.sessions.Load())
	gauge(metricLinks, c.links.Load())
	gauge(metricGroupLinks, c.groupLinks.Load())
	gauge(metricPaused, c.paused.Load())
	gauge(metricInFlight, c.inFlight.Load())
	gauge(metricUnfinished, c.inbound.Load())
	gauge(metricUnread, c.outbound.Load())
	gauge(metricTemporary, int64(s.t.len()))
	gauge(metricTempBytes, s.t.bytes.Load())
	for i := range c.requests {
		name := "unknown"
		if i > 0 {
			name = wire.Opcode(i).String()
		}
		if n := c.requests[i].Load(); n > 0 {
			count(metricRequests, n, name)
		}
	}
	for i := range c.groupRecords {
		count(metricGroupCount, c.groupRecords[i].Load(), groupCountNames[i])
	}
	for i := range c.errors {
		if n := c.errors[i].Load(); n > 0 {
			count(metricErrors, n, wire.ErrorCode(i).String())
		}
	}
	gauge(metricUpstreams, c.upstreams.Load())
	count(metricForwarded, c.forwarded.Load())
	count(metricRedirects, c.errors[wire.CodeNotLeader].Load())
	for i := range c.closed {
		count(metricClosed, c.closed[i].Load(), closeReason(i).String())
	}
	count(metricAccepted, c.accepted.Load())
	count(metricRefused, c.refusedTotal.Load(), "total")
	count(metricRefused, c.refusedAddress.Load(), "address")
	count(metricBytesIn, c.bytesIn.Load())
	count(metricBytesOut, c.bytesOut.Load())
	count(metricStream, c.streamBytes.Load())
	for _, e := range []struct {
		kind string
		n    uint64
	}{
		{"accept-error", c.acceptErrors.Load()}, {"register-error", c.registerErrors.Load()},
		{"panic", c.panics.Load()}, {"pause", c.pauses.Load()}, {"stall", c.stalls.Load()},
		{"cold", c.cold.Load()}, {"pread", c.preads.Load()}, {"unacked-refused", c.unackedRefused.Load()},
		{"half-closed", c.halfClosed.Load()}, {"log-suppressed", c.logSuppressed.Load()},
		{"loop-trigger", c.triggers.Load()}, {"inline-turn", c.inlineKicks.Load()},
		{"handed-turn", c.handedKicks.Load()}, {"gathered-turns", c.gatheredKicks.Load()}, {"event-suppressed", c.eventsSuppressed.Load()},
	} {
		count(metricSessionLog, e.n, e.kind)
	}
}

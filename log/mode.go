package log

// SetSync changes when records count as stable, from the next Append on. What was
// written before stays as stable as it was; changing to SyncQuorum makes it
// durable too.
func (l *Log) SetSync(m SyncMode) {
	l.o.Sync = m
	if m == SyncQuorum {
		l.SyncNow()
	}
}

package log

// SetSync changes when records count as stable, from the next Append on. What was
// written before stays as stable as it was; changing to SyncQuorum makes it
// durable too. Changing away from it is remembered in the hard-state slot, which
// what is appended next waits for: after a power loss the log must know that it
// may have lost records (RULES L5).
func (l *Log) SetSync(m SyncMode) {
	if m == l.o.Sync {
		return
	}
	l.o.Sync = m
	switch {
	case m == SyncQuorum:
		l.SyncNow()
	case !l.volatile:
		l.volatile = true
		l.SetHardState(l.hs, true)
	}
}

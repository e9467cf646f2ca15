package groupmodel

// exchange gives the first consumer the part of the second and the other way round.
// What can follow is the same but for the names, so one of the two states is enough.
func (s *state) exchange() {
	s.consumers[0], s.consumers[1] = s.consumers[1], s.consumers[0]
	for i := range s.consumers {
		c := &s.consumers[i]
		other(&c.session)
		other(&c.predecessor)
		other(&c.late.session)
		other(&c.late.predecessor)
		for k := range c.ins {
			other(&c.in[k].session)
			other(&c.in[k].predecessor)
		}
	}
	for i := range s.leaders {
		l := &s.leaders[i]
		if l.term == 0 {
			continue
		}
		others(&l.state.sessions)
		others(&l.wait)
		other(&l.state.active)
		for k := range maxRecords {
			other(&l.state.table[k].session)
			other(&l.leases[k].session)
			other(&l.table[k].session)
		}
		for k := range l.tails {
			other(&l.tail[k].session)
			other(&l.tail[k].predecessor)
		}
		l.attempt[0], l.attempt[1] = l.attempt[1], l.attempt[0]
		l.debt[0], l.debt[1] = l.debt[1], l.debt[0]
		bits01(&l.suspect)
	}
	bits01(&s.unbound)
	for k := range maxRecords {
		other(&s.seen.holder[k])
		other(&s.seen.accepted[k])
		switch a := &s.seen.alive[k]; *a {
		case 1:
			*a = 2
		case 2:
			*a = 1
		}
	}
}

// other is the session of the same number of the other consumer.
func other(s *session) {
	switch {
	case *s == 0 || *s > 2*maxIncarnations:
	case *s > maxIncarnations:
		*s -= maxIncarnations
	default:
		*s += maxIncarnations
	}
}

// others does the same to a set of sessions.
func others(set *uint16) {
	const first, both = 1<<maxIncarnations - 1, 1<<(2*maxIncarnations) - 1
	*set = *set&^both | *set&first<<maxIncarnations | *set>>maxIncarnations&first
}

func bits01(set *uint8) { *set = *set&^3 | *set&1<<1 | *set>>1&1 }

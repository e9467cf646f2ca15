package cluster

import (
	"maps"
	"slices"

	"github.com/lockstepmq/lockstep/wire"
)

// A destination says what becomes of records that fail, and its groups may say otherwise:
// see Destination.Resolved.

// resolveAgain gives the groups whose settings come to something else than under the old
// ones of the destination a higher version, so that the partitions take it over.
func (d *Destination) resolveAgain(index wire.Index, old *Destination) error {
	d.Groups = maps.Clone(old.Groups)
	for _, name := range slices.Sorted(maps.Keys(old.Groups)) { // the same one is refused everywhere
		g := old.Groups[name]
		if old.Resolved(g) == d.Resolved(g) {
			continue
		}
		if err := validateGroup(d, name, g); err != nil {
			return refuse(wire.CodeInvalidSetting, "group %q of %q goes by these settings: %v; alter the group first", name, d.Name, err).Err
		}
		next := *g
		next.Version = index
		d.Groups[name] = &next
	}
	return nil
}

// allowLetters checks what a destination says about dead letters. Who takes it over raises the
// feature level to LevelGroups, whose builds understand it.
func (s *State) allowLetters(name string, settings *wire.Settings) error {
	if err := s.allowGroups(); err != nil {
		return err
	}
	mode := settings.DeadLetterMode
	if mode == 0 && settings.DeadLetter != "" {
		mode = wire.DeadLetterRecord
	}
	if mode == 0 {
		mode = wire.DeadLetterNone
	}
	if err := validateLetters(name, settings.DeliveryLimit, mode, settings.DeadLetter); err != nil {
		return err
	}
	return s.noAlias(settings.DeadLetter)
}

// validateLetters checks what becomes of the dead letters of a destination.
func validateLetters(destination string, limit uint32, mode wire.DeadLetterMode, letter string) error {
	switch {
	case mode > wire.DeadLetterNone:
		return refuse(wire.CodeInvalidSetting, "dead letter mode %d is none that this cluster knows", uint8(mode)).Err
	case letter == destination:
		return refuse(wire.CodeInvalidSetting, "%q cannot be its own dead letter destination; name another one", destination).Err
	case letter != "" && wire.ValidateName(letter) != nil:
		return wire.ValidateName(letter)
	case mode == wire.DeadLetterRecord && letter == "":
		return refuse(wire.CodeInvalidSetting, "name the destination for dead letters, or park their scopes").Err
	case limit > 0 && mode == wire.DeadLetterNone:
		return refuse(wire.CodeInvalidSetting, "a delivery limit needs a destination for dead letters, or the mode park").Err
	}
	return nil
}

// lettersTo lists where dead letters of a destination may go, each once, in order.
func (d *Destination) lettersTo() []string {
	var to []string
	for _, g := range d.Groups {
		if r := d.Resolved(g); r.DeadLetterMode == wire.DeadLetterRecord {
			to = append(to, r.DeadLetter)
		}
	}
	if d.Settings.DeadLetter != "" && d.Settings.DeadLetterMode <= wire.DeadLetterRecord {
		to = append(to, d.Settings.DeadLetter) // of the groups to come
	}
	slices.Sort(to)
	return slices.Compact(to)
}

// checkLoop refuses a destination whose dead letters could come back to it: a record that
// always fails would go round for ever.
func (s *State) checkLoop(d *Destination) error {
	by := map[string]string{} // how each is reached
	next := []string{}
	visit := func(at *Destination) {
		for _, to := range at.lettersTo() {
			if _, seen := by[to]; !seen {
				by[to] = at.Name
				next = append(next, to)
			}
		}
	}
	visit(d)
	for len(next) > 0 && by[d.Name] == "" {
		to := s.Destinations[next[0]]
		next = next[1:]
		if to != nil && to.Name != d.Name {
			visit(to)
		}
	}
	if last := by[d.Name]; last != "" {
		return refuse(wire.CodeInvalidSetting, "dead letters of %q would come back to it by way of %q, round and round; take another destination for those of one of them", d.Name, last).Err
	}
	return nil
}

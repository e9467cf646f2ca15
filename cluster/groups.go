package cluster

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/lockstepmq/lockstep/wire"
)

// MaxGroups bounds the groups of one destination.
const MaxGroups = 10_000

// Group is what a group of a destination is to be. The leader of each partition carries
// it out in the partition's log; what a group has done is known there only.
type Group struct {
	ID       wire.Index         `json:"id"`      // index of the entry that created it: never reused
	Version  wire.Index         `json:"version"` // of the entry that changed it last
	Settings wire.GroupSettings `json:"settings"`
	Start    wire.GroupStart    `json:"start,omitzero"`
	Paused   bool               `json:"paused,omitempty"`
}

// SetGroup creates or alters a group, or pauses it.
type SetGroup struct {
	Destination string             `json:"destination"`
	Group       string             `json:"group"`
	Create      bool               `json:"create,omitempty"`
	Exists      bool               `json:"exists,omitempty"` // with Create: one that agrees is as good
	Settings    wire.GroupSettings `json:"settings,omitzero"`
	Start       wire.GroupStart    `json:"start,omitzero"`
	IfVersion   wire.Index         `json:"if_version,omitempty"` // 0: whatever it is
	Paused      *bool              `json:"paused,omitempty"`     // then nothing else changes
}

// RemoveGroup removes a group and what it knows about records.
type RemoveGroup struct {
	Destination string `json:"destination"`
	Group       string `json:"group"`
}

// Indexed reports whether batches of the destination carry a record index.
func (d *Destination) Indexed() bool {
	return d.Settings.RecordIndex == wire.RecordIndexOn || d.Settings.RecordIndex == wire.RecordIndexDefault && d.Kind == wire.Queue
}

// Resolved is what a group's settings come to: where it says nothing about dead letters,
// the destination does. A group with the mode none has none of the destination's.
func (d *Destination) Resolved(g *Group) wire.GroupSettings {
	s := g.Settings
	if s.DeadLetterMode == wire.DeadLetterNone {
		return s.WithDefaults()
	}
	if s.DeliveryLimit == 0 {
		s.DeliveryLimit = d.Settings.DeliveryLimit
	}
	if s.DeadLetterMode == 0 && s.DeadLetter == "" { // who names a destination means it
		s.DeadLetterMode = d.Settings.DeadLetterMode
	}
	if s.DeadLetter == "" && s.DeadLetterMode != wire.DeadLetterPark {
		s.DeadLetter = d.Settings.DeadLetter
	}
	return s.WithDefaults()
}

// allowGroups refuses what some node would not understand.
func (s *State) allowGroups() error {
	for _, n := range s.Nodes {
		if len(s.Nodes) > 1 && n.MaxLevel < LevelGroups {
			return refuse(wire.CodeUnsupported, "node %d runs a build that knows no groups; upgrade it first", n.ID).Err
		}
	}
	return nil
}

func (s *State) setGroup(index wire.Index, c *SetGroup) Result {
	d := s.Destinations[c.Destination]
	if d == nil {
		return refuse(wire.CodeUnknownDestination, "destination %q not found", c.Destination)
	}
	if err := s.allowGroups(); err != nil {
		return Result{Err: err}
	}
	old := d.Groups[c.Group]
	switch {
	case old == nil && !c.Create:
		return unknownGroup(d, c.Group)
	case old != nil && c.Create && !c.Exists:
		return refuse(wire.CodeAlreadyExists, "%s %q has a group %q", d.Kind, d.Name, c.Group)
	case old != nil && c.Create:
		if err := agree(c.Group, &old.Settings, &c.Settings); err != nil {
			return Result{Err: err}
		}
		return Result{Destination: d, Group: old}
	case old != nil && c.IfVersion != 0 && c.IfVersion != old.Version:
		return refuse(wire.CodeRefused, "group %q was altered meanwhile, to version %d; look at it again", c.Group, old.Version)
	}
	g := Group{ID: index, Start: c.Start}
	if old != nil {
		g = *old
	}
	g.Version = index
	if c.Paused != nil {
		g.Paused = *c.Paused
	} else {
		g.Settings = c.Settings
	}
	if err := validateGroup(d, c.Group, &g); err != nil {
		return Result{Err: err}
	}
	if err := s.noAlias(g.Settings.DeadLetter); err != nil {
		return Result{Err: err}
	}
	if old == nil && len(d.Groups) >= MaxGroups {
		return refuse(wire.CodeTooMany, "%s %q has %d groups, its limit", d.Kind, d.Name, MaxGroups)
	}
	if to := d.Resolved(&g); to.DeadLetterMode == wire.DeadLetterRecord {
		with := *d
		with.Groups = map[string]*Group{c.Group: &g}
		if err := s.checkLoop(&with); err != nil {
			return Result{Err: err}
		}
	}
	s.Level = max(s.Level, LevelGroups)
	return Result{Destination: s.putGroup(index, d, c.Group, &g), Group: &g, Changed: true}
}

// putGroup replaces a destination by one with another group of that name; nil: with none.
func (s *State) putGroup(index wire.Index, old *Destination, name string, g *Group) *Destination {
	d := *old
	d.Version = index
	d.Groups = maps.Clone(old.Groups)
	switch {
	case g == nil:
		delete(d.Groups, name)
	case d.Groups == nil:
		d.Groups = map[string]*Group{name: g}
	default:
		d.Groups[name] = g
	}
	s.put(&d)
	return &d
}

func (s *State) removeGroup(index wire.Index, c *RemoveGroup) Result {
	d := s.Destinations[c.Destination]
	if d == nil {
		return refuse(wire.CodeUnknownDestination, "destination %q not found", c.Destination)
	}
	if d.Groups[c.Group] == nil {
		return unknownGroup(d, c.Group)
	}
	return Result{Destination: s.putGroup(index, d, c.Group, nil), Changed: true}
}

func unknownGroup(d *Destination, name string) Result {
	return refuse(wire.CodeUnknownGroup, "%s %q has no group %q", d.Kind, d.Name, name)
}

// agree reports whether a group is of the kind that somebody expects: what he leaves open
// may be anything.
func agree(name string, has, wants *wire.GroupSettings) error {
	is := has.WithDefaults()
	differs := func(what string, has, wants fmt.Stringer) error {
		return refuse(wire.CodeGroupMismatch, "group %q has %s %s, not %s; consume as it is, alter the group, or take another name", name, what, has, wants).Err
	}
	switch {
	case wants.Mode != 0 && wants.Mode != is.Mode:
		return differs("mode", is.Mode, wants.Mode)
	case wants.Scope != 0 && wants.Scope != is.Scope && is.Mode == wire.ModeSerial:
		return differs("scope", is.Scope, wants.Scope)
	case wants.Holder != 0 && wants.Holder != is.Holder && is.Mode == wire.ModeSerial && is.Scope == wire.ScopeDestination:
		return differs("holder", is.Holder, wants.Holder)
	case wants.Binding != 0 && wants.Binding != is.Binding:
		return differs("binding", is.Binding, wants.Binding)
	}
	return nil
}

// Agrees reports whether the group is of the kind that somebody expects.
func (g *Group) Agrees(name string, wants *wire.GroupSettings) error {
	return agree(name, &g.Settings, wants)
}

// Bounds of a group's times, in milliseconds.
const (
	MinSessionMs = 500
	MaxSessionMs = 10 * 60 * 1000
	MaxAckWaitMs = 24 * 60 * 60 * 1000
)

// validateGroup checks a group of a destination.
func validateGroup(d *Destination, name string, g *Group) error {
	if err := wire.ValidateName(name); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return refuse(wire.CodeInvalidSetting, format, args...).Err
	}
	s := d.Resolved(g)
	switch {
	case s.Mode > wire.ModeStream, s.Scope > wire.ScopeDestination, s.Holder > wire.HolderSole, s.Binding > wire.BindingLocal,
		s.Order > wire.OrderReplay, s.DeadLetterMode > wire.DeadLetterNone:
		return bad("group %q has a setting that this cluster does not know", name)
	case s.Mode == wire.ModeSerial && s.Scope == wire.ScopeDestination && len(d.Partitions) > 1:
		return refuse(wire.CodeSerialNeedsOnePartition, "one record at a time needs a destination with one partition, and %q has %d; use scope key or publisher, or create a destination with one partition",
			d.Name, len(d.Partitions)).Err
	case s.Mode == wire.ModeSerial && s.Scope != wire.ScopeDestination && !d.Indexed():
		return bad("order by %s needs to find the records of one, and %s %q has no record index; create another topic, with: lockstep topic create NAME --record-index", s.Scope, d.Kind, d.Name)
	case s.SessionMs < MinSessionMs || s.SessionMs > MaxSessionMs:
		return bad("session timeout %d ms is outside %d..%d", s.SessionMs, MinSessionMs, MaxSessionMs)
	case s.AckWaitMs > MaxAckWaitMs || s.RevokeMs > MaxAckWaitMs || s.BackoffMs > MaxAckWaitMs || s.BackoffMaxMs > MaxAckWaitMs:
		return bad("ack wait, revoke grace and backoff are at most %d ms", MaxAckWaitMs)
	case s.BackoffMaxMs < s.BackoffMs:
		return bad("backoff begins at %d ms and ends at %d ms", s.BackoffMs, s.BackoffMaxMs)
	case s.Hold && d.Kind == wire.Queue:
		return bad("a queue keeps what its groups are not done with; hold is for topics")
	case s.Holder == wire.HolderSole && s.Mode != wire.ModeStream && (s.Mode != wire.ModeSerial || s.Scope != wire.ScopeDestination):
		return bad("holder sole is about the one consumer of a strict order, and group %q has none; use mode stream, or serial with scope destination", name)
	case s.Failback && (s.Holder != wire.HolderSticky || s.Mode != wire.ModeStream && (s.Mode != wire.ModeSerial || s.Scope != wire.ScopeDestination)):
		return bad("failback is about the one active consumer, and group %q has none; use mode stream, or serial with scope destination and holder sticky", name)
	case !slices.Contains([]string{"", "earliest", "latest", "offset", "time"}, g.Start.To):
		return bad("start %q is none of earliest, latest, offset and time", g.Start.To)
	}
	return validateLetters(d.Name, s.DeliveryLimit, s.DeadLetterMode, s.DeadLetter)
}

// GroupNamed finds a group of a destination.
func (v *View) GroupNamed(destination uuid.UUID, name string) (*Group, bool) {
	d, ok := v.DestinationByID(destination)
	if !ok {
		return nil, false
	}
	g := d.Groups[name]
	return g, g != nil
}

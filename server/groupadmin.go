package server

import (
	"encoding/json"
	"maps"
	"slices"
	"sort"

	"github.com/lockstepmq/lockstep/cluster"
	"github.com/lockstepmq/lockstep/partition"
	"github.com/lockstepmq/lockstep/partition/group"
	"github.com/lockstepmq/lockstep/wire"
)

// groupAdmin answers GROUP_ADMIN: what groups are to be is in the metadata, and every node
// can tell it.
func (b *broker) groupAdmin(m *wire.GroupAdminRequest, reply func(wire.Message, error)) {
	answer := func(what any, err error) {
		var text []byte
		if err == nil && what != nil {
			text, err = json.Marshal(what)
		}
		if err != nil {
			reply(nil, err)
			return
		}
		reply(&wire.GroupJSON{JSON: text}, nil)
	}
	if a, ok := b.View().Alias(m.Destination); ok {
		m.Destination = a.Destination
	}
	switch m.Op {
	case wire.GroupList:
		answer(b.groups(m.Destination))
		return
	case wire.GroupDescribe:
		d, ok := b.View().Destination(m.Destination)
		if !ok {
			answer(nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", m.Destination))
		} else if g := d.Groups[m.Group]; g == nil {
			answer(nil, wire.Errorf(wire.CodeUnknownGroup, "%s %q has no group %q", d.Kind, d.Name, m.Group))
		} else {
			answer(groupInfo(d, m.Group, g), nil)
		}
		return
	}
	command, err := groupCommand(m)
	if err != nil {
		answer(nil, err)
		return
	}
	if c := command.SetGroup; c != nil && c.Exists { // mostly it is there
		if d, ok := b.View().Destination(c.Destination); ok && d.Groups[c.Group] != nil && d.Groups[c.Group].Agrees(c.Group, &c.Settings) == nil {
			answer(groupInfo(d, c.Group, d.Groups[c.Group]), nil)
			return
		}
	}
	b.submit(command, func(r cluster.Result) {
		if r.Err != nil {
			answer(nil, r.Err)
			return
		}
		b.whenSettled(r.Destination.Version, func() {
			if r.Group == nil {
				answer(nil, nil)
				return
			}
			info := groupInfo(r.Destination, m.Group, r.Group)
			info.Created = r.Group.ID == r.Index
			answer(info, nil)
		})
	})
}

// groupCommand is what a request asks of the metadata.
func groupCommand(m *wire.GroupAdminRequest) (cluster.Command, error) {
	// Here, because metadata in JSON would make another name of one that is not UTF-8.
	if err := wire.ValidateName(m.Group); err != nil {
		return cluster.Command{}, err
	}
	c := &cluster.SetGroup{Destination: m.Destination, Group: m.Group}
	switch m.Op {
	case wire.GroupRemove:
		return cluster.Command{RemoveGroup: &cluster.RemoveGroup{Destination: m.Destination, Group: m.Group}}, nil
	case wire.GroupPause, wire.GroupResume:
		paused := m.Op == wire.GroupPause
		c.Paused = &paused
	case wire.GroupCreate, wire.GroupAlter:
		var intent wire.GroupIntent
		if err := json.Unmarshal(m.JSON, &intent); err != nil {
			return cluster.Command{}, wire.Errorf(wire.CodeMalformed, "GROUP_ADMIN request: %v", err)
		}
		switch {
		case intent.Selector != "":
			return cluster.Command{}, wire.Errorf(wire.CodeUnsupported, "group %q: selectors; a record that matches no consumer would hold up what lies behind it: use a destination for each kind of records", m.Group)
		case intent.ForwardDelayMs != 0:
			return cluster.Command{}, wire.Errorf(wire.CodeUnsupported, "group %q: a forward delay; records stay in their partition: with binding cover each partition has a consumer as long as the group has one", m.Group)
		}
		c.Create, c.Exists = m.Op == wire.GroupCreate, intent.Exists
		c.Settings, c.Start, c.IfVersion = intent.Settings, intent.Start, wire.Index(intent.IfVersion)
	default:
		return cluster.Command{}, wire.Errorf(wire.CodeUnsupported, "GROUP_ADMIN operation %d", m.Op)
	}
	return cluster.Command{SetGroup: c}, nil
}

// groups lists the groups of a destination, or all of them.
func (b *broker) groups(destination string) ([]wire.GroupInfo, error) {
	view := b.View()
	list := view.Destinations
	if destination != "" {
		d, ok := view.Destination(destination)
		if !ok {
			return nil, wire.Errorf(wire.CodeUnknownDestination, "destination %q not found", destination)
		}
		list = []*cluster.Destination{d}
	}
	infos := []wire.GroupInfo{}
	for _, d := range list {
		for _, name := range slices.Sorted(maps.Keys(d.Groups)) {
			infos = append(infos, groupInfo(d, name, d.Groups[name]))
		}
		if len(infos) > cluster.MaxGroups {
			return nil, wire.Errorf(wire.CodeTooLarge, "more than %d groups; ask for those of one destination", cluster.MaxGroups)
		}
	}
	return infos, nil
}

func groupInfo(d *cluster.Destination, name string, g *cluster.Group) wire.GroupInfo {
	return wire.GroupInfo{
		Name: name, Destination: d.Name, ID: uint64(g.ID), Version: uint64(g.Version), Settings: d.Resolved(g), Own: g.Settings, Paused: g.Paused,
	}
}

// intents are the groups of a destination as its partitions are to have them, by ID.
func intents(d *cluster.Destination) []partition.Intent {
	list := make([]partition.Intent, 0, len(d.Groups))
	for name, g := range d.Groups {
		start := g.Start
		if start.To == "" {
			start.To = "earliest"
			if d.Kind == wire.Topic {
				start.To = "latest"
			}
		}
		list = append(list, partition.Intent{
			ID: group.ID(g.ID), Version: uint64(g.Version), Name: name, Settings: d.Resolved(g), Start: start, Paused: g.Paused,
		})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].ID < list[j].ID })
	return list
}

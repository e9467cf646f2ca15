package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// A key or the name of a publisher is any bytes. Commands print those that are not all
// printable in a form that they take as well: hexPrefix and two digits for each byte. One
// that begins with hexPrefix itself, or as flags do, is written so, too, and the key of no
// bytes is hexPrefix alone.
const hexPrefix = "hex:"

// maxNamedKey is how many bytes a key has at most that is printed as a name.
const maxNamedKey = 128

// keyText is a key as commands print and take it.
func keyText(key []byte) string {
	text := string(key)
	if text == "" || text[0] == '-' || strings.HasPrefix(text, hexPrefix) || strings.ContainsFunc(text, func(c rune) bool { return c == utf8.RuneError || !unicode.IsPrint(c) }) {
		return hexPrefix + hex.EncodeToString(key)
	}
	return text
}

// parseKey is the key that a word of the command line means.
func parseKey(text string) ([]byte, error) {
	if text == "" {
		return nil, fmt.Errorf("it is empty; the key of no bytes is written %s", hexPrefix)
	}
	digits, is := strings.CutPrefix(text, hexPrefix)
	if !is {
		return []byte(text), nil
	}
	key, err := hex.DecodeString(digits)
	if err != nil {
		return nil, fmt.Errorf("%q: two hexadecimal digits for each byte follow %s; a key that begins so is written %s", text, hexPrefix, hexPrefix+hex.EncodeToString([]byte(text)))
	}
	return key, nil
}

// namer finds the names of scopes of one group, of which brokers know hashes alone: it looks at
// the record that a scope stands at.
type namer struct {
	conn               *client.Conn
	destination, group string
	settings           client.GroupSettings // with defaults
}

// namingTimeout bounds how long a command reads records to name their keys.
const namingTimeout = 2 * time.Second

// maxNamingRecords is how many records are looked at to name what was parked before anybody met
// a record of it.
const maxNamingRecords = 1000

// name is the key or publisher of the record as commands take it, "" if it cannot be read, is
// too long, or is not that of the scope. Scope 0 takes any.
func (n *namer) name(ctx context.Context, partition uint32, offset, scope uint64) (name string) {
	n.each(ctx, partition, offset, 1, func(at, hash uint64, text string) bool {
		if at == offset && (scope == 0 || hash == scope) {
			name = text
		}
		return false
	})
	return name
}

// find is name where the scope begins at the offset or behind it.
func (n *namer) find(ctx context.Context, partition uint32, offset, scope uint64) (name string) {
	n.each(ctx, partition, offset, maxNamingRecords, func(_, hash uint64, text string) bool {
		if hash == scope {
			name = text
		}
		return name == ""
	})
	return name
}

// each calls f with the offset, scope and name of unfinished records that have one, until it
// says no, a record cannot be read, or ctx ends.
func (n *namer) each(ctx context.Context, partition uint32, from uint64, limit int, f func(offset, scope uint64, name string) bool) {
	for r, err := range n.conn.Browse(ctx, n.destination, client.BrowseOptions{Group: n.group, Partitions: []uint32{partition}, From: from, Limit: limit}) {
		if err != nil {
			return // what is not named has a hash
		}
		name := r.Key
		if n.settings.Scope == wire.ScopePublisher {
			name = nil
			for _, h := range r.Headers {
				if h.Key == wire.PublisherHeader {
					name = h.Value
				}
			}
		}
		if name != nil && len(name) <= maxNamedKey && !f(r.Offset, max(xxhash.Sum64(name), 1), keyText(name)) {
			return
		}
	}
}

// nameParked fills in the names of what is parked, as far as ctx lasts.
func (n *namer) nameParked(ctx context.Context, g *client.GroupInfo) {
	if !n.hashed() {
		return
	}
	for i := range g.Partitions {
		p := &g.Partitions[i]
		rest := make(map[uint64]*client.ParkedScope)
		from := p.Next
		for k := range p.ParkedScopes {
			x := &p.ParkedScopes[k]
			if x.Scope == x.Offset { // a record without a key
				continue
			}
			if x.Name = n.name(ctx, p.Number, x.Offset, x.Scope); x.Name == "" {
				rest[x.Scope], from = x, min(from, x.Offset)
			}
		}
		if len(rest) == 0 {
			continue
		}
		n.each(ctx, p.Number, from, maxNamingRecords, func(_, scope uint64, name string) bool {
			if x := rest[scope]; x != nil {
				x.Name = name
				delete(rest, scope)
			}
			return len(rest) > 0
		})
	}
}

// hashed reports whether the group goes by keys or publishers.
func (n *namer) hashed() bool {
	return n.settings.Mode == wire.ModeSerial && n.settings.Scope != wire.ScopeDestination
}

// argument is how commands on keys take a scope: its name, or where it is. An empty name of a
// key or publisher is not known; alone is a record that is a scope of its own.
func (n *namer) argument(name string, partition uint32, offset *uint64, alone bool) string {
	switch {
	case name != "" && n.settings.Scope == wire.ScopePublisher:
		return shellWord(name) + " --publisher"
	case name != "":
		return shellWord(name)
	case (n.settings.Mode == wire.ModeShared || alone) && offset != nil:
		return fmt.Sprintf("--partition %d --offset %d", partition, *offset)
	case n.settings.Mode != wire.ModeShared && !n.hashed():
		return fmt.Sprintf("--partition %d", partition)
	case n.settings.Scope == wire.ScopePublisher:
		return "NAME --publisher"
	}
	return "KEY"
}

// parked is a parked scope in a table: as commands take it, or, of a key or publisher that is
// not known, its hash.
func (n *namer) parked(x *client.ParkedScope, partition uint32) string {
	alone := x.Scope == x.Offset
	switch {
	case x.Name != "":
		return x.Name
	case n.hashed() && !alone:
		return fmt.Sprintf("%s with hash %016x", n.settings.Scope, x.Scope)
	}
	return n.argument("", partition, &x.Offset, alone)
}

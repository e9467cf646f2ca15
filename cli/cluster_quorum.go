package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// lacksQuorum says why the replicas of a partition cannot store a record, and what to do;
// it is empty if they can. away and full tell of nodes that do not answer, and of those
// whose disks take no records.
func lacksQuorum(d *client.Destination, p *client.PartitionInfo, away func(node uint32) bool, full map[uint32]bool) string {
	var gone, cramped, lost []uint32
	voters, able := 0, 0
	for _, r := range p.Replicas {
		if r.State == wire.ReplicaNew || r.State == wire.ReplicaJoining {
			continue // without a vote
		}
		voters++
		switch {
		case away(r.Node):
			gone = append(gone, r.Node)
		case r.State == wire.ReplicaLost:
			lost = append(lost, r.Node)
		case d.Settings.Storage == wire.StorageDisk && full[r.Node]:
			cramped = append(cramped, r.Node)
		default:
			able++
		}
	}
	needed := voters/2 + 1
	if voters == 0 || able >= needed {
		return ""
	}
	var why, next []string
	if len(gone) > 0 {
		word := "does"
		if len(gone) > 1 {
			word = "do"
		}
		why = append(why, nodeWords(gone)+" "+word+" not answer")
		start := "start " + nodeWords(gone)
		if n := needed - able; n < len(gone) {
			start = fmt.Sprintf("start %d of %s", n, nodeWords(gone))
		}
		next = append(next, start)
	}
	if len(cramped) > 0 {
		why = append(why, "no space on "+nodeWords(cramped))
		next = append(next, "free disk space on "+nodeWords(cramped))
	}
	if len(lost) > 0 {
		why = append(why, "what "+nodeWords(lost)+" had is lost")
	}
	if able+len(cramped) < needed && voters > 1 {
		next = append(next, "give up what they had, see lockstep partition recover --help")
	}
	have := "its only replica cannot"
	if voters > 1 {
		have = fmt.Sprintf("%d of %d replicas can, %d are needed", able, voters, needed)
	}
	return have + ": " + strings.Join(why, ", ") + "; " + strings.Join(next, ", or ")
}

// nodeWords names nodes.
func nodeWords(nodes []uint32) string {
	slices.Sort(nodes)
	words := strings.Trim(strings.ReplaceAll(fmt.Sprint(nodes), " ", ", "), "[]")
	if len(nodes) == 1 {
		return "node " + words
	}
	return "nodes " + words
}

// helplessness is the partitions that cannot store, those together that lack the same.
type helplessness struct {
	groups []helplessGroup
}

type helplessGroup struct {
	lacks string
	unled bool
	names []string
}

func (h *helplessness) add(name string, unled bool, lacks string) {
	i := slices.IndexFunc(h.groups, func(g helplessGroup) bool { return g.lacks == lacks && g.unled == unled })
	if i < 0 {
		i = len(h.groups)
		h.groups = append(h.groups, helplessGroup{lacks: lacks, unled: unled})
	}
	h.groups[i].names = append(h.groups[i].names, name)
}

// texts are the problems that they are.
func (h *helplessness) texts() (problems []string) {
	const named = 3
	for _, g := range h.groups {
		subject, verb := "partition "+g.names[0], "takes no records"
		switch {
		case g.lacks == "": // it could elect one
			verb = "has no leader"
		case g.unled:
			verb = "has no leader and takes no records"
		}
		if n := len(g.names); n > 1 {
			subject = "partitions " + strings.Join(g.names[:min(n, named)], ", ")
			if n > named {
				subject += fmt.Sprintf(" and %d more", n-named)
			}
			verb = strings.NewReplacer("takes", "take", "has", "have").Replace(verb)
		}
		if g.lacks != "" {
			verb += ": " + g.lacks
		}
		problems = append(problems, subject+" "+verb)
	}
	return problems
}

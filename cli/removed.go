package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// A group that is removed leaves the dead letters that are not written yet: they keep their
// records, so whoever looks why a queue does not get shorter has to see them.

const (
	// removalPatience is how long partitions may take to hear that a group is removed.
	removalPatience = 5 * time.Second
	// removedTimeout bounds how long a command about groups that are there asks for those that
	// are removed: a partition without a leader holds nothing else up.
	removedTimeout = 2 * time.Second
)

// left are the dead letters that a removed group has left in one partition.
type left struct {
	destination string
	partition   uint32
	back        uint64 // of Count: on their way back to where they come from
	wire.RemovedLetters
}

// lettersLeft asks the partitions of destinations for what removed groups have left there: the one
// that is named, or all. Partitions that do not answer are passed over, as those of brokers
// that do not know the question.
func lettersLeft(ctx context.Context, conn *client.Conn, group string, destinations ...client.Destination) []left {
	all, _ := lettersAndSilent(ctx, conn, group, destinations...)
	return all
}

// atOnce is how many destinations are asked at a time.
const atOnce = 32

// place is a partition of a destination.
type place struct {
	destination string
	partition   uint32
}

// lettersAndSilent is lettersLeft, and the partitions of which no leader has answered within
// removedTimeout.
func lettersAndSilent(ctx context.Context, conn *client.Conn, group string, destinations ...client.Destination) (all []left, silent map[place]bool) {
	silent = make(map[place]bool)
	asked := make([][]wire.LettersResponse, len(destinations))
	var mu sync.Mutex
	var asking sync.WaitGroup
	room := make(chan struct{}, atOnce)
	for i := range destinations {
		room <- struct{}{}
		asking.Go(func() {
			defer func() { <-room }()
			d := &destinations[i]
			answers, errs := removedLetters(ctx, conn, d, group, removedTimeout, false)
			mu.Lock()
			defer mu.Unlock()
			asked[i] = answers
			for k, err := range errs {
				if errors.Is(err, context.DeadlineExceeded) {
					silent[place{d.Name, d.Partitions[k].Number}] = true
				}
			}
		})
	}
	asking.Wait()
	for i := range destinations {
		d, answers := &destinations[i], asked[i]
		for i := range answers {
			for _, of := range answers[i].Removed {
				if group != "" && of.Group != group {
					continue
				}
				x := left{destination: d.Name, partition: d.Partitions[i].Number, RemovedLetters: of}
				for _, l := range of.Letters {
					x.Problem = cmp.Or(l.Problem, x.Problem)
					if l.Reason == wire.ReasonRedriven {
						x.back++
					}
				}
				all = append(all, x)
			}
		}
	}
	return all, silent
}

// which says what they are and why they are not written.
func (x *left) which() string {
	var parts []string
	if n := x.Count - x.back; n > 0 {
		parts = append(parts, fmt.Sprintf("%s of it not written to %q yet", plural(int64(n), "dead letter"), x.To))
	}
	if x.back > 0 {
		parts = append(parts, fmt.Sprintf("%s on the way back, and not there yet", plural(int64(x.back), "dead letter")))
	}
	return strings.Join(parts, ", and ") + ": " + x.Problem
}

// giveUp is the command that gives them up.
func (x *left) giveUp() string {
	return fmt.Sprintf("lockstep group rm %s %s --letters", shellWord(x.destination), shellWord(x.Group))
}

// reason is what explain says of them.
func (x *left) reason() client.Reason {
	return client.Reason{
		Code: "letter_not_accepted", Object: x.To, Text: "The group is removed, and its records are kept for " + x.which() + ".",
		Advice: x.giveUp() + " gives them up.",
	}
}

// has reports whether a letter of the record at an offset is among them.
func (x *left) has(offset uint64) bool {
	return slices.ContainsFunc(x.Letters, func(l wire.LetterInfo) bool { return l.Offset == offset })
}

// removedLetters asks all partitions of a destination for the dead letters of removed groups that
// are not written, each for as long as within says. Those that cannot be asked have an error in
// their place.
func removedLetters(ctx context.Context, conn *client.Conn, d *client.Destination, group string, within time.Duration, giveUp bool) (answers []wire.LettersResponse, errs []error) {
	answers = make([]wire.LettersResponse, len(d.Partitions))
	numbers := make([]uint32, len(d.Partitions))
	for i, p := range d.Partitions {
		numbers[i] = p.Number
	}
	ask := wire.LettersRequest{Removed: true, GiveUp: giveUp}
	group = cmp.Or(group, "dlq") // a request names one
	return answers, conn.GroupOrders(ctx, within, wire.OrderLetters, d.Name, numbers, group, ask, func(i int) any { return &answers[i] })
}

// giveUpRemoved gives up the dead letters of the removed groups of a name, and counts them. If so
// many are known to wait of a group that was removed just now, it is given a while to be gone.
func giveUpRemoved(ctx context.Context, conn *client.Conn, destination, group string, waiting uint64) (n uint64, err error) {
	d, err := conn.Destination(ctx, destination)
	if err != nil {
		return 0, err
	}
	for until := time.Now().Add(removalPatience); ; {
		answers, errs := removedLetters(ctx, conn, &d, group, 0, true)
		err := errors.Join(errs...)
		for i := range answers {
			n += answers[i].Count
		}
		if err != nil || n >= waiting || time.Now().After(until) || ctx.Err() != nil {
			return n, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

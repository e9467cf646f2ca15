package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

func (a *app) requestCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "request DEST [VALUE]",
		SuggestFor: []string{"ask", "call", "rpc"},
		Short:      "Send a request to a queue or topic and print the reply",
		Long: `Send one record, wait for the reply of whoever serves the destination, and print its value. Without VALUE it is read from
standard input until that ends.

The exit code is 0 with a reply, and 1 if the server answers with an error, which is
then on standard error, or if nobody answers in time. The request stays in the destination
then: a server that comes later still handles it. Servers are programs that reply, and
lockstep reply.`,
		Example: `  lockstep request orders 'price of 3 pears'
  lockstep request orders --timeout 2s < access.log
  lockstep request orders -k customer-17 -H unit=kg 3`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				return nil
			}
			return exactArgs("DEST", "VALUE")(c, args)
		},
		ValidArgsFunction: a.completeDestinations(),
	}
	a.clientFlags(c)
	flags := c.Flags()
	timeout := durationFlag{value: 10 * time.Second}
	flags.Var(&timeout, "timeout", "`time` to wait for the reply")
	key := flags.StringP("key", "k", "", "the record's `key`: it decides about the partition, and in a serial group about the order")
	headers := flags.StringArrayP("header", "H", nil, "add a header, `name=value`; may be repeated")
	output := newChoice("text", "text", "json")
	flags.VarP(output, "output", "o", "how to print the reply")
	c.RunE = func(c *cobra.Command, args []string) error {
		r := client.Record{}
		if flags.Changed("key") {
			var err error
			if r.Key, err = parseKey(*key); err != nil {
				return usagef(c, "flag --key: %v", err)
			}
		}
		for _, h := range *headers {
			name, value, found := strings.Cut(h, "=")
			if !found || name == "" {
				return usagef(c, "flag --header: %q is not name=value", h)
			}
			r.Headers = append(r.Headers, client.Header{Key: name, Value: []byte(value)})
		}
		if timeout.value < time.Millisecond {
			return usagef(c, "flag --timeout: %s is too short", timeout.String())
		}
		switch {
		case len(args) == 2:
			r.Value = []byte(args[1])
		case isTerminal(a.stdin):
			return usagef(c, "the request has no value: give one behind %s, or on standard input", args[0])
		default:
			value, err := io.ReadAll(io.LimitReader(a.stdin, wire.MaxRecordBytes+1))
			if err != nil {
				return fmt.Errorf("standard input: %w", err)
			}
			r.Value = value
		}
		return a.request(c.Context(), args[0], &r, timeout.value, output.value == "json")
	}
	return c
}

// request sends a request and prints the reply.
func (a *app) request(ctx context.Context, destination string, r *client.Record, timeout time.Duration, asJSON bool) error {
	conn, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, words, err := a.find(ctx, conn, destination)
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply, err := conn.Request(asking, destination, r)
	var none *client.NoReplyError
	var failed *client.RequestError
	switch {
	case errors.As(err, &none) && ctx.Err() == nil:
		return errors.New(a.explainNoReply(ctx, conn, none, timeout))
	case errors.As(err, &failed):
		return failed
	case err != nil:
		return interruptedOr(ctx, &failure{doing: "request to", destination: destination, kind: words, err: err})
	}
	_, err = a.stdout.Write(newPrinter(nil, asJSON).append(nil, trimmed(reply, asJSON), nil))
	return outputError(err)
}

// trimmed is a reply as it is printed: with one newline in the end, whether it had one or not.
func trimmed(r *client.Record, asJSON bool) *client.Record {
	if n := len(r.Value); !asJSON && n > 0 && r.Value[n-1] == '\n' {
		r.Value = r.Value[:n-1]
	}
	return r
}

// explainNoReply says why a request was not answered, as far as can be seen.
func (a *app) explainNoReply(ctx context.Context, conn *client.Conn, e *client.NoReplyError, timeout time.Duration) string {
	name := shellWord(e.Destination)
	text := fmt.Sprintf("no reply from %q within %s", e.Destination, formatDuration(timeout))
	if !e.Stored {
		return text + ": it is not known whether the request was stored; check the brokers with: lockstep cluster status"
	}
	text += fmt.Sprintf("; the request is stored, %s/%d@%d", e.Destination, e.Receipt.Partition, e.Receipt.Offset)
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	groups, err := conn.Groups(ctx, e.Destination)
	if err != nil {
		return text + "; see why it is not moving with: lockstep explain queue " + name
	}
	members := make(map[string]bool)
	var last string
	for _, g := range groups {
		info, err := conn.DescribeGroup(ctx, e.Destination, g.Name)
		if err != nil {
			continue
		}
		for _, p := range info.Partitions {
			for _, s := range p.Sessions {
				members[s.Client+s.Name+s.ID] = true
				last = g.Name
			}
		}
	}
	if len(members) == 0 {
		return text + fmt.Sprintf(": nobody consumes %s; start a server with: lockstep reply %s --exec COMMAND", e.Destination, name)
	}
	return text + fmt.Sprintf(": group %q consumes it and has not answered, because it is slow or does not reply; wait longer with --timeout, or see: lockstep explain queue %s --group %s", last, name, shellWord(last))
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepmq/lockstep/server"
)

const (
	defaultData = "./lockstep-data"
	defaultHTTP = "127.0.0.1:7402"
	// shutdownTimeout bounds a clean shutdown. After it the process ends as if
	// it were killed, which loses nothing acknowledged.
	shutdownTimeout = 10 * time.Second
)

func (a *app) serveCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "serve",
		SuggestFor: []string{"server", "start", "run", "broker"},
		Short:      "Run a broker",
		Long: `Run a broker. Without any flag it is complete: it keeps its data in ` + defaultData + ` and
listens on the loopback address only. SIGINT or SIGTERM stop it cleanly.

The first start on an address that other machines reach needs --bootstrap, which
founds a cluster. Leave it out from then on: a node whose disk was wiped or is not
mounted is then refused instead of founding a second, empty one.

Every flag can also be set by the environment variable shown beside it and in the YAML
file that --config names; flags win over variables, and those over the file. What
comes out, and from where, shows: lockstep config show.`,
		Example: `  lockstep serve
  lockstep serve --data /var/lib/lockstep --listen 0.0.0.0:7400 --bootstrap
  lockstep serve --data d2 --listen 127.0.0.1:7410 --peer-listen 127.0.0.1:7411 --http off --join 127.0.0.1:7400`,
		Args: exactArgs(),
	}
	s := addServeFlags(c.Flags())
	// For bench --embedded: a broker started by it must not outlive it.
	withStdin := c.Flags().Bool("stop-with-stdin", false, "stop when stdin is closed")
	c.Flags().Lookup("stop-with-stdin").Hidden = true

	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := s.config(a, c)
		if err != nil {
			return err
		}
		cfg.Logger = newLogger(a.stderr, s.logLevel.value, s.logFormat.value)
		ctx := c.Context()
		if *withStdin {
			var cancel context.CancelCauseFunc
			ctx, cancel = context.WithCancelCause(ctx)
			go func() {
				_, _ = io.Copy(io.Discard, a.stdin)
				cancel(errInterrupted)
			}()
		}
		return a.serve(ctx, cfg, s.logFormat.value)
	}
	return c
}

// serveFlags are the settings of a broker as its flags hold them.
type serveFlags struct {
	cfg                      server.Config
	minFree, memory, pending sizeFlag
	handshake, idle, scrub   durationFlag
	replace                  durationFlag
	recovery, role           *choiceFlag
	logLevel, logFormat      *choiceFlag
}

// addServeFlags gives a command the flags of serve, with their environment twins.
func addServeFlags(flags *pflag.FlagSet) *serveFlags {
	s := &serveFlags{
		handshake: durationFlag{value: 5 * time.Second}, idle: durationFlag{value: 60 * time.Second},
		scrub:    durationFlag{value: 24 * time.Hour, unlimited: true},
		replace:  durationFlag{value: 5 * time.Minute},
		recovery: newChoice("normal", "normal", "strict"), role: newChoice("broker", "broker", "gateway"),
		logLevel: newChoice("info", "debug", "info", "warn", "error"), logFormat: newChoice("text", "text", "json"),
	}
	flags.SortFlags = false
	flags.String("config", "", "YAML `file` with settings: each key is the name of a flag without --; variables and flags win over it")
	flags.StringVar(&s.cfg.DataDir, "data", defaultData, "`directory` for everything that must survive; made if it is missing")
	flags.BoolVar(&s.cfg.AllowNetworkFS, "allow-network-fs", false, "let the directory be on a network or FUSE file system, where reads can hang or fail")
	flags.StringVar(&s.cfg.Listen, "listen", defaultServer, "address for clients, as `host:port`; port 0 = any free one")
	flags.StringVar(&s.cfg.HTTP, "http", defaultHTTP, "address of /healthz and /metrics, as `host:port`, or off")
	flags.BoolVar(&s.cfg.Bootstrap, "bootstrap", false, "found a new cluster if the directory is empty; on loopback that needs no saying")
	flags.StringVar(&s.cfg.PeerListen, "peer-listen", "", "address for other brokers, as `host:port`; empty = this one runs alone")
	flags.StringSliceVar(&s.cfg.Join, "join", nil, "client `address` of a member of the cluster that an empty directory joins; may be given more than once")
	flags.Uint32Var(&s.cfg.NodeID, "node-id", 0, "`number` of this node in its cluster, for an empty directory; 0 = 1 for the founder, else whichever is free")
	flags.Var(s.role, "role", "broker, or gateway: it serves clients and holds no partitions")
	flags.StringVar(&s.cfg.Rack, "rack", "", "`name` of what fails together with this node; replicas are spread over racks")
	flags.StringVar(&s.cfg.Advertise, "advertise", "", "`address` that clients connect to, if it is another than --listen")
	flags.StringVar(&s.cfg.PeerAdvertise, "peer-advertise", "", "`address` that other brokers connect to, if it is another than --peer-listen")
	flags.Var(&s.replace, "replace-after", "make the replicas of a dead node anew on others after a `duration`")
	flags.Var(s.recovery, "recovery", "normal, or strict for disks that may lose what they have synced: after a crash a replica has no vote before it has caught up")
	flags.Var(s.logLevel, "log-level", "least important messages that are logged")
	flags.Var(s.logFormat, "log-format", "how the log on stderr looks")
	flags.IntVar(&s.cfg.Limits.Connections, "max-connections", 0, "`number` of client connections at once; 0 = 65536, or what the descriptor limit allows")
	flags.IntVar(&s.cfg.Limits.ConnectionsPerAddress, "max-connections-per-address", 0, "`number` of client connections of one IP address; 0 = a tenth of all, at least 1000")
	flags.Var(&s.handshake, "handshake-timeout", "close a connection that has not introduced itself after a `duration`")
	flags.Var(&s.idle, "idle-timeout", "close a connection that was silent for a `duration`")
	flags.Var(&s.minFree, "min-free-bytes", "refuse records when less than this `size` is free on the disk; 0 = 5 % of it, at least 1GiB")
	flags.Var(&s.scrub, "scrub-interval", "read everything that is stored once in a `duration`, to find damage; unlimited = never")
	flags.Var(&s.memory, "memory-bytes", "most that destinations with --storage memory hold together, a `size`; 0 = 1GiB")
	flags.Var(&s.pending, "pending-bytes", "most memory of records on their way into the logs of all partitions, a `size`, at least 64MiB; 0 = 512MiB")
	flags.IntVar(&s.cfg.EventLoops, "event-loops", 0, "`number` of network loops; 0 = half the processors")
	flags.IntVar(&s.cfg.StorageWorkers, "storage-workers", 0, "`number` of syncs and other storage work at once; 0 = 64")
	flags.IntVar(&s.cfg.ReadWorkers, "read-workers", 0, "`number` of reads from disk for clients at once; 0 = 16")
	withEnvTwins(flags)
	return s
}

// config checks the flags of c and returns the configuration that they stand for,
// without a Logger.
func (s *serveFlags) config(a *app, c *cobra.Command) (server.Config, error) {
	cfg := s.cfg
	if err := a.refuseUnknownVariables(c, "LOCKSTEP_SERVER"); err != nil {
		return cfg, err
	}
	if err := checkServeFlags(c, cfg); err != nil {
		return cfg, err
	}
	for name, d := range map[string]durationFlag{"handshake-timeout": s.handshake, "idle-timeout": s.idle, "replace-after": s.replace} {
		if d.value < time.Millisecond {
			return cfg, usagef(c, "%s: %s is too short", setting(c, name), d.String())
		}
	}
	if s.scrub.value == 0 {
		return cfg, usagef(c, "%s: %s is too short", setting(c, "scrub-interval"), s.scrub.String())
	}
	cfg.MinFreeBytes, cfg.MemoryBytes, cfg.PendingBytes = s.minFree.bytes, s.memory.bytes, s.pending.bytes
	cfg.ScrubInterval, cfg.ReplaceAfter = s.scrub.value, s.replace.value
	cfg.StrictRecovery = s.recovery.value == "strict"
	cfg.Limits.HandshakeTimeout, cfg.Limits.IdleTimeout = s.handshake.value, s.idle.value
	cfg.Role = s.role.value
	if err := cfg.Check(); err != nil {
		return cfg, usagef(c, "%v", err)
	}
	return cfg, nil
}

func checkServeFlags(c *cobra.Command, cfg server.Config) error {
	addresses := []struct {
		name   string
		values []string
		absent string // value that is none
	}{
		{"listen", []string{cfg.Listen}, "-"}, {"http", []string{cfg.HTTP}, "off"}, {"peer-listen", []string{cfg.PeerListen}, ""},
		{"join", cfg.Join, "-"}, {"advertise", []string{cfg.Advertise}, ""}, {"peer-advertise", []string{cfg.PeerAdvertise}, ""},
	}
	for _, f := range addresses {
		for _, value := range f.values {
			if value == f.absent {
				continue
			}
			if err := server.CheckAddress(value); err != nil {
				return usagef(c, "%s: %q is not an address: %v; write host:port, as in %s", setting(c, f.name), value, err, defaultServer)
			}
		}
	}
	for _, f := range []struct {
		name  string
		value int
	}{
		{"max-connections", cfg.Limits.Connections}, {"max-connections-per-address", cfg.Limits.ConnectionsPerAddress},
		{"event-loops", cfg.EventLoops}, {"storage-workers", cfg.StorageWorkers}, {"read-workers", cfg.ReadWorkers},
	} {
		if f.value < 0 {
			return usagef(c, "%s: %d is negative", setting(c, f.name), f.value)
		}
	}
	if cfg.DataDir == "" {
		return usagef(c, "flag --data: a directory is needed, as in %s", defaultData)
	}
	return nil
}

func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		panic(fmt.Sprintf("log level %q is not in the list of choices", level))
	}
	options := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// serve runs the broker until ctx ends or the broker fails.
func (a *app) serve(ctx context.Context, cfg server.Config, logFormat string) error {
	broker, err := server.Start(ctx, cfg)
	if err != nil {
		if errors.Is(context.Cause(ctx), errInterrupted) {
			return nil
		}
		return &brokerError{err}
	}
	if logFormat == "json" {
		cfg.Logger.Info("ready", "address", broker.Addr(), "http", broker.HTTPAddr(), "data", cfg.DataDir, "partitions_down", len(broker.Down()))
	} else {
		fmt.Fprintln(a.stderr, readyLine(broker.Addr(), broker.HTTPAddr(), cfg.DataDir, broker.Down()))
	}
	var failed error
	select {
	case <-ctx.Done():
	case <-broker.Done():
		failed = broker.Err()
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := broker.Close(closing); err != nil && failed == nil {
		failed = fmt.Errorf("stop the broker: %w", err)
	}
	if failed != nil {
		return &brokerError{failed}
	}
	return nil
}

// readyLine tells where the broker is, which partitions did not come up, and what
// to try first. bench --embedded finds the address in it.
func readyLine(address, httpAddress, data string, down []string) string {
	line := "lockstep: ready on " + address
	if httpAddress != "" {
		line += ", http on " + httpAddress
	}
	try := "lockstep queue create orders"
	if host, port, err := net.SplitHostPort(address); err == nil && net.ParseIP(host).IsUnspecified() {
		address = net.JoinHostPort("127.0.0.1", port) // for clients here
	}
	if address != defaultServer {
		try += " --server " + address
	}
	line += ", data in " + data
	if len(down) > 0 {
		const shown = 5
		names := strings.Join(down[:min(len(down), shown)], ", ")
		if len(down) > shown {
			names += ", ..."
		}
		return line + "; " + plural(int64(len(down)), "partition") + " down: " + names + "; the log above says why"
	}
	return line + "; try: " + try
}

var readyPattern = regexp.MustCompile(`^lockstep: ready on ([^ ,]+),(?: http on ([^ ,]+),)?`)

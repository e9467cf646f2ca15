package cli

import (
	"context"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

func TestFlagsWinOverTheEnvironmentAndThatOverDefaults(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		env  map[string]string
		want string // of --server
	}{
		{"default", []string{"queue", "ls"}, nil, "127.0.0.1:7400"},
		{"environment", []string{"queue", "ls"}, map[string]string{"LOCKSTEP_SERVER": "127.0.0.1:2"}, "127.0.0.1:2"},
		{"flag", []string{"queue", "ls", "--server", "127.0.0.1:3"}, map[string]string{"LOCKSTEP_SERVER": "127.0.0.1:2"}, "127.0.0.1:3"},
		{"flag before the subcommand", []string{"queue", "--server", "127.0.0.1:3", "ls"}, nil, "127.0.0.1:3"},
		{"empty variable counts as not set", []string{"consume", "a"}, map[string]string{"LOCKSTEP_SERVER": ""}, "127.0.0.1:7400"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := shell{env: c.env}.app(discard{}, discard{})
			root := a.rootCommand()
			found, rest, err := root.Find(c.args)
			require.NoError(t, err)
			require.NoError(t, found.ParseFlags(rest))
			require.NoError(t, a.applyEnvironment(found))
			require.Equal(t, c.want, a.servers)
		})
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func TestEnvironmentMistakesNameTheVariable(t *testing.T) {
	for _, c := range []struct{ variable, value, command, want string }{
		{"LOCKSTEP_MIN_FREE_BYTES", "10G", "serve", `"10G" has an unknown unit "G"; write 10GiB (powers of 1024) or 10GB (powers of 1000)`},
		{"LOCKSTEP_EVENT_LOOPS", "-1", "serve", "-1 is negative"},
		{"LOCKSTEP_MAX_CONNECTIONS", "-1", "doctor", "-1 is negative"},
		{"LOCKSTEP_LISTEN", "here", "serve", `"here" is not an address; write host:port, as in 127.0.0.1:7400`},
		{"LOCKSTEP_IDLE_TIMEOUT", "0s", "serve", "0 is too short"},
		{"LOCKSTEP_SCRUB_INTERVAL", "0s", "serve", "0 is too short"},
		{"LOCKSTEP_SERVER", "foo", "queue ls", `invalid server address: "foo" is not host:port; write host:port[,host:port...], as in 127.0.0.1:7400`},
	} {
		got := shell{env: map[string]string{c.variable: c.value}}.run(context.Background(), strings.Fields(c.command)...)
		require.Equal(t, 2, got.code)
		require.Equal(t, "lockstep: environment variable "+c.variable+": "+c.want+" (see lockstep "+c.command+" --help)\n", got.stderr)
		if c.command == "queue ls" {
			continue
		}
		// The same from the flag, which wins.
		flag := "--" + strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(c.variable, "LOCKSTEP_")), "_", "-")
		got = shell{env: map[string]string{c.variable: "1"}}.run(context.Background(), c.command, flag+"="+c.value)
		require.Equal(t, "lockstep: flag "+flag+": "+c.want+" (see lockstep "+c.command+" --help)\n", got.stderr)
	}
}

func TestEveryFlagOfServeHasAnEnvironmentTwin(t *testing.T) {
	serve := shell{}.app(discard{}, discard{}).serveCommand()
	twins := map[string]string{}
	serve.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		env := envOf(f)
		require.Regexp(t, `^LOCKSTEP_[A-Z_]+$`, env, "twin of --%s", f.Name)
		require.NotContains(t, twins, env)
		twins[env] = f.Name
	})
	require.Equal(t, "data", twins["LOCKSTEP_DATA"])
	require.Equal(t, "listen", twins["LOCKSTEP_LISTEN"])
	require.Equal(t, "http", twins["LOCKSTEP_HTTP"])
	require.Equal(t, "log-level", twins["LOCKSTEP_LOG_LEVEL"])
}

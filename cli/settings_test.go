package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
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
			require.NoError(t, a.applySettings(found))
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
		{"LOCKSTEP_LISTEN", "here", "serve", `"here" is not an address: missing port in address; write host:port, as in 127.0.0.1:7400`},
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

// config show prints what a broker would run with, so the test of the layers is one
// of it.
func TestSettingsComeFromFlagsVariablesAndTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lockstep.yaml")
	require.NoError(t, os.WriteFile(file, []byte("# settings\nlisten: 127.0.0.1:1\nhttp: 127.0.0.1:2\ndata: /from/file\nmin-free-bytes: 2GiB\nmax-connections: 7\nallow-network-fs: true\n"), 0o600))
	env := map[string]string{"LOCKSTEP_LISTEN": "127.0.0.1:3", "LOCKSTEP_HTTP": "127.0.0.1:4", "LOCKSTEP_CONFIG": file}
	got := shell{env: env}.run(context.Background(), "config", "show", "--listen", "127.0.0.1:5", "-o", "json")
	require.Equal(t, 0, got.code, got.stderr)
	var shown []shownSetting
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &shown))
	found := map[string]shownSetting{}
	for _, s := range shown {
		found[s.Name] = s
	}
	for _, want := range []shownSetting{
		{"config", file, "environment variable LOCKSTEP_CONFIG"},
		{"listen", "127.0.0.1:5", "flag --listen"},
		{"http", "127.0.0.1:4", "environment variable LOCKSTEP_HTTP"},
		{"data", "/from/file", "config file " + file + ": data"},
		{"min-free-bytes", "2GiB", "config file " + file + ": min-free-bytes"},
		{"max-connections", "7", "config file " + file + ": max-connections"},
		{"allow-network-fs", "true", "config file " + file + ": allow-network-fs"},
		{"idle-timeout", "1m", "default"},
	} {
		require.Equal(t, want, found[want.Name])
	}
	require.NotContains(t, found, "server")
	require.NotContains(t, found, "stop-with-stdin")

	table := shell{env: env}.run(context.Background(), "config", "show")
	require.Equal(t, 0, table.code, table.stderr)
	require.Regexp(t, `(?m)^SETTING +VALUE +SOURCE$`, table.stdout)
	require.Regexp(t, `(?m)^max-connections +7 +config file .*: max-connections$`, table.stdout)
}

// A value is the text that stands there, quoted or not, whatever YAML would make of it.
func TestValuesOfTheConfigFileAreTakenAsTheyAreWritten(t *testing.T) {
	for content, want := range map[string]string{
		"rack: 012": "012", "rack: '012'": "012", "rack: 2026-01-01": "2026-01-01", "rack: no": "no", "rack: 1e3": "1e3", "rack: 1.50": "1.50", "rack: ''": "",
		"# nothing": "", "---\n": "", "": "",
	} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		var shown []shownSetting
		require.NoError(t, json.Unmarshal([]byte(must(t, shell{}, "config", "show", "--config", file, "-o", "json")), &shown))
		i := slices.IndexFunc(shown, func(s shownSetting) bool { return s.Name == "rack" })
		require.Equal(t, want, shown[i].Value, content)
	}
}

// What serve refuses before it touches anything, config show refuses with the same words.
func TestConfigShowRefusesWhatServeRefuses(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--role king", `flag --role: "king" is not one of broker, gateway`},
		{"--peer-listen 7401", `flag --peer-listen: "7401" is not an address: missing port in address; write host:port, as in 127.0.0.1:7400`},
		{"--listen 127.0.0.1:70000", `flag --listen: "127.0.0.1:70000" is not an address: "70000" is no port; write host:port, as in 127.0.0.1:7400`},
		{"--advertise me", `flag --advertise: "me" is not an address: missing port in address; write host:port, as in 127.0.0.1:7400`},
		{"--peer-advertise me", `flag --peer-advertise: "me" is not an address: missing port in address; write host:port, as in 127.0.0.1:7400`},
		{"--join a:1,b --peer-listen a:2", `flag --join: "b" is not an address: missing port in address; write host:port, as in 127.0.0.1:7400`},
		{"--join a:1", "a node of a cluster needs an address for the others; give one with --peer-listen"},
		{"--role gateway", "a node of a cluster needs an address for the others; give one with --peer-listen"},
		{"--join a:1 --bootstrap --peer-listen a:2", "--bootstrap and --join contradict each other: the first node of a new cluster is started with --bootstrap, every other with --join; leave one of them out"},
		{"--pending-bytes 1MiB", "pending-bytes is 1048576; it must be at least 67108864, or a large batch would never find room"},
	} {
		for _, command := range []string{"serve", "config show"} {
			got := shell{}.run(context.Background(), strings.Fields(command+" "+c.args)...)
			require.Equal(t, outcome{2, "", "lockstep: " + c.want + " (see lockstep " + command + " --help)\n"}, got)
		}
	}
}

func TestMistakesInTheConfigFileNameLineAndKey(t *testing.T) {
	for _, c := range []struct{ content, want string }{
		{"data: x\nlistn: 127.0.0.1:1\n", `, line 2: unknown key "listn"; did you mean "listen"?`},
		{"quux: 1\n", `, line 1: unknown key "quux"; the keys are the flags of lockstep serve without --`},
		{"listen:\n  host: a\n", `, line 1: "listen" is a setting of one value and not a section`},
		{"listen:\n", ": listen: it has no value"},
		{"listen: here\n", `: listen: "here" is not an address: missing port in address; write host:port, as in 127.0.0.1:7400`},
		{"min-free-bytes: 10G\n", `: min-free-bytes: "10G" has an unknown unit "G"; write 10GiB (powers of 1024) or 10GB (powers of 1000)`},
		{"listen: a:1\nlisten: b:1\n", `, line 2: "listen" is set on line 1 already`},
		{"\tlisten: a\n", "cannot start any token"},
		{"- listen\n", ", line 1: settings are written as name: value, as in listen: 127.0.0.1:7400"},
		{"just text\n", ", line 1: settings are written as name: value"},
		{"rack: a\n---\nrack: b\n", ", line 2: a second document; all settings stand in one, without ---"},
		{"join: [a:1, [b:1]]\n", `, line 1: "join" is a list of single values`},
		{"role: master\n", `: role: "master" is not one of broker, gateway`},
	} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		require.NoError(t, os.WriteFile(file, []byte(c.content), 0o600))
		for _, command := range [][]string{{"serve"}, {"config", "show"}, {"doctor"}} {
			if command[0] == "doctor" && slices.Contains([]string{"listen:\n", "listen: here\n", "role: master\n"}, c.content) {
				continue // it has no such flag
			}
			got := shell{}.run(context.Background(), append(command, "--config", file)...)
			require.Equal(t, 2, got.code, "%v of %q", command, c.content)
			require.Contains(t, got.stderr, "config file "+file)
			require.Contains(t, got.stderr, c.want)
		}
	}
	got := shell{}.run(context.Background(), "serve", "--config", "/no/such/file")
	require.Equal(t, "lockstep: flag --config: open /no/such/file: no such file or directory (see lockstep serve --help)\n", got.stderr)
}

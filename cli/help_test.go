package cli

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

// walk visits every command.
func walk(c *cobra.Command, visit func(c *cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}

func TestEveryHelpStartsWithTwoExamplesThatParse(t *testing.T) {
	root := shell{}.app(discard{}, discard{}).rootCommand()
	root.InitDefaultHelpCmd()
	count := 0
	walk(root, func(c *cobra.Command) {
		count++
		t.Run(c.CommandPath(), func(t *testing.T) {
			lines := strings.Split(strings.TrimRight(c.Example, "\n"), "\n")
			require.GreaterOrEqual(t, len(lines), 2)
			for _, line := range lines {
				require.True(t, strings.HasPrefix(line, "  "), "%q is indented", line)
				requireParses(t, line)
			}
			help := shell{}.run(context.Background(), append(strings.Fields(c.CommandPath())[1:], "--help")...)
			require.Equal(t, 0, help.code)
			require.True(t, strings.HasPrefix(help.stdout, "Examples:\n"+lines[0]+"\n"+lines[1]+"\n"), help.stdout)
			require.Contains(t, help.stdout, "\nUsage:\n  "+c.CommandPath())
			require.Empty(t, help.stderr)
			for _, line := range strings.Split(help.stdout, "\n") {
				require.LessOrEqual(t, len(line), 140)
			}
		})
	})
	require.Equal(t, 86, count, "commands")
}

// The first two examples of every command do what they say when they are pasted
// into a shell whose directory holds what they name.
func TestHelpExamplesRun(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("SKIPPED: the examples are for bash, which is not there")
	}
	address, data := startServer(t)
	executable, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, ".config/fish/completions"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lockstep"), []byte("#!/bin/sh\nexec '"+executable+"' \"$@\"\n"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "access.log"), []byte(strings.Repeat("GET /\n", 20)), 0o600))
	require.NoError(t, os.Symlink(data, filepath.Join(dir, "lockstep-data")))
	sh := at(address, "")
	walk(sh.app(discard{}, discard{}).rootCommand(), func(c *cobra.Command) {
		for _, example := range strings.Split(c.Example, "\n")[:2] {
			t.Run(strings.TrimSpace(example), func(t *testing.T) {
				text := strings.TrimSpace(example)
				words := strings.Fields(text)
				switch {
				case words[1] == "serve": // until it is told to stop, and not where others can see it
					text = strings.NewReplacer("/var/lib/lockstep", t.TempDir(), "0.0.0.0:7400", "127.0.0.1:0").Replace(text) + " --stop-with-stdin"
				case strings.HasPrefix(text, "lockstep log skip"): // of a broker that is stopped
					stopped := t.TempDir()
					require.NoError(t, os.CopyFS(filepath.Join(stopped, "meta"), os.DirFS(filepath.Join(data, "meta"))))
					text = strings.Replace(text, examplePartition, filepath.Join(stopped, "meta"), 1)
				case strings.HasPrefix(text, "lockstep bench floor"), strings.HasPrefix(text, "lockstep bench run"):
					t.Skip("SKIPPED: it keeps both processors busy for seconds; package bench tests it")
				case words[1] == "node" && words[2] != "ls", words[1] == "partition" && words[2] != "ls":
					t.Skip("SKIPPED: it needs a second node; the tests of the cluster do the same")
				case words[1] == "dev":
					t.Skip("SKIPPED: it starts brokers on fixed ports, or needs them; TestDev does the same elsewhere")
				case words[1] == "request":
					text = "lockstep reply orders --exec cat --count 1 & " + text
				case words[1] == "reply":
					text += " --count 1 & lockstep request orders x"
				case words[1] == "verify":
					text = strings.Replace(text, "--records 2000", "--records 200", 1)
				case strings.HasPrefix(text, "lockstep bench latency"):
					text += " --duration 200ms"
				case words[1] == "bench":
					text += " --records 1000"
				}
				must(t, sh, "alias", "rm", "current", "east", "--if-exists")
				must(t, sh, "queue", "rm", "orders", "--if-exists")
				must(t, sh, "topic", "rm", "events", "--if-exists")
				if !strings.Contains(text, " create ") || strings.HasPrefix(text, "lockstep group") || words[1] == "alias" {
					must(t, sh, "queue", "create", "orders")
					must(t, sh, "topic", "create", "events")
					must(t, at(address, strings.Repeat("x\n", 10)), "produce", "orders")
					mode := "shared"
					if strings.HasPrefix(text, "lockstep key") {
						mode = "serial"
						must(t, at(address, "customer-17:1\nclerk-3:1\n"), "produce", "orders", "-K", ":")
					}
					must(t, sh, "group", "create", "orders", "billing", "--mode", mode)
					if strings.HasPrefix(text, "lockstep dlq") {
						must(t, sh, "queue", "create", "orders.dead", "--if-not-exists")
						must(t, sh, "queue", "create", "payments.dead", "--if-not-exists")
					}
					must(t, sh, "group", "create", "events", "etl")
					if words[1] == "alias" && words[2] != "create" {
						must(t, sh, "alias", "create", "current", "orders")
					}
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				command := exec.CommandContext(ctx, bash, "-ec", text)
				command.Dir = dir
				command.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, childVariable+"=1", "LOCKSTEP_SERVER="+address,
					"LOCKSTEP_DATA="+t.TempDir(), "LOCKSTEP_LISTEN=127.0.0.1:0", "LOCKSTEP_HTTP=off", "LOCKSTEP_MIN_FREE_BYTES=1MiB")
				out, err := command.CombinedOutput()
				require.NoError(t, err, "%s\n%s", text, out)
			})
		}
	})
}

func TestFlagsWithChoicesComplete(t *testing.T) {
	got := shell{}.run(context.Background(), "__complete", "queue", "create", "x", "--sync", "")
	require.Equal(t, "quorum-fsync\ninterval\nos\n:4\n", got.stdout)
}

// requireParses checks that the lockstep command in an example exists, and that
// its flags and number of arguments are right.
func requireParses(t *testing.T, example string) {
	t.Helper()
	words := splitShell(example)
	for len(words) > 0 && words[0] != "lockstep" {
		words = words[1:]
	}
	require.NotEmpty(t, words, "%q runs lockstep", example)
	for i, w := range words {
		if w == "<" || w == ">" || w == "|" || w == ")" {
			words = words[:i]
			break
		}
	}
	c, rest, err := shell{}.app(discard{}, discard{}).rootCommand().Find(words[1:])
	require.NoError(t, err)
	require.NoError(t, c.ParseFlags(rest), example)
	require.NoError(t, c.ValidateArgs(c.Flags().Args()), example)
}

// splitShell splits words as a shell does, with single quotes only.
func splitShell(line string) []string {
	var words []string
	word, quoted, started := "", false, false
	for _, r := range line {
		switch {
		case r == '\'':
			quoted, started = !quoted, true
		case !quoted && strings.ContainsRune(" ()", r):
			if started {
				words = append(words, word)
			}
			if r == ')' {
				words = append(words, ")")
			}
			word, started = "", false
		default:
			word, started = word+string(r), true
		}
	}
	if started {
		words = append(words, word)
	}
	return words
}

func TestHelpLooksAsInTheGoldenFiles(t *testing.T) {
	for _, args := range [][]string{{}, {"serve"}, {"queue"}, {"queue", "create"}, {"produce"}, {"consume"}, {"bench", "latency"}, {"log", "verify"}} {
		name := "help.txt"
		if len(args) > 0 {
			name = "help-" + strings.Join(args, "-") + ".txt"
		}
		t.Run(name, func(t *testing.T) {
			got := shell{}.run(context.Background(), append(args, "--help")...).stdout
			file := filepath.Join("testdata", name)
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), got, "go test ./cli -update rewrites it")
		})
	}
}

func TestHelpCommandIsTheHelpFlag(t *testing.T) {
	ctx := context.Background()
	require.Equal(t, shell{}.run(ctx, "queue", "create", "--help"), shell{}.run(ctx, "help", "queue", "create"))
	require.Equal(t, shell{}.run(ctx, "--help"), shell{}.run(ctx))
	got := shell{}.run(ctx, "help", "quue")
	require.Equal(t, 2, got.code)
	require.Equal(t, "lockstep: unknown command \"quue\" for \"lockstep\"; did you mean queue? (see lockstep --help)\n", got.stderr)
}

func TestCompletionScriptsAreWritten(t *testing.T) {
	for _, name := range []string{"bash", "zsh", "fish"} {
		got := shell{}.run(context.Background(), "completion", name)
		require.Equal(t, 0, got.code)
		require.Contains(t, got.stdout, "lockstep")
	}
	got := shell{}.run(context.Background(), "completion", "tcsh")
	require.Equal(t, outcome{2, "", "lockstep: no completion for shell \"tcsh\"; there is one for bash, zsh and fish (see lockstep completion --help)\n"}, got)
}

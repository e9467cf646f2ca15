package cli

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// TestMain lets the test binary be the lockstep binary for tests that start a
// broker as a child process.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	// A worker pool inside the broker's network library starts goroutines when it
	// is linked and keeps idle workers for a while.
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.IgnoreAnyFunction("github.com/panjf2000/ants/v2.(*goWorker).run.func1"))
}

// shell runs command lines in this process.
type shell struct {
	stdin   io.Reader
	env     map[string]string
	now     time.Time
	look    func(ctx context.Context, dir string) *machine // nil: the real one
	timeout time.Duration                                  // of requests; 0: the real one
}

type outcome struct {
	code   int
	stdout string
	stderr string
}

func (s shell) run(ctx context.Context, args ...string) outcome {
	var stdout bytes.Buffer
	var stderr lockedBuffer
	a := s.app(&stdout, &stderr)
	code := a.run(ctx, args)
	return outcome{code, stdout.String(), stderr.String()}
}

// lockedBuffer is a stderr that several goroutines may write to, as to a file.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

func (s shell) app(stdout, stderr io.Writer) *app {
	stdin := s.stdin
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	now := s.now
	if now.IsZero() {
		now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	}
	look := s.look
	if look == nil {
		look = lookAt
	}
	return &app{
		stdin: stdin, stdout: stdout, stderr: stderr,
		lookupEnv: func(name string) (string, bool) { v, ok := s.env[name]; return v, ok },
		environ: func() (list []string) {
			for name, value := range s.env {
				list = append(list, name+"="+value)
			}
			return list
		},
		executable:     os.Executable,
		now:            func() time.Time { return now },
		lookAt:         look,
		requestTimeout: cmp.Or(s.timeout, defaultRequestTimeout),
	}
}

func TestExitCodesAndMessages(t *testing.T) {
	// A port that nothing listens on: reserved for TCP multiplexing, never used.
	const nobody = "127.0.0.1:1"
	for _, c := range []struct {
		name string
		args []string
		code int
		want string // on stderr
	}{
		{"no arguments print help", nil, 0, ""},
		{"help flag succeeds", []string{"queue", "create", "--help"}, 0, ""},
		{"version flag succeeds", []string{"--version"}, 0, ""},
		{"unknown command names the nearest", []string{"prodce"}, 2,
			`lockstep: unknown command "prodce" for "lockstep"; did you mean produce? (see lockstep --help)`},
		{"another broker's word names ours", []string{"publish"}, 2,
			`lockstep: unknown command "publish" for "lockstep"; did you mean produce? (see lockstep --help)`},
		{"another word below a group", []string{"topic", "show"}, 2,
			`lockstep: unknown command "show" for "lockstep topic"; did you mean describe? (see lockstep topic --help)`},
		{"unknown command far from all names none", []string{"xyz"}, 2,
			`lockstep: unknown command "xyz" for "lockstep" (see lockstep --help)`},
		{"unknown subcommand names the nearest", []string{"queue", "descibe", "a"}, 2,
			`lockstep: unknown command "descibe" for "lockstep queue"; did you mean describe? (see lockstep queue --help)`},
		{"unknown flag names the nearest", []string{"queue", "create", "a", "--partitons", "3"}, 2,
			"lockstep: unknown flag --partitons; did you mean --partitions? (see lockstep queue create --help)"},
		{"unknown short flag", []string{"consume", "a", "-z"}, 2,
			`lockstep: unknown flag -z in "lockstep consume" (see lockstep consume --help)`},
		{"flag without its value", []string{"consume", "a", "-c"}, 2,
			"lockstep: flag --count needs a value (see lockstep consume --help)"},
		{"missing argument is named", []string{"produce"}, 2,
			`lockstep: "lockstep produce" needs DEST; the usage is: lockstep produce DEST [FILE...] [flags] (see lockstep produce --help)`},
		{"argument too many is named", []string{"queue", "describe", "a", "b"}, 2,
			`lockstep: "lockstep queue describe" takes no argument "b"; the usage is: lockstep queue describe NAME [flags] (see lockstep queue describe --help)`},
		{"files without --file", []string{"produce", "orders", "a.txt"}, 2,
			`lockstep: "a.txt" is an argument too many; to send files put --file before them: lockstep produce orders --file a.txt (see lockstep produce --help)`},
		{"choice out of its list", []string{"queue", "create", "a", "--sync", "quorum-fsnc"}, 2,
			`lockstep: flag --sync: "quorum-fsnc" is not one of quorum-fsync, interval, os; did you mean quorum-fsync? (see lockstep queue create --help)`},
		{"number out of range", []string{"queue", "create", "a", "--replicas", "300"}, 2,
			`lockstep: flag --replicas: "300" is not a whole number in range (see lockstep queue create --help)`},
		{"zero partitions", []string{"queue", "create", "a", "--partitions", "0"}, 2,
			"lockstep: flag --partitions: 0 is not between 1 and 1,024; records that need more than that many consumers at once belong into several destinations (see lockstep queue create --help)"},
		{"too many partitions", []string{"queue", "create", "a", "--partitions", "1025"}, 2,
			"lockstep: flag --partitions: 1025 is not between 1 and 1,024; records that need more than that many consumers at once belong into several destinations (see lockstep queue create --help)"},
		{"partitions are fixed", []string{"queue", "alter", "a", "--partitions", "8"}, 2,
			"lockstep: the partitions of a queue cannot be changed: keys would move away from their earlier records; create another queue with the setting you want (see lockstep queue alter --help)"},
		{"storage is fixed", []string{"topic", "alter", "a", "--storage=memory"}, 2,
			"lockstep: the storage of a topic cannot be changed; create another topic with the setting you want (see lockstep topic alter --help)"},
		{"a flag that alter does not know at all", []string{"topic", "alter", "a", "--retention-tim", "1h"}, 2,
			"lockstep: unknown flag --retention-tim; did you mean --retention-time? (see lockstep topic alter --help)"},
		{"zero retention is not unlimited", []string{"topic", "create", "a", "--retention-time", "0"}, 2,
			"lockstep: flag --retention-time: 0 is below 1ms; to keep records for ever write unlimited (see lockstep topic create --help)"},
		{"record limit above the wire's", []string{"topic", "create", "a", "--max-record-bytes", "9MiB"}, 2,
			"lockstep: flag --max-record-bytes: 9MiB is not between 1B and 8388547B (see lockstep topic create --help)"},
		{"nothing to alter", []string{"queue", "alter", "a"}, 2,
			`lockstep: nothing to change in queue "a"; give at least one setting, as in --retention-time 7d (see lockstep queue alter --help)`},
		{"two starting points", []string{"consume", "a", "--offset", "3", "--at", "now"}, 2,
			"lockstep: --from, --offset and --at say where to start: give only one of them (see lockstep consume --help)"},
		{"offset in two partitions", []string{"consume", "a", "--offset", "3", "--partition", "0", "--partition", "1"}, 2,
			"lockstep: --offset counts within one partition; give one --partition (see lockstep consume --help)"},
		{"format beside JSON", []string{"consume", "a", "-f", "%v", "-o", "json"}, 2,
			"lockstep: --format and -o json exclude each other (see lockstep consume --help)"},
		{"bad header", []string{"produce", "a", "-H", "=x"}, 2,
			`lockstep: flag --header: "=x" is not name=value (see lockstep produce --help)`},
		{"embedded beside a server", []string{"bench", "produce", "--embedded", "--server", nobody}, 2,
			"lockstep: --embedded measures a broker of its own: --server has no place beside it (see lockstep bench produce --help)"},
		{"bench options are usage", []string{"bench", "produce", "--records", "0", "--server", nobody}, 2,
			"lockstep: invalid option: records 0: at least 1 (see lockstep bench produce --help)"},
		{"listen address without a port", []string{"serve", "--listen", "localhost"}, 2,
			`lockstep: flag --listen: "localhost" is not an address: missing port in address; write host:port, as in 127.0.0.1:7400 (see lockstep serve --help)`},
		{"nobody listens", []string{"queue", "ls", "--server", nobody}, 1,
			"lockstep: no broker at 127.0.0.1:1 (connection refused); start one with: lockstep serve, or name one with --server"},
		{"server without a port", []string{"queue", "ls", "--server", "localhost"}, 2,
			`lockstep: flag --server: invalid server address: "localhost" is not host:port; write host:port[,host:port...], as in 127.0.0.1:7400 (see lockstep queue ls --help)`},
		{"missing log directory", []string{"log", "verify", "/does/not/exist"}, 1,
			"lockstep: directory /does/not/exist does not exist; give a data directory such as ./lockstep-data"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := shell{}.run(context.Background(), c.args...)
			require.Equal(t, c.want, strings.TrimSuffix(got.stderr, "\n"))
			require.Equal(t, c.code, got.code)
			if c.code != 0 {
				require.Empty(t, got.stdout, "stdout is data")
			}
		})
	}
}

func TestInterruptedEndsWith130AndNoMessage(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errInterrupted)
	got := shell{}.run(ctx, "queue", "ls", "--server", "127.0.0.1:1")
	require.Equal(t, outcome{code: 130}, got)
}

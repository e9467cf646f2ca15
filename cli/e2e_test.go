package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/bench"
	"github.com/lockstepmq/lockstep/server"
)

// startServer runs a broker in this process and returns its address and data directory.
func startServer(t *testing.T) (address, data string) {
	t.Helper()
	data = t.TempDir()
	s, err := server.Start(context.Background(), server.Config{DataDir: data, Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: -1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	return s.Addr(), data
}

// at is a shell whose commands go to a broker.
func at(address string, stdin string) shell {
	return shell{env: map[string]string{"LOCKSTEP_SERVER": address}, stdin: strings.NewReader(stdin)}
}

// must runs a command that has to succeed and returns its stdout.
func must(t *testing.T, s shell, args ...string) string {
	t.Helper()
	got := s.run(context.Background(), args...)
	require.Equal(t, 0, got.code, "%v: %s", args, got.stderr)
	return got.stdout
}

func TestAFirstSession(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "alice:3 apples\nbob:1 pear\nalice:2 plums\n")
	require.Equal(t, "created queue \"orders\" (4 partitions)\n", must(t, sh, "queue", "create", "orders", "--partitions", "4"))
	require.Equal(t, "created topic \"events\" (2 partitions)\n",
		must(t, sh, "topic", "create", "events", "--partitions", "2", "--retention-time", "24h", "--retention-bytes", "10GiB"))
	must(t, sh, "produce", "orders", "-K", ":")
	lines := strings.Split(must(t, sh, "consume", "orders", "-e", "-f", `%k=%v\n`), "\n")
	require.ElementsMatch(t, []string{"alice=3 apples", "alice=2 plums", "bob=1 pear", ""}, lines)
	require.Less(t, indexOf(lines, "alice=3 apples"), indexOf(lines, "alice=2 plums"), "a key keeps its order")

	require.Regexp(t, `(?m)^orders +4 +1 \(automatic\) +disk +quorum-fsync +unlimited +3 `, must(t, sh, "queue", "ls"))
	require.Regexp(t, `(?m)^events +2 +1 \(automatic\) +disk +quorum-fsync +1d, 10 GiB +0 `, must(t, sh, "topic", "ls"))
	require.Equal(t, "altered topic \"events\" (2 partitions)\n", must(t, sh, "topic", "alter", "events", "--retention-time", "48h"))
	require.Contains(t, must(t, sh, "topic", "describe", "events"), "\nRetention:   2d, 10 GiB\n")
	var d destinationJSON
	require.NoError(t, json.Unmarshal([]byte(must(t, sh, "topic", "describe", "events", "-o", "json")), &d))
	require.Equal(t, int64(48*3600*1000), *d.RetentionTimeMs)
	require.Len(t, d.Partitions, 2)
	require.Equal(t, "removed topic \"events\"\n", must(t, sh, "topic", "rm", "events"))
	require.Equal(t, "", must(t, sh, "topic", "rm", "events", "--if-exists"))
	require.Equal(t, "[]\n", must(t, sh, "topic", "ls", "-o", "json"))
	require.Equal(t, "exists already: queue \"orders\" (4 partitions)\n", must(t, sh, "queue", "create", "orders", "--if-not-exists"))

	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"produce", "nope"}, `destination "nope" not found; create it with: lockstep queue create nope`},
		{[]string{"produce", "order"}, `destination "order" not found; did you mean "orders"? Create it with: lockstep queue create order`},
		{[]string{"consume", "nope"}, `destination "nope" not found; create it with: lockstep queue create nope`},
		{[]string{"topic", "rm", "nope"}, `topic "nope" not found; list what there is with: lockstep topic ls, or pass --if-exists`},
		{[]string{"topic", "describe", "orders"}, `"orders" is a queue, not a topic; work with it by: lockstep queue`},
		{[]string{"queue", "create", "orders"}, `queue "orders" already exists; look at it with: lockstep queue describe orders, or pass --if-not-exists`},
		{[]string{"topic", "create", "orders", "--if-not-exists"}, `the name "orders" is taken by a queue; choose another, or look at it with: lockstep queue describe orders`},
		{[]string{"topic", "create", "orders"}, `the name "orders" is taken by a queue; choose another, or look at it with: lockstep queue describe orders`},
		{[]string{"consume", "orders", "--partition", "9"}, `queue "orders" has no partition 9: it has 4 partitions, counted from 0; list them with: lockstep queue describe orders`},
	} {
		got := sh.run(context.Background(), c.args...)
		require.Equal(t, outcome{1, "", "lockstep: " + c.want + "\n"}, got)
	}
}

func indexOf(lines []string, line string) int {
	for i, l := range lines {
		if l == line {
			return i
		}
	}
	return -1
}

// testFile is text of lines between 0 bytes and 200 KiB, without a last newline.
func testFile(size int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	var b []byte
	for len(b) < size {
		n := r.IntN(300)
		switch r.IntN(100) {
		case 0:
			n = r.IntN(200 << 10)
		case 1, 2, 3:
			n = 0
		}
		for range n {
			b = append(b, byte(' '+r.IntN(95)))
		}
		b = append(b, '\n')
	}
	return append(b, "the end has no newline"...)
}

func TestAFileComesBackByteForByte(t *testing.T) {
	address, _ := startServer(t)
	file := testFile(20 << 20)
	for _, codec := range []string{"none", "zstd"} {
		name := "file-" + codec
		must(t, at(address, ""), "queue", "create", name)
		got := at(address, string(file)).run(context.Background(), "produce", name, "--compression", codec)
		require.Equal(t, 0, got.code, got.stderr)
		newlines := int64(bytes.Count(file, []byte("\n")))
		require.Contains(t, got.stderr, fmt.Sprintf("%s records (%s) acknowledged by queue %q in ",
			formatCount(newlines+1), formatSize(int64(len(file))-newlines), name))
		require.Empty(t, got.stdout)
		require.True(t, must(t, at(address, ""), "consume", name, "-e") == string(file), "compares equal")
	}
}

func TestConsumeStartsAndStopsWhereItIsTold(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "a\nb\nc\nd\n")
	must(t, sh, "topic", "create", "events", "--partitions", "2")
	must(t, sh, "produce", "events", "--partition", "1", "-H", "k=v")
	for _, c := range []struct {
		args string
		want string
	}{
		{"-e", "a\nb\nc\nd\n"},
		{"-c 2", "a\nb\n"},
		{"-e --partition 1", "a\nb\nc\nd\n"},
		{"-e --partition 0", ""},
		{"-e --partition 0 --partition 1 -c 3", "a\nb\nc\n"},
		{"-e --partition 1 --offset 2", "c\nd\n"},
		{"-e --partition 1 --offset 4", ""},
		{"-e --from latest", ""},
		{"-e --at 2020-01-01", "a\nb\nc\nd\n"},
		{"-e --at 2200-01-01", ""},
		{"-c 1 -f %p/%o:%h", "1/0:k=v"},
	} {
		t.Run(c.args, func(t *testing.T) {
			require.Equal(t, c.want, must(t, sh, append([]string{"consume", "events"}, strings.Fields(c.args)...)...))
		})
	}
	require.Regexp(t, `^\{"partition":1,"offset":3,"epoch":\d+,"timestamp":"[^"]+","key":null,"value":"d","headers":\[\{"name":"k","value":"v"\}\]\}\n$`,
		must(t, sh, "consume", "events", "-e", "--partition", "1", "--offset", "3", "-o", "json"))
	got := sh.run(context.Background(), "consume", "events", "--offset", "1")
	require.Equal(t, 2, got.code)
	require.Contains(t, got.stderr, "give one --partition")
	got = sh.run(context.Background(), "consume", "events", "--partition", "1", "--offset", "5")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "; read with --from earliest or --from latest, or look at the range with: lockstep topic describe events\n")
}

func TestFilesAreRecords(t *testing.T) {
	address, _ := startServer(t)
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	require.NoError(t, os.WriteFile(one, []byte("a\nb\n"), 0o600))
	require.NoError(t, os.WriteFile(two, nil, 0o600))
	large := filepath.Join(dir, "large")
	require.NoError(t, os.WriteFile(large, nil, 0o600))
	require.NoError(t, os.Truncate(large, maxLineBytes+1))
	must(t, at(address, ""), "topic", "create", "files")
	must(t, at(address, "stdin is not read"), "produce", "files", "--file", one, two)
	require.Equal(t, "[a\nb\n][]", must(t, at(address, ""), "consume", "files", "-e", "-f", "[%v]"))
	for _, c := range []struct {
		files []string
		want  string
	}{
		{[]string{one, filepath.Join(dir, "none")}, "file " + dir + "/none does not exist; check its name, nothing was sent"},
		{[]string{dir + "/"}, dir + "/ is a directory; name the files in it, as in --file " + dir + "/*; nothing was sent"},
		{[]string{large}, "file " + large + " has 8,388,609 bytes, above 8 MiB, the largest record; split it, nothing was sent"},
	} {
		got := at(address, "").run(context.Background(), append([]string{"produce", "files", "--file"}, c.files...)...)
		require.Equal(t, outcome{1, "", "lockstep: " + c.want + "\n"}, got)
	}
	must(t, at(address, ""), "topic", "create", "small", "--max-record-bytes", "1KiB")
	require.NoError(t, os.Truncate(large, 2000))
	got := at(address, "").run(context.Background(), "produce", "small", "-H", "a=b c", "--file", one, large, two)
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, fmt.Sprintf("lockstep: file %[1]s: not sent: record is too large: up to 2050 bytes encoded, the limit is 1024; "+
		"raise the limit with: lockstep topic alter small --max-record-bytes SIZE; "+
		"file 1 is stored; continue with: lockstep produce small --header 'a=b c' --file %[1]s %[2]s\n", large, two))
}

// What is stored when a line fails, and the command that goes on, in one partition.
func TestTheFirstBadLineIsNamedAndHowToGoOn(t *testing.T) {
	address, _ := startServer(t)
	must(t, at(address, ""), "topic", "create", "small", "--max-record-bytes", "1KiB")
	long := strings.Repeat("x", 2000)
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{"too large", "short\n" + long + "\nnever read\n", nil,
			"line 2: not sent: record is too large: up to 2036 bytes encoded, the limit is 1024; raise the limit with: " +
				"lockstep topic alter small --max-record-bytes SIZE; line 1 is stored; continue with: tail -n +2 FILE | lockstep produce small"},
		{"the first", long, nil,
			"line 1: not sent: record is too large: up to 2066 bytes encoded, the limit is 1024; raise the limit with: " +
				"lockstep topic alter small --max-record-bytes SIZE; nothing is stored"},
		{"no key", "k:v\nk:w\nno delimiter\n", []string{"-K", ":", "--timeout", "5s"},
			`line 3 of stdin has no ":" between key and value; check -K, or mend the line; lines 1 to 2 are stored; ` +
				"continue with: tail -n +3 FILE | lockstep produce small --key-delimiter : --timeout 5s"},
		{"without acknowledgements nothing is known", "no delimiter\n", []string{"-K", ":", "--acks", "none"},
			`line 1 of stdin has no ":" between key and value; check -K, or mend the line`},
	} {
		got := at(address, c.stdin).run(context.Background(), append([]string{"produce", "small"}, c.args...)...)
		require.Equal(t, outcome{1, "", "lockstep: " + c.want + "\n"}, got, c.name)
	}
	require.Equal(t, "short\nv\nw\n", must(t, at(address, ""), "consume", "small", "-e"))
}

// With several partitions lines behind the one that failed may be stored.
func TestProduceSaysWhatGoingOnStoresTwice(t *testing.T) {
	for _, c := range []struct {
		name                        string
		next, acknowledged, unknown int64
		want                        string
	}{
		{"nothing", 1, 0, 0, "; nothing is stored"},
		{"a beginning", 1001, 1000, 0, "; lines 1 to 1000 are stored; continue with: tail -n +1001 FILE | lockstep produce d"},
		{"others behind it", 4, 5, 0, "; lines 1 to 3 are stored; 2 lines behind it are stored in other partitions; " +
			"continue with: tail -n +4 FILE | lockstep produce d (which may store 2 lines twice)"},
		{"the first is unknown", 1, 0, 1, "; continue with: tail -n +1 FILE | lockstep produce d (which may store 1 line twice)"},
		{"one that is unknown", 4, 3, 1, "; lines 1 to 3 are stored; continue with: tail -n +4 FILE | lockstep produce d (which may store 1 line twice)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &produceRun{acks: newChoice("quorum", "quorum"), command: "lockstep produce d"}
			p.acknowledged.Store(c.acknowledged)
			p.unknown.Store(c.unknown)
			require.Equal(t, c.want, p.goOn(c.next))
		})
	}
}

func TestProduceFlushesWhatItHasReadWhenInterrupted(t *testing.T) {
	address, _ := startServer(t)
	must(t, at(address, ""), "topic", "create", "events")
	r, w := io.Pipe()
	defer w.Close() // ends the reader that hangs in its read
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan outcome)
	sh := at(address, "")
	sh.stdin = r
	go func() { done <- sh.run(ctx, "produce", "events", "--linger", "1h", "--timeout", "2h") }()
	_, err := io.WriteString(w, "first\nsecond\n")
	require.NoError(t, err)
	_, err = io.WriteString(w, "half of the third")
	require.NoError(t, err)
	cancel(errInterrupted)
	got := <-done
	require.Equal(t, 130, got.code)
	require.Contains(t, got.stderr, `2 records (11 B) acknowledged by topic "events" in `)
	require.Contains(t, got.stderr, "; lines 1 to 2 are stored; continue with: tail -n +3 FILE | lockstep produce events --linger 1h --timeout 2h\n")
	require.Equal(t, "first\nsecond\n", must(t, at(address, ""), "consume", "events", "-e"))
}

// A disk that stays full, or a broker that is away, does not keep a command that
// is interrupted: neither while it reads nor when it has read everything.
func TestProduceThatWaitsEndsSoonWhenInterrupted(t *testing.T) {
	s, err := server.Start(context.Background(), server.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "off", MinFreeBytes: 1 << 60})
	require.NoError(t, err)
	defer s.Close(context.Background())
	must(t, at(s.Addr(), ""), "topic", "create", "events")
	for _, whole := range []bool{false, true} {
		r, w := io.Pipe()
		ctx, cancel := context.WithCancelCause(context.Background())
		done := make(chan outcome)
		sh := at(s.Addr(), "")
		sh.stdin = r
		var stdout bytes.Buffer
		var stderr lockedBuffer
		command := sh.app(&stdout, &stderr)
		go func() {
			code := command.run(ctx, []string{"produce", "events", "--timeout", "2h"})
			done <- outcome{code, stdout.String(), stderr.String()}
		}()
		_, err = io.WriteString(w, "first\nsecond\n")
		require.NoError(t, err)
		if whole {
			require.NoError(t, w.Close())
		}
		require.Eventually(t, func() bool { return strings.Contains(stderr.String(), "waiting, at most") }, time.Minute, time.Millisecond, "it waits for acknowledgements")
		started := time.Now()
		cancel(errInterrupted)
		got := <-done
		w.Close()
		require.Less(t, time.Since(started), 5*time.Second)
		require.Equal(t, 130, got.code)
		require.Contains(t, got.stderr, "lockstep: line 1: ")
		require.Contains(t, got.stderr, "interrupted before the broker acknowledged it")
	}
}

func TestConsumeWaitsForMoreAndEndsQuietlyWithItsReader(t *testing.T) {
	address, _ := startServer(t)
	must(t, at(address, ""), "topic", "create", "events")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	done := make(chan int)
	go func() {
		a := at(address, "").app(w, &lockedBuffer{})
		done <- a.run(context.Background(), []string{"consume", "events"})
	}()
	lines := bufio.NewScanner(r)
	must(t, at(address, "first\n"), "produce", "events")
	require.True(t, lines.Scan())
	require.Equal(t, "first", lines.Text(), "written as soon as it is there")
	require.NoError(t, r.Close())
	require.Equal(t, 0, <-done, "without another record")
}

// The broker is killed while a file is on its way, and started again; produce
// goes on by itself. Every line is there, once, in order.
func TestAFileSurvivesTheDeathOfTheBroker(t *testing.T) {
	data, file := t.TempDir(), testFile(30<<20)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())

	broker := startChild(t, "--data", data, "--listen", address)
	must(t, at(address, ""), "queue", "create", "file")
	input := &pausingReader{data: file, pauseAt: len(file) / 3, reached: make(chan struct{}), resume: make(chan struct{})}
	sh := at(address, "")
	sh.stdin = input
	done := make(chan outcome)
	go func() { done <- sh.run(context.Background(), "produce", "file") }()
	<-input.reached
	require.NoError(t, broker.command.Process.Kill())
	close(input.resume)
	<-broker.exited
	startChild(t, "--data", data, "--listen", address)
	got := <-done
	require.Equal(t, 0, got.code, got.stderr)
	require.Contains(t, got.stderr, "lockstep: connection to "+address+" lost (")
	require.Contains(t, got.stderr, "lockstep: connected to "+address+" again\n")
	require.True(t, must(t, at(address, ""), "consume", "file", "-e") == string(file), "compares equal")
}

// pausingReader is an input that waits once in its middle.
type pausingReader struct {
	data            []byte
	read, pauseAt   int
	reached, resume chan struct{}
}

func (r *pausingReader) Read(p []byte) (int, error) {
	if r.read == len(r.data) {
		return 0, io.EOF
	}
	end := len(r.data)
	if r.read < r.pauseAt {
		end = r.pauseAt
	} else if r.read == r.pauseAt {
		close(r.reached)
		<-r.resume
	}
	n := copy(p, r.data[r.read:end])
	r.read += n
	return n, nil
}

func TestBenchmarksOnAnEmbeddedBroker(t *testing.T) {
	t.Setenv(childVariable, "1")
	dir := t.TempDir()
	for _, args := range []string{
		"produce --records 20000 --size 100B --sync os",
		"produce --records 2000 --size 100B --producers 3 --in-flight 1 --keys 7 --partitions 2",
		"consume --records 20000 --size 100B --partitions 3 --readers 2 --sync os",
		"latency --rate 500 --duration 500ms --warmup 100ms --size 100B --producers 2",
	} {
		t.Run(args, func(t *testing.T) {
			fields := strings.Fields(args)
			out := must(t, shell{}, append(append([]string{"bench"}, fields...), "--embedded", "--embedded-dir", dir, "-o", "json")...)
			var r bench.Result
			require.NoError(t, json.Unmarshal([]byte(out), &r))
			require.Equal(t, fields[0], r.Benchmark)
			want := map[string]int64{"20000": 20000, "2000": 2000, "500": 250}[fields[2]]
			require.Equal(t, want, r.Records)
			require.Equal(t, want*100, r.Bytes-keyBytes(r))
			require.Positive(t, r.RecordsPerS)
			require.Positive(t, r.MBPerS)
			require.Positive(t, r.Samples)
			require.LessOrEqual(t, r.P50Us, r.P99Us)
			require.LessOrEqual(t, r.P99Us, r.P999Us)
			require.LessOrEqual(t, r.P999Us, r.MaxUs)
			require.Positive(t, r.ClientCPUSeconds)
			require.NotNil(t, r.ServerCPUSeconds)
			require.Positive(t, *r.ServerCPUSeconds)
			require.Equal(t, true, r.Settings["embedded"])
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left, "the embedded broker's directory is removed")
		})
	}
}

// The broker is a process of its own, which is stopped, killed and started again.
// This is a hundredth of what make figures takes.
func TestBenchRunFindsFiguresThatAreNoRates(t *testing.T) {
	t.Setenv(childVariable, "1")
	dir := t.TempDir()
	out := must(t, shell{}, "bench", "run", "restart", "idle-partitions", "idle-clients", "--scale", "0.01", "--rounds", "1", "--dir", dir, "-o", "json")
	var found []bench.Comparison
	require.NoError(t, json.Unmarshal([]byte(out), &found))
	require.Len(t, found, 3)
	var names []string
	for _, c := range found {
		for _, f := range c.Figures {
			names = append(names, c.Workload+" "+f.Name)
			if f.Name != "resident_growth" && f.Name != "cpu_at_rest" { // these may be nothing in so short a time
				require.Positive(t, f.Value, "%s %+v", c.Workload, f)
			}
		}
	}
	require.Equal(t, []string{
		"restart clean_start", "restart killed_start", "idle-partitions resident", "idle-partitions cpu_at_rest",
		"idle-clients resident_growth", "idle-clients cpu_at_rest",
	}, names)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "the broker's directory is removed")

}

// What cannot be compared is refused before anything is measured: a run of all
// workloads takes half an hour.
func TestBenchRunChecksAllWorkloadsFirst(t *testing.T) {
	for _, test := range []struct{ arguments, message string }{
		{"W1 restart --vs floor", "restart stands beside its goals; compare it with nothing"},
		{"W1 W3 --vs floor-log", "W3 reads what is stored: compare it with floor"},
		{"W1 --rounds 0", "rounds 0: 1 to 100"},
		{"W1 --server 127.0.0.1:7400", "measures brokers of its own: --server has no place beside it"},
		{"W1 W99", `there is no workload "W99"; there are W1, `},
		{"W1 --dir /no/such/directory", "--dir /no/such/directory is no directory; make it first"},
	} {
		got := shell{}.run(t.Context(), append([]string{"bench", "run"}, strings.Fields(test.arguments)...)...)
		require.Equal(t, 2, got.code, test.arguments)
		require.Contains(t, got.stderr, test.message)
		require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
	}
}

func TestRatesAndFiguresArePrintedApart(t *testing.T) {
	var out bytes.Buffer
	ratio := 0.5
	require.NoError(t, shell{}.app(&out, io.Discard).printComparisons([]*bench.Comparison{
		{Workload: "W7", Subjects: []bench.Summary{{Subject: "lockstep", RecordsPerS: 10}}, Ratio: &ratio, Goal: 0.8},
		{Workload: "W4", Subjects: []bench.Summary{{Subject: "lockstep", RecordsPerS: 10}}, Ratio: &ratio, Goal: 1.5},
		{Workload: "restart", Figures: []bench.Figure{{Name: "clean_start", Unit: "s", Value: 0.25, Goal: 2}}},
		{Workload: "idle-clients", Figures: []bench.Figure{
			{Name: "resident_growth", Unit: "bytes", Value: 1 << 20, Goal: 50 << 20}, {Name: "cpu_at_rest", Unit: "ms/s", Value: 1.5},
		}},
	}))
	rates, figures, found := strings.Cut(out.String(), "\n\n")
	require.True(t, found, out.String())
	require.Contains(t, rates, "0.50 (goal ≥ 0.80)\n")
	require.True(t, strings.HasSuffix(rates, "0.50 (goal ≤ 1.50)"), "a latency: %s", rates)
	require.Equal(t, `WORKLOAD      FIGURE           VALUE     GOAL
restart       clean_start      0.250 s   at most 2.000 s
idle-clients  resident_growth  1.0 MiB   at most 50.0 MiB
              cpu_at_rest      1.5 ms/s
`, figures)
}

// keyBytes is the size of the keys "key-0" to "key-6" in a result.
func keyBytes(r bench.Result) int64 {
	if keys, _ := r.Settings["keys"].(float64); keys > 0 && r.Benchmark == "produce" {
		return 5 * r.Records
	}
	return 0
}

func TestBenchRemovesItsTopicAndKeepsANamedOne(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "bench", "produce", "--records", "100", "--size", "10B")
	require.Equal(t, "[]\n", must(t, sh, "topic", "ls", "-o", "json"))
	out := must(t, sh, "bench", "produce", "load", "--records", "100", "--size", "10B", "--partitions", "2")
	require.Regexp(t, `(?m)^records +100$`, out)
	require.Regexp(t, `(?m)^CPU server +not known; use --embedded or --server-http$`, out)
	out = must(t, sh, "bench", "consume", "load")
	require.Regexp(t, `(?m)^records +100$`, out)
	require.Equal(t, 100, strings.Count(must(t, sh, "consume", "load", "-e", "-f", `x\n`), "x"))
}

// Who produces under a name ends the one before, which says so.
func TestProduceUnderANameThatAnotherOneTakes(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "topic", "create", "events", "--partitions", "2")
	r, w := io.Pipe()
	first := at(address, "")
	first.stdin = r
	done := make(chan outcome)
	go func() {
		done <- first.run(context.Background(), "produce", "events", "--name", "billing", "--in-order")
	}()
	_, err := io.WriteString(w, "first\n")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return sh.run(context.Background(), "consume", "events", "-e").stdout == "first\n" }, 30*time.Second, 10*time.Millisecond)
	must(t, at(address, "second\n"), "produce", "events", "--name", "billing")
	_, err = io.WriteString(w, "third\n")
	require.NoError(t, err)
	got := <-done
	require.NoError(t, w.Close())
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, `lockstep: line 2: not sent: another producer has taken the name "billing", and one at a time writes under it; `+
		"let only one run, or give each its own --name; line 1 is stored; continue with: tail -n +2 FILE | lockstep produce events --in-order --name billing")
	require.Equal(t, "first\nsecond\n", strings.Join(slices.Sorted(strings.Lines(must(t, sh, "consume", "events", "-e"))), ""))

	for name, problem := range map[string]string{"": "--name is empty; give a value, or leave it out", "a//b": `flag --name: name "a//b" has an empty level between slashes`} {
		got := at(address, "x\n").run(context.Background(), "produce", "events", "--name", name)
		require.Equal(t, []any{2, "lockstep: " + problem + " (see lockstep produce --help)\n"}, []any{got.code, got.stderr})
	}
}

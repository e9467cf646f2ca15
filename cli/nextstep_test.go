package cli

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lockstepmq/lockstep/client"
	"github.com/lockstepmq/lockstep/wire"
)

// What goes wrong with a group says what is there, and what to do next, by its names.
func TestErrorsOfGroupsSayWhatToDoNext(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	sh := at(address, "")
	must(t, sh, "queue", "create", "two words")
	must(t, sh, "group", "create", "orders", "billing")
	for _, test := range []struct {
		args []string
		text string
	}{
		{[]string{"group", "create", "orders", "billing"}, "look at it with: lockstep group describe orders billing\n"},
		{[]string{"browse", "orders", "-g", "biling"}, "did you mean \"billing\"? List them with: lockstep group ls orders\n"},
		{[]string{"browse", "orders", "--partition", "7"}, "lockstep: browse \"orders\": destination has no such partition: 7; list its partitions with: lockstep queue describe orders\n"},
		{[]string{"explain", "topic", "nowhere"}, "create it with: lockstep topic create nowhere\n"},
	} {
		got := sh.run(context.Background(), test.args...)
		require.Equal(t, 1, got.code, test.args)
		require.Contains(t, got.stderr, test.text)
	}
	require.Contains(t, must(t, sh, "explain", "queue", "two words"), "lockstep consume 'two words' --group NAME")
	require.Equal(t, "[]\n", must(t, sh, "explain", "queue", "two words", "-o", "json"), "nothing but JSON")
}

// A command that is told to end because somebody moves, changes or removes its group took no
// longer than the ack wait.
func TestACommandThatIsToldToEndSaysWhy(t *testing.T) {
	address := groupQueue(t, "a:1\n")
	sh := at(address, "")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, talk, done := &lockedBuffer{}, &lockedBuffer{}, make(chan int, 1)
	must(t, sh, "group", "create", "orders", "billing")
	go func() {
		done <- sh.app(out, talk).run(ctx, []string{"consume", "orders", "-g", "billing", "--exec", "echo $LOCKSTEP_DELIVERY_COUNT; exec sleep 1000"})
	}()
	starts := func(text string) {
		t.Helper()
		require.Eventually(t, func() bool { return out.String() == text }, 30*time.Second, time.Millisecond)
	}
	starts("1\n")
	must(t, sh, "group", "seek", "orders", "billing", "--to", "earliest")
	starts("1\n2\n")
	must(t, sh, "group", "alter", "orders", "billing", "--mode", "serial")
	starts("1\n2\n3\n")
	must(t, sh, "group", "rm", "orders", "billing")
	require.Equal(t, exitError, <-done)
	require.Contains(t, talk.String(), "was told to end: signal: terminated; the group is moved to another place\n")
	require.Contains(t, talk.String(), "was told to end: signal: terminated; the group is changed, and its records come again under the new rules\n")
	require.Contains(t, talk.String(), "lockstep: consume \"orders\": the group was removed while it was in use; make it again with: lockstep group create orders billing\n")
	require.NotContains(t, talk.String(), "ack wait")
}

// A publisher that no environment can hold is in base64 like a key, and that is said.
func TestACommandIsToldHowItsPublisherIsWritten(t *testing.T) {
	for publisher, want := range map[string][]string{
		"clerk-3":   {"LOCKSTEP_PUBLISHER=clerk-3", "LOCKSTEP_PUBLISHER_ENCODING="},
		"a\xffb":    {"LOCKSTEP_PUBLISHER=Yf9i", "LOCKSTEP_PUBLISHER_ENCODING=base64"},
		"zero\x00b": {"LOCKSTEP_PUBLISHER=emVybwBi", "LOCKSTEP_PUBLISHER_ENCODING=base64"},
	} {
		d := &client.Delivery{Record: client.Record{Key: []byte("k"), Headers: []client.Header{{Key: wire.PublisherHeader, Value: []byte(publisher)}}}}
		require.Subset(t, recordEnvironment(d), append(want, "LOCKSTEP_KEY=k", "LOCKSTEP_KEY_ENCODING="))
	}
}

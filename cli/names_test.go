package cli

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A destination or group that is misspelt is an error, of every command, and says which name
// may be meant.
func TestMisspeltNamesAreErrors(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "dead")
	must(t, sh, "queue", "create", "orders", "--delivery-limit", "1", "--dead-letter", "dead")
	must(t, sh, "group", "create", "orders", "billing", "--mode", "serial")
	for line, says := range map[string]string{
		"group describe orders biling":              `"orders" has no group "biling"; did you mean "billing"? List them with: lockstep group ls orders`,
		"group describe order billing":              `destination "order" not found; did you mean "orders"?`,
		"group ls order":                            `did you mean "orders"?`,
		"group create order audit":                  `did you mean "orders"?`,
		"group alter orders biling --hold":          `did you mean "billing"?`,
		"group pause orders biling":                 `did you mean "billing"?`,
		"group rm orders biling":                    `did you mean "billing"?`,
		"group seek orders biling --to latest":      `did you mean "billing"?`,
		"explain queue orders --group biling":       `did you mean "billing"?`,
		"explain queue order":                       `did you mean "orders"?`,
		"key show orders biling k":                  `did you mean "billing"?`,
		"key park order billing k":                  `did you mean "orders"?`,
		"dlq show daed":                             `did you mean "dead"?`,
		"dlq redrive daed":                          `did you mean "dead"?`,
		"dlq purge daed --yes":                      `did you mean "dead"?`,
		"dlq show dead --group biling":              `flag --group: there is no group "biling", and "dead" has no letters of one; did you mean "billing"?`,
		"dlq redrive dead --group biling":           `did you mean "billing"?`,
		"dlq redrive dead --group biling --dry-run": `did you mean "billing"?`,
		"dlq purge dead --group biling --yes":       `did you mean "billing"?`,
		"dlq redrive dead --origin ordesr":          `flag --origin: there is no queue or topic "ordesr", and "dead" has no letters of one; did you mean "orders"?`,
		"dlq redrive dead --group quite-another":    `see whose letters are where with: lockstep dlq ls`,
		"queue describe order":                      `did you mean "orders"?`,
		"queue alter order --sync os":               `did you mean "orders"?`,
		"queue rm order":                            `did you mean "orders"? Or list what there is with: lockstep queue ls, or pass --if-exists`,
	} {
		got := sh.run(context.Background(), strings.Fields(line)...)
		require.Equal(t, 1, got.code, line)
		require.Contains(t, got.stderr, says, line)
		require.Empty(t, got.stdout, line)
	}
	require.Equal(t, outcome{0, "redrove 0 letters\n", ""}, sh.run(context.Background(), "dlq", "redrive", "dead", "--group", "billing", "--origin", "orders"), "they are there")
	require.Equal(t, outcome{0, "", "no dead letters in \"dead\"\n"}, sh.run(context.Background(), "dlq", "show", "dead"))
}

// A shell is offered what there is: destinations, the groups of the one that is named, and
// nothing in the place of a key.
func TestGroupsAreOfferedToShells(t *testing.T) {
	address, _ := startServer(t)
	sh := at(address, "")
	must(t, sh, "queue", "create", "orders")
	must(t, sh, "topic", "create", "events")
	must(t, sh, "group", "create", "orders", "billing")
	must(t, sh, "group", "create", "events", "etl")
	for line, want := range map[string]string{
		"group ls":                     "events orders",
		"group describe":               "events orders",
		"group describe orders":        "billing",
		"group create orders":          "",
		"group seek events":            "etl",
		"key park orders":              "billing",
		"key park orders billing":      "",
		"explain queue":                "orders",
		"explain topic":                "events",
		"explain queue orders --group": "billing",
		"consume events -g":            "etl",
		"dlq redrive":                  "events orders",
		"dlq redrive orders --group":   "etl billing",
	} {
		got := sh.run(context.Background(), append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
		words := strings.Fields(got.stdout)
		require.NotEmpty(t, words, line)
		require.Equal(t, want, strings.Join(words[:len(words)-1], " "), line)
	}
}

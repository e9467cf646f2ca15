package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstepmq/lockstep/server"
)

// doctorFlags are serve's flags that say what a broker takes of its machine: doctor
// has the same, with their defaults and environment twins.
var doctorFlags = []string{"config", "data", "allow-network-fs", "max-connections", "min-free-bytes", "memory-bytes", "pending-bytes"}

func (a *app) doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:        "doctor",
		SuggestFor: []string{"check", "diagnose", "preflight"},
		Short:      "Look at this machine and a data directory for what would hurt a broker",
		Long: `Look at this machine and a data directory for what would hurt a broker. None needs to
run; one that runs notices 200 syncs beside its own. Nothing is changed: a file is
written into the directory to measure syncs, and removed again.

Limits are those of the user and the shell that run it. Give it the flags or the
environment of serve; the exit code is 1 if there is an error.`,
		Example: `  lockstep doctor
  lockstep doctor --data ` + defaultData + ` -o json`,
		Args: exactArgs(),
	}
	flags := c.Flags()
	flags.SortFlags = false
	serve := a.serveCommand().Flags()
	for _, name := range doctorFlags {
		flags.AddFlag(serve.Lookup(name))
	}
	flags.Lookup("data").Usage = "`directory` that serve has or will have"
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := doctorConfig(c)
		if err != nil {
			return err
		}
		m := a.lookAt(c.Context(), cfg.DataDir)
		if c.Context().Err() != nil {
			return errInterrupted
		}
		findings, err := examine(m, cfg, a.now())
		if err != nil {
			return usagef(c, "%v", err)
		}
		if output.value == "json" {
			err = a.printJSON(findings)
		} else {
			err = a.printFindings(findings)
		}
		if err != nil {
			return err
		}
		return findingsError(findings)
	}
	return c
}

// doctorConfig is the part of serve's configuration that doctorFlags give.
func doctorConfig(c *cobra.Command) (server.Config, error) {
	flags := c.Flags()
	size := func(name string) int64 { return flags.Lookup(name).Value.(*sizeFlag).bytes }
	cfg := server.Config{
		DataDir: flags.Lookup("data").Value.String(), MinFreeBytes: size("min-free-bytes"), MemoryBytes: size("memory-bytes"), PendingBytes: size("pending-bytes"),
	}
	var err error
	if cfg.AllowNetworkFS, err = flags.GetBool("allow-network-fs"); err != nil {
		return cfg, err
	}
	if cfg.Limits.Connections, err = flags.GetInt("max-connections"); err != nil {
		return cfg, err
	}
	if cfg.Limits.Connections < 0 {
		return cfg, usagef(c, "%s: %d is negative", setting(c, "max-connections"), cfg.Limits.Connections)
	}
	if cfg.DataDir == "" {
		return cfg, usagef(c, "flag --data: a directory is needed, as in %s", defaultData)
	}
	return cfg, nil
}

// printFindings writes a table of all findings, and below it what to do about those
// that are not ok.
func (a *app) printFindings(findings []finding) error {
	rows := make([][]string, len(findings))
	var advice strings.Builder
	for i, f := range findings {
		rows[i] = []string{f.Check, f.Severity, f.Found}
		if f.Severity != severityOK {
			fmt.Fprintf(&advice, "\n%s: %s: %s\n  why: %s\n  fix: %s\n", f.Severity, f.Check, f.Found, f.Why, f.Fix)
		}
	}
	if err := a.printTable([]string{"check", "severity", "found"}, rows); err != nil {
		return err
	}
	_, err := io.WriteString(a.stdout, advice.String())
	return outputError(err)
}

// findingsError says which checks found an error, nil if none did.
func findingsError(findings []finding) error {
	var checks []string
	for _, f := range findings {
		if f.Severity == severityError {
			checks = append(checks, f.Check)
		}
	}
	if len(checks) == 0 {
		return nil
	}
	return fmt.Errorf("doctor: %s: %s; mend what stands under fix, then run this again", plural(int64(len(checks)), "error"), strings.Join(checks, ", "))
}

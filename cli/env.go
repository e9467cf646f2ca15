package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// envAnnotation is the pflag annotation that holds the name of a flag's
// environment twin.
const envAnnotation = "lockstep_env"

// withEnv gives a flag an environment twin: the variable is read where the
// flag is not given. Help shows its name.
func withEnv(flags *pflag.FlagSet, flag, variable string) {
	if err := flags.SetAnnotation(flag, envAnnotation, []string{variable}); err != nil {
		panic(fmt.Sprintf("environment twin %s of a flag that does not exist: %v", variable, err))
	}
}

// withEnvTwins gives every flag the twin LOCKSTEP_ + its name in capitals, with
// underscores.
func withEnvTwins(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		withEnv(flags, f.Name, "LOCKSTEP_"+strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")))
	})
}

// envUsed is the pflag annotation of a flag whose value came from its twin.
const envUsed = "lockstep_env_used"

// setting names where the value of a flag came from, for messages about it.
func setting(c *cobra.Command, flag string) string {
	f := c.Flags().Lookup(flag)
	if _, used := f.Annotations[envUsed]; used {
		return "environment variable " + envOf(f)
	}
	return "flag --" + flag
}

// envOf returns the name of a flag's environment twin, or "".
func envOf(f *pflag.Flag) string {
	if names := f.Annotations[envAnnotation]; len(names) == 1 {
		return names[0]
	}
	return ""
}

// refuseUnknownVariables fails if the environment holds a LOCKSTEP_ variable that
// no flag of c has: most likely somebody misspelled a setting, and a broker that
// started without it would do so for months. known are other names that are fine.
func (a *app) refuseUnknownVariables(c *cobra.Command, known ...string) error {
	const prefix = "LOCKSTEP_"
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if name := envOf(f); name != "" {
			known = append(known, name)
		}
	})
	for _, entry := range a.environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, prefix) || strings.HasPrefix(name, prefix+"TEST_") || strings.HasPrefix(name, prefix+"BENCH_") ||
			slices.Contains(known, name) {
			continue
		}
		var words []string
		for _, k := range known {
			words = append(words, strings.ToLower(strings.TrimPrefix(k, prefix)))
		}
		if near := nearest(strings.TrimPrefix(name, prefix), words); near != "" {
			return usagef(c, "environment variable %s is no setting; did you mean %s%s?", name, prefix, strings.ToUpper(near))
		}
		return usagef(c, "environment variable %s is no setting; remove it", name)
	}
	return nil
}

// applyEnvironment sets the flags that were not given from their environment
// twins. An empty variable counts as not set.
func (a *app) applyEnvironment(c *cobra.Command) error {
	var failed error
	c.Flags().VisitAll(func(f *pflag.Flag) {
		name := envOf(f)
		if name == "" || f.Changed || failed != nil {
			return
		}
		value, found := a.lookupEnv(name)
		if !found || value == "" {
			return
		}
		if err := c.Flags().Set(f.Name, value); err != nil {
			failed = usagef(c, "environment variable %s: %v", name, cause(err))
		}
		f.Annotations[envUsed] = nil
	})
	return failed
}

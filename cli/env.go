package cli

import (
	"fmt"
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

// envOf returns the name of a flag's environment twin, or "".
func envOf(f *pflag.Flag) string {
	if names := f.Annotations[envAnnotation]; len(names) == 1 {
		return names[0]
	}
	return ""
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
	})
	return failed
}

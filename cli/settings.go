package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What a flag of serve sets can also be set by the environment variable of its name,
// and in the YAML file that --config names. The flag wins over the variable, and that
// over the file. All three go through the flag's own parser, so that a mistake has one
// message, which names where it is.

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

// settingSource is the pflag annotation of a flag that was not given: where its
// value came from.
const settingSource = "lockstep_source"

// setting names where the value of a flag came from, for messages about it.
func setting(c *cobra.Command, flag string) string {
	if source := c.Flags().Lookup(flag).Annotations[settingSource]; len(source) == 1 {
		return source[0]
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

// noKeys joins the keys of nested maps in error messages; no setting has a name that
// contains it.
const noKeys = "."

// applySettings sets the flags that were not given from their environment twins, and
// else from the file that --config names. An empty variable counts as not set.
func (a *app) applySettings(c *cobra.Command) error {
	environment, err := a.environment(c.Flags())
	if err != nil {
		return err
	}
	if err := applyLayer(c, environment, func(f *pflag.Flag) string { return "environment variable " + envOf(f) }); err != nil {
		return err
	}
	f := c.Flags().Lookup("config")
	if f == nil || f.Value.String() == "" {
		return nil
	}
	file, err := configFile(c, f.Value.String())
	if err != nil {
		return err
	}
	return applyLayer(c, file, func(s *pflag.Flag) string { return fmt.Sprintf("config file %s: %s", f.Value, s.Name) })
}

// environment is the layer of environment twins, by flag.
func (a *app) environment(flags *pflag.FlagSet) (*koanf.Koanf, error) {
	twins := map[string]string{}
	flags.VisitAll(func(f *pflag.Flag) { twins[envOf(f)] = f.Name })
	layer := koanf.New(noKeys)
	return layer, layer.Load(env.Provider("", env.Opt{EnvironFunc: a.environ, TransformFunc: func(name, value string) (string, any) {
		if value == "" || name == "" {
			return "", nil
		}
		return twins[name], value
	}}), nil)
}

// applyLayer sets the flags of c that nothing has set yet from a layer.
func applyLayer(c *cobra.Command, layer *koanf.Koanf, source func(*pflag.Flag) string) error {
	var failed error
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if failed != nil || f.Changed || !layer.Exists(f.Name) {
			return
		}
		from := source(f)
		value, ok := layer.Get(f.Name).(string)
		err := errors.New("it has no value")
		if ok {
			err = c.Flags().Set(f.Name, value)
		}
		if err != nil {
			failed = usagef(c, "%s: %v", from, cause(err))
			return
		}
		if f.Annotations == nil {
			f.Annotations = map[string][]string{}
		}
		f.Annotations[settingSource] = []string{from}
	})
	return failed
}

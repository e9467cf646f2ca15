package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) configCommand() *cobra.Command {
	c := a.group(&cobra.Command{
		Use:        "config",
		SuggestFor: []string{"settings", "configuration"},
		Short:      "Look at the settings of a broker",
		Example: `  lockstep config show
  lockstep config show --data /var/lib/lockstep -o json`,
	})
	c.AddCommand(a.configShowCommand())
	return c
}

// shownSetting is one line of config show.
type shownSetting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

func (a *app) configShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show",
		Short: "Print each setting of serve with its value and where that came from",
		Long: `Print what lockstep serve would run with, started with the same flags in the same
environment, and where each value came from: a flag, an environment variable, the file
that --config names, or the default. Nothing is started, and a mistake is reported as
serve would report it.`,
		Example: `  lockstep config show
  LOCKSTEP_MAX_CONNECTIONS=500 lockstep config show -o json`,
		Args: exactArgs(),
	}
	serve := addServeFlags(c.Flags())
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if _, err := serve.config(a, c); err != nil {
			return err
		}
		var settings []shownSetting
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if envOf(f) == "" || f.Hidden || f.Name == "server" {
				return
			}
			s := shownSetting{Name: f.Name, Value: f.Value.String(), Source: "default"}
			if f.Changed {
				s.Source = setting(c, f.Name)
			}
			settings = append(settings, s)
		})
		if output.value == "json" {
			return a.printJSON(settings)
		}
		var rows [][]string
		for _, s := range settings {
			value := s.Value
			if value == "" || strings.ContainsAny(value, " \t") {
				value = shellWord(value)
			}
			rows = append(rows, []string{s.Name, value, s.Source})
		}
		return a.printTable([]string{"setting", "value", "source"}, rows)
	}
	return c
}

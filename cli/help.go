package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// installHelp makes every command below root print the help written here:
// examples first, then what the command does, its subcommands and its flags
// with units, defaults and environment twins.
func installHelp(root *cobra.Command) {
	root.SetHelpFunc(func(c *cobra.Command, _ []string) { printHelp(c.OutOrStdout(), c) })
	root.SetUsageFunc(func(c *cobra.Command) error {
		printHelp(c.OutOrStderr(), c)
		return nil
	})
}

func printHelp(out io.Writer, c *cobra.Command) {
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	w := bufio.NewWriter(out)
	defer w.Flush()
	if c.Example != "" {
		fmt.Fprintf(w, "Examples:\n%s\n\n", strings.TrimRight(c.Example, "\n"))
	}
	fmt.Fprintf(w, "Usage:\n  %s\n\n", useLine(c))
	text := c.Long
	if text == "" {
		text = c.Short
	}
	fmt.Fprintf(w, "%s\n", text)

	if c.HasAvailableSubCommands() {
		fmt.Fprint(w, "\nCommands:\n")
		width := 0
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				width = max(width, len(sub.Name()))
			}
		}
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(w, "  %-*s  %s\n", width, sub.Name(), sub.Short)
			}
		}
	}
	printFlags(w, "Flags:", c.LocalFlags())
	printFlags(w, "Flags of all client commands:", c.InheritedFlags())
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\nMore about a command: %s COMMAND --help\n", c.CommandPath())
	}
}

func useLine(c *cobra.Command) string {
	line := c.CommandPath()
	if _, args, found := strings.Cut(c.Use, " "); found {
		line += " " + args
	}
	if c.HasAvailableSubCommands() {
		line += " COMMAND"
	}
	if c.HasAvailableFlags() {
		line += " [flags]"
	}
	return line
}

// printFlags writes one line for each flag: name, value, what it does, default,
// environment twin.
func printFlags(w io.Writer, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	type row struct{ left, right string }
	var rows []row
	width := 0
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		left := "      --" + f.Name
		if f.Shorthand != "" {
			left = "  -" + f.Shorthand + ", --" + f.Name
		}
		placeholder, usage := flagPlaceholder(f)
		if placeholder != "" {
			left += " " + placeholder
		}
		right := usage
		if text := flagDefault(f); text != "" {
			right += " (default " + text + ")"
		}
		if env := envOf(f); env != "" {
			right += " [$" + env + "]"
		}
		width = max(width, len(left))
		rows = append(rows, row{left, right})
	})
	fmt.Fprintf(w, "\n%s\n", title)
	const textWidth = 72
	for _, r := range rows {
		lines := wrap(r.right, textWidth)
		fmt.Fprintf(w, "%-*s   %s\n", width, r.left, lines[0])
		for _, line := range lines[1:] {
			fmt.Fprintf(w, "%-*s   %s\n", width, "", line)
		}
	}
}

// flagPlaceholder returns what stands for the flag's value, taken from a word
// in back quotes in its usage, and the usage without the quotes.
func flagPlaceholder(f *pflag.Flag) (placeholder, usage string) {
	if before, rest, found := strings.Cut(f.Usage, "`"); found {
		if word, after, found := strings.Cut(rest, "`"); found {
			return word, before + word + after
		}
	}
	if f.Value.Type() == "bool" {
		return "", f.Usage
	}
	return f.Value.Type(), f.Usage
}

// flagDefault is the default worth showing: not a zero that means "off" or that
// the usage itself explains.
func flagDefault(f *pflag.Flag) string {
	switch f.DefValue {
	case "", "[]", "false":
		return ""
	case "0":
		if strings.Contains(f.Usage, "0 = ") {
			return ""
		}
	}
	return f.DefValue
}

// withoutDefault hides the default of flags whose absence is not the same as
// any of their values.
func withoutDefault(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		flags.Lookup(name).DefValue = ""
	}
}

// wrap breaks text between words into lines of at most width bytes.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND...]",
		Short: "Show the help of a command",
		Example: `  lockstep help produce
  lockstep help queue create`,
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(c *cobra.Command, args []string) error {
			found, rest, err := c.Root().Find(args)
			if err != nil || found == nil {
				return unknownCommand(c.Root(), args[0])
			}
			if len(rest) > 0 {
				return unknownCommand(found, rest[0])
			}
			return found.Help()
		},
	}
}

// completeFlags offers a shell the words that a flag takes, and for --group the groups of the
// destination that is named, or of all.
func (a *app) completeFlags(c *cobra.Command) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		var words cobra.CompletionFunc
		if choice, ok := f.Value.(*choiceFlag); ok {
			words = cobra.FixedCompletions(choice.choices, cobra.ShellCompDirectiveNoFileComp)
		} else if f.Name == "group" {
			words = func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				if len(args) == 0 || c.Parent().Name() == "dlq" { // where it is one of where letters come from
					return a.complete(c, groupNames(""))
				}
				return a.complete(c, groupNames(args[0]))
			}
		} else {
			return
		}
		if err := c.RegisterFlagCompletionFunc(f.Name, words); err != nil {
			panic(fmt.Sprintf("completion of flag --%s: %v", f.Name, err))
		}
	})
	for _, sub := range c.Commands() {
		a.completeFlags(sub)
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Write a completion script for a shell to stdout",
		Example: `  source <(lockstep completion bash)
  lockstep completion fish > ~/.config/fish/completions/lockstep.fish`,
		Args:      exactArgs("SHELL"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(c *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return c.Root().GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return c.Root().GenZshCompletion(a.stdout)
			case "fish":
				return c.Root().GenFishCompletion(a.stdout, true)
			}
			return usagef(c, "no completion for shell %q; there is one for bash, zsh and fish", args[0])
		},
	}
}

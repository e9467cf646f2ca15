package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// The YAML file of settings is a list of "name: value", and a value is what stands there:
// YAML's own ideas of numbers and dates would make 10 of the rack 012.

// configFile is the layer of a YAML file whose keys are names of serve's flags.
func configFile(c *cobra.Command, name string) (*koanf.Koanf, error) {
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, usagef(c, "%s: %v", setting(c, "config"), err)
	}
	file := settingsFile{}
	settings := pflag.NewFlagSet("", pflag.ContinueOnError)
	addServeFlags(settings)
	settings.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" {
			file.known = append(file.known, f.Name)
		}
	})
	layer := koanf.New(noKeys)
	if err := layer.Load(rawbytes.Provider(content), file); err != nil {
		return nil, usagef(c, "config file %s%s", name, strings.TrimPrefix(err.Error(), "yaml"))
	}
	return layer, nil
}

// settingsFile is a koanf.Parser. Its errors begin with ", line N: ", or with "yaml: " where
// the content is no YAML.
type settingsFile struct {
	known []string // keys that there may be
}

// Unmarshal returns the settings as flags would be given them: texts, lists of them joined
// with commas, and nil where there is nothing behind the key.
func (f settingsFile) Unmarshal(content []byte) (map[string]any, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var document, second yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	root := document.Content[0]
	switch err := decoder.Decode(&second); {
	case err == nil:
		return nil, atLine(&second, "a second document; all settings stand in one, without ---")
	case !errors.Is(err, io.EOF):
		return nil, err
	case isNull(root):
		return nil, nil
	case root.Kind != yaml.MappingNode:
		return nil, atLine(root, "settings are written as name: value, as in listen: %s", defaultServer)
	}
	values, lines := map[string]any{}, map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if err := f.checkKey(key); err != nil {
			return nil, err
		}
		if before := lines[key.Value]; before > 0 {
			return nil, atLine(key, "%q is set on line %d already", key.Value, before)
		}
		lines[key.Value] = key.Line
		var err error
		if values[key.Value], err = settingValue(key, value); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// Marshal implements koanf.Parser. Nobody writes such a file.
func (settingsFile) Marshal(map[string]any) ([]byte, error) { return nil, errors.ErrUnsupported }

func (f settingsFile) checkKey(key *yaml.Node) error {
	if slices.Contains(f.known, key.Value) {
		return nil
	}
	if near := nearest(key.Value, f.known); near != "" {
		return atLine(key, "unknown key %q; did you mean %q?", key.Value, near)
	}
	return atLine(key, "unknown key %q; the keys are the flags of lockstep serve without --", key.Value)
}

// settingValue is the value of a key.
func settingValue(key, value *yaml.Node) (any, error) {
	switch {
	case isNull(value):
		return nil, nil
	case value.Kind == yaml.ScalarNode:
		return value.Value, nil
	case value.Kind == yaml.SequenceNode:
		words := make([]string, len(value.Content))
		for i, word := range value.Content {
			if word.Kind != yaml.ScalarNode || isNull(word) {
				return nil, atLine(word, "%q is a list of single values", key.Value)
			}
			words[i] = word.Value
		}
		return strings.Join(words, ","), nil
	}
	return nil, atLine(key, "%q is a setting of one value and not a section", key.Value)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func atLine(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf(", line %d: %s", n.Line, fmt.Sprintf(format, args...))
}

package fuzz

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	quoted   = regexp.MustCompile("`([^`]+)`")
	testName = regexp.MustCompile(`^(Test|Fuzz|Benchmark)[A-Z]\w*$`)
)

// TestNamesInTheDocumentsExist looks for what the documents say that shows or keeps a
// promise: every test that any of them names is there, and so is every name in the tables
// of docs/groups.md. Decisions speak of their own time.
func TestNamesInTheDocumentsExist(t *testing.T) {
	declared, tests := map[string]bool{}, map[string]bool{}
	require.NoError(t, filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		names := declared
		if strings.HasSuffix(path, "_test.go") {
			names = tests
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				names[n.Name.Name] = true
				return false
			case *ast.TypeSpec:
				names[n.Name.Name] = true
			case *ast.ValueSpec:
				for _, name := range n.Names {
					names[name.Name] = true
				}
			case *ast.Field:
				for _, name := range n.Names {
					names[name.Name] = true
				}
			}
			return true
		})
		return nil
	}))
	documents, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	found, missing := 0, []string{}
	look := func(there bool, path string, line int, name string) {
		if found++; !there {
			missing = append(missing, fmt.Sprintf("%s:%d: %s", path, line, name))
		}
	}
	for _, path := range documents {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for number, line := range strings.Split(string(text), "\n") {
			for _, m := range quoted.FindAllStringSubmatch(line, -1) {
				if testName.MatchString(m[1]) {
					look(tests[m[1]], path, number+1, m[1])
				}
			}
			if cells := strings.Split(line, "|"); filepath.Base(path) == "groups.md" && len(cells) == 6 {
				for i, cell := range cells[3:5] {
					for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
						name := m[1][strings.LastIndex(m[1], ".")+1:]
						look(declared[name] || i == 1 && tests[name], path, number+1, m[1])
					}
				}
			}
		}
	}
	require.Empty(t, missing, "they are named, and not there")
	require.Greater(t, found, 100)
}

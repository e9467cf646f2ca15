package fuzz

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is the path that all packages of this repository begin with.
const module = "github.com/lockstepmq/lockstep"

// allowedImports is the direction of the packages: what each may import of this
// module. Arrows point downward only, so that one package can be read without
// those above it. A package that is not listed may not exist.
var allowedImports = map[string][]string{
	"internal/invariants": {},
	"internal/offsets":    {"wire"},
	"promise":             {},
	"wire":                {},
	"wire/inflate":        {"wire"},
	"vfs":                 {"internal/invariants"},
	"segment":             {"wire", "vfs", "internal/invariants"},
	"log":                 {"segment", "wire", "vfs", "internal/invariants"},
	"partition/group":     {"log", "wire", "internal/invariants", "internal/offsets"},
	"partition":           {"partition/group", "log", "wire", "internal/invariants"},
	"replication":         {"log", "wire", "internal/invariants"},
	"cluster":             {"replication", "log", "wire", "internal/invariants"},
	"server":              {"cluster", "replication", "partition", "partition/group", "log", "vfs", "wire", "wire/inflate", "internal/invariants"},
	"client":              {"wire", "wire/inflate", "internal/offsets"},
	"lockstest":           {"server", "client", "wire"},
	"verify":              {"client", "promise", "wire"},
	"bench":               {"client", "wire", "bench/floor"},
	"bench/floor":         {},
	"cli":                 {"server", "client", "bench", "bench/floor", "log", "verify", "vfs", "wire"},
	"":                    {"cli"}, // main
	"fuzz":                {},
	"fuzz/groupmodel":     {"promise"},
	"scripts/tests":       {},
	"fuzz/sim":            {"cluster", "replication", "partition", "partition/group", "log", "promise", "vfs", "wire", "internal/invariants"},
}

// allowedModules are the other modules a package may import, for those where few
// dependencies are a promise to users or to the reader.
var allowedModules = map[string][]string{
	"promise":         {},
	"wire":            {},
	"wire/inflate":    {"github.com/klauspost/compress"},
	"vfs":             {"golang.org/x/sys"},
	"segment":         {},
	"log":             {},
	"partition":       {},
	"partition/group": {"github.com/google/btree", "github.com/cespare/xxhash/v2"},
	"replication":     {"go.etcd.io/raft/v3"},
	"cluster":         {"github.com/google/uuid", "github.com/cespare/xxhash/v2"},
	"client":          {"github.com/klauspost/compress", "github.com/cespare/xxhash/v2"},
}

// goPackage is what `go list -json` tells about one package.
type goPackage struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	CgoFiles     []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Standard     bool
}

// name is the package's path below the module.
func (p *goPackage) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func listPackages(t *testing.T) []*goPackage {
	t.Helper()
	list := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", module+"/...")
	out, err := list.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		require.NoError(t, err, string(failed.Stderr))
	}
	require.NoError(t, err)
	var packages []*goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := new(goPackage)
		err := d.Decode(p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		require.NoError(t, err)
		packages = append(packages, p)
		// Reading the files here makes the go command forget a cached result of
		// this test when one of them changes.
		for _, file := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			_, err := os.ReadFile(filepath.Join(p.Dir, file))
			require.NoError(t, err)
		}
	}
}

func TestImportsPointDownward(t *testing.T) {
	for _, p := range listPackages(t) {
		allowed, listed := allowedImports[p.name()]
		require.True(t, listed, "package %s is not in the table of allowed imports", p.name())
		for _, path := range p.Imports {
			below, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			require.Contains(t, allowed, strings.TrimPrefix(below, "/"), "%s must not import %s", p.name(), path)
		}
	}
}

func TestNobodyImportsTheTools(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if strings.HasPrefix(path, module+"/fuzz") {
				require.True(t, strings.HasPrefix(p.name(), "fuzz"), "%s must not import %s", p.name(), path)
			}
		}
	}
}

func TestDependenciesAreFew(t *testing.T) {
	for _, p := range listPackages(t) {
		allowed, limited := allowedModules[p.name()]
		if !limited {
			continue
		}
		for _, path := range p.Imports {
			first, _, _ := strings.Cut(path, "/")
			if !strings.Contains(first, ".") || strings.HasPrefix(path, module) {
				continue // standard library or our own
			}
			fits := func(prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }
			require.True(t, slices.ContainsFunc(allowed, fits), "%s must not import %s", p.name(), path)
		}
	}
}

// TestStandardLogIsNeverImported also looks at tests: the name belongs to our
// own package, and messages go through log/slog.
func TestStandardLogIsNeverImported(t *testing.T) {
	for _, p := range listPackages(t) {
		require.NotContains(t, slices.Concat(p.Imports, p.TestImports, p.XTestImports), "log", p.name())
	}
}

// corePackages are deterministic: what they do is a function of their inputs, so
// that a simulation can replay it from a seed (RULES P1).
var corePackages = []string{"wire", "segment", "log", "replication", "partition", "partition/group", "cluster"}

// TestCoreIsDeterministic finds goroutines, clocks and randomness in the core.
func TestCoreIsDeterministic(t *testing.T) {
	for _, p := range listPackages(t) {
		if !slices.Contains(corePackages, p.name()) {
			continue
		}
		require.Empty(t, p.CgoFiles, p.name())
		for _, file := range p.GoFiles {
			findings := nondeterminism(t, filepath.Join(p.Dir, file), nil)
			require.Empty(t, findings, "%s starts goroutines, reads a clock or draws random numbers", p.name())
		}
	}
}

// forbiddenInCore are imports with nothing in them that a deterministic core
// needs, and forbiddenCalls functions of packages that it does need.
var (
	forbiddenInCore = []string{"math/rand", "math/rand/v2", "crypto/rand", "os", "net", "runtime/pprof"}
	forbiddenCalls  = map[string][]string{
		"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"},
		"context": {
			"WithTimeout", "WithDeadline", "WithTimeoutCause", "WithDeadlineCause", "AfterFunc",
		},
		// uuid draws from crypto/rand: identifiers arrive inside commands.
		"github.com/google/uuid": {"New", "NewString", "NewRandom", "NewUUID", "NewV6", "NewV7", "NewRandomFromReader"},
	}
)

// nondeterminism lists what in one file is not a function of its inputs. If src
// is not nil it is parsed instead of the file.
func nondeterminism(t *testing.T, path string, src any) (findings []string) {
	t.Helper()
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, path, src, parser.SkipObjectResolution)
	require.NoError(t, err)
	report := func(at token.Pos, what string, args ...any) {
		findings = append(findings, fmt.Sprintf("%s: %s", files.Position(at), fmt.Sprintf(what, args...)))
	}
	names := map[string]string{} // local name of an import → its path
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		require.NoError(t, err)
		if slices.Contains(forbiddenInCore, imported) {
			report(spec.Pos(), "imports %s", imported)
		}
		name := imported[strings.LastIndex(imported, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "." {
			report(spec.Pos(), "imports %s without a name", imported)
		}
		names[name] = imported
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			report(n.Pos(), "go statement")
		case *ast.SelectorExpr:
			if base, ok := n.X.(*ast.Ident); ok && slices.Contains(forbiddenCalls[names[base.Name]], n.Sel.Name) {
				report(n.Pos(), "%s.%s", base.Name, n.Sel.Name)
			}
		}
		return true
	})
	return findings
}

// TestNondeterminismIsFound shows that the check above has teeth.
func TestNondeterminismIsFound(t *testing.T) {
	const source = `package p

import (
	clock "time"
	"crypto/rand"
	"math/rand/v2"
)

var now = clock.Now

func f() {
	go f()
	<-clock.After(clock.Second)
}
`
	findings := nondeterminism(t, "p.go", source)
	require.Equal(t, []string{
		"p.go:5:2: imports crypto/rand",
		"p.go:6:2: imports math/rand/v2",
		"p.go:9:11: clock.Now",
		"p.go:12:2: go statement",
		"p.go:13:4: clock.After",
	}, findings)
}

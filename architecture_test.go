package opscore_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/opscore/opscore"

// arrows says what each of our packages may import besides the standard library: the architecture in one table.
// Ours are named by their directory; others by a path that stands for all below it.
var arrows = map[string][]string{
	".":                       {"internal/batch", "github.com/google/uuid"},
	"internal/batch":          {},
	"internal/nodes":          {"github.com/jackc/pgx/v5"},
	"sqlite":                  {".", "internal/batch", "modernc.org/sqlite", "github.com/pressly/goose/v3"},
	"postgres":                {".", "github.com/google/uuid", "github.com/jackc/pgx/v5", "github.com/pressly/goose/v3"},
	"rabbitmq":                {".", "internal/batch", "github.com/google/uuid", "github.com/rabbitmq/amqp091-go"},
	"doctor":                  {"."},
	"host":                    {".", "golang.org/x/sys/unix"},
	"dramatiq":                {".", "rabbitmq", "github.com/google/uuid", "github.com/rabbitmq/amqp091-go"},
	"storetest":               {".", "github.com/google/uuid", "pgregory.net/rapid"},
	"opscoretest":             {".", "internal/nodes", "postgres", "rabbitmq", "sqlite", "github.com/google/uuid"},
	"server":                  {".", "github.com/prometheus/client_golang"},
	"examples/quickstart":     {".", "sqlite"},
	"examples/shop":           {".", "sqlite"},
	"examples/shop/thumbnail": {},
	"cmd/opscore": {
		".", "doctor", "dramatiq", "host", "postgres", "rabbitmq", "server", "sqlite", "github.com/google/uuid", "github.com/coreos/go-systemd/v22", "github.com/spf13/cobra", "github.com/spf13/pflag", "go.yaml.in/yaml/v3",
		"github.com/agnivade/levenshtein", "golang.org/x/term", "golang.org/x/sys/unix",
	},
}

// testArrows are what tests may import besides: anything of ours, and these.
var testArrows = []string{"github.com/jackc/pgx/v5", "github.com/rabbitmq/amqp091-go", "github.com/rogpeppe/go-internal/testscript", "pgregory.net/rapid"}

func TestImports(t *testing.T) {
	wrong, err := wrongArrows(os.DirFS("."), arrows)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range wrong {
		t.Error(w)
	}
}

func TestWrongImportsAreNamed(t *testing.T) {
	tree := fstest.MapFS{
		"go.mod":            {Data: []byte("module " + module)},
		"a.go":              {Data: []byte("package a\nimport (\"fmt\"; \"github.com/google/uuid\"; \"" + module + "/sqlite\")")},
		"a_test.go":         {Data: []byte("package a\nimport (\"" + module + "/sqlite\"; \"pgregory.net/rapid\"; \"example.com/mock\")")},
		"sqlite/s.go":       {Data: []byte("package sqlite\nimport (\"" + module + "\"; \"modernc.org/sqlite/lib\"; \"modernc.org/sqlitex\")")},
		"util/u.go":         {Data: []byte("package util\nimport \"C\"")},
		"bench/go.mod":      {Data: []byte("module bench")},
		"bench/main.go":     {Data: []byte("package main\nimport \"example.com/whatever\"")},
		"a/testdata/bad.go": {Data: []byte("no Go at all")},
		".hidden/bad.go":    {Data: []byte("no Go at all")},
	}
	got, err := wrongArrows(tree, arrows)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"a.go: package . must not import sqlite",
		"a_test.go: tests must not import example.com/mock",
		"sqlite/s.go: package sqlite must not import modernc.org/sqlitex",
		"util/u.go: package util is not in the table of TestImports: say there what it may import",
	}
	if !slices.Equal(got, want) {
		t.Errorf("wrong arrows:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// wrongArrows names every import in the module's files that the table does not allow.
func wrongArrows(tree fs.FS, arrows map[string][]string) (wrong []string, err error) {
	err = eachGoFile(tree, func(name string, _ *token.FileSet, file *ast.File) {
		dir := path.Dir(name)
		allowed, known := arrows[dir]
		if !known {
			wrong = append(wrong, fmt.Sprintf("%s: package %s is not in the table of TestImports: say there what it may import", name, dir))
			return
		}
		who := "package " + dir
		if strings.HasSuffix(name, "_test.go") {
			who = "tests"
			allowed = slices.Concat(allowed, testArrows, slices.Collect(maps.Keys(arrows)))
		}
		for _, spec := range file.Imports {
			imported := importPath(spec)
			if to := shorten(imported); !mayImport(to, allowed) {
				wrong = append(wrong, fmt.Sprintf("%s: %s must not import %s", name, who, to))
			}
		}
	})
	return wrong, err
}

// shorten names our packages by their directory.
func shorten(imported string) string {
	if imported == module {
		return "."
	}
	return strings.TrimPrefix(imported, module+"/")
}

func mayImport(to string, allowed []string) bool {
	if slices.Contains(allowed, to) {
		return true
	}
	_, ours := arrows[to]
	first, _, _ := strings.Cut(to, "/")
	if !ours && !strings.Contains(first, ".") {
		return to != "C" // of the standard library: the binary is static
	}
	return !ours && slices.ContainsFunc(allowed, func(a string) bool { return strings.HasPrefix(to, a+"/") && strings.Contains(a, ".") })
}

// TestNoTestSleepsOutsideABubble keeps real time out of the tests: a sleep is either too short on a busy machine or too
// long on every other.
func TestNoTestSleepsOutsideABubble(t *testing.T) {
	err := eachGoFile(os.DirFS("."), func(name string, files *token.FileSet, file *ast.File) {
		if !strings.HasSuffix(name, "_test.go") {
			return
		}
		for _, pos := range sleepsOutsideBubbles(file) {
			t.Errorf("%s: time.Sleep outside a synctest bubble: wait for the event, or, if the function only ever runs in a bubble, "+
				"say so in its comment with the words %q", files.Position(pos), inBubble)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSleepsOutsideABubbleAreFound(t *testing.T) {
	const source = `package x

import (
	"testing"
	"testing/synctest"
	clock "time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/opscoretest"
	"github.com/opscore/opscore/storetest"
)

var harness = storetest.Harness{Pass: func() { clock.Sleep(1) }, Open: open(func() { clock.Sleep(1) })} // 13

func TestFake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock.Sleep(1)
		go func() { clock.Sleep(1) }()
	})
	opscore.Handle(h, a, func() { clock.Sleep(1) })
	opscoretest.Run(t, h, func(t *testing.T, env *opscoretest.Env) { clock.Sleep(1) })
}

// settle waits; it runs in a bubble.
func settle() { clock.Sleep(1) }

func TestReal(t *testing.T) {
	clock.Sleep(1) // 28
	t.Run("sub", func(t *testing.T) {
		nap := clock.Sleep // 30
		nap(1)
	})
	synctest.Wait()
	other.Test(t, func(t *testing.T) { clock.Sleep(1) }) // 34
	opscore.Handle(h, a, func() { clock.Sleep(1) }) // 35
}

// sleep sleeps.
func sleep() { clock.Sleep(1) } // 39
`
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "x_test.go", source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, pos := range sleepsOutsideBubbles(file) {
		got = append(got, files.Position(pos).Line)
	}
	if want := []int{13, 28, 30, 34, 35, 39}; !slices.Equal(got, want) {
		t.Errorf("sleeps found in lines %v, want %v", got, want)
	}
}

// inBubble in a function's comment says that whoever calls it is in a bubble.
const inBubble = "runs in a bubble"

// sleepsOutsideBubbles returns where the file mentions time.Sleep outside the function literals that run in fake time:
// those passed to what makes a bubble, and the handlers registered in a function that gives them to opscoretest.Run.
func sleepsOutsideBubbles(file *ast.File) (found []token.Pos) {
	clock := localName(file, "time")
	bubbles := []string{ // what runs the functions it is given in a bubble; "*" stands for all of a package
		localName(file, "testing/synctest") + ".Test",
		localName(file, module+"/opscoretest") + ".Run",
		localName(file, module+"/storetest") + ".*",
	}
	handle := localName(file, module) + ".Handle"
	handlers := false // run in a bubble in this function
	ours := func(e ast.Expr) bool {
		pkg, name := selector(e)
		return slices.Contains(bubbles, pkg+"."+name) || slices.Contains(bubbles, pkg+".*") || handlers && pkg+"."+name == handle
	}
	var visit func(ast.Node) bool
	visit = func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			handlers = calls(n, bubbles[1])
			return n.Doc == nil || !strings.Contains(strings.Join(strings.Fields(n.Doc.Text()), " "), inBubble)
		case *ast.CallExpr:
			return !ours(n.Fun) || others(n.Args, visit)
		case *ast.CompositeLit:
			return !ours(n.Type) || others(n.Elts, visit)
		case *ast.SelectorExpr:
			if pkg, name := selector(n); pkg == clock && name == "Sleep" {
				found = append(found, n.Pos())
			}
		}
		return true
	}
	ast.Inspect(file, visit)
	return found
}

// calls reports whether the function calls pkg.Name somewhere.
func calls(f *ast.FuncDecl, what string) (found bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			pkg, name := selector(call.Fun)
			found = found || pkg+"."+name == what
		}
		return !found
	})
	return found
}

// others visits those of the expressions that are not function literals, and returns false: nothing else is left to visit.
func others(of []ast.Expr, visit func(ast.Node) bool) bool {
	for _, e := range of {
		value := e
		if field, ok := e.(*ast.KeyValueExpr); ok {
			value = field.Value
		}
		if _, literal := value.(*ast.FuncLit); !literal {
			ast.Inspect(e, visit)
		}
	}
	return false
}

// selector takes pkg.Name apart; other expressions give "".
func selector(e ast.Expr) (pkg, name string) {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	return x.Name, s.Sel.Name
}

// localName is what the file calls the package that it imports from imported, or what no identifier is called.
func localName(file *ast.File, imported string) string {
	for _, spec := range file.Imports {
		if importPath(spec) != imported {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path.Base(imported)
	}
	return "(not imported)"
}

func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		panic(err) // the parser has read it
	}
	return p
}

// eachGoFile parses the files of the module at tree: not those of modules within it, of testdata and of hidden directories.
func eachGoFile(tree fs.FS, do func(name string, files *token.FileSet, file *ast.File)) error {
	return fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && name != "." {
			_, err := fs.Stat(tree, path.Join(name, "go.mod"))
			if err == nil || entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".") || strings.HasPrefix(entry.Name(), "_") {
				return fs.SkipDir
			}
		}
		if entry.IsDir() || path.Ext(name) != ".go" {
			return nil
		}
		source, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, name, source, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		do(name, files, file)
		return nil
	})
}

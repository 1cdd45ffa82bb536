package arch

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

const root = "../.."

// pkg is what "go list" says of a package.
type pkg struct {
	ImportPath, Dir, Doc string
	Imports, GoFiles     []string
	Standard             bool
}

func list(t *testing.T) map[string]*pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,Doc,Imports,GoFiles,Standard", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	pkgs := map[string]*pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := &pkg{}
		if err := d.Decode(p); err == io.EOF {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[p.ImportPath] = p
	}
}

func matches(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if base, below := strings.CutSuffix(p, "/..."); below {
			return path == base || strings.HasPrefix(path, base+"/")
		}
		return path == p
	})
}

func ours(path string) bool { return path == "concord" || strings.HasPrefix(path, "concord/") }

// chain is the shortest way over imports from a package to one that is forbidden, nil if there is none. What the
// standard library imports in turn is its own affair.
func chain(pkgs map[string]*pkg, from string, never []string) []string {
	type step struct {
		path string
		prev *step
	}
	seen := map[string]bool{from: true}
	for queue := []*step{{path: from}}; len(queue) > 0; queue = queue[1:] {
		s := queue[0]
		if s.prev != nil && matches(s.path, never) {
			var way []string
			for ; s != nil; s = s.prev {
				way = append([]string{s.path}, way...)
			}
			return way
		}
		if p := pkgs[s.path]; p != nil && !p.Standard {
			for _, i := range p.Imports {
				if !seen[i] {
					seen[i] = true
					queue = append(queue, &step{i, s})
				}
			}
		}
	}
	return nil
}

func TestImports(t *testing.T) {
	pkgs := list(t)
	for _, r := range rules {
		t.Run(r.Name, func(t *testing.T) {
			for path := range pkgs {
				if !ours(path) || !matches(path, r.Of) || matches(path, r.Except) {
					continue
				}
				never := slices.DeleteFunc(slices.Clone(r.Never), func(n string) bool { return n == path })
				if way := chain(pkgs, path, never); way != nil {
					t.Errorf("%s\n  must not be: %s", strings.Join(way, "\n  -> "), r.Why)
				}
			}
		})
	}
}

// TestPluginsDoNotKnowEachOther: what two plugins share belongs into proxy/plugin.
func TestPluginsDoNotKnowEachOther(t *testing.T) {
	const plugins = "concord/proxy/plugins/"
	pkgs := list(t)
	for path := range pkgs {
		if !strings.HasPrefix(path, plugins) || path == plugins+"all" {
			continue
		}
		for other := range pkgs {
			name, _, _ := strings.Cut(strings.TrimPrefix(path, plugins), "/")
			if !strings.HasPrefix(other, plugins) || matches(other, []string{plugins + name + "/..."}) {
				continue
			}
			if way := chain(pkgs, path, []string{other}); way != nil {
				t.Errorf("%s\n  must not be: what two plugins share belongs into proxy/plugin", strings.Join(way, " -> "))
			}
		}
	}
}

// TestRulesCatch makes sure that the walk finds what it looks for: a rule that forbids what is there must fail.
func TestRulesCatch(t *testing.T) {
	pkgs := list(t)
	if way := chain(pkgs, "concord/fsm/entity", []string{"concord/fsm/schema"}); len(way) != 2 {
		t.Errorf("direct import: %v", way)
	}
	if way := chain(pkgs, "concord/cmd/concord", []string{"concord/fsm/schema"}); len(way) < 2 {
		t.Errorf("indirect import: %v", way)
	}
	for _, r := range rules {
		for _, p := range append(slices.Clone(r.Of), r.Except...) {
			used := false
			for path := range pkgs {
				used = used || matches(path, []string{p})
			}
			dir := filepath.Join(root, strings.TrimSuffix(strings.TrimPrefix(p, "concord/"), "/..."))
			if files, err := filepath.Glob(filepath.Join(dir, "*.go")); !used && err == nil && len(files) > 0 {
				t.Errorf("%s: %s matches no package", r.Name, p)
			}
		}
	}
}

// TestDepguardAgrees keeps the linter, which tells while one types, to the same rules.
func TestDepguardAgrees(t *testing.T) {
	type deny struct{ Pkg, Desc string }
	type guard struct {
		Files []string
		Deny  []deny
	}
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct{ Rules map[string]guard }
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	want := map[string]guard{}
	for _, r := range rules {
		g := guard{}
		for _, p := range r.Of {
			g.Files = append(g.Files, "**"+glob(p))
		}
		for _, p := range r.Except {
			g.Files = append(g.Files, "!**"+glob(p))
		}
		g.Files = append(g.Files, "!$test")
		for _, n := range r.Never {
			// depguard's packages are prefixes, "$" ends an exact one.
			if exact := strings.TrimSuffix(n, "/..."); exact == n {
				n += "$"
			} else {
				n = exact
			}
			g.Deny = append(g.Deny, deny{n, r.Why})
		}
		want[r.Name] = g
	}
	if d := cmp.Diff(want, config.Linters.Settings.Depguard.Rules); d != "" {
		y, err := yaml.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("depguard's rules in .golangci.yml differ:\n%s\nthey should be:\n%s", d, y)
	}
}

// glob is the file pattern of a package pattern.
func glob(p string) string {
	dir, below := strings.CutSuffix(strings.TrimPrefix(p, "concord"), "/...")
	if below {
		return dir + "/**"
	}
	return dir + "/*.go"
}

// TestPackages: every package says what it is, no file is too long to read, nothing runs before main.
func TestPackages(t *testing.T) {
	const longest = 700
	for path, p := range list(t) {
		if !ours(path) {
			continue
		}
		generated := strings.HasPrefix(path, "concord/proto/")
		if p.Doc == "" && len(p.GoFiles) > 0 && !generated {
			t.Errorf("%s has no package comment: say what it is and what it is not", path)
		}
		for _, name := range p.GoFiles {
			file := filepath.Join(p.Dir, name)
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(src, []byte("\n")); n > longest && !generated {
				t.Errorf("%s/%s has %d lines, more than %d: cut it by concern", path, name, n, longest)
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && !generated {
					t.Errorf("%s/%s has an init function: do it in New, where a test can see it", path, name)
				}
			}
		}
	}
}

// TestTopLevel: what lies at the top is what the design names, and what a build leaves there.
func TestTopLevel(t *testing.T) {
	known := strings.Fields("admin cluster cmd deploy docs fsm proto proxy ratelimit test CONTRIBUTING.md LICENSE Makefile README.md go.mod go.sum bin dist concord gwctl")
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(known, e.Name()) {
			t.Errorf("%s does not belong at the top: find its folder, or remove it", e.Name())
		}
	}
}

// TestMachineHasNoClock: the fsm packages call nothing that differs from node to node or from run to run.
func TestMachineHasNoClock(t *testing.T) {
	forbidden := map[string]string{"time.Now": "time comes in with the command", "time.Since": "time comes in with the command", "time.After": "the machine never waits",
		"time.Sleep": "the machine never waits", "os.Getenv": "settings differ from node to node", "os.Hostname": "nodes differ"}
	for path, p := range list(t) {
		if !matches(path, []string{"concord/fsm/..."}) {
			continue
		}
		for _, name := range p.GoFiles {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok {
						if why, bad := forbidden[x.Name+"."+s.Sel.Name]; bad {
							t.Errorf("%s: %s.%s: %s", fset.Position(n.Pos()), x.Name, s.Sel.Name, why)
						}
					}
				}
				return true
			})
		}
	}
}

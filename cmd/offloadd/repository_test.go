// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/offloadd/offloadd"

// mayImport is the picture of the packages: who may import whom, tests aside.
var mayImport = map[string][]string{
	"blob":          {},
	"blob/handoff":  {"blob"},
	"handshaker":    {"blob"},
	"ktls":          {"blob"},
	"bpf":           {},
	"bpf/adversary": {},
	"ktls/ktlstest": {"blob", "ktls"},
	// It stands in for ktls.Conn, so it has its errors, and its rules for a peer's messages.
	"ktls/userspace": {"blob", "ktls"},
	"cmd/offloadd": {"blob", "blob/handoff", "handshaker", "ktls", "ktls/userspace", "bpf", "cmd/offloadd/internal/bench", "cmd/offloadd/internal/custody",
		"cmd/offloadd/internal/ledger", "cmd/offloadd/internal/signer", "cmd/offloadd/internal/token"},
	"cmd/offloadd/internal/bench":           {"blob", "handshaker", "ktls", "ktls/userspace"},
	"cmd/offloadd/internal/custody":         {},
	"cmd/offloadd/internal/ledger":          {"blob"},
	"cmd/offloadd/internal/signer":          {},
	"cmd/offloadd/internal/token":           {},
	"cmd/offloadd/internal/token/tokentest": {},
	"test/vm":                               {"test/vm/bench/result", "test/vm/watch"},
	"test/vm/bench":                         {"test/vm/bench/result"},
	"test/vm/bench/reporter":                {"test/vm/bench/result"},
	"test/vm/bench/result":                  {},
	"test/vm/watch":                         {},
}

// keyPath are the packages that secrets go through, and foreign all that these may
// import beside the standard library.
var (
	keyPath = []string{"blob", "blob/handoff", "handshaker", "ktls", "ktls/userspace", "bpf", "cmd/offloadd/internal/ledger"}
	foreign = []string{"golang.org/x/crypto/", "golang.org/x/sys/", "github.com/vishvananda/netlink", "github.com/cilium/ebpf"}
)

type goPackage struct {
	ImportPath string
	Imports    []string
}

func repositoryRoot(t *testing.T) string {
	t.Helper()
	if os.Getenv("OFFLOADD_VM_KERNEL") != "" {
		t.Skip("the repository is on the host")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestPackagesImportOnlyWhatTheDesignAllows(t *testing.T) {
	root := repositoryRoot(t)
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("package %s is not in the picture", name)
			continue
		}
		seen[name] = true
		for _, i := range p.Imports {
			if ours, ok := strings.CutPrefix(i, module+"/"); ok {
				if !slices.Contains(allowed, ours) {
					t.Errorf("%s imports %s; it may import %v", name, ours, allowed)
				}
			} else if strings.Contains(strings.Split(i, "/")[0], ".") && slices.Contains(keyPath, name) && !hasAnyPrefix(i, foreign) {
				t.Errorf("%s is in the key path and imports %s", name, i)
			}
		}
	}
	for name := range mayImport {
		if !seen[name] {
			t.Errorf("package %s of the picture does not exist", name)
		}
	}
}

// TestKeysAreInstalledOnlyOutOfTheLedger: in the daemon, what ktls.Install takes comes
// from Take of an entry in the same function, and nothing else; and an attendant with
// custody enters the next keys.
func TestKeysAreInstalledOnlyOutOfTheLedger(t *testing.T) {
	root := repositoryRoot(t)
	files, err := filepath.Glob(filepath.Join(root, "cmd/offloadd/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	installs, attendants, parked := 0, 0, 0
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			taken := map[string]bool{}
			ast.Inspect(decl, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.AssignStmt:
					fromLedger := len(n.Rhs) == 1 && calledName(n.Rhs[0]) == "entered.Take"
					for _, left := range n.Lhs {
						if name, ok := left.(*ast.Ident); ok {
							taken[name.Name] = fromLedger
						}
					}
				case *ast.CallExpr:
					if calledName(n) == "ktls.NewAttendant" {
						attendants++
						if enter, ok := n.Args[3].(*ast.SelectorExpr); !isNil(n.Args[1]) && (!ok || enter.Sel.Name != "EnterNext") {
							t.Errorf("%s: ktls.NewAttendant gets custody and no ledger", path)
						}
					}
					name := calledName(n)
					if strings.HasSuffix(name, ".Attend") {
						if enter, ok := n.Args[0].(*ast.SelectorExpr); !ok || enter.Sel.Name != "EnterNext" {
							t.Errorf("%s: a parked attendant goes on without ledger", path)
						}
						parked++
					}
					if !strings.HasPrefix(name, "ktls.Install") && !strings.HasSuffix(name, ".Install") && !strings.HasSuffix(name, ".InstallKeeping") {
						break
					}
					installs++
					for _, arg := range n.Args[1:] {
						if name, ok := arg.(*ast.Ident); !ok || !taken[name.Name] {
							t.Errorf("%s: ktls.Install gets a state that did not come out of entered.Take", path)
						}
					}
				}
				return true
			})
		}
	}
	if installs == 0 || attendants == 0 || parked == 0 {
		t.Error("nobody calls Install, ktls.NewAttendant or Attend: this test looks in the wrong place")
	}
}

func isNil(e ast.Expr) bool {
	name, ok := e.(*ast.Ident)
	return ok && name.Name == "nil"
}

// calledName is "x.f" for the calls x.f(...) and y.x.f(...), and else empty.
func calledName(e ast.Expr) string {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return ""
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	switch x := f.X.(type) {
	case *ast.Ident:
		return x.Name + "." + f.Sel.Name
	case *ast.SelectorExpr:
		return x.Sel.Name + "." + f.Sel.Name
	}
	return ""
}

func hasAnyPrefix(s string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// TestGoFilesKeepTheRules: gofmt, the licence line, and system calls only in files
// ending in _linux.go, where the key path is concerned.
func TestGoFilesKeepTheRules(t *testing.T) {
	root := repositoryRoot(t)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if formatted, err := format.Source(text); err != nil || !bytes.Equal(formatted, text) {
			t.Errorf("%s is not gofmt's: %v", name, err)
		}
		if !bytes.HasPrefix(text, []byte("// SPDX-License-Identifier: Apache-2.0\n")) {
			t.Errorf("%s has no licence line", name)
		}
		dir := filepath.ToSlash(filepath.Dir(name))
		if !slices.Contains(keyPath, dir) || strings.HasSuffix(path, "_linux.go") || strings.HasSuffix(path, "_linux_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range file.Imports {
			imported, _ := strconv.Unquote(i.Path.Value)
			if imported == "golang.org/x/sys/unix" || imported == "unsafe" && !strings.HasSuffix(path, "_test.go") {
				t.Errorf("%s imports %s; that belongs into a file ending in _linux.go", name, imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// testName matches the name of a test in a document.
var testName = regexp.MustCompile("`((?:Test|Fuzz)[A-Z][A-Za-z0-9]*)`")

// TestDocumentsNameTestsThatExist: a claim that names its test is worth as much as the
// test.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	root := repositoryRoot(t)
	var code, documents strings.Builder
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		into := &documents
		switch {
		case err != nil || entry.IsDir():
			return err
		case strings.HasSuffix(path, "_test.go"):
			into = &code
		case !strings.HasSuffix(path, ".md"):
			return nil
		}
		text, err := os.ReadFile(path)
		into.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := testName.FindAllStringSubmatch(documents.String(), -1)
	if len(named) == 0 {
		t.Error("no document names a test")
	}
	for _, match := range named {
		if !strings.Contains(code.String(), "\nfunc "+match[1]+"(") {
			t.Errorf("a document names %s, which does not exist", match[1])
		}
	}
}

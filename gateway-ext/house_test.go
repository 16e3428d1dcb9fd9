package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The rules of the house, held by tests: who may import whom, that every package
// says what it is for, and what has no place in any file.

const (
	ourModule = "github.com/seed-780dceda/thicket/"
	inside    = "gateway-ext/internal/"
)

// house says what each package of the gateway may import of this module, beside
// itself: packages of one level don't know each other. What one needs sideways
// it declares as an interface of its own, and main passes the thing. A new
// package needs a noun of docs/architecture.md and a line here.
var house = func() map[string][]string {
	words := []string{inside + "faas"}
	parts := []string{inside + "discovery", inside + "provider", inside + "image", inside + "state", inside + "placement"}
	below := append(slices.Clone(words), parts...)
	return map[string][]string{
		"faas":  nil, // the words import nothing of ours
		"http1": nil, // nor does what speaks HTTP

		"doctor": nil, // what it is to look at, main tells it

		"discovery": words, "provider": words, "image": append(slices.Clone(words), "functions/spelling"), "state": words, "placement": words,

		// What a breaker is, and which policies are sound, is written once.
		"fleet": append(slices.Clone(below), "functions/resilience", "functions/spelling"),
		"nodes": below,
		"queue": below,
		"proxy": append(slices.Clone(below), inside+"http1", "functions/balance", "functions/spelling", "functions/resilience", "functions/stale"),

		"cache": {"functions/stale"}, // the scripts that its server must know

		// What a function that calls others directly is told, is written once.
		"api": append(slices.Clone(words), "functions/resilience", "functions/discovery"),
		"ui":  words, // the rest is in small interfaces that they declare
	}
}()

// goPackage is what "go list" tells of a package.
type goPackage struct {
	ImportPath, Doc                    string
	GoFiles                            []string
	Imports, TestImports, XTestImports []string
}

// ourPackages lists the packages of this module.
var ourPackages = sync.OnceValues(func() (list []goPackage, err error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,GoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = errors.New(string(exit.Stderr))
		}
		return nil, err
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
})

func listed(t *testing.T) []goPackage {
	t.Helper()
	list, err := ourPackages()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	if len(list) < 10 {
		t.Fatalf("go list found %d packages, which can't be all", len(list))
	}
	return list
}

func TestImportGraph(t *testing.T) {
	for _, p := range listed(t) {
		name := strings.TrimPrefix(p.ImportPath, ourModule)
		for _, imported := range p.Imports {
			checkImport(t, name, imported, false)
		}
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			checkImport(t, name, imported, true)
		}
	}
}

// checkImport fails if name, a package of ours, may not import another.
func checkImport(t *testing.T, name, imported string, test bool) {
	t.Helper()
	imported, ours := strings.CutPrefix(imported, ourModule)
	helper := strings.HasSuffix(imported, "test") // providertest: the contract's suite
	switch {
	case !ours || isWithin(name, imported):
		return
	case helper && !test && !strings.HasSuffix(name, "test"):
		t.Errorf("%s imports %s, which is for tests", name, imported)
	case name == "gateway-ext", name == "gateway-ext/bench/alone": // main wires everything; the other is its way of a request alone
		return
	case strings.HasPrefix(name, inside):
		part, _, _ := strings.Cut(strings.TrimPrefix(name, inside), "/")
		allowed, known := house[part]
		if !known {
			t.Errorf("%s has no place in the house", name)
			return
		}
		if test && (strings.HasPrefix(imported, "template") || strings.HasPrefix(imported, inside+"provider")) {
			return // images are tested with our own template, observers against their interface
		}
		allowed = slices.Concat(allowed, []string{inside + part})
		if !slices.ContainsFunc(allowed, func(a string) bool { return isWithin(imported, a) }) {
			t.Errorf("%s imports %s: it may import %q", name, imported, allowed)
		}
	case strings.HasPrefix(name, "functions/"):
		if !isWithin(imported, "functions") {
			t.Errorf("%s imports %s: a function knows nothing of the gateway that runs it", name, imported)
		}
	case test: // what is outside the gateway may be tested with it
		return
	default:
		t.Errorf("%s imports %s: what is neither the gateway nor a function imports nothing of ours", name, imported)
	}
}

// isWithin says whether p is the package dir or below it.
func isWithin(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func TestPackageDocs(t *testing.T) {
	for _, p := range listed(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no doc comment: say what it decides, what it promises, and what it leaves to others", p.ImportPath)
		}
	}
}

// TestFiles looks for what has no place in any file of the repository: paths of
// somebody's machine, and work that was put off.
func TestFiles(t *testing.T) {
	list := exec.Command("git", "ls-files", "-z")
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Skip("not a checkout of the repository:", err)
	}
	forbidden := regexp.MustCompile(`\b(?:TODO|FIXME|XXX|HACK)\b|(?:^|[^\w.}])/(?:root|home|Users)/[\w.-]+`)
	// Homes inside images, the one of every Raspberry Pi, and "root" below /proc.
	allowed := regexp.MustCompile(`/(?:home/app|home/pi|root/\.cache|root/var)$`)
	self := "gateway-ext/house_test.go"
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join("..", name))
		if errors.Is(err, os.ErrNotExist) || name == self {
			continue // deleted, and not yet committed so
		}
		if err != nil {
			t.Error(err)
			continue
		}
		if bytes.IndexByte(content[:min(len(content), 8000)], 0) >= 0 {
			continue // not text
		}
		for i, line := range strings.Split(string(content), "\n") {
			for _, found := range forbidden.FindAllString(line, -1) {
				if !allowed.MatchString(found) {
					t.Errorf("%s:%d: %q has no place here", name, i+1, found)
				}
			}
		}
	}
}

package image

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/drone/envsubst"
	"github.com/openfaas/go-sdk/stack"
	"gopkg.in/yaml.v3"

	"github.com/seed-780dceda/thicket/functions/spelling"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// The bounds on a stack file. A thousand functions of thirty lines each are far
// inside both.
const (
	maxStackBytes = 4 << 20
	maxStackNodes = 1 << 20 // values looked at, those behind YAML aliases each time anew
	maxMistakes   = 50      // reported at once; who has more has the wrong file
)

// Stack is a stack file as OpenFaaS clients understand it, and where it was read.
type Stack struct {
	stack.Services

	Path string // of the file
	Dir  string // of the file: handlers and copied paths are relative to it
}

// Names returns the functions' names in order.
func (s *Stack) Names() []string { return slices.Sorted(maps.Keys(s.Functions)) }

// BuildConfig returns what [Build] needs to know to build one of the stack's
// functions, or an [faas.ErrNotFound].
func (s *Stack) BuildConfig(name string) (BuildConfig, error) {
	f, ok := s.Functions[name]
	if !ok {
		return BuildConfig{}, faas.Errorf(faas.ErrNotFound, "%s has no function %q, it has: %s",
			s.Path, name, strings.Join(s.Names(), ", "))
	}
	return BuildConfig{
		Name:     name,
		Function: f,
		Dir:      s.Dir,
		Copy:     s.StackConfiguration.CopyExtraPaths,
	}, nil
}

// ReadStack reads a stack file. An empty path means stack.yaml or, if there is
// none, stack.yml in the current folder, as for faas-cli. The variables in it
// (${NAME}, ${NAME:-default}) are replaced by what getenv says of them.
//
// Where faas-cli ignores what it doesn't know, ReadStack refuses it: a key that
// is misspelt, a value of the wrong type or a name that no function can have is
// an [faas.ErrInvalid] that says file, line and what was probably meant, all
// mistakes of the file at once, one a line.
func ReadStack(path string, getenv func(string) string) (*Stack, error) {
	if path == "" {
		path = "stack.yaml"
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			path = "stack.yml"
		}
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, faas.Errorf(faas.ErrNotFound, "there is no stack file %s here: name one with -f, or make a function with: faas-cli new --lang %s NAME", path, goTemplate)
	case err != nil:
		return nil, fmt.Errorf("read the stack file: %w", err)
	case info.IsDir():
		return nil, faas.Errorf(faas.ErrInvalid, "%s is a folder: name the stack file in it, as in -f %s", path, filepath.Join(path, "stack.yml"))
	case info.Size() > maxStackBytes:
		return nil, faas.Errorf(faas.ErrTooLarge, "%s has %d bytes, a stack file has at most %d", path, info.Size(), maxStackBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the stack file: %w", err)
	}
	s, err := ParseStack(path, data, getenv)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("read the stack file: %w", err)
	}
	s.Dir = dir
	return s, nil
}

// ParseStack is [ReadStack] of bytes that have been read already; path is what
// errors call them. Dir is left empty.
func ParseStack(path string, data []byte, getenv func(string) string) (*Stack, error) {
	c := &stackChecker{file: filepath.Base(path)}
	text, err := substitute(string(data), getenv)
	if err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "%s: a variable is written wrongly: %v; write ${NAME} or ${NAME:-default}, and $$ for a plain $", c.file, err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return nil, c.syntax(err)
	}
	if doc.Kind == 0 || len(doc.Content) == 0 {
		return nil, faas.Errorf(faas.ErrInvalid, "%s is empty: it needs \"provider\" and \"functions\"", c.file)
	}
	root := doc.Content[0]
	c.check(root, reflect.TypeFor[stack.Services](), "")
	if len(c.mistakes) > 0 {
		return nil, c.err()
	}
	s := &Stack{Path: path}
	if err := doc.Decode(&s.Services); err != nil {
		return nil, c.syntax(err)
	}
	c.meaning(root, &s.Services)
	if len(c.mistakes) > 0 {
		return nil, c.err()
	}
	for name, f := range s.Functions {
		f.Name = name
		s.Functions[name] = f
	}
	return s, nil
}

// substitute replaces variables as faas-cli does, with the same library. It
// panics on some malformed expressions, which are the file's fault.
func substitute(text string, getenv func(string) string) (out string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return envsubst.Eval(text, getenv)
}

// stackChecker collects the mistakes of one stack file.
type stackChecker struct {
	file     string
	nodes    int
	mistakes []mistake
}

type mistake struct {
	line int
	text string
}

func (c *stackChecker) add(line int, path, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if path != "" {
		text = path + ": " + text
	}
	c.mistakes = append(c.mistakes, mistake{line, text})
}

func (c *stackChecker) err() error {
	slices.SortStableFunc(c.mistakes, func(a, b mistake) int { return cmp.Compare(a.line, b.line) })
	var b strings.Builder
	for i, m := range c.mistakes {
		if i > 0 {
			b.WriteByte('\n')
		}
		if i == maxMistakes {
			fmt.Fprintf(&b, "%s: and %d more mistakes", c.file, len(c.mistakes)-i)
			break
		}
		fmt.Fprintf(&b, "%s:%d: %s", c.file, m.line, m.text)
	}
	return faas.Errorf(faas.ErrInvalid, "%s", b.String())
}

// The one place where the text of yaml.v3's errors is read: it has no other way
// to tell the line. https://github.com/go-yaml/yaml/issues/108
var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?line (\d+): (?s:(.*))$`)

func (c *stackChecker) syntax(err error) error {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			return faas.Errorf(faas.ErrInvalid, "%s:%d: this is not YAML: %s", c.file, line, m[2])
		}
	}
	return faas.Errorf(faas.ErrInvalid, "%s: this is not YAML: %s", c.file, strings.TrimPrefix(text, "yaml: "))
}

// check compares a value with the type that go-sdk reads it into, so that the
// keys known here are those the clients know. The types don't recurse, which
// bounds the depth.
func (c *stackChecker) check(n *yaml.Node, t reflect.Type, path string) {
	if c.nodes++; c.nodes > maxStackNodes {
		if c.nodes == maxStackNodes+1 {
			c.add(n.Line, path, "the file refers to itself too often: use fewer aliases (*name)")
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return // a key with nothing behind it is as good as none
	}
	want, ok := "", true
	switch t.Kind() {
	case reflect.Struct:
		want, ok = "keys with values", n.Kind == yaml.MappingNode
		if ok {
			c.mapping(n, path, fields(t), nil)
		}
	case reflect.Map:
		want, ok = "keys with values", n.Kind == yaml.MappingNode
		if ok {
			c.mapping(n, path, nil, t.Elem())
		}
	case reflect.Slice:
		want, ok = "a list (lines that begin with \"- \")", n.Kind == yaml.SequenceNode
		if ok {
			for i, item := range n.Content {
				c.check(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
			}
		}
	case reflect.Bool:
		var b bool
		want, ok = "true or false", n.Kind == yaml.ScalarNode && n.Decode(&b) == nil
	default:
		want, ok = "text", n.Kind == yaml.ScalarNode
	}
	if !ok {
		c.add(n.Line, path, "this is %s, it should be %s", describe(n), want)
	}
}

// mapping checks keys and values: of a struct if known is given, else of a map
// whose values are all of one type.
func (c *stackChecker) mapping(n *yaml.Node, path string, known map[string]reflect.Type, elem reflect.Type) {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			c.add(key.Line, path, "a key is %s, it should be text", describe(key))
			continue
		}
		if key.ShortTag() == "!!merge" {
			c.merge(value, path, known, elem)
			continue
		}
		if line, twice := seen[key.Value]; twice {
			c.add(key.Line, path, "the key %q is already in line %d", key.Value, line)
			continue
		}
		seen[key.Value] = key.Line
		t, ok := elem, elem != nil
		if !ok {
			t, ok = known[key.Value]
		}
		switch {
		case ok:
			c.check(value, t, join(path, key.Value))
		case path == "" && strings.HasPrefix(key.Value, "x-"):
			// A place for anchors, as in other tools' files.
		case path == "provider" && key.Value == "network":
			// Old stack files have it; no client looks at it any more.
		default:
			c.add(key.Line, path, "unknown key %q%s", key.Value, meant(key.Value, slices.Sorted(maps.Keys(known))))
		}
	}
}

// merge checks what "<<:" brings in: a mapping, or a list of them.
func (c *stackChecker) merge(n *yaml.Node, path string, known map[string]reflect.Type, elem reflect.Type) {
	if c.nodes++; c.nodes > maxStackNodes {
		return
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	parts := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		parts = n.Content
	}
	for _, p := range parts {
		if p.Kind == yaml.AliasNode {
			p = p.Alias
		}
		if p.Kind != yaml.MappingNode {
			c.add(p.Line, path, "what \"<<\" brings in is %s, it should be keys with values", describe(p))
			continue
		}
		for i := 1; i < len(p.Content); i += 2 {
			if p.Content[i-1].ShortTag() == "!!merge" {
				c.add(p.Content[i-1].Line, path, "\"<<\" inside of what another \"<<\" brings in is one too many: merge both here")
				return
			}
		}
		c.mapping(p, path, known, elem)
	}
}

// meaning checks what types can't say.
func (c *stackChecker) meaning(root *yaml.Node, s *stack.Services) {
	if s.Provider.Name != "openfaas" {
		c.add(at(root, "provider", "name"), "provider.name", "is %q, write \"openfaas\", the only one clients know", s.Provider.Name)
	}
	if s.Version != "" && !stack.IsValidSchemaVersion(s.Version) {
		c.add(at(root, "version"), "version", "is %q, write %q", s.Version, stack.ValidSchemaVersions[0])
	}
	if len(s.Functions) == 0 {
		c.add(at(root, "functions"), "functions", "there is none: a stack file declares at least one function")
	}
	for i, p := range s.StackConfiguration.CopyExtraPaths {
		if clean := filepath.Clean(p); clean == "." || !filepath.IsLocal(clean) {
			c.add(at(root, "configuration", "copy"), fmt.Sprintf("configuration.copy[%d]", i), "%q must be a file or folder below the stack file's own folder", p)
		}
	}
	for name, f := range s.Functions {
		path := "functions." + name
		add := func(key, format string, args ...any) {
			if key == "" {
				c.add(at(root, "functions", name), path, format, args...)
				return
			}
			c.add(at(root, "functions", name, key), join(path, key), format, args...)
		}
		if err := faas.CheckLabel("the function's name", name); err != nil {
			add("", "%v", err)
		}
		if f.Namespace != "" {
			if err := faas.CheckLabel("the namespace", f.Namespace); err != nil {
				add("namespace", "%v", err)
			}
		}
		if f.Image == "" {
			add("", "there is no \"image\": name the image it is built to or run from, as in image: 127.0.0.1:8080/%s:latest", name)
		} else if err := faas.CheckImage(f.Image); err != nil {
			add("image", "%v", err)
		}
		checkDeployment(deployment(name, f), add)
		if !f.SkipBuild {
			if f.Language == "" {
				add("", "there is no \"lang\": write the name of a template (as in lang: %s), or skip_build: true if the image exists already", goTemplate)
			}
			if f.Handler == "" {
				add("", "there is no \"handler\": name the folder with the function's code, or write skip_build: true if the image exists already")
			}
		}
		if _, err := ParsePlatforms(f.Platforms); err != nil {
			add("platforms", "%v", err)
		}
	}
}

// at returns the line of the key at a path, or of what is nearest above it.
func at(n *yaml.Node, path ...string) int {
	line := n.Line
	for _, want := range path {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		found := false
		for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
			if n.Content[i].Value == want {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
				break
			}
		}
		if !found {
			return line
		}
	}
	return line
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a group of keys"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!bool":
		return "the switch " + n.Value
	}
	return fmt.Sprintf("the text %.60q", n.Value)
}

// fields returns the keys that yaml reads into a struct.
func fields(t reflect.Type) map[string]reflect.Type {
	keys := make(map[string]reflect.Type, t.NumField())
	for field := range t.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if name != "-" {
			keys[cmp.Or(name, strings.ToLower(field.Name))] = field.Type
		}
	}
	return keys
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// meant returns ", did you mean …?" with the known key nearest to what was
// written, or the list of known keys if none is near.
func meant(wrote string, known []string) string {
	if len(wrote) > 64 { // no known key is half as long, and distance is quadratic
		return ""
	}
	far, at := max(2, len(wrote)/3), ""
	plain := strings.NewReplacer("-", "", "_", "")
	for _, k := range known {
		d := spelling.Distance(strings.ToLower(plain.Replace(wrote)), strings.ToLower(plain.Replace(k)), far)
		if d <= far {
			far, at = d-1, k
		}
	}
	if at == "" {
		return ", known are: " + strings.Join(known, ", ")
	}
	return fmt.Sprintf(", did you mean %q?", at)
}

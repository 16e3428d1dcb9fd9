package image_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

const goodStack = `version: 1.0
provider:
  name: openfaas
  gateway: http://127.0.0.1:8080
  network: func_functions
x-common: &common
  lang: golang-resilient
  labels: &labels
    com.openfaas.scale.min: "1"
functions:
  hello:
    <<: *common
    handler: ./hello
    image: ${REGISTRY:-127.0.0.1:8080}/hello:latest
    environment:
      write_timeout: 10s
      retries: 3
      verbose: true
      empty:
    environment_file: [env.yml]
    secrets:
      - key
    limits:
      memory: 64Mi
      cpu: 1
    readonly_root_filesystem: true
    platforms: linux/amd64,linux/arm64
    build_args:
      HANDLER: hello
  env:
    image: ghcr.io/openfaas/alpine:latest
    skip_build: true
    labels: *labels
configuration:
  templates:
    - name: golang-resilient
      source: https://example.com/thicket
  copy: [go.mod, ./shared]
`

func none(string) string { return "" }

func TestReadStack(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"stack.yml": goodStack})
	getenv := func(name string) string { return map[string]string{"REGISTRY": "nas.lan:5000"}[name] }
	s, err := image.ReadStack(filepath.Join(dir, "stack.yml"), getenv)
	if err != nil {
		t.Fatal(err)
	}
	if s.Dir != dir || !slices.Equal(s.Names(), []string{"env", "hello"}) || s.Provider.GatewayURL != "http://127.0.0.1:8080" {
		t.Errorf("stack = %+v", s)
	}
	f := s.Functions["hello"]
	if f.Name != "hello" || f.Language != "golang-resilient" || f.Image != "nas.lan:5000/hello:latest" || f.Limits.CPU != "1" ||
		f.Environment["retries"] != "3" || f.Environment["verbose"] != "true" || (*s.Functions["env"].Labels)["com.openfaas.scale.min"] != "1" {
		t.Errorf("hello = %+v", f)
	}
	cfg, err := s.BuildConfig("hello")
	if err != nil || cfg.Name != "hello" || cfg.Dir != dir || !slices.Equal(cfg.Copy, []string{"go.mod", "./shared"}) {
		t.Errorf("BuildConfig() = %+v, %v", cfg, err)
	}
	if _, err := s.BuildConfig("helo"); !errors.Is(err, faas.ErrNotFound) || !strings.Contains(err.Error(), "env, hello") {
		t.Errorf("BuildConfig(helo) = %v, want the names there are", err)
	}
	if s, err := image.ParseStack("stack.yml", []byte(goodStack), none); err != nil || s.Functions["hello"].Image != "127.0.0.1:8080/hello:latest" {
		t.Errorf("without the variable: %v, %v, want its default", s, err)
	}
}

func TestDeployment(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"stack.yml":                              goodStack,
		"env.yml":                                "environment:\n  retries: 5\n  more: 1\n",
		"template/golang-resilient/template.yml": "language: golang-resilient\nfprocess: /function\n",
	})
	s, err := image.ReadStack(filepath.Join(dir, "stack.yml"), none)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Deployment("hello")
	if err != nil {
		t.Fatal(err)
	}
	want := types.FunctionDeployment{
		Service: "hello", Image: "127.0.0.1:8080/hello:latest", EnvProcess: "/function",
		EnvVars:                map[string]string{"write_timeout": "10s", "retries": "5", "verbose": "true", "empty": "", "more": "1"},
		Secrets:                []string{"key"},
		Labels:                 &map[string]string{"com.openfaas.scale.min": "1"},
		Limits:                 &types.FunctionResources{Memory: "64Mi", CPU: "1"},
		ReadOnlyRootFilesystem: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Deployment() =\n%+v, want\n%+v", got, want)
	}
	if s.Functions["hello"].Environment["retries"] != "3" {
		t.Error("Deployment() has changed the stack")
	}
	write(t, dir, map[string]string{"env.yml": "environment: 3\n"})
	if _, err := s.Deployment("hello"); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "functions.hello.environment_file") {
		t.Errorf("Deployment() = %v, want which file is wrong", err)
	}
	if _, err := s.Deployment("helo"); !errors.Is(err, faas.ErrNotFound) {
		t.Errorf("Deployment(helo) = %v, want not found", err)
	}
}

func TestReadStackFindsItsFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, err := image.ReadStack("", none); !errors.Is(err, faas.ErrNotFound) || !strings.Contains(err.Error(), "there is no stack file stack.yml here: name one with -f") {
		t.Errorf("ReadStack() = %v, want what to do", err)
	}
	write(t, ".", map[string]string{"stack.yml": goodStack})
	if s, err := image.ReadStack("", none); err != nil || s.Path != "stack.yml" {
		t.Errorf("ReadStack() = %v, %v, want stack.yml", s, err)
	}
	write(t, ".", map[string]string{"stack.yaml": goodStack})
	if s, err := image.ReadStack("", none); err != nil || s.Path != "stack.yaml" {
		t.Errorf("ReadStack() = %v, %v, want stack.yaml to go first", s, err)
	}
	if _, err := image.ReadStack(".", none); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("ReadStack(.) = %v, want that it is a folder", err)
	}
	if err := os.Truncate("stack.yml", 1<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := image.ReadStack("stack.yml", none); !errors.Is(err, faas.ErrTooLarge) {
		t.Errorf("ReadStack() of a gigabyte = %v, want too large", err)
	}
}

func TestStackMistakes(t *testing.T) {
	const head = "provider:\n  name: openfaas\n" // two lines
	const hello = "functions:\n  hello:\n    lang: golang-resilient\n    handler: ./hello\n    image: hello:latest\n"
	tests := []struct {
		name, text string
		want       []string // all lines of the error
	}{
		{"unknown key", head + hello + "    enviroment:\n      a: b\n", []string{
			`stack.yml:8: functions.hello: unknown key "enviroment", did you mean "environment"?`,
		}},
		{"unknown key with another dash", head + hello + "    build-args:\n      a: b\n", []string{
			`stack.yml:8: functions.hello: unknown key "build-args", did you mean "build_args"?`,
		}},
		{"unknown key like none", head + hello + "    limits:\n      bananas: 3\n", []string{
			`stack.yml:9: functions.hello.limits: unknown key "bananas", known are: cpu, memory`,
		}},
		{"unknown key at the top", head + "function:\n" + hello, []string{
			`stack.yml:3: unknown key "function", did you mean "functions"?`,
		}},
		{"wrong types", head + hello + "    environment: [a]\n    secrets: key\n    skip_build: maybe\n    fprocess: {a: b}\n    labels: 3\n", []string{
			`stack.yml:8: functions.hello.environment: this is a list, it should be keys with values`,
			`stack.yml:9: functions.hello.secrets: this is the text "key", it should be a list (lines that begin with "- ")`,
			`stack.yml:10: functions.hello.skip_build: this is the text "maybe", it should be true or false`,
			`stack.yml:11: functions.hello.fprocess: this is a group of keys, it should be text`,
			`stack.yml:12: functions.hello.labels: this is the number 3, it should be keys with values`,
		}},
		{"a key twice", head + hello + "    image: again\n", []string{
			`stack.yml:8: functions.hello: the key "image" is already in line 7`,
		}},
		{"behind an alias", head + "x-a: &a\n  imge: x\n" + hello + "    <<: *a\n", []string{
			`stack.yml:4: functions.hello: unknown key "imge", did you mean "image"?`,
		}},
		{"names", head + "functions:\n  Hello_World:\n    skip_build: true\n    image: x\n    namespace: a.b\n", []string{
			`stack.yml:4: functions.Hello_World: the function's name "Hello_World" is not a DNS label: use a-z, 0-9 and "-" (not first or last)`,
			`stack.yml:7: functions.Hello_World.namespace: the namespace "a.b" is not a DNS label: use a-z, 0-9 and "-" (not first or last)`,
		}},
		{"what is missing", head + "functions:\n  hello:\n", []string{
			`stack.yml:4: functions.hello: there is no "image": name the image it is built to or run from, as in image: 127.0.0.1:8080/hello:latest`,
			`stack.yml:4: functions.hello: there is no "lang": write the name of a template (as in lang: golang-resilient), or skip_build: true if the image exists already`,
			`stack.yml:4: functions.hello: there is no "handler": name the folder with the function's code, or write skip_build: true if the image exists already`,
		}},
		{"what no function can have", head + hello + "    limits:\n      memory: lots\n    secrets: [\"a b\"]\n    environment:\n      \"a=b\": c\n", []string{
			`stack.yml:8: functions.hello.limits: limits.memory: quantity "lots" has no number; write for example "128Mi" or "1Gi"`,
			`stack.yml:10: functions.hello.secrets: secret name "a b" is not a DNS name: use a-z, 0-9 and "-" (not first or last), in parts of at most 63 joined by "."`,
			`stack.yml:11: functions.hello.environment: envVars: "a=b" can't be the name of an environment variable: use letters, digits and "_"`,
		}},
		{"platforms", head + hello + "    platforms: linux/amd46\n", []string{
			`stack.yml:8: functions.hello.platforms: "linux/amd46" is not a platform that can be built for, write some of: linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6,linux/arm/v5,linux/386,linux/riscv64,linux/ppc64le,linux/s390x,linux/loong64`,
		}},
		{"copied paths", head + hello + "configuration:\n  copy: [../x, .]\n", []string{
			`stack.yml:9: configuration.copy[0]: "../x" must be a file or folder below the stack file's own folder`,
			`stack.yml:9: configuration.copy[1]: "." must be a file or folder below the stack file's own folder`,
		}},
		{"another provider", "provider:\n  name: faas\n" + hello, []string{
			`stack.yml:2: provider.name: is "faas", write "openfaas", the only one clients know`,
		}},
		{"another version", "version: 2\n" + head + hello, []string{
			`stack.yml:1: version: is "2", write "1.0"`,
		}},
		{"no functions", head, []string{
			`stack.yml:1: functions: there is none: a stack file declares at least one function`,
		}},
		{"a list", "- a\n", []string{`stack.yml:1: this is a list, it should be keys with values`}},
		{"empty", "# nothing\n", []string{`stack.yml is empty: it needs "provider" and "functions"`}},
		{"not YAML", head + "functions: [\n", []string{`stack.yml:3: this is not YAML: did not find expected node content`}},
		{"a variable", head + "functions: ${A\n", []string{
			"stack.yml: a variable is written wrongly: missing closing brace; write ${NAME} or ${NAME:-default}, and $$ for a plain $",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := image.ParseStack("some/where/stack.yml", []byte(tt.text), none)
			if !errors.Is(err, faas.ErrInvalid) {
				t.Fatalf("ParseStack() = %v, want invalid", err)
			}
			if got := strings.Split(err.Error(), "\n"); !slices.Equal(got, tt.want) {
				t.Errorf("ParseStack() =\n%s\nwant\n%s", err, strings.Join(tt.want, "\n"))
			}
		})
	}
}

// A small file that refers to itself over and over is refused, not expanded.
func TestStackBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("x-0: &a0 {a: b}\n")
	for i := range 20 {
		fmt.Fprintf(&b, "x-%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
	}
	b.WriteString("provider: {name: openfaas}\nfunctions: {a: {image: x, skip_build: true, secrets: *a20, constraints: *a20}}\n")
	if _, err := image.ParseStack("stack.yml", []byte(b.String()), none); !errors.Is(err, faas.ErrInvalid) {
		t.Errorf("ParseStack() = %v, want invalid", err)
	}
}

func FuzzReadStack(f *testing.F) {
	f.Add(goodStack)
	f.Add("provider: {name: openfaas}\nfunctions: {a: &a {<<: [*a, *a]}}\n")
	f.Add("functions: ${A:0:-1}\n")
	f.Add("? [a]\n: b\n<<: {<<: {<<: 1}}\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := image.ParseStack("stack.yml", []byte(text), func(name string) string { return name })
		if err != nil {
			if !errors.Is(err, faas.ErrInvalid) || !strings.HasPrefix(err.Error(), "stack.yml") {
				t.Errorf("ParseStack() = %v, want invalid that names the file", err)
			}
			return
		}
		for _, name := range s.Names() {
			if faas.CheckLabel("name", name) != nil || s.Functions[name].Image == "" || s.Functions[name].Name != name {
				t.Errorf("accepted function %q: %+v", name, s.Functions[name])
			}
		}
	})
}

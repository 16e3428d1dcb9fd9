package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/openfaas"
)

// TestSettingsAreDocumented compares the settings with the README's table:
// each has a row, with its default, and each row is a setting.
func TestSettingsAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:THICKET|secret)_\\w+)` \\| (.*?) \\|").FindAllStringSubmatch(string(readme), -1) {
		rows[m[1]] = m[2]
	}
	for f := range reflect.TypeFor[settings]().Fields() {
		if !f.IsExported() {
			continue // it is not set, but follows from what is
		}
		name := f.Tag.Get("env")
		row, ok := rows[name]
		if !ok {
			t.Errorf("the README has no row for %s", name)
		}
		if value := f.Tag.Get("envDefault"); value != "" && !strings.Contains(row, "`"+value+"`") {
			t.Errorf("the README says %q of %s, whose default is %s", row, name, value)
		}
		delete(rows, name)
	}
	for name := range rows {
		t.Errorf("the README has a row for %s, which isn't a setting", name)
	}
}

func TestReadSettings(t *testing.T) {
	s, err := readSettings([]string{"HOME=/users/pi", "THICKET_REGISTRY_SIZE=1Gi", "THICKET_INSECURE_REGISTRIES=nas:5000,pi:5000", "THICKET_REGISTRY=pi:8080"})
	if err != nil {
		t.Fatal(err)
	}
	if s.RegistrySize != 1<<30 || len(s.InsecureRegistries) != 2 || s.Addr != ":8080" || s.User != "admin" {
		t.Errorf("readSettings() = %+v", s)
	}

	_, err = readSettings([]string{"THICKET_NATS_URL=http://thicket:secret@nats-1", "THICKET_NATS_PREFIX=a.b"})
	if err == nil || !strings.Contains(err.Error(), "THICKET_NATS_URL: is not the address") || !strings.Contains(err.Error(), "THICKET_NATS_PREFIX: ") || strings.Contains(err.Error(), "secret") {
		t.Errorf("readSettings() with a wrong NATS = %v", err)
	}
	if _, err = readSettings([]string{"THICKET_NATS_CA=ca.pem"}); err == nil || !strings.Contains(err.Error(), "THICKET_NATS_CA: is for") {
		t.Errorf("readSettings() with half a NATS = %v", err)
	}

	_, err = readSettings([]string{"THICKET_TIMEOUT=0s", "THICKET_MAX_BODY=-1", "THICKET_LOG_LEVEL=LOUD", "THICKET_HOLD_QUEUE=many", "THICKET_TYPO=1"})
	if err == nil {
		t.Fatal("readSettings() took five wrong settings")
	}
	for _, want := range []string{"THICKET_MAX_BODY: ", "THICKET_LOG_LEVEL: ", "THICKET_HOLD_QUEUE: ", "THICKET_TYPO: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("readSettings() = %q, want %q in it", err, want)
		}
	}
}

// TestProvidersSetting: what is no provider is refused, and no password repeated.
func TestProvidersSetting(t *testing.T) {
	s, err := readSettings([]string{"THICKET_PROVIDERS=pantry=http://admin:gehe%2Cim@192.168.1.20:8080/,cluster=https://faas.example.com/base"})
	if err != nil {
		t.Fatal(err)
	}
	all := s.providers()
	if len(all) != 2 || all[0].Name != "pantry" || all[0].Endpoint != (openfaas.Endpoint{URL: "http://192.168.1.20:8080/", User: "admin", Password: "gehe,im"}) || all[1].Endpoint.URL != "https://faas.example.com/base" {
		t.Errorf("providers() = %+v", all)
	}
	for _, tt := range []struct{ value, want string }{
		{"http://admin:geheim@192.168.1.20:8080", "one has no name: write NAME=URL"},
		{"a=192.168.1.20", "is not a provider's URL"},
		{"a=http://admin:geheim/2@192.168.1.20", "can't be read: write / as %2F"},
		{"a=ftp://admin:geheim@host", "is not a provider's URL"},
		{"A!=http://admin:geheim@host", "a node's name"},
		{"a=http://one,a=http://two", "two are called a"},
	} {
		_, err := readSettings([]string{"THICKET_PROVIDERS=" + tt.value})
		if err == nil || !strings.Contains(err.Error(), "THICKET_PROVIDERS: ") || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("readSettings(%s) = %v, want %q and no password", tt.value, err, tt.want)
		}
	}
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	generate := func() (string, string, bool, error) { return "generated", "/state/file", true, nil }
	mounted := filepath.Join(dir, "mounted")
	if err := os.Mkdir(mounted, 0o700); err != nil {
		t.Fatal(err)
	}
	file("mounted/basic-auth-user", "operator\n", 0o444)
	file("mounted/basic-auth-password", "from OpenFaaS\n", 0o444)

	for _, tt := range []struct {
		name                 string
		s                    settings
		user, password, path string
		err                  string
	}{
		{name: "variable", s: settings{User: "admin", Password: "p", SecretMountPath: mounted}, user: "admin", password: "p"},
		{name: "file", s: settings{User: "admin", PasswordFile: file("good", "p w \n", 0o600), SecretMountPath: mounted}, user: "admin", password: "p w "},
		{name: "empty file", s: settings{User: "admin", PasswordFile: file("empty", "\n", 0o600)}, err: "empty"},
		{name: "OpenFaaS's files", s: settings{User: "admin", SecretMountPath: mounted}, user: "operator", password: "from OpenFaaS"},
		{name: "none", s: settings{User: "admin", SecretMountPath: dir}, user: "admin", password: "generated", path: "/state/file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user, password, path, err := tt.s.credentials(generate)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("credentials() = %v, want an error with %q", err, tt.err)
				}
				return
			}
			if err != nil || user != tt.user || password != tt.password || path != tt.path {
				t.Errorf("credentials() = %q, %q, %q, %v, want %q, %q, %q", user, password, path, err, tt.user, tt.password, tt.path)
			}
		})
	}
}

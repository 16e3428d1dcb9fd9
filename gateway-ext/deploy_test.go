package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const deployed = "../deploy"

// install runs the install script.
func install(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	b, err := exec.CommandContext(t.Context(), filepath.Join(deployed, "systemd", "install.sh"), args...).CombinedOutput()
	return string(b), err
}

// files lists what is below a folder.
func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			list = append(list, rel)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestInstall(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the script is for Debian")
	}
	root := t.TempDir()
	for range 2 { // the second time upgrades
		if out, err := install(t, "--root", root, "--from", program); err != nil {
			t.Fatalf("install.sh: %v\n%s", err, out)
		}
	}
	if out, err := install(t, "--root", root, "--from", program, "--node", "--join", "https://nuc:8090", "--token", "thicket1.a.b", "--node-name", "pi-1", "--label", "zone=shelf"); err != nil {
		t.Fatalf("install.sh --node: %v\n%s", err, out)
	}
	want := []string{
		"etc/systemd/system/thicket-gateway.service", "etc/systemd/system/thicket-gateway.socket", "etc/systemd/system/thicket-node.service",
		"etc/thicket/gateway.env", "etc/thicket/node.env", "etc/thicket/token", "usr/local/bin/gateway-ext",
	}
	if got := files(t, root); !slices.Equal(got, want) {
		t.Errorf("installed are %v, want %v", got, want)
	}
	env := filepath.Join(root, "etc/thicket/node.env")
	b, err := os.ReadFile(env)
	if err != nil || !strings.HasSuffix(string(b), "THICKET_TOKEN_FILE=/etc/thicket/token\nNODE_ARGS=--join https://nuc:8090 --node-name pi-1 --label zone=shelf\n") {
		t.Errorf("%s is %q, %v", env, b, err)
	}
	token := filepath.Join(root, "etc/thicket/token")
	for _, path := range []string{env, token} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %v, %v: only root may read it", path, info, err)
		}
	}
	if b, err := os.ReadFile(token); err != nil || string(b) != "thicket1.a.b\n" {
		t.Errorf("the token's file holds %q, %v", b, err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := install(t, "--root", root, "--from", program, "--token-file", secret); err != nil {
		t.Fatalf("install.sh --token-file: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(root, "etc/thicket/gateway.env")); err != nil || !strings.HasSuffix(string(b), "\nTHICKET_TOKEN_FILE=/etc/thicket/token\n") {
		t.Errorf("the gateway's settings are %q, %v", b, err)
	}
	if b, err := os.ReadFile(token); err != nil || string(b) != "a secret\n" {
		t.Errorf("the token's file holds %q, %v", b, err)
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(root, "usr/local/bin/gateway-ext"), "version").CombinedOutput(); err != nil {
		t.Errorf("the installed program: %v\n%s", err, out)
	}
	if out, err := install(t, "--root", root, "--uninstall", "--purge"); err != nil || len(files(t, root)) > 0 {
		t.Errorf("install.sh --uninstall --purge: %v, left %v\n%s", err, files(t, root), out)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--nope"}, "there is no option --nope"},
		{[]string{"--join"}, "--join needs a value"},
		{[]string{"--root", root, "--purge"}, "--purge goes with --uninstall"},
		{[]string{"--root", root, "--join", "https://nuc:8090"}, "go with --node"},
		{[]string{"--root", root, "--node", "--join", "nuc"}, "https://host:8090"},
		{[]string{"--root", root, "--token-file", filepath.Join(root, "absent")}, "--token-file"},
		{[]string{"--root", filepath.Join(root, "absent")}, "there is no such folder"},
		{[]string{"--root", root, "--from", filepath.Join(root, "absent")}, "there is no such file"},
	} {
		if out, err := install(t, tt.args...); err == nil || !strings.Contains(out, tt.want) || strings.Count(out, "\n") != 1 {
			t.Errorf("install.sh %v says %q, %v, want %q", tt.args, out, err, tt.want)
		}
	}
}

// TestUnits has systemd read the units.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("this machine has no systemd-analyze")
	}
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for _, unit := range []string{"thicket-gateway.socket", "thicket-gateway.service", "thicket-node.service"} {
		b, err := os.ReadFile(filepath.Join(deployed, "systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		// It looks whether the program is there.
		path := filepath.Join(dir, unit)
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(b), "/usr/local/bin/gateway-ext", program)), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

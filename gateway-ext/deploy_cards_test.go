package main_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// userData is what these tests look at of what cloud-init reads.
type userData struct {
	Hostname string
	Files    []struct{ Path, Permissions, Content string } `yaml:"write_files"`
	Commands []string                                      `yaml:"runcmd"`
	Keys     []string                                      `yaml:"ssh_authorized_keys"`
}

func (u *userData) file(path string) (content string) {
	for _, f := range u.Files {
		if f.Path == path {
			content = f.Content
		}
	}
	return content
}

// fillCards runs the script that writes cards.
func fillCards(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	b, err := exec.CommandContext(t.Context(), filepath.Join(deployed, "faasd", "fill.sh"), args...).CombinedOutput()
	return string(b), err
}

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// TestCards writes the cards of a fleet, has cloud-init read them, and does what a
// machine does with one at its first start, but for the network.
func TestCards(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the scripts are for Debian")
	}
	release := newRelease(t)
	cards, key := filepath.Join(t.TempDir(), "cards"), filepath.Join(t.TempDir(), "id.pub")
	if err := os.WriteFile(key, []byte("ssh-ed25519 AAAA me@desk\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	faasd := []string{"--faasd-version", "0.19.7", "--faasd-commit", strings.Repeat("a", 40), "--faasd-sha256", strings.Repeat("b", 64)}
	args := append([]string{"--version", "v9.9.9", "--sums", release.sums, "--gateway", "nuc=192.168.1.2", "--node", "pi-1", "--node", "pi-2", "--faasd", "pi-6=192.168.1.16", "--ssh-key", key, "--out", cards}, faasd...)
	if out, err := fillCards(t, args...); err != nil || strings.Count(out, "\n") != 4 {
		t.Fatalf("fill.sh: %v\n%s", err, out)
	}
	read := make(map[string]*userData)
	for _, name := range []string{"nuc", "pi-1", "pi-2", "pi-6"} {
		path := filepath.Join(cards, name+".yaml")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %v, %v: it holds secrets", path, info.Mode(), err)
		}
		if strings.Contains(string(b), "FILL") {
			t.Errorf("%s has places that were not filled in:\n%s", path, b)
		}
		read[name] = new(userData)
		if err := yaml.Unmarshal(b, read[name]); err != nil || read[name].Hostname != name || len(read[name].Keys) != 1 {
			t.Errorf("%s: %v, %+v", path, err, read[name])
		}
		cloudInit(t, path)
	}
	const token, script = "/etc/thicket/token", "/usr/local/sbin/thicket-setup"
	secret := strings.TrimSpace(read["nuc"].file(token))
	if len(secret) != 64 || strings.TrimSpace(read["pi-1"].file(token)) != secret || read["pi-6"].file(token) != "" {
		t.Errorf("the secret is %q, %q, %q, want the same for gateway and nodes, and none for faasd", secret, read["pi-1"].file(token), read["pi-6"].file(token))
	}
	password := strings.TrimSpace(read["pi-6"].file("/etc/thicket/faasd-password"))
	if env := read["nuc"].file("/etc/thicket/gateway.env"); len(password) != 64 || !strings.Contains(env, "\nTHICKET_PROVIDERS=pi-6=http://admin:"+password+"@192.168.1.16:8080\n") {
		t.Errorf("the gateway's settings are %q, want the provider with its password", env)
	}
	for name, u := range read {
		if u.file(script) != read["nuc"].file(script) {
			t.Errorf("%s sets itself up in another way than nuc", name)
		}
	}

	root := release.boot(t, read["nuc"])
	env := mustRead(t, filepath.Join(root, "etc/thicket/gateway.env"))
	if !strings.Contains(env, "THICKET_NODE=nuc\n") || !strings.Contains(env, "THICKET_TOKEN_FILE=/etc/thicket/token\n") {
		t.Errorf("the gateway's settings are %q", env)
	}
	root = release.boot(t, read["pi-1"])
	env = mustRead(t, filepath.Join(root, "etc/thicket/node.env"))
	if !strings.HasSuffix(env, "\nNODE_ARGS=--join https://192.168.1.2:8090 --node-name pi-1 --replace\n") {
		t.Errorf("the node's settings are %q", env)
	}
	if got := strings.TrimSpace(mustRead(t, filepath.Join(root, token))); got != secret {
		t.Errorf("the node's secret is %q, want %q", got, secret)
	}
	// faasd can't be fetched here: that what it is called with is all right can be seen.
	line := regexp.MustCompile(`/opt/thicket/faasd/(install-faasd\.sh .*)`).FindStringSubmatch(read["pi-6"].Commands[0])
	if line == nil {
		t.Fatalf("pi-6 runs %q", read["pi-6"].Commands)
	}
	asked := exec.CommandContext(t.Context(), "sh", "-c", filepath.Join(deployed, "faasd")+"/"+strings.ReplaceAll(line[1], "/etc/thicket/faasd-password", key)+" --check")
	if out, err := asked.CombinedOutput(); err != nil && !strings.Contains(string(out), "there is no faasd for") {
		t.Errorf("install-faasd.sh --check: %v\n%s", err, out)
	}

	// A release that is another than the card says is not installed.
	release.sums = strings.Repeat("0", 64)
	other := *read["nuc"]
	for i, f := range other.Files {
		if f.Path == "/etc/thicket/setup.env" {
			other.Files[i].Content = "VERSION=v9.9.9\nSUMS_SHA256=" + release.sums + "\n"
		}
	}
	if out, err := release.setUp(t, t.TempDir(), &other); err == nil {
		t.Errorf("a release with another checksum was set up:\n%s", out)
	}
}

// TestCardsReadme runs what the README says to type, and holds the shell to the
// rest of it.
func TestCardsReadme(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the scripts are for Debian")
	}
	release, dir := newRelease(t), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(deployed, "faasd"))); err != nil {
		t.Fatal(err)
	}
	blocks := codeBlocks(mustRead(t, filepath.Join(dir, "README.md")))
	if len(blocks) < 4 || !strings.HasPrefix(blocks[0], "./fill.sh --version v0.2.0 ") {
		t.Fatalf("the README begins with %q", blocks)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(blocks[0], "v0.2.0", "v9.9.9"))
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + release.dir + ":" + os.Getenv("PATH")}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != blocks[1] {
		t.Errorf("what the README says to type: %v\n%s\nand what it says comes of it:\n%s", err, out, blocks[1])
	}
	shell := exec.CommandContext(t.Context(), "sh", "-n")
	shell.Stdin = strings.NewReader(strings.Join(blocks[2:], ""))
	if out, err := shell.CombinedOutput(); err != nil {
		t.Errorf("the shell doesn't take what the README says to type: %v\n%s", err, out)
	}
	help := make(map[string]string)
	for _, script := range []string{"fill.sh", "install-faasd.sh"} {
		b, err := exec.CommandContext(t.Context(), filepath.Join(dir, script), "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		help[script] = string(b)
	}
	for _, block := range blocks {
		for line := range strings.SplitSeq(strings.ReplaceAll(block, "\\\n", ""), "\n") {
			for script, text := range help {
				if !strings.Contains(line, script) {
					continue
				}
				for _, option := range regexp.MustCompile(` (--[a-z-0-9]+)`).FindAllStringSubmatch(line, -1) {
					if !strings.Contains(text, option[1]+" ") {
						t.Errorf("the README calls %s with %s, which it doesn't know", script, option[1])
					}
				}
			}
		}
	}
}

func TestCardsBadInput(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the scripts are for Debian")
	}
	good := []string{"--version", "v1", "--sums", "ab", "--out", filepath.Join(t.TempDir(), "cards")}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "--gateway is missing"},
		{[]string{"--nope"}, "there is no option --nope"},
		{[]string{"--gateway"}, "--gateway needs a value"},
		{[]string{"--gateway", "nuc"}, "--gateway nuc=192.168.1.2"},
		{[]string{"--gateway", "nuc=192.168.1.2/24"}, "is no address"},
		{[]string{"--gateway", "The NUC=192.168.1.2"}, "is no name for a machine"},
		{[]string{"--gateway", "nuc=192.168.1.2", "--node", "pi_1"}, "pi_1 is no name for a machine"},
		{[]string{"--gateway", "nuc=192.168.1.2", "--node", "nuc"}, "two machines are called nuc"},
		{[]string{"--gateway", "nuc=192.168.1.2", "--faasd", "pi-6=192.168.1.16"}, "--faasd needs --faasd-version"},
		{[]string{"--gateway", "nuc=192.168.1.2", "--ssh-key", "id_ed25519"}, "there is no such file"},
		{[]string{"--gateway", "nuc=192.168.1.2", "--version", "v1|e"}, "letters, digits"},
	} {
		if out, err := fillCards(t, append(good, tt.args...)...); err == nil || !strings.Contains(out, tt.want) || strings.Count(out, "\n") != 1 {
			t.Errorf("fill.sh %v says %q, %v, want %q", tt.args, out, err, tt.want)
		}
	}
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("swordfish\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good = []string{"--check", "--version", "0.19.7", "--commit", strings.Repeat("a", 40), "--sha256", strings.Repeat("b", 64), "--password-file", file}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--nope"}, "there is no option --nope"},
		{[]string{"--commit", "HEAD"}, "write the 40 digits"},
		{[]string{"--sha256", strings.Repeat("z", 64)}, "write the 64 digits"},
		{[]string{"--password-file", file + "s"}, "there is no such file"},
		{[]string{"--listen", "loopback"}, "write 127.0.0.1:8088"},
	} {
		b, err := exec.CommandContext(t.Context(), filepath.Join(deployed, "faasd", "install-faasd.sh"), append(good, tt.args...)...).CombinedOutput()
		if out := string(b); err == nil || !strings.Contains(out, tt.want) || strings.Count(out, "\n") != 1 {
			t.Errorf("install-faasd.sh %v says %q, %v, want %q", tt.args, out, err, tt.want)
		}
	}
}

// cloudInit has cloud-init read user-data, where it is installed.
func cloudInit(t *testing.T, path string) {
	t.Helper()
	tool, err := exec.LookPath("cloud-init")
	if err != nil {
		t.Logf("%s was not shown to cloud-init, which isn't installed", filepath.Base(path))
		return
	}
	if out, err := exec.CommandContext(t.Context(), tool, "schema", "--config-file", path).CombinedOutput(); err != nil {
		t.Errorf("cloud-init schema: %v\n%s", err, out)
	}
}

// release is a folder with what a release has, and a curl that fetches from there.
type release struct{ dir, sums string }

func newRelease(t *testing.T) *release {
	t.Helper()
	r := &release{dir: t.TempDir()}
	pack := exec.CommandContext(t.Context(), "tar", "-C", "..", "-czf", filepath.Join(r.dir, "gateway-ext_setup.tar.gz"), "deploy/systemd", "deploy/faasd")
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	var sums strings.Builder
	for _, name := range []string{"amd64", "arm64", "armv7", "armv6"} {
		b := []byte("#!/bin/sh\necho gateway-ext\n")
		if err := os.WriteFile(filepath.Join(r.dir, "gateway-ext_linux_"+name), b, 0o755); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&sums, "%s  gateway-ext_linux_%s\n", checksum(b), name)
	}
	fmt.Fprintf(&sums, "%s  gateway-ext_setup.tar.gz\n", checksum([]byte(mustRead(t, filepath.Join(r.dir, "gateway-ext_setup.tar.gz")))))
	r.sums = checksum([]byte(sums.String()))
	const curl = "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" != -o ] || out=$2; shift; done\ncase $1 in *thicket/releases/download/v9.9.9/*) cat \"${0%/*}/${1##*/}\" >${out:-/dev/stdout} ;; *) exit 22 ;; esac\n"
	for name, text := range map[string]string{"SHA256SUMS": sums.String(), "curl": curl} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// boot does what a card says, below a folder in place of /.
func (r *release) boot(t *testing.T, u *userData) (root string) {
	t.Helper()
	root = t.TempDir()
	if out, err := r.setUp(t, root, u); err != nil {
		t.Fatalf("%s: %v\n%s", u.Hostname, err, out)
	}
	return root
}

func (r *release) setUp(t *testing.T, root string, u *userData) (string, error) {
	t.Helper()
	below := strings.NewReplacer("/etc/thicket", root+"/etc/thicket", "/opt/thicket", root+"/opt/thicket")
	for _, f := range u.Files {
		path, mode := filepath.Join(root, f.Path), os.FileMode(0o644)
		if f.Permissions != "" {
			if _, err := fmt.Sscanf(f.Permissions, "%o", &mode); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(below.Replace(f.Content)), mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", below.Replace(u.Commands[0])+" --root "+root)
	cmd.Env = []string{"PATH=" + r.dir + ":" + filepath.Join(root, "usr/local/sbin") + ":" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

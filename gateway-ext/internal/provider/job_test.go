package provider

import (
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func TestPatience(t *testing.T) {
	for _, c := range []struct {
		env         string
		idle, grace time.Duration
	}{
		{"", 60 * time.Second, 10 * time.Second},
		{"exec_timeout=20s", 22 * time.Second, 22 * time.Second},
		{"exec_timeout=20", 22 * time.Second, 22 * time.Second},
		{"read_timeout=5s write_timeout=5s exec_timeout=1m", 62 * time.Second, 67 * time.Second},
		{"write_timeout=5s healthcheck_interval=1s", 7 * time.Second, 8 * time.Second},
		{"exec_timeout=soon", 60 * time.Second, 10 * time.Second},
		{"exec_timeout=-5s", 60 * time.Second, 10 * time.Second},
		{"exec_timeout=99999999999", 24*time.Hour + margin, 24*time.Hour + margin},
	} {
		env := make(map[string]string)
		for kv := range strings.FieldsSeq(c.env) {
			k, v, _ := strings.Cut(kv, "=")
			env[k] = v
		}
		if idle, grace := patience(env, 10*time.Second); idle != c.idle || grace != c.grace {
			t.Errorf("patience(%s) = %s, %s, want %s, %s", c.env, idle, grace, c.idle, c.grace)
		}
	}
}

func TestImageRef(t *testing.T) {
	for _, c := range []struct{ image, digest, want string }{
		{"weather", "", "weather"},
		{"weather", "sha256:1", "weather@sha256:1"},
		{"weather:latest", "sha256:1", "weather@sha256:1"},
		{"host:5000/weather", "sha256:1", "host:5000/weather@sha256:1"},
		{"host:5000/a/weather:1.2", "sha256:1", "host:5000/a/weather@sha256:1"},
		{"host:5000/weather:1@sha256:0", "sha256:1", "host:5000/weather@sha256:1"},
	} {
		fn := faas.Function{FunctionDeployment: types.FunctionDeployment{Image: c.image}, Digest: c.digest}
		if got := imageRef(&fn); got != c.want {
			t.Errorf("imageRef(%s, %s) = %s, want %s", c.image, c.digest, got, c.want)
		}
	}
}

func TestGatewayHosts(t *testing.T) {
	const all = " gateway gateway.openfaas gateway.openfaas.svc.cluster.local\n"
	known := func(host string) []netip.Addr {
		switch host {
		case "pi.lan":
			return []netip.Addr{netip.MustParseAddr("192.168.1.5"), netip.MustParseAddr("2001:db8::1")}
		case "gateway":
			return []netip.Addr{netip.MustParseAddr("10.96.0.7")}
		}
		return nil
	}
	for url, want := range map[string]string{
		"http://127.0.0.1:8080":     "127.0.0.1" + all,
		"http://192.168.1.5":        "192.168.1.5" + all,
		"http://192.168.1.5:80/x":   "192.168.1.5" + all,
		"https://[2001:db8::1]:443": "2001:db8::1" + all,
		"https://[2001:db8::1]":     "2001:db8::1" + all,
		"http://pi.lan:8080":        "192.168.1.5" + all + "2001:db8::1" + all,
		"http://gateway:8080":       "10.96.0.7 gateway.openfaas gateway.openfaas.svc.cluster.local\n",
		"http://nobody.lan:8080":    "",
		"":                          "127.0.0.1" + all,
	} {
		if got := gatewayHosts(url, known); got != want {
			t.Errorf("gatewayHosts(%q) = %q, want %q", url, got, want)
		}
	}
}

// TestResolve holds paths of an image to leading nowhere else, whatever its links
// say.
func TestResolve(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"usr/bin", "a/b"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/bin/app"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"bin": "/usr/bin", "rel": "usr/bin", "up": "../../../../usr/bin", "a/b/up": "../../bin",
		"a/far": "/a/b", "loop": "loop", "out": "/etc/passwd", "app": "/bin/app",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	app := filepath.Join(root, "usr/bin/app")
	for path, want := range map[string]string{
		"/usr/bin/app": app, "/bin/app": app, "/rel/app": app, "/up/app": app, "/a/b/up/app": app, "/app": app,
		"usr/bin/app": app, "/../../usr/bin/app": app, "/a/far/../b/up/app": app, "/": root,
		"/out": "", "/loop": "", "/missing": "",
	} {
		got, err := resolve(root, path)
		if want == "" {
			if err == nil {
				t.Errorf("resolve(%s) = %s, want an error", path, got)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("resolve(%s) = %s, %v, want %s", path, got, err, want)
		}
	}
}

func FuzzResolve(f *testing.F) {
	root, err := filepath.EvalSymlinks(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	outside := filepath.Join(root, "outside")
	tree := filepath.Join(root, "tree")
	for _, dir := range []string{outside, filepath.Join(tree, "a/b")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			f.Fatal(err)
		}
	}
	for link, target := range map[string]string{"l": "a/../..", "a/m": "/..", "a/b/n": "../../../outside", "o": outside} {
		if err := os.Symlink(target, filepath.Join(tree, link)); err != nil {
			f.Fatal(err)
		}
	}
	for _, seed := range []string{"/l/outside", "a/m/outside", "/a/b/n", "o", "../outside", "a/b/../../../outside"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if strings.ContainsRune(path, 0) || len(path) > 4096 {
			return
		}
		got, err := resolve(tree, path)
		if err == nil && got != tree && !strings.HasPrefix(got, tree+"/") {
			t.Errorf("resolve(%q) = %s, which is outside", path, got)
		}
		if got, err := filepath.EvalSymlinks(got); err == nil && !strings.HasPrefix(got, tree) {
			t.Errorf("resolve(%q) leads to %s", path, got)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"replica":"a-b","pid":12,"started":"99","boot":"x"}`))
	f.Add([]byte(`{"pid":-1}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := parseRecord(b)
		if err == nil && rec.PID < 0 {
			t.Errorf("parseRecord(%q) = %+v: killing a negative process kills a group", b, rec)
		}
	})
}

// TestRecordsOfAnyKind reads what a full disk or a stranger left in the folder.
func TestRecordsOfAnyKind(t *testing.T) {
	r := records{dir: t.TempDir()}
	for name, text := range map[string]string{
		"cut-abc.json": `{"replica":"cut-a`, "other-abc.json": `{"replica":"somebody","pid":1}`, "empty-abc.json": "", ".new": "x",
	} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	recs, err := r.read()
	if err != nil || len(recs) != 3 {
		t.Fatalf("read() = %+v, %v", recs, err)
	}
	for _, rec := range recs {
		if rec.PID != 0 || !strings.HasSuffix(rec.Replica, "-abc") {
			t.Errorf("read %+v, want no more than the name", rec)
		}
	}
}

func TestOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uids.json")
	if err := os.WriteFile(path, []byte(`{"a.x":1001,"b.x":1001,"root.x":0,"high.x":5000}`), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := openOwners(path, 1000, 3)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]string)
	for _, name := range []string{"a.x", "b.x", "root.x"} {
		uid, err := o.uid(name)
		if err != nil || uid < 1000 || uid > 1002 || seen[uid] != "" {
			t.Errorf("uid(%s) = %d, %v; %s has it", name, uid, err, seen[uid])
		}
		seen[uid] = name
	}
	if uid, err := o.uid("high.x"); err == nil {
		t.Errorf("a fourth of three ids is %d", uid)
	}
	if err := os.WriteFile(path, []byte(`{"a`), 0o600); err != nil {
		t.Fatal(err)
	}
	if o, err := openOwners(path, 1000, 3); err == nil || o == nil {
		t.Errorf("openOwners of half a file = %v, %v, want an error and a start from nothing", o, err)
	}
}

func TestExplainStart(t *testing.T) {
	j := &job{argv: []string{"/app"}}
	err := explainStart(j, &fs.PathError{Op: "fork/exec", Path: "/images/x/app", Err: fs.ErrNotExist})
	if err == nil || strings.Contains(err.Error(), "/work") {
		t.Errorf("explainStart() = %v: a function's owner knows no paths of this machine", err)
	}
}

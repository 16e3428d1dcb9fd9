package promql_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

// password is that of the tests' gateways.
const password = "correct horse battery staple"

// scrapeFleet runs two gateways, one of which has a node, calls functions until
// there is something to tell of everything, and returns what they told, three
// times a minute apart as Prometheus would see it.
func scrapeFleet(t *testing.T) store {
	dir := t.TempDir()
	program := filepath.Join(dir, "gateway-ext")
	if out, err := exec.Command("../build", program).CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	one := start(t, program, "serve", "THICKET_ADDR=127.0.0.1:0", "THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_NODE=nuc", "THICKET_CHAOS=true")
	cert, key := certificate(t, dir)
	two := start(t, program, "serve", "THICKET_ADDR=127.0.0.1:0", "THICKET_TLS_CERT="+cert, "THICKET_TLS_KEY="+key, "THICKET_REDIS_URL=redis://127.0.0.1:1/0")

	// A node, and functions.
	token, err := command(program, "token", "-g", one.url).Output()
	if err != nil {
		t.Fatal(err)
	}
	join := regexp.MustCompile(`--join (\S+) --token (\S+)`).FindSubmatch(token)
	start(t, program, "node", "--listen", "127.0.0.1:0", "--node-name", "pi-1", "--label", "zone=shelf-1", "--join", string(join[1]), "--token", string(join[2]))
	build := command(program, "build", "-f", "../../gateway-ext/testdata/stack.yml", "--push", "--platforms", runtime.GOOS+"/"+runtime.GOARCH)
	build.Env = append(build.Env, "THICKET_REGISTRY="+strings.TrimPrefix(one.url, "http://"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the function: %v\n%s", err, out)
	}
	image := strings.TrimPrefix(one.url, "http://") + "/probe:latest"
	for _, name := range []string{"steady", "sleeper"} {
		one.ask(t, http.MethodPost, "/system/functions", map[string]any{
			"service": name, "image": image, "envVars": map[string]string{"answer": "hello"},
			"annotations": map[string]string{"thicket.fallback": "stale", "thicket.breaker": "50%/10s consecutive=2"},
		})
	}
	eventually(t, "the functions answer, and the node is there", func() bool {
		return one.status(t, "/function/steady") == http.StatusOK && one.status(t, "/function/sleeper") == http.StatusOK &&
			strings.Contains(one.scrape(t), `thicket_node_state{node="pi-1",state="ready"} 1`)
	})

	// The answer to a call that had to wait for its replica isn't kept, nor are
	// those right after it.
	eventually(t, "an answer is kept", func() bool {
		return one.status(t, "/function/steady") == http.StatusOK && one.kept
	})

	db := store{}
	now := time.Now()
	db.scrape(t, one, now.Add(-2*time.Minute))
	db.scrape(t, two, now.Add(-2*time.Minute))
	one.ask(t, http.MethodPost, "/system/scale-function/sleeper", map[string]any{"serviceName": "sleeper", "replicas": 0})
	eventually(t, "the sleeper sleeps", func() bool {
		return strings.Contains(one.scrape(t), `gateway_service_ready_count{function_name="sleeper.openfaas-fn"} 0`)
	})
	if code := one.status(t, "/function/sleeper?replica"); code != http.StatusOK {
		t.Fatalf("the sleeper was answered %d", code)
	}
	one.ask(t, http.MethodPut, "/system/chaos/steady", map[string]any{"errors": 1, "status": 503, "for": "1m"})
	eventually(t, "stale answers are given, and a breaker is open", func() bool {
		one.status(t, "/function/steady")
		one.status(t, "/function/steady?replica") // of which no answer is kept
		told := one.scrape(t)
		return strings.Contains(told, `event="fallback_served"`) && strings.Contains(told, `state="open",target="steady.openfaas-fn"} 1`)
	})
	for i := range 2 {
		db.scrape(t, one, now.Add(time.Duration(i-1)*time.Minute))
		db.scrape(t, two, now.Add(time.Duration(i-1)*time.Minute))
	}
	return db
}

// scrape adds what a program tells of itself, as if at that time.
func (s store) scrape(t *testing.T, p *process, at time.Time) {
	t.Helper()
	_, instance, _ := strings.Cut(p.url, "://")
	target := []labels.Label{{Name: "instance", Value: instance}, {Name: "job", Value: "thicket"}}
	s.add(labels.New(append(target, labels.Label{Name: "__name__", Value: "up"})...), at, 1)
	text, err := textparse.New([]byte(p.scrape(t)), "text/plain; version=0.0.4", labels.NewSymbolTable(), textparse.ParserOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		switch entry, err := text.Next(); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			t.Fatalf("/metrics of %s: %v", p.url, err)
		case entry == textparse.EntrySeries:
			_, _, v := text.Series()
			var l labels.Labels
			text.Labels(&l)
			b := labels.NewBuilder(l)
			for _, x := range target {
				b.Set(x.Name, x.Value)
			}
			s.add(b.Labels(), at, v)
		}
	}
}

// process is a gateway or a node that runs.
type process struct {
	url    string
	client *http.Client
	kept   bool // the last answer was
}

func command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "THICKET_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "THICKET_PASSWORD="+password, "THICKET_LOG_FORMAT=json")
	return cmd
}

// start starts the program with these arguments and settings, and waits until a
// gateway is up.
func start(t *testing.T, program string, words ...string) *process {
	t.Helper()
	var args []string
	environ := []string{"THICKET_DATA=" + t.TempDir()}
	for _, w := range words {
		if strings.HasPrefix(w, "THICKET_") {
			environ = append(environ, w)
		} else {
			args = append(args, w)
		}
	}
	cmd := command(program, args...)
	cmd.Env = append(cmd.Env, environ...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	up := make(chan string, 2)
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			log.Write(append(lines.Bytes(), '\n'))
			var line struct{ Msg, UI string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && (line.Msg == "gateway started" || line.Msg == "node started") {
				up <- strings.TrimSuffix(line.UI, "/ui/")
			}
		}
		close(up)
	})
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		hurry := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		defer hurry.Stop()
		reading.Wait()
		_ = cmd.Wait() // how it ended is in its log
		if t.Failed() {
			t.Logf("%v said:\n%s", args, &log)
		}
	})
	url, ok := <-up
	if !ok {
		t.Fatalf("%v ended at once", args)
	}
	return &process{url: url, client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the certificate was made just now
	}}}
}

// do makes a request and returns its status and what was answered.
func (p *process) do(t *testing.T, method, path string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(path, "/system/") { // an answer to who says who they are is not kept
		req.SetBasicAuth("admin", password)
	}
	res, err := p.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	p.kept = strings.Contains(res.Header.Get("Cache-Status"), "stored")
	return res.StatusCode, string(b)
}

func (p *process) ask(t *testing.T, method, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if code, text := p.do(t, method, path, bytes.NewReader(b)); code >= 300 {
		t.Fatalf("%s %s: %d %s", method, path, code, text)
	}
}

func (p *process) status(t *testing.T, path string) int {
	t.Helper()
	code, _ := p.do(t, http.MethodGet, path, nil)
	return code
}

func (p *process) scrape(t *testing.T) string {
	t.Helper()
	code, text := p.do(t, http.MethodGet, "/metrics", nil)
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d", code)
	}
	return text
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute until %s", what)
		}
	}
}

// certificate makes one for this machine.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return cert, key
}

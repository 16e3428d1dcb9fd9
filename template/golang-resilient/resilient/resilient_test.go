package resilient_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/template/golang-resilient/resilient"
)

// function is a handler that is being served.
type function struct {
	url   string
	log   *buffer
	stop  context.CancelFunc
	hurry context.CancelFunc
	ended chan error // closed after Run's error
}

// serve serves a handler on a free port of this machine until the test ends.
func serve(t *testing.T, s resilient.Settings, handle http.HandlerFunc) *function {
	t.Helper()
	s.ListenHost, s.TempDir = "127.0.0.1", t.TempDir()
	f := &function{log: &buffer{changed: make(chan struct{}, 1)}, ended: make(chan error, 1)}
	stop, stopped := context.WithCancel(context.Background())
	hurry, hurried := context.WithCancel(context.Background())
	f.stop, f.hurry = stopped, hurried
	go func() {
		defer close(f.ended)
		f.ended <- resilient.Run(stop, hurry, s, handle, resilient.NewLogger(f.log, s))
	}()
	t.Cleanup(func() { stopped(); hurried(); <-f.ended })
	f.url = "http://" + f.log.wait(t, "ready")["addr"].(string)
	return f
}

// buffer is a log that can be waited on.
type buffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.changed <- struct{}{}:
	default:
	}
	return b.b.Write(p)
}

// wait returns the first record with the message.
func (b *buffer) wait(t *testing.T, msg string) map[string]any {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		b.mu.Lock()
		text := b.b.String()
		b.mu.Unlock()
		for line := range strings.Lines(text) {
			var record map[string]any
			if json.Unmarshal([]byte(line), &record) == nil && record["msg"] == msg {
				return record
			}
		}
		select {
		case <-b.changed:
		case <-late:
			t.Fatalf("no %q in the log:\n%s", msg, text)
		}
	}
}

func get(t *testing.T, url string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestAnswer(t *testing.T) {
	f := serve(t, resilient.Settings{ExecTimeout: time.Minute, LogRequests: true}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Mine", "yes")
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "hello %s", r.URL.Path)
		w.Header().Set("X-Sum", "42")
	})
	resp, body := get(t, f.url+"/you", "X-Call-Id", "call-1")
	if resp.StatusCode != http.StatusTeapot || body != "hello /you" || resp.Header.Get("X-Mine") != "yes" || resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("answer = %v %v %q, trailer %v", resp.Status, resp.Header, body, resp.Trailer)
	}
	if resp.Header.Get("X-Duration-Seconds") == "" {
		t.Error("no X-Duration-Seconds")
	}
	if record := f.log.wait(t, "request"); record["call_id"] != "call-1" || record["status"] != 418.0 {
		t.Errorf("log = %v, want call_id call-1 and status 418", record)
	}
}

func TestOutOfTime(t *testing.T) {
	const short, long = 50 * time.Millisecond, time.Minute
	tests := []struct {
		name     string
		settings resilient.Settings
		header   string
		limit    string
	}{
		{"exec", resilient.Settings{ExecTimeout: short, WriteTimeout: long}, "", "exec_timeout of 50ms"},
		{"write", resilient.Settings{ExecTimeout: long, WriteTimeout: short}, "", "write_timeout of 50ms"},
		{"caller", resilient.Settings{ExecTimeout: long}, "50ms", "X-Timeout"},
		{"caller, no other", resilient.Settings{}, "50ms", "X-Timeout"},
		{"caller wants more", resilient.Settings{ExecTimeout: short}, "1h", "exec_timeout of 50ms"},
		{"caller wants nonsense", resilient.Settings{ExecTimeout: short}, "-1s", "exec_timeout of 50ms"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := serve(t, tt.settings, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			resp, body := get(t, f.url, "X-Timeout", tt.header)
			if resp.StatusCode != http.StatusGatewayTimeout || !strings.Contains(body, tt.limit) || resp.Header.Get("X-OpenFaaS-Internal") != "golang-resilient" {
				t.Errorf("answer = %v %v %q, want 504 that names %s", resp.Status, resp.Header, body, tt.limit)
			}
		})
	}
	t.Run("stubborn", func(t *testing.T) {
		release := make(chan struct{})
		f := serve(t, resilient.Settings{ExecTimeout: short}, func(http.ResponseWriter, *http.Request) { <-release })
		if resp, _ := get(t, f.url); resp.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("status = %d, want 504", resp.StatusCode)
		}
		close(release)
	})
	t.Run("half answered", func(t *testing.T) {
		f := serve(t, resilient.Settings{ExecTimeout: 200 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			for err := error(nil); err == nil; { // ends only because it is refused
				_, err = io.WriteString(w, "more")
			}
		})
		resp, err := http.Get(f.url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("read %q as if it were complete", body)
		}
	})
}

func TestReadTimeout(t *testing.T) {
	f := serve(t, resilient.Settings{ReadTimeout: 100 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		var late net.Error
		if !errors.As(err, &late) || !late.Timeout() {
			http.Error(w, fmt.Sprint(err), http.StatusInternalServerError)
			return
		}
		http.Error(w, "slow sender", http.StatusRequestTimeout)
	})
	body, sender := io.Pipe()
	defer sender.Close()
	resp, err := http.Post(f.url, "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status = %d, want 408", resp.StatusCode)
	}
}

// A request that has been received may be worked on for longer than
// read_timeout.
func TestReadTimeoutEndsWithTheBody(t *testing.T) {
	f := serve(t, resilient.Settings{ReadTimeout: 50 * time.Millisecond, ExecTimeout: time.Minute}, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		work := time.NewTimer(200 * time.Millisecond)
		defer work.Stop()
		select {
		case <-work.C:
		case <-r.Context().Done():
			http.Error(w, "the context ended", http.StatusInternalServerError)
		}
	})
	for _, body := range []string{"", "hello"} {
		resp, err := http.Post(f.url, "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("body %q: status = %d, want 200", body, resp.StatusCode)
		}
	}
}

func TestPanic(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Minute} {
		f := serve(t, resilient.Settings{ExecTimeout: timeout}, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/before":
				panic("oh no")
			case "/within":
				io.WriteString(w, "half")
				w.(http.Flusher).Flush()
				panic("oh no")
			}
		})
		resp, body := get(t, f.url+"/before")
		if resp.StatusCode != http.StatusInternalServerError || strings.Contains(body, "oh no") {
			t.Errorf("answer = %v %q, want 500 and no details", resp.Status, body)
		}
		if record := f.log.wait(t, "the function panicked"); record["err"] != "oh no" || !strings.Contains(fmt.Sprint(record["stack"]), "resilient_test.go") {
			t.Errorf("log = %v, want the panic and where it was", record)
		}
		if resp, err := http.Get(f.url + "/within"); err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil {
				t.Error("an answer that a panic cut was read as if it were complete")
			}
		}
		if resp, _ := get(t, f.url+"/after"); resp.StatusCode != http.StatusOK {
			t.Errorf("after panics: status = %d, want 200", resp.StatusCode)
		}
	}
}

func TestMaxInflight(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	f := serve(t, resilient.Settings{MaxInflight: 1, ExecTimeout: time.Minute}, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-leave
	})
	var first sync.WaitGroup
	first.Go(func() { get(t, f.url) })
	<-entered
	resp, body := get(t, f.url)
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("X-OpenFaaS-Internal") != "faas-middleware" || !strings.Contains(body, "max_inflight (1)") {
		t.Errorf("second answer = %v %v %q, want 429", resp.Status, resp.Header, body)
	}
	if resp, _ := get(t, f.url+"/_/ready"); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("/_/ready = %d, want 429", resp.StatusCode)
	}
	if resp, _ := get(t, f.url+"/_/health"); resp.StatusCode != http.StatusOK {
		t.Errorf("/_/health = %d, want 200", resp.StatusCode)
	}
	leave <- struct{}{}
	first.Wait()
	if resp, _ := get(t, f.url+"/_/ready"); resp.StatusCode != http.StatusOK {
		t.Errorf("/_/ready = %d afterwards, want 200", resp.StatusCode)
	}
}

// Who calls replicas directly may still have the address of one that is gone.
func TestCallsForAnotherReplicaAreRefused(t *testing.T) {
	f := serve(t, resilient.Settings{Replica: "hello-2"}, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	for _, test := range []struct {
		header []string
		want   int
	}{
		{nil, 200},
		{[]string{"X-Thicket-Replica", "hello-2"}, 200},
		{[]string{"X-Thicket-Replica", "hello-1"}, 421},
	} {
		resp, text := get(t, f.url, test.header...)
		if resp.StatusCode != test.want || (test.want == 421) != (resp.Header.Get("X-OpenFaaS-Internal") != "") {
			t.Errorf("%q: %d %q %s, want %d", test.header, resp.StatusCode, text, resp.Header.Get("X-OpenFaaS-Internal"), test.want)
		}
	}
}

func TestReadyPath(t *testing.T) {
	f := serve(t, resilient.Settings{ReadyPath: "/warm"}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/warm" {
			http.Error(w, "still loading", http.StatusServiceUnavailable)
		}
	})
	if resp, body := get(t, f.url+"/_/ready"); resp.StatusCode != http.StatusServiceUnavailable || body != "still loading\n" {
		t.Errorf("/_/ready = %v %q, want what the function says", resp.Status, body)
	}
}

func TestStop(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	f := serve(t, resilient.Settings{HealthcheckInterval: time.Minute}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- struct{}{}
			<-leave
			io.WriteString(w, "done")
		}
	})
	var slow string
	var first sync.WaitGroup
	first.Go(func() { _, slow = get(t, f.url+"/slow") })
	<-entered
	f.stop()
	f.log.wait(t, "stopping")
	for path, want := range map[string]int{"/_/health": 503, "/_/ready": 503, "/": 200} {
		if resp, _ := get(t, f.url+path); resp.StatusCode != want {
			t.Errorf("while stopping %s = %d, want %d", path, resp.StatusCode, want)
		}
	}
	leave <- struct{}{}
	first.Wait()
	if slow != "done" {
		t.Errorf("the request in flight got %q", slow)
	}
	f.hurry()
	if err := <-f.ended; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
}

func TestStopWaitsForWhatIsInFlight(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	f := serve(t, resilient.Settings{}, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-leave
		io.WriteString(w, "done")
	})
	var body string
	var first sync.WaitGroup
	first.Go(func() { _, body = get(t, f.url) })
	<-entered
	f.stop()
	f.log.wait(t, "stopping")
	close(leave)
	first.Wait()
	if err := <-f.ended; err != nil || body != "done" {
		t.Errorf("Run() = %v, the request in flight got %q", err, body)
	}
}

func TestStopIsBounded(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	f := serve(t, resilient.Settings{WriteTimeout: 100 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
	})
	var caller sync.WaitGroup
	defer caller.Wait()
	caller.Go(func() {
		if resp, err := http.Get(f.url); err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusGatewayTimeout { // or the connection was cut just before
				t.Errorf("status = %d, want 504 or none from a function that doesn't stop", resp.StatusCode)
			}
		}
	})
	<-entered
	f.stop()
	if err := <-f.ended; err != nil {
		t.Errorf("Run() = %v, want nil", err)
	}
	f.log.wait(t, "stopped with requests in flight")
	close(leave)
}

func TestStreaming(t *testing.T) {
	next := make(chan string)
	f := serve(t, resilient.Settings{ExecTimeout: time.Minute}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for s := range next {
			fmt.Fprintf(w, "data: %s\n", s)
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		}
	})
	defer close(next)
	go func() { next <- "one" }()
	resp, err := http.Get(f.url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for _, s := range []string{"one", "two"} {
		if s != "one" {
			next <- s
		}
		if line, err := lines.ReadString('\n'); err != nil || line != "data: "+s+"\n" {
			t.Fatalf("read %q, %v; want %q before the answer ends", line, err, s)
		}
	}
}

func TestHijack(t *testing.T) {
	f := serve(t, resilient.Settings{ExecTimeout: 50 * time.Millisecond, WriteTimeout: time.Second}, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		<-r.Context().Done() // the limits tell it to end, and leave the connection to it
		line, _ := rw.ReadString('\n')
		io.WriteString(conn, line)
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: f\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello\n")
	said, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(said), "HTTP/1.1 101 ") || !strings.HasSuffix(string(said), "\r\n\r\nhello\n") {
		t.Errorf("read %q, %v", said, err)
	}
}

func TestMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	f := serve(t, resilient.Settings{MetricsPort: port, ExecTimeout: time.Minute}, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "BREW" {
			w.WriteHeader(777)
		}
	})
	get(t, f.url)
	get(t, f.url)
	r, _ := http.NewRequestWithContext(t.Context(), "BREW", f.url, nil)
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	at := fmt.Sprintf("http://127.0.0.1:%d/metrics", port)
	wants := []string{
		`http_requests_total{code="200",method="get"} 2`,
		`http_requests_total{code="unknown",method="unknown"} 1`,
		`http_request_duration_seconds_bucket{code="200",method="get",le="0.005"} `,
		`http_request_duration_seconds_bucket{code="200",method="get",le="+Inf"} 2`,
		`http_request_duration_seconds_count{code="200",method="get"} 2`,
		`http_requests_in_flight 0`,
		`# TYPE http_request_duration_seconds histogram`,
	}
	// A request is counted after it has been answered.
	for late := time.Now().Add(20 * time.Second); ; {
		_, body := get(t, at)
		missing := ""
		for _, want := range wants {
			if !strings.Contains(body, want) {
				missing = want
			}
		}
		if missing == "" {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("no %s in:\n%s", missing, body)
		}
	}
}

func TestMetricsPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := serve(t, resilient.Settings{MetricsPort: l.Addr().(*net.TCPAddr).Port}, func(http.ResponseWriter, *http.Request) {})
	if resp, _ := get(t, f.url); resp.StatusCode != http.StatusOK {
		t.Errorf("status = %d, want 200 without metrics", resp.StatusCode)
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := resilient.Settings{ListenHost: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, SuppressLock: true}
	if err := resilient.Run(t.Context(), t.Context(), s, http.NotFoundHandler(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "port") {
		t.Errorf("Run() = %v, want that the port is taken", err)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	lock := filepath.Join(dir, ".lock")
	log := &buffer{changed: make(chan struct{}, 1)}
	stop, stopped := context.WithCancel(t.Context())
	s := resilient.Settings{ListenHost: "127.0.0.1", TempDir: dir}
	ended := make(chan error, 1)
	go func() {
		ended <- resilient.Run(stop, t.Context(), s, http.NotFoundHandler(), resilient.NewLogger(log, s))
	}()
	log.wait(t, "ready")
	if _, err := os.Stat(lock); err != nil {
		t.Error(err)
	}
	stopped()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(lock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock file is still there: %v", err)
	}
}

func TestReadSettings(t *testing.T) {
	read := func(env map[string]string) (resilient.Settings, error) {
		return resilient.ReadSettings(func(name string) string { return env[name] })
	}
	s, err := read(nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Port != 8080 || s.MetricsPort != 8081 || s.ReadTimeout != 30*time.Second || s.WriteTimeout != 30*time.Second || s.ExecTimeout != 30*time.Second || s.HealthcheckInterval != 3*time.Second {
		t.Errorf("defaults = %+v", s)
	}
	s, err = read(map[string]string{
		"PORT": "9000", "listen_host": "127.0.0.1", "read_timeout": "5", "write_timeout": "1m", "exec_timeout": "0",
		"max_inflight": "10", "metrics_port": "0", "log_level": "debug", "log_requests": "true", "suppress_lock": "1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Port != 9000 || s.ReadTimeout != 5*time.Second || s.WriteTimeout != time.Minute || s.ExecTimeout != 0 || s.HealthcheckInterval != 0 ||
		s.MaxInflight != 10 || s.MetricsPort != 0 || s.LogLevel != slog.LevelDebug || !s.LogRequests || !s.SuppressLock {
		t.Errorf("settings = %+v", s)
	}
	if s, err := read(map[string]string{"port": "1", "PORT": "2"}); err != nil || s.Port != 1 {
		t.Errorf("port = %d, %v; want the lower-case one to win", s.Port, err)
	}
	wrong := map[string]string{
		"port": "0", "read_timeout": "soon", "write_timeout": "-1s", "exec_timeout": "99999999999999", "max_inflight": "-1",
		"metrics_port": "70000", "log_level": "loud", "log_format": "xml", "log_requests": "perhaps", "ready_path": "ready",
	}
	_, err = read(wrong)
	if err == nil {
		t.Fatal("no error")
	}
	for name := range wrong {
		if !strings.Contains(err.Error(), "setting "+name+" is ") {
			t.Errorf("the error doesn't name %s:\n%v", name, err)
		}
	}
}

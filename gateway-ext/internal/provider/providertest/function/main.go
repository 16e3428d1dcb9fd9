// Command function is the function that the tests of providers run. It does what
// a request asks it to, so that a test can be about one thing at a time.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "idle" {
		// A grandchild: it ends when it is killed, or when nobody has for long.
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
		time.Sleep(10 * time.Minute)
		return
	}
	switch os.Getenv("behave") {
	case "crash":
		fmt.Fprintln(os.Stderr, "no such table: weather")
		os.Exit(3)
	case "panic":
		panic("a nil map")
	case "slow":
		time.Sleep(300 * time.Millisecond)
	case "deaf":
		time.Sleep(10 * time.Minute)
	}
	if os.Getenv("ignore_term") != "" {
		signal.Ignore(syscall.SIGTERM)
	}
	serve()
}

func serve() {
	mux := http.NewServeMux()
	mux.HandleFunc("/_/ready", ready)
	mux.HandleFunc("/custom-ready", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/sleep", sleep)
	mux.HandleFunc("/env", env)
	mux.HandleFunc("/read", read)
	mux.HandleFunc("/list", list)
	mux.HandleFunc("/write", write)
	mux.HandleFunc("/spawn", spawn)
	mux.HandleFunc("/pid", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/alloc", alloc)
	mux.HandleFunc("/burn", burn)
	mux.HandleFunc("/log", logLines)
	mux.HandleFunc("/exit", exit)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s %s", os.Getenv("THICKET_REPLICA"), os.Getenv("version"))
	})
	addr := net.JoinHostPort(cmp.Or(os.Getenv("listen_host"), "127.0.0.1"), os.Getenv("port"))
	fmt.Println("listening")
	fmt.Fprintln(os.Stderr, http.ListenAndServe(addr, mux))
	os.Exit(1)
}

func ready(w http.ResponseWriter, r *http.Request) {
	switch os.Getenv("behave") {
	case "unready":
		http.Error(w, "no", http.StatusServiceUnavailable)
	case "plain":
		http.NotFound(w, r)
	}
}

func sleep(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.FormValue("for"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	time.Sleep(d)
	fmt.Fprint(w, "slept")
}

func env(w http.ResponseWriter, _ *http.Request) {
	m := map[string]string{"uid": strconv.Itoa(os.Getuid()), "gid": strconv.Itoa(os.Getgid())}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		m[k] = v
	}
	m["dir"], _ = os.Getwd()
	_ = json.NewEncoder(w).Encode(m)
}

func read(w http.ResponseWriter, r *http.Request) {
	b, err := os.ReadFile(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	_, _ = w.Write(b)
}

func list(w http.ResponseWriter, r *http.Request) {
	entries, err := os.ReadDir(r.FormValue("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	for _, e := range entries {
		fmt.Fprintln(w, e.Name())
	}
}

func write(w http.ResponseWriter, r *http.Request) {
	if err := os.WriteFile(r.FormValue("path"), []byte("mine"), 0o600); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
	}
}

// spawn starts a grandchild, in a session of its own if asked to, and says what
// its process is.
func spawn(w http.ResponseWriter, r *http.Request) {
	self := "/proc/self/exe" // the path it was started by may be closed to its user
	if _, err := os.Stat(self); err != nil {
		if self, err = os.Executable(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	cmd := exec.Command(self, "idle")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: r.FormValue("session") != ""}
	cmd.Stdout = os.Stdout // it holds the pipe open, as daemons do
	if err := cmd.Start(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, cmd.Process.Pid)
}

// alloc takes memory and uses it.
func alloc(w http.ResponseWriter, r *http.Request) {
	mib, err := strconv.Atoi(r.FormValue("mib"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b := make([]byte, mib<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = byte(i)
	}
	fmt.Fprint(w, len(b))
}

// burn uses one processor for a while and says how much of it it got.
func burn(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.FormValue("for"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		continue
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, time.Duration(u.Utime.Nano()+u.Stime.Nano()))
}

func logLines(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("lines"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out := io.Writer(os.Stdout)
	if r.FormValue("to") == "stderr" {
		out = os.Stderr
	}
	for i := range n {
		fmt.Fprintf(out, "%s %d\n", r.FormValue("text"), i)
	}
}

func exit(_ http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.FormValue("code"))
	if err != nil {
		code = 1
	}
	fmt.Fprintln(os.Stderr, "asked to exit")
	os.Exit(code)
}

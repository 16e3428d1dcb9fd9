package main_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// The numbers that the README and the release notes give, as benchmarks of the
// real program: make bench prints them. None of them is a test's verdict, since
// machines differ and are busy.

// BenchmarkIdle measures a gateway with the two weather functions that nobody
// calls: resident memory, and CPU time as a part of one core.
func BenchmarkIdle(b *testing.B) {
	g := start(b, b.TempDir())
	g.deployWeather()
	g.get("/function/weather-consumer?zip=70569&country=DE")
	const period = 20 * time.Second
	time.Sleep(period) // what was garbage after the start is returned meanwhile
	before := cpuTime(b, g.cmd.Process.Pid)
	time.Sleep(period)
	used := cpuTime(b, g.cmd.Process.Pid) - before
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(memory(b, g.cmd.Process.Pid, "VmRSS"))/1e6, "resident-MB")
	b.ReportMetric(float64(memory(b, g.cmd.Process.Pid, "RssAnon"))/1e6, "anonymous-MB")
	b.ReportMetric(100*used.Seconds()/period.Seconds(), "%core")
}

// BenchmarkWake measures the first answer of a function that sleeps, from the
// request that wakes it on; its image is on disk.
func BenchmarkWake(b *testing.B) {
	g := start(b, b.TempDir())
	g.deploy(g.probe())
	for b.Loop() {
		b.StopTimer()
		if err := g.client.ScaleFunction(b.Context(), "probe", "openfaas-fn", 0); err != nil {
			b.Fatal(err)
		}
		g.ready("probe", 0)
		eventually(b, "no process is left", func() bool { return len(replicas(b, g.dir)) == 0 })
		b.StartTimer()
		g.want("/function/probe", 200, "hello")
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/wake")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkUp measures what `make run` does after the program is built: from
// the start of "gateway-ext up" on an empty state folder to the first weather
// answer. The Go build cache is as it is; the first round may find it cold.
func BenchmarkUp(b *testing.B) {
	for b.Loop() {
		cmd := exec.Command(program, "up", "-f", "stack.yml")
		cmd.Dir = ".."
		cmd.Env = append(baseEnviron(), "THICKET_ADDR=127.0.0.1:0", "THICKET_DATA="+b.TempDir(), "WEATHER_SIMULATE=true")
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		url := waitForAddress(b, stdout, "weather-consumer")
		resp, err := http.Get(url + "?zip=70569&country=DE")
		if err != nil {
			b.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != 200 {
			b.Fatal(resp.Status)
		}
		b.StopTimer()
		cmd.Process.Signal(os.Interrupt)
		io.Copy(io.Discard, stdout)
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/first-answer")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkThousandFunctions measures what 1,000 functions that sleep cost.
func BenchmarkThousandFunctions(b *testing.B) {
	g := start(b, b.TempDir())
	probe := g.probe()
	probe.Labels = &map[string]string{"com.openfaas.scale.min": "0"}
	const count = 1000
	time.Sleep(5 * time.Second) // let the start's garbage go
	before := memory(b, g.cmd.Process.Pid, "RssAnon")
	for i := range count {
		probe.Service = fmt.Sprintf("probe-%d", i)
		if _, err := g.client.Deploy(b.Context(), probe); err != nil {
			b.Fatal(err)
		}
	}
	eventually(b, "all sleep", func() bool { return len(replicas(b, g.dir)) == 0 })
	time.Sleep(80 * time.Second) // what it doesn't need it gives back once a minute
	after := memory(b, g.cmd.Process.Pid, "RssAnon")
	functions, err := g.client.GetFunctions(b.Context(), "openfaas-fn")
	if err != nil || len(functions) != count {
		b.Fatalf("GetFunctions() = %d functions, %v", len(functions), err)
	}
	list, err := http.NewRequestWithContext(b.Context(), http.MethodGet, g.url+"/system/functions", nil)
	if err != nil {
		b.Fatal(err)
	}
	list.SetBasicAuth("admin", testPassword)
	for b.Loop() {
		if code, _, body := g.do(list); code != 200 || len(body) < 100*count {
			b.Fatalf("list = %d, %d bytes", code, len(body))
		}
	}
	b.ReportMetric(float64(after-before)/count/1024, "KB/function")
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/1000, "ms/list")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBinary reports the program's size.
func BenchmarkBinary(b *testing.B) {
	info, err := os.Stat(program)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
	}
	b.ReportMetric(float64(info.Size())/1e6, "MB")
	b.ReportMetric(0, "ns/op")
}

// deployWeather builds and deploys the weather app.
func (g *thicket) deployWeather() {
	g.t.Helper()
	timeouts := map[string]string{"exec_timeout": "8s", "weather_simulate": "true", "THICKET_TEST": g.dir}
	for _, name := range []string{"weather-producer", "weather-consumer"} {
		g.deploy(types.FunctionDeployment{Service: name, Image: images(g.t) + "/" + name + ":latest", EnvVars: timeouts})
	}
}

// memory returns a field of /proc/PID/status in bytes.
func memory(t testing.TB, pid int, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			kb, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatalf("no %s in the status of process %d", field, pid)
	return 0
}

// cpuTime returns the CPU time that a process has used. A tick is 10 ms on
// every Linux that Go runs on (USER_HZ).
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	// proc(5): utime and stime are fields 14 and 15; the name, in brackets, may hold anything.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

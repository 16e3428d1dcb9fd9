package main_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// probe is the declaration of the tests' own function.
func (g *thicket) probe() types.FunctionDeployment {
	g.t.Helper()
	return types.FunctionDeployment{
		Service: "probe",
		Image:   images(g.t) + "/probe:latest",
		EnvVars: g.environment("hello"),
	}
}

// environment is that of the tests' own function. THICKET_TEST marks its
// processes as those of this gateway.
func (g *thicket) environment(answer string) map[string]string {
	return map[string]string{"answer": answer, "THICKET_TEST": g.dir}
}

// want asks a path and compares the answer.
func (g *thicket) want(path string, status int, body string) {
	g.t.Helper()
	if code, _, got := g.get(path); code != status || got != body {
		g.t.Errorf("GET %s = %d %q, want %d %q", path, code, got, status, body)
	}
}

func TestDeployInvokeDelete(t *testing.T) {
	g := start(t, t.TempDir())
	probe := g.probe()
	g.deploy(probe)

	g.want("/function/probe", 200, "hello")
	g.want("/function/probe.openfaas-fn", 200, "hello")
	g.want("/function/probe/a/../b//c%2Fd?path&x=%20", 200, "GET /a/../b//c%2Fd?path&x=%20")

	functions, err := g.client.GetFunctions(t.Context(), "openfaas-fn")
	if err != nil || len(functions) != 1 {
		t.Fatalf("GetFunctions() = %v, %v, want one function", functions, err)
	}
	if f := functions[0]; f.Name != "probe" || f.Image != probe.Image || f.InvocationCount != 3 || f.AvailableReplicas != 1 {
		t.Errorf("GetFunctions() = %+v, want probe with 3 invocations and 1 replica", f)
	}

	if _, err := g.client.Deploy(t.Context(), probe); err == nil || !strings.Contains(err.Error(), "409") {
		t.Errorf("second Deploy() = %v, want a 409", err)
	}
	if err := g.client.DeleteFunction(t.Context(), "probe", "openfaas-fn"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the function is gone", func() bool {
		code, _, _ := g.get("/function/probe")
		return code == 404
	})
	eventually(t, "its processes are gone", func() bool { return len(replicas(t, g.dir)) == 0 })
	if code := g.stop(); code != 0 {
		t.Errorf("exit code after SIGTERM = %d, want 0", code)
	}
}

// TestUpdateUnderLoad changes a function while it is called all the time: no
// call may fail, and each must see the old answer or the new one.
func TestUpdateUnderLoad(t *testing.T) {
	g := start(t, t.TempDir())
	probe := g.probe()
	probe.Labels = &map[string]string{"com.openfaas.scale.min": "2"}
	if _, err := g.client.Deploy(t.Context(), probe); err != nil {
		t.Fatal(err)
	}
	g.ready("probe", 2)

	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	var calls, news atomic.Int64
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				req, err := http.NewRequest(http.MethodPost, g.url+"/function/probe?sleep=2ms", strings.NewReader("ping"))
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := http.DefaultTransport.RoundTrip(req)
				if err != nil {
					t.Errorf("call failed: %v", err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || string(body) != "ping" {
					t.Errorf("call = %d %q, %v", resp.StatusCode, body, err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for round := range 5 {
		answer := fmt.Sprintf("hello %d", round)
		probe.EnvVars = g.environment(answer)
		before := calls.Load()
		if _, err := g.client.Update(t.Context(), probe); err != nil {
			t.Fatal(err)
		}
		eventually(t, answer, func() bool {
			_, _, body := g.get("/function/probe")
			return body == answer
		})
		eventually(t, "only new replicas", func() bool {
			f, err := g.client.GetFunction(t.Context(), "probe", "openfaas-fn")
			return err == nil && f.AvailableReplicas == 2 && len(replicas(t, g.dir)) == 2
		})
		eventually(t, "calls go on", func() bool { return calls.Load() > before+50 })
		news.Add(1)
	}
	cancel()
	callers.Wait()
	t.Logf("%d calls during %d updates, none failed", calls.Load(), news.Load())
}

func TestScaleAndWake(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	if err := g.client.ScaleFunction(t.Context(), "probe", "openfaas-fn", 3); err != nil {
		t.Fatal(err)
	}
	g.ready("probe", 3)
	seen := map[string]bool{}
	eventually(t, "all three replicas answer", func() bool {
		_, _, replica := g.get("/function/probe?replica")
		seen[replica] = true
		return len(seen) == 3
	})
	if err := g.client.ScaleFunction(t.Context(), "probe", "openfaas-fn", 0); err != nil {
		t.Fatal(err)
	}
	g.ready("probe", 0)
	eventually(t, "no process is left", func() bool { return len(replicas(t, g.dir)) == 0 })
	g.want("/function/probe", 200, "hello") // wakes it
	g.ready("probe", 1)
}

func TestSecrets(t *testing.T) {
	g := start(t, t.TempDir())
	probe := g.probe()
	probe.Secrets = []string{"token"}
	if _, err := g.client.Deploy(t.Context(), probe); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("Deploy() with an unknown secret = %v, want an error that names it", err)
	}
	const value = "hush-8f2a6c1d"
	secret := types.Secret{Name: "token", Namespace: "openfaas-fn", Value: value}
	if _, err := g.client.CreateSecret(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	g.deploy(probe)
	g.want("/function/probe?secret=token", 200, value)

	secret.Value = "new-" + value
	if _, err := g.client.UpdateSecret(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new value", func() bool {
		_, _, body := g.get("/function/probe?secret=token")
		return body == "new-"+value
	})
	list, err := g.client.GetSecrets(t.Context(), "openfaas-fn")
	if err != nil || len(list) != 1 || list[0].Name != "token" || list[0].Value != "" || list[0].RawValue != nil {
		t.Errorf("GetSecrets() = %+v, %v, want the name alone", list, err)
	}
	if log := g.logged(); strings.Contains(log, value) || strings.Contains(log, testPassword) {
		t.Error("a secret is in the log")
	}
	if code := g.stop(); code != 0 {
		t.Errorf("exit code after SIGTERM = %d, want 0", code)
	}
	err = filepath.WalkDir(g.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), value) {
			t.Errorf("%s holds the secret in plain text", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLogs(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g.get("/function/probe?log=first")
	follow, err := g.client.GetLogs(ctx, "probe", "openfaas-fn", true, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.get("/function/probe?log=second")
	g.get("/function/probe?crash")
	for _, want := range []string{"first", "second", "crashing as asked", "exited with code 3"} {
		for {
			line, ok := <-follow
			if !ok {
				t.Fatalf("the log ended before %q", want)
			}
			if strings.Contains(line.Text, want) {
				break
			}
		}
	}
	g.ready("probe", 1)
	g.want("/function/probe", 200, "hello")
}

// TestRestart restarts the gateway, once asked and once not: what was declared
// is there again, and nothing is left of what ran before.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	probe := g.probe()
	g.deploy(probe)
	if _, err := g.client.CreateSecret(t.Context(), types.Secret{Name: "kept", Namespace: "openfaas-fn", Value: "kept"}); err != nil {
		t.Fatal(err)
	}
	for _, end := range []struct {
		name string
		end  func(*thicket)
	}{
		{"SIGTERM", func(g *thicket) {
			if code := g.stop(); code != 0 {
				t.Errorf("exit code = %d, want 0", code)
			}
			if left := replicas(t, dir); len(left) > 0 {
				t.Errorf("replicas left behind by a stop: %v", left)
			}
		}},
		{"SIGKILL", func(g *thicket) { g.kill() }},
	} {
		before := replicas(t, dir)
		if len(before) == 0 {
			t.Fatal("no replica runs")
		}
		end.end(g)
		began := time.Now()
		g = start(t, dir)
		up := time.Since(began)
		g.ready("probe", 1)
		t.Logf("after %s: gateway up in %v, function ready in %v", end.name, up.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		g.want("/function/probe", 200, "hello")
		now := replicas(t, dir)
		if len(now) != 1 {
			t.Errorf("after %s: replicas %v, want one", end.name, now)
		}
		for pid := range maps.Keys(now) {
			if before[pid] {
				t.Errorf("after %s: process %d of the former gateway still runs", end.name, pid)
			}
		}
		if secrets, err := g.client.GetSecrets(t.Context(), "openfaas-fn"); err != nil || len(secrets) != 1 {
			t.Errorf("after %s: GetSecrets() = %v, %v, want one", end.name, secrets, err)
		}
	}
}

// TestStopFinishesRequests stops the gateway while a call is under way.
func TestStopFinishesRequests(t *testing.T) {
	g := start(t, t.TempDir())
	g.deploy(g.probe())
	answer := make(chan string, 1)
	go func() {
		_, _, body := g.get("/function/probe?sleep=1s")
		answer <- body
	}()
	eventually(t, "the call is in flight", func() bool {
		_, _, metrics := g.get("/metrics")
		return strings.Contains(metrics, `gateway_function_invocation_inflight{function_name="probe.openfaas-fn"} 1`)
	})
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	if got := <-answer; got != "hello" {
		t.Errorf("the call in flight got %q, want hello", got)
	}
}

// TestSecondSignalHurries stops the gateway while a call is under way that
// takes longer than anybody waits.
func TestSecondSignalHurries(t *testing.T) {
	g := start(t, t.TempDir(), "THICKET_DRAIN=10m")
	g.deploy(g.probe())
	go func() {
		resp, err := http.Get(g.url + "/function/probe?sleep=10m")
		if err == nil {
			resp.Body.Close()
		}
	}()
	eventually(t, "the call is in flight", func() bool {
		_, _, metrics := g.get("/metrics")
		return strings.Contains(metrics, `gateway_function_invocation_inflight{function_name="probe.openfaas-fn"} 1`)
	})
	g.cmd.Process.Signal(os.Interrupt)
	eventually(t, "it stops", func() bool { return strings.Contains(g.logged(), `"msg":"stopping"`) })
	if code := g.stop(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	if left := replicas(t, g.dir); len(left) > 0 {
		t.Errorf("replicas left behind: %v", left)
	}
}

// replicas returns the process ids of the replicas that a gateway with this
// state folder has started and that still run.
func replicas(t testing.TB, dir string) map[int]bool {
	t.Helper()
	pids := map[int]bool{}
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range environs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		if strings.Contains(string(b), "\x00THICKET_REPLICA=") && strings.Contains(string(b), "THICKET_TEST="+dir+"\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			pids[pid] = true
		}
	}
	return pids
}

//go:build faults && linux

package faults_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// TestPoison (scenario 12): answers that look good and aren't.
func TestPoison(t *testing.T) {
	run(t, "12 poison", func(t *testing.T, s *scenario) {
		w := newWorld(t, s)
		w.deploy(2, []string{consumer}, nil)
		w.deploy(3, []string{function}, policy("thicket.timeout", "20s")) // for all of a long answer
		w.deploy(3, []string{naked}, none())
		w.warm(function)
		rs, others := w.three(function), w.three(naked)
		// What is too large to keep passes, and nothing keeps it in memory.
		for _, mode := range []string{"huge", "bomb"} {
			w.tell(fault{Mode: mode, Share: 1}, rs...)
			resp, err := http.Get(w.url + "/function/" + function + "?key=" + mode)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			t.Logf("%s: %s, %d bytes, %v", mode, resp.Status, n, err)
			s.count(guarded, "resident memory after it, MiB", w.resident(t), 96)
			if mode == "huge" && n != 256<<20 {
				t.Errorf("%d bytes of a long answer arrived, want all", n)
			}
		}
		w.tell(fault{}, rs...)

		var poisoned, without, survived float64
		for _, mode := range []string{"short", "cut", "json", "headers"} {
			w.tell(fault{Mode: mode, Share: 1}, rs...)
			w.tell(fault{Mode: mode, Share: 1}, others...)
			with := (&load{rate: 40, url: w.keys(function)}).begin(1)
			bad := (&load{rate: 20, url: w.keys(naked)}).begin(1)
			time.Sleep(1500 * time.Millisecond)
			w.tell(fault{}, rs...)
			w.tell(fault{}, others...)
			ss, unprotected := with.end(), bad.end()
			t.Logf("%s: %v", mode, ss)
			t.Logf("%s, without: %v", mode, unprotected)
			poisoned += ss.bad()
			survived += ss.number(old)
			without += unprotected.bad()
		}
		s.count(guarded, "poisoned or failed GETs of warm keys", poisoned, 0)
		s.breaks(bare, "poisoned or failed GETs of warm keys", without, 0)
		if survived == 0 {
			t.Error("no old answer was given: nothing was poisoned")
		}

		client := newCaller()
		defer client.CloseIdleConnections()
		var kept float64
		for n := range warm {
			if s := call(client, w.key(function, n), 5*time.Second); s.class != good && s.class != old {
				t.Logf("key %d: %s %d %s", n, s.class, s.status, s.note)
				kept++
			}
		}
		s.count(guarded, "keys whose kept answer is poisoned", kept, 0)
		w.settle()
	})
}

// TestDiskFull (scenario 14): the state folder's disk is full, and then read-only.
func TestDiskFull(t *testing.T) {
	run(t, "14 disk full", func(t *testing.T, s *scenario) {
		if !inside {
			t.Skip("needs root, for a mount of its own")
		}
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
		w := newWorldOf(t, s, program, dir)
		p := newPair(w, policy(), fault{Latency: 2 * time.Millisecond}, 50)
		filler := filepath.Join(dir, "filler")
		fill(t, filler)
		eventually(t, "its health says so", func() bool { return strings.HasPrefix(w.health(), "degraded") })
		err := w.deployOne("late")
		t.Logf("a deployment while the disk is full: %v", err)
		if err == nil {
			s.count(guarded, "declarations taken that can't be written down", 1, 0)
		} else {
			s.count(guarded, "declarations taken that can't be written down", 0, 0)
		}
		time.Sleep(time.Second)
		// A replica that dies now is started again nonetheless.
		w.signal(syscall.SIGKILL, w.three(function)[0])
		time.Sleep(time.Second)
		readOnly(t, dir, func() { time.Sleep(time.Second) })
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		with, _ := p.end()
		s.count(guarded, "failed GETs", with.bad(), 0)
		eventually(t, "its health is good again", func() bool { return w.health() == "OK\n" })
		w.ready(function, 3)
		eventually(t, "a deployment is taken again", func() bool { return w.deployOne("later") == nil })
		w.settle()

		// What was declared is there after a restart; what was refused is not.
		w.end()
		again, err := boot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer again.end()
		fs, err := again.client.GetFunctions(t.Context(), "openfaas-fn")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range fs {
			names = append(names, f.Name)
		}
		lost := 0.
		for _, name := range []string{consumer, function, naked, "later"} {
			if !strings.Contains(fmt.Sprint(names), name) {
				lost++
			}
		}
		s.count(guarded, "functions lost over a restart", lost, 0)
	})
}

// readOnly makes what is opened in a folder read-only while f runs. Files that are
// open already stay so: a whole file system that is in use can't be made
// read-only but by its own kernel, when the disk fails.
func readOnly(t *testing.T, dir string, f func()) {
	t.Helper()
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Error(err)
	}
	f()
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
}

// deployOne declares one more function.
func (w *world) deployOne(name string) error {
	_, err := w.client.Deploy(w.t.Context(), types.FunctionDeployment{
		Service: name, Image: victim(w.t), EnvVars: map[string]string{"metrics_port": "0"},
		Labels: new(map[string]string{"com.openfaas.scale.min": "0"}),
	})
	return err
}

// health is what the gateway says of itself.
func (w *world) health() string {
	w.t.Helper()
	resp, err := http.Get(w.url + "/healthz")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// fill writes a file until the disk has no byte left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

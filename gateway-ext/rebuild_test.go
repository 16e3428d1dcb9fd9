package main_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRebuild has a gateway killed that has seven nodes with two replicas each.
// The next one knows them as soon as they have told it; none is started anew. How
// long that takes is printed, and BenchmarkRebuild measures it with the program as
// it is released.
func TestRebuild(t *testing.T) {
	t.Logf("all replicas of 7 nodes were known %s after the start", rebuild(t))
}

// BenchmarkRebuild measures how long after its start a gateway knows the replicas
// of seven nodes from the nodes themselves.
func BenchmarkRebuild(b *testing.B) {
	took := rebuild(b)
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took.Milliseconds()), "ms/rebuilt")
}

func rebuild(t testing.TB) time.Duration {
	const nodes, replicas = 7, 14
	dir := t.TempDir()
	f := startFleet(t, dir, nodes)
	f.operate("nodes", "cordon", "nuc")
	probe := f.probe()
	probe.Labels = &map[string]string{"com.openfaas.scale.min": "14", "com.openfaas.scale.max": "14"}
	if _, err := f.client.Deploy(t.Context(), probe); err != nil {
		t.Fatal(err)
	}
	f.ready("probe", replicas)
	before := live(f.thicket)
	if len(before) != replicas {
		t.Fatalf("%d of %d replicas are known", len(before), replicas)
	}
	f.kill()
	g := start(t, f.dir, "THICKET_NODES_ADDR="+f.door, "THICKET_NODE=nuc", "THICKET_ADDR="+f.host())
	began := time.Now()
	var after map[string]bool
	eventually(t, "all replicas are known again", func() bool {
		after = live(g)
		return len(after) == replicas
	})
	took := time.Since(began)
	for id := range before {
		if !after[id] {
			t.Errorf("replica %s isn't there any more", id)
		}
	}
	g.want("/function/probe", http.StatusOK, "hello")
	if took > 15*time.Second { // a second was asked for; this machine may have other things to do
		t.Errorf("the replicas were known %s after the start", took)
	}
	return took
}

// live is the ready replicas that the nodes themselves have told the gateway of
// since its start, by their IDs.
func live(g *thicket) map[string]bool {
	g.t.Helper()
	all := make(map[string]bool)
	for _, r := range g.snapshot().Replicas {
		if r.State == "ready" && !r.LastSeen.IsZero() && !r.Suspect {
			all[r.ID] = true
		}
	}
	return all
}

// smallFleet is a gateway with nodes.
type smallFleet struct {
	*thicket
	door  string
	nodes []*nodeProcess
}

// startFleet starts a gateway and nodes, and waits until all are ready.
func startFleet(t testing.TB, dir string, nodes int) *smallFleet {
	t.Helper()
	f := &smallFleet{thicket: start(t, filepath.Join(dir, "nuc"), "THICKET_NODES_ADDR=127.0.0.1:0", "THICKET_NODE=nuc")}
	join := joining.FindStringSubmatch(f.operate("token"))
	if join == nil {
		t.Fatal("gateway-ext token doesn't say how to join")
	}
	f.door = strings.TrimPrefix(join[1], "https://")
	for i := range nodes {
		name := fmt.Sprint("pi-", i+1)
		f.nodes = append(f.nodes, node(t, name, filepath.Join(dir, name), "--join", join[1], "--token", join[2], "--node-name", name))
	}
	t.Cleanup(func() { // all at once, then one by one
		for _, n := range f.nodes {
			if n.cmd.ProcessState == nil {
				n.cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	})
	eventually(t, "all nodes are ready", func() bool {
		ready := 0
		for _, n := range f.fleet() {
			if n.State == "ready" {
				ready++
			}
		}
		return ready == nodes+1
	})
	return f
}

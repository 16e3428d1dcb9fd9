package placement_test

import (
	"fmt"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
)

// large is a fleet of n nodes with ten functions for each.
func large(n int) ([]placement.Node, []placement.Function) {
	nodes := make([]placement.Node, n)
	for i := range nodes {
		nodes[i] = placement.Node{
			Name: fmt.Sprintf("node-%04d", i), Memory: 4096 * mib, CPU: 4000,
			Platforms: [][]string{arm64, amd64, armv7}[i%3],
			Labels:    map[string]string{"zone": fmt.Sprint("shelf-", i%20), "disk": []string{"ssd", "sd"}[i%2]},
		}
	}
	ssd, _ := placement.ParseConstraint("node.labels.disk==ssd")
	functions := make([]placement.Function, 10*n)
	for i := range functions {
		functions[i] = placement.Function{
			Name: name(fmt.Sprintf("function-%05d", i)), Replicas: 1 + i%4, Memory: 32 * mib, CPU: 20,
			Platforms: [][]string{nil, {"linux/amd64", "linux/arm64"}, {"linux/arm/v6"}}[i%3],
		}
		if i%10 == 0 {
			functions[i].Constraints = []placement.Constraint{ssd}
		}
	}
	return nodes, functions
}

// BenchmarkDecide is one round in fleets of several sizes: when all functions
// are new, when nothing is to be done, when a node is lost, and when a fifth of
// the nodes is.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		nodes, functions := large(n)
		settled := &cluster{t: &testing.T{}, nodes: nodes, functions: functions}
		b.Run(fmt.Sprintf("new/nodes=%d", n), func(b *testing.B) {
			nodes, functions := large(n)
			b.ReportAllocs()
			for b.Loop() {
				placement.Decide(nodes, functions, placement.Limits{})
			}
		})
		for range 100 {
			if !settled.round() {
				break
			}
			settled.start()
		}
		settled.start()
		round := func(limits placement.Limits) func(*testing.B) {
			return func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					placement.Decide(settled.nodes, settled.functions, limits)
				}
			}
		}
		b.Run(fmt.Sprintf("calm/nodes=%d", n), round(placement.Limits{}))
		b.Run(fmt.Sprintf("spreading/nodes=%d", n), round(placement.Limits{Moves: 4}))
		settled.nodes[0].State = placement.Gone
		b.Run(fmt.Sprintf("one-lost/nodes=%d", n), round(placement.Limits{}))
		for i := range n / 5 {
			settled.nodes[i].State = placement.Gone
		}
		b.Run(fmt.Sprintf("fifth-lost/nodes=%d", n), round(placement.Limits{}))
	}
}

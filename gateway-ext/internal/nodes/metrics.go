package nodes

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// A node has no address for Prometheus of its own: it is called by its gateway
// alone. What there is to know of it comes with its beats, and the gateway shows
// it. The labels are bounded by how many nodes there may be.
var (
	descState    = desc("state", "1 for the state that the node is in, 0 for the others.", "state")
	descInfo     = desc("info", "1; the labels say what the node is.", "version", "platform", "zone")
	descTaking   = desc("schedulable", "1 if new replicas may be placed on the node, 0 if it is cordoned or drained.")
	descReplicas = desc("replicas", "Replicas that the node was told to run.")
	descSkew     = desc("clock_skew_seconds", "How far the node's clock is ahead of the gateway's.")
	descMemory   = desc("memory_bytes", "Memory that replicas on the node may have in all.")
	descFree     = desc("memory_free_bytes", "Memory that replicas on the node could have besides.")
	descDisk     = desc("disk_bytes", "The size of the file system that the node keeps its state and its images on.")
	descDiskFree = desc("disk_free_bytes", "What can still be written to that file system.")
	descCores    = desc("cpu_cores", "Processors of the node.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("thicket_node_"+name, help, append([]string{"node"}, labels...), nil)
}

// short bounds what a node says of itself.
func short(s string) string { return fmt.Sprintf("%.64s", s) }

// states are those that a node can be in, as [Status] says them.
var states = [...]string{"ready", "suspect", "gone"}

// Describe implements [prometheus.Collector].
func (n *Nodes) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range [...]*prometheus.Desc{descState, descInfo, descTaking, descReplicas, descSkew, descMemory, descFree, descDisk, descDiskFree, descCores} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector]. Of a node that is gone there are its
// state, its name and what it should run: the rest isn't known.
func (n *Nodes) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	known := func(d *prometheus.Desc, v int64, node string) {
		if v > 0 {
			gauge(d, float64(v), node)
		}
	}
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, s := range n.List() {
		platform := ""
		if len(s.Machine.Platforms) > 0 {
			platform = short(s.Machine.Platforms[0])
		}
		for _, state := range states {
			gauge(descState, is(s.State == state), s.Name, state)
		}
		gauge(descInfo, 1, s.Name, short(s.Machine.Version), platform, s.Labels["zone"])
		gauge(descTaking, is(!s.Cordoned && !s.Draining), s.Name)
		gauge(descReplicas, float64(s.Replicas), s.Name)
		if s.State == "gone" {
			continue
		}
		gauge(descSkew, s.Skew, s.Name)
		known(descMemory, s.Machine.Memory, s.Name)
		if s.Machine.Memory > 0 {
			gauge(descFree, float64(s.Machine.MemoryFree), s.Name)
		}
		known(descDisk, s.Machine.Disk, s.Name)
		if s.Machine.Disk > 0 {
			gauge(descDiskFree, float64(s.Machine.DiskFree), s.Name)
		}
		gauge(descCores, float64(s.Machine.CPU)/1000, s.Name)
	}
}

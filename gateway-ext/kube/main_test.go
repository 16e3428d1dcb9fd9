//go:build kube

// Package kube_test proves deploy/kubernetes on a real Kubernetes: whatever
// cluster KUBECONFIG names. "make kube" runs it, and it prints what it measured.
//
// It applies the manifests as a person would, with kubectl and an overlay, in a
// namespace of its own that it removes at the end; deploys the weather app through
// the OpenFaaS API; and asks it while it takes away the gateway's pod and a
// node's. On a cluster of one machine it adds a second DaemonSet, so that there are
// two nodes; on one without a default storage class it brings the volume.
//
// No kubeconfig is looked for: KUBECONFIG must be set, so that nobody's production
// is tried out by mistake.
package kube_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The names that the suite is told by.
const (
	kubeconfigVariable = "KUBECONFIG"
	kubectlVariable    = "KUBECTL" // default: the one in PATH
	imageVariable      = "IMAGE"   // of gateway-ext, which the cluster can pull or has
	variantVariable    = "VARIANT" // a folder of deploy/kubernetes with nodes of ours; default: nodes
)

// program is the path of gateway-ext, kubectl of kubectl. TestMain sets both.
var program, kubectl string

func TestMain(m *testing.M) {
	code, err := prepareAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "make kube:", err)
	}
	os.Exit(code)
}

func prepareAndRun(m *testing.M) (code int, err error) {
	code = 1
	if os.Getenv(kubeconfigVariable) == "" {
		return code, fmt.Errorf("set %s to the file that names the cluster to try this on: %[1]s=$HOME/.kube/config make kube", kubeconfigVariable)
	}
	if kubectl = os.Getenv(kubectlVariable); kubectl == "" {
		kubectl = "kubectl"
	}
	if kubectl, err = exec.LookPath(kubectl); err != nil {
		return code, fmt.Errorf("kubectl is missing: install it (Debian's package kubernetes-client, or https://kubernetes.io/docs/tasks/tools/), or name it by %s=/path", kubectlVariable)
	}
	dir, err := os.MkdirTemp("", "thicket-kube-")
	if err != nil {
		return code, err
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "gateway-ext")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "..")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return code, fmt.Errorf("build the program: %w", err)
	}
	return m.Run(), nil
}

// say prints what was done or measured, as it happens.
func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// since is how long ago that was, as people read it.
func since(t time.Time) time.Duration { return time.Since(t).Round(10 * time.Millisecond) }

//go:build kube

package kube_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// released is what the manifests run if nobody says otherwise.
const released = "ghcr.io/seed-780dceda/thicket/gateway-ext"

// cluster is what was applied, in a namespace of its own.
type cluster struct {
	t         *testing.T
	namespace string
	password  string
	image     string
	variant   string
	machines  []machine
}

// machine is one of Kubernetes' own nodes.
type machine struct{ Name, Arch string }

// newCluster looks at the cluster and writes the overlay. It applies nothing.
func newCluster(t *testing.T) *cluster {
	c := &cluster{
		t: t, namespace: "thicket-test-" + strings.ToLower(rand.Text())[:6], password: rand.Text(),
		image: cmp.Or(os.Getenv(imageVariable), released+":latest"), variant: cmp.Or(os.Getenv(variantVariable), "nodes"),
	}
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ Unschedulable bool }
			Status   struct{ NodeInfo struct{ Architecture string } }
		}
	}
	c.read(&nodes, "get", "nodes")
	for _, n := range nodes.Items {
		if !n.Spec.Unschedulable {
			c.machines = append(c.machines, machine{n.Metadata.Name, n.Status.NodeInfo.Architecture})
		}
	}
	if len(c.machines) == 0 {
		t.Fatal("the cluster has no machine that takes pods")
	}
	return c
}

// run runs kubectl, and returns what it says.
func (c *cluster) run(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, kubectl, args...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// must is run within the namespace, which has to go well.
func (c *cluster) must(args ...string) string {
	c.t.Helper()
	out, err := c.run("", append([]string{"-n", c.namespace}, args...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// read is must, with the answer read as JSON.
func (c *cluster) read(into any, args ...string) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must(append(args, "-o", "json")...)), into); err != nil {
		c.t.Fatalf("kubectl %v: %v", args, err)
	}
}

// overlay writes what a person would write who uses deploy/kubernetes with
// an image and a namespace of their own.
func (c *cluster) overlay() (dir string) {
	c.t.Helper()
	dir = c.t.TempDir()
	here, err := filepath.Abs("../../deploy/kubernetes")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	manifests := func(from, name string) string {
		rel, err := filepath.Rel(from, filepath.Join(here, name)) // kustomize takes no absolute ones
		if err != nil {
			c.t.Fatal(err)
		}
		return rel
	}
	name, tag := c.image, "latest"
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
	}
	also := ""
	if len(c.machines) == 1 {
		second, patch := filepath.Join(dir, "second"), ""
		if more, err := os.ReadFile(filepath.Join(here, c.variant, "node.yaml")); err == nil { // what the variant changes of nodes
			patch = "\n  - patch: |\n      " + strings.ReplaceAll(string(more), "\n", "\n      ")
		}
		c.write(second, fmt.Sprintf(`
resources: [%s]
nameSuffix: "-2"
labels:
  - pairs: {app.kubernetes.io/name: node-2}
    includeSelectors: true
patches:%s
  - target: {kind: DaemonSet}
    patch: |
      - {op: add, path: /spec/template/spec/containers/0/args/-, value: --node-name=$(THICKET_NODE)-2}
`, manifests(second, "node"), patch))
		also = ", second"
	}
	c.write(dir, fmt.Sprintf(`
namespace: %s
resources: [%s%s]
images:
  - {name: %s, newName: %s, newTag: %s}
generatorOptions: {disableNameSuffixHash: true}
secretGenerator:
  - name: basic-auth
    literals: [basic-auth-user=admin, basic-auth-password=%s]
  - name: fleet
    literals: [secret=%s]
`, c.namespace, manifests(dir, c.variant), also, released, name, tag, c.password, rand.Text()+rand.Text()))
	return dir
}

func (c *cluster) write(dir, kustomization string) {
	c.t.Helper()
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "kustomization.yaml"),
			[]byte("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization"+kustomization), 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// volume brings the gateway's volume where the cluster makes none by itself: a
// folder of one machine, which a pod has made before.
func (c *cluster) volume() {
	c.t.Helper()
	var classes struct {
		Items []struct {
			Metadata struct{ Annotations map[string]string }
		}
	}
	c.read(&classes, "get", "storageclasses")
	for _, class := range classes.Items {
		if class.Metadata.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" {
			return
		}
	}
	on, setup := c.machines[0].Name, c.namespace+"-setup"
	folder := "/var/tmp/" + c.namespace
	manifest := fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[2]s}
---
apiVersion: v1
kind: Pod
metadata: {name: folder, namespace: %[2]s}
spec:
  nodeName: %[1]s
  restartPolicy: Never
  automountServiceAccountToken: false
  containers: [{name: folder, image: "%[4]s", args: [version], volumeMounts: [{name: folder, mountPath: /folder}]}]
  volumes: [{name: folder, hostPath: {path: %[3]s, type: DirectoryOrCreate}}]
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[5]s}
spec:
  capacity: {storage: 5Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: %[5]s, name: state-gateway-0}
  local: {path: %[3]s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [%[1]s]}]}]}}
`, on, setup, folder, c.image, c.namespace)
	c.t.Cleanup(func() {
		c.clean("delete", "namespace", setup, "--ignore-not-found")
		c.clean("delete", "persistentvolume", c.namespace, "--ignore-not-found")
		if _, err := os.Stat(folder); err == nil { // the cluster is this machine: nobody else has such a folder
			if err := os.RemoveAll(folder); err != nil {
				c.t.Error(err)
			}
			return
		}
		say("there is no default storage class: the folder %s stays on %s", folder, on)
	})
	if _, err := c.run(manifest, "apply", "-f", "-"); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.run("", "wait", "-n", setup, "pod/folder", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=2m"); err != nil {
		events, _ := c.run("", "get", "events", "-n", setup) // the error says enough without
		c.t.Fatalf("%v\n%s", err, events)
	}
	say("no default storage class: a folder of %s is the gateway's volume", on)
}

// clean takes something away at the end.
func (c *cluster) clean(args ...string) {
	if _, err := c.run("", append(args, "--wait=true", "--timeout=3m")...); err != nil {
		c.t.Errorf("clean up: %v", err)
	}
}

// apply brings all up, and waits for it.
func (c *cluster) apply() {
	c.t.Helper()
	overlay := c.overlay()
	c.t.Cleanup(func() { c.clean("delete", "namespace", c.namespace, "--ignore-not-found") })
	began := time.Now()
	if _, err := c.run("", "apply", "-k", overlay); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.report()
		}
	})
	c.must("rollout", "status", "statefulset/gateway", "--timeout=4m")
	say("gateway ready %s after kubectl apply -k", since(began))
}

// report says what a person would look at first.
func (c *cluster) report() {
	for _, args := range [][]string{
		{"get", "pods,pvc", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
		{"logs", "-l", "app.kubernetes.io/name=gateway", "--tail=60"},
		{"logs", "-l", "app.kubernetes.io/name in (node, node-2)", "--tail=30", "--prefix"},
	} {
		out, err := c.run("", append([]string{"-n", c.namespace}, args...)...)
		if err != nil {
			out = err.Error()
		}
		c.t.Logf("kubectl %s:\n%s", strings.Join(args, " "), out)
	}
}

// nodePods are the pods of our nodes by their node's name in the fleet.
func (c *cluster) nodePods() map[string]string {
	c.t.Helper()
	var pods struct {
		Items []struct {
			Metadata struct {
				Name              string
				Labels            map[string]string
				DeletionTimestamp string
			}
			Spec struct{ NodeName string }
		}
	}
	c.read(&pods, "get", "pods", "-l", "app.kubernetes.io/name in (node, node-2)")
	all := make(map[string]string)
	for _, p := range pods.Items {
		if p.Metadata.DeletionTimestamp != "" {
			continue
		}
		name := strings.ReplaceAll(p.Spec.NodeName, ".", "-")
		if p.Metadata.Labels["app.kubernetes.io/name"] == "node-2" {
			name += "-2"
		}
		all[name] = p.Metadata.Name
	}
	return all
}

// forwarding is what kubectl port-forward says.
var forwarding = regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+) ->`)

// forward opens a way to the gateway's port 8080, which its pod's end closes.
func (c *cluster) forward(ctx context.Context) (port string, err error) {
	cmd := exec.CommandContext(ctx, kubectl, "-n", c.namespace, "port-forward", "service/gateway", ":8080", "--address=127.0.0.1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if m := forwarding.FindStringSubmatch(lines.Text()); m != nil {
			go func() { // ends with the process, which ends with ctx or with the pod
				for lines.Scan() {
				}
				_ = cmd.Wait()
			}()
			return m[1], nil
		}
	}
	return "", fmt.Errorf("kubectl port-forward: %w: %s", cmd.Wait(), stderr.String())
}

// platforms are those of the cluster's machines.
func (c *cluster) platforms() string {
	var all []string
	for _, m := range c.machines {
		if p := "linux/" + m.Arch; !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return strings.Join(all, ",")
}

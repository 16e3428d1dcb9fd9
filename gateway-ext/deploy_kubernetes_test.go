package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// codeBlocks are what a README has people type, or shows them.
func codeBlocks(text string) (blocks []string) {
	inside := false
	for line := range strings.Lines(text) {
		switch fence := strings.HasPrefix(line, "```"); {
		case fence && !inside:
			inside, blocks = true, append(blocks, "")
		case fence:
			inside = false
		case inside:
			blocks[len(blocks)-1] += line
		}
	}
	return blocks
}

// TestKubernetesReadme holds the README to the manifests: the folders, files and
// secrets that it names are those that there are, and the shell reads what it says
// to type. That it works is seen by "make kube".
func TestKubernetesReadme(t *testing.T) {
	dir := filepath.Join(deployed, "kubernetes")
	readme := mustRead(t, filepath.Join(dir, "README.md"))
	folders, err := filepath.Glob(filepath.Join(dir, "*", "kustomization.yaml"))
	if err != nil || len(folders) < 5 {
		t.Fatalf("%d folders have a kustomization, %v", len(folders), err)
	}
	var manifests strings.Builder
	for _, k := range folders {
		folder := filepath.Base(filepath.Dir(k))
		if top := strings.Contains(mustRead(t, k), "\nnamespace: thicket\n"); top != strings.Contains(readme, "| ["+folder+"/]("+folder+") |") {
			t.Errorf("%s can be applied: %v; the README's table says otherwise", folder, top)
		}
		files, err := filepath.Glob(filepath.Join(filepath.Dir(k), "*.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			manifests.WriteString(mustRead(t, f))
		}
	}

	var typed strings.Builder
	for _, block := range codeBlocks(readme) {
		if regexp.MustCompile(`(?m)^(kubectl|bin/gateway-ext) `).MatchString(block) {
			typed.WriteString(block)
		}
	}
	shell := exec.CommandContext(t.Context(), "sh", "-n")
	shell.Stdin = strings.NewReader(typed.String())
	if out, err := shell.CombinedOutput(); err != nil || typed.String() == "" {
		t.Errorf("the shell doesn't take what the README says to type: %v\n%s", err, out)
	}
	for _, m := range regexp.MustCompile(`(?:apply|delete) -[kf] (\S+)`).FindAllStringSubmatch(typed.String(), -1) {
		if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
			t.Errorf("the README says kubectl %s: %v", m[0], err)
		}
	}
	var made []string
	for _, m := range regexp.MustCompile(`-n thicket create secret generic (\S+) (.*)`).FindAllStringSubmatch(typed.String(), -1) {
		made = append(made, m[1])
		for _, key := range regexp.MustCompile(`--from-literal=([\w-]+)=`).FindAllStringSubmatch(m[2], -1) {
			if !strings.Contains(manifests.String(), key[1]) {
				t.Errorf("secret %s gets %s, which no manifest knows", m[1], key[1])
			}
		}
	}
	for _, m := range regexp.MustCompile(`secretName: (\w[\w-]*)|secretKeyRef: \{name: (\w[\w-]*),`).FindAllStringSubmatch(manifests.String(), -1) {
		if name := m[1] + m[2]; !slices.Contains(made, name) {
			t.Errorf("the README doesn't say how secret %s is made", name)
		}
	}

	table := mustRead(t, "../README.md")
	for _, name := range regexp.MustCompile(`THICKET_[A-Z_]+`).FindAllString(manifests.String(), -1) {
		if !strings.Contains(table, "| `"+name+"` |") {
			t.Errorf("a manifest sets %s, which is no setting", name)
		}
	}
}

// TestKubernetesRights: nothing in the manifests has rights in Kubernetes.
func TestKubernetesRights(t *testing.T) {
	err := filepath.WalkDir(filepath.Join(deployed, "kubernetes"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || filepath.Ext(path) != ".yaml" || e.Name() == "values.yaml" {
			return err
		}
		for doc := range strings.SplitSeq(mustRead(t, path), "\n---\n") {
			switch {
			case regexp.MustCompile(`(?m)^kind: (Cluster)?Role`).MatchString(doc):
				t.Errorf("%s has a role", path)
			case regexp.MustCompile(`(?m)^kind: ServiceAccount$|serviceAccountName:`).MatchString(doc) && !strings.Contains(doc, "automountServiceAccountToken: false"):
				t.Errorf("%s mounts a token of Kubernetes", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDeployReadme: each folder has a README and is in the table.
func TestDeployReadme(t *testing.T) {
	list, err := os.ReadDir(deployed)
	if err != nil {
		t.Fatal(err)
	}
	table := mustRead(t, filepath.Join(deployed, "README.md"))
	for _, e := range list {
		if !e.IsDir() {
			continue
		}
		if name := e.Name(); !strings.Contains(table, "| ["+name+"/]("+name+") |") {
			t.Errorf("deploy/README.md doesn't say for whom %s is", name)
		}
		if _, err := os.Stat(filepath.Join(deployed, e.Name(), "README.md")); err != nil {
			t.Error(err)
		}
	}
}

package placement

import (
	"fmt"
	"strings"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Constraint is one of a function's constraints, as [ParseConstraint] reads it.
type Constraint struct {
	key, value string
	label      bool // key is that of a label
	not        bool // != and not ==
}

// The keys that are no labels, and what people write for them.
const (
	keyNode = "node"
	keyArch = "arch"
	keyOS   = "os"
)

var keys = map[string]string{
	"node": keyNode, "node.name": keyNode, "node.hostname": keyNode, "kubernetes.io/hostname": keyNode,
	"arch": keyArch, "node.arch": keyArch, "node.platform.arch": keyArch, "kubernetes.io/arch": keyArch, "beta.kubernetes.io/arch": keyArch,
	"os": keyOS, "node.os": keyOS, "node.platform.os": keyOS, "kubernetes.io/os": keyOS, "beta.kubernetes.io/os": keyOS,
}

// ParseConstraint reads a constraint of a stack file: "node.labels.zone==shelf-1",
// "arch==arm64", "node!=nuc". As in Docker Swarm and Kubernetes, from where
// people bring theirs, "=" is "==", "node.hostname" and "kubernetes.io/hostname"
// are the node's name, and any other key with a "/" is a label. The error is an
// [faas.ErrInvalid].
func ParseConstraint(s string) (Constraint, error) {
	var c Constraint
	key, value, ok := strings.Cut(s, "!=")
	if c.not = ok; !ok {
		key, value, ok = strings.Cut(s, "=")
		value = strings.TrimPrefix(value, "=")
	}
	key, c.value = strings.TrimSpace(key), strings.TrimSpace(value)
	if !ok || key == "" || c.value == "" {
		return c, faas.Errorf(faas.ErrInvalid, "constraint %.70q: write key==value or key!=value, such as node.labels.zone==shelf-1, arch==arm64, node!=nuc", s)
	}
	if c.key, ok = keys[key]; ok {
		if c.key == keyArch {
			c.value = arch(c.value)
		}
		return c, nil
	}
	c.label = true
	for _, prefix := range [...]string{"node.labels.", "labels.", "node.label."} {
		if c.key, ok = strings.CutPrefix(key, prefix); ok && c.key != "" {
			return c, nil
		}
	}
	if c.key = key; strings.Contains(key, "/") {
		return c, nil
	}
	return c, faas.Errorf(faas.ErrInvalid, "constraint %.70q: %.40q is not known: write node, arch, os, or node.labels.NAME for a label of the node", s, key)
}

// String returns the constraint as people write it.
func (c Constraint) String() string {
	op := "=="
	if c.not {
		op = "!="
	}
	key := c.key
	if c.label && !strings.Contains(key, "/") {
		key = "node.labels." + key
	}
	return key + op + c.value
}

// meets says whether a node is as the constraint asks. A label that a node
// doesn't have is different from every value.
func (c *Constraint) meets(n *Node) bool {
	switch {
	case c.label:
		return (n.Labels[c.key] == c.value) != c.not
	case c.key == keyNode:
		return (n.Name == c.value) != c.not
	case len(n.Platforms) == 0:
		return true // it is for the cluster to see to it
	}
	os, rest, _ := strings.Cut(n.Platforms[0], "/")
	if c.key == keyOS {
		return (os == c.value) != c.not
	}
	// "arm" is any of them, "arm/v7" one.
	family, _, _ := strings.Cut(rest, "/")
	return (rest == c.value || family == c.value) != c.not
}

// say says what is wrong with a node.
func (c *Constraint) say(n *Node) string {
	is := "not so"
	switch {
	case c.label:
		if is = n.Labels[c.key]; is == "" {
			return fmt.Sprintf("%s is asked for, and it has no label %s", c, c.key)
		}
	case c.key == keyNode:
		is = n.Name
	case len(n.Platforms) > 0:
		os, rest, _ := strings.Cut(n.Platforms[0], "/")
		if is = rest; c.key == keyOS {
			is = os
		}
	}
	return fmt.Sprintf("%s is asked for, and it is %s", c, is)
}

// arch is a CPU's architecture as OCI writes it, from what uname and others do.
func arch(s string) string {
	switch s {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64", "arm64/v8", "arm64v8":
		return "arm64"
	case "armv7l", "armhf", "armv7", "arm32v7":
		return "arm/v7"
	case "armv6l", "armel", "armv6", "arm32v6":
		return "arm/v6"
	}
	return s
}

package faas

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/distribution/reference"
	"github.com/openfaas/faas-provider/types"
)

// The bounds of what one declaration may hold. They are far above what
// functions use, and keep a declaration well inside one message of the store
// (1 MiB).
const (
	maxImage       = 512       // bytes of an image reference
	maxEnvProcess  = 4 << 10   // bytes of envProcess
	maxEnvVars     = 256       // environment variables
	maxEnvBytes    = 256 << 10 // bytes of all their names and values
	maxEnvValue    = 64 << 10  // bytes of one value; Linux takes 128 KiB
	maxSecrets     = 64        // secrets of one function
	maxConstraints = 32
	maxLabels      = 64       // labels, and as many annotations
	maxLabelKey    = 317      // bytes of a key: "prefix/name" in Kubernetes
	maxLabelValue  = 16 << 10 // bytes of a value
	maxLabelBytes  = 64 << 10 // bytes of all keys and values
	minMemory      = 1 << 20  // the least limit of memory a process can start in
	maxSecretName  = 253
)

// Check returns d as the platform keeps it: surrounding space trimmed, the
// namespace filled in, a name written "function.namespace" taken apart, each
// secret named once. What d holds is copied where it changes, never changed.
//
// If d is wrong the error is one [ErrInvalid] with a line for every mistake, so
// that all of them can be mended at once. A declaration that passes is sound
// in itself; whether its image or its secrets exist is not asked here.
func Check(d types.FunctionDeployment) (types.FunctionDeployment, error) {
	d.Service = strings.TrimSpace(d.Service)
	d.Namespace = strings.TrimSpace(d.Namespace)
	d.Image = strings.TrimSpace(d.Image)
	var c checker
	c.name(&d)
	c.add(CheckImage(d.Image))
	c.process(d.EnvProcess)
	c.env(d.EnvVars)
	c.constraints(d.Constraints)
	d.Secrets = c.secrets(d.Secrets)
	c.metadata("label", d.Labels)
	c.metadata("annotation", d.Annotations)
	if d.Labels != nil {
		_, err := ParseScale(*d.Labels)
		c.add(err)
	}
	c.resources(d.Limits, d.Requests)
	if err := errors.Join(c.mistakes...); err != nil {
		return d, Errorf(ErrInvalid, "%w", err)
	}
	return d, nil
}

// checker collects mistakes.
type checker struct{ mistakes []error }

func (c *checker) add(err error) {
	if err != nil {
		c.mistakes = append(c.mistakes, err)
	}
}

func (c *checker) errorf(format string, args ...any) {
	c.add(Errorf(ErrInvalid, format, args...))
}

func (c *checker) name(d *types.FunctionDeployment) {
	if i := strings.LastIndexByte(d.Service, '.'); i >= 0 {
		ns := d.Service[i+1:]
		if d.Namespace != "" && d.Namespace != ns {
			c.errorf("service %.130q names the namespace %.70q, but field namespace says %.70q: write one of them", d.Service, ns, d.Namespace)
			return
		}
		d.Service, d.Namespace = d.Service[:i], ns
	}
	if d.Namespace == "" {
		d.Namespace = DefaultNamespace
	}
	c.add(CheckLabel("function name", d.Service))
	c.add(CheckLabel("namespace", d.Namespace))
}

// CheckImage returns nil if s is the name of an image as registries write it:
// "weather", "ghcr.io/you/weather:1.2", "host:5000/weather@sha256:…". Else it
// returns an [ErrInvalid].
func CheckImage(s string) error {
	const example = `write for example "ghcr.io/you/weather:1.2"`
	switch {
	case s == "":
		return Errorf(ErrInvalid, "image is empty: %s", example)
	case len(s) > maxImage:
		return Errorf(ErrInvalid, "image %.70q… has %d bytes, at most %d are allowed", s, len(s), maxImage)
	case strings.Contains(s, "://"):
		return Errorf(ErrInvalid, "image %q is a URL: leave out everything up to \"://\"", s)
	}
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Errorf(ErrInvalid, "image %q is not the name of an image (%w): %s", s, err, example)
	}
	if host := reference.Domain(ref); strings.ToLower(host) != host {
		return Errorf(ErrInvalid, "image %q has capital letters in %q: write it in lower case", s, host)
	}
	if d, ok := ref.(reference.Digested); ok && d.Digest().Algorithm() != "sha256" {
		return Errorf(ErrInvalid, "image %q is pinned to a digest of kind %q: only sha256 is supported", s, d.Digest().Algorithm())
	}
	return nil
}

func (c *checker) process(s string) {
	if len(s) > maxEnvProcess {
		c.errorf("envProcess has %d bytes, at most %d are allowed", len(s), maxEnvProcess)
	}
	if strings.ContainsRune(s, 0) {
		c.errorf("envProcess contains a zero byte")
	}
}

func (c *checker) env(vars map[string]string) {
	if len(vars) > maxEnvVars {
		c.errorf("envVars has %d variables, at most %d are allowed", len(vars), maxEnvVars)
		return
	}
	total := 0
	for _, key := range slices.Sorted(maps.Keys(vars)) {
		value := vars[key]
		total += len(key) + len(value)
		if key == "" || len(key) > 255 || strings.ContainsFunc(key, func(r rune) bool {
			return r <= ' ' || r == '=' || r > '~'
		}) {
			c.errorf("envVars: %.70q can't be the name of an environment variable: use letters, digits and \"_\"", key)
		}
		if strings.ContainsRune(value, 0) {
			c.errorf("envVars: the value of %.70q contains a zero byte; put binary data into a secret", key)
		}
		if len(value) > maxEnvValue {
			c.errorf("envVars: the value of %.70q has %d bytes, at most %d are allowed", key, len(value), maxEnvValue)
		}
	}
	if total > maxEnvBytes {
		c.errorf("envVars has %d bytes in all, at most %d are allowed", total, maxEnvBytes)
	}
}

func (c *checker) constraints(list []string) {
	if len(list) > maxConstraints {
		c.errorf("constraints has %d entries, at most %d are allowed", len(list), maxConstraints)
		return
	}
	for _, s := range list {
		if !printable(s, 256) {
			c.errorf("constraint %.70q is empty, longer than 256 bytes, or has control characters", s)
		}
	}
}

// secrets returns names with each of them once.
func (c *checker) secrets(names []string) []string {
	if len(names) > maxSecrets {
		c.errorf("secrets has %d entries, at most %d are allowed", len(names), maxSecrets)
		return names
	}
	var once []string
	for _, name := range names {
		if slices.Contains(once, name) {
			continue
		}
		once = append(once, name)
		c.add(CheckSecretName(name))
	}
	return once
}

// CheckSecretName returns nil if s can name a secret, else an [ErrInvalid]. It
// is a DNS subdomain (RFC 1123), as in Kubernetes and in faas-cli: labels
// joined by dots, at most 253 bytes. It is also the name of a file, and no such
// name leads out of a folder.
func CheckSecretName(s string) error {
	if len(s) > maxSecretName {
		return Errorf(ErrInvalid, "secret name %.70q… has %d bytes, at most %d are allowed", s, len(s), maxSecretName)
	}
	for label := range strings.SplitSeq(s, ".") {
		if CheckLabel("", label) != nil {
			return Errorf(ErrInvalid, "secret name %q is not a DNS name: use a-z, 0-9 and \"-\" (not first or last), in parts of at most 63 joined by \".\"", s)
		}
	}
	return nil
}

// metadata checks labels or annotations.
func (c *checker) metadata(what string, m *map[string]string) {
	if m == nil {
		return
	}
	if len(*m) > maxLabels {
		c.errorf("%ss has %d entries, at most %d are allowed", what, len(*m), maxLabels)
		return
	}
	total := 0
	for _, key := range slices.Sorted(maps.Keys(*m)) {
		value := (*m)[key]
		total += len(key) + len(value)
		if !printable(key, maxLabelKey) || strings.ContainsRune(key, ' ') {
			c.errorf("%s %.70q: a key has 1 to %d bytes and neither spaces nor control characters", what, key, maxLabelKey)
		}
		if len(value) > maxLabelValue {
			c.errorf("%s %.70q: its value has %d bytes, at most %d are allowed", what, key, len(value), maxLabelValue)
		}
		if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
			c.errorf("%s %.70q: its value is not text in UTF-8", what, key)
		}
	}
	if total > maxLabelBytes {
		c.errorf("%ss has %d bytes in all, at most %d are allowed", what, total, maxLabelBytes)
	}
}

func (c *checker) resources(limits, requests *types.FunctionResources) {
	memLimit, cpuLimit := c.amounts("limits", limits)
	memRequest, cpuRequest := c.amounts("requests", requests)
	if memLimit > 0 && memRequest > memLimit {
		c.errorf("requests.memory %q is more than limits.memory %q", requests.Memory, limits.Memory)
	}
	if cpuLimit > 0 && cpuRequest > cpuLimit {
		c.errorf("requests.cpu %q is more than limits.cpu %q", requests.CPU, limits.CPU)
	}
}

// amounts returns what r asks for; 0 is nothing, or not understood.
func (c *checker) amounts(field string, r *types.FunctionResources) (memory, cpu int64) {
	if r == nil {
		return 0, 0
	}
	var err error
	if r.Memory != "" {
		if memory, err = ParseMemory(r.Memory); err != nil {
			c.errorf("%s.memory: %w", field, err)
		} else if 0 < memory && memory < minMemory {
			// "20m" is twenty megabytes for Docker, but 0.02 bytes here.
			c.errorf("%s.memory %q is %d bytes, too little for any process: write for example \"20Mi\" (m is a thousandth, Mi is 1024 × 1024)", field, r.Memory, memory)
		}
	}
	if r.CPU != "" {
		if cpu, err = ParseCPU(r.CPU); err != nil {
			c.errorf("%s.cpu: %w", field, err)
		}
	}
	for _, gpu := range []struct{ vendor, count string }{
		{"nvidia.com/gpu", r.NvidiaGPU}, {"amd.com/gpu", r.AmdGPU}, {"intel.com/gpu", r.IntelGPU},
	} {
		if gpu.count != "" && strings.Trim(gpu.count, "0123456789") != "" || len(gpu.count) > 4 {
			c.errorf("%s.%s %.70q is not a count of devices", field, gpu.vendor, gpu.count)
		}
	}
	return memory, cpu
}

// printable says whether s has 1 to limit bytes of text without control
// characters.
func printable(s string, limit int) bool {
	return s != "" && len(s) <= limit && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// CheckNamespace returns nil if ns can be kept: its name is a DNS label, its
// labels and annotations are bounded. Else it returns one [ErrInvalid] with a
// line for every mistake.
func CheckNamespace(ns types.FunctionNamespace) error {
	var c checker
	c.add(CheckLabel("namespace", ns.Name))
	c.metadata("label", &ns.Labels)
	c.metadata("annotation", &ns.Annotations)
	if err := errors.Join(c.mistakes...); err != nil {
		return Errorf(ErrInvalid, "%w", err)
	}
	return nil
}

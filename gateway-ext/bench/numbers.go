package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// number is what one Go benchmark of this module says.
type number struct{ name, values string }

// numbers runs the Go benchmarks of the module, one package after the other.
func numbers(ctx context.Context) ([]number, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return nil, err
	}
	progress("the Go benchmarks; about three minutes")
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", ".", "-benchmem", "-benchtime", "300ms", "-p", "1", "./...")
	cmd.Dir = root
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, os.Stderr), os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go test -bench: %w", err)
	}
	return parseNumbers(out.String()), nil
}

// cores is how the number of cores is told behind a benchmark's name.
var cores = regexp.MustCompile(`-\d+$`)

// parseNumbers reads what "go test -bench" prints: a name, how often it ran, and
// pairs of a value and its unit.
func parseNumbers(out string) (all []number) {
	pkg := ""
	for line := range strings.Lines(out) {
		if p, ok := strings.CutPrefix(line, "pkg: "); ok {
			_, pkg, _ = strings.Cut(strings.TrimSpace(p), "/thicket/")
			continue
		}
		fields := strings.Fields(line)
		if !strings.HasPrefix(line, "Benchmark") || len(fields) < 4 {
			continue
		}
		// What has its own units and no time has nothing to say of allocations.
		own := !slices.Contains(fields, "ns/op")
		var values []string
		for i := 2; i+1 < len(fields); i += 2 {
			if unit := fields[i+1]; !own || unit != "B/op" && unit != "allocs/op" {
				values = append(values, fields[i]+" "+unit)
			}
		}
		// The number of cores is the machine's, which is told above.
		name := cores.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
		all = append(all, number{pkg + " " + name, strings.Join(values, ", ")})
	}
	return all
}

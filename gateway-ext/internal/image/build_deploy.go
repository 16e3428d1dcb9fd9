package image

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/openfaas/faas-provider/types"
	"github.com/openfaas/go-sdk/stack"
	"gopkg.in/yaml.v3"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Deployment returns what faas-cli would send to deploy one of the stack's
// functions: environment files read and laid over the environment, and fprocess
// taken from the template if the function has none.
func (s *Stack) Deployment(name string) (types.FunctionDeployment, error) {
	f, ok := s.Functions[name]
	if !ok {
		return types.FunctionDeployment{}, faas.Errorf(faas.ErrNotFound, "%s has no function %q, it has: %s",
			s.Path, name, strings.Join(s.Names(), ", "))
	}
	d := deployment(name, f)
	d.EnvVars = maps.Clone(f.Environment)
	for _, file := range f.EnvironmentFile {
		if !filepath.IsAbs(file) {
			file = filepath.Join(s.Dir, file)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return d, faas.Errorf(faas.ErrInvalid, "functions.%s.environment_file: %w", name, err)
		}
		var env stack.EnvironmentFile
		if err := yaml.Unmarshal(data, &env); err != nil {
			return d, faas.Errorf(faas.ErrInvalid, "functions.%s.environment_file: %s must have the key \"environment\" with names and values below it: %w", name, file, err)
		}
		if d.EnvVars == nil {
			d.EnvVars = make(map[string]string, len(env.Environment))
		}
		maps.Copy(d.EnvVars, env.Environment)
	}
	if d.EnvProcess == "" && f.Language != "" && filepath.IsLocal(f.Language) {
		process, err := templateProcess(filepath.Join(s.Dir, "template", f.Language, "template.yml"))
		if err != nil {
			return d, fmt.Errorf("deploy %s: %w", name, err)
		}
		d.EnvProcess = process
	}
	return d, nil
}

// templateProcess returns the fprocess that a template wants, if it is there.
func templateProcess(file string) (string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var t stack.LanguageTemplate
	if err := yaml.Unmarshal(data, &t); err != nil {
		return "", faas.Errorf(faas.ErrInvalid, "%s: %w", file, err)
	}
	return t.FProcess, nil
}

// deployment translates what is written in the stack file itself.
func deployment(name string, f stack.Function) types.FunctionDeployment {
	d := types.FunctionDeployment{
		Service:                name,
		Namespace:              f.Namespace,
		Image:                  f.Image,
		EnvProcess:             f.FProcess,
		EnvVars:                f.Environment,
		Secrets:                f.Secrets,
		Labels:                 f.Labels,
		Annotations:            f.Annotations,
		Limits:                 resources(f.Limits),
		Requests:               resources(f.Requests),
		ReadOnlyRootFilesystem: f.ReadOnlyRootFilesystem,
	}
	if f.Constraints != nil {
		d.Constraints = *f.Constraints
	}
	return d
}

func resources(r *stack.FunctionResources) *types.FunctionResources {
	if r == nil || *r == (stack.FunctionResources{}) {
		return nil
	}
	return &types.FunctionResources{Memory: r.Memory, CPU: r.CPU}
}

// checkDeployment has package faas look at each field of what would be deployed
// apart, so that the mistake is found by the line of its key.
func checkDeployment(d types.FunctionDeployment, add func(key, format string, args ...any)) {
	fields := []struct {
		key string
		d   types.FunctionDeployment
	}{
		{"fprocess", types.FunctionDeployment{EnvProcess: d.EnvProcess}},
		{"environment", types.FunctionDeployment{EnvVars: d.EnvVars}},
		{"constraints", types.FunctionDeployment{Constraints: d.Constraints}},
		{"secrets", types.FunctionDeployment{Secrets: d.Secrets}},
		{"labels", types.FunctionDeployment{Labels: d.Labels}},
		{"annotations", types.FunctionDeployment{Annotations: d.Annotations}},
		{"limits", types.FunctionDeployment{Limits: d.Limits, Requests: d.Requests}},
	}
	for _, f := range fields {
		f.d.Service, f.d.Image = "any", "any"
		if _, err := faas.Check(f.d); err != nil {
			for line := range strings.Lines(err.Error()) {
				add(f.key, "%s", strings.TrimRight(line, "\n"))
			}
		}
	}
}

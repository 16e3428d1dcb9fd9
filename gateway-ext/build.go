package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
	"github.com/seed-780dceda/thicket/template"
)

// registryVariable is what a stack file writes where the gateway's own registry
// is meant: image: ${THICKET_REGISTRY:-127.0.0.1:8080}/weather:latest.
const registryVariable = "THICKET_REGISTRY"

func (c *command) build() *cobra.Command {
	var file, filter, platforms string
	var push bool
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Make images of a stack's functions, without Docker",
		Long: `Compile each Go function of a stack with its template into a static program and
make an OCI image of it, for one platform or several. --push sends the images to
the registries that their names begin with.

In the stack file ${THICKET_REGISTRY} is the registry; without it the one of the
gateway on this machine. A gateway's registry takes the gateway's user and
password: THICKET_USER and THICKET_PASSWORD (or THICKET_PASSWORD_FILE), or, on
its own machine, the generated one in its state folder (THICKET_DATA). Other
registries' passwords come from Docker's config.json, or from the file that
THICKET_DOCKER_CONFIG names.`,
		Example: `  gateway-ext build                                   what stack.yml says, for this machine
  gateway-ext build -f stack.yml --push
  gateway-ext build --filter weather-producer --platforms linux/arm64,linux/arm/v7`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readSettings(c.environ)
			if err != nil {
				return err
			}
			wanted, err := image.ParsePlatforms(platforms)
			if err != nil {
				return fmt.Errorf("--platforms: %w", err)
			}
			st, err := image.ReadStack(file, c.stackVariables(ownRegistry(s)))
			if err != nil {
				return err
			}
			names, err := selectFunctions(st, filter)
			if err != nil {
				return err
			}
			b := builder{command: c, settings: s, stack: st, platforms: wanted, p: newProgress(c.stdout)}
			if push {
				b.own = ownRegistry(s)
				if s.Password != "" || s.PasswordFile != "" {
					// A gateway elsewhere. The password generated for the one on
					// this machine is sent to no other address.
					b.own = cmp.Or(c.getenv(registryVariable), b.own)
				}
				// Asked for only now: building alone needs no password.
				b.user, b.password = s.pushCredentials()
			}
			for _, name := range names {
				if _, err := b.make(cmd.Context(), name, push); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "yaml", "f", "", "stack `file` (default stack.yaml, else stack.yml)")
	cmd.Flags().StringVar(&filter, "filter", "", "only the functions whose names match this `pattern`, such as 'weather-*'")
	cmd.Flags().StringVar(&platforms, "platforms", "", "`list` such as linux/amd64,linux/arm64,linux/arm/v7 (default: what the function asks for, else this machine's)")
	cmd.Flags().BoolVar(&push, "push", false, "push the images")
	return cmd
}

// builder makes and pushes the images of one stack.
type builder struct {
	*command
	settings  settings
	stack     *image.Stack
	platforms []v1.Platform
	p         *progress

	own            string // host:port of the gateway's registry
	user, password string
}

// make builds one function and pushes it if push is set. It returns the digest, which is
// empty for a function that says skip_build.
func (b *builder) make(ctx context.Context, name string, push bool) (digest string, err error) {
	cfg, err := b.stack.BuildConfig(name)
	if err != nil {
		return "", err
	}
	if cfg.Function.SkipBuild {
		b.p.line("%s: not built (skip_build)", name)
		return "", nil
	}
	cfg.Platforms = b.platforms
	cfg.Template = template.GolangResilient()
	cfg.Environ = b.environ
	began := time.Now()
	cfg.Progress = func(step string) { b.p.begin("%s: %s", name, step) }
	built, err := image.Build(ctx, cfg)
	if err != nil {
		b.p.clear()
		return "", err
	}
	b.p.line("%s: built for %s in %.1f s", name, platformList(built.Platforms), time.Since(began).Seconds())
	if !push {
		b.p.line("%s: %s", name, built.Digest)
		return built.Digest.String(), nil
	}
	began = time.Now()
	ref, err := image.Push(ctx, built, image.PushConfig{
		Own:       b.own,
		Username:  b.user,
		Password:  b.password,
		Keychain:  image.Keychain(b.settings.DockerConfig),
		PlainHTTP: b.settings.InsecureRegistries,
		Progress: func(done, total int64) {
			b.p.update("%s: pushed %s of %s", name, megabytes(done), megabytes(total))
		},
	})
	if err != nil {
		b.p.clear()
		return "", err
	}
	b.p.line("%s: pushed %s in %.1f s", name, ref, time.Since(began).Seconds())
	return built.Digest.String(), nil
}

// stackVariables returns what a stack file's variables are: the environment's,
// and own for the registry if that says nothing of it.
func (c *command) stackVariables(own string) func(name string) string {
	return func(name string) string {
		value := c.getenv(name)
		if value == "" && name == registryVariable {
			value = own
		}
		return value
	}
}

// selectFunctions returns the names of the stack's functions that match pattern.
func selectFunctions(s *image.Stack, pattern string) ([]string, error) {
	names := s.Names()
	if pattern == "" {
		return names, nil
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("--filter: %q is not a pattern: use * and ? and [a-z]", pattern)
	}
	matching := slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		ok, _ := path.Match(pattern, name)
		return !ok
	})
	if len(matching) == 0 {
		return nil, fmt.Errorf("--filter: no function matches %q: %s has %s", pattern, s.Path, strings.Join(names, ", "))
	}
	return matching, nil
}

// ownRegistry is where the gateway of this machine has its registry.
func ownRegistry(s settings) string {
	if strings.HasPrefix(s.Addr, ":") {
		return "127.0.0.1" + s.Addr
	}
	return s.Addr
}

// pushCredentials returns the gateway's user and password as far as they are
// known here; pushing says so if they were needed.
func (s *settings) pushCredentials() (user, password string) {
	user, password, _, err := s.credentials(func() (string, string, bool, error) {
		p, err := os.ReadFile(s.generatedPassword())
		return strings.TrimSpace(string(p)), "", false, err
	})
	if err != nil {
		return s.User, ""
	}
	return user, password
}

func platformList(platforms []v1.Platform) string {
	var list []string
	for _, p := range platforms {
		list = append(list, p.String())
	}
	return strings.Join(list, ", ")
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

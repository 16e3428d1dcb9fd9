package image

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// HostPlatform is what runs on this machine: on a Mac a darwin, on an old Pi a
// variant of arm.
func HostPlatform() v1.Platform {
	p := v1.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	if p.Architecture == "arm" {
		p.Variant = armVariant(machine())
	}
	return p
}

// armVariant reads what the kernel calls the processor. A 64-bit kernel runs
// 32-bit programs of the seventh version.
func armVariant(machine string) string {
	switch {
	case strings.HasPrefix(machine, "armv5"):
		return "v5"
	case strings.HasPrefix(machine, "armv6"):
		return "v6"
	}
	return "v7"
}

// HostPlatforms returns all that runs on this machine, best first: its own
// platform, and on many 64-bit ARMs the 32-bit ones.
var HostPlatforms = sync.OnceValue(func() []v1.Platform {
	host := HostPlatform()
	all := Accepted(host)
	if host.OS == "linux" && host.Architecture == "arm64" && runs32() {
		all = append(all, Accepted(v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"})...)
	}
	return all
})

// Accepted returns what runs on a platform, best first.
func Accepted(p v1.Platform) []v1.Platform {
	p = normal(p)
	out := []v1.Platform{p}
	if p.Architecture != "arm" {
		return out
	}
	for _, older := range []string{"v7", "v6", "v5"} {
		if older < p.Variant {
			out = append(out, v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: older})
		}
	}
	return out
}

// normal fills in the variants that are usually left out (OCI image index,
// "Platform Variants"; what containerd calls normalizing).
func normal(p v1.Platform) v1.Platform {
	out := v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	switch {
	case p.Architecture == "arm" && p.Variant == "":
		out.Variant = "v7"
	case p.Architecture == "arm" && len(p.Variant) == 1:
		out.Variant = "v" + p.Variant
	case p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "8"):
		out.Variant = ""
	case p.Architecture == "amd64" && p.Variant == "v1":
		out.Variant = ""
	}
	return out
}

// rank returns the place of have among the wanted, or -1.
func rank(wanted []v1.Platform, have v1.Platform) int {
	have = normal(have)
	return slices.IndexFunc(wanted, func(w v1.Platform) bool {
		return w.OS == have.OS && w.Architecture == have.Architecture && w.Variant == have.Variant
	})
}

// choose returns the manifest of an index that suits this machine best, and the
// platforms that the index has something for.
func (s *Store) choose(image string, raw []byte) (v1.Hash, []string, error) {
	m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return v1.Hash{}, nil, faas.Errorf(faas.ErrInvalid, "image %s: its index can't be read: %w", image, err)
	}
	best := -1
	var digest v1.Hash
	for _, d := range m.Manifests {
		if !isOffer(d) {
			continue
		}
		if r := rank(s.platforms, *d.Platform); r >= 0 && (best < 0 || r < best) {
			best, digest = r, d.Digest
		}
	}
	have := offered(m)
	if best < 0 {
		return v1.Hash{}, names(have), s.unfit(image, have)
	}
	return digest, names(have), nil
}

// isOffer says whether an entry of an index is an image. Builders put
// attestations beside images, for the platform "unknown/unknown".
func isOffer(d v1.Descriptor) bool {
	return d.Platform != nil && d.Platform.OS != "" && d.Platform.OS != "unknown"
}

// offered lists the platforms of an index.
func offered(m *v1.IndexManifest) (have []v1.Platform) {
	for _, d := range m.Manifests {
		if isOffer(d) {
			have = append(have, *d.Platform)
		}
	}
	return have
}

// names are platforms as OCI writes them, each once.
func names(platforms []v1.Platform) []string {
	list := make([]string, 0, len(platforms))
	for _, p := range platforms {
		list = append(list, platformName(normal(p)))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// unfit says that an image has nothing for this machine, and what it has.
func (s *Store) unfit(image string, have []v1.Platform) error {
	names := names(have)
	list := "no platform at all"
	if len(names) > 0 {
		list = strings.Join(names[:min(len(names), 20)], ", ")
	}
	return &misfit{error: faas.Errorf(faas.ErrInvalid, "image %s has no %s: it has %s", image, platformName(s.platforms[0]), list)}
}

func platformName(p v1.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

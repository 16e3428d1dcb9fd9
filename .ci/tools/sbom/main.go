// Command sbom prints the bill of materials of a Go program, in CycloneDX's
// form: the modules that were linked in, with their versions and hashes, as the
// compiler noted them in the program itself. It needs no network, and prints
// the same for the same program.
//
//	go run ./sbom dist/gateway-ext_linux_arm64 > gateway-ext.cdx.json
package main

import (
	"cmp"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: sbom PROGRAM")
		os.Exit(2)
	}
	info, err := buildinfo.ReadFile(os.Args[1])
	if err == nil {
		err = write(os.Stdout, info)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// bill is a CycloneDX 1.6 document (ECMA-424), as far as it is used here.
type bill struct {
	Schema     string      `json:"$schema"`
	Format     string      `json:"bomFormat"`
	Spec       string      `json:"specVersion"`
	Version    int         `json:"version"`
	Metadata   metadata    `json:"metadata"`
	Components []component `json:"components"`
}

type metadata struct {
	Component  component  `json:"component"`
	Properties []property `json:"properties"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func write(w io.Writer, info *debug.BuildInfo) error {
	main, err := componentOf("application", &info.Main)
	if err != nil {
		return err
	}
	b := bill{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json",
		Format: "CycloneDX", Spec: "1.6", Version: 1,
		Metadata: metadata{Component: main, Properties: []property{{"go:version", info.GoVersion}}},
		// The standard library is part of every Go program.
		Components: []component{{
			Type: "library", Ref: "std", Name: "std",
			Version: strings.TrimPrefix(info.GoVersion, "go"),
			PURL:    "pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go"),
		}},
	}
	for _, s := range info.Settings {
		b.Metadata.Properties = append(b.Metadata.Properties, property{"go:build:" + s.Key, s.Value})
	}
	for _, dep := range info.Deps {
		c, err := componentOf("library", dep)
		if err != nil {
			return err
		}
		b.Components = append(b.Components, c)
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(b)
}

func componentOf(kind string, m *debug.Module) (component, error) {
	for m.Replace != nil {
		m = m.Replace
	}
	version := cmp.Or(m.Version, "(devel)")
	purl := "pkg:golang/" + m.Path + "@" + strings.ReplaceAll(version, "+", "%2B")
	c := component{Type: kind, Ref: purl, Name: m.Path, Version: version, PURL: purl}
	// A sum is "h1:", and the SHA-256 of the list of the module's files with
	// their hashes: https://go.dev/ref/mod#go-sum-files. It is no hash of an
	// archive, which is what CycloneDX means by one; hence also as a property.
	if encoded, ok := strings.CutPrefix(m.Sum, "h1:"); ok {
		sum, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return component{}, fmt.Errorf("sum of %s: %w", m.Path, err)
		}
		c.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum)}}
		c.Properties = []property{{"go:sum", m.Sum}}
	}
	return c, nil
}

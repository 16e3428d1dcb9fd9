package main

import (
	"bytes"
	"encoding/json"
	"runtime/debug"
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	info := &debug.BuildInfo{
		GoVersion: "go1.26.1",
		Main:      debug.Module{Path: "example.com/program", Version: "v1.2.3"},
		Deps: []*debug.Module{
			{Path: "example.com/a", Version: "v1.0.0+incompatible", Sum: "h1:AAAA"},
			{Path: "example.com/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/c", Version: "v2.0.0"}},
		},
		Settings: []debug.BuildSetting{{Key: "GOARCH", Value: "arm64"}},
	}
	var out bytes.Buffer
	if err := write(&out, info); err != nil {
		t.Fatal(err)
	}
	var b bill
	if err := json.Unmarshal(out.Bytes(), &b); err != nil {
		t.Fatal(err)
	}
	var purls []string
	for _, c := range b.Components {
		purls = append(purls, c.PURL)
	}
	const want = "pkg:golang/std@1.26.1 pkg:golang/example.com/a@v1.0.0%2Bincompatible pkg:golang/example.com/c@v2.0.0"
	if got := strings.Join(purls, " "); got != want {
		t.Errorf("components = %s, want %s", got, want)
	}
	if got := b.Metadata.Component.PURL; got != "pkg:golang/example.com/program@v1.2.3" {
		t.Errorf("the program is %s", got)
	}
	if got := b.Components[1].Hashes; len(got) != 1 || got[0].Content != "000000" {
		t.Errorf("hashes = %v", got)
	}
	info.Deps[0].Sum = "h1:?"
	if err := write(&out, info); err == nil {
		t.Error("write() took a sum that is none")
	}
}

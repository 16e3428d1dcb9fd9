// Package template carries the faas-cli templates of this project inside of
// gateway-ext, so that it builds functions in any folder without fetching
// anything first.
package template

import (
	"embed"
	"io/fs"
)

// The sample in function/ is a module of its own, which embed leaves out:
// nothing but "faas-cli new" needs it.
//
//go:embed all:golang-resilient
var files embed.FS

// GolangResilient returns the root of the template golang-resilient.
func GolangResilient() fs.FS {
	root, err := fs.Sub(files, "golang-resilient")
	if err != nil {
		panic(err) // the name is a constant
	}
	return root
}

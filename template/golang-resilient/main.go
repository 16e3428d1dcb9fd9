//go:build ignore

// The program around a function. build.sh puts it into the function's module,
// with the true import paths.
package main

import (
	function "handler/function"
	"handler/resilient"
)

func main() {
	resilient.Main(function.Handle)
}

//go:build !linux

package main_test

import "testing"

// fullDisk is a small disk, which this system doesn't mount so easily.
func fullDisk(*testing.T) string { return "" }

//go:build !linux

package provider

// freeMemory can't be told without a C library.
func freeMemory() (free, total int64, ok bool) { return 0, 0, false }

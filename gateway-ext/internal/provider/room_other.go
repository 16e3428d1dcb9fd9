//go:build !linux

package provider

import "runtime"

// freeMemory can't be told without a C library.
func freeMemory() (free, total int64, ok bool) { return 0, 0, false }

// CPU returns how many thousandths of a processor there are for this process and
// those that it starts.
func CPU() int64 { return 1000 * int64(runtime.NumCPU()) }

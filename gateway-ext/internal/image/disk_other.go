//go:build !linux

package image

import (
	"math"
	"os"
)

// machine is only asked on 32-bit ARM, and only Linux runs on that.
func machine() string { return "" }

const canSyncAll = false

// syncAll can't be had for a whole file system; the file itself is synced.
func syncAll(f *os.File) error { return f.Sync() }

// freeBytes is not known here. A full disk is noticed when a write fails.
func freeBytes(string) (int64, error) { return math.MaxInt64, nil }

//go:build !linux && !darwin

package state

import (
	"errors"
	"os"
	"runtime"
)

// lockFolder refuses: without a lock, two gateways could destroy the folder.
func lockFolder(string) (*os.File, error) {
	return nil, errors.New("a state folder can't be locked on " + runtime.GOOS + ": use Linux or macOS")
}

// checkWritable is never reached either.
func checkWritable(string) error { return errors.ErrUnsupported }

// freeBytes is never reached, since no folder can be opened.
func freeBytes(string) (int64, error) { return 0, errors.ErrUnsupported }

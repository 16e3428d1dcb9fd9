package main

import (
	"context"
	"runtime/debug"
	"time"
)

// settle gives back the memory that a start, or a burst of declarations, needed
// and nobody needs now: the runtime by itself keeps some of it for minutes, which
// is much on a machine with 512 MB. Once a minute that costs some milliseconds.
//
// With the first two it also lets go of the program itself: of its 44 MB a start
// reads most, and a gateway that is idle needs a quarter.
func settle(ctx context.Context) error {
	starts := 2
	for wait := 15 * time.Second; ; wait = time.Minute {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		debug.FreeOSMemory()
		if starts > 0 {
			starts--
			forgetProgram()
		}
	}
}

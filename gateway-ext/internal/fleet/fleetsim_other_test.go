//go:build !linux

package fleet_test

import "time"

var coreBegan = time.Now()

// coreTime is the time: it can't be told here how long a thread has had a core.
func coreTime() time.Duration { return time.Since(coreBegan) }

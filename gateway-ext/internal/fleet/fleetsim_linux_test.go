package fleet_test

import (
	"time"

	"golang.org/x/sys/unix"
)

// coreTime is how long this thread has had a core: what a round takes does not
// depend on what else the machine has to do.
func coreTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

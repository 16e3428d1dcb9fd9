package fleet

import "time"

// What decide.go decides, for its tables.
var (
	Declare  = declare
	Due      = due
	Pinned   = pinned
	Replicas = replicas
	Retry    = retry
	Running  = running
	ScaleOf  = scaleOf
	Settle   = settle
)

// Task is a task.
type Task = task

// NewTask returns a task that failed some times.
func NewTask(attempts int, next time.Time, running bool) *Task {
	return &task{attempts: attempts, next: next, running: running}
}

// What decide_scale.go decides.
var (
	DecideScale = decideScale
	RoomOn      = roomOn
)

type (
	Scaling = scaling
	Average = average
	Memory  = memory
	Low     = low
	Room    = room
	Verdict = verdict
)

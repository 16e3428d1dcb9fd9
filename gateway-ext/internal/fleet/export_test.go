package fleet

import (
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

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

// Window is a window.
type Window = window

// Load notes a load's integral at a time, and returns the averages that
// [decideScale] looks at.
func (w *window) Load(at time.Time, sum float64) (stable, panic average, peak float64) {
	w.add(at, sum)
	return w.over(stableWindow), w.over(panicWindow), w.peak(panicWindow, stableWindow)
}

// Rooms is rooms.
type Rooms = rooms

// NewRooms returns what there is room for on nodes.
func NewRooms(nodes []provider.Room) *Rooms { return &rooms{nodes: nodes} }

// Of is of.
func (r *rooms) Of(memory, cpu int64) room { return r.of(needs{memory, cpu}) }

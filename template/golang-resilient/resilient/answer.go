//go:build go1.26

package resilient

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// answer is the ResponseWriter that a function gets. When the function is out of
// time the answer is taken away from it, so that somebody else can give one.
type answer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	header  http.Header // the function's; copied to w's when it begins to answer
	start   time.Time

	mu     sync.Mutex // guards below, and is held while w is written to
	state  state
	over   bool // the function's time is over
	status int
	bytes  int64
}

// state is how far an answer is.
type state int

const (
	unanswered state = iota
	begun            // the status is sent
	taken            // the connection belongs to the function (a WebSocket)
)

// Header implements [http.ResponseWriter].
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begin(status)
}

// begin sends status and header, once. The caller holds mu.
func (a *answer) begin(status int) {
	if a.over || a.state != unanswered {
		return
	}
	to := a.w.Header()
	clear(to)
	maps.Copy(to, a.header)
	if status < 200 && status != http.StatusSwitchingProtocols {
		a.w.WriteHeader(status) // a remark (100, 103), the answer is still to come
		return
	}
	to.Set("X-Duration-Seconds", strconv.FormatFloat(time.Since(a.start).Seconds(), 'f', 6, 64))
	a.state, a.status = begun, status
	a.w.WriteHeader(status)
}

// Write implements [io.Writer].
func (a *answer) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return 0, http.ErrHandlerTimeout
	}
	if a.state == taken {
		return 0, http.ErrHijacked
	}
	if a.state == unanswered {
		a.begin(http.StatusOK)
	}
	n, err := a.w.Write(p)
	a.bytes += int64(n)
	return n, err
}

// Flush implements [http.Flusher].
func (a *answer) Flush() { a.FlushError() }

// FlushError sends what has been written, as [http.ResponseController] asks for it.
func (a *answer) FlushError() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return http.ErrHandlerTimeout
	}
	a.begin(http.StatusOK)
	return a.control.Flush()
}

// Hijack implements [http.Hijacker].
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return nil, nil, http.ErrHandlerTimeout
	}
	conn, rw, err := a.control.Hijack()
	if err == nil {
		a.state, a.status = taken, http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

// Unwrap lets [http.ResponseController] set the connection's deadlines.
func (a *answer) Unwrap() http.ResponseWriter { return a.w }

// finish ends the answer of a function that has returned: 200 if it said
// nothing, and the trailers if it set some.
func (a *answer) finish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch a.state {
	case unanswered:
		a.begin(http.StatusOK)
	case begun:
		maps.Copy(a.w.Header(), a.header) // net/http sends of it what are trailers
	}
}

// expire takes the answer away from the function and says how far it is.
func (a *answer) expire() state {
	// A write that a slow reader holds up has mu: it ends now.
	if !a.mu.TryLock() {
		a.control.SetWriteDeadline(time.Now())
		a.mu.Lock()
	}
	defer a.mu.Unlock()
	a.over = true
	return a.state
}

// panicked answers 500 if nothing is answered yet, and says whether that was so.
func (a *answer) panicked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return true
	}
	if a.state != unanswered {
		return a.state == taken
	}
	a.error(http.StatusInternalServerError, "golang-resilient", "the function panicked: its logs say where")
	return true
}

// refuse answers in place of the function.
func (a *answer) refuse(status int, by, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.error(status, by, text)
}

// error sends a plain text. The caller holds mu.
func (a *answer) error(status int, by, text string) {
	a.state, a.status = begun, status
	to := a.w.Header()
	clear(to)
	to.Set("Content-Type", "text/plain; charset=utf-8")
	to.Set("X-Content-Type-Options", "nosniff")
	to.Set(internalHeader, by)
	to.Set("X-Duration-Seconds", strconv.FormatFloat(time.Since(a.start).Seconds(), 'f', 6, 64))
	a.w.WriteHeader(status)
	n, _ := io.WriteString(a.w, text+"\n")
	a.bytes += int64(n)
}

// code returns the status that was sent, for logs and metrics.
func (a *answer) code() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.status == 0 {
		return http.StatusInternalServerError // it panicked to cut the connection
	}
	return a.status
}

func (a *answer) written() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes
}

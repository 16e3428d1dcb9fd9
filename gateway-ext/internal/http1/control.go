package http1

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// What a handler may do with its answer besides writing it.

// FlushError implements what [http.ResponseController] asks for.
func (w *response) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.begin(0); err != nil {
		return err
	}
	return w.emit(nil, false)
}

// Flush implements [http.Flusher].
func (w *response) Flush() { _ = w.FlushError() }

// EnableFullDuplex implements what [http.ResponseController] asks for. It always
// is.
func (w *response) EnableFullDuplex() error { return nil }

// SetReadDeadline implements what [http.ResponseController] asks for.
func (w *response) SetReadDeadline(t time.Time) error {
	w.c.readDeadline.Store(true)
	return w.c.nc.SetReadDeadline(t)
}

// SetWriteDeadline implements what [http.ResponseController] asks for.
func (w *response) SetWriteDeadline(t time.Time) error {
	w.c.writeDeadline.Store(true)
	return w.c.nc.SetWriteDeadline(t)
}

// Hijack implements [http.Hijacker].
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.c
	switch {
	case w.hijacked:
		return nil, nil, http.ErrHijacked
	case w.err != nil:
		return nil, nil, w.err
	}
	if w.status != 0 {
		if err := w.emit(nil, false); err != nil {
			return nil, nil, err
		}
	}
	w.hijacked = true
	c.enter(waitBodyLeft) // nobody watches, nobody interrupts
	c.leave()
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	rest := c.in.buf[c.in.pos:c.in.end]
	in := bufio.NewReaderSize(io.MultiReader(strings.NewReader(string(rest)), c.nc), max(len(rest), smallBuffer))
	if _, err := in.Peek(len(rest)); err != nil {
		return nil, nil, err
	}
	c.in.pos = c.in.end
	return c.nc, bufio.NewReadWriter(in, bufio.NewWriterSize(c.nc, smallBuffer)), nil
}

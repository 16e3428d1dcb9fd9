package http1

import (
	"io"
	"net"
	"net/http"
	"os"
	"sync"
)

// copyBuffer is what bodies are copied through.
type copyBuffer [32 << 10]byte

// copyBuffers are those of a server.
type copyBuffers struct{ pool sync.Pool }

func (b *copyBuffers) get() *copyBuffer {
	if p, ok := b.pool.Get().(*copyBuffer); ok {
		return p
	}
	return new(copyBuffer)
}

// writerOnly hides ReadFrom from io.CopyBuffer.
type writerOnly struct{ io.Writer }

// ReadFrom implements [io.ReaderFrom]. What is read from a file or from another
// connection isn't copied through this process if the system can do without, and
// the length of the body is known.
func (w *response) ReadFrom(src io.Reader) (n int64, err error) {
	if tcp, ok := w.c.nc.(*net.TCPConn); ok && seesSending {
		if n, ok, err := w.transfer(tcp, src); ok {
			return n, err
		}
	}
	buf := w.c.srv.copies.get()
	defer w.c.srv.copies.pool.Put(buf)
	return io.CopyBuffer(writerOnly{w}, src, buf[:])
}

// transfer has the system copy src into the connection; ok is false, and nothing
// is done, if it can't.
func (w *response) transfer(tcp *net.TCPConn, src io.Reader) (n int64, ok bool, err error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		return 0, false, nil
	}
	switch limited.R.(type) {
	case *os.File, *net.TCPConn:
	default:
		return 0, false, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.hijacked && w.status == 0 {
		w.writeHeader(http.StatusOK)
	}
	switch {
	case w.hijacked, w.bodyless, w.length < 0, limited.N > w.length-w.written, limited.N <= int64(maxGathered):
		return 0, false, nil
	case !w.sent && !w.hasType: // it is to be guessed from what is copied
		return 0, false, nil
	}
	if err := w.emit(nil, false); err != nil {
		return 0, true, err
	}
	w.c.writes.Add(1)
	n, err = tcp.ReadFrom(limited)
	w.c.writes.Add(1)
	w.written += n
	if err != nil {
		// It may be the source's as well, but the answer isn't whole either way.
		w.err = err
		w.c.cancel(ErrClientGone)
	}
	return n, true, err
}

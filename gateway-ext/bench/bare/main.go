// Bare is the reverse proxy that one gets from Go's standard library with ten
// lines, its connections tuned so that none is closed which could be used
// again: what there is to beat without writing a proxy.
//
//	bare LISTEN REPLICA...
package main

import (
	"log"
	"net/http"
	"net/http/httputil"
	"os"
	"sync"
	"sync/atomic"
)

func main() {
	addr, replicas := os.Args[1], os.Args[2:]
	var next atomic.Uint64
	log.Fatal(http.ListenAndServe(addr, &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.URL.Host = replicas[next.Add(1)%uint64(len(replicas))]
			r.SetXForwarded()
		},
		Transport:  &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true},
		BufferPool: &buffers{},
	}))
}

// buffers are what answers are copied through.
type buffers struct{ pool sync.Pool }

type buffer [32 << 10]byte

// Get implements [httputil.BufferPool].
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*buffer); ok {
		return p[:]
	}
	return new(buffer)[:]
}

// Put implements [httputil.BufferPool].
func (b *buffers) Put(s []byte) { b.pool.Put((*buffer)(s)) }

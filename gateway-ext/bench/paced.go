package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// paceConnections is how many connections the latency part has. They are far
// from being busy.
const paceConnections = 64

// warming is for how long calls are made at first that are not counted: to open
// connections on both sides is not what a call costs, and with so few calls it
// would be all that the 99th percentile shows.
const warming = 250 * time.Millisecond

// latency is what one contestant gave at a fixed rate.
type latency struct {
	contestant     string
	p50, p99, p999 time.Duration
	errors         int
}

// paced calls at a fixed rate and measures each call from when it was due, not
// from when it was sent: what waits behind a slow call counts too, which a
// generator that waits for answers before it goes on doesn't see. At full load
// everything waits; at a rate that all can take this is what a caller would see.
func paced(ctx context.Context, addr, path string, connections, rate int, length time.Duration) (latency, error) {
	length += warming
	ctx, cancel := context.WithTimeout(ctx, length+10*time.Second)
	defer cancel()
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	each := time.Second * time.Duration(connections) / time.Duration(rate)
	var (
		mu    sync.Mutex // guards below
		took  []time.Duration
		wrong []error
		wg    sync.WaitGroup
	)
	start := time.Now().Add(50 * time.Millisecond)
	for range connections {
		wg.Go(func() {
			mine, err := pacedConnection(ctx, addr, request, start.Add(rand.N(each)), start.Add(warming), start.Add(length), each)
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
			if err != nil {
				wrong = append(wrong, err)
			}
		})
	}
	wg.Wait()
	if len(took) == 0 {
		return latency{}, errors.Join(wrong...)
	}
	slices.Sort(took)
	at := func(q float64) time.Duration { return took[int(q*float64(len(took)-1))] }
	return latency{p50: at(.5), p99: at(.99), p999: at(.999), errors: len(wrong)}, ctx.Err()
}

// pacedConnection makes one connection's calls, and returns how long those took
// that were due from a time on.
func pacedConnection(ctx context.Context, addr string, request []byte, due, from, end time.Time, each time.Duration) (took []time.Duration, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r := bufio.NewReader(conn)
	for ; due.Before(end); due = due.Add(each) {
		time.Sleep(time.Until(due))
		if _, err := conn.Write(request); err != nil {
			return took, err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return took, err
		}
		if _, err := r.Discard(int(resp.ContentLength)); err != nil {
			return took, err
		}
		if resp.StatusCode != http.StatusOK {
			return took, fmt.Errorf("status %s", resp.Status)
		}
		if !due.Before(from) {
			took = append(took, time.Since(due))
		}
	}
	return took, nil
}

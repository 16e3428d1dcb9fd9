package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// memoryConnections is at how many connections it is looked at memory.
const memoryConnections = 256

// wrkScript has wrk send what is asked for, and tell its results as JSON. It
// defines no function that is called for each request.
const wrkScript = `
wrk.headers["User-Agent"] = "wrk"
wrk.headers["Accept"] = "*/*"
function init(args)
  if args[1] == "POST" then
    wrk.method = "POST"
    wrk.headers["Content-Type"] = "application/octet-stream"
    wrk.body = string.rep("0123456789abcde\n", 64)
  end
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\nRESULT {"requests":%d,"micros":%d,"p50":%d,"p99":%d,"broken":%d,"late":%d,"status":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write, e.timeout, e.status))
end
`

func (s *stage) script() string { return filepath.Join(s.dir, "wrk.lua") }

// sample is what one turn of one contestant gave.
type sample struct {
	contestant, method string
	connections, round int

	rate     float64       // requests a second
	p50, p99 time.Duration // as the load generator sees them, at full load
	cpu      time.Duration // of the contestant, for 10,000 requests
	errors   int           // connections that broke, answers that came late or were none of 200
	memory   memory        // the most that was seen
}

// load calls a contestant over so many connections as fast as it can. A machine
// that stands still for a second has nobody answer, so there is another try.
func (s *stage) load(ctx context.Context, c *contestant, method string, connections, seconds int) (sample, error) {
	for tries := 2; ; tries-- {
		r, err := s.turn(ctx, c, method, connections, seconds)
		if !errors.Is(err, errNoAnswer) || tries == 0 {
			return r, err
		}
		progress("%v; once more", err)
	}
}

var errNoAnswer = errors.New("none of the requests was answered")

// turn is one of a contestant.
func (s *stage) turn(ctx context.Context, c *contestant, method string, connections, seconds int) (sample, error) {
	r := sample{contestant: c.name, method: method, connections: connections}
	before, err := c.cpu()
	if err != nil {
		return r, err
	}
	// One thread makes more load than any contestant takes, and takes least
	// of what the machine has.
	cmd := exec.CommandContext(ctx, "wrk", "-t1", "-c"+strconv.Itoa(connections), "-d"+strconv.Itoa(seconds)+"s", "--timeout", "20s",
		"-s", s.script(), "http://"+c.addr+c.path(), "--", method)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return r, err
	}
	// Twice in the second half, since to look at all pages takes time.
	whole := time.Duration(seconds) * time.Second
	for _, at := range []time.Duration{whole / 2, whole * 2 / 5} {
		if err := pause(ctx, at); err != nil {
			break // and wrk was ended
		}
		if connections != memoryConnections {
			continue
		}
		if m, err := c.memory(); err == nil {
			r.memory = r.memory.most(m)
		}
	}
	if err := cmd.Wait(); err != nil {
		return r, fmt.Errorf("wrk to %s: %w\n%s%s", c.name, err, stdout.Bytes(), stderr.Bytes())
	}
	after, err := c.cpu()
	if err != nil {
		return r, err
	}
	_, line, _ := bytes.Cut(stdout.Bytes(), []byte("RESULT "))
	var told struct{ Requests, Micros, P50, P99, Broken, Late, Status int }
	if err := json.Unmarshal(line, &told); err != nil {
		return r, fmt.Errorf("what wrk says: %w\n%s", err, stdout.Bytes())
	}
	if told.Requests == 0 {
		return r, fmt.Errorf("%s: %s, %d connections: %w", c.name, method, connections, errNoAnswer)
	}
	r.rate = float64(told.Requests) / (float64(told.Micros) / 1e6)
	r.p50, r.p99 = time.Duration(told.P50)*time.Microsecond, time.Duration(told.P99)*time.Microsecond
	r.cpu = time.Duration(float64(after-before) / float64(told.Requests) * 10_000)
	r.errors = told.Broken + told.Late + told.Status
	return r, nil
}

// Bench measures the way from a request to a replica side by side with that of
// nginx, HAProxy, Caddy and a bare [net/http/httputil.ReverseProxy]: all stand in
// front of the same two replicas of a function, are called by the same load
// generator in turns (A B C, A B C, ...), and what one is worth is its ratio to
// nginx in the same turn, since the machine is shared and its speed drifts.
//
//	make bench              all of it, into docs/benchmarks.md
//	make bench QUICK=1      a minute's worth, printed
//
// It listens on loopback only, needs no privileges, keeps what it needs in a
// temporary folder, and ends what it started. Contestants that aren't installed
// are left out, with a word. It counts CPU time and memory from /proc, so it is
// for Linux.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// plan is what is to be measured.
type plan struct {
	connections []int
	methods     []string
	rounds      int
	seconds     int      // of each measurement; wrk knows no parts of one
	only        []string // the contestants; empty is all
	rate        int      // requests a second in the latency part; 0 leaves it out
	numbers     bool     // also the numbers of the Go benchmarks
	program     string   // the gateway's; empty builds it
	doc         string   // the page to write the tables into; empty prints them
	tries       []rival  // more of them, to try something out
	profile     string   // a folder for profiles of thicket-alone; empty makes none
}

func run(ctx context.Context, args []string) error {
	var p plan
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "one round of 1 and 64 connections, without the rest")
	connections := flags.String("connections", "1,16,64,256", "numbers of connections, separated by commas")
	only := flags.String("only", "", "contestants to measure, separated by commas; all if empty")
	methods := flags.String("methods", "GET,POST", "GET, POST or both, separated by commas")
	flags.IntVar(&p.rounds, "rounds", 3, "how often each contestant has its turn")
	flags.IntVar(&p.seconds, "seconds", 1, "how long a turn is")
	flags.IntVar(&p.rate, "rate", 2000, "requests a second in the latency part; 0 leaves it out")
	flags.BoolVar(&p.numbers, "numbers", false, "also run the Go benchmarks")
	flags.StringVar(&p.program, "program", "", "the gateway's program; built if empty")
	flags.StringVar(&p.profile, "profile", "", "a folder for profiles of thicket-alone: cpu.pprof, allocs.pprof")
	flags.StringVar(&p.doc, "doc", "", "the page to write the tables into; printed if empty")
	flags.Func("try", `another contestant, as NAME=COMMAND: "tuned=env GOGC=400 ./proxy"; LISTEN and REPLICA... are added to the command, addresses as host:port. May be repeated`, func(s string) error {
		name, command, ok := strings.Cut(s, "=")
		words := strings.Fields(command)
		if !ok || name == "" || len(words) == 0 {
			return errors.New("write NAME=COMMAND")
		}
		p.tries = append(p.tries, rival{name: name, program: words[0], command: func(program, _, _ string, port int, replicas []string) *exec.Cmd {
			return listenAndReplicas(program, words[1:], port, replicas)
		}})
		return nil
	})
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *quick {
		given := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, value := range map[string]string{"connections": "1,64", "rounds": "1", "rate": "0"} {
			if !given[name] {
				_ = flags.Set(name, value) // they are values that it takes
			}
		}
	}
	for n := range strings.SplitSeq(*connections, ",") {
		c, err := strconv.Atoi(n)
		if err != nil || c < 1 {
			return fmt.Errorf("-connections: %q is not a number of connections", n)
		}
		p.connections = append(p.connections, c)
	}
	for m := range strings.SplitSeq(*methods, ",") {
		if m != "GET" && m != "POST" {
			return fmt.Errorf("-methods: %q is neither GET nor POST", m)
		}
		p.methods = append(p.methods, m)
	}
	if *only != "" {
		p.only = strings.Split(*only, ",")
	}
	for _, name := range p.only {
		if !slices.Contains(order, name) {
			return fmt.Errorf("-only: there is no contestant %q: they are %s", name, strings.Join(order, ", "))
		}
	}
	if p.rounds < 1 || p.seconds < 1 {
		return errors.New("-rounds and -seconds are at least 1")
	}

	begun := time.Now()
	r, err := measure(ctx, p)
	if err != nil {
		return err
	}
	r.when, r.took = begun, time.Since(begun)
	if p.numbers {
		if p.doc != "" { // what follows takes minutes, and may fail
			if err := r.write(p.doc); err != nil {
				return err
			}
		}
		if r.numbers, err = numbers(ctx); err != nil {
			return err
		}
		r.took = time.Since(begun)
	}
	if p.doc == "" {
		_, err := os.Stdout.WriteString(r.markdown())
		return err
	}
	return r.write(p.doc)
}

// measure starts all, measures in turns, and stops all.
func measure(ctx context.Context, p plan) (_ *results, err error) {
	s, err := newStage(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	r := &results{plan: p, machine: machine(ctx), versions: s.versions(ctx)}
	if slices.Contains(p.connections, memoryConnections) {
		// What was garbage after the start is given back meanwhile.
		progress("looking at memory, in 20 s")
		if err := pause(ctx, 20*time.Second); err != nil {
			return nil, err
		}
	}
	for _, c := range s.contestants {
		m, err := c.memory()
		if err != nil {
			return nil, err
		}
		r.contestants, r.idle = append(r.contestants, c.name), append(r.idle, m)
	}
	// What is made at the first calls is not what a call costs.
	for _, c := range s.contestants {
		if _, err := s.load(ctx, c, p.methods[len(p.methods)-1], 16, 1); err != nil {
			return nil, err
		}
	}
	for round := range p.rounds {
		for _, connections := range p.connections {
			for _, method := range p.methods {
				progress("round %d of %d: %s, %d connections", round+1, p.rounds, method, connections)
				for i := range s.contestants {
					// Who is first changes, since neighbours differ.
					c := s.contestants[(i+round)%len(s.contestants)]
					sample, err := s.load(ctx, c, method, connections, p.seconds)
					if err != nil {
						return nil, err
					}
					sample.round = round
					r.samples = append(r.samples, sample)
				}
			}
		}
	}
	if p.rate > 0 {
		for round := range p.rounds {
			progress("round %d of %d: %d requests a second", round+1, p.rounds, p.rate)
			for i := range s.contestants {
				c := s.contestants[(i+round)%len(s.contestants)]
				l, err := paced(ctx, c.addr, c.path(), paceConnections, p.rate, time.Duration(p.seconds)*time.Second)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", c.name, err)
				}
				l.contestant = c.name
				r.paced = append(r.paced, l)
			}
		}
	}
	return r, nil
}

// wanted says whether a contestant is to be measured.
func (p *plan) wanted(name string) bool { return len(p.only) == 0 || slices.Contains(p.only, name) }

// progress tells whoever waits what is being done.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// pause waits, or returns why it doesn't.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

package fleet_test

import (
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
)

func TestDecideScale(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	const second = time.Second
	// A function of which each replica should have 7 in flight.
	capacity := faas.Scale{Min: 1, Max: 20, Factor: 10, Target: 7, Proportion: 1, Type: faas.ScaleCapacity, ByLoad: true, ZeroDuration: 15 * time.Minute}
	with := func(change func(*faas.Scale)) faas.Scale {
		s := capacity
		change(&s)
		return s
	}
	plenty := fleet.Room{More: 1000}
	steady := func(load float64) (stable, short fleet.Average) {
		return fleet.Average{Load: load, Over: 60 * second}, fleet.Average{Load: load, Over: 6 * second}
	}
	at := func(wanted int, stable, short float64) fleet.Scaling {
		return fleet.Scaling{
			Scale: capacity, Wanted: wanted, Ready: wanted, InFlight: 1, Room: plenty, Peak: short,
			Stable: fleet.Average{Load: stable, Over: 60 * second}, Panic: fleet.Average{Load: short, Over: 6 * second},
		}
	}
	tests := []struct {
		name     string
		state    func() fleet.Scaling
		want     int
		sentence string // all of it
	}{
		{"the issue's sentence", func() fleet.Scaling {
			s := at(3, 12, 41)
			s.Room = fleet.Room{More: 1, Full: "memory on pi-3"}
			return s
		}, 4, "41 in flight over 6 s, target 7 each: 6 replicas; capped at 4: memory on pi-3"},
		{"panic", func() fleet.Scaling { return at(1, 4, 41) }, 6, "41 in flight over 6 s, target 7 each: 6 replicas"},
		{"twice of what is ready, not of what is wanted", func() fleet.Scaling {
			s := at(6, 20, 41)
			s.Ready = 1
			s.Panic.Load = 50
			return s
		}, 8, "50 in flight over 6 s, target 7 each: 8 replicas"},
		{"less than twice is no panic", func() fleet.Scaling { return at(4, 20, 41) }, 4, "20 in flight over 60 s, target 7 each: 3 replicas; 4 kept: it was up to 41 over 6 s"},
		{"slow growth", func() fleet.Scaling { return at(4, 30, 41) }, 5, "30 in flight over 60 s, target 7 each: 5 replicas"},
		{"none is removed while panicking", func() fleet.Scaling {
			s := at(9, 3, 2)
			s.Memory.PanicUntil = now.Add(second)
			return s
		}, 9, "2 in flight over 6 s, target 7 each: 1 replica; 9 kept: none is removed within 60 s of a load that needs twice what is ready"},
		{"maximum", func() fleet.Scaling { return at(1, 4, 4100) }, 20, "4100 in flight over 6 s, target 7 each: 586 replicas; capped at 20: com.openfaas.scale.max"},
		{"no room at all", func() fleet.Scaling {
			s := at(1, 4, 41)
			s.Room = fleet.Room{Full: "memory on pi-3"}
			return s
		}, 1, "41 in flight over 6 s, target 7 each: 6 replicas; capped at 1: memory on pi-3"},
		{"one step down", func() fleet.Scaling { return at(9, 3, 3) }, 7, "3 in flight over 60 s, target 7 each: 1 replica; 7 for now: 2 fewer at a time, every 6 s (com.openfaas.scale.factor)"},
		{"too soon for another step", func() fleet.Scaling {
			s := at(9, 3, 3)
			s.Memory.ChangedAt = now.Add(-5 * second)
			return s
		}, 9, "3 in flight over 60 s, target 7 each: 1 replica; 9 for now: none is removed within 6 s of a change"},
		{"the last step", func() fleet.Scaling { return at(2, 3, 3) }, 1, "3 in flight over 60 s, target 7 each: 1 replica"},
		{"minimum", func() fleet.Scaling {
			s := at(3, 0, 0)
			s.Scale.Min = 2
			return s
		}, 2, "0 in flight over 60 s, target 7 each: 0 replicas; at least 2: com.openfaas.scale.min"},
		{"nothing to spare", func() fleet.Scaling { return at(3, 13.5, 13.5) }, 3, "14 in flight over 60 s, target 7 each: 2 replicas; 3 kept: with fewer there is less than a tenth to spare"},
		{"low, but not for long enough", func() fleet.Scaling {
			s := at(6, 3, 3)
			s.Scale.DownWindow = 2 * time.Minute
			s.Memory.Low = []fleet.Low{{At: now.Add(-time.Minute), Replicas: 6}, {At: now.Add(-second), Replicas: 2}}
			return s
		}, 6, "3 in flight over 60 s, target 7 each: 1 replica; 6 kept: low for less than 2 min (com.openfaas.scale.down.window)"},
		{"low for long enough", func() fleet.Scaling {
			s := at(3, 3, 3)
			s.Scale.DownWindow = 2 * time.Minute
			s.Memory.Low = []fleet.Low{{At: now.Add(-121 * second), Replicas: 6}, {At: now.Add(-time.Minute), Replicas: 2}}
			return s
		}, 2, "3 in flight over 60 s, target 7 each: 1 replica; 2 kept: low for less than 2 min (com.openfaas.scale.down.window)"},
		{"set by hand", func() fleet.Scaling {
			s := at(5, 3, 3)
			s.Held = time.Minute
			return s
		}, 5, "3 in flight over 60 s, target 7 each: 1 replica; 5 kept, as set by hand or by an alert"},
		{"set by hand, but far too few", func() fleet.Scaling {
			s := at(2, 3, 41)
			s.Held = time.Minute
			return s
		}, 6, "41 in flight over 6 s, target 7 each: 6 replicas"},
		{"idle", func() fleet.Scaling {
			s := at(5, 0, 0)
			s.Scale.Zero, s.InFlight, s.Idle = true, 0, 15*time.Minute
			return s
		}, 0, "no call for 15 min: asleep, 0 replicas"},
		{"idle, but set by hand", func() fleet.Scaling {
			s := at(1, 0, 0)
			s.Scale.Zero, s.InFlight, s.Idle, s.Held = true, 0, 15*time.Minute, second
			return s
		}, 1, "0 in flight over 60 s, target 7 each: 0 replicas; 1 kept, as set by hand or by an alert"},
		{"a call of hours isn't idleness", func() fleet.Scaling {
			s := at(1, 1, 1)
			s.Scale.Zero, s.Idle = true, 15*time.Minute
			return s
		}, 1, "1 in flight over 60 s, target 7 each: 1 replica"},
		{"asleep", func() fleet.Scaling { return at(0, 5, 41) }, 0, ""},
		{"doesn't follow the load", func() fleet.Scaling {
			s := at(1, 41, 410)
			s.Scale.ByLoad = false
			return s
		}, 1, ""},
		{"doesn't follow the load, but sleeps", func() fleet.Scaling {
			s := at(3, 0, 0)
			s.Scale.ByLoad, s.Scale.Zero, s.InFlight, s.Idle = false, true, 0, time.Hour
			return s
		}, 0, "no call for 15 min: asleep, 0 replicas"},
		{"calls a second", func() fleet.Scaling {
			s := at(1, 0, 0)
			s.Scale = with(func(s *faas.Scale) { s.Type, s.Target, s.Proportion = faas.ScaleRPS, 50, 0.9 })
			s.Stable, s.Panic = steady(212.4)
			return s
		}, 5, "212 calls a second over 6 s, target 45 each (90 % of 50): 5 replicas"},
		{"CPU", func() fleet.Scaling {
			s := at(1, 0, 0)
			s.Scale = with(func(s *faas.Scale) { s.Type, s.Target = faas.ScaleCPU, 500 })
			s.Stable, s.Panic = steady(990)
			return s
		}, 2, "990 milli-CPU over 6 s, target 500 each: 2 replicas"},
		{"CPU that can't be measured", func() fleet.Scaling {
			s := at(2, 0, 0)
			s.Unmeasured = "its replicas' CPU time can't be measured on this machine"
			return s
		}, 2, "its replicas' CPU time can't be measured on this machine: 2 replicas"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := fleet.DecideScale(tt.state(), now)
			if got.Replicas != tt.want || got.Sentence() != tt.sentence {
				t.Errorf("decideScale() = %d: %s\nwant %d: %s", got.Replicas, got.Sentence(), tt.want, tt.sentence)
			}
		})
	}
}

// FuzzDecideScale holds decisions to their bounds whatever the state.
func FuzzDecideScale(f *testing.F) {
	f.Add(3, 2, int64(4), 12.0, 41.0, 1, 2, 8, 10, 7.0, 0.9, 5, true, true, int64(60))
	f.Add(1000, 0, int64(0), 0.0, 0.0, 0, 0, 1, 100, 1e-9, 1.0, 0, true, false, int64(0))
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, wanted, ready int, inFlight int64, stable, short float64, low, lowest, highest, factor int, target, proportion float64, more int, byLoad, zero bool, idle int64) {
		if wanted < 0 || ready < 0 || lowest < 0 || highest < max(1, lowest) || highest > faas.MaxReplicas || wanted > highest || factor < 1 || factor > 100 ||
			!(target > 0 && target <= 1e9) || !(proportion > 0 && proportion <= 1) || !(stable >= 0 && stable < 1e15) || !(short >= 0 && short < 1e15) || more < 0 || low < 0 {
			t.Skip()
		}
		if wanted > 0 && wanted < lowest {
			t.Skip()
		}
		s := fleet.Scaling{
			Scale:  faas.Scale{Min: lowest, Max: highest, Factor: factor, Target: target, Proportion: proportion, Type: faas.ScaleRPS, Zero: zero, ByLoad: byLoad},
			Wanted: wanted, Ready: ready, InFlight: inFlight, Idle: time.Duration(idle), Peak: short,
			Stable: fleet.Average{Load: stable}, Panic: fleet.Average{Load: short}, Room: fleet.Room{More: more, Full: "memory on pi-3"},
			Memory: fleet.Memory{Low: []fleet.Low{{At: now, Replicas: low}}},
		}
		got := fleet.DecideScale(s, now)
		switch {
		case got.Replicas == wanted:
		case got.Replicas == 0 && zero && inFlight == 0:
		case got.Replicas < max(1, lowest) || got.Replicas > highest:
			t.Errorf("%d replicas, of %d to %d", got.Replicas, lowest, highest)
		case got.Replicas > wanted+more:
			t.Errorf("from %d to %d replicas, and there is room for %d more", wanted, got.Replicas, more)
		case got.Replicas < wanted-max(1, (highest*factor+99)/100):
			t.Errorf("from %d to %d replicas at once, a step is %d %% of %d", wanted, got.Replicas, factor, highest)
		}
		if got.Replicas != wanted && got.Sentence() == "" {
			t.Error("a change without a sentence")
		}
	})
}

func TestRoom(t *testing.T) {
	node := func(name string, memory, cpu int64) provider.Room {
		return provider.Room{Node: name, Memory: memory, CPU: cpu}
	}
	tests := []struct {
		name        string
		nodes       []provider.Room
		memory, cpu int64
		more        int
		full        string
	}{
		{"memory", []provider.Room{node("pi-3", 200<<20, 4000)}, 64 << 20, 0, 3, "memory on pi-3"},
		{"CPU", []provider.Room{node("pi-3", 200<<20, 400)}, 8 << 20, 250, 1, "CPU on pi-3"},
		{"none", []provider.Room{node("pi-3", 0, 400)}, 8 << 20, 250, 0, "memory on pi-3"},
		{"several nodes", []provider.Room{node("pi-1", 100<<20, 4000), node("pi-2", 900<<20, 100)}, 64 << 20, 50, 3, "memory on pi-1, CPU on pi-2"},
		{"many nodes", []provider.Room{node("a", 0, 0), node("b", 0, 0), node("c", 0, 0), node("d", 0, 0), node("e", 64<<20, 0)}, 64 << 20, 0, 1, "memory on a, memory on b, memory on c, and 2 more"},
		{"a function that says nothing", []provider.Room{node("pi-3", 64<<20, 0)}, 0, 0, 8, "memory on pi-3"},
		{"a machine that says nothing", []provider.Room{node("mac", -1, -1)}, 64 << 20, 100, faas.MaxReplicas, ""},
		{"no nodes known", nil, 64 << 20, 0, faas.MaxReplicas, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := fleet.RoomOn(tt.nodes, tt.memory, tt.cpu); got.More != tt.more || got.Full != tt.full {
				t.Errorf("room = %d, %q, want %d, %q", got.More, got.Full, tt.more, tt.full)
			}
		})
	}
}

func BenchmarkDecideScale(b *testing.B) {
	s := fleet.Scaling{
		Scale:  faas.Scale{Min: 1, Max: 20, Factor: 10, Target: 7, Proportion: 0.9, Type: faas.ScaleCapacity, ByLoad: true},
		Wanted: 9, Ready: 9, Stable: fleet.Average{Load: 20, Over: time.Minute}, Panic: fleet.Average{Load: 20, Over: 6 * time.Second},
		Room: fleet.Room{More: 100}, Peak: 21,
	}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		v := fleet.DecideScale(s, now)
		if v.Replicas > 9 {
			b.Fatal(v.Sentence())
		}
		s.Memory = v.Memory
	}
}

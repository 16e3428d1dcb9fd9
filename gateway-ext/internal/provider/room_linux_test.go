package provider

import "testing"

func TestParseMemInfo(t *testing.T) {
	const pi = "MemTotal:         917680 kB\nMemFree:          143212 kB\nMemAvailable:     601376 kB\nBuffers:           29696 kB\n"
	for _, tt := range []struct {
		name, text  string
		free, total int64
		ok          bool
	}{
		{"a Pi", pi, 601376 << 10, 917680 << 10, true},
		{"no estimate", "MemTotal:         917680 kB\n", 0, 0, false},
		{"no number", "MemTotal:  much kB\nMemAvailable: 1 kB\n", 0, 0, false},
		{"empty", "", 0, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if free, total, ok := parseMemInfo(tt.text); free != tt.free || total != tt.total || ok != tt.ok {
				t.Errorf("parseMemInfo() = %d, %d, %v, want %d, %d, %v", free, total, ok, tt.free, tt.total, tt.ok)
			}
		})
	}
}

package provider

import (
	"os"
	"path/filepath"
	"testing"
)

func TestBounds(t *testing.T) {
	for _, tt := range []struct {
		name, self string
		files      map[string]string
		free, all  int64
		milli      int64
	}{
		{"nothing", "0::/\n", nil, 0, 0, 0},
		{"a container, version 2", "0::/\n", map[string]string{
			"memory.max": "1000\n", "memory.current": "600\n", "memory.stat": "anon 500\ninactive_file 100\n", "cpu.max": "150000 100000\n",
		}, 500, 1000, 1500},
		{"no limits, version 2", "0::/\n", map[string]string{"memory.max": "max\n", "memory.current": "600\n", "cpu.max": "max 100000\n"}, 0, 0, 0},
		{"a slice above is tighter", "0::/a.slice/b.service\n", map[string]string{
			"a.slice/memory.max": "1000\n", "a.slice/memory.current": "900\n", "a.slice/b.service/memory.max": "800\n", "a.slice/b.service/memory.current": "100\n",
			"a.slice/cpu.max": "50000 100000\n", "a.slice/b.service/cpu.max": "100000 100000\n",
		}, 100, 1000, 500},
		{"a container, version 1, whose path is the machine's", "4:memory:/kubepods/x\n1:cpu,cpuacct:/kubepods/x\n", map[string]string{
			"memory/memory.limit_in_bytes": "1000\n", "memory/memory.usage_in_bytes": "600\n", "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
			"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n",
		}, 600, 1000, 500},
		{"no limits, version 1", "4:memory:/\n", map[string]string{
			"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "600\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n",
		}, 0, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := bounds{t.TempDir(), tt.self}
			for name, text := range tt.files {
				path := filepath.Join(b.root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if free, all, ok := b.memory(); free != tt.free || all != tt.all || ok != (tt.all > 0) {
				t.Errorf("memory() = %d, %d, %v, want %d, %d", free, all, ok, tt.free, tt.all)
			}
			if milli := b.cpu(); milli != tt.milli {
				t.Errorf("cpu() = %d, want %d", milli, tt.milli)
			}
		})
	}
}

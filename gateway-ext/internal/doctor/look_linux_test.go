package doctor_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/doctor"
)

const mountinfo = `22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/root rw
25 22 0:22 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=100k
30 22 8:1 / /mnt/big\040disk rw - xfs /dev/sda1 rw
31 30 8:17 / /mnt/big\040disk rw - btrfs /dev/sdb1 rw
`

func TestMountOf(t *testing.T) {
	for _, tt := range []struct{ path, point, device, system string }{
		{"/var/lib/thicket", "/", "179:2", "ext4"},
		{"/run", "/run", "0:22", "tmpfs"},
		{"/run/x", "/run", "0:22", "tmpfs"},
		{"/runner", "/", "179:2", "ext4"},
		{"/mnt/big disk/x", "/mnt/big disk", "8:17", "btrfs"}, // mounted over the other
	} {
		if point, device, system := doctor.MountOf(mountinfo, tt.path); point != tt.point || device != tt.device || system != tt.system {
			t.Errorf("%s is on %q, %q, %q, want %q, %q, %q", tt.path, point, device, system, tt.point, tt.device, tt.system)
		}
	}
	for _, broken := range []string{"", "\n", "22 1 179:2 /", "a b c d e f -  ", " - ", mountinfo[:30]} {
		if point, _, _ := doctor.MountOf(broken, "/x"); point != "" {
			t.Errorf("%q mounts something at %q", broken, point)
		}
	}
}

func TestListening(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
   2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 100 0 0 10 0
   3: 00000000:1F90
`
	if got := doctor.Listening([]byte(table), 8080); !slices.Equal(got, []string{"4711"}) {
		t.Errorf("the listeners of port 8080 are %q, want 4711", got)
	}
	if got := doctor.Listening([]byte(strings.Repeat("0A ", 100)), 8080); got != nil {
		t.Errorf("nonsense has listeners: %q", got)
	}
}

// The taker of a port is found: this process.
func TestTaker(t *testing.T) {
	addr := listen(t)
	m := doctor.Look(t.Context(), doctor.Subject{Data: t.TempDir(), Ports: []doctor.Port{{Addr: addr}}})
	if p := m.Ports[0]; p.Error != "taken" || !strings.Contains(p.By, "(process ") {
		t.Errorf("a taken port is %+v, want it taken by a process", p)
	}
	if m.Disk.System == "" {
		t.Error("it isn't known on what the folder is")
	}
}

package doctor_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/doctor"
)

// well is a machine that lacks nothing.
func well() doctor.Machine {
	return doctor.Machine{
		Name: "nuc", Version: "v1", Platform: "linux/amd64", Root: true,
		Time:   time.Date(2026, 11, 22, 22, 0, 0, 0, time.UTC),
		Clock:  doctor.Clock{Known: true, Synchronised: true, Error: 12 * time.Millisecond},
		Disk:   doctor.Disk{Path: "/var/lib/thicket", Made: true, Mode: 0o711, Bytes: doctor.Room{All: 100 << 30, Free: 50 << 30}, Files: doctor.Room{All: 1e6, Free: 9e5}, Sync: time.Millisecond, System: "ext4"},
		Memory: doctor.Room{All: 8 << 30, Free: 6 << 30},
		Files:  65536, Tasks: doctor.Room{All: 32768, Free: 32000},
		Groups: &doctor.Groups{Version: 2, Controllers: []string{"cpu", "memory", "pids"}},
	}
}

// fleet is a gateway with a node, both well.
func fleet() *doctor.Gateway {
	nuc, pi := well(), well()
	nuc.Groups, pi.Groups = nil, nil
	return &doctor.Gateway{
		URL: "http://nuc:8080", Asker: "v1", Version: "v1", Joining: "https://nuc:8090",
		Nodes: []doctor.Node{
			{Name: "nuc", Local: true, State: "ready", Version: "v1", Platforms: []string{"linux/amd64"}, Machine: &nuc},
			{Name: "pi-1", State: "ready", Version: "v1", Platforms: []string{"linux/arm64", "linux/arm/v7"}, Machine: &pi},
		},
		Functions: []doctor.Function{{Name: "weather", Platforms: []string{"linux/amd64", "linux/arm64"}, Wanted: 1, Ready: 1}},
	}
}

func TestWell(t *testing.T) {
	m := well()
	join := doctor.Join{
		URL: "https://nuc:8090", Seen: netip.MustParseAddr("192.168.1.7"), Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.7")},
		Functions: doctor.Reach{Addr: "nuc:8080"},
	}
	for _, f := range doctor.Judge(doctor.Facts{Here: &m, Gateway: fleet(), Join: &join}) {
		if f.Level != doctor.OK || f.Do != "" {
			t.Errorf("of what is well it says %+v", f)
		}
	}
}

func TestMachine(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*doctor.Machine)
		level doctor.Level
		check string
		says  string // some of it
		do    string
	}{
		{"no NTP", func(m *doctor.Machine) { m.Clock.Synchronised = false }, doctor.Warn, "clock", "nothing keeps it", "timedatectl"},
		{"1970", func(m *doctor.Machine) { m.Time = time.Unix(100, 0) }, doctor.Fail, "clock", "1970", "timedatectl"},
		{"another system", func(m *doctor.Machine) { m.Clock.Known = false }, doctor.OK, "clock", "doesn't tell", ""},
		{"disk nearly full", func(m *doctor.Machine) { m.Disk.Bytes.Free = 400 << 20 }, doctor.Warn, "disk", "400 MiB free of 100 GiB at /var/lib/thicket, ext4", "THICKET_DATA"},
		{"disk full", func(m *doctor.Machine) { m.Disk.Bytes.Free = 3 << 20 }, doctor.Fail, "disk", "3 MiB free", "THICKET_DATA"},
		{"nothing left", func(m *doctor.Machine) { m.Disk.Bytes.Free, m.Disk.Error = 0, "no space left on device" }, doctor.Fail, "disk", "no space left", "make room"},
		{"large and a tenth left", func(m *doctor.Machine) { m.Disk.Bytes = doctor.Room{All: 1 << 40, Free: 90 << 30} }, doctor.OK, "disk", "90 GiB free", ""},
		{"a small card", func(m *doctor.Machine) { m.Disk.Bytes, m.Disk.Card = doctor.Room{All: 8 << 30, Free: 300 << 20}, true }, doctor.Warn, "disk", "on an SD card", "wears out"},
		{"no inodes", func(m *doctor.Machine) { m.Disk.Files.Free = 100 }, doctor.Fail, "disk", "100 of 1000000 inodes", "small files"},
		{"read-only", func(m *doctor.Machine) { m.Disk.ReadOnly = true }, doctor.Fail, "disk", "can only be read", "remount"},
		{"not ours", func(m *doctor.Machine) { m.Disk.Error = "permission denied" }, doctor.Fail, "disk", "permission denied", "a user that may"},
		{"in memory", func(m *doctor.Machine) { m.Disk.InMemory = true }, doctor.Warn, "state", "in memory", "on a disk"},
		{"slow card", func(m *doctor.Machine) { m.Disk.Sync = 1300 * time.Millisecond }, doctor.Warn, "sync", "1.3s until", "worn"},
		{"open folder", func(m *doctor.Machine) { m.Disk.Mode = 0o777 }, doctor.Fail, "state", "mode 0777", "chmod go-w /var/lib/thicket"},
		{"open key", func(m *doctor.Machine) { m.Disk.Open = "/var/lib/thicket/nodes.key" }, doctor.Fail, "state", "can read /var/lib/thicket/nodes.key", "chmod go-rwx"},
		{"little memory", func(m *doctor.Machine) { m.Memory.Free = 60 << 20 }, doctor.Warn, "memory", "60 MiB free of 8.0 GiB", "limits"},
		{"no memory", func(m *doctor.Machine) { m.Memory.Free = 6 << 20 }, doctor.Fail, "memory", "6 MiB", "limits"},
		{"few files", func(m *doctor.Machine) { m.Files = 1024 }, doctor.Warn, "files", "1024", "LimitNOFILE"},
		{"few processes", func(m *doctor.Machine) { m.Tasks = doctor.Room{All: 100, Free: 20} }, doctor.Fail, "processes", "20 more of 100", "TasksMax"},
		{"no groups", func(m *doctor.Machine) { m.Groups = &doctor.Groups{} }, doctor.Warn, "cgroups", "none", "cmdline.txt"},
		{"no memory group", func(m *doctor.Machine) { m.Groups.Controllers = []string{"cpu", "pids"} }, doctor.Warn, "cgroups", "without memory", "cgroup_enable=memory"},
		{"not root", func(m *doctor.Machine) { m.Root = false }, doctor.Warn, "isolation", "isn't root", "as root"},
		{"runs, and can't limit", func(m *doctor.Machine) { m.Groups, m.Missing = nil, []string{"no limits: as it is; start it as root"} }, doctor.Warn, "isolation", "no limits: as it is", "start it as root"},
		{"runs on another system", func(m *doctor.Machine) { m.Groups, m.Platform = nil, "darwin/arm64" }, doctor.Warn, "isolation", "no limits", "Linux"},
		{"weak password", func(m *doctor.Machine) { m.Password = "has fewer than 8 characters" }, doctor.Warn, "password", "fewer than 8", "THICKET_PASSWORD_FILE"},
		{"certificate ends", func(m *doctor.Machine) { m.Expires = m.Time.Add(72 * time.Hour) }, doctor.Warn, "certificate", "until 2026-11-25", "renew"},
		{"certificate over", func(m *doctor.Machine) { m.Expires = m.Time.Add(-time.Hour) }, doctor.Fail, "certificate", "was valid until", "renew"},
		{"port taken", func(m *doctor.Machine) {
			m.Ports = []doctor.Port{{What: "the API", Setting: "THICKET_ADDR", Addr: ":8080", Error: "taken", By: "nginx (process 7)"}}
		}, doctor.Fail, "port", ":8080, for the API, is taken by nginx (process 7)", "THICKET_ADDR"},
		{"port taken by whom", func(m *doctor.Machine) {
			m.Ports = []doctor.Port{{What: "the API", Setting: "THICKET_ADDR", Addr: ":8080", Error: "taken"}}
		}, doctor.Fail, "port", "another program", "ss -ltnp"},
		{"port of root", func(m *doctor.Machine) {
			m.Ports = []doctor.Port{{What: "the API", Setting: "THICKET_ADDR", Addr: ":80", Error: "this user may not listen there"}}
		}, doctor.Fail, "port", "may not listen", "need root"},
		{"no such name", func(m *doctor.Machine) {
			m.Reaches = []doctor.Reach{{What: "the Redis", Setting: "THICKET_REDIS_URL", Addr: "redis.lan:6379", Name: "redis.lan", Error: "there is no such name"}}
		}, doctor.Fail, "dns", "redis.lan, the host of the Redis (THICKET_REDIS_URL): there is no such name", "/etc/hosts"},
		{"registry away", func(m *doctor.Machine) {
			m.Reaches = []doctor.Reach{{What: "the registry", Addr: "nas.lan:5000", Error: "refuses connections"}}
		}, doctor.Fail, "network", "the registry at nas.lan:5000: refuses connections", "firewall"},
		{"greedy redis", func(m *doctor.Machine) { m.Redis = &doctor.Redis{Version: "7.2.4"} }, doctor.Warn, "redis", "all memory", "maxmemory"},
		{"full redis", func(m *doctor.Machine) {
			m.Redis = &doctor.Redis{Version: "7.2.4", Memory: 96 << 20, Policy: "noeviction"}
		}, doctor.Warn, "redis", "takes nothing new once its 96 MiB", "allkeys-lru"},
		{"good redis", func(m *doctor.Machine) {
			m.Redis = &doctor.Redis{Version: "7.2.4", Memory: 96 << 20, Policy: "allkeys-lru"}
		}, doctor.OK, "redis", "7.2.4 keeps 96 MiB", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := well()
			tt.spoil(&m)
			want(t, doctor.Judge(doctor.Facts{Here: &m}), tt.level, tt.check, tt.says, tt.do)
		})
	}
}

func TestFleet(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*doctor.Gateway)
		level doctor.Level
		check string
		says  string
		do    string
	}{
		{"gone", func(g *doctor.Gateway) { g.Nodes[1].State, g.Nodes[1].Machine = "gone", nil }, doctor.Fail, "node", "is gone", "nodes remove pi-1"},
		{"suspect", func(g *doctor.Gateway) { g.Nodes[1].State, g.Nodes[1].Reason = "suspect", "it was silent" }, doctor.Warn, "node", "suspect: it was silent", "network"},
		{"cordoned", func(g *doctor.Gateway) { g.Nodes[1].Cordoned = true }, doctor.OK, "node", "uncordon pi-1", ""},
		{"another kind", func(g *doctor.Gateway) {
			g.Nodes[1].Machine, g.Nodes[1].Unexamined = nil, "node pi-1 can't examine itself"
		}, doctor.OK, "node", "can't examine itself", ""},
		{"a second off", func(g *doctor.Gateway) { g.Nodes[1].Ahead = -1500 * time.Millisecond }, doctor.Warn, "clock", "its clock is 1.5s behind the gateway's", "timedatectl"},
		{"an hour off", func(g *doctor.Gateway) { g.Nodes[1].Ahead = time.Hour }, doctor.Fail, "clock", "its clock is 1h0m0s ahead of the gateway's", "timedatectl"},
		{"the asker an hour off", func(g *doctor.Gateway) { g.Ahead = time.Hour }, doctor.Fail, "clock", "this machine's clock is 1h0m0s ahead", "timedatectl"},
		{"a slow answer", func(g *doctor.Gateway) { g.Ahead, g.Within = 3*time.Second, 3*time.Second }, doctor.OK, "clock", "give or take 3s", ""},
		{"versions", func(g *doctor.Gateway) { g.Nodes[1].Version = "v0" }, doctor.Warn, "version", "it is v0, and the gateway v1", "install"},
		{"takes none", func(g *doctor.Gateway) { g.Joining = "" }, doctor.OK, "nodes", "THICKET_NODES_ADDR", ""},
		{"nowhere", func(g *doctor.Gateway) { g.Functions[0].Platforms = []string{"linux/riscv64"} }, doctor.Fail, "platforms", "no node can run weather (for linux/riscv64): the nodes are linux/amd64, linux/arm64", "--platforms"},
		{"one node", func(g *doctor.Gateway) { g.Functions[0].Platforms = []string{"linux/arm/v7"} }, doctor.Warn, "platforms", "pi-1 only can run weather (for linux/arm/v7)", "--platforms"},
		{"its node is gone", func(g *doctor.Gateway) {
			g.Functions[0].Platforms, g.Nodes[1].State = []string{"linux/arm/v7"}, "gone"
		}, doctor.Fail, "platforms", "no node can run weather", "join"},
		{"any platform", func(g *doctor.Gateway) { g.Functions[0].Platforms = nil }, doctor.OK, "platforms", "each of 1 deployed", ""},
		{"many nowhere", func(g *doctor.Gateway) {
			for range 9 {
				g.Functions = append(g.Functions, doctor.Function{Name: "x", Platforms: []string{"linux/s390x"}})
			}
		}, doctor.Fail, "platforms", "and 5 more", "--platforms"},
		{"down", func(g *doctor.Gateway) { g.Functions[0].Ready, g.Functions[0].Reason = 0, "it crashes" }, doctor.Fail, "ready", "weather (it crashes)", "nodes why"},
		{"asleep", func(g *doctor.Gateway) { g.Functions[0].Ready, g.Functions[0].Wanted = 0, 0 }, doctor.OK, "ready", "", ""},
		{"none", func(g *doctor.Gateway) { g.Functions = nil }, doctor.OK, "functions", "none is deployed", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := fleet()
			tt.spoil(g)
			want(t, doctor.Judge(doctor.Facts{Gateway: g}), tt.level, tt.check, tt.says, tt.do)
		})
	}
}

func TestJoin(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		name  string
		join  doctor.Join
		level doctor.Level
		check string
		says  string
		do    string
	}{
		{"away", doctor.Join{Error: "it refuses connections", Do: "look", Addresses: []netip.Addr{addr("10.0.0.2")}}, doctor.Fail, "join", "refuses", "look"},
		{"an hour off", doctor.Join{Ahead: -time.Hour, Addresses: []netip.Addr{addr("10.0.0.2")}}, doctor.Fail, "clock", "1h0m0s behind", "timedatectl"},
		{"no calls", doctor.Join{Functions: doctor.Reach{Addr: "nuc:8080", Error: "refuses connections"}, Addresses: []netip.Addr{addr("10.0.0.2")}}, doctor.Fail, "network", "nuc:8080: refuses", "firewall"},
		{"behind a router", doctor.Join{Seen: addr("192.168.1.9"), Addresses: []netip.Addr{addr("10.0.0.2")}}, doctor.Warn, "address", "the gateway sees it at 192.168.1.9", "--advertise"},
		{"named", doctor.Join{Seen: addr("192.168.1.9"), Addresses: []netip.Addr{addr("10.0.0.2")}, Fixed: true}, doctor.OK, "address", "10.0.0.2", ""},
		{"a bridge", doctor.Join{Seen: addr("10.0.0.2"), Addresses: []netip.Addr{addr("10.0.0.2"), addr("172.17.0.1")}}, doctor.OK, "address", "10.0.0.2, then 172.17.0.1 (a container bridge?)", ""},
		{"no address", doctor.Join{}, doctor.Fail, "address", "no address", "--advertise"},
		{"is a node", doctor.Join{Node: "pi-1", Addresses: []netip.Addr{addr("10.0.0.2")}}, doctor.OK, "join", "its node pi-1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := well()
			want(t, doctor.Judge(doctor.Facts{Here: &m, Join: &tt.join}), tt.level, tt.check, tt.says, tt.do)
		})
	}
}

func TestOthers(t *testing.T) {
	m := well()
	want(t, doctor.Judge(doctor.Facts{Here: &m}), doctor.OK, "gateway", "none runs here", "")
	want(t, doctor.Judge(doctor.Facts{Here: &m, Settings: []string{"THICKET_ADDR: it is wrong"}}), doctor.Fail, "setting", "THICKET_ADDR", "EnvironmentFile")
	said := doctor.Unasked{Says: "nothing answers", Do: "start it"}
	want(t, doctor.Judge(doctor.Facts{Unasked: said}), doctor.Fail, "gateway", "nothing answers", "start it")
	want(t, doctor.Judge(doctor.Facts{Unasked: said, Here: &m}), doctor.Fail, "gateway", "nothing answers", "start it")
}

// want looks for a finding of a check, and sees that there is something to do
// exactly if it isn't well.
func want(t *testing.T, findings []doctor.Finding, level doctor.Level, check, says, do string) {
	t.Helper()
	found := false
	for _, f := range findings {
		if (f.Level == doctor.OK) != (f.Do == "") {
			t.Errorf("%+v: there must be something to do exactly if it isn't well", f)
		}
		found = found || f.Level == level && f.Check == check && strings.Contains(f.Says, says) && strings.Contains(f.Do, do)
	}
	if !found {
		b, _ := json.MarshalIndent(findings, "", " ")
		t.Errorf("no finding %v %s %q (do: %q) in %s", level, check, says, do, b)
	}
}

func TestReport(t *testing.T) {
	r := doctor.NewReport([]doctor.Finding{
		{doctor.OK, "node pi-1", "clock", "is right", ""},
		{doctor.Warn, "node pi-1", "disk", "says\x1b[2J\tand moves", "do"},
		{doctor.Fail, "functions", "platforms", "no", "build"},
	})
	if r.OK != 1 || r.Warn != 1 || r.Fail != 1 {
		t.Errorf("%d ok, %d warn, %d fail, want one of each", r.OK, r.Warn, r.Fail)
	}
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	const want = `node pi-1
  ok    clock  is right
  warn  disk   says [2J and moves
               -> do

functions
  fail  platforms  no
                   -> build

1 ok, 1 to look at, 1 wrong
`
	if b.String() != want {
		t.Errorf("Write() =\n%s\nwant\n%s", &b, want)
	}
	j, err := json.Marshal(r.Findings[0])
	if got := string(j); err != nil || got != `{"level":"ok","about":"node pi-1","check":"clock","says":"is right"}` {
		t.Errorf("JSON = %s, %v", got, err)
	}
}

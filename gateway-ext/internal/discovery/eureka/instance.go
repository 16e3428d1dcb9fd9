package eureka

import (
	"cmp"
	"errors"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/discovery"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// The bounds of what one instance may say of itself.
const (
	maxName          = 253 // bytes of an id, a host name, a vip address
	maxURL           = 512
	maxMetadata      = 64      // entries
	maxMetadataBytes = 4 << 10 // of all keys and values

	minRenewal, maxRenewal   = 1, 300 // seconds
	minDuration, maxDuration = 3, 900
	defaultRenewal           = 30
	defaultDuration          = 90
)

// Status is an instance's status.
type Status string

// The statuses that Eureka knows.
const (
	StatusUp           Status = "UP"
	StatusDown         Status = "DOWN"
	StatusStarting     Status = "STARTING"
	StatusOutOfService Status = "OUT_OF_SERVICE"
	StatusUnknown      Status = "UNKNOWN"
)

// parseStatus reads a status.
func parseStatus(s string) (Status, error) {
	switch v := Status(strings.ToUpper(strings.TrimSpace(s))); v {
	case StatusUp, StatusDown, StatusStarting, StatusOutOfService, StatusUnknown:
		return v, nil
	}
	return "", faas.Errorf(faas.ErrInvalid, "status %.40q is none of UP, DOWN, STARTING, OUT_OF_SERVICE, UNKNOWN", s)
}

// effective is the status that others see: an operator's word counts, but an
// instance that says that it can't isn't made to.
func effective(own, overridden Status) Status {
	if own == StatusDown || own == StatusStarting || overridden == StatusUnknown {
		return own
	}
	return overridden
}

// state is what a status means to the table.
func (s Status) state() (state faas.State, reason string) {
	switch s {
	case StatusUp:
		return faas.Ready, ""
	case StatusStarting:
		return faas.Starting, "it says that it is STARTING"
	default:
		return faas.Draining, "it is " + string(s)
	}
}

// Instance is one instance of an application, as Eureka describes it. Fields that
// nobody needs here are not kept.
type Instance struct {
	ID         string   `json:"instanceId" xml:"instanceId"`
	HostName   string   `json:"hostName" xml:"hostName"`
	App        string   `json:"app" xml:"app"` // in upper case
	IPAddr     string   `json:"ipAddr" xml:"ipAddr"`
	Status     Status   `json:"status" xml:"status"`
	Overridden Status   `json:"overriddenStatus" xml:"overriddenstatus"`
	Port       Port     `json:"port" xml:"port"`
	SecurePort Port     `json:"securePort" xml:"securePort"`
	CountryID  Number   `json:"countryId,omitempty" xml:"countryId,omitempty"`
	DataCenter Center   `json:"dataCenterInfo" xml:"dataCenterInfo"`
	Lease      Lease    `json:"leaseInfo" xml:"leaseInfo"`
	Metadata   Metadata `json:"metadata" xml:"metadata"`

	AppGroup      string `json:"appGroupName,omitempty" xml:"appGroupName,omitempty"`
	HomePage      string `json:"homePageUrl,omitempty" xml:"homePageUrl,omitempty"`
	StatusPage    string `json:"statusPageUrl,omitempty" xml:"statusPageUrl,omitempty"`
	Health        string `json:"healthCheckUrl,omitempty" xml:"healthCheckUrl,omitempty"`
	SecureHealth  string `json:"secureHealthCheckUrl,omitempty" xml:"secureHealthCheckUrl,omitempty"`
	VIP           string `json:"vipAddress,omitempty" xml:"vipAddress,omitempty"`
	SecureVIP     string `json:"secureVipAddress,omitempty" xml:"secureVipAddress,omitempty"`
	Coordinating  Flag   `json:"isCoordinatingDiscoveryServer" xml:"isCoordinatingDiscoveryServer"`
	Updated       Quoted `json:"lastUpdatedTimestamp" xml:"lastUpdatedTimestamp"` // by this machine's clock
	Dirty         Quoted `json:"lastDirtyTimestamp" xml:"lastDirtyTimestamp"`     // by the client's clock
	ActionType    action `json:"actionType,omitempty" xml:"actionType,omitempty"`
	OverriddenAlt Status `json:"overriddenstatus,omitempty" xml:"overriddenStatus,omitempty"` // as other clients write it
}

// Lease is how long an instance's word holds, and when it spoke: in seconds and
// in milliseconds since 1970.
type Lease struct {
	Renewal    Number `json:"renewalIntervalInSecs" xml:"renewalIntervalInSecs"`
	Duration   Number `json:"durationInSecs" xml:"durationInSecs"`
	Registered int64  `json:"registrationTimestamp" xml:"registrationTimestamp"`
	Renewed    int64  `json:"lastRenewalTimestamp" xml:"lastRenewalTimestamp"`
	Evicted    int64  `json:"evictionTimestamp" xml:"evictionTimestamp"`
	ServiceUp  int64  `json:"serviceUpTimestamp" xml:"serviceUpTimestamp"`
}

func (l Lease) duration() time.Duration { return time.Duration(l.Duration) * time.Second }

// suspect is how long the instance may be silent before it gets less traffic: two
// heartbeats, but no more than two thirds of the lease.
func (l Lease) suspect() time.Duration {
	return min(2*time.Duration(l.Renewal)*time.Second, l.duration()*2/3)
}

// clone returns an instance that may be changed; maps are replaced by who changes
// them.
func (i *Instance) clone() *Instance {
	c := *i
	return &c
}

// nameOf returns the name by which an application is called through the gateway.
func nameOf(app string) (faas.Name, bool) {
	name := faas.Name{Function: strings.ToLower(app), Namespace: faas.DefaultNamespace}
	return name, faas.CheckLabel("", name.Function) == nil
}

// appOf is the application that a function appears as.
func appOf(name faas.Name) string {
	if name.Namespace != faas.DefaultNamespace {
		return strings.ToUpper(name.String())
	}
	return strings.ToUpper(name.Function)
}

// service returns the name by which the instance is called through the gateway,
// if it can be.
func (i *Instance) service() (name faas.Name, callable bool) {
	name, callable = nameOf(i.App)
	return name, callable && bool(i.Port.Enabled)
}

// addr is where the instance takes requests, with TLS if it does so only.
func (i *Instance) addr() netip.AddrPort {
	addr, _ := netip.ParseAddr(i.IPAddr) // it was checked
	port := i.Port
	if !port.Enabled {
		port = i.SecurePort
	}
	return netip.AddrPortFrom(addr, uint16(port.Number))
}

func (i *Instance) zone() string { return i.Metadata["zone"] }

// node is the machine that the instance is on: its host's name without a domain,
// as the gateway's own node is called.
func (i *Instance) node() string {
	if node := i.Metadata["node"]; node != "" {
		return node
	}
	if _, err := netip.ParseAddr(i.HostName); err == nil {
		return i.HostName
	}
	host, _, _ := strings.Cut(strings.ToLower(i.HostName), ".")
	return host
}

// target is what the table asks when the instance is silent: its health URL if
// that is at its own address and without TLS, else whether its port is open. The
// address is always the registered one, whatever host the URL names.
func (i *Instance) target() discovery.Target {
	addr := i.addr()
	u, err := url.Parse(i.Health)
	if err != nil || u.Scheme != "http" || u.Hostname() != i.IPAddr && !strings.EqualFold(u.Hostname(), i.HostName) {
		return discovery.Target{Addr: addr}
	}
	port := uint64(80)
	if p := u.Port(); p != "" {
		if port, err = strconv.ParseUint(p, 10, 16); err != nil || port == 0 {
			return discovery.Target{Addr: addr}
		}
	}
	return discovery.Target{Addr: netip.AddrPortFrom(addr.Addr(), uint16(port)), Health: u.RequestURI()}
}

// check makes an instance sound, or says in one error all that is wrong with it.
func (r *Registry) check(i *Instance, local bool) error {
	var wrong []error
	bad := func(format string, args ...any) { wrong = append(wrong, faas.Errorf(faas.ErrInvalid, format, args...)) }

	i.App = strings.ToUpper(strings.TrimSpace(i.App))
	if !word(i.App) {
		bad("field app is %.80q: an application's name has 1 to 63 letters, digits, \"-\", \"_\" and \".\"", i.App)
	}
	if i.ID == "" {
		i.ID = i.HostName // as Netflix's clients mean it
	}
	for _, f := range []struct{ name, value string }{{"instanceId", i.ID}, {"hostName", i.HostName}} {
		if f.value == "" || !plain(f.value, maxName) || strings.ContainsAny(f.value, "/\\?# ") {
			bad("field %s is %.80q: write 1 to %d characters without spaces and slashes", f.name, f.value, maxName)
		}
	}
	for _, f := range []struct {
		name, value string
		most        int
	}{
		{"vipAddress", i.VIP, maxName}, {"secureVipAddress", i.SecureVIP, maxName}, {"appGroupName", i.AppGroup, maxName},
		{"homePageUrl", i.HomePage, maxURL}, {"statusPageUrl", i.StatusPage, maxURL},
		{"healthCheckUrl", i.Health, maxURL}, {"secureHealthCheckUrl", i.SecureHealth, maxURL},
	} {
		if !plain(f.value, f.most) {
			bad("field %s is longer than %d bytes, or has control characters", f.name, f.most)
		}
	}
	total := 0
	for key, value := range i.Metadata {
		total += len(key) + len(value)
		if key == "" || !plain(key, maxName) || !plain(value, maxMetadataBytes) {
			bad("metadata %.80q: keys and values are text without control characters", key)
		}
	}
	if len(i.Metadata) > maxMetadata || total > maxMetadataBytes {
		bad("metadata has %d entries with %d bytes, at most %d with %d are taken", len(i.Metadata), total, maxMetadata, maxMetadataBytes)
	}
	i.Status = cmp.Or(i.Status, StatusUp)
	i.Overridden = cmp.Or(i.Overridden, i.OverriddenAlt, StatusUnknown)
	for _, s := range []*Status{&i.Status, &i.Overridden} {
		var err error
		if *s, err = parseStatus(string(*s)); err != nil {
			wrong = append(wrong, err)
		}
	}
	i.OverriddenAlt, i.ActionType = "", ""
	i.Lease.Evicted = 0
	i.Lease.Renewal = bounded(i.Lease.Renewal, defaultRenewal, minRenewal, maxRenewal)
	i.Lease.Duration = max(bounded(i.Lease.Duration, defaultDuration, minDuration, maxDuration), min(i.Lease.Renewal+1, maxDuration))
	i.DataCenter = myOwn
	i.Coordinating = false
	wrong = append(wrong, r.checkAddr(i, local))

	if err := errors.Join(wrong...); err != nil {
		return faas.Errorf(faas.ErrInvalid, "%w", err)
	}
	if r.cfg.Check != nil {
		if d := r.declaration(i); d.Annotations != nil {
			return r.cfg.Check(d)
		}
	}
	return nil
}

// bounded returns n, or what it is if it is not given, within bounds.
func bounded(n, otherwise, least, most Number) Number {
	if n <= 0 {
		n = otherwise
	}
	return min(max(n, least), most)
}

// metadataServices are addresses at which clouds tell the machines in them
// secrets, beside the link-local ones.
var metadataServices = [...]netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("192.0.0.192"),
	netip.MustParseAddr("168.63.129.16"),
}

// embedded are networks whose addresses stand for an IPv4 address.
var embedded = [...]netip.Prefix{
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("::/96"),
}

// checkAddr refuses addresses that an instance can't take requests at, or that
// nobody should make the gateway call: what it registers is where the gateway
// will connect to. An instance may be anywhere in the networks that the gateway
// reaches, since that is what a registry is for; who may register has the
// password. What is never an instance is refused: addresses of no one host, of
// the link (where clouds have the services that tell a machine its secrets), of
// such services elsewhere, of IPv6 that stand for another, of the gateway itself,
// and those of the loopback if the caller isn't on this machine.
func (r *Registry) checkAddr(i *Instance, local bool) error {
	addr, err := netip.ParseAddr(i.IPAddr)
	if err != nil || addr.Zone() != "" {
		return faas.Errorf(faas.ErrInvalid, "field ipAddr is %.80q: write the address at which the instance takes requests, such as 192.168.1.20 (with Spring: eureka.instance.ip-address)", i.IPAddr)
	}
	addr = addr.Unmap()
	i.IPAddr = addr.String()
	if !i.Port.Enabled && !i.SecurePort.Enabled {
		return faas.Errorf(faas.ErrInvalid, "neither port nor securePort is enabled: an instance takes requests at one of them")
	}
	for _, p := range []struct {
		name string
		port Port
	}{{"port", i.Port}, {"securePort", i.SecurePort}} {
		if p.port.Enabled && (p.port.Number < 1 || p.port.Number > 65535) {
			return faas.Errorf(faas.ErrInvalid, "field %s is %d: write 1 to 65535", p.name, p.port.Number)
		}
	}
	refuse := func(why string) error {
		return faas.Errorf(faas.ErrInvalid, "ipAddr %s %s: register the address at which this gateway reaches the instance (with Spring: eureka.instance.ip-address)", addr, why)
	}
	switch {
	case addr.IsUnspecified(), addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}), addr.Is4() && addr.As4()[0] == 0:
		return refuse("is no address of one host")
	case addr.IsLinkLocalUnicast():
		return refuse("is link-local, and is never called from here")
	case addr.IsLoopback():
		if !local {
			return refuse("is a loopback address, and the caller is on another machine")
		}
	}
	for _, m := range metadataServices {
		if addr == m {
			return refuse("is that of a cloud's metadata service, and is never called from here")
		}
	}
	for _, p := range embedded {
		if p.Contains(addr) && !addr.IsLoopback() {
			return refuse("stands for an IPv4 address: write that")
		}
	}
	if r.cfg.Own != nil && r.cfg.Own(i.addr()) {
		return refuse("with port " + strconv.Itoa(int(i.addr().Port())) + " is this gateway's own")
	}
	return nil
}

// word says whether s can be an application's name.
func word(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !('A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.", r))
	})
}

// plain says whether s is text of at most so many bytes.
func plain(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || r == '\ufffe' || r == '\uffff'
	})
}

// ofFunction is a function's replica as an instance. image is what it runs.
func ofFunction(s *discovery.Status, image string) *Instance {
	app := appOf(s.Function)
	since := s.Since.UnixMilli()
	host := s.Addr.Addr().String()
	i := &Instance{
		ID: s.ID, HostName: host, App: app, IPAddr: host,
		Overridden: StatusUnknown,
		Port:       Port{Number(s.Addr.Port()), true},
		SecurePort: Port{443, false},
		CountryID:  1,
		DataCenter: myOwn,
		Lease:      Lease{Renewal: defaultRenewal, Duration: defaultDuration, Registered: since},
		Metadata: Metadata{
			"namespace": s.Function.Namespace, "node": s.Node, "zone": s.Zone,
			"revision": strconv.FormatUint(s.Revision, 10), "image": image,
		},
		HomePage: "http://" + net.JoinHostPort(host, strconv.Itoa(int(s.Addr.Port()))) + "/",
		VIP:      strings.ToLower(app),
		Updated:  Quoted(since),
		Dirty:    Quoted(since),
	}
	maps.DeleteFunc(i.Metadata, func(_, value string) bool { return value == "" })
	switch s.State {
	case faas.Starting:
		i.Status = StatusStarting
	case faas.Ready:
		if s.Source != discovery.Local && s.Addr.Addr().IsLoopback() {
			i.Status = StatusOutOfService // on another machine's loopback nobody reaches it but the gateway
			break
		}
		i.Status = StatusUp
		i.Lease.ServiceUp = since
	default:
		i.Status = StatusOutOfService
	}
	return i
}

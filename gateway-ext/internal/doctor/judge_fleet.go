package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// gateway judges a gateway and its fleet.
func (j *judge) gateway(g *Gateway) {
	j.about = "the gateway at " + g.URL
	j.ok("gateway", "version %s answers", g.Version)
	j.version("this program", g.Asker, g.Version)
	j.skew("clock", "this machine's", g.Ahead, g.Within)
	if g.Joining != "" {
		j.ok("nodes", "machines join at %s", g.Joining)
	} else {
		j.ok("nodes", "takes no machines (THICKET_NODES_ADDR)")
	}
	for i := range g.Nodes {
		j.node(g, &g.Nodes[i])
	}
	j.functions(g)
}

// node judges one machine of the fleet.
func (j *judge) node(g *Gateway, n *Node) {
	j.about = "node " + n.Name
	if n.Local {
		j.about += " (the gateway's machine)"
	}
	switch {
	case n.State == "gone":
		j.fail("node", "is gone: "+or(n.Reason, "it doesn't answer"), fmt.Sprintf("look whether it runs (systemctl status thicket-node there); if it won't come back: gateway-ext nodes remove %s", n.Name))
		return
	case n.State != "ready":
		j.warn("node", fmt.Sprintf("is %s: %s", n.State, or(n.Reason, "it was not heard of lately")), "look at its network, and whether it is overloaded")
	case n.Cordoned:
		j.ok("node", "is ready, and gets nothing new: gateway-ext nodes uncordon %s", n.Name)
	default:
		j.ok("node", "is ready")
	}
	if !n.Local {
		j.version("it", n.Version, g.Version)
		j.skew("clock", "its", n.Ahead, 0)
	}
	switch {
	case n.Machine != nil:
		j.machine(n.Machine)
	case n.State == "ready":
		j.ok("node", "its machine can't be looked at from here: %s", or(n.Unexamined, "it doesn't tell"))
	}
}

// version compares the version of who with the gateway's.
func (j *judge) version(who, is, gateway string) {
	if is == gateway || is == "" {
		j.ok("version", "%s", or(is, "not told"))
		return
	}
	j.warn("version", fmt.Sprintf("%s is %s, and the gateway %s", who, is, gateway), "install the same on both: deploy/systemd/install.sh does")
}

// skew judges how far a clock is ahead of the gateway's, give or take within.
func (j *judge) skew(check, whose string, ahead, within time.Duration) {
	off := max(ahead.Abs()-within, 0)
	direction := "ahead of"
	if ahead < 0 {
		direction = "behind"
	}
	if off < skewWarn {
		j.ok(check, "agrees with the gateway's, give or take %s", round(max(ahead.Abs(), within)))
		return
	}
	l := level(off >= skewFail, true)
	j.add(l, check, fmt.Sprintf("%s clock is %s %s the gateway's", whose, round(ahead.Abs()), direction),
		"sudo timedatectl set-ntp true on both: logs are out of order until then, and registries' certificates may not be believed")
}

// functions judges which nodes the functions can run on.
func (j *judge) functions(g *Gateway) {
	j.about = "functions"
	var nowhere, one, down []string
	oneNode := ""
	able := 0 // nodes that may run something
	for _, n := range g.Nodes {
		if n.State != "gone" {
			able++
		}
	}
	for _, f := range g.Functions {
		var on []string
		for _, n := range g.Nodes {
			if n.State != "gone" && runs(n.Platforms, f.Platforms) {
				on = append(on, n.Name)
			}
		}
		switch {
		case len(on) == 0:
			nowhere = append(nowhere, fmt.Sprintf("%s (for %s)", f.Name, strings.Join(f.Platforms, ", ")))
		case len(on) == 1 && able > 1:
			one, oneNode = append(one, fmt.Sprintf("%s (for %s)", f.Name, strings.Join(f.Platforms, ", "))), on[0]
		}
		if f.Wanted > 0 && f.Ready == 0 && len(on) > 0 {
			down = append(down, strings.TrimSuffix(fmt.Sprintf("%s (%s)", f.Name, f.Reason), " ()"))
		}
	}
	if n := len(nowhere); n > 0 {
		j.fail("platforms", fmt.Sprintf("no node can run %s: the nodes are %s", some(nowhere), platforms(g.Nodes)),
			"build for these: gateway-ext build --push --platforms …, or have such a machine join")
	}
	if n := len(one); n > 0 {
		where := "one node only"
		if n == 1 {
			where = oneNode + " only"
		}
		j.warn("platforms", fmt.Sprintf("%s can run %s; without it, nowhere", where, some(one)), "build for more platforms: gateway-ext build --push --platforms linux/amd64,linux/arm64,linux/arm/v7")
	}
	switch {
	case len(g.Functions) == 0:
		j.ok("functions", "none is deployed")
		return
	case len(nowhere)+len(one) == 0:
		where := "on two nodes or more"
		if able == 1 {
			where = "here"
		}
		j.ok("platforms", "each of %d deployed can run %s", len(g.Functions), where)
	}
	if len(down) > 0 {
		j.fail("ready", "no replica takes calls of "+some(down), "gateway-ext nodes why FUNCTION and faas-cli logs FUNCTION say more")
	} else {
		j.ok("ready", "all that should run take calls")
	}
}

// runs says whether an image for these platforms runs on a node that can run those.
func runs(node, image []string) bool {
	return len(node) == 0 || len(image) == 0 || slices.ContainsFunc(image, func(p string) bool { return slices.Contains(node, p) })
}

// platforms lists what nodes are, each once.
func platforms(nodes []Node) string {
	var all []string
	for _, n := range nodes {
		if len(n.Platforms) > 0 && n.State != "gone" && !slices.Contains(all, n.Platforms[0]) {
			all = append(all, n.Platforms[0])
		}
	}
	return strings.Join(all, ", ")
}

// some lists the first few.
func some(all []string) string {
	const most = 4
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// bridges are where Docker and its like put their bridges by default.
var bridges = [...]netip.Prefix{
	netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("172.18.0.0/16"), netip.MustParsePrefix("10.62.0.0/16"), netip.MustParsePrefix("10.88.0.0/16"),
}

// join judges how a machine and the gateway that it is to join see one another.
func (j *judge) join(f *Join) {
	j.about = "the gateway to join, " + f.URL
	if f.Node != "" {
		j.about = "its gateway, " + f.URL
	}
	if f.Error != "" {
		j.fail("join", f.Error, f.Do)
	} else {
		if f.Node != "" {
			j.ok("join", "answers, and this machine is its node %s", f.Node)
		} else {
			j.ok("join", "answers, and is a gateway of Thicket")
		}
		j.skew("clock", "this machine's", f.Ahead, f.Within)
		r := f.Functions
		r.What = "what functions and images are asked for"
		if r.Error != "" && r.Name == "" {
			j.fail("network", fmt.Sprintf("%s at %s: %s", r.What, r.Addr, r.Error), "let nodes reach that port of the gateway too (a firewall? THICKET_ADDR at another interface?)")
		} else {
			j.reach(&r)
		}
	}
	if f.Node == "" { // else it was tried when it joined
		j.addresses(f)
	}
}

// addresses judges what the machine would announce.
func (j *judge) addresses(f *Join) {
	if len(f.Addresses) == 0 {
		j.fail("address", "this machine has no address that another one could reach", "connect it to the network, or name its address with --advertise")
		return
	}
	var list []string
	for _, a := range f.Addresses {
		s := a.String()
		if slices.ContainsFunc(bridges[:], func(p netip.Prefix) bool { return p.Contains(a) }) {
			s += " (a container bridge?)"
		}
		list = append(list, s)
	}
	says := "announces " + strings.Join(list, ", then ")
	switch {
	case f.Seen.IsValid() && !f.Fixed && !slices.Contains(f.Addresses, f.Seen):
		j.warn("address", fmt.Sprintf("%s, but the gateway sees it at %s", says, f.Seen),
			"something in between translates addresses: the gateway calls the nodes, so name one that it can reach with --advertise, or forward a port")
	case f.Addresses[0].IsLoopback() && f.Seen.IsValid() && !f.Seen.IsLoopback():
		j.warn("address", says+", where the gateway finds itself", "name the right one with --advertise")
	default:
		j.ok("address", "%s; the gateway tries it when this machine joins", says)
	}
}

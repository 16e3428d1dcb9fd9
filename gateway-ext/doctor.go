package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/doctor"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/nodes"
)

func (c *command) doctor() *cobra.Command {
	o := &operator{c: c}
	var join, listen, advertise string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check a machine and a fleet, and say what to do",
		Long: `Check what a machine and a fleet need, and say in a sentence what is wrong and what
to do about it. Nothing is changed, and no secret is printed.

Beside a running gateway, or with --gateway, it asks that gateway, which has each of
its nodes look at itself. Without one it checks what this machine would need to be a
gateway. With --join, and on a node, it checks the way to the gateway.

It exits with 1 if something is wrong, and with 0 if there are only things to look at.`,
		Example: `  gateway-ext doctor
  gateway-ext doctor --gateway http://192.168.1.2:8080      with THICKET_PASSWORD set
  gateway-ext doctor --join https://192.168.1.2:8090        before this machine joins
  gateway-ext doctor --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if join != "" && o.gateway != "" {
				return errors.New("--join is for a machine that would be a node, --gateway for a gateway to ask: give one of them")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), examining+5*time.Second)
			defer cancel()
			p := patient{s: settings{}, o: o, join: strings.TrimSuffix(join, "/"), listen: listen, advertise: advertise}
			var err error
			if p.s, err = readSettings(c.environ); err != nil {
				p.facts.Settings = strings.Split(err.Error(), "\n")
			}
			if err := p.examine(ctx); err != nil {
				return err
			}
			report := doctor.NewReport(doctor.Judge(p.facts))
			if asJSON {
				b, err := json.MarshalIndent(report, "", "  ")
				if err != nil {
					return err
				}
				fmt.Fprintln(c.stdout, string(b))
			} else if err := report.Write(c.stdout); err != nil {
				return err
			}
			switch report.Fail {
			case 0:
				return nil
			case 1:
				return errors.New("something is wrong: see above what to do")
			}
			return fmt.Errorf("%d things are wrong: see above what to do", report.Fail)
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&join, "join", "", "the `URL` for nodes of a gateway that this machine would join")
	cmd.Flags().StringVar(&listen, "listen", ":8091", "with --join: the `address` at which the node would be called")
	cmd.Flags().StringVar(&advertise, "advertise", "", "with --join: the `address` that it would announce")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// patient is what the doctor looks at.
type patient struct {
	s                       settings
	o                       *operator
	join, listen, advertise string
	facts                   doctor.Facts
}

// examine finds out what there is, and looks at it.
func (p *patient) examine(ctx context.Context) error {
	node := ""
	if p.join == "" && p.o.gateway == "" {
		node, p.join = joined(p.s.Data)
	}
	if p.join == "" || node != "" {
		if asked := p.ask(ctx); asked || p.o.gateway != "" {
			return nil
		}
	}
	about := subject(p.s)
	if p.join == "" {
		if p.facts.Unasked == (doctor.Unasked{}) && len(p.facts.Settings) == 0 {
			about.Ports = []doctor.Port{{What: "the API, calls and images", Setting: "THICKET_ADDR", Addr: p.s.Addr}}
			if p.s.NodesAddr != noNodes {
				about.Ports = append(about.Ports, doctor.Port{What: "machines that join", Setting: "THICKET_NODES_ADDR", Addr: p.s.NodesAddr})
			}
		}
		about.Targets = append(about.Targets, plainTargets(p.s.InsecureRegistries)...)
		if _, password := p.s.pushCredentials(); password != "" {
			about.Password = weakness(p.s.User, password)
		}
		p.facts.Here = new(doctor.Look(ctx, about))
		return nil
	}
	if u, err := url.Parse(p.join); err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("--join %s: write the gateway's address for nodes, as gateway-ext token prints it: https://host:8090", p.join)
	}
	if node == "" {
		about.Ports = []doctor.Port{{What: "calls of the gateway", Setting: "--listen", Addr: p.listen}}
	}
	looked := make(chan doctor.Machine, 1)
	go func() { looked <- doctor.Look(ctx, about) }()
	p.facts.Join = p.gatewayToJoin(ctx, node)
	p.facts.Here = new(<-looked)
	return nil
}

// joined is the node that this machine is, and its gateway.
func joined(data string) (node, gateway string) {
	b, err := os.ReadFile(filepath.Join(data, "node", nodes.IdentityFile))
	if err != nil {
		return "", ""
	}
	var id struct{ Name, Gateway string } // and nothing of what is secret in it
	if json.Unmarshal(b, &id) != nil {
		return "", ""
	}
	return id.Name, id.Gateway
}

// ask asks the gateway, if one answers.
func (p *patient) ask(ctx context.Context) (asked bool) {
	base := p.o.url(p.s)
	u, err := url.Parse(base)
	if err != nil || u.Host == "" {
		p.facts.Unasked = doctor.Unasked{Says: fmt.Sprintf("--gateway %s is no address", p.o.gateway), Do: "write it like http://192.168.1.2:8080"}
		return false
	}
	who, err := whoAnswers(ctx, base)
	unbelieved, ok := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case ok:
		p.facts.Unasked = doctor.Unasked{
			Says: fmt.Sprintf("the certificate of what answers at %s isn't believed here: %v", base, unbelieved.Err),
			Do:   "name the gateway as its certificate does, with --gateway, or have this machine trust who has signed it",
		}
		return false
	case err != nil && p.o.gateway == "":
		return false // there is none here
	case err != nil:
		p.facts.Unasked = doctor.Unasked{Says: fmt.Sprintf("nothing answers at %s: %s", base, doctor.Explain(err)), Do: "start it there, open the way to it (a firewall?), or correct --gateway"}
		return false
	case !who && p.o.gateway == "":
		return false // its port is taken, which will be found
	case !who:
		p.facts.Unasked = doctor.Unasked{Says: fmt.Sprintf("what answers at %s is no gateway of Thicket", base), Do: "correct --gateway"}
		return false
	}
	var g doctor.Gateway
	err = p.o.ask(ctx, http.MethodGet, "/system/doctor", nil, &g)
	if err != nil {
		says, do, _ := strings.Cut(err.Error(), ": ")
		if strings.HasPrefix(err.Error(), "404") {
			says, do = fmt.Sprintf("the gateway at %s is of a version without a doctor", base), "install this program's version there"
		}
		p.facts.Unasked = doctor.Unasked{Says: says, Do: do}
		return false
	}
	g.URL, g.Ahead = base, time.Since(g.Time)
	g.Asker, _ = buildVersion()
	p.facts.Gateway = &g
	return true
}

// whoAnswers says whether it is a gateway that answers at a URL, which every one
// does who asks for its API without a password: with that it wants one. The error
// is why nobody answers.
func whoAnswers(ctx context.Context, base string) (gateway bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/system/info", nil)
	if err != nil {
		return false, err
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	for _, nobody := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, nobody) {
			return false, err
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return false, dns
	}
	if unbelieved, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false, unbelieved
	}
	if err != nil {
		// Somebody who doesn't speak HTTP, or is too busy to.
		return false, nil
	}
	defer res.Body.Close()
	return res.StatusCode == http.StatusUnauthorized && strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Basic"), nil
}

// plainTargets are registries that are asked for images over plain HTTP.
func plainTargets(registries []string) (all []doctor.Target) {
	for _, r := range registries {
		addr := r
		if _, _, err := net.SplitHostPort(addr); err != nil {
			addr = net.JoinHostPort(addr, "80")
		}
		all = append(all, doctor.Target{What: "the registry", Setting: "THICKET_INSECURE_REGISTRIES", Addr: addr})
	}
	return all
}

// gatewayToJoin looks at the gateway that this machine would join, or has.
func (p *patient) gatewayToJoin(ctx context.Context, node string) *doctor.Join {
	j := &doctor.Join{URL: p.join, Node: node, Fixed: p.advertise != "", Addresses: nodes.Candidates(p.join)}
	if j.Fixed {
		// A name is what a person means by it; what it is now is tried when it joins.
		host := p.advertise
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		j.Addresses = nil
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		for _, addr := range found {
			j.Addresses = append(j.Addresses, addr.Unmap())
		}
		if err != nil {
			j.Error, j.Do = fmt.Sprintf("--advertise %s: %s", p.advertise, doctor.Explain(err)), "name an address of this machine that the gateway can reach"
			return j
		}
	}
	asking, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	began := time.Now()
	hello, err := nodes.Hello(asking, p.join)
	took := time.Since(began)
	switch {
	case errors.Is(err, nodes.ErrPlain):
		j.Error, j.Do = "what answers there speaks no TLS", "name the port for nodes, 8090 (THICKET_NODES_ADDR), and not that of the API"
	case errors.Is(err, nodes.ErrStranger):
		j.Error, j.Do = "what answers there is no gateway of Thicket", "correct --join, or name the port for nodes, 8090: gateway-ext token prints the address"
	case err != nil:
		j.Error, j.Do = "it isn't reached: "+doctor.Explain(err), "look whether the gateway runs and takes nodes (THICKET_NODES_ADDR), and whether a firewall keeps this machine from its port"
	}
	if err != nil {
		return j
	}
	// The gateway's clock was read about in the middle.
	j.Seen, j.Ahead, j.Within = hello.Seen, began.Add(took/2).Sub(hello.Time), took/2
	if at, err := url.Parse(hello.Functions); err == nil {
		port := at.Port()
		if port == "" {
			port = "443"
		}
		j.Functions = doctor.Target{Addr: net.JoinHostPort(at.Hostname(), port)}.Reach(ctx)
	}
	return j
}

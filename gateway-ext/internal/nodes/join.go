package nodes

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// protocolVersion is what both sides of a line must speak.
const protocolVersion = 1

// Bounds of what a machine that wants to join may say.
const (
	maxJoin      = 64 << 10 // bytes
	maxAddresses = 16
	maxLabels    = 64
)

// application is what a machine says that wants to join, and a node that has
// come back.
type application struct {
	Protocol  int               `json:"protocol"`
	Token     string            `json:"token,omitempty"` // the secret part; not of a node
	Name      string            `json:"name"`
	Key       []byte            `json:"key,omitempty"` // its public key, DER; not of a node
	Addresses []netip.AddrPort  `json:"addresses"`     // where it can be reached, the likeliest first
	Advertise bool              `json:"advertise"`     // a person has said which
	Labels    map[string]string `json:"labels,omitempty"`
	Machine   remote.Machine    `json:"machine"`

	Proof   []byte `json:"proof,omitempty"`   // that it knows the [Secret], in place of a token
	Replace bool   `json:"replace,omitempty"` // take the place of a node that is gone

	by       string // what lets it join
	replaces []byte // the key of the node whose place it may take
}

// admission is the answer.
type admission struct {
	Certificate []byte         `json:"certificate,omitempty"`
	Authority   []byte         `json:"authority,omitempty"`
	Address     netip.AddrPort `json:"address"`         // the one of them that the gateway reached
	Functions   string         `json:"functions"`       // where functions reach the gateway, with the host as the node knows it
	Notes       []string       `json:"notes,omitempty"` // what its operator should know of it
	Proof       []byte         `json:"proof,omitempty"`
}

// check looks at what a machine says of itself.
func (a *application) check() error {
	if a.Protocol != protocolVersion {
		what := "is too old for this gateway: install the gateway's version there"
		if a.Protocol > protocolVersion {
			what = "is newer than this gateway: install that version on the gateway first"
		}
		return faas.Errorf(faas.ErrInvalid, "node %.63q runs version %.40q, which %s (it speaks protocol %d, the gateway %d)", a.Name, a.Machine.Version, what, a.Protocol, protocolVersion)
	}
	if err := faas.CheckLabel("the node's name", a.Name); err != nil {
		return err
	}
	if n := len(a.Addresses); n == 0 || n > maxAddresses {
		return faas.Errorf(faas.ErrInvalid, "node %s names %d addresses, and must name 1 to %d: set --advertise to the one at which the gateway reaches it", a.Name, n, maxAddresses)
	}
	for _, addr := range a.Addresses {
		if !addr.IsValid() || addr.Port() == 0 || addr.Addr().IsUnspecified() || addr.Addr().IsMulticast() || addr.Addr().IsLinkLocalUnicast() && addr.Addr().Zone() == "" {
			return faas.Errorf(faas.ErrInvalid, "node %s: %s is no address that it can be reached at", a.Name, addr)
		}
	}
	return CheckLabels(a.Labels)
}

// CheckLabels returns nil if a node can have these labels, else an
// [faas.ErrInvalid].
func CheckLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return faas.Errorf(faas.ErrInvalid, "%d labels, at most %d are allowed", len(labels), maxLabels)
	}
	for k, v := range labels {
		if !printable(k) || !printable(v) || strings.ContainsAny(k, "=! ") {
			return faas.Errorf(faas.ErrInvalid, "label %.63q=%.63q: write NAME=VALUE, each of 1 to 128 printable characters, such as zone=shelf-1", k, v)
		}
	}
	return nil
}

func printable(s string) bool {
	return len(s) > 0 && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// trial bounds one attempt to reach a node.
const trial = 2 * time.Second

// reach finds the first of the addresses at which the holder of the key answers.
// The error says what was tried, and what to do.
func reach(ctx context.Context, a *application, key []byte) (netip.AddrPort, error) {
	errs := make([]error, len(a.Addresses))
	var wg sync.WaitGroup
	for i, addr := range a.Addresses {
		wg.Go(func() { errs[i] = try(ctx, addr, key) })
	}
	wg.Wait()
	var tried []string
	for i, addr := range a.Addresses {
		if errs[i] == nil {
			return addr, nil
		}
		tried = append(tried, fmt.Sprintf("%s %s", addr, whyNot(addr.Addr(), errs[i])))
	}
	advice := "let the gateway reach it there (a firewall?), or name the right address with --advertise"
	if a.Advertise {
		advice = "correct --advertise, or let the gateway reach it there (a firewall?)"
	}
	return netip.AddrPort{}, faas.Errorf(faas.ErrInvalid, "node %s can't be reached from the gateway: %s: %s", a.Name, strings.Join(tried, "; "), advice)
}

// errStranger is that somebody else answers.
var errStranger = errors.New("is answered by another machine")

// try sees whether the holder of the key answers at an address.
func try(ctx context.Context, addr netip.AddrPort, key []byte) error {
	ctx, cancel := context.WithTimeout(ctx, trial)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocolHello},
		InsecureSkipVerify: true, // the key is all that is known of it:
		VerifyConnection: func(s tls.ConnectionState) error {
			if !bytes.Equal(s.PeerCertificates[0].RawSubjectPublicKeyInfo, key) {
				return errStranger
			}
			return nil
		},
	}}
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// bridges are where Docker and its like put their bridges by default: addresses
// that mean something on one machine only.
var bridges = []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("172.18.0.0/16"), netip.MustParsePrefix("10.62.0.0/16"), netip.MustParsePrefix("10.88.0.0/16")}

// whyNot is why an address can't be reached, in words.
func whyNot(addr netip.Addr, err error) string {
	said := ""
	switch {
	case errors.Is(err, errStranger):
		said = errStranger.Error()
	case errors.Is(err, syscall.ECONNREFUSED):
		said = "refuses connections"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		said = "has no route to it"
	case errors.Is(err, context.DeadlineExceeded):
		said = fmt.Sprintf("doesn't answer within %s", trial)
	default:
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			said = fmt.Sprintf("doesn't answer within %s", trial)
		} else {
			said = "is answered by something else"
		}
	}
	switch {
	case addr.IsLoopback():
		said += " (loopback: the gateway finds itself there)"
	case slices.ContainsFunc(bridges, func(p netip.Prefix) bool { return p.Contains(addr) }):
		said += " (it looks like a container bridge, which exists on that machine only)"
	}
	return said
}

// Join makes a machine a node of the gateway at a URL: who has a token's text, or
// the gateway's [Secret], may. The listener, at which the machine can be reached, must show the
// identity meanwhile ([Identity.Server]). The identity is filled in.
func (id *Identity) Join(ctx context.Context, gateway, token string, a Application) error {
	public, err := id.Public()
	if err != nil {
		return err
	}
	body := a.wire(id.Name)
	body.Key = public
	if s, err := ParseSecret(token); err == nil {
		return id.joinBySecret(ctx, gateway, s, body)
	}
	pinned, secret, err := parseToken(token)
	if err != nil {
		return err
	}
	body.Token = encoding.EncodeToString(secret)
	var seen string
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocolHTTP},
		InsecureSkipVerify: true, // in its place stands the token's pin:
		VerifyConnection: func(s tls.ConnectionState) error {
			chain := s.PeerCertificates
			authority := chain[len(chain)-1]
			if seen = pin(authority); seen != pinned {
				return faas.Errorf(faas.ErrForbidden, "the gateway at %s is not the one that made this token: make one there, or correct --join", gateway)
			}
			return verified(tls.Certificate{}, authority, gatewayURI, nil).VerifyConnection(s)
		},
	}
	var res admission
	if err := post(ctx, conf, gateway+"/join", body, &res); err != nil {
		return err
	}
	c, err := x509.ParseCertificate(res.Authority)
	if err != nil || pin(c) != pinned {
		return errors.New("join: the gateway's answer can't be read")
	}
	id.belong(gateway, &res)
	return nil
}

func (id *Identity) belong(gateway string, res *admission) {
	id.Gateway, id.Certificate, id.Authority, id.Functions, id.Notes = gateway, res.Certificate, res.Authority, res.Functions, res.Notes
}

// Announce tells the gateway where the node is now.
func (id *Identity) Announce(ctx context.Context, a Application) error {
	_, err := id.announce(ctx, id.Gateway, a)
	return err
}

// Follow does it at another address, where the gateway is now, and remembers that.
// The error is an [faas.ErrForbidden] if another gateway is there.
func (id *Identity) Follow(ctx context.Context, gateway string, a Application) error {
	res, err := id.announce(ctx, gateway, a)
	if err != nil {
		return err
	}
	id.Gateway, id.Functions, id.Notes = gateway, res.Functions, res.Notes
	return nil
}

func (id *Identity) announce(ctx context.Context, gateway string, a Application) (*admission, error) {
	conf, err := id.Client()
	if err != nil {
		return nil, err
	}
	res := new(admission)
	return res, post(ctx, conf, gateway+"/announce", a.wire(id.Name), res)
}

// Application is what a machine says of itself when it joins.
type Application struct {
	Addresses []netip.AddrPort // where it can be reached, the likeliest first
	Advertise bool             // a person has said which
	Replace   bool             // take the place of a node of this name that is gone
	Labels    map[string]string
	Machine   remote.Machine
}

func (a *Application) wire(name string) *application {
	return &application{
		Protocol: protocolVersion, Name: name,
		Addresses: a.Addresses, Advertise: a.Advertise, Replace: a.Replace, Labels: a.Labels, Machine: a.Machine,
	}
}

// post sends one JSON value and reads another.
func post(ctx context.Context, conf *tls.Config, url string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return postBy(ctx, &http.Transport{TLSClientConfig: conf, TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true}, url, body, out)
}

func postBy(ctx context.Context, transport *http.Transport, url string, body []byte, out any) error {
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return faas.Errorf(faas.ErrInvalid, "%w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		if e, ok := errors.AsType[*faas.Error](err); ok {
			return e
		}
		return faas.Errorf(faas.ErrUnavailable, "the gateway at %s can't be reached: %w", strings.TrimSuffix(strings.TrimSuffix(url, "/join"), "/announce"), cmp.Or(errors.Unwrap(err), err))
	}
	defer res.Body.Close()
	limited := io.LimitReader(res.Body, maxJoin)
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(limited) // what there is of it
		return faas.Errorf(cmp.Or(faas.KindOf(res.StatusCode), faas.ErrUnavailable), "%s", cmp.Or(strings.TrimSpace(string(text)), res.Status))
	}
	return json.NewDecoder(limited).Decode(out)
}

// public reads the key of who wants to join.
func public(der []byte) (ed25519.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if k, ok := key.(ed25519.PublicKey); ok && err == nil {
		return k, nil
	}
	return nil, faas.Errorf(faas.ErrInvalid, "the node's key is not an Ed25519 key")
}

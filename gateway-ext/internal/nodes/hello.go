package nodes

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Greeting is what a gateway tells a machine that wants to know whether it could
// join: nothing that who can reach it doesn't see anyway.
type Greeting struct {
	Functions string     `json:"functions"` // where functions and images are asked for
	Seen      netip.Addr `json:"seen"`      // the machine, as the gateway sees it
	Time      time.Time  `json:"time"`      // by the gateway's clock
}

func (n *Nodes) hello(w http.ResponseWriter, r *http.Request) {
	g := Greeting{Functions: n.functionsURL(r), Time: time.Now()}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		g.Seen = from.Addr().Unmap()
	}
	_ = faas.WriteJSON(w, g) // it is gone: nobody to tell
}

// Errors of [Hello] that say who answers, if it is no gateway.
var (
	ErrPlain    = errors.New("it speaks no TLS")
	ErrStranger = errors.New("it is no gateway of Thicket")
)

// Hello asks the gateway at a URL where machines join for its greeting. Nothing
// that it says is trusted: who joins has a token that names the gateway.
func Hello(ctx context.Context, gateway string) (Greeting, error) {
	var g Greeting
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, gateway+"/hello", nil)
	if err != nil {
		return g, err
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocolHTTP},
		InsecureSkipVerify: true, // who it is isn't known yet; that it is some gateway is what is asked:
		VerifyConnection: func(s tls.ConnectionState) error {
			chain := s.PeerCertificates
			if verified(tls.Certificate{}, chain[len(chain)-1], gatewayURI, nil).VerifyConnection(s) != nil {
				return ErrStranger
			}
			return nil
		},
	}}
	res, err := transport.RoundTrip(req)
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return g, ErrPlain
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok { // it wants another version, or other protocols
		return g, ErrStranger
	}
	if err != nil {
		return g, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return g, fmt.Errorf("it answers %s: it may be of an older version", res.Status)
	}
	return g, json.NewDecoder(io.LimitReader(res.Body, maxJoin)).Decode(&g)
}

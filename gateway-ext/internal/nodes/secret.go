package nodes

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// A token names its gateway, so it can only be made once there is one. Where
// machines are set up by files alone (a DaemonSet, cloud-init), gateway and
// machines are given one [Secret] instead, in any order. It never goes over the
// wire: both prove that they know it by a hash of it with what only the two ends
// of this TLS connection know (RFC 9266), so that who sits in between learns
// nothing and is believed by nobody. All else is as with a token.

// Secret is what a gateway and the machines that may join it were both given.
type Secret string

// minSecret is so long that nobody finds a secret by trying.
const minSecret = 32

// ParseSecret reads a secret, from a file that may end with a line break. The
// error is an [faas.ErrInvalid].
func ParseSecret(text string) (Secret, error) {
	s := strings.TrimSpace(text)
	switch {
	case strings.HasPrefix(s, tokenPrefix+"."):
		return "", faas.Errorf(faas.ErrInvalid, "it is a token, which a gateway makes and machines are given: the gateway needs a secret of your own, such as openssl rand -hex 32 prints")
	case len(s) < minSecret || len(s) > 1024 || !printable(s[:minSecret]):
		return "", faas.Errorf(faas.ErrInvalid, "a secret has %d to 1024 characters, and nobody can guess it: use what openssl rand -hex 32 prints", minSecret)
	}
	return Secret(s), nil
}

// Who proves something says who it is, so that none can be told its own proof.
const (
	proofOfMachine = "thicket machine"
	proofOfGateway = "thicket gateway"
)

// bySecret is how a [Record] says that its node joined with the secret.
const bySecret = "file"

// proof is what who knows the secret can say on a connection.
func (s Secret) proof(who string, conn *tls.ConnectionState) ([]byte, error) {
	binding, err := conn.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return nil, err
	}
	h := hmac.New(sha256.New, []byte(s))
	h.Write([]byte(who))
	h.Write(binding)
	return h.Sum(nil), nil
}

// proves says whether p is the proof of who.
func (s Secret) proves(p []byte, who string, conn *tls.ConnectionState) bool {
	if s == "" || conn == nil {
		return false
	}
	want, err := s.proof(who, conn)
	return err == nil && hmac.Equal(p, want)
}

// joinBySecret is [Identity.Join] with a secret. body is all but the proof.
func (id *Identity) joinBySecret(ctx context.Context, gateway string, s Secret, body *application) error {
	u, err := url.Parse(gateway)
	if err != nil {
		return faas.Errorf(faas.ErrInvalid, "%w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocolHTTP},
		InsecureSkipVerify: true, // who answers is believed when it has shown its proof
	}}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	if err != nil {
		return faas.Errorf(faas.ErrUnavailable, "the gateway at %s can't be reached: %w", gateway, err)
	}
	defer conn.Close()
	state := conn.(*tls.Conn).ConnectionState()
	if body.Proof, err = s.proof(proofOfMachine, &state); err != nil {
		return err
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	var res admission
	if err := postBy(ctx, &http.Transport{
		DialTLSContext:    func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}, gateway+"/join", b, &res); err != nil {
		return err
	}
	if !s.proves(res.Proof, proofOfGateway, &state) {
		return faas.Errorf(faas.ErrForbidden, "who answers at %s doesn't know the secret: give the gateway the same file (THICKET_TOKEN_FILE), or correct --join", gateway)
	}
	authority, err := x509.ParseCertificate(res.Authority)
	if err != nil {
		return errors.New("join: the gateway's answer can't be read")
	}
	if err := verified(tls.Certificate{}, authority, gatewayURI, nil).VerifyConnection(state); err != nil {
		return err
	}
	id.belong(gateway, &res)
	return nil
}

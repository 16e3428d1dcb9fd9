package nodes

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// Everything between a gateway and its nodes goes over TLS 1.3, in which both
// show certificates that the gateway's [Authority] has signed. Who somebody is
// stands in the certificate as a URI: the gateway, or the node of one name.
//
// Certificates don't expire: the clock of a Pi that has lost its power says 1970
// until it has found the network. Trust ends when the gateway forgets a node,
// whose key it compares with the one that it remembers.

var (
	always = time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC)
	never  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // RFC 5280, section 4.1.2.5
)

const (
	gatewayURI = "thicket://gateway"
	nodeURI    = "thicket://node/"
)

// The names by which the sides tell what they want of one another (ALPN, RFC 7301).
const (
	protocolHTTP  = "http/1.1"
	protocolHello = "thicket-hello/1" // nothing: it is looked who answers
)

// encoding is that of pins and tokens: lower case letters and digits.
var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Authority is what makes a gateway's word count with its nodes.
type Authority struct {
	key  ed25519.PrivateKey
	cert *x509.Certificate
	own  tls.Certificate // the gateway's
}

// NewAuthority returns the authority of a seed of 32 bytes: with the same seed,
// the same one. Who knows the seed is the gateway.
func NewAuthority(seed []byte) (*Authority, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("the authority's seed has %d bytes, not %d", len(seed), ed25519.SeedSize)
	}
	a := &Authority{key: ed25519.NewKeyFromSeed(seed)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Thicket gateway"},
		NotBefore: always, NotAfter: never,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(nil, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := a.issue(gatewayURI, public)
	if err != nil {
		return nil, err
	}
	a.own = tls.Certificate{Certificate: [][]byte{leaf, der}, PrivateKey: private}
	return a, nil
}

// Pin is how a token names the authority: the hash of its public key.
func (a *Authority) Pin() string { return pin(a.cert) }

func pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return encoding.EncodeToString(sum[:])
}

// issue signs a certificate for who holds the key.
func (a *Authority) issue(uri string, key crypto.PublicKey) ([]byte, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificate(nil, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: strings.TrimPrefix(uri, "thicket://")}, URIs: []*url.URL{u},
		NotBefore: always, NotAfter: never,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key, a.key)
}

// Server is how the gateway shows itself to nodes, and to machines that want to
// become one, which have no certificate yet.
func (a *Authority) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocolHTTP},
		Certificates: []tls.Certificate{a.own},
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: pool(a.cert),
	}
}

// Client is how the gateway calls a node, which must have the name and the key.
func (a *Authority) Client(node string, key []byte, protocols ...string) *tls.Config {
	c := verified(a.own, a.cert, nodeURI+node, key)
	c.NextProtos = protocols
	return c
}

// Peer returns the name and the key of the node that has made a connection to
// [Authority.Server], and false if it is none.
func Peer(s *tls.ConnectionState) (name string, key []byte, ok bool) {
	if s == nil || len(s.VerifiedChains) == 0 || len(s.PeerCertificates[0].URIs) != 1 {
		return "", nil, false
	}
	c := s.PeerCertificates[0]
	name, ok = strings.CutPrefix(c.URIs[0].String(), nodeURI)
	return name, c.RawSubjectPublicKeyInfo, ok
}

// verified is a client's configuration that accepts one peer alone: who the
// authority says is uri and, if key isn't nil, holds that key. The host's name
// has no meaning here: nodes have addresses, which change.
func verified(own tls.Certificate, authority *x509.Certificate, uri string, key []byte) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own},
		InsecureSkipVerify: true, // in its place stands:
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool(authority), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
				return faas.Errorf(faas.ErrForbidden, "who answers is of no fleet, or of another: %w", err)
			}
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != uri {
				return faas.Errorf(faas.ErrForbidden, "who answers is %q and not %q", leaf.Subject.CommonName, strings.TrimPrefix(uri, "thicket://"))
			}
			if key != nil && !bytes.Equal(leaf.RawSubjectPublicKeyInfo, key) {
				return faas.Errorf(faas.ErrForbidden, "%s answers with another key than it joined with", leaf.Subject.CommonName)
			}
			return nil
		},
	}
}

func pool(c *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c)
	return p
}

// Identity is who a node is: its name, its key, and the gateway that it belongs
// to. It is all that a node has to keep.
type Identity struct {
	Name        string `json:"name"`
	Gateway     string `json:"gateway"`     // URL at which it joined
	Functions   string `json:"functions"`   // URL at which functions reach the gateway
	Key         []byte `json:"key"`         // PKCS #8
	Certificate []byte `json:"certificate"` // by the authority; empty until it has joined
	Authority   []byte `json:"authority"`   // the authority's own certificate

	Notes []string `json:"-"` // what the gateway has noticed about the machine when it joined
}

// NewIdentity makes a key.
func NewIdentity(name string) (*Identity, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	return &Identity{Name: name, Key: der}, nil
}

// registry is where the gateway's registry is from the node.
func (id *Identity) registry() string {
	_, host, _ := strings.Cut(id.Functions, "://")
	return host
}

// Joined says whether a gateway has signed it.
func (id *Identity) Joined() bool { return len(id.Certificate) > 0 }

func (id *Identity) private() (ed25519.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(id.Key)
	if err != nil {
		return nil, fmt.Errorf("the node's key can't be read: %w", err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("the node's key is not an Ed25519 key")
	}
	return private, nil
}

// Public is its public key (SubjectPublicKeyInfo, DER).
func (id *Identity) Public() ([]byte, error) {
	private, err := id.private()
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(private.Public())
}

func (id *Identity) certificate() (tls.Certificate, error) {
	private, err := id.private()
	if err != nil {
		return tls.Certificate{}, err
	}
	if id.Joined() {
		return tls.Certificate{Certificate: [][]byte{id.Certificate}, PrivateKey: private}, nil
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: id.Name}, NotBefore: always, NotAfter: never}
	der, err := x509.CreateCertificate(nil, template, template, private.Public(), private)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, err
}

// Server is how a node answers: before it has joined anybody may see that it
// holds its key, and nothing else; afterwards its gateway alone is let in.
func (id *Identity) Server() (*tls.Config, error) {
	own, err := id.certificate()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, NextProtos: []string{protocolHello}}
	if !id.Joined() {
		return c, nil
	}
	authority, err := x509.ParseCertificate(id.Authority)
	if err != nil {
		return nil, err
	}
	c.NextProtos = []string{protocolHTTP, remote.TunnelProtocol, protocolHello}
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool(authority)
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if leaf := s.PeerCertificates[0]; len(leaf.URIs) != 1 || leaf.URIs[0].String() != gatewayURI {
			return faas.Errorf(faas.ErrForbidden, "%q is not the gateway", leaf.Subject.CommonName)
		}
		return nil
	}
	return c, nil
}

// Client is how a node calls its gateway.
func (id *Identity) Client() (*tls.Config, error) {
	own, err := id.certificate()
	if err != nil {
		return nil, err
	}
	authority, err := x509.ParseCertificate(id.Authority)
	if err != nil {
		return nil, err
	}
	return verified(own, authority, gatewayURI, nil), nil
}

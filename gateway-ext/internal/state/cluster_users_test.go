package state_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// TestNATSTLS: servers with certificates that an authority of one's own has signed.
func TestNATSTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// It is its own authority.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	c := startNATS(t, 1, func(o *server.Options) {
		o.TLS, o.TLSTimeout = true, 5
		o.TLSConfig = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
	})
	cfg := state.Config{Dir: t.TempDir(), NATS: c.config("nuc"), Logger: quiet}
	cfg.NATS.URL = strings.Replace(cfg.NATS.URL, "nats://", "tls://", 1)
	if s, err := state.Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "THICKET_NATS_CA") {
		t.Errorf("Open() without the authority = %v, %v, want an error that says THICKET_NATS_CA", s, err)
	}
	cfg.NATS.CA = ca
	put(t, bucket(t, open(t, cfg), "b"), "k", "v")
}

// TestNATSCredentials: a user of an account, by a JWT and its key in a file.
func TestNATSCredentials(t *testing.T) {
	pair := func(make func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		k, err := make()
		if err != nil {
			t.Fatal(err)
		}
		public, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return k, public
	}
	encode := func(c interface {
		Encode(nkeys.KeyPair) (string, error)
	}, by nkeys.KeyPair) string {
		s, err := c.Encode(by)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	operator, operatorID := pair(nkeys.CreateOperator)
	account, accountID := pair(nkeys.CreateAccount)
	_, systemID := pair(nkeys.CreateAccount)
	user, userID := pair(nkeys.CreateUser)
	claims := jwt.NewAccountClaims(accountID)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	accounts := &server.MemAccResolver{}
	for id, token := range map[string]string{accountID: encode(claims, operator), systemID: encode(jwt.NewAccountClaims(systemID), operator)} {
		if err := accounts.Store(id, token); err != nil {
			t.Fatal(err)
		}
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(encode(jwt.NewUserClaims(userID), account), seed)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "gateway.creds")
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	c := startNATS(t, 1, func(o *server.Options) {
		o.TrustedOperators = []*jwt.OperatorClaims{jwt.NewOperatorClaims(operatorID)}
		o.AccountResolver, o.SystemAccount = accounts, systemID
	})
	cfg := state.Config{Dir: t.TempDir(), NATS: c.config("nuc")}
	cfg.NATS.Creds = file
	put(t, bucket(t, open(t, cfg), "b"), "k", "v")
}

// raw is a connection of somebody else to a cluster.
func (c *natsServers) raw() jetstream.JetStream {
	c.t.Helper()
	nc, err := nats.Connect(c.config("").URL)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		c.t.Fatal(err)
	}
	return js
}

// TestNATSGrows: what was made on one server is on three once there are as many.
func TestNATSGrows(t *testing.T) {
	c := startNATS(t, 3, nil)
	js := c.raw()
	eventually(t, "a bucket can be made", func() bool {
		_, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "thicket_declared", Replicas: 1, MaxValueSize: state.MaxValue})
		return err == nil
	})
	s := open(t, state.Config{Dir: t.TempDir(), NATS: c.config("nuc")})
	b := bucket(t, s, "declared")
	stream, err := js.Stream(t.Context(), "KV_thicket_declared")
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().Config; got.Replicas != 3 || got.AllowDirect {
		t.Errorf("it is on %d servers, want 3; any of them answers: %t", got.Replicas, got.AllowDirect)
	}
	put(t, b, "k", "v")
	if got := all(t, b); got["k"] != "v" {
		t.Errorf("it has %v", got)
	}
}

// TestNATSTakenOver: a gateway that was cut off for so long that another one has
// taken its place writes no more, even if that one is gone again.
func TestNATSTakenOver(t *testing.T) {
	for _, leased := range []bool{true, false} {
		c := startNATS(t, 1, nil)
		s := open(t, state.Config{Dir: t.TempDir(), NATS: c.config("nuc")})
		b := bucket(t, s, "declared")
		put(t, b, "k", "v")
		js := c.raw()
		other := []byte(`{"identity":"another","node":"laptop"}`)
		for name, key := range map[string]string{"thicket_meta": "owner", "thicket_lease": "gateway"} {
			kv, err := js.KeyValue(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = kv.Put(t.Context(), key, other); err == nil && key == "gateway" && !leased {
				err = kv.Delete(t.Context(), key)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "it is noticed", func() bool { return s.Writable() != nil })
		if err := b.Put(t.Context(), "k", []byte("mine")); !errors.Is(err, faas.ErrUnavailable) || !strings.Contains(err.Error(), "used by the gateway laptop") {
			t.Errorf("Put() after another gateway has taken over = %v, want an ErrUnavailable that names it", err)
		}
	}
}

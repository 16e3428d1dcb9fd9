package nodes

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// tokenPrefix is how a token begins, so that people and scanners for secrets
// know what it is.
const tokenPrefix = "thicket1"

// Token lets machines join a gateway, and is good for nothing else. It names
// the gateway, so that a machine gives it to nobody else.
type Token struct {
	ID      string    `json:"id"`               // to list and revoke it by
	Hash    []byte    `json:"hash,omitempty"`   // SHA-256 of the secret part, which nobody keeps
	Note    string    `json:"note,omitempty"`   // what it is for
	Created time.Time `json:"created"`          //
	Expires time.Time `json:"expires,omitzero"` // zero: never
	Used    int       `json:"used"`             // how many nodes have joined with it
}

// newToken makes a token, and the text of it for whoever joins.
func newToken(a *Authority, note string, life time.Duration, now time.Time) (Token, string) {
	secret := make([]byte, 16)
	rand.Read(secret) // never fails
	sum := sha256.Sum256(secret)
	t := Token{ID: encoding.EncodeToString(sum[:5]), Hash: sum[:], Note: note, Created: now}
	if life > 0 {
		t.Expires = now.Add(life)
	}
	return t, tokenPrefix + "." + a.Pin() + "." + encoding.EncodeToString(secret)
}

// parseToken splits a token's text. The error is an [faas.ErrInvalid].
func parseToken(text string) (pin string, secret []byte, err error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) == 3 && parts[0] == tokenPrefix {
		key, err1 := encoding.DecodeString(parts[1])
		secret, err2 := encoding.DecodeString(parts[2])
		if err1 == nil && err2 == nil && len(key) == sha256.Size && len(secret) == 16 {
			return parts[1], secret, nil
		}
	}
	return "", nil, faas.Errorf(faas.ErrInvalid, "the token is not whole: copy all that gateway-ext token prints, from %s. on", tokenPrefix)
}

// matches says whether the secret is the token's, in a time that tells nothing.
func (t *Token) matches(secret []byte) bool {
	sum := sha256.Sum256(secret)
	return subtle.ConstantTimeCompare(sum[:], t.Hash) == 1
}

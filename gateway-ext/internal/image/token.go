package image

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Clients of registries ask GET /v2/ how to log in before they do anything else.
// If that answers 200, docker never sends a password, and a push can't succeed;
// if it answers 401 with HTTP's Basic scheme, docker doesn't pull without one.
// What serves both is what Docker Hub does: 401 with the Bearer scheme and the
// address of a token service, which gives a token for pulling to anybody, and
// one for pushing for the password
// (https://distribution.github.io/distribution/spec/auth/token/).

const (
	tokenPath = "/v2/token"
	tokenLife = 15 * time.Minute
)

// right is what a token allows.
type right string

const (
	mayPull right = "pull"
	mayPush right = "push" // and pull
)

// tokens makes and checks tokens. They are worth nothing to another process, and
// after a restart: clients then ask for a new one.
type tokens struct{ key []byte }

func newTokens() *tokens {
	key := make([]byte, 32)
	rand.Read(key) // never fails, says crypto/rand
	return &tokens{key: key}
}

func (t *tokens) sign(what string) string {
	mac := hmac.New(sha256.New, t.key)
	mac.Write([]byte(what))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (t *tokens) issue(r right, until time.Time) string {
	what := string(r) + "." + strconv.FormatInt(until.Unix(), 10)
	return what + "." + t.sign(what)
}

// valid tells whether the request carries a token that allows as much as want.
func (t *tokens) valid(r *http.Request, want right) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	i := strings.LastIndexByte(token, '.')
	if i < 0 || !hmac.Equal([]byte(t.sign(token[:i])), []byte(token[i+1:])) {
		return false
	}
	has, until, _ := strings.Cut(token[:i], ".")
	sec, err := strconv.ParseInt(until, 10, 64)
	return err == nil && time.Now().Unix() < sec && (right(has) == want || right(has) == mayPush)
}

// serveToken is the token service.
func (g *Registry) serveToken(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		// OAuth's POST. Clients fall back to GET on this answer.
		w.Header().Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "tokens are given out on GET")
		return
	}
	allowed := mayPull
	if r.Header.Get("Authorization") != "" {
		if !g.cfg.Authorize(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="Restricted"`)
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "the user or the password is wrong")
			return
		}
		allowed = mayPush
	}
	now := time.Now()
	token := g.tokens.issue(allowed, now.Add(tokenLife))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token": token, "access_token": token, // the one is Docker's name for it, the other OAuth's
		"expires_in": int(tokenLife.Seconds()),
		"issued_at":  now.UTC().Format(time.RFC3339),
	})
}

// challenge answers 401 and says where tokens are to be had.
func (g *Registry) challenge(w http.ResponseWriter, r *http.Request, repo string) {
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	host := strings.Map(func(c rune) rune {
		if c == '"' || c == '\\' || c < ' ' {
			return -1
		}
		return c
	}, r.Host)
	c := `Bearer realm="` + scheme + "://" + host + tokenPath + `",service="thicket"`
	if repo != "" {
		c += `,scope="repository:` + repo + `:pull,push"`
	}
	w.Header().Set("WWW-Authenticate", c)
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "to push, log in with the gateway's user and password")
}

package nodes

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/placement"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// Handler is what the gateway serves to machines, behind [Authority.Server].
func (n *Nodes) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, serve func(*http.Request) (*admission, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxJoin)
			res, err := serve(r)
			if err != nil {
				n.log.Warn("a machine was turned away", "from", r.RemoteAddr, "err", err)
				w.Header().Set("Content-Type", "text/plain; charset=utf-8")
				w.WriteHeader(faas.StatusOf(err))
				_, _ = io.WriteString(w, err.Error()) // it is gone: nobody to tell
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(res) // as above
		})
	}
	mux.HandleFunc("GET /hello", n.hello)
	handle("POST /join", n.join)
	handle("POST /announce", n.announce)
	return mux
}

func readApplication(r *http.Request) (*application, error) {
	var a application
	if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
		return nil, faas.Errorf(faas.ErrInvalid, "what the machine says can't be read: %w", err)
	}
	return &a, a.check()
}

// join takes in a machine that has a token.
func (n *Nodes) join(r *http.Request) (*admission, error) {
	a, err := readApplication(r)
	if err != nil {
		return nil, err
	}
	proof, err := n.entitled(r, a)
	if err != nil {
		return nil, err
	}
	key, err := public(a.Key)
	if err != nil {
		return nil, err
	}
	addr, err := reach(r.Context(), a, a.Key)
	if err != nil {
		return nil, err
	}
	cert, err := n.cfg.Authority.issue(nodeURI+a.Name, key)
	if err != nil {
		return nil, err
	}
	if err := n.admit(r.Context(), a, a.Key, addr); err != nil {
		return nil, err
	}
	n.used(r.Context(), a.by)
	for _, note := range n.noticed(a.Machine) {
		n.log.Warn("there is something about a machine that joins", "node", a.Name, "what", note)
	}
	n.log.Info("a machine has joined", "node", a.Name, "addr", addr.String(), "version", a.Machine.Version, "token", a.by)
	return &admission{Certificate: cert, Authority: n.cfg.Authority.cert.Raw, Address: addr, Functions: n.functionsURL(r), Notes: n.noticed(a.Machine), Proof: proof}, nil
}

// entitled finds out by what a machine may join, and notes it. proof is what it
// wants to see of us.
func (n *Nodes) entitled(r *http.Request, a *application) (proof []byte, err error) {
	if a.Proof == nil {
		t, err := n.token(a.Token, time.Now())
		a.by = t.ID
		return nil, err
	}
	if !n.cfg.Secret.proves(a.Proof, proofOfMachine, r.TLS) {
		return nil, faas.Errorf(faas.ErrForbidden, "node %s has another secret than the gateway, which may have none: give both the same file (THICKET_TOKEN_FILE)", a.Name)
	}
	a.by = bySecret
	n.mu.Lock()
	old := n.nodes[a.Name]
	var was Record
	if old != nil {
		was = old.Record
	}
	n.mu.Unlock()
	if a.Replace && was.By == bySecret && try(r.Context(), was.Addr, was.Key) != nil {
		a.replaces = was.Key
	}
	return n.cfg.Secret.proof(proofOfGateway, r.TLS)
}

// functionsURL is where functions on a node reach the gateway: at the host at
// which the node has reached it.
func (n *Nodes) functionsURL(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return n.functionsAt(host)
}

// functionsAt is where functions reach the gateway whose machine they reach at
// host.
func (n *Nodes) functionsAt(host string) string {
	u := n.cfg.Functions
	if _, err := netip.ParseAddr(u.Hostname()); err != nil && u.Scheme == "https" {
		return u.String() // the name that its certificate is for
	}
	u.Host = net.JoinHostPort(host, u.Port())
	return u.String()
}

// announce notes where a node is now.
func (n *Nodes) announce(r *http.Request) (*admission, error) {
	name, key, ok := Peer(r.TLS)
	if !ok {
		return nil, faas.Errorf(faas.ErrForbidden, "who announces itself must have joined")
	}
	n.mu.Lock()
	d := n.nodes[name]
	n.mu.Unlock()
	if d == nil || d.local || !bytes.Equal(d.Key, key) {
		return nil, faas.Errorf(faas.ErrForbidden, "%s was removed from this fleet: make a token (gateway-ext token) and join again", name)
	}
	a, err := readApplication(r)
	if err != nil {
		return nil, err
	}
	a.Name = name
	if err := n.twin(r.Context(), d, a); err != nil {
		return nil, err
	}
	addr, err := reach(r.Context(), a, key)
	if err != nil {
		return nil, err
	}
	return &admission{Address: addr, Functions: n.functionsURL(r), Notes: n.noticed(a.Machine)}, n.admit(r.Context(), a, key, addr)
}

// twin refuses a node that announces itself from elsewhere while it is where it
// was: then there are two of it.
func (n *Nodes) twin(ctx context.Context, d *node, a *application) error {
	n.mu.Lock()
	at, key, there := d.Addr, d.Key, d.state == placement.Ready
	n.mu.Unlock()
	if !there || slices.Contains(a.Addresses, at) || try(ctx, at, key) != nil {
		return nil
	}
	return faas.Errorf(faas.ErrConflict, "there is a %s already, which answers at %s: if this machine was made from a copy of its disk, remove the file %s from the folder node in its state folder and join anew, under another name", d.Name, at, IdentityFile)
}

// noticed is what an operator should know of a machine.
func (n *Nodes) noticed(m remote.Machine) []string {
	var skew time.Duration
	if !m.Time.IsZero() {
		skew = time.Until(m.Time)
	}
	return notes(&m, skew, n.cfg.Local.Machine().Version)
}

// NewToken makes a token that lets machines join for so long; 0 is until it is
// revoked. text is what they need, and is told once.
func (n *Nodes) NewToken(ctx context.Context, note string, life time.Duration) (t Token, text string, err error) {
	if len(note) > 0 && !printable(note) || life < 0 {
		return t, "", faas.Errorf(faas.ErrInvalid, "a token's note has at most 128 printable characters, and its time is not negative")
	}
	n.storing.Lock()
	defer n.storing.Unlock()
	n.mu.Lock()
	full := len(n.tokens) >= n.cfg.MaxTokens
	n.mu.Unlock()
	if full {
		return t, "", faas.Errorf(faas.ErrOverloaded, "there are %d tokens, as many as are kept: revoke one", n.cfg.MaxTokens)
	}
	t, text = newToken(n.cfg.Authority, note, life, time.Now())
	if err := n.save(ctx, tokenKey+t.ID, t); err != nil {
		return t, "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tokens[t.ID] = t
	return t, text, nil
}

// Tokens lists the tokens, without what could be used of them.
func (n *Nodes) Tokens() []Token {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]Token, 0, len(n.tokens))
	for _, t := range n.tokens {
		t.Hash = nil
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b Token) int { return a.Created.Compare(b.Created) })
	return all
}

// Revoke makes a token worthless. Nodes that joined with it stay.
func (n *Nodes) Revoke(ctx context.Context, id string) error {
	n.storing.Lock()
	defer n.storing.Unlock()
	n.mu.Lock()
	_, ok := n.tokens[id]
	n.mu.Unlock()
	if !ok {
		return faas.Errorf(faas.ErrNotFound, "there is no token %.20q", id)
	}
	if err := n.cfg.Store.Delete(context.WithoutCancel(ctx), tokenKey+id); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.tokens, id)
	return nil
}

// token finds the token of a secret.
func (n *Nodes) token(secret string, now time.Time) (Token, error) {
	s, err := encoding.DecodeString(secret)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.tokens {
		if err == nil && t.matches(s) {
			if !t.Expires.IsZero() && now.After(t.Expires) {
				return t, faas.Errorf(faas.ErrForbidden, "the token was good until %s: make a new one with gateway-ext token", t.Expires.Format(time.RFC3339))
			}
			return t, nil
		}
	}
	return Token{}, faas.Errorf(faas.ErrForbidden, "the token was revoked, or is another gateway's: make a new one with gateway-ext token")
}

// used counts who joined with a token.
func (n *Nodes) used(ctx context.Context, id string) {
	n.storing.Lock()
	defer n.storing.Unlock()
	n.mu.Lock()
	t, ok := n.tokens[id]
	t.Used++
	if ok {
		n.tokens[t.ID] = t
	}
	n.mu.Unlock()
	if !ok {
		return
	}
	if err := n.save(ctx, tokenKey+t.ID, t); err != nil {
		n.log.Warn("it can't be stored how often a token was used", "err", err)
	}
}

// Rooms returns what each node that takes something new has left.
func (n *Nodes) Rooms() []provider.Room {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []provider.Room
	for _, name := range slices.Sorted(maps.Keys(n.nodes)) {
		d := n.nodes[name]
		if d.state != placement.Ready || d.Cordoned || d.Draining {
			continue
		}
		if r, ok := d.p.(interface{ Room() provider.Room }); ok {
			all = append(all, r.Room())
			continue
		}
		r := provider.Room{Node: name, Memory: d.machine.MemoryFree, CPU: d.machine.CPU}
		if d.machine.Memory == 0 {
			r.Memory = -1
		}
		for _, f := range n.functions {
			r.CPU = max(0, r.CPU-int64(f.shares[name].want)*f.place.CPU)
		}
		all = append(all, r)
	}
	return all
}

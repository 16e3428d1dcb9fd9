package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
)

func TestAuth(t *testing.T) {
	for _, tt := range []struct {
		name           string
		user, password string
		code           int
	}{
		{"right", user, password, 200},
		{"none", "", "", 401},
		{"wrong password", user, "wrong", 401},
		{"wrong user", "root", password, 401},
		{"longer", user, password + "x", 401},
		{"no password", user, "", 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, target := range []string{"/system/functions", "/system/info", "/system/nothing", "/system/namespaces", "/system/logs?name=weather"} {
				r := httptest.NewRequest("GET", target, nil)
				if tt.user != "" {
					r.SetBasicAuth(tt.user, tt.password)
				}
				w := httptest.NewRecorder()
				newGateway(t).ServeHTTP(w, r)
				if (w.Code == 401) != (tt.code == 401) {
					t.Errorf("GET %s = %d, want %d", target, w.Code, tt.code)
				}
				if tt.code != 401 {
					continue
				}
				if got := w.Body.String(); got != "invalid credentials" {
					t.Errorf("GET %s: body = %q", target, got)
				}
				if got := w.Header().Get("WWW-Authenticate"); got != `Basic realm="Restricted"` {
					t.Errorf("GET %s: WWW-Authenticate = %q", target, got)
				}
			}
		})
	}
}

func TestHealthzIsOpen(t *testing.T) {
	w := httptest.NewRecorder()
	newGateway(t).ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 200 {
		t.Errorf("GET /healthz without a password = %d", w.Code)
	}
}

func TestAuthWithoutPassword(t *testing.T) {
	for _, pair := range [][2]string{{"", ""}, {"admin", ""}, {"", "x"}} {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetBasicAuth(pair[0], pair[1])
		if api.NewAuth(pair[0], pair[1]).Authorized(r) {
			t.Errorf("%q is authorised where there is no password", pair)
		}
	}
}

// TestGuessing guesses passwords from one address, while another goes on.
func TestGuessing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := api.NewAuth(user, password)
		guarded := auth.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		try := func(source, password string) *httptest.ResponseRecorder {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = source
			r.SetBasicAuth(user, password)
			w := httptest.NewRecorder()
			guarded.ServeHTTP(w, r)
			return w
		}
		const thief, owner = "[2001:db8::1]:1", "192.0.2.1:1"
		for i := range 20 {
			if w := try(thief, fmt.Sprint(i)); w.Code != 401 {
				t.Fatalf("guess %d = %d, want 401", i, w.Code)
			}
		}
		w := try("[2001:db8::2]:9", password) // of the same network
		if w.Code != 429 || w.Header().Get("Retry-After") != "2" {
			t.Errorf("after 20 guesses = %d, Retry-After %q, want 429 and 2", w.Code, w.Header().Get("Retry-After"))
		}
		if w := try(owner, password); w.Code != 200 {
			t.Errorf("from elsewhere = %d, want 200", w.Code)
		}
		time.Sleep(time.Second) // virtual
		if w := try(thief, "one more"); w.Code != 401 {
			t.Errorf("a second later = %d, want 401", w.Code)
		}
		if w := try(thief, password); w.Code != 429 {
			t.Errorf("at once again = %d, want 429", w.Code)
		}
		time.Sleep(20 * time.Second)
		if w := try(thief, password); w.Code != 200 {
			t.Errorf("after waiting = %d, want 200", w.Code)
		}
		for _, local := range []string{"127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"} {
			for range 30 {
				try(local, "wrong")
			}
			if w := try(local, password); w.Code != 200 {
				t.Errorf("from %s after 30 guesses = %d, want 200: this machine never waits", local, w.Code)
			}
		}
		for range 100 { // a client that sends nothing first, as browsers do
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = thief
			if auth.Authorized(r) {
				t.Fatal("authorised without a password")
			}
		}
		if w := try(thief, password); w.Code != 200 {
			t.Errorf("after requests without a password = %d, want 200", w.Code)
		}
	})
}

// TestGuessingFromEverywhere fills the table of sources: it stays bounded, and
// nobody else has to wait.
func TestGuessingFromEverywhere(t *testing.T) {
	auth := api.NewAuth(user, password)
	for i := range 10_000 {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = fmt.Sprintf("10.%d.%d.1:1", i/256, i%256)
		r.SetBasicAuth(user, "wrong")
		if auth.Authorized(r) {
			t.Fatal("authorised by a wrong password")
		}
		r.SetBasicAuth(user, password)
		if !auth.Authorized(r) {
			t.Fatalf("source %d is refused the right password after one mistake", i)
		}
	}
}

package remote_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/provider/remote"
)

// TestSilentNode holds that nobody waits for a node that has fallen silent in the
// middle of being told something: it is frozen, and its system takes whatever it
// is sent.
func TestSilentNode(t *testing.T) {
	asked := make(chan struct{}, 2)
	frozen := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		asked <- struct{}{}
		<-r.Context().Done()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /node/v1/watch", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"synced":true}`+"\n"+`{"beat":{"version":"test"}}`+"\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("PUT /node/v1/functions/{namespace}/{name}", frozen)
	mux.HandleFunc("DELETE /node/v1/functions/{namespace}/{name}", frozen)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)

	heard := make(chan struct{}, 100)
	client := remote.NewClient(remote.ClientConfig{
		Node: "pi-1", URL: s.URL, HTTP: s.Client(), Patience: 300 * time.Millisecond,
		Beat: func(remote.Machine) { heard <- struct{}{} }, Logger: slog.New(slog.DiscardHandler),
	})
	run(t, client.Run)
	f := faas.Function{FunctionDeployment: types.FunctionDeployment{Service: "a", Namespace: faas.DefaultNamespace}}
	for what, tell := range map[string]func() error{
		"Apply":  func() error { return client.Apply(t.Context(), provider.Workload{Function: f}) },
		"Remove": func() error { return client.Remove(t.Context(), f.Name()) },
	} {
		<-heard // a stream is open
		if err := tell(); !errors.Is(err, faas.ErrUnavailable) {
			t.Errorf("%s() = %v, want that the node can't be reached", what, err)
		}
		<-asked
	}
}

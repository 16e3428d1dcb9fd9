package fleet_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/fleet"
	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

var discard = slog.New(slog.DiscardHandler)

func TestSecretsReachTheirFunctions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		ctx := t.Context()
		must(t, w.CreateSecret(ctx, types.Secret{Name: "a", Value: "text"}))
		must(t, w.CreateSecret(ctx, types.Secret{Name: "b", Value: "ignored", RawValue: []byte{0, 255}}))
		d := deployment("f")
		d.Secrets = []string{"a", "b"}
		must(t, w.Deploy(ctx, d))
		must(t, w.Deploy(ctx, deployment("other")))
		synctest.Wait()
		got, _ := w.nodes.last("f")
		if string(got.Secrets["a"]) != "text" || !bytes.Equal(got.Secrets["b"], []byte{0, 255}) || len(got.Secrets) != 2 {
			t.Errorf("f got %q, want both its secrets", got.Secrets)
		}
		if other, _ := w.nodes.last("other"); len(other.Secrets) != 0 {
			t.Errorf("a function that names no secret got %q", other.Secrets)
		}

		told := w.nodes.tellings()
		must(t, w.UpdateSecret(ctx, types.Secret{Name: "a", Value: "new"}))
		now, _ := w.nodes.last("f")
		if string(now.Secrets["a"]) != "new" || now.Function.Revision != got.Function.Revision || w.nodes.tellings() != told+1 {
			t.Errorf("after the update f has %q in revision %d, and %d functions were told; want the new value in the same revision, and one", now.Secrets["a"], now.Function.Revision, w.nodes.tellings()-told)
		}
		want := []types.Secret{{Name: "a", Namespace: faas.DefaultNamespace}, {Name: "b", Namespace: faas.DefaultNamespace}}
		if list := w.Secrets(""); len(list) != 2 || list[0].Name != want[0].Name || list[0].Value != "" || list[0].RawValue != nil || list[1].Name != want[1].Name {
			t.Errorf("Secrets = %+v, want names alone", list)
		}
		must(t, w.Update(ctx, deployment("f")))
		synctest.Wait()
		must(t, w.DeleteSecret(ctx, "", "a"))
		if list := w.Secrets(faas.DefaultNamespace); len(list) != 1 {
			t.Errorf("Secrets = %+v, want b alone", list)
		}
	})
}

func TestSecretPassedOffAsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newStore(), newRegistry())
		ctx := t.Context()
		must(t, w.CreateNamespace(ctx, types.FunctionNamespace{Name: "lab"}))
		must(t, w.CreateSecret(ctx, types.Secret{Name: "mine", Value: "v"}))
		must(t, w.CreateSecret(ctx, types.Secret{Name: "theirs", Namespace: "lab", Value: "hush"}))
		w.store.mu.Lock()
		w.store.data["secret.openfaas-fn.mine"] = w.store.data["secret.lab.theirs"]
		w.store.mu.Unlock()
		d := deployment("f")
		d.Secrets = []string{"mine"}
		must(t, w.Deploy(ctx, d))
		synctest.Wait()
		if got, ok := w.nodes.last("f"); ok {
			t.Errorf("f runs with %q", got.Secrets)
		}
		if got := w.reason(t, "f"); !strings.Contains(got, "can't be decrypted") {
			t.Errorf("status says %q", got)
		}
	})
}

// openState opens a fleet over a real state folder.
func openState(t *testing.T, dir string, log *slog.Logger) (*fleet.Fleet, *state.State, error) {
	t.Helper()
	s, err := state.Open(t.Context(), state.Config{Dir: dir, Logger: log})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	b, err := s.Bucket(t.Context(), "fleet")
	must(t, err)
	key, err := s.Key("secrets")
	must(t, err)
	f, err := fleet.New(t.Context(), fleet.Config{Store: b, Provider: newNodes(), Images: newRegistry(), Key: key, Logger: log})
	return f, s, err
}

func TestSecretsAreEncryptedAtRest(t *testing.T) {
	dir := t.TempDir()
	const value = "correct horse battery staple"
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f, s, err := openState(t, dir, log)
	must(t, err)
	must(t, f.CreateSecret(t.Context(), types.Secret{Name: "s", Value: value}))
	must(t, f.UpdateSecret(t.Context(), types.Secret{Name: "s", Value: value + " 2"}))
	d := deployment("f")
	d.Secrets = []string{"s"}
	must(t, f.Deploy(t.Context(), d))
	must(t, s.Close())

	found := false // the search itself works
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(value)) {
			t.Errorf("%s holds the secret's value", path)
		}
		found = found || bytes.Contains(b, []byte("img:1"))
		return err
	}))
	if !found {
		t.Error("the declared function isn't in the folder either: the search finds nothing")
	}
	if strings.Contains(logged.String(), value) {
		t.Error("the log holds the secret's value")
	}

	f, s, err = openState(t, dir, discard)
	must(t, err)
	if list := f.Secrets(""); !slices.ContainsFunc(list, func(s types.Secret) bool { return s.Name == "s" }) {
		t.Errorf("Secrets = %v after a restart, want s", list)
	}
	if _, err := f.Function(named("f")); err != nil {
		t.Error(err)
	}
	must(t, s.Close())

	// With another key nothing is opened, instead of functions without secrets.
	must(t, os.WriteFile(filepath.Join(dir, "secrets.key"), testKey, 0o600))
	if _, _, err := openState(t, dir, discard); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), "secrets.key") {
		t.Errorf("New with another key = %v, want an ErrInvalid that names secrets.key", err)
	}
}

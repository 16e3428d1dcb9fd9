package fleet

import (
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// MaxSecret is the most bytes of a secret's value: 1 MiB, as in Kubernetes.
const MaxSecret = 1 << 20

type secretName struct{ namespace, name string }

func (s secretName) key() string { return secretKey + s.namespace + "." + s.name }

// parseSecretKey takes a key apart; a namespace has no dot, a name may.
func parseSecretKey(key string) (secretName, bool) {
	namespace, name, ok := strings.Cut(strings.TrimPrefix(key, secretKey), ".")
	return secretName{namespace, name}, ok
}

// newSeal returns what encrypts secrets. Each encryption takes a nonce of its
// own, 96 random bits, which is safe for some 2^32 of them.
func newSeal(key []byte) (cipher.AEAD, error) {
	if len(key) != 32 {
		return nil, faas.Errorf(faas.ErrInvalid, "the key for secrets has %d bytes instead of 32", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key for secrets: %w", err)
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("key for secrets: %w", err)
	}
	return seal, nil
}

// checkSeal refuses a key that isn't the one with which the secrets were
// encrypted, instead of failing for each function that needs one.
func (f *Fleet) checkSeal(ctx context.Context, check []byte) error {
	if check == nil {
		return f.put(ctx, checkKey, f.seal.Seal(nil, nil, []byte(checkKey), []byte(checkKey)))
	}
	if _, err := f.seal.Open(nil, nil, check, []byte(checkKey)); err != nil {
		return faas.Errorf(faas.ErrInvalid, "the secrets were encrypted with another key than secrets.key: put the right key file back from a backup, or begin with an empty state folder (what is declared is lost then)")
	}
	return nil
}

// open decrypts a secret. That it is kept under its own name is part of what is
// authenticated, so one can't be passed off as another.
func (f *Fleet) open(ctx context.Context, s secretName) ([]byte, error) {
	sealed, err := f.cfg.Store.Get(ctx, s.key())
	if errors.Is(err, faas.ErrNotFound) {
		return nil, secretNotFound(s)
	}
	if err != nil {
		return nil, err
	}
	value, err := f.seal.Open(nil, nil, sealed, []byte(s.key()))
	if err != nil {
		return nil, faas.Errorf(faas.ErrUnavailable, "secret %s of namespace %s can't be decrypted, what is stored was damaged: set it again (faas-cli secret update)", s.name, s.namespace)
	}
	return value, nil
}

// Secrets returns the secrets of a namespace, or of all for "", by name and
// without their values, which are never given out.
func (f *Fleet) Secrets(namespace string) []types.Secret {
	f.mu.RLock()
	list := make([]types.Secret, 0, len(f.secrets))
	for s := range f.secrets {
		if namespace == "" || s.namespace == namespace {
			list = append(list, types.Secret{Name: s.name, Namespace: s.namespace})
		}
	}
	f.mu.RUnlock()
	slices.SortFunc(list, func(a, b types.Secret) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return list
}

// CreateSecret keeps a new secret. An [faas.ErrConflict] says that there is one
// of this name. RawValue is the value if it is set, else Value.
func (f *Fleet) CreateSecret(ctx context.Context, secret types.Secret) error {
	s, err := f.putSecret(ctx, secret, func(s secretName, exists bool) error {
		if exists {
			return faas.Errorf(faas.ErrConflict, "secret %s exists already in namespace %s: update it instead (faas-cli secret update)", s.name, s.namespace)
		}
		if len(f.secrets) >= f.cfg.MaxSecrets {
			return faas.Errorf(faas.ErrOverloaded, "there are %d secrets, and no more are allowed: delete some, or raise the bound", len(f.secrets))
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.log.Info("secret created", "secret", s.name, "namespace", s.namespace)
	return nil
}

// UpdateSecret gives a secret another value, which the functions that use it
// get in place. An [faas.ErrNotFound] says that there is none of this name.
func (f *Fleet) UpdateSecret(ctx context.Context, secret types.Secret) error {
	s, err := f.putSecret(ctx, secret, func(s secretName, exists bool) error {
		if !exists {
			return secretNotFound(s)
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.log.Info("secret updated", "secret", s.name, "namespace", s.namespace)
	f.mu.RLock()
	users := f.users(s)
	entries := make([]*entry, len(users))
	for i, name := range users {
		entries[i] = f.functions[name]
	}
	f.mu.RUnlock()
	for i, name := range users {
		f.tell(ctx, name, entries[i])
	}
	return nil
}

func (f *Fleet) putSecret(ctx context.Context, secret types.Secret, allow func(s secretName, exists bool) error) (secretName, error) {
	s := secretName{cmp.Or(secret.Namespace, faas.DefaultNamespace), secret.Name}
	if err := faas.CheckSecretName(s.name); err != nil {
		return s, err
	}
	value := secret.RawValue
	if len(value) == 0 {
		value = []byte(secret.Value)
	}
	if len(value) == 0 {
		return s, faas.Errorf(faas.ErrInvalid, "secret %s has no value: set value or rawValue", s.name)
	}
	if len(value) > MaxSecret {
		return s, faas.Errorf(faas.ErrTooLarge, "secret %s has %d bytes, at most %d are allowed", s.name, len(value), MaxSecret)
	}
	done, err := f.begin(ctx)
	if err != nil {
		return s, err
	}
	defer done()
	f.mu.RLock()
	_, exists := f.secrets[s]
	err = cmp.Or(f.namespaceExists(s.namespace), allow(s, exists))
	f.mu.RUnlock()
	if err != nil {
		return s, err
	}
	if err := f.put(ctx, s.key(), f.seal.Seal(nil, nil, value, []byte(s.key()))); err != nil {
		return s, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secrets[s] = struct{}{}
	return s, nil
}

// DeleteSecret removes a secret. One that a function uses is not removed (an
// [faas.ErrConflict] names the functions): unlike in OpenFaaS, where the
// function then runs until it is next started, and a power cut later is gone.
func (f *Fleet) DeleteSecret(ctx context.Context, namespace, name string) error {
	s := secretName{cmp.Or(namespace, faas.DefaultNamespace), name}
	done, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	f.mu.RLock()
	_, exists := f.secrets[s]
	users := f.users(s)
	f.mu.RUnlock()
	if !exists {
		return secretNotFound(s)
	}
	if len(users) > 0 {
		return faas.Errorf(faas.ErrConflict, "secret %s of namespace %s is used by %s: delete those functions, or deploy them without it, first", s.name, s.namespace, listed(users))
	}
	if err := f.cfg.Store.Delete(context.WithoutCancel(ctx), s.key()); err != nil {
		return err
	}
	f.mu.Lock()
	delete(f.secrets, s)
	f.mu.Unlock()
	f.log.Info("secret deleted", "secret", s.name, "namespace", s.namespace)
	return nil
}

// users returns the functions that use a secret, by name. f.mu is held.
func (f *Fleet) users(s secretName) []faas.Name {
	var list []faas.Name
	for name, e := range f.functions {
		if name.Namespace == s.namespace && (slices.Contains(e.declared.Secrets, s.name) ||
			e.serving != nil && slices.Contains(e.serving.Secrets, s.name)) {
			list = append(list, name)
		}
	}
	slices.SortFunc(list, func(a, b faas.Name) int { return strings.Compare(a.Function, b.Function) })
	return list
}

// listed names the first few functions.
func listed(names []faas.Name) string {
	const most = 5
	var b strings.Builder
	for i, n := range names {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(names)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(n.Function)
	}
	return b.String()
}

// secretsExist returns an error that names the first secret that a function
// needs and that isn't there. f.mu is held.
func (f *Fleet) secretsExist(function faas.Name, secrets []string) error {
	for _, name := range secrets {
		if _, ok := f.secrets[secretName{function.Namespace, name}]; !ok {
			return faas.Errorf(faas.ErrInvalid, "function %s needs the secret %s, which doesn't exist in namespace %s: create it first (faas-cli secret create %s --from-file FILE --namespace %s)",
				function.Function, name, function.Namespace, name, function.Namespace)
		}
	}
	return nil
}

func secretNotFound(s secretName) error {
	return faas.Errorf(faas.ErrNotFound, "there is no secret %.260q in namespace %.70q: create it first (faas-cli secret create)", s.name, s.namespace)
}

package faas_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func TestStatusOf(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"none", errors.New("what"), http.StatusInternalServerError},
		{"a kind", faas.Errorf(faas.ErrConflict, "there is one"), http.StatusConflict},
		{"wrapped", fmt.Errorf("deploy: %w", faas.Errorf(faas.ErrOverloaded, "too many")), http.StatusTooManyRequests},
		{"the kind counts, not what it wraps", faas.Errorf(faas.ErrUnavailable, "later: %w", faas.ErrNotFound), http.StatusServiceUnavailable},
		{"a full disk", fmt.Errorf("write: %w", syscall.ENOSPC), http.StatusInsufficientStorage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := faas.StatusOf(tt.err)
			if got != tt.want {
				t.Fatalf("StatusOf() = %d, want %d", got, tt.want)
			}
			if kind := faas.KindOf(got); kind != nil && !errors.Is(tt.err, kind) && got != http.StatusInsufficientStorage {
				t.Errorf("KindOf(%d) = %v, which %v is not", got, kind, tt.err)
			}
		})
	}
	if kind := faas.KindOf(http.StatusTeapot); kind != nil {
		t.Errorf("KindOf(418) = %v", kind)
	}
}

func TestReadJSON(t *testing.T) {
	for _, tt := range []struct{ name, body, want string }{
		{"good", `{"a":1}`, ""},
		{"nothing", "", "the body is empty"},
		{"an unknown field", `{"b":1}`, `unknown field "b"`},
		{"two values", `{"a":1}{"a":2}`, "something stands behind it"},
		{"too much", `{"a":` + strings.Repeat(" ", 100) + "1}", "more than 64 bytes"},
		{"no JSON", "a=1", "not what is asked for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var v struct{ A int }
			err := faas.ReadJSON(strings.NewReader(tt.body), 64, &v)
			if tt.want == "" && err == nil && v.A == 1 {
				return
			}
			if err == nil || tt.want == "" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ReadJSON() = %v, want %q", err, tt.want)
			}
		})
	}
}

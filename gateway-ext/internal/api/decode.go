package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// decode reads the body into v, a pointer to a struct. Unknown fields are
// ignored: clients may be newer than this gateway. The error is an ErrInvalid
// that says where in the body the mistake is, or an ErrTooLarge.
func (h *Handler) decode(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.cfg.MaxBody))
	if err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return faas.Errorf(faas.ErrTooLarge, "the body is larger than %d bytes, the most that is read here", tooLarge.Limit)
		}
		return faas.Errorf(faas.ErrInvalid, "the body was cut off: %w", err)
	}
	return decodeJSON(body, v)
}

// decodeJSON is decode without HTTP.
func decodeJSON(body []byte, v any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return faas.Errorf(faas.ErrInvalid, "the body is empty: send a JSON object")
	}
	// encoding/json replaces what is not UTF-8, and so would change a secret.
	if i := invalidUTF8(body); i >= 0 {
		return faas.Errorf(faas.ErrInvalid, "malformed JSON at %s: not UTF-8; send binary values in base64", position(body, i))
	}
	err := json.Unmarshal(body, v)
	if err == nil {
		if trimmed := bytes.TrimSpace(body); trimmed[0] != '{' { // "null" is no error to encoding/json
			return faas.Errorf(faas.ErrInvalid, "the body is %.20q: send a JSON object", trimmed)
		}
		return nil
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return faas.Errorf(faas.ErrInvalid, "malformed JSON at %s: %w", position(body, int(e.Offset)-1), err)
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		where := ""
		if e.Field != "" { // of a list or map it is the field, not the entry
			where = ", in field " + e.Field
		}
		return faas.Errorf(faas.ErrInvalid, "malformed JSON at %s%s: write %s, not %s", position(body, int(e.Offset)-1), where, kindOf(e.Type), wordFor(e.Value))
	}
	if e, ok := errors.AsType[base64.CorruptInputError](err); ok {
		return faas.Errorf(faas.ErrInvalid, "malformed JSON: a field that takes bytes in base64 (rawValue) has something else at byte %d of its text", int64(e))
	}
	return faas.Errorf(faas.ErrInvalid, "malformed JSON: %w", err)
}

// position tells where the byte at offset is, as editors count.
func position(body []byte, offset int) string {
	before := body[:min(max(offset, 0), len(body))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
	return fmt.Sprintf("line %d, column %d", line, column)
}

// invalidUTF8 returns the index of the first byte that is not UTF-8, or -1.
func invalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// wordFor returns the word for what encoding/json found.
func wordFor(value string) string {
	value, _, _ = strings.Cut(value, " ") // a number's digits follow
	switch value {
	case "bool":
		return "true or false"
	case "array":
		return "a list"
	case "object":
		return "an object"
	}
	return "a " + value
}

// kindOf returns the word for what a field takes.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number, not negative"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "a string in base64"
		}
		return "a list"
	case reflect.Pointer:
		return kindOf(t.Elem())
	}
	return "an object"
}

// encode sends v as JSON.
func encode(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
	return nil
}

// orEmpty returns s, and a list without entries for nil: JSON has "null" for
// nil, which clients don't expect.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

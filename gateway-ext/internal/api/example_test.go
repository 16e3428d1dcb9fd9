package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/api"
)

// The same Auth guards whatever else the gateway serves.
func ExampleAuth_Require() {
	auth := api.NewAuth("admin", "correct horse")
	page := auth.Require(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "welcome")
	}))
	for _, password := range []string{"wrong", "correct horse"} {
		r := httptest.NewRequest("GET", "/ui/", nil)
		r.SetBasicAuth("admin", password)
		w := httptest.NewRecorder()
		page.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 401 invalid credentials
	// 200 welcome
}

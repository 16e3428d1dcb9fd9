package main_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// waitForAddress reads what "gateway-ext up" prints until it has printed the
// address of the function, and returns that.
func waitForAddress(t testing.TB, stdout io.Reader, function string) string {
	t.Helper()
	lines := bufio.NewScanner(stdout)
	var printed strings.Builder
	for lines.Scan() {
		printed.WriteString(lines.Text() + "\n")
		if f := strings.Fields(lines.Text()); len(f) == 2 && f[0] == function && strings.HasPrefix(f[1], "http://") {
			return f[1]
		}
	}
	t.Fatalf("up ended without the address of %s:\n%s", function, printed.String())
	return ""
}

// TestUp does what `make run` does, asks for the weather, and presses Ctrl-C.
func TestUp(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(program, "up", "-f", "stack.yml")
	cmd.Dir = ".."
	cmd.Env = append(baseEnviron(), "THICKET_ADDR=127.0.0.1:0", "THICKET_DATA="+dir, "WEATHER_SIMULATE=true",
		// Nobody answers there, whether or not this machine has internet.
		"OPENMETEO_URL=http://127.0.0.1:1", "OPENMETEO_GEOCODING_URL=http://127.0.0.1:1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	url := waitForAddress(t, stdout, "weather-consumer")

	req, err := http.NewRequest(http.MethodGet, url+"?zip=70569&country=DE", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), `"simulated"`) {
		t.Errorf("weather = %d %s, %v, want a simulated report", resp.StatusCode, body, err)
	}

	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("up after Ctrl-C: %v\n%s%s", err, rest, stderr.String())
	}
	t.Logf("printed after the addresses:\n%s%s", rest, stderr.String())
}

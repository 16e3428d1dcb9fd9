package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/openfaas/faas-provider/types"
)

// The function is deployed twice: as people deploy one, and with a policy. Both
// have two replicas, so that there is somebody to choose between, and never
// more, since the load is not to be answered by more of them.
const (
	functionName = "bench"
	policyName   = "bench-policy"
	replicas     = 2
)

// policy is what the function asks for that has a policy: all of it but kept
// answers, which would be no calls.
var policy = map[string]string{
	"thicket.timeout":  "10s/5s",
	"thicket.attempts": "3",
	"thicket.breaker":  "50%/10s",
	"thicket.bulkhead": "512",
}

const (
	user     = "admin"
	password = "only for this run, on loopback"
)

// gateway starts the real program, deploys the function through its registry and
// its API, and learns from the API where the replicas are.
func (s *stage) gateway(ctx context.Context) ([]*contestant, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	cmd := exec.Command(s.programs["gateway-ext"], "serve")
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "THICKET_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "THICKET_ADDR="+addr, "THICKET_DATA="+filepath.Join(s.dir, "state"), "THICKET_PASSWORD="+password)
	g, err := s.start(cmd, syscall.SIGTERM)
	if err != nil {
		return nil, err
	}
	if err := g.answers(ctx, "http://"+addr+"/healthz"); err != nil {
		return nil, err
	}
	ref := addr + "/bench:latest"
	if err := push(ctx, ref, s.programs["function"]); err != nil {
		return nil, fmt.Errorf("push %s: %w", ref, err)
	}
	for _, f := range []struct {
		name        string
		annotations map[string]string
	}{{functionName, nil}, {policyName, policy}} {
		if err := deploy(ctx, addr, ref, f.name, f.annotations); err != nil {
			return nil, fmt.Errorf("deploy %s: %w", f.name, err)
		}
	}
	if s.replicas, err = addresses(ctx, addr, functionName); err != nil {
		return nil, fmt.Errorf("find the replicas of %s: %w", functionName, err)
	}
	return []*contestant{
		{name: thicket, addr: addr, function: functionName, pid: cmd.Process.Pid},
		{name: thicketPolicy, addr: addr, function: policyName, pid: cmd.Process.Pid},
	}, nil
}

// push makes an image of a program and gives it to a registry.
func push(ctx context.Context, to, program string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "function", Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = runtime.GOOS, runtime.GOARCH
	config.Config.Entrypoint = []string{"/function"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	ref, err := name.ParseReference(to)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx), remote.WithAuth(&authn.Basic{Username: user, Password: password}))
}

// deploy declares a function and waits until its replicas are ready.
func deploy(ctx context.Context, addr, image, function string, annotations map[string]string) error {
	body, err := json.Marshal(types.FunctionDeployment{
		Service: function, Image: image, Annotations: &annotations,
		Labels: &map[string]string{"com.openfaas.scale.min": fmt.Sprint(replicas), "com.openfaas.scale.max": fmt.Sprint(replicas)},
	})
	if err != nil {
		return err
	}
	if _, err := ask(ctx, http.MethodPost, "http://"+addr+"/system/functions", body); err != nil {
		return err
	}
	var s types.FunctionStatus
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		b, err := ask(ctx, http.MethodGet, "http://"+addr+"/system/function/"+function, nil)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		if s.AvailableReplicas == replicas {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("it has %d of %d replicas after a minute: %v", s.AvailableReplicas, replicas, s.Annotations)
}

// addresses asks the gateway where a function's replicas are: each says so in
// its log.
func addresses(ctx context.Context, addr, function string) ([]string, error) {
	b, err := ask(ctx, http.MethodGet, "http://"+addr+"/system/logs?follow=false&tail=100&name="+function, nil)
	if err != nil {
		return nil, err
	}
	var all []string
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var line struct{ Text string }
		if err := d.Decode(&line); err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		if _, at, ok := strings.Cut(strings.TrimSpace(line.Text), "listening on "); ok {
			all = append(all, at)
		}
	}
	if len(all) != replicas {
		return nil, fmt.Errorf("%d replicas tell of an address, not %d:\n%s", len(all), replicas, b)
	}
	return all, nil
}

// ask makes a request of an operator.
func ask(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(user, password)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, bytes.TrimSpace(b))
	}
	return b, nil
}

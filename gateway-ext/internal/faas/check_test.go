package faas_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

func TestCheckNormalises(t *testing.T) {
	labels := map[string]string{"com.openfaas.scale.min": "2"}
	in := types.FunctionDeployment{
		Service: " weather ", Image: "\tweather:latest\n",
		Secrets: []string{"b", "a", "b"}, Labels: &labels,
		EnvVars: map[string]string{"fprocess": "cat", "http.proxy": "x"},
		Limits:  &types.FunctionResources{Memory: "128Mi", CPU: "100m", NvidiaGPU: "1"},
	}
	want := in
	want.Service, want.Image, want.Namespace = "weather", "weather:latest", "openfaas-fn"
	want.Secrets = []string{"b", "a"}
	got, err := faas.Check(in)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("Check() = %+v, %v, want %+v", got, err, want)
	}
	if len(in.Secrets) != 3 {
		t.Errorf("Check changed what it was given: %v", in.Secrets)
	}
	again, err := faas.Check(got)
	if err != nil || !reflect.DeepEqual(again, got) {
		t.Errorf("Check(Check()) = %+v, %v, want %+v", again, err, got)
	}
}

func TestCheckNamespace(t *testing.T) {
	for _, tt := range []struct{ service, namespace, want, err string }{
		{service: "weather", want: "weather.openfaas-fn"},
		{service: "weather", namespace: "lab", want: "weather.lab"},
		{service: "weather.lab", want: "weather.lab"},
		{service: "weather.lab", namespace: "lab", want: "weather.lab"},
		{service: "weather.openfaas-fn", want: "weather.openfaas-fn"},
		{service: "weather.lab", namespace: "den", err: `names the namespace "lab", but field namespace says "den"`},
		{service: "weather", namespace: "Lab", err: `namespace "Lab" is not a DNS label`},
	} {
		t.Run(tt.service+"/"+tt.namespace, func(t *testing.T) {
			d, err := faas.Check(types.FunctionDeployment{Service: tt.service, Namespace: tt.namespace, Image: "x"})
			check(t, "Check()", d.Service+"."+d.Namespace, err, tt.want, tt.err)
		})
	}
}

func TestCheckImage(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for _, good := range []string{
		"weather", "weather:latest", "you/weather", "docker.io/you/weather:1", "ghcr.io/you/deep/er/weather_x:v1.2-3",
		"127.0.0.1:8080/weather:latest", "localhost/weather", "[::1]:5000/weather", "registry:5000/weather@" + digest, "you/weather:1@" + digest,
	} {
		if err := faas.CheckImage(good); err != nil {
			t.Errorf("CheckImage(%q) = %v", good, err)
		}
	}
	for bad, sentence := range map[string]string{
		"":                        "image is empty: write for example",
		"https://ghcr.io/you/x":   `leave out everything up to "://"`,
		"Weather":                 "must be lowercase",
		"Lab/weather":             `capital letters in "Lab"`,
		"weather:":                "not the name of an image",
		"wea ther":                "not the name of an image",
		"../weather":              "not the name of an image",
		"you//weather":            "not the name of an image",
		"weather:-x":              "not the name of an image",
		"weather@sha256:12":       "not the name of an image",
		"weather@" + digest[:70]:  "not the name of an image",
		"--privileged":            "not the name of an image",
		strings.Repeat("a", 1000): "has 1000 bytes, at most 512 are allowed",
		"weather@sha512:" + strings.Repeat("0", 128): "sha256",
	} {
		if err := faas.CheckImage(bad); !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), sentence) {
			t.Errorf("CheckImage(%q) = %v, want an ErrInvalid with %q", bad, err, sentence)
		}
	}
}

// many returns n entries.
func many(n int, value string) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprint("k", i)] = value
	}
	return m
}

func TestCheckMistakes(t *testing.T) {
	type D = types.FunctionDeployment
	for _, tt := range []struct {
		name   string
		change func(*D)
		want   string
	}{
		{"name", func(d *D) { d.Service = "Weather" }, `function name "Weather" is not a DNS label`},
		{"no name", func(d *D) { d.Service = "" }, "function name is empty"},
		{"process", func(d *D) { d.EnvProcess = strings.Repeat("x", 5000) }, "envProcess has 5000 bytes"},
		{"process zero", func(d *D) { d.EnvProcess = "a\x00" }, "envProcess contains a zero byte"},
		{"env name", func(d *D) { d.EnvVars = map[string]string{"a=b": ""} }, `"a=b" can't be the name of an environment variable`},
		{"env empty name", func(d *D) { d.EnvVars = map[string]string{"": ""} }, `"" can't be the name`},
		{"env value", func(d *D) { d.EnvVars = map[string]string{"a": "\x00"} }, `the value of "a" contains a zero byte`},
		{"env long", func(d *D) { d.EnvVars = many(1, strings.Repeat("x", 70000)) }, `"k0" has 70000 bytes, at most 65536`},
		{"env many", func(d *D) { d.EnvVars = many(257, "") }, "envVars has 257 variables, at most 256"},
		{"env all", func(d *D) { d.EnvVars = many(10, strings.Repeat("x", 60000)) }, "envVars has 600020 bytes in all"},
		{"constraint", func(d *D) { d.Constraints = []string{""} }, `constraint "" is empty`},
		{"constraints", func(d *D) { d.Constraints = make([]string, 33) }, "constraints has 33 entries"},
		{"secret", func(d *D) { d.Secrets = []string{"../key"} }, `secret name "../key" is not a DNS name`},
		{"secrets", func(d *D) { d.Secrets = make([]string, 65) }, "secrets has 65 entries, at most 64"},
		{"labels", func(d *D) { d.Labels = new(many(65, "")) }, "labels has 65 entries, at most 64"},
		{"label key", func(d *D) { d.Labels = &map[string]string{"a b": ""} }, `label "a b": a key has`},
		{"label value", func(d *D) { d.Labels = &map[string]string{"a": strings.Repeat("x", 20000)} }, `label "a": its value has 20000 bytes`},
		{"labels all", func(d *D) { d.Labels = new(many(64, strings.Repeat("x", 2000))) }, "labels has 128182 bytes in all"},
		{"annotation", func(d *D) { d.Annotations = &map[string]string{"a": "\xff"} }, `annotation "a": its value is not text`},
		{"min", func(d *D) { d.Labels = &map[string]string{"com.openfaas.scale.min": "many"} }, `label com.openfaas.scale.min is "many": write a whole number from 0 to 1000`},
		{"min and max", func(d *D) {
			d.Labels = &map[string]string{"com.openfaas.scale.min": "5", "com.openfaas.scale.max": "2"}
		}, "label com.openfaas.scale.min is 5, more than com.openfaas.scale.max, which is 2"},
		{"zero", func(d *D) { d.Labels = &map[string]string{"com.openfaas.scale.zero": "yes"} }, `label com.openfaas.scale.zero is "yes": write "true" or "false"`},
		{"memory", func(d *D) { d.Limits = &types.FunctionResources{Memory: "128MB"} }, `limits.memory: quantity "128MB" ends in "MB"`},
		{"thousandth of a byte", func(d *D) { d.Limits = &types.FunctionResources{Memory: "20m"} }, `limits.memory "20m" is 1 bytes, too little`},
		{"cpu", func(d *D) { d.Requests = &types.FunctionResources{CPU: "fast"} }, `requests.cpu: quantity "fast" has no number`},
		{"gpu", func(d *D) { d.Limits = &types.FunctionResources{AmdGPU: "one"} }, `limits.amd.com/gpu "one" is not a count`},
		{"requests over limits", func(d *D) {
			d.Limits, d.Requests = &types.FunctionResources{Memory: "1Gi"}, &types.FunctionResources{Memory: "2Gi"}
		}, `requests.memory "2Gi" is more than limits.memory "1Gi"`},
		{"cpu over limits", func(d *D) {
			d.Limits, d.Requests = &types.FunctionResources{CPU: "1"}, &types.FunctionResources{CPU: "1100m"}
		}, `requests.cpu "1100m" is more than limits.cpu "1"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := D{Service: "weather", Image: "weather"}
			tt.change(&d)
			_, err := faas.Check(d)
			if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check() = %v, want an ErrInvalid with %q", err, tt.want)
			}
			if _, ok := errors.AsType[*faas.Error](err); !ok {
				t.Errorf("Check() = %T, want a *faas.Error, whose text may be shown", err)
			}
		})
	}
}

func TestCheckReportsAllMistakes(t *testing.T) {
	_, err := faas.Check(types.FunctionDeployment{
		Service: "Weather", Image: "https://x", Secrets: []string{"a/b", "c/d"},
		Limits: &types.FunctionResources{Memory: "lots"},
	})
	if err == nil || strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("Check() = %v, want five lines", err)
	}
}

func TestParseScale(t *testing.T) {
	got, err := faas.ParseScale(nil)
	want := faas.Scale{Min: 1, Max: 20, Factor: 10, Target: 50, Proportion: 0.9, Type: "rps", ZeroDuration: 15 * time.Minute}
	check(t, "ParseScale(nil)", got, err, want, "")

	all := map[string]string{
		faas.LabelScaleMin: "30", faas.LabelScaleFactor: "20", faas.LabelScaleTarget: "100", faas.LabelScaleProportion: "0.5",
		faas.LabelScaleType: "capacity", faas.LabelScaleZero: "true", faas.LabelScaleZeroDuration: "90s", faas.LabelScaleDownWindow: "2m",
	}
	got, err = faas.ParseScale(all)
	want = faas.Scale{
		Min: 30, Max: 30, Factor: 20, Target: 100, Proportion: 0.5,
		Type: "capacity", Zero: true, ZeroDuration: 90 * time.Second, DownWindow: 2 * time.Minute,
	}
	check(t, "ParseScale(all)", got, err, want, "")

	for key, values := range map[string][]string{
		faas.LabelScaleMin: {"", "-1", "1001", "1.5"}, faas.LabelScaleMax: {"0", "1001", "x"}, faas.LabelScaleFactor: {"101", "-1"},
		faas.LabelScaleTarget: {"0", "NaN", "Inf", "-1"}, faas.LabelScaleProportion: {"1.1", "0"}, faas.LabelScaleType: {"", "a b", "queue", "RPS"},
		faas.LabelScaleZero: {"yes"}, faas.LabelScaleZeroDuration: {"15", "-1s"}, faas.LabelScaleDownWindow: {"6m"},
	} {
		for _, value := range values {
			labels := maps.Clone(all)
			labels[key] = value
			_, err := faas.ParseScale(labels)
			if !errors.Is(err, faas.ErrInvalid) || !strings.Contains(err.Error(), key) {
				t.Errorf("ParseScale(%s=%q) = %v, want an ErrInvalid that names the label", key, value, err)
			}
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(`{"service":"weather","image":"weather:latest"}`)
	f.Add(`{"service":"a.b","namespace":"b","image":"x@sha256:","secrets":["a","a"],"labels":{"com.openfaas.scale.min":"9"},"limits":{"memory":"1e9"}}`)
	f.Fuzz(func(t *testing.T, s string) {
		var d types.FunctionDeployment
		if json.Unmarshal([]byte(s), &d) != nil {
			return
		}
		got, err := faas.Check(d)
		if err != nil {
			if !errors.Is(err, faas.ErrInvalid) {
				t.Errorf("Check(%s) = %v, want an ErrInvalid", s, err)
			}
			return
		}
		if again, err := faas.Check(got); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("Check(Check(%s)) = %+v, %v, want %+v", s, again, err, got)
		}
		if _, err := faas.ParseName(got.Service + "." + got.Namespace); err != nil {
			t.Errorf("Check(%s) passed a name that can't be parsed: %v", s, err)
		}
	})
}

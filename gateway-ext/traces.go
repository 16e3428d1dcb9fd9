package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// wantsTraces says whether OpenTelemetry's variables ask for traces: they name an
// exporter or where to send to. Without that nothing of it is started: its own
// default would be to send to a port of this machine that nobody listens on. The
// variables are read again by OpenTelemetry's library, which knows more of them;
// here those are checked which it would silently replace by others.
func wantsTraces(vars map[string]string) (wanted bool, wrong []error) {
	bad := func(name, format string, args ...any) {
		wrong = append(wrong, fmt.Errorf(name+": "+format, args...))
	}
	if strings.EqualFold(strings.TrimSpace(vars["OTEL_SDK_DISABLED"]), "true") {
		return false, nil
	}
	exporter := vars["OTEL_TRACES_EXPORTER"]
	switch exporter {
	case "none":
		return false, nil
	case "otlp", "console":
		wanted = true
	case "":
		wanted = vars["OTEL_EXPORTER_OTLP_ENDPOINT"] != "" || vars["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] != ""
	default:
		bad("OTEL_TRACES_EXPORTER", "%q is not one of otlp, console, none", exporter)
	}
	if !wanted {
		return false, wrong
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"} {
		if v := vars[name]; !slices.Contains([]string{"", "grpc", "http/protobuf"}, v) {
			bad(name, "%q is not one of http/protobuf, grpc", v)
		}
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} {
		if v := vars[name]; v != "" && !strings.Contains(v, "://") {
			bad(name, "%q is not an address: write it like http://127.0.0.1:4318", v)
		}
	}
	sampler := strings.ToLower(strings.TrimSpace(vars["OTEL_TRACES_SAMPLER"]))
	known := []string{"always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"}
	if sampler != "" && !slices.Contains(known, sampler) {
		bad("OTEL_TRACES_SAMPLER", "%q is not one of %s", sampler, strings.Join(known, ", "))
	}
	if arg := strings.TrimSpace(vars["OTEL_TRACES_SAMPLER_ARG"]); arg != "" && strings.HasSuffix(sampler, "traceidratio") {
		if ratio, err := strconv.ParseFloat(arg, 64); err != nil || !(0 <= ratio && ratio <= 1) {
			bad("OTEL_TRACES_SAMPLER_ARG", "%q is not a share: write 0 to 1, such as 0.05 for each twentieth call", arg)
		}
	}
	return true, wrong
}

// traces sends what is told of calls to where OpenTelemetry's variables say. A
// nil traces sends nothing.
type traces struct{ provider *sdktrace.TracerProvider }

// openTraces starts to send. What can't be sent is dropped and logged: a call
// never waits for it, and at most 2,048 spans (OTEL_BSP_MAX_QUEUE_SIZE) are held.
func openTraces(ctx context.Context, release string, log *slog.Logger) (*traces, error) {
	otel.SetErrorHandler(&traceErrors{log: log}) // there is no other way to be told
	exporter, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_*: start to send traces: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "thicket"), attribute.String("service.version", release)),
		resource.WithHost(), resource.WithTelemetrySDK(),
		resource.WithFromEnv()) // OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err), exporter.Shutdown(ctx))
	} else if err != nil {
		log.Warn("traces won't say all of where they come from", "err", err)
	}
	return &traces{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))}, nil
}

// tracer is what the proxy tells of its calls; nil if nobody wants to know.
func (t *traces) tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer("github.com/seed-780dceda/thicket/gateway-ext/internal/proxy")
}

// tracesFlush is how long a stop waits until what is not yet sent is.
const tracesFlush = 3 * time.Second

// close sends what is left, and ends.
func (t *traces) close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tracesFlush)
	defer cancel()
	// That the last of it can't be sent is logged like all that can't.
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
	return nil
}

// traceErrors logs, once a minute at most, that traces can't be sent.
type traceErrors struct {
	log  *slog.Logger
	next atomic.Int64 // when the next one may be logged, in Unix nanoseconds
}

// Handle implements [otel.ErrorHandler].
func (e *traceErrors) Handle(err error) {
	now, next := time.Now(), e.next.Load()
	if now.UnixNano() >= next && e.next.CompareAndSwap(next, now.Add(time.Minute).UnixNano()) {
		e.log.Warn("traces can't be sent", "err", err)
	}
}

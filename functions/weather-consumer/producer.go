package function

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	sdk "github.com/openfaas/go-sdk"

	"github.com/seed-780dceda/thicket/functions/discovery"
	"github.com/seed-780dceda/thicket/functions/resilience"
	"github.com/seed-780dceda/thicket/functions/weather"
)

// producer is weather-producer, behind the gateway or called directly, as a
// source.
type producer struct {
	client    *sdk.Client
	direct    *discovery.Client // nil if all goes through the gateway
	name      string
	namespace string
}

func newProducer(cfg Config) (*producer, error) {
	gateway := cfg.OpenFaaS
	if cfg.Gateway.Host != "" {
		gateway = cfg.Gateway
	}
	p := &producer{name: cfg.Producer, namespace: cfg.Namespace}
	client := weather.NewGatewayClient()
	if cfg.Direct {
		cfg.Discovery.Gateway, cfg.Discovery.Log = gateway.String(), cfg.Log
		var err error
		if p.direct, err = discovery.New(cfg.Discovery); err != nil {
			return nil, err
		}
		client.Transport = p.direct
	}
	p.client = sdk.NewClientWithOpts(&gateway.URL, client)
	return p, nil
}

// Close ends what is done to know where replicas are.
func (p *producer) Close() error {
	if p.direct == nil {
		return nil
	}
	return p.direct.Close()
}

// Report asks the producer.
func (p *producer) Report(ctx context.Context, q weather.Query) (weather.Report, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil) // the SDK fills in the address
	if err != nil {
		return weather.Report{}, p.failed(err)
	}
	req.URL.RawQuery = url.Values{"zip": {q.Zip}, "country": {q.Country}, "units": {string(q.Units)}}.Encode()
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "weather-consumer")
	if id := weather.CallID(ctx); id != "" {
		req.Header.Set(weather.HeaderCallID, id)
	}
	resilience.SetHeader(ctx, req.Header)
	resp, err := p.client.InvokeFunction(p.name, p.namespace, false, false, req)
	if err != nil {
		return weather.Report{}, p.failed(err)
	}
	body, err := weather.ReadAnswer(resp)
	if err != nil {
		return weather.Report{}, p.failed(err)
	}
	if resp.StatusCode != http.StatusOK {
		return weather.Report{}, p.refused(resp, body)
	}
	var report weather.Report
	if err := json.Unmarshal(body, &report); err != nil {
		return weather.Report{}, p.failed(fmt.Errorf("read its answer: %w", err))
	}
	if report.Place.Zip != q.Zip || report.Place.Country != q.Country || report.Units != q.Units {
		return weather.Report{}, p.failed(errors.New("its answer is to another question"))
	}
	return report, nil
}

// refused tells the producer's own 400 and 404, which are answers, from those
// of a gateway that doesn't know the producer.
func (p *producer) refused(resp *http.Response, body []byte) error {
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	var problem weather.Problem
	if media == weather.ContentTypeProblem && resp.Header.Get("X-OpenFaaS-Internal") == "" && json.Unmarshal(body, &problem) == nil {
		switch resp.StatusCode {
		case http.StatusNotFound:
			return weather.ErrUnknownPlace
		case http.StatusBadRequest:
			return &weather.InvalidError{Field: problem.Field, Detail: problem.Detail}
		}
	}
	return &weather.ServiceError{
		Service:    p.name,
		Status:     resp.StatusCode,
		RetryAfter: resilience.RetryAfter(resp.Header, time.Now()),
		Err:        errors.New(cmp.Or(strings.TrimSpace(string(body[:min(len(body), 200)])), "it gave no reason")),
	}
}

func (p *producer) failed(err error) error {
	return &weather.ServiceError{Service: p.name, Err: err}
}

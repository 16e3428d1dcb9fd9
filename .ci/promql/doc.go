// Package promql checks the Prometheus rules and the Grafana dashboard of deploy/
// with Prometheus's own parser and engine: a fleet is started, called, and asked
// for its metrics, and each expression is evaluated over what it said. It is a
// module of its own, since Prometheus is heavy, and only a test.
package promql

// Package discovery lets a function call other functions directly, without the
// hop through the gateway: it knows where their replicas are, picks one for
// each call, and goes through the gateway whenever that is better. It is what
// Ribbon was to Spring's services.
package discovery

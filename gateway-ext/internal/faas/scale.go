package faas

import (
	"errors"
	"strconv"
	"time"
)

// The labels by which a function says how it wants to be scaled.
const (
	LabelScaleMin          = "com.openfaas.scale.min"
	LabelScaleMax          = "com.openfaas.scale.max"
	LabelScaleFactor       = "com.openfaas.scale.factor"
	LabelScaleTarget       = "com.openfaas.scale.target"
	LabelScaleProportion   = "com.openfaas.scale.target-proportion"
	LabelScaleType         = "com.openfaas.scale.type"
	LabelScaleZero         = "com.openfaas.scale.zero"
	LabelScaleZeroDuration = "com.openfaas.scale.zero-duration"
	LabelScaleDownWindow   = "com.openfaas.scale.down.window"
)

// LabelScale is how all of them begin.
const LabelScale = "com.openfaas.scale."

// ScaleLabels returns the labels that [ParseScale] reads.
func ScaleLabels() []string {
	return []string{
		LabelScaleMin, LabelScaleMax, LabelScaleFactor, LabelScaleTarget, LabelScaleProportion,
		LabelScaleType, LabelScaleZero, LabelScaleZeroDuration, LabelScaleDownWindow,
	}
}

// MaxReplicas is the most replicas that one function may ask for.
const MaxReplicas = 1000

// What a function's load can be, as the label [LabelScaleType] names it.
const (
	ScaleCapacity = "capacity" // calls in flight
	ScaleRPS      = "rps"      // calls that arrive in a second
	ScaleCPU      = "cpu"      // thousandths of a processor
)

// Scale is how a function wants to be scaled, read from its labels by
// [ParseScale]. The defaults are OpenFaaS's.
type Scale struct {
	Min, Max     int           // replicas; 1 and the larger of 20 and Min
	Factor       int           // percent of Max that a firing alert adds, and that are removed at a time; 10
	Target       float64       // load per replica; 50
	Proportion   float64       // of Target that a replica is given; 0.9
	Type         string        // what load is; ScaleRPS
	Zero         bool          // scale to 0 when idle; false
	ZeroDuration time.Duration // how long idle; 15m
	DownWindow   time.Duration // how long the load must stay low before replicas are removed; 0

	// ByLoad says that the number of replicas follows the load: a label that has
	// to do with it (type, target, target-proportion, max) is there, Max leaves
	// room, and Factor isn't 0. What has none of them stays as it is, since on a
	// small machine nobody should find twenty processes who asked for one.
	ByLoad bool
}

// ParseScale reads the scale labels among labels. The error is an [ErrInvalid]
// with a line for every label that is wrong.
func ParseScale(labels map[string]string) (Scale, error) {
	s := Scale{Min: 1, Max: 20, Factor: 10, Target: 50, Proportion: 0.9, Type: ScaleRPS, ZeroDuration: 15 * time.Minute}
	var c checker
	c.count(labels, LabelScaleMin, &s.Min, 0, MaxReplicas)
	s.Max = max(s.Max, s.Min)
	c.count(labels, LabelScaleMax, &s.Max, 1, MaxReplicas)
	if s.Min > s.Max {
		c.errorf("label %s is %d, more than %s, which is %d", LabelScaleMin, s.Min, LabelScaleMax, s.Max)
	}
	c.count(labels, LabelScaleFactor, &s.Factor, 0, 100)
	c.float(labels, LabelScaleTarget, &s.Target, 1e9)
	c.float(labels, LabelScaleProportion, &s.Proportion, 1)
	if v, ok := labels[LabelScaleType]; ok {
		switch v {
		case ScaleCapacity, ScaleRPS, ScaleCPU:
			s.Type = v
		default:
			c.errorf("label %s is %.70q: write %q (calls in flight), %q (calls a second) or %q (thousandths of a processor), which the gateway measures itself",
				LabelScaleType, v, ScaleCapacity, ScaleRPS, ScaleCPU)
		}
	}
	if v, ok := labels[LabelScaleZero]; ok {
		var err error
		if s.Zero, err = strconv.ParseBool(v); err != nil {
			c.errorf("label %s is %.70q: write \"true\" or \"false\"", LabelScaleZero, v)
		}
	}
	c.duration(labels, LabelScaleZeroDuration, &s.ZeroDuration, 365*24*time.Hour)
	c.duration(labels, LabelScaleDownWindow, &s.DownWindow, 5*time.Minute)
	if err := errors.Join(c.mistakes...); err != nil {
		return s, Errorf(ErrInvalid, "%w", err)
	}
	for _, key := range [...]string{LabelScaleType, LabelScaleTarget, LabelScaleProportion, LabelScaleMax} {
		if _, ok := labels[key]; ok {
			s.ByLoad = s.Max > max(s.Min, 1) && s.Factor > 0
		}
	}
	return s, nil
}

// count reads a whole number from low to high.
func (c *checker) count(labels map[string]string, key string, into *int, low, high int) {
	v, ok := labels[key]
	if !ok {
		return
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		c.errorf("label %s is %.70q: write a whole number from %d to %d", key, v, low, high)
		return
	}
	*into = n
}

// float reads a number above 0, up to high.
func (c *checker) float(labels map[string]string, key string, into *float64, high float64) {
	v, ok := labels[key]
	if !ok {
		return
	}
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || !(f > 0 && f <= high) { // not f <= 0: NaN is wrong too
		c.errorf("label %s is %.70q: write a number above 0, at most %g", key, v, high)
		return
	}
	*into = f
}

// duration reads a duration from 0 to high.
func (c *checker) duration(labels map[string]string, key string, into *time.Duration, high time.Duration) {
	v, ok := labels[key]
	if !ok {
		return
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d > high {
		c.errorf("label %s is %.70q: write a duration such as \"90s\" or \"15m\", at most %s", key, v, high)
		return
	}
	*into = d
}

// Load is what calls ask of a function: all since the gateway started, but for
// InFlight. An average over a time is the difference of two loads.
type Load struct {
	InFlight int64         // calls that are not yet answered, those that wait for a replica included
	Started  uint64        // calls that arrived
	Busy     time.Duration // for how long calls were in flight, all of them added up
}

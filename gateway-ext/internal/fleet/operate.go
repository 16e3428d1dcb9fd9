package fleet

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Operate returns what operators see of scaling, by the patterns of a
// [http.ServeMux]. It asks for no password: that is for who serves it, and so is
// to answer with the errors, which are of package faas.
//
//	GET /system/scaling        decisions, the newest first; ?function=NAME, ?since=ID, ?limit=N
//	GET /system/scaling/NAME   what holds for one function, and its decisions
func (f *Fleet) Operate() map[string]func(http.ResponseWriter, *http.Request) error {
	return map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /system/scaling":        f.showDecisions,
		"GET /system/scaling/{name}": f.showScaling,
	}
}

func (f *Fleet) showDecisions(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	var since uint64
	if s := q.Get("since"); s != "" {
		var err error
		if since, err = strconv.ParseUint(s, 10, 64); err != nil {
			return faas.Errorf(faas.ErrInvalid, "since is %.70q: write the id of a decision, and get those after it", s)
		}
	}
	limit := maxDecisions
	if s := q.Get("limit"); s != "" {
		var err error
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 {
			return faas.Errorf(faas.ErrInvalid, "limit is %.70q: write a whole number from 1", s)
		}
	}
	var one *faas.Name
	if s := q.Get("function"); s != "" {
		name, err := parseName(s, q.Get("namespace"))
		if err != nil {
			return err
		}
		if _, _, ok := f.Known(name); !ok {
			return notFound(name)
		}
		one = &name
	}
	list := f.Decisions(one, since)
	return faas.WriteJSON(w, list[:min(len(list), limit)])
}

// scalingState is what holds for one function.
type scalingState struct {
	Function  string     `json:"function"`
	Replicas  int        `json:"replicas"`  // wanted
	Available int        `json:"available"` // that take calls
	ByLoad    bool       `json:"byLoad"`
	Type      string     `json:"type,omitempty"`
	Target    float64    `json:"target,omitempty"` // of one replica, the proportion taken into account
	Min       int        `json:"min"`
	Max       int        `json:"max"`
	Zero      string     `json:"zeroAfter,omitempty"` // idle time
	Held      *time.Time `json:"heldUntil,omitempty"` // a number set by hand
	Why       string     `json:"why"`
	Decisions []Decision `json:"decisions"`
}

func (f *Fleet) showScaling(w http.ResponseWriter, r *http.Request) error {
	name, err := parseName(r.PathValue("name"), r.URL.Query().Get("namespace"))
	if err != nil {
		return err
	}
	now := time.Now()
	f.mu.RLock()
	e := f.functions[name]
	if e == nil {
		f.mu.RUnlock()
		return notFound(name)
	}
	scale := e.scale.Value()
	s := scalingState{
		Function: name.String(), Replicas: e.replicas, ByLoad: scale.ByLoad, Min: scale.Min, Max: scale.Max,
	}
	if e.held(now) > 0 {
		s.Held = new(e.hand.UTC())
	}
	f.mu.RUnlock()
	if scale.ByLoad {
		s.Type, s.Target = scale.Type, scale.Target*scale.Proportion
	}
	if scale.Zero {
		s.Zero = span(scale.ZeroDuration).String()
	}
	s.Available = f.ready(name)
	s.Decisions = f.Decisions(&name, 0)
	switch {
	case len(s.Decisions) > 0:
		s.Why = s.Decisions[0].Sentence
	case scale.ByLoad:
		s.Why = "as many as were wanted when the gateway started or it was declared: there was no call yet"
	default:
		s.Why = "as many as were declared or set by hand: no label (" + faas.LabelScaleType + ", …target, …max) asks to follow the load"
	}
	return faas.WriteJSON(w, s)
}

func parseName(text, namespace string) (faas.Name, error) {
	if namespace != "" && !strings.Contains(text, ".") {
		text += "." + namespace
	}
	return faas.ParseName(text)
}

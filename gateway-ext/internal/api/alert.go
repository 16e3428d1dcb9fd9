package api

import (
	"errors"
	"fmt"
	"math"
	"net/http"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// maxAlerts is how many alerts one message may hold.
const maxAlerts = 1000

// alert is Prometheus Alertmanager's webhook: a firing alert adds replicas to
// the function that its label function_name names, a step of scale.factor
// percent of its maximum at a time; a resolved one takes it back to its minimum.
// It counts like a number that was set by hand: the fleet keeps it for a while,
// and then, or as soon as the load needs twice what is ready, follows the load
// again, if the function's labels ask for that.
func (h *Handler) alert(w http.ResponseWriter, r *http.Request) error {
	var message struct {
		Alerts []alert `json:"alerts"`
	}
	if err := h.decode(w, r, &message); err != nil {
		return err
	}
	if len(message.Alerts) > maxAlerts {
		return faas.Errorf(faas.ErrTooLarge, "the message has %d alerts, at most %d are allowed", len(message.Alerts), maxAlerts)
	}
	var mistakes []error
	for _, a := range message.Alerts {
		err := h.obey(r, a)
		if err != nil && statusOf(err) == http.StatusInternalServerError {
			return err
		} else if err != nil {
			mistakes = append(mistakes, err)
		}
	}
	if len(mistakes) > 0 { // the first one's kind is that of all
		kind := faas.ErrInvalid
		if e, ok := errors.AsType[*faas.Error](mistakes[0]); ok {
			kind = e.Kind
		}
		return faas.Errorf(kind, "%w", errors.Join(mistakes...))
	}
	return nil
}

type alert struct {
	Status string `json:"status"`
	Labels struct {
		FunctionName string `json:"function_name"`
	} `json:"labels"`
}

func (h *Handler) obey(r *http.Request, a alert) error {
	name, err := faas.ParseName(a.Labels.FunctionName)
	if err != nil {
		return faas.Errorf(faas.ErrInvalid, "label function_name of an alert: %w", err)
	}
	status, err := h.cfg.Fleet.Function(name)
	if err != nil {
		return err
	}
	var labels map[string]string
	if status.Labels != nil {
		labels = *status.Labels
	}
	scale, err := faas.ParseScale(labels)
	if err != nil {
		return err
	}
	want, why := scale.Min, "an alert is resolved"
	switch a.Status {
	case "firing":
		step := math.Ceil(float64(scale.Max) * float64(scale.Factor) / 100)
		now := int(min(status.Replicas, faas.MaxReplicas))
		want = max(scale.Min, min(scale.Max, now+int(step)))
		why = fmt.Sprintf("an alert is firing, which adds %d %% of %d", scale.Factor, scale.Max)
	case "resolved":
	default:
		return faas.Errorf(faas.ErrInvalid, "status of an alert is %.20q: write \"firing\" or \"resolved\"", a.Status)
	}
	return h.cfg.Fleet.Scale(r.Context(), name, want, why)
}

package weather

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/seed-780dceda/thicket/functions/stale"
)

// reportVersion is part of each key in the cache. It changes when a [Report]
// means something else, so that functions of different versions that share a
// Redis don't misread each other; and only then, so that a new image doesn't
// forget what it might need at once.
const reportVersion = "1"

// pack makes a report what the cache keeps.
func pack(report Report) (stale.Entry, error) {
	body, err := json.Marshal(report)
	if err != nil {
		return stale.Entry{}, fmt.Errorf("keep the report: %w", err)
	}
	e := stale.Entry{Status: http.StatusOK, Body: body, Age: time.Duration(max(report.AgeSeconds, 0)) * time.Second}
	if doubtful(report) {
		e.Fresh = 1 // less there isn't: it is for when nothing else can be had
	}
	return e, nil
}

// doubtful says whether a report is one that its source gave for want of a
// better: old, or invented. It is passed on and remembered, but never given
// without asking again.
func doubtful(r Report) bool {
	return r.Stale || !r.Empty() && r.Source == SourceSimulated
}

// packRefusal does the same with an error that is an answer. Both kinds have the
// status that the cache keeps for a short time only.
func packRefusal(err error) (stale.Entry, error) {
	e := stale.Entry{Status: http.StatusNotFound}
	if wrong, ok := errors.AsType[*InvalidError](err); ok {
		if e.Body, err = json.Marshal(wrong); err != nil {
			return stale.Entry{}, fmt.Errorf("keep the refusal: %w", err)
		}
	}
	return e, nil
}

// unpack returns what was packed.
func unpack(e *stale.Entry) (Report, error) {
	if e.Status == http.StatusNotFound {
		if len(e.Body) == 0 {
			return Report{}, ErrUnknownPlace
		}
		wrong := new(InvalidError)
		if err := json.Unmarshal(e.Body, wrong); err != nil {
			return Report{}, fmt.Errorf("read what is remembered: %w", err)
		}
		return Report{}, wrong
	}
	var report Report
	if err := json.Unmarshal(e.Body, &report); err != nil {
		return Report{}, fmt.Errorf("read what is remembered: %w", err)
	}
	if report.Empty() {
		return Report{}, errors.New("read what is remembered: it is no report")
	}
	return report, nil
}

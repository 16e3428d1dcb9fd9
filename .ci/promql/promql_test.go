package promql_test

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// TestExpressions evaluates each expression over what a real fleet has said. A
// name or a label that isn't there is a mistake; so is a query of the dashboard
// that finds nothing, since the fleet was made to have something of everything.
func TestExpressions(t *testing.T) {
	expressions := append(dashboard(t), rules(t)...)
	if len(expressions) < 30 {
		t.Fatalf("%d expressions were found, which can't be all", len(expressions))
	}
	db := scrapeFleet(t)
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, LookbackDelta: 5 * time.Minute})
	p := parser.NewParser(parser.Options{})
	for _, e := range expressions {
		t.Run(e.name, func(t *testing.T) {
			parsed, err := p.ParseExpr(e.query)
			if err != nil {
				t.Fatalf("%s\n%v", e.query, err)
			}
			look := func(x parser.Expr) promql.Vector {
				t.Helper()
				return evaluate(t, engine, db, x.String())
			}
			var selected []*series
			parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
				switch n := n.(type) {
				case *parser.VectorSelector:
					series := db.matching(n.LabelMatchers)
					if len(series) == 0 {
						t.Errorf("there is no series %s", n)
					}
					selected = append(selected, series...)
				case *parser.BinaryExpr:
					// What an alert compares must be there, if it doesn't fire.
					if n.Op.IsComparisonOperator() && !n.ReturnBool {
						for _, side := range [...]parser.Expr{n.LHS, n.RHS} {
							if len(look(side)) == 0 {
								t.Errorf("%s has no value", side)
							}
						}
					}
				}
				return nil
			})
			for _, name := range slices.Concat(labelsUsed(parsed), e.said) {
				if !slices.ContainsFunc(selected, func(s *series) bool { return s.labels.Has(name) }) {
					t.Errorf("%s\nnames the label %s, which nothing has that it looks at", e.query, name)
				}
			}
			result := look(parsed)
			if e.mustHave && len(result) == 0 {
				t.Errorf("%s\nfinds nothing", e.query)
			}
			for _, name := range e.legend {
				if !slices.ContainsFunc(result, func(s promql.Sample) bool { return s.Metric.Has(name) }) {
					t.Errorf("the legend names %s, which no result of %s has", name, e.query)
				}
			}
		})
	}
}

// TestMistakes holds that the test above would find one.
func TestMistakes(t *testing.T) {
	db := store{}
	db.add(labels.FromStrings("__name__", "good", "node", "pi"), time.Now(), 1)
	if got := db.matching([]*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "__name__", "god")}); got != nil {
		t.Errorf("a metric that isn't there has the series %v", got)
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 100, Timeout: time.Minute})
	if got := evaluate(t, engine, db, `sum by (node) (good)`); len(got) != 1 || got[0].F != 1 || got[0].Metric.Get("node") != "pi" {
		t.Errorf("evaluate() = %v, want 1 of the node", got)
	}
	x, err := parser.NewParser(parser.Options{}).ParseExpr(`sum by (node) (a) / on (zone) sum(b)`)
	if err != nil {
		t.Fatal(err)
	}
	if got := labelsUsed(x); !slices.Equal(got, []string{"node", "zone"}) {
		t.Errorf("labelsUsed() = %q, want node and zone", got)
	}
}

// expression is a query that somebody will make.
type expression struct {
	name, query string
	mustHave    bool     // it has a result while all is well
	legend      []string // labels that the result must have
	said        []string // labels that the text of an alert names
}

// labelsUsed are those that an expression groups or matches by.
func labelsUsed(x parser.Expr) []string {
	used := make(map[string]bool)
	parser.Inspect(x, func(n parser.Node, _ []parser.Node) error {
		var names []string
		switch n := n.(type) {
		case *parser.AggregateExpr:
			names = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				names = n.VectorMatching.MatchingLabels
			}
		}
		for _, name := range names {
			used[name] = true
		}
		return nil
	})
	return slices.Sorted(maps.Keys(used))
}

// evaluate returns what an expression is now. A number is one sample.
func evaluate(t *testing.T, engine *promql.Engine, db store, query string) promql.Vector {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	q, err := engine.NewInstantQuery(ctx, db, nil, query, time.Now())
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer q.Close()
	switch v := q.Exec(ctx); v := v.Value.(type) {
	case promql.Vector:
		return slices.Clone(v)
	case promql.Scalar:
		return promql.Vector{{F: v.V}}
	default:
		t.Fatalf("%s: %v", query, v)
	}
	return nil
}

// store is series in memory, by their labels.
type store map[string]*series

type series struct {
	labels labels.Labels
	points []promql.FPoint
}

func (s store) add(l labels.Labels, at time.Time, v float64) {
	key := l.String()
	if s[key] == nil {
		s[key] = &series{labels: l}
	}
	s[key].points = append(s[key].points, promql.FPoint{T: at.UnixMilli(), F: v})
}

func (s store) matching(ms []*labels.Matcher) (all []*series) {
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if l := s[key].labels; !slices.ContainsFunc(ms, func(m *labels.Matcher) bool { return !m.Matches(l.Get(m.Name)) }) {
			all = append(all, s[key])
		}
	}
	return all
}

// Querier implements [storage.Queryable].
func (s store) Querier(int64, int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: func(_ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
		var all []storage.Series
		for _, x := range s.matching(ms) {
			all = append(all, promql.NewStorageSeries(promql.Series{Metric: x.labels, Floats: x.points}))
		}
		return &set{all: all}
	}}, nil
}

// set is a [storage.SeriesSet] of what there is.
type set struct {
	all []storage.Series
	at  int
}

func (s *set) Next() bool                        { s.at++; return s.at <= len(s.all) }
func (s *set) At() storage.Series                { return s.all[s.at-1] }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }

var variable = regexp.MustCompile(`\$(\w+|\{\w+(:\w+)?\})`)

// concrete puts something in the place of Grafana's variables.
func concrete(query string) string {
	return variable.ReplaceAllStringFunc(query, func(v string) string {
		switch name := strings.Trim(v, "${}"); name {
		case "__rate_interval", "__range", "__interval":
			return "5m"
		case "function", "node", "instance":
			return ".*"
		default:
			return fmt.Sprintf("unknown_variable_%s", name)
		}
	})
}

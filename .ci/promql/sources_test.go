package promql_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	rulesFile     = "../../deploy/prometheus/thicket.rules.yml"
	dashboardFile = "../../deploy/grafana/thicket.json"
)

// rules returns the expressions of all alerts. While all is well, most have no
// result.
func rules(t *testing.T) (all []expression) {
	t.Helper()
	file, errs := rulefmt.ParseFile(rulesFile, false, model.LegacyValidation, parser.NewParser(parser.Options{}))
	for _, err := range errs {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			e := expression{name: "alert " + r.Alert, query: r.Expr}
			for _, text := range r.Annotations {
				for _, m := range labelInText.FindAllStringSubmatch(text, -1) {
					e.said = append(e.said, m[1])
				}
			}
			all = append(all, e)
		}
	}
	return all
}

// Labels in the texts of alerts, and in the legends of the dashboard.
var (
	labelInText   = regexp.MustCompile(`\$labels\.(\w+)`)
	labelInLegend = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
)

// panel is what a dashboard's JSON has of interest here.
type panel struct {
	Title, Type string
	Panels      []panel
	Datasource  struct{ UID string }
	Targets     []struct{ Expr, LegendFormat string }
	GridPos     struct{ X, Y, W, H int }
	ID          int
}

// dashboard returns the queries of all panels and variables.
func dashboard(t *testing.T) (all []expression) {
	t.Helper()
	b, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels     []panel
		Templating struct {
			List []struct {
				Name, Type string
				Query      json.RawMessage
			}
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	ids := make(map[int]bool)
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the number %d of another one", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q has the data source %q, %d queries, and ends at column %d of 24", p.Title, p.Datasource.UID, len(p.Targets), p.GridPos.X+p.GridPos.W)
		}
		for i, q := range p.Targets {
			e := expression{name: fmt.Sprintf("panel %s/%d", p.Title, i), query: concrete(q.Expr), mustHave: true}
			for _, m := range labelInLegend.FindAllStringSubmatch(q.LegendFormat, -1) {
				e.legend = append(e.legend, m[1])
			}
			all = append(all, e)
		}
	}
	values := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		var q struct{ Query string }
		m := values.FindStringSubmatch("")
		if err := json.Unmarshal(v.Query, &q); err == nil {
			m = values.FindStringSubmatch(q.Query)
		}
		if m == nil {
			t.Errorf("the variable %s asks %s, which isn't understood", v.Name, v.Query)
			continue
		}
		all = append(all, expression{name: "variable " + v.Name, query: concrete(m[1]), mustHave: true, legend: []string{m[2]}})
	}
	return all
}

// TestPromtool runs Prometheus's own checks and the rules' unit tests, where its
// tool is installed.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool isn't installed (Debian has it in the package prometheus)")
	}
	for _, args := range []string{"check config prometheus.yml", "check rules thicket.rules.yml", "test rules thicket.rules_test.yml"} {
		cmd := exec.Command(promtool, strings.Fields(args)...)
		cmd.Dir = "../../deploy/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", args, err, out)
		}
	}
}

// TestAlertsAreTested holds that each alert has a unit test and a line in the
// README.
func TestAlertsAreTested(t *testing.T) {
	tests, err := os.ReadFile("../../deploy/prometheus/thicket.rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../deploy/prometheus/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range rules(t) {
		name := strings.TrimPrefix(e.name, "alert ")
		if !strings.Contains(string(readme), "`"+name+"`") {
			t.Errorf("the README doesn't say what %s is about", name)
		}
		if !regexp.MustCompile(`alertname: ` + name + `\n\s+exp_alerts:`).Match(tests) {
			t.Errorf("no unit test has %s fire", name)
		}
	}
	known := rules(t)
	for _, m := range regexp.MustCompile("`(Thicket\\w+)`").FindAllStringSubmatch(string(readme), -1) {
		if !slices.ContainsFunc(known, func(e expression) bool { return e.name == "alert "+m[1] }) {
			t.Errorf("the README tells of %s, which there isn't", m[1])
		}
	}
}

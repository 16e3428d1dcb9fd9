package eureka_test

import (
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// client is what an application with Spring's Eureka client does, written after
// the documented protocol and with types of its own: it registers, sends
// heartbeats, registers again upon a 404, fetches all once and deltas then, and
// checks each by the hashcode.
type client struct {
	w        *world
	from     string
	app, id  string
	addr     string
	status   string
	dirty    int64
	apps     map[string]map[string]instanceInfo // what it knows, by application and id
	full     int                                // how often it fetched all
	asXML    bool
	heard404 int
}

// instanceInfo is what a client reads of an instance.
type instanceInfo struct {
	InstanceID string `json:"instanceId" xml:"instanceId"`
	HostName   string `json:"hostName" xml:"hostName"`
	App        string `json:"app" xml:"app"`
	IPAddr     string `json:"ipAddr" xml:"ipAddr"`
	Status     string `json:"status" xml:"status"`
	ActionType string `json:"actionType" xml:"actionType"`
	Port       struct {
		Number  int    `json:"$" xml:",chardata"`
		Enabled string `json:"@enabled" xml:"enabled,attr"`
	} `json:"port" xml:"port"`
}

type applications struct {
	Version  string `json:"versions__delta" xml:"versions__delta"`
	Hashcode string `json:"apps__hashcode" xml:"apps__hashcode"`
	Apps     []struct {
		Name      string         `json:"name" xml:"name"`
		Instances []instanceInfo `json:"instance" xml:"instance"`
	} `json:"application" xml:"application"`
}

func newClient(w *world, app, addr string) *client {
	return &client{w: w, from: "192.168.1.99:5000", app: app, id: "host-" + addr + ":" + strings.ToLower(app), addr: addr, status: "UP", dirty: 1}
}

func (c *client) ask(method, path, body string, header ...string) *httptest.ResponseRecorder {
	return c.w.askFrom(c.from, method, "/eureka/"+path, body, header...)
}

func (c *client) register() {
	c.w.t.Helper()
	body := fmt.Sprintf(`{"instance":{"instanceId":%q,"hostName":%q,"app":%q,"ipAddr":%q,"status":%q,"port":{"$":8080,"@enabled":"true"},`+
		`"securePort":{"$":443,"@enabled":"false"},"dataCenterInfo":{"@class":"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo","name":"MyOwn"},`+
		`"leaseInfo":{"renewalIntervalInSecs":30,"durationInSecs":90},"vipAddress":%q,"lastDirtyTimestamp":"%d"}}`,
		c.id, "host-"+c.addr, c.app, c.addr, c.status, strings.ToLower(c.app), c.dirty)
	if r := c.ask("POST", "apps/"+c.app, body, "Content-Type", "application/json"); r.Code != 204 {
		c.w.t.Fatalf("register %s = %d %s", c.app, r.Code, r.Body)
	}
}

func (c *client) heartbeat() {
	c.w.t.Helper()
	r := c.ask("PUT", fmt.Sprintf("apps/%s/%s?status=%s&lastDirtyTimestamp=%d", c.app, c.id, c.status, c.dirty), "")
	switch r.Code {
	case 200:
	case 404:
		c.heard404++
		c.register()
	default:
		c.w.t.Fatalf("heartbeat = %d %s", r.Code, r.Body)
	}
}

func (c *client) cancel() {
	c.w.t.Helper()
	if r := c.ask("DELETE", "apps/"+c.app+"/"+c.id, ""); r.Code != 200 {
		c.w.t.Fatalf("cancel = %d %s", r.Code, r.Body)
	}
}

func (c *client) get(path string) applications {
	c.w.t.Helper()
	accept := "application/json"
	if c.asXML {
		accept = "application/xml"
	}
	r := c.ask("GET", path, "", "Accept", accept, "Accept-Encoding", "gzip", "X-Eureka-Accept", "full")
	if r.Code != 200 {
		c.w.t.Fatalf("GET %s = %d %s", path, r.Code, r.Body)
	}
	var body io.Reader = r.Body
	if r.Header().Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(body); err != nil {
			c.w.t.Fatal(err)
		}
	}
	var a struct{ Applications applications }
	var err error
	if c.asXML {
		err = xml.NewDecoder(body).Decode(&a.Applications)
	} else {
		err = json.NewDecoder(body).Decode(&a)
	}
	if err != nil {
		c.w.t.Fatalf("GET %s: %v", path, err)
	}
	return a.Applications
}

// fetch brings what the client knows up to date, by a delta if it can.
func (c *client) fetch() {
	c.w.t.Helper()
	if c.apps != nil {
		delta := c.get("apps/delta")
		for _, a := range delta.Apps {
			for _, i := range a.Instances {
				switch i.ActionType {
				case "ADDED", "MODIFIED":
					c.put(i)
				case "DELETED":
					delete(c.apps[i.App], i.InstanceID)
				default:
					c.w.t.Errorf("a delta with the action %q", i.ActionType)
				}
			}
		}
		if c.hashcode() == delta.Hashcode {
			return
		}
	}
	c.full++
	all := c.get("apps/")
	c.apps = map[string]map[string]instanceInfo{}
	for _, a := range all.Apps {
		for _, i := range a.Instances {
			c.put(i)
		}
	}
	if got := c.hashcode(); got != all.Hashcode {
		c.w.t.Errorf("the hashcode of all is %q, the registry says %q", got, all.Hashcode)
	}
}

func (c *client) put(i instanceInfo) {
	if c.apps[i.App] == nil {
		c.apps[i.App] = map[string]instanceInfo{}
	}
	c.apps[i.App][i.InstanceID] = i
}

func (c *client) hashcode() string {
	counts := map[string]int{}
	for _, a := range c.apps {
		for _, i := range a {
			counts[i.Status]++
		}
	}
	var code strings.Builder
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&code, "%s_%d_", s, counts[s])
	}
	return code.String()
}

// up returns where an application can be called, as the client sees it.
func (c *client) up(app string) (addrs []string) {
	for _, i := range c.apps[app] {
		if i.Status == "UP" {
			addrs = append(addrs, fmt.Sprintf("%s:%d", i.IPAddr, i.Port.Number))
		}
	}
	slices.Sort(addrs)
	return addrs
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

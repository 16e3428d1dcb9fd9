package eureka

import (
	"encoding/xml"
	"maps"
	"net/http"
	"slices"
)

// named1 gives an instance its element's name, which lists have from their field.
type named1 struct{ *Instance }

// MarshalXML implements [xml.Marshaler].
func (n named1) MarshalXML(e *xml.Encoder, _ xml.StartElement) error {
	return e.EncodeElement(n.Instance, xml.StartElement{Name: xml.Name{Local: "instance"}})
}

// overview is what a person wants to know of the registry.
type overview struct {
	XMLName      xml.Name `json:"-" xml:"status"`
	Version      string   `json:"version" xml:"version"`
	Hashcode     string   `json:"hashcode" xml:"hashcode"`
	Applications int      `json:"applications" xml:"applications"`
	Instances    int      `json:"instances" xml:"instances"`   // all
	Registered   int      `json:"registered" xml:"registered"` // of which so many registered themselves
	Silent       int      `json:"silent" xml:"silent"`         // of which so many miss heartbeats
}

func (c *call) status() error {
	all := c.r.all(c.view, nil)
	o := overview{Version: all.Version, Hashcode: all.Hashcode, Applications: len(all.Apps)}
	for _, a := range all.Apps {
		o.Instances += len(a.Instances)
	}
	c.r.mu.RLock()
	o.Registered = c.r.count
	c.r.mu.RUnlock()
	for _, s := range c.r.cfg.Table.Replicas() {
		if s.Source == Kind && s.Suspect {
			o.Silent++
		}
	}
	return c.answer(http.StatusOK, "status", o)
}

// override is one entry of the statuses that operators set.
type override struct {
	ID     string `json:"id" xml:"id"`
	Status Status `json:"status" xml:"status"`
}

type overrideList struct {
	XMLName xml.Name   `json:"-" xml:"statusoverrides"`
	List    []override `json:"override" xml:"override"`
}

func (c *call) overrides() error {
	list := overrideList{List: []override{}}
	c.r.mu.RLock()
	for _, app := range slices.Sorted(maps.Keys(c.r.apps)) {
		for _, id := range slices.Sorted(maps.Keys(c.r.apps[app])) {
			if i := c.r.apps[app][id].instance; i.Overridden != StatusUnknown {
				list.List = append(list.List, override{id, i.Overridden})
			}
		}
	}
	c.r.mu.RUnlock()
	return c.answer(http.StatusOK, "statusoverrides", list)
}

package eureka

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// What travels has grown over ten years of Java libraries: numbers and booleans
// are strings in some fields of JSON and not in others, and clients differ in
// which. The types here write what Eureka's server does, and read what is meant.

// Number is a number; in JSON it may come as a string.
type Number int64

// UnmarshalJSON implements [json.Unmarshaler].
func (n *Number) UnmarshalJSON(b []byte) error {
	v, err := looseInt(b)
	*n = Number(v)
	return err
}

// Quoted is a number that is a string in JSON.
type Quoted int64

// MarshalJSON implements [json.Marshaler].
func (q Quoted) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, strconv.FormatInt(int64(q), 10)), nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (q *Quoted) UnmarshalJSON(b []byte) error {
	v, err := looseInt(b)
	*q = Quoted(v)
	return err
}

func looseInt(b []byte) (int64, error) {
	s := strings.TrimSpace(strings.Trim(string(b), `"`))
	if s == "" || s == "null" {
		return 0, nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%.40s is no whole number", b)
	}
	return v, nil
}

// Flag is a boolean that is a string in JSON.
type Flag bool

// MarshalText implements [encoding.TextMarshaler].
func (f Flag) MarshalText() ([]byte, error) { return strconv.AppendBool(nil, bool(f)), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (f *Flag) UnmarshalText(b []byte) error {
	*f = Flag(strings.EqualFold(strings.TrimSpace(string(b)), "true"))
	return nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (f *Flag) UnmarshalJSON(b []byte) error {
	return f.UnmarshalText(bytes.Trim(b, `"`))
}

// Port is a port and whether it is in use.
type Port struct {
	Number  Number `json:"$" xml:",chardata"`
	Enabled Flag   `json:"@enabled" xml:"enabled,attr"`
}

// Center is the data centre, of which there is one.
type Center struct {
	Class string `json:"@class" xml:"class,attr"`
	Name  string `json:"name" xml:"name"`
}

var myOwn = Center{"com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "MyOwn"}

// Metadata is what an instance says of itself beside all else.
type Metadata map[string]string

// UnmarshalJSON implements [json.Unmarshaler].
func (m *Metadata) UnmarshalJSON(b []byte) error {
	var raw map[string]any
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	for key, value := range raw {
		if key == "@class" { // of an empty map in Java
			continue
		}
		if *m == nil {
			*m = Metadata{}
		}
		switch v := value.(type) {
		case string:
			(*m)[key] = v
		case nil:
			(*m)[key] = ""
		case bool, float64:
			(*m)[key] = fmt.Sprint(v)
		default:
			return fmt.Errorf("metadata %.80q is no text", key)
		}
	}
	return nil
}

// UnmarshalXML implements [xml.Unmarshaler].
func (m *Metadata) UnmarshalXML(d *xml.Decoder, start xml.StartElement) error {
	var entries struct {
		List []struct {
			XMLName xml.Name
			Value   string `xml:",chardata"`
		} `xml:",any"`
	}
	if err := d.DecodeElement(&entries, &start); err != nil {
		return err
	}
	for _, e := range entries.List {
		if *m == nil {
			*m = Metadata{}
		}
		(*m)[e.XMLName.Local] = strings.TrimSpace(e.Value)
	}
	return nil
}

// MarshalXML implements [xml.Marshaler]. A key that can't be an element's name is
// left out: JSON has it.
func (m Metadata) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	if err := e.EncodeToken(start); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if !elementName(key) {
			continue
		}
		if err := e.EncodeElement(m[key], xml.StartElement{Name: xml.Name{Local: key}}); err != nil {
			return err
		}
	}
	return e.EncodeToken(start.End())
}

// elementName says whether a key can be the name of an element.
func elementName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c != '-' && c != '.' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != "" && !strings.HasPrefix(strings.ToLower(s), "xml")
}

// action is what happened to an instance, in a delta.
type action string

const (
	actionAdded    action = "ADDED"
	actionModified action = "MODIFIED"
	actionDeleted  action = "DELETED"
)

// application is all instances of one name.
type application struct {
	XMLName   xml.Name    `json:"-" xml:"application"`
	Name      string      `json:"name" xml:"name"`
	Instances []*Instance `json:"instance" xml:"instance"`
}

// applications is what clients fetch.
type applications struct {
	XMLName  xml.Name       `json:"-" xml:"applications"`
	Version  string         `json:"versions__delta" xml:"versions__delta"`
	Hashcode string         `json:"apps__hashcode" xml:"apps__hashcode"`
	Apps     []*application `json:"application" xml:"application"`
}

// hashcode is what clients compare after a delta: how many instances have each
// status, in the order of their names.
func hashcode(counts map[Status]int) string {
	var b strings.Builder
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		if counts[s] > 0 {
			fmt.Fprintf(&b, "%s_%d_", s, counts[s])
		}
	}
	return b.String()
}

// format is how an answer or a request is written.
type format int

const (
	formatXML format = iota
	formatJSON
)

// formatOf returns the format that a header asks for: XML unless it says JSON, as
// ever.
func formatOf(header string) format {
	if strings.Contains(strings.ToLower(header), "json") {
		return formatJSON
	}
	return formatXML
}

func (f format) contentType() string {
	if f == formatJSON {
		return "application/json"
	}
	return "application/xml"
}

// write writes v, of which JSON has the name.
func (f format) write(w io.Writer, name string, v any) error {
	if f == formatJSON {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return e.Encode(map[string]any{name: v})
	}
	return xml.NewEncoder(w).Encode(v)
}

// readInstance reads what a client registers.
func readInstance(f format, body []byte) (*Instance, error) {
	if f == formatJSON {
		var wrapped struct {
			Instance *Instance `json:"instance"`
		}
		if err := json.Unmarshal(body, &wrapped); err != nil {
			return nil, err
		}
		if wrapped.Instance == nil {
			return nil, fmt.Errorf(`field instance is missing: send {"instance":{…}}`)
		}
		return wrapped.Instance, nil
	}
	var i struct {
		XMLName xml.Name `xml:"instance"`
		Instance
	}
	if err := xml.Unmarshal(body, &i); err != nil {
		return nil, err
	}
	return &i.Instance, nil
}

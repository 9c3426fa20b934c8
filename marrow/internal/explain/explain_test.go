package explain

import (
	"strings"
	"testing"
)

const dump = `{"workloads":[
 {"name":"load-1","namespace":"shop","trustDomain":"td","serviceAccount":"load","protocol":"HBONE","workloadIps":["10.244.1.6"]},
 {"name":"out","namespace":"outside","protocol":"TCP","workloadIps":["10.244.1.9"]},
 {"name":"catalog-1","namespace":"shop","protocol":"HBONE","workloadIps":["10.244.2.6"],"waypoint":{"destination":"net/10.96.0.9"}}],
"services":[
 {"name":"catalog","namespace":"shop","hostname":"catalog.shop.svc.cluster.local","vips":["net/10.96.0.1"],"ports":{"80":8080},"waypoint":{"destination":"shop/wp.shop.svc.cluster.local"}},
 {"name":"catalog","namespace":"other","hostname":"catalog.other.svc.cluster.local","vips":["net/10.96.0.2"],"ports":{"8080":8080}},
 {"name":"wp","namespace":"shop","hostname":"wp.shop.svc.cluster.local","vips":["net/10.96.0.9"],"ports":{"15008":15008}},
 {"name":"ext","namespace":"shop","hostname":"api.example.com","vips":[],"ports":{"80":80}}]}`

func TestFind(t *testing.T) {
	d, err := ParseDump([]byte(dump))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ from, to, connect, waypoint string }{
		{"shop/load-1", "http://catalog/x", "10.96.0.1:80", "shop/wp"},
		{"shop/load-1", "http://catalog.shop.svc.cluster.local:80/x?y=z", "10.96.0.1:80", "shop/wp"},
		{"shop/load-1", "http://catalog.other:8080", "10.96.0.2:8080", ""},
		{"shop/load-1", "http://10.96.0.1", "10.96.0.1:80", "shop/wp"},
		{"shop/load-1", "http://10.244.2.6:8080/", "10.244.2.6:8080", "shop/wp"},
		{"shop/load-1", "http://192.0.2.1/", "192.0.2.1:80", ""},
		{"outside/out", "http://catalog.shop/", "10.96.0.1:80", "shop/wp"},
	} {
		f, err := d.Find(Request{From: c.from, To: c.to, Headers: []string{"a: b", "Host: x"}})
		if err != nil {
			t.Errorf("%s %s: %v", c.from, c.to, err)
			continue
		}
		if f.Connect != c.connect || f.Waypoint != c.waypoint || f.Query.Get("authority") != "x" || f.Query.Get("header") != "a: b" {
			t.Errorf("%s %s: got %+v", c.from, c.to, f)
		}
		id := f.Query.Get("identity")
		if want := map[bool]string{true: "spiffe://td/ns/shop/sa/load"}[c.from == "shop/load-1"]; id != want || f.Read() != (want != "" && c.waypoint != "") {
			t.Errorf("%s %s: identity %q, read %t", c.from, c.to, id, f.Read())
		}
	}
	for to, want := range map[string]string{
		"https://catalog": "nothing else is read", "http://nobody/": "no service", "http://catalog:81/": "no port 81", "http://api.example.com/": "no address",
		"http://catalog:99999": "port", "catalog": "write it as",
	} {
		if _, err := d.Find(Request{From: "shop/load-1", To: to}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", to, err, want)
		}
	}
	for _, from := range []string{"load-1", "shop/nobody", "/x"} {
		if _, err := d.Find(Request{From: from, To: "http://catalog"}); err == nil {
			t.Errorf("from %q: no error", from)
		}
	}
}

// TestGuarded: whoever does not come through the waypoint of a protected service is told that he will be refused, and by what.
func TestGuarded(t *testing.T) {
	d, err := ParseDump([]byte(strings.NewReplacer(`"workloadIps":["10.244.2.6"],"waypoint":{"destination":"net/10.96.0.9"}`,
		`"workloadIps":["10.244.2.6"],"authorizationPolicies":["shop/p","shop/marrow_waypoint_required_catalog"]`).Replace(dump)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"shop/load-1", "http://10.244.2.6:8080/", true},
		{"outside/out", "http://catalog.shop/", true},
		{"outside/out", "http://10.244.2.6:8080/", true},
		{"shop/load-1", "http://catalog.other:8080/", false},
		{"shop/load-1", "http://catalog/", false},
		{"shop/load-1", "http://10.244.1.9/", false},
	} {
		f, err := d.Find(Request{From: c.from, To: c.to})
		if err != nil {
			t.Fatal(err)
		}
		if told := f.String(); strings.Contains(told, "by shop/marrow_waypoint_required_catalog") != c.want {
			t.Errorf("from %s to %s: %s", c.from, c.to, told)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(`{"outcome":"refuse","status":403,"detail":"d","flags":"NR","chance":true,"open":["x"],"why":["because"],"endpoints":[{"address":"a"}],"clusters":[{},{}]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if a, err := ParseAnswer(raw); err == nil && !strings.Contains(a.String(), "=> ") {
			t.Errorf("%s", a)
		}
	})
}

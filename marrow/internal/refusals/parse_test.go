package refusals

import (
	"strings"
	"testing"
)

const denied = "2026-11-22T19:12:18.167030Z\terror\taccess\tconnection complete\tsrc.addr=10.244.1.7:34104 src.workload=\"load-x\" src.namespace=\"shop\" src.identity=\"spiffe://cluster.local/ns/shop/sa/load\" dst.addr=10.244.2.5:15008 dst.hbone_addr=10.244.2.5:8080 dst.service=\"reviews.shop.svc.cluster.local\" dst.workload=\"reviews-x\" direction=\"inbound\" bytes_sent=0 bytes_recv=0 duration=\"0ms\" error=\"connection closed due to policy rejection: explicitly denied by: shop/deny-load\""

const forbidden = `[2026-11-22T19:12:23.934Z] "DELETE / HTTP/1.1" 403 - rbac_access_denied_matched_policy[none] - "-" 0 19 0 - "-" "Go-http-client/1.1" "49f2" "catalog" "-" inbound-vip|80|http|catalog.shop.svc.cluster.local - 10.96.9.129:80 10.244.1.7:40352 - - spiffe://cluster.local/ns/shop/sa/load`

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		line, from, to, reason string // an empty reason: no entry
	}{
		"denied connection": {denied, "spiffe://cluster.local/ns/shop/sa/load", "reviews.shop.svc.cluster.local (10.244.2.5:8080)", "explicitly denied by: shop/deny-load"},
		"early refusal": {
			"2026-11-22T19:12:18Z\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.1:5 dst.addr=10.0.0.2:15008 direction=\"inbound\" error=\"ip mismatch: 10.0.0.9 != 10.0.0.2\"",
			"10.0.0.1:5", "10.0.0.2:15008", "ip mismatch",
		},
		"plaintext caller": {
			strings.Replace(strings.Replace(denied, `src.identity="spiffe://cluster.local/ns/shop/sa/load" `, "", 1), "dst.hbone_addr=10.244.2.5:8080 ", "", 1),
			"shop/load-x", "reviews.shop.svc.cluster.local (10.244.2.5:15008)", "deny-load",
		},
		"good connection":   {denied[:strings.Index(denied, " error=")], "", "", ""},
		"other scope":       {strings.Replace(denied, "\taccess\t", "\trbac\t", 1), "", "", ""},
		"forbidden request": {forbidden, "spiffe://cluster.local/ns/shop/sa/load", "catalog.shop.svc.cluster.local", "403 rbac_access_denied_matched_policy[none] (DELETE / HTTP/1.1)"},
		"answer of the app": {strings.Replace(forbidden, "rbac_access_denied_matched_policy[none]", "via_upstream", 1), "", "", ""},
		"no upstream":       {strings.Replace(strings.Replace(forbidden, "403 -", "503 UH", 1), "rbac_access_denied_matched_policy[none]", "no_healthy_upstream", 1), "spiffe://cluster.local/ns/shop/sa/load", "catalog.shop.svc.cluster.local", "flags UH"},
		"empty":             {"", "", "", ""},
		"bracket":           {"[", "", "", ""},
		"tabs":              {"\t\taccess\t\t", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e, ok := Parse("ztunnel-node-1", tc.line)
			if ok != (tc.reason != "") {
				t.Fatalf("entry %v: %+v", ok, e)
			}
			if ok && (e.From != tc.from || e.To != tc.to || !strings.Contains(e.Reason, tc.reason) || e.Time.IsZero() || e.Proxy != "ztunnel-node-1") {
				t.Fatalf("got %+v", e)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(denied)
	f.Add(forbidden)
	f.Add(`[2026-11-22T19:12:23Z] "" 500 - x`)
	f.Fuzz(func(t *testing.T, line string) {
		if e, ok := Parse("p", line); ok && e.Reason == "" {
			t.Fatal("a refusal without a reason")
		}
	})
}

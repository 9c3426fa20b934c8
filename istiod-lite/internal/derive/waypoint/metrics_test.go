package waypoint

import (
	"strings"
	"testing"
)

// TestMetricProviders: nothing is counted where Prometheus is not among the providers, and whoever asks for another one is told.
func TestMetricProviders(t *testing.T) {
	const object = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: mesh, namespace: istio-system}\nspec:\n"
	for _, tc := range []struct {
		name, mesh, metrics string
		off                 bool
		told                string
	}{
		{"nothing said", "", "", false, ""},
		{"the chart's default", "defaultProviders: {metrics: [prometheus]}", "", false, ""},
		{"another default", "defaultProviders: {metrics: [stackdriver]}", "", true, ""},
		{"another default, and the object's", "defaultProviders: {metrics: [stackdriver]}", "  metrics: [{providers: [{name: Prometheus}]}]", false, ""},
		{"a name of its own", "extensionProviders: [{name: mine, prometheus: {}}]", "  metrics: [{providers: [{name: mine}]}]", false, ""},
		{"another provider", "", "  metrics: [{providers: [{name: stackdriver}]}]", true, `metrics provider "stackdriver"`},
		{"off and on again", "", "  metrics: [{overrides: [{disabled: true}, {match: {mode: SERVER}, disabled: false}]}]", false, ""},
		{"the client's side", "", "  metrics: [{overrides: [{match: {mode: CLIENT}, disabled: true}]}]", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			objects := ""
			if tc.metrics != "" {
				objects = object + tc.metrics
			}
			in := parseWorld(t, []byte("service web.shop 10.96.0.1 80/http"), []byte(objects))
			if tc.mesh != "" {
				withMesh(t, tc.mesh)(&in)
			}
			d := newDerivation(in)
			got := d.metrics(&d.in.Services[0])
			if n := strings.Count(got.String(), "disabled"); (n == 10) != tc.off || n != 0 && n != 10 {
				t.Errorf("%d metrics are off: %v", n, got)
			}
			all := d.sortedFindings()
			if len(all) == 1 != (tc.told != "") || tc.told != "" && !strings.Contains(all[0].Message, tc.told) {
				t.Errorf("told: %v", all)
			}
		})
	}
}

// TestGatewaysAreClients: what a Telemetry object says for a mode holds for gateways as for who asks, for waypoints as for who is asked.
func TestGatewaysAreClients(t *testing.T) {
	for mode, client := range map[string]bool{"CLIENT": true, "SERVER": false} {
		in := parseWorld(t, []byte("service web.shop 10.96.0.1 80/http"), []byte(`
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec:
  metrics: [{overrides: [{match: {mode: `+mode+`}, disabled: true}]}]
  accessLogging: [{match: {mode: `+mode+`}, providers: [{name: envoy}]}, {match: {mode: `+mode+`}, disabled: true}]
  tracing: [{match: {mode: `+mode+`}, disableSpanReporting: true}]
`))
		for _, gateway := range []bool{true, false} {
			if gateway {
				in.Edge = &Edge{}
			}
			d := newDerivation(in)
			if off, quiet := d.metrics(nil) != nil, len(d.logs(nil)) == 0; off != (client == gateway) || quiet != off || d.tracingSpec(nil).off != off {
				t.Errorf("mode %s, gateway %v: metrics off %v, logs off %v", mode, gateway, off, quiet)
			}
			in.Edge = nil
		}
	}
}

package demo

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/marrow/internal/shopapp"
)

// shareLow and shareHigh bound 300 draws of one in ten: five standard deviations.
const (
	canaryRequests      = 300
	shareLow, shareHigh = 8, 58
)

func (w *world) steps() []step {
	return []step{
		{"a", "without a mesh", "requests succeed and a capture reads the application's text on the wire", w.plaintext},
		{"b", "label the namespace istio.io/dataplane-mode=ambient", "the same requests succeed, no text on any link, traffic on port 15008, both identities in the log, the old connection lives", w.enrol},
		{"c", "PeerAuthentication STRICT", "the outsider is refused, the shop works", w.strict},
		{"d", "an L4 policy refuses service account load at reviews", "load is refused, web is served, the log names policy shop/deny-load", w.layer4},
		{"e", "a waypoint for service account catalog", "requests to catalog arrive from the waypoint's address", w.appear},
		{"f", "canary 90/10", fmt.Sprintf("of %d requests v2 answers %d to %d", canaryRequests, shareLow, shareHigh), w.canary},
		{"g", "fault injection", "x-fault: abort answers 418, x-fault: delay takes at least 0.5 s, others are untouched", w.faults},
		{"h", "an L7 policy: GET only", "GET 200, DELETE 403, on the client's own identity", w.layer7},
		{"i", "a policy change reaches an open connection", "the connection lives under load, and ends within 1 s of the policy", w.reach},
		{"j", "kill -9 of ztunnel on node-1", "new connections work again within 5 s, nothing leaks meanwhile", w.recover},
	}
}

// clean checks that the application's text was not seen on any link since enrolment.
func (w *world) clean(ctx context.Context) (string, bool, error) {
	if w.wire == nil {
		return "no capture is running", false, nil
	}
	s, err := w.wire.look(ctx)
	var text strings.Builder
	fmt.Fprintf(&text, "marker seen %d times in %d packets on all links", s.marked, s.packets)
	for _, f := range s.flows[:min(len(s.flows), 4)] {
		fmt.Fprintf(&text, " (%s -> %s: %d)", f.Src, f.Dst, f.Occurrences)
	}
	return text.String(), s.marked == 0 && err == nil, err
}

// finish adds the check of the wire to a step's outcome.
func (w *world) finish(ctx context.Context, ok bool, format string, args ...any) (string, bool, error) {
	wire, quiet, err := w.clean(ctx)
	return fmt.Sprintf(format, args...) + "; " + wire, ok && quiet, err
}

func good(s shopapp.Summary) bool { return s.Errors == 0 && s.Status["200"] == s.Requests }

func brief(s shopapp.Summary) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(s.Status)) {
		parts = append(parts, fmt.Sprintf("%d×%s", s.Status[k], k))
	}
	for _, k := range slices.Sorted(maps.Keys(s.Texts)) {
		parts = append(parts, fmt.Sprintf("%d×%q", s.Texts[k], k))
	}
	return strings.Join(parts, ", ")
}

func (w *world) plaintext(ctx context.Context) (string, bool, error) {
	wire, err := listen(ctx, w.c, shopapp.DefaultMarker, w.nodes...)
	if err != nil {
		return "", false, err
	}
	defer wire.stop()
	s, err := w.traffic(ctx, load(), "http://web/", 20)
	if err != nil {
		return "", false, err
	}
	o, err := w.traffic(ctx, outsider(), "http://catalog.shop/", 3, "--marker", outsiderMarker)
	if err != nil {
		return "", false, err
	}
	w.old = w.hold(ctx)
	seen, err := wire.look(ctx)
	return fmt.Sprintf("load: %s; outsider: %s; marker seen %d times", brief(s), brief(o), seen.marked), good(s) && good(o) && seen.marked > 0, err
}

func (w *world) enrol(ctx context.Context) (string, bool, error) {
	if _, err := w.c.Label(ctx, lab.LabelRequest{Ref: lab.Ref{Kind: "Namespace", Name: shop}, Set: map[string]string{"istio.io/dataplane-mode": "ambient"}}); err != nil {
		return "", false, err
	}
	var in, all int
	took, ok, err := until(ctx, 15*time.Second, func() (bool, error) {
		var err error
		in, all, err = w.enrolled(ctx)
		return all > 0 && in == all, err
	})
	if err != nil || !ok {
		return fmt.Sprintf("%d of %d pods enrolled after %.1f s", in, all, took.Seconds()), false, err
	}
	if w.wire, err = listen(ctx, w.c, shopapp.DefaultMarker, w.nodes...); err != nil {
		return "", false, err
	}
	if err := w.record(ctx); err != nil {
		return "", false, err
	}
	s, err := w.traffic(ctx, load(), "http://web/", 20)
	if err != nil {
		return "", false, err
	}
	seen, err := w.wire.look(ctx)
	if err != nil {
		return "", false, err
	}
	_, logged, err := w.logged(ctx, `src.identity="spiffe://cluster.local/ns/shop/sa/load"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/web"`)
	if err != nil {
		return "", false, err
	}
	alive := w.old.alive()
	return w.finish(ctx, good(s) && seen.tunnels > 0 && logged && alive,
		"%d pods enrolled in %.1f s; load: %s; %d packets on port 15008; both identities in the log: %t; old connection open: %t", in, took.Seconds(), brief(s), seen.tunnels, logged, alive)
}

func (w *world) strict(ctx context.Context) (string, bool, error) {
	w.old.end() // it was made before the mesh and is none of its connections
	if err := w.apply(ctx, "strict.yaml"); err != nil {
		return "", false, err
	}
	var o shopapp.Summary
	took, refused, err := until(ctx, 5*time.Second, func() (bool, error) {
		var err error
		// Until the policy is in force the outsider is answered, in clear text:
		// it asks for what does not hold the shop's marker.
		o, err = w.traffic(ctx, outsider(), "http://catalog.shop/healthz", 3, "--marker", outsiderMarker, "--timeout", "2s")
		return o.Requests == 3 && o.Errors == 3, err
	})
	if err != nil {
		return "", false, err
	}
	s, err := w.traffic(ctx, load(), "http://web/", 10)
	if err != nil {
		return "", false, err
	}
	return w.finish(ctx, refused && good(s), "outsider: %s (after %.1f s); load: %s", brief(o), took.Seconds(), brief(s))
}

func (w *world) layer4(ctx context.Context) (string, bool, error) {
	if err := w.apply(ctx, "deny-load.yaml"); err != nil {
		return "", false, err
	}
	var l shopapp.Summary
	_, refused, err := until(ctx, 5*time.Second, func() (bool, error) {
		var err error
		l, err = w.traffic(ctx, load(), "http://reviews/", 3)
		return l.Requests == 3 && l.Errors == 3, err
	})
	if err != nil {
		return "", false, err
	}
	s, err := w.traffic(ctx, web(), "http://reviews/", 3)
	if err != nil {
		return "", false, err
	}
	line, named, err := w.logged(ctx, "shop/deny-load", "sa/load")
	if err != nil {
		return "", false, err
	}
	return w.finish(ctx, refused && good(s) && named, "load: %s; web: %s; log: %s", brief(l), brief(s), tail(line))
}

// tail is the end of a log line, where the reason stands.
func tail(line string) string {
	if i := strings.Index(line, "error="); i >= 0 {
		return line[i:]
	}
	return fmt.Sprintf("%q", line)
}

// waypointPods returns the addresses of ready waypoint pods of the shop.
func (w *world) waypointPods(ctx context.Context) (map[string]bool, error) {
	pods, err := lab.Get[*corev1.Pod](ctx, w.c, shop, "")
	out := map[string]bool{}
	for _, p := range pods {
		if p.Labels["gateway.networking.k8s.io/gateway-name"] == "" {
			continue
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				for _, ip := range p.Status.PodIPs {
					out[ip.IP] = true
				}
			}
		}
	}
	return out, err
}

func (w *world) programmed(ctx context.Context) (bool, error) {
	gws, err := lab.Get[*gatewayv1.Gateway](ctx, w.c, shop, "")
	for _, g := range gws {
		for _, c := range g.Status.Conditions {
			if c.Type == string(gatewayv1.GatewayConditionProgrammed) && c.Status == "True" {
				return true, nil
			}
		}
	}
	return false, err
}

func (w *world) appear(ctx context.Context) (string, bool, error) {
	if err := w.waypoint(ctx, w.c); err != nil {
		return "", false, err
	}
	took, ready, err := until(ctx, 20*time.Second, func() (bool, error) { return w.programmed(ctx) })
	if err != nil || !ready {
		return fmt.Sprintf("the Gateway is not Programmed after %.1f s", took.Seconds()), false, err
	}
	pods, err := w.waypointPods(ctx)
	if err != nil {
		return "", false, err
	}
	var s shopapp.Summary
	_, through, err := until(ctx, 10*time.Second, func() (bool, error) {
		var err error
		s, err = w.traffic(ctx, load(), "http://catalog/", 10)
		return good(s) && allFrom(s, pods), err
	})
	if err != nil {
		return "", false, err
	}
	return w.finish(ctx, through, "Programmed after %.1f s at %v; load: %s; catalog was called from %v", took.Seconds(), slices.Sorted(maps.Keys(pods)), brief(s), slices.Sorted(maps.Keys(s.Remotes)))
}

// allFrom says that every answer saw the request come from one of the addresses.
func allFrom(s shopapp.Summary, addrs map[string]bool) bool {
	for r := range s.Remotes {
		ip, err := netip.ParseAddr(r)
		if err != nil || !addrs[ip.Unmap().String()] {
			return false
		}
	}
	return len(s.Remotes) > 0
}

func (w *world) canary(ctx context.Context) (string, bool, error) {
	if err := w.apply(ctx, "canary.yaml"); err != nil {
		return "", false, err
	}
	// Without the route the two versions share evenly; a sample tells when it is in force.
	took, inForce, err := until(ctx, 5*time.Second, func() (bool, error) {
		s, err := w.traffic(ctx, load(), "http://catalog/", 40, "--keepalive")
		return good(s) && s.Versions["catalog/v2"] <= 12, err
	})
	if err != nil {
		return "", false, err
	}
	s, err := w.traffic(ctx, load(), "http://catalog/", canaryRequests, "--keepalive")
	if err != nil {
		return "", false, err
	}
	v1, v2 := s.Versions["catalog/v1"], s.Versions["catalog/v2"]
	return w.finish(ctx, inForce && good(s) && v1+v2 == canaryRequests && v2 >= shareLow && v2 <= shareHigh,
		"v1 answered %d, v2 %d (%s), in force after %.1f s", v1, v2, brief(s), took.Seconds())
}

func (w *world) faults(ctx context.Context) (string, bool, error) {
	if err := w.remove(ctx, "canary.yaml"); err != nil {
		return "", false, err
	}
	if err := w.apply(ctx, "faults.yaml"); err != nil {
		return "", false, err
	}
	var abort shopapp.Summary
	_, ok, err := until(ctx, 5*time.Second, func() (bool, error) {
		var err error
		abort, err = w.traffic(ctx, load(), "http://catalog/", 5, "--header", "x-fault: abort")
		return abort.Status["418"] == 5, err
	})
	if err != nil {
		return "", false, err
	}
	slow, err := w.traffic(ctx, load(), "http://catalog/", 2, "--header", "x-fault: delay")
	if err != nil {
		return "", false, err
	}
	plain, err := w.traffic(ctx, load(), "http://catalog/", 10)
	if err != nil {
		return "", false, err
	}
	ok = ok && good(slow) && slow.Min >= 500*time.Millisecond && good(plain) && plain.P50 < 400*time.Millisecond
	return w.finish(ctx, ok, "abort: %s; delay: %s, at least %.2f s; plain: %s, median %.1f ms",
		brief(abort), brief(slow), slow.Min.Seconds(), brief(plain), float64(plain.P50.Microseconds())/1000)
}

func (w *world) layer7(ctx context.Context) (string, bool, error) {
	if err := w.apply(ctx, "get-only.yaml"); err != nil {
		return "", false, err
	}
	var del shopapp.Summary
	_, refused, err := until(ctx, 5*time.Second, func() (bool, error) {
		var err error
		del, err = w.traffic(ctx, load(), "http://catalog/", 5, "--method", "DELETE")
		return del.Status["403"] == 5, err
	})
	if err != nil {
		return "", false, err
	}
	get, err := w.traffic(ctx, load(), "http://catalog/", 5)
	if err != nil {
		return "", false, err
	}
	return w.finish(ctx, refused && good(get), "GET: %s; DELETE: %s", brief(get), brief(del))
}

func (w *world) reach(ctx context.Context) (string, bool, error) {
	h := w.hold(ctx)
	defer h.end()
	sleep(ctx, 700*time.Millisecond)
	if !h.alive() {
		return fmt.Sprintf("the connection ended before the policy: %+v %v", h.report, h.err), false, nil
	}
	if err := w.apply(ctx, "deny-ledger.yaml"); err != nil {
		return "", false, err
	}
	applied := time.Now()
	select {
	case <-h.done:
	case <-time.After(10 * time.Second):
		return "the connection is still open 10 s after the policy", false, nil
	}
	after := h.ended.Sub(applied)
	ok := h.err == nil && h.report.Received >= 3 && h.report.Error != "" && after < time.Second
	return w.finish(ctx, ok, "%d lines echoed, then %q, %.0f ms after the policy", h.report.Received, h.report.Error, float64(after.Milliseconds()))
}

func (w *world) recover(ctx context.Context) (string, bool, error) {
	before, err := w.traffic(ctx, load(), "http://web/", 3)
	if err != nil {
		return "", false, err
	}
	killed, err := w.c.Kill(ctx, ztunnel("node-1"), syscall.SIGKILL)
	if err != nil {
		return "", false, err
	}
	var failed int
	took, back, err := until(ctx, 15*time.Second, func() (bool, error) {
		s, err := w.traffic(ctx, load(), "http://web/", 1, "--timeout", "1s")
		failed += s.Errors
		return good(s), err
	})
	if err != nil {
		return "", false, err
	}
	after, err := w.traffic(ctx, load(), "http://web/", 10)
	if err != nil {
		return "", false, err
	}
	tapes, silent, err := w.play(ctx)
	if err != nil {
		return "", false, err
	}
	ok := back && good(before) && good(after) && len(killed.PIDs) > 0 && took < 5*time.Second && silent
	return w.finish(ctx, ok, "killed %s; %d requests failed, then new connections worked %.1f s after the kill; load: %s; %s",
		killed.Pod, failed, took.Seconds(), brief(after), tapes)
}

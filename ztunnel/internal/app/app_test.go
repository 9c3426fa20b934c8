package app

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/conf"
	"github.com/marrowmesh/marrow/internal/run"
)

func TestTraffic(t *testing.T) {
	sameNode(t, func(t *testing.T, w *world) {
		w.addPod("a", true, true)
		w.addPod("b", true, true)
		w.addPod("outsider", false, false)
		w.echo("b")
		w.startAgent()
		w.startZtunnel()
		w.awaitReady()
		if got, err := w.try("a", "b"); err != nil || got != w.ip("a").String()+": hello" {
			t.Fatalf("a to b: %q, %v", got, err)
		}
		w.settle("access log", func() bool {
			return w.logged("access\tconnection complete", `src.identity="spiffe://cluster.local/ns/shop/sa/a"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/b"`, `direction="inbound"`)
		})
		if got, err := w.try("outsider", "b"); err != nil || got != w.ip("outsider").String()+": hello" {
			t.Errorf("plaintext in permissive mode: %q, %v", got, err)
		}
		c, err := w.dial("a", "b")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := say(c, "x"); err != nil {
			t.Fatal(err)
		}
		// A tunnel is one accepted socket of the destination's; without one there is none.
		tunnels := map[string]string{"tunnel": "1", "splice": "0"}[w.env["MARROW_SAME_NODE"]]
		w.settle("open tunnels", func() bool {
			_, metrics := w.get("15020/stats/prometheus")
			return strings.Contains(metrics, `istio_tcp_sockets_open{reporter="destination"} `+tunnels)
		})
		w.settle("the dump shows the one connection that lives", func() bool {
			var d struct {
				Certificates  []struct{ Identity, State string }
				WorkloadState map[string]struct {
					State       string
					Connections struct{ Inbound, Outbound []struct{ Protocol string } }
				}
			}
			_, dump := w.get("15000/config_dump")
			if err := json.Unmarshal([]byte(dump), &d); err != nil {
				t.Fatalf("%v in %s", err, dump)
			}
			b := d.WorkloadState["uid-b"]
			return len(d.Certificates) == 2 && d.Certificates[0].State == "Available" && b.State == "Up" &&
				len(b.Connections.Inbound) == 1 && b.Connections.Inbound[0].Protocol == "HBONE"
		})
		_, metrics := w.get("15020/stats/prometheus")
		for _, want := range []string{"workload_manager_active_proxy_count 2", "istio_build{component=\"ztunnel\"", "istio_xds_message_total{", "istio_tcp_connections_opened_total{", "# EOF"} {
			if !strings.Contains(metrics, want) {
				t.Errorf("metrics miss %s", want)
			}
		}
		if nacks := w.cp.Nacks(); len(nacks) != 0 {
			t.Error(nacks)
		}
	})
}

// A pod that the control plane does not know gets no traffic, in or out.
func TestUnknownFailsClosed(t *testing.T) {
	sameNode(t, func(t *testing.T, w *world) {
		w.addPod("a", true, true)
		w.addPod("b", true, true)
		w.addPod("ghost", true, false)
		w.echo("b")
		w.echo("ghost")
		w.startAgent()
		w.startZtunnel()
		w.awaitReady()
		for _, c := range [][2]string{{"ghost", "b"}, {"a", "ghost"}} {
			conn, err := w.dial(c[0], c[1])
			if err != nil {
				continue // refused at once is as good
			}
			_ = conn.SetDeadline(time.Now().Add(8 * time.Second))
			_, _ = io.WriteString(conn, "hello")
			if b, _ := io.ReadAll(conn); len(b) > 0 {
				t.Errorf("%s to %s got %q", c[0], c[1], b)
			}
			_ = conn.Close()
		}
		if got, err := w.try("a", "b"); err != nil || !strings.HasSuffix(got, ": hello") {
			t.Errorf("the others suffer: %q, %v", got, err)
		}
	})
}

func TestPolicyReachesOpenConnections(t *testing.T) {
	sameNode(t, func(t *testing.T, w *world) {
		w.addPod("a", true, true)
		w.addPod("b", true, true)
		w.echo("b")
		w.startAgent()
		w.startZtunnel()
		w.awaitReady()
		c, err := w.dial("a", "b")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := say(c, "before"); err != nil {
			t.Fatal(err)
		}
		deny := &security.Authorization{
			Name: "no-a", Namespace: "shop", Scope: security.Scope_NAMESPACE, Action: security.Action_DENY,
			Groups: []*security.Group{{Rules: []*security.Rules{{Matches: []*security.Match{{
				Principals: []*security.StringMatch{{MatchType: &security.StringMatch_Exact{Exact: "cluster.local/ns/shop/sa/a"}}},
			}}}}}},
		}
		if err := w.cp.Policy("shop/no-a", deny); err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("%q", b)
		}
		w.settle("log of the cut", func() bool { return w.logged("connection closed due to policy change") })
		if got, err := w.try("a", "b"); err == nil {
			t.Errorf("denied, yet %q", got)
		}
		w.settle("log of the refusal", func() bool { return w.logged("explicitly denied by: shop/no-a") })
	})
}

func TestStartOrder(t *testing.T) {
	w := newWorld(t)
	w.startZtunnel()
	w.settle("readiness answers", func() bool { code, _ := w.get("15021/healthz/ready"); return code != 0 })
	w.settle("state manager", func() bool {
		_, body := w.get("15021/healthz/ready")
		return body == "not ready, pending: workload proxy manager\n"
	})
	w.startAgent()
	w.awaitReady()
}

// Without its control plane ztunnel does not even ask for pods.
func TestNoPodsBeforeState(t *testing.T) {
	w := newWorld(t)
	w.startAgent()
	w.env["XDS_ADDRESS"] = "127.0.0.1:1"
	w.startZtunnel()
	w.settle("not ready", func() bool {
		_, body := w.get("15021/healthz/ready")
		return body == "not ready, pending: state manager, workload proxy manager\n"
	})
	time.Sleep(300 * time.Millisecond)
	if n := w.agent.Peers(); n != 0 {
		t.Errorf("%d connections to the node agent", n)
	}
}

func TestDrainLosesNothing(t *testing.T) {
	sameNode(t, func(t *testing.T, w *world) {
		w.env["CONNECTION_TERMINATION_DEADLINE"] = "1s"
		w.addPod("a", true, true)
		w.addPod("b", true, true)
		w.echo("b")
		w.startAgent()
		w.startZtunnel()
		w.awaitReady()
		c, err := w.dial("a", "b")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := say(c, "before"); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		w.stop()
		w.settle("no new connections", func() bool { _, err := w.dial("a", "b"); return err != nil })
		for range 100 {
			if got, err := say(c, "during"); err != nil || !strings.HasSuffix(got, ": during") {
				t.Fatalf("an open connection did not survive the signal: %q, %v", got, err)
			}
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.ReadAll(c)
		if d := time.Since(start); d < 900*time.Millisecond || d > 3*time.Second {
			t.Errorf("cut after %v, want about 1s", d)
		}
		if err := <-w.ended; err != nil {
			t.Error(err)
		}
		w.ended <- nil
		if !w.logged("connection closed due to connection drain") {
			t.Error("the cut was not logged")
		}
	})
}

func TestConfigRefused(t *testing.T) {
	for _, env := range []map[string]string{{}, {"NODE_NAME": "n", "RUST_LOG": "loud"}, {"NODE_NAME": "n", "MARROW_X": "1"}} {
		err := Run(t.Context(), System{Conf: conf.FromMap(env), Files: func(string) ([]byte, bool) { return nil, false }, Log: io.Discard})
		if got := run.ExitCode("ztunnel", io.Discard, err); got != run.ExitConfig {
			t.Errorf("%v: exit %d, %v", env, got, err)
		}
	}
}

// Losing the node agent changes readiness and nothing else; a new one, whose
// snapshot names the same pods, changes nothing at all.
func TestAgentRestart(t *testing.T) {
	w := newWorld(t)
	w.addPod("a", true, true)
	w.addPod("b", true, true)
	w.echo("b")
	stop := w.startAgent()
	w.startZtunnel()
	w.awaitReady()
	c, err := w.dial("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := say(c, "before"); err != nil {
		t.Fatal(err)
	}
	stop()
	w.settle("not ready", func() bool {
		_, body := w.get("15021/healthz/ready")
		return body == "not ready, pending: workload proxy manager\n"
	})
	if got, err := w.try("a", "b"); err != nil || !strings.HasSuffix(got, ": hello") {
		t.Errorf("without agent: %q, %v", got, err)
	}
	w.startAgent()
	w.awaitReady()
	if got, err := say(c, "after"); err != nil || !strings.HasSuffix(got, ": after") {
		t.Errorf("the open connection: %q, %v", got, err)
	}
	if n := strings.Count(w.logs.String(), "serving pod"); n != 2 {
		t.Errorf("%d proxies were started, want 2", n)
	}
}

// Losing the control plane leaves everything that is known in force.
func TestControlPlaneLoss(t *testing.T) {
	w := newWorld(t)
	w.addPod("a", true, true)
	w.addPod("b", true, true)
	w.echo("b")
	w.startAgent()
	w.startZtunnel()
	w.awaitReady()
	if _, err := w.try("a", "b"); err != nil {
		t.Fatal(err)
	}
	w.cp.Stop()
	w.settle("loss noticed", func() bool { return w.logged("the last known state stays") })
	if got, err := w.try("a", "b"); err != nil || !strings.HasSuffix(got, ": hello") {
		t.Errorf("without control plane: %q, %v", got, err)
	}
}

func TestNoCertificateNoTraffic(t *testing.T) {
	sameNode(t, func(t *testing.T, w *world) {
		w.cp.RefuseCertificates(errors.New("not today"))
		w.addPod("a", true, true)
		w.addPod("b", true, true)
		w.echo("b")
		w.startAgent()
		w.startZtunnel()
		w.awaitReady()
		if got, err := w.try("a", "b"); err == nil {
			t.Errorf("traffic without certificate: %q", got)
		}
		w.settle("the reason in the log", func() bool { return w.logged("access", "not today") })
		w.cp.RefuseCertificates(nil)
		w.settle("recovery", func() bool { _, err := w.try("a", "b"); return err == nil })
	})
}

// A captured scraper reaches the metrics of ztunnel through a tunnel to it, and
// nothing that is on loopback.
func TestOwnMetricsThroughTheMesh(t *testing.T) {
	w := newWorld(t)
	w.addPod("prometheus", true, true)
	w.env["POD_NAME"], w.env["POD_NAMESPACE"], w.env["SERVICE_ACCOUNT"] = "ztunnel-x", "istio-system", "ztunnel"
	node, _ := w.fab.Node("n1")
	ip := node.Node4.Masked().Addr().Next() // the fabric's end of the uplink, in ztunnel's namespace
	self := &workload.Workload{
		Name: "ztunnel-x", Namespace: "istio-system", ServiceAccount: "ztunnel", Node: "n1",
		Addresses: [][]byte{ip.AsSlice()}, TunnelProtocol: workload.TunnelProtocol_HBONE,
	}
	if err := w.cp.Workload("Kubernetes//Pod/istio-system/ztunnel-x", self); err != nil {
		t.Fatal(err)
	}
	w.startAgent()
	w.startZtunnel()
	w.awaitReady()
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: w.pod("prometheus").Netns().DialContext}}
	res, err := c.Get("http://" + ip.String() + ":15020/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if res.StatusCode != 200 || !strings.Contains(string(body), "istio_build") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	w.settle("it went through the mesh", func() bool {
		return w.logged("access", `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/shop/sa/prometheus"`, `dst.identity="spiffe://cluster.local/ns/istio-system/sa/ztunnel"`)
	})
	if res, err := c.Get("http://" + ip.String() + ":15000/config_dump"); err == nil {
		t.Errorf("the admin port answered %d", res.StatusCode)
		_ = res.Body.Close()
	}
}

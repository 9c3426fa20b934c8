package serve

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/xds"
	"github.com/marrowmesh/marrow/istiod-lite/internal/authn"
	"github.com/marrowmesh/marrow/istiod-lite/internal/publish"
)

type counter struct{ n atomic.Int32 }

func (c *counter) IssueKey(id identity.ID, _ time.Duration, _ time.Time) (chain, key []byte, err error) {
	return fmt.Appendf(nil, "chain %d of %s", c.n.Add(1), id), []byte("key"), nil
}
func (*counter) Roots() []byte { return []byte("roots") }

type who struct {
	c   authn.Caller
	err error
}

func (w who) Caller(context.Context) (authn.Caller, error) { return w.c, w.err }

type gateways map[string]string

func (g gateways) GatewayOf(ns, pod string, _ bool) (string, bool) {
	n, ok := g[ns+"/"+pod]
	return n, ok
}
func (gateways) PlaceOf(string, string) string { return "" }

func gate(caller authn.Caller) (*Gate, *counter) {
	issuer, store := &counter{}, publish.New()
	return &Gate{
		Authenticator: who{c: caller}, Store: store, Gateways: gateways{"shop/wp-1": "waypoint", "shop/other-1": "other"},
		Secrets: NewSecrets(issuer, store, time.Hour),
	}, issuer
}

func waypointCaller(pod string) authn.Caller {
	return authn.Caller{Identity: identity.MustParse("spiffe://cluster.local/ns/shop/sa/" + pod), PodName: pod}
}

func admit(t *testing.T, g *Gate, node *corev3.Node) (xds.Admission, error) {
	t.Helper()
	ctx, err := g.Authenticate(t.Context())
	if err != nil {
		return xds.Admission{}, err
	}
	return g.Admit(ctx, node)
}

func TestNoTokenNothingServed(t *testing.T) {
	g, _ := gate(authn.Caller{})
	g.Authenticator = who{err: errors.New("expired")}
	if _, err := admit(t, g, &corev3.Node{Id: "ztunnel~1~z.istio-system~x"}); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("got %v", err)
	}
	if _, err := g.Admit(t.Context(), &corev3.Node{Id: "ztunnel~1~z.istio-system~x"}); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("Admit without Authenticate: %v", err)
	}
}

func TestNodeRefusals(t *testing.T) {
	g, _ := gate(waypointCaller("wp-1"))
	meta := func(k, v string) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{k: structpb.NewStringValue(v)}}
	}
	for name, tc := range map[string]struct {
		node *corev3.Node
		code codes.Code
	}{
		"id":              {&corev3.Node{Id: "waypoint"}, codes.InvalidArgument},
		"type":            {&corev3.Node{Id: "sidecar~1~a.b~c"}, codes.PermissionDenied},
		"namespace":       {&corev3.Node{Id: "waypoint~1~wp-1.shop~c", Metadata: meta("NAMESPACE", "bank")}, codes.PermissionDenied},
		"service account": {&corev3.Node{Id: "waypoint~1~wp-1.shop~c", Metadata: meta("SERVICE_ACCOUNT", "admin")}, codes.PermissionDenied},
	} {
		if _, err := admit(t, g, tc.node); status.Code(err) != tc.code {
			t.Errorf("%s: got %v, want %v", name, err, tc.code)
		}
	}
	g.Authenticator = who{c: waypointCaller("stranger")}
	if _, err := admit(t, g, &corev3.Node{Id: "waypoint~1~wp-1.shop~c"}); status.Code(err) != codes.Unavailable {
		t.Errorf("a pod that is no Gateway's instance claims another's name: %v", err)
	}
}

// TestMeshIsForNodeProxies: an ordinary pod's token is good for its own certificate, not for everybody's addresses and policies.
func TestMeshIsForNodeProxies(t *testing.T) {
	ztunnel := authn.Caller{Identity: identity.MustParse("spiffe://cluster.local/ns/istio-system/sa/ztunnel"), PodName: "z"}
	namesake := authn.Caller{Identity: identity.MustParse("spiffe://cluster.local/ns/shop/sa/ztunnel"), PodName: "z"}
	for _, tc := range []struct {
		name     string
		caller   authn.Caller
		accounts []string
		code     codes.Code
	}{
		{"node proxy", ztunnel, []string{"istio-system/ztunnel"}, codes.OK},
		{"ordinary pod", waypointCaller("wp-1"), []string{"istio-system/ztunnel"}, codes.PermissionDenied},
		{"same name elsewhere", namesake, []string{"istio-system/ztunnel"}, codes.PermissionDenied},
		{"nobody is named", waypointCaller("wp-1"), nil, codes.OK},
	} {
		g, _ := gate(tc.caller)
		g.NodeAccounts = tc.accounts
		adm, err := admit(t, g, &corev3.Node{Id: "ztunnel~1~z.istio-system~x"})
		if status.Code(err) != tc.code {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.code)
		}
		if err == nil {
			adm.Subscription.Close()
		}
	}
}

func TestWaypointSeesItsOwn(t *testing.T) {
	g, issuer := gate(waypointCaller("wp-1"))
	// The id claims the other waypoint; the token's pod decides.
	adm, err := admit(t, g, &corev3.Node{Id: "waypoint~1~other-1.shop~c"})
	if err != nil {
		t.Fatal(err)
	}
	defer adm.Subscription.Close()
	g.Store.Publish(publish.Change{Scope: WaypointScope("shop", "waypoint", ""), URL: xds.ClusterType, Updated: []xds.Resource{{Name: "mine", Version: "1"}}},
		publish.Change{Scope: WaypointScope("shop", "other", ""), URL: xds.ClusterType, Updated: []xds.Resource{{Name: "foreign", Version: "1"}}})
	if got := adm.Subscription.List(xds.ClusterType); len(got) != 1 || got[0].Name != "mine" {
		t.Fatalf("sees %v", got)
	}
	if issuer.n.Load() != 0 {
		t.Fatal("a key was made although nobody asked for a secret")
	}
	r, ok := adm.Subscription.Get(xds.SecretType, CertificateSecret)
	if !ok {
		t.Fatal("no secret")
	}
	var sec tlsv3.Secret
	if err := r.Body.UnmarshalTo(&sec); err != nil {
		t.Fatal(err)
	}
	if got := string(sec.GetTlsCertificate().GetCertificateChain().GetInlineBytes()); got != "chain 1 of spiffe://cluster.local/ns/shop/sa/wp-1" {
		t.Fatalf("secret is %q", got)
	}
}

func TestSecretRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, issuer := gate(waypointCaller("wp-1"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = g.Secrets.Run(ctx) }()
		adm, err := admit(t, g, &corev3.Node{Id: "waypoint~1~wp-1.shop~c"})
		if err != nil {
			t.Fatal(err)
		}
		adm.Subscription.Get(xds.SecretType, CertificateSecret)
		adm.Subscription.Get(xds.SecretType, RootSecret)
		<-adm.Subscription.Changed()
		adm.Subscription.Take()
		time.Sleep(29 * time.Minute)
		synctest.Wait()
		if issuer.n.Load() != 1 {
			t.Fatalf("%d keys made before half of the life", issuer.n.Load())
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		<-adm.Subscription.Changed()
		if issuer.n.Load() != 2 || len(adm.Subscription.Take()[xds.SecretType]) != 2 {
			t.Fatalf("%d keys made after half of the life, want 2 and a push", issuer.n.Load())
		}
		adm.Subscription.Close()
		adm.Subscription.Close() // twice is once
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if issuer.n.Load() != 2 || len(g.Store.List(secretScope(waypointCaller("wp-1").Identity), xds.SecretType)) != 0 {
			t.Fatal("a secret that nobody follows is kept or renewed")
		}
		cancel()
		<-done
	})
}

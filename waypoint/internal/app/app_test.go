package app

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/config"
)

type noCertificate struct{}

func (noCertificate) Certificate(context.Context) (*mtls.Certificate, error) {
	return nil, errors.New("no authority here")
}

// TestRunEndsClean: without authority or control plane it serves nobody, and ends at the signal leaving nothing behind.
func TestRunEndsClean(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	bound := make(chan net.Addr, 1)
	cfg := &config.Config{Pod: "wp", Namespace: "shop", Identity: "spiffe://td/ns/shop/sa/wp", Deadline: time.Second, TunnelIdle: time.Minute}
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, cfg, Deps{
			Out: &out, Log: obs.Discard(), Cert: noCertificate{}, Bound: func(a net.Addr) { bound <- a },
			Listen: func(context.Context, uint16) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
			XDS:    func(context.Context) (*grpc.ClientConn, error) { return nil, errors.New("no control plane here") },
		})
	}()
	c, err := net.Dial("tcp", (<-bound).String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("served without a certificate")
	}
	_ = c.Close()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("did not end")
	}
}

func TestArguments(t *testing.T) {
	for args, ok := range map[string]bool{
		"": true, "proxy waypoint": true, "proxy waypoint --domain x.svc.cluster.local --serviceCluster wp.shop": true,
		"proxy router --domain x.svc.cluster.local": true, "proxy ztunnel": false, "--nope": false, "proxy waypoint --domain": false,
	} {
		router, err := checkArgs(strings.Fields(args))
		if (err == nil) != ok || router != (ok && strings.Contains(args, "router")) {
			t.Errorf("%q: %v %v", args, router, err)
		}
	}
}

func TestNewIDIsUUID(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		id := newID()
		if len(id) != 36 || id[8] != '-' || id[13] != '-' || id[14] != '4' || id[18] != '-' || id[23] != '-' || !strings.ContainsRune("89ab", rune(id[19])) || seen[id] {
			t.Fatalf("got %q", id)
		}
		seen[id] = true
	}
}

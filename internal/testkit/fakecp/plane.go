package fakecp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/marrowmesh/marrow/api/ca"
	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/xds"
)

// Plane is a running control plane.
type Plane struct {
	// Address is host:port.
	Address string
	// RootPEM verifies the server, and is the root of all certificates.
	RootPEM string

	board *board
	key   *ecdsa.PrivateKey
	root  *x509.Certificate
	done  chan struct{}
	srv   *grpc.Server

	mu     sync.Mutex
	signed map[string]int
	refuse error
	nacks  []string
}

// Start listens on loopback, in the network namespace of the caller.
func Start() (*Plane, error) {
	p := &Plane{board: newBoard(), done: make(chan struct{}), signed: map[string]int{}}
	if err := p.makeRoot(); err != nil {
		return nil, err
	}
	cert, err := p.serverCertificate()
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.Address = l.Addr().String()
	p.srv = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})))
	discovery.RegisterAggregatedDiscoveryServiceServer(p.srv, xds.NewServer(xds.ServerConfig{Gatekeeper: p, OnNack: p.nack}))
	ca.RegisterIstioCertificateServiceServer(p.srv, authority{plane: p})
	go func() {
		defer close(p.done)
		_ = p.srv.Serve(l)
	}()
	return p, nil
}

// Stop ends it and waits.
func (p *Plane) Stop() {
	p.srv.Stop()
	<-p.done
}

// Workload puts a workload, or takes it away when body is nil.
func (p *Plane) Workload(uid string, body *workload.Workload) error {
	if body == nil {
		return p.board.set(xds.AddressType, uid, nil)
	}
	body.Uid = uid
	return p.board.set(xds.AddressType, uid, &workload.Address{Type: &workload.Address_Workload{Workload: body}})
}

// Service puts a service.
func (p *Plane) Service(body *workload.Service) error {
	return p.board.set(xds.AddressType, body.GetNamespace()+"/"+body.GetHostname(), &workload.Address{Type: &workload.Address_Service{Service: body}})
}

// Policy puts an authorization policy, or takes it away when body is nil.
func (p *Plane) Policy(name string, body *security.Authorization) error {
	if body == nil {
		return p.board.set(xds.AuthorizationType, name, nil)
	}
	return p.board.set(xds.AuthorizationType, name, body)
}

// RefuseCertificates makes the authority answer with err until it is nil again.
func (p *Plane) RefuseCertificates(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = err
}

// Signed counts the certificates of an identity.
func (p *Plane) Signed(id string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.signed[id]
}

func (p *Plane) nack(_, _, message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nacks = append(p.nacks, message)
}

// Nacks are the refusals that came in.
func (p *Plane) Nacks() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.nacks...)
}

// Authenticate lets everybody in.
func (p *Plane) Authenticate(ctx context.Context) (context.Context, error) { return ctx, nil }

// Admit serves every type to everybody.
func (p *Plane) Admit(context.Context, *corev3.Node) (xds.Admission, error) {
	return xds.Admission{Scope: "all", Types: map[string]bool{xds.AddressType: true, xds.AuthorizationType: true}, Subscription: p.board.subscribe()}, nil
}

func (p *Plane) makeRoot() (err error) {
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"test root"}}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, p.key.Public(), p.key)
	if err != nil {
		return err
	}
	p.RootPEM = encode(der)
	p.root, err = x509.ParseCertificate(der)
	return err
}

func (p *Plane) serverCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(240 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, p.root, key.Public(), p.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

type authority struct {
	ca.UnimplementedIstioCertificateServiceServer

	plane *Plane
}

// CreateCertificate signs for the impersonated identity.
func (a authority) CreateCertificate(_ context.Context, req *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	p := a.plane
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse != nil {
		return nil, status.Error(codes.Unavailable, p.refuse.Error())
	}
	id := req.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue()
	der, err := p.sign(id, req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	p.signed[id]++
	return &ca.IstioCertificateResponse{CertChain: []string{encode(der), p.RootPEM}}, nil
}

func (p *Plane) sign(id string, req *ca.IstioCertificateRequest) ([]byte, error) {
	block, _ := pem.Decode([]byte(req.GetCsr()))
	if block == nil {
		return nil, errors.New("no PEM in the request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	uri, err := url.Parse(id)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{uri}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Duration(req.GetValidityDuration()) * time.Second), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, p.root, csr.PublicKey, p.key)
}

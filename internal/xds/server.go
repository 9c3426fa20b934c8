package xds

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// firstMessageLimit is how long a new stream may stay silent.
const firstMessageLimit = 10 * time.Second

// maxNames bounds what one client may subscribe to by name, per type.
const maxNames = 100_000

// Subscription is one client's view of published resources.
type Subscription interface {
	// Changed receives (without blocking the publisher) when Take has something.
	Changed() <-chan struct{}
	// Take returns the names that changed since the last Take, by type URL.
	Take() map[string][]string
	// Get returns the present state of one resource.
	Get(url, name string) (Resource, bool)
	// List returns all resources of a type.
	List(url string) []Resource
	// Close ends the subscription.
	Close()
}

// Gatekeeper decides who may open a stream and what they see.
type Gatekeeper interface {
	// Authenticate looks at the call's credentials before anything is read; its error ends the stream.
	Authenticate(ctx context.Context) (context.Context, error)
	// Admit looks at the node of the first message. The subscription is closed with the stream.
	Admit(ctx context.Context, node *corev3.Node) (Admission, error)
}

// Admission is what an admitted client may do.
type Admission struct {
	// Scope names what is served, for the debug listing.
	Scope string
	// Types that this client may ask for; others get an empty answer once.
	Types map[string]bool
	// Wildcard types: asked for with no names, they mean everything. A named type with no names means nothing.
	Subscription Subscription
}

// ServerConfig configures a [Server].
type ServerConfig struct {
	Gatekeeper Gatekeeper
	// OnNack is told what a client refused; nil ignores. It must not block.
	OnNack func(node, url, message string)
	// NewStreams bounds new streams per second; zero means 100.
	NewStreams int
}

// Server is the aggregated discovery service, delta form.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	cfg   ServerConfig
	seq   atomic.Uint64
	limit *limiter

	mu      sync.Mutex
	clients map[*serverStream]struct{}
}

// NewServer returns a server to be registered with a gRPC server.
func NewServer(cfg ServerConfig) *Server {
	if cfg.NewStreams == 0 {
		cfg.NewStreams = 100
	}
	return &Server{cfg: cfg, clients: map[*serverStream]struct{}{}, limit: newLimiter(cfg.NewStreams)}
}

// ClientStatus is one line of the debug listing.
type ClientStatus struct {
	Node  string                `json:"node"`
	Scope string                `json:"scope"`
	Since time.Time             `json:"since"`
	Types map[string]TypeStatus `json:"types"`
}

// TypeStatus says how far a client is with one type.
type TypeStatus struct {
	Sent  string `json:"sentNonce"`
	Acked string `json:"ackedNonce"`
	// Nack is the client's reason for its last refusal; empty after an ACK.
	Nack string `json:"nack,omitempty"`
}

// Clients lists the connected clients, by node id.
func (s *Server) Clients() []ClientStatus {
	s.mu.Lock()
	streams := make([]*serverStream, 0, len(s.clients))
	for st := range s.clients {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	out := make([]ClientStatus, 0, len(streams))
	for _, st := range streams {
		out = append(out, st.status())
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Node < out[j].Node })
	return out
}

// serverStream is one client's stream; only its own goroutine writes to it.
type serverStream struct {
	srv   *Server
	rpc   discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	adm   Admission
	node  string
	since time.Time

	mu    sync.Mutex // guards types for the debug listing
	types map[string]*subscribed
}

// subscribed is what a client asked for of one type on this stream.
type subscribed struct {
	wildcard bool
	names    map[string]struct{}
	sent     string
	acked    string
	nack     string
}

// DeltaAggregatedResources serves one client.
func (s *Server) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if !s.limit.wait(rpc.Context(), time.Second) {
		return status.Error(codes.ResourceExhausted, "too many new streams at once; try again")
	}
	ctx, err := s.cfg.Gatekeeper.Authenticate(rpc.Context())
	if err != nil {
		return err
	}
	reqs, readErr := readRequests(rpc)
	var first *discovery.DeltaDiscoveryRequest
	select {
	case first = <-reqs:
	case <-time.After(firstMessageLimit):
		return status.Error(codes.DeadlineExceeded, "no request within 10 s of opening the stream")
	case <-ctx.Done():
		return ctx.Err()
	}
	if first == nil {
		return endOf(readErr())
	}
	if first.GetNode().GetId() == "" {
		return status.Error(codes.InvalidArgument, "the first request must carry a node with an id")
	}
	adm, err := s.cfg.Gatekeeper.Admit(ctx, first.GetNode())
	if err != nil {
		return err
	}
	defer adm.Subscription.Close()
	st := &serverStream{srv: s, rpc: rpc, adm: adm, node: first.GetNode().GetId(), since: time.Now(), types: map[string]*subscribed{}}
	s.mu.Lock()
	s.clients[st] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.clients, st)
		s.mu.Unlock()
	}()
	if err := st.request(first); err != nil {
		return err
	}
	return st.run(ctx, reqs, readErr)
}

// readRequests moves requests to a channel until the stream ends.
func readRequests(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) (<-chan *discovery.DeltaDiscoveryRequest, func() error) {
	ch := make(chan *discovery.DeltaDiscoveryRequest)
	var err error
	go func() { // ends with the stream: Recv fails and the send is bounded by the stream's context
		defer close(ch)
		for {
			var req *discovery.DeltaDiscoveryRequest
			if req, err = rpc.Recv(); err != nil {
				return
			}
			select {
			case ch <- req:
			case <-rpc.Context().Done():
				err = rpc.Context().Err()
				return
			}
		}
	}()
	return ch, func() error { return err }
}

func endOf(err error) error {
	if err == nil || errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}

// run serves until the client or the server ends.
func (st *serverStream) run(ctx context.Context, reqs <-chan *discovery.DeltaDiscoveryRequest, readErr func() error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case req, ok := <-reqs:
			if !ok {
				return endOf(readErr())
			}
			if err := st.request(req); err != nil {
				return err
			}
		case <-st.adm.Subscription.Changed():
			if err := st.push(); err != nil {
				return err
			}
		}
	}
}

// request handles a subscription change, an ACK or a NACK.
func (st *serverStream) request(req *discovery.DeltaDiscoveryRequest) error {
	url := req.GetTypeUrl()
	sub, known := st.types[url]
	if !known {
		return st.open(req)
	}
	if nonce := req.GetResponseNonce(); nonce != "" {
		if nonce != sub.sent {
			return nil // an answer to something older: what counts is on its way
		}
		st.answered(url, sub, req)
	}
	if len(req.GetResourceNamesSubscribe()) == 0 && len(req.GetResourceNamesUnsubscribe()) == 0 {
		return nil
	}
	added, becameWildcard := sub.change(req)
	if len(sub.names) > maxNames {
		return status.Errorf(codes.ResourceExhausted, "more than %d names of %s subscribed", maxNames, url)
	}
	if becameWildcard {
		return st.send(url, sub, st.adm.Subscription.List(url), nil)
	}
	if len(added) == 0 {
		return nil
	}
	found, missing := st.lookup(url, added)
	return st.send(url, sub, found, missing)
}

func (st *serverStream) answered(url string, sub *subscribed, req *discovery.DeltaDiscoveryRequest) {
	st.mu.Lock()
	if d := req.GetErrorDetail(); d != nil {
		sub.nack = d.GetMessage()
	} else {
		sub.acked, sub.nack = req.GetResponseNonce(), ""
	}
	nack := sub.nack
	st.mu.Unlock()
	if nack != "" && st.srv.cfg.OnNack != nil {
		st.srv.cfg.OnNack(st.node, url, nack)
	}
}

// open handles the first request of a type: it is answered even when there is nothing to say.
func (st *serverStream) open(req *discovery.DeltaDiscoveryRequest) error {
	url := req.GetTypeUrl()
	sub := &subscribed{names: map[string]struct{}{}}
	if len(st.types) > 32 {
		return status.Error(codes.ResourceExhausted, "too many resource types on one stream")
	}
	st.mu.Lock()
	st.types[url] = sub
	st.mu.Unlock()
	initial := req.GetInitialResourceVersions()
	if len(req.GetResourceNamesSubscribe()) > maxNames || len(initial) > 10*maxNames {
		return status.Errorf(codes.ResourceExhausted, "more than %d names of %s subscribed", maxNames, url)
	}
	sub.change(req)
	if len(req.GetResourceNamesSubscribe()) == 0 && !namedOnly(url) {
		sub.wildcard = true
	}
	if !st.adm.Types[url] {
		return st.send(url, sub, nil, nil)
	}
	var found []Resource
	var removed []string
	if sub.wildcard {
		found = st.adm.Subscription.List(url)
		present := make(map[string]struct{}, len(found))
		for _, r := range found {
			present[r.Name] = struct{}{}
		}
		for n := range initial {
			if _, ok := present[n]; !ok {
				removed = append(removed, n)
			}
		}
	} else {
		names := make([]string, 0, len(sub.names))
		for n := range sub.names {
			names = append(names, n)
		}
		found, removed = st.lookup(url, names)
		for n := range initial {
			if _, asked := sub.names[n]; !asked {
				removed = append(removed, n)
			}
		}
	}
	return st.send(url, sub, newer(found, initial), removed)
}

// namedOnly types never mean "everything" by an empty list.
func namedOnly(url string) bool { return url == EndpointType || url == RouteType || url == SecretType }

// newer leaves out what the client has already; a resource without version is always sent.
func newer(found []Resource, have map[string]string) []Resource {
	out := found[:0:0]
	for _, r := range found {
		if v, ok := have[r.Name]; ok && v != "" && v == r.Version {
			continue
		}
		out = append(out, r)
	}
	return out
}

// change applies subscribe, then unsubscribe, to the set ("*" is everything), in
// that order because an on-demand client sends both in its first request.
func (s *subscribed) change(req *discovery.DeltaDiscoveryRequest) (added []string, becameWildcard bool) {
	was := s.wildcard
	for _, n := range req.GetResourceNamesSubscribe() {
		if n == "*" {
			s.wildcard = true
			continue
		}
		// Asked for again means: send again.
		s.names[n] = struct{}{}
		added = append(added, n)
	}
	for _, n := range req.GetResourceNamesUnsubscribe() {
		if n == "*" {
			s.wildcard = false
			continue
		}
		delete(s.names, n)
	}
	return added, s.wildcard && !was
}

func (st *serverStream) lookup(url string, names []string) (found []Resource, missing []string) {
	for _, n := range names {
		if r, ok := st.adm.Subscription.Get(url, n); ok && st.adm.Types[url] {
			found = append(found, r)
		} else {
			missing = append(missing, n)
		}
	}
	return found, missing
}

// push sends what changed, types in the order that keeps references whole.
func (st *serverStream) push() error {
	changed := st.adm.Subscription.Take()
	// A workload names the policies that hold for it, and a proxy passes over a name that it does not know. New policies
	// therefore go before the workloads, and removals after them, or for a moment nothing would hold.
	policies, outdated := st.changes(AuthorizationType, changed[AuthorizationType])
	if err := st.tell(AuthorizationType, policies, nil); err != nil {
		return err
	}
	for _, url := range pushOrder() {
		found, missing := st.changes(url, changed[url])
		if err := st.tell(url, found, missing); err != nil {
			return err
		}
	}
	return st.tell(AuthorizationType, nil, outdated)
}

// changes are those of the changed names that the client asked for.
func (st *serverStream) changes(url string, names []string) (found []Resource, missing []string) {
	sub := st.types[url]
	if sub == nil || !st.adm.Types[url] {
		return nil, nil
	}
	if !sub.wildcard {
		kept := names[:0:0]
		for _, n := range names {
			if _, ok := sub.names[n]; ok {
				kept = append(kept, n)
			}
		}
		names = kept
	}
	return st.lookup(url, names)
}

// tell sends a change, unless it is empty.
func (st *serverStream) tell(url string, found []Resource, missing []string) error {
	if len(found) == 0 && len(missing) == 0 {
		return nil
	}
	return st.send(url, st.types[url], found, missing)
}

// send writes one response and remembers its nonce.
func (st *serverStream) send(url string, sub *subscribed, found []Resource, removed []string) error {
	sort.Slice(found, func(i, j int) bool { return found[i].Name < found[j].Name })
	sort.Strings(removed)
	version := st.srv.seq.Add(1)
	resp := &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: fmt.Sprintf("%s/%d", time.Now().UTC().Format(time.RFC3339), version),
		TypeUrl:           url,
		Nonce:             fmt.Sprintf("%d-%s", version, rand.Text()),
		RemovedResources:  removed,
		Resources:         make([]*discovery.Resource, 0, len(found)),
	}
	for _, r := range found {
		resp.Resources = append(resp.Resources, &discovery.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
	}
	st.mu.Lock()
	sub.sent = resp.GetNonce()
	st.mu.Unlock()
	return st.rpc.Send(resp)
}

func (st *serverStream) status() ClientStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	cs := ClientStatus{Node: st.node, Scope: st.adm.Scope, Since: st.since, Types: map[string]TypeStatus{}}
	for url, sub := range st.types {
		cs.Types[url] = TypeStatus{Sent: sub.sent, Acked: sub.acked, Nack: sub.nack}
	}
	return cs
}

// limiter spaces out new streams: one token per 1/rate second, a second's worth in store.
type limiter struct {
	mu   sync.Mutex
	gap  time.Duration
	next time.Time
	room time.Duration
}

func newLimiter(perSecond int) *limiter {
	return &limiter{gap: time.Second / time.Duration(perSecond), room: time.Second}
}

// wait takes a token, waiting up to most; false means that none came in time.
func (l *limiter) wait(ctx context.Context, most time.Duration) bool {
	l.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-l.room); l.next.Before(earliest) {
		l.next = earliest
	}
	delay := l.next.Sub(now)
	if delay > most {
		l.mu.Unlock()
		return false
	}
	l.next = l.next.Add(l.gap)
	l.mu.Unlock()
	if delay <= 0 {
		return true
	}
	select {
	case <-time.After(delay):
		return true
	case <-ctx.Done():
		return false
	}
}
